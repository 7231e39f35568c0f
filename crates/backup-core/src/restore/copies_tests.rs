//! What the first store has lost, or does not give, comes from its copies.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use keepwell_catalog::{MapKey, PackClass, PackRef, SegmentBuilder};
use keepwell_crypto::DomainId;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_storage::{Fault, Faulty, Memory, ObjectStore, list_all};

use crate::testing::{MemoryTarget, Thing, TreeModel, World, assert_same, back_up, noise};
use crate::{ArchiveFormat, Copies, Error, Limits, Repository, RestoreOptions, RestoreReport};

/// Copies that are opened when they are asked for.
#[derive(Debug)]
struct At(Vec<(Arc<dyn ObjectStore>, KeyFile)>);

#[async_trait]
impl Copies for At {
    async fn open(&self) -> Vec<(String, Repository)> {
        let mut opened = Vec::new();
        for (n, (store, key)) in self.0.iter().enumerate() {
            if let Ok(repository) = Repository::builder(Arc::clone(store)).open(key.clone()).await {
                opened.push((format!("copy {n}"), repository));
            }
        }
        opened
    }
}

/// A repository with one snapshot, and a store with a copy of it.
struct Pair {
    world: World,
    origin: Memory,
    copy: Memory,
    tree: TreeModel,
}

impl Pair {
    async fn new() -> Self {
        let world = World::new().await;
        let mut tree = TreeModel::default();
        for n in 0..40 {
            tree = tree.with(&format!("f{n}"), Thing::file(noise(n, 200 + 90 * n as usize)));
        }
        // Two backups: two packs of content.
        back_up(&world.repository, &TreeModel(tree.0.clone().into_iter().take(20).collect())).await;
        back_up(&world.repository, &tree).await;
        let copy = Memory::new();
        world.repository.create_copy(&copy).await.unwrap();
        let to = Repository::builder(Arc::new(copy.clone())).open(world.key.clone()).await.unwrap();
        let snapshots = world.repository.snapshots().await.unwrap();
        world.repository.copy_to_store(&to, &snapshots).await.unwrap();
        let origin = Memory::new();
        for info in list_all(&*world.store, "").await.unwrap() {
            let body = world.store.get(&info.key).await.unwrap();
            origin.put_new(&info.key, body).await.unwrap();
        }
        Self { world, origin, copy, tree }
    }

    /// Restores the newest snapshot from one store, with the copies at hand.
    async fn restore(
        &self,
        from: Arc<dyn ObjectStore>,
        copies: Vec<Memory>,
    ) -> Result<(TreeModel, RestoreReport), Error> {
        let copies = copies.into_iter().map(|store| -> Arc<dyn ObjectStore> { Arc::new(store) });
        self.restore_with(from, copies.collect()).await
    }

    /// The same with copies in any stores.
    async fn restore_with(
        &self,
        from: Arc<dyn ObjectStore>,
        copies: Vec<Arc<dyn ObjectStore>>,
    ) -> Result<(TreeModel, RestoreReport), Error> {
        let repository = self.open(from, copies).await?;
        let snapshots = repository.snapshots().await?;
        let target = MemoryTarget::default();
        let snapshot = snapshots.last().unwrap();
        let report =
            repository.restore(snapshot, Arc::new(target.clone()), RestoreOptions::default()).await?;
        Ok((target.tree(), report))
    }

    async fn open(
        &self,
        from: Arc<dyn ObjectStore>,
        copies: Vec<Arc<dyn ObjectStore>>,
    ) -> Result<Repository, Error> {
        let copies = copies.into_iter().map(|store| (store, self.world.key.clone())).collect();
        let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
        let builder = Repository::builder(from).limits(limits).copies(Box::new(At(copies)));
        builder.open(self.world.key.clone()).await
    }
}

async fn keys(store: &Memory, prefix: &str) -> Vec<keepwell_storage::Key> {
    list_all(store, prefix).await.unwrap().into_iter().map(|info| info.key).collect()
}

async fn flip(store: &Memory, key: &keepwell_storage::Key) {
    let mut body = store.get(key).await.unwrap().to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    store.delete(key).await.unwrap();
    store.put_new(key, body.into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_gone_damaged_or_unlisted_comes_from_the_copy() {
    let pair = Pair::new().await;
    for prefix in ["data/", "meta/", "index/"] {
        let objects = keys(&pair.origin, prefix).await;
        assert!(objects.len() >= 2, "{prefix}");
        for (damage, all) in [("deleted", false), ("deleted", true), ("flipped", false), ("flipped", true)] {
            let store = pair.origin.snapshot();
            for key in objects.iter().take(if all { objects.len() } else { 1 }) {
                match damage {
                    "deleted" => store.delete(key).await.unwrap(),
                    _ => flip(&store, key).await,
                }
            }
            let what = format!("{damage} {prefix}, all: {all}");
            let (tree, report) =
                pair.restore(Arc::new(store.clone()), vec![pair.copy.clone()]).await.unwrap();
            assert_eq!(report.problems, [], "{what}");
            assert_same(&tree, &pair.tree.as_restored());
            if prefix == "data/" && all {
                let (_, alone) = pair.restore(Arc::new(store), Vec::new()).await.unwrap();
                assert!(alone.problem_count > 0, "{what}: without the copy it is lost");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_neither_store_has_whole_comes_from_both() {
    let pair = Pair::new().await;
    let (origin, copy) = (pair.origin.snapshot(), pair.copy.snapshot());
    origin.delete(&keys(&origin, "data/").await[0]).await.unwrap();
    flip(&origin, &keys(&origin, "meta/").await[0]).await;
    let second = pair.copy.snapshot();
    for key in keys(&copy, "data/").await {
        flip(&copy, &key).await; // the first copy asked is of no use
    }
    let (tree, report) = pair.restore(Arc::new(origin.clone()), vec![copy.clone(), second]).await.unwrap();
    assert_eq!(report.problems, []);
    assert_same(&tree, &pair.tree.as_restored());
    // And where it is lost everywhere, the files are named, and nothing wrong is written for them.
    let (tree, report) = pair.restore(Arc::new(origin), vec![copy]).await.unwrap();
    assert!(report.problem_count > 0);
    assert_eq!(report.problem_count + report.files_written, pair.tree.0.len() as u64);
    for (key, thing) in &tree.0 {
        assert_eq!(thing.bytes(), pair.tree.0[key].bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stops_answering_amid_a_restore_is_replaced_by_its_copy() {
    let pair = Pair::new().await;
    let counting = Arc::new(Faulty::new(pair.origin.clone(), Fault::Once(u64::MAX)));
    pair.restore(Arc::clone(&counting) as _, vec![pair.copy.clone()]).await.unwrap();
    // Of the calls of a restore, the last ones read trees and content; what comes before opens the repository.
    let mut survived = 0;
    for n in (1..=counting.calls()).rev() {
        let failing = Arc::new(Faulty::new(pair.origin.clone(), Fault::FromThenOn(n)));
        let Ok((tree, report)) = pair.restore(failing, vec![pair.copy.clone()]).await else { break };
        assert_eq!(report.problems, [], "from call {n} of {} on", counting.calls());
        assert_same(&tree, &pair.tree.as_restored());
        survived += 1;
    }
    assert!(survived >= 4, "{survived} of {}", counting.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_stops_answering_is_not_asked_for_everything_that_another_has() {
    let pair = Pair::new().await;
    let origin = pair.origin.snapshot();
    for key in keys(&origin, "data/").await {
        origin.delete(&key).await.unwrap();
    }
    let restore = async |fault: Fault| {
        let first = Arc::new(Faulty::new(pair.copy.clone(), fault));
        let failing: Arc<dyn ObjectStore> = Arc::<Faulty<Memory>>::clone(&first);
        let sound: Arc<dyn ObjectStore> = Arc::new(pair.copy.clone());
        let copies = vec![failing, sound];
        let (tree, report) = pair.restore_with(Arc::new(origin.clone()), copies).await.unwrap();
        assert_eq!(report.problems, [], "{fault:?}");
        assert_same(&tree, &pair.tree.as_restored());
        first.calls()
    };
    let calls = restore(Fault::None).await;
    for n in 1..=calls {
        let in_vain = restore(Fault::FromThenOn(n)).await.saturating_sub(n - 1);
        // For each of the forty files it would be one at least.
        assert!(in_vain < 30, "{in_vain} from call {n} of {calls} on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_stops_answering_is_not_asked_for_every_chunk_that_is_read() {
    let pair = Pair::new().await;
    let origin = pair.origin.snapshot();
    for key in keys(&origin, "data/").await {
        origin.delete(&key).await.unwrap();
    }
    let bytes: u64 = pair.tree.0.values().map(|thing| thing.bytes().len() as u64).sum();
    let dump = async |fault: Fault| {
        let first = Arc::new(Faulty::new(pair.copy.clone(), fault));
        let failing: Arc<dyn ObjectStore> = Arc::<Faulty<Memory>>::clone(&first);
        let sound: Arc<dyn ObjectStore> = Arc::new(pair.copy.clone());
        let repository = pair.open(Arc::new(origin.clone()), vec![failing, sound]).await.unwrap();
        let snapshots = repository.snapshots().await.unwrap();
        let tree = repository.tree(snapshots.last().unwrap()).await.unwrap();
        let dumped = tree.dump_archive(&MapKey::root(), ArchiveFormat::Tar, &mut io::sink()).await;
        assert_eq!(dumped.unwrap().content_bytes, bytes, "{fault:?}");
        first.calls()
    };
    let calls = dump(Fault::None).await;
    for n in 1..=calls {
        let in_vain = dump(Fault::FromThenOn(n)).await.saturating_sub(n - 1);
        // For each of the forty files it would be one at least.
        assert!(in_vain < 30, "{in_vain} from call {n} of {calls} on");
    }
}

/// What the index of a copy says of its packs, in a domain that nobody has keys for.
async fn close(copy: &Repository) {
    copy.refresh_index().await.unwrap();
    for (name, segment) in copy.index().segments() {
        if segment.class() != PackClass::Data {
            continue;
        }
        let mut builder = SegmentBuilder::new(copy.group(), PackClass::Data);
        for pack in segment.packs() {
            builder.add_pack(PackRef { domain: DomainId::from_bytes([9; 4]), ..*pack });
        }
        segment.iter().for_each(|item| builder.add(item.unwrap().1));
        let (_, sealed) = copy.seal_segment(builder, Vec::new()).unwrap();
        let (_, key) = copy.index_name(&sealed, copy.random_suffix());
        copy.put_new(&key, sealed).await.unwrap();
        let known = format!("index/{}/{name}", copy.group());
        copy.store().delete(&known.parse().unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_the_keys_of_a_pack_is_passed_over() {
    let pair = Pair::new().await;
    let (origin, closed) = (pair.origin.snapshot(), pair.copy.snapshot());
    origin.delete(&keys(&origin, "data/").await[0]).await.unwrap();
    let copy = Repository::builder(Arc::new(closed.clone())).open(pair.world.key.clone()).await.unwrap();
    close(&copy).await;
    let stores = vec![closed.clone(), pair.copy.clone()];
    let (tree, report) = pair.restore(Arc::new(origin.clone()), stores).await.unwrap();
    assert_eq!(report.problems, []);
    assert_same(&tree, &pair.tree.as_restored());
    let (_, report) = pair.restore(Arc::new(origin), vec![closed]).await.unwrap();
    assert!(report.problem_count > 0);
}
