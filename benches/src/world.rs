//! A repository in memory that counts its calls.

use std::sync::Arc;

use anyhow::{Context, Result};
use backup_core::{BackupOptions, BackupReport, Cache, CreateOptions, Created, Repository, Snapshot};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_storage::{Memory, ObjectStore, Recorded, Recording};

use crate::Tree;

/// A new repository with the key and the cache of its only host.
#[derive(Debug)]
pub struct World {
    store: Arc<Recording<Memory>>,
    key: KeyFile,
    cache: Cache,
}

impl World {
    /// Makes the repository.
    pub async fn new() -> Result<Self> {
        let store = Arc::new(Recording::new(Memory::new()));
        let options =
            CreateOptions { owner: "bench".into(), member: "bench".into(), store_hint: None, probe: None };
        let key = Created::generate(&options, 0)?.store(&*store).await?;
        Ok(Self { store, key, cache: Cache::memory() })
    }

    /// Opens the repository as a new process of the same host would.
    pub async fn open(&self) -> Result<Repository> {
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.store) as _;
        Ok(Repository::builder(store).cache(self.cache.clone()).open(self.key.clone()).await?)
    }

    /// Opens the repository and backs a tree up.
    pub async fn back_up(&self, tree: &Tree) -> Result<BackupReport> {
        self.back_up_as("bench", tree).await
    }

    /// The same under the name of another dataset.
    pub async fn back_up_as(&self, dataset: &str, tree: &Tree) -> Result<BackupReport> {
        let options = BackupOptions { dataset: dataset.to_owned(), ..BackupOptions::default() };
        Ok(self.open().await?.backup(Arc::new(tree.clone()), options).await?)
    }

    /// The newest snapshot, and the repository, open.
    pub async fn newest(&self) -> Result<(Repository, Snapshot)> {
        let repository = self.open().await?;
        let newest = repository.snapshots().await?.pop().context("there is no snapshot")?;
        Ok((repository, newest))
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Recorded {
        self.store.reset()
    }
}
