//! One node: encoding of its records, and a cursor that decodes them strictly and in place.

use std::cmp::Ordering;

use bytes::Bytes;
use keepwell_crypto::ChunkId;

use super::{LEVELS_MAX, NODE_BYTES_MAX, RECORD_KEY_BYTES_MAX, RECORD_VALUE_BYTES_MAX};
use crate::cbor::{Malformed, Reader, put_array, put_bytes, put_uint};
use crate::error::MapError;
use crate::extent::decode_id;

/// The records of a node that is being filled. Its buffers are used again for the next node.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeWriter {
    records: Vec<u8>,
    count: u64,
    entries: u64,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
}

impl NodeWriter {
    /// Appends a record of level 0.
    pub(super) fn push_value(&mut self, key: &[u8], value: &[u8]) {
        self.push_key(key, 3);
        put_bytes(&mut self.records, value);
        self.entries += 1;
    }

    /// Appends a record of a higher level.
    pub(super) fn push_child(&mut self, key: &[u8], child: &Child) {
        self.push_key(key, 4);
        put_bytes(&mut self.records, child.id.as_bytes());
        put_uint(&mut self.records, child.entries);
        self.entries += child.entries;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Encoded size of the records so far.
    pub(super) fn records_len(&self) -> usize {
        self.records.len()
    }

    /// Key of the first record; empty in an empty node.
    pub(super) fn first_key(&self) -> &[u8] {
        &self.first_key
    }

    /// Entries at or below this node.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    pub(super) fn encode(&self, level: u8) -> Vec<u8> {
        let mut node = Vec::with_capacity(self.records.len() + 12);
        put_array(&mut node, 2);
        put_uint(&mut node, u64::from(level));
        put_array(&mut node, self.count);
        node.extend_from_slice(&self.records);
        node
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.first_key.clear();
        self.last_key.clear();
        (self.count, self.entries) = (0, 0);
    }

    fn push_key(&mut self, key: &[u8], items: u64) {
        let shared = if self.count == 0 { 0 } else { shared_prefix(&self.last_key, key) };
        put_array(&mut self.records, items);
        put_uint(&mut self.records, shared as u64);
        put_bytes(&mut self.records, &key[shared..]);
        if self.count == 0 {
            self.first_key.extend_from_slice(key);
        }
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.count += 1;
    }
}

/// Length of the longest prefix that both have.
pub(crate) fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What a record of a higher level points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Child {
    pub id: ChunkId,
    pub entries: u64,
}

/// Where the next record lies, before it is stepped onto.
struct Ahead {
    shared: usize,
    rest: (usize, usize),
    /// Just after the rest of the key.
    position: usize,
}

/// Steps through the records of one node and checks each on the way.
///
/// Before the first [`NodeCursor::step`] it stands before the first record.
#[derive(Debug)]
pub(super) struct NodeCursor {
    id: ChunkId,
    bytes: Bytes,
    level: u8,
    /// Start of the next record.
    position: usize,
    /// Records after the current one.
    left: u64,
    started: bool,
    key: Vec<u8>,
    /// Range of the current value within `bytes`; level 0 only.
    value: (usize, usize),
    /// The current child; higher levels only.
    child: Option<Child>,
    /// Entries that the parent claims and that no record up to the current one has accounted for.
    entries_left: Option<u64>,
}

impl NodeCursor {
    /// Opens a node of which nothing is known but its id.
    pub(super) fn open_root(id: ChunkId, bytes: Bytes) -> Result<Self, MapError> {
        let damaged = |Malformed(what)| MapError::Node { node: id, what };
        if bytes.len() > NODE_BYTES_MAX {
            return Err(damaged(Malformed("it is too large")));
        }
        let mut reader = Reader::new(&bytes);
        let (level, left) = read_header(&mut reader).map_err(damaged)?;
        let position = reader.position();
        let cursor = Self {
            id,
            bytes,
            level,
            position,
            left,
            started: false,
            key: Vec::new(),
            value: (0, 0),
            child: None,
            entries_left: None,
        };
        if left == 0 {
            cursor.check_empty_root()?;
        }
        Ok(cursor)
    }

    /// Opens the node `child` that a node of level `parent_level` lists under `key`, and steps onto its first record.
    pub(super) fn open_child(
        child: &Child,
        bytes: Bytes,
        parent_level: u8,
        key: &[u8],
    ) -> Result<Self, MapError> {
        let mut cursor = Self::open_root(child.id, bytes)?;
        if cursor.level.checked_add(1) != Some(parent_level) {
            return Err(cursor.damaged("its level does not match its parent"));
        }
        cursor.entries_left = Some(child.entries);
        if cursor.level == 0 && cursor.left != child.entries {
            return Err(cursor.damaged("its number of records does not match its parent"));
        }
        if !cursor.step()? || cursor.key != key {
            return Err(cursor.damaged("its first key does not match its parent"));
        }
        Ok(cursor)
    }

    pub(super) fn level(&self) -> u8 {
        self.level
    }

    /// Key of the current record.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Value of the current record; empty above level 0.
    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[self.value.0..self.value.1]
    }

    /// Child of the current record; `None` on level 0.
    pub(super) fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// Gives back the key buffer of a cursor that is done.
    pub(super) fn into_key(self) -> Vec<u8> {
        self.key
    }

    pub(super) fn damaged(&self, what: &'static str) -> MapError {
        MapError::Node { node: self.id, what }
    }

    /// Steps onto the next record; `false`, staying where it is, when there is none.
    pub(super) fn step(&mut self) -> Result<bool, MapError> {
        match self.look_ahead()? {
            Some(ahead) => self.step_onto(&ahead).map(|()| true),
            None => Ok(false),
        }
    }

    /// Steps onto the last record whose key is at most `target`, if that lies ahead.
    pub(super) fn step_while_at_most(&mut self, target: &[u8]) -> Result<(), MapError> {
        while let Some(ahead) = self.look_ahead()? {
            if self.compare_ahead(&ahead, target) == Ordering::Greater {
                break;
            }
            self.step_onto(&ahead)?;
        }
        Ok(())
    }

    /// Whether there is a next record and its key is at most `target`.
    pub(super) fn next_is_at_most(&self, target: &[u8]) -> Result<bool, MapError> {
        let ahead = self.look_ahead()?;
        Ok(ahead.is_some_and(|ahead| self.compare_ahead(&ahead, target) != Ordering::Greater))
    }

    fn look_ahead(&self) -> Result<Option<Ahead>, MapError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut reader = Reader::at(&self.bytes, self.position);
        let ahead = self.read_ahead(&mut reader).map_err(|Malformed(what)| self.damaged(what))?;
        Ok(Some(ahead))
    }

    fn read_ahead(&self, reader: &mut Reader<'_>) -> Result<Ahead, Malformed> {
        reader.array_of(if self.level == 0 { 3 } else { 4 })?;
        let shared = reader.uint_as::<usize>()?;
        let rest = reader.bytes()?;
        let end = reader.position();
        if self.started {
            // The first byte after the longest shared prefix decides the order, so one look at it proves both.
            let ascends = match (self.key.get(shared), rest.first()) {
                (Some(before), Some(after)) => before < after,
                (None, Some(_)) => shared == self.key.len(),
                (_, None) => false,
            };
            if !ascends {
                return Err(Malformed("its keys do not ascend"));
            }
        } else if shared != 0 {
            return Err(Malformed("its first key is not whole"));
        }
        if shared + rest.len() > RECORD_KEY_BYTES_MAX {
            return Err(Malformed("a key is too long"));
        }
        Ok(Ahead { shared, rest: (end - rest.len(), end), position: end })
    }

    fn compare_ahead(&self, ahead: &Ahead, target: &[u8]) -> Ordering {
        let head = &self.key[..ahead.shared];
        let rest = &self.bytes[ahead.rest.0..ahead.rest.1];
        match target.split_at_checked(ahead.shared) {
            Some((start, end)) => head.cmp(start).then_with(|| rest.cmp(end)),
            // The target is shorter than the shared part: a tie over its length means that the key is longer.
            None => head[..target.len()].cmp(target).then(Ordering::Greater),
        }
    }

    fn step_onto(&mut self, ahead: &Ahead) -> Result<(), MapError> {
        self.key.truncate(ahead.shared);
        self.key.extend_from_slice(&self.bytes[ahead.rest.0..ahead.rest.1]);
        let mut reader = Reader::at(&self.bytes, ahead.position);
        let read =
            if self.level == 0 { read_value(&mut reader).map(Ok) } else { read_child(&mut reader).map(Err) };
        self.position = reader.position();
        let read = read.map_err(|Malformed(what)| self.damaged(what))?;
        self.left -= 1;
        self.started = true;
        let entries = match read {
            Ok(value) => {
                self.value = value;
                1
            }
            Err(child) => {
                self.child = Some(child);
                child.entries
            }
        };
        self.account(entries)
    }

    /// Checks the claimed number of entries, and at the last record that nothing follows it.
    fn account(&mut self, entries: u64) -> Result<(), MapError> {
        if let Some(left) = self.entries_left {
            let left = left.checked_sub(entries);
            self.entries_left =
                Some(left.ok_or_else(|| self.damaged("it has more entries than its parent says"))?);
        }
        if self.left > 0 {
            return Ok(());
        }
        if self.position != self.bytes.len() {
            return Err(self.damaged("bytes follow its end"));
        }
        if self.entries_left.unwrap_or(0) != 0 {
            return Err(self.damaged("it has fewer entries than its parent says"));
        }
        Ok(())
    }

    fn check_empty_root(&self) -> Result<(), MapError> {
        if self.level == 0 && self.position == self.bytes.len() {
            Ok(())
        } else {
            Err(self.damaged("it is empty"))
        }
    }
}

fn read_header(reader: &mut Reader<'_>) -> Result<(u8, u64), Malformed> {
    reader.array_of(2)?;
    let level = reader.uint_as::<u8>()?;
    if level >= LEVELS_MAX {
        return Err(Malformed("its level is too high"));
    }
    Ok((level, reader.array()?))
}

fn read_value(reader: &mut Reader<'_>) -> Result<(usize, usize), Malformed> {
    let length = reader.bytes()?.len();
    if length > RECORD_VALUE_BYTES_MAX {
        return Err(Malformed("a value is too long"));
    }
    Ok((reader.position() - length, reader.position()))
}

fn read_child(reader: &mut Reader<'_>) -> Result<Child, Malformed> {
    let id = decode_id(reader)?;
    let entries = reader.uint()?;
    if entries == 0 { Err(Malformed("a child is empty")) } else { Ok(Child { id, entries }) }
}
