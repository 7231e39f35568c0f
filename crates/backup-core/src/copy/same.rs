//! Copies with the same keys: a second store of the same repository, with its own sessions, retention and plans.

use std::sync::Arc;

use keepwell_catalog::{IndexEntry, PackRef, PackSet, names};
use keepwell_storage::ObjectStore;
use tokio::runtime::Handle;

use super::trust::{give, refuse_other_trust};
use crate::Error;
use crate::backup::begin_uploads;
use crate::mark::Marks;
use crate::read::Nodes;
use crate::repository::{Repository, RepositoryHint, Snapshot, SnapshotState, read_plans};
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
    ///
    /// `keepwell.json` comes last. A crash leaves a store that nobody can open, and the next call goes on with it.
    /// [`Error::RepositoryExists`] where there is one already, [`Error::TrustApart`] where something of another is left,
    /// [`Error::Damaged`] where there is one that has lost its hint.
    pub async fn create_copy(&self, store: &dyn ObjectStore) -> Result<(), Error> {
        let exists = || Error::RepositoryExists { place: store.describe() };
        match RepositoryHint::read(store).await {
            Ok(_) => return Err(exists()),
            Err(Error::NoRepository { .. }) => {}
            // What one that has lost its hint has names the store by an id that went with it: with another one nothing of it
            // would be its own.
            Err(error) => return Err(error),
        }
        let chain = self.refresh_trust().await?;
        refuse_other_trust(&chain, store).await?;
        give(self, &chain, store, None).await?;
        let hint = RepositoryHint::new(self.id(), keepwell_crypto::StoreId::generate(), self.now(), None);
        match store.put_new(&RepositoryHint::key(), hint.to_bytes().into()).await {
            // The answer was lost, or somebody else made the same copy.
            Err(error) if error.is_already_exists() => {
                let found = RepositoryHint::read(store).await?;
                if found.repository == self.id().to_string() { Ok(()) } else { Err(exists()) }
            }
            stored => Ok(stored?),
        }
    }

    /// Copies snapshots into another store of the same repository: only what is missing there, packs as they are where
    /// most of one is needed. Each becomes visible there when all of it is durable; an interrupted copy goes on. One whose
    /// manifest is damaged there is stored again, beside what is left of it until a repair there clears that away.
    ///
    /// Before that the copy gets what it lacks of the trust chain, of keyrings and of keys of erasable domains, so that it
    /// opens with every credential that opens this store, and refuses whom this one refuses; `target` has the new keys from
    /// then on. [`Error::TrustApart`] or [`Error::TrustAhead`], and nothing copied, when its trust chain is not a part of the
    /// one here; [`Error::NotAllowed`] for a credential that cannot read here.
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
        if !self.can_read() {
            // It sees of no snapshot what it is of, and rules by which nothing is to go would seem to be fulfilled.
            return Err(self.access().cannot("copy snapshots"));
        }
        let copied = async {
            self.bring_trust(target).await?;
            self.store_snapshots(target, snapshots).await
        };
        target.unless_cancelled(self.unless_cancelled(copied)).await
    }

    /// The same without trust and keys, of which the target has as much.
    pub(crate) async fn store_snapshots(
        &self,
        target: &Repository,
        snapshots: &[Snapshot],
    ) -> Result<StoreCopyReport, Error> {
        let mut report = StoreCopyReport::default();
        self.refresh_index().await?;
        let there = target.snapshots().await?;
        for snapshot in snapshots {
            // One whose manifest is damaged there has its id too.
            let is_there =
                |s: &Snapshot| s.id == snapshot.id && !matches!(s.state, SnapshotState::Damaged(_));
            if there.iter().any(is_there) {
                report.skipped.push(snapshot.id);
            } else if let Err(failure) = self.store_snapshot(target, snapshot, &mut report).await {
                return Err(self.explained(snapshot, failure).await);
            }
        }
        Ok(report)
    }

    pub(crate) async fn store_snapshot(
        &self,
        target: &Repository,
        snapshot: &Snapshot,
        report: &mut StoreCopyReport,
    ) -> Result<(), Error> {
        let session = Session::claim(target).await?;
        let uploads = match begin_uploads(target).await {
            Ok(uploads) => uploads,
            Err(error) => return Err(session.fail(error).await),
        };
        let stored = async {
            self.fill(&uploads, snapshot, |_, _, error| Err(error)).await?;
            let manifest = manifest_bytes(self, snapshot).await?;
            let size = manifest.len() as u64;
            let (name, key) = target.put_content(names::manifest_key, manifest).await?;
            uploads.created(key.to_string(), size);
            Ok::<_, Error>((name, self.commit_bytes(snapshot).await?))
        };
        let (name, origin) = match stored.await {
            Ok(stored) => stored,
            Err(error) => {
                uploads.salvage().await;
                return Err(session.fail(error).await);
            }
        };
        let sums = uploads.stored();
        let ending = Ending {
            created: uploads.take_created(),
            ..Ending::again(&snapshot.commit, Some((name, snapshot.id)), origin)
        };
        session.end(ending).await?;
        report.copied.push(snapshot.id);
        report.chunks += sums.chunks;
        report.bytes += sums.pack_bytes;
        Ok(())
    }

    /// Stores in the target what the snapshot's tree needs and the target lacks. What no place here gives is handed to
    /// `unread`, which decides whether to go on.
    pub(crate) async fn fill(
        &self,
        uploads: &Uploads,
        snapshot: &Snapshot,
        mut unread: impl FnMut(&PackRef, &[IndexEntry], Error) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
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
            transfer(&origin, &there, wanted, &handle, &mut unread)
        });
        task.await.map_err(|e| Error::Task(e.to_string()))??;
        uploads.flush().await
    }
}
