//! The Merkle map: one sorted map from key to value, cut into nodes that are chunks.
//!
//! Where a node ends depends on the keys in it and on a secret, never on history: equal contents give an equal root
//! however they were built, and maps that differ in a few keys share all other nodes. `docs/format.md` §9 has the bytes.
//!
//! ```
//! use keepwell_catalog::{Entry, EntryKind, MapBuilder, MapKey, MapReader, MemoryNodes, diff, push_entry};
//! use keepwell_crypto::IdKey;
//!
//! let id_key = IdKey::from_bytes([7; 32]);
//! let mut nodes = MemoryNodes::new(id_key.clone());
//! let mut build = |names: &[&str]| {
//!     let mut builder = MapBuilder::new(id_key.boundary());
//!     for name in names {
//!         let key = MapKey::from_components([name])?;
//!         push_entry(&mut builder, &key, &Entry::new(EntryKind::Directory), &mut nodes)?;
//!     }
//!     builder.finish(&mut nodes)
//! };
//! let (before, after) = (build(&["etc", "home"])?, build(&["etc", "home", "srv"])?);
//!
//! let (before, after) = (MapReader::new(&nodes, before.id), MapReader::new(&nodes, after.id));
//! assert!(after.entry(&MapKey::from_components(["srv"])?)?.is_some());
//! let changes: Vec<_> = diff(&before, &after)?.collect::<Result<_, _>>()?;
//! assert_eq!(changes.len(), 1);
//! # Ok::<(), keepwell_catalog::MapError>(())
//! ```

mod at;
mod builder;
mod diff;
mod entries;
mod memory;
mod node;
mod reader;
mod record;
mod split;
mod walk;

use bytes::Bytes;
use keepwell_crypto::ChunkId;

pub use at::ExtentRun;
pub use builder::MapBuilder;
pub use diff::{Change, Diff, diff};
pub use entries::{Entries, Extents, Gap};
pub use memory::MemoryNodes;
pub(crate) use node::shared_prefix;
pub use reader::{Cursor, MapReader, OwnedRecords, Record};
pub use record::record_extents;
pub use split::{for_each_record, push_entry};
pub use walk::{walk_nodes, walk_nodes_past};

use crate::error::MapError;

/// Largest encoded node; a reader refuses more.
pub const NODE_BYTES_MAX: usize = 1 << 20;
/// Largest key of a record, sub-key suffix included.
pub const RECORD_KEY_BYTES_MAX: usize = 1 << 16;
/// Largest value of a record. Together with the largest key it fits behind a node that is almost full.
pub const RECORD_VALUE_BYTES_MAX: usize = 768 << 10;
/// Highest number of levels of a map.
pub(crate) const LEVELS_MAX: u8 = 64;

/// Takes finished nodes and stores them as chunks of type 1.
pub trait NodeSink {
    /// Stores one encoded node and returns its id. May be handed the same node more than once.
    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, MapError>;
}

/// Delivers nodes by id.
pub trait NodeSource: Send + Sync {
    /// The encoded node, whose id the source has verified. Fails with [`MapError::Read`]. Nodes near the root are asked
    /// for again and again: a source worth its name caches.
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError>;
}

/// The root of a finished map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root {
    /// The root node.
    pub id: ChunkId,
    /// Records in the map, those of sub-keys included.
    pub entries: u64,
}
