//! A repository in memory whose store can be away, and segments that look like ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use backup_core::wal::WalWriter;
use backup_core::{CreateOptions, Created, Repository};
use bytes::Bytes;
use keepwell_catalog::wal::WalPlace;
use keepwell_storage::{
    Capabilities, Key, Memory, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};

use crate::lsn::{Segment, SegmentSize, Timeline};

pub const SYSTEM: u64 = 7_710_603_854_990_343_878;

pub fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub fn segment(number: u64) -> Segment {
    Segment { timeline: Timeline::FIRST, number }
}

/// A whole segment that begins with a page of WAL and is filled with `fill`.
pub fn content(system: u64, number: u64, fill: u8) -> Vec<u8> {
    let mut content = vec![fill; size().get() as usize];
    content[..2].copy_from_slice(&0xd110_u16.to_le_bytes());
    content[2..4].copy_from_slice(&2_u16.to_le_bytes());
    content[8..16].copy_from_slice(&size().start_of(number).get().to_le_bytes());
    content[24..32].copy_from_slice(&system.to_le_bytes());
    content[32..36].copy_from_slice(&size().get().to_le_bytes());
    content
}

/// A store in memory that counts what is read, and can be away.
#[derive(Debug, Default)]
pub struct Store {
    memory: Memory,
    pub away: AtomicBool,
    pub reads: AtomicU64,
}

impl Store {
    fn there(&self, key: impl std::fmt::Display) -> Result<(), StorageError> {
        match self.away.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(StorageError::new(StorageErrorKind::Unavailable, "ask for", key, "it is away")),
        }
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.there(key)?;
        self.memory.put_new(key, body).await
    }
    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.there(key)?;
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.memory.get(key).await
    }
    async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes, StorageError> {
        self.there(key)?;
        self.memory.get_range(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.there(key)?;
        self.memory.head(key).await
    }
    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.there(prefix)?;
        self.memory.list_page(prefix, after).await
    }
    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.there(key)?;
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
        let store = Arc::new(Store::default());
        let create =
            CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
        let key = Created::generate(&create, 1).unwrap().store(&*store).await.unwrap();
        let opened = Repository::builder(Arc::clone(&store) as Arc<dyn ObjectStore>).open(key).await;
        Self { store, repository: opened.unwrap() }
    }

    pub async fn archive(&self) -> WalWriter {
        self.repository.wal_writer("db", SYSTEM, size().get(), false).await.unwrap()
    }

    /// Archives the beginning of a segment, up to `to`.
    pub async fn put(&self, number: u64, fill: u8, to: u32) {
        let mut content = content(SYSTEM, number, fill);
        content.truncate(to as usize);
        let place = WalPlace::Bytes { file: segment(number).file_number(size()), from: 0, to };
        self.archive().await.put(1, place, Bytes::from(content), None).await.unwrap();
    }
}
