//! Ways to damage one object of a store.

use std::path::Path;

use backup_core::Repository;
use bytes::Bytes;
use keepwell_catalog::{
    IndexEntry, Manifest, ObjectName, PackClass, PackRef, Segment, SegmentBuilder, open_record, seal_record,
};
use keepwell_crypto::keyring::Keyring;
use keepwell_crypto::trust::Chain;
use keepwell_crypto::{Identity, Recipient, RepositoryId, Signed, SigningKey, seal};
use keepwell_storage::{Key, Memory, ObjectStore};

use crate::noise;
use crate::world::{World, back_up};

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
    /// Made anew by such a one who has a repository of the same shape: a pack, segment, manifest or keyring as it should be,
    /// sealed to whom it should be sealed, with other secrets.
    Counterfeit,
}

/// All of them.
pub const ALL: [Damage; 8] = [
    Damage::Deleted,
    Damage::Truncated,
    Damage::Emptied,
    Damage::Flipped,
    Damage::Replaced,
    Damage::Swapped,
    Damage::Forged,
    Damage::Counterfeit,
];

/// Public knowledge, as a thief of the store has it, and what he makes of it.
#[derive(Debug, Clone)]
pub struct Public {
    repository: RepositoryId,
    chain: Chain,
    forger: Forger,
}

impl Public {
    /// What is public about a repository.
    pub fn of(repository: &Repository, forger: Forger) -> Self {
        Self { repository: repository.id(), chain: repository.chain(), forger }
    }

    /// To whom content is sealed.
    fn recipient(&self) -> Recipient {
        self.chain.domains().next().unwrap().recipient.clone()
    }
}

/// Somebody with a repository of his own, opened.
#[derive(Debug, Clone)]
pub struct Forger {
    data: Vec<u8>,
    meta: Vec<u8>,
    /// Those of one index segment.
    packs: Vec<PackRef>,
    entries: Vec<IndexEntry>,
    manifest: Manifest,
    keyring: Vec<u8>,
}

impl Forger {
    /// Backs a directory up into a repository with secrets of its own.
    pub async fn new(dir: &Path) -> Self {
        let world = World::new().await;
        let repository = world.open().await;
        back_up(&repository, dir).await.unwrap();
        let member = repository.access().member().unwrap();
        let name = repository.chain().keyring(&member).unwrap().name.clone();
        let identity = world.key.member.as_ref().unwrap().identity.clone();
        let sealed = world.store.get(&name.parse().unwrap()).await.unwrap();
        let keyring = open_record(&[identity], &sealed, 1 << 20).unwrap().to_vec();
        let keys = Keyring::from_bytes(&keyring).unwrap();
        let (group, domain) = (&keys.groups[0], &keys.groups[0].domains[0]);
        let manifest = plain(&world, "manifests/", &domain.identities, true).await;
        let segment = Bytes::from(plain(&world, "index/", &group.index_identities, false).await);
        let segment = Segment::open(Box::new(segment), &|_, _, _| Ok(())).unwrap();
        Self {
            data: plain(&world, "data/", &domain.identities, false).await,
            meta: plain(&world, "meta/", &domain.identities, false).await,
            packs: segment.packs().to_vec(),
            entries: segment.iter().map(|item| item.unwrap().1).collect(),
            manifest: Manifest::decode(&manifest).unwrap(),
            keyring,
        }
    }

    /// What he puts in the place of an object; `None` for what has a signature of its own, which [`Damage::Forged`] does.
    fn counterfeit(&self, name: &str, public: &Public) -> Option<Vec<u8>> {
        let chain = &public.chain;
        let domain = chain.domains().next()?;
        let made = match name.parse().ok()? {
            ObjectName::Pack(PackClass::Data, _) => seal(&[public.recipient()], &self.data),
            ObjectName::Pack(PackClass::Meta, _) => seal(&[public.recipient()], &self.meta),
            ObjectName::Index(group, _) => {
                let mut builder = SegmentBuilder::new(group, PackClass::Data);
                self.packs.iter().for_each(|pack| _ = builder.add_pack(*pack));
                self.entries.iter().for_each(|entry| builder.add(*entry));
                let plain = builder.finish(public.repository, &SigningKey::generate(), Vec::new()).unwrap();
                seal(&[chain.group(&group)?.recipient.clone()], &plain)
            }
            ObjectName::Manifest(_) => {
                let manifest = Manifest {
                    repository: public.repository,
                    group: domain.group,
                    domain: domain.id,
                    ..self.manifest.clone()
                };
                return Some(seal_record(&[public.recipient()], &manifest.encode()).unwrap());
            }
            ObjectName::Keyring { member, .. } => {
                let mut recipients = chain.owner_recipients();
                recipients.push(chain.member(&member)?.recipient.clone());
                return Some(seal_record(&recipients, &self.keyring).unwrap());
            }
            _ => return None,
        };
        Some(made.unwrap())
    }
}

/// What the first object below a prefix says.
async fn plain(world: &World, prefix: &str, identities: &[Identity], is_record: bool) -> Vec<u8> {
    let name = world.names(prefix).await.remove(0);
    let sealed = world.store.get(&name.parse().unwrap()).await.unwrap();
    match is_record {
        true => open_record(identities, &sealed, 1 << 20).unwrap().to_vec(),
        false => keepwell_crypto::open(identities, &sealed, 1 << 26).unwrap(),
    }
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
        Damage::Counterfeit => {
            let Some(made) = public.forger.counterfeit(name, public) else { return false };
            overwrite(store, &key, made.into()).await;
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
        Err(_) => seal(&[public.recipient()], &noise(seed, 5000)).unwrap(),
    }
}
