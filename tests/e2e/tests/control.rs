//! What real servers answer about versions, locks and archives.
//!
//! `KEEPWELL_TEST_SERVERS` names the servers, as for `stores.rs`.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use keepwell_e2e::server::{Server, open};
use keepwell_storage::{
    Answer, Control, Key, ObjectLock, ObjectStore, RetryPolicy, StorageErrorKind, ThawSpeed, Tier, Versioning,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn store(server: &Server, bucket: &str, parameters: &str) -> (Arc<dyn ObjectStore>, Arc<dyn Control>) {
    let location = format!("s3://{}/control{parameters}", server.value(bucket));
    let store = open(&location, &server.s3_options(None), RetryPolicy::default()).await;
    let control = store.control().unwrap();
    (store, control)
}

fn key(name: &str) -> Key {
    name.parse().unwrap()
}

/// What is overwritten stays as an older version, which is removed for good by its id alone.
async fn versions(server: &Server) {
    let (plain, of_plain) = store(server, "BUCKET", "").await;
    let (store, control) = store(server, "VERSIONED_BUCKET", "").await;
    assert_eq!(control.bucket().await.versioning, Answer::Known(Versioning::Enabled));
    assert_eq!(of_plain.bucket().await.versioning, Answer::Known(Versioning::Off));
    let name = key("versions/x");
    store.put_new(&name, "first".into()).await.unwrap();
    let second = control.overwrite(&name, "second".into()).await.unwrap().expect("the id of a version");
    assert_eq!(store.get(&name).await.unwrap(), "second");
    control.delete_version(&name, &second).await.unwrap();
    assert_eq!(store.get(&name).await.unwrap(), "first");
    plain.put_new(&name, "first".into()).await.unwrap();
    assert_eq!(of_plain.overwrite(&name, "second".into()).await.unwrap(), None);
}

/// A lock grows and never shrinks, and a bucket without locks says so.
async fn locks(server: &Server) {
    let (plain, of_plain) = store(server, "BUCKET", "").await;
    let (store, control) = store(server, "LOCKED_BUCKET", "").await;
    assert_eq!(control.bucket().await.lock, Answer::Known(ObjectLock::On));
    assert_eq!(of_plain.bucket().await.lock, Answer::Known(ObjectLock::Off));
    let name = key("locks/x");
    store.put_new(&name, "x".into()).await.unwrap();
    assert_eq!(control.retained_until(&name).await.unwrap(), None);
    let now = control.server_time().await.unwrap();
    for (asked, expected) in
        [(now + DAY, now + DAY), (now + 2 * DAY, now + 2 * DAY), (now + DAY, now + 2 * DAY)]
    {
        control.retain_until(&name, asked).await.unwrap();
        assert_eq!(control.retained_until(&name).await.unwrap(), Some(whole_seconds(expected)));
    }
    let missing = control.retained_until(&key("locks/none")).await.unwrap_err();
    assert_eq!(missing.kind, StorageErrorKind::NotFound, "{missing}");
    plain.put_new(&name, "x".into()).await.unwrap();
    assert_eq!(of_plain.retained_until(&name).await.unwrap(), None);
    let refused = of_plain.retain_until(&name, now + DAY).await.unwrap_err();
    assert_eq!(refused.kind, StorageErrorKind::Invalid, "{refused}");
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Large data packs go to the archive, are refused there, and can be read once they are thawed.
async fn archive(server: &Server) {
    let (store, control) = store(server, "BUCKET", "?cold-class=GLACIER").await;
    let (large, small, meta) = (key("data/large"), key("data/small"), key("meta/large"));
    let body = Bytes::from(vec![7; 4 << 20]);
    store.put_new(&large, body.clone()).await.unwrap();
    store.put_new(&meta, body.clone()).await.unwrap();
    store.put_new(&small, "small".into()).await.unwrap();
    for (name, tier) in [(&large, Tier::Archived), (&small, Tier::Ready), (&meta, Tier::Ready)] {
        assert_eq!(control.tier(name).await.unwrap(), tier, "{name}");
    }
    let refused = store.get(&large).await.unwrap_err();
    assert_eq!(refused.kind, StorageErrorKind::Archived, "{refused}");
    control.thaw(&large, 1, ThawSpeed::Bulk).await.unwrap();
    assert!(control.tier(&large).await.unwrap().is_readable());
    assert_eq!(store.get(&large).await.unwrap(), body);
}

#[tokio::test(flavor = "multi_thread")]
async fn moto() {
    let Some(server) = Server::start("moto") else { return };
    versions(&server).await;
    println!("skipped: locks, since moto does not tell until when an object is locked");
    archive(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph() {
    let Some(server) = Server::start("ceph") else { return };
    versions(&server).await;
    locks(&server).await;
    println!("skipped: the archive, since this Ceph has no storage class that must be thawed");
}
