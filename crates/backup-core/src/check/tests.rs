//! What a check says of damage in packs, and what of it is remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_catalog::names::{self, PlanName};
use keepwell_catalog::retention::{RetentionPolicy, Slots};
use keepwell_catalog::{IndexEntry, PackClass, PackRef};
use keepwell_crypto::{ChunkId, DomainId};
use keepwell_storage::{Key, Memory, ObjectStore, Operation};

use super::history::MISSING_MAX;
use super::{CheckOptions, CheckReport, ReadData, remembered_proofs, scrub};
use crate::env::{Clock, SystemClock, Timestamp};
use crate::monitor::Monitor;
use crate::repository::read_plans;
use crate::testing::{
    Hook, Hooked, Thing, TreeModel, World, back_up, block_on, data_pack, noise, say, say_malformed,
    snapshot_of,
};
use crate::write::{Session, fence};
use crate::{BackupReport, Cache, Cancel, Error, Limits, PruneOptions, Repository, Verdict, retain};

const EVERYTHING: CheckOptions = CheckOptions { read: ReadData::Everything };

/// Flips a bit in the middle of a stored object.
async fn flip(world: &World, name: &str) {
    let key = name.parse().unwrap();
    let mut bytes = world.store.get(&key).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.delete(name).await;
    world.store.put_new(&key, Bytes::from(bytes)).await.unwrap();
}

fn tree(name: &str, seed: u64) -> TreeModel {
    TreeModel::default().with(name, Thing::file(noise(seed, 20_000)))
}

/// Two backups; the report of the first, and the pack with its data.
async fn two_backups() -> (World, BackupReport, String) {
    let world = World::new().await;
    let first = back_up(&world.repository, &tree("one", 1)).await;
    let [pack] = <[String; 1]>::try_from(world.names("data/").await).unwrap();
    back_up(&world.repository, &tree("other", 2)).await;
    (world, first, pack)
}

/// Whether findings are about this object, and about no other.
fn is_only_about(report: &CheckReport, object: &Key) -> bool {
    let mut objects = report.findings.iter().map(|finding| finding.object.as_str());
    !report.findings.is_empty() && objects.all(|found| found == object.as_str())
}

#[test]
fn damage_in_a_pack_is_told_by_snapshot_and_path() {
    block_on(async {
        let world = World::new().await;
        let damaged = back_up(&world.repository, &tree("d/one", 1)).await;
        let [pack] = <[String; 1]>::try_from(world.names("data/").await).unwrap();
        let sound = back_up(&world.repository, &tree("d/other", 2)).await;
        flip(&world, &pack).await;
        let report = world.open(&world.key).await.check(EVERYTHING).await.unwrap();
        assert!(report.findings.iter().any(|finding| finding.object == pack), "{:?}", report.findings);
        assert_eq!(report.damaged_snapshots, [damaged.snapshot.to_string()].into(), "not {sound:?}");
        let [path] = <[String; 1]>::try_from(report.damaged_paths).unwrap();
        assert!(path.ends_with("d/one"), "{path}");

        // What is lost, and not where, is the same: the pack is gone, and nothing is read.
        world.delete(&pack).await;
        let gone = world.open(&world.key).await.check(CheckOptions::default()).await.unwrap();
        assert_eq!(gone.damaged_snapshots, report.damaged_snapshots);
        assert_eq!(gone.damaged_paths, [path]);
    });
}

#[test]
fn what_counts_is_looked_at_once_for_all_that_is_damaged() {
    block_on(async {
        let world = World::new().await;
        let mut model = tree("one", 1);
        back_up(&world.repository, &model).await;
        let [pack] = <[String; 1]>::try_from(world.names("data/").await).unwrap();
        for seed in 2..10 {
            model = model.with(&format!("f{seed}"), Thing::file(noise(seed, 3_000)));
            back_up(&world.repository, &model).await;
        }
        world.delete(&pack).await;
        let repository = world.open(&world.key).await;
        world.store.reset();
        let report = repository.check(CheckOptions::default()).await.unwrap();
        assert_eq!((report.damaged_snapshots.len(), report.damaged_paths.len()), (9, 9));
        let asked = world.store.reset().under(Operation::List, "retired").calls;
        assert!(asked < 9, "{asked} listings");
    });
}

#[test]
fn damage_to_what_no_snapshot_needs_affects_none() {
    block_on(async {
        let (world, first, pack) = two_backups().await;
        let snapshots = world.repository.snapshots().await.unwrap();
        let going = snapshots.iter().find(|snapshot| snapshot.id == first.snapshot).unwrap();
        world.repository.forget(&[(going, "test".into())]).await.unwrap();
        flip(&world, &pack).await;
        let report = world.open(&world.key).await.check(EVERYTHING).await.unwrap();
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert!(report.damaged_snapshots.is_empty() && report.damaged_paths.is_empty(), "{report:?}");
    });
}

/// Whoever says of a pack that it lies in a domain that nobody has keys for neither ends the check nor makes what is true of
/// the pack look lost.
#[test]
fn what_is_said_falsely_of_a_pack_affects_no_snapshot() {
    for first in [false, true] {
        block_on(async {
            let (world, hostile, _) = World::attacked(&tree("one", 1)).await;
            let (pack, mut entries) = data_pack(&world.repository);
            let nobodys = IndexEntry { id: ChunkId::from_bytes([0xff; 32]), ..entries[0] };
            entries.push(nobodys);
            let lie = PackRef { domain: DomainId::from_bytes([9; 4]), ..pack };
            let segment = say(&hostile, PackClass::Data, lie, &entries, first).await;
            let report = world.open(&world.key).await.check(EVERYTHING).await.unwrap();
            assert!(is_only_about(&report, &segment), "{:?}", report.findings);
            assert!(report.damaged_snapshots.is_empty() && report.damaged_paths.is_empty(), "{report:?}");
        });
    }
}

/// One that is too large to be decoded when it is opened.
#[test]
fn a_large_segment_that_is_malformed_is_damage_and_stops_nothing() {
    block_on(async {
        let (world, hostile, _) = World::attacked(&tree("one", 1)).await;
        let (pack, _) = data_pack(&world.repository);
        let segment = say_malformed(&hostile, pack, 100_000).await;
        let repository = world.open(&world.key).await;
        let report = repository.check(EVERYTHING).await.unwrap();
        assert!(is_only_about(&report, &segment), "{:?}", report.findings);
        assert!(report.damaged_snapshots.is_empty(), "{report:?}");

        back_up(&repository, &tree("other", 2)).await;
        repository.prune(PruneOptions::default()).await.unwrap();
        let cached = repository.cache().list("index");
        assert!(cached.iter().all(|name| !segment.as_str().ends_with(name.as_str())), "{cached:?}");
    });
}

/// Whoever has a key, or may create objects, can use the largest of them.
#[test]
fn numbers_that_nobody_reached_are_no_endless_findings() {
    block_on(async {
        let world = World::new().await;
        let hostile = world.enrol_writer().await;
        let (writer, largest) = (hostile.writer().unwrap(), names::NUMBER_MAX - 1);
        assert!(fence(&hostile, writer, largest, Vec::new()).await.unwrap());
        let planted = Bytes::from_static(b"planted");
        world.store.put_new(&names::retired_key(largest), planted).await.unwrap();
        let report = world.open(&world.key).await.examine(ReadData::Nothing).await.unwrap();
        assert!((2..500).contains(&report.findings.len()), "{}", report.findings.len());
    });
}

/// As of a host that lost its power each time, where nobody prunes.
#[test]
fn many_sessions_without_an_end_are_no_damage() {
    block_on(async {
        let world = World::new().await;
        for _ in 0..=MISSING_MAX {
            drop(Session::claim(&world.repository).await.unwrap());
        }
        let backup = back_up(&world.repository, &tree("one", 1)).await;
        assert!(backup.seq > MISSING_MAX as u64);
        let report = world.open(&world.key).await.check(EVERYTHING).await.unwrap();
        assert_eq!(report.open_sessions, MISSING_MAX as u64 + 1);
        assert!(report.is_sound(), "{report:?}");
    });
}

/// Ends a session when open ones are listed, which is after the ends were.
#[derive(Debug)]
struct EndsThen(Key, Bytes);

#[async_trait]
impl Hook for EndsThen {
    async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
        if operation == Operation::List && subject == "sessions/" {
            let _ = inner.put_new(&self.0, self.1.clone()).await; // at the first time
        }
    }
}

#[test]
fn a_session_that_ends_while_ends_are_listed_is_not_missing() {
    block_on(async {
        let world = World::new().await;
        let slow = Session::claim(&world.repository).await.unwrap();
        let (writer, n) = (slow.writer(), slow.n());
        assert!(back_up(&world.repository, &tree("one", 1)).await.seq > n);
        assert!(fence(&world.repository, writer, n, Vec::new()).await.unwrap());
        let key = names::commit_key(writer, n);
        let end = world.store.get(&key).await.unwrap();
        world.delete(key.as_str()).await;

        let store = Hooked::new(world.store.inner().clone(), EndsThen(key, end));
        let repository = Repository::builder(Arc::new(store)).open(world.key.clone()).await.unwrap();
        let report = repository.check(CheckOptions::default()).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
    });
}

/// Merges the plans when the first commit is read, which is after everything was listed.
#[derive(Debug)]
struct MergesThen {
    keeper: Repository,
    is_done: AtomicBool,
}

#[async_trait]
impl Hook for MergesThen {
    async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
        let is_commit = operation == Operation::Get && subject.starts_with("commits/");
        if !is_commit || self.is_done.swap(true, Ordering::SeqCst) {
            return;
        }
        let plans = read_plans(&self.keeper).await.unwrap();
        let condemned = plans.doomed().map(str::to_owned).collect();
        let inputs: Vec<PlanName> = plans.plans.keys().copied().collect();
        self.keeper.write_plan(condemned, inputs.clone()).await.unwrap();
        for name in inputs {
            inner.delete(&names::plan_key(name)).await.unwrap();
        }
    }
}

#[test]
fn a_scrub_finds_what_a_plan_says_that_is_merged_meanwhile() {
    block_on(async {
        let (world, first, _) = two_backups().await;
        let going = snapshot_of(&world.repository, &first).await;
        world.repository.forget(&[(&going, "test".into())]).await.unwrap();
        let pruned = world.repository.prune(PruneOptions { max_unused: 0.0, ..PruneOptions::default() });
        assert!(pruned.await.unwrap().bytes_freed > 0);
        let hook = MergesThen { keeper: world.open(&world.key).await, is_done: AtomicBool::new(false) };
        let report = scrub(&Hooked::new(world.store.inner().clone(), hook), None, false).await.unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
    });
}

/// Says the time that it was set to; time that passes is a minute for each look.
#[derive(Debug)]
struct Minutes(AtomicI64, AtomicU64);

impl Clock for Minutes {
    fn now(&self) -> Timestamp {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(60 * self.1.fetch_add(1, Ordering::SeqCst))
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Minutes {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(1_800_000_000_000_000_000), AtomicU64::new(0)))
    }

    fn pass_days(&self, days: u32) {
        self.0.fetch_add(i64::try_from((DAY * days).as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

/// Counts packs as they are read, and how many of them are remembered by then; wishes for an end after so many.
#[derive(Debug)]
struct Watch {
    cache: Cache,
    read: AtomicU64,
    remembered: AtomicU64,
    end_after: u64,
    cancel: Cancel,
}

impl Monitor for Watch {
    fn advance(&self, items: u64, _bytes: u64) {
        let read = self.read.fetch_add(items, Ordering::SeqCst) + items;
        let remembered = remembered_proofs(&self.cache).len() as u64;
        self.remembered.fetch_max(remembered, Ordering::SeqCst);
        if read == self.end_after {
            self.cancel.cancel();
        }
    }
}

/// Opens the repository with one thread, a cache and a clock of the caller's, and somebody who watches it read.
async fn watched(
    world: &World,
    cache: &Cache,
    clock: &Arc<Minutes>,
    end_after: u64,
) -> (Repository, Arc<Watch>) {
    let cancel = Cancel::default();
    let open = |monitor: Option<Arc<Watch>>| {
        let store: Arc<dyn ObjectStore> = Arc::clone(&world.store) as _;
        let builder = Repository::builder(store).cache(cache.clone()).clock(Arc::clone(clock) as _);
        let builder = builder.limits(Limits { threads: 1, memory_bytes: 64 << 20 }).cancel(cancel.clone());
        let key = world.key.clone();
        async move {
            match monitor {
                Some(monitor) => builder.monitor(monitor).open(key).await.unwrap(),
                None => builder.open(key).await.unwrap(),
            }
        }
    };
    let cache = open(None).await.cache().clone();
    let (read, remembered) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = Arc::new(Watch { cache, read, remembered, end_after, cancel: cancel.clone() });
    (open(Some(Arc::clone(&watch))).await, watch)
}

/// The packs of this many snapshots, each with a file of its own.
async fn world_of(snapshots: u64) -> (World, u64) {
    let world = World::new().await;
    for seed in 0..snapshots {
        back_up(&world.repository, &tree(&format!("file-{seed}"), seed)).await;
    }
    let packs = world.names("data/").await.len() + world.names("meta/").await.len();
    (world, packs as u64)
}

fn reading(read: ReadData) -> CheckOptions {
    CheckOptions { read }
}

#[test]
fn a_pack_that_was_proved_and_is_damaged_counts_as_proved_no_more() {
    block_on(async {
        let (world, _, first) = two_backups().await;
        let repository = &world.repository;
        assert_eq!(repository.proved_since().await.unwrap(), None);
        assert!(repository.check(EVERYTHING).await.unwrap().is_sound());
        let checked = repository.checked().await.unwrap();
        assert!(checked.proved_since.is_some());

        let snapshots = repository.snapshots().await.unwrap();
        let daily = RetentionPolicy { daily: Some(Slots::Newest(3)), ..RetentionPolicy::default() };
        let is_proven = |verdict: &Verdict<'_>| verdict.reasons.iter().any(|why| why == "last proven");
        let verdicts = retain(&daily, SystemClock.now(), &snapshots, &checked);
        assert!(verdicts.iter().any(is_proven), "{verdicts:?}");

        flip(&world, &first).await;
        for how in [ReadData::Everything, ReadData::Nothing] {
            repository.check(reading(how)).await.unwrap();
            let checked = repository.checked().await.unwrap();
            assert_eq!(checked.proved_since, None, "after a check with {how:?}");
            let verdicts = retain(&daily, SystemClock.now(), &snapshots, &checked);
            assert!(!verdicts.iter().any(is_proven), "{verdicts:?}");
        }
    });
}

/// The first of a day would fill the slot of that day.
#[test]
fn a_snapshot_that_a_check_found_damaged_takes_no_place_of_a_sound_one() {
    block_on(async {
        let (world, _, first) = two_backups().await;
        let repository = &world.repository;
        back_up(repository, &tree("third", 3)).await;
        let snapshots = repository.snapshots().await.unwrap();
        let yearly = RetentionPolicy { yearly: Some(Slots::Newest(1)), ..RetentionPolicy::default() };
        let reasons = async || {
            let checked = repository.checked().await.unwrap();
            let verdicts = retain(&yearly, SystemClock.now(), &snapshots, &checked);
            let year =
                |why: &String| if why.starts_with("yearly") { "yearly".to_owned() } else { why.clone() };
            verdicts.iter().map(|v| v.reasons.iter().map(year).collect()).collect::<Vec<Vec<String>>>()
        };
        let as_ever = [vec!["yearly"], vec!["no rule keeps it"], vec!["last complete"]];
        assert_eq!(reasons().await, as_ever);
        let sound = world.store.get(&first.parse().unwrap()).await.unwrap();
        flip(&world, &first).await;
        assert_eq!(reasons().await, as_ever, "nobody knows");
        let report = repository.check(EVERYTHING).await.unwrap();
        assert_eq!(report.damaged_snapshots.len(), 1);
        let known = [vec!["damaged, does not count", "yearly"], vec!["yearly"], vec!["last complete"]];
        assert_eq!(reasons().await, known);
        world.delete(&first).await;
        world.store.put_new(&first.parse().unwrap(), sound).await.unwrap();
        assert!(repository.check(CheckOptions::default()).await.unwrap().is_sound());
        let proven = [
            vec!["no rule keeps it"],
            vec!["no rule keeps it"],
            vec!["last complete", "last proven", "yearly"],
        ];
        assert_eq!(reasons().await, proven, "it was read again, and all are proven now");
    });
}

#[test]
fn damage_that_was_read_is_not_forgotten_by_a_check_that_reads_nothing() {
    block_on(async {
        let (world, _, first) = two_backups().await;
        let repository = &world.repository;
        flip(&world, &first).await;
        assert!(repository.check(CheckOptions::default()).await.unwrap().is_sound(), "nobody has read it");
        assert!(!repository.check(EVERYTHING).await.unwrap().is_sound());
        for how in [ReadData::Nothing, ReadData::Share(0.0), ReadData::OlderThan(DAY)] {
            let report = repository.check(reading(how)).await.unwrap();
            assert_eq!((report.damaged_snapshots.len(), report.packs_read), (1, 0), "{how:?}");
            assert_eq!(repository.checked().await.unwrap().damaged.len(), 1, "{how:?}");
        }
    });
}

#[test]
fn what_is_missing_is_not_proved_whichever_check_finds_it() {
    for prefix in ["data/", "meta/", "index/"] {
        block_on(async {
            let (world, _) = world_of(2).await;
            let cache = Cache::memory();
            let repository = world.open_cached(&world.key, cache.clone()).await;
            assert!(repository.check(EVERYTHING).await.unwrap().is_sound());
            assert!(repository.proved_since().await.unwrap().is_some());
            let lost = world.names(prefix).await.remove(0);
            world.delete(&lost).await;
            let repository = world.open_cached(&world.key, cache).await;
            assert!(!repository.check(CheckOptions::default()).await.unwrap().is_sound());
            assert_eq!(repository.proved_since().await.unwrap(), None, "without {lost}");
        });
    }
}

#[test]
fn an_interrupted_check_goes_on_where_it_was() {
    block_on(async {
        let (world, packs) = world_of(6).await;
        let (cache, clock) = (Cache::memory(), Minutes::new());
        let monthly = reading(ReadData::OlderThan(30 * DAY));
        let (repository, watch) = watched(&world, &cache, &clock, 4).await;
        assert!(matches!(repository.check(monthly).await, Err(Error::Cancelled)));
        let done = watch.read.load(Ordering::SeqCst);
        assert!((4..packs).contains(&done), "{done} of {packs}");
        let known = remembered_proofs(&watch.cache).len() as u64;
        assert!((4..=done).contains(&known), "{known} remembered of {done}");

        let (repository, _) = watched(&world, &cache, &clock, u64::MAX).await;
        let report = repository.check(monthly).await.unwrap();
        assert_eq!(report.packs_read, packs - known, "what was read before is not read again");
        assert_eq!(repository.check(monthly).await.unwrap().packs_read, 0);
        assert!(repository.proved_since().await.unwrap().is_some());
    });
}

#[test]
fn what_is_proved_is_written_down_while_the_check_goes_on() {
    block_on(async {
        let (world, packs) = world_of(6).await;
        let (repository, watch) = watched(&world, &Cache::memory(), &Minutes::new(), u64::MAX).await;
        assert_eq!(repository.check(EVERYTHING).await.unwrap().packs_read, packs);
        // A minute passes at each look at the clock, and a process that is killed writes no last word.
        let remembered = watch.remembered.load(Ordering::SeqCst);
        assert!(remembered >= packs - 4, "{remembered} of {packs} before the end");
    });
}

#[test]
fn what_was_read_longest_ago_is_read_first_and_the_rest_when_its_time_comes() {
    block_on(async {
        let (world, packs) = world_of(4).await;
        let (cache, clock) = (Cache::memory(), Minutes::new());
        let weekly = reading(ReadData::OlderThan(7 * DAY));
        let (repository, _) = watched(&world, &cache, &clock, u64::MAX).await;
        assert_eq!(repository.check(weekly).await.unwrap().packs_read, packs);
        clock.pass_days(3);
        assert_eq!(
            repository.check(weekly).await.unwrap().packs_read,
            0,
            "all of it was read three days ago"
        );

        back_up(&world.repository, &tree("new", 99)).await;
        let all = (world.names("data/").await.len() + world.names("meta/").await.len()) as u64;
        let (repository, _) = watched(&world, &cache, &clock, u64::MAX).await;
        assert_eq!(repository.check(weekly).await.unwrap().packs_read, all - packs, "what is new");
        clock.pass_days(5);
        assert_eq!(repository.check(weekly).await.unwrap().packs_read, packs, "what was read eight days ago");

        // Of everything, what was read longest ago comes first: an interruption repeats nothing that is newer.
        clock.pass_days(1);
        let (repository, _) = watched(&world, &cache, &clock, all - packs).await;
        assert!(repository.check(EVERYTHING).await.is_err());
        let (repository, _) = watched(&world, &cache, &clock, u64::MAX).await;
        assert_eq!(repository.proved_since().await.unwrap(), Some(clock.now() - 86_400_000_000_000));
    });
}

#[test]
fn a_share_is_that_much_of_the_packs() {
    block_on(async {
        let (world, packs) = world_of(10).await;
        let read = async |share| world.repository.check(reading(ReadData::Share(share))).await.unwrap();
        assert_eq!(read(0.0).await.packs_read, 0);
        assert_eq!(read(1.0).await.packs_read, packs);
        let mut sum = 0;
        for _ in 0..30 {
            sum += read(0.5).await.packs_read;
        }
        // Six standard deviations of a fair coin on either side.
        let (tosses, spread) = (30 * packs, 6.0 * (30.0 * packs as f64 / 4.0).sqrt());
        let off = (sum as f64 - tosses as f64 / 2.0).abs();
        assert!(off < spread, "{sum} of {tosses}");
    });
}
