//! What operations cost, in calls of the store: the same on every machine, and money on most.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::sync::Arc;

use backup_core::{CheckOptions, PruneOptions, ReadData, RestoreOptions};
use keepwell_benches::{Tree, World};
use keepwell_source_files::{FileTarget, TargetOptions};
use keepwell_storage::Operation;

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

/// Backs up what did not change, and asserts that this costs at most so many calls of each kind.
async fn assert_unchanged(world: &World, tree: &Tree, most: [(Operation, u64); 3]) {
    world.calls();
    let report = world.back_up(tree).await.unwrap();
    assert_eq!(report.statistics.bytes_read, 0);
    let calls = world.calls();
    for (operation, most) in most {
        assert!(calls.calls(operation) <= most, "more than {most} calls to {operation}: {calls}");
    }
    let counted: u64 = most.iter().map(|(operation, _)| calls.calls(*operation)).sum();
    assert_eq!(calls.total().calls, counted, "other calls: {calls}");
}

/// What most users pay, every hour. To be lowered whenever the engine needs less.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_costs_the_same_few_calls_however_many_there_were() {
    let world = backed_up().await;
    for _ in 0..12 {
        // Stored are session, manifest, list and commit.
        let most = [(Operation::Put, 4), (Operation::Get, 8), (Operation::List, 7)];
        assert_unchanged(&world, &tree(), most).await;
    }
}

/// Six prunes leave 17 plans with their verdicts, and every backup reads all of them. To be lowered.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_reads_every_prune_plan_and_no_more() {
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
    let most = [(Operation::Put, 4), (Operation::Get, 8 + 34), (Operation::List, 8)];
    assert_unchanged(&world, &tree, most).await;
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
    let repository = world.open().await.unwrap();
    let report = repository.prune(PruneOptions::default()).await.unwrap();
    assert_eq!((report.objects_deleted, report.repacked_bytes), (0, 0));
    let calls = world.calls();
    assert_eq!(calls.count(Operation::Delete).calls, 0, "{calls}");
    for kind in ["data", "meta", "index", "gc"] {
        assert_eq!(calls.under(Operation::Put, kind).calls, 0, "{calls}");
    }
}
