//! The store fails at every call in turn, in every way; then everything that was committed restores, nothing half-done
//! shows, the next run completes, and the next prune takes what was left lying about.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use backup_core::env::{Clock, SystemClock};
use backup_core::{Approval, BackupOptions, CopyRules, Error, Repository, Snapshot};
use keepwell_catalog::retention::{RetentionPolicy, Slots};
use keepwell_e2e::case::Case;
use keepwell_e2e::faults::{at_every_call, at_every_call_in_turn};
use keepwell_e2e::{run, tree, world};
use world::{World, assert_sound, back_up, back_up_with, forget, options, restored, snapshot_of, thorough};

struct Agrees;

impl Approval for Agrees {
    type Error = Error;
}

async fn backup_fails(options: BackupOptions) {
    let case = Case::new().await;
    let attempt = async |repository: &Repository| {
        back_up_with(repository, case.dir(), options.clone()).await.map(|_| ())
    };
    let verify = async |world: World, succeeded: bool, what: String| {
        let repository = world.open().await;
        let listed = case.all_restore(&repository, &what).await;
        assert!(listed == 2 || (listed == 1 && !succeeded), "{what}: {listed} snapshots");
        let report = back_up(&repository, case.dir()).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
        let snapshot = snapshot_of(&repository, &report).await;
        tree::assert_same(&case.now, &restored(&repository, &snapshot, case.dir()).await, &what);
        world::prune_to_the_end(&repository, &what).await;
        assert_eq!(case.all_restore(&repository, &what).await, listed + 1, "{what}");
        let manifests = world.names("manifests/").await.len();
        assert_eq!(manifests, listed + 1, "{what}: a checkpoint is left");
    };
    let attempts = at_every_call(&case.world, attempt, verify).await;
    assert!(attempts > 60, "{attempts}");
}

#[test]
fn a_backup_fails_at_every_call() {
    run(backup_fails(BackupOptions { verify: true, ..options() }));
}

#[test]
fn a_backup_with_checkpoints_fails_at_every_call() {
    run(backup_fails(BackupOptions { checkpoint_every: Duration::ZERO, ..options() }));
}

#[test]
fn a_restore_fails_at_every_call() {
    run(async {
        let case = Case::new().await;
        let to = std::cell::RefCell::new(tempfile::tempdir().unwrap());
        let attempt = async |repository: &Repository| {
            *to.borrow_mut() = tempfile::tempdir().unwrap();
            let path = to.borrow().path().to_path_buf();
            let snapshots = repository.snapshots().await?;
            let snapshot = snapshots.first().ok_or_else(|| Error::Invalid("no snapshot".into()))?;
            let report = world::restore(repository, snapshot, case.dir(), &path).await?;
            match report.problems.first() {
                None => Ok(()),
                Some((path, message)) => Err(Error::Invalid(format!("{path}: {message}"))),
            }
        };
        let verify = async |world: World, succeeded: bool, what: String| {
            let path = to.borrow().path().to_path_buf();
            let found = tree::read(&path);
            if succeeded {
                tree::assert_same(&case.first.1, &found, &what);
            }
            tree::assert_part_of(&case.first.1, &found, &what);
            let repository = world.open().await;
            world::restore(&repository, &case.first.0, case.dir(), &path).await.unwrap();
            tree::assert_same(&case.first.1, &tree::read(&path), &what);
        };
        at_every_call(&case.world, attempt, verify).await;
    });
}

#[test]
fn a_forget_fails_at_every_call() {
    run(async {
        let (case, second) = Case::new().await.with_second().await;
        let first = case.first.0.clone();
        let attempt = async |repository: &Repository| forget(repository, std::slice::from_ref(&first)).await;
        let verify = async |world: World, succeeded: bool, what: String| {
            let repository = world.open().await;
            let listed = case.all_restore(&repository, &what).await;
            assert!(listed == 1 || (listed == 2 && !succeeded), "{what}: {listed}");
            forget(&repository, std::slice::from_ref(&first)).await.unwrap();
            world::prune_to_the_end(&repository, &what).await;
            let left = repository.snapshots().await.unwrap();
            assert_eq!(left.iter().map(|s| s.id).collect::<Vec<_>>(), [second.id], "{what}");
            case.all_restore(&repository, &what).await;
        };
        at_every_call(&case.world, attempt, verify).await;
    });
}

#[test]
fn a_prune_fails_at_every_call() {
    run(async {
        let (case, second) = Case::new().await.with_second().await;
        let repository = case.world.open().await;
        forget(&repository, std::slice::from_ref(&case.first.0)).await.unwrap();
        let attempt = async |repository: &Repository| {
            let report = repository.prune(thorough()).await?;
            assert!(report.packs_repacked > 0 && report.objects_deleted > 0, "{report:?}");
            Ok(())
        };
        let verify = async |world: World, _: bool, what: String| {
            let repository = world.open().await;
            assert_eq!(case.all_restore(&repository, &what).await, 1, "{what}");
            world::prune_to_the_end(&repository, &what).await;
            assert_eq!(case.all_restore(&repository, &what).await, 1, "{what}");
            back_up(&repository, case.dir()).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
        };
        let attempts = at_every_call(&case.world, attempt, verify).await;
        assert!(attempts > 100, "{attempts}");
        assert_eq!(repository.snapshots().await.unwrap()[0].id, second.id);
    });
}

#[test]
fn a_copy_fails_at_every_call_of_either_store() {
    run(async {
        let (case, second) = Case::new().await.with_second().await;
        let origin = case.world.open().await;
        let empty = keepwell_storage::Memory::new();
        origin.create_copy(&empty).await.unwrap();
        let target = World { store: empty, key: case.world.key.clone() };
        let wanted = [case.first.0.clone(), second];
        let into =
            async |repository: &Repository| origin.copy_to_store(repository, &wanted).await.map(|_| ());
        let verify = async |world: World, succeeded: bool, what: String| {
            let repository = world.open().await;
            let listed = case.all_restore(&repository, &what).await;
            assert!(listed == 2 || !succeeded, "{what}: {listed}");
            origin.copy_to_store(&repository, &wanted).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
            world::prune_to_the_end(&repository, &what).await;
            assert_eq!(case.all_restore(&repository, &what).await, 2, "{what}");
        };
        at_every_call(&target, into, verify).await;

        let copy = std::cell::RefCell::new(target.fork());
        let from = async |repository: &Repository| {
            *copy.borrow_mut() = target.fork();
            let there = copy.borrow().clone();
            let to = there.open().await;
            repository.copy_to_store(&to, &wanted).await.map(|_| ())
        };
        let verify = async |_: World, succeeded: bool, what: String| {
            let there = copy.borrow().clone();
            let repository = there.open().await;
            let listed = case.all_restore(&repository, &what).await;
            assert!(listed == 2 || !succeeded, "{what}: {listed}");
            origin.copy_to_store(&repository, &wanted).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
            world::prune_to_the_end(&repository, &what).await;
            assert_eq!(case.all_restore(&repository, &what).await, 2, "{what}");
        };
        at_every_call(&case.world, from, verify).await;
    });
}

/// Copies into a repository with other keys; what could not be read is a failure.
async fn copy_under_other_keys(from: &Repository, to: &Repository, wanted: &[Snapshot]) -> Result<(), Error> {
    let report = from.copy_snapshots(to, wanted, &options()).await?;
    let unread: u64 = report.copied.iter().map(|copied| copied.unread).sum();
    match report.failed.first() {
        Some((id, why)) => Err(Error::Invalid(format!("{id}: {why}"))),
        None if unread > 0 => Err(Error::Invalid(format!("{unread} unread"))),
        None => Ok(()),
    }
}

/// Every copy that lacks nothing restores to what it is a copy of; gives of how many snapshots there is one.
async fn whole_copies(case: &Case, repository: &Repository, what: &str) -> usize {
    let mut whole = BTreeSet::new();
    for snapshot in repository.snapshots().await.unwrap() {
        let origin = snapshot.origin_id();
        let expected = if origin == case.first.0.id { &case.first.1 } else { &case.now };
        if snapshot.manifest().unwrap().problem_count == 0 {
            tree::assert_same(expected, &restored(repository, &snapshot, case.dir()).await, what);
            whole.insert(origin);
        }
    }
    assert_sound(repository, what).await;
    whole.len()
}

#[test]
fn a_copy_under_other_keys_fails_at_every_call_of_either_store() {
    run(async {
        let (case, second) = Case::new().await.with_second().await;
        let origin = case.world.open().await;
        let target = World::new().await;
        let wanted = [case.first.0.clone(), second];
        let complete = async |world: &World, succeeded: bool, what: &str| {
            let repository = world.open().await;
            let whole = whole_copies(&case, &repository, what).await;
            assert!(whole == 2 || !succeeded, "{what}: {whole}");
            let again = copy_under_other_keys(&origin, &repository, &wanted).await;
            again.unwrap_or_else(|e| panic!("{what}: then {e}"));
            world::prune_to_the_end(&repository, what).await;
            assert_eq!(whole_copies(&case, &repository, what).await, 2, "{what}");
        };

        let into = async |repository: &Repository| copy_under_other_keys(&origin, repository, &wanted).await;
        let verify = async |world: World, succeeded: bool, what: String| {
            complete(&world, succeeded, &what).await;
        };
        let attempts = at_every_call_in_turn(&target, into, verify).await;
        assert!(attempts > 20, "{attempts}");

        let copy = std::cell::RefCell::new(target.fork());
        let from = async |repository: &Repository| {
            *copy.borrow_mut() = target.fork();
            let there = copy.borrow().clone();
            copy_under_other_keys(repository, &there.open().await, &wanted).await
        };
        let verify = async |_: World, succeeded: bool, what: String| {
            let there = copy.borrow().clone();
            complete(&there, succeeded, &what).await;
        };
        let attempts = at_every_call_in_turn(&case.world, from, verify).await;
        assert!(attempts > 5, "{attempts}");
    });
}

#[test]
fn the_retention_of_a_copy_fails_at_every_call() {
    run(async {
        let (case, second) = Case::new().await.with_second().await;
        let retention = RetentionPolicy { last: Some(Slots::Newest(1)), ..RetentionPolicy::default() };
        let rules = CopyRules { retention, ..CopyRules::default() };
        let retire = async |repository: &Repository| {
            let prune = Some(thorough());
            let done = rules.retire(SystemClock.now(), repository, prune, &mut Agrees).await?;
            assert_eq!(done.forgotten, 1);
            Ok(())
        };
        let verify = async |world: World, succeeded: bool, what: String| {
            let repository = world.open().await;
            let listed = case.all_restore(&repository, &what).await;
            assert!(listed == 1 || (listed == 2 && !succeeded), "{what}: {listed}");
            let prune = Some(thorough());
            let again = rules.retire(SystemClock.now(), &repository, prune, &mut Agrees).await;
            let done = again.unwrap_or_else(|e| panic!("{what}: then {e}"));
            assert_eq!(done.forgotten, listed - 1, "{what}");
            world::prune_to_the_end(&repository, &what).await;
            let left = repository.snapshots().await.unwrap();
            assert_eq!(left.iter().map(|s| s.id).collect::<Vec<_>>(), [second.id], "{what}");
            case.all_restore(&repository, &what).await;
        };
        let attempts = at_every_call_in_turn(&case.world, retire, verify).await;
        assert!(attempts > 20, "{attempts}");
    });
}

#[test]
fn bringing_back_what_was_forgotten_fails_at_every_call() {
    run(async {
        let (case, _) = Case::new().await.with_second().await;
        forget(&case.world.open().await, std::slice::from_ref(&case.first.0)).await.unwrap();
        let bring_back = async |repository: &Repository| {
            let forgotten = repository.forgotten().await?;
            let gone = forgotten.first().ok_or_else(|| Error::Invalid("nothing is forgotten".into()))?;
            repository.undo_forget(gone).await.map(|_| ())
        };
        let verify = async |world: World, succeeded: bool, what: String| {
            let repository = world.open().await;
            let listed = case.all_restore(&repository, &what).await;
            assert!(listed == 2 || (listed == 1 && !succeeded), "{what}: {listed}");
            if listed == 1 {
                bring_back(&repository).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
            }
            assert!(repository.forgotten().await.unwrap().is_empty(), "{what}");
            world::prune_to_the_end(&repository, &what).await;
            assert_eq!(case.all_restore(&repository, &what).await, 2, "{what}");
        };
        let attempts = at_every_call(&case.world, bring_back, verify).await;
        assert!(attempts > 20, "{attempts}");
    });
}
