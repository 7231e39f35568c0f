//! Copies with the same keys: a second store of the same repository, with its own sessions, retention and plans.

use std::sync::Arc;

use keepwell_catalog::{CommitKind, PackSet, names};
use keepwell_storage::{ObjectStore, list_all};
use tokio::runtime::Handle;

use crate::Error;
use crate::backup::begin_uploads;
use crate::mark::Marks;
use crate::read::Nodes;
use crate::repository::{Repository, RepositoryHint, Snapshot, read_plans};
use crate::transfer::{manifest_bytes, missing, transfer};
use crate::write::{Ending, Session, Uploads};
use keepwell_crypto::SnapshotId;

/// What a copy to another store of the same repository did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreCopyReport {
    /// Snapshots that are now there.
    pub copied: Vec<SnapshotId>,
    /// Snapshots that were there already.
    pub skipped: Vec<SnapshotId>,
    /// Chunks in the packs that were stored.
    pub chunks: u64,
    /// Stored bytes of those packs.
    pub bytes: u64,
}

impl Repository {
    /// Makes an empty store a further copy of this repository: the same trust chain and keyrings, a store id of its
    /// own. Keys of erasable domains are taken along; an erase has to reach them there too.
    pub async fn create_copy(&self, store: &dyn ObjectStore) -> Result<(), Error> {
        if RepositoryHint::read(store).await.is_ok() {
            return Err(Error::RepositoryExists { place: store.describe() });
        }
        for prefix in ["keys/", "trust/"] {
            for info in list_all(self.store(), prefix).await? {
                let bytes = self.store().get(&info.key).await?;
                store.put_new(&info.key, bytes).await?;
            }
        }
        let hint = RepositoryHint::new(self.id(), keepwell_crypto::StoreId::generate(), self.now(), None);
        store.put_new(&RepositoryHint::key(), hint.to_bytes().into()).await?;
        Ok(())
    }

    /// Copies snapshots into another store of the same repository: only what is missing there, packs as they are where
    /// most of one is needed. Each becomes visible there when all of it is durable; an interrupted copy goes on.
    pub async fn copy_to_store(
        &self,
        target: &Repository,
        snapshots: &[Snapshot],
    ) -> Result<StoreCopyReport, Error> {
        if self.id() != target.id() {
            return Err(Error::Invalid("the target has other keys: it is another repository".into()));
        }
        if self.store_id() == target.store_id() {
            return Err(Error::Invalid("origin and target are the same store".into()));
        }
        let mut report = StoreCopyReport::default();
        let copied = async {
            self.refresh_index().await?;
            let there = target.snapshots().await?;
            for snapshot in snapshots {
                if there.iter().any(|s| s.id == snapshot.id) {
                    report.skipped.push(snapshot.id);
                } else {
                    self.store_snapshot(target, snapshot, &mut report).await?;
                }
            }
            Ok(())
        };
        target.unless_cancelled(self.unless_cancelled(copied)).await?;
        Ok(report)
    }

    pub(crate) async fn store_snapshot(
        &self,
        target: &Repository,
        snapshot: &Snapshot,
        report: &mut StoreCopyReport,
    ) -> Result<(), Error> {
        let session = Session::claim(target).await?;
        let stored = async {
            let uploads = begin_uploads(target).await?;
            self.fill(&uploads, snapshot).await?;
            let manifest = manifest_bytes(self, snapshot).await?;
            let size = manifest.len() as u64;
            let (name, key) = target.put_content(names::manifest_key, manifest.to_vec()).await?;
            uploads.created(key.to_string(), size);
            let origin =
                self.store().get(&names::commit_key(snapshot.commit.writer, snapshot.commit.n)).await?;
            Ok::<_, Error>((uploads, name, origin))
        };
        let (uploads, name, origin) = match stored.await {
            Ok(stored) => stored,
            Err(error) => {
                session.abandon().await;
                return Err(error);
            }
        };
        let sums = uploads.stored();
        let ending = Ending {
            kind: CommitKind::Snapshot,
            manifest: Some((name, snapshot.id)),
            complete: snapshot.commit.complete,
            logical_bytes: snapshot.commit.logical_bytes,
            capture: snapshot.commit.capture,
            state: Vec::new(),
            dataset_tag: None,
            origin: Some(origin.to_vec()),
            supersedes: Vec::new(),
            created: uploads.take_created(),
        };
        session.end(ending).await?;
        report.copied.push(snapshot.id);
        report.chunks += sums.chunks;
        report.bytes += sums.pack_bytes;
        Ok(())
    }

    /// Stores in the target what the snapshot's tree needs and the target lacks.
    pub(crate) async fn fill(&self, uploads: &Uploads, snapshot: &Snapshot) -> Result<(), Error> {
        let root = snapshot.manifest()?.root;
        // A matter of where to look first; a reader relies on no plan.
        let dead = read_plans(self).await.map(|plans| PackSet::from_keys(plans.dead())).unwrap_or_default();
        let (origin, there) = (self.clone(), uploads.clone());
        let handle = Handle::current();
        let nodes = Nodes::new(self);
        let index: Arc<_> = self.index();
        let task = tokio::task::spawn_blocking(move || {
            let mut seen = Marks::new(&index);
            let wanted = missing(&nodes, &index, &mut seen, &root, there.known(), &dead)?;
            transfer(&origin, &there, wanted, &handle, &mut |_, _, error| Err(error))
        });
        task.await.map_err(|e| Error::Task(e.to_string()))??;
        uploads.flush().await
    }
}
