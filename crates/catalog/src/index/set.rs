//! All segments of an index at once.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use keepwell_crypto::ChunkId;

use super::cache::BlockCache;
use super::entry::{IndexEntry, PackRef, PackSet};
use super::segment::Segment;
use super::table::Table;
use crate::error::CatalogError;
use crate::names::PackClass;

/// Of the budget, segments that are decoded take at most this part. What they leave is for blocks of the others: those of two
/// segments at once as writers make them, or ids in the order in which they were stored read each block many times.
const DECODED_SHARE: u64 = 3;
/// So many places of chunks that are looked up together are held, 17 MB, unless one chunk alone has more.
const PLACES_TOGETHER_MAX: usize = 128 << 10;

/// Answers where a chunk is, over many segments, from several threads; segments may be added meanwhile.
///
/// Small segments are decoded into memory until a third of the budget is used up, at most 62 bytes per entry. The
/// others keep their filter in memory (10 bits per entry, beside the budget) and read one block per hit; what the decoded
/// ones leave of the budget keeps blocks. So add the small ones first. Ids that are looked up in about the order in which
/// they were stored find each block of a segment once, if the segment was written by who stored them.
///
/// ```
/// use bytes::Bytes;
/// use keepwell_catalog::{ContentName, IndexEntry, IndexSet, PackClass, PackRef, PackSet, Segment, SegmentBuilder};
/// use keepwell_crypto::{ChunkId, Digest, DomainId, GroupId, RepositoryId, SigningKey, verify_detached};
///
/// // A writer lists a pack with one chunk in it.
/// let (key, repository) = (SigningKey::generate(), RepositoryId::generate());
/// let name = ContentName::new(&Digest::of(b"the stored bytes of the pack"), [1, 2, 3, 4]);
/// let mut builder = SegmentBuilder::new(GroupId::generate(), PackClass::Data);
/// let pack = builder.add_pack(PackRef { name, size: 9000, header_len: 200, domain: DomainId::generate() });
/// let id = ChunkId::from_bytes([7; 32]);
/// builder.add(IndexEntry { id, pack, frame_offset: 0, frame_length: 700, offset: 0, length: 1000 });
/// let segment = Bytes::from(builder.finish(repository, &key, Vec::new())?);
///
/// // Others believe it, because they know who signed.
/// let index = IndexSet::new(IndexSet::DEFAULT_MEMORY_BUDGET_BYTES);
/// let verify = |_: &_, tables: &[u8], signature: &[u8; 64]| {
///     Ok(verify_detached(&key.verifying_key(), repository, "index", tables, signature)?)
/// };
/// index.add("a", Segment::open(Box::new(segment), &verify)?)?;
/// assert_eq!(index.find(&id)?[0].pack.name, name);
/// assert!(index.contains_live(&id, &PackSet::default())?);
/// assert!(!index.contains_live(&id, &PackSet::from_iter([(PackClass::Data, name)]))?, "a plan condemns the pack");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IndexSet {
    memory_budget_bytes: u64,
    cache: BlockCache,
    /// Which of the stored segments had the last live chunk.
    recent: AtomicUsize,
    state: RwLock<State>,
    /// Held while a segment is added, so that two do not share the same rest of the budget.
    adding: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    segments: Vec<(Arc<str>, Arc<Segment>)>,
    /// Their numbers by name.
    numbers: HashMap<Arc<str>, usize>,
    /// Entries of the segments that are in memory.
    table: Table,
    /// The other segments, with their numbers.
    stored: StoredSegments,
}

type StoredSegments = Arc<Vec<(usize, Arc<Segment>)>>;

/// Where one copy of a chunk lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Number of the segment in the set.
    pub segment: usize,
    /// Position of the entry in that segment.
    pub ordinal: u64,
    /// What the pack holds, which is the folder it lies in.
    pub class: PackClass,
    /// The pack.
    pub pack: PackRef,
    /// The entry.
    pub entry: IndexEntry,
}

impl IndexSet {
    /// So many places of a chunk in one pack are given of what a stored segment claims. A true one claims one.
    pub const PLACES_IN_A_PACK_MAX: usize = 8;
    /// Memory that suits most hosts: 48 MiB, of which a third holds about 250 000 chunks.
    pub const DEFAULT_MEMORY_BUDGET_BYTES: u64 = 48 << 20;

    /// An empty index, with memory for decoded segments and blocks.
    pub fn new(memory_budget_bytes: u64) -> Self {
        IndexSet {
            memory_budget_bytes,
            cache: BlockCache::new(bytes(memory_budget_bytes)),
            recent: AtomicUsize::new(0),
            state: RwLock::default(),
            adding: Mutex::default(),
        }
    }

    /// Adds a segment under its object name and returns its number. A name that is there already is not added again.
    ///
    /// Lookups go on while a small segment is decoded, and wait only for the table to take it in. One that is far
    /// ([`Segment::is_far`]) is never decoded.
    pub fn add(&self, name: &str, segment: Segment) -> Result<usize, CatalogError> {
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, fits) = {
            let state = self.read();
            let known = state.numbers.get(name).copied();
            let used = state.table.bytes() + Table::cost_bytes(segment.len());
            let decoded_max = self.memory_budget_bytes / DECODED_SHARE;
            let fits = used <= decoded_max && state.table.has_numbers_for(segment.len());
            (known, fits && !segment.is_far())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let segment = Arc::new(if fits { segment.into_memory()? } else { segment });
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let number = state.segments.len();
        match segment.in_memory() {
            Some(entries) => {
                state.table.insert_run(number, Arc::clone(entries));
                self.cache.limit(bytes(self.memory_budget_bytes.saturating_sub(state.table.bytes())));
            }
            None => Arc::make_mut(&mut state.stored).push((number, Arc::clone(&segment))),
        }
        let name: Arc<str> = name.into();
        state.numbers.insert(Arc::clone(&name), number);
        state.segments.push((name, segment));
        Ok(number)
    }

    /// The locations of a chunk. A reader tries them all before it reports damage.
    ///
    /// There are as many as segments claim, about 130 bytes each: one to three, unless somebody who may sign segments claims
    /// more for a chunk. Of what a stored segment claims in one pack only the first
    /// [`IndexSet::PLACES_IN_A_PACK_MAX`] are given: of more than a few the pack alone can say which is true, and any of them
    /// leads to it. So a lookup takes memory by the number of packs, whose tables are held anyway, and not by that of entries.
    /// No pack is left out: the one beyond a bound could be the only one that is there.
    pub fn find(&self, id: &ChunkId) -> Result<Vec<Location>, CatalogError> {
        let (mut found, stored) = self.find_in_memory(id);
        for (number, segment) in stored.iter() {
            self.find_stored(id, *number, segment, &mut found)?;
        }
        Ok(found)
    }

    /// Calls `visit` with many chunks, in their order, and the locations of each as [`IndexSet::find`] gives them. Goes through
    /// one segment after the other, so the filter of each is near for all ids, and of ids in ascending order each of its blocks
    /// is read once. One by one, an id costs a miss of the processor's cache for every segment, of which there is one for each
    /// backup since the last prune.
    ///
    /// Takes 24 bytes for each id, beside its locations. Where segments claim very many of these, fewer chunks are looked up
    /// together.
    pub fn find_all(
        &self,
        ids: &[ChunkId],
        visit: impl FnMut(&ChunkId, Vec<Location>),
    ) -> Result<(), CatalogError> {
        self.find_all_within(ids, PLACES_TOGETHER_MAX, visit)
    }

    /// Holds at most so many places, or those of one chunk.
    pub(crate) fn find_all_within(
        &self,
        ids: &[ChunkId],
        places_max: usize,
        mut visit: impl FnMut(&ChunkId, Vec<Location>),
    ) -> Result<(), CatalogError> {
        let mut waiting = vec![ids];
        while let Some(ids) = waiting.pop() {
            match self.find_together(ids, places_max)? {
                Some(found) => ids.iter().zip(found).for_each(|(id, places)| visit(id, places)),
                None => {
                    let (first, rest) = ids.split_at(ids.len() / 2);
                    waiting.extend([rest, first]);
                }
            }
        }
        Ok(())
    }

    /// `None` where these chunks, of which there are several, have more places than are to be held.
    fn find_together(
        &self,
        ids: &[ChunkId],
        places_max: usize,
    ) -> Result<Option<Vec<Vec<Location>>>, CatalogError> {
        let (mut found, stored) = {
            let state = self.read();
            let found: Vec<Vec<Location>> = ids.iter().map(|id| state.in_memory(id)).collect();
            (found, Arc::clone(&state.stored))
        };
        let mut places: usize = found.iter().map(Vec::len).sum();
        for (number, segment) in stored.iter() {
            for (id, found) in ids.iter().zip(&mut found) {
                let before = found.len();
                self.find_stored(id, *number, segment, found)?;
                places += found.len() - before;
                if places > places_max && ids.len() > 1 {
                    return Ok(None);
                }
            }
        }
        Ok(Some(found))
    }

    /// Calls `visit` with every location of a chunk, also with those that [`IndexSet::find`] leaves out. For whoever knows
    /// the true one, and holds none.
    pub fn visit(&self, id: &ChunkId, mut visit: impl FnMut(Location)) -> Result<(), CatalogError> {
        let (found, stored) = self.find_in_memory(id);
        found.into_iter().for_each(&mut visit);
        for (number, segment) in stored.iter() {
            segment.visit_cached(id, *number, &self.cache, &mut |ordinal, entry| {
                visit(location(*number, segment, ordinal, entry));
            })?;
        }
        Ok(())
    }

    /// The locations of a chunk in packs of a class, in all segments that are near or, if there are none, in the first of the
    /// far ones that has it. What it does not find may be there all the same.
    pub fn find_nearest(&self, id: &ChunkId, class: PackClass) -> Result<Vec<Location>, CatalogError> {
        let (mut found, stored) = self.find_in_memory(id);
        found.retain(|location| location.class == class);
        let of_class = stored.iter().filter(|(_, segment)| segment.class() == class);
        let (far, near): (Vec<_>, Vec<_>) = of_class.partition(|(_, segment)| segment.is_far());
        for (number, segment) in near {
            self.find_stored(id, *number, segment, &mut found)?;
        }
        for (number, segment) in far {
            if !found.is_empty() {
                break;
            }
            self.find_stored(id, *number, segment, &mut found)?;
        }
        Ok(found)
    }

    /// What the table has of a chunk, and the segments that are not in it.
    fn find_in_memory(&self, id: &ChunkId) -> (Vec<Location>, StoredSegments) {
        let state = self.read();
        (state.in_memory(id), Arc::clone(&state.stored))
    }

    fn find_stored(
        &self,
        id: &ChunkId,
        number: usize,
        segment: &Segment,
        found: &mut Vec<Location>,
    ) -> Result<(), CatalogError> {
        let (mut last_pack, mut places) = (None, 0);
        segment.visit_cached(id, number, &self.cache, &mut |ordinal, entry| {
            // Entries of one id are sorted by pack.
            places = if last_pack == Some(entry.pack) { places + 1 } else { 1 };
            last_pack = Some(entry.pack);
            if places <= Self::PLACES_IN_A_PACK_MAX {
                hold(found, location(number, segment, ordinal, entry));
            }
        })
    }

    /// Whether the chunk lies in a pack that is not in `dead`: whether a writer may refer to it instead of storing
    /// it again. Takes well below a microsecond for what is in memory, and for most ids that are absent.
    pub fn contains_live(&self, id: &ChunkId, dead: &PackSet) -> Result<bool, CatalogError> {
        let stored = {
            let state = self.read();
            let live = state.table.visit(id, |number, _, entry| {
                let segment = &state.segments[number].1;
                let name = &segment.packs()[entry.pack as usize].name;
                let is_dead = dead.contains(segment.class(), name);
                if is_dead { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            if live.is_break() {
                return Ok(true);
            }
            if !state.stored.iter().any(|(_, segment)| segment.may_contain(id)) {
                return Ok(false);
            }
            Arc::clone(&state.stored)
        };
        // What is looked up one after the other was mostly stored so: the segment that had the last one comes first, and
        // the filters of the others let nothing through in vain.
        let recent = self.recent.load(Ordering::Relaxed).min(stored.len());
        for at in (recent..stored.len()).chain(0..recent) {
            let (number, segment) = &stored[at];
            let mut is_live = false;
            segment.visit_cached(id, *number, &self.cache, &mut |_, entry| {
                let name = &segment.packs()[entry.pack as usize].name;
                is_live = is_live || !dead.contains(segment.class(), name);
            })?;
            if is_live {
                self.recent.store(at, Ordering::Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The segments with their object names, in order of their numbers.
    pub fn segments(&self) -> Vec<(Arc<str>, Arc<Segment>)> {
        self.read().segments.clone()
    }

    /// Entries in all segments.
    pub fn len(&self) -> u64 {
        self.read().segments.iter().map(|(_, segment)| segment.len()).sum()
    }

    /// Whether no segment has an entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of decoded segments and of blocks.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> u64 {
        self.read().table.bytes() + self.cache.bytes() as u64
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What the table has of a chunk.
    fn in_memory(&self, id: &ChunkId) -> Vec<Location> {
        let mut found = Vec::new();
        let _ = self.table.visit(id, |number, ordinal, entry| {
            hold(&mut found, location(number, &self.segments[number].1, ordinal, *entry));
            ControlFlow::<()>::Continue(())
        });
        found
    }
}

/// Adds a place of a chunk. Mostly it is the only one, and room would be made for four.
fn hold(found: &mut Vec<Location>, place: Location) {
    if found.is_empty() {
        found.reserve_exact(1);
    }
    found.push(place);
}

fn bytes(budget: u64) -> usize {
    usize::try_from(budget).unwrap_or(usize::MAX)
}

fn location(number: usize, segment: &Segment, ordinal: u64, entry: IndexEntry) -> Location {
    // Opening and decoding a segment have checked that every entry's pack is there.
    let pack = segment.packs()[entry.pack as usize];
    Location { segment: number, ordinal, class: segment.class(), pack, entry }
}
