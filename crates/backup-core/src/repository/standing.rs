//! Which commits count, and that this changes beneath whoever goes by it: snapshots are forgotten, writers are revoked.

use std::collections::BTreeSet;

use keepwell_crypto::MemberId;
use keepwell_crypto::trust::Chain;

use super::{Repository, Snapshot};
use crate::Error;

/// Who has a say, and what was forgotten, as read just now.
pub(crate) struct Standing {
    chain: Chain,
    retired: BTreeSet<(MemberId, u64)>,
}

impl Standing {
    /// Why a snapshot that was listed before counts no longer; `None` if it does, or nobody can tell.
    pub fn why_gone(&self, snapshot: &Snapshot) -> Option<String> {
        let (writer, n) = snapshot.place();
        if let Some(from) = self.chain.revoked_from(&writer).filter(|from| n >= *from) {
            return Some(format!("its writer {writer} was revoked from its number {from} on"));
        }
        self.retired.contains(&(writer, n)).then(|| "it was forgotten".to_owned())
    }
}

impl Repository {
    /// Whether the trust chain has grown beyond this record: a writer may have been revoked, or have joined.
    pub(crate) async fn trust_has_grown(&self, head: u64) -> Result<bool, Error> {
        Ok(self.refresh_trust().await?.head().0 != head)
    }

    /// Whether other commits may count than did by the trust chain up to this record and by these retirements.
    pub(super) async fn counts_otherwise(
        &self,
        head: u64,
        retired: &BTreeSet<(MemberId, u64)>,
    ) -> Result<bool, Error> {
        Ok(self.trust_has_grown(head).await? || self.retired_as_far_as_readable().await? != *retired)
    }

    /// What is to be said of a failure with a snapshot that was listed before. What only it needs may be gone, and is not
    /// damaged, where it counts no longer.
    pub(crate) async fn explained(&self, snapshot: &Snapshot, failure: Error) -> Error {
        let may_be = match &failure {
            _ if self.is_silent() => false, // nor would it answer this
            Error::ChunkLost { .. } | Error::Damaged { .. } => true,
            Error::Storage(error) => error.is_not_found(),
            _ => false,
        };
        let why = if may_be { self.why_gone(snapshot).await } else { None };
        why.map_or(failure, |why| {
            Error::NoSuchSnapshot(format!("snapshot {} is there no longer: {why}", snapshot.short()))
        })
    }

    /// As [`Standing::why_gone`], for one snapshot.
    pub(crate) async fn why_gone(&self, snapshot: &Snapshot) -> Option<String> {
        self.standing().await?.why_gone(snapshot)
    }

    /// Reads the trust chain and the retirements anew; of what cannot be read nothing is known.
    pub(crate) async fn standing(&self) -> Option<Standing> {
        let chain = self.refresh_trust().await.ok()?;
        Some(Standing { chain, retired: self.retired_as_far_as_readable().await.unwrap_or_default() })
    }
}
