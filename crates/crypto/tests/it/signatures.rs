//! Signed envelopes: what must not verify, does not.

use keepwell_crypto::{
    RepositoryId, SignatureError, Signed, SigningKey, VerifyingKey, sign_detached, verify_detached,
};
use proptest::prelude::*;

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);

fn signed() -> (SigningKey, Signed) {
    let key = SigningKey::from_seed(&[7; 32]);
    let signed = Signed::sign(&key, REPOSITORY, "commit", b"\xa0 any payload".to_vec());
    (key, signed)
}

#[test]
fn a_genuine_record_verifies_after_storing() {
    let (key, signed) = signed();
    let stored = Signed::from_bytes(&signed.to_bytes()).unwrap();
    assert_eq!(stored, signed);
    assert_eq!(stored.verify(&key.verifying_key(), REPOSITORY, "commit").unwrap(), b"\xa0 any payload");
}

#[test]
fn a_record_is_bound_to_repository_kind_and_signer() {
    let (key, signed) = signed();
    let public = key.verifying_key();
    let elsewhere = RepositoryId::from_bytes([2; 16]);
    assert!(matches!(signed.verify(&public, elsewhere, "commit"), Err(SignatureError::Bad { .. })));
    let expected = "list".to_owned();
    assert_eq!(signed.verify(&public, REPOSITORY, "list"), Err(SignatureError::WrongKind { expected }));
    let other = SigningKey::from_seed(&[8; 32]).verifying_key();
    let error = signed.verify(&other, REPOSITORY, "commit").unwrap_err();
    assert_eq!(error, SignatureError::WrongSigner { expected: other.member_id(), found: key.member_id() });
    // Renaming it does not help either.
    let renamed = Signed { kind: "list".into(), ..signed.clone() };
    assert!(matches!(renamed.verify(&public, REPOSITORY, "list"), Err(SignatureError::Bad { .. })));
    let claimed = Signed { signer: other.member_id(), ..signed };
    assert!(matches!(claimed.verify(&other, REPOSITORY, "commit"), Err(SignatureError::Bad { .. })));
}

#[test]
fn the_border_between_kind_and_payload_cannot_be_moved() {
    let key = SigningKey::from_seed(&[7; 32]);
    let signed = Signed::sign(&key, REPOSITORY, "gc", b"marks".to_vec());
    let moved = Signed { kind: "gcm".into(), payload: b"arks".to_vec(), ..signed };
    assert!(moved.verify(&key.verifying_key(), REPOSITORY, "gcm").is_err());
}

#[test]
fn every_flipped_bit_and_every_truncation_of_a_stored_record_is_refused() {
    let (key, signed) = signed();
    let stored = signed.to_bytes();
    let accepted = |bytes: &[u8]| {
        Signed::from_bytes(bytes).is_ok_and(|s| s.verify(&key.verifying_key(), REPOSITORY, "commit").is_ok())
    };
    assert!(accepted(&stored));
    for bit in 0..stored.len() * 8 {
        let mut damaged = stored.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(!accepted(&damaged), "bit {bit}");
    }
    for length in 0..stored.len() {
        assert!(!accepted(&stored[..length]), "truncated to {length}");
    }
    assert!(!accepted(&[&stored[..], b"\0"].concat()));
}

#[test]
fn a_record_has_one_stored_form() {
    let (_, signed) = signed();
    let stored = signed.to_bytes();
    let reason = |bytes: &[u8]| Signed::from_bytes(bytes).unwrap_err().to_string();
    let mut five_keys = stored.clone();
    five_keys[0] = 0xa5;
    five_keys.extend(b"\x04\x00");
    assert!(reason(&five_keys).ends_with("it is not a map of the keys 0 to 3"));
    let mut long_key = stored.clone();
    long_key.splice(1..2, *b"\x18\x00");
    assert_eq!(
        reason(&long_key),
        "the signed record is malformed at byte 1: an integer is not in its shortest form"
    );
    let mut indefinite = stored;
    indefinite[0] = 0xbf;
    indefinite.push(0xff);
    assert!(reason(&indefinite).ends_with("an indefinite or reserved length"));
}

#[test]
fn malleated_signatures_and_weak_keys_are_refused() {
    let (key, signed) = signed();
    // S + L verifies under lax rules (RFC 8032 §5.1.7 refuses it).
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut malleated = signed.clone();
    let mut carry = 0;
    for (byte, add) in malleated.signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert!(malleated.verify(&key.verifying_key(), REPOSITORY, "commit").is_err());
    let mut neutral = [0; 32];
    neutral[0] = 1;
    for weak in [neutral, [0; 32]] {
        assert_eq!(
            VerifyingKey::from_bytes(weak).unwrap_err().to_string(),
            "not a valid Ed25519 public key: the point has a low order"
        );
    }
}

#[test]
fn signing_keys_as_text() {
    let key = SigningKey::generate();
    let text = key.to_secret_string();
    assert!(text.expose().starts_with("KEEPWELL-SIGNING-KEY-1"));
    assert_eq!(SigningKey::parse(text.expose()).unwrap().member_id(), key.member_id());
    assert_eq!(SigningKey::parse(&text.expose().to_lowercase()).unwrap().member_id(), key.member_id());
    let identity = keepwell_crypto::Identity::generate().to_secret_string().unwrap();
    let mut typo = text.expose().to_owned();
    let last = if typo.pop() == Some('Q') { 'P' } else { 'Q' };
    typo.push(last);
    for bad in ["", "KEEPWELL-SIGNING-KEY-1", typo.as_str(), identity.expose()] {
        let error = SigningKey::parse(bad).unwrap_err();
        assert!(error.to_string().starts_with("not a valid signing key: it does not"), "{error}");
        assert!(bad.len() < 30 || !format!("{error:?}").contains(&bad[25..]));
    }
}

#[test]
fn debug_shows_no_secret() {
    let key = SigningKey::from_seed(&[0xab; 32]);
    let shown = format!("{key:?} {:?}", key.to_secret_string());
    assert_eq!(shown, format!("SigningKey(of {}) Secret(…)", key.member_id()));
    assert_eq!(format!("{:?}", keepwell_crypto::IdKey::from_bytes([0xab; 32])), "IdKey(secret)");
    assert_eq!(format!("{:?}", keepwell_crypto::IdKey::generate().boundary()), "BoundaryKey(secret)");
    let identity = keepwell_crypto::Identity::generate();
    assert_eq!(format!("{identity:?}"), format!("Identity(of {})", identity.recipient()));
}

proptest! {
    #[test]
    fn detached_signatures_hold_for_their_bytes_alone(bytes: Vec<u8>, other: Vec<u8>, seed: [u8; 32]) {
        let key = SigningKey::from_seed(&seed);
        let signature = sign_detached(&key, REPOSITORY, "index", &bytes);
        let verify = |bytes: &[u8]| verify_detached(&key.verifying_key(), REPOSITORY, "index", bytes, &signature);
        prop_assert!(verify(&bytes).is_ok());
        prop_assert_eq!(verify(&other).is_ok(), bytes == other);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, at in 0usize..120, value: u8) {
        let _ = Signed::from_bytes(&bytes);
        let mut stored = signed().1.to_bytes();
        if let Some(byte) = stored.get_mut(at) {
            *byte = value;
        }
        let _ = Signed::from_bytes(&stored);
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(kind in "[a-z]{0,40}", payload: Vec<u8>, signer: [u8; 8], half: [u8; 32]) {
        let signature = [half, half].concat().try_into().unwrap();
        let signed = Signed { kind, payload, signer: keepwell_crypto::MemberId::from_bytes(signer), signature };
        let stored = signed.to_bytes();
        let decoded = Signed::from_bytes(&stored).unwrap();
        prop_assert_eq!(decoded.to_bytes(), stored);
        prop_assert_eq!(decoded, signed);
    }
}
