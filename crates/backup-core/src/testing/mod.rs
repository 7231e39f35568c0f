//! What the tests of this crate share: trees in memory that can be backed up, restored into and compared, and
//! repositories in memory to do it with.

mod clock;
mod hooked;
mod index;
mod paired;
mod target;
mod tree;

use std::sync::Arc;

use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_storage::{Memory, ObjectStore, Recording};

pub(crate) use clock::SetClock;
pub(crate) use hooked::{Hook, Hooked};
pub(crate) use index::{data_pack, say, say_malformed};
pub(crate) use paired::Paired;
pub(crate) use target::MemoryTarget;
pub(crate) use tree::{MemorySource, Part, Thing, TreeModel, assert_same, key, noise, tree_model};

use crate::chunker::ChunkSizes;
use crate::env::Clock;
use crate::repository::{CreateOptions, Created, Limits, Repository, Snapshot};
use crate::{BackupOptions, BackupReport, Cache, RestoreOptions};

/// A new repository in memory, open with the keys of its owner, who is also its first member.
pub(crate) struct World {
    pub store: Arc<Recording<Memory>>,
    pub key: KeyFile,
    pub repository: Repository,
}

impl World {
    pub async fn new() -> Self {
        let store = Arc::new(Recording::new(Memory::new()));
        let options =
            CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
        let key = Created::generate(&options, 1).unwrap().store(&*store).await.unwrap();
        let repository = Self::open_store(&store, &key).await;
        Self { store, key, repository }
    }

    async fn open_store(store: &Arc<Recording<Memory>>, key: &KeyFile) -> Repository {
        let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
        let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
        Repository::builder(store).limits(limits).open(key.clone()).await.unwrap()
    }

    /// Opens the repository anew, with an empty cache and a clock of the caller's.
    pub async fn open_with(&self, clock: Arc<dyn Clock>) -> Repository {
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.store) as _;
        let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
        Repository::builder(store).limits(limits).clock(clock).open(self.key.clone()).await.unwrap()
    }

    /// Opens the repository anew, with an empty cache.
    pub async fn open(&self, key: &KeyFile) -> Repository {
        Self::open_store(&self.store, key).await
    }

    /// Opens the repository anew with a cache of the caller's.
    pub async fn open_cached(&self, key: &KeyFile, cache: Cache) -> Repository {
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.store) as _;
        let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
        Repository::builder(store).limits(limits).cache(cache).open(key.clone()).await.unwrap()
    }

    /// Enrols a host that can write and not read, and opens the repository as it.
    pub async fn enrol_writer(&self) -> Repository {
        let key = self.repository.new_member("writer", Roles::WRITER, None).unwrap();
        self.repository.enroll(&key).await.unwrap();
        self.open(&key).await
    }

    /// A new repository with one backup of a tree, and a hostile host that can write to it.
    pub async fn attacked(tree: &TreeModel) -> (Self, Repository, BackupReport) {
        let world = Self::new().await;
        let hostile = world.enrol_writer().await;
        let report = back_up(&world.repository, tree).await;
        (world, hostile, report)
    }

    /// Names of stored objects below a prefix.
    pub async fn names(&self, prefix: &str) -> Vec<String> {
        let infos = keepwell_storage::list_all(&*self.store, prefix).await.unwrap();
        infos.into_iter().map(|info| info.key.to_string()).collect()
    }

    pub async fn delete(&self, name: &str) {
        self.store.delete(&name.parse().unwrap()).await.unwrap();
    }

    /// Restores the snapshot of a report by whoever knows nothing yet, to the same as was backed up.
    pub async fn assert_restores(&self, report: &BackupReport, tree: &TreeModel) {
        let fresh = self.open(&self.key).await;
        let snapshot = snapshot_of(&fresh, report).await;
        assert_same(&restored(&fresh, &snapshot).await, &tree.as_restored());
    }
}

/// Small chunks, so that small files have many.
pub(crate) fn options(dataset: &str) -> BackupOptions {
    BackupOptions {
        dataset: dataset.to_owned(),
        host: "host".to_owned(),
        chunk_sizes: ChunkSizes { min: 64, average: 256, max: 1024 },
        ..BackupOptions::default()
    }
}

pub(crate) async fn back_up(repository: &Repository, tree: &TreeModel) -> BackupReport {
    repository.backup(Arc::new(MemorySource::new(tree.clone())), options("data")).await.unwrap()
}

/// The snapshot that a report speaks of.
pub(crate) async fn snapshot_of(repository: &Repository, report: &BackupReport) -> Snapshot {
    let snapshots = repository.snapshots().await.unwrap();
    snapshots.into_iter().find(|s| s.id == report.snapshot).unwrap()
}

/// Restores a whole snapshot into an empty target.
pub(crate) async fn restored(repository: &Repository, snapshot: &Snapshot) -> TreeModel {
    let target = MemoryTarget::default();
    let report =
        repository.restore(snapshot, Arc::new(target.clone()), RestoreOptions::default()).await.unwrap();
    assert_eq!(report.problems, []);
    target.tree()
}

/// Runs a test body on a small runtime; for property tests, which are not async.
pub(crate) fn block_on<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}
