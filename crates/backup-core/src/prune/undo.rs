//! Bringing forgotten snapshots back, as long as what they need is there.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::CommitKind;
use keepwell_crypto::MemberId;

use crate::Error;
use crate::copy::StoreCopyReport;
use crate::repository::{Repository, Snapshot, read_ends};

/// A snapshot that was forgotten, and has not come back.
#[derive(Debug, Clone)]
pub struct Forgotten {
    /// The snapshot, as its commit published it.
    pub snapshot: Snapshot,
    /// Why it was forgotten.
    pub reason: String,
    /// When, in nanoseconds since 1970.
    pub time: i64,
}

impl Repository {
    /// Snapshots that were forgotten, oldest commit first. After a prune their manifests are usually gone, and then
    /// [`Snapshot::manifest`] fails. Costs two requests per forgotten snapshot.
    pub async fn forgotten(&self) -> Result<Vec<Forgotten>, Error> {
        self.unless_cancelled(self.list_forgotten()).await
    }

    async fn list_forgotten(&self) -> Result<Vec<Forgotten>, Error> {
        let mut reasons: BTreeMap<(MemberId, u64), (i64, String)> = BTreeMap::new();
        for record in self.retirements().await?.into_values() {
            for gone in record.snapshots {
                reasons.entry((gone.writer, gone.seq)).or_insert((record.time, gone.reason));
            }
        }
        let (ends, _) = read_ends(self).await?;
        let is_snapshot = |kind| kind == CommitKind::Snapshot;
        let live: BTreeSet<_> = ends
            .iter()
            .filter(|e| is_snapshot(e.commit.kind) && !reasons.contains_key(&(e.writer, e.n)))
            .filter_map(|e| e.commit.snapshot)
            .collect();
        let mut found = Vec::new();
        for end in ends.into_iter().filter(|e| is_snapshot(e.commit.kind)) {
            let Some((time, reason)) = reasons.get(&(end.writer, end.n)) else { continue };
            if end.commit.snapshot.is_some_and(|id| live.contains(&id)) {
                continue;
            }
            if let Some(snapshot) = self.load_snapshot(end).await? {
                found.push(Forgotten { snapshot, reason: reason.clone(), time: *time });
            }
        }
        found.sort_by_key(|f| (f.snapshot.commit.time, f.snapshot.commit.writer, f.snapshot.commit.n));
        Ok(found)
    }

    /// Publishes a forgotten snapshot again, under its old id, by a commit of this keeper.
    ///
    /// What lies in packs that a prune has condemned is stored anew. Fails, and changes nothing, if a manifest, node or
    /// chunk is gone already.
    pub async fn undo_forget(&self, forgotten: &Forgotten) -> Result<StoreCopyReport, Error> {
        if !self.access().is_keeper() || !self.can_read() {
            return Err(self.access().cannot("bring snapshots back"));
        }
        let snapshot = &forgotten.snapshot;
        let mut report = StoreCopyReport::default();
        if self.snapshots().await?.iter().any(|s| s.id == snapshot.id) {
            report.skipped.push(snapshot.id);
            return Ok(report);
        }
        self.unless_cancelled(self.store_snapshot(self, snapshot, &mut report)).await?;
        Ok(report)
    }
}
