//! What was backed up comes back, whatever it was and whatever stood there before.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keepwell_catalog::{EntryKind, MapKey};
use proptest::prelude::*;

use super::RestoreOptions;
use crate::testing::{
    MemorySource, MemoryTarget, Thing, TreeModel, World, assert_same, back_up, block_on, key, options,
    restored, snapshot_of, tree_model,
};
use crate::{CheckOptions, PruneOptions, ReadData, Repository, Snapshot};

async fn restore_over(repository: &Repository, snapshot: &Snapshot, target: &MemoryTarget) -> TreeModel {
    let options = RestoreOptions { delete: true, ..RestoreOptions::default() };
    let report = repository.restore(snapshot, Arc::new(target.clone()), options).await.unwrap();
    assert_eq!(report.problems, []);
    target.tree()
}

/// Whether what the tree has nearest above a key is a directory: nothing is below anything else.
fn in_a_directory(tree: &TreeModel, key: &MapKey) -> bool {
    let above = std::iter::successors(key.parent(), MapKey::parent);
    let nearest = above.filter_map(|key| tree.0.get(&key)).next();
    nearest.is_none_or(|thing| thing.entry.kind == EntryKind::Directory)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_snapshot_restores_to_what_was_captured(trees in prop::collection::vec(tree_model(), 1..4)) {
        block_on(async {
            let world = World::new().await;
            let mut snapshots = Vec::new();
            for tree in &trees {
                let report = back_up(&world.repository, tree).await;
                prop_assert_eq!(report.problem_count, 0);
                snapshots.push(snapshot_of(&world.repository, &report).await);
            }
            // Another process, with nothing cached.
            let repository = world.open(&world.key).await;
            let check = repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
            prop_assert!(check.is_sound(), "{:?}", check.findings);
            for (tree, snapshot) in trees.iter().zip(&snapshots) {
                assert_same(&restored(&repository, snapshot).await, &tree.as_restored());
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_did_not_change_is_not_opened(tree in tree_model()) {
        block_on(async {
            let world = World::new().await;
            let first = back_up(&world.repository, &tree).await;
            let source = MemorySource::new(tree.clone());
            let opened = Arc::clone(&source.opened);
            let second = world.repository.backup(Arc::new(source), options("data")).await.unwrap();
            prop_assert_eq!(opened.load(Ordering::Relaxed), 0);
            let (first, second) =
                (snapshot_of(&world.repository, &first).await, snapshot_of(&world.repository, &second).await);
            prop_assert_eq!(first.manifest().unwrap().root, second.manifest().unwrap().root);
            Ok(())
        })?;
    }

    #[test]
    fn a_restore_over_another_tree_leaves_nothing_of_it(before in tree_model(), after in tree_model()) {
        block_on(async {
            let world = World::new().await;
            let before = back_up(&world.repository, &before).await;
            let before = snapshot_of(&world.repository, &before).await;
            let report = back_up(&world.repository, &after).await;
            let snapshot = snapshot_of(&world.repository, &report).await;
            let target = MemoryTarget::default();
            let standing = restore_over(&world.repository, &before, &target).await;
            let delete = RestoreOptions { delete: true, ..RestoreOptions::default() };
            let plan = world.repository.plan_restore(&snapshot, Arc::new(target.clone()), delete).await.unwrap();
            let goes = |key: &&MapKey| !after.0.contains_key(*key) && in_a_directory(&after, key);
            assert_eq!(plan.removed, standing.0.keys().filter(goes).count() as u64);
            assert_eq!(plan.removed == 0, plan.removed_first.is_empty());
            assert_same(&restore_over(&world.repository, &snapshot, &target).await, &after.as_restored());
        });
    }

    #[test]
    fn a_prune_takes_nothing_from_what_is_kept(trees in prop::collection::vec(tree_model(), 2..4)) {
        block_on(async {
            let world = World::new().await;
            let mut snapshots = Vec::new();
            for tree in &trees {
                let report = back_up(&world.repository, tree).await;
                snapshots.push(snapshot_of(&world.repository, &report).await);
            }
            world.repository.forget(&[(&snapshots[0], "test".to_owned())]).await.unwrap();
            let options = PruneOptions { max_unused: 0.0, ..PruneOptions::default() };
            world.repository.prune(options).await.unwrap();
            let repository = world.open(&world.key).await;
            for (tree, snapshot) in trees.iter().zip(&snapshots).skip(1) {
                assert_same(&restored(&repository, snapshot).await, &tree.as_restored());
            }
        });
    }
}

#[tokio::test]
async fn what_lies_on_another_file_system_is_named_and_not_removed() {
    let world = World::new().await;
    let directory = || Thing::new(EntryKind::Directory);
    let tree = TreeModel::default().with("s", directory()).with("s/m", directory());
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let target = MemoryTarget::default();
    let standing = tree
        .with("s/extra", directory())
        .with("s/extra/disk", directory())
        .with("s/extra/disk/photo", Thing::file("p"))
        .with("s/m/precious", Thing::file("x"))
        .with("s/stray", Thing::file("y"));
    let before = snapshot_of(&world.repository, &back_up(&world.repository, &standing).await).await;
    restore_over(&world.repository, &before, &target).await;
    target.mount(key("s/m"));
    target.mount(key("s/extra/disk"));
    let options = RestoreOptions { delete: true, ..RestoreOptions::default() };
    let plan = world.repository.plan_restore(&snapshot, Arc::new(target.clone()), options.clone()).await;
    let plan = plan.unwrap();
    assert_eq!((plan.removed, plan.removed_first), (2, vec!["/s/extra".to_owned(), "/s/stray".to_owned()]));
    let report = world.repository.restore(&snapshot, Arc::new(target.clone()), options).await.unwrap();
    assert_eq!(
        report.left_out,
        ["`/s/m/precious`: not removed: another file system is mounted there".to_owned()]
    );
    assert!(target.tree().0.contains_key(&key("s/m/precious")));
    assert!(!target.tree().0.contains_key(&key("s/stray")));
}
