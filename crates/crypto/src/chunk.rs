//! What the id key of a domain derives: chunk ids, the gear table, node boundaries.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ids::ChunkId;
use crate::random::random_bytes;

const GEAR_CONTEXT: &str = "keepwell.v1 gear table";
/// Follows the numbers of [`ChunkKind`], so that no piece of a log has the hash of a chunk.
const WAL_TYPE: u8 = 2;
const BOUNDARY_CONTEXT: &str = "keepwell.v1 node boundary";

/// What a chunk holds. Part of its id, so that content can never pass as a tree node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// Bytes of a file, an object, a dump.
    Content = 0,
    /// A node of a Merkle map.
    Node = 1,
}

/// The secret that keys every chunk id of a domain.
///
/// Without it nobody can tell whether a known file is in the repository, neither by its ids nor by its cut points.
/// ```
/// use keepwell_crypto::{ChunkKind, IdKey};
///
/// let key = IdKey::generate();
/// let id = key.chunk_id(ChunkKind::Content, b"hello");
/// assert_eq!(id, key.chunk_id(ChunkKind::Content, b"hello"), "what is there already is found again");
/// assert_ne!(id, key.chunk_id(ChunkKind::Node, b"hello"));
/// assert_ne!(id, IdKey::generate().chunk_id(ChunkKind::Content, b"hello"), "by who has the key alone");
/// ```
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct IdKey([u8; 32]);

/// Computes what [`IdKey::chunk_id`] gives, piece by piece.
pub struct ChunkHasher(blake3::Hasher);

impl ChunkHasher {
    /// Hashes the next bytes.
    pub fn update(&mut self, plaintext: &[u8]) {
        self.0.update(plaintext);
    }

    /// The id of the chunk that has all the bytes given so far.
    pub fn finish(self) -> ChunkId {
        ChunkId::from_bytes(*self.0.finalize().as_bytes())
    }
}

impl fmt::Debug for ChunkHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkHasher")
    }
}

impl IdKey {
    /// Draws a fresh key.
    pub fn generate() -> Self {
        Self(random_bytes())
    }

    /// Wraps the bytes of an existing key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes, for a keyring and nothing else.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of a chunk: BLAKE3 keyed over `kind ‖ plaintext`. About 5 GB/s on one core.
    pub fn chunk_id(&self, kind: ChunkKind, plaintext: &[u8]) -> ChunkId {
        let mut hasher = self.hasher(kind);
        hasher.update(plaintext);
        hasher.finish()
    }

    /// The id of a chunk that comes piece by piece.
    pub fn hasher(&self, kind: ChunkKind) -> ChunkHasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[kind as u8]);
        ChunkHasher(hasher)
    }

    /// What a piece of an archived log is named by: the first half of BLAKE3 keyed over `2 ‖ plaintext`.
    pub fn wal_hash(&self, plaintext: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[WAL_TYPE]).update(plaintext);
        let mut half = [0; 16];
        hasher.finalize_xof().fill(&mut half);
        half
    }

    /// The table of the content-defined chunker. Keyed, so that lengths of chunks do not identify a known file.
    pub fn gear_table(&self) -> Box<[u64; 256]> {
        let mut key = blake3::derive_key(GEAR_CONTEXT, &self.0);
        let mut stream = blake3::Hasher::new_keyed(&key).finalize_xof();
        key.zeroize();
        let mut table = Box::new([0; 256]);
        let mut word = [0; 8];
        for slot in table.iter_mut() {
            stream.fill(&mut word);
            *slot = u64::from_le_bytes(word);
        }
        table
    }

    /// The key that decides where nodes of a Merkle map end.
    pub fn boundary(&self) -> BoundaryKey {
        BoundaryKey(blake3::derive_key(BOUNDARY_CONTEXT, &self.0))
    }
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(secret)")
    }
}

/// Decides where nodes of a Merkle map end; see [`IdKey::boundary`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BoundaryKey([u8; 32]);

impl BoundaryKey {
    /// A 64-bit keyed hash of an encoded map key at a level of the tree (0 = leaves).
    pub fn hash(&self, level: u8, key: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[level]).update(key);
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first)
    }
}

impl fmt::Debug for BoundaryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoundaryKey(secret)")
    }
}
