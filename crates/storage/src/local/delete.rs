//! Deleting an object, and the directories that it leaves empty.

use std::os::fd::AsFd;
use std::sync::PoisonError;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Disk;
use super::beneath::{ask_server, open_directory};
use super::errno::storage_error;
use super::put::split;
use crate::{Key, StorageError};

impl Disk {
    pub(super) fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.check_not_suspect("delete", key)?;
        let (directory_path, name) = split(key);
        let directory = match open_directory(self.root.as_fd(), directory_path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            result => result.map_err(|error| storage_error("delete", key, error))?,
        };
        let remove = || rustix::fs::unlinkat(&directory, name, AtFlags::empty());
        let removed = match remove() {
            Err(Errno::NOENT) if ask_server(directory.as_fd()).is_ok() => remove(), // see `open_beneath`
            result => result,
        };
        match removed {
            // Absent may mean that someone else removed it and has not come to the sync yet.
            Ok(()) | Err(Errno::NOENT) => self.sync_directory("delete", key, directory.as_fd())?,
            Err(Errno::ISDIR) => return Ok(()),
            Err(error) => return Err(storage_error("delete", key, error)),
        }
        self.remove_empty_directories(directory_path);
        Ok(())
    }

    /// Removes `path` and its parents as long as they are empty. A put at the same time makes them again; one that
    /// comes back after a crash does no harm, so this is not synced.
    fn remove_empty_directories(&self, path: &str) {
        let mut path = path;
        while !path.is_empty() {
            let (parent_path, name) = path.rsplit_once('/').unwrap_or(("", path));
            let Ok(parent) = open_directory(self.root.as_fd(), parent_path) else { return };
            // Forgotten before anyone can ask: one made anew at once may have the inode and even the time of the old.
            let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
            if rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_err() {
                return;
            }
            durable.remove(path);
            path = parent_path;
        }
    }
}
