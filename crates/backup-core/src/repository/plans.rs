//! Prune plans as everybody must read them (docs/pruning.md).

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::{self, ObjectName, PlanName};
use keepwell_catalog::{Kept, PackSet, Plan};
use keepwell_crypto::trust::Roles;
use keepwell_storage::{Key, ObjectInfo};

use super::seen::Reading;
use super::{Repository, fetch_bounded, fetch_listed};
use crate::Error;

/// How often a listing of `gc/` is begun anew because a plan was merged while it was read.
const ATTEMPTS: usize = 10;

/// All plans with their verdicts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans {
    pub plans: BTreeMap<PlanName, Plan>,
    /// Released names by plan; a plan without an entry is undecided.
    pub verdicts: BTreeMap<PlanName, BTreeSet<String>>,
    /// The number for a new plan: above every plan and every verdict, also verdicts of plans that were merged.
    pub next: u64,
}

impl Plans {
    /// Names that some plan condemns and that plan's verdict does not release.
    pub fn doomed(&self) -> impl Iterator<Item = &str> {
        self.doomed_except(None)
    }

    /// The same without regard to one plan.
    pub fn doomed_except(&self, except: Option<PlanName>) -> impl Iterator<Item = &str> {
        let others = self.plans.keys().filter(move |name| Some(**name) != except);
        others.flat_map(|name| self.left_of(name))
    }

    /// Names dead by verdict: doomed by a plan that is decided.
    pub fn dead(&self) -> impl Iterator<Item = &str> {
        self.verdicts.keys().flat_map(|name| self.left_of(name))
    }

    /// What one plan condemns and its verdict does not release.
    pub fn left_of(&self, name: &PlanName) -> impl Iterator<Item = &str> {
        let released = self.verdicts.get(name);
        let condemned = self.plans.get(name).into_iter().flat_map(|plan| &plan.condemned);
        condemned.map(String::as_str).filter(move |name| !released.is_some_and(|r| r.contains(*name)))
    }

    /// The packs that do not exist for a writer.
    pub fn doomed_packs(&self) -> PackSet {
        PackSet::from_keys(self.doomed())
    }
}

/// Reads every plan, and the verdicts of plans that exist. Costs a listing and one request per plan and verdict that the
/// local cache lacks.
pub(crate) async fn read_plans(repository: &Repository) -> Result<Plans, Error> {
    read_with(repository, Reading::of).await
}

/// The same for what deletes: where the store tells no times, everything is read from it.
pub(crate) async fn read_plans_anew(repository: &Repository) -> Result<Plans, Error> {
    read_with(repository, Reading::anew).await
}

async fn read_with(repository: &Repository, read: fn(&Repository, &str) -> Reading) -> Result<Plans, Error> {
    let mut error = None;
    for _ in 0..ATTEMPTS {
        match try_read(repository, &read(repository, "gc")).await {
            Err(Error::Storage(e)) if e.is_not_found() => error = Some(Error::Storage(e)),
            other => return other,
        }
    }
    Err(error.unwrap_or(Error::Cancelled))
}

async fn try_read(repository: &Repository, reading: &Reading) -> Result<Plans, Error> {
    let mut plans = Plans::default();
    let (mut listed, mut decided) = (BTreeMap::new(), BTreeMap::new());
    for info in repository.list("gc/").await? {
        match info.key.as_str().parse() {
            Ok(ObjectName::Plan(name)) => _ = listed.insert(name, info),
            Ok(ObjectName::Kept(name)) => _ = decided.insert(name, info),
            _ => {}
        }
    }
    plans.next = listed.keys().chain(decided.keys()).map(PlanName::n).max().map_or(0, |n| n + 1);
    for (name, info) in &listed {
        let plan =
            read(repository, reading, info, *name, |bytes| prove_plan(repository, *name, bytes)).await?;
        if !plan.merged.is_empty() {
            plans.verdicts.insert(*name, BTreeSet::new());
        } else if let Some(info) = decided.get(name) {
            let prove = |bytes: &[u8]| prove_verdict(repository, *name, bytes);
            plans.verdicts.insert(*name, read(repository, reading, info, *name, prove).await?);
        }
        plans.plans.insert(*name, plan);
    }
    reading.end(repository);
    repository.keep_records("gc", |key| {
        let file = key.rsplit('/').next().unwrap_or_default();
        let plan = file.strip_suffix(".kept").unwrap_or(file).parse::<PlanName>();
        plan.is_ok_and(|plan| listed.contains_key(&plan)) // others were merged
    });
    Ok(plans)
}

/// Through the cache; but for names without a suffix: they come from a version that could not promise that they are
/// used once.
async fn read<T>(
    repository: &Repository,
    reading: &Reading,
    info: &ObjectInfo,
    name: PlanName,
    prove: impl Fn(&[u8]) -> Result<T, Error>,
) -> Result<T, Error> {
    match name.suffix() {
        Some(_) => reading.read(repository, info, prove).await,
        None => prove(&fetch_listed(repository.store(), info).await?),
    }
}

fn prove_plan(repository: &Repository, name: PlanName, bytes: &[u8]) -> Result<Plan, Error> {
    let key = names::plan_key(name);
    let payload = repository.open_authored(&key, bytes, Plan::KIND, Roles::KEEPER)?;
    let plan = Plan::decode(&payload).map_err(|e| Error::damaged(&key, e))?;
    in_place(&key, plan.store == repository.store_id() && plan.name == name)?;
    match plan.condemned.iter().find(|name| !may_be_condemned(name)) {
        None => Ok(plan),
        Some(other) => Err(Error::damaged(&key, format_args!("it condemns `{other}`, which no plan may"))),
    }
}

/// Whether a plan may name this object. Whoever signed the plan, and whatever became of its key: trust, keys and the history
/// never go by one.
pub(crate) fn may_be_condemned(name: &str) -> bool {
    use ObjectName::{Index, Manifest, Pack, State};
    matches!(name.parse(), Ok(Pack(..) | Manifest(..) | State(..) | Index(..)))
}

/// The names that the verdict on a plan releases, as the store says now; the plan itself need not exist any more.
pub(crate) async fn read_verdict(repository: &Repository, name: PlanName) -> Result<BTreeSet<String>, Error> {
    let bytes = fetch_bounded(repository.store(), &names::kept_key(name)).await?;
    prove_verdict(repository, name, &bytes)
}

fn prove_verdict(repository: &Repository, name: PlanName, bytes: &[u8]) -> Result<BTreeSet<String>, Error> {
    let key = names::kept_key(name);
    let payload = repository.open_authored(&key, bytes, Kept::KIND, Roles::KEEPER)?;
    let kept = Kept::decode(&payload).map_err(|e| Error::damaged(&key, e))?;
    in_place(&key, kept.store == repository.store_id() && kept.name == name)?;
    Ok(kept.released.into_iter().collect())
}

fn in_place(key: &Key, is_in_place: bool) -> Result<(), Error> {
    if is_in_place { Ok(()) } else { Err(Error::damaged(key, "it belongs elsewhere")) }
}
