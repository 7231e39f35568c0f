//! What damage means: which chunks nobody can read any more, and which snapshots and paths need them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use keepwell_catalog::{ContentName, Entry, Location, MapKey, MapReader, PackClass, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind};
use tokio::runtime::Handle;

use super::CheckReport;
use super::history::History;
use super::structure::Packs;
use crate::Error;
use crate::error::shown;
use crate::pack::{chunk_from_frame, decode_frame};
use crate::read::{Nodes, fetch_frames};
use crate::repository::{Repository, Snapshot};

const PATHS_MAX: usize = 1000;

/// Chunks of content that the index places in these packs and that can be read from no place at all. Whatever lies
/// beside the damage in a pack is read as a restore would read it.
pub(super) async fn lost_chunks(
    repository: &Repository,
    packs: &Packs,
    suspect: &[(PackClass, PackRef)],
) -> Result<HashSet<ChunkId>, Error> {
    let of_content = suspect.iter().filter(|(class, _)| *class == PackClass::Data);
    let suspect: BTreeSet<ContentName> = of_content.map(|(_, pack)| pack.name).collect();
    if suspect.is_empty() {
        return Ok(HashSet::new());
    }
    let search =
        Search { repository: repository.clone(), handle: Handle::current(), packs: packs.clone(), suspect };
    tokio::task::spawn_blocking(move || search.run()).await.map_err(|e| Error::Task(e.to_string()))?
}

/// The frame that was read last; neighbouring chunks share it.
type LastFrame = Option<((PackRef, u32, u32), Option<Bytes>)>;

struct Search {
    repository: Repository,
    handle: Handle,
    packs: Packs,
    suspect: BTreeSet<ContentName>,
}

impl Search {
    fn run(&self) -> Result<HashSet<ChunkId>, Error> {
        let index = self.repository.index();
        let mut by_place: BTreeMap<(ContentName, u32, u32), BTreeSet<ChunkId>> = BTreeMap::new();
        for (_, segment) in index.segments() {
            let chosen: Vec<bool> = segment.packs().iter().map(|p| self.suspect.contains(&p.name)).collect();
            if !chosen.contains(&true) {
                continue;
            }
            for item in segment.iter() {
                let (_, entry) = item?;
                if let Some(pack) = segment.packs().get(entry.pack as usize)
                    && self.suspect.contains(&pack.name)
                {
                    by_place
                        .entry((pack.name, entry.frame_offset, entry.offset))
                        .or_default()
                        .insert(entry.id);
                }
            }
        }
        let (mut last, mut lost) = (None, HashSet::new());
        for id in by_place.into_values().flatten() {
            let mut is_readable = false;
            for location in index.find(&id)? {
                is_readable = is_readable || self.reads(&id, &location, &mut last)?;
            }
            if !is_readable {
                lost.insert(id);
            }
        }
        Ok(lost)
    }

    /// Whether a chunk can be read from one place. What was not found damaged counts as sound.
    fn reads(&self, id: &ChunkId, location: &Location, last: &mut LastFrame) -> Result<bool, Error> {
        let pack = &location.pack;
        if !self.suspect.contains(&pack.name) {
            return Ok(self.packs.contains_key(&pack.name));
        }
        let entry = &location.entry;
        // With all that is said of the pack: of another place, which is false, nothing follows for this one.
        let place = (*pack, entry.frame_offset, entry.frame_length);
        if last.as_ref().is_none_or(|(at, _)| *at != place) {
            let range = entry.frame_offset..entry.frame_offset.saturating_add(entry.frame_length);
            let fetch = fetch_frames(&self.repository, location.class, pack, std::slice::from_ref(&range));
            let frame = match self.handle.block_on(fetch) {
                Err(Error::Storage(error)) if !error.is_not_found() => return Err(Error::Storage(error)),
                fetched => fetched.ok().and_then(|frames| frames.into_iter().next()),
            };
            let plain = frame.and_then(|frame| decode_frame(&frame, None).ok()).map(Bytes::from);
            *last = Some((place, plain));
        }
        let Some((_, Some(plain))) = last else { return Ok(false) };
        let Ok(key) = self.repository.id_key(pack.domain) else { return Ok(false) };
        let chunk = chunk_from_frame(plain, entry.offset, entry.length, id, ChunkKind::Content, key);
        Ok(chunk.is_ok())
    }
}

/// Says which snapshots and paths are affected; only done when there is damage, for it reads every tree again. What is gone
/// of a snapshot that was forgotten meanwhile is none.
pub(super) async fn name(
    repository: &Repository,
    history: History,
    lost: HashSet<ChunkId>,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let nodes = Nodes::new(repository);
    let mut into = std::mem::take(report);
    let (repository, handle) = (repository.clone(), Handle::current());
    let task = tokio::task::spawn_blocking(move || {
        let (mut found, mut room) = (Vec::new(), PATHS_MAX);
        for snapshot in &history.snapshots {
            let mut paths = paths_in(&nodes, snapshot, &lost)?;
            if !paths.is_empty() {
                paths.truncate(room);
                room -= paths.len();
                found.push((snapshot, paths));
            }
        }
        // Once, and when all was read: what is lost is often lost to hundreds of snapshots.
        let standing = if found.is_empty() { None } else { handle.block_on(repository.standing()) };
        for (snapshot, paths) in found {
            if standing.as_ref().is_none_or(|standing| standing.why_gone(snapshot).is_none()) {
                into.damaged_snapshots.insert(snapshot.id.to_string());
                into.damaged_paths.extend(paths);
            }
        }
        Ok::<_, Error>(into)
    });
    *report = task.await.map_err(|e| Error::Task(e.to_string()))??;
    Ok(())
}

/// The paths in a snapshot that are affected, as many as a report may name; none only if none is.
fn paths_in(nodes: &Nodes, snapshot: &Snapshot, lost: &HashSet<ChunkId>) -> Result<Vec<String>, Error> {
    let reader = MapReader::new(nodes, snapshot.manifest()?.root);
    let mut paths = Vec::new();
    let mut affected = |path: String| {
        if paths.len() < PATHS_MAX {
            paths.push(format!("{}:{path}", snapshot.short()));
        }
    };
    let Ok(mut entries) = reader.heads_below(&MapKey::root()) else {
        affected("/".into());
        return Ok(paths);
    };
    while let Some(item) = entries.next() {
        match item {
            Ok((key, entry)) if lacks(&reader, &key, &entry, lost) => affected(shown(&key)),
            Ok(_) => {}
            Err(error) => match entries.pass() {
                Ok(Some(gap)) => affected(format!("{} ({gap}: {error})", shown(&gap.from))),
                _ => {
                    affected(format!("? ({error})"));
                    break;
                }
            },
        }
    }
    Ok(paths)
}

/// Whether something of a file's content is lost, or where it lies.
fn lacks(reader: &MapReader<'_>, key: &MapKey, entry: &Entry, lost: &HashSet<ChunkId>) -> bool {
    let Ok(mut extents) = reader.extents(key, entry) else { return true };
    extents.any(|extent| match extent {
        Ok(extent) => extent.chunk().is_some_and(|id| lost.contains(id)),
        Err(_) => true,
    })
}
