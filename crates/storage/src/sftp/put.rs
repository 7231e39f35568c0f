//! Storing an object: written aside, and named when it is whole.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Found, PARALLEL, PIECE_BYTES, SftpStore, seek};
use crate::random::random_name;
use crate::{Key, StorageError, StorageErrorKind as Kind};

/// Attempts to name an object while others remove its directory.
const LINK_ATTEMPTS: u32 = 4;
/// Where unfinished objects lie.
const TEMP_DIRECTORY: &str = ".tmp";

impl SftpStore {
    /// Stores a new object.
    pub(super) async fn put(&self, key: &Key, body: &Bytes) -> Result<(), StorageError> {
        let temp = self.write_temp(key, body).await?;
        let named = self.give_name(key, &temp).await;
        if self.hardlink || named.is_err() {
            self.remove_temp(&temp).await;
        }
        named
    }

    /// Writes an unfinished object and returns its path.
    async fn write_temp(&self, key: &Key, body: &Bytes) -> Result<String, StorageError> {
        let name = random_name().map_err(|error| {
            StorageError::new(Kind::Other, "put", key, format!("no random bytes: {error}"))
        })?;
        let path = self.path(&format!("{TEMP_DIRECTORY}/{name}"));
        let mut written = self.try_write(key, body, &path).await;
        if written.as_ref().is_err_and(|error| error.is_not_found()) {
            self.make_directories(&self.path(TEMP_DIRECTORY)).await;
            written = self.try_write(key, body, &path).await;
        }
        let Err(error) = written else { return Ok(path) };
        // Asked before it is removed, and has room again.
        let is_full = error.kind == Kind::Other && self.is_full(body.len() as u64).await;
        self.remove_temp(&path).await;
        if !is_full {
            return Err(error);
        }
        let message = format!("the file system of {} is full", self.target.place);
        Err(StorageError::new(Kind::NoSpace, "put", key, message).with_source(error))
    }

    /// Whether the server's file system has no room for so many bytes, if the server can say that: of a full disk it says
    /// "failure", as of many things.
    async fn is_full(&self, bytes: u64) -> bool {
        let root = self.root.clone();
        let asked = self.call("put", "", 0, |session| async move {
            if !session.sftp.support_statvfs() {
                return Ok(None);
            }
            session.sftp.fs().statvfs(root).await.map(Some)
        });
        asked.await.ok().flatten().is_some_and(|space| {
            space.bavail.saturating_mul(space.frsize) < bytes || (space.files > 0 && space.favail == 0)
        })
    }

    async fn try_write(&self, key: &Key, body: &Bytes, path: &str) -> Result<(), StorageError> {
        self.call("put", key.as_str(), body.len() as u64, |session| async move {
            let mut options = session.sftp.options();
            let file = options.write(true).create_new(true).open(path).await?;
            let pieces = stream::iter((0..body.len()).step_by(PIECE_BYTES as usize));
            let writes = pieces.map(|start| {
                let mut file = file.clone();
                let piece = &body[start..body.len().min(start + PIECE_BYTES as usize)];
                async move {
                    seek(&mut file, start as u64)?;
                    file.write_all(piece).await
                }
            });
            writes.buffer_unordered(PARALLEL).try_collect::<()>().await?;
            let mut file = file;
            if session.sftp.support_fsync() {
                file.sync_all().await?;
            }
            file.close().await
        })
        .await
    }

    async fn remove_temp(&self, path: &str) {
        let removed =
            self.call("put", "", 0, |session| async move { session.sftp.fs().remove_file(path).await }).await;
        if let Err(error) = removed {
            tracing::debug!(%error, path, "an unfinished object remains");
        }
    }

    /// Gives a written file its name, if that is free.
    async fn give_name(&self, key: &Key, temp: &str) -> Result<(), StorageError> {
        let path = self.path(key.as_str());
        for _ in 0..LINK_ATTEMPTS {
            if !self.hardlink {
                self.check_free(key).await?;
            }
            let named = self.call("put", key.as_str(), 0, |session| {
                let path = path.clone();
                async move {
                    let mut fs = session.sftp.fs();
                    if self.hardlink { fs.hard_link(temp, path).await } else { fs.rename(temp, path).await }
                }
            });
            match named.await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_not_found() => {
                    self.check_above(key).await?;
                    if let Some((parent, _)) = path.rsplit_once('/') {
                        self.make_directories(parent).await;
                    }
                }
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => {
                    self.check_free(key).await?; // servers say "failure" for many things
                    return Err(error);
                }
            }
        }
        Err(StorageError::new(Kind::Unavailable, "put", key, "its directory disappears again and again"))
    }

    async fn check_free(&self, key: &Key) -> Result<(), StorageError> {
        match self.kind_of("put", key.as_str()).await? {
            None => Ok(()),
            Some(Found::Directory) => {
                Err(StorageError::new(Kind::Invalid, "put", key, "there are objects beneath it"))
            }
            Some(_) => Err(StorageError::already_exists(key)),
        }
    }

    /// An object above the key would need to be a directory.
    async fn check_above(&self, key: &Key) -> Result<(), StorageError> {
        for (end, _) in key.as_str().match_indices('/') {
            let above = &key.as_str()[..end];
            if matches!(self.kind_of("put", above).await?, Some(Found::File(_))) {
                let message = format!("`{above}` is an object, so nothing can be stored beneath it");
                return Err(StorageError::new(Kind::Invalid, "put", key, message));
            }
        }
        Ok(())
    }
}
