//! A store in a directory that an SSH server gives access to.

mod current;
mod put;
mod session;

use std::fmt;
use std::io::SeekFrom;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use openssh_sftp_client::Error;
use openssh_sftp_client::file::File;
use tokio::io::AsyncSeek;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::connect::Purpose;
use crate::location::{Location, Place, Settings};
use crate::store::check_prefix;
use crate::tree::{self, Child, Directories};
use crate::{Capabilities, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind as Kind};
use current::Current;
use session::{Session, Target};

/// Bytes of one request; what every server takes.
const PIECE_BYTES: u64 = 32 << 10;
/// Requests of one transfer on their way at a time.
const PARALLEL: usize = 64;
/// Slowest transfer that is not given up, in bytes per second.
const RATE_MIN: u64 = 32 << 10;

/// Objects as files of an SFTP server.
///
/// A new object is written to a file of its own in `.tmp/`, synced if the server can (`fsync@openssh.com`), and linked
/// to its name (`hardlink@openssh.com`), which fails where the name is taken. So it appears whole, and exactly one of
/// several creators wins. A server without that extension counts as without conditional create: then the name is
/// looked for first, and the file renamed. Directories cannot be synced over SFTP: after a power failure of the server,
/// the youngest names may be gone.
///
/// `ssh` makes the connection, with its own configuration, keys, agents and known hosts. A connection that broke is
/// made anew by the next call. What a crash leaves in `.tmp/` may be deleted by hand.
pub(crate) struct SftpStore {
    target: Target,
    root: String,
    session: Mutex<Current<Session>>,
    hardlink: bool,
}

/// Opens the directory, or makes it.
pub(crate) async fn open(
    location: &Location,
    settings: &Settings,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let timeout = Duration::from_secs(settings.timeout_seconds.unwrap_or(60).max(1).into());
    let (Place::Sftp { path, .. }, Some(target)) =
        (&location.place, Target::new(&location.place, settings, timeout))
    else {
        return Err(crate::connect::not_built_in(location));
    };
    let session = target.connect().await?;
    let hardlink = session.sftp.support_hardlink();
    let store =
        SftpStore { target, root: path.clone(), session: Mutex::new(Current::new(session)), hardlink };
    store.check_root(purpose).await?;
    Ok(Arc::new(store))
}

impl SftpStore {
    fn path(&self, name: &str) -> String {
        if name.is_empty() { self.root.clone() } else { format!("{}/{name}", self.root) }
    }

    /// One call with a time limit; `bytes` are moved by it. A broken connection is made anew for the next call.
    async fn call<T, F: Future<Output = Result<T, Error>>>(
        &self,
        operation: &'static str,
        subject: &str,
        bytes: u64,
        call: impl FnOnce(Arc<Session>) -> F,
    ) -> Result<T, StorageError> {
        let begun = Instant::now();
        let session = Arc::clone(&self.session.lock().await.value);
        let time = self.target.timeout + Duration::from_secs(bytes / RATE_MIN);
        let (error, is_good) = match tokio::time::timeout(time, call(Arc::clone(&session))).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => self.target.failure(operation, subject, error),
            Err(_) => {
                let message = format!("{} did not answer within {} s", self.target.place, time.as_secs());
                (StorageError::new(Kind::Unavailable, operation, subject, message), false)
            }
        };
        if !is_good {
            self.session.lock().await.renew(&session, begun, || self.target.connect()).await;
        }
        Err(error)
    }

    async fn check_root(&self, purpose: Purpose) -> Result<(), StorageError> {
        if purpose == Purpose::Create {
            self.make_directories(&self.root).await;
        }
        match self.kind_of("open", "").await? {
            Some(Found::Directory) => Ok(()),
            _ => Err(StorageError::new(
                Kind::NotFound,
                "open",
                &self.target.place,
                "there is no such directory",
            )),
        }
    }

    /// What stands at a name beneath the root.
    async fn kind_of(&self, operation: &'static str, name: &str) -> Result<Option<Found>, StorageError> {
        let path = self.path(name);
        let facts =
            self.call(
                operation,
                name,
                0,
                |session| async move { session.sftp.fs().symlink_metadata(path).await },
            );
        match facts.await {
            Ok(facts) if facts.file_type().is_some_and(|kind| kind.is_file()) => {
                Ok(Some(Found::File(facts.len().unwrap_or(0))))
            }
            Ok(facts) if facts.file_type().is_some_and(|kind| kind.is_dir()) => Ok(Some(Found::Directory)),
            Ok(_) => Ok(Some(Found::Else)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn size(&self, operation: &'static str, key: &Key) -> Result<u64, StorageError> {
        match self.kind_of(operation, key.as_str()).await? {
            Some(Found::File(size)) => Ok(size),
            _ => Err(StorageError::not_found(operation, key)),
        }
    }

    /// Makes a directory and what is missing above it; whether that worked shows at the next use.
    async fn make_directories(&self, path: &str) {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for directory in ends.map(|end| path[..end].to_owned()).filter(|directory| !directory.is_empty()) {
            let _ = self
                .call("put", "", 0, |session| async move { session.sftp.fs().create_dir(directory).await })
                .await;
        }
    }

    async fn read(
        &self,
        operation: &'static str,
        key: &Key,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        let (path, length) = (self.path(key.as_str()), range.end - range.start);
        let body = self.call(operation, key.as_str(), length, |session| async move {
            let file = session.sftp.open(path).await?;
            let starts = stream::iter((range.start..range.end).step_by(PIECE_BYTES as usize));
            let reads =
                starts.map(|start| read_piece(file.clone(), start, range.end.min(start + PIECE_BYTES)));
            let mut body = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0).min(64 << 20));
            let mut reads = pin!(reads.buffered(PARALLEL));
            while let Some(piece) = reads.next().await {
                body.extend_from_slice(&piece?);
            }
            Ok(body.freeze())
        });
        let body = body.await?;
        if body.len() as u64 != length {
            let message = format!("{} sent less than was asked for", self.target.place);
            return Err(StorageError::new(Kind::Unavailable, operation, key, message));
        }
        Ok(body)
    }
}

/// What stands at a name.
enum Found {
    File(u64),
    Directory,
    Else,
}

fn seek(file: &mut File, to: u64) -> Result<(), Error> {
    Pin::new(file).start_seek(SeekFrom::Start(to)).map_err(Error::from)
}

/// Reads up to `end`; less only at the end of the file.
async fn read_piece(mut file: File, start: u64, end: u64) -> Result<BytesMut, Error> {
    let mut piece = BytesMut::new();
    while start + (piece.len() as u64) < end {
        let at = start + piece.len() as u64;
        seek(&mut file, at)?; // after a short answer the library's own position is wrong
        let wanted = u32::try_from(end - at).unwrap_or(u32::MAX);
        match file.read(wanted, BytesMut::new()).await? {
            Some(got) if got.len() as u64 <= end - at && !got.is_empty() => piece.extend_from_slice(&got),
            _ => break,
        }
    }
    Ok(piece)
}

impl Directories for SftpStore {
    async fn children(&self, directory: &str) -> Result<Vec<Child>, StorageError> {
        let path = self.path(directory.trim_end_matches('/'));
        let listed = self.call("list", directory, 0, |session| async move {
            let mut fs = session.sftp.fs();
            let mut entries = pin!(fs.open_dir(path).await?.read_dir());
            let mut children = Vec::new();
            while let Some(entry) = entries.next().await {
                let entry = entry?;
                let (Some(name), Some(kind)) = (entry.filename().to_str(), entry.file_type()) else {
                    continue;
                };
                if kind.is_dir() {
                    children.push(Child { name: format!("{name}/"), size: 0, modified: None });
                } else if kind.is_file() {
                    let modified = entry
                        .metadata()
                        .modified()
                        .and_then(|time| i64::try_from(time.as_duration().as_nanos()).ok());
                    let size = entry.metadata().len().unwrap_or(0);
                    children.push(Child { name: name.to_owned(), size, modified });
                }
            }
            Ok(children)
        });
        match listed.await {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            // A file is no directory; servers say "failure".
            Err(error) if error.kind == Kind::Other => {
                match self.kind_of("list", directory.trim_end_matches('/')).await? {
                    Some(Found::Directory) => Err(error),
                    _ => Ok(Vec::new()),
                }
            }
            listed => listed,
        }
    }
}

#[async_trait]
impl ObjectStore for SftpStore {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.put(key, &body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.get_at_most(key, u64::MAX).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        let size = self.size("get", key).await?;
        if size > most {
            return Err(StorageError::too_large(key, most));
        }
        self.read("get", key, 0..size).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        const OPERATION: &str = "get range";
        let size = self.size(OPERATION, key).await?;
        if range.start > range.end || range.end > size {
            return Err(StorageError::out_of_range(key, &range, size));
        }
        self.read(OPERATION, key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        Ok(ObjectInfo { key: key.clone(), size: self.size("head", key).await?, modified: None })
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        check_prefix(prefix)?;
        tree::page(self, prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let path = self.path(key.as_str());
        let removed = self.call("delete", key.as_str(), 0, |session| {
            let path = path.clone();
            async move { session.sftp.fs().remove_file(path).await }
        });
        match removed.await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                return match self.kind_of("delete", key.as_str()).await? {
                    Some(Found::File(_) | Found::Else) => Err(error),
                    Some(Found::Directory) | None => Ok(()),
                };
            }
        }
        // Directories that are empty now go; the first that is not ends it.
        let mut above = key.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            let path = self.path(parent);
            let removed = self
                .call("delete", parent, 0, |session| async move { session.sftp.fs().remove_dir(path).await });
            if removed.await.is_err() {
                break;
            }
            above = parent;
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: self.hardlink }
    }

    fn describe(&self) -> String {
        self.target.place.clone()
    }
}

impl fmt::Debug for SftpStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SftpStore({})", self.target.place)
    }
}
