//! Object stores for Keepwell.
//!
//! A repository lives in an [`ObjectStore`]: a flat map from [`Key`] to bytes in which objects are created once,
//! whole, and are never rewritten. The trait is small on purpose, and its doc comments are the contract;
//! [`conformance`] is the same contract as a test suite that any store, also one that is not ours, can run.
//!
//! | Type | What it is |
//! |---|---|
//! | [`LocalFs`] | a directory, with the durability protocol described there |
//! | [`Memory`] | a map in memory, for tests and examples |
//! | [`Retrying`] | tries again after failures that may pass |
//! | [`Throttled`] | holds transfers below a rate |
//! | [`Recording`] | counts calls and bytes, so that tests can assert what an operation costs |
//! | [`Faulty`] | fails on purpose, at a call of your choice |
//!
//! ```
//! use keepwell_storage::{Key, Memory, ObjectStore, StorageErrorKind};
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let store = Memory::new();
//! let key: Key = "data/2a/pack".parse()?;
//! store.put_new(&key, "sealed bytes".into()).await?;
//! assert_eq!(store.get_range(&key, 7..12).await?, "bytes");
//!
//! let again = store.put_new(&key, "other bytes".into()).await.unwrap_err();
//! assert_eq!(again.kind, StorageErrorKind::AlreadyExists);
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

mod amazon;
pub mod conformance;
mod connect;
mod control;
mod credentials;
#[cfg(feature = "remote")]
mod date;
mod descriptors;
mod error;
mod faulty;
#[cfg(feature = "gcs")]
mod gcs;
mod key;
mod local;
mod location;
mod memory;
mod operation;
mod planted;
mod probe;
mod random;
mod recording;
#[cfg(feature = "remote")]
mod remote;
mod retrying;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "sftp")]
mod sftp;
#[cfg(any(feature = "s3", feature = "gcs"))]
mod signed;
mod size;
mod store;
mod throttled;
#[cfg(any(feature = "remote", feature = "sftp"))]
mod tree;

pub use amazon::{COMMON_PARTITION, aws_partition, is_amazons};
pub use connect::{ConnectOptions, Purpose, connect};
pub use control::{
    Answer, BucketFacts, Control, Danger, LifecycleRule, ObjectLock, ThawSpeed, Tier, Transition, Versioning,
    When, is_archive_class,
};
pub use credentials::{CredentialSources, Credentials, SecretText};
pub use descriptors::raise_file_limit;
pub use error::{StorageError, StorageErrorKind};
pub use faulty::{Fault, Faulty};
pub use key::{InvalidKey, Key};
pub use local::{LocalFs, LocalOptions};
pub use location::{Checksum, InvalidLocation, Location, Place, ServerEncryption, Settings, TlsVersion};
pub use memory::Memory;
pub use operation::Operation;
pub use probe::{
    BucketReport, ExclusiveBy, FileSystemReport, ProbeOptions, ProbeReport, Right, Rights, Role, probe,
};
pub use recording::{Count, Recorded, Recording};
pub use retrying::{RetryPolicy, Retrying};
pub use size::Size;
pub use store::{Capabilities, LIST_PAGE_MAX, ObjectInfo, ObjectStore, Page, list_all};
pub use throttled::{RateLimits, Throttled};
