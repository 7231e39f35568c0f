use std::sync::Arc;

use bytes::Bytes;
use keepwell_catalog::{names, seal_record};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::keyring::DomainKeys;
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{DeviceError, DomainId, IdKey, Identity, KeyAgreement, MemberId};
use keepwell_storage::{Key, Memory, ObjectStore, Operation};
use tokio::sync::Notify;

use crate::testing::{
    Hook, Hooked, MemorySource, Thing, TreeModel, World, back_up, options, restored, snapshot_of,
};
use crate::write::{Ending, Session, fence};
use crate::{BackupOptions, Error, PruneOptions, Repository};

fn tree(content: &str) -> TreeModel {
    TreeModel::default().with("file", Thing::file(content.as_bytes()))
}

async fn open(world: &World, key: &KeyFile) -> Result<Repository, Error> {
    let store: std::sync::Arc<dyn ObjectStore> = std::sync::Arc::clone(&world.store) as _;
    Repository::builder(store).open(key.clone()).await
}

async fn enroll(repository: &Repository, name: &str, roles: Roles) -> KeyFile {
    let key = repository.new_member(name, roles, None).unwrap();
    repository.enroll(&key).await.unwrap();
    key
}

async fn add_owner(repository: &Repository, name: &str) -> KeyFile {
    let key = repository.new_owner(name, None).unwrap();
    repository.add_owner(&key).await.unwrap();
    key
}

fn member(key: &KeyFile) -> MemberId {
    key.member.as_ref().unwrap().signing.member_id()
}

async fn back_up_into(repository: &Repository, tree: &TreeModel, domain: DomainId) -> crate::BackupReport {
    let options = BackupOptions { domain: Some(domain), ..options("erasable") };
    repository.backup(std::sync::Arc::new(MemorySource::new(tree.clone())), options).await.unwrap()
}

#[tokio::test]
async fn each_role_gets_the_keys_it_needs_and_no_more() {
    let world = World::new().await;
    for (n, (roles, reads, writes, keeps)) in [
        (Roles::WRITER, false, true, false),
        (Roles::READER, true, false, false),
        (Roles::KEEPER, true, true, true),
        (Roles::WRITER | Roles::READER, true, true, false),
    ]
    .into_iter()
    .enumerate()
    {
        let key = enroll(&world.repository, &format!("member {n}"), roles).await;
        let repository = world.open(&key).await;
        assert_eq!(repository.can_read(), reads, "{roles}");
        assert_eq!(repository.access().is_keeper(), keeps, "{roles}");
        assert_eq!(repository.writer().is_ok(), writes, "{roles}");
        assert!(repository.new_member("other", roles, None).is_err(), "{roles}");
    }
    assert!(world.repository.new_member("member 0", Roles::WRITER, None).is_err());
}

#[tokio::test]
async fn a_revoked_member_cannot_write_and_cannot_read_what_comes_after_a_rotation() {
    let world = World::new().await;
    let key = enroll(&world.repository, "desk", Roles::WRITER | Roles::READER).await;
    let desk = world.open(&key).await;
    let before = back_up(&desk, &tree("before")).await;
    let first_refused = world.repository.revoke(member(&key), None, "stolen").await.unwrap();
    assert_eq!(first_refused, before.seq + 1);
    world.repository.rotate_keys().await.unwrap();

    let owner = world.open(&world.key).await;
    let after = back_up(&owner, &tree("after")).await;
    assert_eq!(restored(&owner, &snapshot_of(&owner, &before).await).await, tree("before"));
    assert_eq!(restored(&owner, &snapshot_of(&owner, &after).await).await, tree("after"));

    let desk = world.open(&key).await;
    assert!(matches!(desk.writer(), Err(Error::WrongKey(_))));
    assert!(snapshot_of(&desk, &before).await.manifest().is_ok());
    assert!(snapshot_of(&desk, &after).await.manifest().is_err());
}

/// A backup that is at work when its host is revoked commits all the same, and an owner may refuse what came before.
#[tokio::test]
async fn what_a_revoked_member_committed_counts_for_nothing_and_stops_no_prune() {
    for (refused_from, listed) in [(None, 2), (Some(0), 1)] {
        let world = World::new().await;
        let key = enroll(&world.repository, "desk", Roles::WRITER | Roles::READER).await;
        let desk = world.open(&key).await;
        back_up(&desk, &tree("before")).await;
        let kept = back_up(&world.repository, &tree("kept")).await;
        world.repository.revoke(member(&key), refused_from, "stolen").await.unwrap();
        let refused = back_up(&desk, &tree("after")).await; // it does not know yet

        let owner = world.open(&world.key).await;
        let snapshots = owner.snapshots().await.unwrap();
        assert_eq!(snapshots.len(), listed);
        assert!(snapshots.iter().all(|snapshot| snapshot.id != refused.snapshot));
        let options = PruneOptions { fence_after: std::time::Duration::ZERO, ..PruneOptions::default() };
        assert!(owner.prune(options).await.unwrap().bytes_freed > 0);
        let found = owner.check(crate::CheckOptions::default()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.findings);
        assert_eq!(restored(&owner, &snapshot_of(&owner, &kept).await).await, tree("kept"));
    }
}

#[tokio::test]
async fn owners_come_and_go_and_one_without_a_member_reads_what_was_rotated() {
    let world = World::new().await;
    let bob = add_owner(&world.repository, "bob").await;
    let report = back_up(&world.repository, &tree("x")).await;
    let as_bob = world.open(&bob).await;
    assert_eq!(restored(&as_bob, &snapshot_of(&as_bob, &report).await).await, tree("x"));

    let ann = world.key.owner.as_ref().unwrap().root.member_id();
    assert!(world.repository.remove_owner(ann).await.is_err(), "not itself");
    as_bob.remove_owner(ann).await.unwrap();
    assert!(as_bob.rotate_keys().await.is_ok());
    let stale = world.open(&world.key).await;
    assert!(stale.enroll(&stale.new_member("x", Roles::READER, None).unwrap()).await.is_err());
    let report = back_up(&stale, &tree("y")).await;
    let as_bob = world.open(&bob).await;
    assert_eq!(restored(&as_bob, &snapshot_of(&as_bob, &report).await).await, tree("y"));
}

/// What a token does; here the secret is at hand.
struct Token([u8; 32]);

impl KeyAgreement for Token {
    fn public_key(&self) -> [u8; 32] {
        x25519_dalek::x25519(self.0, x25519_dalek::X25519_BASEPOINT_BYTES)
    }

    fn agree(&self, with: &[u8; 32]) -> Result<[u8; 32], DeviceError> {
        Ok(x25519_dalek::x25519(self.0, *with))
    }
}

#[tokio::test]
async fn an_owner_whose_identity_is_in_a_device_reads_and_hands_out_keys() {
    let world = World::new().await;
    let mut bob = world.repository.new_owner("bob", None).unwrap();
    bob.owner.as_mut().unwrap().identity = Identity::in_device(std::sync::Arc::new(Token([9; 32]))).unwrap();
    world.repository.add_owner(&bob).await.unwrap();
    let report = back_up(&world.repository, &tree("x")).await;
    let as_bob = world.open(&bob).await;
    assert_eq!(restored(&as_bob, &snapshot_of(&as_bob, &report).await).await, tree("x"));
    let desk = enroll(&as_bob, "desk", Roles::READER).await;
    let desk = world.open(&desk).await;
    assert_eq!(restored(&desk, &snapshot_of(&desk, &report).await).await, tree("x"));
}

#[tokio::test]
async fn an_owner_that_was_slower_changes_nothing_and_sees_what_the_other_did() {
    let world = World::new().await;
    let other = world.open(&world.key).await;
    enroll(&world.repository, "first", Roles::WRITER).await;
    enroll(&other, "second", Roles::WRITER).await;
    let names: Vec<String> = other.chain().members().map(|m| m.name.clone()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[tokio::test]
async fn what_was_erased_cannot_be_read_and_stops_neither_check_nor_prune() {
    let world = World::new().await;
    let domain = world.repository.create_domain("customer").await.unwrap();
    let repository = world.open(&world.key).await;
    let late = enroll(&repository, "late", Roles::READER).await;
    let report = back_up_into(&repository, &tree("secret"), domain).await;
    let kept = back_up(&repository, &tree("kept")).await;
    let as_late = world.open(&late).await;
    assert_eq!(restored(&as_late, &snapshot_of(&as_late, &report).await).await, tree("secret"));
    repository.rotate_keys().await.unwrap();
    let repository = world.open(&world.key).await;
    let rotated = back_up_into(&repository, &tree("secret too"), domain).await;
    assert_eq!(restored(&repository, &snapshot_of(&repository, &rotated).await).await, tree("secret too"));

    let erased = repository.erase_domain(domain, &[]).await.unwrap();
    assert_eq!(erased.gone.len(), 4);
    assert_eq!(world.names("keys/erasable/").await, Vec::<String>::new());
    for key in [&world.key, &late] {
        let repository = world.open(key).await;
        let snapshot = snapshot_of(&repository, &report).await;
        assert!(repository.tree(&snapshot).await.is_err());
    }
    let repository = world.open(&world.key).await;
    assert!(
        repository.check(crate::CheckOptions { read: crate::ReadData::Everything }).await.unwrap().is_sound()
    );
    repository.prune(PruneOptions { max_unused: 0.0, ..PruneOptions::default() }).await.unwrap();
    assert_eq!(restored(&repository, &snapshot_of(&repository, &kept).await).await, tree("kept"));
    assert!(
        repository.check(crate::CheckOptions { read: crate::ReadData::Everything }).await.unwrap().is_sound()
    );
}

/// Who can write to the store can seal to a member; it must not make that member seal its data to a stranger.
#[tokio::test]
async fn keys_of_a_domain_that_no_owner_signed_are_ignored() {
    let world = World::new().await;
    let domain = world.repository.create_domain("customer").await.unwrap();
    let host = world.repository.chain().members().next().unwrap().clone();
    let forged = DomainKeys { id: domain, ..DomainKeys::generate() };
    let sealed = seal_record(std::slice::from_ref(&host.recipient), &forged.to_bytes()).unwrap();
    world.store.put_new(&names::erasable_key(domain, host.id(), 7), Bytes::from(sealed)).await.unwrap();
    let repository = open(&world, &world.key).await.unwrap();
    let genuine = repository.access().domain_keys(domain).unwrap();
    assert_ne!(genuine.recipient, forged.recipient);
    let report = back_up_into(&repository, &tree("x"), domain).await;
    assert_eq!(restored(&repository, &snapshot_of(&repository, &report).await).await, tree("x"));
    repository.rotate_keys().await.unwrap();
    assert!(open(&world, &world.key).await.unwrap().access().domain_keys(domain).is_ok());
}

/// Nor must it displace the keys by others that name the true recipient, which is no secret.
#[tokio::test]
async fn forged_keys_with_the_recipient_of_a_domain_displace_nothing() {
    let world = World::new().await;
    let web = enroll(&world.repository, "web", Roles::WRITER).await;
    let domain = world.repository.create_domain("customer").await.unwrap();
    let kit = KeyFile { member: None, ..world.key.clone() };
    let owner = world.open(&world.key).await;
    let id_of = |repository: &Repository| {
        let keys = repository.access().domain_keys(domain).unwrap();
        keys.id_key.chunk_id(keepwell_crypto::ChunkKind::Content, b"x")
    };
    let genuine = id_of(&owner);
    let mut reports = vec![(back_up_into(&owner, &tree("before"), domain).await, tree("before"))];
    let forge = async |n: u64| {
        let chain = world.open(&world.key).await.chain();
        let recipient = &chain.domain(&domain).unwrap().recipient;
        for (member, identities) in
            chain.members().flat_map(|m| [(m, Vec::new()), (m, vec![Identity::generate()])])
        {
            let n = n + identities.len() as u64;
            let recipient = recipient.clone();
            let forged = DomainKeys { id: domain, id_key: IdKey::generate(), recipient, identities };
            let to = [vec![member.recipient.clone()], chain.owner_recipients()].concat();
            let sealed = seal_record(&to, &forged.to_bytes()).unwrap();
            let key = names::erasable_key(domain, member.id(), n);
            world.store.put_new(&key, Bytes::from(sealed)).await.unwrap();
        }
    };
    forge(7).await;
    for key in [&world.key, &kit, &web] {
        assert_eq!(id_of(&open(&world, key).await.unwrap()), genuine, "as {}", key.name);
    }
    owner.rotate_keys().await.unwrap();
    forge(3).await; // which name the new recipient
    let bob = add_owner(&world.open(&world.key).await, "bob").await;
    let desk = enroll(&world.open(&bob).await, "desk", Roles::READER).await;
    reports.push((back_up_into(&world.open(&web).await, &tree("after"), domain).await, tree("after")));
    for key in [&world.key, &kit, &bob, &desk] {
        let reader = world.open(key).await;
        assert_eq!(id_of(&reader), genuine, "as {}", key.name);
        for (report, expected) in &reports {
            assert_eq!(restored(&reader, &snapshot_of(&reader, report).await).await, *expected);
        }
    }
}

/// Keys that nobody has any more are not replaced by new ones that nobody has either.
#[tokio::test]
async fn a_domain_whose_keys_are_lost_stops_a_rotation_until_it_is_erased() {
    let world = World::new().await;
    let domain = world.repository.create_domain("customer").await.unwrap();
    for name in world.names("keys/erasable/").await {
        world.delete(&name).await;
    }
    let before = world.names("trust/").await;
    assert!(matches!(world.repository.rotate_keys().await, Err(Error::Invalid(_))));
    assert_eq!(world.names("trust/").await, before);
    world.repository.erase_domain(domain, &[]).await.unwrap();
    world.repository.rotate_keys().await.unwrap();
}

/// With the keyring of the last reader the only copy of new keys would go.
#[tokio::test]
async fn nothing_is_rotated_that_nobody_could_read() {
    let world = World::new().await;
    let web = enroll(&world.repository, "web", Roles::WRITER).await;
    world.repository.revoke(member(&world.key), None, "lost").await.unwrap();
    assert!(matches!(world.repository.rotate_keys().await, Err(Error::Invalid(_))));
    let owner = KeyFile { member: None, ..world.key.clone() };
    let repository = world.open(&owner).await;
    let desk = enroll(&repository, "desk", Roles::KEEPER).await;
    repository.rotate_keys().await.unwrap();
    let report = back_up(&world.open(&web).await, &tree("x")).await;
    for key in [&desk, &owner] {
        let reader = world.open(key).await;
        assert_eq!(restored(&reader, &snapshot_of(&reader, &report).await).await, tree("x"));
    }
}

/// Nor may keys of a domain be made that only writers get, nor an owner join who could open no keyring.
#[tokio::test]
async fn without_a_reader_no_domain_is_made_and_no_owner_joins() {
    let world = World::new().await;
    let web = enroll(&world.repository, "web", Roles::WRITER).await;
    world.repository.revoke(member(&world.key), None, "lost").await.unwrap();
    let kit = KeyFile { member: None, ..world.key.clone() };
    let owner = world.open(&kit).await;
    let before = world.names("").await;
    assert!(matches!(owner.create_domain("customer").await, Err(Error::Invalid(_))));
    let bob = owner.new_owner("bob", None).unwrap();
    assert!(matches!(owner.add_owner(&bob).await, Err(Error::Invalid(_))));
    assert_eq!(world.names("").await, before, "nothing was stored");

    let desk = enroll(&owner, "desk", Roles::READER).await;
    let domain = owner.create_domain("customer").await.unwrap();
    owner.add_owner(&bob).await.unwrap();
    let report = back_up_into(&world.open(&web).await, &tree("x"), domain).await;
    for key in [&desk, &kit, &bob] {
        let reader = world.open(key).await;
        assert_eq!(restored(&reader, &snapshot_of(&reader, &report).await).await, tree("x"));
    }
}

#[tokio::test]
async fn who_is_enrolled_through_an_old_handle_gets_the_newest_keys() {
    let world = World::new().await;
    let old = world.open(&world.key).await;
    world.repository.rotate_keys().await.unwrap();
    let desk = enroll(&old, "desk", Roles::READER).await;
    let report = back_up(&world.open(&world.key).await, &tree("x")).await;
    let desk = world.open(&desk).await;
    assert_eq!(restored(&desk, &snapshot_of(&desk, &report).await).await, tree("x"));
}

/// Whoever can create objects must not lock a member out.
#[tokio::test]
async fn garbage_beside_the_keys_of_a_domain_locks_nobody_out() {
    let world = World::new().await;
    let domain = world.repository.create_domain("customer").await.unwrap();
    let host = world.repository.chain().members().next().unwrap().clone();
    let key = names::erasable_key(domain, host.id(), 9);
    world.store.put_new(&key, Bytes::from_static(b"garbage")).await.unwrap();
    let repository = open(&world, &world.key).await.unwrap();
    let report = back_up_into(&repository, &tree("x"), domain).await;
    assert_eq!(restored(&repository, &snapshot_of(&repository, &report).await).await, tree("x"));
}

/// Into which, at the first delete, somebody else puts something.
#[derive(Debug)]
struct Busy {
    late: std::sync::Mutex<Option<(Key, Bytes)>>,
}

#[async_trait::async_trait]
impl Hook for Busy {
    async fn before(&self, inner: &Memory, operation: Operation, _: &str) {
        if operation == Operation::Delete {
            let late = self.late.lock().unwrap().take();
            if let Some((key, body)) = late {
                inner.put_new(&key, body).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn keys_that_another_owner_stores_meanwhile_go_too() {
    let world = World::new().await;
    let domain = world.repository.create_domain("people").await.unwrap();
    let given = world.names("keys/erasable/").await;
    let late = names::erasable_key(domain, world.repository.access().member().unwrap(), 7);
    let bytes = world.store.get(&given[0].parse().unwrap()).await.unwrap();
    let late = std::sync::Mutex::new(Some((late, bytes)));
    let store = Hooked::new(world.store.inner().clone(), Busy { late });
    let owner = Repository::builder(std::sync::Arc::new(store)).open(world.key.clone()).await.unwrap();
    let erased = owner.erase_domain(domain, &[]).await.unwrap();
    assert_eq!(erased.gone.len(), given.len() + 1);
    assert_eq!(world.names("keys/erasable/").await, Vec::<String>::new());
}

/// Halts before the first keys of a domain are stored, until it is told to go on.
#[derive(Debug)]
struct Slow {
    halt: std::sync::Mutex<Option<(Arc<Notify>, Arc<Notify>)>>,
}

#[async_trait::async_trait]
impl Hook for Slow {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        if operation == Operation::Put && subject.starts_with("keys/erasable/") {
            let halt = self.halt.lock().unwrap().take();
            if let Some((reached, go_on)) = halt {
                reached.notify_one();
                go_on.notified().await;
            }
        }
    }
}

#[tokio::test]
async fn who_is_slower_than_an_erasure_leaves_no_keys_of_the_domain() {
    let world = World::new().await;
    enroll(&world.repository, "desk", Roles::READER).await;
    let domain = world.repository.create_domain("people").await.unwrap();
    let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let halt = std::sync::Mutex::new(Some((Arc::clone(&reached), Arc::clone(&go_on))));
    let store = Hooked::new(world.store.inner().clone(), Slow { halt });
    let slower = Repository::builder(Arc::new(store)).open(world.key.clone()).await.unwrap();
    let erases = async {
        reached.notified().await;
        world.repository.erase_domain(domain, &[]).await.unwrap();
        assert_eq!(world.names("keys/erasable/").await, Vec::<String>::new());
        go_on.notify_one();
    };
    let (rotated, ()) = tokio::join!(slower.rotate_keys(), erases);
    assert!(matches!(rotated, Err(Error::Invalid(_))), "{rotated:?}");
    assert_eq!(world.names("keys/erasable/").await, Vec::<String>::new());
    slower.rotate_keys().await.unwrap();
}

/// Whoever may create objects can take the largest number that a name can carry. Keys that were stored above it nobody would
/// find, and what was sealed to them nobody could read.
#[tokio::test]
async fn the_largest_number_keeps_nobody_from_the_next_keys() {
    let world = World::new().await;
    let reader = enroll(&world.repository, "reader", Roles::WRITER | Roles::READER).await;
    let domain = world.repository.create_domain("tenant").await.unwrap();
    let own = world.repository.access().member().unwrap();
    for member in [own, member(&reader)] {
        for name in [
            names::erasable_key(domain, member, names::NUMBER_MAX),
            names::keyring_key(member, names::NUMBER_MAX),
        ] {
            world.store.put_new(&name, Bytes::from_static(b"planted")).await.unwrap();
        }
    }
    let owner = open(&world, &world.key).await.unwrap();
    owner.rotate_keys().await.unwrap();
    owner.rotate_keys().await.unwrap();
    let repository = open(&world, &reader).await.unwrap();
    let report = back_up_into(&repository, &tree("after the rotation"), domain).await;
    for key in [&world.key, &reader] {
        let repository = open(&world, key).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        assert_eq!(restored(&repository, &snapshot).await, tree("after the rotation"));
    }
}

/// A session that died has a number below the newest commit, and its claim is there for whoever has the key.
#[tokio::test]
async fn nothing_is_committed_under_an_unused_number_of_a_revoked_member() {
    let world = World::new().await;
    let key = enroll(&world.repository, "writer", Roles::WRITER).await;
    let desk = open(&world, &key).await.unwrap();
    back_up(&desk, &tree("first")).await;
    let left_open = Session::claim(&desk).await.unwrap();
    let newest = back_up(&desk, &tree("newest")).await;
    assert!(left_open.n() < newest.seq);
    let refused = world.repository.revoke(member(&key), None, "stolen").await.unwrap();
    assert_eq!(refused, newest.seq + 1);
    let late = left_open.end(Ending::index_only(Vec::new())).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    let owner = world.open(&world.key).await;
    assert_eq!(owner.snapshots().await.unwrap().len(), 2, "what it had committed stays");
    assert!(owner.check(crate::CheckOptions::default()).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_member_that_has_used_a_very_large_number_is_revoked_from_a_lower_one_on() {
    let world = World::new().await;
    let key = enroll(&world.repository, "writer", Roles::WRITER).await;
    let desk = open(&world, &key).await.unwrap();
    let report = back_up(&desk, &tree("before")).await;
    assert!(fence(&desk, member(&key), names::NUMBER_MAX - 1, Vec::new()).await.unwrap());
    for too_high in [None, Some(names::NUMBER_MAX), Some(5_000)] {
        let refused = world.repository.revoke(member(&key), too_high, "stolen").await;
        // A thousand unused numbers are ended.
        let most = format!("refused from {} on", report.seq + 1_001);
        assert!(matches!(&refused, Err(Error::Invalid(why)) if why.contains(&most)), "{refused:?}");
    }
    let from = report.seq + 1;
    assert_eq!(world.repository.revoke(member(&key), Some(from), "stolen").await.unwrap(), from);
}

#[tokio::test]
async fn a_number_that_was_planted_makes_no_revocation_void() {
    let world = World::new().await;
    let key = enroll(&world.repository, "writer", Roles::WRITER).await;
    let report = back_up(&open(&world, &key).await.unwrap(), &tree("before")).await;
    let writer = member(&key);
    let planted = names::commit_key(writer, names::NUMBER_MAX);
    world.store.put_new(&planted, Bytes::from_static(b"planted")).await.unwrap();
    let refused = world.repository.revoke(writer, None, "stolen").await.unwrap();
    assert_eq!(refused, report.seq + 1);
}
