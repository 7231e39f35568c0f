//! A repository in memory, and a receiver that fills it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::env::SystemClock;
use backup_core::wal::WalReader;
use backup_core::{CreateOptions, Created, Limits, Repository};
use bytes::Bytes;
use keepwell_source_postgres::lsn::Lsn;
use keepwell_source_postgres::receive::{Progress, ReceiveError, ReceiveOptions, Receiver};
use keepwell_source_postgres::replication::SlotName;
use keepwell_storage::{
    Capabilities, Key, Memory, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::server::options;

/// A store in memory that can be away.
#[derive(Debug)]
pub struct Store {
    memory: Memory,
    pub away: AtomicBool,
    /// What is put under a name with this in it is held back.
    pub held: Mutex<Option<String>>,
}

impl Store {
    fn there(&self, key: impl std::fmt::Display) -> Result<(), StorageError> {
        match self.away.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(StorageError::new(StorageErrorKind::Unavailable, "put", key, "it is away")),
        }
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.there(key)?;
        let held = self.held.lock().unwrap().as_ref().is_some_and(|held| key.as_str().contains(held));
        if held {
            std::future::pending::<()>().await;
        }
        self.memory.put_new(key, body).await
    }
    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.memory.get(key).await
    }
    async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes, StorageError> {
        self.memory.get_range(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.memory.head(key).await
    }
    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.memory.list_page(prefix, after).await
    }
    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.memory.delete(key).await
    }
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
    fn describe(&self) -> String {
        self.memory.describe()
    }
}

pub struct World {
    pub store: Arc<Store>,
    pub repository: Repository,
}

impl World {
    pub async fn new() -> Self {
        let store =
            Arc::new(Store { memory: Memory::new(), away: AtomicBool::new(false), held: Mutex::default() });
        let create =
            CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
        let key = Created::generate(&create, 1).unwrap().store(&*store).await.unwrap();
        let limits = Limits { threads: 2, memory_bytes: 144 << 20 };
        let repository = Repository::builder(Arc::clone(&store) as Arc<dyn ObjectStore>)
            .limits(limits)
            .open(key)
            .await
            .unwrap();
        Self { store, repository }
    }

    pub fn reader(&self, system: u64) -> WalReader {
        self.repository.wal_reader(system).unwrap()
    }

    /// Starts a receiver from a slot that it creates, with tails after a fifth of a second.
    pub fn receive(&self, connect: &str, change: impl FnOnce(&mut ReceiveOptions)) -> Running {
        let mut receive = ReceiveOptions {
            slot: SlotName::new("keepwell"),
            create_slot: true,
            tail_every: Duration::from_millis(200),
            ..ReceiveOptions::default()
        };
        change(&mut receive);
        let (stop, stopped) = watch::channel(false);
        let receiver =
            Receiver::new(self.repository.clone(), options(connect), receive, Arc::new(SystemClock), stopped);
        let progress = receiver.progress();
        Running { stop, progress, task: tokio::spawn(receiver.run()) }
    }
}

pub struct Running {
    stop: watch::Sender<bool>,
    pub progress: watch::Receiver<Progress>,
    pub task: JoinHandle<Result<Progress, ReceiveError>>,
}

impl Running {
    /// Waits until the repository has everything up to here.
    pub async fn durable(&mut self, at: Lsn) {
        self.until(|p| p.durable >= at).await;
    }

    pub async fn until(&mut self, wanted: impl FnMut(&Progress) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(120), self.progress.wait_for(wanted)).await;
        if let Err(error) = waited.map(|r| r.map(drop)) {
            panic!("{error}: {:?}", *self.progress.borrow());
        }
    }

    pub async fn stop(self) -> Progress {
        let _ = self.stop.send(true);
        self.task.await.unwrap().unwrap()
    }
}
