//! Finished packs on their way to the store, and the index of what arrived.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use keepwell_catalog::{
    ContentName, IndexEntry, Manifest, PackClass, SegmentBuilder, names, seal_record, snapshot_id,
};
use keepwell_crypto::{ChunkId, Digest, SnapshotId};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::Known;
use crate::Error;
use crate::pack::FinishedPack;
use crate::planted::planted;
use crate::repository::Repository;

/// Packs being stored at once; each holds its bytes in memory.
pub(super) const IN_FLIGHT_MAX: usize = 2;
/// An index segment is written when this many entries wait, so that memory stays flat and interrupted work is found again.
pub(crate) const SEGMENT_ENTRIES_MAX: usize = 32_768;
/// Likewise after this many packs.
const SEGMENT_PACKS_MAX: usize = 256;
/// Likewise when the first of them has waited for so long: what a backup that dies stores in vain is at most what it stored
/// in this time, however slow the way to the store is.
const SEGMENT_EVERY: Duration = Duration::from_secs(300);

/// Stores packs in the background and writes index segments once their packs are durable.
///
/// A failed upload is remembered and fails the next call; nothing after it is indexed.
#[derive(Debug, Clone)]
pub(crate) struct Uploads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    repository: Repository,
    known: Arc<Known>,
    handle: Handle,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    running: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    failed: Option<Error>,
    created: Vec<(String, u64)>,
    data: Waiting,
    meta: Waiting,
    chunks: u64,
    stored_bytes: u64,
}

/// Packs that are durable but not yet in an index segment.
#[derive(Debug, Default)]
struct Waiting {
    packs: Vec<FinishedPack>,
    entries: usize,
    /// When the first of them arrived, on the monotonic clock.
    since: Duration,
}

/// What was stored.
#[derive(Debug, Default, Clone)]
pub(crate) struct Stored {
    /// Names and sizes of every object created, in no particular order.
    pub created: Vec<(String, u64)>,
    /// Chunks of both classes.
    pub chunks: u64,
    /// Bytes of packs as stored.
    pub pack_bytes: u64,
}

impl Uploads {
    /// Must be called within a tokio runtime.
    pub fn new(repository: Repository, known: Arc<Known>) -> Self {
        Self(Arc::new(Inner {
            repository,
            known,
            handle: Handle::current(),
            slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            state: Mutex::default(),
            running: Mutex::default(),
        }))
    }

    /// A random suffix for an object's name.
    pub fn fresh_suffix(&self) -> [u8; 4] {
        self.0.repository.random_suffix()
    }

    /// What need not be stored again.
    pub fn known(&self) -> &Known {
        &self.0.known
    }

    /// Hands over a finished pack. Blocks while too many are on their way; fails if an earlier one failed.
    /// Must be called from an ordinary thread.
    pub fn submit(&self, pack: FinishedPack) -> Result<(), Error> {
        let slots = Arc::clone(&self.0.slots);
        let slot = self.0.handle.block_on(slots.acquire_owned()).expect("the semaphore is never closed");
        if let Some(error) = &self.state().failed {
            return Err(error.clone());
        }
        let inner = Arc::clone(&self.0);
        let task = async move {
            if let Err(error) = inner.store_pack(pack).await {
                lock(&inner.state).failed.get_or_insert(error);
            }
            drop(slot);
        };
        let mut running = lock(&self.0.running);
        while let Some(ended) = running.try_join_next() {
            self.note(ended);
        }
        running.spawn_on(task, &self.0.handle);
        Ok(())
    }

    /// Waits for every pack and writes the rest of the index. Afterwards more packs may be submitted.
    pub async fn flush(&self) -> Result<(), Error> {
        self.wait().await;
        if let Some(error) = &self.state().failed {
            return Err(error.clone());
        }
        // Where the one cannot be written, the other may be: what no segment lists is stored again.
        let mut flushed = Ok(());
        for (class, packs) in self.take_waiting() {
            let written = self.0.write_segment(class, packs).await;
            flushed = flushed.and(written);
        }
        flushed
    }

    /// After a failure, while the session is still open: what is durable goes into the index, as far as that succeeds, so
    /// that the next run finds it.
    pub async fn salvage(&self) {
        self.wait().await;
        for (class, packs) in self.take_waiting() {
            let _ = self.0.write_segment(class, packs).await;
        }
    }

    async fn wait(&self) {
        let mut running = std::mem::take(&mut *lock(&self.0.running));
        if planted("commit-before-packs") {
            running.detach_all();
        }
        while let Some(ended) = running.join_next().await {
            self.note(ended);
        }
    }

    fn take_waiting(&self) -> [(PackClass, Vec<FinishedPack>); 2] {
        let mut state = self.state();
        [
            (PackClass::Meta, std::mem::take(&mut state.meta).packs),
            (PackClass::Data, std::mem::take(&mut state.data).packs),
        ]
    }

    /// Adds an object that was stored by other means to what the session created.
    pub fn created(&self, key: String, size: u64) {
        self.state().created.push((key, size));
    }

    /// Stores a manifest, for a commit to name. One that no reader would take, as of ten thousand keys of others, is
    /// refused.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(ContentName, SnapshotId), Error> {
        let cbor = manifest.encode();
        Manifest::decode(&cbor)?;
        let repository = &self.0.repository;
        let sealed = seal_record(std::slice::from_ref(&repository.domain().recipient), &cbor)?;
        let size = sealed.len() as u64;
        let (name, key) = repository.put_content(names::manifest_key, sealed.clone()).await?;
        repository.records().keep(&key, &sealed);
        self.created(key.to_string(), size);
        Ok((name, snapshot_id(&cbor)))
    }

    /// Everything so far.
    pub fn stored(&self) -> Stored {
        let state = self.state();
        Stored { created: state.created.clone(), chunks: state.chunks, pack_bytes: state.stored_bytes }
    }

    /// Reads plans and index anew after a checkpoint's new session was claimed.
    pub async fn renew(&self) -> Result<(), Error> {
        if planted("checkpoint-keeps-index") {
            return Ok(());
        }
        let plans = crate::repository::read_plans(&self.0.repository).await?;
        self.0.repository.refresh_index().await?;
        self.0.known.renew(self.0.repository.index(), plans.doomed_packs());
        Ok(())
    }

    /// Forgets what was created, for the next session of the same capture.
    pub fn take_created(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.state().created)
    }

    /// A task that died has stored nothing, and said nothing.
    fn note(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            self.state().failed.get_or_insert(Error::Task(error.to_string()));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl Inner {
    async fn store_pack(&self, mut pack: FinishedPack) -> Result<(), Error> {
        let key = names::pack_key(pack.class, &pack.reference.name);
        let bytes = std::mem::take(&mut pack.bytes);
        let size = bytes.len() as u64;
        self.repository.put_new(&key, bytes).await?;
        let class = pack.class;
        let now = self.repository.clock().monotonic();
        let ready = {
            let mut state = lock(&self.state);
            state.created.push((key.to_string(), size));
            state.chunks += pack.entries.len() as u64;
            state.stored_bytes += size;
            let waiting = match class {
                PackClass::Data => &mut state.data,
                PackClass::Meta => &mut state.meta,
            };
            if waiting.packs.is_empty() {
                waiting.since = now;
            }
            waiting.entries += pack.entries.len();
            waiting.packs.push(pack);
            let full = waiting.entries >= SEGMENT_ENTRIES_MAX
                || waiting.packs.len() >= SEGMENT_PACKS_MAX
                || now.saturating_sub(waiting.since) >= SEGMENT_EVERY;
            if full { std::mem::take(waiting).packs } else { Vec::new() }
        };
        self.write_segment(class, ready).await
    }

    async fn write_segment(&self, class: PackClass, packs: Vec<FinishedPack>) -> Result<(), Error> {
        if packs.is_empty() || planted("commit-before-index") {
            return Ok(());
        }
        let ids: Vec<ChunkId> = packs.iter().flat_map(|p| p.entries.iter().map(|e| e.id)).collect();
        let repository = self.repository.clone();
        let built = tokio::task::spawn_blocking(move || build_segment(&repository, class, packs)).await;
        let (plain, sealed) = built.map_err(|e| Error::Task(e.to_string()))??;
        let (name, key) = self.repository.index_name(&sealed, self.repository.random_suffix());
        let size = sealed.len() as u64;
        self.repository.put_new(&key, sealed).await?;
        lock(&self.state).created.push((key.to_string(), size));
        self.repository.adopt_segment(&name, plain, &self.known.index())?;
        self.known.settle(ids.iter());
        Ok(())
    }
}

fn build_segment(
    repository: &Repository,
    class: PackClass,
    packs: Vec<FinishedPack>,
) -> Result<(Bytes, Bytes), Error> {
    let mut builder = SegmentBuilder::new(repository.group(), class);
    builder.reserve(packs.iter().map(|pack| pack.entries.len()).sum());
    for pack in packs {
        let number = builder.add_pack(pack.reference);
        for entry in pack.entries {
            builder.add(IndexEntry { pack: number, ..entry });
        }
    }
    repository.seal_segment(builder, Vec::new())
}

/// Content name of stored bytes under a suffix.
pub(crate) fn name_of(stored: &[u8], suffix: [u8; 4]) -> ContentName {
    names::content_name(&Digest::of(stored), suffix)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use keepwell_storage::{Memory, Operation};
    use tokio::sync::Notify;

    use super::*;
    use crate::Cache;
    use crate::env::{Clock, Timestamp};
    use crate::testing::{
        Hook, Hooked, MemorySource, Thing, TreeModel, World, back_up, block_on, noise, options,
    };

    fn is_pack(operation: Operation, subject: &str) -> bool {
        operation == Operation::Put && subject.starts_with("data/")
    }

    /// Whose first pack ends the task that stores it.
    #[derive(Debug, Default)]
    struct Panicking(AtomicU64);

    #[async_trait::async_trait]
    impl Hook for Panicking {
        async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
            if is_pack(operation, subject) {
                assert_ne!(self.0.fetch_add(1, Ordering::SeqCst), 0, "as a fault in a store would");
            }
        }
    }

    /// A minute passes with each pack, and with the tenth the process is dead. The eighth is stored when some are listed: how
    /// many that are depends on no thread.
    #[derive(Debug, Default)]
    struct Minutes {
        packs: AtomicU64,
        listed: Notify,
    }

    impl Clock for Minutes {
        fn now(&self) -> Timestamp {
            1
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(60 * self.packs.load(Ordering::SeqCst))
        }
    }

    #[async_trait::async_trait]
    impl Hook for Arc<Minutes> {
        async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
            if is_pack(operation, subject) && self.packs.fetch_add(1, Ordering::SeqCst) + 1 == 8 {
                // That nothing is listed shows below.
                let _ = tokio::time::timeout(Duration::from_secs(60), self.listed.notified()).await;
            }
        }

        async fn after(&self, operation: Operation, subject: &str) {
            if operation == Operation::Put && subject.starts_with("index/") {
                self.listed.notify_one();
            }
        }

        fn is_gone(&self) -> bool {
            self.packs.load(Ordering::SeqCst) > 9
        }
    }

    /// The first index segment does not arrive.
    #[derive(Debug, Default)]
    struct LosesFirst {
        segments: AtomicU64,
        is_lost: AtomicBool,
    }

    #[async_trait::async_trait]
    impl Hook for LosesFirst {
        async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
            let is_segment = operation == Operation::Put && subject.starts_with("index/");
            let is_first = is_segment && self.segments.fetch_add(1, Ordering::SeqCst) == 0;
            self.is_lost.store(is_first, Ordering::SeqCst);
        }

        fn is_gone(&self) -> bool {
            self.is_lost.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn packs_of_content_are_listed_also_where_those_of_nodes_cannot_be() {
        block_on(async {
            let world = World::new().await;
            let store = Arc::new(Hooked::new(world.store.inner().clone(), LosesFirst::default()));
            let repository = Repository::builder(store).open(world.key.clone()).await.unwrap();
            let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
            let failed = repository.backup(Arc::new(MemorySource::new(tree)), options("data")).await;
            assert!(matches!(failed, Err(Error::Storage(_))), "{failed:?}");
            let index = world.open(&world.key).await;
            index.refresh_index().await.unwrap();
            let classes: Vec<PackClass> = index.index().segments().iter().map(|(_, s)| s.class()).collect();
            assert_eq!(classes, [PackClass::Data]);
        });
    }

    #[test]
    fn a_manifest_that_no_reader_takes_is_not_committed() {
        block_on(async {
            let world = World::new().await;
            let repository = world.open(&world.key).await;
            let tree = TreeModel::default().with("a", Thing::file("a"));
            let extra = |keys: u32| (0..keys).map(|n| (n.to_string(), Vec::new())).collect();
            for (keys, is_read) in [(10_001, false), (10_000, true)] {
                let source = Arc::new(MemorySource::new(tree.clone()));
                let options = crate::BackupOptions { extra: extra(keys), ..options("data") };
                let made = repository.backup(source, options).await;
                assert_eq!(made.is_ok(), is_read, "{made:?}");
                assert_eq!(repository.snapshots().await.unwrap().len(), usize::from(is_read));
            }
        });
    }

    #[test]
    fn a_task_that_dies_with_a_pack_fails_the_backup() {
        block_on(async {
            let world = World::new().await;
            let store = Arc::new(Hooked::new(world.store.inner().clone(), Panicking::default()));
            let builder =
                Repository::builder(store).limits(crate::Limits { threads: 1, memory_bytes: 64 << 20 });
            let repository = builder.open(world.key.clone()).await.unwrap();
            let files = (0..60).map(|n| (format!("{n:03}"), Thing::file(noise(n, 1 << 20))));
            let tree = files.fold(TreeModel::default(), |tree, (name, file)| tree.with(&name, file));
            let options =
                crate::BackupOptions { chunk_sizes: crate::chunker::ChunkSizes::FILES, ..options("data") };
            let failed = repository.backup(Arc::new(MemorySource::new(tree)), options).await.unwrap_err();
            assert!(matches!(failed, Error::Task(_)), "{failed}");
            assert!(world.open(&world.key).await.snapshots().await.unwrap().is_empty());
        });
    }

    #[test]
    fn a_backup_that_dies_loses_the_packs_of_the_last_minutes() {
        block_on(async {
            let world = World::new().await;
            // 100 MB in packs of about 5 MB.
            let files = (0..100).map(|n| (format!("{n:03}"), Thing::file(noise(n, 1 << 20))));
            let tree = files.fold(TreeModel::default(), |tree, (name, file)| tree.with(&name, file));
            let options = || crate::BackupOptions {
                chunk_sizes: crate::chunker::ChunkSizes::FILES,
                checkpoint_every: Duration::MAX,
                ..options("data")
            };
            let minutes = Arc::new(Minutes::default());
            let store = Arc::new(Hooked::new(world.store.inner().clone(), Arc::clone(&minutes)));
            let builder = Repository::builder(store).cache(Cache::memory()).clock(minutes);
            let dying = builder.limits(crate::Limits { threads: 1, memory_bytes: 64 << 20 });
            let dying = dying.open(world.key.clone()).await.unwrap();
            let source = Arc::new(MemorySource::new(tree.clone()));
            dying.backup(source, options()).await.unwrap_err();
            let packs = world.names("data/").await.len();
            assert!(packs >= 8, "{packs}");
            let index = world.open(&world.key).await;
            index.refresh_index().await.unwrap();
            let listed: usize = index.index().segments().iter().map(|(_, s)| s.packs().len()).sum();
            assert!(listed >= packs - 5, "{listed} of {packs} are listed");
            let source = Arc::new(MemorySource::new(tree));
            let report = index.backup(source, options()).await.unwrap();
            let again = report.statistics.new_plain_bytes;
            assert!(again < 100 << 20, "what is listed is not stored again");
            back_up(&index, &TreeModel::default()).await;
        });
    }
}
