//! A store in memory in which something happens at certain calls.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_storage::{
    Capabilities, Key, Memory, ObjectInfo, ObjectStore, Operation, Page, StorageError, StorageErrorKind,
};

/// What happens around a call. `subject` is the key, or the prefix of a listing.
#[async_trait]
pub(crate) trait Hook: fmt::Debug + Send + Sync {
    async fn before(&self, _inner: &Memory, _operation: Operation, _subject: &str) {}

    async fn after(&self, _operation: Operation, _subject: &str) {}

    /// Whether the store answers no more.
    fn is_gone(&self) -> bool {
        false
    }

    fn capabilities(&self, inner: &Memory) -> Capabilities {
        inner.capabilities()
    }
}

/// Passes every call on, with what a [`Hook`] does before and after it.
#[derive(Debug)]
pub(crate) struct Hooked<H> {
    inner: Memory,
    hook: H,
}

impl<H: Hook> Hooked<H> {
    pub fn new(inner: Memory, hook: H) -> Self {
        Self { inner, hook }
    }

    async fn around<T>(
        &self,
        operation: Operation,
        subject: &str,
        call: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.hook.before(&self.inner, operation, subject).await;
        if self.hook.is_gone() {
            let kind = StorageErrorKind::Unavailable;
            return Err(StorageError::new(kind, operation.name(), subject, "the store is gone"));
        }
        let answer = call.await;
        self.hook.after(operation, subject).await;
        answer
    }
}

#[async_trait]
impl<H: Hook> ObjectStore for Hooked<H> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.around(Operation::Put, key.as_str(), self.inner.put_new(key, body)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.around(Operation::Get, key.as_str(), self.inner.get(key)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.around(Operation::GetRange, key.as_str(), self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.around(Operation::Head, key.as_str(), self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.around(Operation::List, prefix, self.inner.list_page(prefix, after)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.around(Operation::Delete, key.as_str(), self.inner.delete(key)).await
    }

    fn capabilities(&self) -> Capabilities {
        self.hook.capabilities(&self.inner)
    }

    fn describe(&self) -> String {
        "a store with a hook".into()
    }
}
