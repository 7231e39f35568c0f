//! Segments of which every read costs a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Counts reads; near as soon as it is told.
#[derive(Clone)]
struct Far {
    bytes: Bytes,
    reads: Arc<AtomicUsize>,
    is_near: Arc<AtomicBool>,
}

impl Far {
    fn new(bytes: Vec<u8>) -> Self {
        Far { bytes: bytes.into(), reads: Arc::default(), is_near: Arc::default() }
    }

    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }

    fn open(&self) -> Segment {
        Segment::open(Box::new(self.clone()), &verify).unwrap()
    }
}

impl ReadAt for Far {
    fn len(&self) -> Result<u64, CatalogError> {
        ReadAt::len(&self.bytes)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.read_at(offset, len)
    }

    fn is_far(&self) -> bool {
        !self.is_near.load(Ordering::Relaxed)
    }
}

#[test]
fn a_far_segment_is_asked_for_its_tables_and_one_block_for_each_lookup() {
    let far = Far::new(build(0..8000));
    let segment = far.open();
    assert_eq!(far.reads(), 2, "trailer and tables");
    for n in (0..8000).step_by(799) {
        assert_eq!(segment.find(&id(n)).unwrap().len(), 1);
        assert_eq!(far.reads(), 1);
    }
    assert!(segment.find(&id(9000)).unwrap().is_empty());
    assert_eq!(far.reads(), 1, "its filter is not at hand");
    far.is_near.store(true, Ordering::Relaxed);
    assert!((9000..9100).all(|n| segment.find(&id(n)).unwrap().is_empty()));
    assert!(far.reads() < 20, "now it is, and lets few through");
}

#[test]
fn the_nearest_segment_that_has_a_chunk_is_enough() {
    let (first, second) = (Far::new(build(0..2000)), Far::new(build(1000..3000)));
    let set = IndexSet::new(IndexSet::DEFAULT_MEMORY_BUDGET_BYTES);
    set.add("first", first.open()).unwrap();
    set.add("second", second.open()).unwrap();
    set.add("near", open(build(0..500)).unwrap()).unwrap();
    let reads = || (first.reads(), second.reads());
    reads();
    for (n, expected) in [(0, (0, 0)), (600, (1, 0)), (1500, (0, 0)), (2500, (1, 1)), (9000, (1, 1))] {
        let found = set.find_nearest(&id(n), PackClass::Data).unwrap();
        assert_eq!(found.len(), usize::from(n < 3000), "chunk {n}");
        let (in_first, in_second) = reads();
        assert!(in_first <= expected.0.max(1) && in_second <= expected.1, "chunk {n}");
    }
    assert_eq!(set.find(&id(1500)).unwrap().len(), 2, "of both");
}

#[test]
fn of_far_segments_only_those_of_the_class_are_asked() {
    let of_class = |class| {
        let mut builder = SegmentBuilder::new(GROUP, class);
        let pack = builder.add_pack(pack(0));
        (0..1000).for_each(|n| builder.add(entry(n, pack)));
        Far::new(builder.finish(REPOSITORY, &signer(), Vec::new()).unwrap())
    };
    let (data, meta) = (of_class(PackClass::Data), of_class(PackClass::Meta));
    for (asked, class, other) in [(&data, PackClass::Data, &meta), (&meta, PackClass::Meta, &data)] {
        let set = IndexSet::new(IndexSet::DEFAULT_MEMORY_BUDGET_BYTES);
        set.add("data", data.open()).unwrap();
        set.add("meta", meta.open()).unwrap();
        data.reads();
        meta.reads();
        assert_eq!(set.find_nearest(&id(7), class).unwrap()[0].class, class);
        assert_eq!((asked.reads(), other.reads()), (1, 0));
        assert!(set.find_nearest(&id(9000), class).unwrap().is_empty());
        assert_eq!(other.reads(), 0);
    }
}

/// Blocks of 16 segments, of which the memory for blocks holds fewer than those of two.
#[test]
fn ids_in_the_order_in_which_they_were_stored_read_each_block_once() {
    let set = IndexSet::new(300 << 10);
    let near = |n: u64| {
        let segment = Far::new(build(n * 4000..n * 4000 + 4000));
        segment.is_near.store(true, Ordering::Relaxed);
        segment
    };
    let segments: Vec<Far> = (0..16).map(near).collect();
    for (n, segment) in segments.iter().enumerate() {
        set.add(&n.to_string(), segment.open()).unwrap();
        segment.reads();
    }
    assert!((0..64_000).all(|n| set.contains_live(&id(n), &PackSet::default()).unwrap()));
    let reads: usize = segments.iter().map(Far::reads).sum();
    assert!(
        (16 * 40..1500).contains(&reads),
        "{reads} blocks, where filters that let 1 % through would read thousands"
    );
}
