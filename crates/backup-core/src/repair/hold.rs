//! Keeping what a damaged commit names while the commit is deleted and put back.
//!
//! In between it is not there, and whoever crashes then leaves a store that says nothing of the snapshot; a prune would take
//! what it needs. So the same tree is committed first, as a checkpoint of our own with the old commit as its origin: a root
//! for every prune, and never listed. It is retired when the snapshot is there again.

use keepwell_catalog::{Commit, CommitKind, RetiredSnapshot, names};

use crate::Error;
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
        manifest: Some((manifest, snapshot)),
        complete: false,
        logical_bytes: commit.logical_bytes,
        capture: commit.capture,
        state: Vec::new(),
        dataset_tag: None,
        origin: Some(bytes.to_vec()),
        supersedes: Vec::new(),
        created: Vec::new(),
    };
    session.end(ending).await.map(|_| ())
}

/// Retires what [`hold`] committed, now or in a repair that died, where something else protects the same snapshot.
pub(super) async fn release(repository: &Repository) -> Result<(), Error> {
    let (ends, _) = read_ends(repository).await?;
    let retired = repository.retired_as_far_as_readable().await?;
    let is_held = |commit: &Commit| commit.kind == CommitKind::Checkpoint && commit.origin.is_some();
    let mut done = Vec::new();
    for held in ends.iter().filter(|end| is_held(&end.commit) && !retired.contains(&(end.writer, end.n))) {
        let is_there =
            ends.iter().any(|end| end.commit.snapshot == held.commit.snapshot && !is_held(&end.commit));
        if is_there {
            let reason = "it held what a repair has put back".to_owned();
            done.push(RetiredSnapshot { writer: held.writer, seq: held.n, reason });
        }
    }
    if done.is_empty() { Ok(()) } else { repository.retire(done).await }
}
