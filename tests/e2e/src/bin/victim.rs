//! A process that backs up or prunes a repository on disk, to be killed while it does.
//!
//! `victim backup|prune STORE KEYFILE CACHE SOURCE`; exit code 0 when it came to its end.
#![allow(clippy::unwrap_used, reason = "whatever goes wrong, the test that started it must see it")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{BackupOptions, Cache};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_e2e::world;
use keepwell_storage::{LocalFs, LocalOptions};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, action, store, key, cache, source] = &arguments[..] else { return ExitCode::from(2) };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = LocalFs::open(store, &LocalOptions::default()).await.unwrap();
        let key = KeyFile::parse(&std::fs::read_to_string(key).unwrap()).unwrap();
        let cache = Cache::directory(cache);
        let repository = world::open(Arc::new(store), &key, cache, world::LIMITS).await.unwrap();
        if action == "backup" {
            let every = Duration::from_millis(100);
            let options = BackupOptions { checkpoint_every: every, ..world::options() };
            world::back_up_with(&repository, Path::new(source), options).await.unwrap();
        } else {
            let mut snapshots = repository.snapshots().await.unwrap();
            snapshots.truncate(snapshots.len().saturating_sub(2));
            world::forget(&repository, &snapshots).await.unwrap();
            repository.prune(world::thorough()).await.unwrap();
        }
    });
    ExitCode::SUCCESS
}
