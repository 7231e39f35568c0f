//! What keepers promise: that pruning again and again leaves little to read, and what they do beside deleting.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use backup_core::env::Clock;
use backup_core::source::{Found, Item, Opened, Preflight, Source, SourceError};
use backup_core::{BackupOptions, Cache, Limits, PruneOptions, Repository};
use keepwell_e2e::gate::Gate;
use keepwell_e2e::made::{self, Made};
use keepwell_e2e::tree::{assert_same, put, read};
use keepwell_e2e::{noise, run, world};
use keepwell_storage::{Operation, Recording};
use world::{LIMITS, World, assert_sound, back_up, forget, options, restored, snapshot_of, thorough};

#[test]
fn many_prunes_leave_few_plans() {
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        let repository = world.open().await;
        for round in 0..24 {
            put(source.path(), "a", round, 50_000);
            let report = back_up(&repository, source.path()).await.unwrap();
            let snapshot = snapshot_of(&repository, &report).await;
            forget(&repository, &[snapshot]).await.unwrap();
            repository.prune(thorough()).await.unwrap();
        }
        let names = world.names("gc/").await;
        let plans = names.iter().filter(|name| !name.ends_with(".kept")).count();
        assert!(names.len() - plans >= 24, "every prune left a verdict: {names:?}");
        assert!(plans <= 9, "{plans} plans");

        let store = Arc::new(Recording::new(world.store.clone()));
        let cache = tempfile::tempdir().unwrap();
        let read = || store.snapshot().under(Operation::Get, "gc").calls;
        let fresh = world.open_with(store.clone(), Cache::directory(cache.path())).await.unwrap();
        back_up(&fresh, source.path()).await.unwrap();
        let first = read();
        assert!((1..=18).contains(&first), "{first} plans and verdicts were read");
        let again = world.open_with(store.clone(), Cache::directory(cache.path())).await.unwrap();
        back_up(&again, source.path()).await.unwrap();
        assert_eq!(read(), first, "plans never change: the cache has them");
        assert_sound(&again, "after many prunes").await;
    });
}

/// A restore that began before two prunes, each of which moved what it still has to read.
#[test]
fn a_restore_outlasts_two_prunes_with_repack() {
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        // What stays, and what the two others have beside it, lie in the same packs: one thread fills them in order. Of
        // two, one may get to a single piece of what stays, and a pack with nothing else never moves.
        let (store, limits) = (Arc::new(world.store.clone()), Limits { threads: 1, ..LIMITS });
        let keeper = world::open(store, &world.key, Cache::memory(), limits).await.unwrap();
        for i in 0..36 {
            put(dir, &format!("{:02}-{i}", i % 12), i, 300 << 10);
        }
        let mut snapshots = Vec::new();
        for step in 0..3 {
            let report = back_up(&keeper, dir).await.unwrap();
            snapshots.push(snapshot_of(&keeper, &report).await);
            for i in (0..36).filter(|i| i % 3 == 2 - step) {
                if step < 2 {
                    std::fs::remove_file(dir.join(format!("{:02}-{i}", i % 12))).unwrap();
                }
            }
        }
        let last = snapshots.pop().unwrap();
        let expected = read(dir);
        let gate = Arc::new(Gate::reading(world.store.clone(), "data/"));
        let reader = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
        let restore = restored(&reader, &last, dir);
        let prunes = async {
            gate.reached().await;
            let packs = world.names("data/").await;
            for snapshot in snapshots {
                forget(&keeper, &[snapshot]).await.unwrap();
                let report = keeper.prune(thorough()).await.unwrap();
                assert!(report.packs_repacked > 0, "{report:?}");
            }
            let left = world.names("data/").await;
            assert!(packs.iter().all(|pack| !left.contains(pack)), "all that the reader knew of has moved");
            gate.open();
        };
        let (found, ()) = tokio::join!(restore, prunes);
        assert_same(&expected, &found, "after two prunes");
    });
}

/// A clock that only the source moves on.
#[derive(Debug, Default)]
struct Hours(AtomicU64);

impl Clock for Hours {
    fn now(&self) -> i64 {
        i64::try_from(self.monotonic().as_nanos()).unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(3600 * self.0.load(Ordering::SeqCst))
    }
}

const HOURS: usize = 5 * 24;

/// A source of which each item takes an hour. Each midnight it asks for a prune and goes on once that has its plan; it
/// waits for the one of the day before first.
struct FiveDays {
    made: Made,
    clock: Arc<Hours>,
    midnight: std::sync::Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

impl Source for FiveDays {
    fn kind(&self) -> &str {
        self.made.kind()
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.made.paths()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        self.made.preflight()
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        self.made.walk(&mut |found| {
            let hour = self.clock.0.fetch_add(1, Ordering::SeqCst) + 1;
            if hour.is_multiple_of(24) {
                let midnight = self.midnight.lock().unwrap();
                midnight.0.send(()).unwrap();
                midnight.1.recv().unwrap();
            }
            visit(found)
        })
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        self.made.open(item)
    }
}

/// Each day something is forgotten that the capture also has, and a prune runs to its end beside it.
async fn prune_daily(
    world: &World,
    keeper: &Repository,
    asked: mpsc::Receiver<()>,
    planned: mpsc::Sender<()>,
) -> u64 {
    let asked = Arc::new(std::sync::Mutex::new(asked));
    let wait = || {
        let asked = Arc::clone(&asked);
        tokio::task::spawn_blocking(move || asked.lock().unwrap().recv().is_ok())
    };
    let mut prunes = 0;
    let source = tempfile::tempdir().unwrap();
    while wait().await.unwrap() {
        let day = prunes;
        // Of tomorrow's items, some; they are forgotten at once.
        put(source.path(), "a", 24 * day + 30, 20_000);
        let report = world::back_up_with(
            keeper,
            source.path(),
            BackupOptions { dataset: "daily".into(), ..options() },
        );
        let snapshot = snapshot_of(keeper, &report.await.unwrap()).await;
        forget(keeper, &[snapshot]).await.unwrap();
        let plans = world.names("gc/").await.len();
        let prune = keeper.prune(PruneOptions { max_unused: 0.0, ..PruneOptions::default() });
        let go_on = async {
            while world.names("gc/").await.len() == plans {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            planned.send(()).unwrap();
        };
        let (report, ()) = tokio::join!(prune, go_on);
        let report = report.unwrap();
        assert_eq!(report.fenced, 0, "day {day}: nobody was dead");
        prunes += 1;
    }
    prunes
}

#[test]
fn a_capture_of_five_days_finishes_under_daily_prunes() {
    run(async {
        let world = World::new().await;
        let clock = Arc::new(Hours::default());
        let things = (0..HOURS as u64).map(|i| made::file([format!("{i:04}")], &noise(i, 20_000)));
        let (ask, asked) = mpsc::channel();
        let (planned, go_on) = mpsc::channel();
        let made = Made::new(things.collect());
        let source =
            Arc::new(FiveDays { made, clock: clock.clone(), midnight: std::sync::Mutex::new((ask, go_on)) });
        let writer = Repository::builder(Arc::new(world.store.clone())).limits(LIMITS).clock(clock);
        let writer = writer.open(world.key.clone()).await.unwrap();
        let keeper = world.open().await;
        let options = BackupOptions { checkpoint_every: Duration::from_secs(3600), ..options() };
        let backup = async { writer.backup(source, options).await.unwrap() };
        let (report, prunes) = tokio::join!(backup, prune_daily(&world, &keeper, asked, planned));
        assert_eq!(prunes, 5);
        assert!(report.checkpoints >= 100, "{} checkpoints", report.checkpoints);
        assert!(report.complete);
        let fresh = world.open().await;
        assert_sound(&fresh, "after five days").await;
        world::prune_to_the_end(&fresh, "after five days").await;
        assert_eq!(fresh.snapshots().await.unwrap().len(), 1);
    });
}
