//! Clocks that are wrong, and snapshots that are published again.

use std::sync::Arc;

use keepwell_catalog::retention::Slots;
use keepwell_storage::Memory;

use super::*;
use crate::env::{Clock, SystemClock};
use crate::testing::{MemorySource, SetClock, Thing, TreeModel, World, back_up, noise, options};
use crate::{BackupOptions, Repository, RewriteOptions};

const DAY: i64 = 24 * 3600 * 1_000_000_000;
const YEAR: i64 = 365 * DAY;

/// A tree with one file of so many bytes.
fn tree(bytes: usize) -> TreeModel {
    TreeModel::default().with("file", Thing::file(noise(7, bytes)))
}

/// Backs up at these times by the writer's clock.
async fn back_up_at(repository: &Repository, clock: &SetClock, times: &[i64]) {
    for time in times {
        clock.set(*time);
        back_up(repository, &tree(5000)).await;
    }
}

fn last(n: u32) -> RetentionPolicy {
    RetentionPolicy { last: Some(Slots::Newest(n)), ..RetentionPolicy::default() }
}

fn kept(verdicts: &[Verdict<'_>]) -> Vec<bool> {
    verdicts.iter().map(|verdict| verdict.keep).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_changes_no_order_and_makes_nothing_go() {
    let world = World::new().await;
    let clock = Arc::new(SetClock::default());
    let repository = world.open_with(clock.clone()).await;
    let times = [YEAR, YEAR + DAY, 0, 20 * YEAR, YEAR + 2 * DAY, YEAR + 3 * DAY];
    back_up_at(&repository, &clock, &times).await;
    let snapshots = repository.snapshots().await.unwrap();
    let captured: Vec<i64> = snapshots.iter().map(|s| s.manifest().unwrap().capture_end).collect();
    assert_eq!(captured, times, "in the order in which they were written");
    let verdicts = retain(&last(2), YEAR + 3 * DAY, &snapshots, &Checked::default());
    let anomalies: Vec<bool> = verdicts.iter().map(|verdict| verdict.anomaly.is_some()).collect();
    assert_eq!(anomalies, [false, false, true, true, false, false]);
    assert_eq!(kept(&verdicts), [false, true, true, true, true, true], "{verdicts:?}");
}

/// Two hours around midnight in UTC are one morning in Tokyo.
#[tokio::test(flavor = "multi_thread")]
async fn the_zone_of_a_flagged_snapshot_brings_no_others_into_one_day() {
    let world = World::new().await;
    let clock = Arc::new(SetClock::default());
    let repository = world.open_with(clock.clone()).await;
    let hour = DAY / 24;
    back_up_at(&repository, &clock, &[YEAR - hour, YEAR + hour, YEAR + 5 * DAY]).await;
    clock.set(20 * YEAR);
    let source = Arc::new(MemorySource::new(tree(5000)));
    let elsewhere = BackupOptions { time_zone: "Asia/Tokyo".into(), ..options("data") };
    repository.backup(source, elsewhere).await.unwrap();

    let snapshots = repository.snapshots().await.unwrap();
    let policy = RetentionPolicy { daily: Some(Slots::Forever), ..RetentionPolicy::default() };
    let verdicts = retain(&policy, YEAR + 6 * DAY, &snapshots, &Checked::default());
    assert!(verdicts[3].anomaly.is_some(), "{verdicts:?}");
    assert_eq!(kept(&verdicts), [true; 4], "{verdicts:?}");
    let later = retain(&policy, 21 * YEAR, &snapshots, &Checked::default());
    assert_eq!(kept(&later), [true, false, true, true], "now it counts: {later:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_that_is_rewritten_or_copied_late_keeps_its_place() {
    let world = World::new().await;
    let clock = Arc::new(SetClock::default());
    let repository = world.open_with(clock.clone()).await;
    let times = [YEAR, YEAR + DAY, YEAR + 2 * DAY];
    back_up_at(&repository, &clock, &times).await;
    let before = repository.snapshots().await.unwrap();

    let options = RewriteOptions { tags: vec!["new".into()], ..RewriteOptions::of(&before[0]).unwrap() };
    let rewritten = repository.rewrite(&before[0], options).await.unwrap().snapshot;
    repository.forget(&[(&before[0], "written anew".into())]).await.unwrap();
    let after = repository.snapshots().await.unwrap();
    let ids: Vec<_> = after.iter().map(|s| s.id).collect();
    assert_eq!(ids, [rewritten.id, before[1].id, before[2].id]);
    assert_eq!(kept(&retain(&last(1), YEAR + 2 * DAY, &after, &Checked::default())), [false, false, true]);

    // Into a copy the newest goes first, and the oldest last.
    let store = Arc::new(Memory::new());
    repository.create_copy(&*store).await.unwrap();
    let copy = Repository::builder(store).open(world.key.clone()).await.unwrap();
    for snapshot in after.iter().rev() {
        repository.copy_to_store(&copy, std::slice::from_ref(snapshot)).await.unwrap();
    }
    let copied = copy.snapshots().await.unwrap();
    assert_eq!(copied.iter().map(|s| s.id).collect::<Vec<_>>(), ids);
    let verdicts = retain(&last(1), SystemClock.now(), &copied, &Checked::default());
    assert!(verdicts.iter().all(|verdict| verdict.anomaly.is_none()), "{verdicts:?}");
    assert_eq!(kept(&verdicts), [false, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_lost_most_of_its_bytes_is_flagged_and_safety_snapshots_are_not() {
    let world = World::new().await;
    for (dataset, flagged) in [("data", true), (SAFETY_DATASET, false)] {
        for bytes in [5000, 1000] {
            let source = Arc::new(MemorySource::new(tree(bytes)));
            world.repository.backup(source, options(dataset)).await.unwrap();
        }
        let snapshots = world.repository.snapshots().await.unwrap();
        let verdicts =
            retain(&last(1), SystemClock.now(), &snapshots[snapshots.len() - 2..], &Checked::default());
        assert_eq!(verdicts[1].anomaly.is_some(), flagged, "{dataset}");
        assert_eq!(verdicts[0].keep, flagged, "{dataset}");
        assert!(verdicts[1].keep);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_cannot_read_has_no_say_about_its_place() {
    let world = World::new().await;
    let clock = Arc::new(SetClock::default());
    let repository = world.open_with(clock.clone()).await;
    back_up_at(&repository, &clock, &[YEAR, YEAR + DAY]).await;
    let snapshots = repository.snapshots().await.unwrap();
    let writer = world.enrol_writer().await;
    let origin = repository.origin_for(&snapshots[0]).await.unwrap();
    let of = |writer| keepwell_catalog::Commit {
        writer,
        origin: Some(origin.clone()),
        ..snapshots[1].commit.clone()
    };
    let own = snapshots[1].commit.writer;
    assert_eq!(repository.first_commit(&of(own)), snapshots[0].first);
    let hostile = of(writer.access().member().unwrap());
    let repository = world.open(&world.key).await; // which knows of the writer
    assert_eq!(repository.first_commit(&hostile).writer, hostile.writer);
}
