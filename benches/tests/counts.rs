//! What operations cost, in calls of the store: the same on every machine, and money on most.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::sync::Arc;

use backup_core::{CheckOptions, PruneOptions, ReadData, RestoreOptions};
use keepwell_benches::{Tree, World};
use keepwell_source_files::{FileTarget, TargetOptions};
use keepwell_storage::{Operation, Recorded};

/// Opening, listing, and the tree; without the content.
const RESTORE_CALLS: u64 = 8;
/// Without the records of snapshots; three of these list what is then fetched.
const CHECK_CALLS: u64 = 22;
/// With nothing to do; opening included, and the seven calls that prove that a create has one winner.
const PRUNE_CALLS: u64 = 21;

/// 45 entries, 3 MB.
fn tree() -> Tree {
    Tree::generate(4, 10, 1).unwrap()
}

async fn backed_up() -> World {
    let world = World::new().await.unwrap();
    world.back_up(&tree()).await.unwrap();
    world.calls();
    world
}

/// Backs up what did not change, and asserts what this costs: nine calls, whatever the repository has been through.
///
/// The hint; listings of the trust chain, of the newest commits, of prune plans and of the index; and what is stored: the
/// claim, the manifest, the list, the commit.
async fn assert_unchanged(world: &World, tree: &Tree) {
    world.calls();
    let report = world.back_up(tree).await.unwrap();
    assert_eq!(report.statistics.bytes_read, 0);
    let calls = world.calls();
    for (operation, exactly) in [(Operation::Put, 4), (Operation::Get, 1), (Operation::List, 4)] {
        assert_eq!(calls.calls(operation), exactly, "calls to {operation}: {calls}");
    }
    assert_eq!(calls.total().calls, 9, "{calls}");
}

/// What most users pay, every hour.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_costs_nine_calls_however_many_snapshots_there_are() {
    let world = backed_up().await;
    for _ in 0..200 {
        assert_unchanged(&world, &tree()).await;
    }
}

/// Six prunes leave plans with their verdicts. A host reads each of them once in its life.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_costs_nine_calls_however_often_was_pruned() {
    let (world, mut tree) = (backed_up().await, tree());
    for n in 0..6 {
        let (repository, old) = world.newest().await.unwrap();
        tree.put("changes.bin", 1001 + 2 * n, 100_000).unwrap();
        world.back_up(&tree).await.unwrap();
        repository.forget(&[(&old, "test".to_owned())]).await.unwrap();
        let options = PruneOptions { max_unused: 0.0, ..PruneOptions::default() };
        world.open().await.unwrap().prune(options).await.unwrap();
    }
    world.back_up(&tree).await.unwrap();
    assert_unchanged(&world, &tree).await;
}

/// Two datasets in turn: each finds its own last snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_costs_nine_calls_beside_other_datasets() {
    let (world, tree) = (backed_up().await, tree());
    for _ in 0..20 {
        world.back_up_as("other", &tree).await.unwrap();
    }
    assert_unchanged(&world, &tree).await;
    world.calls();
    world.back_up_as("other", &tree).await.unwrap();
    assert_eq!(world.calls().total().calls, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_backup_costs_fifteen_calls_and_one_per_pack_and_segment() {
    let world = World::new().await.unwrap();
    world.calls();
    world.back_up(&tree()).await.unwrap();
    let calls = world.calls();
    // The hint, four trust records and the keyring; the same four listings.
    assert_eq!((calls.calls(Operation::Get), calls.calls(Operation::List)), (6, 4), "{calls}");
    assert_eq!(calls.calls(Operation::Head), 0, "{calls}");
    let small: u64 =
        ["sessions", "manifests", "lists", "commits", "state"].map(|top| puts(&calls, top)).iter().sum();
    assert_eq!(small, 5, "{calls}");
    assert_eq!(puts(&calls, "index"), 2, "{calls}");
    let packs = puts(&calls, "data") + puts(&calls, "meta");
    assert_eq!(calls.total().calls, 6 + 4 + 5 + 2 + packs, "{calls}");
}

fn puts(calls: &Recorded, top: &str) -> u64 {
    calls.under(Operation::Put, top).calls
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_stores_small_files_together() {
    let world = World::new().await.unwrap();
    world.back_up(&tree()).await.unwrap();
    let calls = world.calls();
    // A pack per thread that stored something.
    assert!(calls.under(Operation::Put, "data").calls <= threads(), "{calls}");
    assert_eq!(calls.under(Operation::Put, "meta").calls, 1, "{calls}");
    assert_eq!(calls.under(Operation::Put, "index").calls, 2, "{calls}");
    assert_eq!(calls.count(Operation::Delete).calls, 0, "{calls}");
}

fn threads() -> u64 {
    backup_core::Limits::default().threads as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_change_stores_little() {
    let world = backed_up().await;
    let mut tree = tree();
    tree.put("new.txt", 77, 1000).unwrap();
    let report = world.back_up(&tree).await.unwrap();
    assert_eq!(report.statistics.bytes_read, 1000);
    let calls = world.calls();
    for (kind, most) in [("data", 1), ("meta", 1), ("index", 2), ("state", 1)] {
        assert!(calls.under(Operation::Put, kind).calls <= most, "{calls}");
    }
    assert!(calls.count(Operation::Put).bytes < 16_000, "{calls}");
}

/// The host knows the older snapshots already: what it lists and restores costs the same with 12 of them and with 200.
#[tokio::test(flavor = "multi_thread")]
async fn restore_check_and_prune_cost_no_more_with_more_snapshots() {
    let mut costs = Vec::new();
    for older in [12, 200] {
        let world = backed_up().await;
        for _ in 0..older {
            world.back_up(&tree()).await.unwrap();
        }
        world.newest().await.unwrap();
        world.calls();
        let (repository, snapshot) = world.newest().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let target = Arc::new(FileTarget::create(directory.path(), &TargetOptions::default()).unwrap());
        repository.restore(&snapshot, target, RestoreOptions::default()).await.unwrap();
        let restore = world.calls();
        repository.check(CheckOptions { read: ReadData::Nothing }).await.unwrap();
        let check = world.calls();
        // The first sweeps the claims of sessions that have ended; after it there is nothing to do.
        world.open().await.unwrap().prune(PruneOptions::default()).await.unwrap();
        world.calls();
        let report = world.open().await.unwrap().prune(PruneOptions::default()).await.unwrap();
        assert_eq!((report.objects_deleted, report.records_swept), (0, 0));
        costs.push((older, restore, check, world.calls()));
    }
    for (older, restore, check, prune) in costs {
        assert!(restore.total().calls <= RESTORE_CALLS + threads(), "{older}: {restore}");
        // A check believes nothing but the store: two records per snapshot.
        assert!(check.total().calls <= CHECK_CALLS + 2 * older, "{older}: {check}");
        assert!(prune.total().calls <= PRUNE_CALLS, "{older}: {prune}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_reads_every_pack_once() {
    let world = backed_up().await;
    let (repository, snapshot) = world.newest().await.unwrap();
    let packs = keepwell_storage::list_all(repository.store(), "data/").await.unwrap();
    world.calls();
    let directory = tempfile::tempdir().unwrap();
    let target = Arc::new(FileTarget::create(directory.path(), &TargetOptions::default()).unwrap());
    repository.restore(&snapshot, target, RestoreOptions::default()).await.unwrap();
    let calls = world.calls();
    let read = |top| calls.under(Operation::Get, top).calls + calls.under(Operation::GetRange, top).calls;
    assert!(read("data") <= packs.len() as u64, "{calls}");
    assert_eq!(calls.count(Operation::Put).calls, 0, "{calls}");
    let stored: u64 = packs.iter().map(|pack| pack.size).sum();
    let bytes = calls.under(Operation::Get, "data").bytes + calls.under(Operation::GetRange, "data").bytes;
    assert!(bytes <= stored, "{calls}");
}

/// A restore first goes through the tree to see whether there is room, and then once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_reads_the_nodes_of_the_tree_once() {
    let world = World::new().await.unwrap();
    world.back_up(&Tree::generate(40, 100, 0).unwrap()).await.unwrap();
    let (repository, snapshot) = world.newest().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let target = Arc::new(FileTarget::create(directory.path(), &TargetOptions::default()).unwrap());
    let nodes = |calls: &Recorded| {
        calls.under(Operation::Get, "meta").calls + calls.under(Operation::GetRange, "meta").calls
    };
    world.calls();
    repository.plan_restore(&snapshot, target.clone(), RestoreOptions::default()).await.unwrap();
    let planned = world.calls();
    repository.restore(&snapshot, target, RestoreOptions::default()).await.unwrap();
    let restored = world.calls();
    assert!(nodes(&planned) > 0, "{planned}");
    assert_eq!(nodes(&restored), nodes(&planned), "{restored}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_the_structure_reads_no_content_and_writes_nothing() {
    let world = backed_up().await;
    let repository = world.open().await.unwrap();
    repository.check(CheckOptions { read: ReadData::Nothing }).await.unwrap();
    let calls = world.calls();
    assert_eq!(calls.under(Operation::Get, "data").calls, 0, "{calls}");
    assert_eq!(calls.under(Operation::GetRange, "data").calls, 0, "{calls}");
    assert_eq!(calls.under(Operation::Put, "data").calls, 0, "{calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_with_nothing_to_do_moves_nothing() {
    let world = backed_up().await;
    world.open().await.unwrap().prune(PruneOptions::default()).await.unwrap(); // sweeps the claim
    world.calls();
    let repository = world.open().await.unwrap();
    let report = repository.prune(PruneOptions::default()).await.unwrap();
    assert_eq!((report.objects_deleted, report.repacked_bytes), (0, 0));
    let calls = world.calls();
    // The probe of the store is the only thing that comes and goes.
    assert_eq!(
        calls.count(Operation::Delete).calls,
        calls.under(Operation::Delete, "probe").calls,
        "{calls}"
    );
    for kind in ["data", "meta", "index", "gc"] {
        assert_eq!(calls.under(Operation::Put, kind).calls, 0, "{calls}");
    }
}
