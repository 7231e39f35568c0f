//! What can go wrong in a store.

use std::error::Error;
use std::fmt;

use crate::Key;

/// What a caller can do about a [`StorageError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// There is no such object (or no such repository).
    NotFound,
    /// The key is taken; the object there is durable and was not touched.
    AlreadyExists,
    /// The object is shorter than the range asked for, or the range runs backwards.
    OutOfRange,
    /// The object is larger than was allowed for.
    TooLarge,
    /// The store, or the operating system, does not let us.
    PermissionDenied,
    /// The store is full, or a quota is used up. Nothing was left behind.
    NoSpace,
    /// The store is mounted read-only.
    ReadOnly,
    /// The file system that should hold the repository is not mounted.
    NotMounted,
    /// The store asks us to slow down; may pass.
    Throttled,
    /// The store could not be reached, or did not answer; may pass. The call may or may not have taken effect.
    Unavailable,
    /// The object lies in an archive class, and must be thawed before it can be read.
    Archived,
    /// The device could not read or write (`EIO`); it will not get better by trying again.
    Device,
    /// A write could not be made durable, so nothing that this store says about durability can be believed any
    /// more. It refuses writes until it is opened again, after a person looked at the disk.
    Suspect,
    /// The request or the store's layout makes no sense: a symbolic link inside, a key beneath an object, …
    Invalid,
    /// Anything else; see the source.
    Other,
}

/// An operation of a store that failed: which one, on what, why, and what may help.
///
/// Displays as ``put `data/2a/…`: no space left on the device``; the cause is in [`Error::source`], and
/// [`hint`](Self::hint) is for a person. Never holds credentials.
#[derive(Debug)]
pub struct StorageError {
    /// What a caller can do about it.
    pub kind: StorageErrorKind,
    /// The operation: `get`, `get range`, `put`, `head`, `list`, `delete`, `open`, `create`, `probe`.
    pub operation: &'static str,
    /// The key or path operated on.
    pub subject: String,
    /// The fact: lower case, no full stop.
    pub message: String,
    /// What a person may do, as a sentence.
    pub hint: Option<String>,
    /// The cause, if another layer reported one.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl StorageError {
    /// An error with no hint and no source.
    pub fn new(
        kind: StorageErrorKind,
        operation: &'static str,
        subject: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        let (subject, message) = (subject.to_string(), message.into());
        Self { kind, operation, subject, message, hint: None, source: None }
    }

    /// The object is absent.
    pub fn not_found(operation: &'static str, key: &Key) -> Self {
        Self::new(StorageErrorKind::NotFound, operation, key, "no such object")
    }

    /// The key is taken.
    pub fn already_exists(key: &Key) -> Self {
        Self::new(StorageErrorKind::AlreadyExists, "put", key, "the object exists already")
    }

    /// `range` is not inside an object of `size` bytes.
    pub fn out_of_range(key: &Key, range: &std::ops::Range<u64>, size: u64) -> Self {
        let message = format!("bytes {}..{} are not in an object of {size} bytes", range.start, range.end);
        Self::new(StorageErrorKind::OutOfRange, "get range", key, message)
    }

    /// The object has more than `most` bytes.
    pub(crate) fn too_large(key: &Key, most: u64) -> Self {
        let message = format!("the object has more than the {most} bytes that were allowed for");
        Self::new(StorageErrorKind::TooLarge, "get", key, message)
    }

    /// Adds what a person may do.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, StorageErrorKind::Throttled | StorageErrorKind::Unavailable)
    }

    /// Whether the object is absent.
    pub fn is_not_found(&self) -> bool {
        self.kind == StorageErrorKind::NotFound
    }

    /// Whether the place itself is not there, or does not answer, rather than refusing us.
    pub fn is_away(&self) -> bool {
        use StorageErrorKind as Kind;
        matches!(self.kind, Kind::NotFound | Kind::NotMounted | Kind::Unavailable)
    }

    /// Whether the key was taken.
    pub fn is_already_exists(&self) -> bool {
        self.kind == StorageErrorKind::AlreadyExists
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == StorageErrorKind::NotMounted {
            return formatter.write_str(&self.message); // it names the mount and the repository itself
        }
        write!(formatter, "{} `{}`: {}", self.operation, self.subject, self.message)
    }
}

impl Error for StorageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
