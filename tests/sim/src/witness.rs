//! Counts the failures that the engine gets to see, so that an error without a cause stands out.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_storage::{Capabilities, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind};

/// A store whose failures are counted; what is absent or exists already is an answer, not a failure.
#[derive(Debug)]
pub(crate) struct Witness<S> {
    pub inner: S,
    pub failures: Arc<AtomicU64>,
}

impl<S> Witness<S> {
    fn see<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        use StorageErrorKind as K;
        if result.as_ref().is_err_and(|e| !matches!(e.kind, K::NotFound | K::AlreadyExists | K::OutOfRange)) {
            self.failures.fetch_add(1, Ordering::SeqCst);
        }
        result
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Witness<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.see(self.inner.put_new(key, body).await)
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.see(self.inner.get(key).await)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.see(self.inner.get_range(key, range).await)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.see(self.inner.head(key).await)
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.see(self.inner.list_page(prefix, after).await)
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.see(self.inner.delete(key).await)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
