//! The snapshots of a repository as a read-only file system, through FUSE.
//!
//! [`mount`] shows what a [`Repository`] holds below a directory until [`Mounted::unmount`], or until somebody unmounts
//! it. The top of it is made up: `by-id/ID`, and links to these by time (`by-time/TIME`) and by host and dataset
//! (`by-host/HOST/DATASET/TIME`, with a `latest` in each). Below `by-id/ID` stands what the snapshot holds.
//!
//! What is read is proved as in a restore: every node of a tree and every chunk by its id. What cannot be had is an
//! input/output error there, with the reason to the [`Monitor`](backup_core::monitor::Monitor), and harms nothing beside
//! it. Nothing is read before it is asked for, and what is kept has a bound: caches of less than half of the repository's
//! memory limit, and a table of the files that the kernel knows, which shrinks by itself.
//!
//! ```no_run
//! # async fn show(repository: &backup_core::Repository) -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use backup_core::monitor::Silent;
//! use keepwell_mount::{Audience, MountOptions, mount};
//!
//! let options = MountOptions {
//!     accepts: Arc::new(|snapshot| snapshot.manifest().is_ok()),
//!     audience: Audience::Owner,
//!     refresh_every: Duration::from_secs(10),
//!     monitor: Arc::new(Silent),
//! };
//! let mut mounted = mount(repository, Path::new("/mnt/backups"), options).await?;
//! mounted.ended().await?; // when somebody says `umount /mnt/backups`
//! # Ok(())
//! # }
//! ```
//!
//! Linux only; on other systems the crate is empty. The FUSE protocol is spoken by a library in Rust; of the C library
//! only its helper `fusermount3` is needed, and not by root.
#![cfg(target_os = "linux")]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

mod attributes;
mod directory;
mod error;
mod filesystem;
mod hollow;
mod kept;
mod nodes;
mod shown;
mod sweep;
mod top;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backup_core::monitor::Monitor;
use backup_core::{Repository, Snapshot};
use fuser::{Config, Filesystem, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tokio::sync::oneshot;

pub use error::MountError;
pub use hollow::{FILLING_NAME, Filling, HollowFile, StandIn, fill_as_needed};

use crate::filesystem::Snapshots;

/// Threads that answer the kernel: more of them only wait for the store side by side, and each may hold a frame.
const THREADS: usize = 4;

/// Who may use the mounted file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Whoever mounted it, and nobody else, root included. May read everything, whatever the modes say.
    Owner,
    /// Everybody, as far as the modes, owners and groups in the snapshots allow. For users other than root
    /// `/etc/fuse.conf` must have `user_allow_other`.
    Everybody,
}

/// Which snapshots to show, and to whom.
#[derive(Clone)]
pub struct MountOptions {
    /// Whether to show a snapshot. It must look the same at every call.
    pub accepts: Arc<dyn Fn(&Snapshot) -> bool + Send + Sync>,
    /// Who may use it.
    pub audience: Audience,
    /// New snapshots are looked for when the top of it is used, and the last look is at least so long ago.
    pub refresh_every: Duration,
    /// Hears of what could not be read, which the kernel knows as `EIO` only.
    pub monitor: Arc<dyn Monitor>,
}

impl fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountOptions").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// A mounted file system. Dropped without [`Mounted::unmount`], it stays until the process ends.
#[derive(Debug)]
pub struct Mounted {
    directory: PathBuf,
    ended: oneshot::Receiver<std::io::Result<()>>,
}

/// Shows the snapshots of a repository below a directory, which must exist.
///
/// Lists the snapshots once; trees are read as they are used. Must be called within a multi-threaded tokio runtime, which
/// must live as long as the mount. Fails with what is missing; then nothing is mounted. Should the process die without
/// unmounting, the directory stays a dead mount (`ENOTCONN`) that `umount` removes.
pub async fn mount(
    repository: &Repository,
    directory: &Path,
    options: MountOptions,
) -> Result<Mounted, MountError> {
    let directory = error::usable(directory)?;
    let audience = options.audience;
    let snapshots = Snapshots::new(repository, options).await?;
    let nodes = snapshots.nodes();
    start(snapshots, directory, config(audience), move |session| nodes.sweep_with(session.notifier())).await
}

/// Mounts a file system and serves it on threads of its own; `begin` sees the session before that.
async fn start<F: Filesystem>(
    filesystem: F,
    directory: PathBuf,
    config: Config,
    begin: impl FnOnce(&Session<F>) -> std::io::Result<()> + Send + 'static,
) -> Result<Mounted, MountError> {
    let everybody = config.acl == SessionACL::All;
    let at = directory.clone();
    let start = move || {
        let session = Session::new(filesystem, &at, &config)?;
        begin(&session)?;
        Ok(session)
    };
    let started = tokio::task::spawn_blocking(start).await;
    let session = started
        .unwrap_or_else(|died| Err(std::io::Error::other(died.to_string())))
        .map_err(|source| error::refused(&directory, everybody, source))?;
    let (tell, ended) = oneshot::channel();
    let serve = move || {
        // Nobody may be waiting any more.
        let _ = tell.send(session.run());
    };
    std::thread::Builder::new()
        .name("mount".to_owned())
        .spawn(serve)
        .map_err(|source| MountError::Refused { directory: directory.clone(), source })?;
    Ok(Mounted { directory, ended })
}

fn config(audience: Audience) -> Config {
    let mut options = vec![MountOption::RO, MountOption::NoAtime, MountOption::FSName("keepwell".to_owned())];
    let mut config = Config::default();
    if audience == Audience::Everybody {
        options.push(MountOption::DefaultPermissions);
        config.acl = SessionACL::All;
    }
    config.mount_options = options;
    config.n_threads = Some(THREADS);
    config
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nothing of it is left.
    Gone,
    /// It is out of the way, and who still has something of it open loses that when this process ends.
    InUse,
}

impl Mounted {
    /// Where it is mounted, as an absolute path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns when somebody has unmounted it.
    pub async fn ended(&mut self) -> Result<(), MountError> {
        match (&mut self.ended).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(MountError::Broken { directory: self.directory.clone(), source }),
            // The thread that served it died.
            Err(_) => Err(MountError::Broken {
                directory: self.directory.clone(),
                source: std::io::Error::other("the thread that served it died"),
            }),
        }
    }

    /// Takes it away, also while it is in use.
    pub async fn unmount(mut self) -> Result<Unmounted, MountError> {
        let directory = self.directory.clone();
        let taken = tokio::task::spawn_blocking(move || take_away(&directory)).await;
        let taken = taken.unwrap_or_else(|died| Err(std::io::Error::other(died.to_string())));
        match taken {
            Ok(Unmounted::InUse) => Ok(Unmounted::InUse),
            Ok(Unmounted::Gone) => self.ended().await.map(|()| Unmounted::Gone),
            Err(source) => Err(MountError::Broken { directory: self.directory.clone(), source }),
        }
    }
}

/// Takes a file system away that this process has no time to [unmount](Mounted::unmount), or that a killed one left: who still
/// reads there gets errors. Nothing is left if there was none.
///
/// Users other than root can take away what they have mounted themselves.
pub fn take_away_now(directory: &Path) -> Result<Unmounted, MountError> {
    take_away(directory).map_err(|source| MountError::Broken { directory: directory.to_path_buf(), source })
}

/// Unmounts, or at least takes out of the way.
fn take_away(directory: &Path) -> std::io::Result<Unmounted> {
    match umount2(directory, MntFlags::empty()) {
        Ok(()) | Err(Errno::EINVAL) => Ok(Unmounted::Gone),
        Err(Errno::EBUSY) => {
            umount2(directory, MntFlags::MNT_DETACH)?;
            Ok(Unmounted::InUse)
        }
        // Users may not unmount; the helper may, what they have mounted.
        Err(Errno::EPERM) => {
            if error::helper(&["-u".as_ref(), "--".as_ref(), directory.as_os_str()])? {
                return Ok(Unmounted::Gone);
            }
            match error::helper(&["-u".as_ref(), "-z".as_ref(), "--".as_ref(), directory.as_os_str()])? {
                true => Ok(Unmounted::InUse),
                false => Err(Errno::EPERM.into()),
            }
        }
        Err(errno) => Err(errno.into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
