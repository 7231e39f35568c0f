//! What a repository remembers of a store, and what it believes of that.

use std::sync::{Arc, Mutex};

use keepwell_catalog::{Commit, IndexEntry, PackClass, PackRef, SegmentBuilder, names};
use keepwell_crypto::{ChunkId, Digest};
use keepwell_storage::{ObjectStore, Operation};

use super::{Limits, Repository};
use crate::cache::Cache;
use crate::monitor::Monitor;
use crate::testing::{Thing, TreeModel, World, back_up};
use crate::write::fence;
use crate::{CheckOptions, Error};

async fn open(world: &World, cache: &Cache) -> Result<Repository, Error> {
    let store: Arc<dyn ObjectStore> = Arc::clone(&world.store) as _;
    let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
    Repository::builder(store).limits(limits).cache(cache.clone()).open(world.key.clone()).await
}

/// Calls to list, and to get.
fn read_calls(world: &World) -> (u64, u64) {
    let recorded = world.store.reset();
    (recorded.calls(Operation::List), recorded.calls(Operation::Get))
}

fn damage(cache: &Cache, name: &str, at: usize) {
    let mut bytes = cache.read(name).unwrap().to_vec();
    bytes[at] ^= 1;
    cache.store(name, &bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opening_asks_only_whether_the_chain_grew() {
    let (world, cache) = (World::new().await, Cache::memory());
    open(&world, &cache).await.unwrap();
    world.store.reset();
    let before = open(&world, &cache).await.unwrap();
    assert_eq!(read_calls(&world), (1, 1), "the chain, and the hint");
    world.repository.create_domain("more").await.unwrap(); // by another host
    world.store.reset();
    let after = open(&world, &cache).await.unwrap();
    let news = after.chain().head().0 - before.chain().head().0;
    assert!(news > 0);
    assert_eq!(world.store.reset().under(Operation::Get, "trust").calls, news);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_was_set_back_is_refused() {
    let (world, cache) = (World::new().await, Cache::memory());
    let repository = open(&world, &cache).await.unwrap();
    let (before, _) = repository.chain().head();
    repository.create_domain("more").await.unwrap();
    let (head, _) = repository.chain().head();
    assert!(head > before);
    for n in before + 1..=head {
        world.delete(names::trust_key(n).as_str()).await;
    }
    let refused = open(&world, &cache).await.unwrap_err();
    assert!(matches!(refused, Error::TrustSetBack { seen, .. } if seen == head), "{refused}");
    // Also where the records themselves are not in the cache any more.
    repository.cache().remove_below("records");
    for _ in 0..2 {
        let refused = open(&world, &cache).await.unwrap_err();
        assert!(
            matches!(refused, Error::TrustSetBack { seen, head: found } if (seen, found) == (head, before))
        );
    }
    // A host that has never seen more cannot know.
    open(&world, &Cache::memory()).await.unwrap();
}

/// The id of a store stands in a file that nobody signs.
#[tokio::test(flavor = "multi_thread")]
async fn another_store_id_hides_no_chain_that_was_set_back() {
    let (world, cache) = (World::new().await, Cache::memory());
    let repository = open(&world, &cache).await.unwrap();
    let (before, _) = repository.chain().head();
    let hint = crate::RepositoryHint::key();
    let bytes = world.store.get(&hint).await.unwrap();
    let other = String::from_utf8(bytes.to_vec()).unwrap();
    let other = other.replace(&repository.store_id().to_string(), &"5e".repeat(16));
    assert!(other.contains("5e5e5e"));
    repository.create_domain("more").await.unwrap();
    let (head, _) = open(&world, &cache).await.unwrap().chain().head();
    world.delete(hint.as_str()).await;
    world.store.put_new(&hint, other.into()).await.unwrap();
    open(&world, &cache).await.unwrap(); // a copy that took the place, with all that was seen there
    for n in before + 1..=head {
        world.delete(names::trust_key(n).as_str()).await;
    }
    world.delete(hint.as_str()).await;
    let third = String::from_utf8(bytes.to_vec()).unwrap();
    let third = third.replace(&repository.store_id().to_string(), &"6e".repeat(16));
    world.store.put_new(&hint, third.into()).await.unwrap();
    for _ in 0..2 {
        let refused = open(&world, &cache).await.unwrap_err();
        assert!(
            matches!(refused, Error::TrustSetBack { seen, head: found } if (seen, found) == (head, before))
        );
    }
}

/// By the id in it the command finds the key file, and the cache.
#[tokio::test]
async fn a_hint_that_names_a_path_in_the_place_of_an_id_is_damaged() {
    let world = World::new().await;
    let hint = crate::RepositoryHint::key();
    let sound = String::from_utf8(world.store.get(&hint).await.unwrap().to_vec()).unwrap();
    for id in [world.repository.id().to_string(), world.repository.store_id().to_string()] {
        world.delete(hint.as_str()).await;
        let hostile = sound.replace(&id, "../../../../tmp/planted");
        assert!(hostile.contains("planted"));
        world.store.put_new(&hint, hostile.into()).await.unwrap();
        let read = crate::RepositoryHint::read(&*world.store).await;
        assert!(matches!(read, Err(Error::Damaged { .. })), "{read:?}");
    }
}

#[tokio::test]
async fn a_repository_that_has_lost_its_hint_is_told_from_none() {
    let world = World::new().await;
    let hint = crate::RepositoryHint::key();
    world.delete(hint.as_str()).await;
    let read = crate::RepositoryHint::read(&*world.store).await;
    assert!(matches!(read, Err(Error::NoRepository { .. })), "as a creation that was interrupted: {read:?}");
    back_up(&world.repository, &TreeModel::default()).await;
    let error = crate::RepositoryHint::read(&*world.store).await.unwrap_err();
    let told = error.to_string();
    assert!(told.starts_with("`keepwell.json` is damaged: it is missing"), "{told}");
    assert!(error.hint().is_some_and(|hint| hint.contains("repair --from")), "{error:?}");
}

#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl Monitor for Notes {
    fn note(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_useless_cache_is_named_once() {
    let world = World::new().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let notes = Arc::new(Notes::default());
    let store: Arc<dyn ObjectStore> = Arc::clone(&world.store) as _;
    let builder = Repository::builder(store).cache(Cache::directory(file.path()));
    let builder = builder.limits(Limits { threads: 2, memory_bytes: 64 << 20 });
    let repository = builder.monitor(Arc::clone(&notes) as _).open(world.key.clone()).await.unwrap();
    for content in ["one", "two"] {
        back_up(&repository, &TreeModel::default().with("a", Thing::file(content))).await;
    }
    let notes = notes.0.lock().unwrap();
    for what in ["the index is held in memory", "the next backup may read every file"] {
        assert_eq!(notes.iter().filter(|note| note.starts_with(what)).count(), 1, "{what}: {notes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cached_record_is_fetched_anew() {
    let (world, cache) = (World::new().await, Cache::memory());
    let repository = open(&world, &cache).await.unwrap();
    let report = back_up(&repository, &TreeModel::default()).await;
    let commit = names::commit_key(world.repository.writer().unwrap(), report.seq);
    for name in ["trust/0000000000".to_owned(), "trust/0000000001".to_owned(), commit.to_string()] {
        damage(repository.cache(), &format!("records/{name}"), 40);
        world.store.reset();
        let repository = open(&world, &cache).await.unwrap();
        assert_eq!(repository.snapshots().await.unwrap().len(), 1);
        let top = name.split('/').next().unwrap();
        assert!(world.store.reset().under(Operation::Get, top).calls >= 1, "{name} was not fetched");
        open(&world, &cache).await.unwrap().snapshots().await.unwrap();
        assert_eq!(world.store.reset().under(Operation::Get, top).calls, 0, "{name} was not kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_in_the_store_shows_in_a_check_whatever_the_cache_holds() {
    let (world, cache) = (World::new().await, Cache::memory());
    let repository = open(&world, &cache).await.unwrap();
    let report = back_up(&repository, &TreeModel::default()).await;
    assert!(repository.check(CheckOptions::default()).await.unwrap().is_sound());
    repository.snapshots().await.unwrap();
    let commit = names::commit_key(repository.writer().unwrap(), report.seq);
    let keyring = world.names("keys/").await.remove(0);
    for name in ["trust/0000000001", commit.as_str(), &keyring] {
        let key = name.parse().unwrap();
        let sound = world.store.get(&key).await.unwrap();
        for damaged in [None, Some(sound.slice(1..))] {
            world.delete(name).await;
            if let Some(damaged) = damaged {
                world.store.put_new(&key, damaged).await.unwrap();
            }
            let report = repository.check(CheckOptions::default()).await.unwrap();
            // That the newest commit of all is gone, nothing tells but the list that it named: a scrub sees that.
            let is_told =
                name != commit.as_str() || world.names("commits/").await.contains(&commit.to_string());
            assert_eq!(report.findings.iter().any(|f| f.object == name), is_told, "{name}: {report:?}");
            repository.snapshots().await.unwrap(); // fills the cache again, with what it must not believe
        }
        world.delete(name).await;
        world.store.put_new(&key, sound).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_ends_are_listed_once() {
    let (world, cache) = (World::new().await, Cache::memory());
    let repository = open(&world, &cache).await.unwrap();
    let writer = repository.writer().unwrap();
    for n in 0..2500 {
        fence(&repository, writer, n, Vec::new()).await.unwrap();
    }
    back_up(&repository, &TreeModel::default()).await;
    for n in 2501..2504 {
        world.store.reset();
        let report = back_up(&open(&world, &cache).await.unwrap(), &TreeModel::default()).await;
        assert_eq!(report.seq, n);
        assert!(report.parent.is_some());
        assert_eq!(world.store.reset().under(Operation::List, "commits").calls, 1);
    }
    // A note that speaks of ends that are not there is not believed.
    repository.cache().store("ends", format!("{writer} 9000\n").as_bytes()).unwrap();
    assert_eq!(back_up(&open(&world, &cache).await.unwrap(), &TreeModel::default()).await.seq, 2504);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_a_dead_session_holds_is_passed_over() {
    let world = World::new().await;
    let writer = world.repository.writer().unwrap();
    for n in [0, 1, 2] {
        let key = names::session_key(writer, n, 0);
        world.store.put_new(&key, "claimed by somebody else".into()).await.unwrap();
    }
    assert_eq!(back_up(&world.repository, &TreeModel::default()).await.seq, 3);
}

/// A revoked credential can still sign fences that count. They make no checkpoint of its owner go.
#[tokio::test]
async fn a_fence_makes_nothing_unnecessary() {
    let world = World::new().await;
    let repository = &world.repository;
    let writer = repository.writer().unwrap();
    let plain = Commit::fence(repository.store_id(), writer, 7, repository.now());
    let hostile = Commit { supersedes: vec![1, 2], logical_bytes: 9, ..plain.clone() };
    let signed = repository.sign(Commit::KIND, hostile.encode()).unwrap();
    assert!(repository.put_record(&names::commit_key(writer, 7), signed).await.unwrap());
    assert_eq!(repository.read_end(writer, 7).await.unwrap().commit, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_of_a_large_cached_segment_is_fetched_anew() {
    let (world, cache) = (World::new().await, Cache::memory());
    let repository = open(&world, &cache).await.unwrap();
    let mut builder = SegmentBuilder::new(repository.group(), PackClass::Data);
    let name = names::content_name(&Digest::of(b"pack"), [0; 4]);
    let domain = repository.domain().id;
    let pack = builder.add_pack(PackRef { name, size: 1 << 20, header_len: 200, domain });
    let id = |n: u32| ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
    // More than the index may hold decoded, so that it is read block by block.
    for n in 0..300_000 {
        builder.add(IndexEntry { id: id(n), pack, frame_offset: n, frame_length: 1, offset: 0, length: 1 });
    }
    let (_, sealed) = repository.seal_segment(builder, Vec::new()).unwrap();
    let (name, key) = repository.index_name(&sealed, [0; 4]);
    world.store.put_new(&key, sealed).await.unwrap();
    repository.refresh_index().await.unwrap();
    damage(repository.cache(), &format!("index/{name}"), 100);
    world.store.reset();
    let repository = open(&world, &cache).await.unwrap();
    repository.refresh_index().await.unwrap();
    assert_eq!(world.store.reset().under(Operation::Get, "index").calls, 0, "the damage does not show yet");
    assert!((0..300_000).step_by(10).all(|n| repository.locate(&id(n)).unwrap().len() == 1));
    assert_eq!(world.store.reset().under(Operation::Get, "index").calls, 1, "fetched once");
    let repository = open(&world, &cache).await.unwrap();
    repository.refresh_index().await.unwrap();
    assert!((0..300_000).step_by(10).all(|n| repository.locate(&id(n)).unwrap().len() == 1));
    assert_eq!(world.store.reset().under(Operation::Get, "index").calls, 0, "and kept");
}

#[tokio::test]
async fn packs_in_memory_take_half_of_the_limit_however_many_threads_there_are() {
    let repository = World::new().await.repository; // of 64 MiB
    for (pack_bytes, packs) in [(4 << 20, 8), (7 << 20, 4), (16 << 20, 2), (17 << 20, 1), (64 << 20, 1)] {
        assert_eq!(repository.packs_at_once(pack_bytes), packs, "of {pack_bytes} bytes");
    }
    assert!(repository.packs_at_once(0) > 1000, "nothing is read");
    assert_eq!(repository.frames_at_once(), 2);
}
