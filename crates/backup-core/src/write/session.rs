//! Sessions: a claim, beats while it works, and exactly one end.
//!
//! The rules, and the model that shows why each is needed, are in docs/pruning.md.

use std::time::Duration;

use bytes::Bytes;
use keepwell_catalog::{
    Commit, CommitKind, ContentName, List, ListedObject, Session as Record, SessionKind, names,
};
use keepwell_crypto::{Digest, MemberId, SnapshotId};

use crate::Error;
use crate::alive::{self, AliveFile};
use crate::planted::planted;
use crate::repository::{Before, OwnEnds, Repository, free_number, read_before};

/// A session says that it is alive this often; a keeper fences one that has been silent for several times as long.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(60);
/// So often a number is asked for of which the store says that it is taken, while nobody has it.
const DENIED_MAX: u32 = 3;

/// An open session of this process. Dropped without [`Session::end`], it stays open until a keeper fences it.
#[derive(Debug)]
pub(crate) struct Session {
    repository: Repository,
    writer: MemberId,
    n: u64,
    previous: Vec<(u64, Digest)>,
    seen: Vec<(MemberId, u64)>,
    own: OwnEnds,
    beats: tokio::task::JoinHandle<()>,
    /// Held while the process lives, so that a keeper on this host knows at once that it died.
    _alive: Option<AliveFile>,
}

/// How a session ends well.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub kind: CommitKind,
    pub manifest: Option<(ContentName, SnapshotId)>,
    pub complete: bool,
    pub logical_bytes: u64,
    pub capture: Option<i64>,
    pub state: Vec<ContentName>,
    pub dataset_tag: Option<[u8; 16]>,
    pub origin: Option<Vec<u8>>,
    pub supersedes: Vec<u64>,
    pub created: Vec<(String, u64)>,
}

impl Ending {
    /// The end of a session that publishes a snapshot again, here or in another store; `origin` is the commit that it is
    /// made from, as stored. What the session created is to be added.
    pub fn again(commit: &Commit, manifest: Option<(ContentName, SnapshotId)>, origin: Vec<u8>) -> Self {
        Self {
            kind: CommitKind::Snapshot,
            manifest,
            complete: commit.complete,
            logical_bytes: commit.logical_bytes,
            capture: commit.capture,
            origin: Some(origin),
            ..Self::index_only(Vec::new())
        }
    }

    /// The end of a session that only moved chunks or merged index segments.
    pub fn index_only(created: Vec<(String, u64)>) -> Self {
        Self {
            kind: CommitKind::IndexOnly,
            manifest: None,
            complete: true,
            logical_bytes: 0,
            capture: None,
            state: Vec::new(),
            dataset_tag: None,
            origin: None,
            supersedes: Vec::new(),
            created,
        }
    }
}

impl Session {
    /// Claims the next free number. Everything that the session relies on must be read after this returns.
    ///
    /// Refused for a credential whose commits nobody would believe: that may not write, or was revoked.
    pub async fn claim(repository: &Repository) -> Result<Self, Error> {
        let writer = repository.writer()?;
        let before = read_before(repository, writer).await?;
        let mut n = free_number("commits", before.next)?;
        let mut denied = 0;
        loop {
            match put_claim(repository, writer, n).await {
                Ok(true) => break,
                // An open session of this writer, at work or dead, has the number.
                Ok(false) => {}
                Err(Error::Storage(gone)) if gone.is_not_found() => {
                    // One had it, and a keeper ended it and swept its claim before we could see whose it was. If none has
                    // ended, nobody had it, whatever the store said: a number that is passed over looks like a lost commit.
                    if !repository.exists(&names::commit_key(writer, n)).await? {
                        denied += 1;
                        if denied < DENIED_MAX {
                            continue;
                        }
                        return Err(Error::Storage(gone));
                    }
                }
                Err(error) => return Err(error),
            }
            n = repository.next_session(writer, n).await?;
        }
        let alive = AliveFile::create(repository.cache(), writer, n);
        let Before { previous, seen, own, .. } = before;
        let beats = tokio::spawn(beat(repository.clone(), writer, n));
        Ok(Self { repository: repository.clone(), writer, n, previous, seen, own, beats, _alive: alive })
    }

    pub fn writer(&self) -> MemberId {
        self.writer
    }

    pub fn n(&self) -> u64 {
        self.n
    }

    /// The writer's newest end below a number, or of all that there were at the claim.
    pub async fn end_before(&mut self, below: Option<u64>) -> Result<Option<u64>, Error> {
        self.own.before(&self.repository, self.writer, below).await
    }

    /// Publishes the list and then the commit. [`Error::Fenced`] when the session has an end already: a keeper's, or that of
    /// another process with this credential whose claim of the number was swept before we made ours. After a failure
    /// before the commit nothing is published, and the session is ended.
    pub async fn end(self, ending: Ending) -> Result<Commit, Error> {
        let repository = &self.repository;
        let list = match self.put_list(ending.created).await {
            Ok(Some(list)) => list,
            Ok(None) => return Err(self.list_is_taken().await),
            Err(error) => return Err(self.fail(error).await),
        };
        let commit = Commit {
            store: repository.store_id(),
            writer: self.writer,
            n: self.n,
            kind: ending.kind,
            time: repository.now(),
            previous: self.previous.clone(),
            seen: self.seen.clone(),
            manifest: ending.manifest.as_ref().map(|(name, _)| *name),
            snapshot: ending.manifest.as_ref().map(|(_, id)| *id),
            list: Some(list),
            group: Some(repository.group()),
            complete: ending.complete,
            logical_bytes: ending.logical_bytes,
            capture: ending.capture,
            origin: ending.origin,
            state: ending.state,
            dataset_tag: ending.dataset_tag,
            supersedes: ending.supersedes,
        };
        let signed = repository.sign(Commit::KIND, commit.encode())?;
        let committed = repository.put_record(&names::commit_key(self.writer, self.n), signed).await?;
        alive::forget(repository.cache(), self.writer, self.n);
        if committed || planted("fenced-is-fine") { Ok(commit) } else { Err(self.was_fenced()) }
    }

    /// Ends the session without publishing anything. If that fails, a keeper will do it.
    pub async fn abandon(self) {
        let _ = fence(&self.repository, self.writer, self.n, self.previous.clone()).await;
    }

    /// The same for a failure, which it gives; or [`Error::Fenced`] where something was not found that the session had stored,
    /// because a keeper has ended the session and removed it.
    pub async fn fail(self, failure: Error) -> Error {
        let ended = fence(&self.repository, self.writer, self.n, self.previous.clone()).await;
        match (&failure, ended) {
            (Error::Storage(gone), Ok(false)) if gone.is_not_found() => self.was_fenced(),
            _ => failure,
        }
    }

    /// `None` if the session has another list already.
    async fn put_list(&self, created: Vec<(String, u64)>) -> Result<Option<Digest>, Error> {
        let mut objects: Vec<_> =
            created.into_iter().map(|(name, size)| ListedObject { name, size }).collect();
        objects.sort();
        let list = List { store: self.repository.store_id(), writer: self.writer, n: self.n, objects };
        let signed = self.repository.sign(List::KIND, list.encode())?;
        let digest = Digest::of(&signed);
        let stored = self.repository.put_own(&names::list_key(self.writer, self.n), signed).await?;
        Ok(stored.then_some(digest))
    }

    /// Two processes with one credential had the same number: the claim of the first was swept after its fence, and the
    /// second had chosen its number before. Then the session has an end.
    async fn list_is_taken(&self) -> Error {
        match fence(&self.repository, self.writer, self.n, self.previous.clone()).await {
            Ok(false) => self.was_fenced(),
            Ok(true) => {
                let key = names::list_key(self.writer, self.n);
                Error::damaged(key, "another list has the name of this session's list")
            }
            Err(error) => error,
        }
    }

    fn was_fenced(&self) -> Error {
        Error::Fenced { writer: self.writer.to_string(), seq: self.n }
    }
}

/// Ends a session with a fence, our own or (as a keeper) another's. `false` when it had an end already.
pub(crate) async fn fence(
    repository: &Repository,
    writer: MemberId,
    n: u64,
    previous: Vec<(u64, Digest)>,
) -> Result<bool, Error> {
    let fence = Commit { previous, ..Commit::fence(repository.store_id(), writer, n, repository.now()) };
    let signed = repository.sign(Commit::KIND, fence.encode())?;
    let fenced = repository.put_record(&names::commit_key(writer, n), signed).await?;
    alive::forget(repository.cache(), writer, n);
    Ok(fenced)
}

impl Drop for Session {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

/// Creates the claim of a number. `false` where another one stands there.
pub(crate) async fn put_claim(repository: &Repository, writer: MemberId, n: u64) -> Result<bool, Error> {
    let nonce = (!planted("claim-without-nonce")).then(|| repository.random());
    let signed = signed(repository, writer, n, 0, nonce)?;
    repository.put_own(&names::session_key(writer, n, 0), signed).await
}

fn signed(
    repository: &Repository,
    writer: MemberId,
    n: u64,
    k: u64,
    nonce: Option<[u8; 8]>,
) -> Result<Vec<u8>, Error> {
    let (store, time, kind) = (repository.store_id(), repository.now(), SessionKind::Writer);
    let record = Record { store, writer, n, k, time, kind, nonce };
    repository.sign(Record::KIND, record.encode())
}

async fn beat(repository: Repository, writer: MemberId, n: u64) {
    for k in 1.. {
        tokio::time::sleep(BEAT_EVERY).await;
        let Ok(signed) = signed(&repository, writer, n, k, None) else { return };
        // A beat that does not arrive costs nothing: the next one may, and a fence is noticed at the commit.
        let _ = repository.store().put_new(&names::session_key(writer, n, k), Bytes::from(signed)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use keepwell_storage::{Memory, ObjectStore, Operation};

    use super::*;
    use crate::testing::{Hook, Hooked, World};

    /// A keeper that ends sessions and sweeps their claims just before somebody looks at them.
    #[derive(Debug)]
    struct Sweeps;

    #[async_trait]
    impl Hook for Sweeps {
        async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
            if operation == Operation::Get && subject.starts_with("sessions/") {
                let end = format!("commits/{}", &subject["sessions/".len()..subject.rfind('/').unwrap()]);
                inner.put_new(&end.parse().unwrap(), "a fence".into()).await.unwrap();
                inner.delete(&subject.parse().unwrap()).await.unwrap();
            }
        }
    }

    /// A store that says so many times that a claim is there, and has none.
    #[derive(Debug)]
    struct Denies(AtomicU32);

    #[async_trait]
    impl Hook for Denies {
        async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
            if !subject.starts_with("sessions/") {
                return;
            }
            let key = subject.parse().unwrap();
            let denies = self.0.load(Ordering::SeqCst) > 0;
            match operation {
                Operation::Put if denies => inner.put_new(&key, "nobody's".into()).await.unwrap(),
                Operation::Get if denies => {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                    inner.delete(&key).await.unwrap();
                }
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn no_number_is_passed_over_because_a_store_says_that_it_is_taken() {
        for (times, claimed) in [(1, true), (DENIED_MAX, false)] {
            let world = World::new().await;
            let denies = Denies(AtomicU32::new(times));
            let store = Arc::new(Hooked::new(world.store.inner().clone(), denies));
            let there = Repository::builder(store).open(world.key.clone()).await.unwrap();
            let session = Session::claim(&there).await;
            assert_eq!(session.is_ok(), claimed, "{times} times");
            assert!(session.is_ok_and(|session| session.n() == 0) || !claimed);
        }
    }

    #[tokio::test]
    async fn a_claim_that_is_swept_before_it_is_looked_at_keeps_nobody_from_the_next_number() {
        let world = World::new().await;
        let first = Session::claim(&world.repository).await.unwrap();
        let store = Arc::new(Hooked::new(world.store.inner().clone(), Sweeps));
        let there = Repository::builder(store).open(world.key.clone()).await.unwrap();
        let second = Session::claim(&there).await.unwrap();
        assert_eq!([first.n(), second.n()], [0, 1]);
    }

    #[tokio::test]
    async fn what_a_keeper_removed_after_it_had_ended_the_session_is_a_fence() {
        let world = World::new().await;
        let key = "state/x".parse().unwrap();
        let gone = || Error::from(keepwell_storage::StorageError::not_found("get", &key));
        let alive = Session::claim(&world.repository).await.unwrap();
        assert!(matches!(alive.fail(gone()).await, Error::Storage(_)), "nobody else has ended it");
        let fenced = Session::claim(&world.repository).await.unwrap();
        assert!(fence(&world.repository, fenced.writer(), fenced.n(), Vec::new()).await.unwrap());
        assert!(matches!(fenced.fail(gone()).await, Error::Fenced { .. }));
        let broken = Session::claim(&world.repository).await.unwrap();
        assert!(fence(&world.repository, broken.writer(), broken.n(), Vec::new()).await.unwrap());
        assert!(matches!(broken.fail(Error::Cancelled).await, Error::Cancelled), "that is not why it failed");
    }

    /// Chosen before the first was fenced and swept, claimed afterwards.
    #[tokio::test]
    async fn of_two_processes_with_one_number_both_hear_that_it_was_fenced() {
        let world = World::new().await;
        let one = Session::claim(&world.repository).await.unwrap();
        let (writer, n) = (one.writer(), one.n());
        world.delete(names::session_key(writer, n, 0).as_str()).await;
        let two = Session::claim(&world.repository).await.unwrap();
        assert_eq!(two.n(), n);
        assert!(fence(&world.repository, writer, n, Vec::new()).await.unwrap());
        for (session, object) in [(one, "data/one"), (two, "data/two")] {
            let ended = session.end(Ending::index_only(vec![(object.to_owned(), 1)])).await;
            assert!(matches!(&ended, Err(Error::Fenced { seq, .. }) if *seq == n), "{object}: {ended:?}");
        }
        assert_eq!(world.names("lists/").await.len(), 1, "the second had another list");
    }
}
