//! Putting owners, extended attributes, modes and times back, in the order in which they do not undo each other.

use std::sync::{Mutex, PoisonError};

use backup_core::target::TargetError;
use keepwell_catalog::{Entry, EntryKind, readable};
use rustix::io::Errno;

use crate::handle::Handle;
use crate::look::{Look, MODE_BITS};
use crate::target::place::At;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const OWNER_WRITES: u32 = 0o200;

/// So many messages are kept; further ones are only counted.
const MESSAGES_MAX: usize = 1_000;

/// What may be put back, and what was not.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub untrusted: bool,
    left_out: Mutex<(u64, Vec<String>)>,
}

/// Extended attributes that stand between what is there and what is wanted.
struct XattrChanges<'e> {
    remove: Vec<Vec<u8>>,
    set: Vec<&'e (Vec<u8>, Vec<u8>)>,
}

/// How far the owner could be set.
struct Owner {
    uid_is_right: bool,
    gid_is_right: bool,
    changed: bool,
}

impl Metadata {
    pub fn new(untrusted: bool) -> Self {
        Self { untrusted, left_out: Mutex::default() }
    }

    pub fn left_out(&self) -> (u64, Vec<String>) {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn leave_out(&self, at: &At, what: &str) {
        let (count, messages) = &mut *self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        if messages.len() < MESSAGES_MAX {
            messages.push(format!("`{}`: {what}", at.shown()));
        }
    }

    /// Makes the metadata of what is open at `handle` that of `entry`. What the file system or the rights of this process
    /// do not allow is left out and noted; setuid and setgid are set only where the owner they lend is right.
    pub fn apply(&self, at: &At, handle: &Handle, entry: &Entry) -> Result<(), TargetError> {
        let look = handle.look().map_err(|error| at.failed("look at", error))?;
        let owner = self.apply_owner(at, handle, &look, entry)?;
        let xattrs_changed = self.apply_xattrs(at, handle, &look, entry)?;
        if entry.kind != EntryKind::Symlink {
            let mode = self.mode(at, entry, &owner);
            // A change of owner clears bits, an ACL sets others.
            if owner.changed || xattrs_changed || look.mode() != mode {
                self.tolerate(at, "mode", handle.set_mode(mode))?;
            }
        }
        if look.mtime != entry.mtime {
            self.tolerate(at, "time of modification", handle.set_mtime(entry.mtime))?;
        }
        Ok(())
    }

    /// Whether [`apply`](Self::apply) would change anything.
    pub fn differs(&self, handle: &Handle, entry: &Entry) -> Result<bool, Errno> {
        let look = handle.look()?;
        let mode_differs = entry.kind != EntryKind::Symlink && look.mode() != self.allowed_mode(entry);
        if mode_differs || (look.uid, look.gid, look.mtime) != (entry.uid, entry.gid, entry.mtime) {
            return Ok(true);
        }
        let changes = self.xattr_changes(handle, entry)?;
        Ok(!changes.remove.is_empty() || !changes.set.is_empty())
    }

    fn apply_owner(
        &self,
        at: &At,
        handle: &Handle,
        look: &Look,
        entry: &Entry,
    ) -> Result<Owner, TargetError> {
        let (uid_is_right, gid_is_right) = (look.uid == entry.uid, look.gid == entry.gid);
        if uid_is_right && gid_is_right {
            return Ok(Owner { uid_is_right, gid_is_right, changed: false });
        }
        let Err(error) = handle.set_owner(Some(entry.uid), Some(entry.gid)) else {
            return Ok(Owner { uid_is_right: true, gid_is_right: true, changed: true });
        };
        // An ordinary user may give a file to another of their groups, if to nobody else.
        let gid_set = !gid_is_right && handle.set_owner(None, Some(entry.gid)).is_ok();
        let owner = Owner { uid_is_right, gid_is_right: gid_is_right || gid_set, changed: gid_set };
        self.tolerate(at, &format!("owner {}:{}", entry.uid, entry.gid), Err(error))?;
        Ok(owner)
    }

    fn mode(&self, at: &At, entry: &Entry, owner: &Owner) -> u32 {
        let allowed = self.allowed_mode(entry);
        if allowed != entry.mode & MODE_BITS {
            let what = format!("mode {:04o} became {allowed:04o}: the snapshot is not trusted", entry.mode);
            self.leave_out(at, &what);
        }
        let lent = if owner.uid_is_right { 0 } else { SETUID } | if owner.gid_is_right { 0 } else { SETGID };
        if allowed & lent != 0 {
            self.leave_out(
                at,
                &format!("mode {allowed:04o} became {:04o}: its owner is another", allowed & !lent),
            );
        }
        allowed & !lent
    }

    fn allowed_mode(&self, entry: &Entry) -> u32 {
        let withheld = match (self.untrusted, entry.kind) {
            (false, _) => 0,
            (true, EntryKind::Directory) => SETUID | SETGID,
            (true, _) => SETUID | SETGID | STICKY,
        };
        entry.mode & MODE_BITS & !withheld
    }

    /// Returns whether anything changed, which may be the mode.
    fn apply_xattrs(
        &self,
        at: &At,
        handle: &Handle,
        look: &Look,
        entry: &Entry,
    ) -> Result<bool, TargetError> {
        for (name, _) in entry.xattrs.iter().filter(|(name, _)| !self.allows_xattr(name)) {
            self.leave_out(at, &format!("{}: the snapshot is not trusted", attribute(name)));
        }
        let changes = match self.xattr_changes(handle, entry) {
            Ok(changes) => changes,
            Err(error) => {
                self.tolerate(at, "extended attributes", Err(error))?;
                return Ok(false);
            }
        };
        if changes.remove.is_empty() && changes.set.is_empty() {
            return Ok(false);
        }
        if look.mode() & OWNER_WRITES == 0 && entry.kind != EntryKind::Symlink {
            // An ordinary owner needs that for attributes; whoever is not the owner finds out when setting them. What the old
            // mode lent was not meant for a new owner.
            let _ = handle.set_mode((look.mode() & !(SETUID | SETGID)) | OWNER_WRITES);
        }
        for name in &changes.remove {
            match handle.remove_xattr(name) {
                Err(Errno::NODATA) => {}
                done => self.tolerate(at, &format!("removal of {}", attribute(name)), done)?,
            }
        }
        for (name, value) in &changes.set {
            self.tolerate(at, &attribute(name), handle.set_xattr(name, value))?;
        }
        Ok(true)
    }

    fn xattr_changes<'e>(&self, handle: &Handle, entry: &'e Entry) -> Result<XattrChanges<'e>, Errno> {
        let present = handle.xattr_names()?;
        let wanted = || entry.xattrs.iter().filter(|(name, _)| self.allows_xattr(name));
        let is_wanted = |name: &[u8]| wanted().any(|(wanted, _)| wanted == name);
        let is_there = |name: &Vec<u8>, value: &[u8]| {
            present.contains(name) && handle.xattr(name).is_ok_and(|now| now == value)
        };
        let set = wanted().filter(|(name, value)| !is_there(name, value)).collect();
        let remove = present.iter().filter(|name| is_removable(name) && !is_wanted(name)).cloned().collect();
        Ok(XattrChanges { remove, set })
    }

    fn allows_xattr(&self, name: &[u8]) -> bool {
        !self.untrusted || !(name.starts_with(b"security.") || name.starts_with(b"trusted."))
    }

    /// Turns what a file system or missing rights may well refuse into a note.
    fn tolerate(&self, at: &At, what: &str, done: Result<(), Errno>) -> Result<(), TargetError> {
        match done {
            Ok(()) => Ok(()),
            Err(error @ (Errno::IO | Errno::ROFS | Errno::STALE | Errno::BADF)) => {
                Err(at.failed("set metadata of", error))
            }
            Err(error) => {
                self.leave_out(at, &format!("{what}: {error}"));
                Ok(())
            }
        }
    }
}

/// What a restore may take away: not the labels that the security modules of this machine gave.
fn is_removable(name: &[u8]) -> bool {
    name == b"security.capability" || !name.starts_with(b"security.")
}

fn attribute(name: &[u8]) -> String {
    format!("attribute {}", readable(name))
}
