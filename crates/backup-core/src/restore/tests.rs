//! What was backed up comes back, whatever it was and whatever stood there before.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use keepwell_catalog::{Entry, EntryKind, MapKey};
use proptest::prelude::*;

use super::RestoreOptions;
use crate::target::{RestoreTarget, TargetError, TargetFile};
use crate::testing::{
    MemorySource, MemoryTarget, Paired, Thing, TreeModel, World, assert_same, back_up, block_on, key, noise,
    options, restored, snapshot_of, tree_model,
};
use crate::{CheckOptions, Limits, PruneOptions, ReadData, Repository, Snapshot};

async fn restore_over(repository: &Repository, snapshot: &Snapshot, target: &MemoryTarget) -> TreeModel {
    let options = RestoreOptions { delete: true, ..RestoreOptions::default() };
    let report = repository.restore(snapshot, Arc::new(target.clone()), options).await.unwrap();
    assert_eq!(report.problems, []);
    target.tree()
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
            let goes = standing.0.keys().filter(|key| !after.0.contains_key(*key));
            assert_eq!(plan.removed, goes.count() as u64);
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

#[tokio::test]
async fn what_is_not_chosen_is_not_removed() {
    let world = World::new().await;
    let tree = TreeModel::default().with("s/d/a.conf", Thing::file("a")).with("s/d/b.log", Thing::file("b"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let standing = tree
        .with("s/d/new.conf", Thing::file("1"))
        .with("s/d/new.log", Thing::file("2"))
        .with("s/x.d/more.conf", Thing::file("3"))
        .with("top.conf", Thing::file("4"))
        .with("top.log", Thing::file("5"));
    let before = snapshot_of(&world.repository, &back_up(&world.repository, &standing).await).await;
    for (below, goes) in [(None, &["/s/d/new.conf", "/top.conf"][..]), (Some("s"), &["/d/new.conf"][..])] {
        let target = MemoryTarget::default();
        let part = RestoreOptions { below: below.map(key), ..RestoreOptions::default() };
        world.repository.restore(&before, Arc::new(target.clone()), part.clone()).await.unwrap();
        let standing = target.tree();
        // By its place in the snapshot, and by what stands in the target.
        let select: crate::Select = Arc::new(|key, entry| {
            entry.kind == EntryKind::File
                && (key.display_path().starts_with("s/d/") || key.depth() == 1)
                && key.display_path().ends_with(".conf")
        });
        let options = RestoreOptions { select: Some(select), delete: true, ..part };
        let plan = world.repository.plan_restore(&snapshot, Arc::new(target.clone()), options.clone()).await;
        let plan = plan.unwrap();
        assert_eq!(plan.removed, goes.len() as u64, "{below:?}");
        assert_eq!(plan.removed_first, goes, "{below:?}");
        let report = world.repository.restore(&snapshot, Arc::new(target.clone()), options).await.unwrap();
        assert_eq!((report.removed, report.problem_count), (goes.len() as u64, 0), "{below:?}");
        let left = target.tree();
        let gone = standing.0.keys().filter(|key| !left.0.contains_key(*key));
        assert_eq!(gone.map(|key| format!("/{}", key.display_path())).collect::<Vec<_>>(), goes, "{below:?}");
    }
}

#[tokio::test]
async fn what_is_excluded_stays_within_a_directory_that_the_snapshot_lacks() {
    let world = World::new().await;
    let tree = TreeModel::default().with("s/a", Thing::file("a"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let mut standing = tree;
    for path in ["s/new/d/k.keep", "s/new/d/x", "s/new/e/f/x", "s/new/e/x", "s/old/x"] {
        standing = standing.with(path, Thing::file(path));
    }
    let before = snapshot_of(&world.repository, &back_up(&world.repository, &standing).await).await;
    let target = MemoryTarget::default();
    restore_over(&world.repository, &before, &target).await;
    let select: crate::Select = Arc::new(|key, _| !key.display_path().ends_with(".keep"));
    let options = RestoreOptions { select: Some(select), delete: true, ..RestoreOptions::default() };
    let plan = world.repository.plan_restore(&snapshot, Arc::new(target.clone()), options.clone()).await;
    let plan = plan.unwrap();
    assert_eq!(plan.removed_first, ["/s/new/d/x", "/s/new/e", "/s/old"]);
    assert_eq!(plan.removed, 7);
    let report = world.repository.restore(&snapshot, Arc::new(target.clone()), options).await.unwrap();
    assert_eq!((report.removed, report.problem_count), (3, 0));
    let left = target.tree();
    let left: Vec<String> = left.0.keys().map(MapKey::display_path).collect();
    assert_eq!(left, ["s", "s/a", "s/new", "s/new/d", "s/new/d/k.keep"]);
}

/// A deep tree is looked through once, and not once for each level.
#[tokio::test]
async fn each_thing_that_may_go_is_looked_at_once() {
    let world = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file("a"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let standing = tree.with(&format!("{}k.keep", "d/".repeat(50)), Thing::file("k"));
    let before = snapshot_of(&world.repository, &back_up(&world.repository, &standing).await).await;
    let target = MemoryTarget::default();
    restore_over(&world.repository, &before, &target).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    let select: crate::Select = Arc::new(move |key, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        !key.display_path().ends_with(".keep")
    });
    let options = RestoreOptions { select: Some(select), delete: true, ..RestoreOptions::default() };
    let plan = world.repository.plan_restore(&snapshot, Arc::new(target), options).await.unwrap();
    assert_eq!((plan.removed, looks.load(Ordering::Relaxed)), (0, 1 + 51));
}

#[tokio::test]
async fn a_directory_makes_way_only_if_all_of_it_is_chosen() {
    let world = World::new().await;
    let mut symlink = Thing::new(EntryKind::Symlink);
    symlink.entry.link_target = Some(b"elsewhere".to_vec());
    let tree = TreeModel::default()
        .with("s/file", Thing::file("1"))
        .with("s/free", Thing::file("2"))
        .with("s/further", Thing::link("s/file"))
        .with("s/hidden.keep", Thing::file("3"))
        .with("s/link", symlink);
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let mut standing = TreeModel::default();
    for path in ["file/d/x", "file/k.keep", "free/x/y", "further/k.keep", "hidden.keep/x", "link/k.keep"] {
        standing = standing.with(path, Thing::file(path));
    }
    let before = snapshot_of(&world.repository, &back_up(&world.repository, &standing).await).await;
    let target = MemoryTarget::default();
    restore_over(&world.repository, &before, &target).await;
    let select: crate::Select = Arc::new(|key, _| !key.display_path().ends_with(".keep"));
    let below = Some(key("s"));
    let options = RestoreOptions { below, select: Some(select), delete: true };
    let plan = world.repository.plan_restore(&snapshot, Arc::new(target.clone()), options.clone()).await;
    let plan = plan.unwrap();
    assert_eq!((plan.removed, plan.removed_first), (2, vec!["/free".to_owned()]));
    let report = world.repository.restore(&snapshot, Arc::new(target.clone()), options).await.unwrap();
    let paths: Vec<&str> = report.problems.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/file", "/further", "/link"]);
    assert!(report.problems[0].1.contains("`/file/k.keep` is not chosen"), "{:?}", report.problems);
    let left = target.tree();
    assert_eq!(left.0[&key("free")].bytes(), b"2");
    let gone = standing.0.keys().filter(|at| !left.0.contains_key(*at));
    assert_eq!(gone.map(MapKey::display_path).collect::<Vec<_>>(), ["free/x", "free/x/y"]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_looked_into_costs_what_should_go_there() {
    let world = World::new().await;
    let tree = TreeModel::default().with("closed/a", Thing::file("a")).with("open/b", Thing::file("b"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let standing = tree.with("closed/stray", Thing::file("x")).with("open/stray", Thing::file("y"));
    let before = snapshot_of(&world.repository, &back_up(&world.repository, &standing).await).await;
    let target = MemoryTarget::default();
    restore_over(&world.repository, &before, &target).await;
    target.close(key("closed"));
    let options = RestoreOptions { delete: true, ..RestoreOptions::default() };
    let plan = world.repository.plan_restore(&snapshot, Arc::new(target.clone()), options.clone()).await;
    assert_eq!(plan.unwrap().removed, 1);
    let report = world.repository.restore(&snapshot, Arc::new(target.clone()), options).await.unwrap();
    let paths: Vec<&str> = report.problems.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/closed"]);
    let left = target.tree();
    assert!(left.0.contains_key(&key("closed/stray")) && !left.0.contains_key(&key("open/stray")));
    assert!(left.0.contains_key(&key("closed/a")) && left.0.contains_key(&key("open/b")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_pack_is_on_its_way_before_the_one_before_is_written() {
    let world = World::new().await;
    let tree = TreeModel::default().with("large", Thing::file(noise(1, 20 << 20)));
    let report = back_up(&world.repository, &tree).await;
    let store = Arc::new(Paired::over(world.store.inner().clone()));
    let limits = Limits { threads: 1, memory_bytes: 64 << 20 };
    let repository = Repository::builder(store).limits(limits).open(world.key.clone()).await.unwrap();
    let snapshot = snapshot_of(&repository, &report).await;
    let whole = tokio::time::timeout(std::time::Duration::from_secs(60), restored(&repository, &snapshot));
    assert_same(&whole.await.expect("one thread asks for two packs at once"), &tree.as_restored());
}

/// A capture that could not read the first of a file's names has such links; a hostile one may have chains of them.
#[tokio::test]
async fn a_link_to_what_is_not_there_costs_that_link_alone() {
    let world = World::new().await;
    let mut tree = TreeModel::default().with("a", Thing::file("one")).with("z", Thing::file("two"));
    let whole = tree.clone();
    tree = tree.with("b", Thing::link("a-gone"));
    for n in 0..20_000 {
        tree = tree.with(&format!("c{n:05}"), Thing::link(&format!("c{:05}", n + 1)));
    }
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let target = MemoryTarget::default();
    let report = world
        .repository
        .restore(&snapshot, Arc::new(target.clone()), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(report.problem_count, 20_001);
    assert_eq!(report.problems[0].0, "/b");
    assert_same(&target.tree(), &whole.as_restored());
}

#[tokio::test]
async fn a_directory_in_the_place_of_a_file_costs_that_file_alone() {
    let world = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file("one")).with("z", Thing::file("two"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let other = TreeModel::default().with("a/b", Thing::file("in the way"));
    let other = snapshot_of(&world.repository, &back_up(&world.repository, &other).await).await;
    let target = MemoryTarget::default();
    restore_over(&world.repository, &other, &target).await;
    let report = world
        .repository
        .restore(&snapshot, Arc::new(target.clone()), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!((report.problem_count, &*report.problems[0].0), (1, "/a"));
    assert_eq!(target.tree().0[&key("z")].bytes(), b"two");
    assert_eq!(target.tree().0[&key("a/b")].bytes(), b"in the way");
}

/// As `cp -al` and whoever keeps trees of hard links makes them.
#[tokio::test]
async fn further_names_of_a_symlink_are_the_same_symlink() {
    let world = World::new().await;
    let mut symlink = Thing::new(EntryKind::Symlink);
    symlink.entry.link_target = Some(b"elsewhere".to_vec());
    let tree = TreeModel::default()
        .with("a", symlink)
        .with("b", Thing::link("a"))
        .with("c", Thing::link("a"))
        .with("f", Thing::new(EntryKind::Fifo))
        .with("g", Thing::link("f"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    assert_same(&restored(&world.repository, &snapshot).await, &tree.as_restored());
}

#[tokio::test]
async fn a_directory_in_the_place_of_a_further_name_goes_if_it_may() {
    let world = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file("one")).with("b", Thing::link("a"));
    let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
    let other = TreeModel::default().with("b/c", Thing::file("in the way"));
    let other = snapshot_of(&world.repository, &back_up(&world.repository, &other).await).await;
    for delete in [false, true] {
        let target = MemoryTarget::default();
        restore_over(&world.repository, &other, &target).await;
        let options = RestoreOptions { delete, ..RestoreOptions::default() };
        let report = world.repository.restore(&snapshot, Arc::new(target.clone()), options).await.unwrap();
        assert_eq!(report.problem_count, u64::from(!delete), "{:?}", report.problems);
        if delete {
            assert_same(&target.tree(), &tree.as_restored());
        } else {
            assert_eq!(target.tree().0[&key("b/c")].bytes(), b"in the way");
        }
    }
}

/// A place to restore into that counts what is held, and refuses what comes too late or too early.
#[derive(Default)]
struct Counting {
    /// Directories that were made and are not finished.
    open: Mutex<HashSet<MapKey>>,
    most_open: AtomicUsize,
    finished: AtomicUsize,
}

impl Counting {
    fn refused<T>(key: &MapKey) -> Result<T, TargetError> {
        Err(TargetError::Refused { path: key.display_path(), reason: "not now".to_owned() })
    }
}

impl RestoreTarget for Counting {
    fn existing(&self, _: &MapKey) -> Result<Option<Entry>, TargetError> {
        Ok(None)
    }

    fn open_existing(&self, key: &MapKey, _: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        Self::refused(key)
    }

    fn make_dir(&self, key: &MapKey, _: &Entry) -> Result<(), TargetError> {
        let mut open = self.open.lock().unwrap();
        open.insert(key.clone());
        self.most_open.fetch_max(open.len(), Ordering::Relaxed);
        Ok(())
    }

    fn write_file(&self, key: &MapKey, _: &Entry, _: &[u8]) -> Result<(), TargetError> {
        let is_open = self.open.lock().unwrap().contains(&key.parent().unwrap());
        if is_open { Ok(()) } else { Self::refused(key) }
    }

    fn create_file(&self, key: &MapKey, _: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        Self::refused(key)
    }

    fn make_other(&self, key: &MapKey, _: &Entry) -> Result<Option<String>, TargetError> {
        Self::refused(key)
    }

    fn hard_link(&self, key: &MapKey, _: &MapKey) -> Result<(), TargetError> {
        self.write_file(key, &Entry::new(EntryKind::File), &[])
    }

    fn apply_metadata(&self, key: &MapKey, _: &Entry) -> Result<(), TargetError> {
        let mut open = self.open.lock().unwrap();
        let within = open.iter().filter(|inner| inner.starts_with(key)).count();
        if within != 1 || !open.remove(key) {
            return Self::refused(key);
        }
        self.finished.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn list_dir(&self, _: Option<&MapKey>) -> Result<Vec<Vec<u8>>, TargetError> {
        Ok(Vec::new())
    }

    fn is_mounted(&self, _: Option<&MapKey>) -> Result<bool, TargetError> {
        Ok(false)
    }

    fn remove(&self, key: &MapKey) -> Result<(), TargetError> {
        Self::refused(key)
    }

    fn free_bytes(&self) -> Result<Option<u64>, TargetError> {
        Ok(None)
    }
}

/// Directories, each with a file and a link to one of the first, and half as many again that are empty.
fn many_directories(count: usize) -> TreeModel {
    (0..count).fold(TreeModel::default(), |tree, n| {
        let tree = tree
            .with(&format!("top/{n:05}/file"), Thing::file(format!("{}", n % 100)))
            .with(&format!("top/{n:05}/link"), Thing::link(&format!("top/{:05}/file", n % 50)));
        if n % 2 == 0 {
            return tree;
        }
        tree.with(&format!("top/{n:05}-empty"), Thing::new(EntryKind::Directory))
    })
}

#[test]
fn a_directory_is_finished_when_everything_in_it_is_there_and_few_wait() {
    block_on(async {
        let world = World::new().await;
        let directories = 12_000;
        let mut tree = many_directories(directories);
        for thing in tree.0.values_mut().filter(|thing| thing.entry.kind != EntryKind::HardLink) {
            thing.entry.mode |= 0o100;
            // So that not so many of them make a window.
            thing.entry.xattrs = vec![(b"user.long".to_vec(), vec![7; 2000])];
        }
        let snapshot = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
        let target = Arc::new(Counting::default());
        let restore =
            world.repository.restore(&snapshot, Arc::clone(&target) as _, RestoreOptions::default());
        let report = restore.await.unwrap();
        assert_eq!(report.problems, []);
        let all = directories + directories / 2 + 1;
        assert_eq!((report.directories, target.finished.load(Ordering::Relaxed)), (all as u64, all));
        assert!(target.open.lock().unwrap().is_empty());
        let most = target.most_open.load(Ordering::Relaxed);
        assert!(most < directories / 2, "{most} directories waited at once");
    });
}
