//! The trust chain: stored bytes as they are, and any record body that an owner has signed in the right place.
//!
//! The first byte is the number of bodies; each is behind a big endian u16 length.
#![no_main]
use std::sync::OnceLock;

use keepwell_crypto::trust::{Chain, KIND, Owner};
use keepwell_crypto::{Identity, RepositoryId, Signed, SigningKey};
use minicbor::Encoder;

const SECRET: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
static START: OnceLock<(SigningKey, Chain, Vec<u8>)> = OnceLock::new();

fn start() -> (SigningKey, Chain, Vec<u8>) {
    let key = SigningKey::from_seed(&[3; 32]);
    let identity = Identity::parse(SECRET).expect("the constant is an identity");
    let owner = Owner { name: "ann".into(), recipient: identity.recipient(), key: key.verifying_key() };
    let (chain, bytes) =
        Chain::genesis(&key, 0, RepositoryId::from_bytes([5; 16]), vec![owner]).expect("a valid genesis");
    (key, chain, bytes)
}

/// The payload of the record after the head of `chain`, with `body` as it is.
fn payload(chain: &Chain, body: &[u8]) -> Vec<u8> {
    let (n, previous) = chain.head();
    let mut e = Encoder::new(Vec::new());
    e.map(4)
        .and_then(|e| e.u8(0)?.u64(n + 1)?.u8(1)?.bytes(previous.as_bytes())?.u8(2)?.i64(1)?.u8(3))
        .expect("in memory");
    let mut payload = e.into_writer();
    payload.extend_from_slice(body);
    payload
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Chain::load([data], None);
    let (key, chain, genesis) = START.get_or_init(start);
    let mut grown = chain.clone();
    let mut stored = vec![genesis.clone()];
    let mut rest = data;
    while let Some((length, more)) = rest.split_at_checked(2) {
        let (body, after) =
            more.split_at(usize::from(u16::from_be_bytes([length[0], length[1]])).min(more.len()));
        rest = after;
        let record = Signed::sign(key, grown.repository_id(), KIND, payload(&grown, body)).to_bytes();
        let before = grown.head();
        if grown.advance(&record).is_err() {
            assert_eq!(grown.head(), before, "a refused record leaves the chain as it was");
            continue;
        }
        stored.push(record);
    }
    assert!(grown.owners().count() > 0);
    for member in grown.members() {
        grown.keyring_name(&member.id());
    }
    let loaded = Chain::load(&stored, Some(chain.fingerprint())).expect("it was accepted record by record");
    assert_eq!(loaded.head(), grown.head());
});
