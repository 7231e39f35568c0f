//! Moving chunks between stores of the same repository: whole packs where most of one is wanted, frames otherwise.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use keepwell_catalog::{IndexEntry, IndexSet, Location, PackClass, PackRef, PackSet, names};
use keepwell_crypto::{ChunkId, Digest};
use tokio::runtime::Handle;

use crate::Error;
use crate::mark::{Visitor, preferred, visit};
use crate::pack::FinishedPack;
use crate::prune::move_frames;
use crate::read::{Nodes, fetch_pack};
use crate::repository::Repository;
use crate::write::{Known, PackSettings, Packer, Uploads, name_of};

/// A pack is copied as it is when at least this share of its bytes is wanted.
const WHOLE_PACK_SHARE: f64 = 0.5;

/// Wanted entries by pack of the origin.
pub(crate) type Wanted = BTreeMap<(PackClass, keepwell_catalog::ContentName), (PackRef, Vec<IndexEntry>)>;

/// Collects what a tree needs and the target does not have.
struct Collect<'c> {
    known: &'c Known,
    wanted: &'c mut Wanted,
    seen: &'c mut crate::mark::Marks,
    /// Packs of the origin that are known to be dead: looked into last.
    dead: &'c PackSet,
    failed: Option<Error>,
}

impl Visitor for Collect<'_> {
    fn reached(&mut self, id: &ChunkId, locations: &[Location]) -> bool {
        let Some(location) = locations.first() else {
            let reason = "no index segment of the origin lists it".to_owned();
            self.failed.get_or_insert(Error::ChunkLost { id: *id, reason });
            return false;
        };
        if !self.seen.set(location) {
            return false;
        }
        let location = preferred(locations, self.dead).unwrap_or(location);
        match self.known.contains(id) {
            Ok(true) => {}
            Ok(false) => {
                let slot = self.wanted.entry((location.class, location.pack.name));
                slot.or_insert_with(|| (location.pack, Vec::new())).1.push(location.entry);
            }
            Err(error) => {
                self.failed.get_or_insert(error.into());
            }
        }
        true
    }

    fn broken(&mut self, error: Error) -> Result<(), Error> {
        Err(error)
    }
}

/// What the tree of `root` in `origin` needs and `uploads` does not know, preferably from packs that are not dead. Runs
/// on an ordinary thread.
pub(crate) fn missing(
    nodes: &Nodes,
    index: &IndexSet,
    seen: &mut crate::mark::Marks,
    root: &ChunkId,
    known: &Known,
    dead: &PackSet,
) -> Result<Wanted, Error> {
    let mut wanted = Wanted::new();
    let mut collect = Collect { known, wanted: &mut wanted, seen, dead, failed: None };
    visit(nodes, index, root, &mut collect)?;
    match collect.failed {
        Some(error) => Err(error),
        None => Ok(wanted),
    }
}

/// Fetches what is wanted from `origin`, proves it, and stores it through `uploads` of another store with the same keys.
///
/// Runs on an ordinary thread. Afterwards the caller flushes the uploads. A pack that cannot be read is handed to
/// `damaged`, which decides whether to go on.
pub(crate) fn transfer(
    origin: &Repository,
    uploads: &Uploads,
    wanted: Wanted,
    handle: &Handle,
    damaged: &mut dyn FnMut(&PackRef, Error) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut packers = Packers::new();
    let mut wanted = wanted;
    while !wanted.is_empty() {
        wanted = transfer_these(origin, uploads, wanted, handle, damaged, &mut packers)?;
    }
    packers.into_values().try_for_each(|mut packer| packer.finish())
}

type Packers<'u> = BTreeMap<(PackClass, keepwell_crypto::DomainId), Packer<'u>>;

/// One round of [`transfer`]; gives what a prune of the origin has moved to other packs meanwhile.
fn transfer_these<'u>(
    origin: &Repository,
    uploads: &'u Uploads,
    wanted: Wanted,
    handle: &Handle,
    damaged: &mut dyn FnMut(&PackRef, Error) -> Result<(), Error>,
    packers: &mut Packers<'u>,
) -> Result<Wanted, Error> {
    let contents = all_entries(origin, &wanted)?;
    let mut moved = Wanted::new();
    for ((class, name), (pack, mut entries)) in wanted {
        entries.sort_unstable_by_key(|e| (e.frame_offset, e.offset));
        entries.dedup_by_key(|e| (e.frame_offset, e.offset));
        let fetched = match handle.block_on(fetch_pack(origin, class, &pack)) {
            Ok(fetched) => fetched,
            Err(Error::Storage(error)) if error.is_not_found() && origin.note_gone(name) => {
                handle.block_on(origin.refresh_index())?;
                find_elsewhere(origin, class, &entries, &mut moved)?;
                continue;
            }
            Err(error) => {
                damaged(&pack, error)?;
                continue;
            }
        };
        origin.monitor().advance(entries.len() as u64, pack.size);
        let bytes: u64 = entries
            .iter()
            .map(|e| u64::from(e.frame_offset))
            .collect::<std::collections::BTreeSet<_>>()
            .len() as u64;
        let all = contents.get(&name).map_or(&[][..], Vec::as_slice);
        let frames =
            all.iter().map(|e| e.frame_offset).collect::<std::collections::BTreeSet<_>>().len() as u64;
        let sound = Digest::of(&fetched.stored) == name.digest();
        if sound && bytes as f64 >= frames as f64 * WHOLE_PACK_SHARE {
            uploads.submit(same_bytes(uploads, class, &pack, fetched.stored, all))?;
            continue;
        }
        let packer = match packers.entry((class, pack.domain)) {
            std::collections::btree_map::Entry::Occupied(slot) => slot.into_mut(),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(Packer::new(uploads, PackSettings::for_moved(origin, class, pack.domain)?)?)
            }
        };
        if let Err(error) = move_frames(&fetched.plain, class, &pack, &entries, packer, origin) {
            damaged(&pack, error)?;
        }
    }
    Ok(moved)
}

/// Where the index places now what lay in a pack that is gone; the old place, if there is no other.
fn find_elsewhere(
    origin: &Repository,
    class: PackClass,
    entries: &[IndexEntry],
    moved: &mut Wanted,
) -> Result<(), Error> {
    for entry in entries {
        let found = origin.locate(&entry.id)?.into_iter().next().ok_or_else(|| Error::ChunkLost {
            id: entry.id,
            reason: "no index segment of the origin lists it".to_owned(),
        })?;
        let slot = moved.entry((class, found.pack.name));
        slot.or_insert_with(|| (found.pack, Vec::new())).1.push(found.entry);
    }
    Ok(())
}

/// The pack as it is, under a fresh suffix.
fn same_bytes(
    uploads: &Uploads,
    class: PackClass,
    pack: &PackRef,
    stored: Bytes,
    all: &[IndexEntry],
) -> FinishedPack {
    let name = name_of(&stored, uploads.fresh_suffix());
    FinishedPack { class, reference: PackRef { name, ..*pack }, bytes: stored, entries: all.to_vec() }
}

/// Every entry of these packs, in one pass over the index.
fn all_entries(
    origin: &Repository,
    wanted: &Wanted,
) -> Result<HashMap<keepwell_catalog::ContentName, Vec<IndexEntry>>, Error> {
    let mut all: HashMap<keepwell_catalog::ContentName, Vec<IndexEntry>> = HashMap::new();
    for (_, segment) in origin.index().segments() {
        let chosen: Vec<bool> =
            segment.packs().iter().map(|p| wanted.contains_key(&(segment.class(), p.name))).collect();
        if !chosen.contains(&true) {
            continue;
        }
        for item in segment.iter() {
            let (_, entry) = item?;
            if chosen.get(entry.pack as usize) == Some(&true) {
                all.entry(segment.packs()[entry.pack as usize].name).or_default().push(entry);
            }
        }
    }
    for entries in all.values_mut() {
        entries.sort_unstable();
        entries.dedup_by_key(|e| (e.id, e.frame_offset, e.offset));
    }
    Ok(all)
}

/// A manifest as stored, proved to be the one of this snapshot.
pub(crate) async fn manifest_bytes(origin: &Repository, snapshot: &crate::Snapshot) -> Result<Bytes, Error> {
    snapshot.manifest()?;
    let name =
        snapshot.commit.manifest.ok_or_else(|| Error::Invalid("the commit names no manifest".into()))?;
    Ok(origin.store().get(&names::manifest_key(&name)).await?)
}
