//! Trust and keys on their way into a copy.
//!
//! A copy is of use only with the keyrings that open what is in it, and safe only with the revocations of its origin. So it
//! gets them first, before anything that was sealed or signed under them: keyrings and keys of erasable domains, then the
//! records of the trust chain in their order. What a crash leaves is a chain that is shorter, and keys that nobody looks at
//! yet.

use std::collections::BTreeMap;

use bytes::Bytes;
use keepwell_catalog::names::{self, ObjectName};
use keepwell_crypto::Digest;
use keepwell_crypto::trust::Chain;
use keepwell_storage::{Key, ObjectInfo, ObjectStore, list_all};

use crate::Error;
use crate::repository::{Repository, fetch_bounded, fetch_listed};

/// What is larger is neither a keyring nor the keys of a domain: nobody decodes it.
const KEYS_MAX: u64 = 8 << 20;

impl Repository {
    /// Gives another store of this repository what it lacks of trust and keys, and both handles the keys in force now.
    ///
    /// [`Error::TrustApart`] or [`Error::TrustAhead`] when the chain there is not a part of the one here; then nothing was
    /// stored. A last record that only begins to erase a domain waits until the erasure is complete. Costs a listing on both
    /// sides when nothing is lacking; else another one here, and a request or two for each
    /// key object. A crash leaves a valid copy, and the next call goes on.
    pub(crate) async fn bring_trust(&self, target: &Self) -> Result<(), Error> {
        // In this order: another copy may be at work, and bring what was appended in between.
        let there = target.refresh_trust().await?;
        let here = self.refresh_trust().await?;
        let (copy, origin) = (there.head().0, here.head().0);
        if let Some(n) = (0..=copy.min(origin)).find(|n| here.record_digest(*n) != there.record_digest(*n)) {
            return Err(Error::TrustApart { object: names::trust_key(n).to_string() });
        }
        if copy > origin {
            return Err(Error::TrustAhead { copy, origin });
        }
        if copy < origin {
            give(self, &here, target.store(), Some(&there)).await?;
            target.refresh_trust().await?;
        }
        Ok(())
    }
}

/// Refuses a store that holds records of another chain, or others than a half-made copy of this one has.
pub(super) async fn refuse_other_trust(chain: &Chain, store: &dyn ObjectStore) -> Result<(), Error> {
    for info in list_all(store, "trust/").await? {
        let Ok(ObjectName::Trust(n)) = info.key.as_str().parse() else { continue };
        if chain.record_digest(n) != Some(Digest::of(&fetch_listed(store, &info).await?)) {
            return Err(Error::TrustApart { object: info.key.to_string() });
        }
    }
    Ok(())
}

/// Stores in a copy that has the chain as far as `from` says what it lacks: every keyring that the chain names or named
/// since, the keys of erasable domains, then the records. The chain was read before the keys are listed, so that what it
/// names is among them.
///
/// What no record names is left where it is: anybody who may create objects can have put it there.
pub(super) async fn give(
    origin: &Repository,
    chain: &Chain,
    store: &dyn ObjectStore,
    from: Option<&Chain>,
) -> Result<(), Error> {
    let mut records = missing_records(origin, chain, from).await?;
    let said = Said::of(from, &records)?;
    if said.begins_erasure
        && let Some((key, _)) = records.pop()
    {
        let problem =
            "it begins an erasure that is not complete; it reaches the copy when it is: erase again, here";
        origin.monitor().problem(key.as_str(), problem);
    }
    for info in list_all(origin.store(), "keys/").await? {
        if !belongs_there(chain, &said, &info) {
            continue;
        }
        let bytes = match origin.store().get_at_most(&info.key, KEYS_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => continue, // erased meanwhile
            Err(error) => return Err(error.into()),
        };
        let digest = said.keyrings.get(info.key.as_str());
        if digest.is_some_and(|digest| *digest != Digest::of(&bytes)) {
            let problem = "it is not the keyring that the trust chain names, and is left out of the copy";
            origin.monitor().problem(info.key.as_str(), problem);
            continue;
        }
        match put_same(store, &info.key, bytes).await {
            // Nobody can tell which of the two opens, if any does; readers try each that there is.
            Err(Error::TrustApart { .. }) if digest.is_none() => {
                let problem = "it is another one in the copy than in the origin, and stays";
                origin.monitor().problem(info.key.as_str(), problem);
            }
            stored => stored?,
        }
    }
    for (key, bytes) in records {
        put_same(store, &key, bytes).await?;
    }
    Ok(())
}

/// The records behind those of `from`, in their order.
async fn missing_records(
    origin: &Repository,
    chain: &Chain,
    from: Option<&Chain>,
) -> Result<Vec<(Key, Bytes)>, Error> {
    let mut records = Vec::new();
    for n in from.map_or(0, |from| from.head().0 + 1)..=chain.head().0 {
        let key = names::trust_key(n);
        let bytes = fetch_bounded(origin.store(), &key).await?;
        if chain.record_digest(n) != Some(Digest::of(&bytes)) {
            return Err(Error::damaged(&key, "it is another record than was read a moment ago"));
        }
        records.push((key, bytes));
    }
    Ok(records)
}

/// What a chain says of keys from some record on.
#[derive(Debug, Default)]
struct Said {
    /// Keyrings that are in force at some record, with their digests: a copy that is interrupted there opens with these.
    keyrings: BTreeMap<String, Digest>,
    /// Whether the last record announces an erasure of which nothing is proven yet.
    ///
    /// Whoever goes on with it appends the next record, in whichever store: were it in a copy, the two chains would go
    /// their own ways from there on.
    begins_erasure: bool,
}

impl Said {
    /// By the chain as `from` has it, and by each of the records behind it.
    fn of(from: Option<&Chain>, records: &[(Key, Bytes)]) -> Result<Self, Error> {
        let (mut said, mut chain) = (Self::default(), from.cloned());
        if let Some(chain) = &chain {
            said.note(chain);
        }
        for (_, bytes) in records {
            let before = chain.as_ref().map_or(0, unproven);
            let next = match chain.take() {
                None => Chain::load([bytes], None)?,
                Some(mut chain) => chain.advance(bytes).map(|()| chain)?,
            };
            said.begins_erasure = unproven(&next) > before;
            said.note(&next);
            chain = Some(next);
        }
        Ok(said)
    }

    fn note(&mut self, chain: &Chain) {
        for keyring in chain.members().filter_map(|member| chain.keyring(&member.id())) {
            if !self.keyrings.contains_key(&keyring.name) {
                self.keyrings.insert(keyring.name.clone(), keyring.digest);
            }
        }
    }
}

/// Key objects of erased domains that are announced to go and not proven gone.
fn unproven(chain: &Chain) -> usize {
    chain.domains().map(|domain| chain.unproven_keys(&domain.id).count()).sum()
}

/// The keys of an erased domain are to be nowhere.
fn belongs_there(chain: &Chain, said: &Said, info: &ObjectInfo) -> bool {
    let is_key = match info.key.as_str().parse() {
        Ok(ObjectName::Keyring { .. }) => said.keyrings.contains_key(info.key.as_str()),
        Ok(ObjectName::ErasableKey { domain, .. }) => {
            chain.domain(&domain).is_some() && !chain.is_erased(&domain)
        }
        _ => false,
    };
    is_key && info.size <= KEYS_MAX
}

/// Stores an object under its own name in another store. The same bytes are as good; others are an error.
async fn put_same(store: &dyn ObjectStore, key: &Key, bytes: Bytes) -> Result<(), Error> {
    let found = match fetch_bounded(store, key).await {
        Err(Error::Storage(error)) if error.is_not_found() => match store.put_new(key, bytes.clone()).await {
            // An answer was lost, or another copy is at work.
            Err(error) if error.is_already_exists() => fetch_bounded(store, key).await?,
            stored => return Ok(stored?),
        },
        found => found?,
    };
    if found == bytes { Ok(()) } else { Err(Error::TrustApart { object: key.to_string() }) }
}
