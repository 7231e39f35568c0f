//! Building a map from records in key order.

use keepwell_crypto::BoundaryKey;

use super::node::{Child, NodeWriter};
use super::{LEVELS_MAX, NodeSink, RECORD_KEY_BYTES_MAX, RECORD_VALUE_BYTES_MAX, Root};
use crate::error::MapError;
use crate::key::display_raw;

/// A node does not end before its records reach this size …
const RECORDS_BYTES_MIN: usize = 8 << 10;
/// … and ends at the latest when they reach this one.
const RECORDS_BYTES_MAX: usize = 128 << 10;
/// Beyond the minimum, one record in this many ends a node of level 0 …
const LEAF_RECORDS_MEAN: u64 = 1 << 8;
/// … and one in this many a node of a higher level.
const INNER_RECORDS_MEAN: u64 = 1 << 9;

/// Builds a map out of records that arrive in strictly ascending key order.
///
/// Holds one unfinished node per level, so memory is bounded by depth × 128 KiB whatever the number of records. Equal
/// records give an equal root on every run and with every pattern of checkpoints.
#[derive(Clone)]
pub struct MapBuilder {
    boundary: BoundaryKey,
    levels: Vec<Level>,
    last_key: Option<Vec<u8>>,
    entries: u64,
}

#[derive(Clone, Default)]
struct Level {
    open: NodeWriter,
    finished: u64,
    /// The newest finished node.
    newest: Option<Child>,
}

impl MapBuilder {
    /// An empty map whose nodes end where `boundary`, which belongs to the domain's id key, says.
    pub fn new(boundary: BoundaryKey) -> Self {
        Self { boundary, levels: vec![Level::default()], last_key: None, entries: 0 }
    }

    /// Number of records pushed so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Appends a record. The key must sort after the one before it; key and value must respect the limits of a record.
    ///
    /// On an error of the sink the builder must not be used further.
    pub fn push(&mut self, key: &[u8], value: &[u8], sink: &mut dyn NodeSink) -> Result<(), MapError> {
        check_size(key, key.len(), RECORD_KEY_BYTES_MAX)?;
        check_size(key, value.len(), RECORD_VALUE_BYTES_MAX)?;
        match &mut self.last_key {
            Some(last) if key <= last.as_slice() => {
                return Err(MapError::OutOfOrder { path: display_raw(key) });
            }
            Some(last) => {
                last.clear();
                last.extend_from_slice(key);
            }
            none => *none = Some(key.to_vec()),
        }
        self.entries += 1;
        self.levels[0].open.push_value(key, value);
        self.close_full(0, key, sink)
    }

    /// Writes all nodes that are needed to read what was pushed so far; building goes on as if nothing had happened.
    ///
    /// Costs one small node per level, and the memory of the builder a second time.
    pub fn checkpoint(&self, sink: &mut dyn NodeSink) -> Result<Root, MapError> {
        self.clone().finish(sink)
    }

    /// Writes the unfinished nodes and returns the root.
    pub fn finish(mut self, sink: &mut dyn NodeSink) -> Result<Root, MapError> {
        let mut level = 0;
        loop {
            let Level { open, finished, newest } = &self.levels[level];
            // A level with one node is the root; the level above may hold a record for it already.
            match (finished, newest) {
                (1, Some(child)) if open.is_empty() => {
                    return Ok(Root { id: child.id, entries: self.entries });
                }
                (0, _) => {
                    let id = sink.put_node(open.encode(level as u8))?;
                    return Ok(Root { id, entries: self.entries });
                }
                _ if !open.is_empty() => self.close(level, sink)?,
                _ => {}
            }
            level += 1;
        }
    }

    /// Ends the open node of `level` if its newest record, with this key, is its last; then those above it.
    fn close_full(&mut self, level: usize, key: &[u8], sink: &mut dyn NodeSink) -> Result<(), MapError> {
        let records_len = self.levels[level].open.records_len();
        if records_len < RECORDS_BYTES_MIN {
            return Ok(());
        }
        let mean = if level == 0 { LEAF_RECORDS_MEAN } else { INNER_RECORDS_MEAN };
        let ends =
            records_len >= RECORDS_BYTES_MAX || self.boundary.hash(level as u8, key).is_multiple_of(mean);
        if ends { self.close(level, sink) } else { Ok(()) }
    }

    /// Writes the open node of `level` and lists it in the level above.
    fn close(&mut self, level: usize, sink: &mut dyn NodeSink) -> Result<(), MapError> {
        let Level { open, finished, newest } = &mut self.levels[level];
        let child = Child { id: sink.put_node(open.encode(level as u8))?, entries: open.entries() };
        let key = open.first_key().to_vec();
        open.clear();
        *finished += 1;
        *newest = Some(child);

        let above = level + 1;
        if above == usize::from(LEVELS_MAX) {
            return Err(MapError::Write { source: "the map has too many levels".into() });
        }
        if above == self.levels.len() {
            self.levels.push(Level::default());
        }
        self.levels[above].open.push_child(&key, &child);
        self.close_full(above, &key, sink)
    }
}

impl std::fmt::Debug for MapBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapBuilder")
            .field("entries", &self.entries)
            .field("levels", &self.levels.len())
            .finish()
    }
}

fn check_size(key: &[u8], bytes: usize, maximum: usize) -> Result<(), MapError> {
    if bytes <= maximum {
        return Ok(());
    }
    Err(MapError::RecordTooLarge { path: display_raw(key), bytes, maximum })
}
