//! Stores that keep objects from being deleted, or in an archive.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use backup_core::{Cache, CheckOptions, ReadData, Repository, RestoreOptions};
use bytes::Bytes;
use keepwell_catalog::names;
use keepwell_e2e::case::Case;
use keepwell_e2e::{run, world};
use keepwell_storage::{
    Answer, BucketFacts, Capabilities, Control, Key, Memory, ObjectInfo, ObjectLock, ObjectStore, Page,
    StorageError, StorageErrorKind, ThawSpeed, Tier, Versioning,
};
use world::{World, assert_sound, forget, restored, thorough};

const DAY: u64 = 24 * 60 * 60;
/// When everything was stored, in seconds since 1970.
const FIRST_DAY: u64 = 1_800_000_000;
/// For how long the bucket locks new objects.
const DAYS: u32 = 30;

/// A bucket with a clock of its own, locks and an archive.
#[derive(Debug, Clone)]
struct Vault(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    memory: Memory,
    /// Seconds since 1970.
    now: AtomicU64,
    locks: Mutex<HashMap<Key, SystemTime>>,
    archived: Mutex<HashSet<Key>>,
    retentions: AtomicU64,
    /// What it says about locks.
    lock: Mutex<Answer<ObjectLock>>,
    /// Whether single objects have them.
    of_objects: AtomicBool,
}

impl Vault {
    /// With what is in the store, locked from now on.
    async fn new(memory: Memory) -> Self {
        let inside = Inside {
            memory,
            now: AtomicU64::new(FIRST_DAY),
            locks: Mutex::default(),
            archived: Mutex::default(),
            retentions: AtomicU64::new(0),
            lock: Mutex::new(Answer::Known(ObjectLock::Default { mode: "COMPLIANCE".into(), days: DAYS })),
            of_objects: AtomicBool::new(true),
        };
        let vault = Self(Arc::new(inside));
        for key in vault.keys("").await {
            vault.lock(key);
        }
        vault
    }

    async fn keys(&self, prefix: &str) -> Vec<Key> {
        let listed = keepwell_storage::list_all(&self.0.memory, prefix).await.unwrap();
        listed.into_iter().map(|info| info.key).collect()
    }

    fn lock(&self, key: Key) {
        let end = self.time() + Duration::from_secs(u64::from(DAYS) * DAY);
        if self.locks_objects() {
            self.0.locks.lock().unwrap().insert(key, end);
        }
    }

    fn without_locks_of_objects(&self) {
        self.0.of_objects.store(false, Ordering::SeqCst);
        self.0.locks.lock().unwrap().clear();
    }

    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.now.load(Ordering::SeqCst))
    }

    fn pass(&self, days: u64) {
        self.0.now.fetch_add(days * DAY, Ordering::SeqCst);
    }

    async fn archive(&self) {
        let packs = self.keys("data/").await;
        self.0.archived.lock().unwrap().extend(packs);
    }

    fn readable(&self, key: &Key) -> Result<(), StorageError> {
        match self.0.archived.lock().unwrap().contains(key) {
            true => Err(StorageError::new(StorageErrorKind::Archived, "get", key, "in an archive")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for Vault {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.0.memory.put_new(key, body).await?;
        self.lock(key.clone());
        Ok(())
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.readable(key)?;
        self.0.memory.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.readable(key)?;
        self.0.memory.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.0.memory.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        let mut page = self.0.memory.list_page(prefix, after).await?;
        if !self.locks_objects() {
            page.objects.iter_mut().for_each(|info| info.modified = Some(FIRST_DAY as i64 * 1_000_000_000));
        }
        Ok(page)
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let locked = self.0.locks.lock().unwrap().get(key).is_some_and(|end| *end > self.time());
        assert!(!locked || !key.as_str().starts_with("data/"), "a locked pack is deleted: {key}");
        self.0.memory.delete(key).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.memory.capabilities()
    }

    fn describe(&self) -> String {
        "vault".into()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        Some(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Control for Vault {
    async fn server_time(&self) -> Result<SystemTime, StorageError> {
        Ok(self.time())
    }

    async fn bucket(&self) -> BucketFacts {
        BucketFacts {
            versioning: Answer::Known(Versioning::Enabled),
            lock: self.0.lock.lock().unwrap().clone(),
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
        self.0.of_objects.load(Ordering::SeqCst)
    }

    async fn retained_until(&self, key: &Key) -> Result<Option<SystemTime>, StorageError> {
        assert!(self.locks_objects(), "there is no lock to ask for: {key}");
        Ok(self.0.locks.lock().unwrap().get(key).copied())
    }

    async fn retain_until(&self, key: &Key, until: SystemTime) -> Result<(), StorageError> {
        self.0.retentions.fetch_add(1, Ordering::SeqCst);
        let mut locks = self.0.locks.lock().unwrap();
        let end = locks.entry(key.clone()).or_insert(until);
        *end = until.max(*end);
        Ok(())
    }

    async fn tier(&self, key: &Key) -> Result<Tier, StorageError> {
        let archived = self.0.archived.lock().unwrap().contains(key);
        Ok(if archived { Tier::Archived } else { Tier::Ready })
    }

    async fn thaw(&self, key: &Key, days: u32, _: ThawSpeed) -> Result<(), StorageError> {
        assert_eq!(days, 3);
        self.0.archived.lock().unwrap().remove(key);
        Ok(())
    }
}

/// Two snapshots, of which the first is forgotten: one pack is mostly unused.
async fn forgotten() -> (Case, World) {
    let (case, _) = Case::new().await.with_second().await;
    let repository = case.world.open().await;
    forget(&repository, std::slice::from_ref(&case.first.0)).await.unwrap();
    let world = case.world.fork();
    (case, world)
}

async fn open(world: &World, vault: &Vault, cache: &Cache) -> Repository {
    world.open_with(Arc::new(vault.clone()), cache.clone()).await.unwrap()
}

#[test]
fn locked_packs_stay_until_their_locks_end() {
    run(async {
        let (case, world) = forgotten().await;
        let (vault, cache) = (Vault::new(world.store.clone()).await, Cache::memory());
        let before = vault.keys("data/").await;
        let repository = open(&world, &vault, &cache).await;
        let report = repository.prune(thorough()).await.unwrap();
        assert!(report.packs_locked > 0 && report.locked_bytes > 0, "{report:?}");
        assert_eq!((report.packs_unused, report.packs_repacked), (0, 0), "{report:?}");
        assert_eq!(vault.keys("data/").await, before);
        assert_eq!(case.all_restore(&repository, "beside what is locked").await, 1);
        vault.pass(u64::from(DAYS) + 1);
        let repository = open(&world, &vault, &cache).await;
        let report = repository.prune(thorough()).await.unwrap();
        assert!(report.packs_locked == 0 && report.packs_repacked > 0, "{report:?}");
        assert_ne!(vault.keys("data/").await, before);
        assert_eq!(case.all_restore(&repository, "after the locks").await, 1);
    });
}

/// Only an answer counts as "no locks".
#[test]
fn a_prune_ends_where_the_store_does_not_say_whether_it_locks() {
    run(async {
        let (_case, world) = forgotten().await;
        let vault = Vault::new(world.store.clone()).await;
        let before = vault.keys("data/").await;
        let answer = |lock| *vault.0.lock.lock().unwrap() = lock;
        for refused in [
            Answer::Denied("s3:GetBucketObjectLockConfiguration"),
            Answer::Unknown("503 Service Unavailable".into()),
        ] {
            answer(refused);
            let error =
                open(&world, &vault, &Cache::memory()).await.prune(thorough()).await.unwrap_err().to_string();
            assert!(error.contains("locks objects"), "{error}");
            assert_eq!(vault.keys("data/").await, before);
            assert_eq!(vault.0.retentions.load(Ordering::SeqCst), 0);
        }
        answer(Answer::Known(ObjectLock::Off));
        vault.pass(u64::from(DAYS) + 1);
        let report = open(&world, &vault, &Cache::memory()).await.prune(thorough()).await.unwrap();
        assert!(report.packs_locked == 0 && report.packs_repacked > 0, "{report:?}");
        assert_eq!(report.locks_extended, 0);
    });
}

/// As GCS and Azure have it.
#[test]
fn a_bucket_that_keeps_everything_for_a_time_is_no_obstacle() {
    run(async {
        let (_case, world) = forgotten().await;
        let vault = Vault::new(world.store.clone()).await;
        vault.without_locks_of_objects();
        *vault.0.lock.lock().unwrap() = Answer::Known(ObjectLock::Retention { days: 10 });
        let before = vault.keys("data/").await;
        let report = open(&world, &vault, &Cache::memory()).await.prune(thorough()).await.unwrap();
        assert!(report.packs_locked > 0 && report.locks_extended == 0, "{report:?}");
        assert_eq!(vault.keys("data/").await, before);
        vault.pass(11);
        let report = open(&world, &vault, &Cache::memory()).await.prune(thorough()).await.unwrap();
        assert!(report.packs_locked == 0 && report.packs_repacked > 0, "{report:?}");
        // Where the bucket does not tell, as on Azure, nothing is left alone beforehand.
        let (_case, world) = forgotten().await;
        let vault = Vault::new(world.store.clone()).await;
        vault.without_locks_of_objects();
        *vault.0.lock.lock().unwrap() = Answer::Unknown("ask somebody else".into());
        vault.pass(u64::from(DAYS) + 1);
        let report = open(&world, &vault, &Cache::memory()).await.prune(thorough()).await.unwrap();
        assert!(report.packs_repacked > 0, "{report:?}");
    });
}

#[test]
fn locks_of_what_is_needed_are_extended_once() {
    run(async {
        let (_case, world) = forgotten().await;
        let vault = Vault::new(world.store.clone()).await;
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::directory(directory.path());
        let prune = async || open(&world, &vault, &cache).await.prune(thorough()).await.unwrap();
        // The listing does not say when packs were stored, so that they are extended to be sure.
        let first = prune().await.locks_extended;
        assert!(first > 0);
        assert_eq!(prune().await.locks_extended, 0, "they are known to be locked for long");
        vault.pass(u64::from(DAYS) / 2 + 1);
        assert!(prune().await.locks_extended >= first, "less than half is left");
        assert_eq!(prune().await.locks_extended, 0);
        let packs = vault.keys("data/").await;
        let end = vault.time() + Duration::from_secs(u64::from(DAYS) * DAY);
        let locks = vault.0.locks.lock().unwrap().clone();
        assert!(packs.iter().any(|pack| locks[pack] == end), "to the full length");
    });
}

/// A snapshot that is kept for longer than the bucket locks stays locked as a whole, whatever it is read with.
#[test]
fn all_that_a_restore_needs_stays_locked() {
    run(async {
        let (_case, world) = forgotten().await;
        let vault = Vault::new(world.store.clone()).await;
        let cache = Cache::memory();
        for _ in 0..5 {
            vault.pass(u64::from(DAYS) / 2 + 1);
            open(&world, &vault, &cache).await.prune(thorough()).await.unwrap();
        }
        let repository = open(&world, &vault, &cache).await;
        let snapshots = repository.snapshots().await.unwrap();
        let locked =
            |key: &Key| vault.0.locks.lock().unwrap().get(key).is_some_and(|end| *end > vault.time());
        let mut needed = vec!["keepwell.json".parse().unwrap()];
        for snapshot in &snapshots {
            let commit = &snapshot.commit;
            needed.push(names::commit_key(commit.writer, commit.n));
            needed.push(names::manifest_key(&commit.manifest.unwrap()));
        }
        for prefix in ["trust/", "keys/", "index/", "data/", "meta/"] {
            needed.extend(vault.keys(prefix).await);
        }
        for key in needed {
            assert!(locked(&key), "{key} can be deleted");
        }
        let forgotten = vault.keys("retired/").await;
        assert!(!forgotten.iter().any(locked), "what is no part of a restore is left alone");
    });
}

#[test]
fn what_is_archived_is_not_moved_and_is_thawed_for_a_restore() {
    run(async {
        let (case, world) = forgotten().await;
        let vault = Vault::new(world.store.clone()).await;
        vault.pass(10 * u64::from(DAYS)); // locks are another matter
        vault.archive().await;
        let repository = open(&world, &vault, &Cache::memory()).await;
        let report = repository.prune(thorough()).await.unwrap();
        assert!(report.packs_archived > 0 && report.packs_repacked == 0, "{report:?}");
        let check = CheckOptions { read: ReadData::Everything };
        let checked = repository.check(check).await.unwrap();
        assert!(
            checked.is_sound() && checked.packs_archived > 0,
            "what cannot be read is no damage: {checked:?}"
        );
        let snapshot = repository.snapshots().await.unwrap().remove(0);
        let target = tempfile::tempdir().unwrap();
        let report = world::restore(&repository, &snapshot, case.dir(), target.path()).await.unwrap();
        assert!(report.problem_count > 0, "archived packs cannot be read");

        let needed = repository.packs_needed(&snapshot, RestoreOptions::default()).await.unwrap();
        assert!(!needed.is_empty() && needed.iter().all(|pack| pack.tier == Tier::Archived && pack.size > 0));
        let one = RestoreOptions {
            below: Some(world::key_of(&case.dir().join("sub/new"))),
            ..RestoreOptions::default()
        };
        let part = repository.packs_needed(&snapshot, one).await.unwrap();
        assert!(part.len() == 1 && needed.contains(&part[0]), "only what is asked for");
        repository.thaw(&needed, 3, ThawSpeed::Bulk).await.unwrap();
        let needed = repository.packs_needed(&snapshot, RestoreOptions::default()).await.unwrap();
        assert!(needed.iter().all(|pack| pack.tier.is_readable()));
        keepwell_e2e::tree::assert_same(
            &case.now,
            &restored(&repository, &snapshot, case.dir()).await,
            "thawed",
        );
        vault.0.archived.lock().unwrap().clear();
        repository.prune(thorough()).await.unwrap();
        assert_sound(&repository, "after the prune of what was thawed").await;
    });
}

/// Nothing was learnt of what an archive has taken since.
#[test]
fn damage_that_was_found_is_not_forgotten_in_an_archive() {
    run(async {
        let case = Case::new().await;
        let vault = Vault::new(case.world.store.clone()).await;
        vault.pass(10 * u64::from(DAYS)); // locks are another matter
        let mut sound = Vec::new();
        for key in vault.keys("data/").await {
            let stored = vault.0.memory.get(&key).await.unwrap();
            let mut damaged = stored.to_vec();
            damaged[stored.len() / 2] ^= 1;
            vault.0.memory.delete(&key).await.unwrap();
            vault.0.memory.put_new(&key, damaged.into()).await.unwrap();
            sound.push((key, stored));
        }
        let repository = open(&case.world, &vault, &Cache::memory()).await;
        let everything = CheckOptions { read: ReadData::Everything };
        assert_eq!(repository.check(everything).await.unwrap().damaged_snapshots.len(), 1);

        vault.archive().await;
        let report = repository.check(CheckOptions::default()).await.unwrap();
        assert!(report.is_sound() && report.packs_archived > 0, "{report:?}");
        assert_eq!(repository.checked().await.unwrap().damaged, [case.first.0.id].into());

        vault.0.archived.lock().unwrap().clear();
        for (key, stored) in sound {
            vault.0.memory.delete(&key).await.unwrap();
            vault.0.memory.put_new(&key, stored).await.unwrap();
        }
        assert_eq!(repository.check(CheckOptions::default()).await.unwrap().packs_archived, 0);
        assert!(repository.checked().await.unwrap().damaged.is_empty());
    });
}
