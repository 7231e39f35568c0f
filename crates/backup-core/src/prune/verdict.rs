//! The verdict: what of a plan is needed after all, decided once and for everybody, and the deletes that follow.

use std::collections::BTreeSet;

use keepwell_catalog::names::PlanName;
use keepwell_catalog::{Kept, Location, PackSet, names};
use keepwell_crypto::{ChunkId, MemberId};
use keepwell_storage::Key;
use tokio::task::JoinSet;

use super::scan::{decided, live_ends, needed_state, roots_of, unlisted};
use crate::Error;
use crate::mark::{Marks, Visitor};
use crate::planted::planted;
use crate::read::Nodes;
use crate::remembered::{Reached, Remembered};
use crate::repository::{Repository, read_ends_anew, read_plans_anew, read_verdict};

/// Deletes at once.
const DELETES_MAX: usize = 16;

/// Rescans and creates the verdict on a plan. Gives the names it keeps; if somebody else decided first, theirs.
///
/// The order of reading is commits, index, other plans: see docs/pruning.md. What is deleted afterwards is never deleted
/// on the word of a cache alone: a listing must show that the store still holds what is cached of ends, plans and verdicts;
/// a manifest is named by its hash.
pub(super) async fn decide(
    repository: &Repository,
    plan: PlanName,
    condemned: &BTreeSet<String>,
    retired: &BTreeSet<(MemberId, u64)>,
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
    let mut kept = needed_packs(repository, roots, ours, others_doomed).await?;
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
    seen: Marks,
    kept: BTreeSet<String>,
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
        let safe = |l: &&Location| !self.ours.contains(&l.pack.name) && !self.others.contains(&l.pack.name);
        if locations.iter().find(safe).is_none() {
            for location in locations.iter().filter(|l| self.ours.contains(&l.pack.name)) {
                self.kept.insert(names::pack_key(location.class, &location.pack.name).to_string());
            }
        }
        true
    }

    fn broken(&mut self, error: Error) -> Result<(), Error> {
        Err(error)
    }
}

async fn needed_packs(
    repository: &Repository,
    roots: Vec<ChunkId>,
    ours: PackSet,
    others: PackSet,
) -> Result<BTreeSet<String>, Error> {
    let nodes = Nodes::new(repository);
    let (repository, index) = (repository.clone(), repository.index());
    let task = tokio::task::spawn_blocking(move || {
        let (mut remembered, mut reached) = (Remembered::load(&repository), Reached::default());
        let mut rescue = Rescue { ours, others, seen: Marks::new(&index), kept: BTreeSet::new(), lost: None };
        for root in roots {
            remembered.visit(&nodes, &index, &root, &mut reached, &mut rescue)?;
        }
        match rescue.lost {
            None => Ok(rescue.kept),
            Some(id) => Err(unlisted(id)),
        }
    });
    task.await.map_err(|e| Error::Task(e.to_string()))?
}

/// Deletes these objects, several at once. All are tried; the first failure is reported.
pub(crate) async fn delete_all(repository: &Repository, keys: &[String]) -> Result<u64, Error> {
    let mut running: JoinSet<Result<(), Error>> = JoinSet::new();
    let (mut deleted, mut failed) = (0, None);
    for key in keys {
        if running.len() >= DELETES_MAX
            && let Some(ended) = running.join_next().await
        {
            count(ended, &mut deleted, &mut failed);
        }
        let Ok(key) = key.parse::<Key>() else { continue };
        let repository = repository.clone();
        running.spawn(async move { Ok(repository.store().delete(&key).await?) });
    }
    while let Some(ended) = running.join_next().await {
        count(ended, &mut deleted, &mut failed);
    }
    failed.map_or(Ok(deleted), Err)
}

fn count(
    ended: Result<Result<(), Error>, tokio::task::JoinError>,
    deleted: &mut u64,
    failed: &mut Option<Error>,
) {
    match ended {
        Ok(Ok(())) => *deleted += 1,
        Ok(Err(error)) => {
            failed.get_or_insert(error);
        }
        Err(error) => {
            failed.get_or_insert(Error::Task(error.to_string()));
        }
    }
}
