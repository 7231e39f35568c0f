//! What the index is made of.

use std::collections::HashSet;

use keepwell_crypto::{ChunkId, DomainId};

use crate::names::{ContentName, ObjectName, PackClass};

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

/// Packs that count as gone: those that prune plans condemn. The class is part of what a pack is: a segment may speak of
/// a pack of content as one of nodes, and what is said of the one is nothing about the other.
#[derive(Clone, Debug, Default)]
pub struct PackSet(HashSet<(PackClass, ContentName)>);

impl PackSet {
    /// The packs among the given store keys; other keys, as of index segments, are passed over.
    pub fn from_keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        let pack = |key: &str| match key.parse() {
            Ok(ObjectName::Pack(class, name)) => Some((class, name)),
            _ => None,
        };
        PackSet(keys.into_iter().filter_map(pack).collect())
    }

    /// Adds a pack.
    pub fn insert(&mut self, class: PackClass, name: ContentName) {
        self.0.insert((class, name));
    }

    /// Whether the pack counts as gone.
    pub fn contains(&self, class: PackClass, name: &ContentName) -> bool {
        !self.0.is_empty() && self.0.contains(&(class, *name))
    }

    /// Whether nothing is condemned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(PackClass, ContentName)> for PackSet {
    fn from_iter<I: IntoIterator<Item = (PackClass, ContentName)>>(packs: I) -> Self {
        PackSet(packs.into_iter().collect())
    }
}
