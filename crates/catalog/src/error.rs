//! What can go wrong while records are read or written.

use std::error::Error;
use std::io;

use keepwell_crypto::{ChunkId, CryptoError};

use crate::MapKey;
use crate::cbor::Malformed;

/// A failure around the Merkle map, its keys or its entries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// A node decodes to something a writer never produces. The same bytes fail the same way for ever.
    #[error("tree node {node} is damaged: {what}")]
    Node {
        /// Which node.
        node: ChunkId,
        /// What is wrong with it, as a fact.
        what: &'static str,
    },
    /// A [`NodeSource`](crate::NodeSource) could not deliver a node.
    #[error("read tree node {node}")]
    Read {
        /// Which node.
        node: ChunkId,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A [`NodeSink`](crate::NodeSink) could not take a node.
    #[error("write a tree node")]
    Write {
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Bytes or components that are not a key.
    #[error("key is not valid: {what}")]
    Key {
        /// What is wrong with it, as a fact.
        what: &'static str,
    },
    /// An entry, or the bytes of one, that breaks the rules.
    #[error("entry is not valid: {what}")]
    Entry {
        /// What is wrong with it, as a fact.
        what: &'static str,
    },
    /// As [`MapError::Entry`], when it is known where.
    #[error("entry `{path}` is not valid: {what}")]
    EntryAt {
        /// Its place, for humans.
        path: String,
        /// What is wrong with it, as a fact.
        what: &'static str,
    },
    /// A key was pushed that does not sort after the one before it.
    #[error("`{path}` does not sort after the entry before it")]
    OutOfOrder {
        /// The key, for humans.
        path: String,
    },
    /// A key or value is larger than a node may hold.
    #[error("the record of `{path}` is too large: {bytes} bytes of {maximum}")]
    RecordTooLarge {
        /// The key, for humans, cut to a readable length.
        path: String,
        /// Size of the key or value in bytes.
        bytes: usize,
        /// The limit it exceeds.
        maximum: usize,
    },
}

impl MapError {
    /// Adds the place to an error about an entry; leaves every other error as it is.
    pub(crate) fn at(self, key: &MapKey) -> Self {
        match self {
            Self::Entry { what } => Self::EntryAt { path: key.display_path(), what },
            other => other,
        }
    }
}

impl From<Malformed> for MapError {
    /// For the decoder of entries; that of nodes names the node.
    fn from(Malformed(what): Malformed) -> Self {
        Self::Entry { what }
    }
}

/// A failure in any other record of the catalog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The Merkle map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A recipe file holds something its writer never produces. It can be thrown away: the next backup reads all files.
    #[error("recipe is damaged: {what}")]
    Recipe {
        /// What is wrong with it, as a fact.
        what: &'static str,
    },
    /// Reading or writing a recipe failed.
    #[error("{operation} a recipe")]
    RecipeIo {
        /// `read` or `write`.
        operation: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The bytes break a rule of the format; the object is damaged or forged. The same bytes fail the same way for ever.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// Which kind of object.
        what: &'static str,
        /// Which rule.
        reason: String,
    },
    /// The object is of a kind that this version does not know; a newer program wrote it.
    #[error("{what} {kind} is not known to this version")]
    UnknownKind {
        /// What has the kind.
        what: &'static str,
        /// The number that it carries.
        kind: u64,
    },
    /// The object decodes to more than it may.
    #[error("{what} decodes to more than {limit_bytes} bytes")]
    TooLarge {
        /// Which kind of object.
        what: &'static str,
        /// The most it may decode to.
        limit_bytes: usize,
    },
    /// Entries handed to the writer of an index segment break its rules.
    #[error("index entry {entry} cannot be written: {reason}")]
    BadEntry {
        /// Number of the entry, in the order of writing.
        entry: u64,
        /// What is wrong with it, as a fact.
        reason: &'static str,
    },
    /// Sealing a record failed.
    #[error("seal a record")]
    Seal {
        /// The reason.
        source: CryptoError,
    },
    /// A sealed record does not open: it is for another key, or damaged.
    #[error("open a sealed record")]
    Open {
        /// The reason.
        source: CryptoError,
    },
    /// zstd failed to compress.
    #[error("compress a record")]
    Compress {
        /// The reason.
        source: io::Error,
    },
    /// The signature of an index segment does not hold, or its signer may not write.
    #[error("the signature of an index segment does not hold")]
    Untrusted {
        /// The reason, as the verifier said it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Bytes of an index segment could not be read from where it lies.
    #[error("read {len} bytes at offset {offset} of an index segment")]
    ReadSegment {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An index segment could not be written to where it was to go.
    #[error("write an index segment")]
    WriteSegment {
        /// The reason.
        source: io::Error,
    },
}

impl CatalogError {
    pub(crate) fn malformed(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { what, reason: reason.into() }
    }
}
