//! How an interrupted command stops: the source ends and the store refuses, so that the engine fails and ends its session
//! properly. Nothing but that is stored any more.

use std::fmt;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::source::{
    Content, Found, Item, Opened, Order, Piece, Preflight, Previous, Source, SourceError,
};
use bytes::Bytes;
use keepwell_storage::{
    Capabilities, Control, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};

use crate::context::Context;
use crate::interrupt::Interrupt;

/// Passes everything through until the interrupt.
pub struct StoppableSource {
    inner: Arc<dyn Source>,
    interrupt: Interrupt,
}

impl StoppableSource {
    /// Wraps a source; from now on an interrupt ends it instead of the process.
    pub fn new(inner: Arc<dyn Source>, ctx: &Context) -> Arc<Self> {
        ctx.interrupt.ends_by_itself();
        Arc::new(Self { inner, interrupt: ctx.interrupt.clone() })
    }

    fn check(&self) -> Result<(), SourceError> {
        if self.interrupt.is_requested() { Err(SourceError::Other("interrupted".to_owned())) } else { Ok(()) }
    }
}

impl Source for StoppableSource {
    fn kind(&self) -> &str {
        self.inner.kind()
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.inner.paths()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        self.inner.preflight()
    }

    fn order(&self) -> Order {
        self.inner.order()
    }

    fn previous(&self, entries: Vec<Previous>) {
        self.inner.previous(entries);
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        self.inner.walk(&mut |found| match self.check() {
            Ok(()) => visit(found),
            Err(_) => ControlFlow::Break(()),
        })?;
        self.check()
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        self.check()?;
        let opened = self.inner.open(item)?;
        Ok(opened.map(|opened| Opened {
            content: opened.content.map(|inner| {
                Box::new(StoppableContent { inner, interrupt: self.interrupt.clone() }) as Box<dyn Content>
            }),
            ..opened
        }))
    }
}

struct StoppableContent {
    inner: Box<dyn Content>,
    interrupt: Interrupt,
}

impl Content for StoppableContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        if self.interrupt.is_requested() {
            return Err(io::Error::other("interrupted"));
        }
        self.inner.read(buf)
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        self.inner.changed_while_read()
    }

    fn chunk_bytes(&self) -> Option<usize> {
        self.inner.chunk_bytes()
    }
}

/// What may still be stored after an interrupt: the records that end a session, and the last of a log.
const LAST_WORDS: [&str; 3] = ["commits/", "sessions/", "wal/"];

/// A store that passes everything through until the interrupt.
pub struct StoppableStore<S> {
    inner: S,
    interrupt: Interrupt,
}

impl<S: ObjectStore> StoppableStore<S> {
    /// Wraps a store. It stops only work that [ends by itself](Interrupt::ends_by_itself).
    pub fn new(inner: S, interrupt: Interrupt) -> Self {
        Self { inner, interrupt }
    }

    async fn unless_stopped<T>(
        &self,
        operation: &'static str,
        subject: impl fmt::Display,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        tokio::select! {
            biased;
            () = self.interrupt.requested() => {
                Err(StorageError::new(StorageErrorKind::Other, operation, subject, "interrupted"))
            }
            done = work => done,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for StoppableStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for StoppableStore<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        if LAST_WORDS.iter().any(|prefix| key.as_str().starts_with(prefix)) {
            return self.inner.put_new(key, body).await;
        }
        self.unless_stopped("put", key, self.inner.put_new(key, body)).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        if LAST_WORDS.iter().any(|prefix| key.as_str().starts_with(prefix)) {
            return self.inner.get(key).await;
        }
        self.unless_stopped("get", key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.unless_stopped("get range", key, self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.inner.list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.unless_stopped("delete", key, self.inner.delete(key)).await
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
