//! Each role gets by with what its policy grants.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{BackupOptions, Cache};
use keepwell_catalog::access::{Action, Role};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;

use keepwell_e2e::guarded::Guarded;
use keepwell_e2e::world::{
    self, LIMITS, World, assert_sound, back_up, back_up_with, forget, open, options, restored, snapshot_of,
    thorough,
};
use keepwell_storage::{Fault, Faulty, RetryPolicy, Retrying};

async fn writer(world: &World, name: &str) -> (KeyFile, Role) {
    let repository = world.open().await;
    let key = world::enroll(&repository, name, Roles::WRITER).await;
    let opened = open(Arc::new(world.store.clone()), &key, Cache::memory(), LIMITS).await.unwrap();
    (key, Role::Writer(Some(opened.access().member().unwrap())))
}

fn fill(dir: &std::path::Path, seed: u8) {
    for n in 0..20_u8 {
        fs::write(dir.join(format!("file {n}")), vec![n ^ seed; 5000 + 1000 * usize::from(n)]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_backs_up_with_what_its_policy_grants() {
    let world = World::new().await;
    let (key, role) = writer(&world, "host1").await;
    let (other, other_role) = writer(&world, "host2").await;
    let source = tempfile::tempdir().unwrap();
    fill(source.path(), 1);
    let guarded = Arc::new(Guarded::new(world.store.clone(), role));

    let first = open(guarded.clone(), &key, Cache::memory(), LIMITS).await.unwrap();
    back_up(&first, source.path()).await.unwrap();
    // Another host at work, a keeper between, a cache that was lost, checkpoints, and a capture that is broken off.
    let second = Arc::new(Guarded::new(world.store.clone(), other_role));
    back_up(&open(second.clone(), &other, Cache::memory(), LIMITS).await.unwrap(), source.path())
        .await
        .unwrap();
    let keeper = world.open().await;
    let snapshots = keeper.snapshots().await.unwrap();
    forget(&keeper, &snapshots[..1]).await.unwrap();
    keeper.prune(thorough()).await.unwrap();
    fill(source.path(), 2);
    let again = open(guarded.clone(), &key, Cache::memory(), LIMITS).await.unwrap();
    let often = BackupOptions { checkpoint_every: Duration::ZERO, ..options() };
    let report = back_up_with(&again, source.path(), often).await.unwrap();

    assert_eq!(guarded.refused(), [""; 0]);
    assert_eq!(second.refused(), [""; 0]);
    // These are read back after a lost answer, `doctor` uses `probe/`, and only who archives a log uses `wal/`.
    let rare = |grant: &&keepwell_catalog::access::Grant| {
        ["sessions", "lists", "probe", "wal"].iter().any(|top| grant.prefix.starts_with(top))
    };
    let unused: Vec<_> = guarded.unused().into_iter().filter(|grant| !rare(grant)).collect();
    assert_eq!(unused, [] as [&keepwell_catalog::access::Grant; 0], "granted, and never needed");
    let snapshot = snapshot_of(&keeper, &report).await;
    assert_eq!(restored(&keeper, &snapshot, source.path()).await, keepwell_e2e::tree::read(source.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_restores_and_checks_with_what_its_policy_grants() {
    let world = World::new().await;
    let source = tempfile::tempdir().unwrap();
    fill(source.path(), 1);
    let report = back_up(&world.open().await, source.path()).await.unwrap();
    let key = world::enroll(&world.open().await, "reader", Roles::READER).await;
    let guarded = Arc::new(Guarded::new(world.store.clone(), Role::Reader));
    let reader = open(guarded.clone(), &key, Cache::memory(), LIMITS).await.unwrap();
    let snapshot = snapshot_of(&reader, &report).await;
    assert_eq!(restored(&reader, &snapshot, source.path()).await, keepwell_e2e::tree::read(source.path()));
    assert_sound(&reader, "as a reader").await;
    assert_eq!(guarded.refused(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_prunes_with_what_its_policy_grants() {
    let world = World::new().await;
    let source = tempfile::tempdir().unwrap();
    for seed in 1..4 {
        fill(source.path(), seed);
        back_up(&world.open().await, source.path()).await.unwrap();
    }
    let guarded = Arc::new(Guarded::new(world.store.clone(), Role::Keeper));
    let keeper = world.open_with(guarded.clone(), Cache::memory()).await.unwrap();
    let snapshots = keeper.snapshots().await.unwrap();
    forget(&keeper, &snapshots[..2]).await.unwrap();
    keeper.prune(thorough()).await.unwrap();
    assert_eq!(guarded.refused(), [""; 0]);
    assert!(guarded.unused().iter().all(|grant| grant.action != Action::Delete));
    assert_sound(&world.open().await, "after the prune").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_may_not_read_its_packs_survives_every_lost_answer() {
    let world = World::new().await;
    let (key, role) = writer(&world, "host1").await;
    let source = tempfile::tempdir().unwrap();
    fill(source.path(), 1);
    let policy = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    for call in 1.. {
        let world = world.fork();
        let guarded = Arc::new(Guarded::new(world.store.clone(), role));
        let faulty = Arc::new(Faulty::new(Arc::clone(&guarded), Fault::LostResponse(call)));
        let store = Arc::new(Retrying::new(Arc::clone(&faulty), policy));
        let host = open(store, &key, Cache::memory(), LIMITS).await.unwrap();
        let report = back_up(&host, source.path()).await;
        report.unwrap_or_else(|error| panic!("call {call}: {error}: refused {:?}", guarded.refused()));
        let lost_pack = |text: &String| text.starts_with("get data/") || text.starts_with("get meta/");
        let lost = |text: &String| lost_pack(text) || text.starts_with("get manifests/");
        assert!(guarded.refused().iter().all(lost), "call {call}: {:?}", guarded.refused());
        if !faulty.fired() {
            assert!(call > 15, "it takes more calls than {call}");
            break;
        }
    }
}
