//! Forgetting snapshots: a signed record, nothing more. What they alone needed goes with the next prune.

use keepwell_catalog::{Retired, RetiredSnapshot, names};

use crate::Error;
use crate::repository::{Repository, Snapshot};

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
        let snapshots: Vec<_> = snapshots.iter().map(list).collect();
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
