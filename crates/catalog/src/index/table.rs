//! The hash table over the segments that are held in memory.
//!
//! Per entry: 52 bytes for the entry itself, and 6 to 10 for one slot of 5 bytes at 53 % to 80 % load. A miss touches
//! one line of tags and nothing else, as a rule. A further entry of an id that is there takes up to 20 more.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;

use keepwell_crypto::ChunkId;

use super::entry::IndexEntry;

const SLOT_LEN: usize = size_of::<u8>() + size_of::<u32>();
/// A step to another entry of the same id.
const STEP_LEN: usize = 2 * size_of::<u32>() + size_of::<u8>();
/// No entry in this slot.
const EMPTY: u8 = 0;

/// Finds entries of many sorted runs by id.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// One byte of each slot's hash, never `EMPTY` for a slot in use.
    tags: Vec<u8>,
    /// Number of the entry over all runs.
    slots: Vec<u32>,
    /// Of entries with one id only the first has a slot; this leads from each to another. How many there are, whoever signs a
    /// segment decides: with slots of their own, each would have to be stepped over for the next.
    next: HashMap<u32, u32>,
    runs: Vec<Run>,
    len: usize,
    /// A secret of this process: nobody can choose ids that collide.
    hasher: RandomState,
}

#[derive(Debug)]
struct Run {
    /// Number of its first entry.
    start: u32,
    segment: usize,
    entries: Arc<Vec<IndexEntry>>,
}

impl Table {
    /// Upper bound of the bytes that `entries` more will take.
    pub(crate) fn cost_bytes(entries: u64) -> u64 {
        entries.saturating_mul((size_of::<IndexEntry>() + 2 * SLOT_LEN) as u64)
    }

    /// Bytes that it takes now.
    pub(crate) fn bytes(&self) -> u64 {
        let steps = self.next.capacity() * STEP_LEN;
        (self.len * size_of::<IndexEntry>() + self.tags.len() * SLOT_LEN + steps) as u64
    }

    /// Whether the numbers of so many more entries fit the slots.
    pub(crate) fn has_numbers_for(&self, entries: u64) -> bool {
        (self.len as u64).saturating_add(entries) <= u64::from(u32::MAX / 2)
    }

    /// Adds all entries of a segment.
    pub(crate) fn insert_run(&mut self, segment: usize, entries: Arc<Vec<IndexEntry>>) {
        let start = self.len;
        self.len += entries.len();
        self.runs.push(Run { start: start as u32, segment, entries });
        if self.len * 5 > self.tags.len() * 4 {
            self.rebuild();
        } else {
            self.index_from(start);
        }
    }

    /// Calls `visit` with segment, position in it and entry for every entry with this id.
    pub(crate) fn visit<B>(
        &self,
        id: &ChunkId,
        mut visit: impl FnMut(usize, u64, &IndexEntry) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if self.tags.is_empty() {
            return ControlFlow::Continue(());
        }
        let (mut slot, tag) = self.place(id);
        while self.tags[slot] != EMPTY {
            if self.tags[slot] == tag && self.id_at(slot) == *id {
                let mut number = Some(self.slots[slot]);
                while let Some(at) = number {
                    let (run, position) = self.entry(at);
                    visit(run.segment, u64::from(position), &run.entries[position as usize])?;
                    number = self.next.get(&at).copied();
                }
                return ControlFlow::Continue(());
            }
            slot = self.after(slot);
        }
        ControlFlow::Continue(())
    }

    /// The run of the entry with this number, and its position there.
    fn entry(&self, number: u32) -> (&Run, u32) {
        let run = &self.runs[self.runs.partition_point(|run| run.start <= number) - 1];
        (run, number - run.start)
    }

    fn id_at(&self, slot: usize) -> ChunkId {
        let (run, position) = self.entry(self.slots[slot]);
        run.entries[position as usize].id
    }

    /// Grows by half at least, so that the load stays between 53 % and 80 %.
    fn rebuild(&mut self) {
        let capacity = (self.tags.len() * 3 / 2).max(self.len * 5 / 4 + 8);
        self.tags = vec![EMPTY; capacity];
        self.slots = vec![0; capacity];
        self.next = HashMap::new();
        self.index_from(0);
    }

    /// Gives every entry with this number or a higher one its slot, or its place behind the first with its id.
    fn index_from(&mut self, start: usize) {
        let first_run = self.runs.partition_point(|run| (run.start as usize) < start);
        for at in first_run..self.runs.len() {
            let entries = Arc::clone(&self.runs[at].entries);
            for (number, entry) in (self.runs[at].start..).zip(entries.iter()) {
                let (mut slot, tag) = self.place(&entry.id);
                while self.tags[slot] != EMPTY && (self.tags[slot] != tag || self.id_at(slot) != entry.id) {
                    slot = self.after(slot);
                }
                if self.tags[slot] == EMPTY {
                    (self.tags[slot], self.slots[slot]) = (tag, number);
                } else if let Some(second) = self.next.insert(self.slots[slot], number) {
                    self.next.insert(number, second);
                }
            }
        }
    }

    /// First slot to look at, and the tag to look for.
    fn place(&self, id: &ChunkId) -> (usize, u8) {
        let hash = self.hasher.hash_one(id.as_bytes());
        let slot = (u128::from(hash) * self.tags.len() as u128) >> 64;
        (slot as usize, 0x80 | (hash as u8 & 0x7f))
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.tags.len() { 0 } else { slot + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(range: std::ops::Range<u64>) -> Arc<Vec<IndexEntry>> {
        let entry = |n: u64| IndexEntry {
            id: ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes()),
            pack: n as u32,
            frame_offset: 0,
            frame_length: 0,
            offset: 0,
            length: 0,
        };
        Arc::new(range.map(entry).collect())
    }

    fn found(table: &Table, entry: &IndexEntry) -> Vec<(usize, u64)> {
        let mut found = Vec::new();
        let _ = table.visit(&entry.id, |segment, position, other| {
            assert_eq!(other, entry);
            found.push((segment, position));
            ControlFlow::<()>::Continue(())
        });
        found
    }

    #[test]
    fn every_entry_of_every_run_is_found() {
        let mut table = Table::default();
        let runs = [run(0..1000), run(1000..1000), run(1000..1003), run(0..10), run(1003..9000)];
        for (segment, entries) in runs.iter().enumerate() {
            table.insert_run(segment, Arc::clone(entries));
        }
        for (position, entry) in runs[4].iter().enumerate() {
            assert_eq!(found(&table, entry), [(4, position as u64)]);
        }
        for (position, entry) in runs[0].iter().enumerate().take(10) {
            let mut both = found(&table, entry);
            both.sort_unstable();
            assert_eq!(both, [(0, position as u64), (3, position as u64)]);
        }
        run(9000..20_000).iter().for_each(|entry| assert!(found(&table, entry).is_empty()));
        assert!(found(&Table::default(), &runs[0][0]).is_empty());
    }

    /// With each of them in the way of the next, this would take minutes.
    #[test]
    fn one_id_may_have_any_number_of_entries() {
        let seven = run(7..8)[0];
        let same = (0..400_000).map(|n| IndexEntry { frame_offset: n, ..seven }).collect();
        let same: Arc<Vec<IndexEntry>> = Arc::new(same);
        let mut table = Table::default();
        for (segment, entries) in [run(0..10), Arc::clone(&same), run(10..9000)].into_iter().enumerate() {
            table.insert_run(segment, entries);
        }
        let mut found = Vec::new();
        let _ = table.visit(&seven.id, |segment, position, _| {
            found.push((segment, position));
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(found[0], (0, 7), "the oldest comes first");
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), same.len() + 1);
    }

    #[test]
    fn an_entry_takes_at_most_64_bytes() {
        let mut table = Table::default();
        for n in 0..200 {
            table.insert_run(n, run(n as u64 * 500..n as u64 * 500 + 500));
            let per_entry = table.bytes() as f64 / table.len as f64;
            assert!(per_entry <= 64.0, "{per_entry} at {n}");
        }
    }
}
