//! What nothing opens without: the hint, the trust chain, keyrings. Put back from another copy before a repository is open.

use std::collections::BTreeMap;

use bytes::Bytes;
use keepwell_catalog::names::{self, ObjectName};
use keepwell_crypto::trust::{Chain, Roles};
use keepwell_crypto::{Digest, MemberId, StoreId};
use keepwell_storage::{Key, ObjectStore, list_all};

use super::put::put_exactly;
use crate::Error;
use crate::env::Timestamp;
use crate::repository::{RepositoryHint, fetch_bounded, read_chain, verify_end};

/// So many ends of a writer, the first that verify, say which store it is for it.
const ENDS_READ: usize = 5;
/// So many are fetched for that at most: whoever may create objects can put as many as they like among them that do not verify.
const ENDS_FETCHED: usize = 20;

/// Writers for whom it is some store: keepers in force, all in force, all. They count in this order.
type Voices = (usize, usize, usize);

/// Puts back what a store has lost of that without which its repository cannot be opened, from another store of the same
/// repository. Gives the names of what it put.
///
/// `pin` is the genesis fingerprint that the key file of the repository in `store` names; nothing is taken from the copy that
/// does not follow from it. By the pin of another repository all trust that is there counts as damaged, and is replaced.
/// A record of trust that is valid in `store` is never touched: where the copy has another one, the two were changed
/// apart from each other, and [`Error::Invalid`] says so. The hint is made anew, with the id of the store that its
/// commits name, if it is missing, unreadable, or says something else; no writer's commits outweigh those of keepers. An
/// erased domain's keys do not come back. A crash leaves at most one record missing that was damaged; the next call puts it
/// back.
pub async fn restore_vital(
    store: &dyn ObjectStore,
    copy: &dyn ObjectStore,
    pin: Digest,
    now: Timestamp,
) -> Result<Vec<Key>, Error> {
    let mut put = Vec::new();
    let there = read_chain(copy, Some(pin)).await?;
    restore_chain(store, copy, &there, pin, &mut put).await?;
    let chain = read_chain(store, Some(pin)).await?;
    for keyring in chain.members().filter_map(|member| chain.keyring(&member.id())) {
        let key: Key = keyring.name.parse().map_err(|e| Error::damaged("trust", e))?;
        let is_it = |bytes: &[u8]| Digest::of(bytes) == keyring.digest;
        let Some(bytes) = get(copy, &key).await?.filter(|bytes| is_it(bytes)) else { continue };
        if put_exactly(store, &key, bytes, is_it).await? {
            put.push(key);
        }
    }
    for info in list_all(copy, "keys/erasable/").await? {
        let Ok(ObjectName::ErasableKey { domain, .. }) = info.key.as_str().parse() else { continue };
        if chain.domain(&domain).is_none() || chain.is_erased(&domain) {
            continue;
        }
        // Nobody can tell a damaged one from a sound one without the key to it, so only missing ones are put back.
        let Some(bytes) = get(copy, &info.key).await? else { continue };
        if put_exactly(store, &info.key, bytes, |_| true).await? {
            put.push(info.key);
        }
    }
    if restore_hint(store, copy, &chain, now).await? {
        put.push(RepositoryHint::key());
    }
    Ok(put)
}

/// Nothing where there is none, or something larger than any: that is as good as nothing, and is replaced.
async fn get(store: &dyn ObjectStore, key: &Key) -> Result<Option<Bytes>, Error> {
    match fetch_bounded(store, key).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Storage(error)) if error.is_not_found() => Ok(None),
        Err(Error::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Record by record, as far as the copy's chain goes. What stands there validly stays.
async fn restore_chain(
    store: &dyn ObjectStore,
    copy: &dyn ObjectStore,
    there: &Chain,
    pin: Digest,
    put: &mut Vec<Key>,
) -> Result<(), Error> {
    let mut chain: Option<Chain> = None;
    let advanced = |chain: &Option<Chain>, bytes: &[u8]| match chain {
        None => Chain::load([bytes], Some(pin)),
        Some(before) => {
            let mut chain = before.clone();
            chain.advance(bytes).map(|()| chain)
        }
    };
    for n in 0..=there.head().0 {
        let key = names::trust_key(n);
        let bytes = fetch_bounded(copy, &key).await?;
        let next = advanced(&chain, &bytes)?;
        let found = get(store, &key).await?;
        if let Some(found) = found.filter(|found| *found != bytes)
            && advanced(&chain, &found).is_ok()
        {
            return Err(Error::Invalid(format!(
                "owners have changed the trust of the two stores apart from each other: `{key}` is another one in each"
            )));
        }
        if put_exactly(store, &key, bytes, |_| false).await? {
            put.push(key);
        }
        chain = Some(next);
    }
    Ok(())
}

/// Makes the hint anew unless it names this repository and the store that the commits name.
async fn restore_hint(
    store: &dyn ObjectStore,
    copy: &dyn ObjectStore,
    chain: &Chain,
    now: Timestamp,
) -> Result<bool, Error> {
    let hint = match RepositoryHint::read(store).await {
        Ok(hint) => Some(hint),
        Err(Error::Storage(error)) => return Err(Error::Storage(error)),
        Err(_) => None,
    };
    let hint = hint.filter(|hint| hint.repository == chain.repository_id().to_string());
    let named = hint.as_ref().and_then(|hint| hint.store.parse::<StoreId>().ok());
    let signed = signed_store_id(store, chain, named).await?;
    if named.is_some() && (signed.is_none() || signed == named) {
        return Ok(false);
    }
    let Some(id) = signed else {
        return Err(Error::damaged(
            RepositoryHint::key(),
            "it does not say which store this is, and there is no commit that does",
        ));
    };
    let made = match RepositoryHint::read(copy).await {
        Ok(hint) if hint.store == id.to_string() => hint,
        _ => RepositoryHint::new(chain.repository_id(), id, now, None),
    };
    put_exactly(store, &RepositoryHint::key(), made.to_bytes().into(), |_| false).await
}

/// The store that commits name, and that `named` is if they leave a choice.
///
/// Any writer can sign as many as it likes that name another. So each counts once, and before all others who keep here: they
/// need no such means to do harm. What is refused is not fetched.
async fn signed_store_id(
    store: &dyn ObjectStore,
    chain: &Chain,
    named: Option<StoreId>,
) -> Result<Option<StoreId>, Error> {
    let mut read: BTreeMap<MemberId, BTreeMap<StoreId, usize>> = BTreeMap::new();
    let mut fetched: BTreeMap<MemberId, usize> = BTreeMap::new();
    for info in list_all(store, "commits/").await? {
        let Ok(ObjectName::Commit(writer, n)) = info.key.as_str().parse() else { continue };
        let is_refused = chain.revoked_from(&writer).is_some_and(|from| n >= from);
        let is_heard = read.get(&writer).is_some_and(|ends| ends.values().sum::<usize>() >= ENDS_READ);
        if chain.member(&writer).is_none() || is_refused || is_heard {
            continue;
        }
        let count = fetched.entry(writer).or_default();
        if *count == ENDS_FETCHED {
            continue;
        }
        *count += 1;
        let Some(bytes) = get(store, &info.key).await? else { continue };
        if let Ok(end) = verify_end(chain, None, writer, n, &bytes)
            && end.refused.is_none()
        {
            *read.entry(writer).or_default().entry(end.commit.store).or_default() += 1;
        }
    }
    let mut voices: BTreeMap<StoreId, Voices> = BTreeMap::new();
    for (writer, ends) in read {
        let Some((id, _)) = ends.into_iter().max_by_key(|(_, count)| *count) else { continue };
        let is_in_force = chain.revoked_from(&writer).is_none();
        let keeps = chain.member(&writer).is_some_and(|member| member.roles.intersects(Roles::KEEPER));
        let (keepers, in_force, all) = voices.entry(id).or_default();
        *keepers += usize::from(is_in_force && keeps);
        *in_force += usize::from(is_in_force);
        *all += 1;
    }
    let chosen = voices.into_iter().max_by_key(|(id, voices)| (*voices, Some(*id) == named));
    Ok(chosen.map(|(id, _)| id))
}
