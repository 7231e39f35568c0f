//! Other stores of the same repository, for what this one has lost.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use keepwell_crypto::{ChunkId, ChunkKind};
use tokio::sync::OnceCell;

use super::read_here;
use crate::Error;
use crate::repository::Repository;

/// Opens the copies of a repository, in the order in which they are to be asked. Called at most once, when the first
/// object cannot be read; a copy that cannot be opened is left out.
#[async_trait]
pub trait Copies: Send + Sync + fmt::Debug {
    /// The copies, each with a name for people.
    async fn open(&self) -> Vec<(String, Repository)>;
}

/// The copies of an open repository.
#[derive(Debug, Default)]
pub(crate) struct CopySet {
    how: Option<Box<dyn Copies>>,
    opened: OnceCell<Vec<(String, Repository)>>,
    /// The store did not answer: it is not asked again where a copy can be, and as a copy after the others.
    silent: AtomicBool,
    /// Somebody was told that a copy is used.
    told: AtomicBool,
}

impl CopySet {
    pub fn new(how: Option<Box<dyn Copies>>) -> Self {
        Self { how, ..Self::default() }
    }

    async fn get(&self, of: &Repository) -> &[(String, Repository)] {
        let Some(how) = &self.how else { return &[] };
        let open = async {
            let mut copies = how.open().await;
            // With other keys the ids of chunks differ, and nothing could be found.
            copies.retain(|(_, copy)| copy.id() == of.id() && copy.store_id() != of.store_id());
            copies
        };
        self.opened.get_or_init(|| open).await
    }
}

impl Repository {
    /// The copies of this repository that can be asked, opened when first needed. Those that did not answer come last: to ask
    /// one takes as long as it is tried again.
    pub(crate) async fn copies(&self) -> Vec<&(String, Repository)> {
        let mut copies: Vec<_> = self.copy_set().get(self).await.iter().collect();
        copies.sort_by_key(|(_, copy)| copy.did_not_answer());
        copies
    }

    /// Notes a failure of the store, and says whether copies are to be asked from now on without asking it.
    pub(crate) fn note_failure(&self, error: &Error) {
        if matches!(error, Error::Storage(error) if error.is_retryable())
            && !self.copy_set().silent.swap(true, Ordering::Relaxed)
            && self.copy_set().how.is_some()
        {
            self.monitor().note("the store does not answer; going on with its copies");
        }
    }

    /// Whether a failure of the store was noted, be it a copy or not.
    pub(crate) fn did_not_answer(&self) -> bool {
        self.copy_set().silent.load(Ordering::Relaxed)
    }

    /// Says once that something came from a copy.
    pub(crate) fn note_copy(&self, name: &str) {
        if !self.copy_set().told.swap(true, Ordering::Relaxed) {
            self.monitor().note(&format!("what cannot be read here is taken from the copy at {name}"));
        }
    }

    /// Whether the store is not to be asked any more.
    pub(crate) fn is_silent(&self) -> bool {
        self.copy_set().how.is_some() && self.did_not_answer()
    }
}

/// Reads a chunk from the first copy that has it; gives back the error with which it was not found here.
pub(super) async fn read_elsewhere(
    repository: &Repository,
    kind: ChunkKind,
    id: &ChunkId,
    error: Error,
) -> Result<Vec<u8>, Error> {
    for (name, copy) in repository.copies().await {
        match read_here(copy, kind, id).await {
            Ok(chunk) => {
                repository.note_copy(name);
                return Ok(chunk);
            }
            Err(failure) => copy.note_failure(&failure), // of its index, say: that of a pack is noted
        }
    }
    Err(error)
}
