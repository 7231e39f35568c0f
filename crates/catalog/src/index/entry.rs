//! What the index is made of.

use std::collections::HashSet;

use keepwell_crypto::{ChunkId, DomainId};

use crate::names::{ContentName, ObjectName};

/// A pack, as an index segment describes it. Ordered by name, then the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackRef {
    /// Its content name.
    pub name: ContentName,
    /// Stored size in bytes.
    pub size: u64,
    /// Length of its age header in bytes, so that a range read can find the payload.
    pub header_len: u32,
    /// Domain of every chunk in it.
    pub domain: DomainId,
}

/// Where one chunk lies in one pack of its segment. Ordered by (id, pack, frame offset), then the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Ordinal of the pack in the segment's table.
    pub pack: u32,
    /// Where the frame begins in the pack's plaintext.
    pub frame_offset: u32,
    /// Stored length of the frame.
    pub frame_length: u32,
    /// Where the chunk begins in the decoded frame.
    pub offset: u32,
    /// Length of the chunk.
    pub length: u32,
}

/// Packs that count as gone: those that prune plans condemn.
#[derive(Clone, Debug, Default)]
pub struct PackSet(HashSet<ContentName>);

impl PackSet {
    /// The packs among the given store keys; other keys, as of index segments, are passed over.
    pub fn from_keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        let pack = |key: &str| match key.parse() {
            Ok(ObjectName::Pack(_, name)) => Some(name),
            _ => None,
        };
        PackSet(keys.into_iter().filter_map(pack).collect())
    }

    /// Adds a pack.
    pub fn insert(&mut self, name: ContentName) {
        self.0.insert(name);
    }

    /// Whether the pack counts as gone.
    pub fn contains(&self, name: &ContentName) -> bool {
        !self.0.is_empty() && self.0.contains(name)
    }

    /// Whether nothing is condemned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<ContentName> for PackSet {
    fn from_iter<I: IntoIterator<Item = ContentName>>(names: I) -> Self {
        PackSet(names.into_iter().collect())
    }
}
