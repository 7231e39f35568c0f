//! What can be backed up: the [`Source`] trait, the extension point of this library.
//!
//! A source lists its items in key order, cheaply, and opens those whose content the engine wants. The engine decides
//! what is new by comparing fingerprints with those of the previous capture; an item with an equal fingerprint is not
//! opened at all. `examples/own_source.rs` is a whole source; `docs/adding-a-source.md` walks through it.

use std::collections::BTreeMap;
use std::fmt;
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

    /// In which order the walk visits items.
    fn order(&self) -> Order {
        Order::Ascending
    }

    /// For a source with [`Order::Any`]: hears before the walk what the last capture of the dataset holds, in ascending
    /// order of keys. Nothing when there was none, when it cannot be built on, or when everything shall be read.
    fn previous(&self, _entries: Vec<Previous>) {}

    /// Visits every item in the source's order; with [`Order::Ascending`] keys ascend strictly, so that parents come before
    /// their children.
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

/// In which order a source visits its items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By key. Fingerprints are compared with those of the last capture, and long captures have checkpoints.
    Ascending,
    /// As they come, for what arrives as a stream; each key once. Entries are sorted at the end, fingerprints are not
    /// compared, and there are no checkpoints.
    Any,
}

/// An entry of the last capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// Its key.
    pub key: MapKey,
    /// What it is.
    pub kind: EntryKind,
    /// Size of the content in bytes.
    pub size: u64,
    /// What the source had put on record.
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// Of how many parts the content is put together.
    pub extents: usize,
    /// Whether all of the content is at hand, so that a [`Piece::Kept`] may refer to it.
    pub whole: bool,
}

/// One step of a walk.
#[derive(Debug)]
pub enum Found {
    /// An item to capture.
    Item(Item),
    /// An item that comes with its content; [`Source::open`] is not called. A worker begins to read at once, while the walk
    /// goes on, so the content may come from the walk itself, through a bounded channel.
    Opened(Item, Box<Opened>),
    /// So many bytes are to come in all, which takes the place of the sizes of items in the progress.
    Expected(u64),
    /// A thing that an operator wants to know, as a sentence.
    Note(String),
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

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// The content of one item, read front to back.
pub trait Content: Send {
    /// Reads the next bytes into `buf` (never empty) and says what it found. After [`Piece::End`] it is not called again.
    ///
    /// An error costs the item and is counted; one that carries a [`SourceError::Failed`] ends the capture.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece>;

    /// Called after [`Piece::End`]: whether the content changed while it was read. The engine then keeps what it read,
    /// counts the item as a problem, and will open it again next time.
    fn changed_while_read(&mut self) -> io::Result<bool>;

    /// Cut into chunks of this many bytes from the front (at most 4 MiB) instead of where the content suggests it: for what
    /// is written in pages. `None` for all else.
    fn chunk_bytes(&self) -> Option<usize> {
        None
    }
}

/// What [`Content::read`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// This many bytes (at least one) at the front of the buffer.
    Data(usize),
    /// A hole of this many bytes (at least one); the buffer is untouched.
    Hole(u64),
    /// This many bytes (at least one) are as the last capture has them under this key at this place; the buffer is untouched.
    /// Only for a source with [`Order::Any`], and contents with [`Content::chunk_bytes`], of which it was told that they are
    /// [whole](Previous::whole). What is new between such stretches is put together into chunks.
    Kept(u64),
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
    /// What the source is made from failed: the capture ends, whoever says so.
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else, as a fact.
    #[error("{0}")]
    Other(String),
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-source.md")]
struct AddingASource;
