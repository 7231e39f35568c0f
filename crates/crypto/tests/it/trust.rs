//! The trust chain: what it proves, and every way to break it.

use keepwell_crypto::trust::{
    Body, Chain, Domain, Erase, Group, KIND, KeyringRef, Member, Owner, Revoke, Roles, TrustError, Violation,
};
use keepwell_crypto::{
    Digest, DomainId, GroupId, Identity, MemberId, Recipient, RepositoryId, SignatureError, Signed,
    SigningKey, sign_detached,
};
use proptest::prelude::*;

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([9; 16]);
const GROUP: GroupId = GroupId::from_bytes([1, 0, 0, 0]);
const DOMAIN: DomainId = DomainId::from_bytes([2, 0, 0, 0]);
const ERASABLE: DomainId = DomainId::from_bytes([3, 0, 0, 0]);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn fresh() -> Recipient {
    Identity::generate().recipient()
}

fn owner(seed: u8) -> Owner {
    Owner { name: format!("owner {seed}"), recipient: fresh(), key: key(seed).verifying_key() }
}

fn member(seed: u8, roles: Roles) -> Member {
    let key = key(seed).verifying_key();
    Member { name: format!("host {seed}"), key, recipient: fresh(), roles, group: GROUP }
}

fn keyring(id: MemberId, n: u64) -> KeyringRef {
    KeyringRef { name: format!("keys/{id}/{n:010}"), digest: Digest::of(&n.to_be_bytes()) }
}

fn enrol(seed: u8, roles: Roles) -> Body {
    let member = member(seed, roles);
    Body::Enrol { keyring: keyring(member.id(), 0), member }
}

fn group(epoch: u64) -> Group {
    Group { id: GROUP, name: "production".into(), recipient: fresh(), epoch }
}

fn domain(id: DomainId, epoch: u64) -> Domain {
    Domain { id, group: GROUP, name: "data".into(), recipient: fresh(), erasable: id == ERASABLE, epoch }
}

fn revoke(seed: u8, first_refused: u64) -> Body {
    Body::Revoke(Revoke { member: key(seed).member_id(), first_refused, reason: "stolen".into() })
}

fn erase(domain: DomainId) -> Erase {
    Erase { domain, time: 1, gone: vec![format!("keys/erasable/{domain}/x-0000000000")], unproven: vec![] }
}

/// Owner 1; group, a plain and an erasable domain; member 10 writes, 11 keeps. Also all stored objects.
fn chain() -> (Chain, Vec<Vec<u8>>) {
    let (mut chain, genesis) = Chain::genesis(&key(1), 0, REPOSITORY, vec![owner(1)]).unwrap();
    let mut objects = vec![genesis];
    let bodies = [
        Body::Group(group(0)),
        Body::Domain(domain(ERASABLE, 0)),
        Body::Domain(domain(DOMAIN, 0)),
        enrol(10, Roles::WRITER),
        enrol(11, Roles::READER | Roles::KEEPER),
    ];
    for body in bodies {
        objects.push(chain.append(&key(1), 5, body).unwrap());
    }
    (chain, objects)
}

fn violation(error: TrustError) -> Violation {
    match error {
        TrustError::Broken { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chain_answers_what_its_records_say() {
    let (chain, objects) = chain();
    let loaded = Chain::load(&objects, Some(chain.fingerprint())).unwrap();
    assert_eq!(loaded.repository_id(), REPOSITORY);
    assert_eq!(loaded.fingerprint(), Digest::of(&objects[0]));
    assert_eq!(loaded.head(), (5, Digest::of(&objects[5])));
    assert_eq!((loaded.record_digest(2), loaded.record_digest(6)), (Some(Digest::of(&objects[2])), None));
    assert_eq!(loaded.owners().map(Owner::id).collect::<Vec<_>>(), [key(1).member_id()]);
    assert_eq!(loaded.owner_recipients().len(), 1);
    let writer = key(10).member_id();
    assert_eq!(loaded.member(&writer).unwrap().name, "host 10");
    assert_eq!((loaded.members().count(), loaded.groups().count(), loaded.domains().count()), (2, 1, 2));
    assert_eq!(loaded.keyring_name(&writer).unwrap(), format!("keys/{writer}/0000000000"));
    assert_eq!(loaded.default_domain(&GROUP).unwrap().id, DOMAIN);
    assert_eq!((loaded.revoked_from(&writer), loaded.is_erased(&ERASABLE)), (None, false));
}

#[test]
fn rotations_follow_each_other() {
    let (mut chain, _) = chain();
    for epoch in 1..4 {
        let next = domain(DOMAIN, epoch);
        chain.append(&key(1), 6, Body::Domain(next.clone())).unwrap();
        chain.append(&key(1), 6, Body::Group(Group { name: "renamed".into(), ..group(epoch) })).unwrap();
        assert_eq!(chain.domain(&DOMAIN), Some(&next));
        assert_eq!(chain.group(&GROUP).unwrap().name, "renamed");
    }
    let id = key(10).member_id();
    chain.append(&key(1), 7, Body::Keyring { member: id, keyring: keyring(id, 4) }).unwrap();
    assert_eq!(chain.keyring(&id), Some(&keyring(id, 4)));
}

#[test]
fn owners_come_and_go() {
    let (mut chain, _) = chain();
    chain.append(&key(1), 6, Body::AddOwner(owner(2))).unwrap();
    chain.append(&key(2), 7, Body::RemoveOwner(key(1).member_id())).unwrap();
    assert_eq!(chain.owners().map(Owner::id).collect::<Vec<_>>(), [key(2).member_id()]);
    let gone = chain.clone().append(&key(1), 8, Body::Group(group(1))).unwrap_err();
    assert_eq!(violation(gone), Violation::Signer { signer: key(1).member_id() });
    chain.append(&key(2), 8, Body::Group(group(1))).unwrap();
    let again = chain.append(&key(2), 9, Body::AddOwner(owner(1))).unwrap_err();
    assert_eq!(violation(again), Violation::DuplicateId { id: key(1).member_id() });
}

/// Every body that must be refused after [`chain`], with the rule that refuses it.
#[test]
fn every_rule_refuses_what_it_should() {
    let (chain, _) = chain();
    let (writer, stranger) = (key(10).member_id(), key(99).member_id());
    let unknown_group = GroupId::from_bytes([8; 4]);
    let old_group = chain.group(&GROUP).unwrap().clone();
    let old_domain = chain.domain(&DOMAIN).unwrap().clone();
    let named =
        |name: String| Body::Keyring { member: writer, keyring: KeyringRef { name, ..keyring(writer, 1) } };
    let with_name = |name: &str| Body::Group(Group { name: name.into(), ..group(1) });
    let cases = [
        (Body::Genesis { repository: REPOSITORY, format: 1, owners: vec![owner(5)] }, Violation::Genesis),
        (enrol(10, Roles::WRITER), Violation::DuplicateId { id: writer }),
        (enrol(1, Roles::WRITER), Violation::DuplicateId { id: key(1).member_id() }),
        (Body::AddOwner(owner(1)), Violation::DuplicateId { id: key(1).member_id() }),
        (Body::AddOwner(owner(10)), Violation::DuplicateId { id: writer }),
        (Body::RemoveOwner(key(1).member_id()), Violation::NoOwner),
        (Body::RemoveOwner(writer), Violation::UnknownId { id: writer }),
        (
            Body::Enrol {
                member: Member { group: unknown_group, ..member(12, Roles::WRITER) },
                keyring: keyring(key(12).member_id(), 0),
            },
            Violation::UnknownGroup { id: unknown_group },
        ),
        (
            Body::Enrol { member: member(12, Roles::WRITER), keyring: keyring(writer, 7) },
            Violation::KeyObject,
        ),
        (revoke(99, 0), Violation::UnknownId { id: stranger }),
        (revoke(1, 0), Violation::UnknownId { id: key(1).member_id() }),
        (Body::Group(group(0)), Violation::Epoch { found: 0, expected: 1 }),
        (Body::Group(group(2)), Violation::Epoch { found: 2, expected: 1 }),
        (Body::Group(Group { id: unknown_group, ..group(1) }), Violation::Epoch { found: 1, expected: 0 }),
        (Body::Group(Group { epoch: 1, ..old_group }), Violation::RecipientReused),
        (Body::Domain(domain(DOMAIN, 0)), Violation::Epoch { found: 0, expected: 1 }),
        (Body::Domain(Domain { epoch: 1, ..old_domain }), Violation::RecipientReused),
        (
            Body::Domain(Domain { group: unknown_group, ..domain(DOMAIN, 1) }),
            Violation::UnknownGroup { id: unknown_group },
        ),
        (Body::Domain(Domain { erasable: true, ..domain(DOMAIN, 1) }), Violation::DomainChanged),
        (Body::Erase(erase(DOMAIN)), Violation::NotErasable { id: DOMAIN }),
        (
            Body::Erase(erase(DomainId::from_bytes([7; 4]))),
            Violation::UnknownDomain { id: DomainId::from_bytes([7; 4]) },
        ),
        (Body::Erase(Erase { gone: vec!["data/00/x".into()], ..erase(ERASABLE) }), Violation::KeyObject),
        (
            Body::Keyring { member: stranger, keyring: keyring(stranger, 0) },
            Violation::UnknownId { id: stranger },
        ),
        (Body::Keyring { member: writer, keyring: keyring(writer, 0) }, Violation::KeyObject),
        (named(format!("keys/{writer}/1")), Violation::KeyObject),
        (named(format!("keys/{writer}/+000000001")), Violation::KeyObject),
        (named(format!("keys/{stranger}/0000000001")), Violation::KeyObject),
        (with_name(""), Violation::Name),
        (with_name(&"x".repeat(201)), Violation::Name),
        (with_name("red \u{1b}[31m"), Violation::Name),
    ];
    for (case, (body, expected)) in cases.into_iter().enumerate() {
        let mut next = chain.clone();
        let error = next.append(&key(1), 6, body).unwrap_err();
        assert_eq!(error.to_string(), "trust record 6 breaks a rule");
        assert_eq!(violation(error), expected, "case {case}");
        assert_eq!(next.head(), chain.head(), "case {case} changed the chain");
    }
}

#[test]
fn a_group_moves_no_domain() {
    let (mut chain, _) = chain();
    let other = GroupId::from_bytes([5; 4]);
    chain.append(&key(1), 6, Body::Group(Group { id: other, ..group(0) })).unwrap();
    let moved = chain.append(&key(1), 6, Body::Domain(Domain { group: other, ..domain(DOMAIN, 1) }));
    assert_eq!(violation(moved.unwrap_err()), Violation::DomainChanged);
}

#[test]
fn erased_is_for_ever_and_can_be_proven_further() {
    let (mut chain, _) = chain();
    chain.append(&key(1), 6, Body::Erase(erase(ERASABLE))).unwrap();
    chain.append(&key(1), 7, Body::Erase(erase(ERASABLE))).unwrap();
    assert!(chain.is_erased(&ERASABLE) && !chain.is_erased(&DOMAIN));
    let revived = chain.append(&key(1), 8, Body::Domain(domain(ERASABLE, 1))).unwrap_err();
    assert_eq!(violation(revived), Violation::Erased { id: ERASABLE });
}

#[test]
fn a_revocation_only_moves_back() {
    let (mut chain, _) = chain();
    let id = key(10).member_id();
    chain.append(&key(1), 6, revoke(10, 50)).unwrap();
    for later in [50, 51] {
        let error = chain.append(&key(1), 7, revoke(10, later)).unwrap_err();
        assert_eq!(violation(error), Violation::RevokedBefore { id, from: 50 });
    }
    let keyring = chain.append(&key(1), 7, Body::Keyring { member: id, keyring: keyring(id, 1) });
    assert_eq!(violation(keyring.unwrap_err()), Violation::RevokedBefore { id, from: 50 });
    chain.append(&key(1), 7, revoke(10, 20)).unwrap();
    assert_eq!(chain.revoked_from(&id), Some(20));
}

#[test]
fn the_genesis_is_pinned_and_complete() {
    let (_, objects) = chain();
    assert!(matches!(Chain::load::<Vec<u8>>([], None), Err(TrustError::Empty)));
    let (_, other) = Chain::genesis(&key(1), 0, REPOSITORY, vec![owner(1)]).unwrap();
    let error = Chain::load(&objects, Some(Digest::of(&other))).unwrap_err();
    assert!(matches!(error, TrustError::WrongGenesis { found, .. } if found == Digest::of(&objects[0])));
    let refused = |owners| violation(Chain::genesis(&key(1), 0, REPOSITORY, owners).unwrap_err());
    assert_eq!(refused(vec![]), Violation::NoOwner);
    assert_eq!(refused(vec![owner(2), owner(1)]), Violation::Signer { signer: key(1).member_id() });
    assert_eq!(refused(vec![owner(1), owner(1)]), Violation::DuplicateId { id: key(1).member_id() });
    let (two, _) = Chain::genesis(&key(1), 0, REPOSITORY, vec![owner(1), owner(2)]).unwrap();
    assert_eq!(two.owners().count(), 2);
}

#[test]
fn gaps_swaps_repetitions_and_foreign_records_are_refused() {
    let (_, objects) = chain();
    let (_, foreign) = Chain::genesis(&key(1), 0, REPOSITORY, vec![owner(1)]).unwrap();
    let mut without = objects.clone();
    without.remove(3);
    let mut swapped = objects.clone();
    swapped.swap(2, 3);
    let mut twice = objects.clone();
    twice.insert(3, objects[3].clone());
    let mut replaced = objects.clone();
    replaced[0] = foreign;
    for broken in [&without, &swapped, &twice, &objects[1..].to_vec()] {
        let error = violation(Chain::load(broken, None).unwrap_err());
        assert!(matches!(error, Violation::Number { .. }), "{error:?}");
    }
    assert_eq!(violation(Chain::load(&replaced, None).unwrap_err()), Violation::Link);
}

/// A record of a fork: the right number and a valid signature, but another past.
#[test]
fn a_record_of_a_fork_does_not_continue_the_chain() {
    let (chain, mut objects) = chain();
    let (mut fork, mut here) = (chain.clone(), chain);
    fork.append(&key(1), 6, Body::Group(group(1))).unwrap();
    let stray = fork.append(&key(1), 7, Body::Group(group(2))).unwrap();
    objects.push(here.append(&key(1), 6, Body::AddOwner(owner(3))).unwrap());
    objects.push(stray);
    assert_eq!(violation(Chain::load(&objects, None).unwrap_err()), Violation::Link);
}

#[test]
fn only_owners_in_force_sign_and_only_for_this_repository() {
    let (chain, objects) = chain();
    for outsider in [10, 11, 77] {
        let error = chain.clone().append(&key(outsider), 6, Body::Group(group(1))).unwrap_err();
        assert_eq!(violation(error), Violation::Signer { signer: key(outsider).member_id() });
    }
    let genuine =
        Signed::from_bytes(&chain.clone().append(&key(1), 6, Body::Group(group(1))).unwrap()).unwrap();
    let payload = genuine.payload.clone();
    let elsewhere = Signed::sign(&key(1), RepositoryId::from_bytes([8; 16]), KIND, payload.clone());
    let as_list = Signed::sign(&key(1), REPOSITORY, "list", payload.clone());
    let claimed = Signed { signer: key(1).member_id(), ..Signed::sign(&key(77), REPOSITORY, KIND, payload) };
    for forged in [elsewhere, as_list, claimed] {
        let error = chain.clone().advance(&forged.to_bytes()).unwrap_err();
        assert!(matches!(error, TrustError::NotGenuine { n: 6, .. }), "{error:?}");
    }
    assert!(chain.clone().advance(&genuine.to_bytes()).is_ok());
    assert!(chain.clone().advance(&objects[5]).is_err());
}

#[test]
fn every_flipped_bit_of_a_chain_is_refused() {
    let (chain, objects) = chain();
    let pin = Some(chain.fingerprint());
    for (n, object) in objects.iter().enumerate() {
        let before = Chain::load(&objects[..n], pin);
        for bit in 0..object.len() * 8 {
            let mut damaged = object.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let accepted = match &before {
                Ok(chain) => chain.clone().advance(&damaged).is_ok(),
                Err(_) => Chain::load([&damaged], pin).is_ok(),
            };
            assert!(!accepted, "bit {bit} of record {n}");
        }
    }
}

#[test]
fn unknown_kinds_and_formats_are_refused_and_unknown_fields_skipped() {
    let (chain, objects) = chain();
    let resign = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut payload =
            Signed::from_bytes(&chain.clone().append(&key(1), 6, revoke(10, 5)).unwrap()).unwrap().payload;
        edit(&mut payload);
        Signed::sign(&key(1), REPOSITORY, KIND, payload).to_bytes()
    };
    let tag_at = |payload: &[u8]| payload.windows(3).position(|w| w == [3, 0x82, 2]).unwrap() + 2;
    let unknown = resign(&|payload| {
        let at = tag_at(payload);
        payload[at] = 8;
    });
    let error = chain.clone().advance(&unknown).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.ends_with("a kind of record that this version does not know"), "{source}");
    let more = resign(&|payload| {
        payload[0] += 1;
        payload.extend(b"\x18\x63\x81\x61x");
    });
    assert!(chain.clone().advance(&more).is_ok());
    let genesis = Signed::from_bytes(&objects[0]).unwrap();
    let mut payload = genesis.payload;
    let format_at = payload.windows(2).position(|w| w == [9, 1]).unwrap() + 2;
    payload[format_at] = 2;
    let newer = Signed::sign(&key(1), REPOSITORY, KIND, payload).to_bytes();
    assert_eq!(violation(Chain::load([newer], None).unwrap_err()), Violation::Format { found: 2 });
}

#[test]
fn records_of_members_are_judged_by_role_and_revocation() {
    let (mut chain, _) = chain();
    let (writer, keeper) = (key(10).member_id(), key(11).member_id());
    let commit = Signed::sign(&key(10), REPOSITORY, "commit", b"c".to_vec());
    let plan = Signed::sign(&key(11), REPOSITORY, "gc", b"p".to_vec());
    assert_eq!(
        chain.verify_member(&commit, "commit", Roles::WRITER, Some((writer, 3))).unwrap().id(),
        writer
    );
    assert!(chain.verify_member(&plan, "gc", Roles::KEEPER, None).is_ok());
    let role = chain.verify_member(&commit, "commit", Roles::KEEPER, None).unwrap_err();
    assert_eq!(role.to_string(), format!("{writer} signed a `commit` record but is not a keeper"));
    assert!(chain.verify_member(&commit, "commit", Roles::KEEPER | Roles::WRITER, None).is_ok());
    let stranger = Signed::sign(&key(77), REPOSITORY, "commit", b"c".to_vec());
    assert!(matches!(
        chain.verify_member(&stranger, "commit", Roles::WRITER, None),
        Err(TrustError::UnknownSigner { .. })
    ));
    let forged = Signed { payload: b"d".to_vec(), ..commit.clone() };
    let error = chain.verify_member(&forged, "commit", Roles::WRITER, None).unwrap_err();
    assert!(matches!(error, TrustError::Signature { source: SignatureError::Bad { .. }, .. }));

    chain.append(&key(1), 6, revoke(10, 4)).unwrap();
    chain.append(&key(1), 6, revoke(11, 0)).unwrap();
    let at = |place| chain.verify_member(&commit, "commit", Roles::WRITER, place);
    assert!(at(Some((writer, 3))).is_ok());
    for refused in [Some((writer, 4)), Some((writer, u64::MAX)), Some((keeper, 0)), None] {
        assert!(matches!(at(refused), Err(TrustError::Revoked { from: 4, .. })), "{refused:?}");
    }
    assert!(matches!(chain.verify_member(&plan, "gc", Roles::KEEPER, None), Err(TrustError::Revoked { .. })));
    assert!(chain.verify_author(&plan, "gc", Roles::KEEPER).is_ok());
    assert!(chain.verify_author(&commit, "commit", Roles::KEEPER).is_err());
    assert!(chain.verify_author(&forged, "commit", Roles::WRITER).is_err());
}

#[test]
fn owners_and_detached_signatures() {
    let (mut chain, _) = chain();
    let retired = Signed::sign(&key(1), REPOSITORY, "retired", b"r".to_vec());
    assert_eq!(chain.verify_owner(&retired, "retired").unwrap().id(), key(1).member_id());
    assert!(chain.verify_author(&retired, "retired", Roles::KEEPER).is_ok());
    assert!(chain.verify_author(&retired, "retired", Roles::WRITER).is_err());
    chain.append(&key(1), 6, Body::AddOwner(owner(2))).unwrap();
    chain.append(&key(1), 6, Body::RemoveOwner(key(1).member_id())).unwrap();
    assert!(chain.verify_owner(&retired, "retired").is_err());
    assert!(chain.verify_author(&retired, "retired", Roles::KEEPER).is_ok());

    let writer = key(10).member_id();
    let signature = sign_detached(&key(10), REPOSITORY, "index", b"tables");
    let check =
        |roles, bytes: &[u8]| chain.verify_detached(writer, "index", roles, bytes, &signature).is_ok();
    assert!(check(Roles::WRITER, b"tables"));
    assert!(!check(Roles::WRITER, b"other") && !check(Roles::KEEPER, b"tables"));
}

#[test]
fn role_sets() {
    assert_eq!((Roles::WRITER | Roles::KEEPER).to_string(), "writer, keeper");
    assert_eq!(Roles::from_bits(7), Some(Roles::WRITER | Roles::READER | Roles::KEEPER));
    assert_eq!((Roles::from_bits(0), Roles::from_bits(8), Roles::from_bits(9)), (None, None, None));
    assert!(!Roles::WRITER.contains(Roles::WRITER | Roles::READER));
    assert!(Roles::WRITER.intersects(Roles::WRITER | Roles::READER));
    assert_eq!((Roles::from_name("reader"), Roles::from_name("admin")), (Some(Roles::READER), None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A hostile owner signs a damaged payload: it may be refused or mean something else, but never panic.
    #[test]
    fn damaged_payloads_never_panic(n in 0usize..6, edits in proptest::collection::vec((0usize..300, any::<u8>()), 1..4), bytes: Vec<u8>) {
        let (mut chain, objects) = chain();
        let mut payload = Signed::from_bytes(&objects[n]).unwrap().payload;
        for (at, value) in edits {
            let at = at % payload.len();
            payload[at] = value;
        }
        let signed = Signed::sign(&key(1), REPOSITORY, KIND, payload).to_bytes();
        let mut damaged = objects.clone();
        damaged[n] = signed;
        let _ = Chain::load(&damaged, None);
        prop_assert!(chain.advance(&bytes).is_err());
        prop_assert!(chain.advance(&Signed::sign(&key(1), REPOSITORY, KIND, bytes).to_bytes()).is_err());
    }
}
