//! What a prune does beside deleting packs, and what it refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_catalog::names;
use keepwell_storage::{Capabilities, Memory, ObjectStore, Operation};

use super::PruneOptions;
use crate::check::{CheckOptions, ReadData};
use crate::repair::RepairOptions;
use crate::repository::Repository;
use crate::testing::{
    Hook, Hooked, Thing, TreeModel, World, assert_same, back_up, block_on, noise, restored, snapshot_of,
};
use crate::write::Session;
use crate::{Cancel, Error, Limits};

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

fn tree(seed: u64) -> TreeModel {
    TreeModel::default().with("d/a", Thing::file(noise(seed, 20_000))).with("d/b", Thing::file("b"))
}

async fn findings(repository: &Repository) -> Vec<String> {
    let report = repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
    report.findings.into_iter().map(|f| format!("{}: {}", f.object, f.what)).collect()
}

/// A store whose `put_new` overwrites, and which says so or does not.
#[derive(Debug)]
struct Overwriting {
    admits: bool,
}

#[async_trait]
impl Hook for Overwriting {
    async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
        if operation == Operation::Put {
            inner.delete(&subject.parse().unwrap()).await.unwrap();
        }
    }

    fn capabilities(&self, _: &Memory) -> Capabilities {
        Capabilities { conditional_create: !self.admits }
    }
}

#[test]
fn a_store_that_cannot_create_exclusively_is_pruned_by_nobody_beside_others() {
    for admits in [true, false] {
        block_on(async {
            let world = World::new().await;
            let report = back_up(&world.repository, &tree(1)).await;
            let snapshot = snapshot_of(&world.repository, &report).await;
            let store = Hooked::new(world.store.inner().clone(), Overwriting { admits });
            let repository = Repository::builder(Arc::new(store)).limits(Limits::default());
            let repository = repository.open(world.key.clone()).await.unwrap();
            let kept = back_up(&repository, &tree(2)).await;
            repository.forget(&[(&snapshot, "test".into())]).await.unwrap();
            let before = world.names("").await;
            let refused = repository.prune(thorough()).await.unwrap_err();
            assert!(refused.to_string().contains("--exclusive"), "{refused}");
            assert_eq!(world.names("").await, before, "nothing is left behind");
            repository.plan_prune(thorough()).await.unwrap();
            let report = repository.prune(PruneOptions { exclusive: true, ..thorough() }).await.unwrap();
            assert!(report.bytes_freed > 0, "{report:?}");
            let kept = snapshot_of(&repository, &kept).await;
            assert_same(&restored(&repository, &kept).await, &tree(2).as_restored());
        });
    }
}

#[test]
fn an_idle_prune_ends_dead_sessions_and_sweeps() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        world.repository.prune(thorough()).await.unwrap();
        let dead = Session::claim(&world.repository).await.unwrap();
        let claim = names::session_key(dead.writer(), dead.n(), 0).to_string();
        drop(dead);
        assert_eq!(world.names("sessions/").await, [claim], "others were swept with the first prune");
        let report = world.repository.prune(thorough()).await.unwrap();
        assert_eq!((report.fenced, report.records_swept), (1, 1), "{report:?}");
        assert_eq!(world.names("sessions/").await, Vec::<String>::new());
        back_up(&world.repository, &tree(2)).await;
        assert_eq!(findings(&world.open(&world.key).await).await, Vec::<String>::new());
    });
}

/// Utters the wish to end when sessions are listed, once it is armed.
#[derive(Debug)]
struct EndsAtSessions {
    armed: Arc<AtomicBool>,
    cancel: Cancel,
}

#[async_trait]
impl Hook for EndsAtSessions {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        if operation == Operation::List && subject == "sessions/" && self.armed.load(Ordering::SeqCst) {
            self.cancel.cancel();
        }
    }
}

#[test]
fn an_idle_prune_that_waits_for_a_session_can_be_interrupted() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        world.repository.prune(thorough()).await.unwrap();
        let at_work = Session::claim(&world.repository).await.unwrap();
        let (armed, cancel) = (Arc::new(AtomicBool::new(false)), Cancel::default());
        let hook = EndsAtSessions { armed: Arc::clone(&armed), cancel: cancel.clone() };
        let store = Arc::new(Hooked::new(world.store.inner().clone(), hook));
        let keeper = Repository::builder(store).limits(Limits::default()).cancel(cancel);
        let keeper = keeper.open(world.key.clone()).await.unwrap();
        let fence_after = Duration::from_secs(3600);
        let plan = keeper.plan_prune(PruneOptions { fence_after, ..thorough() }).await.unwrap();
        armed.store(true, Ordering::SeqCst);
        assert!(matches!(keeper.carry_out(plan).await, Err(Error::Cancelled)));
        drop(at_work);
    });
}

#[test]
fn a_missing_newest_commit_is_seen_with_a_fresh_cache() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        back_up(&world.repository, &tree(2)).await;
        world.repository.prune(thorough()).await.unwrap();
        let newest = world.names("commits/").await.pop().unwrap();
        world.delete(&newest).await;
        let found = findings(&world.open(&world.key).await).await;
        assert!(found.iter().any(|f| f.starts_with(&newest)), "{found:?}");
    });
}

#[test]
fn an_unreadable_end_that_published_nothing_is_fenced_by_a_repair() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        back_up(repository, &tree(1)).await;
        let session = Session::claim(repository).await.unwrap();
        let key = names::commit_key(session.writer(), session.n());
        session.end(crate::write::Ending::index_only(Vec::new())).await.unwrap();
        let report = back_up(repository, &tree(2)).await;
        world.delete(key.as_str()).await;
        world.store.put_new(&key, Bytes::from_static(b"rot")).await.unwrap();
        let elsewhere = world.open(&world.key).await; // whose cache does not hold the end
        assert!(matches!(elsewhere.prune(thorough()).await, Err(Error::Damaged { .. })));
        let repaired = repository.repair(None, RepairOptions::default()).await.unwrap();
        assert_eq!(repaired.ends_fenced, 1);
        assert!(repaired.after.is_sound(), "{:?}", repaired.after.findings);
        repository.prune(thorough()).await.unwrap();
        let snapshot = snapshot_of(repository, &report).await;
        assert_same(&restored(repository, &snapshot).await, &tree(2).as_restored());
    });
}

#[test]
fn nothing_is_deleted_on_the_word_of_a_cache() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let old = back_up(repository, &tree(1)).await;
        let newest = back_up(repository, &tree(2)).await;
        let old = snapshot_of(repository, &old).await;
        repository.forget(&[(&old, "old".into())]).await.unwrap();
        // The cache holds the newest commit, sound; the store does not.
        let key = names::commit_key(repository.access().member().unwrap(), newest.seq);
        world.delete(key.as_str()).await;
        world.store.put_new(&key, Bytes::from_static(b"rot")).await.unwrap();
        let packs = [world.names("data/").await, world.names("meta/").await];
        assert!(matches!(repository.prune(thorough()).await, Err(Error::Damaged { .. })));
        let left = [world.names("data/").await, world.names("meta/").await];
        assert!(packs.iter().flatten().all(|pack| left.iter().flatten().any(|other| other == pack)));
    });
}

#[test]
fn an_unreadable_snapshot_is_never_fenced_away() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let writer = world.repository.access().member().unwrap();
        let key = names::commit_key(writer, report.seq);
        world.delete(key.as_str()).await;
        world.store.put_new(&key, Bytes::from_static(b"rot")).await.unwrap();
        let repaired = world.repository.repair(None, RepairOptions::default()).await.unwrap();
        assert_eq!(repaired.ends_fenced, 0);
        assert!(!repaired.after.is_sound());
    });
}

#[test]
fn what_was_forgotten_comes_back_while_it_is_there() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let old = back_up(repository, &tree(1)).await;
        let old = snapshot_of(repository, &old).await;
        back_up(repository, &tree(2)).await;
        repository.forget(&[(&old, "too old".into())]).await.unwrap();
        let forgotten = repository.forgotten().await.unwrap();
        assert_eq!((forgotten.len(), forgotten[0].reason.as_str()), (1, "too old"));
        let report = repository.undo_forget(&forgotten[0]).await.unwrap();
        assert_eq!(report.copied, [old.id]);
        assert_eq!(repository.forgotten().await.unwrap().len(), 0);
        repository.prune(thorough()).await.unwrap();
        let back = repository.snapshots().await.unwrap().into_iter().find(|s| s.id == old.id).unwrap();
        assert_same(&restored(&world.open(&world.key).await, &back).await, &tree(1).as_restored());
        assert_eq!(findings(&world.open(&world.key).await).await, Vec::<String>::new());
    });
}

#[test]
fn what_a_plan_condemned_is_stored_anew_when_it_comes_back() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let old = back_up(repository, &tree(1)).await;
        let old = snapshot_of(repository, &old).await;
        repository.forget(&[(&old, "test".into())]).await.unwrap();
        let mut condemned = world.names("data/").await;
        condemned.extend(world.names("meta/").await);
        repository.write_plan(condemned.clone(), Vec::new()).await.unwrap(); // and its keeper crashed
        let forgotten = repository.forgotten().await.unwrap();
        let report = repository.undo_forget(&forgotten[0]).await.unwrap();
        assert!(report.chunks > 0, "{report:?}");
        repository.prune(thorough()).await.unwrap();
        for name in condemned {
            assert!(!world.names("").await.contains(&name), "{name} is gone");
        }
        let back = repository.snapshots().await.unwrap().pop().unwrap();
        assert_same(&restored(&world.open(&world.key).await, &back).await, &tree(1).as_restored());
    });
}

#[test]
fn after_a_prune_nothing_comes_back() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let old = back_up(repository, &tree(1)).await;
        let old = snapshot_of(repository, &old).await;
        let keep = back_up(repository, &tree(2)).await;
        repository.forget(&[(&old, "test".into())]).await.unwrap();
        let forgotten = repository.forgotten().await.unwrap();
        repository.prune(thorough()).await.unwrap();
        assert!(repository.undo_forget(&forgotten[0]).await.is_err());
        assert!(repository.forgotten().await.unwrap()[0].snapshot.manifest().is_err());
        let listed: Vec<_> = repository.snapshots().await.unwrap().into_iter().map(|s| s.id).collect();
        assert_eq!(listed, [keep.snapshot]);
        assert_eq!(repository.check(CheckOptions::default()).await.unwrap().open_sessions, 0);
    });
}

/// A tree of many nodes, of which `round` changes one file.
fn wide(round: u64) -> TreeModel {
    let name = |i: u64| format!("d/{i:04}");
    let tree = (0..6000).fold(TreeModel::default(), |tree, i| tree.with(&name(i), Thing::file(noise(i, 30))));
    tree.with(&name(2700), Thing::file(noise(50_000 + round, 30)))
}

#[test]
fn marking_reads_what_is_new_since_the_last_prune() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        back_up(repository, &wide(0)).await;
        let first = repository.prune(thorough()).await.unwrap().nodes_read;
        assert!(first > 4, "{first} nodes"); // where they end is random
        assert_eq!(repository.prune(thorough()).await.unwrap().nodes_read, 0, "nothing changed");
        let mut oldest = None;
        for round in 1..8 {
            let report = back_up(repository, &wide(round)).await;
            oldest.get_or_insert(snapshot_of(repository, &report).await);
            let read = repository.prune(thorough()).await.unwrap().nodes_read;
            assert!((1..=4).contains(&read), "{read} nodes for one changed file");
        }
        // What goes is found without reading anything, and what stays is whole.
        repository.forget(&[(&oldest.unwrap(), "test".into())]).await.unwrap();
        let report = repository.prune(thorough()).await.unwrap();
        assert!(report.bytes_freed > 0 && report.nodes_read == 0, "{report:?}");
        let fresh = world.open(&world.key).await;
        let newest = fresh.snapshots().await.unwrap().pop().unwrap();
        assert_same(&restored(&fresh, &newest).await, &wide(7).as_restored());
        assert_eq!(findings(&fresh).await, Vec::<String>::new());
        assert!(fresh.prune(thorough()).await.unwrap().nodes_read >= first, "another host has to read all");
    });
}

#[test]
fn what_is_remembered_and_damaged_counts_for_nothing() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let report = back_up(repository, &wide(0)).await;
        let first = repository.prune(thorough()).await.unwrap().nodes_read;
        let file = repository.cache().open("nodes").unwrap();
        let bytes = file.read_at(0, usize::try_from(file.len()).unwrap()).unwrap();
        for at in [0, 9, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            repository.cache().store("nodes", &damaged).unwrap();
            let read = repository.prune(thorough()).await.unwrap().nodes_read;
            assert!((1..=first).contains(&read), "{read} nodes, byte {at}");
            repository.cache().store("nodes", &bytes[..at]).unwrap();
            let read = repository.prune(thorough()).await.unwrap().nodes_read;
            assert!((1..=first).contains(&read), "{read} nodes, cut at {at}");
        }
        let snapshot = snapshot_of(repository, &report).await;
        assert_same(&restored(repository, &snapshot).await, &wide(0).as_restored());
    });
}

/// Small files share a frame. One that stays does not hold on to all that are gone.
#[test]
fn what_is_dead_in_frames_that_live_on_is_found_and_freed() {
    block_on(async {
        let world = World::new().await;
        let repository = &world.repository;
        let file = |i: u64| (format!("d/{i}"), Thing::file(noise(i, 20_000)));
        let with = |tree: TreeModel, (name, thing): (String, Thing)| tree.with(&name, thing);
        let all = (0..40).map(file).fold(TreeModel::default(), with);
        let few = (0..40).step_by(20).map(file).fold(TreeModel::default(), with);
        let first = back_up(repository, &all).await;
        let second = back_up(repository, &few).await;
        let gone = snapshot_of(repository, &first).await;
        repository.forget(&[(&gone, "test".into())]).await.unwrap();

        let before = repository.usage().await.unwrap();
        assert!(
            before.content.unused_packs == 0 && before.content.partly_unused_bytes > 38 * 19_000,
            "{before:?}"
        );
        let pruned = repository.prune(thorough()).await.unwrap();
        assert!(pruned.bytes_freed > 38 * 19_000, "{pruned:?}");
        let after = repository.usage().await.unwrap();
        assert_eq!(after.garbage_bytes(), 0, "{after:?}");
        assert!(after.content.bytes < 3 * 20_000, "{after:?}");
        let kept = snapshot_of(repository, &second).await;
        assert_same(&few, &restored(repository, &kept).await);
    });
}
