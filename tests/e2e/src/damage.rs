//! Ways to damage one object of a store.

use bytes::Bytes;
use keepwell_crypto::{Recipient, RepositoryId, Signed, SigningKey};
use keepwell_storage::{Key, Memory, ObjectStore};

use crate::noise;

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// It is gone.
    Deleted,
    /// Only its first half is left.
    Truncated,
    /// It has no bytes.
    Emptied,
    /// One bit is another, somewhere.
    Flipped,
    /// It has the bytes of another object of its kind.
    Replaced,
    /// Its bytes and those of another object of its kind have changed places.
    Swapped,
    /// Made anew by one who has all public keys, and none of the secret ones.
    Forged,
}

/// All of them.
pub const ALL: [Damage; 7] = [
    Damage::Deleted,
    Damage::Truncated,
    Damage::Emptied,
    Damage::Flipped,
    Damage::Replaced,
    Damage::Swapped,
    Damage::Forged,
];

/// Public knowledge, as a thief of the store has it.
#[derive(Debug, Clone)]
pub struct Public {
    /// From the hint and the trust chain.
    pub repository: RepositoryId,
    /// Any public key that objects are sealed to.
    pub recipient: Recipient,
}

/// Replaces an object, or makes it.
pub async fn overwrite(store: &Memory, key: &Key, bytes: Bytes) {
    store.delete(key).await.unwrap();
    store.put_new(key, bytes).await.unwrap();
}

/// Damages the object `name`. `peer` is another of its kind. `false` if this damage makes no sense for it.
pub async fn inflict(
    store: &Memory,
    damage: Damage,
    name: &str,
    peer: Option<&str>,
    public: &Public,
    seed: u64,
) -> bool {
    let key: Key = name.parse().unwrap();
    let bytes = store.get(&key).await.unwrap();
    let peer_key = peer.map(|peer| peer.parse::<Key>().unwrap());
    match damage {
        Damage::Deleted => store.delete(&key).await.unwrap(),
        Damage::Truncated => overwrite(store, &key, bytes.slice(..bytes.len() / 2)).await,
        Damage::Emptied => overwrite(store, &key, Bytes::new()).await,
        Damage::Flipped => {
            let mut flipped = bytes.to_vec();
            let bit = usize::try_from(crate::Dice::new(seed).roll(8 * bytes.len() as u64)).unwrap();
            flipped[bit / 8] ^= 1 << (bit % 8);
            overwrite(store, &key, flipped.into()).await;
        }
        Damage::Replaced | Damage::Swapped => {
            let Some(peer_key) = peer_key else { return false };
            let others = store.get(&peer_key).await.unwrap();
            overwrite(store, &key, others).await;
            if damage == Damage::Swapped {
                overwrite(store, &peer_key, bytes).await;
            }
        }
        Damage::Forged => {
            let forged = forge(&bytes, public, seed);
            overwrite(store, &key, forged.into()).await;
        }
    }
    true
}

/// A signed record is signed anew by a stranger; anything else is sealed to a key that everybody knows.
fn forge(bytes: &[u8], public: &Public, seed: u64) -> Vec<u8> {
    match Signed::from_bytes(bytes) {
        Ok(signed) => {
            let mut forged =
                Signed::sign(&SigningKey::generate(), public.repository, &signed.kind, signed.payload);
            if seed.is_multiple_of(2) {
                forged.signer = signed.signer; // says that it is from whom it was from
            }
            forged.to_bytes()
        }
        Err(_) => keepwell_crypto::seal(std::slice::from_ref(&public.recipient), &noise(seed, 5000)).unwrap(),
    }
}
