//! Storing an object: see "Durability" at [`LocalFs`](super::LocalFs).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};

use super::Disk;
use super::beneath::open_directory;
use super::errno::storage_error;
use crate::key::RESERVED_COMPONENT;
use crate::random::random_name;
use crate::{Key, StorageError, StorageErrorKind};

/// Name of the directory of unfinished files.
pub(super) const TEMP_DIRECTORY: &str = RESERVED_COMPONENT;
/// End of the name of every unfinished file of ours.
pub(super) const TEMP_SUFFIX: &str = ".part";
const OBJECT_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
/// How often a directory may be removed by a deletion just before an object is put there.
const PLACE_ATTEMPTS: u32 = 16;

/// How an object got its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Renamed,
    Linked,
}

impl Disk {
    pub(super) fn put_new(&self, key: &Key, body: &[u8]) -> Result<(), StorageError> {
        self.check_not_suspect("put", key)?;
        let temp = self.write_temp(key, body)?;
        let (directory_path, name) = split(key);
        for _ in 0..PLACE_ATTEMPTS {
            let directory = self.ensure_directory(key, directory_path)?;
            match self.place(&temp, directory.as_fd(), name) {
                Ok(_) => return self.sync_directory("put", key, directory.as_fd()),
                Err(Errno::NOENT) => continue, // the directory was empty, and a deletion removed it
                Err(Errno::EXIST) => return Err(self.taken(key, directory.as_fd(), name)),
                Err(Errno::OPNOTSUPP) => return Err(cannot_create_exclusively(key)),
                Err(error) => return Err(storage_error("put", key, error)),
            }
        }
        let message = "its directory was removed again and again while the object was put there";
        Err(StorageError::new(StorageErrorKind::Unavailable, "put", key, message))
    }

    /// Writes `body` to a new file and makes its content durable; on failure the file is gone.
    pub(super) fn write_temp(&self, key: &Key, body: &[u8]) -> Result<Temp, StorageError> {
        let temp = self.new_temp().map_err(|error| match error {
            Errno::NOENT => {
                let message = format!("the repository directory `{}` was removed", self.path.display());
                StorageError::new(StorageErrorKind::Invalid, "put", key, message)
            }
            error => storage_error("put", key, error),
        })?;
        write_all(temp.file.as_fd(), body).map_err(|error| storage_error("put", key, error))?;
        self.sync_data("put", key, temp.file.as_fd())?;
        Ok(temp)
    }

    pub(super) fn new_temp(&self) -> Result<Temp, Errno> {
        let directory = match open_directory(self.root.as_fd(), TEMP_DIRECTORY) {
            Err(Errno::NOENT) => {
                make_directory(self.root.as_fd(), TEMP_DIRECTORY)?;
                open_directory(self.root.as_fd(), TEMP_DIRECTORY)?
            }
            result => result?,
        };
        let name = random_name().map_err(|_| Errno::IO)?;
        let name = format!("{name}{TEMP_SUFFIX}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&directory, &name, flags, OBJECT_MODE)?;
        Ok(Temp { file, name: TempName { directory, name } })
    }

    /// Opens the directory of `key`, made with its parents where missing, its name and theirs durable.
    pub(super) fn ensure_directory(&self, key: &Key, path: &str) -> Result<OwnedFd, StorageError> {
        if path.is_empty() {
            return self.open_root(key);
        }
        if let Ok(directory) = open_directory(self.root.as_fd(), path)
            && self.is_durable(path, directory.as_fd())
        {
            return Ok(directory);
        }
        'again: for _ in 0..PLACE_ATTEMPTS {
            let mut directory = self.open_root(key)?;
            let mut end = 0;
            for component in path.split('/') {
                end += component.len();
                match self.ensure_child(key, &directory, &path[..end], component) {
                    Ok(child) => directory = child,
                    Err(error) if error.is_not_found() => continue 'again, // removed by a deletion
                    Err(error) => return Err(error),
                }
                end += 1;
            }
            return Ok(directory);
        }
        let message = "its directories were removed again and again while they were made";
        Err(StorageError::new(StorageErrorKind::Unavailable, "put", key, message))
    }

    fn open_root(&self, key: &Key) -> Result<OwnedFd, StorageError> {
        open_directory(self.root.as_fd(), "").map_err(|error| storage_error("put", key, error))
    }

    fn ensure_child(
        &self,
        key: &Key,
        parent: &OwnedFd,
        path: &str,
        name: &str,
    ) -> Result<OwnedFd, StorageError> {
        make_directory(parent.as_fd(), name).map_err(|error| storage_error("put", key, error))?;
        let child = open_directory(parent.as_fd(), name).map_err(|error| match error {
            Errno::NOTDIR if is_symlink(parent.as_fd(), name) => storage_error("put", key, Errno::LOOP),
            Errno::NOTDIR => {
                let message = format!("`{path}` is an object, so nothing can be stored beneath it");
                StorageError::new(StorageErrorKind::Invalid, "put", key, message)
            }
            error => storage_error("put", key, error),
        })?;
        if !self.is_durable(path, child.as_fd()) {
            // Also when someone else made it: they may not have come to the sync yet.
            self.sync_directory("put", key, parent.as_fd())?;
            self.remember_durable(path, child.as_fd());
        }
        Ok(child)
    }

    /// Gives an unfinished file its name, unless the name is taken (`EEXIST`). `EOPNOTSUPP`: the file system has no
    /// exclusive way to do so.
    pub(super) fn place(&self, temp: &Temp, directory: BorrowedFd<'_>, name: &str) -> Result<Placed, Errno> {
        if self.rename_is_exclusive {
            let (from, old) = (&temp.name.directory, &temp.name.name);
            match rustix::fs::renameat_with(from, old, directory, name, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(Placed::Renamed),
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        match link(temp, directory, name) {
            // What Samba says where its own disk has no links (seen with FAT).
            Err(Errno::ACCESS) if !self.rename_is_exclusive => Err(Errno::OPNOTSUPP),
            result => result.map(|()| Placed::Linked),
        }
    }

    /// The error for a name that is taken; the winner may not have come to its sync yet, so this one does it.
    fn taken(&self, key: &Key, directory: BorrowedFd<'_>, name: &str) -> StorageError {
        let facts = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        match facts.map(|facts| FileType::from_raw_mode(facts.st_mode)) {
            Ok(FileType::Directory) => {
                let message = "there are objects beneath it";
                StorageError::new(StorageErrorKind::Invalid, "put", key, message)
            }
            Ok(FileType::Symlink) => storage_error("put", key, Errno::LOOP),
            _ => match self.sync_directory("put", key, directory) {
                Ok(()) => StorageError::already_exists(key),
                Err(error) => error,
            },
        }
    }
}

/// An unfinished file, closed and then removed when dropped unless it got its final name.
pub(super) struct Temp {
    // Dropped before the name: NFS renames what is removed while it is open, and a crash would leave that for ever.
    pub(super) file: OwnedFd,
    pub(super) name: TempName,
}

/// Where an unfinished file is; removes it from there when dropped.
pub(super) struct TempName {
    pub(super) directory: OwnedFd,
    pub(super) name: String,
}

impl Drop for TempName {
    fn drop(&mut self) {
        // After a rename there is nothing of this name; what cannot be removed now is swept up at a later open.
        let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

pub(super) fn link(temp: &Temp, directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::linkat(&temp.name.directory, &temp.name.name, directory, name, AtFlags::empty()) {
        // NFS may send a request twice and report the second answer: is the file there ours?
        Err(Errno::EXIST) if is_same_file(temp, directory, name)? => Ok(()),
        Err(Errno::PERM | Errno::NOSYS | Errno::MLINK) => Err(Errno::OPNOTSUPP),
        result => result,
    }
}

fn is_same_file(temp: &Temp, directory: BorrowedFd<'_>, name: &str) -> Result<bool, Errno> {
    let ours = rustix::fs::fstat(&temp.file)?;
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => Ok((ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_symlink(directory: BorrowedFd<'_>, name: &str) -> bool {
    let facts = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    facts.is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::Symlink)
}

/// Makes a directory for us alone; one that exists is fine.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = retry_on_intr(|| rustix::io::write(file, bytes))?;
        if written == 0 {
            return Err(Errno::IO);
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

/// The directory of a key, empty for the root, and the name in it.
pub(super) fn split(key: &Key) -> (&str, &str) {
    key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()))
}

fn cannot_create_exclusively(key: &Key) -> StorageError {
    let message = "the file system can neither rename without replacing nor link, so two writers could overwrite each other";
    StorageError::new(StorageErrorKind::Invalid, "put", key, message).with_hint(
        "Put the repository on another file system, or reach this storage by SFTP or an S3 gateway.",
    )
}
