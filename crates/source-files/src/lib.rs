//! Files and directories: [`FileSource`] captures them, [`FileTarget`] puts them back.
//!
//! Linux only. Both are faithful to the last mode bit, nanosecond, extended attribute, ACL, hard link, hole and byte of a
//! name; both hold against other processes that swap things while they work. Nothing here knows what a repository is.
//!
//! ```
//! use std::sync::Arc;
//!
//! use backup_core::env::SystemClock;
//! use backup_core::{BackupOptions, CreateOptions, Created, Repository, RestoreOptions};
//! use keepwell_source_files::{FileOptions, FileSource, FileTarget, TargetOptions};
//! use keepwell_storage::Memory;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Arc::new(Memory::new());
//! let options = CreateOptions { owner: "ann".into(), member: "web1".into(), store_hint: None, probe: None };
//! let key = Created::generate(&options, 0)?.store(&*store).await?;
//! let repository = Repository::builder(store).open(key).await?;
//!
//! let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! std::fs::write(from.path().join("hosts"), "127.0.0.1 localhost")?;
//! let options = FileOptions { paths: vec![from.path().into()], ..FileOptions::default() };
//! let source = FileSource::new(&options, Arc::new(SystemClock))?;
//! repository.backup(Arc::new(source), BackupOptions::default()).await?;
//!
//! let snapshot = repository.snapshots().await?.pop().expect("the one just taken");
//! let target = Arc::new(FileTarget::create(to.path(), &TargetOptions::default())?);
//! repository.restore(&snapshot, target, RestoreOptions::default()).await?;
//! let restored = to.path().join(from.path().strip_prefix("/")?).join("hosts");
//! assert_eq!(std::fs::read_to_string(restored)?, "127.0.0.1 localhost");
//! # Ok(())
//! # }
//! ```
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod beneath;
mod content;
mod handle;
mod ladder;
mod listing;
mod look;
mod mounts;
mod options;
mod owners;
mod roots;
mod rules;
mod source;
mod target;
mod tree;
mod walk;

pub use options::FileOptions;
pub use source::FileSource;
pub use target::{FileTarget, TargetOptions};
