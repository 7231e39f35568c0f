//! From records back to entries and extents.

use std::vec;

use super::reader::{Cursor, MapReader};
use super::split::{RECORD_EXTENTS_MAX, TAG_EXTENTS};
use crate::cbor::Reader;
use crate::entry::Entry;
use crate::error::MapError;
use crate::extent::{Extent, decode_extents};
use crate::key::{MapKey, split_sub_key};

/// Most extents that are joined into one entry: 180 MiB of memory, 4 TiB of file.
const JOINED_EXTENTS_MAX: usize = 4 << 20;

/// Entries of a map in key order; ends after the first error.
#[derive(Debug)]
pub struct Entries<'a> {
    cursor: Cursor<'a>,
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Whole,
    Heads,
    Children,
}

impl<'a> Entries<'a> {
    pub(super) fn whole(cursor: Cursor<'a>) -> Self {
        Self { cursor, style: Style::Whole }
    }

    pub(super) fn heads(cursor: Cursor<'a>) -> Self {
        Self { cursor, style: Style::Heads }
    }

    pub(super) fn children(mut cursor: Cursor<'a>, directory: &MapKey) -> Result<Self, MapError> {
        cursor.seek(&first_below(directory))?;
        Ok(Self { cursor, style: Style::Children })
    }

    /// Passes over everything below an entry that was just returned.
    pub fn skip_below(&mut self, key: &MapKey) -> Result<(), MapError> {
        match key.after_subtree() {
            Some(after) => self.cursor.seek(&after),
            None => Ok(()),
        }
    }

    fn next_entry(&mut self) -> Result<Option<(MapKey, Entry)>, MapError> {
        let Some((raw, value)) = self.cursor.next_record()? else { return Ok(None) };
        if split_sub_key(raw).1.is_some() {
            return Err(MapError::EntryAt {
                path: crate::key::display_raw(raw),
                what: "the record belongs to no entry",
            });
        }
        let key = MapKey::from_bytes(raw)?;
        let mut entry = Entry::decode(value).map_err(|error| error.at(&key))?;
        match self.style {
            Style::Children => self.skip_below(&key)?,
            Style::Heads if entry.more_extents > 0 => self.cursor.seek(&first_below(&key))?,
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
        if entry.is_err() {
            self.cursor.stop();
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
