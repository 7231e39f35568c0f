//! What a repair and a copy make of stores that lie, and what is left when they die.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keepwell_catalog::{Commit, ContentName, IndexEntry, PackClass, PackRef, PackSet, names};
use keepwell_crypto::{ChunkId, DomainId, MemberId, StoreId};
use keepwell_storage::{Fault, Faulty, Memory, ObjectStore, Operation, list_all};

use super::{RepairOptions, restore_vital};
use crate::read::fetch_pack;
use crate::repository::{Repository, RepositoryHint};
use crate::testing::{
    Thing, TreeModel, World, assert_same, back_up, block_on, data_pack, noise, restored, say, snapshot_of,
};
use crate::write::{Ending, Session};
use crate::{CheckOptions, Error, PruneOptions, ReadData};

pub(super) fn tree(seed: u64) -> TreeModel {
    TreeModel::default().with("d/a", Thing::file(noise(seed, 3_000))) // one frame, and so one pack
}

pub(super) fn now() -> RepairOptions {
    RepairOptions { fence_after: Duration::ZERO, read: ReadData::Everything, ..RepairOptions::default() }
}

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

pub(super) async fn flip(store: &dyn ObjectStore, name: &str, share: f64) {
    let key = name.parse().unwrap();
    let mut bytes = store.get(&key).await.unwrap().to_vec();
    let at = (bytes.len() as f64 * share) as usize;
    bytes[at] ^= 1;
    store.delete(&key).await.unwrap();
    store.put_new(&key, Bytes::from(bytes)).await.unwrap();
}

pub(super) async fn open(store: &Memory, world: &World) -> Repository {
    Repository::builder(Arc::new(store.clone())).open(world.key.clone()).await.unwrap()
}

pub(super) async fn copy_of(world: &World) -> Memory {
    let copy = Memory::new();
    world.repository.create_copy(&copy).await.unwrap();
    let snapshots = world.repository.snapshots().await.unwrap();
    world.repository.copy_to_store(&open(&copy, world).await, &snapshots).await.unwrap();
    copy
}

/// A writer may sign that its store is another one, as often as it likes.
#[test]
fn no_writer_makes_a_repair_take_a_store_for_another() {
    block_on(async {
        let (world, hostile, _) = World::attacked(&tree(1)).await;
        let (copy, writer) = (copy_of(&world).await, hostile.writer().unwrap());
        for n in 0..30 {
            let end = Commit::fence(StoreId::from_bytes([0x5e; 16]), writer, n, hostile.now());
            let signed = hostile.sign(Commit::KIND, end.encode()).unwrap();
            assert!(hostile.put_record(&names::commit_key(writer, n), signed).await.unwrap());
        }
        let hint = RepositoryHint::key();
        let sound = world.store.get(&hint).await.unwrap();
        let put = restore_vital(&*world.store, &copy, world.key.genesis, 1).await.unwrap();
        assert!(put.is_empty(), "nothing was lost: {put:?}");
        assert_eq!(world.store.get(&hint).await.unwrap(), sound);
        world.delete(hint.as_str()).await;
        let put = restore_vital(&*world.store, &copy, world.key.genesis, 1).await.unwrap();
        assert_eq!(put, [hint]);
        let healed = world.open(&world.key).await;
        assert_eq!(healed.store_id(), world.repository.store_id());
        assert_eq!(healed.snapshots().await.unwrap().len(), 1);
    });
}

#[test]
fn a_repair_does_not_fetch_all_the_commits_that_somebody_made_up() {
    block_on(async {
        let (world, hostile, _) = World::attacked(&tree(1)).await;
        let copy = copy_of(&world).await;
        for writer in [hostile.writer().unwrap(), MemberId::from_bytes([9; 8])] {
            for n in 0..100 {
                world.store.put_new(&names::commit_key(writer, n), "made up".into()).await.unwrap();
            }
        }
        world.store.reset();
        let put = restore_vital(&*world.store, &copy, world.key.genesis, 1).await.unwrap();
        assert!(put.is_empty(), "nothing was lost: {put:?}");
        let fetched = world.store.reset().under(Operation::Get, "commits").calls;
        assert!(fetched < 30, "{fetched}");
    });
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

/// A file of several frames, cut off at the end.
pub(super) fn large(bytes: usize) -> TreeModel {
    TreeModel::default().with("large", Thing::file(&noise(10, 2_400_000)[..bytes]))
}

/// Without a copy, a missing manifest hides what is needed: the report says so, and nothing else ends with an error.
#[test]
fn a_repair_ends_with_a_report_whatever_else_is_damaged() {
    block_on(async {
        let world = World::new().await;
        let lost = back_up(&world.repository, &tree(1)).await;
        let first = world.names("data/").await;
        let second = back_up(&world.repository, &tree(2)).await;
        let rotten = world.names("data/").await.into_iter().find(|name| !first.contains(name)).unwrap();
        flip(&*world.store, &rotten, 0.5).await;
        let manifest = snapshot_of(&world.repository, &lost).await.commit.manifest.unwrap();
        world.delete(names::manifest_key(&manifest).as_str()).await;
        let repository = world.open(&world.key).await;
        let repaired = repository.repair(None, now()).await.unwrap();
        assert!(!repaired.after.is_sound());
        assert_eq!(repaired.packs_replaced, 0);
        let plans = world.names("gc/").await;
        repository.repair(None, now()).await.unwrap();
        assert_eq!(world.names("gc/").await, plans, "a plan that cannot be decided is written once");
        assert!(world.names("data/").await.contains(&rotten), "nothing was decided");
        assert!(snapshot_of(&repository, &second).await.manifest().is_ok());
    });
}

#[test]
fn one_flipped_byte_costs_the_frame_that_it_lies_in() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &large(2_400_000)).await;
        let (pack, entries) = data_pack(&world.repository);
        let frames: std::collections::BTreeSet<u32> = entries.iter().map(|e| e.frame_offset).collect();
        assert!(frames.len() > 2, "{frames:?}");
        let key = names::pack_key(PackClass::Data, &pack.name);
        flip(&*world.store, key.as_str(), 0.5).await;
        let repository = world.open(&world.key).await;
        let repaired = repository.repair(None, now()).await.unwrap();
        assert!(!repaired.after.is_sound(), "what lies in the frame is lost");
        let spoiled = |stored: u64| entries.len() as u64 - stored;
        assert!(repaired.chunks_restored > 0 && spoiled(repaired.chunks_restored) > 0, "{repaired:?}");
        assert!(world.names("data/").await.contains(&key.to_string()), "what is left of it stays");
        let salvaged = fetch_all(&repository, &entries).await;
        assert_eq!(salvaged as u64, repaired.chunks_restored);
    });
}

/// How many of these chunks have a place that gives them.
pub(super) async fn fetch_all(repository: &Repository, entries: &[IndexEntry]) -> usize {
    repository.refresh_index().await.unwrap();
    let (contents, entries) = (crate::read::Contents::new(repository), entries.to_vec());
    let read = move || entries.iter().filter(|entry| contents.chunk(&entry.id).is_ok()).count();
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// A pack that is worth repacking and damaged is left alone, and stops no prune.
#[test]
fn a_prune_passes_over_a_damaged_pack_that_it_would_repack() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &large(2_400_000)).await;
        let (pack, _) = data_pack(&world.repository);
        let key = names::pack_key(PackClass::Data, &pack.name);
        back_up(&world.repository, &large(1_800_000)).await;
        let snapshots = world.repository.snapshots().await.unwrap();
        world.repository.forget(&[(&snapshots[0], "old".into())]).await.unwrap();
        flip(&*world.store, key.as_str(), 0.5).await;
        let repository = world.open(&world.key).await;
        repository.prune(thorough()).await.unwrap();
        assert!(world.names("data/").await.contains(&key.to_string()));
    });
}

#[test]
fn a_lost_index_is_written_in_pieces() {
    block_on(async {
        let world = World::new().await;
        for seed in 1..5 {
            back_up(&world.repository, &tree(seed)).await;
        }
        let packs = world.names("data/").await.len() + world.names("meta/").await.len();
        for name in world.names("index/").await {
            world.delete(&name).await;
        }
        let repository = world.open(&world.key).await;
        let listed = super::index::list_unlisted(&repository, &[], &PackSet::default(), 1).await.unwrap();
        assert_eq!((listed.created.len(), listed.packs as usize), (packs, packs));
        assert_eq!(world.names("index/").await.len(), packs);
        let repository = world.open(&world.key).await;
        assert!(repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap().is_sound());
    });
}

/// What a repair that died holds outlives commits of the same host, and prunes, until its snapshot is there again.
#[test]
fn what_a_repair_holds_is_no_abandoned_capture() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let old = snapshot_of(&world.repository, &report).await;
        // Published twice, and the first of them retired: only the second protects it.
        let mut done = Default::default();
        world.repository.store_snapshot(&world.repository, &old, &mut done).await.unwrap();
        world.repository.forget(&[(&old, "published again".into())]).await.unwrap();
        let second = snapshot_of(&world.repository, &report).await;
        let key = names::commit_key(second.commit.writer, second.commit.n);
        let bytes = world.store.get(&key).await.unwrap();
        super::hold::hold(&world.repository, &second.commit, &bytes).await.unwrap();
        world.delete(key.as_str()).await;
        // The repair dies; an untagged commit follows, as a copy into this store makes it.
        let third = back_up(&world.repository, &tree(3)).await;
        let third = snapshot_of(&world.repository, &third).await;
        world.repository.store_snapshot(&world.repository, &third, &mut done).await.unwrap();
        let repository = world.open(&world.key).await;
        super::hold::release(&repository).await.unwrap();
        let (ends, _) = crate::repository::read_ends(&repository).await.unwrap();
        let retired = repository.retired().await.unwrap();
        let is_held = |end: &&crate::repository::End| {
            end.commit.kind == keepwell_catalog::CommitKind::Checkpoint
                && !retired.contains(&(end.writer, end.n))
        };
        assert_eq!(ends.iter().filter(is_held).count(), 1, "it is held still");
        assert!(crate::prune::stale_checkpoints(&ends, &retired).is_empty());
        world.store.put_new(&key, bytes).await.unwrap();
        let repository = world.open(&world.key).await;
        super::hold::release(&repository).await.unwrap();
        let retired = repository.retired().await.unwrap();
        let held = ends.iter().filter(|end| end.commit.kind == keepwell_catalog::CommitKind::Checkpoint);
        assert_eq!(held.filter(|end| !retired.contains(&(end.writer, end.n))).count(), 0, "and released");
    });
}

/// The store gives back something else than it was given, and the cache knows better, or nothing does.
#[test]
fn a_copy_never_stores_a_rotten_manifest() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let snapshot = snapshot_of(&world.repository, &report).await;
        flip(&*world.store, names::manifest_key(&snapshot.commit.manifest.unwrap()).as_str(), 0.5).await;
        let copy = open(&copy_of(&world).await, &world).await;
        let copied = copy.snapshots().await.unwrap();
        assert!(copied[0].manifest().is_ok(), "{:?}", copied[0].state);

        let other = Memory::new();
        world.repository.create_copy(&other).await.unwrap();
        let other = open(&other, &world).await;
        world.repository.forget_records();
        let refused = world.repository.copy_to_store(&other, &[snapshot]).await;
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        assert_eq!(other.snapshots().await.unwrap().len(), 0);
    });
}

#[test]
fn a_copy_whose_manifest_rots_is_stored_again_and_a_repair_clears_the_rest_away() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        let snapshots = world.repository.snapshots().await.unwrap();
        let copy = copy_of(&world).await;
        let rotten = list_all(&copy, "manifests/").await.unwrap().pop().unwrap().key;
        flip(&copy, rotten.as_str(), 0.5).await;
        let target = open(&copy, &world).await;
        let report = world.repository.copy_to_store(&target, &snapshots).await.unwrap();
        assert_eq!((report.copied.len(), report.skipped.len()), (1, 0));
        let report = world.repository.copy_to_store(&target, &snapshots).await.unwrap();
        assert_eq!((report.copied.len(), report.skipped.len()), (0, 1));
        let there = target.snapshots().await.unwrap();
        assert_eq!(there.iter().filter(|s| s.manifest().is_ok()).count(), 1);
        let repaired = target.repair(Some(&world.repository), now()).await.unwrap();
        assert!(repaired.after.is_sound(), "{:?}", repaired.after.findings);
        assert_eq!(target.snapshots().await.unwrap().len(), 1);
    });
}

/// Two chunks that the index places at the same bytes: one is there, and the other is where the index says next.
#[test]
fn a_false_place_takes_no_chunk_from_a_copy() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &large(2_400_000)).await;
        let (pack, entries) = data_pack(&world.repository);
        let (first, second) = (entries[0], entries[1]);
        let lie = IndexEntry { id: second.id, ..first };
        say(&world.repository, PackClass::Data, pack, &[lie], true).await;
        world.repository.refresh_index().await.unwrap();
        let said = world.repository.locate(&second.id).unwrap();
        assert!(said.iter().any(|place| place.entry.offset == lie.offset));

        let store = Memory::new();
        world.repository.create_copy(&store).await.unwrap();
        let target = open(&store, &world).await;
        let uploads = crate::backup::begin_uploads(&target).await.unwrap();
        let mut wanted = crate::transfer::Wanted::new();
        wanted.insert((PackClass::Data, pack), vec![first, lie, lie]);
        let (origin, there, handle) =
            (world.repository.clone(), uploads.clone(), tokio::runtime::Handle::current());
        let moved = tokio::task::spawn_blocking(move || {
            crate::transfer::transfer(&origin, &there, wanted, &handle, &mut |_, _, error| Err(error))
        });
        moved.await.unwrap().unwrap();
        uploads.flush().await.unwrap();
        assert_eq!(fetch_all(&target, &[first, second]).await, 2);
    });
}

/// A chunk that lies in two damaged packs, and that the copy does not give either, is taken from whichever holds it.
#[test]
fn of_two_damaged_packs_each_gives_what_it_still_holds() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &large(2_400_000)).await;
        let (pack, entries) = data_pack(&world.repository);
        let copy = copy_of(&world).await;
        let there = list_all(&copy, "data/").await.unwrap().pop().unwrap().key;
        flip(&copy, there.as_str(), 0.5).await;
        let stored = fetch_pack(&world.repository, PackClass::Data, &pack).await.unwrap().stored;
        let twin = PackRef { name: ContentName::new(&pack.name.digest(), [0xab; 4]), ..pack };
        world.store.put_new(&names::pack_key(PackClass::Data, &twin.name), stored).await.unwrap();
        say(&world.repository, PackClass::Data, twin, &entries, false).await;
        flip(&*world.store, names::pack_key(PackClass::Data, &pack.name).as_str(), 0.5).await;
        flip(&*world.store, names::pack_key(PackClass::Data, &twin.name).as_str(), 0.1).await;
        let repository = world.open(&world.key).await;
        repository.repair(Some(&open(&copy, &world).await), now()).await.unwrap();
        assert_eq!(fetch_all(&repository, &entries).await, entries.len());
        let again = repository.repair(None, now()).await.unwrap();
        assert!(again.after.is_sound(), "{:?}", again.after.findings);
    });
}

/// A store that lost a rotation: what was sealed since looks damaged until the keys are back, and is not.
#[test]
fn trust_that_a_repair_puts_back_counts_at_once() {
    block_on(async {
        let world = World::new().await;
        let before = (world.names("trust/").await, world.names("keys/").await);
        world.repository.rotate_keys().await.unwrap();
        let owner = world.open(&world.key).await;
        let report = back_up(&owner, &tree(1)).await;
        let copy =
            copy_of(&World { repository: owner, store: Arc::clone(&world.store), key: world.key.clone() })
                .await;
        for name in [world.names("trust/").await, world.names("keys/").await].concat() {
            if !before.0.contains(&name) && !before.1.contains(&name) {
                world.delete(&name).await;
            }
        }
        let stored = async || [world.names("index/").await, world.names("data/").await].concat();
        let objects = stored().await;
        let repository = world.open(&world.key).await;
        let repaired = repository.repair(Some(&open(&copy, &world).await), now()).await.unwrap();
        assert!(!repaired.before.is_sound() && repaired.after.is_sound(), "{:?}", repaired.after.findings);
        assert_eq!((repaired.packs_indexed, repaired.packs_replaced, repaired.snapshots_restored), (0, 0, 0));
        assert_eq!(stored().await, objects, "nothing of it was damaged");
        let snapshot = snapshot_of(&repository, &report).await;
        assert_same(&restored(&repository, &snapshot).await, &tree(1).as_restored());
    });
}
