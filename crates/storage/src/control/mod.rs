//! What a store can do, and say about itself, beyond holding bytes.

mod lifecycle;

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[cfg(feature = "s3")]
pub(crate) use lifecycle::ARCHIVES;
pub(crate) use lifecycle::NOTICE_DAYS;
pub use lifecycle::{Danger, LifecycleRule, Transition, When, is_archive_class};

use crate::{Key, StorageError};

/// Requests that only some stores know: about the bucket, retention locks, and storage classes.
///
/// A store that has them returns itself from [`ObjectStore::control`](crate::ObjectStore::control). Requests that may be
/// repeated without harm are repeated a few times after a failure that may pass.
#[async_trait]
pub trait Control: Send + Sync + fmt::Debug {
    /// The time of day at the store, exact to a second.
    async fn server_time(&self) -> Result<SystemTime, StorageError>;

    /// What the store says about its settings; one request for each, and a refusal is an answer.
    async fn bucket(&self) -> BucketFacts;

    /// Stores an object whatever is there: what our own writers never do, and an attacker would. Returns the id of the
    /// version, where the bucket keeps versions and [`delete_version`](Self::delete_version) can be tried on it.
    async fn overwrite(&self, key: &Key, body: Bytes) -> Result<Option<String>, StorageError>;

    /// Removes one version of an object for good.
    async fn delete_version(&self, key: &Key, version: &str) -> Result<(), StorageError>;

    /// Whether single objects can be locked, as in S3. Where they cannot, a bucket may still keep all of them from being
    /// deleted for a time ([`ObjectLock::Retention`]), and asking for the lock of one fails.
    fn locks_objects(&self) -> bool {
        true
    }

    /// Until when the newest version of an object cannot be deleted; `None` if it can be.
    ///
    /// A legal hold, which has no end, is the year 9999.
    async fn retained_until(&self, key: &Key) -> Result<Option<SystemTime>, StorageError>;

    /// Keeps the newest version of an object from being deleted until `until`, in the mode that it has, or that is the
    /// bucket's default.
    ///
    /// An end that is the same or later already stays. Fails with `Invalid` in a bucket without object lock.
    async fn retain_until(&self, key: &Key, until: SystemTime) -> Result<(), StorageError>;

    /// Whether an object can be read now.
    async fn tier(&self, key: &Key) -> Result<Tier, StorageError>;

    /// Asks for an archived object to be made readable for `days` days. It takes hours; ask [`tier`](Self::tier).
    ///
    /// Asking again while that is on its way is fine.
    async fn thaw(&self, key: &Key, days: u32, speed: ThawSpeed) -> Result<(), StorageError>;
}

/// What a store says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketFacts {
    /// Whether it keeps what is deleted or overwritten.
    pub versioning: Answer<Versioning>,
    /// Whether it can lock objects against deletion.
    pub lock: Answer<ObjectLock>,
    /// Rules by which it deletes or moves objects by itself.
    pub lifecycle: Answer<Vec<LifecycleRule>>,
    /// How it encrypts by default: `AES256`, `aws:kms`, …
    pub encryption: Answer<Option<String>>,
    /// For how many days it keeps what is deleted or overwritten beside its versions, out of reach of whoever may delete
    /// objects; 0 if it does not.
    pub undelete_days: Answer<u32>,
    /// Whether the service itself removes what uploads leave behind that were broken off.
    pub clears_uploads: bool,
}

/// What came of a question to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// The answer.
    Known(T),
    /// These credentials may not ask: the right that they lack, as the service calls it.
    Denied(&'static str),
    /// Not answered; why.
    Unknown(String),
}

impl<T> Answer<T> {
    /// The answer, if there was one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Denied(_) | Self::Unknown(_) => None,
        }
    }
}

/// Whether a bucket keeps old versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Versioning {
    /// It never did.
    Off,
    /// What is deleted or overwritten stays as an older version.
    Enabled,
    /// It did; what is stored now can be lost.
    Suspended,
}

/// Whether a bucket can lock objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectLock {
    /// It cannot.
    Off,
    /// It can, and new objects are not locked by themselves.
    On,
    /// New objects are locked.
    Default {
        /// `GOVERNANCE` or `COMPLIANCE`.
        mode: String,
        /// For how long. A year counts as 365.
        days: u32,
    },
    /// No object can be deleted or replaced before it is so old, and nothing can be locked for longer than others.
    Retention {
        /// The age, rounded up.
        days: u32,
    },
}

/// Whether an object can be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// It can.
    Ready,
    /// It is in an archive, and must be thawed first.
    Archived,
    /// It is in an archive, and on its way.
    Thawing,
    /// It is in an archive, and a copy can be read until then.
    Thawed(Option<SystemTime>),
}

impl Tier {
    /// Whether a read succeeds now.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Ready | Self::Thawed(_))
    }
}

/// How fast, and how dear, an archived object is made readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThawSpeed {
    /// Cheapest; up to two days from the deepest archive.
    Bulk,
    /// Some hours.
    #[default]
    Standard,
    /// Minutes, where the archive has it.
    Expedited,
}

impl ThawSpeed {
    /// As S3 calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bulk => "Bulk",
            Self::Standard => "Standard",
            Self::Expedited => "Expedited",
        }
    }
}
