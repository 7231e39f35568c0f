//! The engine of Keepwell: back up, restore, check, repair, prune and copy encrypted, deduplicated snapshots.
//!
//! A [`Repository`] is opened over an `ObjectStore` with a key file; a [`source::Source`] says what to capture, a
//! [`target::RestoreTarget`] where to restore to. The engine never prints and never reads the environment or the wall
//! clock: it is handed a [`env::Clock`], an [`env::Rng`] and a [`monitor::Monitor`]. Work that blocks or computes runs on
//! threads of its own, bounded by [`Limits`]; the methods are `async` and want a multi-threaded tokio runtime.
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//!
//! use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
//! use backup_core::{BackupOptions, CheckOptions, CreateOptions, Created, ReadData, Repository};
//! use keepwell_catalog::{Entry, EntryKind, MapKey};
//!
//! /// The smallest source: one text under one name.
//! struct Note(&'static str);
//!
//! impl Source for Note {
//!     fn kind(&self) -> &str {
//!         "note"
//!     }
//!     fn paths(&self) -> Vec<Vec<u8>> {
//!         vec![b"note".to_vec()]
//!     }
//!     fn preflight(&self) -> Result<Preflight, SourceError> {
//!         Ok(Preflight::default())
//!     }
//!     fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
//!         let key = MapKey::from_components(["note"]).map_err(|e| SourceError::Other(e.to_string()))?;
//!         let size = self.0.len() as u64;
//!         let item = Item { key, kind: EntryKind::File, size, fingerprint: [0; 16], hard_link: None };
//!         let _ = visit(Found::Item(item));
//!         Ok(())
//!     }
//!     fn open(&self, _: &Item) -> Result<Option<Opened>, SourceError> {
//!         let content: Option<Box<dyn Content>> = Some(Box::new(Text(self.0.as_bytes())));
//!         Ok(Some(Opened { entry: Entry::new(EntryKind::File), content }))
//!     }
//! }
//!
//! struct Text(&'static [u8]);
//!
//! impl Content for Text {
//!     fn read(&mut self, buf: &mut [u8]) -> std::io::Result<Piece> {
//!         let n = std::io::Read::read(&mut self.0, buf)?;
//!         Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
//!     }
//!     fn changed_while_read(&mut self) -> std::io::Result<bool> {
//!         Ok(false)
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), backup_core::Error> {
//! let store = Arc::new(keepwell_storage::Memory::new());
//! let options = CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
//! let created = Created::generate(&options, 0)?; // save created.key_file() before anything is stored
//! let key = created.store(&*store).await?;
//!
//! let repository = Repository::builder(store).open(key).await?;
//! let report = repository.backup(Arc::new(Note("remember the milk")), BackupOptions::default()).await?;
//! assert_eq!(report.statistics.files, 1);
//!
//! let snapshots = repository.snapshots().await?;
//! let tree = repository.tree(&snapshots[0]).await?;
//! let key = MapKey::from_components(["note"]).expect("a valid key");
//! let mut text = Vec::new();
//! tree.dump_file(&key, &mut text).await?;
//! assert_eq!(text, b"remember the milk");
//! assert!(repository.check(CheckOptions { read: ReadData::Everything }).await?.is_sound());
//! # Ok(())
//! # }
//! ```
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

mod alive;
mod backup;
mod browse;
mod cache;
mod cancel;
mod check;
pub mod chunker;
mod copy;
pub mod env;
mod error;
mod keys;
mod mark;
pub mod monitor;
pub mod pack;
mod parallel;
mod planted;
mod prune;
mod read;
mod remembered;
mod repair;
mod repository;
mod restore;
mod retention;
pub mod source;
mod statement;
pub mod target;
#[cfg(test)]
mod testing;
mod transfer;
pub mod wal;
mod write;

pub use backup::{BackupOptions, BackupReport};
pub use browse::{
    ArchiveFormat, ArchiveReport, Browser, ChangeKind, Count, Depth, DiffSummary, OpenFile, Stretch, Tree,
    TreeChange,
};
pub use cache::Cache;
pub use cancel::Cancel;
pub use check::{CheckOptions, CheckReport, Finding, ReadData, ScrubReport, scrub};
pub use copy::{
    Approval, CopiedSnapshot, CopyReport, CopyRules, EXTRA_ORIGIN, EXTRA_ORIGIN_SNAPSHOT, Exclude, Held,
    Holdings, Retirement, RewriteOptions, RewriteReport, SnapshotSource, StoreCopyReport, holdings,
};
pub use error::{Error, one_line};
pub use keys::Erased;
pub use prune::{ClassUsage, Forgotten, Growth, PruneOptions, PrunePlan, PruneReport, Usage};
pub use read::Copies;
pub use repair::{RepairOptions, RepairReport, restore_vital};
pub use repository::{
    Access, Builder, CreateOptions, Created, Limits, Repository, RepositoryHint, Snapshot, SnapshotState,
};
pub use restore::{NeededPack, RestoreOptions, RestorePlan, RestoreReport, Select};
pub use retention::{Checked, SAFETY_DATASET, Verdict, retain};
pub use statement::Signatory;
