//! A copy under other keys, with the log that was archived beside what it is a copy of.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use backup_core::env::{Clock, SystemClock};
use backup_core::wal::WalFloor;
use backup_core::{BackupOptions, CreateOptions, Created, Repository};
use keepwell_catalog::wal::WalPlace;
use keepwell_source_files::{FileOptions, FileSource};
use keepwell_storage::{LocalFs, LocalOptions, Memory, ObjectStore};

use super::Done;
use super::manifest::describe;
use super::pieces::pieces;

/// The cluster whose log it is.
const SYSTEM: u64 = 7_300_000_000_000_000_001;
const FILE_BYTES: u32 = 1 << 20;

/// Makes `repository/`, `key.toml` and `expected/` below `top`, and `wal.txt`: name and BLAKE3 hash of each piece.
pub async fn make(top: &Path) -> Done {
    fs::create_dir(top)?;
    let origin = create("origin", Arc::new(Memory::new()), None).await?;
    let store = LocalFs::create(top.join("repository"), &LocalOptions::default()).await?;
    let copy = create("copy", Arc::new(store), Some(top)).await?;
    let tree = top.join("tree");
    fs::create_dir(top.join("expected"))?;
    for version in 0..2 {
        fill(&tree, version)?;
        back_up(&origin, &tree).await?;
        let report =
            origin.copy_snapshots(&copy, &origin.snapshots().await?, &BackupOptions::default()).await?;
        let copied = report.copied.last().ok_or("nothing was copied")?;
        let file = top.join("expected").join(format!("{}.txt", copied.report.snapshot));
        fs::write(file, describe(&tree)?)?;
    }
    archive(&origin).await?;
    let report = origin.copy_wal(&copy, &[WalFloor { system: SYSTEM, file: 0 }]).await?;
    println!("{report:?}");
    fs::write(top.join("wal.txt"), pieces(&copy).await?)?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

async fn create(name: &str, store: Arc<dyn ObjectStore>, top: Option<&Path>) -> Done<Repository> {
    let options =
        CreateOptions { owner: name.to_owned(), member: name.to_owned(), store_hint: None, probe: None };
    let created = Created::generate(&options, SystemClock.now())?;
    if let Some(top) = top {
        fs::write(top.join("key.toml"), created.key_file().to_toml().expose())?;
    }
    let key = created.store(&*store).await?;
    Ok(Repository::builder(store).open(key).await?)
}

fn fill(tree: &Path, version: u64) -> Done {
    if version == 0 {
        fs::create_dir_all(tree.join("sub"))?;
        fs::write(tree.join("a"), "hello\n")?;
        fs::hard_link(tree.join("a"), tree.join("sub/hard-link"))?;
        symlink("../a", tree.join("sub/link"))?;
    }
    let mut lines = String::new();
    for number in 0..20_000 {
        writeln!(lines, "{number} {}", blake3::hash(&(number / (7 - version)).to_le_bytes()).to_hex())?;
    }
    Ok(fs::write(tree.join("sub/large"), lines)?)
}

async fn back_up(repository: &Repository, tree: &Path) -> Done {
    let options = FileOptions { paths: vec![tree.to_owned()], ..FileOptions::default() };
    let source = Arc::new(FileSource::new(&options, Arc::new(SystemClock))?);
    let options = BackupOptions {
        dataset: "fixture".to_owned(),
        host: "fixture".to_owned(),
        tags: vec!["golden".to_owned()],
        description: "copied under other keys".to_owned(),
        ..BackupOptions::default()
    };
    let report = repository.backup(source, options).await?;
    if report.problem_count > 0 {
        return Err(format!("not everything was captured: {:?}", report.problems).into());
    }
    Ok(())
}

/// Two pieces of a file, one of the next on another timeline, and that timeline's history.
async fn archive(repository: &Repository) -> Done {
    let log = repository.wal_writer("fixture", SYSTEM, FILE_BYTES, false).await?;
    let place = |file, from, to| WalPlace::Bytes { file, from, to };
    let bytes = |seed: u8, length: usize| vec![seed; length].into();
    let (_, first) = log.put(1, place(3, 0, 8192), bytes(1, 8192), None).await?;
    log.put(1, place(3, 8192, 12_000), bytes(2, 12_000 - 8192), Some(first)).await?;
    log.put(2, WalPlace::History, "1\t0/300ABCD\tno recovery target specified\n".into(), None).await?;
    log.put(2, place(4, 0, 1 << 20), bytes(3, 1 << 20), None).await?;
    Ok(())
}
