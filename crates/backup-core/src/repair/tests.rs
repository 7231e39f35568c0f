//! What a repair and a copy make of stores that lie, and what is left when they die.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keepwell_catalog::{ContentName, IndexEntry, PackClass, PackRef, SegmentBuilder, names};
use keepwell_crypto::{ChunkId, DomainId};
use keepwell_storage::{Fault, Faulty, Memory, ObjectStore, list_all};

use super::RepairOptions;
use crate::read::fetch_pack;
use crate::repository::Repository;
use crate::testing::{Thing, TreeModel, World, assert_same, back_up, block_on, noise, restored, snapshot_of};
use crate::write::{Ending, Session, name_of};
use crate::{CheckOptions, Error, PruneOptions, ReadData};

fn tree(seed: u64) -> TreeModel {
    TreeModel::default().with("d/a", Thing::file(noise(seed, 3_000))) // one frame, and so one pack
}

fn now() -> RepairOptions {
    RepairOptions { fence_after: Duration::ZERO, read: ReadData::Everything, ..RepairOptions::default() }
}

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

async fn flip(store: &dyn ObjectStore, name: &str, share: f64) {
    let key = name.parse().unwrap();
    let mut bytes = store.get(&key).await.unwrap().to_vec();
    let at = (bytes.len() as f64 * share) as usize;
    bytes[at] ^= 1;
    store.delete(&key).await.unwrap();
    store.put_new(&key, Bytes::from(bytes)).await.unwrap();
}

async fn open(store: &Memory, world: &World) -> Repository {
    Repository::builder(Arc::new(store.clone())).open(world.key.clone()).await.unwrap()
}

async fn copy_of(world: &World) -> Memory {
    let copy = Memory::new();
    world.repository.create_copy(&copy).await.unwrap();
    let snapshots = world.repository.snapshots().await.unwrap();
    world.repository.copy_to_store(&open(&copy, world).await, &snapshots).await.unwrap();
    copy
}

/// Stores a segment that says these things of a pack. With `first`, under a name before that of every other.
async fn say(repository: &Repository, class: PackClass, pack: PackRef, entries: &[IndexEntry], first: bool) {
    loop {
        let mut builder = SegmentBuilder::new(repository.group(), class);
        let number = builder.add_pack(pack);
        entries.iter().for_each(|entry| builder.add(IndexEntry { pack: number, ..*entry }));
        let (_, sealed) = repository.seal_segment(builder, Vec::new()).unwrap();
        let key = names::index_key(repository.group(), &name_of(&sealed, repository.random_suffix()));
        let others = repository.list("index/").await.unwrap();
        if !first || others.iter().all(|other| key < other.key) {
            return repository.put_new(&key, sealed).await.unwrap();
        }
    }
}

/// The only data pack, with all that the index says of it.
fn data_pack(repository: &Repository) -> (PackRef, Vec<IndexEntry>) {
    let segments = repository.index().segments();
    let (_, segment) = segments.iter().find(|(_, s)| s.class() == PackClass::Data).unwrap();
    assert_eq!(segment.packs().len(), 1);
    (segment.packs()[0], segment.iter().map(|item| item.unwrap().1).collect())
}

#[test]
fn a_copy_takes_places_from_packs_and_not_from_the_index() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        let bogus = ChunkId::from_bytes([7; 32]);
        say(&world.repository, PackClass::Data, pack, &[IndexEntry { id: bogus, ..entries[0] }], false).await;
        let target = open(&copy_of(&world).await, &world).await;
        target.refresh_index().await.unwrap();
        assert_eq!(target.index().find(&bogus).unwrap(), []);
        assert!(target.check(CheckOptions { read: ReadData::Everything }).await.unwrap().is_sound());
    });
}

#[test]
fn a_copy_looks_for_another_place_where_a_pack_is_damaged() {
    for damage_twin in [true, false] {
        block_on(async {
            let world = World::new().await;
            back_up(&world.repository, &tree(1)).await;
            let (pack, entries) = data_pack(&world.repository);
            let stored = fetch_pack(&world.repository, PackClass::Data, &pack).await.unwrap().stored;
            let twin = PackRef { name: ContentName::new(&pack.name.digest(), [0xab; 4]), ..pack };
            let twin_key = names::pack_key(PackClass::Data, &twin.name);
            world.store.put_new(&twin_key, stored).await.unwrap();
            say(&world.repository, PackClass::Data, twin, &entries, false).await;
            let damaged = if damage_twin { twin_key } else { names::pack_key(PackClass::Data, &pack.name) };
            flip(&*world.store, damaged.as_str(), 0.5).await;
            let target = open(&copy_of(&world).await, &world).await;
            assert!(target.check(CheckOptions { read: ReadData::Everything }).await.unwrap().is_sound());
        });
    }
}

#[test]
fn a_damaged_pack_of_the_copy_ends_no_repair() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let copy = copy_of(&world).await;
        let there = list_all(&copy, "data/").await.unwrap().pop().unwrap().key;
        flip(&copy, there.as_str(), 0.5).await;
        let here = world.names("data/").await.pop().unwrap();
        flip(&*world.store, &here, 0.5).await;
        let other = tree(2).with("d/a", Thing::file(noise(3, 50_000)));
        back_up(&world.repository, &other).await;
        let copy = open(&copy, &world).await;
        let repaired = world.repository.repair(Some(&copy), now()).await.unwrap();
        assert!(!repaired.after.is_sound());
        assert!(world.names("data/").await.contains(&here), "what is left of it stays");
        let snapshot = snapshot_of(&world.repository, &report).await;
        assert!(snapshot.manifest().is_ok());
    });
}

#[test]
fn a_place_that_no_key_at_hand_opens_does_not_hide_the_others() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let (pack, entries) = data_pack(&world.repository);
        let strange = PackRef {
            name: ContentName::new(&pack.name.digest(), [0xab; 4]),
            domain: DomainId::from_bytes([9; 4]),
            ..pack
        };
        say(&world.repository, PackClass::Data, strange, &entries, true).await;
        let repository = world.open(&world.key).await;
        let snapshot = snapshot_of(&repository, &report).await;
        assert_same(&restored(&repository, &snapshot).await, &tree(1).as_restored());
        let contents = crate::read::Contents::new(&repository);
        let read = tokio::task::spawn_blocking(move || contents.chunk(&entries[0].id).map(|_| ()));
        read.await.unwrap().unwrap();
    });
}

/// Wherever a repair dies that puts back a damaged commit: what the snapshot needs outlives the next prune.
#[test]
fn a_damaged_commit_protects_its_snapshot_at_every_moment_of_its_repair() {
    for call in 1.. {
        let fired = block_on(async {
            let world = World::new().await;
            let report = back_up(&world.repository, &tree(1)).await;
            let copy = copy_of(&world).await;
            let writer = world.repository.access().member().unwrap();
            flip(&*world.store, names::commit_key(writer, report.seq).as_str(), 0.5).await;
            let packs = [world.names("data/").await, world.names("meta/").await].concat();

            let faulty = Arc::new(Faulty::new(world.store.inner().clone(), Fault::CrashAfter(call)));
            if let Ok(dying) = Repository::builder(Arc::clone(&faulty) as _).open(world.key.clone()).await {
                let _ = dying.repair(Some(&open(&copy, &world).await), now()).await;
            }
            let _ = world.open(&world.key).await.prune(thorough()).await;
            let left = [world.names("data/").await, world.names("meta/").await].concat();
            assert!(packs.iter().all(|pack| left.contains(pack)), "call {call}");

            let repository = world.open(&world.key).await;
            let repaired = repository.repair(Some(&open(&copy, &world).await), now()).await.unwrap();
            assert!(repaired.after.is_sound(), "call {call}: {:?}", repaired.after.findings);
            repository.prune(thorough()).await.unwrap();
            let snapshots = repository.snapshots().await.unwrap();
            assert_eq!(snapshots.len(), 1, "call {call}");
            assert_same(&restored(&repository, &snapshots[0]).await, &tree(1).as_restored());
            faulty.fired()
        });
        if !fired {
            assert!(call > 20, "{call}");
            break;
        }
    }
}

#[test]
fn an_end_without_a_list_is_given_up_only_on_demand() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        back_up(&world.repository, &tree(2)).await;
        let session = Session::claim(&world.repository).await.unwrap();
        let writer = session.writer();
        session.end(Ending::index_only(Vec::new())).await.unwrap();
        flip(&*world.store, names::commit_key(writer, report.seq).as_str(), 0.5).await;
        world.delete(names::list_key(writer, report.seq).as_str()).await;
        let repository = world.open(&world.key).await;
        let repaired = repository.repair(None, now()).await.unwrap();
        assert_eq!(repaired.ends_fenced, 0);
        assert!(matches!(repository.prune(thorough()).await, Err(Error::Damaged { .. })));
        let asked = RepairOptions { fence_unlisted: true, ..now() };
        assert_eq!(repository.repair(None, asked).await.unwrap().ends_fenced, 1);
        repository.prune(thorough()).await.unwrap();
    });
}

#[test]
fn a_backup_into_a_domain_that_is_not_there_leaves_no_open_session() {
    block_on(async {
        let world = World::new().await;
        let options = crate::BackupOptions {
            domain: Some(DomainId::from_bytes([9; 4])),
            ..crate::testing::options("data")
        };
        let source = Arc::new(crate::testing::MemorySource::new(tree(1)));
        world.repository.backup(source, options).await.unwrap_err();
        assert_eq!(world.names("sessions/").await, Vec::<String>::new());
    });
}
