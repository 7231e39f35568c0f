//! A target in which everything belongs to one user, since a server refuses files of others, and in which other things may
//! stand beside what is restored.

use std::sync::Arc;

use backup_core::target::{RestoreTarget, TargetError, TargetFile};
use keepwell_catalog::{Entry, MapKey};

/// Passes everything on with the owner replaced, if one is given.
pub(super) struct Owned {
    inner: Arc<dyn RestoreTarget>,
    owner: Option<(u32, u32)>,
    only: Option<Vec<Vec<u8>>>,
    /// A directory in the root of which no content is seen.
    without: Option<&'static str>,
}

impl Owned {
    /// With `only`, no other names are seen in the root: whoever removes what the snapshot lacks leaves them alone.
    pub fn new(inner: Arc<dyn RestoreTarget>, owner: Option<(u32, u32)>, only: Option<Vec<Vec<u8>>>) -> Self {
        Self { inner, owner, only, without: None }
    }

    /// The same with a directory in the root that seems empty.
    pub fn without(self, name: &'static str) -> Self {
        Self { without: Some(name), ..self }
    }

    fn own(&self, entry: &Entry) -> Entry {
        own(entry, self.owner)
    }
}

fn own(entry: &Entry, owner: Option<(u32, u32)>) -> Entry {
    match owner {
        Some((uid, gid)) => Entry { uid, gid, user: None, group: None, ..entry.clone() },
        None => entry.clone(),
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
        let is_hidden = |name: &str| {
            key.is_some_and(|key| key.components().next().is_some_and(|first| *first == *name.as_bytes()))
        };
        if self.without.is_some_and(is_hidden) {
            return Ok(Vec::new());
        }
        let mut names = self.inner.list_dir(key)?;
        if let (None, Some(only)) = (key, &self.only) {
            names.retain(|name| only.contains(name));
        }
        Ok(names)
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

    fn file_system(&self) -> Result<Option<u64>, TargetError> {
        self.inner.file_system()
    }
}

struct OwnedFile {
    inner: Box<dyn TargetFile>,
    owner: Option<(u32, u32)>,
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
        self.inner.finish(&own(entry, self.owner))
    }
}
