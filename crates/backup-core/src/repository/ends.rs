//! Ends of sessions: commits, checkpoints, fences.

use std::collections::BTreeMap;

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{Commit, CommitKind};
use keepwell_crypto::trust::{Chain, Roles};
use keepwell_crypto::{Digest, MemberId, Signed, StoreId};

use super::Repository;
use crate::Error;

/// One verified end of a session.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub writer: MemberId,
    pub n: u64,
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
    /// It is a fence that a keeper signed.
    pub by_keeper: bool,
    pub commit: Commit,
    /// When the store received it, by its own clock, if a listing told.
    pub stored: Option<i64>,
}

/// What a new session says about those before it.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// The number after the writer's newest end.
    pub next: u64,
    /// The writer's ends that none of them names yet, with their hashes.
    pub previous: Vec<(u64, Digest)>,
    /// The newest end of every other writer.
    pub seen: Vec<(MemberId, u64)>,
}

/// Reads what a new session of `writer` has to name. Ends that are damaged are left out: a check reports them.
///
/// Costs a listing, and a request for each end since the writer's last commit.
pub(crate) async fn read_before(repository: &Repository, writer: MemberId) -> Result<Before, Error> {
    let (mut own, mut others) = (Vec::new(), BTreeMap::new());
    for info in repository.list("commits/").await? {
        match info.key.as_str().parse() {
            Ok(ObjectName::Commit(by, n)) if by == writer => own.push(n),
            Ok(ObjectName::Commit(by, n)) => _ = others.insert(by, n),
            _ => {}
        }
    }
    let mut before = Before { next: own.last().map_or(0, |n| n + 1), ..Before::default() };
    before.seen = others.into_iter().collect();
    let mut named = None; // ends up to this one are named by one that was read
    for n in own.into_iter().rev() {
        if named.is_some_and(|named| n <= named) {
            break;
        }
        match read_end(repository, writer, n).await {
            Ok(end) => {
                before.previous.push((n, end.digest));
                if named.is_none() && end.commit.kind != CommitKind::Fence {
                    named = end.commit.previous.iter().map(|(n, _)| *n).max();
                }
            }
            Err(Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    before.previous.sort_unstable();
    Ok(before)
}

/// Every end, in order of writer and number, and the names of those that do not verify, with the reason.
pub(crate) async fn read_ends(repository: &Repository) -> Result<(Vec<End>, Vec<(String, String)>), Error> {
    let (mut ends, mut undecided) = (Vec::new(), Vec::new());
    for info in repository.list("commits/").await? {
        let Ok(ObjectName::Commit(writer, n)) = info.key.as_str().parse() else {
            undecided.push((info.key.to_string(), "not the name of a commit".to_owned()));
            continue;
        };
        match read_end(repository, writer, n).await {
            Ok(end) => ends.push(End { stored: info.modified, ..end }),
            Err(Error::Storage(error)) if error.is_not_found() => {}
            Err(error @ Error::Storage(_)) => return Err(error),
            Err(error) => undecided.push((info.key.to_string(), crate::error::one_line(&error))),
        }
    }
    Ok((ends, undecided))
}

/// Numbers of a writer's ends, newest first.
pub(crate) async fn read_own_ends_back(repository: &Repository, writer: MemberId) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for info in repository.list(&format!("commits/{writer}/")).await? {
        if let Ok(ObjectName::Commit(_, n)) = info.key.as_str().parse() {
            numbers.push(n);
        }
    }
    numbers.reverse();
    Ok(numbers)
}

impl Repository {
    /// Reads and verifies one end.
    pub(crate) async fn read_end(&self, writer: MemberId, n: u64) -> Result<End, Error> {
        read_end(self, writer, n).await
    }
}

/// Reads and verifies one end: signed by the writer itself, or a fence by a keeper.
pub(crate) async fn read_end(repository: &Repository, writer: MemberId, n: u64) -> Result<End, Error> {
    let bytes = repository.store().get(&names::commit_key(writer, n)).await?;
    let chain = repository.chain_lock().read().unwrap_or_else(std::sync::PoisonError::into_inner);
    verify_end(&chain, Some(repository.store_id()), writer, n, &bytes)
}

/// Verifies the stored bytes of an end, with public information only. `store` is left open where it is not known.
pub(crate) fn verify_end(
    chain: &Chain,
    store: Option<StoreId>,
    writer: MemberId,
    n: u64,
    bytes: &[u8],
) -> Result<End, Error> {
    let key = names::commit_key(writer, n);
    let signed = Signed::from_bytes(bytes).map_err(|e| Error::damaged(&key, e))?;
    let commit = Commit::decode(&signed.payload).map_err(|e| Error::damaged(&key, e))?;
    if store.is_some_and(|store| store != commit.store) || commit.writer != writer || commit.n != n {
        return Err(Error::damaged(&key, "it belongs elsewhere"));
    }
    let may_write = Roles::WRITER | Roles::KEEPER;
    let verified = match (signed.signer == writer, commit.kind) {
        (true, CommitKind::Fence) => chain.verify_author(&signed, Commit::KIND, may_write),
        (true, _) => chain.verify_member(&signed, Commit::KIND, may_write, Some((writer, n))).map(|_| ()),
        (false, CommitKind::Fence) => chain.verify_author(&signed, Commit::KIND, Roles::KEEPER),
        (false, _) => return Err(Error::damaged(&key, "it is not signed by its writer")),
    };
    verified.map_err(|e| Error::damaged(&key, e))?;
    let by_keeper =
        commit.kind == CommitKind::Fence && chain.verify_author(&signed, Commit::KIND, Roles::KEEPER).is_ok();
    Ok(End { writer, n, digest: Digest::of(bytes), by_keeper, commit, stored: None })
}
