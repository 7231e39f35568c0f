//! Forgetting snapshots: a signed record, nothing more. What they alone needed goes with the next prune.

use std::collections::BTreeSet;
use std::time::Duration;

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{Retired, RetiredSnapshot, names};
use keepwell_crypto::MemberId;

use super::locks;
use super::scan::{decided, stale_checkpoints};
use super::sessions::settle_sessions;
use crate::Error;
use crate::repository::{Repository, Snapshot, read_ends};

/// A file that is there from before something is forgotten until a prune has ended well.
const PRUNE_DUE: &str = "prune-due";

impl Repository {
    /// Retires snapshots for a reason each. They are no longer listed; nothing is deleted. Needs the keeper role.
    pub async fn forget(&self, snapshots: &[(&Snapshot, String)]) -> Result<(), Error> {
        if !self.access().is_keeper() {
            return Err(self.access().cannot("forget snapshots"));
        }
        if snapshots.is_empty() {
            return Ok(());
        }
        let list = |(snapshot, reason): &(&Snapshot, String)| RetiredSnapshot {
            writer: snapshot.commit.writer,
            seq: snapshot.commit.n,
            reason: reason.clone(),
        };
        // Where it cannot be noted, the next forgetting brings a prune about.
        let _ = self.cache().store(PRUNE_DUE, b"");
        self.unless_cancelled(self.retire(snapshots.iter().map(list).collect())).await
    }

    /// Whether this host has forgotten snapshots of this store and not pruned it since, as far as the cache remembers.
    pub fn is_prune_due(&self) -> bool {
        self.cache().open(PRUNE_DUE).is_some()
    }

    /// Whether a prune is due for the locks that it makes longer.
    pub(crate) async fn are_locks_due(&self) -> Result<bool, Error> {
        locks::are_due(self).await
    }

    /// Retires checkpoints that no capture relies on any more. `false` if there are none.
    ///
    /// A capture claims its next session before a checkpoint ends the last, so one of its sessions is open until it is
    /// over. Hence the order: the ends first, then the sessions.
    pub(super) async fn retire_abandoned(&self, fence_after: Duration) -> Result<bool, Error> {
        settle_sessions(self, fence_after).await?;
        let ends = decided(read_ends(self).await?)?;
        let ended: BTreeSet<(MemberId, u64)> = ends.iter().map(|e| (e.writer, e.n)).collect();
        let mut at_work = BTreeSet::new();
        for info in self.list("sessions/").await? {
            match info.key.as_str().parse() {
                Ok(ObjectName::Session { writer, n, .. }) if !ended.contains(&(writer, n)) => {
                    at_work.insert(writer);
                }
                _ => {}
            }
        }
        let mut abandoned = stale_checkpoints(&ends, &self.retired().await?);
        abandoned.retain(|(writer, _)| !at_work.contains(writer));
        if abandoned.is_empty() {
            return Ok(false);
        }
        let reason = "a checkpoint of a capture that was interrupted";
        let list = |(writer, seq)| RetiredSnapshot { writer, seq, reason: reason.to_owned() };
        self.retire(abandoned.into_iter().map(list).collect()).await?;
        Ok(true)
    }

    pub(super) fn note_pruned(&self) {
        self.cache().remove(PRUNE_DUE);
    }

    pub(crate) async fn retire(&self, snapshots: Vec<RetiredSnapshot>) -> Result<(), Error> {
        let mut n = self.retirements().await?.keys().next_back().map_or(0, |n| n + 1);
        loop {
            let record = Retired {
                store: self.store_id(),
                n,
                time: self.now(),
                snapshots: snapshots.clone(),
                undone: Vec::new(),
            };
            let signed = self.sign(Retired::KIND, record.encode())?;
            if self.put_own(&names::retired_key(n), signed).await? {
                return Ok(());
            }
            n += 1;
        }
    }
}
