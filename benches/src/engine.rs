//! The engine: whole operations on a repository in memory, each from opening the repository to its end.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use backup_core::{CheckOptions, PruneOptions, ReadData, RestoreOptions};
use keepwell_source_files::{FileTarget, TargetOptions};
use keepwell_storage::Operation;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{Bench, Tree, Work, World};

pub(crate) fn all() -> Result<Vec<Bench>> {
    Ok(vec![
        bench("backup", async |tree| {
            let world = World::new().await?;
            measured(&world, &tree, async || world.back_up(&tree).await).await
        })?,
        bench("backup unchanged", async |tree| {
            let world = World::new().await?;
            world.back_up(&tree).await?;
            measured(&world, &tree, async || world.back_up(&tree).await).await
        })?,
        bench("restore", async |tree| {
            let world = World::new().await?;
            world.back_up(&tree).await?;
            measured(&world, &tree, async || restore(&world).await).await
        })?,
        bench("check structure", async |tree| check(&tree, ReadData::Nothing).await)?,
        bench("check everything", async |tree| check(&tree, ReadData::Everything).await)?,
        bench("prune", prune)?,
    ])
}

/// 2000 small files and 8 large ones, 34 MB.
fn sample() -> Result<Tree> {
    Tree::generate(40, 50, 8)
}

fn bench(name: &'static str, run: impl AsyncFn(Tree) -> Result<Work> + 'static) -> Result<Bench> {
    let (runtime, tree) = (Runtime::new()?, sample()?);
    Ok(Bench::new(name, move || runtime.block_on(run(tree.clone()))))
}

async fn measured<T>(world: &World, tree: &Tree, work: impl AsyncFnOnce() -> Result<T>) -> Result<Work> {
    world.calls();
    let began = Instant::now();
    let done = work().await?;
    let took = began.elapsed();
    drop(done);
    let calls = world.calls();
    let stored_bytes = calls.count(Operation::Put).bytes;
    Ok(Work { items: tree.len(), bytes: tree.bytes(), stored_bytes, calls, took })
}

/// Gives the directory, so that its removal is not measured.
async fn restore(world: &World) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let (repository, snapshot) = world.newest().await?;
    let target = Arc::new(FileTarget::create(directory.path(), &TargetOptions::default())?);
    let report = repository.restore(&snapshot, target, RestoreOptions::default()).await?;
    ensure!(report.problems.is_empty(), "not restored: {:?}", report.problems);
    Ok(directory)
}

async fn check(tree: &Tree, read: ReadData) -> Result<Work> {
    let world = World::new().await?;
    world.back_up(tree).await?;
    let check = async || {
        let report = world.open().await?.check(CheckOptions { read }).await?;
        ensure!(report.is_sound(), "not sound: {:?}", report.findings);
        Ok(())
    };
    measured(&world, tree, check).await
}

/// A quarter of the directories went, and with them the snapshot that had them.
async fn prune(mut tree: Tree) -> Result<Work> {
    let world = World::new().await?;
    world.back_up(&tree).await?;
    let (repository, old) = world.newest().await?;
    tree.remove("directory-000");
    world.back_up(&tree).await?;
    repository.forget(&[(&old, "bench".to_owned())]).await?;
    let options = PruneOptions { max_unused: 0.0, ..PruneOptions::default() };
    measured(&world, &tree, async || Ok(world.open().await?.prune(options).await?)).await
}
