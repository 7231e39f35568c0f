//! Rules of copies over months of a simulated clock.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use backup_core::env::Clock;
use backup_core::{Approval, BackupOptions, Checked, Retirement, Snapshot};
use keepwell_storage::Memory;

use super::*;
use crate::{select, testing};

const DAY: i64 = 24 * 3600 * 1_000_000_000;
/// A Monday: 2026-11-02.
const BEGIN: i64 = 20_759 * DAY;

#[derive(Debug, Default)]
struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

struct Agrees;

impl Approval for Agrees {
    type Error = backup_core::Error;
}

async fn open_at(store: &Memory, key: &KeyFile, clock: &Arc<SetClock>) -> Repository {
    let clock: Arc<dyn Clock> = Arc::<SetClock>::clone(clock);
    Repository::builder(Arc::new(store.clone())).clock(clock).open(key.clone()).await.unwrap()
}

/// Backs up a directory on a day, with a file that is another one each day.
async fn back_up(repository: &Repository, clock: &SetClock, tree: &Path, day: i64, dataset: &str) {
    clock.0.store(BEGIN + day * DAY, Ordering::SeqCst);
    std::fs::write(tree.join("day"), day.to_string()).unwrap();
    let options = BackupOptions { dataset: dataset.into(), host: "here".into(), ..BackupOptions::default() };
    testing::back_up(repository, tree, options).await;
}

fn days(snapshots: &[Snapshot]) -> Vec<i64> {
    snapshots.iter().map(|s| (select::taken(s) - BEGIN) / DAY).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_copy_has_its_own_choice_and_its_own_memory() {
    let configs: Vec<CopyConfig> = [
        "to = \"local\"\nretention = { within = \"6d\" }",
        "to = \"cloud\"\nwithin = \"30d\"\nretention = { within = \"30d\" }",
        "to = \"archive\"\nonly = \"weekly\"\nretention = { within = \"7y\" }",
        "to = \"few\"\nonly = \"monthly\"\nhosts = [\"elsewhere\"]",
    ]
    .map(|text| toml::from_str(text).unwrap())
    .into();
    let clock = Arc::new(SetClock::default());
    let origin = Memory::new();
    let key = testing::make(&origin).await;
    let repository = open_at(&origin, &key, &clock).await;
    let mut copies = Vec::new();
    for _ in &configs {
        let store = Memory::new();
        repository.create_copy(&store).await.unwrap();
        copies.push(open_at(&store, &key, &clock).await);
    }
    let tree = tempfile::tempdir().unwrap();
    let mut copied = vec![0; configs.len()];
    for day in 0..60 {
        back_up(&repository, &clock, tree.path(), day, "d").await;
        let snapshots = repository.snapshots().await.unwrap();
        for (n, (config, copy)) in configs.iter().zip(&copies).enumerate() {
            let now = clock.now();
            let there = copy.snapshots().await.unwrap();
            let rules = rules(config);
            let wanted = rules.wanted(now, &snapshots, &there, &Checked::default());
            copied[n] += repository.copy_to_store(copy, &wanted).await.unwrap().copied.len();
            let there = copy.snapshots().await.unwrap();
            let going = rules.going(now, &there, &Checked::default());
            if !going.is_empty() {
                copy.forget(&going).await.unwrap();
            }
        }
    }
    let mut held = Vec::new();
    for copy in &copies {
        held.push(days(&copy.snapshots().await.unwrap()));
    }
    assert_eq!(held[0], (53..60).collect::<Vec<_>>(), "a week");
    assert_eq!(held[1], (29..60).collect::<Vec<_>>(), "thirty days and the day before");
    assert_eq!(held[2], [0, 7, 14, 21, 28, 35, 42, 49, 56], "the first of each week");
    assert_eq!(held[3], [] as [i64; 0]);
    assert_eq!(copied, [60, 60, 9, 0], "what was forgotten is not copied again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_weeks_takes_one_of_each_though_the_repository_forgets() {
    let config: CopyConfig =
        toml::from_str("to = \"archive\"\nonly = \"weekly\"\nretention = { within = \"7y\" }").unwrap();
    let ten_days: CopyConfig = toml::from_str("to = \"here\"\nretention = { within = \"9d\" }").unwrap();
    let clock = Arc::new(SetClock::default());
    let (origin, same, other) = (Memory::new(), Memory::new(), Memory::new());
    let key = testing::make(&origin).await;
    let other_key = testing::make(&other).await;
    let repository = open_at(&origin, &key, &clock).await;
    repository.create_copy(&same).await.unwrap();
    let (same, other) = (open_at(&same, &key, &clock).await, open_at(&other, &other_key, &clock).await);
    let tree = tempfile::tempdir().unwrap();
    for day in 0..35 {
        back_up(&repository, &clock, tree.path(), day, "d").await;
        rules(&ten_days).retire(clock.now(), &repository, None, &mut Agrees).await.unwrap();
        let snapshots = repository.snapshots().await.unwrap();
        let there = same.snapshots().await.unwrap();
        let wanted = rules(&config).wanted(clock.now(), &snapshots, &there, &Checked::default());
        repository.copy_to_store(&same, &wanted).await.unwrap();
        // On Sundays only: what it gets of a week, it gets after the whole of it.
        if day % 7 == 6 {
            let there = other.snapshots().await.unwrap();
            let wanted = rules(&config).wanted(clock.now(), &snapshots, &there, &Checked::default());
            let done = repository.copy_snapshots(&other, &wanted, &BackupOptions::default()).await.unwrap();
            assert!(done.failed.is_empty(), "{:?}", done.failed);
        }
    }
    let held = async |copy: &Repository| days(&copy.snapshots().await.unwrap());
    assert_eq!(held(&repository).await, (25..35).collect::<Vec<_>>());
    assert_eq!(held(&same).await, [0, 7, 14, 21, 28]);
    assert_eq!(held(&other).await, [0, 7, 14, 21, 28], "with other keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_forgets_only_what_its_own_rules_are_about() {
    let clock = Arc::new(SetClock::default());
    let store = Memory::new();
    let key = testing::make(&store).await;
    let copy = open_at(&store, &key, &clock).await;
    let tree = tempfile::tempdir().unwrap();
    for (day, dataset) in (0..).zip(["home", "home", "mail", "mail", "mail"]) {
        back_up(&copy, &clock, tree.path(), day, dataset).await;
    }
    let config: CopyConfig =
        toml::from_str("to = \"x\"\ndatasets = [\"home\"]\nretention = { last = 1 }").unwrap();
    let there = copy.snapshots().await.unwrap();
    let newest = |now: i64| rules(&config).newest(now, &there).map(|newest| (newest - BEGIN) / DAY);
    assert_eq!(newest(clock.now()), Some(1), "mail is not its business");
    assert_eq!(newest(BEGIN + DAY / 2), Some(0), "nor what is from the future");
    let everything = |dataset: &str| CopyRules { datasets: vec![dataset.to_owned()], ..CopyRules::default() };
    let beside = |dataset| CopyRules { beside: vec![everything(dataset)], ..rules(&config) };
    assert_eq!(
        beside("home").going(clock.now(), &there, &Checked::default()).len(),
        0,
        "another copy there keeps it"
    );
    assert_eq!(beside("mail").going(clock.now(), &there, &Checked::default()).len(), 1);
    let done = rules(&config).retire(clock.now(), &copy, None, &mut Agrees).await.unwrap();
    assert_eq!(done, Retirement { forgotten: 1, bytes_freed: 0 });
    assert_eq!(days(&copy.snapshots().await.unwrap()), [1, 2, 3, 4]);
}

#[test]
fn no_place_is_a_copy_of_itself() {
    let ctx = Context::of_profiles(
        "[profile.default]\nrepository = \"/srv/own\"\n[[profile.default.copy]]\nto = \"/mnt/near\"\n\
         [[profile.default.copy]]\nto = \"/mnt/other\"\nkey-file = \"/mnt/key\"\n",
    );
    let count = |place: &str| sources(&ctx, &Location::parse(place).unwrap()).count();
    assert_eq!((count("/srv/own"), count("/mnt/near"), count("/mnt/other")), (1, 0, 1));
    let ctx = Context::of_profiles("[[profile.default.copy]]\nto = \"s3://b/x?cold-class=GLACIER\"\n");
    assert_eq!(sources(&ctx, &Location::parse("s3://b/x").unwrap()).count(), 0, "however it is written");
}
