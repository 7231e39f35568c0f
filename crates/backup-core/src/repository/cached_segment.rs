//! An index segment that is read from the local cache block by block, and fetched anew when a block there is damaged.

use std::sync::{PoisonError, RwLock, Weak};

use bytes::Bytes;
use keepwell_catalog::{CatalogError, ContentName, ReadAt};
use tokio::runtime::Handle;

use super::{Inner, Repository};
use crate::Error;
use crate::cache::CachedFile;

impl ReadAt for CachedFile {
    fn len(&self) -> Result<u64, CatalogError> {
        Ok(CachedFile::len(self))
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        CachedFile::read_at(self, offset, len).map_err(|source| CatalogError::ReadSegment {
            offset,
            len,
            source: source.into(),
        })
    }
}

/// The plaintext of a segment. Its tables prove every block; what they refuse came from a cache that was damaged.
pub(super) struct CachedSegment {
    name: ContentName,
    /// Weak: the segment is part of the repository's index.
    repository: Weak<Inner>,
    handle: Handle,
    state: RwLock<State>,
}

struct State {
    file: CachedFile,
    /// Fetched anew once: whatever is wrong now is wrong in the store.
    renewed: bool,
}

impl CachedSegment {
    /// Must be called within a tokio runtime.
    pub fn new(repository: &Repository, name: ContentName, file: CachedFile) -> Self {
        Self {
            name,
            repository: repository.downgrade(),
            handle: Handle::current(),
            state: RwLock::new(State { file, renewed: false }),
        }
    }

    /// Fetches the segment and proves it by its name. Lookups run on ordinary threads and within the runtime alike, so
    /// this waits on a thread of its own.
    fn fetch(&self) -> Result<CachedFile, Error> {
        let inner = self.repository.upgrade().ok_or(Error::Cancelled)?;
        let repository = Repository(inner);
        let fetch = || self.handle.block_on(repository.fetch_segment(&self.name));
        let fetched = std::thread::scope(|scope| scope.spawn(fetch).join());
        let plain = fetched.unwrap_or_else(|_| Err(Error::Task("it panicked".to_owned())))?;
        Ok(repository.cache_segment(&self.name, plain))
    }
}

impl ReadAt for CachedSegment {
    fn len(&self) -> Result<u64, CatalogError> {
        ReadAt::len(&self.state.read().unwrap_or_else(PoisonError::into_inner).file)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        ReadAt::read_at(&self.state.read().unwrap_or_else(PoisonError::into_inner).file, offset, len)
    }

    fn renew(&self) -> Result<bool, CatalogError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !state.renewed {
            let failed = |error: Error| CatalogError::ReadSegment { offset: 0, len: 0, source: error.into() };
            state.file = self.fetch().map_err(failed)?;
            state.renewed = true;
        }
        Ok(true)
    }
}
