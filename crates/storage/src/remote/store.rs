//! The store.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use opendal::options::{ListOptions, WriteOptions};
use opendal::{HttpTransporter, Operator, Writer};

use super::failure::Site;
use super::services::Parts;
use super::{Limits, Service};
use crate::store::check_prefix;
use crate::{
    Capabilities, Key, LIST_PAGE_MAX, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};

/// Slowest upload that is not given up, in bytes per second.
const UPLOAD_RATE_MIN: u64 = 32 << 10;
/// S3 and GCS take at most 10,000 parts.
const PARTS_MAX: u64 = 9_000;
/// The objects that may have a storage class of their own begin with this.
const COLD_PREFIX: &str = "data/";

/// Objects in a bucket, container or directory of a service that OpenDAL speaks to.
///
/// Every call is one attempt with a time limit. After any failure of an upload the whole object must be put again from
/// its beginning; parts that were sent are removed, if the store lets us.
pub(super) struct OpendalStore {
    site: Site,
    hot: Operator,
    cold: Option<Operator>,
    limits: Limits,
    place: String,
}

impl OpendalStore {
    pub(super) fn new(parts: Parts, transport: HttpTransporter, limits: Limits, place: String) -> Self {
        let with_transport = |operator: Operator| {
            let context = operator.context().with_http_transport(transport.clone());
            operator.with_context(context)
        };
        let (hot, cold) = (with_transport(parts.hot), parts.cold.map(with_transport));
        Self { site: parts.site, hot, cold, limits, place }
    }

    fn operator_for(&self, key: &Key) -> &Operator {
        self.cold.as_ref().filter(|_| key.as_str().starts_with(COLD_PREFIX)).unwrap_or(&self.hot)
    }

    /// One call with a time limit.
    async fn limited<T>(
        &self,
        operation: &'static str,
        subject: &str,
        time: Duration,
        call: impl Future<Output = opendal::Result<T>>,
    ) -> Result<T, StorageError> {
        match tokio::time::timeout(time, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.site.failure(operation, subject, &error)),
            Err(_) => Err(self.site.timed_out(operation, subject, time.as_secs())),
        }
    }

    async fn upload(&self, key: &Key, body: &Bytes) -> Result<(), StorageError> {
        let size = body.len() as u64;
        let time = self.limits.timeout + Duration::from_secs(size / UPLOAD_RATE_MIN);
        let options = WriteOptions {
            if_not_exists: true,
            concurrent: self.limits.parallel_parts,
            content_type: Some("application/octet-stream".into()),
            ..WriteOptions::default()
        };
        let operator = self.operator_for(key);
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
        done
    }

    /// Reads `range`, or all of it. More than was asked for is an error, less is not.
    async fn read(
        &self,
        operation: &'static str,
        key: &Key,
        range: Option<&Range<u64>>,
    ) -> Result<Bytes, StorageError> {
        let time = self.limits.timeout;
        let expected = range.map(|range| range.end - range.start);
        let stream = async {
            let reader = self.hot.reader(key.as_str()).await?;
            match range {
                Some(range) => reader.into_stream(range.clone()).await,
                None => reader.into_stream(..).await,
            }
        };
        let mut stream = self.limited(operation, key.as_str(), time, stream).await?;
        let mut body =
            BytesMut::with_capacity(usize::try_from(expected.unwrap_or(0)).unwrap_or(0).min(64 << 20));
        while let Some(piece) =
            self.limited(operation, key.as_str(), time, async { stream.next().await.transpose() }).await?
        {
            if expected.is_some_and(|expected| (body.len() + piece.len()) as u64 > expected) {
                return Err(self.site.strange(operation, key, "sent more than was asked for"));
            }
            for part in piece {
                body.extend_from_slice(&part);
            }
        }
        Ok(body.freeze())
    }

    /// Tells a missing object from a missing bucket, which the answer to `head` does not.
    async fn missing(&self, operation: &'static str, key: &Key) -> StorageError {
        match self.read(operation, key, Some(&(0..1))).await {
            Err(error) => error,
            Ok(_) => self.site.strange(operation, key, "finds an object and does not find it"),
        }
    }

    async fn size(&self, operation: &'static str, key: &Key) -> Result<u64, StorageError> {
        let stat =
            self.limited(operation, key.as_str(), self.limits.timeout, self.hot.stat(key.as_str())).await;
        match stat {
            Ok(metadata) => Ok(metadata.content_length()),
            Err(error) if error.is_not_found() && self.site.service == Service::S3 => {
                Err(self.missing(operation, key).await)
            }
            Err(error) => Err(error),
        }
    }
}

async fn send(writer: &mut Writer, body: &Bytes, part_bytes: u64) -> opendal::Result<()> {
    let part = usize::try_from(part_bytes).unwrap_or(usize::MAX);
    let mut rest = body.clone();
    while rest.len() > part {
        writer.write(rest.split_to(part)).await?;
    }
    writer.write(rest).await?;
    writer.close().await.map(drop)
}

#[async_trait]
impl ObjectStore for OpendalStore {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.upload(key, &body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.read("get", key, None).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        const OPERATION: &str = "get range";
        if range.start < range.end {
            match self.read(OPERATION, key, Some(&range)).await {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                Ok(_) => {}
                Err(error) if error.kind == StorageErrorKind::OutOfRange => {}
                Err(error) => return Err(error),
            }
        }
        // Nothing was asked for, or less came: the size says whether that is right.
        let size = self.size(OPERATION, key).await?;
        if range.start > range.end || range.end > size {
            Err(StorageError::out_of_range(key, &range, size))
        } else if range.is_empty() {
            Ok(Bytes::new())
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
        let options = ListOptions {
            recursive: true,
            limit: Some(LIST_PAGE_MAX),
            start_after: after.map(|key| key.as_str().to_owned()),
            ..ListOptions::default()
        };
        let time = self.limits.timeout;
        let opened = self.hot.lister_options(prefix, options);
        let mut lister = self.limited("list", prefix, time, opened).await?;
        let mut objects: Vec<ObjectInfo> = Vec::new();
        while objects.len() < LIST_PAGE_MAX {
            let next = async { lister.next().await.transpose() };
            let Some(entry) = self.limited("list", prefix, time, next).await? else {
                return Ok(Page { objects, more: false });
            };
            let Ok(key) = Key::new(entry.path()) else { continue }; // somebody else's
            if objects.last().is_some_and(|last| last.key >= key) {
                return Err(self
                    .site
                    .strange("list", &key, "does not list in the order of bytes")
                    .with_hint(
                        "S3 directory buckets and Azure's hierarchical namespaces cannot hold a repository.",
                    ));
            }
            let modified = entry.metadata().last_modified().map(|time| time.into_inner().as_nanosecond());
            let modified = modified.and_then(|time| i64::try_from(time).ok());
            objects.push(ObjectInfo { key, size: entry.metadata().content_length(), modified });
        }
        Ok(Page { objects, more: true })
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let deleted = self.hot.delete(key.as_str());
        match self.limited("delete", key.as_str(), self.limits.timeout, deleted).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: true }
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}

impl fmt::Debug for OpendalStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OpendalStore({})", self.place)
    }
}
