//! Counting what an operation costs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Capabilities, Control, Key, ObjectInfo, ObjectStore, Operation, Page, StorageError};

/// A store that counts its calls, so that a test can assert what an operation costs.
///
/// ```
/// use keepwell_storage::{Memory, ObjectStore, Operation, Recording};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = Recording::new(Memory::new());
/// store.put_new(&"data/pack".parse()?, "12345".into()).await?;
/// store.get_range(&"data/pack".parse()?, 1..3).await?;
/// let recorded = store.snapshot();
/// assert_eq!(recorded.calls(Operation::Put), 1);
/// assert_eq!(recorded.under(Operation::GetRange, "data").bytes, 2);
/// assert_eq!(recorded.to_string(), "1 put of data/ (5 bytes), 1 get range of data/ (2 bytes)");
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct Recording<S> {
    inner: S,
    recorded: Mutex<Recorded>,
}

/// What a [`Recording`] has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded(BTreeMap<(Operation, String), Count>);

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls, failed ones included.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Bytes of objects moved by calls that succeeded.
    pub bytes: u64,
}

impl Recorded {
    /// Calls of `operation`.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.count(operation).calls
    }

    /// Everything about `operation`.
    pub fn count(&self, operation: Operation) -> Count {
        self.sum(|(recorded, _)| *recorded == operation)
    }

    /// Everything about `operation` on keys whose first component is `top`; listings of everything have `""`.
    pub fn under(&self, operation: Operation, top: &str) -> Count {
        self.sum(|(recorded, component)| *recorded == operation && component == top)
    }

    /// Everything.
    pub fn total(&self) -> Count {
        self.sum(|_| true)
    }

    fn sum(&self, matches: impl Fn(&(Operation, String)) -> bool) -> Count {
        self.0.iter().filter(|(at, _)| matches(at)).fold(Count::default(), |sum, (_, count)| Count {
            calls: sum.calls + count.calls,
            failures: sum.failures + count.failures,
            bytes: sum.bytes + count.bytes,
        })
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ((operation, top), count)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{} {operation} of {top}/ ({} bytes)", count.calls, count.bytes)?;
        }
        Ok(())
    }
}

impl<S: ObjectStore> Recording<S> {
    /// Wraps a store, with all counts at zero.
    pub fn new(inner: S) -> Self {
        Self { inner, recorded: Mutex::default() }
    }

    /// The wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The counts so far.
    pub fn snapshot(&self) -> Recorded {
        self.recorded().clone()
    }

    /// Sets all counts to zero, and returns what they were.
    pub fn reset(&self) -> Recorded {
        std::mem::take(&mut self.recorded())
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record<T>(
        &self,
        operation: Operation,
        top: &str,
        result: Result<T, StorageError>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Result<T, StorageError> {
        let mut recorded = self.recorded();
        let count = recorded.0.entry((operation, top.to_owned())).or_default();
        count.calls += 1;
        match &result {
            Ok(done) => count.bytes += bytes(done),
            Err(_) => count.failures += 1,
        }
        drop(recorded);
        result
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Recording<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        let size = body.len() as u64;
        let result = self.inner.put_new(key, body).await;
        self.record(Operation::Put, key.first_component(), result, |()| size)
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        let result = self.inner.get(key).await;
        self.record(Operation::Get, key.first_component(), result, |body| body.len() as u64)
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        let result = self.inner.get_at_most(key, most).await;
        self.record(Operation::Get, key.first_component(), result, |body| body.len() as u64)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        let result = self.inner.get_range(key, range).await;
        self.record(Operation::GetRange, key.first_component(), result, |body| body.len() as u64)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        let result = self.inner.head(key).await;
        self.record(Operation::Head, key.first_component(), result, |_| 0)
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        let result = self.inner.list_page(prefix, after).await;
        let top = prefix.split('/').next().unwrap_or("");
        self.record(Operation::List, top, result, |_| 0)
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        let result = self.inner.delete(key).await;
        self.record(Operation::Delete, key.first_component(), result, |()| 0)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        self.inner.control()
    }
}

impl<S: ObjectStore> fmt::Debug for Recording<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Recording({:?})", self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, list_all};

    #[tokio::test]
    async fn calls_failures_and_bytes_are_told_apart() {
        let store = Recording::new(Memory::new());
        let (pack, mark): (Key, Key) = ("data/2a/x".parse().unwrap(), "keepwell.json".parse().unwrap());
        store.put_new(&pack, "0123456789".into()).await.unwrap();
        store.put_new(&pack, "0123456789".into()).await.unwrap_err();
        store.put_new(&mark, "{}".into()).await.unwrap();
        list_all(&store, "").await.unwrap();
        list_all(&store, "data/").await.unwrap();
        let recorded = store.reset();
        assert_eq!(recorded.count(Operation::Put), Count { calls: 3, failures: 1, bytes: 12 });
        assert_eq!(recorded.under(Operation::Put, "data"), Count { calls: 2, failures: 1, bytes: 10 });
        assert_eq!(recorded.under(Operation::List, "").calls, 1, "one page");
        assert_eq!(recorded.under(Operation::List, "data").calls, 1);
        assert_eq!(recorded.total().calls, 5);
        assert_eq!(store.snapshot(), Recorded::default());
    }
}
