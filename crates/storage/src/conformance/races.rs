//! Cases about several at a time.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{LARGE_BYTES, body, get, key, put};
use crate::{ObjectStore, list_all};

/// Creators of one name.
const RACERS: u8 = 64;
/// Names raced for.
const RACES: u8 = 8;

/// Exactly one of 64 creators of a name wins, and its bytes are what is stored.
pub(super) async fn one_of_many_creators_wins(store: Arc<dyn ObjectStore>) {
    if !store.capabilities().conditional_create {
        return;
    }
    for race in 0..RACES {
        let name = format!("races/{race}/object");
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (store, key) = (Arc::clone(&store), key(&name));
            racers.spawn(async move { (racer, store.put_new(&key, body(racer, 5000)).await) });
        }
        let mut winners = Vec::new();
        for (racer, result) in racers.join_all().await {
            match result {
                Ok(()) => winners.push(racer),
                Err(error) => assert!(error.is_already_exists(), "a loser got another error: {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "creators who believe that they won: {winners:?}");
        assert!(get(&store, &name).await == body(winners[0], 5000), "the object is not the winner's");
    }
}

/// While an object is put, readers find nothing or all of it.
pub(super) async fn readers_see_whole_objects(store: Arc<dyn ObjectStore>) {
    let expected = body(3, LARGE_BYTES);
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (store, expected) = (Arc::clone(&store), expected.clone());
        readers.spawn(async move {
            loop {
                if all_or_nothing(&*store, "d/whole", &expected).await {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }
    put(&store, "d/whole", expected).await;
    readers.join_all().await;
}

/// A put whose future is dropped at any point leaves the whole object, sooner or later, or none.
pub(super) async fn a_dropped_put_leaves_all_or_nothing(store: Arc<dyn ObjectStore>) {
    let expected = body(9, LARGE_BYTES);
    for polls in 0..12 {
        let name = format!("dropped/{polls}");
        let key = key(&name);
        tokio::select! {
            biased;
            result = store.put_new(&key, expected.clone()) => result.expect("a put that was not dropped"),
            () = yields(polls) => {}
        }
        for _ in 0..20 {
            all_or_nothing(&*store, &name, &expected).await;
            tokio::task::yield_now().await;
        }
    }
    for info in list_all(&*store, "dropped/").await.expect("a listing") {
        assert_eq!(info.size, LARGE_BYTES as u64, "`{}` is listed in part", info.key);
    }
}

async fn yields(number: u32) {
    for _ in 0..number {
        tokio::task::yield_now().await;
    }
}

/// Whether the object is there; panics if only a part of it is.
async fn all_or_nothing(store: &dyn ObjectStore, name: &str, expected: &[u8]) -> bool {
    match store.get(&key(name)).await {
        Ok(stored) => {
            assert!(stored == expected, "a reader got {} of {} bytes", stored.len(), expected.len());
            true
        }
        Err(error) => {
            assert!(error.is_not_found(), "a reader got another error: {error}");
            false
        }
    }
}
