//! Where things go: keys become names in open directories, none of them outside the target.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::target::TargetError;
use keepwell_catalog::{MapKey, readable};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, statat, syncfs};
use rustix::io::Errno;

use crate::beneath::{PASSAGE, open_beneath};
use crate::handle::Handle;
use crate::look::Look;
use crate::mounts::Mount;

/// Directories kept open for the next thing in them. When that many are, all are closed and it starts anew.
const OPEN_DIRECTORIES_MAX: usize = 256;

/// Why what is not touched is refused.
const KEPT: &str = "what is there belongs to the backups themselves";

/// The directory everything stays beneath.
#[derive(Debug)]
pub(crate) struct Base {
    pub fd: OwnedFd,
    /// What it lies on.
    pub mount: Mount,
    /// What is not touched, from here.
    keep: Vec<Vec<u8>>,
    shown: Arc<str>,
    directories: Mutex<HashMap<Vec<u8>, Arc<OwnedFd>>>,
    /// A directory on each other file system, mounted within, that something was put on.
    elsewhere: Mutex<Vec<(Mount, OwnedFd)>>,
}

/// A name in an open directory of the target.
#[derive(Debug, Clone)]
pub(crate) struct At {
    pub parent: Arc<OwnedFd>,
    /// Names from the base, joined by `/`.
    path: Vec<u8>,
    base: Arc<str>,
}

impl Base {
    /// Opens the target itself, following symlinks: whoever names it means what it leads to. Refuses one that lies in what
    /// is not touched.
    pub fn open(path: &Path, keep: &[PathBuf]) -> Result<Self, TargetError> {
        let shown = readable(path.as_os_str().as_bytes());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty());
        let fd = opened.map_err(|error| failed("open", shown.clone(), error))?;
        let real = path.canonicalize();
        let real =
            real.map_err(|source| TargetError::Io { operation: "open", path: shown.clone(), source })?;
        let keep: Vec<PathBuf> = keep.iter().map(|kept| crate::options::real(kept)).collect();
        if keep.iter().any(|kept| real.starts_with(kept)) {
            return Err(TargetError::Refused { path: shown, reason: KEPT.to_owned() });
        }
        let within = keep.iter().filter_map(|kept| kept.strip_prefix(&real).ok());
        let keep = within.map(|kept| kept.as_os_str().as_bytes().to_vec()).collect();
        Self::of(fd, shown.clone(), keep).map_err(|error| failed("look at", shown, error))
    }

    /// The directory at `path` below, which is reached without a symlink.
    pub fn below(&self, path: &[u8]) -> Result<Self, Errno> {
        let fd = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let within = self.keep.iter().filter_map(|kept| below(kept, path));
        Self::of(fd, shown(&self.shown, path), within.map(<[u8]>::to_vec).collect())
    }

    fn of(fd: OwnedFd, shown: String, keep: Vec<Vec<u8>>) -> Result<Self, Errno> {
        let mount = Mount::of(&fd)?;
        let (directories, elsewhere) = (Mutex::default(), Mutex::default());
        Ok(Self { fd, mount, keep, shown: shown.into(), directories, elsewhere })
    }

    /// Whether a name in a directory is one of what is not touched.
    pub fn keeps(&self, directory: &[u8], name: &[u8]) -> bool {
        let is_it = |kept: &Vec<u8>| below(kept, directory) == Some(name);
        self.keep.iter().any(is_it)
    }

    /// What is not touched, for messages.
    pub fn kept(&self) -> Vec<String> {
        self.keep.iter().map(|kept| shown(&self.shown, kept)).collect()
    }

    /// Whether `path` leads to something that is not touched.
    pub fn leads_to_kept(&self, path: &[u8]) -> bool {
        self.keep.iter().any(|kept| below(kept, path).is_some())
    }

    /// Whether `path` is or lies in something that is not touched.
    pub fn is_kept(&self, path: &[u8]) -> bool {
        self.keep.iter().any(|kept| kept == path || below(path, kept).is_some())
    }

    /// The path of `key` below the base; empty for the base itself.
    pub fn path(&self, key: &MapKey) -> Result<Vec<u8>, TargetError> {
        key.to_os_path_bytes().map_err(|_| TargetError::Refused {
            path: format!("{}/{}", self.shown, key.display_path()),
            reason: "it is no path of plain names".to_owned(),
        })
    }

    /// The place of `key`, whose parent directory must exist. The base itself is refused.
    pub fn at(&self, key: &MapKey) -> Result<At, TargetError> {
        let path = self.path_of_child(key)?;
        match self.directory(&path[..parent_bytes(&path)]) {
            Ok(parent) => Ok(self.place(path, parent)),
            Err(error) => Err(self.failed("open the directory of", &path, error)),
        }
    }

    /// Like [`at`](Self::at), but `None` where the parent is no directory reached without a symlink: nothing of the
    /// target can be there.
    pub fn at_if_any(&self, key: &MapKey) -> Result<Option<At>, TargetError> {
        let path = self.path_of_child(key)?;
        match self.directory(&path[..parent_bytes(&path)]) {
            Ok(parent) => Ok(Some(self.place(path, parent))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(self.failed("open the directory of", &path, error)),
        }
    }

    /// The base itself as a place, for messages: there is no name in it.
    pub fn itself(&self) -> Result<At, Errno> {
        let fd = self.fd.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
        Ok(self.place(Vec::new(), Arc::new(fd)))
    }

    fn path_of_child(&self, key: &MapKey) -> Result<Vec<u8>, TargetError> {
        let path = self.path(key)?;
        if path.is_empty() {
            return Err(self.refused(&path, "it is the target itself"));
        }
        if self.is_kept(&path) { Err(self.refused(&path, KEPT)) } else { Ok(path) }
    }

    fn place(&self, path: Vec<u8>, parent: Arc<OwnedFd>) -> At {
        At { parent, path, base: Arc::clone(&self.shown) }
    }

    fn directory(&self, path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        let directories = || self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = directories().get(path) {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(self.open_beneath(path, PASSAGE)?);
        self.note_file_system(&fd)?;
        let mut directories = directories();
        if directories.len() >= OPEN_DIRECTORIES_MAX {
            directories.clear();
        }
        directories.insert(path.to_vec(), Arc::clone(&fd));
        Ok(fd)
    }

    /// Keeps a directory of another file system open before anything is written there: what the kernel then fails to write
    /// out it tells whoever had it open.
    fn note_file_system(&self, directory: &OwnedFd) -> Result<(), Errno> {
        if Look::from(fstat(directory)?).dev == self.mount.dev {
            return Ok(());
        }
        let mount = Mount::of(directory)?;
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = elsewhere.iter().any(|(known, _)| mount.is_flushed_with(known));
        if !mount.is_flushed_with(&self.mount) && !is_known {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match openat(directory, c".", flags, Mode::empty()) {
                // One that this user may not read; the next one there may do.
                Err(Errno::ACCESS) => {}
                opened => elsewhere.push((mount, opened?)),
            }
        }
        Ok(())
    }

    /// Waits until everything written is on the disk, on every file system that was written to.
    pub fn flush(&self) -> Result<(), Errno> {
        syncfs(&self.fd)?;
        let elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        elsewhere.iter().try_for_each(|(_, directory)| syncfs(directory))
    }

    pub fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        open_beneath(&self.fd, path, flags, Mode::empty())
    }

    /// Forgets open directories at and below `path`, which may be about to go.
    pub fn forget(&self, path: &[u8]) {
        let below = |known: &[u8]| {
            known.strip_prefix(path).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.retain(|known, _| !below(known));
    }

    pub fn failed(&self, operation: &'static str, path: &[u8], error: Errno) -> TargetError {
        failed(operation, shown(&self.shown, path), error)
    }

    pub fn refused(&self, path: &[u8], reason: &str) -> TargetError {
        TargetError::Refused { path: shown(&self.shown, path), reason: reason.to_owned() }
    }
}

impl At {
    pub fn name(&self) -> &[u8] {
        let parent = parent_bytes(&self.path);
        if parent == 0 { &self.path } else { &self.path[parent + 1..] }
    }

    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// What stands here; a symlink is looked at itself.
    pub fn look(&self) -> Result<Look, Errno> {
        statat(&self.parent, self.name(), AtFlags::SYMLINK_NOFOLLOW).map(Look::from)
    }

    /// Opens what stands here, whatever it is, as a place.
    pub fn open_place(&self) -> Result<Handle, Errno> {
        self.open(OFlags::PATH).map(Handle::of_place)
    }

    /// Opens what stands here; a symlink only with [`OFlags::PATH`].
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(&self.parent, self.name(), flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    pub fn shown(&self) -> String {
        shown(&self.base, &self.path)
    }

    pub fn failed(&self, operation: &'static str, error: Errno) -> TargetError {
        failed(operation, self.shown(), error)
    }

    pub fn refused(&self, reason: &str) -> TargetError {
        TargetError::Refused { path: self.shown(), reason: reason.to_owned() }
    }
}

/// The way from a directory to a path below it; both from the base, which is an empty path.
fn below<'p>(path: &'p [u8], directory: &[u8]) -> Option<&'p [u8]> {
    let way = match directory {
        b"" => path,
        _ => path.strip_prefix(directory)?.strip_prefix(b"/")?,
    };
    (!way.is_empty()).then_some(way)
}

fn parent_bytes(path: &[u8]) -> usize {
    path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)
}

fn shown(base: &str, path: &[u8]) -> String {
    if path.is_empty() {
        return base.to_owned();
    }
    format!("{}/{}", base.trim_end_matches('/'), readable(path))
}

fn failed(operation: &'static str, path: String, error: Errno) -> TargetError {
    match error {
        Errno::NOTDIR => {
            TargetError::Refused { path, reason: "what is in the way is no directory".to_owned() }
        }
        Errno::LOOP => TargetError::Refused { path, reason: "a symlink is in the way".to_owned() },
        Errno::XDEV => TargetError::Refused { path, reason: "it leads out of the target".to_owned() },
        _ => TargetError::Io { operation, path, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_mounted_within_is_flushed_too() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir_all(dir.path().join("plain")).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let status = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("mounting is not allowed here");
            return;
        }
        std::fs::create_dir(mount.join("sub")).unwrap();
        let base = Base::open(dir.path(), &[]).unwrap();
        let noted = ["plain/f", "mount/f", "mount/sub/f"].map(|path| {
            base.at(&MapKey::from_components(path.split('/')).unwrap()).unwrap();
            base.elsewhere.lock().unwrap().len()
        });
        let flushed = base.flush();
        drop(base);
        std::process::Command::new("umount").arg(&mount).status().unwrap();
        assert_eq!(noted, [0, 1, 1]);
        flushed.unwrap();
    }
}
