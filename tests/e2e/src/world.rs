//! Repositories to test with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::env::SystemClock;
use backup_core::{
    BackupOptions, BackupReport, Cache, CheckOptions, CheckReport, CreateOptions, Created, Error, Limits,
    PruneOptions, PruneReport, ReadData, RepairOptions, Repository, RestoreOptions, RestoreReport, Snapshot,
};
use keepwell_catalog::MapKey;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_source_files::{FileOptions, FileSource, FileTarget, TargetOptions};
use keepwell_storage::{Memory, ObjectStore, list_all};

use crate::tree::{self, Tree};

/// Two threads, and room for both with small packs (about 5 MB).
pub const LIMITS: Limits = Limits { threads: 2, memory_bytes: 144 << 20 };

/// A repository in memory, and the key to it.
#[derive(Debug, Clone)]
pub struct World {
    /// Its objects.
    pub store: Memory,
    /// Owner, and member with every role.
    pub key: KeyFile,
}

impl World {
    /// Makes an empty repository.
    pub async fn new() -> Self {
        let store = Memory::new();
        let key = create(&store).await;
        Self { store, key }
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> Self {
        Self { store: self.store.snapshot(), key: self.key.clone() }
    }

    /// Opens it with an empty cache.
    pub async fn open(&self) -> Repository {
        self.open_with(Arc::new(self.store.clone()), Cache::memory()).await.unwrap()
    }

    /// Opens it through another store, usually a wrapper of its own.
    pub async fn open_with(&self, store: Arc<dyn ObjectStore>, cache: Cache) -> Result<Repository, Error> {
        open(store, &self.key, cache, LIMITS).await
    }

    /// Names of its objects below a prefix.
    pub async fn names(&self, prefix: &str) -> Vec<String> {
        list_all(&self.store, prefix).await.unwrap().into_iter().map(|info| info.key.to_string()).collect()
    }
}

/// Makes a repository in a store.
pub async fn create(store: &dyn ObjectStore) -> KeyFile {
    let options = CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
    Created::generate(&options, 1).unwrap().store(store).await.unwrap()
}

/// Makes a member, and its credential.
pub async fn enroll(repository: &Repository, name: &str, roles: Roles) -> KeyFile {
    let key = repository.new_member(name, roles, None).unwrap();
    repository.enroll(&key).await.unwrap();
    key
}

/// Opens a repository.
pub async fn open(
    store: Arc<dyn ObjectStore>,
    key: &KeyFile,
    cache: Cache,
    limits: Limits,
) -> Result<Repository, Error> {
    Repository::builder(store).cache(cache).limits(limits).open(key.clone()).await
}

/// Backs up a directory as a dataset of its own path.
pub async fn back_up(repository: &Repository, dir: &Path) -> Result<BackupReport, Error> {
    back_up_with(repository, dir, options()).await
}

/// Options that do not depend on time.
pub fn options() -> BackupOptions {
    BackupOptions {
        dataset: "data".into(),
        host: "host".into(),
        checkpoint_every: Duration::from_secs(1 << 30),
        ..BackupOptions::default()
    }
}

/// Backs up a directory.
pub async fn back_up_with(
    repository: &Repository,
    dir: &Path,
    options: BackupOptions,
) -> Result<BackupReport, Error> {
    let files = FileOptions { paths: vec![dir.to_path_buf()], ..FileOptions::default() };
    let source = FileSource::new(&files, Arc::new(SystemClock))?;
    repository.backup(Arc::new(source), options).await
}

/// The key of a directory that was backed up by its absolute path.
pub fn key_of(dir: &Path) -> MapKey {
    use std::os::unix::ffi::OsStrExt;
    let names = dir.as_os_str().as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty());
    MapKey::from_components(names).unwrap()
}

/// Restores what was backed up from `dir` into `to`.
pub async fn restore(
    repository: &Repository,
    snapshot: &Snapshot,
    dir: &Path,
    to: &Path,
) -> Result<RestoreReport, Error> {
    let target = FileTarget::create(to, &TargetOptions::default())?;
    let options = RestoreOptions { below: Some(key_of(dir)), ..RestoreOptions::default() };
    repository.restore(snapshot, Arc::new(target), options).await
}

/// Restores into a fresh directory and gives the tree; a problem fails the test.
pub async fn restored(repository: &Repository, snapshot: &Snapshot, dir: &Path) -> Tree {
    let to = tempfile::tempdir().unwrap();
    let report = restore(repository, snapshot, dir, to.path()).await.unwrap();
    assert_eq!(report.problems, [], "restore of {}", snapshot.short());
    tree::read(to.path())
}

/// The snapshot that a report speaks of.
pub async fn snapshot_of(repository: &Repository, report: &BackupReport) -> Snapshot {
    let snapshots = repository.snapshots().await.unwrap();
    snapshots.into_iter().find(|s| s.id == report.snapshot).expect("the snapshot is listed")
}

/// Options of a prune that takes everything and waits for nobody.
pub fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

/// A repair that waits for nobody.
pub fn repairing(read: ReadData) -> RepairOptions {
    RepairOptions { read, fence_after: Duration::ZERO, fence_unlisted: true }
}

/// Forgets these snapshots.
pub async fn forget(repository: &Repository, snapshots: &[Snapshot]) -> Result<(), Error> {
    let list: Vec<_> = snapshots.iter().map(|s| (s, "test".to_owned())).collect();
    repository.forget(&list).await
}

/// Checks everything; a finding fails the test.
pub async fn assert_sound(repository: &Repository, what: &str) -> CheckReport {
    let report = repository.check(CheckOptions { read: ReadData::Everything }).await.unwrap();
    assert_eq!(report.findings.iter().collect::<Vec<_>>(), Vec::<&backup_core::Finding>::new(), "{what}");
    report
}

/// Prunes until nothing is left to do; fails if that takes more than three runs or leaves anything that nobody needs.
pub async fn prune_to_the_end(repository: &Repository, what: &str) -> PruneReport {
    let first = repository.prune(thorough()).await.unwrap_or_else(|e| panic!("{what}: prune: {e}"));
    for _ in 0..3 {
        let again = repository.prune(thorough()).await.unwrap();
        if again.objects_deleted == 0 && again.packs_unused == 0 && again.packs_repacked == 0 {
            let report = assert_sound(repository, what).await;
            assert_eq!(report.orphans, 0, "{what}: orphans");
            return first;
        }
    }
    panic!("{what}: every prune finds something more to do");
}
