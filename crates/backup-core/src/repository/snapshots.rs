//! Snapshots: commits that publish one, with what their manifests say.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keepwell_catalog::{Commit, CommitKind, ContentName, Manifest, Retired, names, open_record, snapshot_id};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{MemberId, Signed, SnapshotId, StoreId};
use keepwell_storage::{Key, ObjectInfo};

use super::seen::Reading;
use super::{End, Repository, read_ends};
use crate::Error;
use crate::env::Timestamp;
use crate::parallel;
use crate::planted::planted;

/// Largest manifest that is decoded.
const MANIFEST_MAX: usize = 64 << 20;
/// So many times a snapshot may have been copied on and still be put in its place.
const ORIGINS_MAX: usize = 16;
/// So many times a listing begins again because what counts has changed meanwhile.
const LOOKS_MAX: usize = 5;

/// A committed snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// SHA-256 of its manifest.
    pub id: SnapshotId,
    /// The commit that published it in this store.
    pub commit: Commit,
    /// What it says about itself, or why that cannot be read.
    pub state: SnapshotState,
    /// When the store received the commit, by its own clock; `None` where it does not tell.
    pub stored: Option<Timestamp>,
    pub(crate) first: FirstCommit,
}

/// The commit by which a capture first became a snapshot, before copies and rewritings published it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstCommit {
    pub store: StoreId,
    pub writer: MemberId,
    pub n: u64,
    /// By the clock of whoever signed it.
    pub time: Timestamp,
}

/// What a look at the store shows.
struct Listing {
    snapshots: Vec<Snapshot>,
    retired: BTreeSet<(MemberId, u64)>,
    /// Commits that do not verify, with the reason.
    undecided: Vec<(String, String)>,
    /// Those of revoked writers.
    refused: Vec<(String, String)>,
}

impl Listing {
    /// Whether everything could be read.
    fn is_whole(&self) -> bool {
        let is_damaged = |snapshot: &Snapshot| matches!(snapshot.state, SnapshotState::Damaged(_));
        self.undecided.is_empty() && !self.snapshots.iter().any(is_damaged)
    }
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

    /// Whether its commit took the place of another one: by copying, rewriting or repairing.
    pub(crate) fn is_republished(&self) -> bool {
        (self.first.store, self.first.writer, self.first.n)
            != (self.commit.store, self.commit.writer, self.commit.n)
    }

    /// Writer and number of the commit by which the capture first became a snapshot; copies and rewritten snapshots keep
    /// it, those under other keys have their own. A writer's numbers only grow: whoever remembers one can tell that a store
    /// which shows no such number was set back.
    pub fn first_place(&self) -> (MemberId, u64) {
        (self.first.writer, self.first.n)
    }

    /// Writer and number of its commit.
    pub(crate) fn place(&self) -> (MemberId, u64) {
        (self.commit.writer, self.commit.n)
    }
}

/// Manifests as the store lists them.
type Manifests = BTreeMap<Key, ObjectInfo>;

/// When so many are to be fetched, they are listed first.
const LISTED_FROM: usize = 8;

impl Repository {
    /// Every snapshot that is committed and not retired, in the order in which they were first committed.
    ///
    /// Those of one writer stand in the order of their numbers, whatever its clock said; those of several by the times
    /// that the store tells, or else by those of the commits. Copies and rewritten snapshots stand where the first did.
    ///
    /// A damaged manifest does not hide its snapshot. Commits that do not verify, and those of revoked writers, are reported
    /// to the monitor and left out. Costs two listings, and two requests per snapshot where the cache does not hold its
    /// records; of many of these a listing more, of a few a request each. Where something cannot be read, trust chain and
    /// retirements are looked at again: what was forgotten meanwhile, or committed by a writer that was revoked, is not
    /// damaged.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        self.unless_cancelled(self.list_snapshots()).await
    }

    async fn list_snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        let mut looks = 1;
        let listing = loop {
            let (head, _) = self.chain().head();
            let listing = self.look_at_snapshots().await?;
            // Where that cannot be told, what was found is what there is to say.
            if listing.is_whole()
                || looks == LOOKS_MAX
                || !self.counts_otherwise(head, &listing.retired).await.unwrap_or(false)
            {
                break listing;
            }
            looks += 1;
        };
        for (name, reason) in listing.undecided.iter().chain(&listing.refused) {
            self.monitor().problem(name, reason);
        }
        Ok(in_order(listing.snapshots))
    }

    async fn look_at_snapshots(&self) -> Result<Listing, Error> {
        let (ends, undecided) = read_ends(self).await?;
        let refused = ends
            .iter()
            .filter_map(|end| Some((names::commit_key(end.writer, end.n).to_string(), end.refused.clone()?)));
        let refused = refused.collect();
        let retired = self.retired_as_far_as_readable().await?;
        let is_snapshot = |end: &End| {
            end.commit.kind == CommitKind::Snapshot
                || planted("lists-checkpoints") && end.commit.kind == CommitKind::Checkpoint
        };
        let is_live = |end: &End| is_snapshot(end) && !retired.contains(&(end.writer, end.n));
        let live: Vec<End> = ends.into_iter().filter(is_live).collect();
        let manifests: BTreeSet<String> = live
            .iter()
            .filter_map(|end| end.commit.manifest.map(|name| names::manifest_key(&name).to_string()))
            .collect();
        self.keep_records("manifests", |name| manifests.contains(name));
        let snapshots = self.load_snapshots(live).await?.into_iter().flatten().collect();
        Ok(Listing { snapshots, retired, undecided, refused })
    }

    /// The snapshots that these ends publish, in their order, several at a time; `None` for an end that publishes none.
    pub(crate) async fn load_snapshots(&self, ends: Vec<End>) -> Result<Vec<Option<Snapshot>>, Error> {
        let listed = Arc::new(self.list_manifests(&ends).await?);
        let loads = ends.into_iter().map(|end| {
            let (repository, listed) = (self.clone(), Arc::clone(&listed));
            async move { repository.load(end, &listed).await }
        });
        parallel::all(loads).await
    }

    pub(crate) async fn load_snapshot(&self, end: End) -> Result<Option<Snapshot>, Error> {
        self.load(end, &Manifests::new()).await
    }

    /// What the store lists of manifests, where many are not in the cache: then a listing costs less than a look at each.
    async fn list_manifests(&self, ends: &[End]) -> Result<Manifests, Error> {
        let is_away = |name: &ContentName| !self.records().holds(&names::manifest_key(name));
        let away = ends.iter().filter_map(|end| end.commit.manifest).filter(is_away);
        if !self.can_read() || away.take(LISTED_FROM).count() < LISTED_FROM {
            return Ok(Manifests::new());
        }
        let listed = self.list("manifests/").await?;
        Ok(listed.into_iter().map(|info| (info.key.clone(), info)).collect())
    }

    async fn load(&self, end: End, listed: &Manifests) -> Result<Option<Snapshot>, Error> {
        let (Some(name), Some(id)) = (end.commit.manifest, end.commit.snapshot) else { return Ok(None) };
        let state = if self.can_read() {
            let key = names::manifest_key(&name);
            match self.read_manifest(&key, listed.get(&key), &id).await {
                Ok(manifest) => SnapshotState::Readable(Box::new(manifest)),
                Err(Error::Storage(error)) if !error.is_not_found() => return Err(Error::Storage(error)),
                Err(error) => SnapshotState::Damaged(crate::error::one_line(&error)),
            }
        } else {
            SnapshotState::Sealed
        };
        let first = self.first_commit(&end.commit);
        Ok(Some(Snapshot { id, commit: end.commit, state, stored: end.stored, first }))
    }

    /// Follows a commit to the one that it says it republishes, if it is by somebody who may read what that published,
    /// and both are by members.
    pub(crate) fn first_commit(&self, commit: &Commit) -> FirstCommit {
        let chain = self.chain_lock().read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let may_read = |member: &MemberId| {
            chain.member(member).is_some_and(|m| m.roles.intersects(Roles::READER | Roles::KEEPER))
        };
        let origin = |commit: &Commit| {
            let envelope = commit.origin.as_deref().filter(|_| may_read(&commit.writer))?;
            let signed = Signed::from_bytes(envelope).ok()?;
            chain.verify_author(&signed, Commit::KIND, Roles::WRITER | Roles::KEEPER).ok()?;
            Commit::decode(&signed.payload).ok().filter(|origin| origin.kind == CommitKind::Snapshot)
        };
        let mut first = commit.clone();
        for _ in 0..ORIGINS_MAX {
            match origin(&first) {
                Some(origin) => first = origin,
                None => break,
            }
        }
        FirstCommit { store: first.store, writer: first.writer, n: first.n, time: first.time }
    }

    async fn read_manifest(
        &self,
        key: &Key,
        listed: Option<&ObjectInfo>,
        id: &SnapshotId,
    ) -> Result<Manifest, Error> {
        let identities = &self.domain().identities;
        let prove = |sealed: &[u8]| {
            let cbor = open_record(identities, sealed, MANIFEST_MAX).map_err(|e| Error::damaged(key, e))?;
            if snapshot_id(&cbor) != *id {
                return Err(Error::damaged(key, "it is not the manifest that the commit names"));
            }
            Manifest::decode(&cbor).map_err(|e| Error::damaged(key, e))
        };
        let manifest = match listed {
            Some(info) => self.records().get_listed(info, prove).await?,
            None => self.records().get(key, prove).await?,
        };
        if manifest.repository != self.id() {
            return Err(Error::damaged(key, "it belongs to another repository"));
        }
        Ok(manifest)
    }

    /// The same for listing and restoring: a damaged record is reported and passed over, so that it hides nothing. At
    /// worst a forgotten snapshot shows again. What deletes must use [`Repository::retired`].
    pub(crate) async fn retired_as_far_as_readable(&self) -> Result<BTreeSet<(MemberId, u64)>, Error> {
        let mut retired = BTreeSet::new();
        for (key, read) in self.read_retirements(Reading::of(self, "retired")).await? {
            match read {
                Ok(record) => retired.extend(record.snapshots.iter().map(|s| (s.writer, s.seq))),
                Err(Error::Storage(error)) if !error.is_not_found() => return Err(Error::Storage(error)),
                Err(error) => self.monitor().problem(key.as_str(), &crate::error::one_line(&error)),
            }
        }
        Ok(retired)
    }

    /// Commits that `retired/` names.
    pub(crate) async fn retired(&self) -> Result<BTreeSet<(MemberId, u64)>, Error> {
        let mut retired = BTreeSet::new();
        for record in self.retirements().await?.into_values() {
            retired.extend(record.snapshots.iter().map(|s| (s.writer, s.seq)));
        }
        Ok(retired)
    }

    /// Every retirement record by number, as the store holds it now.
    pub(crate) async fn retirements(&self) -> Result<BTreeMap<u64, Retired>, Error> {
        let mut records = BTreeMap::new();
        for (_, record) in self.read_retirements(Reading::anew(self, "retired")).await? {
            let record = record?;
            records.insert(record.n, record);
        }
        Ok(records)
    }

    async fn read_retirements(&self, reading: Reading) -> Result<Vec<(Key, Result<Retired, Error>)>, Error> {
        let listed = self.list("retired/").await?;
        let reading = Arc::new(reading);
        let reads = listed.into_iter().map(|info| {
            let (repository, reading) = (self.clone(), Arc::clone(&reading));
            async move {
                let prove = |bytes: &[u8]| repository.prove_retirement(&info.key, bytes);
                let read = reading.read(&repository, &info, prove).await;
                Ok((info.key, read))
            }
        });
        let read = parallel::all(reads).await?;
        reading.end(self);
        Ok(read)
    }

    fn prove_retirement(&self, key: &Key, bytes: &[u8]) -> Result<Retired, Error> {
        let payload = self.open_authored(key, bytes, Retired::KIND, Roles::KEEPER)?;
        let record = Retired::decode(&payload).map_err(|e| Error::damaged(key, e))?;
        if record.store != self.store_id() || names::retired_key(record.n) != *key {
            return Err(Error::damaged(key, "it belongs elsewhere"));
        }
        Ok(record)
    }

    /// The payload of a stored record signed by somebody who has, or had, a role.
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

/// Puts snapshots in the order of their first commits. No clock of a writer changes the order of what it wrote.
pub(crate) fn in_order<S: Borrow<Snapshot>>(mut snapshots: Vec<S>) -> Vec<S> {
    let line = |s: &Snapshot| (s.first.store, s.first.writer);
    snapshots.sort_by_key(|s| (line(s.borrow()), s.borrow().first.n, s.borrow().place()));
    let mut not_before: Option<((StoreId, MemberId), Timestamp)> = None;
    let mut placed = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        let it = snapshot.borrow();
        let told = if it.is_republished() { None } else { it.stored };
        let time = told.unwrap_or(it.first.time);
        let time = match not_before {
            Some((of, earlier)) if of == line(it) => time.max(earlier),
            _ => time,
        };
        not_before = Some((line(it), time));
        placed.push((time, snapshot));
    }
    placed.sort_by_key(|(time, _)| *time); // stable: within a line the order stays
    placed.into_iter().map(|(_, snapshot)| snapshot).collect()
}
