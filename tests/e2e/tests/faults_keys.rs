//! The key commands, interrupted at every call of the store: nobody who counts is locked out, neither before nor after
//! the command is given again; everything committed restores; and the command then completes.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use backup_core::{BackupOptions, Cache, Error, Repository, Snapshot};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{DomainId, MemberId};
use keepwell_e2e::faults::at_every_call_once_open;
use keepwell_e2e::tree::Tree;
use keepwell_e2e::{run, tree, world};
use tempfile::TempDir;
use world::{World, assert_sound, back_up, back_up_with, options, restored, snapshot_of};

/// A repository of two owners, a host with every role, a mere writer and a mere reader, with a snapshot of each writer
/// and one in an erasable domain.
struct Case {
    world: World,
    source: TempDir,
    bob: KeyFile,
    web: KeyFile,
    desk: KeyFile,
    domain: DomainId,
    snapshots: Vec<(Snapshot, Tree)>,
    erasable: Snapshot,
    /// What the next backup stores was never stored before.
    seed: Cell<u64>,
}

impl Case {
    async fn new() -> Self {
        let world = World::new().await;
        let ann = world.open().await;
        let bob = ann.new_owner("bob", None).unwrap();
        ann.add_owner(&bob).await.unwrap();
        let web = ann.new_member("web", Roles::WRITER, None).unwrap();
        ann.enroll(&web).await.unwrap();
        let desk = ann.new_member("desk", Roles::READER, None).unwrap();
        ann.enroll(&desk).await.unwrap();
        let domain = ann.create_domain("customer").await.unwrap();
        let source = tempfile::tempdir().unwrap();
        tree::put(source.path(), "d/a", 1, 3000);
        let host = world.open().await;
        let report = into(&host, source.path(), domain).await;
        let erasable = snapshot_of(&host, &report).await;
        let (web_key, seed) = (web.clone(), Cell::new(10));
        let mut case = Self { world, source, bob, web, desk, domain, snapshots: Vec::new(), erasable, seed };
        for key in [case.world.key.clone(), web_key] {
            let committed = case.back_up_as(&case.world, &key).await;
            case.snapshots.push(committed);
        }
        case
    }

    fn dir(&self) -> &Path {
        self.source.path()
    }

    /// Something new, backed up by one of the members.
    async fn back_up_as(&self, world: &World, key: &KeyFile) -> (Snapshot, Tree) {
        self.seed.set(self.seed.get() + 1);
        tree::put(self.dir(), "new", self.seed.get(), 2000);
        let writer = open(world, key).await;
        let report = back_up(&writer, self.dir()).await.unwrap();
        (snapshot_of(&writer, &report).await, tree::read(self.dir()))
    }

    /// The writers back up, and the readers restore that and all from before, each with a credential of its own.
    async fn all_at_work(&self, world: &World, writers: &[&KeyFile], readers: &[&KeyFile], what: &str) {
        let mut all = self.snapshots.clone();
        for key in writers {
            all.push(self.back_up_as(world, key).await);
        }
        for key in readers {
            let reader = open(world, key).await;
            let listed = reader.snapshots().await.unwrap();
            for (snapshot, expected) in &all {
                let listed = listed.iter().find(|s| s.id == snapshot.id).expect("it is listed");
                let found = restored(&reader, listed, self.dir()).await;
                tree::assert_same(expected, &found, &format!("{what}; as {}", key.name));
            }
        }
    }

    async fn sound(&self, world: &World, what: &str) {
        let scrub = backup_core::scrub(&world.store, Some(world.key.genesis), true).await.unwrap();
        assert!(scrub.findings.is_empty(), "{what}: {:#?}", scrub.findings);
        world.open().await.prune(world::thorough()).await.unwrap();
        assert_sound(&world.open().await, what).await;
    }

    /// Interrupts `command` everywhere; `before` and `after` it is given again, all is looked at.
    async fn at_every_call(
        &self,
        command: impl AsyncFn(&Repository) -> Result<(), Error>,
        before: impl AsyncFn(&World, &str),
        after: impl AsyncFn(&World, &str),
    ) {
        let verify = async |world: World, _: bool, what: String| {
            before(&world, &what).await;
            command(&world.open().await).await.unwrap_or_else(|e| panic!("{what}; then {e}"));
            after(&world, &format!("{what}; given again")).await;
            self.sound(&world, &what).await;
        };
        let attempts = at_every_call_once_open(&self.world, &command, verify).await;
        assert!(attempts >= 20, "{attempts}");
    }
}

async fn open(world: &World, key: &KeyFile) -> Repository {
    world::open(Arc::new(world.store.clone()), key, Cache::memory(), world::LIMITS).await.unwrap()
}

async fn into(repository: &Repository, dir: &Path, domain: DomainId) -> backup_core::BackupReport {
    let options = BackupOptions { domain: Some(domain), dataset: "customer".into(), ..options() };
    back_up_with(repository, dir, options).await.unwrap()
}

fn member(key: &KeyFile) -> MemberId {
    key.member.as_ref().unwrap().signing.member_id()
}

fn owner(key: &KeyFile) -> MemberId {
    key.owner.as_ref().unwrap().root.member_id()
}

#[test]
fn an_enrolment_is_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let (host, bob) = (case.world.key.clone(), &case.bob);
        let new = case.world.open().await.new_member("new", Roles::WRITER | Roles::READER, None).unwrap();
        let enroll = async |repository: &Repository| repository.enroll(&new).await;
        let before = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host, &case.web], &[&host, bob, &case.desk], what).await;
            if world.open().await.chain().member(&member(&new)).is_some() {
                case.all_at_work(world, &[&new], &[&new, &case.desk], what).await;
            }
        };
        let after = async |world: &World, what: &str| {
            case.all_at_work(world, &[&new, &host], &[&new, bob], what).await;
            let found = restored(&open(world, &new).await, &case.erasable, case.dir()).await;
            assert!(found.contains_key(Path::new("d/a")), "{what}: the keys of the domain came with it");
            enroll(&world.open().await).await.unwrap();
        };
        case.at_every_call(enroll, before, after).await;
    });
}

#[test]
fn an_owner_joins_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let (host, bob) = (case.world.key.clone(), &case.bob);
        let new = case.world.open().await.new_owner("new", None).unwrap();
        let join = async |repository: &Repository| repository.add_owner(&new).await;
        let before = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host, &case.web], &[&host, bob, &case.desk], what).await;
            if world.open().await.chain().owners().any(|o| o.id() == owner(&new)) {
                open(world, &new)
                    .await
                    .rotate_keys()
                    .await
                    .unwrap_or_else(|e| panic!("{what}: as owner {e}"));
            }
        };
        let after = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host], &[&new, &case.desk], what).await;
            let found = restored(&open(world, &new).await, &case.erasable, case.dir()).await;
            assert!(found.contains_key(Path::new("d/a")), "{what}: the keys of the domain came with it");
        };
        case.at_every_call(join, before, after).await;
    });
}

#[test]
fn a_revocation_is_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let (host, bob) = (case.world.key.clone(), &case.bob);
        let revoke = async |repository: &Repository| {
            repository.revoke(member(&case.web), None, "stolen").await?;
            repository.rotate_keys().await
        };
        let before = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host], &[&host, bob, &case.desk], what).await;
        };
        let after = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host], &[&host, bob, &case.desk], what).await;
            let refused = back_up(&open(world, &case.web).await, case.dir()).await;
            assert!(matches!(refused, Err(Error::WrongKey(_))), "{what}: {refused:?}");
        };
        case.at_every_call(revoke, before, after).await;
    });
}

#[test]
fn a_rotation_is_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let (host, bob) = (case.world.key.clone(), &case.bob);
        let rotate = async |repository: &Repository| repository.rotate_keys().await;
        let at_work = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host, &case.web], &[&host, bob, &case.desk], what).await;
            let report = into(&open(world, &case.web).await, case.dir(), case.domain).await;
            let desk = open(world, &case.desk).await;
            let snapshot = snapshot_of(&desk, &report).await;
            tree::assert_same(&tree::read(case.dir()), &restored(&desk, &snapshot, case.dir()).await, what);
        };
        case.at_every_call(rotate, at_work, at_work).await;
    });
}

#[test]
fn an_owner_leaves_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let host = case.world.key.clone();
        let remove = async |repository: &Repository| repository.remove_owner(owner(&case.bob)).await;
        let before = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host, &case.web], &[&host, &case.desk], what).await;
        };
        let after = async |world: &World, what: &str| {
            let (committed, _) = case.back_up_as(world, &case.web).await;
            case.all_at_work(world, &[&host, &case.web], &[&host, &case.desk], what).await;
            // He opens what nobody renewed, and not what is sealed to the new keys.
            let store = Arc::new(world.store.clone());
            if let Ok(bob) = world::open(store, &case.bob, Cache::memory(), world::LIMITS).await {
                assert!(snapshot_of_id(&bob, &committed).await.manifest().is_err(), "{what}");
                assert!(bob.rotate_keys().await.is_err(), "{what}");
            }
        };
        case.at_every_call(remove, before, after).await;
    });
}

async fn snapshot_of_id(repository: &Repository, wanted: &Snapshot) -> Snapshot {
    repository.snapshots().await.unwrap().into_iter().find(|s| s.id == wanted.id).unwrap()
}

#[test]
fn a_domain_is_made_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let (host, bob) = (case.world.key.clone(), &case.bob);
        let named =
            |repository: &Repository| repository.chain().domains().find(|d| d.name == "new").map(|d| d.id);
        // Made is made: to be told that it exists is as good.
        let make = async |repository: &Repository| match repository.create_domain("new").await {
            Err(Error::Invalid(_)) if named(repository).is_some() => Ok(()),
            made => made.map(|_| ()),
        };
        let before = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host, &case.web], &[&host, bob, &case.desk], what).await;
        };
        let after = async |world: &World, what: &str| {
            let web = open(world, &case.web).await;
            let report = into(&web, case.dir(), named(&web).unwrap()).await;
            for key in [&host, bob, &case.desk] {
                let reader = open(world, key).await;
                let snapshot = snapshot_of(&reader, &report).await;
                let found = restored(&reader, &snapshot, case.dir()).await;
                tree::assert_same(&tree::read(case.dir()), &found, what);
            }
        };
        case.at_every_call(make, before, after).await;
    });
}

#[test]
fn an_erasure_is_interrupted_at_every_call() {
    run(async {
        let case = Case::new().await;
        let (host, bob) = (case.world.key.clone(), &case.bob);
        let keys = case.world.names("keys/erasable/").await;
        assert_eq!(keys.len(), 3);
        let is_proven = |repository: &Repository| {
            let chain = repository.chain();
            chain.is_erased(&case.domain) && chain.unproven_keys(&case.domain).next().is_none()
        };
        let erase = async |repository: &Repository| {
            let nothing_is_left = is_proven(repository);
            let erased = repository.erase_domain(case.domain, &[]).await?;
            if !nothing_is_left {
                assert_eq!(erased.gone, keys, "what an interrupted erasure deleted is proven too");
                assert_eq!(erased.holders.len(), 5, "three members and two owners");
            }
            Ok(())
        };
        let before = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host, &case.web], &[&host, bob, &case.desk], what).await;
        };
        let after = async |world: &World, what: &str| {
            case.all_at_work(world, &[&host], &[bob, &case.desk], what).await;
            assert_eq!(world.names("keys/erasable/").await, Vec::<String>::new(), "{what}");
            let repository = world.open().await;
            assert!(repository.tree(&case.erasable).await.is_err(), "{what}");
            assert!(is_proven(&repository), "{what}");
        };
        case.at_every_call(erase, before, after).await;
    });
}
