//! The trust chain and what it names: read once, then only what is new.

use std::ops::Deref;

use keepwell_catalog::{CatalogError, names, open_keys};
use keepwell_crypto::keyring::{DomainKeys, GroupKeys, Keyring};
use keepwell_crypto::trust::{Chain, Domain, Member, Roles};
use keepwell_crypto::{ChunkKind, CryptoError, Digest, Identity, MemberId, Recipient};
use keepwell_storage::{Key, ObjectStore};

use super::records::Records;
use super::{fetch_bounded, fetch_listed};
use crate::Error;
use crate::cache::Cache;

/// Largest keyring that is decoded.
const KEYRING_MAX: usize = 4 << 20;
/// Largest keys of an erasable domain that are decoded.
const KEYS_MAX: usize = 1 << 20;
/// Number and digest of the newest record that this host has seen in a store.
pub(crate) const HEAD: &str = "trust.head";

/// Reads and verifies the trust chain of a store, without a cache.
pub(crate) async fn read_chain(store: &dyn ObjectStore, pin: Option<Digest>) -> Result<Chain, Error> {
    open_chain(&Records { store, cache: &Cache::memory() }, pin).await
}

/// Reads and verifies the trust chain of a store: what this host has seen before comes from the cache.
///
/// Costs a listing, and a request per record that is new. [`Error::TrustSetBack`] when the store does not show a record
/// that this host has seen there.
pub(super) async fn open_chain(records: &Records<'_>, pin: Option<Digest>) -> Result<Chain, Error> {
    let seen = read_head(records.cache);
    let mut chain = match cached_chain(records, pin) {
        Some(chain) => chain,
        None => {
            let key = names::trust_key(0);
            match records.get(&key, |bytes| Ok(Chain::load([bytes], pin)?)).await {
                Err(Error::Storage(error)) if error.is_not_found() => {
                    return Err(keepwell_crypto::trust::TrustError::Empty.into());
                }
                chain => chain?,
            }
        }
    };
    advance_chain(records, &mut chain).await?;
    match seen {
        Some((n, digest)) if chain.record_digest(n) != Some(digest) => {
            Err(Error::TrustSetBack { seen: n, head: chain.head().0 })
        }
        _ => Ok(chain),
    }
}

/// Takes in what owners appended since, and remembers how far the chain went.
pub(crate) async fn advance_chain(records: &Records<'_>, chain: &mut Chain) -> Result<(), Error> {
    let known = chain.head().0;
    let mut next = known;
    let mut after = known.checked_sub(1).map(names::trust_key);
    loop {
        let page = records.store.list_page("trust/", after.as_ref()).await?;
        for info in &page.objects {
            let key = names::trust_key(next);
            if info.key != key {
                return Err(missing(known, next, Some(&info.key)));
            }
            if next > known {
                let bytes = fetch_listed(records.store, info).await?;
                chain.advance(&bytes)?;
                records.keep(&key, &bytes);
            }
            next += 1;
        }
        match page.objects.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => break,
        }
    }
    if next <= known {
        return Err(missing(known, next, None));
    }
    remember_head(records.cache, chain);
    Ok(())
}

/// A record is not listed: one that was read before, or one that later records stand on.
fn missing(known: u64, absent: u64, instead: Option<&Key>) -> Error {
    match instead {
        Some(key) if absent > known => {
            Error::damaged(key, format_args!("record {absent} of the trust chain is missing"))
        }
        _ => Error::TrustSetBack { seen: known, head: absent.saturating_sub(1) },
    }
}

/// Opens the chain of a store that lies at a place, by whose name it is known to this host as well as by its own id, which is
/// no secret and which whoever writes into the store may replace.
///
/// A store that was never seen has to show what was seen at its place. One that was, under its own id, does not: disks that
/// take turns at a place may know the chain to different lengths.
pub(super) async fn open_chain_at(
    records: &Records<'_>,
    place: &Cache,
    pin: Option<Digest>,
) -> Result<Chain, Error> {
    // Before the listing: another process of this host may see more meanwhile, and note it.
    let (is_known, seen) = (read_head(records.cache).is_some(), read_head(place));
    let chain = open_chain(records, pin).await?;
    if let Some((n, digest)) = seen
        && chain.record_digest(n) != Some(digest)
    {
        if is_known {
            return Ok(chain);
        }
        records.cache.remove(HEAD);
        return Err(Error::TrustSetBack { seen: n, head: chain.head().0 });
    }
    remember_head(place, &chain);
    Ok(chain)
}

/// As much of the chain as the cache holds, beginning with the genesis that the key file pins.
fn cached_chain(records: &Records<'_>, pin: Option<Digest>) -> Option<Chain> {
    let mut chain = records.cached(&names::trust_key(0), |bytes| Ok(Chain::load([bytes], pin)?))?;
    while records.cached(&names::trust_key(chain.head().0 + 1), |bytes| Ok(chain.advance(bytes)?)).is_some() {
    }
    Some(chain)
}

fn read_head(cache: &Cache) -> Option<(u64, Digest)> {
    let bytes = cache.read(HEAD)?;
    let (fact, check) = std::str::from_utf8(&bytes).ok()?.trim_end().rsplit_once(' ')?;
    if Digest::of(fact.as_bytes()).to_string() != check {
        return None; // damaged: better no memory than a wrong one
    }
    let (n, digest) = fact.split_once(' ')?;
    Some((n.parse().ok()?, digest.parse().ok()?))
}

/// Remembers how far the chain went: a store that shows less of it later is refused. What does not lie on this chain stays
/// remembered: it was set back, or another process of this host has seen more by now.
pub(crate) fn remember_head(cache: &Cache, chain: &Chain) {
    let (n, digest) = chain.head();
    let is_passed = |(seen, of): (u64, Digest)| seen < n && chain.record_digest(seen) == Some(of);
    if read_head(cache).is_none_or(is_passed) {
        let fact = format!("{n} {digest}");
        let check = Digest::of(fact.as_bytes());
        // Without it a chain that was set back goes unnoticed here, as on a host that has never seen this store.
        let _ = cache.store(HEAD, format!("{fact} {check}\n").as_bytes());
    }
}

/// The keyring of a member that the chain names, opened with the member's or an owner's identity.
pub(crate) async fn read_keyring(
    records: &Records<'_>,
    chain: &Chain,
    member: MemberId,
    identity: &Identity,
) -> Result<Keyring, Error> {
    let reference =
        chain.keyring(&member).ok_or_else(|| Error::WrongKey(format!("member {member} has no keyring")))?;
    let key: Key = reference.name.parse().map_err(|e| Error::damaged("trust", e))?;
    let keyring = records.get(&key, |sealed| {
        if Digest::of(sealed) != reference.digest {
            return Err(Error::damaged(&key, "it is not the keyring that the trust chain names"));
        }
        let bytes = opened_by(identity, sealed, KEYRING_MAX)?.map_err(|e| Error::damaged(&key, e))?;
        Keyring::from_bytes(&bytes).map_err(|e| Error::damaged(&key, e))
    });
    let keyring = keyring.await?;
    if keyring.member != member || keyring.repository != chain.repository_id() {
        return Err(Error::damaged(&key, "it belongs to somebody else"));
    }
    Ok(keyring)
}

/// What is sealed to others, or damaged, is told apart from a device with the key that does not answer: of what that would
/// have opened nothing is known.
fn opened_by(
    identity: &Identity,
    sealed: &[u8],
    limit_bytes: usize,
) -> Result<Result<impl Deref<Target = Vec<u8>>, CatalogError>, Error> {
    match open_keys(std::slice::from_ref(identity), sealed, limit_bytes) {
        Err(CatalogError::Open { source: source @ CryptoError::Device { .. } }) => Err(source.into()),
        opened => Ok(opened),
    }
}

/// To whom to seal is what the chain says: a keyring may hold keys of a rotation that is not complete yet, and which
/// others do not have. Of the index identities, the one in force comes last.
pub(super) fn follow_chain(chain: &Chain, groups: &mut [GroupKeys]) {
    for group in groups {
        let held = |group: &GroupKeys, wanted: &Recipient| {
            group.index_identities.iter().position(|identity| identity.recipient() == *wanted)
        };
        if let Some(at) = chain.group(&group.id).and_then(|newest| held(group, &newest.recipient)) {
            let identity = group.index_identities.remove(at);
            group.index_identities.push(identity);
        }
        for keys in &mut group.domains {
            let Some(newest) = chain.domain(&keys.id).map(|domain| &domain.recipient) else { continue };
            if keys.identities.is_empty() || holds(keys, newest) {
                keys.recipient = newest.clone();
            }
        }
    }
}

/// The keys of an erasable domain that a member was given, from the objects under its name, in the order of their numbers.
/// `identity` is the member's or an owner's.
///
/// Anybody who may create objects can put something there, and seal it to a member and the owners; the recipient that the
/// chain names is no secret either. So the keys of whoever reads have to open what is sealed to that recipient. A mere writer
/// has nothing that would, and goes by the id key that it was given first. Of several that fit the first counts. Of a
/// rotation that was not completed the keys are there, and not in force.
///
/// Never from the cache: these objects are apart so that they can be destroyed.
pub(crate) async fn read_erasable(
    store: &dyn ObjectStore,
    domain: &Domain,
    member: &Member,
    identity: &Identity,
    objects: &[Key],
) -> Result<Option<DomainKeys>, Error> {
    let reads = member.roles.intersects(Roles::READER | Roles::KEEPER);
    let mut first = None;
    for key in objects {
        let sealed = match fetch_bounded(store, key).await {
            Ok(sealed) => sealed,
            Err(Error::Storage(error)) if error.is_not_found() => continue, // erased meanwhile
            Err(Error::Damaged { .. }) => continue,                         // larger than any keys
            Err(error) => return Err(error),
        };
        let opened = opened_by(identity, &sealed, KEYS_MAX)?;
        let Some(keys) = opened.ok().and_then(|bytes| DomainKeys::from_bytes(&bytes).ok()) else { continue };
        if keys.id != domain.id {
            continue;
        }
        let shows = keys.id_key.chunk_id(ChunkKind::Content, b"");
        let is_genuine =
            if reads { holds(&keys, &domain.recipient) } else { *first.get_or_insert(shows) == shows };
        if is_genuine && keys.recipient == domain.recipient {
            return Ok(Some(keys));
        }
    }
    Ok(None)
}

/// Whether what is sealed to a recipient can be opened.
fn holds(keys: &DomainKeys, recipient: &Recipient) -> bool {
    keys.identities.iter().any(|identity| identity.recipient() == *recipient)
}

/// A member that can read, with its keyring as an owner opens it.
///
/// Nobody renews the keyring of a revoked member, so that of one in force is preferred, and above all one that holds
/// the keys that the chain names.
pub(crate) async fn reading_keyring(
    records: &Records<'_>,
    chain: &Chain,
    owner: &Identity,
) -> Result<(Member, Keyring), Error> {
    let is_current = |member: &Member, keyring: &Keyring| {
        let keys = keyring.groups.iter().find(|g| g.id == member.group).and_then(|g| g.domains.first());
        let newest = chain.default_domain(&member.group);
        keys.zip(newest).is_some_and(|(keys, newest)| holds(keys, &newest.recipient))
    };
    let readers = chain.members().filter(|m| m.roles.intersects(Roles::READER | Roles::KEEPER));
    let (in_force, revoked): (Vec<&Member>, Vec<&Member>) =
        readers.partition(|m| chain.revoked_from(&m.id()).is_none());
    let (mut older, mut failed) = (None, None);
    for member in in_force.into_iter().chain(revoked) {
        match read_keyring(records, chain, member.id(), owner).await {
            Ok(keyring) if is_current(member, &keyring) => return Ok((member.clone(), keyring)),
            Ok(keyring) => _ = older.get_or_insert((member.clone(), keyring)),
            Err(Error::Storage(error)) if !error.is_not_found() => return Err(Error::Storage(error)),
            Err(error @ Error::Crypto(_)) => return Err(error), // the device does not answer
            Err(error) => _ = failed.get_or_insert(error),
        }
    }
    let nobody = || Error::WrongKey("no member has a keyring that can read".into());
    older.ok_or_else(|| failed.unwrap_or_else(nobody))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use keepwell_catalog::seal_record;
    use keepwell_crypto::{DeviceError, KeyAgreement};

    use super::*;
    use crate::testing::World;

    /// A device that may be away. Its secret is one that a test has chosen.
    struct Token {
        is_away: AtomicBool,
    }

    const SECRET: [u8; 32] = [7; 32];

    impl KeyAgreement for Token {
        fn public_key(&self) -> [u8; 32] {
            x25519_dalek::x25519(SECRET, x25519_dalek::X25519_BASEPOINT_BYTES)
        }

        fn agree(&self, with: &[u8; 32]) -> Result<[u8; 32], DeviceError> {
            match self.is_away.load(Ordering::SeqCst) {
                true => Err("it is not plugged in".into()),
                false => Ok(x25519_dalek::x25519(SECRET, *with)),
            }
        }
    }

    #[tokio::test]
    async fn keys_are_not_taken_for_damaged_while_the_device_does_not_answer() {
        let world = World::new().await;
        let id = world.repository.create_domain("customer").await.unwrap();
        let repository = world.open(&world.key).await;
        let token = Arc::new(Token { is_away: AtomicBool::new(false) });
        let identity = Identity::in_device(Arc::clone(&token) as _).unwrap();
        let keys = repository.access().domain_keys(id).unwrap();
        let sealed = seal_record(&[identity.recipient()], &keys.to_bytes()).unwrap();
        let chain = repository.chain();
        let (domain, member) = (chain.domain(&id).unwrap(), chain.members().next().unwrap());
        let key = names::erasable_key(id, member.id(), 9);
        repository.store().put_new(&key, Bytes::from(sealed)).await.unwrap();
        let objects = [key];
        let read = async || read_erasable(repository.store(), domain, member, &identity, &objects).await;
        assert!(read().await.unwrap().is_some());
        token.is_away.store(true, Ordering::SeqCst);
        assert!(matches!(read().await, Err(Error::Crypto(_))));
        let sealed = repository.store().get(&objects[0]).await.unwrap();
        assert!(matches!(opened_by(&identity, &sealed, KEYRING_MAX), Err(Error::Crypto(_))));
        assert!(matches!(opened_by(&Identity::generate(), &sealed, KEYRING_MAX), Ok(Err(_))));
    }
}
