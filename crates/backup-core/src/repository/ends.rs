//! Ends of sessions: commits, checkpoints, fences.

use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::{Commit, CommitKind};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{Digest, MemberId, Signed};

use super::Repository;
use crate::Error;

/// One verified end of a session.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub writer: MemberId,
    pub n: u64,
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
    pub commit: Commit,
}

/// The newest end of every writer. Costs a listing and one request per writer.
pub(crate) async fn newest_ends(repository: &Repository) -> Result<Vec<End>, Error> {
    let mut newest: Vec<(MemberId, u64)> = Vec::new();
    for info in repository.list("commits/").await? {
        if let Ok(ObjectName::Commit(writer, n)) = info.key.as_str().parse() {
            match newest.iter_mut().find(|(w, _)| *w == writer) {
                Some(entry) => entry.1 = entry.1.max(n),
                None => newest.push((writer, n)),
            }
        }
    }
    let mut ends = Vec::new();
    for (writer, n) in newest {
        ends.push(read_end(repository, writer, n).await?);
    }
    Ok(ends)
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
            Ok(end) => ends.push(end),
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
    let key = names::commit_key(writer, n);
    let bytes = repository.store().get(&key).await?;
    let signed = Signed::from_bytes(&bytes).map_err(|e| Error::damaged(&key, e))?;
    let commit = Commit::decode(&signed.payload).map_err(|e| Error::damaged(&key, e))?;
    if commit.store != repository.store_id() || commit.writer != writer || commit.n != n {
        return Err(Error::damaged(&key, "it belongs elsewhere"));
    }
    let chain = repository.chain_lock().read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let may_write = Roles::WRITER | Roles::KEEPER;
    let verified = match (signed.signer == writer, commit.kind) {
        (true, CommitKind::Fence) => chain.verify_author(&signed, Commit::KIND, may_write),
        (true, _) => chain.verify_member(&signed, Commit::KIND, may_write, Some((writer, n))).map(|_| ()),
        (false, CommitKind::Fence) => chain.verify_author(&signed, Commit::KIND, Roles::KEEPER),
        (false, _) => return Err(Error::damaged(&key, "it is not signed by its writer")),
    };
    verified.map_err(|e| Error::damaged(&key, e))?;
    drop(chain);
    Ok(End { writer, n, digest: Digest::of(&bytes), commit })
}
