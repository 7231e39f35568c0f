//! Keeping what a damaged commit names while the commit is deleted and put back.
//!
//! In between it is not there, and whoever crashes then leaves a store that says nothing of the snapshot; a prune would take
//! what it needs. So the same tree is committed first, as a checkpoint of our own with the old commit as its origin: a root
//! for every prune, and never listed. It is retired when the snapshot is there again.

use keepwell_catalog::{Commit, CommitKind, RetiredSnapshot, names};
use keepwell_crypto::Digest;

use crate::Error;
use crate::prune::live_ends;
use crate::repository::{Repository, read_ends};
use crate::write::{Ending, Session};

/// Protects what `commit`, of which these are the sound bytes, protects.
pub(super) async fn hold(repository: &Repository, commit: &Commit, bytes: &[u8]) -> Result<(), Error> {
    let Some((manifest, snapshot)) = commit.manifest.zip(commit.snapshot) else { return Ok(()) };
    if !repository.exists(&names::manifest_key(&manifest)).await? {
        return Ok(()); // what the tree is nobody can tell from here: only the copy has the snapshot
    }
    let session = Session::claim(repository).await?;
    let ending = Ending {
        kind: CommitKind::Checkpoint,
        complete: false,
        ..Ending::again(commit, Some((manifest, snapshot)), bytes.to_vec())
    };
    session.end(ending).await.map(|_| ())
}

/// Retires what [`hold`] committed, now or in a repair that died, where the commit that it stood in for is back, whatever
/// that is worth now, or where another one that is not retired protects the same snapshot.
pub(super) async fn release(repository: &Repository) -> Result<(), Error> {
    let (ends, _) = read_ends(repository).await?;
    let retired = repository.retired_as_far_as_readable().await?;
    let is_held = |commit: &Commit| commit.kind == CommitKind::Checkpoint && commit.origin.is_some();
    let live = live_ends(&ends, &retired);
    let mut done = Vec::new();
    for held in ends.iter().filter(|end| is_held(&end.commit) && !retired.contains(&(end.writer, end.n))) {
        let original = held.commit.origin.as_deref().map(Digest::of);
        let is_back = ends.iter().any(|end| Some(end.digest) == original);
        let is_elsewhere = live.iter().any(|end| {
            end.commit.kind == CommitKind::Snapshot && end.commit.snapshot == held.commit.snapshot
        });
        if is_back || is_elsewhere {
            let reason = "it held what a repair has put back".to_owned();
            done.push(RetiredSnapshot { writer: held.writer, seq: held.n, reason });
        }
    }
    if done.is_empty() { Ok(()) } else { repository.retire(done).await }
}
