//! What the packs hold: how much of it snapshots need, what each snapshot added, and what a prune would free.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{CommitKind, IndexSet, Location, PackClass, PackSet};
use keepwell_crypto::{ChunkId, MemberId, SnapshotId};

use super::RESTARTS_MAX;
use super::pack_use::{PackId, PackUse, pack_uses};
use super::scan::{decided, live_ends};
use crate::Error;
use crate::mark::{Marks, Visitor, preferred};
use crate::read::Nodes;
use crate::remembered::Remembered;
use crate::repository::{Repository, in_order, read_ends, read_plans};

/// What the packs of a store hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Packs of file contents.
    pub content: ClassUsage,
    /// Packs of tree nodes.
    pub trees: ClassUsage,
    /// Packs that no index segment lists: of work that is going on, or that was interrupted.
    pub unlisted_packs: u64,
    /// Their stored bytes.
    pub unlisted_bytes: u64,
    /// What each snapshot added, in the order in which they were first committed; checkpoints come last.
    pub growth: Vec<Growth>,
}

/// What the packs of one class hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassUsage {
    /// Packs that the index lists.
    pub packs: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Different chunks that a snapshot or checkpoint needs.
    pub needed_chunks: u64,
    /// Their bytes before compression.
    pub needed_plain_bytes: u64,
    /// Stored bytes of the frames that they lie in.
    pub needed_stored_bytes: u64,
    /// Packs that hold nothing that is needed: the next prune removes them.
    pub unused_packs: u64,
    /// Their stored bytes.
    pub unused_pack_bytes: u64,
    /// Packs of which something is needed, and something not.
    pub partly_unused_packs: u64,
    /// Stored bytes of their frames that nobody needs: a prune that repacks these packs frees them.
    pub partly_unused_bytes: u64,
}

/// What one snapshot needs that no older one needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Growth {
    /// The snapshot; `None` for the checkpoint of a capture that has not ended.
    pub snapshot: Option<SnapshotId>,
    /// Chunks of contents and nodes.
    pub chunks: u64,
    /// Their bytes before compression.
    pub plain_bytes: u64,
    /// Their share of the stored bytes of the packs that they lie in, by their bytes before compression.
    pub stored_bytes: u64,
}

impl Usage {
    /// Stored bytes that no snapshot needs, as far as index segments list them.
    pub fn garbage_bytes(&self) -> u64 {
        [self.content, self.trees].iter().map(|c| c.unused_pack_bytes + c.partly_unused_bytes).sum()
    }
}

impl Repository {
    /// Measures what the packs hold: what is needed, what each snapshot added, and what is garbage.
    ///
    /// Needs the data keys. Fails on damage that hides what a snapshot needs. Costs what the scan of a prune does: the
    /// nodes that the last one on this host did not read, the whole index twice, one bit of memory per entry and about
    /// 200 bytes per pack. Changes nothing. Packs of a backup that is at work count as garbage until it commits.
    pub async fn usage(&self) -> Result<Usage, Error> {
        if !self.can_read() {
            return Err(self.access().cannot("decrypt what it backs up"));
        }
        self.monitor().phase("stats");
        self.unless_cancelled(self.measure_all()).await
    }

    /// Begins again where what is missing was removed rightly, because it counts no longer.
    async fn measure_all(&self) -> Result<Usage, Error> {
        for _ in 0..RESTARTS_MAX {
            let (head, _) = self.chain().head();
            let retired = self.retired().await?;
            match self.measure_by(&retired).await {
                Err(error) if self.was_overtaken(&error, head, &retired).await? => {}
                measured => return measured,
            }
        }
        self.measure_by(&self.retired().await?).await
    }

    async fn measure_by(&self, retired: &BTreeSet<(MemberId, u64)>) -> Result<Usage, Error> {
        let doomed = read_plans(self).await?.doomed_packs();
        let roots = self.roots_in_order(retired).await?;
        self.refresh_index().await?;
        let mut packs = HashMap::new();
        for prefix in ["data/", "meta/"] {
            for info in self.list(prefix).await? {
                if let Ok(ObjectName::Pack(class, name)) = info.key.as_str().parse() {
                    packs.insert((class, name), info.size);
                }
            }
        }
        let (repository, nodes) = (self.clone(), Nodes::new(self));
        let task = tokio::task::spawn_blocking(move || measure(&repository, &nodes, &roots, doomed, &packs));
        task.await.map_err(|e| Error::Task(e.to_string()))?
    }

    /// The roots of a prune: of snapshots from the oldest on, then those of checkpoints.
    async fn roots_in_order(
        &self,
        retired: &BTreeSet<(MemberId, u64)>,
    ) -> Result<Vec<(Option<SnapshotId>, ChunkId)>, Error> {
        let ends = decided(read_ends(self).await?)?;
        let live = live_ends(&ends, retired).into_iter().cloned().collect();
        let snapshots: Vec<_> = self.load_snapshots(live).await?.into_iter().flatten().collect();
        let (done, unfinished): (Vec<_>, Vec<_>) =
            in_order(snapshots).into_iter().partition(|s| s.commit.kind == CommitKind::Snapshot);
        let mut roots = Vec::new();
        for snapshot in done.into_iter().chain(unfinished) {
            let manifest = snapshot.manifest()?;
            if !self.is_erased(manifest.domain) {
                let listed = (snapshot.commit.kind == CommitKind::Snapshot).then_some(snapshot.id);
                roots.push((listed, manifest.root));
            }
        }
        Ok(roots)
    }
}

/// Marks what the roots reach, and counts it where it is reached first.
struct Measuring<'m> {
    marks: &'m mut Marks,
    gone: &'m PackSet,
    packs: &'m HashMap<PackId, PackUse>,
    content: &'m mut ClassUsage,
    trees: &'m mut ClassUsage,
    growth: Growth,
}

impl Visitor for Measuring<'_> {
    fn reached(&mut self, _: &ChunkId, locations: &[Location]) -> bool {
        let Some(location) = preferred(locations, self.gone).or(locations.first()) else { return true };
        if !self.marks.set(location) {
            return false;
        }
        let length = u64::from(location.entry.length);
        let class = match location.class {
            PackClass::Data => &mut *self.content,
            PackClass::Meta => &mut *self.trees,
        };
        class.needed_chunks += 1;
        class.needed_plain_bytes += length;
        self.growth.chunks += 1;
        self.growth.plain_bytes += length;
        if let Some(used) =
            self.packs.get(&(location.class, location.pack.name)).filter(|used| used.plain > 0)
        {
            let share = u128::from(length) * u128::from(used.size) / u128::from(used.plain);
            self.growth.stored_bytes += u64::try_from(share).unwrap_or(u64::MAX);
        }
        true
    }

    fn broken(&mut self, error: Error) -> Result<(), Error> {
        Err(error)
    }
}

fn measure(
    repository: &Repository,
    nodes: &Nodes,
    roots: &[(Option<SnapshotId>, ChunkId)],
    gone: PackSet,
    stored: &HashMap<PackId, u64>,
) -> Result<Usage, Error> {
    let index: Arc<IndexSet> = repository.index();
    let mut marks = Marks::new(&index);
    let before = pack_uses(&index, &marks, stored)?;
    let mut usage = Usage::default();
    let mut remembered = Remembered::load(repository);
    for (snapshot, root) in roots {
        let growth = Growth { snapshot: *snapshot, ..Growth::default() };
        let (content, trees) = (&mut usage.content, &mut usage.trees);
        let mut measuring =
            Measuring { marks: &mut marks, gone: &gone, packs: &before, content, trees, growth };
        remembered.visit(nodes, &index, std::slice::from_ref(root), &mut measuring)?;
        let growth = measuring.growth;
        usage.growth.push(growth);
    }
    if remembered.nodes_read > 0 {
        remembered.save();
    }
    let mut listed = HashSet::new();
    for used in pack_uses(&index, &marks, stored)?.into_values() {
        if stored.contains_key(&used.id()) {
            usage.add_pack(&used);
            listed.insert(used.id());
        }
    }
    for (_, size) in stored.iter().filter(|(id, _)| !listed.contains(*id)) {
        usage.unlisted_packs += 1;
        usage.unlisted_bytes += size;
    }
    Ok(usage)
}

impl Usage {
    fn add_pack(&mut self, used: &PackUse) {
        let class = match used.class {
            PackClass::Data => &mut self.content,
            PackClass::Meta => &mut self.trees,
        };
        class.packs += 1;
        class.bytes += used.size;
        class.needed_stored_bytes += used.live;
        if used.live == 0 {
            class.unused_packs += 1;
            class.unused_pack_bytes += used.size;
        } else if used.live < used.total {
            class.partly_unused_packs += 1;
            class.partly_unused_bytes += used.total - used.live;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::PruneOptions;
    use crate::testing::{Thing, TreeModel, World, back_up, block_on, noise, snapshot_of};

    /// Two files: the first stays what it is, the second is another one in each generation.
    fn tree(generation: u64) -> TreeModel {
        let tree = TreeModel::default().with("same", Thing::file(noise(1, 200_000)));
        tree.with("other", Thing::file(noise(100 + generation, 50_000 + 10_000 * generation as usize)))
    }

    async fn stored(world: &World, prefix: &str) -> u64 {
        let listed = keepwell_storage::list_all(&*world.store, prefix).await.unwrap();
        listed.iter().map(|info| info.size).sum()
    }

    #[test]
    fn garbage_is_what_the_next_prune_frees() {
        block_on(async {
            let world = World::new().await;
            let repository = &world.repository;
            let mut snapshots = Vec::new();
            for generation in 0..4 {
                let report = back_up(repository, &tree(generation)).await;
                snapshots.push(snapshot_of(repository, &report).await);
            }
            assert_eq!(repository.usage().await.unwrap().garbage_bytes(), 0);
            // The first holds what others need as well; the third has packs of its own.
            for gone in [0, 2] {
                repository.forget(&[(&snapshots[gone], "test".into())]).await.unwrap();
                let usage = world.open(&world.key).await.usage().await.unwrap();
                let before = stored(&world, "data/").await + stored(&world, "meta/").await;
                assert_eq!(before, usage.content.bytes + usage.trees.bytes);
                let unused = usage.content.unused_pack_bytes + usage.trees.unused_pack_bytes;
                let options =
                    PruneOptions { max_unused: 1.0, fence_after: Duration::ZERO, ..PruneOptions::default() };
                let report = repository.prune(options.clone()).await.unwrap();
                let after = stored(&world, "data/").await + stored(&world, "meta/").await;
                assert_eq!(before - after, unused, "{usage:?} {report:?}");
                // What lies in packs of which something is needed goes when these are repacked: but for headers and
                // padding exactly that.
                let partly = usage.content.partly_unused_bytes + usage.trees.partly_unused_bytes;
                let needed = usage.content.needed_stored_bytes + usage.trees.needed_stored_bytes;
                let padding = before - unused - partly - needed;
                repository.prune(PruneOptions { max_unused: 0.0, ..options }).await.unwrap();
                let freed = after - (stored(&world, "data/").await + stored(&world, "meta/").await);
                assert!(freed.abs_diff(partly) <= padding, "{freed} {partly} {usage:?}");
                assert_eq!(usage.garbage_bytes(), unused + partly);
                assert_eq!(repository.usage().await.unwrap().garbage_bytes(), 0);
            }
            assert_eq!(repository.usage().await.unwrap().growth.len(), 2);
        });
    }

    #[test]
    fn growth_is_what_no_older_snapshot_needs() {
        block_on(async {
            let world = World::new().await;
            let repository = &world.repository;
            let mut snapshots = Vec::new();
            for generation in 0..3 {
                let report = back_up(repository, &tree(generation)).await;
                snapshots.push(snapshot_of(repository, &report).await);
            }
            let usage = repository.usage().await.unwrap();
            let order: Vec<_> = usage.growth.iter().map(|growth| growth.snapshot).collect();
            assert_eq!(order, snapshots.iter().map(|s| Some(s.id)).collect::<Vec<_>>());
            assert_eq!(usage.content.needed_plain_bytes, 200_000 + 50_000 + 60_000 + 70_000);
            let of = |usage: &Usage, n: usize| usage.growth[n].plain_bytes;
            let nodes = usage.trees.needed_plain_bytes;
            assert!((250_000..250_000 + nodes).contains(&of(&usage, 0)), "{usage:?}");
            assert!((60_000..60_000 + nodes).contains(&of(&usage, 1)), "{usage:?}");
            assert!((70_000..70_000 + nodes).contains(&of(&usage, 2)), "{usage:?}");
            let plain = usage.content.needed_plain_bytes + usage.trees.needed_plain_bytes;
            assert_eq!(usage.growth.iter().map(|g| g.plain_bytes).sum::<u64>(), plain);
            // The shares of the stored bytes add up to the packs, but for what division drops.
            let shares: u64 = usage.growth.iter().map(|g| g.stored_bytes).sum();
            let (chunks, packs) = (usage.content.needed_chunks, usage.content.bytes + usage.trees.bytes);
            assert!(shares <= packs && packs - shares <= chunks + usage.trees.needed_chunks, "{usage:?}");
            // Forgotten, the first leaves what others need to the second.
            repository.forget(&[(&snapshots[0], "test".into())]).await.unwrap();
            let usage = repository.usage().await.unwrap();
            assert!((260_000..260_000 + nodes).contains(&of(&usage, 0)), "{usage:?}");
        });
    }

    #[test]
    fn packs_of_interrupted_work_are_told_apart() {
        block_on(async {
            let world = World::new().await;
            back_up(&world.repository, &tree(0)).await;
            for segment in world.names("index/").await {
                world.delete(&segment).await;
            }
            let fresh = world.open(&world.key).await;
            let retired = snapshot_of(&fresh, &back_up(&fresh, &tree(1)).await).await;
            let listed = fresh.snapshots().await.unwrap();
            let gone: Vec<_> =
                listed.iter().filter(|s| s.id != retired.id).map(|s| (s, "test".into())).collect();
            fresh.forget(&gone).await.unwrap();
            let usage = fresh.usage().await.unwrap();
            assert_eq!(usage.unlisted_packs, 2, "{usage:?}");
            let all = stored(&world, "data/").await + stored(&world, "meta/").await;
            assert_eq!(usage.unlisted_bytes + usage.content.bytes + usage.trees.bytes, all);
        });
    }
}
