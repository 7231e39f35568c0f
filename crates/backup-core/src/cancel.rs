//! Ending an operation from outside, in time and in order.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_storage::{
    Capabilities, Control, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};
use tokio::sync::Notify;

use crate::Error;
use crate::repository::Repository;

/// A wish that work should end, shared by whoever has it and whatever heeds it. All clones are one.
///
/// Given to [`Builder::cancel`](crate::Builder::cancel). Once it is uttered, the operations of that repository fail with
/// [`Error::Cancelled`], soon: calls of the store that are on their way are given up, sources and targets are not asked
/// for more. What would have ended well within the same instant may still succeed. Sessions are ended, so that nobody
/// waits for them; what is stored is kept, and found again by the next run. It cannot be taken back.
/// ```
/// use std::sync::Arc;
/// use backup_core::{Cancel, CheckOptions, CreateOptions, Created, Error, Repository};
/// use keepwell_storage::Memory;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Error> {
/// # let store = Arc::new(Memory::new());
/// # let options = CreateOptions { owner: "ann".into(), member: "web1".into(), store_hint: None, probe: None };
/// # let key = Created::generate(&options, 0)?.store(&*store).await?;
/// let cancel = Cancel::default();
/// let repository = Repository::builder(store).cancel(cancel.clone()).open(key).await?;
/// cancel.cancel(); // from a signal handler, say
/// assert!(matches!(repository.check(CheckOptions::default()).await, Err(Error::Cancelled)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_cancelled: AtomicBool,
    told: Notify,
}

impl Cancel {
    /// Utters it.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        self.0.told.notify_waiters();
    }

    /// Whether it was uttered.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// Returns when it is.
    pub async fn cancelled(&self) {
        loop {
            let told = self.0.told.notified();
            if self.is_cancelled() {
                return;
            }
            told.await;
        }
    }

    /// For loops that meet neither a store nor anything else that fails.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

impl Repository {
    /// Does the work; whatever error it ends with is [`Error::Cancelled`] if that was wished.
    pub(crate) async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let done = work.await;
        if done.is_err() && self.cancel().is_cancelled() { Err(Error::Cancelled) } else { done }
    }

    /// The same, giving the work up amid whatever it waits for, also calls of the store that pass as last words.
    pub(crate) async fn until_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.cancel().cancelled() => Err(Error::Cancelled),
            done = self.unless_cancelled(work) => done,
        }
    }
}

/// What may still be stored, and read back to see whether it was: the records that end a session, and the last of a log.
const LAST_WORDS: [&str; 4] = ["commits/", "lists/", "sessions/", "wal/"];

fn is_last_word(key: &Key) -> bool {
    LAST_WORDS.iter().any(|prefix| key.as_str().starts_with(prefix))
}

/// A store that passes everything through until the work is to end.
pub(crate) struct CancellableStore {
    inner: Arc<dyn ObjectStore>,
    cancel: Cancel,
}

impl CancellableStore {
    pub fn new(inner: Arc<dyn ObjectStore>, cancel: Cancel) -> Self {
        Self { inner, cancel }
    }

    async fn unless_cancelled<T>(
        &self,
        operation: &'static str,
        subject: impl fmt::Display,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {
                Err(StorageError::new(StorageErrorKind::Other, operation, subject, "the work was cancelled"))
            }
            done = work => done,
        }
    }
}

impl fmt::Debug for CancellableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for CancellableStore {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        // The index of what is stored already is what the next run finds it by.
        if is_last_word(key) || key.as_str().starts_with("index/") {
            return self.inner.put_new(key, body).await;
        }
        self.unless_cancelled("put", key, self.inner.put_new(key, body)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        if is_last_word(key) {
            return self.inner.get(key).await;
        }
        self.unless_cancelled("get", key, self.inner.get(key)).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        if is_last_word(key) {
            return self.inner.get_at_most(key, most).await;
        }
        self.unless_cancelled("get", key, self.inner.get_at_most(key, most)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.unless_cancelled("get range", key, self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        if is_last_word(key) {
            return self.inner.head(key).await;
        }
        self.unless_cancelled("head", key, self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        if LAST_WORDS.contains(&prefix) {
            return self.inner.list_page(prefix, after).await;
        }
        self.unless_cancelled("list", prefix, self.inner.list_page(prefix, after)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.unless_cancelled("delete", key, self.inner.delete(key)).await
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

#[cfg(test)]
mod tests;
