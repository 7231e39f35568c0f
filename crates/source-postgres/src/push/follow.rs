//! Archiving ahead of a server, in a process of its own.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{AT_ONCE, PushError, Pusher, Stamp, is_ready, store_one};
use crate::lsn::{Segment, SegmentSize};

/// Files that are stored and that the server has not asked for: then it is waited for.
const UNASKED_MAX: usize = 64;
/// How long a server that asks for nothing is waited for.
const IDLE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

impl Pusher {
    /// Archives what is ready behind a file of a server's `pg_wal`, and notes each as soon as it is durable, until nothing
    /// is ready any more, one cannot be stored, or the server has not asked for a minute.
    ///
    /// For a process that holds the [`Turn`](super::Turn) and that nobody waits for: what fails is tried again, and told, by
    /// whoever is asked for it. Gives how many were stored.
    pub async fn follow(&self, path: &Path, system: u64) -> Result<u64, PushError> {
        let Some((directory, segment, size)) = place(path) else { return Ok(0) };
        let archive = self.repository.wal_writer(&self.dataset, system, size.get(), false).await?;
        let (mut running, mut noted) = (JoinSet::new(), VecDeque::<(PathBuf, Stamp)>::new());
        let (mut next, mut stored, mut failed, mut idle) = (segment.number, 0, false, Duration::ZERO);
        loop {
            let before = noted.len();
            noted.retain(|(file, _)| is_ready(file));
            if noted.len() < before {
                idle = Duration::ZERO;
            }
            while !failed && running.len() < AT_ONCE && running.len() + noted.len() < UNASKED_MAX {
                let segment = Segment { number: next + 1, ..segment };
                let file = directory.join(segment.file_name(size));
                if !is_ready(&file) {
                    break;
                }
                running.spawn(store_one(archive.clone(), self.buffers.clone(), file));
                next += 1;
            }
            match running.join_next().await {
                Some(Ok(Some(file))) => {
                    stored += 1;
                    noted.push_back(file);
                    if let Some(ahead) = &self.ahead {
                        ahead.note(noted.make_contiguous());
                    }
                }
                // What comes behind is of no use before this one, which will be asked for.
                Some(_) => failed = true,
                None if failed || noted.len() < UNASKED_MAX || idle >= IDLE => return Ok(stored),
                None => {
                    sleep(LOOK).await;
                    idle += LOOK;
                }
            }
        }
    }
}

/// Whether the file behind this one is ready, so that it pays to follow.
pub fn is_followed(path: &Path) -> bool {
    place(path).is_some_and(|(directory, segment, size)| {
        let next = Segment { number: segment.number + 1, ..segment };
        is_ready(&directory.join(next.file_name(size)))
    })
}

/// What a file of `pg_wal` is by its name and length.
pub(super) fn place(path: &Path) -> Option<(PathBuf, Segment, SegmentSize)> {
    let size = SegmentSize::new(fs::metadata(path).ok()?.len())?;
    let segment = Segment::parse(path.file_name()?.to_str()?, size).ok()?;
    Some((path.parent()?.to_path_buf(), segment, size))
}
