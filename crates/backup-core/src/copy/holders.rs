//! One listing across copies: which store holds which snapshot, and since when each is proved.

use std::collections::BTreeMap;

use keepwell_crypto::SnapshotId;

use crate::Error;
use crate::env::Timestamp;
use crate::repository::{Repository, Snapshot};

/// A snapshot and the stores that hold it.
#[derive(Debug, Clone)]
pub struct Held {
    /// As the first store that has it describes it.
    pub snapshot: Snapshot,
    /// For each store, in the order given, whether it holds the snapshot.
    pub by: Vec<bool>,
}

/// Snapshots across stores, oldest first, and what is known about each store.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    /// One per snapshot.
    pub snapshots: Vec<Held>,
    /// For each store: every pack in it has been read and proved by this host at this time or later. `None`: not all.
    pub proved: Vec<Option<Timestamp>>,
}

impl Repository {
    /// When the pack that was proved longest ago was proved by this host; `None` while one never was. Costs reading
    /// the index and nothing else.
    pub async fn proved_since(&self) -> Result<Option<Timestamp>, Error> {
        self.refresh_index().await?;
        let proved = crate::check::remembered_proofs(self.cache());
        let index = self.index();
        let mut oldest = None;
        for (_, segment) in index.segments() {
            for pack in segment.packs() {
                match proved.get(&pack.name) {
                    None => return Ok(None),
                    Some(at) => oldest = Some(oldest.map_or(*at, |o: Timestamp| o.min(*at))),
                }
            }
        }
        Ok(oldest)
    }
}

/// Lists the snapshots of several stores together. A snapshot is the same when its id is: stores of the same
/// repository share ids; a copy with other keys names its origin's id in its manifest.
pub async fn holdings(stores: &[&Repository]) -> Result<Holdings, Error> {
    let mut by_id: BTreeMap<SnapshotId, Held> = BTreeMap::new();
    let mut proved = Vec::new();
    for (number, store) in stores.iter().enumerate() {
        proved.push(store.proved_since().await?);
        for snapshot in store.snapshots().await? {
            let id = snapshot.origin_id();
            let held = by_id.entry(id).or_insert_with(|| Held { snapshot, by: vec![false; stores.len()] });
            held.by[number] = true;
        }
    }
    let mut snapshots: Vec<Held> = by_id.into_values().collect();
    snapshots.sort_by_key(|held| (held.snapshot.commit.capture, held.snapshot.id));
    Ok(Holdings { snapshots, proved })
}

impl Snapshot {
    /// The id that the snapshot had where it was captured; that of a copy under other keys differs from its own.
    pub fn origin_id(&self) -> SnapshotId {
        let origin = self.manifest().ok().and_then(|m| m.extra.get(super::EXTRA_ORIGIN_SNAPSHOT));
        origin.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(self.id, SnapshotId::from_bytes)
    }
}
