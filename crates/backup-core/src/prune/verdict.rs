//! The verdict: what of a plan is needed after all, decided once and for everybody, and the deletes that follow.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use keepwell_catalog::names::PlanName;
use keepwell_catalog::{IndexEntry, IndexSet, Kept, Location, PackClass, PackRef, PackSet, names};
use keepwell_crypto::{ChunkId, MemberId};
use keepwell_storage::{Key, StorageErrorKind};
use tokio::runtime::Handle;

use super::from_pack::{FromPack, by_place};
use super::scan::{decided, live_ends, needed_state, roots_of, unlisted};
use crate::Error;
use crate::mark::{Marks, Visitor, places_of};
use crate::parallel;
use crate::planted::planted;
use crate::read::{Nodes, fetch_pack};
use crate::remembered::Remembered;
use crate::repository::{Repository, read_ends_anew, read_plans_anew, read_verdict};

/// Rescans and creates the verdict on a plan. Gives the names it keeps; if somebody else decided first, theirs.
///
/// The order of reading is commits, index, other plans: see docs/pruning.md. What is deleted afterwards is never deleted
/// on the word of a cache alone: a listing must show that the store still holds what is cached of ends, plans and verdicts;
/// a manifest is named by its hash. Nor on that of the index: where something needed lies elsewhere too, that place is read,
/// unless one of the segments `written` by this run lists it, whose content was proved when it was moved.
pub(super) async fn decide(
    repository: &Repository,
    plan: PlanName,
    condemned: &BTreeSet<String>,
    retired: &BTreeSet<(MemberId, u64)>,
    written: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let ends = decided(read_ends_anew(repository).await?)?;
    repository.refresh_index().await?;
    let plans = read_plans_anew(repository).await?;
    if let Some(released) = plans.verdicts.get(&plan) {
        return Ok(released.clone());
    }
    let late = if planted("retirements-read-late") { repository.retired().await? } else { retired.clone() };
    let live = live_ends(&ends, &late);
    let roots = roots_of(repository, &live).await?;
    let mut others_doomed = PackSet::from_keys(plans.doomed_except(Some(plan)));
    if planted("rescan-ignores-others") {
        others_doomed = PackSet::default();
    }
    let ours = PackSet::from_keys(condemned.iter().map(String::as_str));
    let mut kept = needed_packs(repository, roots, ours, others_doomed, written).await?;
    if planted("no-rescan") {
        kept.clear();
    }
    for end in &live {
        let manifest = end.commit.manifest.map(|name| names::manifest_key(&name).to_string());
        kept.extend(manifest.filter(|key| condemned.contains(key)));
    }
    // Of a session that was still at work during the scan, the state looked like an orphan too.
    kept.extend(needed_state(&ends).into_iter().filter(|key| condemned.contains(key)));
    let record = Kept { store: repository.store_id(), name: plan, released: kept.iter().cloned().collect() };
    let signed = repository.sign(Kept::KIND, record.encode())?;
    if repository.put_own(&names::kept_key(plan), signed).await? || planted("verdict-not-binding") {
        return Ok(kept);
    }
    // The plan may have been merged since; its verdict stays.
    read_verdict(repository, plan).await
}

/// Keeps every location, in this plan, of a chunk that is safe nowhere else.
struct Rescue {
    ours: PackSet,
    others: PackSet,
    /// Numbers of the segments that this run wrote.
    written: HashSet<usize>,
    seen: Marks,
    kept: BTreeSet<String>,
    /// Places elsewhere for the sake of which something of this plan may go.
    relied_on: BTreeMap<(PackClass, PackRef), Vec<IndexEntry>>,
    lost: Option<ChunkId>,
}

impl Visitor for Rescue {
    fn reached(&mut self, id: &ChunkId, locations: &[Location]) -> bool {
        let Some(first) = locations.first() else {
            self.lost.get_or_insert(*id);
            return false;
        };
        if !self.seen.set(first) {
            return false;
        }
        if !locations.iter().any(|l| self.ours.contains(l.class, &l.pack.name)) {
            return true;
        }
        let mut safe = locations.iter().filter(|l| self.is_safe(l));
        let first_safe = safe.clone().next();
        if safe.any(|l| self.written.contains(&l.segment)) {
            return true;
        }
        match first_safe {
            Some(l) => self.relied_on.entry((l.class, l.pack)).or_default().push(l.entry),
            None => self.kept.extend(condemned_of(&self.ours, locations)),
        }
        true
    }

    fn broken(&mut self, error: Error) -> Result<(), Error> {
        Err(error)
    }
}

impl Rescue {
    fn is_safe(&self, location: &Location) -> bool {
        let (class, name) = (location.class, &location.pack.name);
        !self.ours.contains(class, name) && !self.others.contains(class, name)
    }

    /// Proves the places that were relied on. What is not there is looked for in the other safe places that the index
    /// knows, before the packs of the plan that hold it are kept.
    fn prove(&mut self, repository: &Repository, index: &IndexSet, handle: &Handle) -> Result<(), Error> {
        let mut tried: HashSet<(PackRef, ChunkId)> = HashSet::new();
        while let Some(((class, pack), entries)) = self.relied_on.pop_first() {
            repository.cancel().check()?;
            for entry in unproven(repository, class, &pack, entries, handle)? {
                tried.insert((pack, entry.id));
                let places = places_of(index, class, &entry.id)?;
                let is_open = |l: &&Location| self.is_safe(l) && !tried.contains(&(l.pack, entry.id));
                match places.iter().find(is_open) {
                    Some(l) => self.relied_on.entry((l.class, l.pack)).or_default().push(l.entry),
                    None => self.kept.extend(condemned_of(&self.ours, &places)),
                }
            }
        }
        Ok(())
    }
}

/// Keys of the packs of a plan among these places.
fn condemned_of(ours: &PackSet, locations: &[Location]) -> impl Iterator<Item = String> {
    let condemned = locations.iter().filter(move |l| ours.contains(l.class, &l.pack.name));
    condemned.map(|l| names::pack_key(l.class, &l.pack.name).to_string())
}

async fn needed_packs(
    repository: &Repository,
    roots: Vec<ChunkId>,
    ours: PackSet,
    others: PackSet,
    written: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let nodes = Nodes::new(repository);
    let (repository, index, handle) = (repository.clone(), repository.index(), Handle::current());
    let is_written = |name: &str| written.contains(&format!("index/{}/{name}", repository.group()));
    let segments = index.segments();
    let written = (0..).zip(&segments).filter(|(_, (name, _))| is_written(name)).map(|(n, _)| n).collect();
    let task = tokio::task::spawn_blocking(move || {
        let mut remembered = Remembered::load(&repository);
        let (seen, kept, relied_on) = (Marks::new(&index), BTreeSet::new(), BTreeMap::new());
        let mut rescue = Rescue { ours, others, written, seen, kept, relied_on, lost: None };
        remembered.visit(&nodes, &index, &roots, &mut rescue)?;
        drop(remembered);
        if let Some(id) = rescue.lost {
            return Err(unlisted(id));
        }
        rescue.prove(&repository, &index, &handle)?;
        Ok(rescue.kept)
    });
    task.await.map_err(|e| Error::Task(e.to_string()))?
}

/// Of what the index says of a pack, what the pack does not hold, or what cannot be told: who signed that may have lied, and
/// the pack may have rotted. Reads the whole pack. Runs on an ordinary thread.
fn unproven(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    mut entries: Vec<IndexEntry>,
    handle: &Handle,
) -> Result<Vec<IndexEntry>, Error> {
    by_place(&mut entries);
    let read = handle.block_on(fetch_pack(repository, class, pack));
    let from = FromPack::new(repository, class, pack);
    match read.and_then(|mut read| from.not_borne_out(&mut read.frames, &entries)) {
        Ok(unproven) => Ok(unproven),
        Err(Error::Storage(error)) if !error.is_not_found() && error.kind != StorageErrorKind::Archived => {
            Err(Error::Storage(error))
        }
        Err(error) => {
            let problem =
                format!("{}; what it should hold as well stays elsewhere", crate::error::one_line(&error));
            repository.monitor().problem(names::pack_key(class, &pack.name).as_str(), &problem);
            Ok(entries)
        }
    }
}

/// Deletes these objects, several at once. All are tried; the first failure is reported.
pub(crate) async fn delete_all(repository: &Repository, keys: &[String]) -> Result<u64, Error> {
    let keys: Vec<Key> = keys.iter().filter_map(|key| key.parse().ok()).collect();
    let deletes = keys.into_iter().map(|key| {
        let repository = repository.clone();
        async move { Ok(repository.store().delete(&key).await.err().map(Box::new)) }
    });
    let failures = parallel::all(deletes).await?;
    let deleted = failures.iter().filter(|failure| failure.is_none()).count() as u64;
    failures.into_iter().flatten().next().map_or(Ok(deleted), |error| Err((*error).into()))
}
