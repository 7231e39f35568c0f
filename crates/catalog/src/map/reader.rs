//! Reading a map.

use keepwell_crypto::ChunkId;

use super::entries::{Entries, Extents};
use super::split::TAG_EXTENTS;
use super::walk::{Head, Walk};
use super::{NodeSource, record_extents};
use crate::error::MapError;
use crate::{Entry, Extent, MapKey};

/// The first key of what was passed over, and the one that follows it.
type Passed = (Vec<u8>, Option<Vec<u8>>);

/// A map to read from. Cheap to copy; holds no nodes.
#[derive(Clone, Copy)]
pub struct MapReader<'a> {
    source: &'a dyn NodeSource,
    root: ChunkId,
}

impl<'a> MapReader<'a> {
    /// The map under `root`. Nothing is fetched yet.
    pub fn new(source: &'a dyn NodeSource, root: ChunkId) -> Self {
        Self { source, root }
    }

    /// Id of the root node.
    pub fn root(&self) -> &ChunkId {
        &self.root
    }

    /// The value under exactly this key. Fetches one node per level.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let mut walk = self.walk()?;
        walk.seek(key)?;
        Ok(match walk.head() {
            Some(Head::Record(found, value)) if found == key => Some(value.to_vec()),
            _ => None,
        })
    }

    /// The whole entry of a path, all extents included (see [`MapReader::entries`] about memory).
    pub fn entry(&self, key: &MapKey) -> Result<Option<Entry>, MapError> {
        let Some(value) = self.get(key.as_bytes())? else { return Ok(None) };
        let head = Entry::decode(&value).map_err(|error| error.at(key))?;
        if head.more_extents == 0 {
            return Ok(Some(head));
        }
        self.entries_below(key)?.next().transpose().map(|found| found.map(|(_, entry)| entry))
    }

    /// All records from the first on.
    pub fn cursor(&self) -> Result<Cursor<'a>, MapError> {
        self.range_prefix(&MapKey::root())
    }

    /// All records from the first whose key is at least `from`.
    pub fn cursor_from(&self, from: &[u8]) -> Result<Cursor<'a>, MapError> {
        let mut cursor = self.cursor()?;
        cursor.seek(from);
        Ok(cursor)
    }

    /// The records of an entry, its sub-keys, and everything below it.
    pub fn range_prefix(&self, key: &MapKey) -> Result<Cursor<'a>, MapError> {
        let prefix = key.as_bytes().to_vec();
        Ok(Cursor { walk: self.walk()?, target: Some(prefix.clone()), prefix, yielded: false, done: false })
    }

    /// All records as owned pairs of key and value. [`MapReader::cursor`] is the faster way.
    pub fn iter(&self) -> Result<OwnedRecords<'a>, MapError> {
        Ok(OwnedRecords(self.cursor()?))
    }

    /// Every entry, whole.
    ///
    /// Holds the extents of one file at a time: about 45 bytes per extent. A file of more than four million is
    /// refused; take [`MapReader::heads_below`] and [`MapReader::extents`] where such files matter.
    pub fn entries(&self) -> Result<Entries<'a>, MapError> {
        self.entries_below(&MapKey::root())
    }

    /// As [`MapReader::entries`], of one entry and everything below it.
    pub fn entries_below(&self, key: &MapKey) -> Result<Entries<'a>, MapError> {
        Ok(Entries::whole(self.range_prefix(key)?))
    }

    /// An entry and everything below it, where a file with many extents has only the first few of them in `content`
    /// and `more_extents` is not zero. Steps over the rest without fetching it.
    pub fn heads_below(&self, key: &MapKey) -> Result<Entries<'a>, MapError> {
        Ok(Entries::heads(self.range_prefix(key)?))
    }

    /// What lies directly in a directory, as heads. Fetches a few nodes per child directory, however much is below it.
    pub fn children(&self, directory: &MapKey) -> Result<Entries<'a>, MapError> {
        Ok(Entries::children(self.range_prefix(directory)?, directory))
    }

    /// All extents of an entry that came from this map, be it whole or a head, one record of them in memory at a time.
    ///
    /// The iterator ends with an error if they do not add up to the size.
    pub fn extents(&self, key: &MapKey, entry: &Entry) -> Result<Extents<'a>, MapError> {
        Extents::new(self, key, entry)
    }

    /// The extents of the sub-key record that starts at byte `offset` of a file: what [`MapReader::extents`] gives from
    /// there to the end of that record, for whoever cannot keep a borrowed iterator. Fetches one node per level.
    pub fn extents_from(&self, key: &MapKey, offset: u64) -> Result<Vec<Extent>, MapError> {
        let raw = key.sub_key(TAG_EXTENTS, offset);
        match self.get(&raw)? {
            Some(value) => record_extents(&raw, &value),
            None => Err(MapError::Entry { what: "a record of its extents is missing" }.at(key)),
        }
    }

    pub(super) fn source(&self) -> &'a dyn NodeSource {
        self.source
    }

    fn walk(&self) -> Result<Walk<'a>, MapError> {
        Walk::open(self.source, &self.root)
    }
}

impl std::fmt::Debug for MapReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapReader").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A key and its value, lent by a [`Cursor`].
pub type Record<'c> = (&'c [u8], &'c [u8]);

/// A position in a map that lends one record after another. Holds one node per level and copies no values.
pub struct Cursor<'a> {
    walk: Walk<'a>,
    /// Where the next record is to be looked for, if not behind the last.
    target: Option<Vec<u8>>,
    /// Records whose key does not start with this are past the end.
    prefix: Vec<u8>,
    /// Whether the record it stands at was lent already.
    yielded: bool,
    done: bool,
}

impl Cursor<'_> {
    /// The next key and value; `None` at the end and after an error.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, MapError> {
        if self.done {
            return Ok(None);
        }
        if let Err(error) = self.step() {
            self.done = true;
            return Err(error);
        }
        let record = match self.walk.head() {
            Some(Head::Record(key, value)) if key.starts_with(&self.prefix) => Some((key, value)),
            _ => None,
        };
        self.done = record.is_none();
        Ok(record)
    }

    /// Makes the first record whose key is at least `target` the next one, unless that was lent already; never goes
    /// back. What lies between is not fetched, and nothing before the next record is asked for.
    pub fn seek(&mut self, target: &[u8]) {
        let is_behind = match &self.target {
            Some(before) => before.as_slice() >= target,
            None => matches!(self.walk.head(), Some(Head::Record(key, _)) if self.yielded && key >= target),
        };
        if !self.done && !is_behind {
            self.target = Some(target.to_vec());
        }
    }

    /// After a node could not be read: goes on behind everything below it. Gives the first key that is passed over, and the
    /// one that follows; `None` if it does not stand before such a node.
    pub(super) fn pass(&mut self) -> Result<Option<Passed>, MapError> {
        let Some(Head::Tree(from, ..)) = self.walk.head() else { return Ok(None) };
        let from = from.to_vec();
        self.walk.advance()?;
        (self.done, self.yielded) = (false, false);
        Ok(Some((from, self.walk.head().map(|head| head.key().to_vec()))))
    }

    /// Goes on after an error that is about one record.
    pub(super) fn resume(&mut self) {
        self.done = false;
    }

    /// Makes this the end.
    pub(super) fn stop(&mut self) {
        self.done = true;
    }

    fn step(&mut self) -> Result<(), MapError> {
        if let Some(target) = self.target.take() {
            self.yielded = true;
            let found = self.walk.seek(&target);
            if found.is_err() {
                self.target = Some(target); // still to be found, behind what cannot be read
            }
            return found;
        }
        if self.yielded {
            self.walk.advance()?;
        }
        self.yielded = true;
        while let Some(Head::Tree(key, ..)) = self.walk.head() {
            if key > self.prefix.as_slice() && !key.starts_with(&self.prefix) {
                break; // past the end: no reason to fetch it
            }
            self.walk.descend()?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("done", &self.done).finish_non_exhaustive()
    }
}

/// The records of a map as owned pairs; ends after the first error.
#[derive(Debug)]
pub struct OwnedRecords<'a>(Cursor<'a>);

impl Iterator for OwnedRecords<'_> {
    type Item = Result<(Vec<u8>, Vec<u8>), MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.0.next_record().transpose()?;
        Some(record.map(|(key, value)| (key.to_vec(), value.to_vec())))
    }
}
