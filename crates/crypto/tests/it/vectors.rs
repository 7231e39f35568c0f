//! Golden vectors, made by `tests/fixtures/make_crypto.py`: an implementation that shares nothing with this one.

use keepwell_crypto::keyring::Keyring;
use keepwell_crypto::trust::{Body, Chain, Domain, Erase, Group, KeyringRef, Member, Owner, Revoke, Roles};
use keepwell_crypto::{
    ChunkKind, Digest, IdKey, MemberId, RepositoryId, Signed, SigningKey, VerifyingKey, open,
};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/fixtures/crypto.json")).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn chunk_ids() {
    let chunks = &vectors()["chunks"];
    let key = IdKey::from_bytes(unhex(&chunks["id_key"]).try_into().unwrap());
    for case in chunks["ids"].as_array().unwrap() {
        let data: Vec<u8> = (0..case["length"].as_u64().unwrap()).map(|i| (i % 251) as u8).collect();
        let kind = if case["kind"] == 0 { ChunkKind::Content } else { ChunkKind::Node };
        assert_eq!(key.chunk_id(kind, &data).to_string(), case["id"].as_str().unwrap(), "{case}");
    }
}

#[test]
fn gear_table_and_boundaries() {
    let chunks = &vectors()["chunks"];
    let key = IdKey::from_bytes(unhex(&chunks["id_key"]).try_into().unwrap());
    let table: Vec<u8> = key.gear_table().iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(hex::encode(table), chunks["gear_table"].as_str().unwrap());
    for case in chunks["boundaries"].as_array().unwrap() {
        let level = case["level"].as_u64().unwrap() as u8;
        let hash = key.boundary().hash(level, &unhex(&case["key"]));
        assert_eq!(format!("{hash:016x}"), case["hash"].as_str().unwrap(), "{case}");
    }
}

#[test]
fn keys_signatures_and_envelopes() {
    let signing = &vectors()["signing"];
    let key = SigningKey::from_seed(&unhex(&signing["seed"]).try_into().unwrap());
    let secret_text = signing["secret_text"].as_str().unwrap();
    assert_eq!(key.to_secret_string().expose(), secret_text);
    assert_eq!(SigningKey::parse(secret_text).unwrap().verifying_key(), key.verifying_key());
    assert_eq!(key.verifying_key().to_string(), signing["public_key"].as_str().unwrap());
    assert_eq!(key.member_id().to_string(), signing["member_id"].as_str().unwrap());
    let repository: RepositoryId = signing["repository"].as_str().unwrap().parse().unwrap();
    let kind = signing["kind"].as_str().unwrap();
    let signed = Signed::sign(&key, repository, kind, unhex(&signing["payload"]));
    assert_eq!(hex::encode(signed.to_bytes()), signing["envelope"].as_str().unwrap());
}

#[test]
fn every_kind_of_trust_record() {
    let vectors = vectors();
    let expected: Vec<Vec<u8>> = vectors["trust"].as_array().unwrap().iter().map(unhex).collect();
    let recipient = |i: usize| vectors["recipients"][i].as_str().unwrap().parse().unwrap();
    let root = SigningKey::from_seed(&[0x11; 32]);
    let other_root = SigningKey::from_seed(&[0x22; 32]);
    let member_key = SigningKey::from_seed(&[0x33; 32]).verifying_key();
    let (member, group, domain) =
        (member_key.member_id(), "0a0b0c0d".parse().unwrap(), "01020304".parse().unwrap());
    let owner = |name: &str, key: &SigningKey, i| Owner {
        name: name.to_owned(),
        recipient: recipient(i),
        key: key.verifying_key(),
    };
    let keyring = |n: u8| KeyringRef { name: format!("keys/{member}/{n:010}"), digest: Digest::of(&[n]) };
    let in_group = |i, epoch| {
        Body::Group(Group { id: group, name: "production".into(), recipient: recipient(i), epoch })
    };
    let bodies = [
        in_group(1, 0),
        Body::Domain(Domain {
            id: domain,
            group,
            name: "tenant é".into(),
            recipient: recipient(2),
            erasable: true,
            epoch: 0,
        }),
        Body::Enrol {
            member: Member {
                name: "db1".into(),
                key: member_key,
                recipient: recipient(3),
                roles: Roles::WRITER | Roles::READER,
                group,
            },
            keyring: keyring(0),
        },
        Body::AddOwner(owner("bob", &other_root, 4)),
        in_group(5, 1),
        Body::Keyring { member, keyring: keyring(1) },
        Body::Revoke(Revoke { member, first_refused: 1 << 40, reason: "disk sold".into() }),
        Body::Erase(Erase {
            domain,
            time: -5,
            gone: vec![format!("keys/erasable/{domain}/{member}-0000000000")],
            unproven: vec!["tape 7".into()],
        }),
        Body::RemoveOwner(other_root.member_id()),
    ];
    let repository = RepositoryId::from_bytes(std::array::from_fn(|i| i as u8));
    let time = |n: usize| 1_700_000_000_000_000_000 + n as i64;
    let (mut chain, genesis) =
        Chain::genesis(&root, time(0), repository, vec![owner("alice", &root, 0)]).unwrap();
    assert_eq!(hex::encode(&genesis), hex::encode(&expected[0]));
    for (n, body) in bodies.into_iter().enumerate() {
        let stored = chain.append(&root, time(n + 1), body).unwrap();
        assert_eq!(hex::encode(stored), hex::encode(&expected[n + 1]), "record {}", n + 1);
    }
    let loaded = Chain::load(&expected, Some(Digest::of(&expected[0]))).unwrap();
    assert_eq!(loaded.head(), chain.head());
    assert_eq!(loaded.revoked_from(&member), Some(1 << 40));
    assert!(loaded.is_erased(&domain));
    assert_eq!(loaded.owners().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["alice"]);
    assert_eq!(loaded.keyring(&member), Some(&keyring(1)));
}

#[test]
fn keyring_form() {
    let stored = unhex(&vectors()["keyring"]);
    let keyring = Keyring::from_bytes(&stored).unwrap();
    assert_eq!(hex::encode(&*keyring.to_bytes()), hex::encode(&stored));
    let keys = &keyring.groups[0].domains[0];
    assert_eq!(keys.id_key.expose(), &std::array::from_fn::<u8, 32, _>(|i| i as u8));
    assert_eq!((keyring.groups[0].index_identities.len(), keys.identities.len()), (1, 2));
}

#[test]
fn rfc_8032_test_1() {
    let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
    let key = SigningKey::from_seed(&seed.try_into().unwrap()).verifying_key();
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    assert_eq!(key.to_string(), public);
    assert_eq!(public.parse::<VerifyingKey>().unwrap(), key);
    assert_eq!(key.member_id(), MemberId::try_from(&Digest::of(key.as_bytes()).as_bytes()[..8]).unwrap());
}

/// Sealed once by version 0.1.0; must open for ever.
#[test]
fn a_sealed_object_of_the_first_version() {
    let sealed = include_bytes!("../../../../tests/fixtures/sealed.age");
    let identity = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    let identity = keepwell_crypto::Identity::parse(identity).unwrap();
    assert_eq!(open(&[identity], sealed, 100).unwrap(), b"sealed by keepwell 0.1.0\n");
}
