//! The engine of Keepwell: back up, restore, check, repair, prune and copy encrypted, deduplicated snapshots.

mod alive;
mod backup;
mod browse;
mod cache;
mod check;
pub mod chunker;
mod copy;
pub mod env;
mod error;
mod keys;
mod mark;
pub mod monitor;
pub mod pack;
mod prune;
mod read;
mod repair;
mod repository;
mod restore;
pub mod source;
pub mod target;
#[cfg(test)]
mod testing;
mod transfer;
mod write;

pub use backup::{BackupOptions, BackupReport};
pub use browse::{ArchiveFormat, ArchiveReport, ChangeKind, Count, Depth, DiffSummary, Tree, TreeChange};
pub use cache::Cache;
pub use check::{CheckOptions, CheckReport, Finding, ReadData, ScrubReport, scrub};
pub use copy::{
    CopiedSnapshot, CopyReport, EXTRA_ORIGIN, EXTRA_ORIGIN_SNAPSHOT, Exclude, Held, Holdings, RewriteOptions,
    RewriteReport, SnapshotSource, StoreCopyReport, holdings,
};
pub use error::Error;
pub use keys::Erased;
pub use prune::{PruneOptions, PruneReport};
pub use repair::RepairReport;
pub use repository::{
    Access, Builder, CreateOptions, Created, Limits, Repository, RepositoryHint, Snapshot, SnapshotState,
};
pub use restore::{RestoreOptions, RestorePlan, RestoreReport, Select};
