//! Removing a whole tree, however deep, without leaving it.

use std::os::fd::BorrowedFd;

use backup_core::target::TargetError;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;

use crate::beneath::PASSAGE;
use crate::ladder::Ladder;
use crate::listing::{Listing, ListingBuffer};
use crate::look::Look;
use crate::mounts::Mount;
use crate::target::place::{At, Base};

/// Removes what stands at `at`, and everything below it if it is a directory. Absent is fine. Symlinks are removed, not
/// followed. A mount point in the way is refused: what is below it is not the target's. What the target keeps stays, with
/// the directories that lead there.
pub(crate) fn remove(base: &Base, at: &At) -> Result<(), TargetError> {
    match unlinkat(&at.parent, at.name(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Removal::new(base, at)?.run(),
        Err(Errno::PERM) if at.look().is_ok_and(|look| look.is_dir()) => Removal::new(base, at)?.run(),
        Err(error) => Err(at.failed("remove", error)),
    }
}

struct Removal<'b> {
    base: &'b Base,
    /// What is being removed, from the base.
    path: Vec<u8>,
    ladder: Ladder,
    steps: Vec<Step>,
    buffer: ListingBuffer,
    /// What it all lies on.
    mount: Mount,
}

struct Step {
    listing: Listing,
    path_bytes: usize,
}

impl<'b> Removal<'b> {
    fn new(base: &'b Base, at: &At) -> Result<Self, TargetError> {
        let parent = at.parent.try_clone().map_err(|_| at.failed("open the directory of", Errno::MFILE))?;
        let looked = fstat(&parent).and_then(|found| Ok((Look::from(found), Mount::of(&parent)?)));
        let (look, mount) = looked.map_err(|error| at.failed("look at the directory of", error))?;
        let mut ladder = Ladder::default();
        ladder.push(parent, look.identity());
        let path = at.path().to_vec();
        Ok(Self { base, path, ladder, steps: Vec::new(), buffer: ListingBuffer::new(), mount })
    }

    fn run(mut self) -> Result<(), TargetError> {
        self.enter()?;
        while let Some(step) = self.steps.last_mut() {
            self.path.truncate(step.path_bytes);
            let Some((name, kind)) = step.listing.advance() else {
                self.steps.pop();
                self.ladder.pop();
                if !self.base.leads_to_kept(&self.path) {
                    self.unlink(AtFlags::REMOVEDIR)?;
                }
                continue;
            };
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            if self.base.is_kept(&self.path) {
                continue;
            }
            if kind == FileType::Directory || !self.unlink(AtFlags::empty())? {
                self.enter()?;
            }
        }
        Ok(())
    }

    /// Unlinks the current path; `false` if it is a directory.
    fn unlink(&mut self, flags: AtFlags) -> Result<bool, TargetError> {
        match self.here().and_then(|(directory, name)| unlinkat(directory, name, flags)) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::ISDIR) => Ok(false),
            Err(error) => Err(self.base.failed("remove", &self.path, error)),
        }
    }

    /// Goes into the directory at the current path.
    fn enter(&mut self) -> Result<(), TargetError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.here().and_then(|(directory, name)| {
            let fd = openat(directory, name, flags, Mode::empty())?;
            Ok((Look::from(fstat(&fd)?), Mount::of(&fd)?, fd))
        });
        let (look, mount, fd) = opened.map_err(|error| self.base.failed("open", &self.path, error))?;
        if mount != self.mount {
            return Err(self.base.refused(&self.path, "another file system is mounted there"));
        }
        let (listing, result) = Listing::read(&fd, &mut self.buffer);
        result.map_err(|error| self.base.failed("list", &self.path, error))?;
        self.steps.push(Step { listing, path_bytes: self.path.len() });
        self.ladder.push(fd, look.identity());
        Ok(())
    }

    /// The open directory that the current path is in, and its name there.
    fn here(&mut self) -> Result<(BorrowedFd<'_>, &[u8]), Errno> {
        let slash = self.path.iter().rposition(|&byte| byte == b'/');
        let (above, name) = slash.map_or((0, 0), |slash| (slash, slash + 1));
        let directory = self.ladder.top(|| self.base.open_beneath(&self.path[..above], PASSAGE))?;
        Ok((directory, &self.path[name..]))
    }
}
