//! The records of a Keepwell repository: the Merkle map with its entries, the index, manifests, commits, retention.
//!
//! Pure functions over bytes: nothing here opens a socket, reads a clock or prints. Every decoder is bounded and refuses
//! what its encoder cannot have written; no input makes one panic or allocate beyond its limits.
//!
//! A snapshot is the root of a map from paths to entries, and the names of all objects are made here:
//!
//! ```
//! use keepwell_catalog::{Entry, EntryKind, MapBuilder, MapKey, MapReader, MemoryNodes, ObjectName, push_entry};
//! use keepwell_crypto::IdKey;
//!
//! let id_key = IdKey::generate();
//! let mut nodes = MemoryNodes::new(id_key.clone());
//! let mut builder = MapBuilder::new(id_key.boundary());
//! for (path, kind) in [(vec!["etc"], EntryKind::Directory), (vec!["etc", "hosts"], EntryKind::File)] {
//!     push_entry(&mut builder, &MapKey::from_components(path)?, &Entry::new(kind), &mut nodes)?;
//! }
//! let root = builder.finish(&mut nodes)?;
//!
//! let map = MapReader::new(&nodes, root.id);
//! let hosts = map.entry(&MapKey::from_components(["etc", "hosts"])?)?;
//! assert_eq!(hosts.expect("it was put in").kind, EntryKind::File);
//!
//! assert!(matches!("trust/0000000000".parse(), Ok(ObjectName::Trust(0))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
mod cbor;
mod entry;
mod error;
mod extent;
mod frame;
pub mod index;
mod key;
mod map;
pub mod names;
mod recipe;
pub mod records;
pub mod retention;
mod seal;
mod varint;
pub mod wal;

pub use entry::{Entry, EntryKind, INLINE_EXTENTS_MAX};
pub use error::{CatalogError, MapError};
pub use extent::Extent;
pub use index::{
    IndexEntry, IndexSet, LocatedEntry, Location, MergedEntries, PackRef, PackSet, ReadAt, Segment,
    SegmentBuilder, SortedSegmentWriter, merge,
};
pub use key::{MapKey, readable};
pub use map::{
    Change, Cursor, Diff, Entries, ExtentRun, Extents, Gap, MapBuilder, MapReader, MemoryNodes,
    NODE_BYTES_MAX, NodeSink, NodeSource, OwnedRecords, RECORD_KEY_BYTES_MAX, RECORD_VALUE_BYTES_MAX, Record,
    Root, diff, for_each_record, push_entry, record_extents, walk_nodes, walk_nodes_past,
};
pub use names::{ContentName, ObjectName, PackClass, PlanName};
pub use recipe::{RecipeReader, RecipeRef, RecipeWriter, SubRecord};
pub use records::{
    Commit, CommitKind, Kept, List, ListedObject, Manifest, Marks, Plan, Problem, Retired, RetiredSnapshot,
    Session, SessionKind, Statistics, WalCluster, WalHeader, dataset_tag, snapshot_id,
};
pub use seal::{open_keys, open_record, seal_record};
