//! From records back to entries and extents.

use std::{fmt, vec};

use super::reader::{Cursor, MapReader};
use super::split::{RECORD_EXTENTS_MAX, TAG_EXTENTS};
use crate::cbor::Reader;
use crate::entry::Entry;
use crate::error::MapError;
use crate::extent::{Extent, decode_extents};
use crate::key::{MapKey, split_sub_key};

/// Most extents that are joined into one entry: 180 MiB of memory, 4 TiB of file.
const JOINED_EXTENTS_MAX: usize = 4 << 20;

/// Entries of a map in key order; ends after an error, unless [`Entries::pass`] is called.
#[derive(Debug)]
pub struct Entries<'a> {
    cursor: Cursor<'a>,
    style: Style,
    failed: Failed,
}

/// What the last call of `next` could not give.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    Nothing,
    /// A node.
    Node,
    /// An entry that is there, by its key.
    Entry(Vec<u8>),
}

/// A stretch of a map that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first entry that is missing, or parts of which are.
    pub from: MapKey,
    /// The first one behind it that may be whole; `None` if nothing follows.
    pub to: Option<MapKey>,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Some(to) => write!(f, "from `{}` on, up to `{}`", self.from.display_path(), to.display_path()),
            None => write!(f, "from `{}` on, to the end", self.from.display_path()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Whole,
    Heads,
    Children,
}

impl<'a> Entries<'a> {
    pub(super) fn whole(cursor: Cursor<'a>) -> Self {
        Self { cursor, style: Style::Whole, failed: Failed::Nothing }
    }

    pub(super) fn heads(cursor: Cursor<'a>) -> Self {
        Self { cursor, style: Style::Heads, failed: Failed::Nothing }
    }

    pub(super) fn children(mut cursor: Cursor<'a>, directory: &MapKey) -> Self {
        cursor.seek(&first_below(directory));
        Self { cursor, style: Style::Children, failed: Failed::Nothing }
    }

    /// Passes over everything below an entry that was just returned.
    pub fn skip_below(&mut self, key: &MapKey) {
        if let Some(after) = key.after_subtree() {
            self.cursor.seek(&after);
        }
    }

    /// After an error: goes on behind what could not be read, and says what that is. `None`, and the end, if there was no
    /// error or there is no way around it.
    pub fn pass(&mut self) -> Result<Option<Gap>, MapError> {
        let (from, to) = match std::mem::replace(&mut self.failed, Failed::Nothing) {
            Failed::Nothing => return Ok(None),
            Failed::Node => match self.cursor.pass()? {
                Some(passed) => passed,
                None => return Ok(None),
            },
            Failed::Entry(raw) => {
                self.cursor.resume();
                if let Some((from, to)) = self.cursor.pass()? {
                    (raw.min(from), to) // an entry whose extents are beyond its own node
                } else {
                    let behind = [split_sub_key(&raw).0, &[1]].concat();
                    self.cursor.seek(&behind);
                    (raw, None)
                }
            }
        };
        let entry = |raw: &[u8]| MapKey::from_bytes(split_sub_key(raw).0);
        Ok(Some(Gap { from: entry(&from)?, to: to.as_deref().map(entry).transpose()? }))
    }

    fn next_entry(&mut self) -> Result<Option<(MapKey, Entry)>, MapError> {
        self.failed = Failed::Node;
        let Some((raw, value)) = self.cursor.next_record()? else { return Ok(None) };
        self.failed = Failed::Entry(raw.to_vec());
        if split_sub_key(raw).1.is_some() {
            return Err(MapError::EntryAt {
                path: crate::key::display_raw(raw),
                what: "the record belongs to no entry",
            });
        }
        let key = MapKey::from_bytes(raw)?;
        let mut entry = Entry::decode(value).map_err(|error| error.at(&key))?;
        match self.style {
            Style::Children => self.skip_below(&key),
            Style::Heads if entry.more_extents > 0 => self.cursor.seek(&first_below(&key)),
            Style::Whole if entry.more_extents > 0 => self.join(&key, &mut entry)?,
            Style::Whole | Style::Heads => {}
        }
        Ok(Some((key, entry)))
    }

    fn join(&mut self, key: &MapKey, entry: &mut Entry) -> Result<(), MapError> {
        let mut records = ExtentRecords::new(key, entry);
        while records.left > 0 {
            records.read_next(&mut self.cursor, &mut entry.content)?;
            if entry.content.len() > JOINED_EXTENTS_MAX {
                return Err(records.broken("it has too many extents to hold at once"));
            }
        }
        entry.more_extents = 0;
        Ok(())
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(MapKey, Entry), MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.next_entry();
        match &entry {
            Ok(_) => self.failed = Failed::Nothing,
            Err(_) => self.cursor.stop(),
        }
        entry.transpose()
    }
}

/// The extents of one entry, front to back; ends after the first error.
#[derive(Debug)]
pub struct Extents<'a> {
    loaded: vec::IntoIter<Extent>,
    records: ExtentRecords,
    /// Present as long as records are to come.
    cursor: Option<Cursor<'a>>,
}

impl<'a> Extents<'a> {
    pub(super) fn new(map: &MapReader<'a>, key: &MapKey, entry: &Entry) -> Result<Self, MapError> {
        let cursor = match entry.more_extents {
            0 => None,
            _ => Some(map.cursor_from(&key.sub_key(TAG_EXTENTS, 0))?),
        };
        Ok(Self {
            loaded: entry.content.clone().into_iter(),
            records: ExtentRecords::new(key, entry),
            cursor,
        })
    }

    fn load(&mut self) -> Result<(), MapError> {
        let Some(mut cursor) = self.cursor.take() else { return Ok(()) };
        let mut extents = Vec::new();
        self.records.read_next(&mut cursor, &mut extents)?;
        self.loaded = extents.into_iter();
        if self.records.left > 0 {
            self.cursor = Some(cursor);
        }
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.loaded.len() == 0
            && let Err(error) = self.load()
        {
            return Some(Err(error));
        }
        self.loaded.next().map(Ok)
    }
}

/// Reads the sub-key records of one entry and checks that they follow each other and add up.
#[derive(Debug)]
struct ExtentRecords {
    key: MapKey,
    /// Where the next record must start in the file.
    offset: u64,
    left: u32,
    size: u64,
}

impl ExtentRecords {
    fn new(key: &MapKey, entry: &Entry) -> Self {
        // The decoder proved that the extents at hand end before `size`, so the sum cannot overflow.
        let offset = entry.content.iter().map(Extent::length).fold(0, u64::saturating_add);
        Self { key: key.clone(), offset, left: entry.more_extents, size: entry.size }
    }

    /// Appends the extents of the next record.
    fn read_next(&mut self, cursor: &mut Cursor<'_>, into: &mut Vec<Extent>) -> Result<(), MapError> {
        let Some((raw, value)) = cursor.next_record()? else {
            return Err(self.broken("a record of its extents is missing"));
        };
        if split_sub_key(raw) != (self.key.as_bytes(), Some((TAG_EXTENTS, self.offset))) {
            return Err(self.broken("a record of its extents is missing"));
        }
        let mut reader = Reader::new(value);
        let decoded = decode_extents(&mut reader, RECORD_EXTENTS_MAX, into);
        let length = decoded.and_then(|length| reader.finish().map(|()| length));
        let length = length.map_err(|malformed| MapError::from(malformed).at(&self.key))?;
        self.left -= 1;
        let end = self.offset.checked_add(length);
        let end = end.filter(|&end| if self.left == 0 { end == self.size } else { end < self.size });
        self.offset = end.ok_or_else(|| self.broken("its extents do not add up to its size"))?;
        Ok(())
    }

    fn broken(&self, what: &'static str) -> MapError {
        MapError::Entry { what }.at(&self.key)
    }
}

/// The smallest key that can lie below `key`: after the entry and all of its sub-keys.
fn first_below(key: &MapKey) -> Vec<u8> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.push(1);
    bytes
}
