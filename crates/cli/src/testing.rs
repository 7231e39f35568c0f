//! What the tests of the command share: repositories, and backups into them.

use std::path::Path;
use std::sync::Arc;

use backup_core::env::SystemClock;
use backup_core::{BackupOptions, CreateOptions, Created, Repository};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_source_files::{FileOptions, FileSource};
use keepwell_storage::{Memory, ObjectStore};

/// A new repository that is not stored yet.
pub fn created() -> Created {
    let options = CreateOptions { owner: "o".into(), member: "m".into(), store_hint: None, probe: None };
    Created::generate(&options, 1).unwrap()
}

/// Stores a new repository; its key.
pub async fn make(store: &dyn ObjectStore) -> KeyFile {
    created().store(store).await.unwrap()
}

/// A new repository in memory.
pub async fn repository(store: &Memory) -> Repository {
    let key = make(store).await;
    Repository::builder(Arc::new(store.clone())).open(key).await.unwrap()
}

/// Backs up a directory.
pub async fn back_up(repository: &Repository, directory: &Path, options: BackupOptions) {
    let files = FileOptions { paths: vec![directory.to_owned()], ..FileOptions::default() };
    let source = FileSource::new(&files, Arc::new(SystemClock)).unwrap();
    repository.backup(Arc::new(source), options).await.unwrap();
}
