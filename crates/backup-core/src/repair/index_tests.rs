//! What a repair makes of an index with damaged packs behind it.

use keepwell_catalog::{ContentName, IndexEntry, PackClass, PackRef, PackSet, SegmentBuilder, names};
use keepwell_crypto::{ChunkId, ChunkKind, DomainId};
use keepwell_storage::{Key, Memory, ObjectStore, Operation};

use super::tests::{copy_of, fetch_all, flip, large, now, open, tree};
use crate::pack::{FinishedPack, PackWriter};
use crate::repository::Repository;
use crate::testing::{
    Thing, TreeModel, World, assert_same, back_up, block_on, data_pack, noise, restored, say, snapshot_of,
};
use crate::{CheckOptions, ReadData};

/// One segment in the place of all that list content, with an entry that is false, of the last pack. Gives the first pack's
/// key and entries.
async fn merged_with_a_lie(repository: &Repository) -> (String, Vec<IndexEntry>) {
    let mut builder = SegmentBuilder::new(repository.group(), PackClass::Data);
    let mut first = None;
    let mut old = Vec::new();
    let segments = repository.index().segments();
    for (name, segment) in segments.iter().filter(|(_, s)| s.class() == PackClass::Data) {
        assert_eq!(segment.packs().len(), 1);
        let number = builder.add_pack(segment.packs()[0]);
        let entries: Vec<IndexEntry> = segment.iter().map(|item| item.unwrap().1).collect();
        let added = entries.iter().map(|entry| IndexEntry { pack: number, ..*entry });
        let is_large = entries.len() > 1000;
        added.for_each(|entry| builder.add(entry));
        if is_large {
            first = Some((names::pack_key(PackClass::Data, &segment.packs()[0].name).to_string(), entries));
        } else {
            builder.add(IndexEntry { id: ChunkId::from_bytes([7; 32]), pack: number, ..entries[0] });
        }
        old.push(format!("index/{}/{name}", repository.group()));
    }
    let (_, sealed) = repository.seal_segment(builder, Vec::new()).unwrap();
    let (_, key) = repository.index_name(&sealed, repository.random_suffix());
    repository.put_new(&key, sealed).await.unwrap();
    for name in old {
        repository.store().delete(&name.parse().unwrap()).await.unwrap();
    }
    first.unwrap()
}

/// A segment that has to go because of one entry is the only one that lists a pack of which most can still be read.
#[test]
fn what_a_damaged_pack_still_holds_outlives_the_segment_that_listed_it() {
    for (with_copy, at) in [(false, 0.5), (true, 0.5), (false, 0.999)] {
        block_on(async {
            let world = World::new().await;
            back_up(&world.repository, &large(2_400_000)).await;
            back_up(&world.repository, &TreeModel::default().with("b", Thing::file(noise(5, 3_000)))).await;
            let copy = open(&copy_of(&world).await, &world).await;
            world.repository.refresh_index().await.unwrap();
            let (pack, entries) = merged_with_a_lie(&world.repository).await;
            flip(&*world.store, &pack, at).await;
            let repository = world.open(&world.key).await;
            let repaired = repository.repair(with_copy.then_some(&copy), now()).await.unwrap();
            assert!(repaired.packs_indexed >= 2, "{repaired:?}");
            let left = fetch_all(&repository, &entries).await;
            assert!(left > entries.len() / 3, "{left} of {} with a flip at {at}", entries.len());
            assert!(!with_copy || repaired.after.is_sound(), "{:?}", repaired.after.findings);
        });
    }
}

/// The pack is sound; one of the segments that list it is not.
#[test]
fn what_a_segment_says_falsely_of_a_pack_is_its_own_fault() {
    for first in [true, false] {
        for what in 0..3 {
            block_on(async {
                let world = World::new().await;
                back_up(&world.repository, &tree(1)).await;
                let (pack, entries) = data_pack(&world.repository);
                let lie = match what {
                    0 => PackRef { domain: DomainId::from_bytes([9; 4]), ..pack },
                    1 => PackRef { header_len: pack.header_len + 1, ..pack },
                    _ => PackRef { size: pack.size + 1, ..pack },
                };
                say(&world.repository, PackClass::Data, lie, &entries, first).await;
                let target = open(&copy_of(&world).await, &world).await;
                assert_eq!(target.snapshots().await.unwrap().len(), 1, "a copy takes what is so");
                let repository = world.open(&world.key).await;
                let found = repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
                let objects: Vec<&str> = found.findings.iter().map(|f| f.object.as_str()).collect();
                assert!(
                    objects.len() == 1 && objects[0].starts_with("index/"),
                    "{what}: {:?}",
                    found.findings
                );
                let repaired = repository.repair(None, now()).await.unwrap();
                assert!(repaired.after.is_sound(), "{what}: {:?}", repaired.after.findings);
                assert_eq!((repaired.packs_indexed, repaired.packs_replaced), (0, 0));
            });
        }
    }
}

/// Until segments are merged, the index lists content that was moved also where it lay before.
#[test]
fn a_place_in_a_pack_that_a_prune_has_removed_saves_no_damaged_pack_from_repair() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let copy = copy_of(&world).await;
        let (pack, entries) = data_pack(&world.repository);
        let before = PackRef { name: ContentName::new(&pack.name.digest(), [0xab; 4]), ..pack };
        say(&world.repository, PackClass::Data, before, &entries, true).await;
        let removed = names::pack_key(PackClass::Data, &before.name).to_string();
        crate::prune::delete_segments(&world.repository, &[removed]).await.unwrap();
        let rotten = names::pack_key(PackClass::Data, &pack.name);
        flip(&*world.store, rotten.as_str(), 0.5).await;

        let repository = world.open(&world.key).await;
        let repaired = repository.repair(Some(&open(&copy, &world).await), now()).await.unwrap();
        assert!(repaired.after.is_sound(), "{:?}", repaired.after.findings);
        assert_eq!((repaired.packs_replaced, repaired.chunks_restored), (1, entries.len() as u64));
        assert!(!world.names("data/").await.contains(&rotten.to_string()));
        let snapshot = snapshot_of(&repository, &report).await;
        assert_same(&restored(&repository, &snapshot).await, &tree(1).as_restored());
    });
}

/// Packs are gone here with the segments that listed them, and one of them in the copy too.
#[test]
fn what_the_copy_has_lost_too_keeps_nothing_else_from_being_taken_from_it() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        let (first, _) = data_pack(&world.repository);
        let second = back_up(&world.repository, &tree(2)).await;
        let copy = copy_of(&world).await;
        let stored = keepwell_storage::list_all(&copy, "data/").await.unwrap();
        let digest = first.name.digest().to_string();
        let lost = stored.iter().find(|info| info.key.as_str().contains(&digest)).unwrap();
        copy.delete(&lost.key).await.unwrap();
        for (name, segment) in world.repository.index().segments() {
            if segment.class() == PackClass::Data {
                world.delete(&format!("index/{}/{name}", world.repository.group())).await;
            }
        }
        for name in world.names("data/").await {
            world.delete(&name).await;
        }

        let repository = world.open(&world.key).await;
        let repaired = repository.repair(Some(&open(&copy, &world).await), now()).await.unwrap();
        assert!(!repaired.after.is_sound() && repaired.chunks_restored > 0, "{repaired:?}");
        let snapshot = snapshot_of(&repository, &second).await;
        assert_same(&restored(&repository, &snapshot).await, &tree(2).as_restored());
    });
}

/// As where a repair replaces a segment that says something false of a pack, or where that was read by ranges.
#[test]
fn a_reader_that_met_a_false_place_finds_the_true_one_in_the_same_pack() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        let segments = world.repository.index().segments();
        let (name, _) = segments.iter().find(|(_, s)| s.class() == PackClass::Data).unwrap();
        let sound: Key = format!("index/{}/{name}", world.repository.group()).parse().unwrap();
        let bytes = world.store.get(&sound).await.unwrap();
        world.delete(sound.as_str()).await;
        let lie = IndexEntry { id: entries[1].id, ..entries[0] };
        say(&world.repository, PackClass::Data, pack, &[lie], false).await;
        let reader = world.open(&world.key).await;
        reader.refresh_index().await.unwrap();
        world.store.put_new(&sound, bytes).await.unwrap();
        let read = crate::read::read_chunk(&reader, ChunkKind::Content, &lie.id).await.unwrap();
        assert_eq!(read.len(), entries[1].length as usize);
    });
}

/// Stores a pack that no segment lists. Its directory has two chunks, the second of which the pack does not hold: this is
/// named.
async fn lying_pack(world: &World) -> (FinishedPack, ChunkId) {
    let domain = world.repository.domain();
    let (own, rest) = (noise(1, 2_000), noise(2, 1_000));
    let id = domain.id_key.chunk_id(ChunkKind::Content, &own);
    let of_others = ChunkId::from_bytes([7; 32]);
    let plain = [own, rest].concat();
    let mut pack = PackWriter::new(PackClass::Data, domain.id, &domain.recipient, 1 << 16).unwrap();
    let frame = zstd::bulk::compress(&plain, 1).unwrap();
    pack.append(&frame, plain.len(), &[(id, 2_000), (of_others, 1_000)]).unwrap();
    let pack = pack.finish([1; 4]).unwrap();
    let key = names::pack_key(PackClass::Data, &pack.reference.name);
    world.store.put_new(&key, pack.bytes.clone()).await.unwrap();
    (pack, of_others)
}

#[test]
fn of_a_pack_whose_directory_is_false_only_what_it_holds_is_listed_again() {
    block_on(async {
        let world = World::new().await;
        let (pack, of_others) = lying_pack(&world).await;
        let repository = world.open(&world.key).await;
        let listed = super::index::list_unlisted(&repository, &[], &PackSet::default(), 100).await.unwrap();
        assert_eq!((listed.packs, listed.damaged.len()), (1, 0));
        assert_eq!(fetch_all(&repository, &pack.entries[..1]).await, 1);
        assert_eq!(repository.index().find(&of_others).unwrap(), []);
    });
}

/// What a pack says of itself is signed by nobody: a copy of it as it is would make it true for all who come after.
#[test]
fn a_pack_whose_directory_is_false_is_not_copied_as_it_is() {
    block_on(async {
        let world = World::new().await;
        let (pack, of_others) = lying_pack(&world).await;

        let store = Memory::new();
        world.repository.create_copy(&store).await.unwrap();
        let target = open(&store, &world).await;
        let uploads = crate::backup::begin_uploads(&target).await.unwrap();
        let mut wanted = crate::transfer::Wanted::new();
        wanted.insert((PackClass::Data, pack.reference), vec![pack.entries[0]]);
        let (origin, there) = (world.repository.clone(), uploads.clone());
        let handle = tokio::runtime::Handle::current();
        let moved = tokio::task::spawn_blocking(move || {
            crate::transfer::transfer(&origin, &there, wanted, &handle, &mut |_, _, error| Err(error))
        });
        moved.await.unwrap().unwrap();
        uploads.flush().await.unwrap();
        assert_eq!(fetch_all(&target, &pack.entries[..1]).await, 1);
        assert_eq!(target.index().find(&of_others).unwrap(), []);
    });
}

/// Of a hundred places that somebody claims in the pack, none is true; each would be another fetch of it.
#[test]
fn many_false_places_in_a_pack_cost_a_copy_one_fetch() {
    block_on(async {
        let (world, hostile, _) = World::attacked(&tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        let one = entries[0];
        let place = |n: u32| IndexEntry { frame_offset: one.frame_offset + n, ..one };
        let claims: Vec<IndexEntry> = (1..=100).map(place).collect();
        say(&hostile, PackClass::Data, pack, &claims, true).await;
        let store = Memory::new();
        world.repository.create_copy(&store).await.unwrap();
        let target = open(&store, &world).await;
        let uploads = crate::backup::begin_uploads(&target).await.unwrap();
        let mut wanted = crate::transfer::Wanted::new();
        wanted.insert((PackClass::Data, pack), vec![claims[0]]);
        let (origin, there) = (world.open(&world.key).await, uploads.clone());
        origin.refresh_index().await.unwrap();
        world.store.reset();
        let handle = tokio::runtime::Handle::current();
        let moved = tokio::task::spawn_blocking(move || {
            crate::transfer::transfer(&origin, &there, wanted, &handle, &mut |_, _, error| Err(error))
        });
        moved.await.unwrap().unwrap();
        let asked = world.store.reset();
        let requests = [Operation::Get, Operation::GetRange].map(|of| asked.under(of, "data").calls);
        assert_eq!(requests.iter().sum::<u64>(), 1, "{asked}");
        uploads.flush().await.unwrap();
        assert_eq!(fetch_all(&target, &[one]).await, 1);
    });
}

/// Whoever signs a segment that names somebody's packs, and nothing in them, does not keep a repair from listing them again
/// when the segment that did is lost.
#[test]
fn packs_that_a_segment_only_names_are_listed_again() {
    block_on(async {
        let (world, hostile, report) = World::attacked(&tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        let segments = world.repository.index().segments();
        let (lost, _) = segments.iter().find(|(_, s)| s.class() == PackClass::Data).unwrap();
        say(&hostile, PackClass::Data, pack, &[], false).await;
        world.delete(&format!("index/{}/{lost}", world.repository.group())).await;
        let repository = world.open(&world.key).await;
        let repaired = repository.repair(None, now()).await.unwrap();
        assert_eq!(repaired.packs_indexed, 1, "{repaired:?}");
        assert!(repaired.after.is_sound(), "{:?}", repaired.after.findings);
        assert_eq!(fetch_all(&repository, &entries).await, entries.len());
        world.assert_restores(&report, &tree(1)).await;
    });
}
