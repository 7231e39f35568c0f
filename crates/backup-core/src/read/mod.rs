//! Reading: from a chunk's id to its bytes, wherever they are.

mod claims;
mod contents;
mod copies;
mod frames;
mod nodes;

pub(crate) use contents::Contents;
pub use copies::Copies;
pub(crate) use copies::CopySet;
pub(crate) use frames::{
    FetchedPack, FrameMemory, FrameReader, fetch_frames, fetch_pack, fetch_parts, fetch_stored, fetch_whole,
};
pub(crate) use nodes::Nodes;

use std::collections::HashSet;

use keepwell_catalog::{ContentName, Location, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind};

use crate::Error;
use crate::pack::{chunk_from_frame, decode_frame};
use crate::planted::planted;
use crate::repository::Repository;

/// Reads one chunk, from this store or else from one of its copies.
pub(crate) async fn read_chunk(
    repository: &Repository,
    kind: ChunkKind,
    id: &ChunkId,
) -> Result<Vec<u8>, Error> {
    if repository.is_silent() {
        let error = Error::ChunkLost { id: *id, reason: "the store does not answer".to_owned() };
        return copies::read_elsewhere(repository, kind, id, error).await;
    }
    match read_here(repository, kind, id).await {
        Err(error @ (Error::ChunkLost { .. } | Error::Storage(_))) => {
            repository.note_failure(&error);
            copies::read_elsewhere(repository, kind, id, error).await
        }
        done => done,
    }
}

/// Reads one chunk of this store, trying every location that the index knows before it reports damage. If none is left,
/// the index is read again, because a prune may have moved the chunk meanwhile, until that shows no place that was not
/// tried.
async fn read_here(repository: &Repository, kind: ChunkKind, id: &ChunkId) -> Result<Vec<u8>, Error> {
    let mut tried: HashSet<Place> = HashSet::new();
    let mut looked_into: HashSet<ContentName> = HashSet::new();
    let mut absent: HashSet<ContentName> = HashSet::new();
    let mut reason = String::from("no index segment lists it");
    let mut refused = None;
    let mut is_fresh = false;
    loop {
        let mut locations = repository.locate_in(class_of(kind), id)?;
        let mut listed: HashSet<Place> = HashSet::new(); // by several segments, before what a merge replaces is gone
        locations.retain(|location| {
            let (place, pack) = (place_of(location), &location.pack.name);
            let is_new = !tried.contains(&place) && !looked_into.contains(pack) && !absent.contains(pack);
            is_new && listed.insert(place)
        });
        if locations.is_empty() {
            if is_fresh || planted("reader-looks-once") {
                // Only if every place said so: another key would help, and nothing is lost.
                let refused = refused.filter(|(count, _)| *count >= tried.len() + looked_into.len());
                return Err(refused.map_or(Error::ChunkLost { id: *id, reason }, |(_, error)| error));
            }
            // Whether this changes the index is no answer: another thread may have read it a moment ago.
            repository.refresh_index().await?;
        }
        // Before packs are listed: one that is absent then may have been moved after the index was read.
        is_fresh = locations.is_empty();
        absent.extend(claims::drop_absent(repository, kind, &mut locations).await?);
        let (few, crowded) = claims::by_pack(locations);
        for location in few {
            match read_at(repository, kind, id, &location).await {
                Ok(chunk) => return Ok(chunk),
                Err(error) => {
                    repository.note_failure(&error);
                    reason = format!("pack {}: {}", location.pack.name, crate::error::one_line(&error));
                    if matches!(error, Error::NotAllowed { .. } | Error::Erased { .. }) {
                        refused = Some((refused.map_or(1, |(count, _)| count + 1), error));
                    }
                }
            }
            tried.insert(place_of(&location));
        }
        for places in crowded {
            let Some(pack) = places.first().map(|place| place.pack.name) else { continue };
            match claims::read_by_directory(repository, kind, id, &pack, &places).await {
                Ok(chunk) => return Ok(chunk),
                Err(error) => {
                    repository.note_failure(&error);
                    reason = format!("pack {pack}: {}", crate::error::one_line(&error));
                }
            }
            looked_into.insert(pack);
        }
    }
}

/// A pack, and where in it. Of what segments say of one pack some may be false.
type Place = (PackRef, [u32; 4]);

fn place_of(location: &Location) -> Place {
    let e = &location.entry;
    (location.pack, [e.frame_offset, e.frame_length, e.offset, e.length])
}

async fn read_at(
    repository: &Repository,
    kind: ChunkKind,
    id: &ChunkId,
    location: &Location,
) -> Result<Vec<u8>, Error> {
    let range =
        location.entry.frame_offset..location.entry.frame_offset.saturating_add(location.entry.frame_length);
    let class = class_of(kind);
    let frames = fetch_frames(repository, class, &location.pack, &[range]).await?;
    let stored = frames.into_iter().next().ok_or(Error::Cancelled)?;
    let plain = decode_frame(&stored, None)?;
    let key = repository.id_key(location.pack.domain)?;
    Ok(chunk_from_frame(&plain, location.entry.offset, location.entry.length, id, kind, key)?.to_vec())
}

/// Nodes live in meta packs, content in data packs.
pub(crate) fn class_of(kind: ChunkKind) -> keepwell_catalog::PackClass {
    match kind {
        ChunkKind::Content => keepwell_catalog::PackClass::Data,
        ChunkKind::Node => keepwell_catalog::PackClass::Meta,
    }
}
