//! Snapshots as a file system: what is seen there is what was backed up, or an error.
#![allow(clippy::unwrap_used)]

mod damage;
mod hollow;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::monitor::Monitor;
use backup_core::{Repository, Snapshot};
use keepwell_e2e::tree::{self, Tree};
use keepwell_e2e::world::{World, back_up, snapshot_of};
use keepwell_e2e::{Dice, noise, run};
use keepwell_mount::{Audience, MountOptions, Mounted, Unmounted};
use keepwell_storage::list_all;
use rustix::fs::{CWD, FileType, Mode, SeekFrom, XattrFlags, lsetxattr, makedev, mknodat, seek};
use tempfile::TempDir;

/// That of the programs: what memory is held depends on it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Where it looks for its settings.
const ALLOCATOR_SETTINGS: &str = "_RJEM_MALLOC_CONF";

const MIB: usize = 1 << 20;
const NOT_A_NAME_IN_UTF8: &[u8] = b"caf\xe9 \x01";

/// Whether a file system can be mounted here. Where it cannot, the test has nothing to say.
fn can_mount() -> bool {
    let can = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("skipped: /dev/fuse cannot be opened here, so nothing can be mounted");
    }
    can
}

/// Runs a test with a repository and an empty directory to back up, where file systems can be mounted.
fn in_a_directory(test: impl AsyncFnOnce(&World, Repository, &Path)) {
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        test(&world, world.open().await, source.path()).await;
    });
}

/// What could not be read, as it was reported.
#[derive(Debug, Default)]
struct Heard(Mutex<Vec<String>>);

impl Monitor for Heard {
    fn problem(&self, item: &str, message: &str) {
        self.0.lock().unwrap().push(format!("{item}: {message}"));
    }
}

struct Mount {
    at: TempDir,
    mounted: Mounted,
    heard: Arc<Heard>,
}

async fn mount(repository: &Repository) -> Mount {
    let at = tempfile::tempdir().unwrap();
    let heard = Arc::new(Heard::default());
    let options = MountOptions {
        accepts: Arc::new(|_| true),
        audience: Audience::Everybody,
        refresh_every: Duration::ZERO,
        monitor: Arc::clone(&heard) as Arc<dyn Monitor>,
    };
    let mounted = keepwell_mount::mount(repository, at.path(), options).await.unwrap();
    Mount { at, mounted, heard }
}

impl Mount {
    /// Where what was backed up from `dir` is seen.
    fn of(&self, snapshot: &Snapshot, dir: &Path) -> PathBuf {
        self.at.path().join("by-id").join(snapshot.short()).join(dir.strip_prefix("/").unwrap())
    }

    /// Looks at it on a thread that may wait.
    async fn look<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(look).await.unwrap()
    }

    async fn tree(&self, snapshot: &Snapshot, dir: &Path) -> Tree {
        let at = self.of(snapshot, dir);
        self.look(move || tree::read(&at)).await
    }

    async fn end(self) {
        assert_eq!(self.mounted.unmount().await.unwrap(), Unmounted::Gone);
        assert_eq!(fs::read_dir(self.at.path()).unwrap().count(), 0);
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A thing of every kind.
fn fill(dir: &Path) {
    tree::put(dir, "empty", 1, 0);
    tree::put(dir, "small/a", 2, 1000);
    tree::put(dir, "small/b", 3, 70_001);
    tree::put(dir, "large", 4, 9 * MIB + 1);
    tree::put_bytes(dir, "zeros", 5, &vec![0; 2 * MIB]);
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.write_all_at(&noise(6, 100_000), 7 * MIB as u64).unwrap();
    sparse.set_len(64 * MIB as u64).unwrap();
    tree::stamp(&sparse, 6);
    symlink("../some\u{e9}where/else", dir.join("small/link")).unwrap();
    fs::hard_link(dir.join("large"), dir.join("small/large too")).unwrap();
    fs::hard_link(dir.join("large"), dir.join("z")).unwrap();
    fs::create_dir(dir.join("empty dir")).unwrap();
    let odd = dir.join(std::ffi::OsStr::from_bytes(NOT_A_NAME_IN_UTF8));
    fs::write(&odd, b"odd").unwrap();
    for (name, mode) in [("small/a", 0o4751), ("small/b", 0o000), ("empty dir", 0o1730)] {
        tree::chmod(dir, name, mode);
    }
    lsetxattr(dir.join("empty"), "user.note", b"one\0two", XattrFlags::empty()).unwrap();
    let fifo = dir.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    if is_root() {
        let device = dir.join("device");
        let number = makedev(259, 70_000);
        mknodat(CWD, &device, FileType::CharacterDevice, Mode::from_raw_mode(0o600), number).unwrap();
        std::os::unix::fs::chown(dir.join("small"), Some(12_345), Some(70_000)).unwrap();
        std::os::unix::fs::lchown(dir.join("small/link"), Some(4_000_000_000), Some(1)).unwrap();
    }
}

#[test]
fn what_is_seen_is_what_was_backed_up() {
    in_a_directory(async |_, repository, dir| {
        fill(dir);
        let before = tree::read(dir);
        let first = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let mount = mount(&repository).await;
        tree::assert_same(&before, &mount.tree(&first, dir).await, "the first snapshot");

        // A second one shows while it is mounted, and the first stays as it was.
        tree::put(dir, "large", 44, 3 * MIB);
        fs::remove_file(dir.join("zeros")).unwrap();
        let after = tree::read(dir);
        let second = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        tree::assert_same(&after, &mount.tree(&second, dir).await, "the second snapshot");
        tree::assert_same(&before, &mount.tree(&first, dir).await, "the first snapshot, later");
        assert_eq!(*mount.heard.0.lock().unwrap(), Vec::<String>::new());
        mount.end().await;
    });
}

#[test]
fn snapshots_are_found_by_time_host_and_dataset() {
    in_a_directory(async |_, repository, dir| {
        tree::put(dir, "a", 1, 10);
        let report = back_up(&repository, dir).await.unwrap();
        let first = snapshot_of(&repository, &report).await;
        let mount = mount(&repository).await;
        let top = mount.at.path().to_owned();
        let dir = dir.strip_prefix("/").unwrap().to_owned();
        let seen = mount.look(move || {
            let names = |path: &str| -> BTreeSet<String> {
                let found = fs::read_dir(top.join(path)).unwrap();
                found.map(|one| one.unwrap().file_name().into_string().unwrap()).collect()
            };
            let time = names("by-time").pop_first().unwrap();
            assert!(time.ends_with('Z') && time.contains('T'), "{time}");
            for path in [format!("by-time/{time}"), "by-host/host/data/latest".to_owned()] {
                assert_eq!(fs::read(top.join(path).join(&dir).join("a")).unwrap(), noise(1, 10));
            }
            assert_eq!(names("by-host/host/data"), [time, "latest".to_owned()].into());
            assert_eq!(names(""), ["by-host", "by-id", "by-time"].map(str::to_owned).into());
            for wrong in ["by-id/nothing", "by-id/../nothing", "by-host/host/data/latest/nothing"] {
                let error = fs::metadata(top.join(wrong)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{wrong}");
            }
            let write = File::create(top.join("by-id/new")).unwrap_err();
            assert_eq!(write.kind(), io::ErrorKind::ReadOnlyFilesystem);
            names("by-id")
        });
        assert_eq!(seen.await, [first.short()].into());
        mount.end().await;
    });
}

#[test]
fn any_stretch_of_a_file_can_be_read_and_holes_are_found() {
    in_a_directory(async |_, repository, dir| {
        // Hundreds of extents: more than one record of the tree holds.
        let many = File::create(dir.join("many")).unwrap();
        for n in 0..1500u64 {
            many.write_all_at(&noise(n, 4096), n * 12_288).unwrap();
        }
        tree::stamp(&many, 1);
        tree::put(dir, "large", 2, 11 * MIB);
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let mount = mount(&repository).await;
        let (seen, dir) = (mount.of(&snapshot, dir), dir.to_owned());
        mount
            .look(move || {
                let mut dice = Dice::new(7);
                for name in ["many", "large"] {
                    let expected = fs::read(dir.join(name)).unwrap();
                    let file = File::open(seen.join(name)).unwrap();
                    for _ in 0..400 {
                        let from = dice.roll(expected.len() as u64 + 1) as usize;
                        let len = dice.roll(300_000) as usize;
                        let mut found = vec![0; len];
                        let n = file.read_at(&mut found, from as u64).unwrap();
                        let to = (from + len).min(expected.len());
                        // A read may be short; what it gives is right.
                        assert!(n > 0 || to <= from, "{name} from {from}");
                        assert_eq!(found[..n], expected[from..from + n], "{name} from {from}");
                    }
                }
                let file = File::open(seen.join("many")).unwrap();
                assert!(file.metadata().unwrap().blocks() * 512 < file.metadata().unwrap().len());
                assert_eq!(seek(&file, SeekFrom::Hole(5 * 12_288 + 1)).unwrap(), 5 * 12_288 + 4096);
                assert_eq!(seek(&file, SeekFrom::Data(5 * 12_288 + 4096)).unwrap(), 6 * 12_288);
            })
            .await;
        assert_eq!(*mount.heard.0.lock().unwrap(), Vec::<String>::new());
        mount.end().await;
    });
}

#[test]
fn a_directory_of_any_size_is_listed_in_pieces_and_its_files_are_forgotten() {
    in_a_directory(async |_, repository, dir| {
        const FILES: u64 = 12_000;
        for n in 0..FILES {
            fs::write(dir.join(format!("{n:06}")), n.to_le_bytes()).unwrap();
        }
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let mount = mount(&repository).await;
        let seen = mount.of(&snapshot, dir);
        mount
            .look(move || {
                for _ in 0..2 {
                    let mut names: Vec<_> =
                        fs::read_dir(&seen).unwrap().map(|one| one.unwrap().file_name()).collect();
                    names.sort();
                    assert_eq!(names.len() as u64, FILES);
                    for (n, name) in names.iter().enumerate() {
                        assert_eq!(name.to_str().unwrap(), format!("{n:06}"));
                        assert_eq!(fs::metadata(seen.join(name)).unwrap().len(), 8);
                    }
                }
                assert_eq!(fs::read(seen.join("011999")).unwrap(), 11_999u64.to_le_bytes());
            })
            .await;
        mount.end().await;
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "asks whether this is the process with the settings")]
fn what_is_kept_in_memory_has_a_bound() {
    if !can_mount() {
        return;
    }
    // In a process whose allocator gives back what is free: how much it keeps otherwise, and for how long, depends on
    // which thread has asked for what, and on the processors.
    if std::env::var_os(ALLOCATOR_SETTINGS).is_none() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_is_kept_in_memory_has_a_bound", "--nocapture"])
            .env(ALLOCATOR_SETTINGS, "dirty_decay_ms:0,muzzy_decay_ms:0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    in_a_directory(async |world, repository, dir| {
        for n in 0..12 {
            tree::put(dir, &format!("{n}"), n, 24 * MIB);
        }
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let stored: u64 = list_all(&world.store, "data/").await.unwrap().iter().map(|o| o.size).sum();
        assert!(stored > 280 * MIB as u64);
        drop(repository);
        let mount = mount(&world.open().await).await;
        let seen = mount.of(&snapshot, dir);
        let expected: Vec<_> = (0..12).map(|n| blake3::hash(&noise(n, 24 * MIB))).collect();
        let before = resident();
        mount
            .look(move || {
                std::thread::scope(|scope| {
                    for (n, expected) in expected.iter().enumerate() {
                        let seen = &seen;
                        scope.spawn(move || {
                            let file = File::open(seen.join(format!("{n}"))).unwrap();
                            let mut buf = vec![0; MIB];
                            let mut hash = blake3::Hasher::new();
                            let mut at = 0;
                            while let Ok(len @ 1..) = file.read_at(&mut buf, at) {
                                hash.update(&buf[..len]);
                                at += len as u64;
                            }
                            assert_eq!(hash.finalize(), *expected);
                        });
                    }
                });
            })
            .await;
        // The limit of this repository. Nobody reads now, so no answer holds a frame beside what is kept.
        let grown = resident().saturating_sub(before);
        assert!(grown < 64 * MIB, "{} MiB more than before", grown / MIB);
        mount.end().await;
    });
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn what_cannot_be_mounted_on_is_refused_with_what_is_missing() {
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let at = tempfile::tempdir().unwrap();
        fs::write(at.path().join("file"), b"").unwrap();
        for (name, message) in [("nothing", "cannot be mounted on"), ("file", "cannot be mounted on")] {
            let options = MountOptions {
                accepts: Arc::new(|_| true),
                audience: Audience::Owner,
                refresh_every: Duration::ZERO,
                monitor: Arc::new(Heard::default()),
            };
            let refused = keepwell_mount::mount(&repository, &at.path().join(name), options).await;
            let error = refused.unwrap_err();
            assert!(error.to_string().contains(message) && error.hint().is_some(), "{error}");
        }
    });
}
