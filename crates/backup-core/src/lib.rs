//! The engine of Keepwell: back up, restore, check, repair, prune and copy encrypted, deduplicated snapshots.

mod alive;
mod backup;
mod cache;
mod check;
pub mod chunker;
pub mod env;
mod error;
pub mod monitor;
pub mod pack;
mod read;
mod repository;
mod restore;
pub mod source;
pub mod target;
mod write;

pub use backup::{BackupOptions, BackupReport};
pub use cache::Cache;
pub use error::Error;
pub use repository::{
    Access, Builder, CreateOptions, Created, Limits, Repository, RepositoryHint, Snapshot, SnapshotState,
};
pub use restore::{RestoreOptions, RestorePlan, RestoreReport, Select};
