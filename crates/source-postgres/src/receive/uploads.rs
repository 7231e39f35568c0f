//! Pieces on their way into the repository, acknowledged in the order of the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backup_core::Repository;
use backup_core::wal::WalWriter;
use keepwell_storage::{StorageError, StorageErrorKind};
use tokio::task::JoinHandle;

use super::block::Piece;
use super::{ReceiveError, WAIT_MAX};
use crate::lsn::Lsn;

/// Pieces on their way at once; with 16 MiB each they are the most of a receiver's memory.
pub(super) const IN_FLIGHT_MAX: usize = 4;

/// Uploads in order. Dropped, it abandons what is not stored yet.
pub(super) struct Uploads {
    repository: Repository,
    archive: Arc<WalWriter>,
    running: VecDeque<(Lsn, JoinHandle<Result<(), backup_core::Error>>)>,
}

impl Uploads {
    pub fn new(repository: Repository, archive: WalWriter) -> Self {
        Self { repository, archive: Arc::new(archive), running: VecDeque::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.running.len() < IN_FLIGHT_MAX
    }

    /// Sends a piece on its way. It is tried until the store has it, or refuses it for good.
    pub fn send(&mut self, piece: Piece) {
        let (repository, archive, end) = (self.repository.clone(), Arc::clone(&self.archive), piece.end);
        self.running.push_back((end, tokio::spawn(store(repository, archive, piece))));
    }

    /// Waits for the oldest piece and says up to where the log is durable then. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Lsn, ReceiveError> {
        let Some((end, task)) = self.running.front_mut() else { return std::future::pending().await };
        let stored = task.await.map_err(|e| backup_core::Error::Task(e.to_string()))?;
        let end = *end;
        self.running.pop_front();
        stored?;
        Ok(end)
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.running.iter().for_each(|(_, task)| task.abort());
    }
}

/// What an operator can make good while the server keeps the WAL for us.
pub(super) fn passes(error: &StorageError) -> bool {
    error.is_retryable() || matches!(error.kind, StorageErrorKind::NoSpace | StorageErrorKind::NotMounted)
}

async fn store(
    repository: Repository,
    archive: Arc<WalWriter>,
    piece: Piece,
) -> Result<(), backup_core::Error> {
    let mut wait = Duration::from_millis(500);
    loop {
        let put = archive.put(piece.timeline.get(), piece.place, piece.bytes.clone(), piece.previous).await;
        match put {
            Ok(_) => return Ok(()),
            Err(backup_core::Error::Storage(error)) if passes(&error) => {
                let seconds = wait.as_secs().max(1);
                repository.monitor().note(&format!(
                    "WAL up to {} waits for the repository: {error}; next attempt in {seconds} s",
                    piece.end
                ));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}
