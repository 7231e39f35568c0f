//! Hundreds of batches on several threads, and something fails in the middle: an end in time, with the reason; never
//! a snapshot that lacks something.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use backup_core::{BackupOptions, Cache, Error, Limits};
use keepwell_e2e::made::{Made, Trouble, many};
use keepwell_e2e::{Dice, within, world};
use keepwell_storage::{Fault, Faulty, Memory};
use world::{World, assert_sound, options};

const THINGS: u64 = 240;
/// Every thing fills a batch of its own.
const CLAIMED: u64 = 4 << 20;
/// Of processor time: short against "for ever".
const LIMIT: Duration = Duration::from_secs(300);

async fn attempt(
    world: &World,
    fault: Fault,
    source: Made,
    threads: usize,
    checkpoint_every: Duration,
) -> (Result<backup_core::BackupReport, Error>, bool) {
    let store = Arc::new(Faulty::new(world.store.clone(), fault));
    let limits = Limits { threads, ..world::LIMITS };
    let opened = world::open(store.clone(), &world.key, Cache::memory(), limits).await;
    let options = BackupOptions { checkpoint_every, ..options() };
    let ended = match opened {
        Ok(repository) => repository.backup(Arc::new(source), options).await,
        Err(error) => Err(error),
    };
    (ended, store.fired())
}

#[test]
fn a_store_that_fails_in_the_middle() {
    let mut dice = Dice::new(4);
    for round in 0..24u64 {
        let call = 8 + dice.roll(70);
        let fault =
            [Fault::Once(call), Fault::FromThenOn(call), Fault::CrashAfter(call)][dice.roll(3) as usize];
        let threads = [1, 2, 4][dice.roll(3) as usize];
        let every = [Duration::ZERO, Duration::from_millis(20), Duration::from_secs(1 << 30)];
        let every = every[dice.roll(3) as usize];
        within(LIMIT, async {
            let world = World::new().await;
            let source = many(THINGS).with(Trouble::None, CLAIMED);
            let (ended, fired) = attempt(&world, fault, source.clone(), threads, every).await;
            let what = format!(
                "round {round}: {fault:?}, {threads} threads, every {every:?}: {:?}",
                ended.as_ref().err()
            );
            assert!(!fired || ended.is_err(), "{what}");
            assert!(!matches!(ended, Err(Error::Cancelled | Error::Task(_))), "{what}");
            let repository = world.open().await;
            let listed = repository.snapshots().await.unwrap().len();
            assert!(listed == usize::from(ended.is_ok()) || matches!(fault, Fault::CrashAfter(_)), "{what}");
            assert_sound(&repository, &what).await;
            attempt(&world, Fault::None, source, threads, every).await.0.unwrap();
            world::prune_to_the_end(&repository, &what).await;
        });
    }
}

#[test]
fn a_source_that_fails_in_the_middle() {
    for threads in [1, 4] {
        for (checkpoints, at) in [(true, 0), (true, 130), (false, 130), (false, 239)] {
            for trouble in [Trouble::Walk(at), Trouble::WalkPanic(at), Trouble::OpenPanic(at)] {
                within(LIMIT, async {
                    let world = World::new().await;
                    let source = many(THINGS).with(trouble, CLAIMED);
                    let every = if checkpoints { Duration::ZERO } else { Duration::from_secs(1 << 30) };
                    let (ended, _) = attempt(&world, Fault::None, source, threads, every).await;
                    let what = format!("{trouble:?}, {threads} threads: {:?}", ended.as_ref().err());
                    match trouble {
                        Trouble::Walk(_) => assert!(matches!(ended, Err(Error::Source(_))), "{what}"),
                        _ => assert!(matches!(ended, Err(Error::Task(_))), "{what}"),
                    }
                    let repository = world.open().await;
                    assert_eq!(repository.snapshots().await.unwrap().len(), 0, "{what}");
                    let report = assert_sound(&repository, &what).await;
                    assert_eq!(report.open_sessions, 0, "{what}");
                });
            }
        }
    }
}

#[test]
fn an_item_that_cannot_be_read_costs_that_item() {
    within(LIMIT, async {
        for trouble in [Trouble::Open(8), Trouble::Read(8)] {
            let world = World::new().await;
            let source = many(20).with(trouble, CLAIMED);
            let report = attempt(&world, Fault::None, source, 2, Duration::ZERO).await.0.unwrap();
            assert_eq!((report.problem_count, report.complete), (1, false), "{trouble:?}");
            assert_eq!(report.statistics.files, 19, "{trouble:?}");
            assert_sound(&world.open().await, "with a problem").await;
        }
    });
}

/// Two captures beside each other in one process, with one cache, of one dataset.
#[test]
fn the_same_dataset_twice_at_once() {
    within(LIMIT, async {
        let world = World::new().await;
        let cache = tempfile::tempdir().unwrap();
        let store = Arc::new(Memory::clone(&world.store));
        let repository = world.open_with(store, Cache::directory(cache.path())).await.unwrap();
        for _ in 0..3 {
            let options = BackupOptions { checkpoint_every: Duration::from_millis(30), ..options() };
            let one = repository.backup(Arc::new(many(100).with(Trouble::None, CLAIMED)), options.clone());
            let two = repository.backup(Arc::new(many(120).with(Trouble::None, CLAIMED)), options);
            let (one, two) = tokio::join!(one, two);
            // One may find that the other took its checkpoint for abandoned; then it says so and can begin anew.
            for ended in [&one, &two] {
                assert!(matches!(ended, Ok(_) | Err(Error::Fenced { .. })), "{ended:?}");
            }
            assert!(one.is_ok() || two.is_ok());
            assert_sound(&repository, "side by side").await;
        }
        world::prune_to_the_end(&repository, "side by side").await;
    });
}
