//! What can be backed up: the [`Source`] trait, the extension point of this library.
//!
//! A source lists its items in key order, cheaply, and opens those whose content the engine wants. The engine decides
//! what is new by comparing fingerprints with those of the previous capture; an item with an equal fingerprint is not
//! opened at all. `examples/own_source.rs` is a whole source; `docs/adding-a-source.md` walks through it.

use std::io;
use std::ops::ControlFlow;

use keepwell_catalog::{Entry, EntryKind, MapKey};

/// Something that can be captured into a snapshot.
///
/// Every method is called from ordinary threads, never from an async task, and may block. `walk` runs on one thread
/// while `open` is called from several.
pub trait Source: Send + Sync {
    /// Short name of the kind of source, as recorded in the manifest: `files`, `command`, …
    fn kind(&self) -> &str;

    /// What was asked for, as shown by `snapshots`; for files the absolute paths.
    fn paths(&self) -> Vec<Vec<u8>>;

    /// Says whether a capture could start now. Changes nothing. Fails when it could not.
    fn preflight(&self) -> Result<Preflight, SourceError>;

    /// Visits every item in strictly ascending key order; parents come before their children.
    ///
    /// Costs one cheap look per item (for files, one `lstat`). A thing that cannot be read is reported as
    /// [`Found::Problem`] and the walk goes on; only what makes the whole capture worthless is an `Err`.
    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError>;

    /// Completes the metadata of an item and opens its content.
    ///
    /// Called only for items whose fingerprint is new. `Ok(None)` means that it vanished since the walk saw it.
    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError>;
}

/// What a [`Source::preflight`] learned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preflight {
    /// Things an operator should know before the capture, in plain sentences.
    pub notes: Vec<String>,
}

/// One step of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An item to capture.
    Item(Item),
    /// Something at `key` that could not be looked at; it is counted, named in the report, and the exit code becomes 3.
    Problem {
        /// Where.
        key: MapKey,
        /// What went wrong, as a lower case fact.
        message: String,
    },
}

/// An item as the walk sees it: enough to tell whether it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its key in the snapshot.
    pub key: MapKey,
    /// What it is.
    pub kind: EntryKind,
    /// Size of the content in bytes as far as known; used for progress and scheduling only.
    pub size: u64,
    /// Changes whenever content or metadata may have changed (for files: a hash of size, mtime, ctime, inode, mode, …).
    /// All zeros means "unknown": the item is opened every time.
    pub fingerprint: [u8; 16],
    /// For a second name of an inode: the key of the first.
    pub hard_link: Option<MapKey>,
}

/// An opened item: its metadata, and its content if it has any.
pub struct Opened {
    /// Everything but `size`, `content` and `more_extents`, which the engine fills in for an item with content.
    pub entry: Entry,
    /// The content; `None` for directories, links, devices.
    pub content: Option<Box<dyn Content>>,
}

/// The content of one item, read front to back.
pub trait Content: Send {
    /// Reads the next bytes into `buf` (never empty) and says what it found. After [`Piece::End`] it is not called again.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece>;

    /// Called after [`Piece::End`]: whether the content changed while it was read. The engine then keeps what it read,
    /// counts the item as a problem, and will open it again next time.
    fn changed_while_read(&mut self) -> io::Result<bool>;
}

/// What [`Content::read`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// This many bytes (at least one) at the front of the buffer.
    Data(usize),
    /// A hole of this many bytes (at least one); the buffer is untouched.
    Hole(u64),
    /// Nothing more.
    End,
}

/// Why a source could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The thing asked for is not there.
    #[error("`{path}` does not exist")]
    NotFound {
        /// What was asked for.
        path: String,
    },
    /// An operation on one item failed.
    #[error("{operation} `{path}`")]
    Io {
        /// The verb: `open`, `read`, …
        operation: &'static str,
        /// The item.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Anything else, as a fact.
    #[error("{0}")]
    Other(String),
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-source.md")]
struct AddingASource;
