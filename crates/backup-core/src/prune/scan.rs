//! The scan: what is unused, what is worth repacking, what a crashed prune left. Only a heuristic: the verdict decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keepwell_catalog::names::{ObjectName, PlanName};
use keepwell_catalog::{CommitKind, ContentName, IndexSet, Location, PackClass, PackSet, names};
use keepwell_crypto::{ChunkId, MemberId};
use keepwell_storage::Key;

use super::locks::Young;
use super::pack_use::{PackId, PackUse, pack_uses};
use super::{PruneOptions, PruneReport};
use crate::Error;
use crate::mark::{Marks, Visitor, preferred};
use crate::planted::planted;
use crate::read::Nodes;
use crate::remembered::Remembered;
use crate::repository::{End, Plans, Repository, read_ends, read_plans};
use crate::write::PACK_BYTES_MIN;

/// Packs smaller than this are merged with others. None is that was finished because it was full: it would be merged again by
/// every prune.
const SMALL_PACK_BYTES: u64 = PACK_BYTES_MIN as u64;
/// Small packs are left alone until there are this many of a class.
const SMALL_PACKS_MIN: usize = 8;

/// An object in the store.
#[derive(Debug, Clone, Copy)]
struct Listed {
    size: u64,
    /// When it was stored, by the store's clock, if that says.
    modified: Option<i64>,
}

/// What the scan found.
pub(super) struct Scan {
    /// The newest record of the trust chain that it went by.
    pub head: u64,
    pub retired: BTreeSet<(MemberId, u64)>,
    /// Marked entries; only the preferred location of each chunk is marked.
    pub marks: Arc<Marks>,
    pub index: Arc<IndexSet>,
    pub repack: BTreeMap<PackId, PackUse>,
    unused: BTreeMap<PackId, PackUse>,
    /// Packs in no index, stale state, manifests of retired snapshots: whole keys.
    others: Vec<String>,
    /// Plans without a verdict, and plans with one of which something still exists.
    pub unfinished: BTreeMap<PlanName, BTreeSet<String>>,
    /// What the listing says of packs and small objects.
    listed: BTreeMap<String, Listed>,
    /// Packs that are needed.
    needed: Vec<PackId>,
    /// Commits and manifests of what is not retired, with when commits were stored.
    records: Vec<(String, Option<i64>)>,
    /// Keys of packs that are needed and doomed: their content moves while they last.
    must_move: BTreeSet<String>,
    /// Whether there are checkpoints whose capture has probably died.
    pub stale_checkpoints: bool,
    /// What the bucket keeps for a time.
    pub young: Young,
    pub report: PruneReport,
}

/// Ends that count as roots, given the retirements.
pub(crate) fn live_ends<'e>(ends: &'e [End], retired: &BTreeSet<(MemberId, u64)>) -> Vec<&'e End> {
    let superseded: BTreeSet<(MemberId, u64)> =
        ends.iter().flat_map(|e| e.commit.supersedes.iter().map(|n| (e.writer, *n))).collect();
    let is_live = |end: &&End| match end.commit.kind {
        CommitKind::Snapshot => !retired.contains(&(end.writer, end.n)),
        CommitKind::Checkpoint => {
            let later =
                |e: &&End| e.writer == end.writer && e.n > end.n && e.commit.kind == CommitKind::Snapshot;
            let superseded = superseded.contains(&(end.writer, end.n))
                || planted("checkpoint-superseded-by-any") && ends.iter().any(|e| later(&e))
                || planted("checkpoint-is-no-root");
            !superseded && !retired.contains(&(end.writer, end.n))
        }
        CommitKind::Fence | CommitKind::IndexOnly => false,
    };
    ends.iter().filter(is_live).collect()
}

/// Checkpoints that are roots although their writer has published a later snapshot of the dataset; not those of repairs.
pub(crate) fn stale_checkpoints(ends: &[End], retired: &BTreeSet<(MemberId, u64)>) -> Vec<(MemberId, u64)> {
    let mut newest: HashMap<(MemberId, Option<[u8; 16]>), u64> = HashMap::new();
    for end in ends.iter().filter(|e| e.commit.kind == CommitKind::Snapshot) {
        newest.insert((end.writer, end.commit.dataset_tag), end.n);
    }
    let is_stale = |end: &&End| {
        let later = newest.get(&(end.writer, end.commit.dataset_tag));
        let of_capture = end.commit.kind == CommitKind::Checkpoint && end.commit.origin.is_none();
        of_capture && later.is_some_and(|later| *later > end.n)
    };
    live_ends(ends, retired).into_iter().filter(is_stale).map(|e| (e.writer, e.n)).collect()
}

/// The root nodes of these ends. Fails on a manifest that cannot be read: its snapshot's chunks are unknown. What lies in
/// an erased domain is no root: nobody can ever read it.
pub(crate) async fn roots_of(repository: &Repository, ends: &[&End]) -> Result<Vec<ChunkId>, Error> {
    let mut roots = Vec::new();
    let loaded = repository.load_snapshots(ends.iter().map(|end| (*end).clone()).collect()).await?;
    for (end, snapshot) in ends.iter().zip(loaded) {
        let snapshot = snapshot
            .ok_or_else(|| Error::damaged(names::commit_key(end.writer, end.n), "it names no manifest"))?;
        let manifest = snapshot.manifest()?;
        if !repository.is_erased(manifest.domain) {
            roots.push(manifest.root);
        }
    }
    roots.sort_unstable();
    roots.dedup();
    Ok(roots)
}

/// Every end, of ends and those that do not verify; one of the latter stops the prune.
pub(crate) fn decided((ends, undecided): (Vec<End>, Vec<(String, String)>)) -> Result<Vec<End>, Error> {
    match undecided.into_iter().next() {
        None => Ok(ends),
        Some((name, reason)) => {
            Err(Error::damaged(name, format_args!("{reason}; nothing is pruned until this is clear")))
        }
    }
}

/// Of an end that counts as a root, the keys of its commit and its manifest.
fn records_of(end: &End) -> impl Iterator<Item = (String, Option<i64>)> {
    let commit = (names::commit_key(end.writer, end.n).to_string(), end.stored);
    let manifest = end.commit.manifest.map(|name| (names::manifest_key(&name).to_string(), None));
    std::iter::once(commit).chain(manifest)
}

/// A time of the store.
pub(super) fn time(nanos: i64) -> Option<SystemTime> {
    let since = u64::try_from(nanos).ok().map(Duration::from_nanos)?;
    Some(SystemTime::UNIX_EPOCH + since)
}

fn is_pack(key: &str) -> bool {
    matches!(key.parse(), Ok(ObjectName::Pack(..)))
}

struct Marking<'m> {
    marks: &'m mut Marks,
    gone: &'m PackSet,
    /// Packs that the store lists.
    stored: &'m HashMap<PackId, u64>,
    /// Packs that would be preferred, and that the store does not list.
    missing: &'m mut BTreeSet<PackId>,
    /// The first chunk or node that the index does not list.
    lost: Option<ChunkId>,
}

impl Visitor for Marking<'_> {
    fn reached(&mut self, id: &ChunkId, locations: &[Location]) -> bool {
        let pack = |l: &Location| (l.class, l.pack.name);
        let is_gone = |l: &&Location| self.gone.contains(l.class, &l.pack.name);
        let there = locations.iter().find(|l| !is_gone(l) && self.stored.contains_key(&pack(l)));
        let first = preferred(locations, self.gone);
        let Some(chosen) = there.or(first).or(locations.first()) else {
            self.lost.get_or_insert(*id);
            return false;
        };
        if let Some(first) = first.filter(|first| pack(first) != pack(chosen)) {
            self.missing.insert(pack(first));
        }
        self.marks.set(chosen)
    }

    fn broken(&mut self, error: Error) -> Result<(), Error> {
        Err(error)
    }
}

impl Scan {
    pub async fn run(
        repository: &Repository,
        retired: BTreeSet<(MemberId, u64)>,
        options: &PruneOptions,
    ) -> Result<Self, Error> {
        let (head, _) = repository.chain().head();
        let plans = read_plans(repository).await?;
        let ends = decided(read_ends(repository).await?)?;
        repository.refresh_index().await?;
        let index = repository.index();
        let live = live_ends(&ends, &retired);
        let roots = roots_of(repository, &live).await?;
        let gone = plans.doomed_packs();
        let listed = list_objects(repository).await?;
        let stored = packs_of(&listed);
        let Marked { marks, uses, missing, nodes_read } =
            mark(repository, &index, roots, gone.clone(), stored).await?;
        let stale_checkpoints = !stale_checkpoints(&ends, &retired).is_empty();
        let mut scan = Self {
            head,
            retired,
            marks: Arc::new(marks),
            index,
            repack: BTreeMap::new(),
            unused: BTreeMap::new(),
            others: Vec::new(),
            unfinished: BTreeMap::new(),
            listed,
            needed: Vec::new(),
            records: live.iter().flat_map(|end| records_of(end)).collect(),
            must_move: BTreeSet::new(),
            stale_checkpoints,
            young: Young::default(),
            report: PruneReport { nodes_read, ..PruneReport::default() },
        };
        let needed = uses.values().filter(|u| u.live > 0).map(PackUse::key).collect();
        scan.needed = uses.values().filter(|u| u.live > 0).map(PackUse::id).collect();
        scan.sort_packs(uses, &gone, options);
        scan.find_others(&plans, &ends, &live);
        scan.refuse_missing(repository, needed, missing).await?;
        Ok(scan)
    }

    /// Fails if a pack that is needed is not in the store. Names those of which the index says that what is needed lies in
    /// others too, which therefore stay.
    async fn refuse_missing(
        &self,
        repository: &Repository,
        mut needed: Vec<String>,
        missing: BTreeSet<PackId>,
    ) -> Result<(), Error> {
        needed.retain(|key| !self.listed.contains_key(key));
        if needed.is_empty() && missing.is_empty() {
            return Ok(());
        }
        let plans = read_plans(repository).await?; // another prune may have moved the content meanwhile
        let doomed: BTreeSet<&str> = plans.doomed().collect();
        let missing = missing.iter().map(|(class, name)| names::pack_key(*class, name));
        for key in missing.filter(|key| !doomed.contains(key.as_str())) {
            let problem = "it is missing; what is needed of it lies elsewhere too, as the index says";
            repository.monitor().problem(key.as_str(), problem);
        }
        match needed.into_iter().find(|key| !doomed.contains(key.as_str())) {
            None => Ok(()),
            Some(key) => Err(Error::damaged(key, "it is missing; nothing is pruned until that is repaired")),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.unused.is_empty()
            && self.repack.is_empty()
            && self.others.is_empty()
            && self.unfinished.is_empty()
    }

    /// What a plan should condemn, given the packs that were repacked.
    pub fn condemned(&self, repacked: &BTreeSet<PackId>) -> Vec<String> {
        let mut list: Vec<String> = self.unused.values().map(PackUse::key).collect();
        list.extend(self.repack.values().filter(|u| repacked.contains(&u.id())).map(PackUse::key));
        list.extend(self.others.iter().cloned());
        list
    }

    pub fn size_of(&self, name: &str) -> Option<u64> {
        self.listed.get(name).map(|listed| listed.size)
    }

    /// Whether every place of what is needed in a pack is doomed.
    pub fn must_move(&self, key: &str) -> bool {
        self.must_move.contains(key)
    }

    /// Packs that would go, now or when their content has moved.
    pub fn candidates(&self) -> Vec<Key> {
        self.going().into_iter().filter(|key| is_pack(key.as_str())).collect()
    }

    /// All that would go, packs and small objects.
    pub fn going(&self) -> Vec<Key> {
        let packs = self.unused.values().chain(self.repack.values()).map(PackUse::key);
        packs.chain(self.others.iter().cloned()).filter_map(|key| key.parse().ok()).collect()
    }

    /// When an object was stored, by the store's clock, if it tells.
    pub fn stored(&self, key: &Key) -> Option<i64> {
        self.listed.get(key.as_str())?.modified
    }

    /// Whether the bucket keeps an object for a time.
    pub fn is_young(&self, name: &str) -> bool {
        self.young.keeps(self.listed.get(name).and_then(|listed| listed.modified))
    }

    /// Data packs whose content would move.
    pub fn movable(&self) -> Vec<Key> {
        let data = self.repack.values().filter(|used| used.class == PackClass::Data);
        data.filter_map(|used| used.key().parse().ok()).collect()
    }

    /// Leaves alone what is locked, but for packs whose content must move because every place of it is doomed.
    pub fn leave_locked(&mut self, locked: &BTreeSet<String>) {
        let (must_move, listed, report) = (&self.must_move, &self.listed, &mut self.report);
        let mut stays = |key: &str| {
            let stays = locked.contains(key) && !must_move.contains(key);
            if stays && is_pack(key) {
                report.packs_locked += 1;
                report.locked_bytes += listed.get(key).map_or(0, |listed| listed.size);
            }
            stays
        };
        self.unused.retain(|_, used| !stays(&used.key()));
        self.repack.retain(|_, used| !stays(&used.key()));
        self.others.retain(|other| !stays(other));
        self.report.packs_unused = self.unused.values().filter(|used| used.is_there()).count() as u64;
    }

    /// Leaves packs where they are that cannot be read; but of those that must move, the prune says that they must be thawed.
    pub fn leave_archived(&mut self, archived: &BTreeSet<String>) {
        let (must_move, before) = (&self.must_move, self.repack.len());
        self.repack.retain(|_, used| {
            let key = used.key();
            !archived.contains(&key) || must_move.contains(&key)
        });
        self.report.packs_archived += (before - self.repack.len()) as u64;
    }

    /// Keys of what restores need of this snapshot or that, and that stays: commits, manifests, packs but for those whose
    /// content was `moved`. Each with when it was stored.
    pub fn needed(&self, moved: &BTreeSet<PackId>) -> impl Iterator<Item = (String, Option<SystemTime>)> {
        let packs = self.needed.iter().filter(move |id| !moved.contains(*id));
        let packs = packs.map(|(class, name)| (names::pack_key(*class, name).to_string(), None));
        packs.chain(self.records.iter().cloned()).map(|(key, stored)| {
            let stored = stored.or_else(|| self.listed.get(&key)?.modified);
            (key, stored.and_then(time))
        })
    }

    fn sort_packs(&mut self, uses: HashMap<PackId, PackUse>, gone: &PackSet, options: &PruneOptions) {
        let report = &mut self.report;
        let mut partly = Vec::new();
        let mut small: BTreeMap<&'static str, Vec<PackUse>> = BTreeMap::new();
        for (id, used) in uses {
            let is_gone = gone.contains(id.0, &id.1);
            if is_gone && used.live == 0 {
                continue;
            }
            report.packs += u64::from(used.is_there());
            report.pack_bytes += used.size;
            report.unused_bytes += used.total - used.live;
            if used.live == 0 {
                report.packs_unused += u64::from(used.is_there());
                self.unused.insert(id, used);
            } else if is_gone {
                self.must_move.insert(used.key()); // live, and every location doomed: move it while it lasts
                self.repack.insert(id, used);
            } else if used.live < used.total {
                partly.push(used);
            } else if used.size < SMALL_PACK_BYTES {
                small.entry(used.class.prefix()).or_default().push(used);
            }
        }
        for packs in small.into_values().filter(|packs| packs.len() >= SMALL_PACKS_MIN) {
            self.repack.extend(packs.into_iter().map(|used| (used.id(), used)));
        }
        self.choose_repacks(partly, options);
    }

    /// The packs with the largest unused share first, until what stays unused is within the limit.
    fn choose_repacks(&mut self, mut partly: Vec<PackUse>, options: &PruneOptions) {
        let tolerated = (self.report.pack_bytes as f64 * options.max_unused.clamp(0.0, 1.0)) as u64;
        let mut unused: u64 = partly.iter().map(|u| u.total - u.live).sum();
        let mut budget = options.max_repack_bytes;
        partly.sort_by(|a, b| {
            let share = |u: &PackUse| (u.total - u.live) as f64 / u.total.max(1) as f64;
            share(b).total_cmp(&share(a)).then(a.name.cmp(&b.name))
        });
        for used in partly {
            if unused <= tolerated || used.live > budget {
                break;
            }
            unused -= used.total - used.live;
            budget -= used.live;
            self.repack.insert(used.id(), used);
        }
    }

    /// Objects that nothing refers to, other than packs in the index.
    fn find_others(&mut self, plans: &Plans, ends: &[End], live: &[&End]) {
        let doomed: BTreeSet<&str> = plans.doomed().collect();
        let named = live.iter().filter_map(|e| e.commit.manifest).collect::<BTreeSet<ContentName>>();
        let state = needed_state(ends);
        let segments = self.index.segments();
        let indexed: BTreeSet<PackId> =
            segments.iter().flat_map(|(_, s)| s.packs().iter().map(move |p| (s.class(), p.name))).collect();
        let is_orphan = |key: &&String| match key.parse() {
            Ok(ObjectName::Pack(class, name)) => !indexed.contains(&(class, name)),
            Ok(ObjectName::Manifest(name)) => !named.contains(&name),
            Ok(ObjectName::State(..)) => !state.contains(*key),
            _ => false,
        };
        let orphans = self.listed.keys().filter(is_orphan).filter(|key| !doomed.contains(key.as_str()));
        self.others = orphans.cloned().collect();
        for (name, plan) in &plans.plans {
            let undecided = !plans.verdicts.contains_key(name);
            if undecided || plans.left_of(name).any(|name| self.listed.contains_key(name)) {
                self.unfinished.insert(*name, plan.condemned.iter().cloned().collect());
            }
        }
    }
}

/// What the store holds of packs and small objects, by key.
async fn list_objects(repository: &Repository) -> Result<BTreeMap<String, Listed>, Error> {
    let mut listed = BTreeMap::new();
    for prefix in ["data/", "meta/", "manifests/", "state/", "index/"] {
        for info in repository.list(prefix).await? {
            listed.insert(info.key.to_string(), Listed { size: info.size, modified: info.modified });
        }
    }
    Ok(listed)
}

/// The packs among them, with their sizes.
fn packs_of(listed: &BTreeMap<String, Listed>) -> HashMap<PackId, u64> {
    let pack = |(key, listed): (&String, &Listed)| match key.parse() {
        Ok(ObjectName::Pack(class, name)) => Some(((class, name), listed.size)),
        _ => None,
    };
    listed.iter().filter_map(pack).collect()
}

/// The state of the newest snapshot of every writer's datasets, retired or not: the writer goes on from there.
pub(crate) fn needed_state(ends: &[End]) -> BTreeSet<String> {
    let mut newest: BTreeMap<(MemberId, Option<[u8; 16]>), &End> = BTreeMap::new();
    for end in ends.iter().filter(|e| e.commit.kind == CommitKind::Snapshot) {
        newest.insert((end.writer, end.commit.dataset_tag), end);
    }
    let keys = |end: &End| -> Vec<String> {
        end.commit.state.iter().map(|name| names::state_key(end.writer, name).to_string()).collect()
    };
    newest.into_values().flat_map(keys).collect()
}

/// What stops a prune: where an index segment is lost, the packs that it lists look like orphans.
pub(super) fn unlisted(id: ChunkId) -> Error {
    Error::ChunkLost {
        id,
        reason: "no index segment lists it; nothing is pruned until that is repaired".into(),
    }
}

/// What the roots reach.
struct Marked {
    marks: Marks,
    uses: HashMap<PackId, PackUse>,
    /// Packs that the store does not list, in whose place others were marked.
    missing: BTreeSet<PackId>,
    /// How many nodes had to be read for that.
    nodes_read: u64,
}

/// Marks everything that the roots reach, at its preferred location, and sums up what is used of the packs. Fails on what
/// no index segment lists.
async fn mark(
    repository: &Repository,
    index: &Arc<IndexSet>,
    roots: Vec<ChunkId>,
    gone: PackSet,
    stored: HashMap<PackId, u64>,
) -> Result<Marked, Error> {
    let nodes = Nodes::new(repository);
    let (repository, index) = (repository.clone(), Arc::clone(index));
    let task = tokio::task::spawn_blocking(move || {
        let (mut marks, mut missing) = (Marks::new(&index), BTreeSet::new());
        let mut remembered = Remembered::load(&repository);
        let mut marking =
            Marking { marks: &mut marks, gone: &gone, stored: &stored, missing: &mut missing, lost: None };
        remembered.visit(&nodes, &index, &roots, &mut marking)?;
        if let Some(id) = marking.lost {
            return Err(unlisted(id));
        }
        let nodes_read = remembered.nodes_read;
        if nodes_read > 0 {
            remembered.save();
        }
        let uses = pack_uses(&index, &marks, &stored)?;
        Ok(Marked { marks, uses, missing, nodes_read })
    });
    task.await.map_err(|e| Error::Task(e.to_string()))?
}
