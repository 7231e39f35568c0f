//! Reading here and there, as a mounted file system does: single entries, directories piece by piece, any stretch of any
//! file. All of it blocks on storage and belongs on ordinary threads.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use keepwell_catalog::{Entry, EntryKind, Extent, ExtentRun, MapKey};

use super::Tree;
use crate::Error;
use crate::error::shown;

/// Mode of a directory of which the snapshot says nothing but what lies in it.
const IMPLIED_MODE: u32 = 0o755;

impl Tree {
    /// The entry at a key, or `None`; as [`Tree::entry`]. A directory that has no entry of its own, and something in it, is
    /// made up.
    ///
    /// Blocks on storage; call it on an ordinary thread.
    pub fn entry_blocking(&self, key: &MapKey) -> Result<Option<Entry>, Error> {
        self.told(self.entry_or_implied(key))
    }

    fn entry_or_implied(&self, key: &MapKey) -> Result<Option<Entry>, Error> {
        if let Some(entry) = self.head(key)? {
            return Ok(Some(entry));
        }
        let is_there = *key == MapKey::root() || self.reader().range_prefix(key)?.next_record()?.is_some();
        Ok(is_there.then(implied))
    }

    /// As [`Tree::resolve`], blocking; call it on an ordinary thread.
    pub fn resolve_blocking(&self, key: &MapKey) -> Result<(MapKey, Entry), Error> {
        let entry = self.entry_blocking(key)?.ok_or_else(|| self.no_such_path(key))?;
        self.told(super::carrier(&self.reader(), key, entry))
    }

    /// What lies directly in a directory behind the name `after`, in the order of their bytes, at most `count` of them:
    /// so a directory of any size is listed in bounded memory. Entries are as in [`Tree::entry_blocking`].
    ///
    /// Blocks on storage; call it on an ordinary thread.
    pub fn children_blocking(
        &self,
        directory: &MapKey,
        after: Option<&[u8]>,
        count: usize,
    ) -> Result<Vec<(MapKey, Entry)>, Error> {
        self.told(self.read_children(directory, after, count))
    }

    fn read_children(
        &self,
        directory: &MapKey,
        after: Option<&[u8]>,
        count: usize,
    ) -> Result<Vec<(MapKey, Entry)>, Error> {
        let depth = directory.depth();
        let from = match after.map(|name| directory.child(name)).transpose()? {
            Some(last) => last.after_subtree().unwrap_or_default(),
            // Behind the entry and its own records; no component begins with a smaller byte.
            None => [directory.as_bytes(), &[1]].concat(),
        };
        let mut cursor = self.reader().range_prefix(directory)?;
        cursor.seek(&from);
        let mut children = Vec::new();
        while children.len() < count {
            let Some((raw, value)) = cursor.next_record()? else { break };
            let found = MapKey::from_bytes(raw)?;
            let Some(name) = found.components().nth(depth) else {
                return Err(Error::damaged(shown(directory), "a record in it belongs to no entry"));
            };
            let key = directory.child(&name)?;
            let entry = if key == found { Entry::decode(value)? } else { implied() };
            cursor.seek(&key.after_subtree().unwrap_or_default());
            children.push((key, entry));
        }
        Ok(children)
    }

    /// Opens the file at a key for reading anywhere; of a further name of a file, that file. Fails with
    /// [`Error::NoSuchPath`], and with [`Error::Invalid`] for what has no content.
    ///
    /// Blocks on storage; call it on an ordinary thread.
    pub fn open_blocking(&self, key: &MapKey) -> Result<OpenFile, Error> {
        let (key, entry) = self.resolve_blocking(key)?;
        if !entry.kind.has_content() {
            return Err(Error::Invalid(format!("`{}` has no content: it is no file", shown(&key))));
        }
        Ok(OpenFile { tree: self.clone(), key, entry, run: Mutex::new(None) })
    }

    /// How many further names each file has that has any, by the key that carries it.
    ///
    /// Reads the whole tree, and takes memory for each such file. Blocks on storage; call it on an ordinary thread.
    pub fn further_names_blocking(&self) -> Result<HashMap<MapKey, u32>, Error> {
        self.told(self.count_further_names())
    }

    fn count_further_names(&self) -> Result<HashMap<MapKey, u32>, Error> {
        let mut names: HashMap<MapKey, u32> = HashMap::new();
        for item in self.reader().heads_below(&MapKey::root())? {
            if let Some(first) = item?.1.hard_link {
                *names.entry(first).or_default() += 1;
            }
        }
        Ok(names)
    }
}

fn implied() -> Entry {
    Entry { mode: IMPLIED_MODE, ..Entry::new(EntryKind::Directory) }
}

/// A file of a snapshot that is read anywhere. Holds the extents of one record of the tree at a time; chunks are kept by
/// what all files of a [`Browser`](super::Browser) share.
#[derive(Debug)]
pub struct OpenFile {
    tree: Tree,
    key: MapKey,
    entry: Entry,
    /// The extents that were needed last.
    run: Mutex<Option<ExtentRun>>,
}

/// What a file holds from some byte on.
#[derive(Debug, Clone)]
pub enum Stretch {
    /// These bytes; at least one.
    Data(Bytes),
    /// So many zeros that are not stored; at least one.
    Hole(u64),
}

impl OpenFile {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.entry.size
    }

    /// Its entry, of a long file only the head.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// What stands at `offset`, up to `length` bytes of it, and less only at the end of the file. Holes read as zeros.
    ///
    /// Every chunk is proved by its id; where one cannot be had, or does not hold what the tree says, there are no bytes
    /// but an error. Blocks on storage; call it on an ordinary thread.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, Error> {
        let left = usize::try_from(self.entry.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left);
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let wanted = length - bytes.len();
            match self.stretch(offset + bytes.len() as u64)? {
                Some(Stretch::Data(data)) if bytes.is_empty() && data.len() >= length => {
                    return Ok(data.slice(..length));
                }
                Some(Stretch::Data(data)) => bytes.extend_from_slice(&data[..data.len().min(wanted)]),
                Some(Stretch::Hole(zeros)) => {
                    let zeros = usize::try_from(zeros).unwrap_or(usize::MAX).min(wanted);
                    bytes.resize(bytes.len() + zeros, 0);
                }
                None => return Err(Error::damaged(shown(&self.key), "it ends before its size")),
            }
        }
        Ok(bytes.into())
    }

    /// What one extent holds from `offset` to its end; `None` behind the last. As [`OpenFile::read_at`].
    pub fn stretch(&self, offset: u64) -> Result<Option<Stretch>, Error> {
        self.tree.told(self.read_stretch(offset))
    }

    fn read_stretch(&self, offset: u64) -> Result<Option<Stretch>, Error> {
        let Some((extent, skip)) = self.extent_at(offset)? else { return Ok(None) };
        let (id, from, length) = match extent {
            Extent::Hole { length } => return Ok(Some(Stretch::Hole(length - skip))),
            Extent::Chunk { id, offset, length } => (id, offset as usize, length as usize),
        };
        let chunk = self.tree.contents().chunk_again(&id)?;
        let to = from.saturating_add(length);
        if to > chunk.len() {
            return Err(Error::damaged(id, "an extent reaches past its end"));
        }
        // What was skipped is less than the length of the extent, which is a 32-bit number.
        Ok(Some(Stretch::Data(chunk.slice(from + skip as usize..to))))
    }

    /// Whether a hole stands at `offset`, and where that or the data there ends; `None` behind the end of the file. Reads
    /// no content.
    pub fn is_hole(&self, offset: u64) -> Result<Option<(bool, u64)>, Error> {
        let found = self.tree.told(self.extent_at(offset))?;
        Ok(found
            .map(|(extent, skip)| (extent.chunk().is_none(), offset.saturating_add(extent.length() - skip))))
    }

    /// The extent around a byte, and how far in it that byte is.
    fn extent_at(&self, offset: u64) -> Result<Option<(Extent, u64)>, Error> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if !run.as_ref().is_some_and(|run| run.start <= offset && offset < run.end()) {
            *run = self.tree.reader().extents_at(&self.key, &self.entry, offset)?;
        }
        let Some(run) = run.as_ref() else { return Ok(None) };
        let mut start = run.start;
        for extent in &run.extents {
            let skip = offset - start;
            if skip < extent.length() {
                return Ok(Some((*extent, skip)));
            }
            start += extent.length();
        }
        Ok(None)
    }
}
