//! What owners change in the origin reaches its copies, before anything that relies on it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use keepwell_catalog::wal::WalPlace;
use keepwell_crypto::MemberId;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_storage::{Fault, Faulty, Memory, ObjectStore, Operation, list_all};

use crate::testing::{
    Hook, Hooked, MemorySource, Thing, TreeModel, World, back_up, block_on, options, restored, snapshot_of,
};
use crate::wal::WalFloor;
use crate::{BackupOptions, BackupReport, CheckOptions, Error, ReadData, Repository};

fn tree(content: &str) -> TreeModel {
    TreeModel::default().with("file", Thing::file(content.as_bytes()))
}

fn member(key: &KeyFile) -> MemberId {
    key.member.as_ref().unwrap().signing.member_id()
}

fn kit(key: &KeyFile) -> KeyFile {
    KeyFile { member: None, ..key.clone() }
}

async fn open(store: &Memory, key: &KeyFile) -> Repository {
    Repository::builder(Arc::new(store.clone())).open(key.clone()).await.unwrap()
}

async fn fork(store: &Memory) -> Memory {
    let twin = Memory::new();
    for info in list_all(store, "").await.unwrap() {
        twin.put_new(&info.key, store.get(&info.key).await.unwrap()).await.unwrap();
    }
    twin
}

async fn names(store: &Memory, prefix: &str) -> Vec<String> {
    list_all(store, prefix).await.unwrap().into_iter().map(|info| info.key.to_string()).collect()
}

async fn enroll(owner: &Repository, name: &str, roles: Roles) -> KeyFile {
    let key = owner.new_member(name, roles, None).unwrap();
    owner.enroll(&key).await.unwrap();
    key
}

async fn back_up_into(repository: &Repository, domain: &str, tree: &TreeModel) -> BackupReport {
    let id = repository.chain().domains().find(|d| d.name == domain).unwrap().id;
    let options = BackupOptions { domain: Some(id), ..options(domain) };
    repository.backup(Arc::new(MemorySource::new(tree.clone())), options).await.unwrap()
}

/// An origin with a snapshot, and a copy that has it.
struct Pair {
    world: World,
    copy: Memory,
    /// Open since before anything changed.
    target: Repository,
    desk: KeyFile,
    before: BackupReport,
}

impl Pair {
    async fn new() -> Self {
        let world = World::new().await;
        let desk = enroll(&world.repository, "desk", Roles::WRITER | Roles::READER).await;
        let before = back_up(&world.repository, &tree("before")).await;
        let copy = Memory::new();
        world.repository.create_copy(&copy).await.unwrap();
        let target = open(&copy, &world.key).await;
        let pair = Self { world, copy, target, desk, before };
        pair.copy_all(&pair.target).await.unwrap();
        pair
    }

    async fn origin(&self) -> Repository {
        self.world.open(&self.world.key).await
    }

    async fn copy_all(&self, target: &Repository) -> Result<(), Error> {
        let origin = self.origin().await;
        let snapshots = origin.snapshots().await?;
        origin.copy_to_store(target, &snapshots).await.map(|_| ())
    }

    /// As somebody finds it who has nothing left but the copy and a key.
    async fn restores(&self, key: &KeyFile, report: &BackupReport, expected: &TreeModel) {
        let copy = open(&self.copy, key).await;
        let snapshot = snapshot_of(&copy, report).await;
        assert_eq!(restored(&copy, &snapshot).await, *expected, "as {}", key.name);
    }

    async fn burn_origin(&self) {
        for name in self.world.names("").await {
            self.world.delete(&name).await;
        }
    }
}

#[tokio::test]
async fn after_a_rotation_the_copy_opens_all_that_it_gets() {
    let pair = Pair::new().await;
    pair.world.repository.rotate_keys().await.unwrap();
    let after = back_up(&pair.origin().await, &tree("after")).await;
    pair.copy_all(&pair.target).await.unwrap();
    // The handle that was open all the while has the new keys too.
    let seen = snapshot_of(&pair.target, &after).await;
    assert_eq!(restored(&pair.target, &seen).await, tree("after"));
    pair.burn_origin().await;
    for key in [&pair.world.key, &kit(&pair.world.key), &pair.desk] {
        pair.restores(key, &pair.before, &tree("before")).await;
        pair.restores(key, &after, &tree("after")).await;
    }
    let copy = open(&pair.copy, &pair.world.key).await;
    assert!(copy.check(CheckOptions { read: ReadData::Everything }).await.unwrap().is_sound());
}

#[tokio::test]
async fn whom_the_origin_revoked_the_copy_refuses() {
    let pair = Pair::new().await;
    pair.world.repository.revoke(member(&pair.desk), None, "stolen").await.unwrap();
    pair.copy_all(&pair.target).await.unwrap();
    let desk = open(&pair.copy, &pair.desk).await;
    assert!(matches!(desk.writer(), Err(Error::WrongKey(_))));
    pair.origin().await.rotate_keys().await.unwrap();
    let after = back_up(&pair.origin().await, &tree("after")).await;
    pair.copy_all(&pair.target).await.unwrap();
    pair.burn_origin().await;
    for key in [&pair.world.key, &kit(&pair.world.key)] {
        pair.restores(key, &after, &tree("after")).await;
    }
    let desk = open(&pair.copy, &pair.desk).await;
    assert!(snapshot_of(&desk, &after).await.manifest().is_err());
}

#[tokio::test]
async fn who_joined_the_origin_opens_the_copy() {
    let pair = Pair::new().await;
    let web = enroll(&pair.world.repository, "web", Roles::READER | Roles::WRITER).await;
    let bob = pair.world.repository.new_owner("bob", None).unwrap();
    pair.world.repository.add_owner(&bob).await.unwrap();
    let by_web = back_up(&pair.world.open(&web).await, &tree("by web")).await;
    pair.copy_all(&pair.target).await.unwrap();
    pair.burn_origin().await;
    for key in [&web, &bob, &pair.world.key] {
        pair.restores(key, &by_web, &tree("by web")).await;
    }
}

#[tokio::test]
async fn a_new_erasable_domain_opens_in_the_copy_until_it_is_erased_there_too() {
    let pair = Pair::new().await;
    let domain = pair.world.repository.create_domain("customer").await.unwrap();
    let secret = back_up_into(&pair.origin().await, "customer", &tree("secret")).await;
    pair.copy_all(&pair.target).await.unwrap();
    for key in [&pair.world.key, &kit(&pair.world.key), &pair.desk] {
        pair.restores(key, &secret, &tree("secret")).await;
    }
    pair.origin().await.erase_domain(domain, &[]).await.unwrap();
    pair.origin().await.bring_trust(&pair.target).await.unwrap();
    let held = names(&pair.copy, "keys/erasable/").await;
    assert!(!held.is_empty(), "an erasure has to reach them there");
    let copy = open(&pair.copy, &pair.world.key).await;
    assert!(copy.is_erased(domain));
    let erased = copy.erase_domain(domain, &[]).await.unwrap();
    assert_eq!(erased.gone, held);
    assert_eq!(names(&pair.copy, "keys/erasable/").await, Vec::<String>::new());
    // The chains are still one and the same.
    enroll(&pair.origin().await, "web", Roles::READER).await;
    pair.origin().await.bring_trust(&pair.target).await.unwrap();
    assert_eq!(names(&pair.copy, "keys/erasable/").await, Vec::<String>::new());
    assert_eq!(names(&pair.copy, "trust/").await, pair.world.names("trust/").await);
}

#[tokio::test]
async fn archived_log_after_a_rotation_opens_in_the_copy() {
    let pair = Pair::new().await;
    let place = |file| WalPlace::Bytes { file, from: 0, to: 4 };
    let log = pair.world.repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
    log.put(1, place(1), Bytes::from_static(b"one."), None).await.unwrap();
    pair.world.repository.rotate_keys().await.unwrap();
    let desk = enroll(&pair.origin().await, "new desk", Roles::READER).await;
    let log = pair.origin().await.wal_writer("db", 7, 1 << 20, false).await.unwrap();
    log.put(1, place(2), Bytes::from_static(b"two."), None).await.unwrap();
    let floor = [WalFloor { system: 7, file: 0 }];
    assert_eq!(pair.world.repository.copy_wal(&pair.target, &floor).await.unwrap().stored, 2);
    pair.burn_origin().await;
    for key in [&pair.world.key, &kit(&pair.world.key), &desk] {
        let reader = open(&pair.copy, key).await.wal_reader(7).unwrap();
        let writer = reader.writers().await.unwrap()[0];
        let pieces = reader.pieces_from(writer, 1, 0).await.unwrap();
        assert_eq!(pieces.len(), 2);
        for (piece, expected) in pieces.iter().zip([b"one.", b"two."]) {
            assert_eq!(reader.read(piece).await.unwrap().plaintext, expected, "as {}", key.name);
        }
    }
}

#[tokio::test]
async fn nothing_is_copied_where_the_trust_went_another_way() {
    let pair = Pair::new().await;
    let copy = open(&pair.copy, &pair.world.key).await;
    enroll(&copy, "there", Roles::WRITER).await;
    back_up(&pair.world.repository, &tree("after")).await;
    let before = names(&pair.copy, "").await;
    let ahead = pair.copy_all(&pair.target).await.unwrap_err();
    assert!(matches!(ahead, Error::TrustAhead { .. }) && ahead.hint().is_some(), "{ahead}");
    enroll(&pair.world.repository, "here", Roles::WRITER).await;
    enroll(&pair.world.repository, "here too", Roles::WRITER).await;
    let apart = pair.copy_all(&pair.target).await.unwrap_err();
    assert!(matches!(&apart, Error::TrustApart { object } if object.starts_with("trust/")), "{apart}");
    let floor = [WalFloor { system: 7, file: 0 }];
    let wal = pair.world.repository.copy_wal(&pair.target, &floor).await;
    assert!(matches!(wal, Err(Error::TrustApart { .. })), "{wal:?}");
    assert_eq!(names(&pair.copy, "").await, before);
}

/// A keyring that stands in the copy under the name of another one is not passed over: the copy would not open.
#[tokio::test]
async fn a_keyring_that_is_another_one_there_is_an_error() {
    let pair = Pair::new().await;
    let held = pair.world.names("keys/").await;
    pair.world.repository.rotate_keys().await.unwrap();
    let new = pair.world.names("keys/").await.into_iter().find(|name| !held.contains(name)).unwrap();
    pair.copy.put_new(&new.parse().unwrap(), "something else".into()).await.unwrap();
    let refused = pair.copy_all(&pair.target).await.unwrap_err();
    assert!(matches!(&refused, Error::TrustApart { object } if *object == new), "{refused}");
    assert_eq!(names(&pair.copy, "trust/").await.len(), 5, "nothing counts there that was not there");
    pair.restores(&pair.world.key, &pair.before, &tree("before")).await;
}

#[tokio::test]
async fn a_place_with_something_of_another_repository_is_refused_and_left_alone() {
    let (world, other) = (World::new().await, World::new().await);
    let place = Memory::new();
    let genesis = "trust/0000000000".parse().unwrap();
    place.put_new(&genesis, other.store.get(&genesis).await.unwrap()).await.unwrap();
    assert!(matches!(world.repository.create_copy(&place).await, Err(Error::TrustApart { .. })));
    assert_eq!(names(&place, "").await, ["trust/0000000000"]);
}

/// It is no empty place: with another id nothing that was committed there would count any more.
#[tokio::test]
async fn a_copy_that_has_lost_its_hint_is_not_begun_anew() {
    let pair = Pair::new().await;
    let hint = crate::RepositoryHint::key();
    let bytes = pair.copy.get(&hint).await.unwrap();
    pair.copy.delete(&hint).await.unwrap();
    let before = names(&pair.copy, "").await;
    let made = pair.world.repository.create_copy(&pair.copy).await;
    assert!(matches!(made, Err(Error::Damaged { .. })), "{made:?}");
    assert_eq!(names(&pair.copy, "").await, before);
    pair.copy.put_new(&hint, bytes).await.unwrap();
    pair.restores(&pair.world.key, &pair.before, &tree("before")).await;
}

const KINDS: [fn(u64) -> Fault; 4] = [Fault::Once, Fault::FromThenOn, Fault::CrashAfter, Fault::LostResponse];

#[test]
fn a_half_made_copy_is_completed_wherever_it_was_interrupted() {
    block_on(async {
        let pair = Pair::new().await;
        for kind in KINDS {
            for call in 1.. {
                let place = Memory::new();
                let faulty = Faulty::new(place.clone(), kind(call));
                let made = pair.world.repository.create_copy(&faulty).await;
                if !faulty.fired() {
                    assert!(made.is_ok() && call > 15, "{call}");
                    break;
                }
                let what = format!("{:?}: {made:?}", kind(call));
                match pair.world.repository.create_copy(&place).await {
                    Ok(()) => {}
                    Err(Error::RepositoryExists { .. }) => {} // only an answer was lost
                    Err(error) => panic!("{what}; then {error}"),
                }
                let target = open(&place, &pair.world.key).await;
                pair.copy_all(&target).await.unwrap_or_else(|e| panic!("{what}; then {e}"));
                let snapshot = snapshot_of(&target, &pair.before).await;
                assert_eq!(restored(&target, &snapshot).await, tree("before"), "{what}");
            }
        }
    });
}

#[test]
fn a_copy_that_fails_at_any_call_after_a_rotation_is_valid_and_goes_on() {
    block_on(async {
        let pair = Pair::new().await;
        let owner = &pair.world.repository;
        owner.create_domain("customer").await.unwrap();
        owner.revoke(member(&pair.desk), None, "stolen").await.unwrap();
        owner.rotate_keys().await.unwrap();
        let web = enroll(&pair.origin().await, "web", Roles::READER).await;
        let after = back_up_into(&pair.origin().await, "customer", &tree("after")).await;
        for (call, kind) in (1..).zip(KINDS.into_iter().cycle()) {
            let place = fork(&pair.copy).await;
            let faulty = Arc::new(Faulty::new(place.clone(), kind(call)));
            let store: Arc<dyn ObjectStore> = Arc::clone(&faulty) as _;
            let ended = match Repository::builder(store).open(pair.world.key.clone()).await {
                Ok(target) => pair.copy_all(&target).await,
                Err(error) => Err(error),
            };
            if !faulty.fired() {
                assert!(ended.is_ok() && call > 30, "{call}");
                break;
            }
            let what = format!("{:?}: {ended:?}", kind(call));
            for key in [&pair.world.key, &kit(&pair.world.key)] {
                let left = open(&place, key).await;
                for snapshot in left.snapshots().await.unwrap() {
                    let is_first = snapshot.id == pair.before.snapshot;
                    let expected = if is_first { tree("before") } else { tree("after") };
                    assert_eq!(restored(&left, &snapshot).await, expected, "{what}");
                }
            }
            let target = open(&place, &pair.world.key).await;
            pair.copy_all(&target).await.unwrap_or_else(|e| panic!("{what}; then {e}"));
            for key in [&pair.world.key, &kit(&pair.world.key), &web] {
                let copy = open(&place, key).await;
                let snapshot = snapshot_of(&copy, &after).await;
                assert_eq!(restored(&copy, &snapshot).await, tree("after"), "{what}; as {}", key.name);
            }
        }
    });
}

/// In which keys are rotated as soon as somebody has listed them.
#[derive(Debug)]
struct Rotating {
    owner: Mutex<Option<Repository>>,
}

#[async_trait::async_trait]
impl Hook for Rotating {
    async fn after(&self, operation: Operation, subject: &str) {
        if operation == Operation::List && subject == "keys/" {
            let owner = self.owner.lock().unwrap().take();
            if let Some(owner) = owner {
                owner.rotate_keys().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_copy_made_during_a_rotation_opens() {
    let world = World::new().await;
    let report = back_up(&world.repository, &tree("x")).await;
    let rotating = Rotating { owner: Mutex::new(Some(world.open(&world.key).await)) };
    let store = Hooked::new(world.store.inner().clone(), rotating);
    let origin = Repository::builder(Arc::new(store)).open(world.key.clone()).await.unwrap();
    let copy = Memory::new();
    origin.create_copy(&copy).await.unwrap();
    assert!(world.names("trust/").await.len() > names(&copy, "trust/").await.len(), "it was rotated");
    let target = open(&copy, &world.key).await;
    let snapshots = origin.snapshots().await.unwrap();
    origin.copy_to_store(&target, &snapshots).await.unwrap();
    assert_eq!(world.names("trust/").await, names(&copy, "trust/").await);
    let reader = open(&copy, &kit(&world.key)).await;
    assert_eq!(restored(&reader, &snapshot_of(&reader, &report).await).await, tree("x"));
}

/// Whoever may create objects in both stores must not keep revocations from a copy.
#[tokio::test]
async fn key_objects_that_nobody_named_keep_no_trust_from_a_copy() {
    let pair = Pair::new().await;
    let domain = pair.world.repository.create_domain("customer").await.unwrap();
    let host = member(&pair.world.key);
    let keys = [
        keepwell_catalog::names::keyring_key(host, 77),
        keepwell_catalog::names::erasable_key(domain, host, 77),
    ];
    for key in &keys {
        pair.world.store.put_new(key, Bytes::from_static(b"here")).await.unwrap();
        pair.copy.put_new(key, Bytes::from_static(b"there")).await.unwrap();
    }
    let unknown =
        keepwell_catalog::names::erasable_key(keepwell_crypto::DomainId::from_bytes([9; 4]), host, 0);
    pair.world.store.put_new(&unknown, Bytes::from_static(b"here")).await.unwrap();
    pair.world.repository.revoke(member(&pair.desk), None, "stolen").await.unwrap();
    pair.copy_all(&pair.target).await.unwrap();
    let desk = open(&pair.copy, &pair.desk).await;
    assert!(matches!(desk.writer(), Err(Error::WrongKey(_))));
    for key in &keys {
        assert_eq!(pair.copy.get(key).await.unwrap(), Bytes::from_static(b"there"));
    }
    assert!(pair.copy.get(&unknown).await.is_err(), "no record names its domain");
}

/// An erasure that died after its first record goes on in the origin, and the copy hears of it when it is complete.
#[tokio::test]
async fn an_interrupted_erasure_reaches_no_copy_until_it_is_complete() {
    let pair = Pair::new().await;
    let domain = pair.world.repository.create_domain("customer").await.unwrap();
    pair.copy_all(&pair.target).await.unwrap();
    let known = names(&pair.copy, "trust/").await;
    let mut interrupted = None;
    for call in 1.. {
        let store = fork(pair.world.store.inner()).await;
        let faulty = Arc::new(Faulty::new(store.clone(), Fault::FromThenOn(call)));
        if let Ok(owner) = Repository::builder(Arc::clone(&faulty) as _).open(pair.world.key.clone()).await {
            let _ = owner.erase_domain(domain, &[]).await;
        }
        if names(&store, "trust/").await.len() > known.len() {
            interrupted = Some(store);
            break;
        }
        assert!(faulty.fired(), "call {call}");
    }
    let store = interrupted.unwrap();
    let origin = open(&store, &pair.world.key).await;
    assert_eq!(names(&store, "trust/").await.len(), known.len() + 1);
    origin.bring_trust(&pair.target).await.unwrap();
    assert_eq!(names(&pair.copy, "trust/").await, known);
    origin.erase_domain(domain, &[]).await.unwrap();
    origin.bring_trust(&pair.target).await.unwrap();
    assert_eq!(names(&pair.copy, "trust/").await, names(&store, "trust/").await);
    open(&pair.copy, &pair.world.key).await.erase_domain(domain, &[]).await.unwrap();
    enroll(&open(&store, &pair.world.key).await, "web", Roles::READER).await;
    open(&store, &pair.world.key).await.bring_trust(&pair.target).await.unwrap();
    assert_eq!(names(&pair.copy, "trust/").await, names(&store, "trust/").await);
}
