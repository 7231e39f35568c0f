//! Keyrings.

use keepwell_crypto::keyring::{DomainKeys, GroupKeys, Keyring};
use keepwell_crypto::{ChunkKind, DomainId, GroupId, IdKey, Identity, MemberId, RepositoryId};
use proptest::prelude::*;

fn keyring() -> Keyring {
    let identities = vec![Identity::generate(), Identity::generate()];
    let recipient = identities[1].recipient();
    let domain = DomainKeys { id: DomainId::generate(), id_key: IdKey::generate(), recipient, identities };
    let group = GroupKeys {
        id: GroupId::generate(),
        index_identities: vec![Identity::generate()],
        domains: vec![domain],
    };
    Keyring {
        repository: RepositoryId::generate(),
        member: MemberId::from_bytes([1; 8]),
        groups: vec![group],
    }
}

#[test]
fn round_trip() {
    let keyring = keyring();
    let stored = keyring.to_bytes();
    let again = Keyring::from_bytes(&stored).unwrap();
    assert_eq!(*again.to_bytes(), *stored);
    let (group, before) = (&again.groups[0], &keyring.groups[0]);
    let domain = again.group(&group.id).unwrap().domain(&group.domains[0].id).unwrap();
    let chunk = |key: &IdKey| key.chunk_id(ChunkKind::Content, b"x");
    assert_eq!(chunk(&domain.id_key), chunk(&before.domains[0].id_key));
    assert_eq!(domain.recipient, domain.identities.last().unwrap().recipient());
    let alone = DomainKeys::from_bytes(&domain.to_bytes()).unwrap();
    assert_eq!(*alone.to_bytes(), *domain.to_bytes());
}

#[test]
fn a_writer_cannot_read_but_still_deduplicates() {
    let keyring = keyring();
    let writer = Keyring::from_bytes(&keyring.without_read_keys().to_bytes()).unwrap();
    let (full, bare) = (&keyring.groups[0], &writer.groups[0]);
    assert!(bare.domains[0].identities.is_empty());
    assert_eq!(bare.domains[0].recipient, full.domains[0].recipient);
    assert_eq!(bare.domains[0].id_key.expose(), full.domains[0].id_key.expose());
    assert_eq!(bare.index_identities[0].recipient(), full.index_identities[0].recipient());
    let stored = writer.to_bytes();
    let read_key = full.domains[0].identities[0].to_secret_string().unwrap();
    assert!(!stored.windows(40).any(|window| window == &read_key.expose().as_bytes()[20..60]));
}

#[test]
fn debug_shows_no_secret() {
    let keyring = keyring();
    let shown = format!("{keyring:?}");
    assert!(!shown.contains("AGE-SECRET-KEY-"), "{shown}");
    assert!(!shown.contains(&hex::encode(keyring.groups[0].domains[0].id_key.expose())));
    assert!(shown.contains("identities: 2"));
}

#[test]
fn errors_say_where_and_not_what() {
    let mut stored = keyring().to_bytes().to_vec();
    let at = stored.windows(16).position(|window| window == b"AGE-SECRET-KEY-1").unwrap();
    stored[at + 20] = b'!';
    let error = Keyring::from_bytes(&stored).unwrap_err();
    assert!(!format!("{error:?}").contains("AGE"), "{error:?}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("a field is missing or invalid"), "{source}");
    assert!(Keyring::from_bytes(b"\xa0").is_err());
    assert!(Keyring::from_bytes(&[&keyring().to_bytes()[..], b"\0"].concat()).is_err());
}

#[test]
fn unknown_fields_are_skipped() {
    let mut stored = keyring().to_bytes().to_vec();
    stored[0] = 0xa4;
    stored.extend(b"\x18\x20\x82\x01\x61x");
    assert!(Keyring::from_bytes(&stored).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, at in 0usize..400, value: u8) {
        let _ = (Keyring::from_bytes(&bytes), DomainKeys::from_bytes(&bytes));
        let mut stored = keyring().to_bytes().to_vec();
        if let Some(byte) = stored.get_mut(at) {
            *byte = value;
        }
        let _ = Keyring::from_bytes(&stored);
    }
}
