//! Which chunks need not be stored again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use keepwell_catalog::{CatalogError, IndexSet, PackSet};
use keepwell_crypto::ChunkId;

const SHARDS: usize = 64;

/// The chunks of the repository that may be reused, plus those that this session stored or is storing.
#[derive(Debug)]
pub(crate) struct Known {
    basis: RwLock<Basis>,
    session: Vec<Mutex<HashSet<ChunkId>>>,
}

#[derive(Debug)]
struct Basis {
    index: Arc<IndexSet>,
    condemned: PackSet,
}

impl Known {
    /// `condemned` must have been read after the session was claimed and before `index` was read (docs/pruning.md).
    pub fn new(index: Arc<IndexSet>, condemned: PackSet) -> Self {
        let session = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { basis: RwLock::new(Basis { index, condemned }), session }
    }

    /// Whether the chunk is in the repository, or on its way there in this session.
    pub fn contains(&self, id: &ChunkId) -> Result<bool, CatalogError> {
        Ok(self.shard(id).contains(id) || self.stored(id)?)
    }

    /// `true` exactly once for a chunk that must be stored; the caller then stores it.
    pub fn claim(&self, id: &ChunkId) -> Result<bool, CatalogError> {
        if self.stored(id)? {
            return Ok(false);
        }
        Ok(self.shard(id).insert(*id))
    }

    /// Forgets ids of this session that an index segment in [`Known::index`] now holds.
    pub fn settle<'a>(&self, ids: impl Iterator<Item = &'a ChunkId>) {
        for id in ids {
            self.shard(id).remove(id);
        }
    }

    /// Replaces what is known from before, for a new session of the same process.
    pub fn renew(&self, index: Arc<IndexSet>, condemned: PackSet) {
        *self.basis.write().unwrap_or_else(PoisonError::into_inner) = Basis { index, condemned };
    }

    /// The index that is looked up, to which new segments are added.
    pub fn index(&self) -> Arc<IndexSet> {
        Arc::clone(&self.basis.read().unwrap_or_else(PoisonError::into_inner).index)
    }

    fn stored(&self, id: &ChunkId) -> Result<bool, CatalogError> {
        let basis = self.basis.read().unwrap_or_else(PoisonError::into_inner);
        basis.index.contains_live(id, &basis.condemned)
    }

    fn shard(&self, id: &ChunkId) -> MutexGuard<'_, HashSet<ChunkId>> {
        let shard = usize::from(id.as_bytes()[31]) % SHARDS;
        self.session[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
