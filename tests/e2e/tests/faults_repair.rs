//! A repair, and a rewriting, that fails at every call in turn, in every way: what was there stays, backups go on, and the
//! next repair completes.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use backup_core::{ReadData, Repository, RewriteOptions, Snapshot, restore_vital};
use keepwell_catalog::names;
use keepwell_e2e::damage::{Damage, Forger, Public, inflict};
use keepwell_e2e::faults::{KINDS, at_every_call, at_every_call_in_turn};
use keepwell_e2e::tree::Tree;
use keepwell_e2e::{run, tree, world};
use keepwell_storage::{Faulty, Memory};
use tempfile::TempDir;
use world::{World, assert_sound, back_up, forget, restored, snapshot_of, thorough};

/// A repository with three snapshots, a copy of it, and a mirror.
struct Case {
    world: World,
    copy: World,
    source: TempDir,
    snapshots: Vec<(Snapshot, Tree)>,
}

impl Case {
    async fn new() -> Self {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        let mut snapshots = Vec::new();
        for generation in 0..4u64 {
            tree::put(dir, &format!("{generation}"), generation, 40_000);
            tree::put(dir, "always/changing", 100 + generation, 3000);
            let report = back_up(&repository, dir).await.unwrap();
            snapshots.push((snapshot_of(&repository, &report).await, tree::read(dir)));
        }
        let (oldest, _) = snapshots.remove(0);
        forget(&repository, &[oldest]).await.unwrap();
        repository.prune(thorough()).await.unwrap();
        let copy = Memory::new();
        repository.create_copy(&copy).await.unwrap();
        let copy = World { store: copy, key: world.key.clone() };
        let listed = repository.snapshots().await.unwrap();
        repository.copy_to_store(&copy.open().await, &listed).await.unwrap();
        Self { world, copy, source, snapshots }
    }

    fn dir(&self) -> &Path {
        self.source.path()
    }

    async fn public(&self) -> Public {
        Public::of(&self.world.open().await, Forger::new(self.dir()).await)
    }

    async fn damage(&self, damage: Damage, name: &str) {
        assert!(inflict(&self.world.store, damage, name, None, &self.public().await, 7).await);
    }

    /// What a repair that broke off leaves: backups go on, and the next repair heals everything, once.
    async fn heals(&self, world: World, from: &World, what: &str) {
        let repository = world.open().await;
        let report = back_up(&repository, self.dir()).await;
        let report = report.unwrap_or_else(|e| panic!("{what}: a backup between: {e}"));
        let repository = world.open().await;
        let repaired =
            repository.repair(Some(&from.open().await), world::repairing(ReadData::Everything)).await;
        let repaired = repaired.unwrap_or_else(|e| panic!("{what}: then {e}"));
        assert!(repaired.after.is_sound(), "{what}: {:#?}", repaired.after.findings);
        let now = tree::read(self.dir());
        let repository = world.open().await;
        let mut listed = repository.snapshots().await.unwrap();
        assert_eq!(listed.len(), self.snapshots.len() + 1, "{what}: {listed:#?}");
        for (snapshot, expected) in &self.snapshots {
            let at = listed.iter().position(|s| s.id == snapshot.id);
            let found = listed.remove(at.unwrap_or_else(|| panic!("{what}: {} is gone", snapshot.short())));
            tree::assert_same(expected, &restored(&repository, &found, self.dir()).await, what);
        }
        assert_eq!(listed[0].id, report.snapshot, "{what}");
        tree::assert_same(&now, &restored(&repository, &listed[0], self.dir()).await, what);
        world::prune_to_the_end(&repository, what).await;
        assert_eq!(repository.snapshots().await.unwrap().len(), self.snapshots.len() + 1, "{what}");
    }
}

async fn a_repair_fails(case: &Case, from: &World) {
    let attempt = async |repository: &Repository| {
        let from = from.open().await;
        repository.repair(Some(&from), world::repairing(ReadData::Everything)).await.map(|_| ())
    };
    let verify = async |world: World, _: bool, what: String| case.heals(world, from, &what).await;
    let attempts = at_every_call_in_turn(&case.world, attempt, verify).await;
    assert!(attempts > 40, "{attempts}");
}

#[test]
fn a_repair_of_the_newest_commit_fails_at_every_call() {
    run(async {
        let case = Case::new().await;
        let newest = &case.snapshots[2].0.commit;
        case.damage(Damage::Flipped, names::commit_key(newest.writer, newest.n).as_str()).await;
        a_repair_fails(&case, &case.copy).await;
    });
}

#[test]
fn a_repair_of_a_manifest_fails_at_every_call() {
    run(async {
        let case = Case::new().await;
        let manifest = names::manifest_key(&case.snapshots[1].0.commit.manifest.unwrap());
        case.damage(Damage::Deleted, manifest.as_str()).await;
        a_repair_fails(&case, &case.copy).await;
    });
}

#[test]
fn a_repair_of_packs_and_index_fails_at_every_call() {
    run(async {
        let case = Case::new().await;
        case.damage(Damage::Flipped, &case.world.names("data/").await[0]).await;
        case.damage(Damage::Deleted, &case.world.names("index/").await[1]).await;
        a_repair_fails(&case, &case.copy).await;
    });
}

#[test]
fn a_repair_from_a_mirror_fails_at_every_call() {
    run(async {
        let case = Case::new().await;
        let mirror = case.world.fork();
        let plans = case.world.names("gc/").await;
        case.damage(Damage::Deleted, &plans[1]).await;
        case.damage(Damage::Flipped, &case.world.names("retired/").await[0]).await;
        case.damage(Damage::Truncated, &case.world.names("lists/").await[0]).await;
        case.damage(Damage::Forged, case.world.names("trust/").await.last().unwrap()).await;
        let attempt = async |repository: &Repository| {
            let from = mirror.open().await;
            repository.repair(Some(&from), world::repairing(ReadData::Nothing)).await.map(|_| ())
        };
        // What cannot be opened is healed before it is opened.
        let pin = case.world.key.genesis;
        for kind in KINDS {
            for n in 1.. {
                let world = case.world.fork();
                let store = Faulty::new(world.store.clone(), kind(n));
                let first = restore_vital(&store, &mirror.store, pin, 1).await;
                let what = format!("{:?}: {:?}", kind(n), first.err().map(|e| e.to_string()));
                let put = restore_vital(&world.store, &mirror.store, pin, 1).await;
                put.unwrap_or_else(|e| panic!("{what}: then {e}"));
                world.open().await;
                if !store.fired() {
                    break;
                }
            }
        }
        restore_vital(&case.world.store, &mirror.store, pin, 1).await.unwrap();
        let verify = async |world: World, _: bool, what: String| {
            let repository = world.open().await;
            let report =
                repository.repair(Some(&mirror.open().await), world::repairing(ReadData::Nothing)).await;
            let report = report.unwrap_or_else(|e| panic!("{what}: then {e}"));
            assert!(report.after.is_sound(), "{what}: {:#?}", report.after.findings);
            case.heals(world, &mirror, &what).await;
        };
        at_every_call_in_turn(&case.world, attempt, verify).await;
    });
}

#[test]
fn a_repair_leaves_alone_what_is_sound_though_the_copy_has_something_else() {
    run(async {
        let case = Case::new().await;
        let newest = case.snapshots[2].0.clone();
        let key = names::commit_key(newest.commit.writer, newest.commit.n);
        // The store was set back, as from an older image, and went on differently: another snapshot has the number.
        let fork = case.world.fork();
        for prefix in ["commits/", "lists/", "sessions/"] {
            for name in fork.names(prefix).await {
                let n: u64 = name.split('/').nth(2).unwrap().parse().unwrap();
                if n >= newest.commit.n {
                    keepwell_storage::ObjectStore::delete(&fork.store, &name.parse().unwrap()).await.unwrap();
                }
            }
        }
        tree::put(case.dir(), "another", 77, 9000);
        let repository = fork.open().await;
        let other = back_up(&repository, case.dir()).await.unwrap();
        assert_eq!(other.seq, newest.commit.n, "the fork");
        let before = keepwell_storage::ObjectStore::get(&fork.store, &key).await.unwrap();
        let repository = fork.open().await;
        let report = repository
            .repair(Some(&case.copy.open().await), world::repairing(ReadData::Everything))
            .await
            .unwrap();
        assert!(report.after.is_sound(), "{:#?}", report.after.findings);
        assert_eq!(keepwell_storage::ObjectStore::get(&fork.store, &key).await.unwrap(), before);
        let listed = fork.open().await.snapshots().await.unwrap();
        let ids: Vec<_> = listed.iter().map(|s| s.id).collect();
        assert!(ids.contains(&other.snapshot) && ids.contains(&newest.id) && ids.len() == 4, "{ids:?}");
    });
}

#[test]
fn trust_that_was_changed_in_both_stores_is_not_overwritten() {
    run(async {
        let case = Case::new().await;
        let (here, there) = (case.world.open().await, case.copy.open().await);
        world::enroll(&here, "one", keepwell_crypto::trust::Roles::WRITER).await;
        world::enroll(&there, "two", keepwell_crypto::trust::Roles::WRITER).await;
        let before = case.world.names("trust/").await;
        let pin = case.world.key.genesis;
        let refused = restore_vital(&case.world.store, &case.copy.store, pin, 1).await.unwrap_err();
        assert!(refused.to_string().contains("apart from each other"), "{refused}");
        assert_eq!(case.world.names("trust/").await, before);
        assert!(case.world.open().await.chain().members().any(|member| member.name == "one"));
    });
}

#[test]
fn a_rewriting_fails_at_every_call() {
    run(async {
        let case = Case::new().await;
        let old = case.snapshots[1].0.clone();
        let attempt = async |repository: &Repository| {
            let mut options = RewriteOptions::of(&old)?;
            options.tags = vec!["again".into()];
            // As the command does it: what is not listed any more is done.
            if repository.snapshots().await?.iter().any(|s| s.id == old.id) {
                repository.rewrite(&old, options).await?;
                repository.forget(&[(&old, "written anew".into())]).await?;
            }
            Ok(())
        };
        let verify = async |world: World, succeeded: bool, what: String| {
            let repository = world.open().await;
            let listed = repository.snapshots().await.unwrap();
            // Both stand for a moment; the old one goes only when the new one is there.
            assert!((3..=4).contains(&listed.len()), "{what}: {}", listed.len());
            assert!(!succeeded || listed.iter().all(|s| s.id != old.id), "{what}");
            let expected = &case.snapshots[1].1;
            for snapshot in &listed {
                let is_it = snapshot.id == old.id || snapshot.manifest().unwrap().original == Some(old.id);
                if is_it {
                    tree::assert_same(expected, &restored(&repository, snapshot, case.dir()).await, &what);
                }
            }
            assert_sound(&repository, &what).await;
            attempt(&repository).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
            world::prune_to_the_end(&repository, &what).await;
            let listed = repository.snapshots().await.unwrap();
            assert_eq!(listed.len(), 3, "{what}");
            assert!(listed.iter().all(|s| s.id != old.id), "{what}");
        };
        let attempts = at_every_call(&case.world, attempt, verify).await;
        assert!(attempts > 60, "{attempts}");
    });
}
