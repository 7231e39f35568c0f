//! Writes a golden repository. What is in `tests/fixtures/repo` was written once, by the release that had the format,
//! and is never written again: a new version of the format gets a new directory.
//!
//! ```text
//! cargo run -p keepwell-e2e --example make_fixture -- DIR [copy]      DIR is new; its path becomes part of the snapshots
//! ```
//!
//! DIR then holds `repository/`, `key.toml`, and `expected/<snapshot>.txt` for each snapshot that is still there. With
//! `copy` it is a copy under other keys with an archived log, whose pieces are in `wal.txt`.

mod copy;
mod manifest;
mod pieces;

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::env::{Clock, SystemClock};
use backup_core::{BackupOptions, CreateOptions, Created, PruneOptions, Repository};
use keepwell_crypto::DomainId;
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_source_files::{FileOptions, FileSource};
use keepwell_storage::{LocalFs, LocalOptions};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

type Done<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Done {
    let top = PathBuf::from(std::env::args().nth(1).ok_or("usage: make_fixture DIR")?);
    if std::env::args().nth(2).as_deref() == Some("copy") {
        return copy::make(&top).await;
    }
    fs::create_dir(&top)?;
    let tree = top.join("tree");
    let key = create(&top).await?;
    let repository = open(&top, key.clone()).await?;

    first_version(&tree)?;
    let first = back_up(&repository, &tree, None).await?;
    // The second comes from a host that cannot decrypt …
    second_version(&tree)?;
    let writer = repository.new_member("writer", Roles::WRITER, None)?;
    repository.enroll(&writer).await?;
    let second = back_up(&open(&top, writer).await?, &tree, None).await?;
    fs::create_dir(top.join("expected"))?;
    describe(&top, &tree, &second)?;
    // … and the third goes to an erasable domain, after the keys were changed.
    third_version(&tree)?;
    repository.rotate_keys().await?;
    let domain = open(&top, key.clone()).await?.create_domain("erasable").await?;
    let repository = open(&top, key).await?;
    let third = back_up(&repository, &tree, Some(domain)).await?;
    describe(&top, &tree, &third)?;

    let snapshots = repository.snapshots().await?;
    let forgotten = snapshots.iter().find(|s| s.id.to_string() == first).ok_or("the first is not listed")?;
    repository.forget(&[(forgotten, "a fixture has one that is gone".to_owned())]).await?;
    let report = repository.prune(thorough()).await?;
    println!("{report:?}");
    // One that was forgotten and came back, and so many more prunes that their plans are merged.
    let snapshots = repository.snapshots().await?;
    let returns = snapshots.iter().find(|s| s.id.to_string() == third).ok_or("the third is not listed")?;
    repository.forget(&[(returns, "a mistake".to_owned())]).await?;
    let forgotten = repository.forgotten().await?;
    let mistake = forgotten.iter().find(|f| f.snapshot.id == returns.id).ok_or("it is not forgotten")?;
    repository.undo_forget(mistake).await?;
    for round in 0..9 {
        scrap(&top, &repository, round).await?;
    }
    fs::remove_dir_all(&tree)?;
    Ok(())
}

fn thorough() -> PruneOptions {
    PruneOptions { max_unused: 0.0, ..PruneOptions::default() }
}

/// Something that is backed up, forgotten, and pruned away.
async fn scrap(top: &Path, repository: &Repository, round: u64) -> Done {
    let directory = top.join("scrap");
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), text(100 + round, 2000))?;
    let scrap = back_up(repository, &directory, None).await?;
    fs::remove_dir_all(&directory)?;
    let snapshots = repository.snapshots().await?;
    let scrap = snapshots.iter().find(|s| s.id.to_string() == scrap).ok_or("the scrap is not listed")?;
    repository.forget(&[(scrap, "scrap".to_owned())]).await?;
    println!("{:?}", repository.prune(thorough()).await?);
    Ok(())
}

async fn create(top: &Path) -> Done<KeyFile> {
    let store = LocalFs::create(top.join("repository"), &LocalOptions::default()).await?;
    let options = CreateOptions {
        owner: "fixture".to_owned(),
        member: "fixture".to_owned(),
        store_hint: None,
        probe: None,
    };
    let created = Created::generate(&options, SystemClock.now())?;
    fs::write(top.join("key.toml"), created.key_file().to_toml().expose())?;
    Ok(created.store(&store).await?)
}

async fn open(top: &Path, key: KeyFile) -> Done<Repository> {
    let store = LocalFs::open(top.join("repository"), &LocalOptions::default()).await?;
    Ok(Repository::builder(Arc::new(store)).open(key).await?)
}

async fn back_up(repository: &Repository, tree: &Path, domain: Option<DomainId>) -> Done<String> {
    let options = FileOptions { paths: vec![tree.to_owned()], ..FileOptions::default() };
    let source = Arc::new(FileSource::new(&options, Arc::new(SystemClock))?);
    let options = BackupOptions {
        dataset: "fixture".to_owned(),
        host: "fixture".to_owned(),
        tags: vec!["golden".to_owned()],
        domain,
        description: "what the first version of the format wrote".to_owned(),
        ..BackupOptions::default()
    };
    let report = repository.backup(source, options).await?;
    if report.problem_count > 0 {
        return Err(format!("not everything was captured: {:?}", report.problems).into());
    }
    Ok(report.snapshot.to_string())
}

fn describe(top: &Path, tree: &Path, snapshot: &str) -> Done {
    Ok(fs::write(top.join("expected").join(format!("{snapshot}.txt")), manifest::describe(tree)?)?)
}

/// One of everything that an ordinary user can make.
fn first_version(tree: &Path) -> Done {
    for directory in ["empty-directory", "sub/deep", "many"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::write(tree.join("a"), "hello\n")?;
    fs::hard_link(tree.join("a"), tree.join("sub/hard-link"))?;
    let attributes = XattrFlags::empty();
    rustix::fs::lsetxattr(tree.join("a"), "user.note", b"remember \xff\x00 me", attributes)?;
    symlink("a", tree.join("link"))?;
    symlink("/nowhere/\u{fc}ber", tree.join("sub/dangling"))?;
    rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o620), 0)?;
    fs::write(tree.join("empty"), "")?;
    fs::write(tree.join(OsStr::from_bytes(b"odd\x01name\xff")), "z")?;
    fs::write(tree.join("large"), text(1, 9 << 20))?;
    fs::write(tree.join("goes"), text(2, 40 << 10))?;
    let sparse = File::create(tree.join("sparse"))?;
    sparse.set_len(5 << 20)?;
    sparse.write_all_at(b"in the middle", 3_000_000)?;
    for n in 0..120 {
        fs::write(tree.join(format!("many/{n:03}")), format!("small file {n}\n"))?;
    }
    for (path, mode) in [("a", 0o640), ("empty", 0o400), ("sub/deep", 0o1777), ("many", 0o700)] {
        fs::set_permissions(tree.join(path), Permissions::from_mode(mode))?;
    }
    set_times(tree)
}

/// Changes inside a large file, a new file, one renamed.
fn second_version(tree: &Path) -> Done {
    File::options()
        .write(true)
        .open(tree.join("large"))?
        .write_all_at(b"changed in the middle", 2_500_000)?;
    fs::write(tree.join("sub/new"), "new in the second version\n")?;
    fs::rename(tree.join("many/007"), tree.join("many/renamed"))?;
    set_times(tree)
}

/// A file goes, one becomes short, one a directory; attributes change.
fn third_version(tree: &Path) -> Done {
    File::options().write(true).open(tree.join("large"))?.set_len(1_500_000)?;
    fs::remove_file(tree.join("goes"))?;
    fs::remove_file(tree.join("empty"))?;
    fs::create_dir(tree.join("empty"))?;
    fs::write(tree.join("empty/no-longer"), "a directory now\n")?;
    fs::set_permissions(tree.join("sub/new"), Permissions::from_mode(0o444))?;
    rustix::fs::lremovexattr(tree.join("a"), "user.note")?;
    set_times(tree)
}

/// Numbered lines that repeat otherwise: many bytes that compress to few, with places enough for chunk boundaries.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut line = [0; 256];
    let mut draw = || {
        random.fill(&mut line);
        line
    };
    let lines: Vec<String> = (0..32).map(|_| draw().escape_ascii().to_string()).collect();
    let mut out = Vec::with_capacity(length);
    for number in 0.. {
        let choice = usize::from(draw()[0]) % lines.len();
        out.extend_from_slice(format!("{number} {}\n", lines[choice]).as_bytes());
        if out.len() >= length {
            break;
        }
    }
    out.truncate(length);
    out
}

/// Gives everything a time that depends on its name only, one of them before 1970; directories last.
fn set_times(path: &Path) -> Done {
    let facts = path.symlink_metadata()?;
    if facts.is_dir() {
        for entry in fs::read_dir(path)? {
            set_times(&entry?.path())?;
        }
    }
    let name = path.file_name().unwrap_or_default().as_bytes();
    let hash = blake3::hash(name);
    let seed = u64::from_le_bytes(hash.as_bytes()[..8].try_into()?);
    let seconds = if name == b"sub" { -86_400 } else { 1_000_000_000 + (seed % 700_000_000) as i64 };
    let time = Timespec { tv_sec: seconds, tv_nsec: (seed >> 32) as i64 % 1_000_000_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
