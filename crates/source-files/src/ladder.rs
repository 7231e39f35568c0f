//! The open directories of a walk, however deep: the way back up needs no more than a fixed number of descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fstat;
use rustix::io::{Errno, Result};

use crate::look::Look;

/// At most this many directories are held open; the ones above are closed, and opened again by path on the way back.
const OPEN_MAX: usize = 96;

#[derive(Debug, Default)]
pub(crate) struct Ladder {
    rungs: Vec<Rung>,
    /// Rungs below this one are closed; all others are open.
    first_open: usize,
}

#[derive(Debug)]
struct Rung {
    fd: Option<OwnedFd>,
    identity: (u64, u64),
}

impl Ladder {
    pub fn push(&mut self, fd: OwnedFd, identity: (u64, u64)) {
        self.rungs.push(Rung { fd: Some(fd), identity });
        if self.rungs.len() - self.first_open > OPEN_MAX {
            self.rungs[self.first_open].fd = None;
            self.first_open += 1;
        }
    }

    pub fn pop(&mut self) {
        self.rungs.pop();
        self.first_open = self.first_open.min(self.rungs.len());
    }

    /// The deepest directory. `reopen` is asked for it if it was closed; `ESTALE` if that is another directory by now,
    /// `ENOENT` without any rung.
    pub fn top(&mut self, reopen: impl FnOnce() -> Result<OwnedFd>) -> Result<BorrowedFd<'_>> {
        let rung = self.rungs.last_mut().ok_or(Errno::NOENT)?;
        if rung.fd.is_none() {
            let fd = reopen()?;
            if Look::from(fstat(&fd)?).identity() != rung.identity {
                return Err(Errno::STALE);
            }
            rung.fd = Some(fd);
            self.first_open = self.rungs.len() - 1;
        }
        let fd = self.rungs.last().and_then(|rung| rung.fd.as_ref());
        fd.map(AsFd::as_fd).ok_or(Errno::NOENT)
    }
}
