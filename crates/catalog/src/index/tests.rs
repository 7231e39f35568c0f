//! Whole segments: written, read back, damaged, merged, and asked together.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use keepwell_crypto::{
    ChunkId, Digest, DomainId, GroupId, MemberId, RepositoryId, SigningKey, VerifyingKey, sign_detached,
    verify_detached,
};
use proptest::prelude::*;

use super::block::BlockBuilder;
use super::filter::Filter;
use super::layout::{
    BlockRef, FILTER_MAGIC, SIGNED_KIND, TABLES_MAGIC, TRAILER_LEN, Tables, Trailer, hash16,
};
use super::*;
use crate::names::{ContentName, PackClass, pack_key};
use crate::{CatalogError, frame};

mod far;

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([9; 16]);
const GROUP: GroupId = GroupId::from_bytes([1, 2, 3, 4]);

fn signer() -> SigningKey {
    SigningKey::from_seed(&[5; 32])
}

fn verify(
    member: &MemberId,
    tables: &[u8],
    signature: &[u8; 64],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let key: VerifyingKey = signer().verifying_key();
    if key.member_id() != *member {
        return Err("a stranger".into());
    }
    Ok(verify_detached(&key, REPOSITORY, "index", tables, signature)?)
}

fn id(n: u64) -> ChunkId {
    ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn pack(n: u64) -> PackRef {
    let digest = Digest::from_bytes(*id(n + 1_000_000).as_bytes());
    PackRef {
        name: ContentName::new(&digest, [0; 4]),
        size: 1 << 24,
        header_len: 200,
        domain: DomainId::from_bytes([7; 4]),
    }
}

fn entry(n: u64, pack: u32) -> IndexEntry {
    let place = n as u32;
    IndexEntry {
        id: id(n),
        pack,
        frame_offset: place * 100,
        frame_length: 90,
        offset: place % 7,
        length: 1 << 20,
    }
}

/// A segment with one pack per hundred chunks.
fn build(chunks: std::ops::Range<u64>) -> Vec<u8> {
    let mut builder = SegmentBuilder::new(GROUP, PackClass::Data);
    let mut packs = BTreeMap::new();
    for n in chunks {
        let ordinal = *packs.entry(n / 100).or_insert_with(|| builder.add_pack(pack(n / 100)));
        builder.add(entry(n, ordinal));
    }
    builder.finish(REPOSITORY, &signer(), vec!["old".into()]).unwrap()
}

fn open(plain: Vec<u8>) -> Result<Segment, CatalogError> {
    Segment::open(Box::new(Bytes::from(plain)), &verify)
}

#[test]
fn a_segment_finds_what_was_added_and_nothing_else() {
    let segment = open(build(0..20_000)).unwrap();
    assert_eq!(
        (segment.len(), segment.packs().len(), segment.inputs()),
        (20_000, 200, &["old".to_owned()][..])
    );
    assert_eq!(
        (segment.group(), segment.class(), segment.signer()),
        (GROUP, PackClass::Data, signer().member_id())
    );
    let all: Vec<_> = segment.iter().collect::<Result<_, _>>().unwrap();
    assert!(all.is_sorted_by_key(|(_, entry)| entry.id));
    assert_eq!(all.len(), 20_000);
    for n in 0..2000 {
        let found = segment.find(&id(n)).unwrap();
        assert_eq!(found.len(), 1);
        let (ordinal, entry_found) = found[0];
        assert_eq!(all[ordinal as usize], found[0]);
        assert_eq!(IndexEntry { pack: 0, ..entry_found }, entry(n, 0));
        assert_eq!(segment.packs()[entry_found.pack as usize], pack(n / 100));
        assert!(segment.find(&id(n + 20_000)).unwrap().is_empty());
    }
}

#[test]
fn the_plaintext_is_only_zstd_and_skippable_frames() {
    let plain = build(0..5000);
    let blocks = zstd::decode_all(&plain[..]).unwrap();
    let smallest = (0..5000).map(id).min().unwrap();
    assert_eq!(blocks[4..36], smallest.as_bytes()[..]);
    assert_eq!(plain[plain.len() - 8..], *b"KWINDX\0\x01");
}

#[test]
fn an_empty_segment_is_fine() {
    let segment = open(build(0..0)).unwrap();
    assert!(segment.is_empty() && segment.iter().next().is_none());
    assert!(segment.find(&id(1)).unwrap().is_empty());
}

#[test]
fn a_file_serves_as_well_as_bytes() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&build(0..5000)).unwrap();
    let segment = Segment::open(Box::new(file), &verify).unwrap();
    assert!((0..5000).step_by(7).all(|n| segment.find(&id(n)).unwrap().len() == 1));
}

#[test]
fn an_id_with_thousands_of_locations_spans_blocks() {
    let mut builder = SegmentBuilder::new(GROUP, PackClass::Meta);
    for n in 0..5000 {
        let ordinal = builder.add_pack(pack(n));
        builder.add(IndexEntry { id: id(3), ..entry(n, ordinal) });
    }
    (0..1000).for_each(|n| builder.add(entry(n + 10, 0)));
    let segment = open(builder.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap();
    let found = segment.find(&id(3)).unwrap();
    assert_eq!(found.len(), 5000);
    let all: Vec<_> = segment.iter().collect::<Result<_, _>>().unwrap();
    assert!(found.iter().all(|item| all[item.0 as usize] == *item));
    assert!((10..1010).all(|n| segment.find(&id(n)).unwrap().len() == 1));
}

/// Whoever may write decides how many places a segment claims. What a lookup holds follows the number of packs.
#[test]
fn a_lookup_holds_few_of_the_places_that_are_claimed_in_one_pack() {
    let mut builder = SegmentBuilder::new(GROUP, PackClass::Data);
    let ordinals = [pack(0), pack(1)].map(|pack| builder.add_pack(pack));
    for frame_offset in 0..20_000 {
        builder.add(IndexEntry { frame_offset, ..entry(3, ordinals[0]) });
    }
    builder.add(entry(3, ordinals[1]));
    let set = IndexSet::new(0);
    set.add("a", open(builder.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap()).unwrap();

    let found = set.find(&id(3)).unwrap();
    assert_eq!(found.len(), IndexSet::PLACES_IN_A_PACK_MAX + 1);
    assert_eq!(found.last().map(|location| location.pack), Some(pack(1)), "no pack is left out");
    let mut all = 0;
    set.visit(&id(3), |location| all += usize::from(location.entry.id == id(3))).unwrap();
    assert_eq!(all, 20_001);
    let dead = PackSet::from_iter([(PackClass::Data, pack(0).name)]);
    assert!(set.contains_live(&id(3), &dead).unwrap(), "the last place is asked about as well");
}

#[test]
fn a_cut_segment_is_refused() {
    let plain = build(0..3000);
    for cut in (0..plain.len()).step_by(997).chain(plain.len() - 120..plain.len()) {
        assert!(open(plain[..cut].to_vec()).is_err(), "cut at {cut}");
        assert!(open(plain[cut + 1..].to_vec()).is_err(), "begun at {cut}");
    }
}

#[test]
fn a_changed_byte_is_an_error_never_another_answer() {
    let plain = build(0..3000);
    let sound = open(plain.clone()).unwrap().iter().collect::<Result<Vec<_>, _>>().unwrap();
    let tail = plain.len() - 10_000..plain.len();
    for at in (0..plain.len()).step_by(499).chain(tail.step_by(13)).chain(plain.len() - 112..plain.len()) {
        let mut changed = plain.clone();
        changed[at] ^= 0x11;
        match open(changed).and_then(|segment| segment.iter().collect::<Result<Vec<_>, _>>()) {
            Ok(read) => assert_eq!(read, sound, "byte {at}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// The segment with other tables, signed by its author.
/// A local copy whose blocks are damaged until it is renewed.
struct Copied {
    damaged: std::sync::Mutex<Bytes>,
    sound: Bytes,
}

impl ReadAt for Copied {
    fn len(&self) -> Result<u64, CatalogError> {
        Ok(self.sound.len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        self.damaged.lock().unwrap().read_at(offset, len)
    }

    fn renew(&self) -> Result<bool, CatalogError> {
        *self.damaged.lock().unwrap() = self.sound.clone();
        Ok(true)
    }
}

#[test]
fn a_damaged_copy_is_renewed_when_a_block_is_needed() {
    let sound = Bytes::from(build(0..5000));
    let mut damaged = sound.to_vec();
    damaged[100] ^= 1;
    let copied = Copied { damaged: std::sync::Mutex::new(damaged.into()), sound };
    let segment = Segment::open(Box::new(copied), &verify).unwrap();
    for n in 0..5000 {
        assert_eq!(segment.find(&id(n)).unwrap().len(), 1);
    }
}

fn with_tables(plain: &[u8], change: impl Fn(&mut Tables)) -> Vec<u8> {
    let (rest, trailer) = plain.split_at(plain.len() - TRAILER_LEN);
    let trailer = Trailer::decode(trailer).unwrap();
    let (rest, tables) = rest.split_at(trailer.tables_offset as usize);
    let mut tables = Tables::decode(&frame::decompress("tables", &tables[8..], 1 << 20).unwrap()).unwrap();
    change(&mut tables);
    let tables = tables.encode();
    let stored = frame::compress(&tables, 3).unwrap();
    let signature = sign_detached(&signer(), REPOSITORY, SIGNED_KIND, &tables);
    let trailer = Trailer { tables_len: stored.len() as u32 + 8, signature, ..trailer };
    let header = frame::skippable_header(TABLES_MAGIC, stored.len() as u32);
    [rest, &header, &stored, &trailer.encode()].concat()
}

/// A segment of one pack and one block that has these entries in this order, behind tables that say so.
fn with_entries(entries: &[IndexEntry]) -> Vec<u8> {
    let (mut block, mut filter, mut plain) = (BlockBuilder::default(), Filter::for_entries(1), Vec::new());
    for entry in entries {
        block.push(entry);
        filter.insert(&entry.id);
    }
    block.take(&mut plain);
    let stored = frame::compress(&plain, 1).unwrap();
    let filter_header = frame::skippable_header(FILTER_MAGIC, filter.as_bytes().len() as u32);
    let filter_frame = [&filter_header[..], filter.as_bytes()].concat();
    let tables = Tables {
        group: GROUP,
        class: PackClass::Data,
        entries: entries.len() as u64,
        packs: vec![pack(0)],
        blocks: vec![BlockRef {
            first: entries[0].id,
            offset: 0,
            stored_len: stored.len() as u32,
            entries: entries.len() as u32,
            first_ordinal: 0,
            hash: hash16(&stored),
        }],
        filter_hash: hash16(&filter_frame),
        inputs: Vec::new(),
    }
    .encode();
    signed(stored, filter_frame, &tables)
}

/// Blocks, filter frame and these tables, signed by the author.
fn signed(blocks: Vec<u8>, filter_frame: Vec<u8>, tables: &[u8]) -> Vec<u8> {
    let stored = frame::compress(tables, 3).unwrap();
    let trailer = Trailer {
        tables_offset: (blocks.len() + filter_frame.len()) as u64,
        tables_len: stored.len() as u32 + 8,
        filter_offset: blocks.len() as u64,
        filter_len: filter_frame.len() as u32,
        signature: sign_detached(&signer(), REPOSITORY, SIGNED_KIND, tables),
        signer: signer().member_id(),
    };
    let header = frame::skippable_header(TABLES_MAGIC, stored.len() as u32);
    [&blocks[..], &filter_frame, &header, &stored, &trailer.encode()].concat()
}

#[test]
fn entries_that_come_twice_or_out_of_order_are_refused() {
    let (small, large) = (IndexEntry { length: 7, ..entry(1, 0) }, entry(1, 0));
    let read = |entries: &[IndexEntry]| {
        let segment = open(with_entries(entries)).unwrap();
        segment.iter().map(|item| item.map(|(_, entry)| entry)).collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(read(&[small, large]).unwrap(), [small, large]);
    for wrong in [[small, small], [large, small]] {
        assert!(matches!(read(&wrong), Err(CatalogError::Malformed { .. })), "{wrong:?}");
    }
}

#[test]
fn tables_that_decode_to_far_more_than_they_take_are_refused_before_their_signature() {
    let bomb = signed(Vec::new(), Vec::new(), &vec![0x60; 64 << 20]);
    assert!(bomb.len() < 64 << 10);
    assert!(matches!(open(bomb), Err(CatalogError::TooLarge { .. })));
}

#[test]
fn an_author_s_lies_are_errors_too() {
    let plain = build(0..5000);
    assert_eq!(open(with_tables(&plain, |_| {})).unwrap().iter().count(), 5000);
    type Lie = fn(&mut Tables);
    let lies: [Lie; 10] = [
        |tables| tables.entries += 1,
        |tables| tables.blocks[0].entries += 1,
        |tables| {
            tables.entries += 1 << 30;
            tables.blocks[1].entries += 1 << 30;
        },
        |tables| {
            tables.blocks[0].entries -= 1;
            tables.blocks[1].entries += 1;
        },
        |tables| tables.blocks[1].offset -= 1,
        |tables| tables.blocks[0].stored_len = u32::MAX,
        |tables| tables.blocks.swap(0, 1),
        |tables| tables.blocks[1].first = tables.blocks[0].first,
        |tables| tables.packs.truncate(1),
        |tables| tables.filter_hash[0] ^= 1,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let segment = open(with_tables(&plain, lie));
        let read = segment.and_then(|segment| {
            let _ = (0..5000).map(|n| segment.find(&id(n))).collect::<Result<Vec<_>, _>>();
            segment.iter().collect::<Result<Vec<_>, _>>()
        });
        assert!(matches!(read, Err(CatalogError::Malformed { .. })), "lie {number}");
    }
}

#[test]
fn a_stranger_s_segment_is_refused() {
    let mut builder = SegmentBuilder::new(GROUP, PackClass::Data);
    let ordinal = builder.add_pack(pack(0));
    builder.add(entry(0, ordinal));
    let plain = builder.finish(REPOSITORY, &SigningKey::generate(), Vec::new()).unwrap();
    assert!(matches!(open(plain), Err(CatalogError::Untrusted { .. })));
}

#[test]
fn the_stream_writer_refuses_disorder_and_unknown_packs() {
    let mut writer = SortedSegmentWriter::new(Vec::new(), GROUP, PackClass::Data, 10).unwrap();
    let mut ids = [id(1), id(2)];
    ids.sort();
    assert!(writer.push(IndexEntry { id: ids[1], ..entry(0, 0) }).is_err());
    let ordinal = writer.add_pack(pack(0));
    assert_eq!(writer.add_pack(pack(0)), ordinal);
    writer.push(IndexEntry { id: ids[1], ..entry(0, 0) }).unwrap();
    let error = writer.push(IndexEntry { id: ids[0], ..entry(0, 0) }).unwrap_err();
    assert_eq!(error.to_string(), "index entry 1 cannot be written: its id comes out of order");
}

#[test]
fn a_merge_drops_the_dead_and_the_double() {
    let segments =
        [open(build(0..1000)).unwrap(), open(build(500..2500)).unwrap(), open(build(0..0)).unwrap()];
    let dead = PackSet::from_iter([3, 7].map(|n| (PackClass::Data, pack(n).name)));
    let mut writer = SortedSegmentWriter::new(Vec::new(), GROUP, PackClass::Data, 3000).unwrap();
    for located in merge(&segments, |pack, _| dead.contains(PackClass::Data, &pack.name)).unwrap() {
        writer.push_located(&located.unwrap()).unwrap();
    }
    let merged = open(writer.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap();
    assert_eq!((merged.len(), merged.packs().len()), (2300, 23));
    for n in 0..2500 {
        let found = merged.find(&id(n)).unwrap();
        assert_eq!(found.len(), usize::from(!matches!(n / 100, 3 | 7)), "chunk {n}");
        assert!(found.iter().all(|(_, entry)| merged.packs()[entry.pack as usize] == pack(n / 100)));
    }
}

/// Whoever may write can sign a segment that speaks falsely of somebody else's pack. Merged, it must not become what is
/// said of the true entries.
#[test]
fn a_false_description_of_a_pack_stays_with_its_own_entries() {
    let lie = PackRef { size: 5, header_len: 9, ..pack(0) };
    let mut builder = SegmentBuilder::new(GROUP, PackClass::Data);
    let ordinal = builder.add_pack(lie);
    builder.add(entry(0, ordinal));
    let segments = [
        open(builder.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap(),
        open(build(0..100)).unwrap(),
    ];
    let mut writer = SortedSegmentWriter::new(Vec::new(), GROUP, PackClass::Data, 101).unwrap();
    for located in merge(&segments, |_, _| false).unwrap() {
        writer.push_located(&located.unwrap()).unwrap();
    }
    let merged = open(writer.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap();
    for n in 0..100 {
        let mut packs: Vec<_> = merged
            .find(&id(n))
            .unwrap()
            .iter()
            .map(|(_, entry)| merged.packs()[entry.pack as usize])
            .collect();
        packs.retain(|found| *found != lie);
        assert_eq!(packs, [pack(0)], "chunk {n}");
    }
}

/// The same of an entry: one that places a chunk where it lies, but with a false length of its frame, or of its own.
#[test]
fn a_false_entry_does_not_replace_the_true_one() {
    let true_one = entry(0, 0);
    for lie in [IndexEntry { frame_length: 1, ..true_one }, IndexEntry { length: 1, ..true_one }] {
        let mut builder = SegmentBuilder::new(GROUP, PackClass::Data);
        builder.add_pack(pack(0));
        builder.add(lie);
        let segments = [
            open(builder.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap(),
            open(build(0..100)).unwrap(),
        ];
        for inputs in [[&segments[0], &segments[1]], [&segments[1], &segments[0]]] {
            let merged: Vec<_> =
                merge(inputs, |_, _| false).unwrap().map(|located| located.unwrap().entry).collect();
            assert_eq!(merged.len(), 101);
            assert!(merged.contains(&true_one) && merged.contains(&lie));
        }
    }
}

#[test]
fn classes_do_not_merge() {
    let meta = SegmentBuilder::new(GROUP, PackClass::Meta).finish(REPOSITORY, &signer(), Vec::new()).unwrap();
    let segments = [open(build(0..1)).unwrap(), open(meta).unwrap()];
    assert!(merge(&segments, |_, _| false).is_err());
}

/// The same answers, whether all is in memory, nothing is, or a part.
#[test]
fn a_set_answers_alike_from_memory_and_from_blocks() {
    for budget in [0, 1 << 18, u64::MAX] {
        let set = IndexSet::new(budget);
        assert_eq!(set.add("a", open(build(0..2000)).unwrap()).unwrap(), 0);
        assert_eq!(set.add("b", open(build(1000..8000)).unwrap()).unwrap(), 1);
        assert_eq!(set.add("a", open(build(0..2000)).unwrap()).unwrap(), 0);
        assert_eq!((set.len(), set.segments().len()), (9000, 2));
        let dead =
            PackSet::from_keys([&*pack_key(PackClass::Data, &pack(5).name).to_string(), "index/x", "gc/1"]);
        let of_nodes = PackSet::from_iter([(PackClass::Meta, pack(5).name)]);
        for n in 0..8000 {
            let found = set.find(&id(n)).unwrap();
            let copies = usize::from(n < 2000) + usize::from(n >= 1000);
            assert_eq!(found.len(), copies, "chunk {n} with budget {budget}");
            for location in &found {
                assert_eq!(location.pack, pack(n / 100));
                let (_, segment) = &set.segments()[location.segment];
                assert!(segment.find(&id(n)).unwrap().contains(&(location.ordinal, location.entry)));
            }
            assert_eq!(set.contains_live(&id(n), &dead).unwrap(), n / 100 != 5);
            assert!(set.contains_live(&id(n), &of_nodes).unwrap(), "a pack of another class");
            assert!(!set.contains_live(&id(n + 8000), &dead).unwrap());
        }
    }
}

/// Twice the chunks, or four times, take no more: what does not fit is read in blocks, and of these the last are kept.
#[test]
fn a_set_holds_no_more_than_its_budget_however_many_entries_it_has() {
    const BUDGET: u64 = 1 << 20;
    let set = IndexSet::new(BUDGET);
    let (none, mut held) = (PackSet::default(), Vec::new());
    for n in 0..32 {
        set.add(&format!("segment {n}"), open(build(n * 2000..n * 2000 + 2000)).unwrap()).unwrap();
        for chunk in (0..(n + 1) * 2000).step_by(7) {
            assert!(set.contains_live(&id(chunk), &none).unwrap(), "chunk {chunk} of {n} segments");
        }
        held.push(set.held_bytes());
    }
    assert!(held.iter().all(|held| *held <= BUDGET), "{held:?}");
    assert!(held[15..].iter().all(|held| *held > BUDGET / 10 * 9), "all of it is used: {held:?}");
}

#[test]
fn segments_are_added_while_others_look_things_up() {
    let set = IndexSet::new(1 << 20);
    let none = PackSet::default();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while set.segments().len() < 40 {
                    let known = set.segments().len() as u64 * 500;
                    for n in (0..known).step_by(97) {
                        assert!(set.contains_live(&id(n), &none).unwrap());
                        assert_eq!(set.find(&id(n)).unwrap().len(), 1);
                    }
                }
            });
        }
        for n in 0..40 {
            set.add(&format!("segment {n}"), open(build(n * 500..n * 500 + 500)).unwrap()).unwrap();
        }
    });
    assert_eq!(set.len(), 20_000);
}

#[test]
fn many_ids_at_once_are_found_as_one_by_one() {
    // What fits is decoded, the rest stays where it is: chunks lie in one of both, in both, in several, or nowhere.
    for budget in [0, 100_000, 10 << 20] {
        let set = IndexSet::new(budget);
        for n in 0..20 {
            let name = format!("segment {n}");
            set.add(&name, open(build(n * 300..n * 300 + 400)).unwrap()).unwrap();
        }
        let mut ids: Vec<ChunkId> = (0..7000).step_by(3).map(id).collect();
        ids.sort_unstable();
        let one_by_one: Vec<_> = ids.iter().map(|id| (*id, set.find(id).unwrap())).collect();
        // However few places are held: then fewer chunks are looked up together.
        for places_max in [0, 1, 100, usize::MAX] {
            let mut found = Vec::new();
            set.find_all_within(&ids, places_max, |id, places| found.push((*id, places))).unwrap();
            assert!(found == one_by_one, "{places_max} places");
        }
        let mut of_none = 0;
        set.find_all(&[], |_, _| of_none += 1).unwrap();
        assert_eq!(of_none, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_entries_in_any_order_are_all_found(
        entries in prop::collection::vec((0_u64..50, 0_u32..4, any::<[u32; 4]>()), 0..200),
    ) {
        let mut builder = SegmentBuilder::new(GROUP, PackClass::Data);
        (0..4).for_each(|n| { builder.add_pack(pack(n)); });
        let mut expected = Vec::new();
        for (chunk, pack, [frame_offset, frame_length, offset, length]) in entries {
            let entry = IndexEntry { id: id(chunk), pack, frame_offset, frame_length, offset, length };
            builder.add(entry);
            expected.push(entry);
        }
        expected.sort();
        expected.dedup();
        let segment = open(builder.finish(REPOSITORY, &signer(), Vec::new()).unwrap()).unwrap();
        let read: Vec<_> = segment.iter().map(|item| item.unwrap().1).collect();
        prop_assert_eq!(&read, &expected);
        for chunk in 0..60 {
            let found: Vec<_> = segment.find(&id(chunk)).unwrap().into_iter().map(|(_, entry)| entry).collect();
            let wanted: Vec<_> = expected.iter().filter(|entry| entry.id == id(chunk)).copied().collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
