//! What counts changes beneath somebody who is at work: a snapshot is forgotten, a writer is revoked or joins, another
//! process has used a number.
#![allow(clippy::unwrap_used)]

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use backup_core::{
    ArchiveFormat, Cache, CheckOptions, CheckReport, Depth, Error, OpenFile, ReadData, Repository,
    RestoreReport, RewriteOptions, Snapshot, Tree,
};
use keepwell_catalog::{Entry, EntryKind, MapKey, names};
use keepwell_crypto::trust::Roles;
use keepwell_e2e::case::Case;
use keepwell_e2e::gate::Gate;
use keepwell_e2e::tree::{assert_same, put, read};
use keepwell_e2e::{run, world};
use keepwell_storage::Operation;
use world::{LIMITS, World, assert_sound, back_up, forget, restore, restored, snapshot_of, thorough};

const LARGE: usize = 600 << 10;

/// How a snapshot comes to count no longer.
#[derive(Debug, Clone, Copy)]
enum How {
    Forgotten,
    Revoked,
}

const WAYS: [How; 2] = [How::Forgotten, How::Revoked];

impl How {
    fn word(self) -> &'static str {
        match self {
            Self::Forgotten => "forgotten",
            Self::Revoked => "revoked",
        }
    }

    /// Lets a snapshot count no longer, and removes what only it needs.
    async fn withdraw(self, owner: &Repository, snapshot: &Snapshot) {
        let commit = &snapshot.commit;
        match self {
            Self::Forgotten => forget(owner, std::slice::from_ref(snapshot)).await.unwrap(),
            Self::Revoked => {
                owner.revoke(commit.writer, Some(commit.n), "stolen").await.unwrap();
            }
        }
        let report = owner.prune(thorough()).await.unwrap();
        assert!(report.objects_deleted > 0, "{report:?}");
    }
}

/// A repository with a snapshot of a writer's, which goes, and one of the owner's, which stays.
struct Two {
    world: World,
    owner: Repository,
    going: Snapshot,
    staying: Snapshot,
    dir: tempfile::TempDir,
}

async fn two_snapshots() -> Two {
    let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
    let owner = world.open().await;
    put(dir.path(), "a", 1, LARGE);
    let staying = back_up(&owner, dir.path()).await.unwrap();
    put(dir.path(), "a", 2, LARGE);
    let going = back_up(&new_writer(&world, &owner).await, dir.path()).await.unwrap();
    let (going, staying) = (snapshot_of(&owner, &going).await, snapshot_of(&owner, &staying).await);
    Two { world, owner, going, staying, dir }
}

async fn new_writer(world: &World, owner: &Repository) -> Repository {
    let key = world::enroll(owner, "writer", Roles::WRITER).await;
    world::open(Arc::new(world.store.clone()), &key, Cache::memory(), LIMITS).await.unwrap()
}

/// It has listed commits and retirements, and comes to the manifest when that is gone.
#[test]
fn a_listing_does_not_call_damaged_what_counts_no_longer() {
    for how in WAYS {
        run(async {
            let Two { world, owner, going, staying, .. } = two_snapshots().await;
            let manifest = names::manifest_key(&going.commit.manifest.unwrap()).to_string();
            let gate = Arc::new(Gate::reading(world.store.clone(), manifest));
            let slow = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
            let withdraw = async {
                gate.reached().await;
                how.withdraw(&owner, &going).await;
                gate.open();
            };
            let (listed, ()) = tokio::join!(slow.snapshots(), withdraw);
            let listed = listed.unwrap();
            assert_eq!(listed.iter().map(|s| s.id).collect::<Vec<_>>(), [staying.id], "{how:?}");
            listed[0].manifest().unwrap();
        });
    }
}

#[test]
fn a_keeper_that_has_not_heard_of_a_revocation_prunes() {
    run(async {
        let Two { world, owner, going, staying, dir } = two_snapshots().await;
        let keeper = world.open().await;
        How::Revoked.withdraw(&owner, &going).await;
        keeper.prune(thorough()).await.unwrap();
        assert_sound(&keeper, "after both").await;
        put(dir.path(), "a", 1, LARGE);
        assert_same(&read(dir.path()), &restored(&keeper, &staying, dir.path()).await, "what stays");
    });
}

#[test]
fn what_a_member_commits_that_joined_since_is_listed_and_kept() {
    run(async {
        let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
        let owner = world.open().await;
        let [reader, keeper] = [world.open().await, world.open().await];
        put(dir.path(), "a", 1, LARGE);
        let report = back_up(&new_writer(&world, &owner).await, dir.path()).await.unwrap();
        keeper.prune(thorough()).await.unwrap();
        let snapshot = snapshot_of(&reader, &report).await;
        assert_same(&read(dir.path()), &restored(&reader, &snapshot, dir.path()).await, "the member's");
    });
}

async fn restore_of_going(two: &Two, reader: &Repository) -> Result<RestoreReport, Error> {
    let to = tempfile::tempdir().unwrap();
    restore(reader, &two.going, two.dir.path(), to.path()).await
}

#[test]
fn a_restore_says_why_a_snapshot_is_gone() {
    for how in WAYS {
        run(async {
            let two = two_snapshots().await;
            let reader = two.world.open().await;
            how.withdraw(&two.owner, &two.going).await;
            let refused = restore_of_going(&two, &reader).await.unwrap_err();
            assert!(matches!(&refused, Error::NoSuchSnapshot(why) if why.contains(how.word())), "{refused}");
        });
    }
}

/// It has read the tree by then, and finds no content.
#[test]
fn a_restore_of_which_a_part_is_gone_says_why() {
    for how in WAYS {
        run(async {
            let two = two_snapshots().await;
            let gate = Arc::new(Gate::reading(two.world.store.clone(), "data/"));
            let reader = two.world.open_with(gate.clone(), Cache::memory()).await.unwrap();
            let withdraw = async {
                gate.reached().await;
                how.withdraw(&two.owner, &two.going).await;
                gate.open();
            };
            let (report, ()) = tokio::join!(restore_of_going(&two, &reader), withdraw);
            let report = report.unwrap();
            let (what, why) = &report.problems[0];
            assert_eq!(what, &format!("snapshot {}", two.going.short()), "{:?}", report.problems);
            assert!(why.contains(how.word()) && report.problem_count == 2, "{:?}", report.problems);
        });
    }
}

/// Of the first tree nothing was read by then, of the second all but the content of its file.
#[test]
fn who_reads_in_a_snapshot_is_told_why_it_is_gone() {
    for how in WAYS {
        run(async {
            let two = two_snapshots().await;
            let (reader, root) = (two.world.open().await, MapKey::root());
            let tree = reader.tree(&two.going).await.unwrap();
            let file = open_only_file(two.world.open().await.tree(&two.going).await.unwrap()).await;
            how.withdraw(&two.owner, &two.going).await;
            let children = tree.clone();
            let mut told = vec![
                tree.entry(&root).await.map(drop).unwrap_err(),
                tree.list(&root, Depth::All, |_, _| ControlFlow::Continue(())).await.unwrap_err(),
                tree.dump_file(&root, &mut io::sink()).await.unwrap_err(),
                tree.dump_archive(&root, ArchiveFormat::Tar, &mut io::sink()).await.map(drop).unwrap_err(),
            ];
            for (before, after) in [(&two.staying, &two.going), (&two.going, &two.staying)] {
                let compared = reader.diff(before, after, |_| ControlFlow::Continue(())).await;
                told.push(compared.map(drop).unwrap_err());
            }
            let rewrite = RewriteOptions::of(&two.going).unwrap();
            told.push(reader.rewrite(&two.going, rewrite).await.map(drop).unwrap_err());
            let read = tokio::task::spawn_blocking(move || {
                let children = children.children_blocking(&MapKey::root(), None, 9).map(drop);
                [children.unwrap_err(), file.read_at(0, 9).map(drop).unwrap_err()]
            });
            told.extend(read.await.unwrap());
            for error in told {
                let is_told = matches!(&error, Error::NoSuchSnapshot(why) if why.contains(how.word()));
                assert!(is_told, "{how:?}: {error}");
            }
        });
    }
}

/// A tree was opened, and nothing of it read, when a prune moves what it needs.
#[test]
fn who_reads_in_a_snapshot_finds_what_was_moved() {
    run(async {
        let (case, second) = Case::new().await.with_second().await;
        let tree = case.world.open().await.tree(&second).await.unwrap();
        let owner = case.world.open().await;
        forget(&owner, std::slice::from_ref(&case.first.0)).await.unwrap();
        assert!(owner.prune(thorough()).await.unwrap().packs_repacked > 0);
        let root = MapKey::root();
        let report = tree.dump_archive(&root, ArchiveFormat::Tar, &mut io::sink()).await.unwrap();
        assert_eq!(report.content_bytes, 3 * LARGE as u64 + 5_000 + 7_000);
    });
}

/// Does something; when an object is first read, others do something else.
async fn beside<T>(
    world: &World,
    name: &str,
    work: impl AsyncFnOnce(&Repository) -> T,
    others: impl AsyncFnOnce(&Repository),
) -> T {
    let owner = world.open().await;
    let gate = Arc::new(Gate::reading(world.store.clone(), name));
    let slow = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
    let others = async {
        gate.reached().await;
        others(&owner).await;
        gate.open();
    };
    let (done, ()) = tokio::join!(work(&slow), others);
    done
}

/// Checks everything.
async fn check_beside(world: &World, name: &str, others: impl AsyncFnOnce(&Repository)) -> CheckReport {
    let options = CheckOptions { read: ReadData::Everything };
    beside(world, name, async |slow: &Repository| slow.check(options).await.unwrap(), others).await
}

async fn names_of(world: &World, prefixes: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    for prefix in prefixes {
        names.extend(world.names(prefix).await);
    }
    names
}

#[test]
fn a_check_does_not_call_damaged_what_counts_no_longer() {
    for how in WAYS {
        run(async {
            let two = two_snapshots().await;
            let read = ["commits/", "manifests/", "index/", "meta/", "data/"];
            for name in names_of(&two.world, &read).await {
                let world = two.world.fork();
                let withdraw = async |owner: &Repository| how.withdraw(owner, &two.going).await;
                let report = check_beside(&world, &name, withdraw).await;
                assert!(report.is_sound(), "{how:?} when {name} is read: {report:?}");
            }
        });
    }
}

#[test]
fn sums_do_not_stop_at_what_counts_no_longer() {
    for how in WAYS {
        run(async {
            let two = two_snapshots().await;
            for name in two.world.names("meta/").await {
                let world = two.world.fork();
                let withdraw = async |owner: &Repository| how.withdraw(owner, &two.going).await;
                let usage = beside(&world, &name, async |slow: &Repository| slow.usage().await, withdraw);
                let usage = usage.await.unwrap_or_else(|e| panic!("{how:?} when {name} is read: {e}"));
                let snapshots: Vec<_> = usage.growth.iter().map(|growth| growth.snapshot).collect();
                assert_eq!(snapshots, [Some(two.staying.id)], "{how:?} when {name} is read");
            }
        });
    }
}

/// What is needed of a pack is moved, and the pack goes.
#[test]
fn a_check_follows_what_a_prune_moves() {
    run(async {
        let (case, _) = Case::new().await.with_second().await;
        forget(&case.world.open().await, std::slice::from_ref(&case.first.0)).await.unwrap();
        // Not the manifests: nobody reads that of what was forgotten.
        for name in names_of(&case.world, &["commits/", "index/", "meta/", "data/"]).await {
            let world = case.world.fork();
            let mut moved = 0;
            let prune = async |owner: &Repository| {
                moved = owner.prune(thorough()).await.unwrap().packs_repacked;
            };
            let report = check_beside(&world, &name, prune).await;
            assert!(report.is_sound() && moved > 0, "when {name} is read: {moved} moved, {report:?}");
        }
    });
}

/// Opens the file of a snapshot that has one.
async fn open_only_file(tree: Tree) -> OpenFile {
    let mut files = Vec::new();
    let visit = |key: &MapKey, entry: &Entry| {
        files.extend((entry.kind == EntryKind::File).then(|| key.clone()));
        ControlFlow::Continue(())
    };
    tree.list(&MapKey::root(), Depth::All, visit).await.unwrap();
    tokio::task::spawn_blocking(move || tree.open_blocking(&files[0]).unwrap()).await.unwrap()
}

/// A process has chosen a number. Before it claims that, another one with its credential has backed up under it, and a
/// keeper has removed the claim of a session that had ended.
#[test]
fn a_number_that_another_process_has_used_publishes_nothing_of_ours() {
    run(async {
        let (world, source) = (World::new().await, tempfile::tempdir().unwrap());
        put(source.path(), "a", 1, LARGE);
        let gate = Arc::new(Gate::wide_open(world.store.clone()));
        gate.shut(|operation, key| operation == Operation::Put && key.starts_with("sessions/"));
        let slow = world.open_with(gate.clone(), Cache::memory()).await.unwrap();
        let fast = world.open().await;
        let others = async {
            gate.reached().await;
            let report = back_up(&fast, source.path()).await.unwrap();
            fast.prune(thorough()).await.unwrap();
            assert!(world.names("sessions/").await.is_empty(), "the claim is gone");
            gate.open();
            report
        };
        let (slow_ended, report) = tokio::join!(back_up(&slow, source.path()), others);
        let refused = slow_ended.unwrap_err();
        assert!(matches!(refused, Error::Fenced { seq, .. } if seq == report.seq), "{refused}");
        assert!(refused.to_string().contains("ended by another process"), "{refused}");
        assert!(refused.hint().unwrap().contains("the same number"));
        back_up(&slow, source.path()).await.unwrap();
        assert_sound(&fast, "afterwards").await;
        let snapshot = snapshot_of(&fast, &report).await;
        assert_same(&read(source.path()), &restored(&fast, &snapshot, source.path()).await, "the faster");
    });
}

/// It has listed the trust chain. Then that grows, and another process with its cache sees it.
#[test]
fn who_opens_slowly_beside_another_process_does_not_take_trust_for_set_back() {
    run(async {
        let (world, cache) = (World::new().await, Cache::memory());
        let gate = Arc::new(Gate::reading(world.store.clone(), names::trust_key(1).as_str()));
        let others = async {
            gate.reached().await;
            world.open().await.create_domain("more").await.unwrap();
            world.open_with(Arc::new(world.store.clone()), cache.clone()).await.unwrap();
            gate.open();
        };
        let (slow, ()) = tokio::join!(world.open_with(gate.clone(), cache.clone()), others);
        back_up(&slow.unwrap(), tempfile::tempdir().unwrap().path()).await.unwrap();
    });
}
