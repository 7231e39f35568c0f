//! A repository in memory whose store can be away, and segments that look like ones.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use backup_core::wal::WalWriter;
use backup_core::{BackupOptions, CreateOptions, Created, Repository};
use bytes::Bytes;
use keepwell_catalog::wal::WalPlace;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_storage::{
    Capabilities, Key, Memory, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};
use crate::options::ConnectOptions;
use crate::recovery::BaseBackup;

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

/// A segment that a server has finished, filled with `fill`: all of it lies within one record.
pub fn finished(system: u64, number: u64, fill: u8) -> Vec<u8> {
    const PAGE: usize = 8192;
    let mut finished = content(system, number, fill);
    finished[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
    let (start, mut left) = (size().start_of(number).get(), 1_u32 << 29);
    for (index, page) in finished.chunks_mut(PAGE).enumerate() {
        let (info, header) = if index == 0 { (3_u16, 40) } else { (1, 24) };
        page[..2].copy_from_slice(&0xd110_u16.to_le_bytes());
        page[2..4].copy_from_slice(&info.to_le_bytes());
        page[8..16].copy_from_slice(&(start + (index * PAGE) as u64).to_le_bytes());
        page[16..20].copy_from_slice(&left.to_le_bytes());
        left -= (PAGE - header) as u32;
    }
    finished
}

/// A store in memory that counts what is read, and can be away.
#[derive(Debug, Default)]
pub struct Store {
    memory: Memory,
    pub away: AtomicBool,
    /// Requests that it did not answer.
    pub refused: AtomicU64,
    pub reads: AtomicU64,
    pub lists: AtomicU64,
    /// While somebody holds it, nothing is read.
    pub gate: tokio::sync::Mutex<()>,
    /// Each request takes so long.
    pub latency: std::sync::Mutex<std::time::Duration>,
}

impl Store {
    async fn travel(&self) {
        let latency = *self.latency.lock().unwrap();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
    }

    fn there(&self, key: impl std::fmt::Display) -> Result<(), StorageError> {
        match self.away.load(Ordering::SeqCst) {
            false => Ok(()),
            true => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Err(StorageError::new(StorageErrorKind::Unavailable, "ask for", key, "it is away"))
            }
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
        self.travel().await;
        drop(self.gate.lock().await);
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.memory.get(key).await
    }
    async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes, StorageError> {
        self.there(key)?;
        self.travel().await;
        self.memory.get_range(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.there(key)?;
        self.memory.head(key).await
    }
    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.there(prefix)?;
        self.travel().await;
        self.lists.fetch_add(1, Ordering::SeqCst);
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
    key: KeyFile,
}

async fn open(store: &Arc<Store>, key: KeyFile) -> Repository {
    Repository::builder(Arc::clone(store) as Arc<dyn ObjectStore>).open(key).await.unwrap()
}

impl World {
    pub async fn new() -> Self {
        let store = Arc::new(Store::default());
        let create =
            CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
        let key = Created::generate(&create, 1).unwrap().store(&*store).await.unwrap();
        Self { repository: open(&store, key.clone()).await, store, key }
    }

    pub async fn archive(&self) -> WalWriter {
        self.repository.wal_writer("db", SYSTEM, size().get(), false).await.unwrap()
    }

    /// The same repository as another member sees it, who archives too.
    pub async fn second(&mut self) -> Repository {
        let key = self.repository.new_member("second", Roles::WRITER, None).unwrap();
        self.repository.enroll(&key).await.unwrap();
        self.repository = open(&self.store, self.key.clone()).await;
        open(&self.store, key).await
    }

    /// Archives the beginning of a segment, up to `to`.
    pub async fn put(&self, number: u64, fill: u8, to: u32) {
        let mut content = content(SYSTEM, number, fill);
        content.truncate(to as usize);
        let place = WalPlace::Bytes { file: segment(number).file_number(size()), from: 0, to };
        self.archive().await.put(1, place, Bytes::from(content), None).await.unwrap();
    }
}

/// Has somebody archive the beginning of a segment of a timeline, up to `to`.
pub async fn put_by(by: &Repository, timeline: u32, number: u64, fill: u8, to: u32) {
    let log = by.wal_writer("db", SYSTEM, size().get(), false).await.unwrap();
    let mut content = content(SYSTEM, number, fill);
    content.truncate(to as usize);
    let place = WalPlace::Bytes { file: segment(number).file_number(size()), from: 0, to };
    log.put(timeline, place, Bytes::from(content), None).await.unwrap();
}

/// Archives the history of a timeline.
pub async fn put_history(by: &Repository, timeline: u32, text: &str) {
    let log = by.wal_writer("db", SYSTEM, size().get(), false).await.unwrap();
    log.put(timeline, WalPlace::History, Bytes::from(text.to_owned()), None).await.unwrap();
}

/// A whole segment in which transactions ended at these times, in seconds since 1970; their records follow each other.
pub fn committed(number: u64, times: &[i64]) -> Vec<u8> {
    let mut content = content(SYSTEM, number, 0);
    let mut at = 40;
    for (xid, time) in times.iter().enumerate() {
        let mut record = vec![0; 24];
        record[..4].copy_from_slice(&34_u32.to_le_bytes());
        record[4..8].copy_from_slice(&(700 + xid as u32).to_le_bytes());
        // A commit, of the transaction manager, with eight bytes of main data.
        record[17] = 1;
        record.extend([255, 8]);
        record.extend(((time - 946_684_800) * 1_000_000).to_le_bytes());
        content[at..at + 34].copy_from_slice(&record);
        at += 40;
    }
    content
}

/// Archives such a segment.
pub async fn put_committed(by: &Repository, timeline: u32, number: u64, times: &[i64]) {
    let log = by.wal_writer("db", SYSTEM, size().get(), false).await.unwrap();
    let place = WalPlace::Bytes { file: segment(number).file_number(size()), from: 0, to: size().get() };
    log.put(timeline, place, Bytes::from(committed(number, times)), None).await.unwrap();
}

/// A base backup that is made up.
pub struct Made {
    things: BTreeMap<MapKey, (Entry, Vec<u8>)>,
    whole: bool,
}

impl Made {
    /// Of a cluster, from one place of its log to another, ended at this time.
    pub fn new(system: u64, from: Lsn, to: Lsn, ended_s: i64, more: &str) -> Self {
        let ended = ended_s * 1_000_000_000;
        let cluster = format!(
            r#"{{ "format": 1, "system_identifier": "{system}", "server_version_num": 150018, "timeline": 1,
            "start_lsn": "{from}", "stop_lsn": "{to}", "start_time": {ended}, "stop_time": {ended},
            "wal_segment_size": {}, "data_directory": "/nowhere/data" {more} }}"#,
            size().get()
        );
        let mut made = Self { things: BTreeMap::new(), whole: true };
        made.file("cluster.json", cluster.as_bytes());
        made.file("data/global/pg_control", &[7; 100]);
        made.file("data/PG_VERSION", b"15");
        made
    }

    pub fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.thing(path, Entry { mode: 0o600, ..Entry::new(EntryKind::File) });
        self.things.get_mut(&key(path)).unwrap().1 = content.to_vec();
        self
    }

    pub fn thing(&mut self, path: &str, entry: Entry) -> &mut Self {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.things.contains_key(&key(parent))
        {
            self.thing(parent, Entry { mode: 0o700, ..Entry::new(EntryKind::Directory) });
        }
        self.things.insert(key(path), (entry, Vec::new()));
        self
    }

    /// The same with a problem on the way.
    pub fn incomplete(self) -> Self {
        Self { whole: false, ..self }
    }

    /// The same without what is at a path and below it.
    pub fn empty_of(mut self, path: &str) -> Self {
        self.things.retain(|other, _| !other.starts_with(&key(path)));
        self
    }

    /// Takes it, under the name of this dataset.
    pub async fn back_up(self, world: &World, dataset: &str) -> BaseBackup {
        let options = BackupOptions {
            dataset: dataset.to_owned(),
            host: "host".to_owned(),
            ..BackupOptions::default()
        };
        let report = world.repository.backup(Arc::new(self), options).await.unwrap();
        let all = world.repository.snapshots().await.unwrap();
        let snapshot: Vec<_> = all.into_iter().filter(|snapshot| snapshot.id == report.snapshot).collect();
        crate::recovery::base_backups(&world.repository, &snapshot, None).await.unwrap().remove(0)
    }
}

fn key(path: &str) -> MapKey {
    MapKey::from_components(path.split('/')).unwrap()
}

impl Source for Made {
    fn kind(&self) -> &str {
        "postgres"
    }
    fn paths(&self) -> Vec<Vec<u8>> {
        vec![b"/".to_vec()]
    }
    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }
    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        if !self.whole {
            let found = Found::Problem { key: key("data/base/1/2"), message: "a damaged page".to_owned() };
            let _ = visit(found);
        }
        for (key, (entry, content)) in &self.things {
            let item = Item {
                key: key.clone(),
                kind: entry.kind,
                size: content.len() as u64,
                fingerprint: [0; 16],
                hard_link: None,
            };
            if visit(Found::Item(item)).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let (entry, content) = &self.things[&item.key];
        let content = entry.kind.has_content().then(|| Box::new(Text(content.clone())) as Box<dyn Content>);
        Ok(Some(Opened { entry: entry.clone(), content }))
    }
}

struct Text(Vec<u8>);

impl Content for Text {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<Piece> {
        let length = buf.len().min(self.0.len());
        buf[..length].copy_from_slice(&self.0[..length]);
        self.0.drain(..length);
        Ok(if length == 0 { Piece::End } else { Piece::Data(length) })
    }
    fn changed_while_read(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// A message of a server.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// A table with one row, as a server answers it.
pub fn row(values: &[(&str, &str)]) -> Vec<u8> {
    let count = (values.len() as u16).to_be_bytes();
    let (mut head, mut row) = (count.to_vec(), count.to_vec());
    for (name, value) in values {
        head.extend([name.as_bytes(), &[0; 19]].concat());
        row.extend([&(value.len() as u32).to_be_bytes(), value.as_bytes()].concat());
    }
    [message(b'T', &head), message(b'D', &row), message(b'C', b"SELECT 1\0")].concat()
}

/// A server that is played: it answers a command that begins so with this, and all others with an error.
pub async fn played(answers: Vec<(&'static str, Vec<u8>)>) -> (tempfile::TempDir, crate::wire::Client) {
    let (dir, listener, options) = socket();
    tokio::spawn(async move {
        let mut stream = greeted(&listener).await;
        let ready = message(b'Z', b"I");
        while let Ok(tag) = stream.read_u8().await {
            let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
            stream.read_exact(&mut body).await.unwrap();
            if tag != b'Q' {
                break;
            }
            let found = answers.iter().find(|(begin, _)| body.starts_with(begin.as_bytes()));
            let answer =
                found.map_or_else(|| message(b'E', b"SERROR\0C42601\0Mwhat?\0\0"), |(_, a)| a.clone());
            stream.write_all(&[answer, ready.clone()].concat()).await.unwrap();
        }
    });
    (dir, crate::wire::Client::connect(&options).await.unwrap())
}

/// A server that is played and has one database, of this name, which is its answer to every command.
pub async fn with_one_database(listener: UnixListener, name: Arc<std::sync::Mutex<&'static str>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u32().await.unwrap() as usize - 4;
        let mut start = vec![0; length];
        stream.read_exact(&mut start).await.unwrap();
        let words: Vec<&[u8]> = start.split(|byte| *byte == 0).collect();
        let asked = words.iter().position(|word| *word == b"database").map(|at| words[at + 1]);
        let asked = String::from_utf8_lossy(asked.unwrap_or_default()).into_owned();
        let name = *name.lock().unwrap();
        if asked != name {
            let refused = format!("SFATAL\0C3D000\0Mno database `{asked}`\0\0");
            stream.write_all(&message(b'E', refused.as_bytes())).await.unwrap();
            continue;
        }
        let ready = message(b'Z', b"I");
        let hello =
            [message(b'R', &[0; 4]), message(b'S', b"server_version\x0017.1\0"), ready.clone()].concat();
        stream.write_all(&hello).await.unwrap();
        while stream.read_u8().await.is_ok_and(|tag| tag == b'Q') {
            let length = stream.read_u32().await.unwrap() as usize - 4;
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            stream.write_all(&[row(&[("datname", name)]), ready.clone()].concat()).await.unwrap();
        }
    }
}

/// Where a server that is played listens, and how it is reached.
pub fn socket() -> (tempfile::TempDir, UnixListener, ConnectOptions) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
    let text = format!("host={} user=ann dbname=x", dir.path().display());
    let options = ConnectOptions::resolve(&text, &Default::default(), "test").unwrap();
    (dir, listener, options)
}

/// The next connection, let in.
pub async fn greeted(listener: &UnixListener) -> UnixStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let length = stream.read_u32().await.unwrap() as usize - 4;
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    let hello =
        [message(b'R', &[0; 4]), message(b'S', b"server_version\x0017.1\0"), message(b'Z', b"I")].concat();
    stream.write_all(&hello).await.unwrap();
    stream
}
