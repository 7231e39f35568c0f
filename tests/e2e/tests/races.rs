//! Several at once: writers, keepers, readers, on one store.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::env::Clock;
use backup_core::{BackupOptions, Cache, Error, Limits, PruneOptions, Repository, Snapshot};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_e2e::gate::Gate;
use keepwell_e2e::tree::{Tree, assert_same, put, read};
use keepwell_e2e::{Dice, run, world};
use keepwell_storage::{ObjectStore, Operation};
use world::{World, assert_sound, back_up, back_up_with, forget, options, restored, snapshot_of, thorough};

const LARGE: usize = 600 << 10;

type Taken = Arc<Mutex<Vec<(Snapshot, Tree)>>>;

fn prune_options(fence_after: Duration) -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after, ..PruneOptions::default() }
}

/// Changes a few of the files, which are drawn from a small pool of contents, so that writers share chunks.
fn change(dir: &Path, dice: &mut Dice) {
    for _ in 0..3 {
        let (file, content) = (dice.roll(5), dice.roll(8));
        put(dir, &format!("{file}"), content, LARGE);
    }
    put(dir, "own", dice.roll(1 << 40), 20_000);
}

/// Backs up again and again; fenced, it begins anew.
async fn write(repository: Repository, dir: &Path, dataset: &str, seed: u64, rounds: u64, taken: &Taken) {
    let mut dice = Dice::new(seed);
    for round in 0..rounds {
        change(dir, &mut dice);
        let tree = read(dir);
        let every = if round % 2 == 0 { Duration::ZERO } else { Duration::from_secs(1 << 30) };
        let options = BackupOptions { dataset: dataset.into(), checkpoint_every: every, ..options() };
        loop {
            match back_up_with(&repository, dir, options.clone()).await {
                Ok(report) => {
                    let snapshot = snapshot_of(&repository, &report).await;
                    taken.lock().unwrap().push((snapshot, tree));
                    break;
                }
                Err(Error::Fenced { .. }) => {}
                Err(error) => panic!("writer {seed}, round {round}: {error}"),
            }
        }
    }
}

/// Forgets all but the newest three and prunes, until the writers are done.
async fn keep(repository: Repository, fence_after: Duration, taken: &Taken, done: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !done.load(Ordering::SeqCst) {
        let old: Vec<Snapshot> = {
            let mut taken = taken.lock().unwrap();
            let count = taken.len().saturating_sub(3);
            taken.drain(..count).map(|(snapshot, _)| snapshot).collect()
        };
        forget(&repository, &old).await.unwrap();
        match repository.prune(prune_options(fence_after)).await {
            Ok(_) | Err(Error::Fenced { .. }) => rounds += 1,
            Err(error) => panic!("keeper, round {rounds}: {error}"),
        }
        tokio::task::yield_now().await;
    }
    rounds
}

async fn writers_and_keepers(world: &World, handles: [Repository; 4], seed: u64, fence_after: Duration) {
    let taken = Taken::default();
    let done = AtomicBool::new(false);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [a, b, c, d] = handles;
    let writers = async {
        tokio::join!(
            write(a, one.path(), "one", seed, 8, &taken),
            write(b, two.path(), "two", seed + 1, 8, &taken)
        );
        done.store(true, Ordering::SeqCst);
    };
    let keepers =
        async { tokio::join!(keep(c, fence_after, &taken, &done), keep(d, fence_after, &taken, &done)) };
    let (_, pruned) = tokio::join!(writers, keepers);
    assert!(pruned.0 + pruned.1 >= 2, "{pruned:?}");
    let repository = world.open().await;
    let what = format!("seed {seed}");
    assert_sound(&repository, &what).await;
    let taken = taken.lock().unwrap().clone();
    for (snapshot, tree) in &taken {
        let dir = snapshot.manifest().unwrap().paths[0].clone();
        let dir = std::path::PathBuf::from(String::from_utf8(dir).unwrap());
        assert_same(tree, &restored(&repository, snapshot, &dir).await, &what);
    }
    world::prune_to_the_end(&repository, &what).await;
    for (snapshot, tree) in &taken {
        let dir = String::from_utf8(snapshot.manifest().unwrap().paths[0].clone()).unwrap();
        assert_same(tree, &restored(&repository, snapshot, Path::new(&dir)).await, &what);
    }
}

#[test]
fn two_writers_and_two_keepers() {
    for (seed, fence_after) in [(1, 2000), (2, 0), (3, 30)] {
        run(async {
            let world = World::new().await;
            let open = || world.open();
            let handles = [open().await, open().await, open().await, open().await];
            writers_and_keepers(&world, handles, seed, Duration::from_millis(fence_after)).await;
        });
    }
}

#[test]
fn all_in_one_process_with_one_handle() {
    for (seed, fence_after) in [(11, 2000), (12, 0)] {
        run(async {
            let world = World::new().await;
            let cache = tempfile::tempdir().unwrap();
            let store = Arc::new(world.store.clone());
            let one = world.open_with(store, Cache::directory(cache.path())).await.unwrap();
            let handles = [one.clone(), one.clone(), one.clone(), one];
            writers_and_keepers(&world, handles, seed, Duration::from_millis(fence_after)).await;
        });
    }
}

#[test]
fn a_restore_while_everything_moves() {
    run(async {
        let world = World::new().await;
        let (source, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, changing) = (source.path(), other.path());
        for i in 0..12 {
            put(dir, &format!("{i}"), i, LARGE);
            put(changing, &format!("{i}"), i, LARGE);
        }
        let writer = world.open().await;
        let keeper = world.open().await;
        let report = back_up(&writer, dir).await.unwrap();
        let snapshot = snapshot_of(&writer, &report).await;
        let expected = read(dir);
        let (done, count) = (AtomicBool::new(false), AtomicU64::new(0));
        // Each round shares packs with what stays, then makes them partly unused, so that they are repacked.
        let churn = async {
            for round in 0.. {
                if round >= 10 && count.load(Ordering::SeqCst) >= 3 {
                    break;
                }
                let options = BackupOptions { dataset: "churn".into(), ..options() };
                put(changing, "own", 1000 + round, LARGE);
                let report = back_up_with(&writer, changing, options).await.unwrap();
                let snapshot = snapshot_of(&writer, &report).await;
                forget(&keeper, &[snapshot]).await.unwrap();
                let everything = PruneOptions { max_unused: 0.0, ..prune_options(Duration::from_secs(9)) };
                keeper.prune(everything).await.unwrap();
            }
            done.store(true, Ordering::SeqCst);
        };
        let reader = world.open().await;
        let restores = async {
            while !done.load(Ordering::SeqCst) {
                assert_same(&expected, &restored(&reader, &snapshot, dir).await, "beside prunes");
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        tokio::join!(restores, churn);
    });
}

#[test]
fn what_a_running_backup_stored_is_not_an_orphan() {
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        put(source.path(), "a", 1, LARGE);
        let gate = Arc::new(Gate::new(world.store.clone(), "commits/"));
        let writer = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
        let backup = back_up(&writer, source.path());
        let keeper = world.open().await;
        let prune = async {
            gate.reached().await; // all is stored but the commit
            let prune = keeper.prune(prune_options(Duration::from_secs(60)));
            let opened = async {
                while world.names("gc/").await.is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                gate.open();
            };
            tokio::join!(prune, opened).0
        };
        let (report, pruned) = tokio::join!(backup, prune);
        let (report, pruned) = (report.unwrap(), pruned.unwrap());
        assert!(pruned.kept > 0, "{pruned:?}");
        let snapshot = snapshot_of(&keeper, &report).await;
        assert_same(&read(source.path()), &restored(&keeper, &snapshot, source.path()).await, "kept");
        assert_sound(&keeper, "kept").await;
        let again = back_up(&world.open().await, source.path()).await.unwrap();
        assert_eq!(again.statistics.bytes_read, 0, "the state of the last backup was kept too");
    });
}

/// A capture must not rely on its own checkpoint when another capture of the dataset took that for abandoned.
#[test]
fn a_checkpoint_that_another_capture_superseded() {
    run(async {
        let world = World::new().await;
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for i in 0..6 {
            put(one.path(), &format!("{i}"), i, LARGE);
            put(two.path(), &format!("{i}"), 100 + i, LARGE);
        }
        let keeper = world.open().await;
        let writer = keeper.access().member().unwrap();
        // A session with some of the files ends in a checkpoint; the next one is not claimed yet.
        let gate = Arc::new(Gate::new(world.store.clone(), format!("sessions/{writer}/0000000006/")));
        let slow = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
        let checkpoints = BackupOptions { checkpoint_every: Duration::ZERO, ..options() };
        let backup = back_up_with(&slow, one.path(), checkpoints);
        let others = async {
            gate.reached().await;
            let report = back_up(&keeper, two.path()).await.unwrap();
            keeper.prune(prune_options(Duration::ZERO)).await.unwrap();
            gate.open();
            snapshot_of(&keeper, &report).await
        };
        let (slow, other) = tokio::join!(backup, others);
        assert!(matches!(slow, Ok(_) | Err(Error::Fenced { .. })), "{slow:?}");
        assert_sound(&keeper, "after all").await;
        assert_same(&read(two.path()), &restored(&keeper, &other, two.path()).await, "the faster");
        if let Ok(report) = slow {
            let snapshot = snapshot_of(&keeper, &report).await;
            assert_same(&read(one.path()), &restored(&keeper, &snapshot, one.path()).await, "the slower");
        }
    });
}

/// Two hosts that can only write, a keeper that prunes in a loop, and a reader that restores all the while, each with a
/// credential of its own.
#[test]
fn everybody_with_credentials_of_their_own() {
    run(async {
        let world = World::new().await;
        let owner = world.open().await;
        let mut keys = Vec::new();
        for (name, roles) in [
            ("one", Roles::WRITER),
            ("two", Roles::WRITER),
            ("vault", Roles::READER | Roles::KEEPER),
            ("desk", Roles::READER),
        ] {
            keys.push(world::enroll(&owner, name, roles).await);
        }
        let open = async |key: &KeyFile| {
            let store = Arc::new(world.store.clone());
            world::open(store, key, Cache::memory(), world::LIMITS).await.unwrap()
        };
        let [one, two, vault, desk] =
            [open(&keys[0]).await, open(&keys[1]).await, open(&keys[2]).await, open(&keys[3]).await];
        assert!(!one.can_read() && !two.can_read());
        let stays = tempfile::tempdir().unwrap();
        (0..6).for_each(|i| put(stays.path(), &format!("{i}"), i, LARGE));
        let first = back_up(&one, stays.path()).await.unwrap();
        let first = snapshot_of(&desk, &first).await;
        let expected = read(stays.path());

        let taken = Taken::default();
        let done = AtomicBool::new(false);
        let (dir_one, dir_two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let writers = async {
            tokio::join!(
                write(one, dir_one.path(), "one", 21, 6, &taken),
                write(two, dir_two.path(), "two", 22, 6, &taken)
            );
            done.store(true, Ordering::SeqCst);
        };
        let reads = async {
            let mut restores = 0;
            while !done.load(Ordering::SeqCst) {
                assert_same(&expected, &restored(&desk, &first, stays.path()).await, "beside all others");
                restores += 1;
            }
            restores
        };
        let keeps = keep(vault, Duration::from_millis(500), &taken, &done);
        let ((), prunes, restores) = tokio::join!(writers, keeps, reads);
        assert!(prunes >= 1 && restores >= 1, "{prunes} prunes, {restores} restores");
        let reader = open(&keys[3]).await;
        assert_sound(&reader, "with credentials of their own").await;
        let listed = reader.snapshots().await.unwrap();
        let taken = std::mem::take(&mut *taken.lock().unwrap());
        for (snapshot, tree) in &taken {
            let snapshot = listed.iter().find(|s| s.id == snapshot.id).expect("it is listed");
            let dir = String::from_utf8(snapshot.manifest().unwrap().paths[0].clone()).unwrap();
            assert_same(tree, &restored(&reader, snapshot, Path::new(&dir)).await, "own credentials");
        }
    });
}

/// Two processes with one credential whose clocks stand still must not both take the same session for theirs.
#[test]
fn two_claims_at_the_same_moment_are_two_sessions() {
    #[derive(Debug)]
    struct Stopped;
    impl Clock for Stopped {
        fn now(&self) -> i64 {
            7
        }
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        put(source.path(), "a", 1, LARGE);
        let gate = Arc::new(Gate::new(world.store.clone(), "sessions/"));
        let open = async |store: Arc<dyn ObjectStore>| {
            let builder = Repository::builder(store).clock(Arc::new(Stopped)).limits(world::LIMITS);
            builder.open(world.key.clone()).await.unwrap()
        };
        let (slow, fast) = (open(gate.clone()).await, open(Arc::new(world.store.clone())).await);
        let others = async {
            gate.reached().await; // the slower one has chosen its number
            let report = back_up(&fast, source.path()).await.unwrap();
            gate.open();
            report
        };
        let (slow, fast) = tokio::join!(back_up(&slow, source.path()), others);
        assert_ne!(slow.unwrap().seq, fast.seq);
    });
}

/// What a prune of the origin moves while a copy is at work is found where it lies now.
#[test]
fn a_copy_follows_what_a_prune_of_the_origin_moves() {
    run(async {
        let world = World::new().await;
        let (source, churn) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for i in 0..6 {
            put(source.path(), &format!("{i}"), i, LARGE);
            put(churn.path(), &format!("{i}"), i, LARGE);
        }
        for i in 0..6 {
            put(churn.path(), &format!("{i}-own"), 70 + i, LARGE);
        }
        // One thread fills its packs in order: none holds only what stays, or only what goes.
        let (store, limits) = (Arc::new(world.store.clone()), Limits { threads: 1, ..world::LIMITS });
        let keeper = world::open(store, &world.key, Cache::memory(), limits).await.unwrap();
        let options = BackupOptions { dataset: "churn".into(), ..options() };
        let gone = back_up_with(&keeper, churn.path(), options).await.unwrap();
        let report = back_up(&keeper, source.path()).await.unwrap();
        let snapshot = snapshot_of(&keeper, &report).await;
        let copy = keepwell_storage::Memory::new();
        keeper.create_copy(&copy).await.unwrap();
        let gate = Arc::new(Gate::new(copy, "sessions/"));
        let target = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
        let origin = world.open().await;
        let prune = async {
            gate.reached().await; // the index of the origin has been read
            let gone = snapshot_of(&keeper, &gone).await;
            forget(&keeper, &[gone]).await.unwrap();
            let pruned = keeper.prune(prune_options(Duration::ZERO)).await.unwrap();
            assert!(pruned.packs_repacked > 0 && pruned.objects_deleted > 0, "{pruned:?}");
            gate.open();
        };
        let snapshots = [snapshot.clone()];
        let (copied, ()) = tokio::join!(origin.copy_to_store(&target, &snapshots), prune);
        assert_eq!(copied.unwrap().copied, [snapshot.id]);
        let there = target.snapshots().await.unwrap();
        assert_same(&read(source.path()), &restored(&target, &there[0], source.path()).await, "copied");
    });
}

/// A repository with nine small index segments, and something for a prune to remove.
async fn much_to_prune() -> (World, Repository, tempfile::TempDir) {
    let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
    let owner = world.open().await;
    for i in 0..9 {
        put(dir.path(), "changes", i, 100_000);
        back_up(&owner, dir.path()).await.unwrap();
    }
    let snapshots = owner.snapshots().await.unwrap();
    forget(&owner, &snapshots[..8]).await.unwrap();
    (world, owner, dir)
}

/// The host of somebody who may read, or only write; it stops before it reads back what it has stored.
async fn proving(world: &World, owner: &Repository, roles: Roles) -> (Repository, Arc<Gate>) {
    let key = world::enroll(owner, "another", roles).await;
    let gate = Arc::new(Gate::wide_open(world.store.clone()));
    let host = world::open(gate.clone(), &key, Cache::memory(), world::LIMITS).await.unwrap();
    gate.shut(|operation, key| {
        matches!(operation, Operation::Get | Operation::GetRange) && key.starts_with("data/")
    });
    (host, gate)
}

/// What is gone because a keeper took the session for dead is not damaged.
#[test]
fn a_session_that_is_fenced_while_it_is_proved() {
    for roles in [Roles::WRITER, Roles::WRITER | Roles::READER] {
        run(async {
            let (world, owner, _dir) = much_to_prune().await;
            let (host, gate) = proving(&world, &owner, roles).await;
            let source = tempfile::tempdir().unwrap();
            put(source.path(), "new", 77, 100_000);
            let backup = back_up_with(&host, source.path(), BackupOptions { verify: true, ..options() });
            let prune = async {
                gate.reached().await;
                let report = owner.prune(thorough()).await.unwrap();
                assert_eq!(report.fenced, 1, "{report:?}");
                let again = owner.prune(thorough()).await.unwrap();
                gate.open();
                report.packs_unused + again.packs_unused
            };
            let (backup, unused) = tokio::join!(backup, prune);
            assert!(unused > 0 && matches!(backup, Err(Error::Fenced { .. })), "{roles:?}: {backup:?}");
            assert_sound(&world.open().await, "afterwards").await;
        });
    }
}

/// Index segments are merged at any time; what was just stored is listed in another one then.
#[test]
fn a_segment_that_is_merged_while_it_is_proved() {
    for roles in [Roles::WRITER, Roles::WRITER | Roles::READER] {
        run(async {
            let (world, owner, _dir) = much_to_prune().await;
            let (host, gate) = proving(&world, &owner, roles).await;
            let judging = Arc::new(Gate::wide_open(world.store.clone()));
            let keeper = world.open_with(judging.clone(), Cache::memory()).await.unwrap();
            // By then it has waited for the sessions that it knew of.
            judging.shut(|operation, key| operation == Operation::Put && key.ends_with(".kept"));
            let source = tempfile::tempdir().unwrap();
            put(source.path(), "new", 77, 100_000);
            let backup = async {
                judging.reached().await;
                back_up_with(&host, source.path(), BackupOptions { verify: true, ..options() }).await
            };
            let prune = async {
                let report = keeper.prune(thorough()).await.unwrap();
                assert!(report.segments_merged > 0 && report.fenced == 0, "{report:?}");
                gate.open();
            };
            let goes_on = async {
                gate.reached().await;
                judging.open();
            };
            let (backup, (), ()) = tokio::join!(backup, prune, goes_on);
            let report = backup.unwrap_or_else(|error| panic!("{roles:?}: {error}"));
            let snapshot = snapshot_of(&owner, &report).await;
            let found = restored(&owner, &snapshot, source.path()).await;
            assert_same(&read(source.path()), &found, "what was proved");
        });
    }
}
