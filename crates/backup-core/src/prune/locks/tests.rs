use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_catalog::wal::WalPlace;
use keepwell_storage::{
    BucketFacts, Capabilities, Memory, ObjectInfo, ObjectStore, Page, ThawSpeed, Tier, Versioning,
};

use super::*;
use crate::testing::{Thing, TreeModel, World, back_up, noise};
use crate::wal::WalFloor;
use crate::{Approval, CopyRules, PruneOptions, PruneReport};

/// A bucket with a clock of its own, which keeps objects from being deleted.
#[derive(Debug, Clone)]
struct Vault(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    memory: Memory,
    /// Days since 1970.
    today: AtomicU64,
    lock: Mutex<ObjectLock>,
    /// When objects were stored.
    stored: Mutex<HashMap<Key, SystemTime>>,
    /// Until when single ones are locked.
    locked: Mutex<HashMap<Key, SystemTime>>,
    /// One that it does not lock for longer.
    refused: Mutex<Option<Key>>,
}

impl Vault {
    fn new(memory: Memory, lock: ObjectLock) -> Self {
        let (stored, locked, refused) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inside {
            memory,
            today: AtomicU64::new(20_000),
            lock: Mutex::new(lock),
            stored,
            locked,
            refused,
        }))
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * self.0.today.load(Ordering::SeqCst) as u32
    }

    fn pass(&self, days: u64) {
        self.0.today.fetch_add(days, Ordering::SeqCst);
    }

    fn set(&self, lock: ObjectLock) {
        *self.0.lock.lock().unwrap() = lock;
    }

    fn until(&self, key: &Key) -> Option<SystemTime> {
        match &*self.0.lock.lock().unwrap() {
            ObjectLock::Retention { days } => {
                self.0.stored.lock().unwrap().get(key).map(|stored| *stored + DAY * *days)
            }
            _ => self.0.locked.lock().unwrap().get(key).copied(),
        }
    }

    async fn open(&self, world: &World, cache: &Cache) -> Repository {
        let store: Arc<dyn ObjectStore> = Arc::new(self.clone());
        Repository::builder(store).cache(cache.clone()).open(world.key.clone()).await.unwrap()
    }
}

#[async_trait]
impl ObjectStore for Vault {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.0.memory.put_new(key, body).await?;
        self.0.stored.lock().unwrap().insert(key.clone(), self.now());
        if let ObjectLock::Default { days, .. } = *self.0.lock.lock().unwrap() {
            self.0.locked.lock().unwrap().insert(key.clone(), self.now() + DAY * days);
        }
        Ok(())
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.0.memory.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.0.memory.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.0.memory.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        let mut page = self.0.memory.list_page(prefix, after).await?;
        let stored = self.0.stored.lock().unwrap();
        for info in &mut page.objects {
            info.modified = stored.get(&info.key).map(|stored| seconds(*stored) as i64 * 1_000_000_000);
        }
        Ok(page)
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        // A delete hides what is locked by itself, and is refused where the bucket keeps everything.
        if !self.locks_objects() && self.until(key).is_some_and(|end| end > self.now()) {
            let why = "it is kept for a time";
            return Err(StorageError::new(StorageErrorKind::PermissionDenied, "delete", key, why));
        }
        self.0.memory.delete(key).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.memory.capabilities()
    }

    fn describe(&self) -> String {
        "a vault".into()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        Some(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Control for Vault {
    async fn server_time(&self) -> Result<SystemTime, StorageError> {
        Ok(self.now())
    }

    async fn bucket(&self) -> BucketFacts {
        BucketFacts {
            versioning: Answer::Known(Versioning::Enabled),
            lock: Answer::Known(self.0.lock.lock().unwrap().clone()),
            lifecycle: Answer::Known(Vec::new()),
            encryption: Answer::Known(None),
            undelete_days: Answer::Known(0),
            clears_uploads: false,
        }
    }

    async fn overwrite(&self, key: &Key, _: Bytes) -> Result<Option<String>, StorageError> {
        panic!("the engine overwrites {key}");
    }

    async fn delete_version(&self, key: &Key, _: &str) -> Result<(), StorageError> {
        panic!("the engine deletes a version of {key}");
    }

    fn locks_objects(&self) -> bool {
        !matches!(*self.0.lock.lock().unwrap(), ObjectLock::Retention { .. })
    }

    async fn retained_until(&self, key: &Key) -> Result<Option<SystemTime>, StorageError> {
        Ok(self.until(key))
    }

    async fn retain_until(&self, key: &Key, until: SystemTime) -> Result<(), StorageError> {
        if self.0.refused.lock().unwrap().as_ref() == Some(key) {
            let why = "not this one";
            return Err(StorageError::new(StorageErrorKind::PermissionDenied, "retention", key, why));
        }
        self.0.locked.lock().unwrap().insert(key.clone(), until);
        Ok(())
    }

    async fn tier(&self, _: &Key) -> Result<Tier, StorageError> {
        Ok(Tier::Ready)
    }

    async fn thaw(&self, key: &Key, _: u32, _: ThawSpeed) -> Result<(), StorageError> {
        panic!("{key} is in no archive");
    }
}

fn locking(days: u32) -> ObjectLock {
    ObjectLock::Default { mode: "COMPLIANCE".into(), days }
}

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

/// A file of several frames, cut off at the end.
fn large(bytes: usize) -> TreeModel {
    TreeModel::default().with("large", Thing::file(&noise(10, 2_400_000)[..bytes]))
}

#[test]
fn what_was_stored_under_another_default_is_not_counted_as_locked() {
    let at = |n: u64| Some(SystemTime::UNIX_EPOCH + DAY * n as u32);
    let day = DAY.as_secs();
    assert_eq!(default_end(at(9), 10 * day, DAY * 30), 0);
    assert_eq!(default_end(at(10), 10 * day, DAY * 30), 40 * day);
    assert_eq!(default_end(None, 0, DAY * 30), 0);
}

#[test]
fn the_default_is_remembered_and_a_file_without_it_read() {
    let cache = Cache::memory();
    assert_eq!(load(&cache), Remembered::default());
    cache.store(NAME, b"data/ab/cd 17\nnonsense\n").unwrap();
    let known = BTreeMap::from([("data/ab/cd".to_owned(), 17)]);
    assert_eq!(load(&cache), Remembered { known: known.clone(), ..Remembered::default() });
    let all = Remembered { known, default: Some((30, 5)), extended: Some(6) };
    save(&cache, &all).unwrap();
    assert_eq!(load(&cache), all);
}

/// What was to be moved and is damaged stays where it is, and locked.
#[tokio::test]
async fn a_pack_that_stays_after_all_stays_locked() {
    let world = World::new().await;
    let (vault, cache) = (Vault::new(world.store.inner().clone(), locking(30)), Cache::memory());
    let repository = vault.open(&world, &cache).await;
    back_up(&repository, &large(2_400_000)).await;
    let packs: Vec<Key> = world.names("data/").await.iter().map(|name| name.parse().unwrap()).collect();
    back_up(&repository, &large(1_800_000)).await;
    let snapshots = repository.snapshots().await.unwrap();
    repository.forget(&[(&snapshots[0], "old".into())]).await.unwrap();
    vault.pass(31);
    for pack in &packs {
        let mut bytes = world.store.get(pack).await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        world.delete(pack.as_str()).await;
        world.store.put_new(pack, bytes.into()).await.unwrap();
    }
    let report = vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    // A sound pack of nodes may be moved meanwhile.
    assert_eq!(report.packs_locked, 0, "{report:?}");
    let there = world.names("data/").await;
    let left: Vec<&Key> = packs.iter().filter(|pack| there.contains(&pack.to_string())).collect();
    assert!(!left.is_empty() && left.iter().all(|pack| vault.until(pack) == Some(vault.now() + DAY * 30)));
}

#[tokio::test]
async fn a_default_that_was_off_for_a_time_counts_anew() {
    let world = World::new().await;
    let (vault, cache) = (Vault::new(world.store.inner().clone(), locking(30)), Cache::memory());
    back_up(&vault.open(&world, &cache).await, &large(10_000)).await;
    vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    vault.set(ObjectLock::On);
    back_up(&vault.open(&world, &cache).await, &large(20_000)).await;
    vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    assert_eq!(load(vault.open(&world, &cache).await.cache()).default, None);
    let packs: Vec<Key> = world.names("data/").await.iter().map(|name| name.parse().unwrap()).collect();
    assert!(packs.iter().any(|pack| vault.until(pack).is_none()), "stored while nothing was locked");
    vault.pass(1);
    vault.set(locking(30));
    vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    assert!(packs.iter().all(|pack| vault.until(pack) >= Some(vault.now() + DAY * 15)));
}

#[tokio::test]
async fn what_was_locked_before_a_request_failed_is_not_locked_again() {
    let world = World::new().await;
    let (vault, cache) = (Vault::new(world.store.inner().clone(), locking(30)), Cache::memory());
    back_up(&vault.open(&world, &cache).await, &large(10_000)).await;
    vault.pass(31);
    *vault.0.refused.lock().unwrap() = Some(RepositoryHint::key());
    let repository = vault.open(&world, &cache).await;
    repository.prune(thorough()).await.unwrap_err();
    let remembered = load(repository.cache());
    assert!(!remembered.known.is_empty() && remembered.extended.is_none(), "{remembered:?}");
    *vault.0.refused.lock().unwrap() = None;
    let report = repository.prune(thorough()).await.unwrap();
    assert!(report.locks_extended > 0);
    let all = load(repository.cache()).known.len();
    assert_eq!(remembered.known.len() + report.locks_extended as usize, all, "none of them twice");
}

#[tokio::test]
async fn locks_are_made_longer_though_the_cache_cannot_be_written() {
    let world = World::new().await;
    let vault = Vault::new(world.store.inner().clone(), locking(30));
    let file = tempfile::NamedTempFile::new().unwrap();
    let repository = vault.open(&world, &Cache::directory(file.path())).await;
    back_up(&repository, &large(10_000)).await;
    vault.pass(20);
    let report = repository.prune(thorough()).await.unwrap();
    assert!(report.locks_extended > 0, "{report:?}");
}

/// Agrees, and counts prunes.
struct Counting(usize);

impl Approval for Counting {
    type Error = Error;

    fn prune(&mut self, _: &PruneReport) -> Result<bool, Error> {
        self.0 += 1;
        Ok(true)
    }
}

#[tokio::test]
async fn a_copy_that_forgets_nothing_stays_locked() {
    let world = World::new().await;
    let (vault, cache) = (Vault::new(world.store.inner().clone(), locking(30)), Cache::memory());
    let copy = vault.open(&world, &cache).await;
    back_up(&copy, &large(10_000)).await;
    let packs: Vec<Key> = world.names("data/").await.iter().map(|name| name.parse().unwrap()).collect();
    let mut prunes = Counting(0);
    // How many days after the last one, and how many prunes there were then.
    for (days, count) in [(20, 1), (1, 1), (20, 2)] {
        vault.pass(days);
        CopyRules::default().retire(copy.now(), &copy, Some(thorough()), &mut prunes).await.unwrap();
        assert_eq!(prunes.0, count);
        assert!(packs.iter().all(|pack| vault.until(pack) > Some(vault.now() + DAY * 14)), "{days}");
    }
    CopyRules::default().retire(copy.now(), &copy, None, &mut prunes).await.unwrap();
    assert_eq!(prunes.0, 2, "nobody wants it pruned");
    // What was left alone with half of the shorter time may lapse before a quarter of the longer one is over.
    vault.set(locking(90));
    CopyRules::default().retire(copy.now(), &copy, Some(thorough()), &mut prunes).await.unwrap();
    assert_eq!(prunes.0, 3);
    assert!(packs.iter().all(|pack| vault.until(pack) > Some(vault.now() + DAY * 44)));
}

#[tokio::test]
async fn what_was_to_go_and_is_needed_after_all_is_looked_after_with_the_next_copy() {
    let world = World::new().await;
    let (vault, cache) = (Vault::new(world.store.inner().clone(), locking(30)), Cache::memory());
    let repository = vault.open(&world, &cache).await;
    back_up(&repository, &large(10_000)).await;
    let packs: Vec<Key> = world.names("data/").await.iter().map(|name| name.parse().unwrap()).collect();
    let snapshots = repository.snapshots().await.unwrap();
    repository.forget(&[(&snapshots[0], "old".into())]).await.unwrap();
    vault.pass(31);
    let plan = repository.plan_prune(thorough()).await.unwrap();
    back_up(&vault.open(&world, &cache).await, &large(10_000)).await;
    let report = repository.carry_out(plan).await.unwrap();
    assert!(report.kept > 0, "{report:?}");
    assert!(repository.are_locks_due().await.unwrap());
    repository.prune(thorough()).await.unwrap();
    assert!(packs.iter().all(|pack| vault.until(pack) > Some(vault.now())));
    assert!(!repository.are_locks_due().await.unwrap());
}

/// As a bucket of Google's or Azure's with a retention policy: nothing goes before it is so old, whatever it is.
#[tokio::test]
async fn what_a_bucket_keeps_for_a_time_ends_no_prune_and_goes_later() {
    let world = World::new().await;
    let vault = Vault::new(world.store.inner().clone(), ObjectLock::Retention { days: 10 });
    let cache = Cache::memory();
    let repository = vault.open(&world, &cache).await;
    for n in 1..=2 {
        back_up(&repository, &large(1_000 * n)).await;
    }
    vault.pass(9);
    back_up(&repository, &large(3_000)).await;
    let snapshots = repository.snapshots().await.unwrap();
    repository.forget(&[(&snapshots[0], "old".into()), (&snapshots[2], "new".into())]).await.unwrap();
    back_up(&repository, &large(2_000)).await;
    vault.pass(2);
    let state = world.names("state/").await.len();
    assert_eq!(world.names("manifests/").await.len(), 4);
    let report = vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    assert!(report.objects_deleted > 0 && report.records_swept > 0, "{report:?}");
    assert_eq!(world.names("manifests/").await.len(), 3, "the new one of the two that were forgotten stays");
    assert!(world.names("state/").await.len() < state && !world.names("sessions/").await.is_empty());
    vault.pass(11);
    vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    assert_eq!(world.names("manifests/").await.len(), 2);
    vault.pass(11);
    vault.open(&world, &cache).await.prune(thorough()).await.unwrap();
    assert_eq!(world.names("probe/").await.len(), 1, "that of today");
}

#[tokio::test]
async fn archived_wal_that_a_bucket_keeps_for_a_time_goes_later() {
    let world = World::new().await;
    let vault = Vault::new(world.store.inner().clone(), ObjectLock::Retention { days: 10 });
    let repository = vault.open(&world, &Cache::memory()).await;
    let log = repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
    for file in [3, 4] {
        let place = WalPlace::Bytes { file, from: 0, to: 4 };
        log.put(1, place, Bytes::from_static(b"text"), None).await.unwrap();
        vault.pass(6);
    }
    let floors = |_| std::future::ready(Ok::<_, Error>(vec![WalFloor { system: 7, file: 5 }]));
    for outdated in [1, 0] {
        let report = repository.trim_wal(&thorough(), floors).await.unwrap();
        assert_eq!(report.outdated, outdated);
    }
    vault.pass(5);
    assert_eq!(repository.trim_wal(&thorough(), floors).await.unwrap().outdated, 1);
}
