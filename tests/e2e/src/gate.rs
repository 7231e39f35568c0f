//! A store at which one call waits until the test lets it pass.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_storage::{Capabilities, Key, Memory, ObjectInfo, ObjectStore, Operation, Page, StorageError};
use tokio::sync::Semaphore;

/// Says which call is held, by what it does and its key or prefix.
type Holds = Box<dyn Fn(Operation, &str) -> bool + Send + Sync>;

/// Holds one call: the first of the kind that it is shut for. Others pass.
pub struct Gate {
    inner: Memory,
    shut: Mutex<Option<Holds>>,
    reached: Semaphore,
    passed: Semaphore,
}

impl Gate {
    /// Wraps a store; everything passes.
    pub fn wide_open(inner: Memory) -> Self {
        Self { inner, shut: Mutex::new(None), reached: Semaphore::new(0), passed: Semaphore::new(0) }
    }

    /// Wraps a store; the first `put_new` of a key with this prefix waits.
    pub fn new(inner: Memory, prefix: impl Into<String>) -> Self {
        let (gate, prefix) = (Self::wide_open(inner), prefix.into());
        gate.shut(move |operation, key| operation == Operation::Put && key.starts_with(&prefix));
        gate
    }

    /// Wraps a store; the first `get` or `get_range` of a key with this prefix waits.
    pub fn reading(inner: Memory, prefix: impl Into<String>) -> Self {
        let (gate, prefix) = (Self::wide_open(inner), prefix.into());
        let is_read = |operation| matches!(operation, Operation::Get | Operation::GetRange);
        gate.shut(move |operation, key| is_read(operation) && key.starts_with(&prefix));
        gate
    }

    /// From now on, the first call of which this is true waits.
    pub fn shut(&self, holds: impl Fn(Operation, &str) -> bool + Send + Sync + 'static) {
        *self.holds() = Some(Box::new(holds));
    }

    /// Waits until the call is there.
    pub async fn reached(&self) {
        self.reached.acquire().await.unwrap().forget();
    }

    /// Lets it pass.
    pub fn open(&self) {
        self.passed.add_permits(1);
    }

    async fn hold(&self, operation: Operation, key: &str) {
        let held = {
            let mut shut = self.holds();
            let held = shut.as_ref().is_some_and(|holds| holds(operation, key));
            if held {
                *shut = None;
            }
            held
        };
        if held {
            self.reached.add_permits(1);
            self.passed.acquire().await.unwrap().forget();
        }
    }

    fn holds(&self) -> std::sync::MutexGuard<'_, Option<Holds>> {
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ObjectStore for Gate {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.hold(Operation::Put, key.as_str()).await;
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.hold(Operation::Get, key.as_str()).await;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.hold(Operation::GetRange, key.as_str()).await;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.hold(Operation::List, prefix).await;
        self.inner.list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.hold(Operation::Delete, key.as_str()).await;
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
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}
