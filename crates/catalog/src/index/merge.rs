//! Merging segments into one sorted stream without what is dead.
//!
//! Choose inputs whose sizes add up to at most one segment (256 MiB) and write the stream into one. A pack's entries
//! then stay together in one segment; splitting the stream by id would list almost every pack in every part.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use keepwell_crypto::ChunkId;

use super::entry::{IndexEntry, PackRef};
use super::segment::{Segment, SegmentEntries};
use crate::error::CatalogError;

/// An entry together with its pack. The ordinal in it is that of the segment it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatedEntry {
    /// The pack.
    pub pack: PackRef,
    /// The entry.
    pub entry: IndexEntry,
}

/// Says whether an entry is to be left out.
type IsDead<'a> = dyn FnMut(&PackRef, &IndexEntry) -> bool + 'a;

/// Merges `inputs` in order of ids, leaves out every entry for which `is_dead` says so, and yields what several
/// inputs say alike once. Where they say different things, all of it stays: which is so, the pack tells.
///
/// Holds one block per input. The inputs must be of one group and class.
pub fn merge<'a>(
    inputs: impl IntoIterator<Item = &'a Segment>,
    is_dead: impl FnMut(&PackRef, &IndexEntry) -> bool + 'a,
) -> Result<MergedEntries<'a>, CatalogError> {
    let mut merged = MergedEntries {
        inputs: Vec::new(),
        heap: BinaryHeap::new(),
        ready: Vec::new(),
        is_dead: Box::new(is_dead),
        failed: false,
    };
    for segment in inputs {
        if merged.inputs.first().is_some_and(|input| input.differs_from(segment)) {
            return Err(CatalogError::malformed("merge of index segments", "they differ in group or class"));
        }
        merged.inputs.push(Input { segment, entries: segment.iter(), head: None });
        merged.advance(merged.inputs.len() - 1)?;
    }
    Ok(merged)
}

/// The merged stream; ends after the first error.
pub struct MergedEntries<'a> {
    inputs: Vec<Input<'a>>,
    /// Smallest id of each input that has one left.
    heap: BinaryHeap<Reverse<(ChunkId, usize)>>,
    /// Entries of the current id, last one first.
    ready: Vec<LocatedEntry>,
    is_dead: Box<IsDead<'a>>,
    failed: bool,
}

struct Input<'a> {
    segment: &'a Segment,
    entries: SegmentEntries<'a>,
    head: Option<IndexEntry>,
}

impl Input<'_> {
    fn differs_from(&self, other: &Segment) -> bool {
        (self.segment.group(), self.segment.class()) != (other.group(), other.class())
    }
}

impl MergedEntries<'_> {
    fn advance(&mut self, number: usize) -> Result<(), CatalogError> {
        let input = &mut self.inputs[number];
        input.head = input.entries.next().transpose()?.map(|(_, entry)| entry);
        if let Some(head) = &input.head {
            self.heap.push(Reverse((head.id, number)));
        }
        Ok(())
    }

    /// Gathers the live entries of the next id; `false` when no input has one.
    fn gather(&mut self) -> Result<bool, CatalogError> {
        let Some(&Reverse((id, _))) = self.heap.peek() else { return Ok(false) };
        while let Some(&Reverse((next, number))) = self.heap.peek()
            && next == id
        {
            self.heap.pop();
            let input = &self.inputs[number];
            if let Some(entry) = input.head {
                let pack = input.segment.packs()[entry.pack as usize];
                self.take(LocatedEntry { pack, entry });
            }
            self.advance(number)?;
        }
        // Not by comparing each with each: how many places a chunk has, whoever signs a segment decides.
        let said = |item: &LocatedEntry| (item.pack, IndexEntry { pack: 0, ..item.entry });
        self.ready.sort_unstable_by_key(said);
        self.ready.dedup_by_key(|item| said(item));
        self.ready.reverse();
        Ok(true)
    }

    fn take(&mut self, located: LocatedEntry) {
        if !(self.is_dead)(&located.pack, &located.entry) {
            self.ready.push(located);
        }
    }
}

impl Iterator for MergedEntries<'_> {
    type Item = Result<LocatedEntry, CatalogError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            if let Some(located) = self.ready.pop() {
                return Some(Ok(located));
            }
            match self.gather() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl std::fmt::Debug for MergedEntries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MergedEntries").field("inputs", &self.inputs.len()).finish_non_exhaustive()
    }
}
