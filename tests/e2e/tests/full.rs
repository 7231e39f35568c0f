//! The disk is full, at every stage: the store's, the restore's, the cache's. Needs the right to mount.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backup_core::{Cache, Error, Repository};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_e2e::tree::{assert_part_of, assert_same, put, read};
use keepwell_e2e::{run, world};
use keepwell_storage::{LocalFs, LocalOptions, StorageErrorKind};
use world::{back_up, forget, restored, snapshot_of, thorough};

const KIB: u64 = 1 << 10;

/// A small file system of its own, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    /// `None` where mounting is not permitted.
    fn mount(kib: u64) -> Option<Self> {
        let small = Self(tempfile::tempdir().unwrap());
        let size = format!("size={kib}k");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(small.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(small)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn resize(&self, kib: u64) {
        let size = format!("remount,size={kib}k");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.path()).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn may_mount() -> bool {
    let may = Small::mount(64).is_some();
    if !may {
        eprintln!("skipped: mounting a tmpfs is not permitted here");
    }
    may
}

async fn open(store: &Path, key: &KeyFile) -> Repository {
    let store = LocalFs::open(store, &LocalOptions::default()).await.unwrap();
    world::open(Arc::new(store), key, Cache::memory(), world::LIMITS).await.unwrap()
}

fn is_full(error: &Error) -> bool {
    match error {
        Error::Storage(error) => error.kind == StorageErrorKind::NoSpace,
        Error::NoSpace { .. } | Error::Target(_) | Error::Cache { .. } => true,
        _ => false,
    }
}

#[test]
fn the_store_is_full_at_every_stage_of_a_backup_and_of_a_prune() {
    if !may_mount() {
        return;
    }
    run(async {
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        for i in 0..4 {
            put(dir, &format!("{i}"), i, 300 << 10);
        }
        let first = read(dir);
        let (mut failures, mut successes) = (0, 0);
        for extra in (0..2600).step_by(100).chain([4, 8, 12, 20, 30, 40, 1510, 1520, 1530]) {
            let small = Small::mount(64 << 10).unwrap();
            let store = small.path().join("store");
            let local = LocalFs::create(&store, &LocalOptions::default()).await.unwrap();
            let key = world::create(&local).await;
            let repository = open(&store, &key).await;
            let one = back_up(&repository, dir).await.unwrap();
            let one = snapshot_of(&repository, &one).await;
            let changed = tempfile::tempdir().unwrap();
            for i in 0..4 {
                put(changed.path(), &format!("{i}"), i + 3, 300 << 10);
            }
            small.resize(used_kib(small.path()) + extra);
            let what = format!("{extra} KiB more");
            match back_up(&repository, changed.path()).await {
                Ok(_) => successes += 1,
                Err(error) => {
                    assert!(is_full(&error), "{what}: {error}");
                    failures += 1;
                }
            }
            let fresh = open(&store, &key).await;
            world::assert_sound(&fresh, &what).await;
            assert_same(&first, &restored(&fresh, &one, dir).await, &what);
            // With what was forgotten gone there is room again, if there is room for the plan.
            forget(&fresh, std::slice::from_ref(&one)).await.ok();
            if let Err(error) = fresh.prune(thorough()).await {
                assert!(is_full(&error), "{what}: {error}");
            }
            world::assert_sound(&open(&store, &key).await, &what).await;
            small.resize(64 << 10);
            let fresh = open(&store, &key).await;
            let report = back_up(&fresh, changed.path()).await.unwrap();
            world::prune_to_the_end(&fresh, &what).await;
            let snapshot = snapshot_of(&fresh, &report).await;
            assert_same(&read(changed.path()), &restored(&fresh, &snapshot, changed.path()).await, &what);
        }
        assert!(failures > 5 && successes > 3, "{failures} failed, {successes} went well");
    });
}

fn used_kib(path: &Path) -> u64 {
    let found = rustix::fs::statvfs(path).unwrap();
    (found.f_blocks - found.f_bfree) * found.f_frsize / KIB
}

#[test]
fn the_target_or_the_cache_is_full() {
    if !may_mount() {
        return;
    }
    run(async {
        let world = world::World::new().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        for i in 0..6 {
            put(dir, &format!("d{i}/{i}"), i, 500 << 10);
        }
        let repository = world.open().await;
        let report = back_up(&repository, dir).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        let expected = read(dir);
        // From far too small, which is refused before anything is written, to just enough.
        for kib in [8, 100, 1000, 2900, 2990, 3000, 3010, 3020, 3040, 3100, 4000] {
            let small = Small::mount(kib).unwrap();
            let what = format!("{kib} KiB");
            match world::restore(&repository, &snapshot, dir, small.path()).await {
                Ok(report) => assert_eq!(report.problems, [], "{what}"),
                Err(error) => {
                    assert!(is_full(&error) && kib < 3100, "{what}: {error}");
                    assert_part_of(&expected, &read(small.path()), &what);
                    small.resize(8000);
                    world::restore(&repository, &snapshot, dir, small.path()).await.unwrap();
                }
            }
            assert_same(&expected, &read(small.path()), &what);
        }
        // A cache without room keeps nobody from a restore.
        let cache = Small::mount(4).unwrap();
        std::fs::write(cache.path().join("full"), vec![1; 64 << 10]).unwrap_err();
        let store = Arc::new(world.store.clone());
        let cramped = world.open_with(store, Cache::directory(cache.path())).await.unwrap();
        assert_same(&expected, &restored(&cramped, &snapshot, dir).await, "full cache");
    });
}
