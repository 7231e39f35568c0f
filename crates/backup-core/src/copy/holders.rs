//! One listing across copies: which store holds which snapshot, and since when each is proved.

use std::collections::BTreeMap;

use keepwell_catalog::{PackRef, PackSet};
use keepwell_crypto::SnapshotId;

use crate::Error;
use crate::env::Timestamp;
use crate::repository::{Repository, Snapshot, SnapshotState, read_plans};
use crate::retention::Checked;

/// A snapshot and the stores that hold it.
#[derive(Debug, Clone)]
pub struct Held {
    /// As the first store that has it describes it, if possible one where its manifest is not damaged.
    pub snapshot: Snapshot,
    /// For each store, in the order given, whether it holds the snapshot. One where its manifest is damaged does not.
    pub by: Vec<bool>,
}

/// Snapshots across stores, oldest first, and what is known about each store.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    /// One per snapshot.
    pub snapshots: Vec<Held>,
    /// For each store: this host remembers that it read and proved every pack in it at this time or later (`None`: not
    /// all, or damage was found since), or why the store could not be listed. Others that proved it are not known here.
    pub stores: Vec<Result<Option<Timestamp>, Error>>,
}

impl Repository {
    /// When the pack that was proved longest ago was proved by this host; `None` while one never was, and once a later
    /// check of this host found one missing or damaged, or a snapshot that lacks something, until a check has read it
    /// again and found it sound. This is what the cache remembers: without it nothing was proved, and what another host
    /// proved does not count; nor do packs of erased domains, which nobody can read, and packs that a prune has removed and
    /// the index lists still. Costs reading the index and the plans, and nothing else.
    pub async fn proved_since(&self) -> Result<Option<Timestamp>, Error> {
        self.unless_cancelled(self.all_proved_since()).await
    }

    async fn all_proved_since(&self) -> Result<Option<Timestamp>, Error> {
        if crate::check::found_damage(self.cache()) {
            return Ok(None);
        }
        let dead = PackSet::from_keys(read_plans(self).await?.dead());
        self.refresh_index().await?;
        let proved = crate::check::remembered_proofs(self.cache());
        let index = self.index();
        let mut oldest = None;
        for (_, segment) in index.segments() {
            let is_dead = |pack: &PackRef| dead.contains(segment.class(), &pack.name);
            let counts = |pack: &&PackRef| !self.is_erased(pack.domain) && !is_dead(pack);
            for pack in segment.packs().iter().filter(counts) {
                match proved.get(&pack.name) {
                    None => return Ok(None),
                    Some(at) => oldest = Some(oldest.map_or(*at, |o: Timestamp| o.min(*at))),
                }
            }
        }
        Ok(oldest)
    }

    /// What retention goes by: [`Repository::proved_since`], and the snapshots that the last check of this host found to
    /// lack something. Costs what the first does; what another host found does not count.
    pub async fn checked(&self) -> Result<Checked, Error> {
        let proved_since = self.proved_since().await?;
        Ok(Checked { proved_since, damaged: crate::check::damaged(self.cache()) })
    }
}

/// Lists the snapshots of several stores together; one that cannot be listed does not keep the others from it. A
/// snapshot is the same when its id is: stores of the same repository share ids; a copy with other keys names its
/// origin's id in its manifest.
pub async fn holdings(stores: &[&Repository]) -> Holdings {
    let mut by_id: BTreeMap<SnapshotId, Held> = BTreeMap::new();
    let mut known = Vec::new();
    for (number, store) in stores.iter().enumerate() {
        let listed = async { Ok::<_, Error>((store.proved_since().await?, store.snapshots().await?)) };
        known.push(listed.await.map(|(proved, snapshots)| {
            for snapshot in snapshots {
                let is_damaged = |s: &Snapshot| matches!(s.state, SnapshotState::Damaged(_));
                let gives_it_back = !is_damaged(&snapshot);
                let held = by_id
                    .entry(snapshot.origin_id())
                    .or_insert_with(|| Held { snapshot: snapshot.clone(), by: vec![false; stores.len()] });
                if gives_it_back && is_damaged(&held.snapshot) {
                    held.snapshot = snapshot;
                }
                held.by[number] |= gives_it_back;
            }
            proved
        }));
    }
    let mut snapshots: Vec<Held> = by_id.into_values().collect();
    snapshots.sort_by_key(|held| (held.snapshot.commit.capture, held.snapshot.id));
    Holdings { snapshots, stores: known }
}

impl Snapshot {
    /// The id that the snapshot had where it was captured; that of a copy under other keys differs from its own.
    pub fn origin_id(&self) -> SnapshotId {
        let origin = self.manifest().ok().and_then(|m| m.extra.get(super::EXTRA_ORIGIN_SNAPSHOT));
        origin.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(self.id, SnapshotId::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keepwell_storage::{Fault, Faulty, Memory};

    use super::*;
    use crate::testing::{Thing, TreeModel, World, back_up, block_on, noise, tree_model};
    use crate::{CheckOptions, PruneOptions, ReadData, RepairOptions};
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    #[test]
    fn packs_that_a_prune_has_removed_need_no_proof() {
        block_on(async {
            let world = World::new().await;
            for seed in 1..=5 {
                let tree = TreeModel::default().with("a", Thing::file(noise(seed, 3_000)));
                back_up(&world.repository, &tree).await;
            }
            // One segment lists all packs of a class then, and is not rewritten for one that goes.
            for name in world.names("index/").await {
                world.delete(&name).await;
            }
            let fence_after = std::time::Duration::ZERO;
            let repair = RepairOptions { fence_after, ..RepairOptions::default() };
            assert_eq!(world.repository.repair(None, repair).await.unwrap().packs_indexed, 10);
            let snapshots = world.repository.snapshots().await.unwrap();
            world.repository.forget(&[(&snapshots[0], "old".into())]).await.unwrap();
            let prune = PruneOptions { fence_after, ..PruneOptions::default() };
            assert!(world.repository.prune(prune).await.unwrap().objects_deleted > 0);
            assert_eq!(world.repository.proved_since().await.unwrap(), None);
            let check = CheckOptions { read: ReadData::Everything };
            assert!(world.repository.check(check).await.unwrap().is_sound());
            let listed =
                world.repository.index().segments().iter().map(|(_, s)| s.packs().len()).sum::<usize>();
            let stored = world.names("data/").await.len() + world.names("meta/").await.len();
            assert!(listed > stored, "the index still lists what is gone");
            assert!(world.repository.proved_since().await.unwrap().is_some());
        });
    }

    #[test]
    fn a_store_that_fails_is_named_and_the_others_are_listed() {
        block_on(async {
            let world = World::new().await;
            let tree = tree_model().new_tree(&mut TestRunner::deterministic()).unwrap().current();
            back_up(&world.repository, &tree).await;
            let copy = Memory::new();
            world.repository.create_copy(&copy).await.unwrap();
            let open = async |fault: Fault| {
                let store = Arc::new(Faulty::new(copy.clone(), fault));
                let opened = Repository::builder(Arc::clone(&store) as _).open(world.key.clone()).await;
                (store.calls(), opened.unwrap())
            };
            let (calls, there) = open(Fault::None).await;
            let held = holdings(&[&world.repository, &there]).await;
            assert!(held.stores.iter().all(Result::is_ok), "{:?}", held.stores);
            assert_eq!(held.snapshots.iter().map(|h| h.by.clone()).collect::<Vec<_>>(), [[true, false]]);
            let (_, gone) = open(Fault::FromThenOn(calls + 1)).await;
            let held = holdings(&[&gone, &world.repository]).await;
            assert!(held.stores[0].is_err() && held.stores[1].is_ok(), "{:?}", held.stores);
            assert_eq!(held.snapshots.iter().map(|h| h.by.clone()).collect::<Vec<_>>(), [[false, true]]);
        });
    }

    #[test]
    fn a_store_where_the_manifest_is_damaged_does_not_hold_the_snapshot() {
        block_on(async {
            let world = World::new().await;
            back_up(&world.repository, &TreeModel::default().with("a", Thing::file(noise(1, 3_000)))).await;
            let copy = Memory::new();
            world.repository.create_copy(&copy).await.unwrap();
            let open = Repository::builder(Arc::new(copy)).open(world.key.clone());
            let there = open.await.unwrap();
            let snapshots = world.repository.snapshots().await.unwrap();
            world.repository.copy_to_store(&there, &snapshots).await.unwrap();
            world.delete(&world.names("manifests/").await[0]).await;
            let here = world.open(&world.key).await;
            let held = holdings(&[&here, &there]).await.snapshots;
            assert_eq!(held.iter().map(|h| h.by.clone()).collect::<Vec<_>>(), [[false, true]]);
            assert!(held[0].snapshot.manifest().is_ok());
        });
    }
}
