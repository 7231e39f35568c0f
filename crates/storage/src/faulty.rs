//! Failing on purpose.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Capabilities, Control, Key, ObjectInfo, ObjectStore, Operation, Page, StorageError, StorageErrorKind,
};

/// What goes wrong, and at which call. Calls of all operations count together, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing; calls are counted.
    None,
    /// This call fails without effect.
    Once(u64),
    /// This call and all later ones fail without effect: the store is gone.
    FromThenOn(u64),
    /// This call takes effect, but it fails, and so do all later ones: the process dies before the answer.
    CrashAfter(u64),
    /// This call takes effect, but it fails: the answer is lost.
    LostResponse(u64),
}

/// A store that fails at a call of your choice, with `Unavailable`, so that a test can try every call in turn.
///
/// ```
/// use keepwell_storage::{Fault, Faulty, Memory, ObjectStore};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// for call in 1.. {
///     let memory = Memory::new();
///     let store = Faulty::new(memory.clone(), Fault::Once(call));
///     let stored = store.put_new(&"a".parse()?, "bytes".into()).await.is_ok();
///     assert_eq!(memory.len(), usize::from(stored), "failing call {call}");
///     if !store.fired() {
///         break; // every call was tried
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct Faulty<S> {
    inner: S,
    fault: Fault,
    calls: AtomicU64,
    fired: AtomicBool,
}

enum Verdict {
    Apply,
    Fail,
    ApplyThenFail,
}

impl<S: ObjectStore> Faulty<S> {
    /// Wraps a store.
    pub fn new(inner: S, fault: Fault) -> Self {
        Self { inner, fault, calls: AtomicU64::new(0), fired: AtomicBool::new(false) }
    }

    /// The wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Whether the fault has happened.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }

    async fn call<T>(
        &self,
        operation: Operation,
        subject: &str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        match self.verdict(call) {
            Verdict::Apply => return work.await,
            Verdict::Fail => {}
            Verdict::ApplyThenFail => drop(work.await),
        }
        self.fired.store(true, Ordering::SeqCst);
        let message = format!("call {call} fails on purpose ({:?})", self.fault);
        Err(StorageError::new(StorageErrorKind::Unavailable, operation.name(), subject, message))
    }

    fn verdict(&self, call: u64) -> Verdict {
        match self.fault {
            Fault::Once(at) if call == at => Verdict::Fail,
            Fault::FromThenOn(at) if call >= at => Verdict::Fail,
            Fault::CrashAfter(at) if call > at => Verdict::Fail,
            Fault::CrashAfter(at) | Fault::LostResponse(at) if call == at => Verdict::ApplyThenFail,
            _ => Verdict::Apply,
        }
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Faulty<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.call(Operation::Put, key.as_str(), self.inner.put_new(key, body)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.call(Operation::Get, key.as_str(), self.inner.get(key)).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        self.call(Operation::Get, key.as_str(), self.inner.get_at_most(key, most)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.call(Operation::GetRange, key.as_str(), self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.call(Operation::Head, key.as_str(), self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.call(Operation::List, prefix, self.inner.list_page(prefix, after)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.call(Operation::Delete, key.as_str(), self.inner.delete(key)).await
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

impl<S: ObjectStore> fmt::Debug for Faulty<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Faulty({:?}, {:?})", self.fault, self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    #[tokio::test]
    async fn each_fault_strikes_where_it_says() {
        for (fault, answers, stored) in [
            (Fault::None, [true, true, true], 3),
            (Fault::Once(2), [true, false, true], 2),
            (Fault::FromThenOn(2), [true, false, false], 1),
            (Fault::CrashAfter(2), [true, false, false], 2),
            (Fault::LostResponse(2), [true, false, true], 3),
            (Fault::Once(4), [true, true, true], 3),
        ] {
            let store = Faulty::new(Memory::new(), fault);
            let mut got = Vec::new();
            for name in ["a", "b", "c"] {
                got.push(store.put_new(&name.parse().unwrap(), "x".into()).await.is_ok());
            }
            assert_eq!(got, answers, "{fault:?}");
            assert_eq!(store.inner().len(), stored, "{fault:?}");
            assert_eq!(store.calls(), 3);
            assert_eq!(store.fired(), answers.contains(&false), "{fault:?}");
        }
    }
}
