//! Replacing damaged and missing packs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{ContentName, IndexEntry, PackClass, PackRef, PackSet};
use keepwell_crypto::{ChunkId, SnapshotId};
use tokio::runtime::Handle;

use crate::Error;
use crate::backup::begin_uploads;
use crate::check::CheckReport;
use crate::prune::{FromPack, by_place};
use crate::repository::{Repository, read_plans};
use crate::transfer::{Wanted, transfer};
use crate::write::{Ending, PackSettings, Packer, Session};

type Bad = BTreeMap<ContentName, PackClass>;

/// Stores again what damaged or missing packs held, from sound places in `copy` (or, for damaged packs, their sound
/// frames here), then condemns them. Gives the number of packs replaced and of chunks stored.
pub(super) async fn replace(
    repository: &Repository,
    copy: Option<&Repository>,
    before: &CheckReport,
    fence_after: Duration,
) -> Result<(u64, u64), Error> {
    let mut bad = Bad::new();
    for finding in &before.findings {
        if let Ok(ObjectName::Pack(class, name)) = finding.object.parse() {
            bad.insert(name, class);
        }
    }
    if bad.is_empty() {
        return Ok((0, 0));
    }
    // What the index lists in packs that a prune has removed, or is about to, is sound nowhere either.
    let mut unsound = read_plans(repository).await?.doomed_packs();
    bad.iter().for_each(|(name, class)| unsound.insert(*class, *name));
    repository.refresh_index().await?;
    let entries = sound_nowhere_else(repository, &bad, &unsound)?;
    let session = Session::claim(repository).await?;
    let stored = match store_again(repository, copy, &bad, entries).await {
        Ok(stored) => stored,
        Err(error) => return Err(session.fail(error).await),
    };
    session.end(Ending::index_only(stored.created)).await?;
    let condemned: Vec<String> = bad
        .iter()
        .filter(|(name, _)| !stored.still_needed.contains(*name))
        .map(|(name, class)| names::pack_key(*class, name).to_string())
        .collect();
    let replaced = condemned.len() as u64;
    let removed = condemned.is_empty() || repository.condemn(condemned, fence_after).await?;
    Ok((if removed { replaced } else { 0 }, stored.chunks))
}

/// Takes from the copy what snapshots need and no index lists any more, because packs and the segments that listed them are
/// lost. Gives how many chunks were stored; what the copy has lost as well keeps the rest from nothing. Nothing is looked for
/// where no chunk was missing, unless the run found losses since (`has_losses`).
pub(super) async fn fill(
    repository: &Repository,
    copy: &Repository,
    before: &CheckReport,
    has_losses: bool,
) -> Result<u64, Error> {
    let is_lost = |object: &str| object.starts_with("chunk ") || object == "tree";
    if !has_losses && !before.findings.iter().any(|finding| is_lost(&finding.object)) {
        return Ok(0);
    }
    let here: BTreeSet<SnapshotId> = repository.snapshots().await?.iter().map(|s| s.id).collect();
    let session = Session::claim(repository).await?;
    let filled = async {
        let uploads = begin_uploads(repository).await?;
        for snapshot in copy.snapshots().await?.iter().filter(|s| here.contains(&s.id)) {
            if !snapshot.manifest().is_ok_and(|manifest| !copy.is_erased(manifest.domain)) {
                continue;
            }
            match copy.fill(&uploads, snapshot, pass_over).await {
                // Its tree is damaged there too; other snapshots may lack less.
                Err(error @ (Error::Damaged { .. } | Error::ChunkLost { .. } | Error::Catalog(_))) => {
                    let reason = format!("the copy cannot give it: {}", crate::error::one_line(&error));
                    repository.monitor().problem(&snapshot.short(), &reason);
                }
                filled => filled?,
            }
        }
        uploads.flush().await?;
        Ok::<_, Error>(uploads)
    };
    match filled.await {
        Ok(uploads) => {
            let chunks = uploads.stored().chunks;
            session.end(Ending::index_only(uploads.take_created())).await?;
            Ok(chunks)
        }
        Err(error) => Err(session.fail(error).await),
    }
}

/// What the copy has lost too is passed over: the last check of the repair names it.
fn pass_over(_: &PackRef, _: &[IndexEntry], error: Error) -> Result<(), Error> {
    match error {
        Error::Storage(error) if !error.is_not_found() => Err(Error::Storage(error)),
        _ => Ok(()),
    }
}

struct StoredAgain {
    created: Vec<(String, u64)>,
    chunks: u64,
    /// Bad packs of which something could not be stored again: they are left as they are.
    still_needed: BTreeSet<ContentName>,
}

/// Entries of bad packs whose chunk has no location but in unsound ones.
fn sound_nowhere_else(
    repository: &Repository,
    bad: &Bad,
    unsound: &PackSet,
) -> Result<BTreeMap<ContentName, Vec<IndexEntry>>, Error> {
    let index = repository.index();
    let mut needed: BTreeMap<ContentName, Vec<IndexEntry>> = BTreeMap::new();
    for (_, segment) in index.segments() {
        for item in segment.iter() {
            let (_, entry) = item?;
            let Some(pack) = segment.packs().get(entry.pack as usize) else { continue };
            let is_bad = bad.get(&pack.name) == Some(&segment.class());
            if is_bad && !index.contains_live(&entry.id, unsound)? {
                needed.entry(pack.name).or_default().push(entry);
            }
        }
    }
    Ok(needed)
}

async fn store_again(
    repository: &Repository,
    copy: Option<&Repository>,
    bad: &Bad,
    needed: BTreeMap<ContentName, Vec<IndexEntry>>,
) -> Result<StoredAgain, Error> {
    let uploads = begin_uploads(repository).await?;
    let (here, there, uploads_there, bad) = (repository.clone(), copy.cloned(), uploads.clone(), bad.clone());
    let handle = Handle::current();
    let task = tokio::task::spawn_blocking(move || {
        let mut wanted = Wanted::new();
        // By chunk, so that what the copy does not give after all is picked from what is left here.
        let mut lies_in: BTreeMap<ChunkId, Vec<(ContentName, IndexEntry)>> = BTreeMap::new();
        let mut left: BTreeMap<ContentName, Vec<IndexEntry>> = BTreeMap::new();
        for (name, entries) in needed {
            entries.iter().for_each(|entry| lies_in.entry(entry.id).or_default().push((name, *entry)));
            let lacking = match &there {
                Some(copy) => take_from_copy(copy, &entries, &mut wanted)?,
                None => entries,
            };
            if !lacking.is_empty() {
                left.insert(name, lacking);
            }
        }
        if let Some(copy) = &there {
            let mut unread = |_: &PackRef, entries: &[IndexEntry], error| match error {
                Error::Storage(error) if !error.is_not_found() => Err(Error::Storage(error)),
                _ => {
                    for (name, entry) in entries.iter().filter_map(|entry| lies_in.get(&entry.id)).flatten() {
                        left.entry(*name).or_default().push(*entry);
                    }
                    Ok(())
                }
            };
            transfer(copy, &uploads_there, wanted, &handle, &mut unread)?;
        }
        let mut still_needed = BTreeSet::new();
        for (name, entries) in left {
            if !salvage(&here, &uploads_there, bad[&name], &name, entries, &handle)? {
                still_needed.insert(name);
            }
        }
        Ok::<_, Error>(still_needed)
    });
    let still_needed = task.await.map_err(|e| Error::Task(e.to_string()))??;
    uploads.flush().await?;
    let stored = uploads.stored();
    Ok(StoredAgain { created: uploads.take_created(), chunks: stored.chunks, still_needed })
}

/// Adds what the copy has to `wanted`; gives what it lacks.
fn take_from_copy(
    copy: &Repository,
    entries: &[IndexEntry],
    wanted: &mut Wanted,
) -> Result<Vec<IndexEntry>, Error> {
    let index = copy.index();
    let mut left = Vec::new();
    for entry in entries {
        match index.find(&entry.id)?.into_iter().next() {
            Some(found) => {
                wanted.entry((found.class, found.pack)).or_default().push(found.entry);
            }
            None => left.push(*entry),
        }
    }
    Ok(left)
}

/// Moves what can still be proved out of a damaged pack. `true` if that was everything.
fn salvage(
    repository: &Repository,
    uploads: &crate::write::Uploads,
    class: PackClass,
    name: &ContentName,
    mut entries: Vec<IndexEntry>,
    handle: &Handle,
) -> Result<bool, Error> {
    by_place(&mut entries);
    let index = repository.index();
    let mut said = BTreeSet::new();
    for (_, segment) in index.segments() {
        said.extend(segment.packs().iter().filter(|pack| pack.name == *name).copied());
    }
    // Where segments say different things of it, which is so shows when it is read.
    for pack in said.iter().filter(|pack| repository.id_key(pack.domain).is_ok()) {
        let mut packer = Packer::new(uploads, PackSettings::for_moved(repository, class, pack.domain)?)?;
        let all = FromPack::new(repository, class, pack).move_singly(&entries, &mut packer, handle)?;
        packer.finish()?;
        if all {
            return Ok(true);
        }
    }
    Ok(false)
}
