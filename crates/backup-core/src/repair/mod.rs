//! Repair: making good what is damaged, from what is left here and from another copy.
//!
//! Nothing is rewritten in place. What is lost is stored again under fresh names, the damaged object is condemned by an
//! ordinary plan, and a snapshot whose manifest was lost is published anew. Only signed records and keyrings are put back
//! under their own names, when the very bytes are at hand and verify, and what stands there does not.
//!
//! A repair may end at any point: what it has made good stays, and the next one goes on.

mod hold;
mod index;
#[cfg(test)]
mod index_tests;
mod packs;
mod put;
mod records;
#[cfg(test)]
mod tests;
mod vital;

pub use vital::restore_vital;

use std::time::Duration;

use crate::Error;
use crate::check::{CheckReport, ReadData};
use crate::prune::{PruneOptions, sweep};
use crate::repository::Repository;

/// How to repair.
#[derive(Debug, Clone, Copy)]
pub struct RepairOptions {
    /// How much content is read to find damage.
    pub read: ReadData,
    /// A session without a sign of life for this long, on our own clock, is fenced, as in a prune.
    pub fence_after: Duration,
    /// Put a fence also in the place of an end that nobody can read and whose session left no list: nothing shows that it
    /// was no snapshot. What it alone needed goes with the next prune.
    pub fence_unlisted: bool,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self {
            read: ReadData::Nothing,
            fence_after: PruneOptions::default().fence_after,
            fence_unlisted: false,
        }
    }
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What was wrong before.
    pub before: CheckReport,
    /// Records and keyrings put back from the copy under their own names, and the hint made anew.
    pub records_restored: u64,
    /// Packs that no sound index segment listed and that are listed again.
    pub packs_indexed: u64,
    /// Damaged packs whose content was stored again, or was not needed, and that were removed.
    pub packs_replaced: u64,
    /// Chunks fetched from the copy or from sound places here.
    pub chunks_restored: u64,
    /// Ends of sessions that published nothing, and that nobody can read any more, replaced by fences.
    pub ends_fenced: u64,
    /// Snapshots published anew because their manifest was lost.
    pub snapshots_restored: u64,
    /// What is wrong still.
    pub after: CheckReport,
}

impl Repository {
    /// Finds damage and makes good what it can: from redundancy here, and from another store of the same repository.
    ///
    /// Needs a keeper that can read. What cannot be made good
    /// stays listed in [`RepairReport::after`], and nothing that is sound is given up for it. `from` is a copy made by
    /// [`Repository::copy_to_store`], which has snapshots, trust and keys; or a copy of this very store, byte for byte,
    /// made by other means, which also has what only this store signed: lists, retirements, plans, state.
    ///
    /// After a failure or crash at any moment nothing is lost that was there before, and the next repair completes. A
    /// store that cannot even be opened needs [`restore_vital`] first.
    pub async fn repair(
        &self,
        from: Option<&Repository>,
        options: RepairOptions,
    ) -> Result<RepairReport, Error> {
        let found = self.examine(options.read).await?;
        self.repair_found(found, from, options).await
    }

    /// The same for damage that [`Repository::examine`] has found before, a little while ago.
    pub async fn repair_found(
        &self,
        found: CheckReport,
        from: Option<&Repository>,
        options: RepairOptions,
    ) -> Result<RepairReport, Error> {
        if !self.access().is_keeper() || !self.can_read() {
            return Err(self.access().cannot("repair"));
        }
        if let Some(copy) = from {
            if copy.id() != self.id() {
                return Err(Error::Invalid("repair needs another copy of the same repository".into()));
            }
            copy.refresh_index().await?;
        }
        let report = RepairReport { before: found, ..RepairReport::default() };
        self.unless_cancelled(self.make_good(report, from, options)).await
    }

    async fn make_good(
        &self,
        mut report: RepairReport,
        from: Option<&Repository>,
        options: RepairOptions,
    ) -> Result<RepairReport, Error> {
        let fence_after = options.fence_after;
        self.forget_records(); // what counts here is what the store holds
        let mut vital = 0;
        if let Some(copy) = from {
            (report.records_restored, vital) = records::put_back(self, copy).await?;
        }
        self.forget_records(); // some are other ones now
        // What no key at hand opened, or nobody known had signed, may be sound by what was put back.
        let mut found = if vital > 0 { self.examine(options.read).await? } else { report.before.clone() };
        report.ends_fenced = records::end_again(self, &found, options.fence_unlisted).await?;
        let listed = index::list_again(self, &found).await?;
        report.packs_indexed = listed.packs;
        for pack in &listed.damaged {
            found.found(pack, "its bytes do not have the hash in its name");
        }
        let mut replaced = Vec::new();
        if let Some(copy) = from {
            (report.snapshots_restored, replaced) = records::publish_again(self, copy).await?;
        }
        hold::release(self).await?;
        if report.before.is_sound() && report.records_restored == 0 && report.snapshots_restored == 0 {
            report.after = report.before.clone();
            return Ok(report);
        }
        let (packs, chunks) = packs::replace(self, from, &found, fence_after).await?;
        (report.packs_replaced, report.chunks_restored) = (packs, chunks);
        if let Some(copy) = from {
            report.chunks_restored += packs::fill(self, copy, &found, listed.has_losses).await?;
        }
        records::clear_away(self, &found, replaced, fence_after).await?;
        self.finish_plans(fence_after).await?;
        sweep(self).await?; // claims that do not verify go with those of other sessions that have ended
        report.after = self.examine(options.read).await?;
        Ok(report)
    }
}
