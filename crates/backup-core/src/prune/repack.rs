//! Repacking: what is live in packs that are mostly unused moves into new ones, in an ordinary session.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::{ContentName, IndexEntry, PackClass, PackRef};
use keepwell_crypto::ChunkId;

use super::scan::{PackUse, Scan};
use crate::Error;
use crate::backup::begin_uploads;
use crate::pack::decode_frame;
use crate::read::fetch_pack;
use crate::repository::Repository;
use crate::write::{Ending, PackSettings, Packer, Session, Uploads};

/// What was moved.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Packs whose live content is committed in new packs, so that they may be condemned.
    pub packs: BTreeSet<ContentName>,
    /// Stored bytes of new packs.
    pub bytes: u64,
}

/// Live entries by pack, in order of place.
type Live = BTreeMap<ContentName, Vec<IndexEntry>>;

/// Copies what is live and durable-commits it. A session that is fenced meanwhile leaves the old packs alone.
pub(super) async fn repack(repository: &Repository, scan: &Scan) -> Result<Moved, Error> {
    if scan.repack.is_empty() {
        return Ok(Moved::default());
    }
    let session = Session::claim(repository).await?;
    match copy(repository, scan).await {
        Err(error) => {
            session.abandon().await;
            Err(error)
        }
        Ok((uploads, packs)) => {
            let bytes = uploads.stored().pack_bytes;
            let ending = Ending::index_only(uploads.take_created());
            match session.end(ending).await {
                Ok(_) => Ok(Moved { packs, bytes }),
                Err(Error::Fenced { .. }) => Ok(Moved::default()),
                Err(error) => Err(error),
            }
        }
    }
}

/// Gives the packs of which all that is live was copied; another prune may have been faster with the rest.
async fn copy(repository: &Repository, scan: &Scan) -> Result<(Uploads, BTreeSet<ContentName>), Error> {
    let uploads = begin_uploads(repository).await?;
    let live = live_entries(scan)?;
    let (repository, uploads_there) = (repository.clone(), uploads.clone());
    let packs: Vec<(PackUse, Vec<IndexEntry>)> = scan
        .repack
        .iter()
        .map(|(name, used)| (used.clone(), live.get(name).cloned().unwrap_or_default()))
        .collect();
    let handle = tokio::runtime::Handle::current();
    let task = tokio::task::spawn_blocking(move || {
        let mut moved = BTreeSet::new();
        let mut packers: BTreeMap<(PackClass, keepwell_crypto::DomainId), Packer<'_>> = BTreeMap::new();
        for (used, entries) in packs {
            let fetched = match handle.block_on(fetch_pack(&repository, used.class, &used.pack)) {
                Err(Error::Storage(error)) if error.is_not_found() => continue,
                fetched => fetched?,
            };
            let packer = match packers.entry((used.class, used.pack.domain)) {
                std::collections::btree_map::Entry::Occupied(slot) => slot.into_mut(),
                std::collections::btree_map::Entry::Vacant(slot) => slot.insert(Packer::new(
                    &uploads_there,
                    PackSettings::for_moved(&repository, used.class, used.pack.domain)?,
                )?),
            };
            move_frames(&fetched.plain, used.class, &used.pack, &entries, packer, &repository)?;
            moved.insert(used.pack.name);
        }
        packers.into_values().try_for_each(|mut packer| packer.finish())?;
        Ok::<_, Error>(moved)
    });
    let moved = task.await.map_err(|e| Error::Task(e.to_string()))??;
    uploads.flush().await?;
    Ok((uploads, moved))
}

/// Frames that are live as a whole move as they are; of others, the live chunks are compressed anew. Every chunk is
/// proved on the way.
pub(crate) fn move_frames(
    plain: &[u8],
    class: PackClass,
    pack: &PackRef,
    entries: &[IndexEntry],
    packer: &mut Packer<'_>,
    repository: &Repository,
) -> Result<(), Error> {
    let key = repository.id_key(pack.domain)?;
    let kind = match class {
        PackClass::Data => keepwell_crypto::ChunkKind::Content,
        PackClass::Meta => keepwell_crypto::ChunkKind::Node,
    };
    for frame in entries.chunk_by(|a, b| a.frame_offset == b.frame_offset) {
        let from = frame[0].frame_offset as usize;
        let stored = plain.get(from..from.saturating_add(frame[0].frame_length as usize));
        let stored = stored.ok_or_else(|| Error::damaged(pack.name, "a frame lies outside"))?;
        let decoded = decode_frame(stored, None).map_err(|e| Error::damaged(pack.name, e))?;
        let mut chunks: Vec<(ChunkId, u32)> = Vec::new();
        let mut end = 0;
        let mut whole = true;
        for entry in frame {
            crate::pack::chunk_from_frame(&decoded, entry.offset, entry.length, &entry.id, kind, key)
                .map_err(|e| Error::damaged(pack.name, e))?;
            whole &= entry.offset == end;
            end = entry.offset.saturating_add(entry.length);
            chunks.push((entry.id, entry.length));
        }
        if whole && end as usize == decoded.len() {
            packer.add_stored(stored, decoded.len(), &chunks)?;
            continue;
        }
        for entry in frame {
            packer.add(entry.id, &decoded[entry.offset as usize..][..entry.length as usize])?;
        }
    }
    Ok(())
}

/// The marked entries of the packs to be repacked.
fn live_entries(scan: &Scan) -> Result<Live, Error> {
    let mut live = Live::new();
    for (number, (_, segment)) in scan.index.segments().iter().enumerate() {
        let wanted: Vec<bool> = segment.packs().iter().map(|p| scan.repack.contains_key(&p.name)).collect();
        if !wanted.contains(&true) {
            continue;
        }
        for item in segment.iter() {
            let (ordinal, entry) = item?;
            if wanted.get(entry.pack as usize) == Some(&true) && scan.marks.get(number, ordinal) {
                let name = segment.packs()[entry.pack as usize].name;
                live.entry(name).or_default().push(entry);
            }
        }
    }
    for entries in live.values_mut() {
        entries.sort_unstable_by_key(|e| (e.frame_offset, e.offset));
        entries.dedup_by_key(|e| (e.frame_offset, e.offset));
    }
    Ok(live)
}
