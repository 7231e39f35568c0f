//! A service that embeds the engine: it backs up a directory every few seconds, and restores a file at the end.
//!
//! ```text
//! keepwell-example-embed                                     two runs, one second apart, of a tree of its own
//! keepwell-example-embed SOURCE STATE [SECONDS [RUNS]]       STATE gets a repository, its key and a cache
//! ```
//!
//! A store, a key, a source, a monitor, a target: copy what you need.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use backup_core::env::{Clock, SystemClock};
use backup_core::monitor::Monitor;
use backup_core::{
    BackupOptions, Cache, CreateOptions, Created, Depth, Repository, RestoreOptions, Snapshot,
};
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_source_files::{FileOptions, FileSource, FileTarget, TargetOptions};
use keepwell_storage::{LocalFs, LocalOptions, RetryPolicy, Retrying};

/// Counts what the engine says; a service would feed its metrics from here.
#[derive(Debug, Default)]
struct Counter {
    items: AtomicU64,
    bytes: AtomicU64,
    problems: AtomicU64,
}

impl Monitor for Counter {
    fn advance(&self, items: u64, bytes: u64) {
        self.items.fetch_add(items, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn problem(&self, _item: &str, _message: &str) {
        self.problems.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let own = tempfile::tempdir()?;
    let (source, state) = match arguments.as_slice() {
        [] => (sample_tree(own.path())?, own.path().join("state")),
        [source, state, ..] => (source.into(), state.into()),
        _ => bail!("usage: keepwell-example-embed [SOURCE STATE [SECONDS [RUNS]]]"),
    };
    let pause = Duration::from_secs(arguments.get(2).map_or(Ok(1), |text| text.parse())?);
    let runs: u32 = arguments.get(3).map_or(Ok(2), |text| text.parse())?;
    let source = source.canonicalize().context("find the source")?;

    let counter = Arc::new(Counter::default());
    let repository = open_or_create(&state, Arc::<Counter>::clone(&counter)).await?;
    for run in 1..=runs {
        if run > 1 {
            tokio::time::sleep(pause).await;
        }
        back_up(&repository, &source, run, &counter).await?;
    }
    let newest = repository.snapshots().await?.pop().context("the repository has no snapshot")?;
    restore_one_file(&repository, &newest, &state.join("restored")).await
}

/// Opens the repository in `state`; the first time it is made there. The key is all that can open it, so it is saved
/// before anything is stored. A real service keeps it elsewhere, and a copy elsewhere still.
async fn open_or_create(state: &Path, monitor: Arc<dyn Monitor>) -> Result<Repository> {
    let (place, key_path) = (state.join("repository"), state.join("key.toml"));
    let key = if key_path.exists() {
        KeyFile::parse(&fs::read_to_string(&key_path)?)?
    } else {
        let store = LocalFs::create(&place, &LocalOptions::default()).await?;
        let options = CreateOptions {
            owner: "embed".to_owned(),
            member: "embed".to_owned(),
            store_hint: Some(place.display().to_string()),
            probe: None,
        };
        let created = Created::generate(&options, SystemClock.now())?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key_path)?;
        file.write_all(created.key_file().to_toml().expose().as_bytes())?;
        file.sync_all()?;
        created.store(&store).await?
    };
    let store = LocalFs::open(&place, &LocalOptions::default()).await?;
    let store = Retrying::new(store, RetryPolicy::default());
    let cache = Cache::directory(state.join("cache"));
    Ok(Repository::builder(Arc::new(store)).cache(cache).monitor(monitor).open(key).await?)
}

/// Makes a snapshot and prints a line about it. Files that did not change are not read again.
async fn back_up(repository: &Repository, path: &Path, run: u32, counter: &Counter) -> Result<()> {
    let options = FileOptions { paths: vec![path.to_owned()], ..FileOptions::default() };
    let source = Arc::new(FileSource::new(&options, Arc::new(SystemClock))?);
    let options = BackupOptions { dataset: "embed".to_owned(), ..BackupOptions::default() };
    let report = repository.backup(source, options).await?;
    let s = report.statistics;
    println!(
        "run {run}: snapshot {:.8}, {} new, {} changed, {} unchanged files, {} bytes stored; so far {} items, {} bytes, {} problems",
        report.snapshot.to_string(),
        s.new_files,
        s.changed_files,
        s.unchanged_files,
        s.new_stored_bytes,
        counter.items.load(Ordering::Relaxed),
        counter.bytes.load(Ordering::Relaxed),
        counter.problems.load(Ordering::Relaxed),
    );
    Ok(())
}

/// Restores the first file of the snapshot into a directory, and compares it with the original.
async fn restore_one_file(repository: &Repository, snapshot: &Snapshot, directory: &Path) -> Result<()> {
    let mut first = None;
    let find = |key: &MapKey, entry: &Entry| {
        first = (entry.kind == EntryKind::File).then(|| key.clone());
        if first.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    repository.tree(snapshot).await?.list(&MapKey::root(), Depth::All, find).await?;
    let key = first.context("the snapshot holds no file")?;
    let original = Path::new("/").join(PathBuf::from(OsString::from_vec(key.to_os_path_bytes()?)));

    let target = Arc::new(FileTarget::create(directory, &TargetOptions::default())?);
    let options = RestoreOptions { below: Some(key), ..RestoreOptions::default() };
    let report = repository.restore(snapshot, target, options).await?;
    ensure!(report.problem_count == 0, "not restored: {:?}", report.problems);
    let restored = directory.join(original.file_name().context("a file has a name")?);
    ensure!(fs::read(&restored)? == fs::read(&original)?, "`{}` differs", restored.display());
    println!("restored {} from snapshot {}: it is the same", original.display(), snapshot.short());
    Ok(())
}

fn sample_tree(parent: &Path) -> Result<PathBuf> {
    let top = parent.join("sample");
    fs::create_dir_all(top.join("below"))?;
    fs::write(top.join("hello.txt"), "hello\n")?;
    File::create(top.join("below/large"))?.write_all(&b"0123456789abcdef".repeat(1 << 16))?;
    Ok(top)
}
