//! Reading a regular file front to back, holes and all.

use std::io;
use std::os::fd::OwnedFd;

use backup_core::source::{Content, Piece};
use rustix::fs::{Advice, SeekFrom, fadvise, fstat, seek};
use rustix::io::{Errno, pread, retry_on_intr};

use crate::look::Look;

/// From this size on the kernel is told to read ahead more.
const READ_AHEAD_FROM_BYTES: u64 = 4 << 20;

/// The content of a file as of `before`: never more bytes than it had then.
#[derive(Debug)]
pub(crate) struct FileContent {
    fd: OwnedFd,
    before: Look,
    offset: u64,
    /// Up to here there is no hole.
    data_end: u64,
    /// The file turned out to be shorter.
    cut_short: bool,
}

impl FileContent {
    pub fn new(fd: OwnedFd, before: Look) -> Self {
        let data_end = if before.may_be_sparse() { 0 } else { before.size };
        if before.size >= READ_AHEAD_FROM_BYTES {
            // Only a hint: a file system that refuses it reads as well without.
            let _ = fadvise(&fd, 0, None, Advice::Sequential);
        }
        Self { fd, before, offset: 0, data_end, cut_short: false }
    }

    /// At the end of known data: the hole that follows, or `None` after noting where the data that follows ends.
    fn next_hole(&mut self) -> io::Result<Option<u64>> {
        let size = self.before.size;
        let data = match seek(&self.fd, SeekFrom::Data(self.offset)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => size,
            Err(Errno::INVAL | Errno::NOTSUP) => {
                self.data_end = size;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        if data > self.offset {
            let hole = data - self.offset;
            self.offset = data;
            return Ok(Some(hole));
        }
        self.data_end = seek(&self.fd, SeekFrom::Hole(data)).map_or(size, |end| end.min(size));
        Ok(None)
    }
}

impl Content for FileContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        if self.cut_short || self.offset >= self.before.size {
            return Ok(Piece::End);
        }
        if self.offset >= self.data_end
            && let Some(hole) = self.next_hole()?
        {
            return Ok(Piece::Hole(hole));
        }
        let known = usize::try_from(self.data_end - self.offset).unwrap_or(usize::MAX);
        let length = buf.len().min(known);
        let count = retry_on_intr(|| pread(&self.fd, &mut buf[..length], self.offset))?;
        if count == 0 {
            self.cut_short = true;
            return Ok(Piece::End);
        }
        self.offset += count as u64;
        Ok(Piece::Data(count))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        let now = Look::from(fstat(&self.fd)?);
        let seen = |look: &Look| (look.size, look.mtime, look.ctime);
        Ok(self.cut_short || seen(&now) != seen(&self.before))
    }
}
