//! A store that was set back to an older state, and what a prune costs that is sure of what it knows.

use std::path::Path;
use std::sync::Arc;

use keepwell_crypto::keyfile::KeyFile;
use keepwell_storage::{LocalFs, LocalOptions, ObjectStore, Operation, Recording};

use super::PruneOptions;
use crate::cache::Cache;
use crate::repository::{CreateOptions, Created, Repository};
use crate::testing::{Thing, TreeModel, assert_same, back_up, block_on, noise, restored};

type Store = Arc<Recording<LocalFs>>;

fn tree(seed: u64) -> TreeModel {
    TreeModel::default().with("a", Thing::file(noise(seed, 20_000)))
}

async fn create(at: &Path) -> (Store, KeyFile) {
    let store = Arc::new(Recording::new(LocalFs::create(at, &LocalOptions::default()).await.unwrap()));
    let options = CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
    let key = Created::generate(&options, 1).unwrap().store(&*store).await.unwrap();
    (store, key)
}

async fn open(store: &Store, key: &KeyFile, cache: &Cache) -> Repository {
    let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    Repository::builder(store).cache(cache.clone()).open(key.clone()).await.unwrap()
}

/// Forgets all snapshots but the newest and prunes: something is deleted, so a verdict is made.
async fn prune(repository: &Repository) {
    let snapshots = repository.snapshots().await.unwrap();
    let (_, old) = snapshots.split_last().unwrap();
    let old: Vec<_> = old.iter().map(|snapshot| (snapshot, "old".to_owned())).collect();
    repository.forget(&old).await.unwrap();
    let options = PruneOptions { max_unused: 0.0, ..PruneOptions::default() };
    assert!(repository.prune(options).await.unwrap().objects_deleted > 0);
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
            let modified = std::fs::metadata(&from).unwrap().modified().unwrap();
            std::fs::File::options().write(true).open(&to).unwrap().set_modified(modified).unwrap();
        }
    }
}

/// What was written after the older state comes again under the same names, with other content. A keeper that knows what
/// stood there before takes what stands there now.
#[test]
fn a_keeper_that_knows_the_ends_before_sees_those_after() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let (at, older) = (directory.path().join("store"), directory.path().join("older"));
        let (store, key) = create(&at).await;
        let known = Cache::memory();
        back_up(&open(&store, &key, &Cache::memory()).await, &tree(1)).await;
        copy_tree(&at, &older);
        back_up(&open(&store, &key, &Cache::memory()).await, &tree(2)).await;
        prune(&open(&store, &key, &known).await).await;

        std::fs::remove_dir_all(&at).unwrap();
        copy_tree(&older, &at);
        let store = Arc::new(Recording::new(LocalFs::open(&at, &LocalOptions::default()).await.unwrap()));
        for seed in [3, 4, 5] {
            back_up(&open(&store, &key, &Cache::memory()).await, &tree(seed)).await;
        }
        let keeper = open(&store, &key, &known).await;
        prune(&keeper).await;
        let snapshots = keeper.snapshots().await.unwrap();
        assert_eq!(snapshots.len(), 1);
        assert_same(&restored(&keeper, &snapshots[0]).await, &tree(5));
    });
}

/// The first prune has read every end; the next reads those that are new, however many there are.
#[test]
fn a_verdict_costs_no_request_for_an_end_that_is_known() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let (store, key) = create(&directory.path().join("store")).await;
        let cache = Cache::memory();
        let repository = open(&store, &key, &cache).await;
        for seed in 0..30 {
            back_up(&repository, &tree(seed)).await;
        }
        prune(&repository).await;
        for seed in 30..33 {
            back_up(&repository, &tree(seed)).await;
        }
        store.reset();
        prune(&open(&store, &key, &cache).await).await;
        let calls = store.reset().under(Operation::Get, "commits").calls;
        assert!((1..=6).contains(&calls), "{calls}"); // of 33 and more: three snapshots, and sessions of prunes
    });
}
