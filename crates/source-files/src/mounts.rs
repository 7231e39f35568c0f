//! Where one mount ends and another begins.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags, fstat, statx};
use rustix::io::Result;

use crate::look::Look;

/// What is mounted at some place: a file system, or a directory of one that is bound there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mount {
    pub dev: u64,
    /// Tells what is bound to another place from the same file system around it. `None` before Linux 5.8.
    id: Option<u64>,
}

impl Mount {
    /// What the thing that is open at `fd` lies on.
    pub fn of(fd: impl AsFd) -> Result<Self> {
        let dev = Look::from(fstat(&fd)?).dev;
        let asked = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
        let known = asked.ok().filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0);
        Ok(Self { dev, id: known.map(|found| found.stx_mnt_id) })
    }

    /// Whether what is written here is flushed with the other: part of one mount may bear a device number of its own (a
    /// subvolume of btrfs), and one file system may be bound to many places.
    pub fn is_flushed_with(&self, other: &Self) -> bool {
        self.dev == other.dev || (self.id.is_some() && self.id == other.id)
    }
}
