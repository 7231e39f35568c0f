//! Stores that lie, and credentials that may not.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::control::{Answer, BucketFacts, LifecycleRule, ObjectLock, ThawSpeed, Tier, Versioning, When};
use crate::{Capabilities, Control, Memory, ObjectInfo, Page, StorageErrorKind, list_all};

/// A store with faults of its own, and a bucket around it.
#[derive(Clone, Debug)]
struct Odd {
    memory: Memory,
    fault: Fault,
    bucket: Option<BucketFacts>,
    /// How far its clock is ahead.
    ahead: Duration,
    destroyed: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Stores whatever the condition.
    IgnoresConditions,
    /// Says itself that it promises nothing.
    HasNoCondition,
    /// Says that it is taken, and stores all the same.
    RefusesAndStores,
    /// Lists what was there a while ago.
    ListsLate,
    /// Refuses deletes and overwrites.
    MayOnlyAdd,
    /// Confirms deletes, and keeps the object.
    KeepsDeleted,
    /// Refuses reads.
    MayNotRead,
}

impl Odd {
    fn new(fault: Fault) -> Self {
        let ahead = Duration::ZERO;
        Self { memory: Memory::new(), fault, bucket: None, ahead, destroyed: Arc::default() }
    }

    fn with_bucket(self, bucket: BucketFacts) -> Self {
        Self { bucket: Some(bucket), ..self }
    }

    fn denied(operation: &'static str, key: &Key) -> StorageError {
        StorageError::new(StorageErrorKind::PermissionDenied, operation, key, "no")
    }

    async fn replace(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.memory.delete(key).await?;
        self.memory.put_new(key, body).await
    }
}

#[async_trait]
impl ObjectStore for Odd {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        match self.fault {
            Fault::IgnoresConditions => self.replace(key, body).await,
            Fault::RefusesAndStores => {
                let refused = self.memory.put_new(key, body.clone()).await;
                self.replace(key, body).await?;
                refused
            }
            _ => self.memory.put_new(key, body).await,
        }
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        if self.fault == Fault::MayNotRead {
            Err(Self::denied("get", key))
        } else {
            self.memory.get(key).await
        }
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        if self.fault == Fault::MayNotRead {
            return Err(Self::denied("get range", key));
        }
        self.memory.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.memory.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        if self.fault == Fault::ListsLate {
            return Memory::new().list_page(prefix, after).await;
        }
        self.memory.list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        match self.fault {
            Fault::MayOnlyAdd => Err(Self::denied("delete", key)),
            Fault::KeepsDeleted => Ok(()),
            _ => self.memory.delete(key).await,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { conditional_create: self.fault != Fault::HasNoCondition }
    }

    fn describe(&self) -> String {
        "odd".into()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        self.bucket.as_ref()?;
        Some(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Control for Odd {
    async fn server_time(&self) -> Result<SystemTime, StorageError> {
        Ok(noon() + self.ahead)
    }

    async fn bucket(&self) -> BucketFacts {
        self.bucket.clone().unwrap()
    }

    async fn overwrite(&self, key: &Key, body: Bytes) -> Result<Option<String>, StorageError> {
        if self.fault == Fault::MayOnlyAdd {
            return Err(Self::denied("put", key));
        }
        self.replace(key, body).await?;
        let keeps = self.bucket.as_ref().unwrap().versioning == Answer::Known(Versioning::Enabled);
        Ok(keeps.then(|| "v1".into()))
    }

    async fn delete_version(&self, key: &Key, version: &str) -> Result<(), StorageError> {
        if self.fault == Fault::None {
            self.destroyed.lock().unwrap().push(format!("{key}#{version}"));
            return Ok(());
        }
        Err(Self::denied("delete", key))
    }

    async fn retained_until(&self, _: &Key) -> Result<Option<SystemTime>, StorageError> {
        Ok(None)
    }

    async fn retain_until(&self, key: &Key, _: SystemTime) -> Result<(), StorageError> {
        Err(Self::denied("retain", key))
    }

    async fn tier(&self, _: &Key) -> Result<Tier, StorageError> {
        Ok(Tier::Ready)
    }

    async fn thaw(&self, key: &Key, _: u32, _: ThawSpeed) -> Result<(), StorageError> {
        Err(Self::denied("thaw", key))
    }
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

fn facts() -> BucketFacts {
    BucketFacts {
        versioning: Answer::Known(Versioning::Off),
        lock: Answer::Known(ObjectLock::Off),
        lifecycle: Answer::Known(Vec::new()),
        encryption: Answer::Known(None),
        undelete_days: Answer::Known(0),
        clears_uploads: false,
    }
}

async fn test(store: &Odd, role: Role) -> ProbeReport {
    let store: Arc<dyn ObjectStore> = Arc::new(store.clone());
    probe(&store, &ProbeOptions { role, prefix: "host", now: &noon }).await.unwrap()
}

#[tokio::test]
async fn an_honest_store_has_no_problems_and_is_left_empty() {
    let store = Odd::new(Fault::None).with_bucket(facts());
    let report = test(&store, Role::Keeper).await;
    assert_eq!(report.problems, [""; 0]);
    assert!(report.conditional_create() && store.memory.is_empty());
    let all = Rights {
        read: Right::Yes,
        list: Right::Yes,
        overwrite: Right::Yes,
        delete: Right::Yes,
        delete_version: Right::Unknown,
        read_packs: Right::Unknown,
    };
    assert_eq!(report.rights, all);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<ProbeReport>(&text).unwrap(), report);
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out() {
    for fault in [Fault::IgnoresConditions, Fault::RefusesAndStores] {
        let store = Odd::new(fault);
        let report = test(&store, Role::Keeper).await;
        assert!(!report.conditional_create() && !report.problems.is_empty(), "{fault:?}: {report:?}");
        assert!(list_all(&store, "").await.unwrap().is_empty(), "{fault:?}");
    }
}

/// Looking and then storing has one winner often enough.
#[tokio::test]
async fn a_store_that_has_no_condition_is_not_said_to_create_exclusively() {
    let report = test(&Odd::new(Fault::HasNoCondition), Role::Keeper).await;
    assert!(!report.conditional_create() && report.races == 0, "{report:?}");
    assert_eq!(report.problems, [""; 0]);
    assert!(report.notes.iter().any(|note| note.contains("--exclusive")), "{report:?}");
    assert!(!report.findings.iter().any(|finding| finding.contains("several keepers")), "{report:?}");
}

#[tokio::test]
async fn a_listing_that_lags_behind_is_a_problem() {
    let report = test(&Odd::new(Fault::ListsLate), Role::Keeper).await;
    assert!(report.problems.iter().any(|problem| problem.contains("listing")), "{report:?}");
}

#[tokio::test]
async fn a_writer_that_can_only_add_is_as_it_should_be() {
    let report = test(&Odd::new(Fault::MayOnlyAdd).with_bucket(facts()), Role::Writer).await;
    assert_eq!(report.problems, [""; 0]);
    assert_eq!((report.rights.delete, report.rights.overwrite), (Right::No, Right::No));
    for found in ["cannot delete: it was tried", "cannot overwrite: it was tried"] {
        assert!(report.findings.iter().any(|finding| finding.contains(found)), "{report:?}");
    }
    assert_eq!(report.races, 1);
}

#[tokio::test]
async fn a_writer_that_can_destroy_is_a_problem_unless_versions_stay() {
    let off = Odd::new(Fault::MayNotRead).with_bucket(facts());
    let report = test(&off, Role::Writer).await;
    assert_eq!(report.problems.len(), 2, "{report:?}"); // deletes, overwrites
    let versions = BucketFacts { versioning: Answer::Known(Versioning::Enabled), ..facts() };
    let report = test(&Odd::new(Fault::MayNotRead).with_bucket(versions.clone()), Role::Writer).await;
    assert_eq!(report.problems, [""; 0], "versions cannot be deleted");
    assert_eq!(report.rights.delete_version, Right::No);
    let store = Odd::new(Fault::None).with_bucket(versions);
    let report = test(&store, Role::Writer).await;
    assert_eq!(report.problems.len(), 3, "{report:?}");
    assert_eq!(store.destroyed.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_helps_is_something_that_the_store_has() {
    let bucket = test(&Odd::new(Fault::None).with_bucket(facts()), Role::Writer).await;
    assert!(bucket.problems.iter().all(|problem| problem.contains("keepwell policy writer")), "{bucket:?}");
    let server = test(&Odd::new(Fault::None), Role::Writer).await;
    let [deletes] = &server.problems[..] else { panic!("{server:?}") };
    assert!(deletes.contains("take snapshots") && !deletes.contains("policy"), "{deletes}");
}

#[tokio::test]
async fn whether_a_writer_reads_packs_is_tried_on_one_that_is_there() {
    for (fault, right) in [(Fault::MayNotRead, Right::No), (Fault::MayOnlyAdd, Right::Yes)] {
        let store = Odd::new(fault).with_bucket(facts());
        assert_eq!(test(&store, Role::Writer).await.rights.read_packs, Right::Unknown, "there is none");
        store.memory.put_new(&"data/00/pack".parse().unwrap(), "sealed".into()).await.unwrap();
        let report = test(&store, Role::Writer).await;
        assert_eq!(report.rights.read_packs, right);
        let says = |texts: &[String], part| texts.iter().any(|text| text.contains(part));
        assert_eq!(says(&report.findings, "cannot read what backups consist of"), right == Right::No);
        assert_eq!(says(&report.notes, "can read data packs"), right == Right::Yes);
    }
}

#[tokio::test]
async fn a_keeper_that_cannot_delete_is_told() {
    let report = test(&Odd::new(Fault::MayOnlyAdd), Role::Keeper).await;
    assert_eq!(report.rights.delete, Right::No);
    assert!(report.notes.iter().any(|note| note.contains("`prune` does not")), "{report:?}");
    let report = test(&Odd::new(Fault::KeepsDeleted), Role::Keeper).await;
    assert_eq!(report.rights.delete, Right::No, "it said that it was done");
}

#[tokio::test]
async fn rules_that_expire_our_objects_are_problems_and_others_are_not() {
    let rule = |prefix: &str| LifecycleRule {
        id: "clean up".into(),
        enabled: true,
        prefix: prefix.into(),
        expires: Some(When::Days(30)),
        ..LifecycleRule::default()
    };
    for (prefix, problems) in [("host/", 1), ("", 1), ("other/", 0)] {
        let bucket = BucketFacts { lifecycle: Answer::Known(vec![rule(prefix)]), ..facts() };
        let report = test(&Odd::new(Fault::None).with_bucket(bucket), Role::Keeper).await;
        assert_eq!(report.problems.len(), problems, "{prefix:?}: {report:?}");
    }
}

#[tokio::test]
async fn clocks_that_differ_are_told_by_how_much() {
    for (ahead, notes, problems) in [(30, 0, 0), (90, 1, 0), (1000, 0, 1)] {
        let store = Odd { ahead: Duration::from_secs(ahead), ..Odd::new(Fault::None).with_bucket(facts()) };
        let report = test(&store, Role::Keeper).await;
        let about =
            |texts: &[String]| texts.iter().filter(|text| text.contains(&format!("{ahead} seconds"))).count();
        assert_eq!((about(&report.notes), about(&report.problems)), (notes, problems), "{report:?}");
        assert_eq!(report.bucket.unwrap().clock_ahead_seconds, Some(ahead.cast_signed()));
    }
}

#[tokio::test]
async fn what_may_not_be_asked_is_said() {
    let bucket = BucketFacts {
        versioning: Answer::Denied("s3:GetBucketVersioning"),
        lock: Answer::Unknown("the store answered 501".into()),
        lifecycle: Answer::Denied("s3:GetLifecycleConfiguration"),
        encryption: Answer::Denied("s3:GetEncryptionConfiguration"),
        undelete_days: Answer::Denied("s3:None"),
        clears_uploads: false,
    };
    let report = test(&Odd::new(Fault::None).with_bucket(bucket), Role::Keeper).await;
    assert_eq!(report.notes.iter().filter(|note| note.starts_with("Not checked")).count(), 4, "{report:?}");
    let named = "Not checked: versions (these credentials lack s3:GetBucketVersioning).";
    assert!(report.notes.iter().any(|note| note == named), "{report:?}");
}

#[tokio::test]
async fn what_the_bucket_keeps_of_deleted_objects_is_said_and_a_short_time_noted() {
    for (days, finding, note) in [(0, 0, 0), (7, 0, 1), (30, 1, 0)] {
        let bucket = BucketFacts { undelete_days: Answer::Known(days), ..facts() };
        let report = test(&Odd::new(Fault::None).with_bucket(bucket), Role::Keeper).await;
        let about =
            |texts: &[String]| texts.iter().filter(|text| text.contains("keeps what is deleted")).count();
        assert_eq!((about(&report.findings), about(&report.notes)), (finding, note), "{days}: {report:?}");
        let none = report.notes.iter().any(|text| text.contains("keeps no old versions"));
        assert_eq!(none, days == 0, "{report:?}");
    }
}

#[tokio::test]
async fn a_refusal_that_age_explains_is_no_comfort() {
    let bucket = BucketFacts { lock: Answer::Known(ObjectLock::Retention { days: 3 }), ..facts() };
    for role in [Role::Keeper, Role::Writer] {
        let store = Odd::new(Fault::MayOnlyAdd).with_bucket(bucket.clone());
        let report = test(&store, role).await;
        assert!(report.notes.iter().any(|note| note.contains("3 days old: whether")), "{report:?}");
        assert!(!report.notes.iter().any(|note| note.contains("may not delete")), "{report:?}");
        assert!(!report.findings.iter().any(|finding| finding.contains("tried, and refused")), "{report:?}");
        assert_eq!(report.bucket.unwrap().object_lock, Some(false));
    }
}

#[tokio::test]
async fn a_service_that_clears_uploads_needs_no_rule_for_them() {
    for (clears, notes) in [(false, 1), (true, 0)] {
        let bucket = BucketFacts { clears_uploads: clears, ..facts() };
        let report = test(&Odd::new(Fault::None).with_bucket(bucket), Role::Keeper).await;
        assert_eq!(report.notes.iter().filter(|note| note.contains("broken off")).count(), notes);
    }
}
