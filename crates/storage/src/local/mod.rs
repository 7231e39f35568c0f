//! A store in a directory.

mod beneath;
mod delete;
mod errno;
mod kind;
mod list;
mod mount;
mod open;
mod probe;
mod put;
mod read;
mod spare;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::store::check_prefix;
use crate::{Capabilities, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind};

/// Where [`LocalFs::create`] and [`LocalFs::open`] look to learn whether the disk is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOptions {
    /// A mount point at or above the repository that must be mounted, whatever fstab says.
    pub require_mount: Option<PathBuf>,
    /// The table of mounts. The longest mount point in it at or above the repository must be mounted; a table
    /// that does not exist asks for nothing.
    pub fstab: PathBuf,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { require_mount: None, fstab: "/etc/fstab".into() }
    }
}

/// A store in a directory, local or on NFS or SMB.
///
/// # Durability
///
/// A new object is written to a fresh file in `.tmp/`, `fdatasync`ed, renamed to its name with
/// `RENAME_NOREPLACE` (on NFS, which lacks that, and on SMB, where it does not hold against other hosts: `link`, then
/// `unlink`), and its directory is `fsync`ed, as is the parent of every directory that this process has not yet seen
/// made durable. So an object is visible only whole, exactly one of several creators wins, and a crash at any moment
/// leaves at most a file in `.tmp/`, which [`open`](Self::open) sweeps up a day later. A deletion is followed by an
/// `fsync` of the directory too.
///
/// When a sync fails, the kernel may have dropped the data and will report success the next time; so the failure
/// is final, the store turns *suspect*, and refuses writes until it is opened again. A full disk is `NoSpace`, and
/// what was written so far is removed.
///
/// # Layout and trust
///
/// The key is the path beneath the root. Objects get mode 0600 and directories 0700. The root is opened once and
/// held, so that a later mount or unmount at its path does not redirect writes; symbolic links in it are never
/// followed. Files whose names are not keys are not listed. Directories that a deletion empties are removed.
///
/// # Cost
///
/// A put costs two syncs (measured on ext4: 3 to 6 ms for a small object, nothing to 12 % for a pack of 16 MiB);
/// puts at the same time share them. `get` and `get_range` are one open and one read, and those of 4 MiB or more use
/// memory of earlier ones again, of which at most 64 MiB is kept. Every listed page reads
/// the directories on the way to its first key once, sorts at most 1000 names of each, and asks for the size of
/// each object; a directory of n objects is thus read n/1000 times, and keys are best spread over directories of
/// at most some ten thousand.
///
/// All calls run on tokio's blocking threads, and go on there when the future is dropped.
/// # Example
///
/// ```
/// use keepwell_storage::{LocalFs, LocalOptions, ObjectStore, StorageErrorKind, list_all};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir()?;
/// let root = dir.path().join("repository");
/// let store = LocalFs::create(&root, &LocalOptions::default()).await?;
/// store.put_new(&"data/2a/pack".parse()?, "sealed bytes".into()).await?; // durable from here on
///
/// let store = LocalFs::open(&root, &LocalOptions::default()).await?;
/// assert_eq!(list_all(&store, "data/").await?.len(), 1);
/// assert_eq!(std::fs::read(root.join("data/2a/pack"))?, b"sealed bytes");
/// let again = store.put_new(&"data/2a/pack".parse()?, "other bytes".into()).await.unwrap_err();
/// assert_eq!(again.kind, StorageErrorKind::AlreadyExists);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct LocalFs {
    disk: Arc<Disk>,
}

/// The open root and what this process knows about it; its methods block.
struct Disk {
    root: OwnedFd,
    path: PathBuf,
    /// Whether `RENAME_NOREPLACE` holds against everyone, not only against this host; otherwise objects are linked.
    ///
    /// Linux asks an SMB server to replace all the same, having looked into its own cache: of two hosts that rename to
    /// one name both are told that they succeeded (seen with 6.1, 40 times out of 40).
    rename_is_exclusive: bool,
    suspect: AtomicBool,
    /// Directories whose own name is known to be durable, without those that this process removed.
    durable: Mutex<HashMap<String, DirectoryId>>,
    spare: spare::Spare,
    sync: SyncCalls,
}

/// Tells a directory from a later one of the same name: inode and time of birth. Both are those of the old one when
/// it is made anew within a tick of the clock, some milliseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
struct DirectoryId(u64, i64, u32);

type SyncCall = Arc<dyn Fn(BorrowedFd<'_>) -> Result<(), Errno> + Send + Sync>;

/// The two calls that make things durable; tests replace them to see the order, and to fail.
#[derive(Clone)]
struct SyncCalls {
    data: SyncCall,
    directory: SyncCall,
}

/// Known directories are forgotten beyond this number; that costs a sync each to learn them again.
const DURABLE_DIRECTORIES_MAX: usize = 1 << 16;

impl Default for SyncCalls {
    fn default() -> Self {
        Self {
            data: Arc::new(|file: BorrowedFd<'_>| rustix::fs::fdatasync(file)),
            directory: Arc::new(|directory: BorrowedFd<'_>| rustix::fs::fsync(directory)),
        }
    }
}

impl LocalFs {
    /// Prepares a new repository directory, made with its missing parents, or opens it if there is one.
    ///
    /// Fails with `NotMounted` as [`open`](Self::open) does, before anything is made, and with `AlreadyExists`
    /// if the directory holds something other than a repository.
    pub async fn create(path: impl AsRef<Path>, options: &LocalOptions) -> Result<Self, StorageError> {
        let (path, options) = (path.as_ref().to_path_buf(), options.clone());
        blocking(move || open::create(&path, &options)).await
    }

    /// Opens the repository directory at `path`.
    ///
    /// Fails with `NotMounted` if the file system it should be on is not mounted. Removes our own unfinished files
    /// older than a day, if it can; otherwise it writes nothing, so that a read-only disk can be restored from.
    pub async fn open(path: impl AsRef<Path>, options: &LocalOptions) -> Result<Self, StorageError> {
        let (path, options) = (path.as_ref().to_path_buf(), options.clone());
        blocking(move || open::open("open", &path, &options)).await
    }

    /// The root directory, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.disk.path
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let disk = Arc::clone(&self.disk);
        blocking(move || work(&disk)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StorageError::new(
                StorageErrorKind::Other,
                "run",
                "blocking task",
                "the runtime is shutting down",
            )
            .with_source(error)),
        },
    }
}

impl Disk {
    fn new(root: OwnedFd, path: PathBuf) -> Self {
        let rename_is_exclusive = !kind::is_smb(root.as_fd()).unwrap_or(true);
        let (suspect, durable) = (AtomicBool::new(false), Mutex::default());
        let (spare, sync) = (spare::Spare::default(), SyncCalls::default());
        Self { root, path, rename_is_exclusive, suspect, durable, spare, sync }
    }

    /// Refuses writes after a failed sync.
    fn check_not_suspect(&self, operation: &'static str, key: &Key) -> Result<(), StorageError> {
        if !self.suspect.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = "an earlier write to this store could not be made durable, so no more are attempted";
        Err(StorageError::new(StorageErrorKind::Suspect, operation, key, message)
            .with_hint(errno::SUSPECT_HINT))
    }

    /// Makes a file's content durable. A full disk may show only now; every other failure is final.
    fn sync_data(
        &self,
        operation: &'static str,
        key: &Key,
        file: BorrowedFd<'_>,
    ) -> Result<(), StorageError> {
        match (self.sync.data)(file) {
            Ok(()) => Ok(()),
            Err(full @ (Errno::NOSPC | Errno::DQUOT)) => Err(errno::storage_error(operation, key, full)),
            Err(error) => Err(self.turn_suspect(operation, key, error)),
        }
    }

    /// Makes the names in a directory durable. A file system that has no such call (some FUSE and old SMB mounts)
    /// sends names to its server at once, so there is nothing to wait for.
    fn sync_directory(
        &self,
        operation: &'static str,
        key: &Key,
        directory: BorrowedFd<'_>,
    ) -> Result<(), StorageError> {
        match (self.sync.directory)(directory) {
            Ok(()) | Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(self.turn_suspect(operation, key, error)),
        }
    }

    fn turn_suspect(&self, operation: &'static str, key: &Key, error: Errno) -> StorageError {
        self.suspect.store(true, Ordering::Release);
        let source = std::io::Error::from(error);
        tracing::error!(store = %self.path.display(), %key, %source, "a sync failed; the store is suspect");
        let message = format!("the disk did not confirm that the {operation} is durable");
        StorageError::new(StorageErrorKind::Suspect, operation, key, message)
            .with_hint(errno::SUSPECT_HINT)
            .with_source(source)
    }

    fn is_durable(&self, path: &str, directory: BorrowedFd<'_>) -> bool {
        let known = self.durable.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
        known.is_some_and(|known| directory_id(directory).is_ok_and(|id| id == Some(known)))
    }

    fn remember_durable(&self, path: &str, directory: BorrowedFd<'_>) {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked while no deletion of this process can remove it: one that is gone already was forgotten before, and
        // remembered now it would stand for the next of its name.
        let Ok(Some(id)) = directory_id(directory) else { return };
        if durable.len() >= DURABLE_DIRECTORIES_MAX {
            durable.clear();
        }
        durable.insert(path.to_owned(), id);
    }
}

/// `None` for a directory that was removed.
fn directory_id(directory: BorrowedFd<'_>) -> Result<Option<DirectoryId>, Errno> {
    let asked = StatxFlags::INO | StatxFlags::BTIME | StatxFlags::NLINK;
    let facts = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, asked)?;
    let id = DirectoryId(facts.stx_ino, facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec);
    Ok((facts.stx_nlink > 0).then_some(id))
}

#[async_trait]
impl ObjectStore for LocalFs {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        let key = key.clone();
        self.run(move |disk| disk.put_new(&key, &body)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.get_at_most(key, u64::MAX).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        let key = key.clone();
        self.run(move |disk| disk.get(&key, most)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        let key = key.clone();
        self.run(move |disk| disk.get_range(&key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        let key = key.clone();
        self.run(move |disk| disk.head(&key)).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        check_prefix(prefix)?;
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.run(move |disk| disk.list_page(&prefix, after.as_ref())).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let key = key.clone();
        self.run(move |disk| disk.delete(&key)).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: true } // a file system that cannot do it fails every put
    }

    fn describe(&self) -> String {
        format!("directory {}", self.disk.path.display())
    }
}

impl fmt::Debug for LocalFs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LocalFs({})", self.disk.path.display())
    }
}
