//! A store at which one call waits until the test lets it pass.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_storage::{Capabilities, Key, Memory, ObjectInfo, ObjectStore, Page, StorageError};
use tokio::sync::Semaphore;

/// Which calls a gate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Puts,
    Reads,
}

/// Holds the first `put_new`, or the first reading, of a key with a prefix.
pub struct Gate {
    inner: Memory,
    holds: Holds,
    prefix: String,
    shut: AtomicBool,
    reached: Semaphore,
    passed: Semaphore,
}

impl Gate {
    /// Wraps a store; the first `put_new` waits.
    pub fn new(inner: Memory, prefix: impl Into<String>) -> Self {
        Self::holding(Holds::Puts, inner, prefix)
    }

    /// Wraps a store; the first `get` or `get_range` waits.
    pub fn reading(inner: Memory, prefix: impl Into<String>) -> Self {
        Self::holding(Holds::Reads, inner, prefix)
    }

    fn holding(holds: Holds, inner: Memory, prefix: impl Into<String>) -> Self {
        Self {
            inner,
            holds,
            prefix: prefix.into(),
            shut: AtomicBool::new(true),
            reached: Semaphore::new(0),
            passed: Semaphore::new(0),
        }
    }

    /// Waits until the call is there.
    pub async fn reached(&self) {
        self.reached.acquire().await.unwrap().forget();
    }

    /// Lets it pass.
    pub fn open(&self) {
        self.passed.add_permits(1);
    }

    async fn hold(&self, calls: Holds, key: &Key) {
        let held = self.holds == calls && key.as_str().starts_with(&self.prefix);
        if held && self.shut.swap(false, Ordering::SeqCst) {
            self.reached.add_permits(1);
            self.passed.acquire().await.unwrap().forget();
        }
    }
}

#[async_trait]
impl ObjectStore for Gate {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.hold(Holds::Puts, key).await;
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.hold(Holds::Reads, key).await;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.hold(Holds::Reads, key).await;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.inner.list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.inner.delete(key).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
