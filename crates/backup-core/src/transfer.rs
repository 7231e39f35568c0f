//! Moving chunks between stores of the same repository: whole packs where most of one is wanted, frames otherwise.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keepwell_catalog::{IndexEntry, IndexSet, Location, PackClass, PackRef, PackSet, names};
use keepwell_crypto::{ChunkId, Digest};
use tokio::runtime::Handle;

use crate::Error;
use crate::mark::{Visitor, preferred, visit};
use crate::pack::{FinishedPack, PackDirectory};
use crate::prune::{FromPack, Left, by_place};
use crate::read::{FetchedPack, Nodes, fetch_pack};
use crate::repository::Repository;
use crate::write::{Known, PackSettings, Packer, Uploads, name_of};

/// A pack is copied as it is when at least this share of its bytes is wanted.
const WHOLE_PACK_SHARE: f64 = 0.5;

/// Wanted entries by pack of the origin. What segments say differently of a pack is kept apart: which of it is so, shows
/// when the pack is read.
pub(crate) type Wanted = BTreeMap<(PackClass, PackRef), Vec<IndexEntry>>;

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
                let slot = self.wanted.entry((location.class, location.pack));
                slot.or_default().push(location.entry);
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

/// What is told of chunks that no place of the origin gives: the last pack that was tried, which chunks, and why.
pub(crate) type Unread<'d> = dyn FnMut(&PackRef, &[IndexEntry], Error) -> Result<(), Error> + 'd;

/// Fetches what is wanted from `origin`, proves it, and stores it through `uploads` of another store with the same keys.
///
/// Runs on an ordinary thread. Afterwards the caller flushes the uploads. What a pack does not give is looked for in every
/// other place that the origin's index knows; what none gives is handed to `unread`, which decides whether to go on.
pub(crate) fn transfer(
    origin: &Repository,
    uploads: &Uploads,
    wanted: Wanted,
    handle: &Handle,
    unread: &mut Unread<'_>,
) -> Result<(), Error> {
    let mut transfer = Transfer {
        origin,
        uploads,
        handle,
        packers: Packers::new(),
        failed: BTreeSet::new(),
        not_there: BTreeSet::new(),
    };
    let mut wanted = wanted;
    while !wanted.is_empty() {
        wanted = transfer.round(wanted, unread)?;
    }
    transfer.packers.into_values().try_for_each(|mut packer| packer.finish())
}

type Packers<'u> = BTreeMap<(PackClass, keepwell_crypto::DomainId), Packer<'u>>;

struct Transfer<'t> {
    origin: &'t Repository,
    uploads: &'t Uploads,
    handle: &'t Handle,
    packers: Packers<'t>,
    /// Packs that gave nothing.
    failed: BTreeSet<PackRef>,
    /// Chunks that others do not hold, wherever in them the index says: any writer can claim a million places.
    not_there: BTreeSet<(PackRef, ChunkId)>,
}

impl Transfer<'_> {
    /// Takes what it can; gives where to look for the rest.
    fn round(&mut self, wanted: Wanted, unread: &mut Unread<'_>) -> Result<Wanted, Error> {
        let mut elsewhere = Wanted::new();
        for ((class, pack), mut entries) in wanted {
            by_place(&mut entries);
            let (mut left, error) = match self.take(class, &pack, &entries) {
                Ok(Left { entries, .. }) if entries.is_empty() => continue,
                Ok(Left { entries, reason }) => {
                    self.not_there.extend(entries.iter().map(|entry| (pack, entry.id)));
                    (entries, Error::damaged(pack.name, reason))
                }
                // The store does not answer: another place would not either.
                Err(Error::Storage(error)) if !error.is_not_found() => {
                    unread(&pack, &entries, Error::Storage(error))?;
                    continue;
                }
                Err(error) => {
                    if matches!(&error, Error::Storage(_)) {
                        // A prune has moved it, maybe. That somebody knew it to be gone does not say that the index was read since.
                        self.origin.note_gone(class, pack.name);
                        self.handle.block_on(self.origin.refresh_index())?;
                    }
                    self.failed.insert(pack);
                    (entries, error)
                }
            };
            left = self.find_elsewhere(class, &left, &mut elsewhere)?;
            if !left.is_empty() {
                unread(&pack, &left, error)?;
            }
        }
        Ok(elsewhere)
    }

    /// Stores what is wanted of a pack: the pack as it is, if it holds all that its directory says, or what is live in its
    /// frames. Of what does not lie where the index says, the directory says where it lies. Gives what it does not hold.
    fn take(&mut self, class: PackClass, pack: &PackRef, entries: &[IndexEntry]) -> Result<Left, Error> {
        let FetchedPack { stored, has_its_hash, mut frames } =
            self.handle.block_on(fetch_pack(self.origin, class, pack))?;
        if !is_of(pack, &stored) {
            return Err(Error::damaged(pack.name, "an index segment says of it what is not so"));
        }
        let directory = if has_its_hash { frames.directory().ok() } else { None };
        let (from, mut left) = (FromPack::new(self.origin, class, pack), Left::default());
        if let Some(all) = directory.as_ref().and_then(|directory| worth_copying(directory, entries))
            && from.not_borne_out(&mut frames, &all)?.is_empty()
        {
            let frames_end = all.last().map_or(0, |e| u64::from(e.frame_offset) + u64::from(e.frame_length));
            frames.prove_from(frames_end)?;
            self.uploads.submit(same_bytes(self.uploads, class, pack, stored, all))?;
        } else {
            let packer = match self.packers.entry((class, pack.domain)) {
                Entry::Occupied(slot) => slot.into_mut(),
                Entry::Vacant(slot) => {
                    let settings = PackSettings::for_moved(self.origin, class, pack.domain)?;
                    slot.insert(Packer::new(self.uploads, settings)?)
                }
            };
            left = from.move_provable(&mut frames, entries, packer)?;
            if let Some(directory) = directory.filter(|_| !left.entries.is_empty()) {
                let found = listed_elsewhere(&directory, &left.entries);
                let unproved = from.move_provable(&mut frames, &found, packer)?;
                let unproved: BTreeSet<ChunkId> = unproved.entries.iter().map(|entry| entry.id).collect();
                let moved: BTreeSet<ChunkId> =
                    found.iter().map(|entry| entry.id).filter(|id| !unproved.contains(id)).collect();
                left.entries.retain(|entry| !moved.contains(&entry.id));
            }
        }
        self.origin.monitor().advance((entries.len() - left.entries.len()) as u64, pack.size);
        Ok(left)
    }

    /// Adds places of these chunks that were not tried; gives those that have none.
    fn find_elsewhere(
        &self,
        class: PackClass,
        entries: &[IndexEntry],
        elsewhere: &mut Wanted,
    ) -> Result<Vec<IndexEntry>, Error> {
        let mut left = Vec::new();
        for entry in entries {
            let mut places = self.origin.locate(&entry.id)?.into_iter();
            let is_open = |place: &Location| {
                !self.failed.contains(&place.pack) && !self.not_there.contains(&(place.pack, entry.id))
            };
            match places.find(is_open) {
                Some(found) => {
                    elsewhere.entry((class, found.pack)).or_default().push(found.entry);
                }
                None => left.push(*entry),
            }
        }
        Ok(left)
    }
}

/// Where the directory of a pack places chunks that are not where the index says.
fn listed_elsewhere(directory: &PackDirectory, missed: &[IndexEntry]) -> Vec<IndexEntry> {
    let missed: BTreeSet<ChunkId> = missed.iter().map(|entry| entry.id).collect();
    let mut listed = directory.entries(0);
    listed.retain(|entry| missed.contains(&entry.id));
    listed
}

/// Everything that a pack holds by its own directory, if most of it is wanted and the directory bears out the index, of
/// which nothing proves the places.
fn worth_copying(directory: &PackDirectory, wanted: &[IndexEntry]) -> Option<Vec<IndexEntry>> {
    let frames = wanted.chunk_by(|a, b| a.frame_offset == b.frame_offset).count();
    if (frames as f64) < directory.frames.len() as f64 * WHOLE_PACK_SHARE {
        return None;
    }
    let all = directory.entries(0);
    let mut rest = all.iter();
    let holds = |wanted: &IndexEntry| rest.any(|entry| IndexEntry { pack: wanted.pack, ..*entry } == *wanted);
    wanted.iter().all(holds).then_some(all)
}

/// Whether size and header of a pack are as an index segment says. Its domain is the one whose keys open it.
pub(crate) fn is_of(pack: &PackRef, stored: &[u8]) -> bool {
    let header = keepwell_crypto::header_len(stored);
    stored.len() as u64 == pack.size && header.is_ok_and(|len| len as u64 == u64::from(pack.header_len))
}

/// The pack as it is, under a fresh suffix.
fn same_bytes(
    uploads: &Uploads,
    class: PackClass,
    pack: &PackRef,
    stored: Bytes,
    entries: Vec<IndexEntry>,
) -> FinishedPack {
    let name = name_of(&stored, uploads.fresh_suffix());
    FinishedPack { class, reference: PackRef { name, ..*pack }, bytes: stored, entries }
}

/// A manifest as stored, proved to be the one of this snapshot: the very bytes that are given have the hash in its name,
/// also where the store does not give back any more what it was given, and the cache still does.
pub(crate) async fn manifest_bytes(
    origin: &Repository,
    snapshot: &crate::Snapshot,
) -> Result<Vec<u8>, Error> {
    snapshot.manifest()?;
    let name =
        snapshot.commit.manifest.ok_or_else(|| Error::Invalid("the commit names no manifest".into()))?;
    let key = names::manifest_key(&name);
    let prove = |bytes: &[u8]| match Digest::of(bytes) == name.digest() {
        true => Ok(bytes.to_vec()),
        false => Err(Error::damaged(&key, "its bytes do not have the hash in its name")),
    };
    origin.records().get(&key, prove).await
}
