//! What keepers promise: that pruning again and again leaves little to read, and what they do beside deleting.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use backup_core::Cache;
use keepwell_e2e::tree::put;
use keepwell_e2e::{run, world};
use keepwell_storage::{Operation, Recording};
use world::{World, assert_sound, back_up, forget, snapshot_of, thorough};

#[test]
fn many_prunes_leave_few_plans() {
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        let repository = world.open().await;
        for round in 0..24 {
            put(source.path(), "a", round, 50_000);
            let report = back_up(&repository, source.path()).await.unwrap();
            let snapshot = snapshot_of(&repository, &report).await;
            forget(&repository, &[snapshot]).await.unwrap();
            repository.prune(thorough()).await.unwrap();
        }
        let names = world.names("gc/").await;
        let plans = names.iter().filter(|name| !name.ends_with(".kept")).count();
        assert!(names.len() - plans >= 24, "every prune left a verdict: {names:?}");
        assert!(plans <= 9, "{plans} plans");

        let store = Arc::new(Recording::new(world.store.clone()));
        let cache = tempfile::tempdir().unwrap();
        let read = || store.snapshot().under(Operation::Get, "gc").calls;
        let fresh = world.open_with(store.clone(), Cache::directory(cache.path())).await.unwrap();
        back_up(&fresh, source.path()).await.unwrap();
        let first = read();
        assert!((1..=18).contains(&first), "{first} plans and verdicts were read");
        let again = world.open_with(store.clone(), Cache::directory(cache.path())).await.unwrap();
        back_up(&again, source.path()).await.unwrap();
        assert_eq!(read(), first, "plans never change: the cache has them");
        assert_sound(&again, "after many prunes").await;
    });
}
