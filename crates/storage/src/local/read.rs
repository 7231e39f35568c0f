//! Reading objects: one open, exact reads into memory that is used again or not zeroed first.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::Disk;
use super::beneath::{ask_server, open_beneath};
use super::errno::storage_error;
use super::spare::LARGE_BYTES;
use crate::{Key, ObjectInfo, StorageError, StorageErrorKind};

/// Not blocking, because a pipe that someone put there would otherwise hold us for ever.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK);

impl Disk {
    pub(super) fn get(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        let (file, facts) = self.open_object("get", key, READ)?;
        let size = size_of(&facts);
        if size > most {
            return Err(StorageError::too_large(key, most));
        }
        self.read_exact("get", key, file.as_fd(), 0..size)
    }

    pub(super) fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        let (file, facts) = self.open_object("get range", key, READ)?;
        let size = size_of(&facts);
        if range.start > range.end || range.end > size {
            return Err(StorageError::out_of_range(key, &range, size));
        }
        self.read_exact("get range", key, file.as_fd(), range)
    }

    pub(super) fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        let (_, facts) = self.open_object("head", key, OFlags::PATH)?;
        Ok(info_of(key.clone(), &facts))
    }

    fn open_object(
        &self,
        operation: &'static str,
        key: &Key,
        access: OFlags,
    ) -> Result<(OwnedFd, Stat), StorageError> {
        let fail = |error| self.read_error(operation, key, error);
        let file = open_beneath(self.root.as_fd(), key.as_str(), access).map_err(fail)?;
        let facts = rustix::fs::fstat(&file).map_err(fail)?;
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::RegularFile => Ok((file, facts)),
            FileType::Directory => Err(StorageError::not_found(operation, key)),
            _ => {
                Err(StorageError::new(StorageErrorKind::Invalid, operation, key, "it is not a regular file"))
            }
        }
    }

    fn read_exact(
        &self,
        operation: &'static str,
        key: &Key,
        file: BorrowedFd<'_>,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        let fail = |error| self.read_error(operation, key, error);
        let length = usize::try_from(range.end - range.start).map_err(|_| fail(Errno::NOMEM))?;
        if length >= LARGE_BYTES {
            let mut lent = self.spare.take(length).ok_or_else(|| fail(Errno::NOMEM))?;
            self.fill(operation, key, file, range.start, lent.bytes_mut())?;
            return Ok(lent.into_bytes());
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| fail(Errno::NOMEM))?;
        while bytes.len() < length {
            let offset = range.start + bytes.len() as u64;
            let read = retry_on_intr(|| rustix::io::pread(file, spare_capacity(&mut bytes), offset));
            if read.map_err(fail)? == 0 {
                return Err(cut(operation, key, offset));
            }
        }
        bytes.truncate(length); // the allocation may have been larger than asked for
        Ok(bytes.into())
    }

    /// Reads as many bytes as `into` has.
    fn fill(
        &self,
        operation: &'static str,
        key: &Key,
        file: BorrowedFd<'_>,
        start: u64,
        into: &mut [u8],
    ) -> Result<(), StorageError> {
        let mut filled = 0;
        while filled < into.len() {
            let offset = start + filled as u64;
            let read = retry_on_intr(|| rustix::io::pread(file, &mut into[filled..], offset));
            match read.map_err(|error| self.read_error(operation, key, error))? {
                0 => return Err(cut(operation, key, offset)),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// On NFS a file that another host deletes while it is read is stale; so is everything on a mount that is lost.
    pub(super) fn read_error(&self, operation: &'static str, key: &Key, error: Errno) -> StorageError {
        if error == Errno::STALE && ask_server(self.root.as_fd()).is_ok() {
            return StorageError::not_found(operation, key);
        }
        storage_error(operation, key, error)
    }
}

/// What a listing says about a file with these facts.
pub(super) fn info_of(key: Key, facts: &Stat) -> ObjectInfo {
    let nanoseconds = i64::try_from(facts.st_mtime_nsec).ok();
    let seconds = facts.st_mtime.checked_mul(1_000_000_000);
    let modified = seconds.zip(nanoseconds).and_then(|(seconds, rest)| seconds.checked_add(rest));
    ObjectInfo { key, size: size_of(facts), modified }
}

fn size_of(facts: &Stat) -> u64 {
    facts.st_size.try_into().unwrap_or(0)
}

fn cut(operation: &'static str, key: &Key, offset: u64) -> StorageError {
    let message = format!("the object was cut at byte {offset} while it was read");
    StorageError::new(StorageErrorKind::Other, operation, key, message)
}
