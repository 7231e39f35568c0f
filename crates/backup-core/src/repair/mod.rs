//! Repair: making good what is damaged, from what is left here and from another copy.
//!
//! Nothing is rewritten in place. What is lost is stored again under fresh names, the damaged object is condemned by an
//! ordinary plan, and a snapshot whose manifest was lost is published anew. Only signed public records (trust, keys,
//! commits) are put back under their own names, when the very bytes are at hand and verify.

mod index;
mod packs;
mod records;

use crate::Error;
use crate::check::{CheckOptions, CheckReport, ReadData};
use crate::repository::Repository;

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What was wrong before.
    pub before: CheckReport,
    /// Records (trust chain, keyrings, commits) put back from the copy.
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
    /// Reads as much content as `read` says to find damage. Needs a keeper that can read. What cannot be made good
    /// stays listed in [`RepairReport::after`], and nothing that is sound is given up for it.
    pub async fn repair(&self, from: Option<&Repository>, read: ReadData) -> Result<RepairReport, Error> {
        if !self.access().is_keeper() || !self.can_read() {
            return Err(self.access().cannot("repair"));
        }
        if let Some(copy) = from {
            if copy.id() != self.id() || copy.store_id() == self.store_id() {
                return Err(Error::Invalid("repair needs another copy of the same repository".into()));
            }
            copy.refresh_index().await?;
        }
        let mut report =
            RepairReport { before: self.check(CheckOptions { read }).await?, ..RepairReport::default() };
        if report.before.is_sound() {
            report.after = report.before.clone();
            return Ok(report);
        }
        if let Some(copy) = from {
            report.records_restored = records::put_back(self, copy, &report.before).await?;
        }
        report.ends_fenced = records::end_again(self, &report.before).await?;
        report.packs_indexed = index::list_again(self, &report.before).await?;
        if let Some(copy) = from {
            report.snapshots_restored = records::publish_again(self, copy).await?;
        }
        let (packs, chunks) = packs::replace(self, from, &report.before).await?;
        (report.packs_replaced, report.chunks_restored) = (packs, chunks);
        report.after = self.check(CheckOptions { read }).await?;
        Ok(report)
    }
}
