//! Creating and opening the root, and sweeping up what a crash left behind.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::open_directory;
use super::errno::storage_error;
use super::mount::{check_mounted, resolve};
use super::put::{TEMP_DIRECTORY, TEMP_SUFFIX, make_directory};
use super::{Disk, LocalFs, LocalOptions};
use crate::{StorageError, StorageErrorKind};

/// The object that every repository has, and that marks a directory as one.
const REPOSITORY_MARK: &str = "keepwell.json";
/// What may be in a directory that counts as empty.
const IGNORED_NAMES: [&str; 2] = [TEMP_DIRECTORY, "lost+found"];
/// Unfinished files are swept up when they are this much older than a new one.
const STALE_AFTER_SECONDS: i64 = 24 * 60 * 60;

pub(super) fn create(path: &Path, options: &LocalOptions) -> Result<LocalFs, StorageError> {
    let fail = |error: Errno| match error {
        Errno::NOTDIR => no_directory(
            "create",
            path,
            StorageErrorKind::Invalid,
            "it, or something on the way there, is a file and not a directory",
        ),
        error => storage_error("create", path.display(), error),
    };
    let given = std::path::absolute(path).map_err(|error| fail(errno_of(&error)))?;
    let resolved = resolve("create", path)?;
    check_mounted("create", &given, &resolved, options)?;
    make_with_parents(&resolved).map_err(fail)?;
    refuse_foreign(&resolved, fail)?;
    let store = open("create", path, options)?;
    make_directory(store.disk.root.as_fd(), TEMP_DIRECTORY).map_err(fail)?;
    sync_directory(store.disk.root.as_fd()).map_err(fail)?;
    Ok(store)
}

pub(super) fn open(
    operation: &'static str,
    path: &Path,
    options: &LocalOptions,
) -> Result<LocalFs, StorageError> {
    let fail = |error| storage_error(operation, path.display(), error);
    let given = std::path::absolute(path).map_err(|error| fail(errno_of(&error)))?;
    let resolved = resolve(operation, path)?;
    check_mounted(operation, &given, &resolved, options)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::openat(CWD, &resolved, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => {
            no_directory(operation, path, StorageErrorKind::NotFound, "there is no such directory")
        }
        Errno::NOTDIR => no_directory(operation, path, StorageErrorKind::Invalid, "it is not a directory"),
        error => fail(error),
    })?;
    let disk = Disk::new(root, resolved);
    if let Err(error) = disk.sweep() {
        tracing::debug!(store = %disk.path.display(), %error, "unfinished files are left where they are");
    }
    Ok(LocalFs { disk: Arc::new(disk) })
}

fn no_directory(operation: &'static str, path: &Path, kind: StorageErrorKind, message: &str) -> StorageError {
    StorageError::new(kind, operation, path.display(), message)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::INVAL)
}

/// Makes `path` and its missing parents, private, each name durable before the next.
fn make_with_parents(path: &Path) -> Result<(), Errno> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    while let Some(directory) = missing.pop() {
        match std::fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(errno_of(&error)),
            _ => {}
        }
        let parent = directory.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty())?;
        sync_directory(parent.as_fd())?;
    }
    Ok(())
}

fn sync_directory(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::fs::fsync(directory) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()), // see `Disk::sync_directory`
        result => result,
    }
}

fn refuse_foreign(path: &Path, fail: impl Fn(Errno) -> StorageError) -> Result<(), StorageError> {
    if path.join(REPOSITORY_MARK).exists() {
        return Ok(());
    }
    let fail = |error: std::io::Error| fail(errno_of(&error));
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if !IGNORED_NAMES.iter().any(|ignored| name == *ignored) {
            let message = format!("the directory holds `{}`, but no repository", name.display());
            let hint = "Choose an empty or a new directory for the repository.";
            let kind = StorageErrorKind::AlreadyExists;
            return Err(StorageError::new(kind, "create", path.display(), message).with_hint(hint));
        }
    }
    Ok(())
}

impl Disk {
    /// Removes our unfinished files that are a day older than a file made now, by the file system's own clock.
    fn sweep(&self) -> Result<(), Errno> {
        let directory = match open_directory(self.root.as_fd(), TEMP_DIRECTORY) {
            Err(Errno::NOENT) => return Ok(()),
            result => result?,
        };
        let mut now_seconds = None;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_ok_and(is_temp_name) {
                continue;
            }
            let facts = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            let now_seconds = match now_seconds {
                Some(seconds) => seconds,
                None => *now_seconds.insert(rustix::fs::fstat(&self.new_temp()?.file)?.st_mtime),
            };
            let is_file = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
            if is_file && now_seconds.saturating_sub(facts.st_mtime) > STALE_AFTER_SECONDS {
                rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

fn is_temp_name(name: &str) -> bool {
    name.strip_suffix(TEMP_SUFFIX)
        .is_some_and(|random| random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
