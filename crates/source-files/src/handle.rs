//! Metadata of one open thing, whether it is open for data or only as a place in the tree.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, RawMode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use crate::look::{Look, Time};

/// Linux allows 64 KiB of names and as much for one value; network file systems have been seen to allow more.
const XATTR_BYTES_MAX: usize = 1 << 20;

/// An open thing. One that is opened with `O_PATH` is reached through `/proc/self/fd`: that leads to the very inode, also
/// of a symlink, and needs no name that another process could swap.
#[derive(Debug)]
pub(crate) struct Handle {
    fd: OwnedFd,
    /// `/proc/self/fd/…` if the descriptor is `O_PATH`.
    place: Option<String>,
}

impl Handle {
    /// Of a file or directory opened for reading or writing.
    pub fn of_data(fd: OwnedFd) -> Self {
        Self { fd, place: None }
    }

    /// Of anything opened with `O_PATH`.
    pub fn of_place(fd: OwnedFd) -> Self {
        let place = Some(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Self { fd, place }
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub fn look(&self) -> Result<Look> {
        fs::fstat(&self.fd).map(Look::from)
    }

    pub fn read_link(&self) -> Result<Vec<u8>> {
        fs::readlinkat(&self.fd, c"", Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// Names and values, sorted by name. What may not be read or is gone by now is left out, as is everything where the
    /// file system has none.
    pub fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in self.xattr_names()? {
            match self.xattr(&name) {
                Ok(value) => found.push((name, value)),
                Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Sorted names; empty where the file system has none.
    pub fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        let list = |buffer: &mut [u8]| match &self.place {
            Some(place) => fs::listxattr(place, buffer),
            None => fs::flistxattr(&self.fd, buffer),
        };
        let names = match grow(list) {
            Err(Errno::NOTSUP | Errno::PERM) => return Ok(Vec::new()),
            names => names?,
        };
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut names: Vec<_> =
            names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    pub fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        grow(|buffer| match &self.place {
            Some(place) => fs::getxattr(place, name, buffer),
            None => fs::fgetxattr(&self.fd, name, buffer),
        })
    }

    pub fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<()> {
        match &self.place {
            Some(place) => fs::setxattr(place, name, value, XattrFlags::empty()),
            None => fs::fsetxattr(&self.fd, name, value, XattrFlags::empty()),
        }
    }

    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        match &self.place {
            Some(place) => fs::removexattr(place, name),
            None => fs::fremovexattr(&self.fd, name),
        }
    }

    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        fs::chownat(&self.fd, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Not for symlinks.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode as RawMode);
        match &self.place {
            Some(place) => fs::chmodat(fs::CWD, place, mode, AtFlags::empty()),
            None => fs::fchmod(&self.fd, mode),
        }
    }

    pub fn set_mtime(&self, mtime: Time) -> Result<()> {
        let omit = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT };
        let last_modification = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
        let times = Timestamps { last_access: omit, last_modification };
        match &self.place {
            Some(place) => fs::utimensat(fs::CWD, place, &times, AtFlags::empty()),
            None => fs::futimens(&self.fd, &times),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Calls `fill` with ever larger buffers until the answer fits.
fn grow(fill: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; 256];
    match fill(&mut small) {
        Err(Errno::RANGE) => {}
        answer => return answer.map(|length| small[..length].to_vec()),
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        match fill(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < XATTR_BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            answer => {
                buffer.truncate(answer?);
                return Ok(buffer);
            }
        }
    }
}
