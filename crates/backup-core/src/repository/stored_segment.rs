//! An index segment as lookups read it, block by block: from the local cache, and anew from the store when a block there
//! is damaged; or by ranges from the store, until the whole is the better choice.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use bytes::Bytes;
use keepwell_catalog::{CatalogError, ContentName, ReadAt, names};
use tokio::runtime::Handle;

use super::ranges::Ranges;
use super::{Inner, Repository};
use crate::Error;
use crate::cache::CachedFile;

impl ReadAt for CachedFile {
    fn len(&self) -> Result<u64, CatalogError> {
        Ok(CachedFile::len(self))
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        CachedFile::read_at(self, offset, len).map_err(|source| failed(offset, len, source))
    }
}

/// The plaintext of a segment. Its tables prove every block; what they refuse came from a cache that was damaged.
pub(super) struct StoredSegment {
    name: ContentName,
    /// Weak: the segment is part of the repository's index.
    repository: Weak<Inner>,
    handle: Handle,
    state: RwLock<State>,
}

struct State {
    place: Place,
    /// Fetched whole by us: whatever is wrong now is wrong in the store.
    fetched: bool,
}

#[derive(Clone)]
enum Place {
    Far(Arc<Ranges>),
    Near(CachedFile),
}

impl StoredSegment {
    /// One that the cache has. Must be called within a tokio runtime.
    pub fn cached(repository: &Repository, name: ContentName, file: CachedFile) -> Self {
        Self::new(repository, name, Place::Near(file))
    }

    /// One that stays in the store. Must be called within a tokio runtime, and read on threads that may block.
    pub fn far(repository: &Repository, name: ContentName, ranges: Ranges) -> Self {
        Self::new(repository, name, Place::Far(Arc::new(ranges)))
    }

    fn new(repository: &Repository, name: ContentName, place: Place) -> Self {
        let (repository, handle) = (repository.downgrade(), Handle::current());
        Self { name, repository, handle, state: RwLock::new(State { place, fetched: false }) }
    }

    fn repository(&self) -> Result<Repository, Error> {
        self.repository.upgrade().map(Repository).ok_or(Error::Cancelled)
    }

    fn place(&self) -> Place {
        self.state.read().unwrap_or_else(PoisonError::into_inner).place.clone()
    }

    /// Fetches the segment whole and proves it by its name, unless that was done.
    fn fetch(&self) -> Result<CachedFile, Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let (Place::Near(file), true) = (&state.place, state.fetched) {
            return Ok(file.clone());
        }
        let repository = self.repository()?;
        let size = match &state.place {
            Place::Far(ranges) => Some(ranges.size()),
            Place::Near(_) => None,
        };
        let file = wait(&self.handle, fetch(&repository, &self.name, size))?;
        *state = State { place: Place::Near(file.clone()), fetched: true };
        Ok(file)
    }

    fn read_far(&self, ranges: &Ranges, offset: u64, len: usize) -> Result<Bytes, Error> {
        let repository = self.repository()?;
        let identities = repository.access().index_identities();
        wait(&self.handle, ranges.read(repository.store(), identities, offset, len))
    }
}

impl ReadAt for StoredSegment {
    fn len(&self) -> Result<u64, CatalogError> {
        match self.place() {
            Place::Far(ranges) => Ok(ranges.len()),
            Place::Near(file) => ReadAt::len(&file),
        }
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, CatalogError> {
        let file = match self.place() {
            Place::Near(file) => file,
            Place::Far(ranges) if ranges.are_spent() => {
                self.fetch().map_err(|error| failed(offset, len, error))?
            }
            Place::Far(ranges) => {
                return self.read_far(&ranges, offset, len).map_err(|error| failed(offset, len, error));
            }
        };
        ReadAt::read_at(&file, offset, len)
    }

    /// What is wrong with one that is far, whoever reads the index whole will find out.
    fn renew(&self) -> Result<bool, CatalogError> {
        if self.is_far() {
            return Ok(false);
        }
        self.fetch().map(|_| true).map_err(|error| failed(0, 0, error))
    }

    fn is_far(&self) -> bool {
        matches!(self.place(), Place::Far(_))
    }
}

async fn fetch(repository: &Repository, name: &ContentName, size: Option<u64>) -> Result<CachedFile, Error> {
    let size = match size {
        Some(size) => size,
        None => repository.store().head(&names::index_key(repository.group(), name)).await?.size,
    };
    repository.fetch_segment(name, size, &tokio::sync::Mutex::new(())).await
}

fn failed(
    offset: u64,
    len: usize,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CatalogError {
    CatalogError::ReadSegment { offset, len, source: source.into() }
}

/// Waits for something, on a thread of its own: lookups run on ordinary threads and within the runtime alike.
pub(super) fn wait<T: Send>(
    handle: &Handle,
    work: impl Future<Output = Result<T, Error>> + Send,
) -> Result<T, Error> {
    let ended = std::thread::scope(|scope| scope.spawn(move || handle.block_on(work)).join());
    ended.unwrap_or_else(|_| Err(Error::Task("it panicked".to_owned())))
}
