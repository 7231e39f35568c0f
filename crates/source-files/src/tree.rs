//! The file system as a capture sees it: where it starts, what it leaves out, and how a path in it is opened.

use std::os::fd::OwnedFd;

use backup_core::source::SourceError;
use keepwell_catalog::readable;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};

use crate::beneath::{PASSAGE, open_beneath};
use crate::options::FileOptions;
use crate::roots::Roots;
use crate::rules::Rules;

#[derive(Debug)]
pub(crate) struct Tree {
    pub roots: Roots,
    pub rules: Rules,
    top: OwnedFd,
}

impl Tree {
    pub fn new(options: &FileOptions) -> std::result::Result<Self, SourceError> {
        let top = openat(CWD, c"/", PASSAGE | OFlags::CLOEXEC, Mode::empty());
        let top = top.map_err(|error| io_error("open", b"", error))?;
        Ok(Self { roots: Roots::new(&options.paths)?, rules: Rules::new(options)?, top })
    }

    /// Opens `path` (names joined by `/`; empty is `/`). Symlinks are followed on the way to a given path, because
    /// whoever gave it meant that; beneath it none is, whatever another process puts there meanwhile (`ELOOP`).
    pub fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let (node, covered) = self.roots.deepest(path);
        let is_node = covered == path.len();
        if is_node && self.roots.leads_on(node) {
            return self.follow(path, flags);
        }
        match open_beneath(&self.top, path, flags, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOTDIR) if covered > 0 => {}
            opened => return opened,
        }
        let split = if is_node { path.iter().rposition(|&byte| byte == b'/') } else { Some(covered) };
        let (base, rest) = path.split_at(split.ok_or(Errno::LOOP)?);
        let base = if is_node { self.follow(base, PASSAGE)? } else { self.open(base, PASSAGE)? };
        open_beneath(base, &rest[1..], flags, Mode::empty())
    }

    fn follow(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        openat(&self.top, path, flags | OFlags::CLOEXEC, Mode::empty())
    }
}

/// Opens without leaving a trace in the access time, where that is allowed: for the owner and for root.
pub(crate) fn without_atime(flags: OFlags, open: impl Fn(OFlags) -> Result<OwnedFd>) -> Result<OwnedFd> {
    if flags.contains(OFlags::PATH) {
        return open(flags);
    }
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}

/// An error about `path`, names joined by `/`.
pub(crate) fn io_error(operation: &'static str, path: &[u8], error: Errno) -> SourceError {
    SourceError::Io { operation, path: shown(path), source: error.into() }
}

/// The absolute path, for people.
pub(crate) fn shown(path: &[u8]) -> String {
    format!("/{}", readable(path))
}
