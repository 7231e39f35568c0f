//! Merging index segments, and dropping the entries of packs that are dead by verdict.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use keepwell_catalog::{Kept, PackClass, PackRef, PackSet, Segment, SortedSegmentWriter, merge, names};
use keepwell_crypto::{CryptoError, SealWriter};

use super::locks::Young;
use super::verdict::delete_all;
use crate::Error;
use crate::planted::planted;
use crate::repository::{Repository, read_plans};
use crate::write::{Ending, Session, name_of};

/// Segments of a class are merged when there are more …
const SEGMENTS_MAX: usize = 8;
/// … but never into one of more than this many entries, 23 MB: who merges holds that much, sealed; and what was stored
/// together lies further apart the more is merged, so that lookups in the order of a tree find fewer blocks at hand …
const ENTRIES_MAX: u64 = 500_000;
/// … nor into more than a quarter of our own memory limit has room for.
const MEMORY_SHARE: u64 = 4;
/// A segment that is stale and has more entries than this stays as it is: no merge makes one of a quarter as many, and whoever
/// signed it decides how many of them are of one chunk, which are all held at once.
const ALONE_ENTRIES_MAX: u64 = 4 * ENTRIES_MAX;
/// What an entry takes in a sealed segment, with its part of filter and tables.
const ENTRY_BYTES: u64 = 48;

/// Merges small segments of each class, and rewrites any that list many dead packs. Gives how many went. The index in memory
/// stays as it was: who next works with it reads it anew. What the bucket keeps for a time is left as it is.
pub(super) async fn merge_segments(repository: &Repository, young: Young) -> Result<u64, Error> {
    let room = repository.limits().memory_bytes as u64 / MEMORY_SHARE / ENTRY_BYTES;
    let mut kept = BTreeSet::new();
    if !young.is_none() {
        let listed = repository.list(&format!("index/{}/", repository.group())).await?;
        let listed = listed.into_iter().filter(|info| young.keeps(info.modified));
        kept = listed.map(|info| info.key.last_component().to_owned()).collect();
    }
    merge_up_to(repository, ENTRIES_MAX.min(room), &kept).await
}

/// The same into segments of at most so many entries. One that is larger, and stale, is rewritten alone.
pub(super) async fn merge_up_to(
    repository: &Repository,
    entries_max: u64,
    kept: &BTreeSet<String>,
) -> Result<u64, Error> {
    repository.refresh_index().await?;
    let plans = read_plans(repository).await?;
    let dead = match planted("merge-drops-doomed") {
        true => plans.doomed_packs(),
        false => PackSet::from_keys(plans.dead()),
    };
    let index = repository.index();
    let mut merged = 0;
    for class in [PackClass::Meta, PackClass::Data] {
        let may_go = |name: &str, s: &Segment| s.class() == class && !kept.contains(name);
        let of_class = index.segments().into_iter().filter(|(name, s)| may_go(name, s));
        let (small, large): (Vec<_>, Vec<_>) = of_class.partition(|(_, s)| s.len() < entries_max / 2);
        let is_dead = |p: &&PackRef| dead.contains(class, &p.name);
        let stale = |s: &Segment| s.packs().iter().filter(is_dead).count() * 4 > s.packs().len();
        let may_be_rewritten = |s: &Segment| s.len() <= ALONE_ENTRIES_MAX && stale(s);
        for alone in large.into_iter().filter(|(_, s)| may_be_rewritten(s)) {
            merged += 1;
            merge_these(repository, class, vec![alone], dead.clone()).await?;
        }
        if small.len() <= SEGMENTS_MAX && !small.iter().any(|(_, s)| stale(s)) {
            continue;
        }
        let mut chosen = Vec::new();
        let mut entries = 0;
        for (name, segment) in small {
            if entries + segment.len() <= entries_max {
                entries += segment.len();
                chosen.push((name, segment));
            }
        }
        merged += chosen.len() as u64;
        merge_these(repository, class, chosen, dead.clone()).await?;
    }
    Ok(merged)
}

async fn merge_these(
    repository: &Repository,
    class: PackClass,
    inputs: Vec<(Arc<str>, Arc<Segment>)>,
    dead: PackSet,
) -> Result<(), Error> {
    let mut input_names: Vec<String> = inputs.iter().map(|(name, _)| name.to_string()).collect();
    let session = Session::claim(repository).await?;
    let there = repository.clone();
    let listed = input_names.clone();
    if planted("merge-deletes-first") {
        let group = repository.group();
        let keys: Vec<String> = input_names.iter().map(|name| format!("index/{group}/{name}")).collect();
        delete_segments(repository, &keys).await?;
    }
    let task = tokio::task::spawn_blocking(move || build(&there, class, &inputs, &dead, listed));
    let built = task.await.map_err(|e| Error::Task(e.to_string()))?;
    let stored = match built {
        Ok(Some(sealed)) => {
            let name = name_of(&sealed, repository.random_suffix());
            let key = names::index_key(repository.group(), &name);
            let size = sealed.len() as u64;
            repository.put_new(&key, sealed).await.map(|()| vec![(key.to_string(), size)])
        }
        Ok(None) => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let created = match stored {
        Ok(created) => created,
        Err(error) => return Err(session.fail(error).await),
    };
    let stays: Vec<String> = created.iter().map(|(key, _)| key.clone()).collect();
    session.end(Ending::index_only(created)).await?;
    if planted("merge-deletes-all") {
        let listed = repository.list(&format!("index/{}/", repository.group())).await?;
        let others = listed.iter().filter(|info| !stays.contains(&info.key.to_string()));
        input_names = others.map(|info| info.key.last_component().to_owned()).collect();
    }
    let keys: Vec<String> = input_names.iter().map(|n| format!("index/{}/{n}", repository.group())).collect();
    delete_segments(repository, &keys).await
}

/// Removes index segments that others replace.
pub(crate) async fn delete_segments(repository: &Repository, keys: &[String]) -> Result<(), Error> {
    record_deletion(repository, keys).await?;
    delete_all(repository, keys).await.map(|_| ())
}

/// A plan of index segments only, decided from birth, so that a scrub knows why they are gone.
pub(super) async fn record_deletion(repository: &Repository, keys: &[String]) -> Result<(), Error> {
    let name = repository.write_plan(keys.to_vec(), Vec::new()).await?;
    let kept = Kept { store: repository.store_id(), name, released: Vec::new() };
    let signed = repository.sign(Kept::KIND, kept.encode())?;
    repository.put_own(&names::kept_key(name), signed).await?;
    Ok(())
}

/// The merged segment, sealed as it is written; `None` when nothing is left. Reads the inputs twice, so as to hold no entry.
fn build(
    repository: &Repository,
    class: PackClass,
    inputs: &[(Arc<str>, Arc<Segment>)],
    dead: &PackSet,
    names: Vec<String>,
) -> Result<Option<Bytes>, Error> {
    let merged = || merge(inputs.iter().map(|(_, s)| &**s), move |pack, _| dead.contains(class, &pack.name));
    let mut left = 0;
    for located in merged()? {
        located?;
        left += 1;
    }
    if left == 0 {
        return Ok(None);
    }
    let room = Vec::with_capacity(usize::try_from(left * ENTRY_BYTES).unwrap_or(0));
    let sealed = SealWriter::new(&[repository.access().index_recipient()?], room)?;
    let mut writer = SortedSegmentWriter::new(sealed, repository.group(), class, left)?;
    for located in merged()? {
        writer.push_located(&located?)?;
    }
    let sealed = writer.finish(repository.id(), repository.signer("write an index")?, names)?;
    let sealed = sealed.finish().map_err(|source| CryptoError::Io { source })?;
    Ok(Some(sealed.into()))
}
