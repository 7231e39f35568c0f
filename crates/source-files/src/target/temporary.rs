//! Things that do not stand under their name yet.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backup_core::target::TargetError;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::{Errno, Result};

use crate::target::place::At;

const TRIES_MAX: usize = 1_000;

/// A name that goes with whatever bears it unless it is given its final name. A crash leaves it behind:
/// `.keepwell-<process>-<number>.part`.
#[derive(Debug)]
pub(crate) struct Temporary {
    parent: Arc<OwnedFd>,
    name: Option<String>,
}

impl Temporary {
    /// Makes something beside `at` with `make`, which is called with names until one is not taken (`EEXIST`).
    pub fn make<T>(at: &At, make: impl Fn(&[u8]) -> Result<T>) -> Result<(Self, T)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..TRIES_MAX {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".keepwell-{:x}-{number:x}.part", std::process::id());
            match make(name.as_bytes()) {
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
                Ok(made) => return Ok((Self { parent: Arc::clone(&at.parent), name: Some(name) }, made)),
            }
        }
        Err(Errno::EXIST)
    }

    pub fn name(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_default().as_bytes()
    }

    /// Puts it where `at` says, in the place of whatever is there unless that is a directory.
    pub fn rename_to(mut self, at: &At) -> std::result::Result<(), TargetError> {
        match renameat(&self.parent, self.name(), &at.parent, at.name()) {
            Ok(()) => {
                self.name = None;
                Ok(())
            }
            Err(Errno::ISDIR | Errno::NOTEMPTY) => Err(at.refused("a directory stands there")),
            Err(error) => Err(at.failed("rename to", error)),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.name.is_some() {
            // Nobody is left to tell; a name that stays is extraneous to the next restore.
            let _ = unlinkat(&self.parent, self.name(), AtFlags::empty());
        }
    }
}

/// Creates a regular file, for this user alone, where there is nothing yet (else `EEXIST`, also for a symlink).
pub(crate) fn create_new(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
}
