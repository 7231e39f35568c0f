//! Which inodes the kernel knows, and under which path each stands in the directory beneath.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

/// The directory itself.
pub(super) const ROOT: u64 = 1;
/// Paths are walked up from a name; deeper ones would be loops.
const DEPTH_MAX: usize = 256;

/// The names. A number is never given twice: the directory beneath uses those of removed files again, while the kernel
/// may still hold what it knew of them.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<Table>);

#[derive(Debug)]
struct Table {
    by_ino: HashMap<u64, Name>,
    /// By the inode numbers beneath, of what is not removed.
    by_beneath: HashMap<u64, u64>,
    next: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self { by_ino: HashMap::new(), by_beneath: HashMap::new(), next: ROOT + 1 }
    }
}

#[derive(Debug)]
struct Name {
    parent: u64,
    name: Vec<u8>,
    beneath: u64,
    lookups: u64,
    /// Its last name went; who has it open still uses it.
    is_removed: bool,
}

impl Names {
    /// The path of an inode below the directory, with one more name if there is one.
    pub fn path(&self, ino: u64, more: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        let table = self.lock();
        let mut parts: Vec<&[u8]> = more.into_iter().collect();
        let mut at = ino;
        while at != ROOT {
            let name = table.by_ino.get(&at).filter(|name| !name.is_removed).ok_or(Errno::ESTALE)?;
            parts.push(&name.name);
            at = name.parent;
            if parts.len() > DEPTH_MAX {
                return Err(Errno::ELOOP);
            }
        }
        parts.reverse();
        Ok(if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') })
    }

    /// Notes that the kernel is told of what stands under a name.
    pub fn tell(&self, parent: u64, name: &[u8], beneath: u64) -> u64 {
        let mut table = self.lock();
        let known = table.by_beneath.get(&beneath).copied();
        let ino = known.unwrap_or(table.next);
        if known.is_none() {
            table.next += 1;
            table.by_beneath.insert(beneath, ino);
        }
        let entry = table.by_ino.entry(ino).or_insert(Name {
            parent,
            name: Vec::new(),
            beneath,
            lookups: 0,
            is_removed: false,
        });
        entry.parent = parent;
        entry.name = name.to_vec();
        entry.lookups += 1;
        ino
    }

    /// What stood under a name is there under another.
    pub fn renamed(&self, beneath: u64, parent: u64, name: &[u8]) {
        let mut table = self.lock();
        let Some(ino) = table.by_beneath.get(&beneath).copied() else { return };
        if let Some(entry) = table.by_ino.get_mut(&ino) {
            (entry.parent, entry.name) = (parent, name.to_vec());
        }
    }

    /// The last name of it went.
    pub fn removed(&self, beneath: u64) {
        let mut table = self.lock();
        let Some(ino) = table.by_beneath.remove(&beneath) else { return };
        if let Some(entry) = table.by_ino.get_mut(&ino) {
            entry.is_removed = true;
        }
    }

    /// The kernel forgets that it was told so many times.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut table = self.lock();
        let Some(entry) = table.by_ino.get_mut(&ino) else { return };
        entry.lookups = entry.lookups.saturating_sub(lookups);
        if entry.lookups > 0 {
            return;
        }
        let beneath = entry.beneath;
        table.by_ino.remove(&ino);
        if table.by_beneath.get(&beneath) == Some(&ino) {
            table.by_beneath.remove(&beneath);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_renames_of_what_is_above_them() {
        let names = Names::default();
        let dir = names.tell(ROOT, b"a", 10);
        let file = names.tell(dir, b"f", 11);
        assert_eq!(names.path(file, None).unwrap(), b"a/f");
        names.renamed(10, ROOT, b"b");
        assert_eq!(names.path(dir, Some(b"g")).unwrap(), b"b/g");
        assert_eq!(names.path(file, None).unwrap(), b"b/f");
        assert_eq!(names.path(ROOT, None).unwrap(), b".");
        assert_eq!(names.tell(dir, b"f", 11), file);
    }

    #[test]
    fn a_number_that_is_used_again_beneath_is_another_file() {
        let names = Names::default();
        let first = names.tell(ROOT, b"a", 10);
        names.removed(10);
        let second = names.tell(ROOT, b"a", 10);
        assert_ne!(first, second);
        assert!(names.path(first, None).is_err(), "the path is another file's");
        names.forget(first, 1);
        assert_eq!(names.tell(ROOT, b"a", 10), second);
        names.forget(second, 2);
        assert!(names.path(second, None).is_err());
    }
}
