//! Cancelled at every call of the store in turn: an end in order, and the next run completes.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_storage::{Memory, Operation};

use super::Cancel;
use crate::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use crate::testing::{
    Hook, Hooked, MemorySource, MemoryTarget, Part, Thing, TreeModel, World, assert_same, back_up, block_on,
    key, noise, options, restored, snapshot_of,
};
use crate::{ArchiveFormat, CheckOptions, Error, Limits, PruneOptions, Repository, RestoreOptions};

/// Somebody wants the work to end when the n-th call comes in.
#[derive(Debug)]
struct CancelAt {
    cancel: Cancel,
    at: u64,
    calls: Arc<AtomicU64>,
}

#[async_trait]
impl Hook for CancelAt {
    async fn before(&self, _: &Memory, _: Operation, _: &str) {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            self.cancel.cancel();
        }
    }
}

fn tree(generation: u64) -> TreeModel {
    let tree = TreeModel::default().with("d/a", Thing::file(noise(generation, 20_000)));
    tree.with("d/same", Thing::file(noise(99, 30_000)))
}

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, fence_after: Duration::ZERO, ..PruneOptions::default() }
}

const LIMITS: Limits = Limits { threads: 2, memory_bytes: 64 << 20 };

/// A copy of the store, open so that it is cancelled at call `at` from now on. Gives also its objects, and the calls that
/// opening it took.
async fn open(world: &World, at: u64) -> (Repository, Memory, Cancel, u64) {
    let (inner, cancel) = (world.store.inner().snapshot(), Cancel::default());
    let calls = Arc::new(AtomicU64::new(0));
    let hook = CancelAt { cancel: cancel.clone(), at, calls: Arc::clone(&calls) };
    let store = Hooked::new(inner.clone(), hook);
    let builder = Repository::builder(Arc::new(store)).limits(LIMITS).cancel(cancel.clone());
    let repository = builder.open(world.key.clone()).await.unwrap();
    (repository, inner, cancel, calls.load(Ordering::SeqCst))
}

async fn open_again(world: &World, objects: Memory) -> Repository {
    Repository::builder(Arc::new(objects)).limits(LIMITS).open(world.key.clone()).await.unwrap()
}

/// Cancels `work` at every call; each time it either ends well or says that it was cancelled, and leaves no session open.
/// Gives how often it was cancelled.
async fn at_every_call(
    world: &World,
    work: impl AsyncFn(&Repository) -> Result<(), Error>,
    then: impl AsyncFn(&Repository, bool),
) -> u64 {
    let (_, _, _, opening) = open(world, u64::MAX).await;
    let mut cancelled = 0;
    for at in opening + 1.. {
        let (repository, objects, cancel, _) = open(world, at).await;
        let done = work(&repository).await;
        let was_cancelled = cancel.is_cancelled();
        assert!(matches!(done, Ok(()) | Err(Error::Cancelled)), "call {at}: {done:?}");
        assert!(done.is_ok() || was_cancelled, "call {at}");
        let fresh = open_again(world, objects).await;
        let report = fresh.check(CheckOptions::default()).await.unwrap();
        assert_eq!((report.open_sessions, report.findings.len()), (0, 0), "call {at}: {report:?}");
        then(&fresh, done.is_ok()).await;
        if !was_cancelled {
            return cancelled;
        }
        cancelled += u64::from(done.is_err());
    }
    cancelled
}

#[test]
fn a_backup_is_cancelled_at_every_call() {
    block_on(async {
        let world = World::new().await;
        back_up(&world.repository, &tree(1)).await;
        let work = async |repository: &Repository| {
            let source = Arc::new(MemorySource::new(tree(2)));
            repository.backup(source, options("data")).await.map(|_| ())
        };
        let then = async |repository: &Repository, done: bool| {
            let listed = repository.snapshots().await.unwrap();
            assert_eq!(listed.len(), 1 + usize::from(done));
            let report = back_up(repository, &tree(2)).await;
            let snapshot = snapshot_of(repository, &report).await;
            assert_same(&restored(repository, &snapshot).await, &tree(2).as_restored());
        };
        assert!(at_every_call(&world, work, then).await >= 5);
    });
}

#[test]
fn a_restore_is_cancelled_at_every_call() {
    block_on(async {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree(1)).await;
        let snapshot = snapshot_of(&world.repository, &report).await;
        let target = std::cell::RefCell::new(MemoryTarget::default());
        let work = async |repository: &Repository| {
            *target.borrow_mut() = MemoryTarget::default();
            let to = Arc::new(target.borrow().clone());
            let report = repository.restore(&snapshot, to, RestoreOptions::default()).await?;
            assert_eq!(report.problems, [], "that it was cancelled is no damage");
            Ok(())
        };
        let then = async |repository: &Repository, _: bool| {
            let to = target.borrow().clone();
            repository.restore(&snapshot, Arc::new(to.clone()), RestoreOptions::default()).await.unwrap();
            assert_same(&to.tree(), &tree(1).as_restored());
        };
        assert!(at_every_call(&world, work, then).await >= 2);
    });
}

#[test]
fn a_prune_is_cancelled_at_every_call() {
    block_on(async {
        let world = World::new().await;
        let old = back_up(&world.repository, &tree(1)).await;
        let old = snapshot_of(&world.repository, &old).await;
        let kept = back_up(&world.repository, &tree(2)).await;
        let kept = snapshot_of(&world.repository, &kept).await;
        world.repository.forget(&[(&old, "test".into())]).await.unwrap();
        let work = async |repository: &Repository| repository.prune(thorough()).await.map(|_| ());
        let then = async |repository: &Repository, _: bool| {
            repository.prune(thorough()).await.unwrap();
            assert_same(&restored(repository, &kept).await, &tree(2).as_restored());
            assert_eq!(repository.usage().await.unwrap().garbage_bytes(), 0);
        };
        assert!(at_every_call(&world, work, then).await >= 10);
    });
}

/// One file without an end. Somebody wants the work to end when it has been read from.
struct Endless(Cancel);

impl Source for Endless {
    fn kind(&self) -> &str {
        "endless"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        let item = Item {
            key: key("endless"),
            kind: EntryKind::File,
            size: 1,
            fingerprint: [0; 16],
            hard_link: None,
        };
        let _ = visit(Found::Item(item));
        Ok(())
    }

    fn open(&self, _: &Item) -> Result<Option<Opened>, SourceError> {
        let content = Box::new(Self(self.0.clone()));
        Ok(Some(Opened { entry: Entry::new(EntryKind::File), content: Some(content) }))
    }
}

impl Content for Endless {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        self.0.cancel();
        buf.fill(7);
        Ok(Piece::Data(buf.len()))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

#[test]
fn what_only_reads_or_forgets_is_cancelled_at_every_call() {
    block_on(async {
        let world = World::new().await;
        let gone = snapshot_of(&world.repository, &back_up(&world.repository, &tree(1)).await).await;
        let kept = snapshot_of(&world.repository, &back_up(&world.repository, &tree(2)).await).await;
        world.repository.forget(&[(&gone, "test".into())]).await.unwrap();
        let work = async |repository: &Repository| {
            repository.snapshots().await?;
            repository.forgotten().await?;
            repository.usage().await?;
            repository.checked().await?;
            repository.tree(&kept).await?;
            repository.packs_needed(&kept, RestoreOptions::default()).await?;
            let target = Arc::new(MemoryTarget::default());
            repository.plan_restore(&kept, target, RestoreOptions::default()).await?;
            repository.forget(&[(&kept, "test".into())]).await
        };
        assert!(at_every_call(&world, work, async |_: &Repository, _: bool| {}).await >= 10);
    });
}

#[test]
fn a_content_without_an_end_is_given_up() {
    block_on(async {
        let world = World::new().await;
        let (repository, objects, cancel, _) = open(&world, u64::MAX).await;
        let ended = repository.backup(Arc::new(Endless(cancel)), options("data")).await;
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        let fresh = open_again(&world, objects).await;
        assert!(fresh.snapshots().await.unwrap().is_empty());
        assert_eq!(fresh.check(CheckOptions::default()).await.unwrap().open_sessions, 0);
    });
}

/// Wants the work to end with the first byte that it is given; counts them.
struct Enough(Cancel, usize);

impl io::Write for Enough {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.cancel();
        self.1 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Nothing is fetched any more for what was read ahead, nor for a hole.
#[test]
fn a_dump_is_cancelled_between_two_pieces_and_within_a_hole() {
    block_on(async {
        let world = World::new().await;
        let tree = TreeModel::default().with("many", Thing::file(noise(1, 1 << 20)));
        let mut hole = Thing::file(noise(2, 10));
        hole.parts.push(Part::Hole(64 << 20));
        let tree = tree.with("hole", hole);
        let report = back_up(&world.repository, &tree).await;
        for name in ["many", "hole"] {
            let (repository, _, cancel, _) = open(&world, u64::MAX).await;
            let snapshot = snapshot_of(&repository, &report).await;
            let mut enough = Enough(cancel, 0);
            let dumped = repository.tree(&snapshot).await.unwrap().dump_file(&key(name), &mut enough).await;
            assert!(matches!(dumped, Err(Error::Cancelled)), "{name}: {dumped:?}");
            assert!(enough.1 < 1 << 20, "{name}: {} bytes", enough.1);
        }
        for format in [ArchiveFormat::Tar, ArchiveFormat::TarZst] {
            let (repository, _, cancel, _) = open(&world, u64::MAX).await;
            let snapshot = snapshot_of(&repository, &report).await;
            let mut enough = Enough(cancel, 0);
            let tree = repository.tree(&snapshot).await.unwrap();
            let dumped = tree.dump_archive(&MapKey::root(), format, &mut enough).await;
            assert!(matches!(dumped, Err(Error::Cancelled)), "{dumped:?}");
        }
    });
}

/// Not one pack that arrived before the end is stored again.
#[test]
fn what_a_cancelled_backup_stored_is_in_the_index() {
    block_on(async {
        let world = World::new().await;
        let files = (0..60).map(|n| (format!("{n:03}"), Thing::file(noise(n, 1 << 20))));
        let tree = files.fold(TreeModel::default(), |tree, (name, file)| tree.with(&name, file));
        let options =
            || crate::BackupOptions { chunk_sizes: crate::chunker::ChunkSizes::FILES, ..options("data") };
        let (repository, objects, cancel, _) = open(&world, 17).await;
        let ended = repository.backup(Arc::new(MemorySource::new(tree.clone())), options()).await;
        assert!(matches!(ended, Err(Error::Cancelled)) && cancel.is_cancelled(), "{ended:?}");
        let stored = keepwell_storage::list_all(&objects, "data/").await.unwrap().len();
        let fresh = open_again(&world, objects).await;
        let usage = fresh.usage().await.unwrap();
        assert!(stored >= 2, "{stored} packs");
        assert_eq!((usage.content.packs, usage.unlisted_packs), (stored as u64, 0), "{usage:?}");
        let report = fresh.backup(Arc::new(MemorySource::new(tree)), options()).await.unwrap();
        let again = report.statistics.new_plain_bytes + usage.content.unused_pack_bytes;
        assert!(again < 61 << 20, "{again} bytes of 60 MiB");
    });
}
