//! Ending in time: a signal, and a source and a store that heed it, so that the engine fails and ends its session.

use std::ops::{ControlFlow, Range};
use std::process::exit;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use backup_core::source::{Found, Item, Opened, Order, Preflight, Previous, Source, SourceError};
use bytes::Bytes;
use keepwell_storage::{
    Capabilities, Control, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether the agent is to end.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens to SIGTERM and SIGINT from now on. The second one ends the process at once.
    pub fn on_signals() -> anyhow::Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                if sender.send_replace(true) {
                    exit(130);
                }
                tracing::info!("ending; what is stored is kept");
            }
        });
        Ok(Self(receiver))
    }

    /// Whether the agent is to end.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the agent is to end.
    pub async fn requested(&mut self) {
        // The sender lives as long as the process, so this cannot fail before the end.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// A source that fails once the agent is to end.
///
/// The engine takes an item that fails for one that cannot be read, and would make a snapshot without it; so this needs
/// [`StoppableStore`] beneath the same repository.
pub struct StoppableSource {
    inner: Arc<dyn Source>,
    stop: Stop,
}

impl StoppableSource {
    /// Wraps a source.
    pub fn new(inner: Arc<dyn Source>, stop: Stop) -> Self {
        Self { inner, stop }
    }

    fn check(&self) -> Result<(), SourceError> {
        if self.stop.is_requested() { Err(SourceError::Other("interrupted".to_owned())) } else { Ok(()) }
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
        self.inner.open(item)
    }
}

/// A store that takes no manifest, and so no snapshot, once the agent is to end.
#[derive(Debug)]
pub struct StoppableStore<S> {
    inner: S,
    stop: Stop,
}

impl<S> StoppableStore<S> {
    /// Wraps a store.
    pub fn new(inner: S, stop: Stop) -> Self {
        Self { inner, stop }
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for StoppableStore<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        if self.stop.is_requested() && key.as_str().starts_with("manifests/") {
            return Err(StorageError::new(StorageErrorKind::Other, "put", key, "interrupted"));
        }
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
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

    fn control(&self) -> Option<Arc<dyn Control>> {
        self.inner.control()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup_core::env::SystemClock;
    use backup_core::{BackupOptions, CreateOptions, Created, Repository};
    use keepwell_source_files::{FileOptions, FileSource};
    use keepwell_storage::{Memory, list_all};

    /// Asks to end when the first file is opened: by then the walk of a small tree is over.
    struct StopAtOpen(FileSource, watch::Sender<bool>);

    impl Source for StopAtOpen {
        fn kind(&self) -> &str {
            self.0.kind()
        }

        fn paths(&self) -> Vec<Vec<u8>> {
            self.0.paths()
        }

        fn preflight(&self) -> Result<Preflight, SourceError> {
            self.0.preflight()
        }

        fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
            self.0.walk(visit)
        }

        fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
            self.1.send_replace(true);
            self.0.open(item)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_interrupted_backup_leaves_no_snapshot_with_half_of_the_files() {
        let tree = tempfile::tempdir().unwrap();
        for n in 0..100 {
            std::fs::write(tree.path().join(n.to_string()), n.to_string()).unwrap();
        }
        let (sender, receiver) = watch::channel(false);
        let stop = Stop(receiver);
        let options =
            CreateOptions { owner: "test".into(), member: "test".into(), store_hint: None, probe: None };
        let store = Arc::new(StoppableStore::new(Memory::new(), stop.clone()));
        let key = Created::generate(&options, 1).unwrap().store(&*store).await.unwrap();
        let repository =
            Repository::builder(Arc::clone(&store) as Arc<dyn ObjectStore>).open(key).await.unwrap();
        let options = FileOptions { paths: vec![tree.path().to_owned()], ..FileOptions::default() };
        let source = FileSource::new(&options, Arc::new(SystemClock)).unwrap();
        let source = StoppableSource::new(Arc::new(StopAtOpen(source, sender)), stop);
        repository.backup(Arc::new(source), BackupOptions::default()).await.unwrap_err();
        assert!(repository.snapshots().await.unwrap().is_empty());
        // The session was ended, though.
        assert_eq!(list_all(&*store, "commits/").await.unwrap().len(), 1);
    }
}
