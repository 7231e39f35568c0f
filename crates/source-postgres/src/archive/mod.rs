//! What is archived of a cluster's WAL, and serving it to a recovering server.

mod coverage;
mod fetch;
mod survey;
#[cfg(test)]
mod tests;

pub use fetch::{Asker, Fetched, SegmentFile, fetch, fetch_for, fetch_segment};
pub use survey::{Gap, GapKind, Stretch, Survey, survey};

pub(crate) use coverage::{Coverage, Covered, differing};
pub(crate) use fetch::{check_first_page, fetch_segment_for, held_segment};
pub(crate) use survey::{LOOKS_MAX, MOMENT};

use crate::lsn::Timeline;

/// Why an archive could not be read, or must not be relied on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// Two different contents are archived for the same stretch of WAL.
    #[error("`{file}` is archived with two different contents")]
    Conflict {
        /// Name of the WAL file.
        file: String,
    },
    /// WAL is missing although later WAL is there, of the same timeline or of one that branched off later.
    #[error("`{file}` is missing from the archive, and later WAL of timeline {timeline} is there")]
    Gap {
        /// Name of the WAL file.
        file: String,
        /// The timeline of what is there.
        timeline: Timeline,
    },
    /// Only later WAL is archived: the archive begins behind this file.
    #[error("`{file}` is not archived, and later WAL is")]
    BeginsLater {
        /// Name of the WAL file.
        file: String,
    },
    /// What is archived is not WAL of this cluster at this place.
    #[error("`{file}` does not fit: {reason}")]
    NotThatWal {
        /// Name of the WAL file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

impl ArchiveError {
    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Gap { .. } => Some(
                "Recovery can end before the gap, or begin with a base backup after it; `keepwell wal gaps` shows all.".into(),
            ),
            Self::BeginsLater { .. } => Some(
                "Recover from a base backup that was taken after the archive began (`keepwell wal status`). To end where a base \
                 backup with WAL of its own ends: `restore_command = 'false'`."
                    .into(),
            ),
            Self::Conflict { .. } => {
                Some(
                    "Two servers that both believed to be the primary wrote WAL; restore to a time before, along the timeline of \
                     then (`--timeline NUMBER`)."
                        .into(),
                )
            }
            Self::NotThatWal { .. } => None,
        }
    }
}
