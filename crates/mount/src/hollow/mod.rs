//! A directory whose files get their content out of a snapshot when it is needed.
//!
//! The directory has everything already, but of some files nothing more than a hole of their size. While
//! [`fill_as_needed`] stands over it, a file system at the same place passes everything through, and fetches what is read
//! of a hollow file before it is read; what is written there stays. When all of it was fetched ([`Filling::fetch_all`])
//! and the file system is gone, the directory is complete, at the same path.

mod beneath;
mod filesystem;
mod names;
mod pending;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use backup_core::monitor::Monitor;
use backup_core::{Cancel, Error, OpenFile, Tree};
use bytes::Bytes;
use fuser::{Config, MountOption, SessionACL};
use keepwell_catalog::MapKey;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use self::beneath::Hollow;
use self::pending::{FetchError, Pending};
use crate::{MountError, Mounted, THREADS, Unmounted, error};

/// The source that such a file system has in the kernel's table of mounts, by which one is found that a killed process left.
pub const FILLING_NAME: &str = "keepwell-instant";

/// A file that is a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HollowFile {
    /// Its path below the directory.
    pub path: PathBuf,
    /// The file in the tree that it is to be.
    pub key: MapKey,
    /// The size of both, in bytes.
    pub size: u64,
}

/// A name that stands for another one, as long as not everything is there.
///
/// Should the process die, the directory beneath lacks what it needs to be taken for a complete one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIn {
    /// The name that is seen.
    pub seen: OsString,
    /// The name in the directory beneath, which is not seen.
    pub beneath: OsString,
}

/// A directory that fills itself.
#[derive(Debug)]
pub struct Filling {
    mounted: Mounted,
    files: Arc<Files>,
}

/// By inode number in the directory beneath; with the path there.
type ByInode = HashMap<u64, (PathBuf, Arc<Pending>)>;

/// What is hollow, and where it comes from.
#[derive(Debug)]
struct Files {
    /// The directory beneath.
    directory: OwnedFd,
    tree: Tree,
    pending: RwLock<ByInode>,
    /// Bytes that were fetched.
    fetched: AtomicU64,
    monitor: Arc<dyn Monitor>,
}

/// Puts a file system over a directory that fetches what is read of these files.
///
/// Whoever uses the directory before or beside it sees holes. If we are root, everybody may use it, as far as owners and
/// modes allow; else only our own user, without root. The process itself should leave it alone: killed while it waits for
/// its own answer, it would not end. Must be called within a multi-threaded tokio runtime, which must live as long as the file system. Files that are not
/// there, or have another size, are refused.
pub async fn fill_as_needed(
    tree: &Tree,
    directory: &Path,
    files: Vec<HollowFile>,
    stand_in: StandIn,
    monitor: Arc<dyn Monitor>,
) -> Result<Filling, MountError> {
    let directory = error::usable(directory)?;
    let files = Arc::new(Files::open(&directory, tree.clone(), files, monitor)?);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(FILLING_NAME.to_owned()),
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    config.acl = if nix::unistd::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    let hollow = Hollow::new(Arc::clone(&files), stand_in);
    let mounted = crate::start(hollow, directory, config, |_| Ok(())).await?;
    Ok(Filling { mounted, files })
}

impl Filling {
    /// Bytes that are to be fetched yet, to a block of 8 KiB.
    pub fn missing_bytes(&self) -> u64 {
        self.files.hollow().values().map(|(_, pending)| pending.missing_bytes()).sum()
    }

    /// Bytes that were fetched so far, of what is in the files.
    pub fn fetched_bytes(&self) -> u64 {
        self.files.fetched.load(Ordering::Relaxed)
    }

    /// Fetches what is missing, file by file, while the directory is in use. Whoever cancels may call it again.
    ///
    /// Files that were removed are left out.
    pub async fn fetch_all(&self, cancel: Cancel) -> Result<(), MountError> {
        let files = Arc::clone(&self.files);
        let task = tokio::task::spawn_blocking(move || files.fetch_all(&cancel));
        task.await.map_err(|died| Error::Task(died.to_string()))?
    }

    /// Returns when somebody has taken the file system away.
    pub async fn ended(&mut self) -> Result<(), MountError> {
        self.mounted.ended().await
    }

    /// Takes the file system away. What stands beneath is complete only if nothing was missing before.
    pub async fn unmount(self) -> Result<Unmounted, MountError> {
        self.mounted.unmount().await
    }
}

impl Files {
    fn open(
        directory: &Path,
        tree: Tree,
        files: Vec<HollowFile>,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Self, MountError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let beneath =
            openat(CWD, directory, flags, Mode::empty()).map_err(|e| failed(directory, e.into()))?;
        let mut pending = HashMap::new();
        for file in files {
            let found = statat(&beneath, &file.path, AtFlags::SYMLINK_NOFOLLOW);
            let found = found.map_err(|e| failed(&file.path, e.into()))?;
            if u64::try_from(found.st_size) != Ok(file.size) || found.st_nlink != 1 {
                let why = std::io::Error::other("it is no hollow file of the right size");
                return Err(failed(&file.path, why));
            }
            pending.insert(found.st_ino, (file.path, Arc::new(Pending::new(file.key, file.size))));
        }
        let (pending, fetched) = (RwLock::new(pending), AtomicU64::new(0));
        Ok(Self { directory: beneath, tree, pending, fetched, monitor })
    }

    /// Fetches a stretch of a file in the snapshot.
    fn fetch(&self, source: &OpenFile, offset: u64, length: usize) -> Result<Bytes, Error> {
        let data = source.read_at(offset, length)?;
        self.fetched.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(data)
    }

    fn fetch_all(&self, cancel: &Cancel) -> Result<(), MountError> {
        let mut inodes: Vec<_> =
            self.hollow().iter().map(|(ino, (_, pending))| (pending.key.clone(), *ino)).collect();
        inodes.sort();
        for (_, ino) in inodes {
            self.fetch_one(ino, cancel)?;
        }
        Ok(())
    }

    /// Fetches what is missing of a file, if it was not removed.
    fn fetch_one(&self, ino: u64, cancel: &Cancel) -> Result<(), MountError> {
        let hollow = self.hollow();
        let Some((path, pending)) = hollow.get(&ino).cloned() else { return Ok(()) };
        if pending.missing_bytes() == 0 {
            return Ok(());
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = openat(&self.directory, &path, flags, Mode::empty());
        let file = File::from(opened.map_err(|error| failed(&path, error.into()))?);
        // As long as it is open, its number is no other file's.
        drop(hollow);
        if file.metadata().map_err(|error| failed(&path, error))?.ino() != ino {
            return Err(failed(&path, std::io::Error::other("another file stands in its place")));
        }
        let source = pending.source(&self.tree)?;
        let read = |offset: u64, length: usize| self.fetch(&source, offset, length);
        let done = pending.fetch_all(&file, &read, &|| !cancel.is_cancelled());
        done.map_err(|error| match error {
            FetchError::Snapshot(error) => error.into(),
            FetchError::Directory(source) => failed(&path, source),
        })
    }

    /// What is hollow. As long as it is held, no inode number passes to another file.
    fn hollow(&self) -> RwLockReadGuard<'_, ByInode> {
        self.pending.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for whoever removes or renames a file.
    fn hollow_mut(&self) -> RwLockWriteGuard<'_, ByInode> {
        self.pending.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(path: &Path, source: std::io::Error) -> MountError {
    MountError::Directory { directory: path.to_path_buf(), source }
}

impl StandIn {
    /// The name beneath of one that is seen; `None` for one that must not be seen.
    fn beneath<'n>(&'n self, name: &'n [u8]) -> Option<&'n [u8]> {
        match name {
            _ if name == self.seen.as_bytes() => Some(self.beneath.as_bytes()),
            _ if name == self.beneath.as_bytes() => None,
            _ => Some(name),
        }
    }

    /// The name that is seen of one beneath; `None` where there is none.
    fn seen<'n>(&'n self, name: &'n [u8]) -> Option<&'n [u8]> {
        match name {
            _ if name == self.beneath.as_bytes() => Some(self.seen.as_bytes()),
            _ if name == self.seen.as_bytes() => None,
            _ => Some(name),
        }
    }
}
