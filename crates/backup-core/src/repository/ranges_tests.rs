//! An index that is left in the store and read by ranges: what it costs, and what is believed of it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keepwell_catalog::{IndexEntry, PackClass, PackRef, SegmentBuilder, names};
use keepwell_crypto::{ChunkId, Digest};
use keepwell_storage::{Fault, Faulty, Key, ObjectStore, Operation, list_all};

use super::{Limits, Repository, Snapshot};
use crate::cache::Cache;
use crate::monitor::Monitor;
use crate::testing::{MemoryTarget, Thing, TreeModel, World, back_up, key, noise, snapshot_of};
use crate::{CheckOptions, Copies, Depth, Error, RestoreOptions};

/// Entries of chunks that nobody asks for, in each segment: 46 bytes each.
const OTHERS: u32 = 200_000;

#[derive(Debug, Default)]
struct Problems(Mutex<Vec<(String, String)>>);

impl Monitor for Problems {
    fn problem(&self, item: &str, message: &str) {
        self.0.lock().unwrap().push((item.to_owned(), message.to_owned()));
    }
}

fn id(n: u32) -> ChunkId {
    ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

/// Each file is one chunk.
fn tree() -> TreeModel {
    (0..300_u32).fold(TreeModel::default(), |tree, n| {
        tree.with(&format!("d{}/file {n}", n % 7), Thing::file(noise(u64::from(n), 60)))
    })
}

/// A repository with one snapshot, whose index is two segments of 9 MB, one of each class.
struct Large {
    world: World,
    snapshot: Snapshot,
    segments: HashMap<PackClass, Key>,
}

impl Large {
    async fn new() -> Self {
        let world = World::new().await;
        let report = back_up(&world.repository, &tree()).await;
        let snapshot = snapshot_of(&world.repository, &report).await;
        world.repository.refresh_index().await.unwrap();
        let small = world.names("index/").await;
        let mut segments = HashMap::new();
        for class in [PackClass::Data, PackClass::Meta] {
            segments.insert(class, store_segment(&world, class, OTHERS, 0).await);
        }
        for name in small {
            world.delete(&name).await;
        }
        Self { world, snapshot, segments }
    }

    /// The repository as a machine sees it that was never here, counting from now on.
    async fn fresh(&self) -> (Repository, Arc<Problems>) {
        let problems = Arc::new(Problems::default());
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.world.store) as _;
        let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
        let builder = Repository::builder(store).limits(limits).monitor(Arc::clone(&problems) as _);
        let repository = builder.open(self.world.key.clone()).await.unwrap();
        self.world.store.reset();
        (repository, problems)
    }

    /// What was fetched of the index: whole segments, requests for parts, bytes of these.
    fn fetched(&self) -> (u64, u64, u64) {
        let recorded = self.world.store.reset();
        let ranges = recorded.under(Operation::GetRange, "index");
        (recorded.under(Operation::Get, "index").calls, ranges.calls, ranges.bytes)
    }

    async fn size(&self) -> u64 {
        list_all(&*self.world.store, "index/").await.unwrap().iter().map(|info| info.size).sum()
    }

    /// Puts other bytes in the place of a segment.
    async fn replace(&self, class: PackClass, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let key = &self.segments[&class];
        let stored = self.world.store.get(key).await.unwrap().to_vec();
        self.world.delete(key.as_str()).await;
        self.world.store.put_new(key, change(stored).into()).await.unwrap();
    }
}

/// Stores a segment with all that the index has of a class, and with so many others.
async fn store_segment(world: &World, class: PackClass, others: u32, first: u32) -> Key {
    let repository = &world.repository;
    let mut builder = SegmentBuilder::new(repository.group(), class);
    for (_, segment) in repository.index().segments() {
        if segment.class() == class {
            let packs: Vec<u32> = segment.packs().iter().map(|pack| builder.add_pack(*pack)).collect();
            for entry in segment.iter().map(|entry| entry.unwrap().1) {
                builder.add(IndexEntry { pack: packs[entry.pack as usize], ..entry });
            }
        }
    }
    let name = names::content_name(&Digest::of(b"another pack"), [0; 4]);
    let domain = repository.domain().id;
    let pack = builder.add_pack(PackRef { name, size: 1 << 20, header_len: 200, domain });
    for n in first..first + others {
        let place = u32::from_le_bytes(*id(n).as_bytes().first_chunk().unwrap());
        let (offset, length) = (place >> 8, 1 << 18);
        let entry =
            IndexEntry { id: id(n), pack, frame_offset: place, frame_length: place >> 12, offset, length };
        builder.add(entry);
    }
    let (_, sealed) = repository.seal_segment(builder, Vec::new()).unwrap();
    let (_, key) = repository.index_name(&sealed, [0; 4]);
    world.store.put_new(&key, sealed).await.unwrap();
    key
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_comes_back_without_the_index() {
    let large = Large::new().await;
    assert!(large.size().await > 16 << 20);
    let wanted = key("d3/file 10");

    let (repository, _) = large.fresh().await;
    let mut dumped = Vec::new();
    repository.tree(&large.snapshot).await.unwrap().dump_file(&wanted, &mut dumped).await.unwrap();
    assert_eq!(dumped, noise(10, 60));
    let (whole, ranges, bytes) = large.fetched();
    assert_eq!(whole, 0);
    assert!(bytes < 1 << 20, "{bytes} bytes");
    assert!(ranges < 15, "{ranges} requests");

    let (repository, _) = large.fresh().await;
    let (target, below) = (MemoryTarget::default(), Some(wanted.clone()));
    let options = RestoreOptions { below, ..RestoreOptions::default() };
    repository.restore(&large.snapshot, Arc::new(target.clone()), options).await.unwrap();
    assert_eq!(target.tree().0[&key("file 10")].bytes(), noise(10, 60));
    let (whole, _, bytes) = large.fetched();
    assert!(whole == 0 && bytes < 1 << 20, "{bytes} bytes");

    let (repository, _) = large.fresh().await;
    let tree = repository.tree(&large.snapshot).await.unwrap();
    let mut count = 0;
    let visit = |_: &_, _: &_| {
        count += 1;
        ControlFlow::Continue(())
    };
    tree.list(&key("d3"), Depth::Children, visit).await.unwrap();
    let (whole, _, bytes) = large.fetched();
    assert!(count > 40 && whole == 0 && bytes < 1 << 20, "{count} entries, {bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_all_of_the_index_fetches_all_of_it_at_once() {
    let large = Large::new().await;
    let (repository, _) = large.fresh().await;
    let target = Arc::new(MemoryTarget::default());
    repository.restore(&large.snapshot, target, RestoreOptions::default()).await.unwrap();
    assert_eq!(large.fetched(), (2, 0, 0));
    let (repository, _) = large.fresh().await;
    back_up(&repository, &tree()).await;
    assert_eq!(large.fetched(), (2, 0, 0));
    repository.tree(&large.snapshot).await.unwrap();
    assert_eq!(large.fetched(), (0, 0, 0), "it is at hand");

    // Also after somebody has looked into it by ranges, and a check proves even what was fetched.
    let (repository, _) = large.fresh().await;
    repository.tree(&large.snapshot).await.unwrap();
    assert!(matches!(large.fetched(), (0, 2.., _)));
    back_up(&repository, &tree()).await;
    assert!(matches!(large.fetched(), (2.., 0, 0)));
    repository.check(CheckOptions::default()).await.unwrap();
    assert!(matches!(large.fetched(), (2.., 0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_asked_often_is_fetched() {
    let large = Large::new().await;
    let (repository, _) = large.fresh().await;
    repository.refresh_index_as_needed().await.unwrap();
    let searching = repository.clone();
    let search = move || {
        for n in (0..OTHERS).step_by(997) {
            assert_eq!(searching.locate(&id(n)).unwrap().len(), 1);
        }
    };
    tokio::task::spawn_blocking(search).await.unwrap();
    let (whole, ranges, bytes) = large.fetched();
    assert_eq!(whole, 1, "that of the other class is left where it is");
    let size = large.size().await / 2;
    assert!(bytes < size / 4 + (1 << 20), "{bytes} bytes in {ranges} requests, of {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_at_hand_remains_so() {
    let large = Large::new().await;
    let (repository, _) = large.fresh().await;
    repository.refresh_index().await.unwrap();
    store_segment(&large.world, PackClass::Data, OTHERS, OTHERS).await;
    large.fetched();
    repository.refresh_index_as_needed().await.unwrap();
    assert_eq!(large.fetched(), (1, 0, 0), "others may write by it");
}

/// Whoever holds the store can put a segment in the place of another, and both are signed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_segment_lacks_is_not_believed_before_its_name_is_proved() {
    let large = Large::new().await;
    let other = large.world.store.get(&large.segments[&PackClass::Meta]).await.unwrap();
    large.replace(PackClass::Data, |_| other.to_vec()).await;
    let (repository, problems) = large.fresh().await;
    let tree = repository.tree(&large.snapshot).await.unwrap();
    assert_eq!(*problems.0.lock().unwrap(), [], "it opens");
    let refused = tree.dump_file(&key("d3/file 10"), &mut std::io::sink()).await.unwrap_err();
    assert!(matches!(refused, Error::ChunkLost { .. }), "{refused}");
    let found = problems.0.lock().unwrap().clone();
    let told = |(item, message): &(String, String)| {
        *item == large.segments[&PackClass::Data].to_string() && message.contains("hash in its name")
    };
    assert!(found.iter().any(told), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_gives_no_wrong_answer_and_is_named() {
    let large = Large::new().await;
    // The first blocks, the tables, and the header.
    for (at, from_end) in [(5000, false), (20_000, true), (150, false)] {
        let damage = |mut stored: Vec<u8>| {
            let at = if from_end { stored.len() - at } else { at };
            stored[at] ^= 1;
            stored
        };
        large.replace(PackClass::Data, damage).await;
        let (repository, problems) = large.fresh().await;
        repository.refresh_index_as_needed().await.unwrap();
        let lowest = (0..OTHERS).map(id).min().unwrap();
        let searching = repository.clone();
        let found = tokio::task::spawn_blocking(move || searching.locate(&lowest)).await.unwrap().unwrap();
        assert_eq!(found.len(), 1, "the other segment has it too");
        let search = move || {
            let pack = |n| repository.locate(&id(n)).unwrap().iter().map(|l| l.class).collect::<Vec<_>>();
            (0..OTHERS).step_by(20_011).map(pack).collect::<Vec<_>>()
        };
        for classes in tokio::task::spawn_blocking(search).await.unwrap() {
            assert!(!classes.is_empty());
        }
        let named = problems.0.lock().unwrap().iter().any(|(item, _)| item.starts_with("index/"));
        assert!(named, "damage at {at}");
        large.replace(PackClass::Data, damage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_merged_meanwhile_is_found_again() {
    let large = Large::new().await;
    let (repository, problems) = large.fresh().await;
    let tree = repository.tree(&large.snapshot).await.unwrap();
    store_segment(&large.world, PackClass::Data, OTHERS + 1, 0).await;
    large.world.delete(large.segments[&PackClass::Data].as_str()).await;
    let mut dumped = Vec::new();
    tree.dump_file(&key("d3/file 10"), &mut dumped).await.unwrap();
    assert_eq!(dumped, noise(10, 60));
    assert_eq!(*problems.0.lock().unwrap(), []);
}

/// There would be copies, if somebody asked.
#[derive(Debug)]
struct NoCopies;

#[async_trait]
impl Copies for NoCopies {
    async fn open(&self) -> Vec<(String, Repository)> {
        Vec::new()
    }
}

/// Where no segment that is at hand has a chunk, the index is listed anew; a store that does not answer that is not asked
/// any more, as with any other request.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_list_its_index_leaves_the_word_to_copies() {
    let large = Large::new().await;
    let open = async |fault: Fault| {
        let store = Arc::new(Faulty::new(large.world.store.inner().clone(), fault));
        let builder = Repository::builder(Arc::clone(&store) as _).copies(Box::new(NoCopies));
        let repository = builder.open(large.world.key.clone()).await.unwrap();
        repository.refresh_index_as_needed().await.unwrap();
        (store.calls(), repository)
    };
    let (calls, _) = open(Fault::None).await;
    let (_, repository) = open(Fault::FromThenOn(calls + 1)).await;
    let before_all_others = ChunkId::from_bytes([0; 32]);
    let search = move || (repository.locate(&before_all_others), repository.is_silent());
    let (found, is_silent) = tokio::task::spawn_blocking(search).await.unwrap();
    assert_eq!(found.unwrap(), []);
    assert!(is_silent);
}

/// What a repository without anything at hand fetches of the index: whole segments and parts; and how often the index then
/// has a chunk, and what it complains of.
async fn fetched_anew(world: &World, cache: Cache) -> ((u64, u64), usize, Vec<(String, String)>) {
    let problems = Arc::new(Problems::default());
    let store: Arc<dyn ObjectStore> = Arc::clone(&world.store) as _;
    let builder = Repository::builder(store).cache(cache).monitor(Arc::clone(&problems) as _);
    let repository = builder.open(world.key.clone()).await.unwrap();
    world.store.reset();
    repository.refresh_index().await.unwrap();
    let recorded = world.store.reset();
    let calls = |operation| recorded.under(operation, "index").calls;
    let found = repository.locate(&id(7)).unwrap().len();
    let told = problems.0.lock().unwrap().clone();
    ((calls(Operation::Get), calls(Operation::GetRange)), found, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_very_large_segment_comes_in_parts_and_is_proved() {
    let world = World::new().await;
    let segment = store_segment(&world, PackClass::Data, 2 * OTHERS, 0).await;
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::directory(directory.path().join("cache"));
    assert_eq!(fetched_anew(&world, cache.clone()).await, ((0, 2), 1, Vec::new()));
    let cached = cache.list(&format!("{}/index", world.repository.store_id()));
    assert_eq!(cached.len(), 1, "the parts are gone: {cached:?}");
    assert_eq!(fetched_anew(&world, cache).await, ((0, 0), 1, Vec::new()));

    std::fs::write(directory.path().join("file"), "").unwrap();
    let useless = Cache::directory(directory.path().join("file"));
    assert_eq!(fetched_anew(&world, useless).await, ((1, 0), 1, Vec::new()));

    let mut stored = world.store.get(&segment).await.unwrap().to_vec();
    world.delete(segment.as_str()).await;
    let last = stored.len() - 1;
    stored[last] ^= 1;
    world.store.put_new(&segment, stored.into()).await.unwrap();
    let (requests, found, told) = fetched_anew(&world, Cache::memory()).await;
    assert_eq!((requests, found), ((0, 2), 0));
    assert!(told[0].0 == segment.as_str() && told[0].1.contains("hash in its name"), "{told:?}");
}
