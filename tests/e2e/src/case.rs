//! A small repository to break, with what it must bring back.

use std::path::Path;
use std::sync::Arc;

use backup_core::{Cache, Limits, Repository, Snapshot};
use tempfile::TempDir;

use crate::tree::{self, Tree};
use crate::world::{self, LIMITS, World, assert_sound, back_up, restored, snapshot_of};

const LARGE: usize = 600 << 10;

/// A repository with a snapshot of a directory, which has then changed.
#[derive(Debug)]
pub struct Case {
    /// The repository.
    pub world: World,
    source: TempDir,
    /// The snapshot, and what was backed up.
    pub first: (Snapshot, Tree),
    /// The directory as it is now.
    pub now: Tree,
}

impl Case {
    /// Makes it: 4 files, of which one changes and to which one comes.
    pub async fn new() -> Self {
        let world = World::new().await;
        // One thread fills one pack: of what is in it some will have changed and some not, so that a prune must repack.
        let (store, limits) = (Arc::new(world.store.clone()), Limits { threads: 1, ..LIMITS });
        let repository = world::open(store, &world.key, Cache::memory(), limits).await.unwrap();
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        for i in 0..3 {
            tree::put(dir, &format!("{i}"), i, LARGE);
        }
        tree::put(dir, "sub/small", 9, 5000);
        let before = tree::read(dir);
        let report = back_up(&repository, dir).await.unwrap();
        let first = (snapshot_of(&repository, &report).await, before);
        tree::put(dir, "1", 11, LARGE);
        tree::put(dir, "sub/new", 12, 7000);
        let now = tree::read(dir);
        Self { world, source, first, now }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.source.path()
    }

    /// Adds a second snapshot, of the directory as it is now.
    pub async fn with_second(self) -> (Self, Snapshot) {
        let repository = self.world.open().await;
        let report = back_up(&repository, self.dir()).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        (self, snapshot)
    }

    /// Everything listed restores to what was backed up; gives how many that are.
    pub async fn all_restore(&self, repository: &Repository, what: &str) -> usize {
        let snapshots = repository.snapshots().await.unwrap();
        for snapshot in &snapshots {
            let expected = if snapshot.id == self.first.0.id { &self.first.1 } else { &self.now };
            tree::assert_same(expected, &restored(repository, snapshot, self.dir()).await, what);
        }
        assert_sound(repository, what).await;
        snapshots.len()
    }
}
