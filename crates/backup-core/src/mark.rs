//! Marking: which chunks the roots reach. One bit per index entry, so that memory follows the index, not the data.

use std::ops::ControlFlow;

use keepwell_catalog::{
    CatalogError, IndexSet, Location, PackClass, PackSet, record_extents, walk_nodes_past,
};
use keepwell_crypto::ChunkId;

use crate::Error;
use crate::read::Nodes;

/// So many chunks are looked up together, in the order of their ids: 5 MiB of places.
pub(crate) const LOOKED_UP_TOGETHER: usize = 32 << 10;

/// Marks over the segments of one index; segments added later have none.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    segments: Vec<Vec<u64>>,
}

impl Marks {
    /// Nothing is marked.
    pub fn new(index: &IndexSet) -> Self {
        let words = |entries: u64| usize::try_from(entries.div_ceil(64)).unwrap_or(usize::MAX);
        Self { segments: index.segments().iter().map(|(_, s)| vec![0; words(s.len())]).collect() }
    }

    /// Marks an entry; `true` if it was not marked before. Of a segment that was added later nothing can be remembered:
    /// the answer is always `true`, so that what is below is visited again rather than never.
    pub fn set(&mut self, location: &Location) -> bool {
        let Some((word, bit)) = self.word(location.segment, location.ordinal) else { return true };
        let word = &mut self.segments[location.segment][word];
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    /// Whether an entry is marked.
    pub fn get(&self, segment: usize, ordinal: u64) -> bool {
        self.word(segment, ordinal).is_some_and(|(word, bit)| self.segments[segment][word] & bit != 0)
    }

    fn word(&self, segment: usize, ordinal: u64) -> Option<(usize, u64)> {
        let word = usize::try_from(ordinal / 64).ok()?;
        (word < self.segments.get(segment)?.len()).then_some((word, 1 << (ordinal % 64)))
    }
}

/// What a mark phase meets.
pub(crate) trait Visitor {
    /// A chunk or node that a root reaches, with every place that the index knows in packs of its class. A node is met again
    /// for each reference, and the answer says whether to go on below it; chunks come behind the nodes that refer to them, in
    /// the order of their ids, and again where that is not held in memory.
    fn reached(&mut self, id: &ChunkId, locations: &[Location]) -> bool;

    /// Something that a root needs cannot be read: a node, with the reason.
    fn broken(&mut self, error: Error) -> Result<(), Error>;
}

/// Visits everything that the root reaches. A node that cannot be read is handed to [`Visitor::broken`]; if that gives no
/// error, the rest of the tree is visited.
pub(crate) fn visit(
    nodes: &Nodes,
    index: &IndexSet,
    root: &ChunkId,
    visitor: &mut dyn Visitor,
) -> Result<(), Error> {
    let shared = std::cell::RefCell::new((visitor, None));
    let mut waiting = Vec::new();
    let mut stopped = None;
    walk_nodes_past(
        nodes,
        root,
        &mut |id| {
            let (visitor, failed) = &mut *shared.borrow_mut();
            match places_of(index, PackClass::Meta, id) {
                Ok(locations) => visitor.reached(id, &locations),
                Err(error) => {
                    failed.get_or_insert(Error::from(error));
                    false
                }
            }
        },
        &mut |key, value| {
            let (visitor, failed) = &mut *shared.borrow_mut();
            let noted =
                gather(key, value, &mut waiting).and_then(|()| match waiting.len() < LOOKED_UP_TOGETHER {
                    true => Ok(()),
                    false => look_up(index, &mut waiting, &mut **visitor),
                });
            if let Err(error) = noted {
                failed.get_or_insert(error);
            }
        },
        &mut |error| {
            let (visitor, _) = &mut *shared.borrow_mut();
            stopped = visitor.broken(error.into()).err();
            if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    );
    let (visitor, mut failed) = shared.into_inner();
    if let Err(error) = look_up(index, &mut waiting, &mut *visitor) {
        failed.get_or_insert(error);
    }
    match (stopped, failed) {
        (Some(error), _) => Err(error),
        (None, failed) => failed.map_or(Ok(()), |error| visitor.broken(error)),
    }
}

fn gather(key: &[u8], value: &[u8], waiting: &mut Vec<ChunkId>) -> Result<(), Error> {
    waiting.extend(record_extents(key, value)?.iter().filter_map(|extent| extent.chunk().copied()));
    Ok(())
}

/// Hands chunks of content to a visitor, and forgets them, also where the index cannot be read: they would be looked up again,
/// in vain, with all that come after them.
pub(crate) fn look_up(
    index: &IndexSet,
    waiting: &mut Vec<ChunkId>,
    visitor: &mut dyn Visitor,
) -> Result<(), Error> {
    waiting.sort_unstable();
    waiting.dedup();
    let done = waiting.chunks(LOOKED_UP_TOGETHER).try_for_each(|ids| {
        index.find_all(ids, |id, mut places| {
            places.retain(|place| place.class == PackClass::Data);
            visitor.reached(id, &places);
        })
    });
    waiting.clear();
    Ok(done?)
}

/// The places of a chunk in packs of the class that it is expected in. A tree may say of a node that it is the content of
/// a file: who took that for a visit would never go through what lies below the node.
pub(crate) fn places_of(
    index: &IndexSet,
    class: PackClass,
    id: &ChunkId,
) -> Result<Vec<Location>, CatalogError> {
    let mut found = index.find(id)?;
    found.retain(|location| location.class == class);
    Ok(found)
}

/// The location to live by: the first whose pack does not count as gone.
pub(crate) fn preferred<'l>(locations: &'l [Location], gone: &PackSet) -> Option<&'l Location> {
    locations.iter().find(|l| !gone.contains(l.class, &l.pack.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use keepwell_catalog::{ContentName, IndexEntry, PackRef, ReadAt, Segment, SegmentBuilder};
    use keepwell_crypto::{Digest, DomainId, GroupId, RepositoryId, SigningKey, verify_detached};

    use super::*;

    /// A segment that cannot be read any more, once it was opened.
    struct Breaking {
        segment: Bytes,
        is_broken: Arc<AtomicBool>,
    }

    impl ReadAt for Breaking {
        fn len(&self) -> Result<u64, CatalogError> {
            ReadAt::len(&self.segment)
        }

        fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
            if self.is_broken.load(Ordering::SeqCst) {
                return Err(CatalogError::ReadSegment { offset, len, source: "the disk is gone".into() });
            }
            self.segment.read_at(offset, len)
        }
    }

    struct Nobody;

    impl Visitor for Nobody {
        fn reached(&mut self, _: &ChunkId, _: &[Location]) -> bool {
            true
        }

        fn broken(&mut self, error: Error) -> Result<(), Error> {
            Err(error)
        }
    }

    #[test]
    fn what_cannot_be_looked_up_does_not_gather() {
        let (key, repository) = (SigningKey::generate(), RepositoryId::generate());
        let name = ContentName::new(&Digest::of(b"a pack"), [1, 2, 3, 4]);
        let mut builder = SegmentBuilder::new(GroupId::generate(), PackClass::Data);
        let pack =
            builder.add_pack(PackRef { name, size: 9000, header_len: 200, domain: DomainId::generate() });
        let id = ChunkId::from_bytes([7; ChunkId::LEN]);
        builder.add(IndexEntry { id, pack, frame_offset: 0, frame_length: 700, offset: 0, length: 1000 });
        let segment = Bytes::from(builder.finish(repository, &key, Vec::new()).unwrap());
        let verify = |_: &_, tables: &[u8], signature: &[u8; 64]| {
            Ok(verify_detached(&key.verifying_key(), repository, "index", tables, signature)?)
        };
        let is_broken = Arc::new(AtomicBool::new(false));
        let source = Breaking { segment, is_broken: Arc::clone(&is_broken) };
        let index = IndexSet::new(0);
        index.add("a", Segment::open(Box::new(source), &verify).unwrap()).unwrap();
        is_broken.store(true, Ordering::SeqCst);
        let mut waiting = vec![id];
        look_up(&index, &mut waiting, &mut Nobody).unwrap_err();
        assert!(waiting.is_empty());
    }
}
