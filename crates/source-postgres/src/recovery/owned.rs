//! A target in which everything belongs to one user: a server refuses files of others.

use std::sync::Arc;

use backup_core::target::{RestoreTarget, TargetError, TargetFile};
use keepwell_catalog::{Entry, MapKey};

/// Passes everything on with the owner replaced.
pub(super) struct Owned {
    inner: Arc<dyn RestoreTarget>,
    owner: (u32, u32),
}

impl Owned {
    pub fn new(inner: Arc<dyn RestoreTarget>, owner: (u32, u32)) -> Self {
        Self { inner, owner }
    }

    fn own(&self, entry: &Entry) -> Entry {
        let (uid, gid) = self.owner;
        Entry { uid, gid, user: None, group: None, ..entry.clone() }
    }
}

impl RestoreTarget for Owned {
    fn existing(&self, key: &MapKey) -> Result<Option<Entry>, TargetError> {
        self.inner.existing(key)
    }

    fn open_existing(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        let inner = self.inner.open_existing(key, &self.own(entry))?;
        Ok(Box::new(OwnedFile { inner, owner: self.owner }))
    }

    fn make_dir(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError> {
        self.inner.make_dir(key, &self.own(entry))
    }

    fn write_file(&self, key: &MapKey, entry: &Entry, content: &[u8]) -> Result<(), TargetError> {
        self.inner.write_file(key, &self.own(entry), content)
    }

    fn create_file(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        let inner = self.inner.create_file(key, &self.own(entry))?;
        Ok(Box::new(OwnedFile { inner, owner: self.owner }))
    }

    fn make_other(&self, key: &MapKey, entry: &Entry) -> Result<Option<String>, TargetError> {
        self.inner.make_other(key, &self.own(entry))
    }

    fn hard_link(&self, key: &MapKey, first: &MapKey) -> Result<(), TargetError> {
        self.inner.hard_link(key, first)
    }

    fn apply_metadata(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError> {
        self.inner.apply_metadata(key, &self.own(entry))
    }

    fn list_dir(&self, key: Option<&MapKey>) -> Result<Vec<Vec<u8>>, TargetError> {
        self.inner.list_dir(key)
    }

    fn is_mounted(&self, key: Option<&MapKey>) -> Result<bool, TargetError> {
        self.inner.is_mounted(key)
    }

    fn remove(&self, key: &MapKey) -> Result<(), TargetError> {
        self.inner.remove(key)
    }

    fn free_bytes(&self) -> Result<Option<u64>, TargetError> {
        self.inner.free_bytes()
    }
}

struct OwnedFile {
    inner: Box<dyn TargetFile>,
    owner: (u32, u32),
}

impl TargetFile for OwnedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, TargetError> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), TargetError> {
        self.inner.write_at(offset, data)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<(), TargetError> {
        self.inner.punch_hole(offset, length)
    }

    fn finish(self: Box<Self>, entry: &Entry) -> Result<(), TargetError> {
        let (uid, gid) = self.owner;
        self.inner.finish(&Entry { uid, gid, user: None, group: None, ..entry.clone() })
    }
}
