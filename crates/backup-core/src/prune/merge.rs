//! Merging index segments, and dropping the entries of packs that are dead by verdict.

use std::sync::Arc;

use bytes::Bytes;
use keepwell_catalog::{Kept, PackClass, PackSet, Segment, SegmentBuilder, merge, names};

use super::verdict::delete_all;
use crate::Error;
use crate::planted::planted;
use crate::repository::{Repository, read_plans};
use crate::write::{Ending, Session, name_of};

/// Segments of a class are merged when there are more …
const SEGMENTS_MAX: usize = 8;
/// … but never into one of more than this many entries.
const ENTRIES_MAX: u64 = 4_000_000;

/// Merges small segments of each class, and any that list dead packs. Gives how many went.
pub(super) async fn merge_segments(repository: &Repository) -> Result<u64, Error> {
    repository.refresh_index().await?;
    let plans = read_plans(repository).await?;
    let dead = match planted("merge-drops-doomed") {
        true => plans.doomed_packs(),
        false => PackSet::from_keys(plans.dead()),
    };
    let index = repository.index();
    let mut merged = 0;
    for class in [PackClass::Meta, PackClass::Data] {
        let is_small = |s: &Segment| s.class() == class && s.len() < ENTRIES_MAX / 2;
        let all: Vec<(Arc<str>, Arc<Segment>)> =
            index.segments().into_iter().filter(|(_, s)| is_small(s)).collect();
        let stale =
            |s: &Segment| s.packs().iter().filter(|p| dead.contains(&p.name)).count() * 4 > s.packs().len();
        if all.len() <= SEGMENTS_MAX && !all.iter().any(|(_, s)| stale(s)) {
            continue;
        }
        let mut chosen = Vec::new();
        let mut entries = 0;
        for (name, segment) in all {
            if entries + segment.len() <= ENTRIES_MAX {
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
        Ok(Some((_, sealed))) => {
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
        Err(error) => {
            session.abandon().await;
            return Err(error);
        }
    };
    let stays: Vec<String> = created.iter().map(|(key, _)| key.clone()).collect();
    session.end(Ending::index_only(created)).await?;
    if planted("merge-deletes-all") {
        let listed = repository.list(&format!("index/{}/", repository.group())).await?;
        let others = listed.iter().filter(|info| !stays.contains(&info.key.to_string()));
        input_names = others.map(|info| info.key.last_component().to_owned()).collect();
    }
    let keys: Vec<String> = input_names.iter().map(|n| format!("index/{}/{n}", repository.group())).collect();
    delete_segments(repository, &keys).await?;
    repository.refresh_index().await?;
    Ok(())
}

/// Removes index segments that others replace.
pub(crate) async fn delete_segments(repository: &Repository, keys: &[String]) -> Result<(), Error> {
    record_deletion(repository, keys).await?;
    delete_all(repository, keys).await.map(|_| ())
}

/// A plan of index segments only, decided from birth, so that a scrub knows why they are gone.
async fn record_deletion(repository: &Repository, keys: &[String]) -> Result<(), Error> {
    let name = repository.write_plan(keys.to_vec(), Vec::new()).await?;
    let kept = Kept { store: repository.store_id(), name, released: Vec::new() };
    let signed = repository.sign(Kept::KIND, kept.encode())?;
    repository.put_own(&names::kept_key(name), signed).await?;
    Ok(())
}

/// The merged segment, plain and sealed; `None` when nothing is left.
fn build(
    repository: &Repository,
    class: PackClass,
    inputs: &[(Arc<str>, Arc<Segment>)],
    dead: &PackSet,
    names: Vec<String>,
) -> Result<Option<(Bytes, Bytes)>, Error> {
    let mut builder = SegmentBuilder::new(repository.group(), class);
    let mut numbers = std::collections::HashMap::new();
    for located in merge(inputs.iter().map(|(_, s)| &**s), |pack, _| dead.contains(&pack.name))? {
        let located = located?;
        let number = *numbers.entry(located.pack.name).or_insert_with(|| builder.add_pack(located.pack));
        builder.add(keepwell_catalog::IndexEntry { pack: number, ..located.entry });
    }
    if builder.is_empty() {
        return Ok(None);
    }
    repository.seal_segment(builder, names).map(Some)
}
