//! Pruning: removing what no snapshot needs, while others write. The steps and the reason for each are in
//! docs/pruning.md; the comments here give its numbers.

#[cfg(test)]
mod damage_tests;
mod forget;
mod from_pack;
#[cfg(test)]
mod hostile_tests;
mod locks;
mod merge;
mod merge_plans;
mod pack_use;
mod proof;
mod repack;
mod scan;
mod sessions;
#[cfg(test)]
mod set_back_tests;
#[cfg(test)]
mod tests;
mod undo;
mod usage;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use keepwell_catalog::names::PlanName;
use keepwell_catalog::{Plan, names};
use keepwell_crypto::MemberId;

use crate::Error;
use crate::planted::planted;
use crate::repository::{Repository, free_number, may_be_condemned, read_plans};

pub(crate) use from_pack::{FromPack, Left, by_place};
pub(crate) use locks::Young;
pub(crate) use merge::delete_segments;
pub(crate) use proof::demand_exclusive_create;
#[cfg(test)]
pub(crate) use scan::stale_checkpoints;
pub(crate) use scan::{decided, live_ends, needed_state};
pub(crate) use sessions::{open_sessions, settle_sessions, sweep};
pub use undo::Forgotten;
pub use usage::{ClassUsage, Growth, Usage};
pub(crate) use verdict::delete_all;

use scan::Scan;

/// How often a prune begins again because another one overtook it.
const RESTARTS_MAX: usize = 5;

/// How to prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// How much of the stored bytes may stay unused, as a share (0.05 = 5 %): what is below is not worth repacking.
    pub max_unused: f64,
    /// At most this many bytes of packs are repacked in one run.
    pub max_repack_bytes: u64,
    /// A session without a sign of life for this long, on our own clock, is fenced.
    pub fence_after: Duration,
    /// The caller vouches that nobody else works on the repository, nor is suspended in the middle. Without it, a store
    /// that cannot create exclusively is not pruned.
    pub exclusive: bool,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            dry_run: false,
            max_unused: 0.05,
            max_repack_bytes: u64::MAX,
            fence_after: 5 * crate::write::BEAT_EVERY,
            exclusive: false,
        }
    }
}

/// What a prune did, or would do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PruneReport {
    /// Packs before: those that the index lists and that are there.
    pub packs: u64,
    /// Their stored bytes.
    pub pack_bytes: u64,
    /// Stored bytes of frames that no root reaches, before.
    pub unused_bytes: u64,
    /// Tree nodes that were read to find that out: those that the last prune on this host did not come across.
    pub nodes_read: u64,
    /// Of these, packs that hold nothing that is needed.
    pub packs_unused: u64,
    /// Packs of which the rest was moved to new packs.
    pub packs_repacked: u64,
    /// Stored bytes of the new packs.
    pub repacked_bytes: u64,
    /// Objects deleted, packs and small ones, as far as they were there before.
    pub objects_deleted: u64,
    /// Stored bytes of deleted packs.
    pub bytes_freed: u64,
    /// Objects that were to be deleted and are needed after all.
    pub kept: u64,
    /// Sessions ended because they showed no sign of life.
    pub fenced: u64,
    /// Index segments merged into fewer.
    pub segments_merged: u64,
    /// Finished plans of earlier prunes merged into one.
    pub plans_merged: u64,
    /// Claims and beats of ended sessions that were removed.
    pub records_swept: u64,
    /// Packs that would go, and that the store keeps from being deleted: they stay until their locks have ended.
    pub packs_locked: u64,
    /// Their stored bytes.
    pub locked_bytes: u64,
    /// Packs that are mostly unused, and lie in an archive, where they cannot be read to be moved.
    pub packs_archived: u64,
    /// Objects that are needed and whose locks were made longer.
    pub locks_extended: u64,
}

/// A prune that was planned and not yet carried out.
pub struct PrunePlan {
    scan: Scan,
    options: PruneOptions,
}

impl PrunePlan {
    /// What would be done.
    pub fn report(&self) -> &PruneReport {
        &self.scan.report
    }
}

impl fmt::Debug for PrunePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrunePlan").field("report", self.report()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Removes packs and small objects that no snapshot needs, and rewrites packs that are mostly unused.
    ///
    /// Safe beside any number of writers, readers and other prunes; needs the keeper role and the data keys. A crash at
    /// any moment loses nothing and the next prune goes on. Fails on damage that hides what is needed, before anything
    /// is deleted, and on a store that does not create exclusively, unless [`PruneOptions::exclusive`] is set. A
    /// prune that finds nothing to do still ends dead sessions, without waiting for those that are alive.
    pub async fn prune(&self, options: PruneOptions) -> Result<PruneReport, Error> {
        let plan = self.plan_prune(options).await?;
        if plan.options.dry_run {
            return Ok(plan.report().clone());
        }
        self.carry_out(plan).await
    }

    /// Finds out what a prune would do, and does nothing. Needs and costs what the first part of [`Repository::prune`] does.
    pub async fn plan_prune(&self, options: PruneOptions) -> Result<PrunePlan, Error> {
        self.unless_cancelled(self.plan(options)).await
    }

    /// Does what was planned, however long ago: what has come to be needed since then stays.
    pub async fn carry_out(&self, plan: PrunePlan) -> Result<PruneReport, Error> {
        let report = self.unless_cancelled(self.execute(plan)).await?;
        self.note_pruned();
        Ok(report)
    }

    async fn plan(&self, options: PruneOptions) -> Result<PrunePlan, Error> {
        if !self.access().is_keeper() || !self.can_read() {
            return Err(self.access().cannot("prune"));
        }
        self.monitor().phase("prune");
        for _ in 0..RESTARTS_MAX {
            let (head, _) = self.chain().head();
            let retired = self.retired().await?; // step 1
            match Scan::run(self, retired.clone(), &options).await {
                Err(error) if self.was_overtaken(&error, head, &retired).await? => {}
                scan => return self.plan_for(scan?, options).await, // step 2
            }
        }
        let scan = Scan::run(self, self.retired().await?, &options).await?;
        self.plan_for(scan, options).await
    }

    async fn plan_for(&self, mut scan: Scan, options: PruneOptions) -> Result<PrunePlan, Error> {
        locks::respect(self, &mut scan).await?;
        Ok(PrunePlan { scan, options })
    }

    /// Whether another keeper retired a snapshot meanwhile and removed its manifest, or its packs and their entries; or an
    /// owner revoked a writer, and a keeper that knew did so to what that had committed. Then the work begins again, knowing
    /// it. `head`: the newest record of the trust chain that the work went by.
    async fn was_overtaken(
        &self,
        error: &Error,
        head: u64,
        retired: &BTreeSet<(MemberId, u64)>,
    ) -> Result<bool, Error> {
        let may_be = matches!(error, Error::Damaged { .. } | Error::ChunkLost { .. });
        Ok(may_be && (self.trust_has_grown(head).await? || self.retired().await? != *retired))
    }

    async fn execute(&self, mut plan: PrunePlan) -> Result<PruneReport, Error> {
        if !plan.options.exclusive {
            demand_exclusive_create(self).await?;
        }
        for _ in 0..RESTARTS_MAX {
            let retired = plan.scan.retired.clone();
            match self.execute_once(&plan.scan, &plan.options).await {
                Err(error) if self.was_overtaken(&error, plan.scan.head, &retired).await? => {
                    plan = self.plan(plan.options).await?;
                }
                ended => return ended,
            }
        }
        self.execute_once(&plan.scan, &plan.options).await
    }

    async fn execute_once(&self, scan: &Scan, options: &PruneOptions) -> Result<PruneReport, Error> {
        if scan.stale_checkpoints && self.retire_abandoned(options.fence_after).await? {
            let plan = self.plan(options.clone()).await?; // with what these needed free as well
            return Box::pin(self.execute(plan)).await;
        }
        let mut report = scan.report.clone();
        if scan.is_idle() {
            report.locks_extended = locks::extend(self, scan, &BTreeSet::new()).await?;
            report.fenced = sessions::end_dead_sessions(self, options.fence_after).await?;
            report.records_swept = sessions::sweep(self).await?;
            return Ok(report);
        }
        let moved = repack::repack(self, scan).await; // step 3
        // What could not be moved is needed where it is, also when nothing more comes of this run.
        let packs = moved.as_ref().map(|moved| moved.packs.clone()).unwrap_or_default();
        report.locks_extended = locks::extend(self, scan, &packs).await?;
        let moved = moved?;
        report.repacked_bytes = moved.bytes;
        report.packs_repacked = moved.packs.len() as u64;
        let condemned = scan.condemned(&moved.packs);
        if !condemned.is_empty() {
            if planted("sessions-before-plan") {
                sessions::settle_sessions(self, options.fence_after).await?;
            }
            let name = self.write_plan(condemned.clone(), Vec::new()).await?; // step 4
            let condemned = condemned.into_iter().collect();
            self.decide_and_delete(name, condemned, scan, options, &moved.segments, &mut report).await?;
        }
        for (name, plan) in scan.unfinished.clone() {
            self.decide_and_delete(name, plan, scan, options, &moved.segments, &mut report).await?;
        }
        if report.kept > 0 {
            locks::look_again(self);
        }
        report.segments_merged = merge::merge_segments(self, scan.young).await?;
        report.plans_merged = merge_plans::merge_plans(self, scan.young).await?;
        report.records_swept = sessions::sweep(self).await?;
        Ok(report)
    }

    /// Condemns these objects by a plan, and removes what of them nobody needs. For what is damaged. `false` where other
    /// damage hides what is needed: nothing is removed, and the plan stays undecided.
    pub(crate) async fn condemn(&self, names: Vec<String>, fence_after: Duration) -> Result<bool, Error> {
        let condemned = async {
            let retired = self.retired().await?;
            let left = self.undecided_plans().await?.into_iter();
            let same = left.map(|(name, plan)| (name, plan.condemned)).find(|(_, there)| {
                let there: BTreeSet<&String> = there.iter().collect();
                names.iter().all(|name| there.contains(name))
            });
            let (plan, condemned) = match same {
                Some(left) => left, // an earlier repair came so far and no further
                None => (self.write_plan(names.clone(), Vec::new()).await?, names),
            };
            self.finish(plan, condemned, &retired, fence_after).await
        };
        is_decided(condemned.await)
    }

    /// Decides plans that somebody left without a verdict, and does what they say. `false` where damage hides what is
    /// needed: they stay.
    pub(crate) async fn finish_plans(&self, fence_after: Duration) -> Result<bool, Error> {
        let finished = async {
            let retired = self.retired().await?;
            for (name, plan) in self.undecided_plans().await? {
                self.finish(name, plan.condemned, &retired, fence_after).await?;
            }
            Ok(())
        };
        is_decided(finished.await)
    }

    async fn undecided_plans(&self) -> Result<BTreeMap<PlanName, Plan>, Error> {
        let mut plans = read_plans(self).await?;
        plans.plans.retain(|name, _| !plans.verdicts.contains_key(name));
        Ok(plans.plans)
    }

    async fn finish(
        &self,
        plan: PlanName,
        condemned: Vec<String>,
        retired: &BTreeSet<(MemberId, u64)>,
        fence_after: Duration,
    ) -> Result<(), Error> {
        sessions::settle_sessions(self, fence_after).await?;
        let condemned = condemned.into_iter().collect();
        let kept = verdict::decide(self, plan, &condemned, retired, &BTreeSet::new()).await?;
        let doomed: Vec<String> = condemned.difference(&kept).cloned().collect();
        verdict::delete_all(self, &doomed).await.map(|_| ())
    }

    /// Creates the next plan, which replaces the plans `merged`, if any.
    pub(crate) async fn write_plan(
        &self,
        condemned: Vec<String>,
        merged: Vec<PlanName>,
    ) -> Result<PlanName, Error> {
        if let Some(other) = condemned.iter().find(|name| !may_be_condemned(name)) {
            return Err(Error::Invalid(format!("no plan may condemn `{other}`")));
        }
        let (store, time) = (self.store_id(), self.now());
        let next = free_number("gc", read_plans(self).await?.next)?;
        let name = PlanName::new(next, self.random_suffix());
        let plan = Plan { store, name, time, condemned, merged };
        let signed = self.sign(Plan::KIND, plan.encode())?;
        if self.put_own(&names::plan_key(name), signed).await? {
            return Ok(name);
        }
        Err(Error::damaged(names::plan_key(name), "a name that was just drawn at random is taken"))
    }

    /// Steps 5 to 8 for one plan, our own or one that a keeper left without a verdict. `written`: keys of the index segments
    /// that this run has written.
    async fn decide_and_delete(
        &self,
        plan: PlanName,
        condemned: BTreeSet<String>,
        scan: &Scan,
        options: &PruneOptions,
        written: &BTreeSet<String>,
        report: &mut PruneReport,
    ) -> Result<(), Error> {
        if planted("delete-before-verdict") {
            verdict::delete_all(self, &condemned.iter().cloned().collect::<Vec<_>>()).await?;
        }
        if planted("verdict-before-fence") {
            verdict::decide(self, plan, &condemned, &scan.retired, written).await?;
        }
        if !planted("sessions-before-plan") {
            report.fenced += sessions::settle_sessions(self, options.fence_after).await?; // step 5
        }
        let mut kept = verdict::decide(self, plan, &condemned, &scan.retired, written).await?; // steps 6 and 7
        if planted("release-nothing") {
            kept.clear();
        }
        report.kept += kept.len() as u64;
        // What is kept for a time stays, of a plan that somebody else made; whoever comes later removes it.
        let doomed = condemned.difference(&kept).filter(|name| !scan.is_young(name));
        let doomed: Vec<String> = doomed.cloned().collect();
        report.bytes_freed += doomed.iter().filter_map(|name| scan.size_of(name)).sum::<u64>();
        report.objects_deleted += doomed.iter().filter(|name| scan.size_of(name).is_some()).count() as u64;
        verdict::delete_all(self, &doomed).await?; // step 8
        if planted("withdraw-plan") {
            verdict::delete_all(self, &[names::plan_key(plan).to_string()]).await?;
        }
        Ok(())
    }
}

/// `false` if what is wrong still hides what is needed: nobody can decide anything before that is clear.
fn is_decided(ended: Result<(), Error>) -> Result<bool, Error> {
    match ended {
        Ok(()) => Ok(true),
        Err(Error::Damaged { .. } | Error::ChunkLost { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
