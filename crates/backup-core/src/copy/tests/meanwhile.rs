//! What happens while a copy is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use keepwell_catalog::{ContentName, IndexEntry, PackClass, PackRef, names};
use keepwell_storage::{Memory, ObjectStore, Operation};

use crate::repository::{Repository, Snapshot};
use crate::testing::{
    Hook, Hooked, Thing, TreeModel, World, assert_same, back_up, data_pack, noise, options, restored, say,
    snapshot_of,
};
use crate::{Error, PruneOptions};

/// Forgets a snapshot and prunes, when content is first read.
#[derive(Debug)]
struct ForgetsThen {
    keeper: Repository,
    going: Snapshot,
    is_done: AtomicBool,
}

#[async_trait]
impl Hook for ForgetsThen {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        let is_content = operation == Operation::GetRange && subject.starts_with("data/");
        if is_content && !self.is_done.swap(true, Ordering::SeqCst) {
            self.keeper.forget(&[(&self.going, "test".into())]).await.unwrap();
            self.keeper.prune(PruneOptions { max_unused: 0.0, ..PruneOptions::default() }).await.unwrap();
        }
    }
}

/// Moves a pack, as a prune would, when content is first read.
#[derive(Debug)]
struct MovesThen {
    there: Repository,
    pack: PackRef,
    entries: Vec<IndexEntry>,
    is_done: AtomicBool,
}

#[async_trait]
impl Hook for MovesThen {
    async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
        let is_content = operation == Operation::GetRange && subject.starts_with("data/");
        if is_content && !self.is_done.swap(true, Ordering::SeqCst) {
            let key = |pack: &PackRef| names::pack_key(PackClass::Data, &pack.name);
            let to = PackRef { name: ContentName::new(&self.pack.name.digest(), [9; 4]), ..self.pack };
            let stored = inner.get(&key(&self.pack)).await.unwrap();
            inner.put_new(&key(&to), stored).await.unwrap();
            say(&self.there, PackClass::Data, to, &self.entries, false).await;
            inner.delete(&key(&self.pack)).await.unwrap();
        }
    }
}

/// Answers no more from the second time on that content is read.
#[derive(Debug, Default)]
struct GoneAfterOne {
    reads: AtomicU64,
}

#[async_trait]
impl Hook for GoneAfterOne {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        let is_content = operation == Operation::GetRange && subject.starts_with("data/");
        self.reads.fetch_add(u64::from(is_content), Ordering::SeqCst);
    }

    fn is_gone(&self) -> bool {
        self.reads.load(Ordering::SeqCst) > 1
    }
}

#[tokio::test]
async fn what_an_interrupted_copy_has_stored_is_found_again() {
    let from = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
    back_up(&from.repository, &tree).await;
    let report = back_up(&from.repository, &tree.with("b", Thing::file(noise(2, 5_000)))).await;
    assert_eq!(from.names("data/").await.len(), 2);
    let snapshot = snapshot_of(&from.repository, &report).await;
    let store = Arc::new(Hooked::new(from.store.inner().clone(), GoneAfterOne::default()));
    let origin = Repository::builder(store).open(from.key.clone()).await.unwrap();
    let empty = Arc::new(Memory::new());
    from.repository.create_copy(&*empty).await.unwrap();
    let target = Repository::builder(empty).open(from.key.clone()).await.unwrap();
    let ended = origin.copy_to_store(&target, std::slice::from_ref(&snapshot)).await.map(|_| ());
    assert!(matches!(ended, Err(Error::Storage(_))), "{ended:?}");
    target.refresh_index().await.unwrap();
    let (_, entries) = data_pack(&target);
    assert!(!entries.is_empty(), "the first of two packs is listed");
}

/// A restore beside it has read the plans later than the index, say.
#[tokio::test]
async fn a_copy_follows_a_pack_that_was_known_to_be_gone() {
    let from = World::new().await;
    let tree = TreeModel::default().with("a", Thing::file(noise(1, 5_000)));
    let report = back_up(&from.repository, &tree).await;
    let snapshot = snapshot_of(&from.repository, &report).await;
    let (pack, entries) = data_pack(&from.repository);
    let moves =
        MovesThen { there: from.open(&from.key).await, pack, entries, is_done: AtomicBool::new(false) };
    let store = Arc::new(Hooked::new(from.store.inner().clone(), moves));
    let origin = Repository::builder(store).open(from.key.clone()).await.unwrap();
    origin.note_gone(PackClass::Data, pack.name);
    let empty = Arc::new(Memory::new());
    origin.create_copy(&*empty).await.unwrap();
    let target = Repository::builder(empty).open(from.key.clone()).await.unwrap();
    origin.copy_to_store(&target, std::slice::from_ref(&snapshot)).await.unwrap();
    let copied = snapshot_of(&target, &report).await;
    assert_same(&restored(&target, &copied).await, &tree.as_restored());
}

/// It would lack what is gone for ever, and nobody could tell it from a copy of what was damaged.
#[tokio::test]
async fn of_a_snapshot_that_is_forgotten_meanwhile_there_is_no_copy() {
    let (from, to) = (World::new().await, World::new().await);
    let report =
        back_up(&from.repository, &TreeModel::default().with("a", Thing::file(noise(1, 5_000)))).await;
    let going = snapshot_of(&from.repository, &report).await;
    let (keeper, is_done) = (from.open(&from.key).await, AtomicBool::new(false));
    let hook = ForgetsThen { keeper, going: going.clone(), is_done };
    let store = Arc::new(Hooked::new(from.store.inner().clone(), hook));
    let origin = Repository::builder(store).open(from.key.clone()).await.unwrap();
    let wanted = std::slice::from_ref(&going);
    let report = origin.copy_snapshots(&to.repository, wanted, &options("not used")).await.unwrap();
    let [(id, why)] = &report.failed[..] else { panic!("{report:?}") };
    assert!(*id == going.id && why.contains("forgotten") && report.copied.is_empty(), "{report:?}");
    assert!(to.repository.snapshots().await.unwrap().is_empty());
}
