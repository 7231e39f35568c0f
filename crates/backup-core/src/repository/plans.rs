//! Prune plans as everybody must read them (docs/pruning.md).

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{Kept, PackSet, Plan};
use keepwell_crypto::trust::Roles;

use super::Repository;
use crate::Error;

/// How often a listing of `gc/` is begun anew because a plan was merged while it was read.
const ATTEMPTS: usize = 10;

/// All plans with their verdicts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans {
    pub plans: BTreeMap<u64, Plan>,
    /// Released names by plan; a plan without an entry is undecided.
    pub verdicts: BTreeMap<u64, BTreeSet<String>>,
}

impl Plans {
    /// Names that some plan condemns and that plan's verdict does not release.
    pub fn doomed(&self) -> impl Iterator<Item = &str> {
        self.doomed_except(u64::MAX)
    }

    /// The same without regard to one plan.
    pub fn doomed_except(&self, except: u64) -> impl Iterator<Item = &str> {
        self.plans.iter().filter(move |(n, _)| **n != except).flat_map(|(n, plan)| {
            let released = self.verdicts.get(n);
            plan.condemned
                .iter()
                .map(String::as_str)
                .filter(move |name| !released.is_some_and(|r| r.contains(*name)))
        })
    }

    /// Names dead by verdict: doomed by a plan that is decided.
    pub fn dead(&self) -> impl Iterator<Item = &str> {
        self.verdicts.iter().filter_map(|(n, released)| Some((self.plans.get(n)?, released))).flat_map(
            |(plan, released)| {
                plan.condemned.iter().map(String::as_str).filter(move |name| !released.contains(*name))
            },
        )
    }

    /// The packs that do not exist for a writer.
    pub fn doomed_packs(&self) -> PackSet {
        PackSet::from_keys(self.doomed())
    }

    /// The number for a new plan.
    pub fn next(&self) -> u64 {
        self.plans.keys().chain(self.verdicts.keys()).max().map_or(0, |n| n + 1)
    }
}

/// Reads every plan and verdict. Costs a listing and one request per plan and verdict.
pub(crate) async fn read_plans(repository: &Repository) -> Result<Plans, Error> {
    let mut error = None;
    for _ in 0..ATTEMPTS {
        match try_read(repository).await {
            Err(Error::Storage(e)) if e.is_not_found() => error = Some(Error::Storage(e)),
            other => return other,
        }
    }
    Err(error.unwrap_or(Error::Cancelled))
}

async fn try_read(repository: &Repository) -> Result<Plans, Error> {
    let mut plans = Plans::default();
    for info in repository.list("gc/").await? {
        let Ok(name) = info.key.as_str().parse::<ObjectName>() else { continue };
        match name {
            ObjectName::Plan(n) => {
                let payload = repository.read_authored(&info.key, Plan::KIND, Roles::KEEPER).await?;
                let plan = Plan::decode(&payload)?;
                if plan.store != repository.store_id() || plan.n != n {
                    return Err(Error::damaged(&info.key, "it belongs elsewhere"));
                }
                plans.plans.insert(n, plan);
            }
            ObjectName::Kept(n) => {
                let payload = repository.read_authored(&info.key, Kept::KIND, Roles::KEEPER).await?;
                let kept = Kept::decode(&payload)?;
                if kept.store != repository.store_id() || kept.n != n {
                    return Err(Error::damaged(&info.key, "it belongs elsewhere"));
                }
                plans.verdicts.insert(n, kept.released.into_iter().collect());
            }
            _ => {}
        }
    }
    Ok(plans)
}
