//! Snapshots: commits that publish one, with what their manifests say.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::{Commit, CommitKind, Manifest, Retired, names, open_record, snapshot_id};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{MemberId, Signed, SnapshotId};
use keepwell_storage::Key;

use super::{End, Repository, read_ends};
use crate::Error;

/// Largest manifest that is decoded.
const MANIFEST_MAX: usize = 64 << 20;

/// A committed snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// SHA-256 of its manifest.
    pub id: SnapshotId,
    /// The commit that published it in this store.
    pub commit: Commit,
    /// What it says about itself, or why that cannot be read.
    pub state: SnapshotState,
}

/// Whether the manifest of a snapshot could be read.
#[derive(Debug, Clone)]
pub enum SnapshotState {
    /// It could.
    Readable(Box<Manifest>),
    /// The credential cannot decrypt: a writer's.
    Sealed,
    /// It is damaged or missing, with the reason.
    Damaged(String),
}

impl Snapshot {
    /// The manifest, or why there is none.
    pub fn manifest(&self) -> Result<&Manifest, Error> {
        match &self.state {
            SnapshotState::Readable(manifest) => Ok(manifest),
            SnapshotState::Sealed => {
                Err(Error::NotAllowed { action: "decrypt what it backs up", role: "writer".to_owned() })
            }
            SnapshotState::Damaged(reason) => {
                Err(Error::damaged(format_args!("manifest of {}", self.short()), reason))
            }
        }
    }

    /// The first eight hex digits of the id, as people type it.
    pub fn short(&self) -> String {
        self.id.to_string()[..8].to_owned()
    }

    /// Writer and number of its commit.
    pub(crate) fn place(&self) -> (MemberId, u64) {
        (self.commit.writer, self.commit.n)
    }
}

impl Repository {
    /// Every snapshot that is committed and not retired, oldest commit first.
    ///
    /// A damaged manifest does not hide its snapshot. Commits that do not verify are reported to the monitor and left
    /// out. Costs a listing and two requests per snapshot.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        let (ends, undecided) = read_ends(self).await?;
        for (name, reason) in &undecided {
            self.monitor().problem(name, reason);
        }
        let retired = self.retired_as_far_as_readable().await?;
        let mut snapshots = Vec::new();
        for end in ends {
            if end.commit.kind == CommitKind::Snapshot && !retired.contains(&(end.writer, end.n)) {
                snapshots.extend(self.load_snapshot(end).await?);
            }
        }
        snapshots.sort_by_key(|s| (s.commit.time, s.commit.writer, s.commit.n));
        Ok(snapshots)
    }

    pub(crate) async fn load_snapshot(&self, end: End) -> Result<Option<Snapshot>, Error> {
        let (Some(name), Some(id)) = (end.commit.manifest, end.commit.snapshot) else { return Ok(None) };
        let state = if self.can_read() {
            match self.read_manifest(&names::manifest_key(&name), &id).await {
                Ok(manifest) => SnapshotState::Readable(Box::new(manifest)),
                Err(Error::Storage(error)) if !error.is_not_found() => return Err(Error::Storage(error)),
                Err(error) => SnapshotState::Damaged(crate::error::one_line(&error)),
            }
        } else {
            SnapshotState::Sealed
        };
        Ok(Some(Snapshot { id, commit: end.commit, state }))
    }

    async fn read_manifest(&self, key: &Key, id: &SnapshotId) -> Result<Manifest, Error> {
        let sealed = self.store().get(key).await?;
        let identities = &self.domain().identities;
        let cbor = open_record(identities, &sealed, MANIFEST_MAX).map_err(|e| Error::damaged(key, e))?;
        if snapshot_id(&cbor) != *id {
            return Err(Error::damaged(key, "it is not the manifest that the commit names"));
        }
        let manifest = Manifest::decode(&cbor).map_err(|e| Error::damaged(key, e))?;
        if manifest.repository != self.id() {
            return Err(Error::damaged(key, "it belongs to another repository"));
        }
        Ok(manifest)
    }

    /// The same for listing and restoring: a damaged record is reported and passed over, so that it hides nothing. At
    /// worst a forgotten snapshot shows again. What deletes must use [`Repository::retired`].
    pub(crate) async fn retired_as_far_as_readable(&self) -> Result<BTreeSet<(MemberId, u64)>, Error> {
        let mut retired = BTreeSet::new();
        for info in self.list("retired/").await? {
            match self.retirement(&info.key).await {
                Ok(record) => retired.extend(record.snapshots.iter().map(|s| (s.writer, s.seq))),
                Err(Error::Storage(error)) if !error.is_not_found() => return Err(Error::Storage(error)),
                Err(error) => self.monitor().problem(info.key.as_str(), &crate::error::one_line(&error)),
            }
        }
        Ok(retired)
    }

    async fn retirement(&self, key: &Key) -> Result<Retired, Error> {
        let payload = self.read_authored(key, Retired::KIND, Roles::KEEPER).await?;
        let record = Retired::decode(&payload).map_err(|e| Error::damaged(key, e))?;
        if record.store != self.store_id() || names::retired_key(record.n) != *key {
            return Err(Error::damaged(key, "it belongs elsewhere"));
        }
        Ok(record)
    }

    /// Commits that `retired/` names.
    pub(crate) async fn retired(&self) -> Result<BTreeSet<(MemberId, u64)>, Error> {
        let mut retired = BTreeSet::new();
        for record in self.retirements().await?.into_values() {
            retired.extend(record.snapshots.iter().map(|s| (s.writer, s.seq)));
        }
        Ok(retired)
    }

    /// Every retirement record by number.
    pub(crate) async fn retirements(&self) -> Result<BTreeMap<u64, Retired>, Error> {
        let mut records = BTreeMap::new();
        for info in self.list("retired/").await? {
            let record = self.retirement(&info.key).await?;
            records.insert(record.n, record);
        }
        Ok(records)
    }

    /// Reads a record signed by somebody who has, or had, a role; gives its payload.
    pub(crate) async fn read_authored(&self, key: &Key, kind: &str, role: Roles) -> Result<Vec<u8>, Error> {
        let bytes = self.store().get(key).await?;
        self.open_authored(key, &bytes, kind, role)
    }

    /// The same for stored bytes that are at hand.
    pub(crate) fn open_authored(
        &self,
        key: &Key,
        bytes: &[u8],
        kind: &str,
        role: Roles,
    ) -> Result<Vec<u8>, Error> {
        let signed = Signed::from_bytes(bytes).map_err(|e| Error::damaged(key, e))?;
        let chain = self.chain_lock().read().unwrap_or_else(std::sync::PoisonError::into_inner);
        chain.verify_author(&signed, kind, role).map_err(|e| Error::damaged(key, e))?;
        Ok(signed.payload)
    }
}
