//! The store.

use std::fmt;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use md5::{Digest, Md5};
use opendal::options::WriteOptions;
use opendal::{HttpTransporter, Metadata, Operator, Writer};
use tokio::time::Instant;

use super::failure::Site;
use super::listing::{self, Position};
use super::services::Parts;
use super::{Limits, Service};
use crate::connect::Purpose;
use crate::store::check_prefix;
use crate::{Capabilities, Control, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind};

/// Slowest upload that is not given up, in bytes per second.
const UPLOAD_RATE_MIN: u64 = 32 << 10;
/// Slowest download that is not given up: a byte now and then is no answer. Those that are under way together share one line,
/// and this.
const DOWNLOAD_RATE_MIN: u64 = 4 << 10;
/// S3 and GCS take at most 10,000 parts.
const PARTS_MAX: u64 = 9_000;
/// The objects that may have a storage class of their own begin with this.
const COLD_PREFIX: &str = "data/";
/// Smaller ones have it not: a prune reads them to merge them into larger ones, which it cannot do in an archive.
const COLD_BYTES_MIN: u64 = 4 << 20;

/// Objects in a bucket, container or directory of a service that OpenDAL speaks to.
///
/// Every call is one attempt with a time limit. After any failure of an upload the whole object must be put again from
/// its beginning; parts that were sent are removed, if the store lets us.
pub(super) struct OpendalStore {
    pub(super) site: Site,
    pub(super) hot: Operator,
    cold: Option<Operator>,
    pub(super) limits: Limits,
    place: String,
    /// Listings that go on where a page ended, for a service that cannot start at a key.
    pub(super) positions: Mutex<Vec<Position>>,
    /// Reads that are under way.
    reads: AtomicU64,
    control: Option<Arc<dyn Control>>,
}

impl OpendalStore {
    pub(super) fn new(parts: Parts, transport: HttpTransporter, limits: Limits, place: String) -> Self {
        let with_transport = |operator: Operator| {
            let context = operator.context().with_http_transport(transport.clone());
            operator.with_context(context)
        };
        let (hot, cold) = (with_transport(parts.hot), parts.cold.map(with_transport));
        let (positions, reads) = (Mutex::default(), AtomicU64::new(0));
        Self { site: parts.site, hot, cold, limits, place, positions, reads, control: None }
    }

    pub(super) fn with_control(self, control: Option<Arc<dyn Control>>) -> Self {
        Self { control, ..self }
    }

    /// The requests beyond objects, of a service that has none for locks and tells nothing about the bucket.
    #[cfg(any(feature = "gcs", feature = "azblob"))]
    pub(super) fn cloud_control(
        &self,
        http: super::transport::Http,
        url: String,
    ) -> super::control::CloudControl {
        super::control::CloudControl {
            operator: self.hot.clone(),
            site: self.site.clone(),
            timeout: self.limits.timeout,
            http,
            url,
            #[cfg(feature = "gcs")]
            bucket: None,
        }
    }

    /// Makes the directory, or makes sure that it is there. OpenDAL answers a `stat` of it by itself; a listing shows it as
    /// its first entry.
    pub(super) async fn check_root(&self, purpose: Purpose) -> Result<(), StorageError> {
        let time = self.limits.timeout;
        if purpose == Purpose::Create {
            return self.limited("create", &self.place, time, self.hot.create_dir("/")).await;
        }
        let first = async {
            let mut lister = self.hot.lister("/").await?;
            lister.next().await.transpose()
        };
        match self.limited("open", &self.place, time, first).await? {
            Some(_) => Ok(()),
            None => {
                let message = "there is no such directory";
                Err(StorageError::new(StorageErrorKind::NotFound, "open", &self.place, message))
            }
        }
    }

    fn operator_for(&self, key: &Key, size: u64) -> &Operator {
        self.cold.as_ref().filter(|_| is_cold(key, size)).unwrap_or(&self.hot)
    }

    /// One call with a time limit. OpenDAL cuts what a listing says at the length of our prefix, without a look at it, and
    /// panics over names that are shorter: that is an answer that makes no sense, and nothing of the call is used again.
    pub(super) async fn limited<T>(
        &self,
        operation: &'static str,
        subject: &str,
        time: Duration,
        call: impl Future<Output = opendal::Result<T>>,
    ) -> Result<T, StorageError> {
        match tokio::time::timeout(time, AssertUnwindSafe(call).catch_unwind()).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error))) => Err(self.site.failure(operation, subject, &error)),
            Ok(Err(_)) => {
                let message = format!("the answer of {} makes no sense", self.site.server);
                Err(StorageError::new(StorageErrorKind::Other, operation, subject, message))
            }
            Err(_) => Err(self.site.timed_out(operation, subject, time.as_secs())),
        }
    }

    async fn upload(&self, key: &Key, body: &Bytes) -> Result<(), StorageError> {
        match self.upload_once(key, body).await {
            Err(error) if self.may_be_a_race_for_directories(&error) => {
                self.make_parent(key).await?;
                self.upload_once(key, body).await
            }
            done => done,
        }
    }

    /// Apache forbids the making of a directory that somebody else makes at the same moment.
    fn may_be_a_race_for_directories(&self, error: &StorageError) -> bool {
        self.site.service.has_directories()
            && matches!(error.kind, StorageErrorKind::PermissionDenied | StorageErrorKind::Other)
    }

    /// Makes the directories above a key. Whoever loses a race for one finds it there the next time, so that every
    /// attempt comes a level further, unless there is another reason.
    async fn make_parent(&self, key: &Key) -> Result<(), StorageError> {
        let parent = key.as_str().rfind('/').map_or("/", |slash| &key.as_str()[..=slash]);
        let mut levels = self.hot.info().root().matches('/').count() + parent.matches('/').count();
        loop {
            let made = self.hot.create_dir(parent);
            match self.limited("put", key.as_str(), self.limits.timeout, made).await {
                Err(error) if levels > 0 && self.may_be_a_race_for_directories(&error) => levels -= 1,
                done => return done,
            }
        }
    }

    async fn upload_once(&self, key: &Key, body: &Bytes) -> Result<(), StorageError> {
        let size = body.len() as u64;
        let time = self.limits.timeout + Duration::from_secs(size / UPLOAD_RATE_MIN);
        let options = WriteOptions {
            if_not_exists: self.limits.conditional_create,
            concurrent: self.limits.parallel_parts,
            content_type: Some("application/octet-stream".into()),
            ..WriteOptions::default()
        };
        let operator = self.operator_for(key, size);
        let opened = operator.writer_options(key.as_str(), options);
        let mut writer = self.limited("put", key.as_str(), self.limits.timeout, opened).await?;
        let part_bytes = self.limits.part_bytes.max(size.div_ceil(PARTS_MAX));
        let done = self.limited("put", key.as_str(), time, send(&mut writer, body, part_bytes)).await;
        if done.is_err() && size > part_bytes {
            // The parts cost money until somebody removes them; a rule of the bucket can, if this fails.
            let aborted = self.limited("put", key.as_str(), self.limits.timeout, writer.abort()).await;
            if let Err(error) = aborted {
                tracing::debug!(%error, "parts of an upload remain");
            }
        }
        self.check_upload(key, body, done?).await
    }

    /// Compares what the store says it got, if it says so. What is not ours is removed again.
    async fn check_upload(&self, key: &Key, body: &Bytes, stored: Metadata) -> Result<(), StorageError> {
        let Some(said) = stored.content_md5().filter(|said| !said.is_empty()) else { return Ok(()) };
        let body = body.clone();
        let ours = tokio::task::spawn_blocking(move || BASE64_STANDARD.encode(Md5::digest(&body))).await;
        if ours.is_ok_and(|ours| ours == said) {
            return Ok(());
        }
        let changed = format!("the bytes changed on the way to {}", self.site.server);
        let Err(error) = self.delete(key).await else {
            return Err(StorageError::new(StorageErrorKind::Unavailable, "put", key, changed));
        };
        // Not to be put again: whoever may not read would take what has the name for his own.
        let message = format!("{changed}, and what arrived there could not be removed again");
        Err(StorageError::new(StorageErrorKind::Other, "put", key, message)
            .with_hint("Remove the object with credentials that may delete.")
            .with_source(error))
    }

    /// Fails if the name is taken, or is that of a directory. For stores that cannot create conditionally.
    async fn check_free(&self, key: &Key) -> Result<(), StorageError> {
        let stat = self.hot.stat(key.as_str());
        match self.limited("put", key.as_str(), self.limits.timeout, stat).await {
            Ok(found) if found.is_dir() => {
                Err(StorageError::new(StorageErrorKind::Invalid, "put", key, "there are objects beneath it"))
            }
            Ok(_) => Err(StorageError::already_exists(key)),
            Err(error) if error.is_not_found() => Ok(()),
            // A backup host may not read packs, and so not look for one either.
            Err(error)
                if error.kind == StorageErrorKind::PermissionDenied
                    && !self.site.service.has_directories() =>
            {
                if listing::is_there(self, key).await? {
                    Err(StorageError::already_exists(key))
                } else {
                    Ok(())
                }
            }
            Err(error) if self.is_beneath_object(key.as_str(), &error).await => {
                let message = "it would stand beneath an object";
                Err(StorageError::new(StorageErrorKind::Invalid, "put", key, message))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a refusal means that a directory on the way is an object: Apache calls it a bad request.
    pub(super) async fn is_beneath_object(&self, path: &str, error: &StorageError) -> bool {
        if error.kind != StorageErrorKind::Other || !self.site.service.has_directories() {
            return false;
        }
        for (end, _) in path.match_indices('/') {
            let above = self.hot.stat(&path[..end]);
            if self.limited("head", path, self.limits.timeout, above).await.is_ok_and(|found| found.is_file())
            {
                return true;
            }
        }
        false
    }

    /// Reads a range. More than was asked for is an error, less is not.
    async fn read_range(
        &self,
        operation: &'static str,
        key: &Key,
        range: &Range<u64>,
    ) -> Result<Bytes, StorageError> {
        match self.read(operation, key, Some(range), range.end - range.start).await {
            Err(error) if error.kind == StorageErrorKind::TooLarge => {
                Err(self.site.strange(operation, key, "sent more than was asked for"))
            }
            done => done,
        }
    }

    /// Reads `range`, or all of it; gives up as soon as that has more than `most` bytes.
    async fn read(
        &self,
        operation: &'static str,
        key: &Key,
        range: Option<&Range<u64>>,
        most: u64,
    ) -> Result<Bytes, StorageError> {
        let time = self.limits.timeout;
        let stream = async {
            let reader = self.hot.reader(key.as_str()).await?;
            match range {
                Some(range) => reader.into_stream(range.clone()).await,
                None => reader.into_stream(..).await,
            }
        };
        let mut stream = self.limited(operation, key.as_str(), time, stream).await?;
        let expected = range.map_or(0, |range| usize::try_from(range.end - range.start).unwrap_or(0));
        let mut body = BytesMut::with_capacity(expected.min(64 << 20));
        let (begun, under_way) = (Instant::now(), UnderWay::count(&self.reads));
        let mut on_the_line: u64 = 0; // about what came of all downloads together
        loop {
            let patience = time + Duration::from_secs(on_the_line / DOWNLOAD_RATE_MIN);
            let Some(left) = patience.checked_sub(begun.elapsed()) else {
                return Err(self.site.too_slow(operation, key));
            };
            let next = async { stream.next().await.transpose() };
            let piece = match self.limited(operation, key.as_str(), time.min(left), next).await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(body.freeze()),
                Err(_) if !body.is_empty() && begun.elapsed() >= patience => {
                    return Err(self.site.too_slow(operation, key));
                }
                Err(error) => return Err(error),
            };
            if (body.len() + piece.len()) as u64 > most {
                return Err(StorageError::too_large(key, most));
            }
            on_the_line = on_the_line.saturating_add(under_way.all().saturating_mul(piece.len() as u64));
            for part in piece {
                body.extend_from_slice(&part);
            }
        }
    }

    /// Tells a missing object from a missing bucket, which the answer to `head` does not.
    async fn missing(&self, operation: &'static str, key: &Key) -> StorageError {
        match self.read_range(operation, key, &(0..1)).await {
            Err(error) if error.kind != StorageErrorKind::OutOfRange => error,
            // Somebody has stored it between the two questions, perhaps without a byte.
            _ => {
                let message = "the object appeared while it was looked for";
                StorageError::new(StorageErrorKind::Unavailable, operation, key, message)
            }
        }
    }

    async fn size(&self, operation: &'static str, key: &Key) -> Result<u64, StorageError> {
        let stat =
            self.limited(operation, key.as_str(), self.limits.timeout, self.hot.stat(key.as_str())).await;
        match stat {
            Ok(metadata) if metadata.is_dir() => Err(StorageError::not_found(operation, key)),
            Ok(metadata) => Ok(metadata.content_length()),
            Err(error) if error.is_not_found() && self.site.service == Service::S3 => {
                Err(self.missing(operation, key).await)
            }
            Err(error) if self.is_beneath_object(key.as_str(), &error).await => {
                Err(StorageError::not_found(operation, key))
            }
            Err(error) => Err(error),
        }
    }
}

/// One of several things that are under way, until it is dropped.
struct UnderWay<'c>(&'c AtomicU64);

impl<'c> UnderWay<'c> {
    fn count(all: &'c AtomicU64) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all)
    }

    /// How many there are, this one among them.
    fn all(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a new object may have a storage class of its own.
fn is_cold(key: &Key, size: u64) -> bool {
    key.as_str().starts_with(COLD_PREFIX) && size >= COLD_BYTES_MIN
}

async fn send(writer: &mut Writer, body: &Bytes, part_bytes: u64) -> opendal::Result<Metadata> {
    let part = usize::try_from(part_bytes).unwrap_or(usize::MAX);
    let mut rest = body.clone();
    while rest.len() > part {
        writer.write(rest.split_to(part)).await?;
    }
    writer.write(rest).await?;
    writer.close().await
}

#[async_trait]
impl ObjectStore for OpendalStore {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        if !self.limits.conditional_create {
            self.check_free(key).await?;
        }
        match self.upload(key, &body).await {
            Err(denied)
                if denied.kind == StorageErrorKind::PermissionDenied
                    && self.limits.conditional_create
                    && self.site.service.looks_at_rights_first()
                    && matches!(listing::is_there(self, key).await, Ok(true)) =>
            {
                Err(StorageError::already_exists(key))
            }
            done => done,
        }
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.get_at_most(key, u64::MAX).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        if self.site.service.has_directories() {
            self.size("get", key).await?; // a directory may answer with a page for people
        }
        self.read("get", key, None, most).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        const OPERATION: &str = "get range";
        let mut strange = None;
        if range.start < range.end && !self.site.service.has_directories() {
            match self.read_range(OPERATION, key, &range).await {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                Ok(_) => {}
                Err(error) if error.kind == StorageErrorKind::OutOfRange => {}
                // Azurite answers a range that begins at the end with one that ends before it begins.
                Err(error) if error.kind == StorageErrorKind::Other => strange = Some(error),
                Err(error) => return Err(error),
            }
        }
        // Nothing was asked for, or less came: the size says whether that is right.
        let size = self.size(OPERATION, key).await?;
        if range.start > range.end || range.end > size {
            Err(StorageError::out_of_range(key, &range, size))
        } else if range.is_empty() {
            Ok(Bytes::new())
        } else if self.site.service.has_directories() {
            self.read_range(OPERATION, key, &range).await
        } else if let Some(error) = strange {
            Err(error)
        } else {
            let message = format!("{} sent less than was asked for", self.site.server);
            Err(StorageError::new(StorageErrorKind::Unavailable, OPERATION, key, message))
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        Ok(ObjectInfo { key: key.clone(), size: self.size("head", key).await?, modified: None })
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        check_prefix(prefix)?;
        listing::page(self, prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        if self.site.service.has_directories() {
            match self.size("delete", key).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => return Ok(()), // or a directory: never with all that is in it
                Err(error) => return Err(error),
            }
        }
        let deleted = self.hot.delete(key.as_str());
        match self.limited("delete", key.as_str(), self.limits.timeout, deleted).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: self.limits.conditional_create }
    }

    fn describe(&self) -> String {
        self.place.clone()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        self.control.clone()
    }
}

impl fmt::Debug for OpendalStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OpendalStore({})", self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_data_packs_are_cold() {
        for (key, size, cold) in [
            ("data/00/x", 4 << 20, true),
            ("data/00/x", u64::MAX, true),
            ("data/00/x", (4 << 20) - 1, false),
            ("meta/00/x", 64 << 20, false),
            ("index/x", 64 << 20, false),
        ] {
            assert_eq!(is_cold(&key.parse().unwrap(), size), cold, "{key} {size}");
        }
    }
}
