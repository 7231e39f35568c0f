//! A place in memory to restore into.

use std::sync::{Arc, Mutex};

use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::{Part, Thing, TreeModel};
use crate::target::{RestoreTarget, TargetError, TargetFile};

/// Holds what was restored. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryTarget(Arc<Mutex<TreeModel>>, Arc<Mutex<Vec<MapKey>>>, Arc<Mutex<Vec<MapKey>>>);

impl MemoryTarget {
    pub fn tree(&self) -> TreeModel {
        self.0.lock().unwrap().clone()
    }

    /// From now on another file system counts as mounted there.
    pub fn mount(&self, key: MapKey) {
        self.1.lock().unwrap().push(key);
    }

    /// From now on this directory cannot be listed.
    pub fn close(&self, key: MapKey) {
        self.2.lock().unwrap().push(key);
    }

    /// Changes a byte of a file.
    pub fn change(&self, key: &MapKey, at: usize) {
        let mut tree = self.0.lock().unwrap();
        let thing = tree.0.get_mut(key).unwrap();
        let mut bytes = thing.bytes();
        bytes[at] ^= 1;
        thing.parts = vec![Part::Data(bytes)];
    }

    fn put(&self, key: &MapKey, entry: &Entry, bytes: Vec<u8>) {
        let mut tree = self.0.lock().unwrap();
        if entry.kind != EntryKind::Directory {
            tree.0.retain(|k, _| !k.starts_with(key)); // a directory may have stood there
        }
        tree.0.insert(key.clone(), thing(entry, bytes));
    }
}

fn thing(entry: &Entry, bytes: Vec<u8>) -> Thing {
    let parts = if bytes.is_empty() { Vec::new() } else { vec![Part::Data(bytes)] };
    let entry = Entry { size: 0, content: Vec::new(), more_extents: 0, ..entry.clone() };
    Thing { entry, parts }
}

impl RestoreTarget for MemoryTarget {
    fn existing(&self, key: &MapKey) -> Result<Option<Entry>, TargetError> {
        let tree = self.0.lock().unwrap();
        Ok(tree.0.get(key).map(|t| Entry { size: t.bytes().len() as u64, ..t.entry.clone() }))
    }

    fn open_existing(&self, key: &MapKey, _entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        let bytes = self.0.lock().unwrap().0[key].bytes();
        Ok(Box::new(MemoryFile { target: self.clone(), key: key.clone(), bytes: Mutex::new(bytes) }))
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
        let bytes = Mutex::new(vec![0; entry.size as usize]);
        Ok(Box::new(MemoryFile { target: self.clone(), key: key.clone(), bytes }))
    }

    fn make_other(&self, key: &MapKey, entry: &Entry) -> Result<Option<String>, TargetError> {
        self.put(key, entry, Vec::new());
        Ok(None)
    }

    fn hard_link(&self, key: &MapKey, first: &MapKey) -> Result<(), TargetError> {
        if self.0.lock().unwrap().0.get(key).is_some_and(|thing| thing.entry.kind == EntryKind::Directory) {
            let (path, reason) = (key.display_path(), "a directory stands there".to_owned());
            return Err(TargetError::Refused { path, reason });
        }
        let mut entry = self.0.lock().unwrap().0[first].entry.clone();
        entry.kind = EntryKind::HardLink;
        entry.hard_link = Some(first.clone());
        self.put(key, &entry, Vec::new());
        Ok(())
    }

    fn apply_metadata(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError> {
        let bytes = self.0.lock().unwrap().0[key].bytes();
        self.put(key, entry, bytes);
        Ok(())
    }

    fn list_dir(&self, key: Option<&MapKey>) -> Result<Vec<Vec<u8>>, TargetError> {
        let parent = key.cloned().unwrap_or_default();
        if self.2.lock().unwrap().contains(&parent) {
            let (path, reason) = (parent.display_path(), "it is closed".to_owned());
            return Err(TargetError::Refused { path, reason });
        }
        let tree = self.0.lock().unwrap();
        let inside = tree.0.keys().filter(|k| k.parent().as_ref() == Some(&parent));
        Ok(inside.filter_map(|k| k.name().map(|n| n.into_owned())).collect())
    }

    fn is_mounted(&self, key: Option<&MapKey>) -> Result<bool, TargetError> {
        let mounts = self.1.lock().unwrap();
        Ok(key.is_some_and(|key| mounts.iter().any(|mount| key.starts_with(mount))))
    }

    fn remove(&self, key: &MapKey) -> Result<(), TargetError> {
        self.0.lock().unwrap().0.retain(|k, _| !k.starts_with(key));
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>, TargetError> {
        Ok(None)
    }
}

struct MemoryFile {
    target: MemoryTarget,
    key: MapKey,
    bytes: Mutex<Vec<u8>>,
}

impl TargetFile for MemoryFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, TargetError> {
        let bytes = self.bytes.lock().unwrap();
        let from = offset as usize;
        let found = bytes.get(from..from + buf.len());
        Ok(found.map(|found| buf.copy_from_slice(found)).is_some())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), TargetError> {
        let (from, to) = (offset as usize, offset as usize + data.len());
        let mut bytes = self.bytes.lock().unwrap();
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
        let mut bytes = std::mem::take(&mut *self.bytes.lock().unwrap());
        bytes.resize(entry.size as usize, 0);
        self.target.put(&self.key, entry, bytes);
        Ok(())
    }
}
