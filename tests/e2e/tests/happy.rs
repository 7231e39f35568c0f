//! Nothing goes wrong.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{BackupOptions, Cache, Limits, RestoreOptions, Select};
use keepwell_e2e::{noise, run, tree, within, world};
use keepwell_source_files::{FileTarget, TargetOptions};
use keepwell_storage::{Memory, list_all};
use world::{World, assert_sound, back_up, back_up_with, forget, options, restored, snapshot_of};

const MIB: usize = 1 << 20;

/// A bit of everything, a few MiB.
fn fill(dir: &Path, seed: u64) {
    tree::put(dir, "empty", seed, 0);
    tree::put(dir, "one", seed, 1);
    tree::put(dir, "small/a", seed + 1, 1000);
    tree::put(dir, "small/b", seed + 2, 70_000);
    tree::put(dir, "medium", seed + 3, 300_000);
    tree::put(dir, "large", seed + 4, 5 * MIB);
    tree::put(dir, "copy/of/large", seed + 4, 5 * MIB);
    tree::put_bytes(dir, "zeros", seed, &vec![0; 3 * MIB]);
    for i in 0..300 {
        tree::put(dir, &format!("many/{}/{i}", i % 7), seed + i, 10 + i as usize * 13);
    }
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.write_all_at(&noise(seed, 100_000), 7 * MIB as u64).unwrap();
    sparse.set_len(40 * MIB as u64).unwrap();
    tree::stamp(&sparse, seed);
    symlink("../somewhere/else", dir.join("small/link")).unwrap();
    fs::hard_link(dir.join("large"), dir.join("small/large too")).unwrap();
    fs::create_dir(dir.join("empty dir")).unwrap();
    tree::chmod(dir, "small/a", 0o4751);
    tree::chmod(dir, "small/b", 0o000);
    tree::chmod(dir, "empty dir", 0o1730);
}

#[test]
fn snapshots_come_back_as_they_were() {
    for threads in [1, 4] {
        run(async {
            let world = World::new().await;
            let limits = Limits { threads, memory_bytes: 64 << 20 };
            let open = || async {
                world::open(Arc::new(world.store.clone()), &world.key, Cache::memory(), limits).await.unwrap()
            };
            let repository = open().await;
            let source = tempfile::tempdir().unwrap();
            let dir = source.path();
            fill(dir, 1);
            let first = tree::read(dir);
            let one = back_up(&repository, dir).await.unwrap();
            assert_eq!(one.problems, []);

            tree::put(dir, "small/a", 99, 2000);
            tree::put(dir, "new/file", 98, 2 * MIB);
            fs::remove_file(dir.join("medium")).unwrap();
            fs::remove_dir_all(dir.join("many/3")).unwrap();
            tree::chmod(dir, "one", 0o600);
            let second = tree::read(dir);
            let two = back_up(&repository, dir).await.unwrap();
            assert_eq!(two.parent, Some(one.snapshot));
            assert!(two.statistics.bytes_read < 3 * MIB as u64, "{:?}", two.statistics);

            let other = open().await; // another host's view: an empty cache
            for repository in [&repository, &other] {
                let one = snapshot_of(repository, &one).await;
                tree::assert_same(&first, &restored(repository, &one, dir).await, "first");
                let two = snapshot_of(repository, &two).await;
                tree::assert_same(&second, &restored(repository, &two, dir).await, "second");
                assert_sound(repository, "after two backups").await;
            }
            let scrub = backup_core::scrub(&world.store, None, true).await.unwrap();
            assert!(scrub.findings.is_empty(), "{:?}", scrub.findings);
        });
    }
}

#[test]
fn an_incremental_backup_with_a_lost_cache_reads_nothing() {
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        fill(source.path(), 1);
        back_up(&world.open().await, source.path()).await.unwrap();
        let content = world.names("data/").await;
        let again = back_up(&world.open().await, source.path()).await.unwrap();
        assert_eq!((again.statistics.bytes_read, again.statistics.changed_files), (0, 0));
        // Tree nodes may be new: other tests change the time of the temporary directory above, which is in the snapshot.
        assert_eq!(world.names("data/").await, content);
        let reread = BackupOptions { reread: true, verify: true, ..options() };
        let third = back_up_with(&world.open().await, source.path(), reread).await.unwrap();
        assert!(third.statistics.bytes_read > 10 * MIB as u64);
        assert_eq!(world.names("data/").await, content);
    });
}

/// Bytes of all packs with content.
async fn stored(world: &World) -> u64 {
    list_all(&world.store, "data/").await.unwrap().iter().map(|info| info.size).sum()
}

#[test]
fn what_is_forgotten_goes_and_the_rest_stays() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        let mut snapshots = Vec::new();
        // Every generation replaces half of the files, so that packs are partly and wholly unused.
        for generation in 0..4u64 {
            for i in 0..8u64 {
                if i % 2 == 0 || generation == 0 {
                    tree::put(dir, &format!("d/{i}"), generation * 100 + i, MIB);
                }
            }
            let tree = tree::read(dir);
            let report = back_up(&repository, dir).await.unwrap();
            snapshots.push((snapshot_of(&repository, &report).await, tree));
        }
        for (forgotten, keep) in [(vec![1, 2], vec![0, 3]), (vec![0], vec![3])] {
            let going: Vec<_> = forgotten.iter().map(|i: &usize| snapshots[*i].0.clone()).collect();
            forget(&repository, &going).await.unwrap();
            let before = stored(&world).await;
            let report = world::prune_to_the_end(&repository, "after forgetting").await;
            assert!(report.packs_unused + report.packs_repacked > 0, "{report:?}");
            // Each of the forgotten has four files of noise of its own; new packs are padded otherwise than the old.
            let freed = before - stored(&world).await;
            assert!(freed >= (forgotten.len() * 3 * MIB) as u64, "{freed} bytes");
            for repository in [&repository, &world.open().await] {
                assert_eq!(repository.snapshots().await.unwrap().len(), keep.len());
                for (snapshot, tree) in keep.iter().map(|i: &usize| &snapshots[*i]) {
                    tree::assert_same(tree, &restored(repository, snapshot, dir).await, "kept");
                }
            }
            let scrub = backup_core::scrub(&world.store, None, true).await.unwrap();
            assert!(scrub.findings.is_empty(), "{:?}", scrub.findings);
        }
    });
}

#[test]
fn checkpoints_between_batches() {
    for threads in [1, 4] {
        run(async {
            let store = Memory::new();
            let key = world::create(&store).await;
            let limits = Limits { threads, memory_bytes: 64 << 20 };
            let repository =
                world::open(Arc::new(store.clone()), &key, Cache::memory(), limits).await.unwrap();
            let source = tempfile::tempdir().unwrap();
            let dir = source.path();
            for i in 0..12 {
                tree::put(dir, &format!("{i}"), i, MIB);
            }
            let options = BackupOptions { checkpoint_every: Duration::ZERO, ..options() };
            let report = back_up_with(&repository, dir, options).await.unwrap();
            assert!(report.checkpoints >= 12, "{}", report.checkpoints);
            let snapshot = snapshot_of(&repository, &report).await;
            tree::assert_same(
                &tree::read(dir),
                &restored(&repository, &snapshot, dir).await,
                "with checkpoints",
            );
            assert_sound(&repository, "with checkpoints").await;
            assert_eq!(repository.snapshots().await.unwrap().len(), 1, "a checkpoint is no snapshot");
            world::prune_to_the_end(&repository, "checkpoints are roots no longer").await;
            tree::assert_same(&tree::read(dir), &restored(&repository, &snapshot, dir).await, "after prune");
        });
    }
}

#[test]
fn one_large_file_and_a_proof() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        tree::put(source.path(), "large", 5, 64 * MIB);
        let options = BackupOptions { verify: true, ..options() };
        let report = back_up_with(&repository, source.path(), options).await.unwrap();
        assert!(report.verified_chunks > 32);
        let snapshot = snapshot_of(&repository, &report).await;
        let expected = tree::read(source.path());
        tree::assert_same(&expected, &restored(&repository, &snapshot, source.path()).await, "large");
    });
}

#[test]
fn a_restore_over_an_older_state_writes_only_what_differs() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        fill(dir, 1);
        let report = back_up(&repository, dir).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        let expected = tree::read(dir);
        let to = tempfile::tempdir().unwrap();
        world::restore(&repository, &snapshot, dir, to.path()).await.unwrap();
        File::options()
            .write(true)
            .open(to.path().join("copy/of/large"))
            .unwrap()
            .write_all_at(b"x", 3_000_000)
            .unwrap();
        tree::put(to.path(), "one", 7, 5000);
        fs::remove_file(to.path().join("zeros")).unwrap();
        let grown = File::options().write(true).open(to.path().join("medium")).unwrap();
        grown.write_all_at(b"to be cut off", 300_000).unwrap();
        let again = world::restore(&repository, &snapshot, dir, to.path()).await.unwrap();
        assert_eq!(again.problems, []);
        assert!(again.bytes_written < 8 * MIB as u64, "{again:?}");
        assert_eq!(again.files_written, 4, "one was only shortened: {again:?}");
        tree::assert_same(&expected, &tree::read(to.path()), "corrected");
    });
}

#[test]
fn a_further_name_alone_does_not_take_what_stands_under_the_first() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        tree::put(dir, "a", 1, 2 * MIB);
        fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
        fs::hard_link(dir.join("a"), dir.join("c")).unwrap();
        let report = back_up(&repository, dir).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        let to = tempfile::tempdir().unwrap();
        tree::put(to.path(), "a", 2, MIB);
        let before = tree::read(to.path());
        let target = FileTarget::create(to.path(), &TargetOptions::default()).unwrap();
        let select: Select = Arc::new(|key, _| key.name().is_some_and(|name| *name != *b"a"));
        let below = Some(world::key_of(dir));
        let options = RestoreOptions { below, select: Some(select), ..RestoreOptions::default() };
        let report = repository.restore(&snapshot, Arc::new(target), options).await.unwrap();
        assert_eq!(report.problems, []);
        let (expected, found) = (tree::read(dir), tree::read(to.path()));
        assert_eq!(found[Path::new("a")], before[Path::new("a")], "what was not selected stays");
        assert_eq!(found[Path::new("b")].content, expected[Path::new("a")].content);
        assert_eq!(found[Path::new("c")].same_as.as_deref(), Some(Path::new("b")));
    });
}

/// No directory is held in memory as a whole, and one entry more costs what lies around it.
#[test]
fn a_directory_of_200_000_entries() {
    const ENTRIES: usize = 200_000;
    within(Duration::from_secs(600), async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        for i in 0..ENTRIES {
            File::create(source.path().join(format!("{i}"))).unwrap();
        }
        let first = back_up(&repository, source.path()).await.unwrap();
        assert_eq!((first.statistics.files, first.problems.len()), (ENTRIES as u64, 0));
        let stored = async || {
            let trees = list_all(&world.store, "meta/").await.unwrap();
            trees.iter().map(|pack| pack.size).sum::<u64>()
        };
        let before = stored().await;
        File::create(source.path().join("one more")).unwrap();
        let second = back_up(&repository, source.path()).await.unwrap();
        let added = stored().await - before;
        assert!(added * 5 < before, "{added} bytes beside {before}");
        let snapshot = snapshot_of(&repository, &second).await;
        let back = restored(&repository, &snapshot, source.path()).await;
        tree::assert_same(&tree::read(source.path()), &back, "200,000 entries");
    });
}
