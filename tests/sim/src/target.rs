//! A place in memory to restore into.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup_core::target::{RestoreTarget, TargetError, TargetFile};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use crate::tree::{Node, Tree};

/// Holds what was restored. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryTarget(Arc<Mutex<Tree>>);

impl MemoryTarget {
    /// What stands there now.
    pub fn tree(&self) -> Tree {
        self.things().clone()
    }

    fn things(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: &MapKey, entry: &Entry, content: Vec<u8>) {
        self.things().0.insert(key.clone(), Tree::node(entry, content));
    }
}

fn refused(key: &MapKey, reason: &str) -> TargetError {
    TargetError::Refused { path: key.display_path(), reason: reason.to_owned() }
}

impl RestoreTarget for MemoryTarget {
    fn existing(&self, key: &MapKey) -> Result<Option<Entry>, TargetError> {
        Ok(self.things().0.get(key).map(|node| match node {
            Node::Directory(_) => Entry::new(EntryKind::Directory),
            Node::File(bytes) => Entry { size: bytes.len() as u64, ..Entry::new(EntryKind::File) },
        }))
    }

    fn open_existing(&self, key: &MapKey, _entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        match self.things().0.get(key) {
            Some(Node::File(bytes)) => Ok(self.file(key, bytes.clone())),
            _ => Err(refused(key, "no file stands there")),
        }
    }

    fn make_dir(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError> {
        self.put(key, entry, Vec::new());
        Ok(())
    }

    fn write_file(&self, key: &MapKey, entry: &Entry, content: &[u8]) -> Result<(), TargetError> {
        self.put(key, entry, content.to_vec());
        Ok(())
    }

    fn create_file(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        Ok(self.file(key, vec![0; entry.size as usize]))
    }

    fn make_other(&self, key: &MapKey, _: &Entry) -> Result<Option<String>, TargetError> {
        Err(refused(key, "the simulation has files and directories only"))
    }

    fn hard_link(&self, key: &MapKey, _: &MapKey) -> Result<(), TargetError> {
        Err(refused(key, "the simulation has no links"))
    }

    fn apply_metadata(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError> {
        if entry.kind == EntryKind::Directory {
            self.put(key, entry, Vec::new());
        }
        Ok(())
    }

    fn list_dir(&self, key: Option<&MapKey>) -> Result<Vec<Vec<u8>>, TargetError> {
        let parent = key.cloned().unwrap_or_default();
        let things = self.things();
        let inside = things.0.keys().filter(|key| key.parent().as_ref() == Some(&parent));
        Ok(inside.filter_map(|key| key.name().map(|name| name.into_owned())).collect())
    }

    fn is_mounted(&self, _key: Option<&MapKey>) -> Result<bool, TargetError> {
        Ok(false)
    }

    fn remove(&self, key: &MapKey) -> Result<(), TargetError> {
        self.things().0.retain(|other, _| !other.starts_with(key));
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>, TargetError> {
        Ok(None)
    }
}

impl MemoryTarget {
    fn file(&self, key: &MapKey, bytes: Vec<u8>) -> Box<dyn TargetFile> {
        Box::new(OpenFile { target: self.clone(), key: key.clone(), bytes: Mutex::new(bytes) })
    }
}

struct OpenFile {
    target: MemoryTarget,
    key: MapKey,
    bytes: Mutex<Vec<u8>>,
}

impl OpenFile {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetFile for OpenFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, TargetError> {
        let from = offset as usize;
        let bytes = self.bytes();
        let found = bytes.get(from..from + buf.len());
        Ok(found.map(|found| buf.copy_from_slice(found)).is_some())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), TargetError> {
        let (from, to) = (offset as usize, offset as usize + data.len());
        let mut bytes = self.bytes();
        if bytes.len() < to {
            bytes.resize(to, 0);
        }
        bytes[from..to].copy_from_slice(data);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<(), TargetError> {
        self.write_at(offset, &vec![0; length as usize])
    }

    fn finish(self: Box<Self>, entry: &Entry) -> Result<(), TargetError> {
        let mut bytes = std::mem::take(&mut *self.bytes());
        bytes.resize(entry.size as usize, 0);
        self.target.put(&self.key, entry, bytes);
        Ok(())
    }
}
