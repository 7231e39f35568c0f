//! Repacking: what is live in packs that are mostly unused moves into new ones, in an ordinary session.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{IndexEntry, IndexSet, PackClass, PackRef, names};
use keepwell_crypto::DomainId;
use tokio::runtime::Handle;

use super::from_pack::{FromPack, by_place};
use super::pack_use::{PackId, PackUse};
use super::scan::Scan;
use crate::Error;
use crate::backup::begin_uploads;
use crate::mark::Marks;
use crate::read::{FetchedPack, fetch_stored};
use crate::repository::Repository;
use crate::transfer::is_of;
use crate::write::{Ending, PackSettings, Packer, Session, Uploads};

/// What was moved.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Packs whose live content is committed in new packs, so that they may be condemned.
    pub packs: BTreeSet<PackId>,
    /// Stored bytes of new packs.
    pub bytes: u64,
    /// Keys of the index segments that list these.
    pub segments: BTreeSet<String>,
}

/// Live entries by pack, in order of place.
type Live = BTreeMap<PackId, Vec<IndexEntry>>;

/// Of the memory limit, this part may be taken by live entries: packs are moved in groups that have as many.
const MEMORY_SHARE: usize = 16;

/// Copies what is live and durable-commits it. A session that is fenced meanwhile leaves the old packs alone.
pub(super) async fn repack(repository: &Repository, scan: &Scan) -> Result<Moved, Error> {
    if scan.repack.is_empty() {
        return Ok(Moved::default());
    }
    let session = Session::claim(repository).await?;
    match copy(repository, scan).await {
        Err(error) => match session.fail(error).await {
            Error::Fenced { .. } => Ok(Moved::default()),
            error => Err(error),
        },
        Ok((uploads, packs)) => {
            let bytes = uploads.stored().pack_bytes;
            let created = uploads.take_created();
            let is_segment = |key: &&String| matches!(key.parse(), Ok(ObjectName::Index(..)));
            let segments = created.iter().map(|(key, _)| key).filter(is_segment).cloned().collect();
            match session.end(Ending::index_only(created)).await {
                Ok(_) => Ok(Moved { packs, bytes, segments }),
                Err(Error::Fenced { .. }) => Ok(Moved::default()),
                Err(error) => Err(error),
            }
        }
    }
}

/// Gives the packs of which all that is live was copied; another prune may have been faster with the rest. A pack that is
/// damaged, or of which nothing that the index says is so, is left alone, but for one that is going to be deleted.
async fn copy(repository: &Repository, scan: &Scan) -> Result<(Uploads, BTreeSet<PackId>), Error> {
    let uploads = begin_uploads(repository).await?;
    let (repository, uploads_there) = (repository.clone(), uploads.clone());
    let (index, marks) = (Arc::clone(&scan.index), Arc::clone(&scan.marks));
    let mut packs: Vec<(PackUse, bool)> =
        scan.repack.values().map(|used| (used.clone(), scan.must_move(&used.key()))).collect();
    // Those that one segment lists come together, so that a group is found in few of them.
    packs.sort_by_key(|(used, _)| used.segment);
    let entries_max = repository.limits().memory_bytes / MEMORY_SHARE / size_of::<IndexEntry>();
    let handle = Handle::current();
    let task = tokio::task::spawn_blocking(move || {
        let mut moved = BTreeSet::new();
        let (repository, uploads, handle) = (&repository, &uploads_there, &handle);
        let mut moving = Moving { repository, uploads, handle, packers: BTreeMap::new() };
        for group in groups(&packs, entries_max as u64) {
            let mut live = live_entries(&index, &marks, group)?;
            for (used, must_move) in group {
                let entries = live.remove(&used.id()).unwrap_or_default();
                if moving.pack(used, *must_move, &entries)? {
                    moved.insert(used.id());
                }
            }
        }
        moving.packers.into_values().try_for_each(|mut packer| packer.finish())?;
        Ok::<_, Error>(moved)
    });
    let moved = task.await.map_err(|e| Error::Task(e.to_string()))??;
    uploads.flush().await?;
    Ok((uploads, moved))
}

/// Packs, in their order, that have at most so many live entries together, or one that has more.
fn groups(packs: &[(PackUse, bool)], entries_max: u64) -> impl Iterator<Item = &[(PackUse, bool)]> {
    let mut left = packs;
    std::iter::from_fn(move || {
        let mut entries = 0;
        let too_many = left.iter().position(|(used, _)| {
            entries += used.live_entries;
            entries > entries_max
        });
        let (group, rest) = left.split_at(too_many.map_or(left.len(), |first| first.max(1)));
        left = rest;
        (!group.is_empty()).then_some(group)
    })
}

/// Whether a failure is a matter of one pack, and of what is said of it.
fn is_of_pack(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. } | Error::NotAllowed { .. } | Error::Erased { .. })
}

/// Moves live chunks on an ordinary thread.
struct Moving<'m> {
    repository: &'m Repository,
    uploads: &'m Uploads,
    handle: &'m Handle,
    packers: BTreeMap<(PackClass, DomainId), Packer<'m>>,
}

impl<'m> Moving<'m> {
    /// Copies what is live in a pack; `false` if it stays as it is.
    fn pack(&mut self, used: &PackUse, must_move: bool, entries: &[IndexEntry]) -> Result<bool, Error> {
        match self.whole(used, entries) {
            Ok(()) => Ok(true),
            Err(Error::Storage(error)) if error.is_not_found() => Ok(false),
            Err(error) if !is_of_pack(&error) => Err(error),
            Err(error) if !must_move => {
                let problem = format!("{}; it stays as it is", crate::error::one_line(&error));
                self.repository.monitor().problem(&used.key(), &problem);
                Ok(false)
            }
            Err(error) => {
                if self.singly(used, entries)? {
                    return Ok(true);
                }
                Err(error)
            }
        }
    }

    fn whole(&mut self, used: &PackUse, entries: &[IndexEntry]) -> Result<(), Error> {
        let (repository, class) = (self.repository, used.class);
        let (pack, mut fetched) = self.handle.block_on(fetch_as_it_is(repository, used))?;
        let packer = self.packer(class, pack.domain)?;
        FromPack::new(repository, class, &pack).move_frames(&mut fetched.frames, entries, packer)
    }

    /// One frame at a time, by whatever is said of the pack. `true` if that was everything.
    fn singly(&mut self, used: &PackUse, entries: &[IndexEntry]) -> Result<bool, Error> {
        let (repository, handle) = (self.repository, self.handle);
        for pack in used.said.iter().filter(|pack| repository.id_key(pack.domain).is_ok()) {
            let packer = self.packer(used.class, pack.domain)?;
            if FromPack::new(repository, used.class, pack).move_singly(entries, packer, handle)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn packer(&mut self, class: PackClass, domain: DomainId) -> Result<&mut Packer<'m>, Error> {
        match self.packers.entry((class, domain)) {
            Entry::Occupied(slot) => Ok(slot.into_mut()),
            Entry::Vacant(slot) => {
                let settings = PackSettings::for_moved(self.repository, class, domain)?;
                Ok(slot.insert(Packer::new(self.uploads, settings)?))
            }
        }
    }
}

/// A whole pack, and what of all that segments say of it is so: its size is what the store lists, its header is its own, and
/// its domain the one whose keys open it.
async fn fetch_as_it_is(repository: &Repository, used: &PackUse) -> Result<(PackRef, FetchedPack), Error> {
    let mut failed = Error::damaged(used.key(), "nothing that the index says of it is so");
    let mut said = used.said.iter().filter(|pack| pack.size == used.size).peekable();
    let stored = match said.peek() {
        Some(pack) => fetch_stored(repository, used.class, pack).await?,
        None => {
            repository.store().head(&names::pack_key(used.class, &used.name)).await?; // it may be gone
            return Err(failed);
        }
    };
    for pack in said.filter(|pack| is_of(pack, &stored)) {
        match FetchedPack::open(repository, used.class, pack, stored.clone()) {
            Ok(fetched) => return Ok((*pack, fetched)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The marked entries of these packs.
fn live_entries(index: &IndexSet, marks: &Marks, packs: &[(PackUse, bool)]) -> Result<Live, Error> {
    let ids: BTreeSet<PackId> = packs.iter().map(|(used, _)| used.id()).collect();
    let mut live = Live::new();
    for (number, (_, segment)) in index.segments().iter().enumerate() {
        let id = |pack: &PackRef| (segment.class(), pack.name);
        let wanted: Vec<bool> = segment.packs().iter().map(|pack| ids.contains(&id(pack))).collect();
        if !wanted.contains(&true) {
            continue;
        }
        for item in segment.iter() {
            let (ordinal, entry) = item?;
            if wanted.get(entry.pack as usize) == Some(&true) && marks.get(number, ordinal) {
                live.entry(id(&segment.packs()[entry.pack as usize])).or_default().push(entry);
            }
        }
    }
    live.values_mut().for_each(by_place);
    Ok(live)
}

#[cfg(test)]
mod tests {
    use keepwell_catalog::ContentName;
    use keepwell_crypto::Digest;

    use super::*;

    #[test]
    fn packs_move_in_groups_of_so_many_entries_and_one_that_has_more_by_itself() {
        let pack = |n: u8, live_entries: u64| {
            let (class, said) = (PackClass::Data, Vec::new());
            let name = ContentName::new(&Digest::from_bytes([n; 32]), [0; 4]);
            let used =
                PackUse { class, name, said, size: 4, live: 1, total: 2, plain: 3, live_entries, segment: 0 };
            (used, false)
        };
        let entries = [3, 3, 3, 2, 900, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        let packs: Vec<(PackUse, bool)> = (0..).zip(entries).map(|(n, live)| pack(n, live)).collect();
        let counts = |group: &[(PackUse, bool)]| -> Vec<u64> {
            group.iter().map(|(used, _)| used.live_entries).collect()
        };
        let found: Vec<Vec<u64>> = groups(&packs, 9).map(counts).collect();
        assert_eq!(found, [vec![3, 3, 3], vec![2], vec![900], vec![1; 9], vec![1; 2]]);
        assert_eq!(groups(&[], 9).count(), 0);
    }
}
