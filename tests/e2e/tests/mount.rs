//! Snapshots as a file system: what is seen there is what was backed up, or an error.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::monitor::Monitor;
use backup_core::{Cache, Cancel, Limits, Repository, Snapshot};
use keepwell_e2e::tree::{self, Tree};
use keepwell_e2e::world::{self, LIMITS, World, back_up, forget, prune_to_the_end, snapshot_of};
use keepwell_e2e::{Dice, noise, run};
use keepwell_mount::{Audience, HollowFile, MountOptions, Mounted, StandIn, Unmounted, fill_as_needed};
use keepwell_storage::{ObjectStore, list_all};
use rustix::fs::{CWD, FileType, Mode, SeekFrom, XattrFlags, lsetxattr, makedev, mknodat, seek};
use tempfile::TempDir;

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
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
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
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        tree::put(source.path(), "a", 1, 10);
        let report = back_up(&repository, source.path()).await.unwrap();
        let first = snapshot_of(&repository, &report).await;
        let mount = mount(&repository).await;
        let top = mount.at.path().to_owned();
        let dir = source.path().strip_prefix("/").unwrap().to_owned();
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
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
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

/// Names of packs with content.
async fn packs(world: &World) -> BTreeSet<String> {
    world.names("data/").await.into_iter().collect()
}

#[test]
fn a_damaged_pack_is_an_error_where_it_is_needed_and_nowhere_else() {
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        tree::put(dir, "good", 1, 2 * MIB);
        back_up(&repository, dir).await.unwrap();
        let good = packs(&world).await;
        tree::put(dir, "bad", 2, 2 * MIB);
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        for name in packs(&world).await.difference(&good) {
            let key = name.parse().unwrap();
            let mut bytes = world.store.get(&key).await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            world.store.delete(&key).await.unwrap();
            world.store.put_new(&key, bytes.into()).await.unwrap();
        }
        // What lies in a cache would still be right.
        let mount = mount(&world.open().await).await;
        let seen = mount.of(&snapshot, dir);
        mount
            .look(move || {
                assert_eq!(fs::read(seen.join("good")).unwrap(), noise(1, 2 * MIB));
                let bad = File::open(seen.join("bad")).unwrap();
                let expected = noise(2, 2 * MIB);
                let mut failed = 0;
                for from in (0..2 * MIB).step_by(64 << 10) {
                    let mut found = vec![0; 64 << 10];
                    match bad.read_at(&mut found, from as u64) {
                        Ok(n) => assert_eq!(found[..n], expected[from..from + n]),
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(5), "{error}");
                            failed += 1;
                        }
                    }
                }
                assert!(failed > 0);
                assert_eq!(fs::metadata(seen.join("bad")).unwrap().len(), 2 * MIB as u64);
                assert_eq!(fs::read(seen.join("good")).unwrap(), noise(1, 2 * MIB));
            })
            .await;
        let heard = mount.heard.0.lock().unwrap().clone();
        assert!(!heard.is_empty() && heard.iter().all(|line| line.contains("/bad: ")), "{heard:?}");
        mount.end().await;
    });
}

#[test]
fn a_prune_beside_it_takes_nothing_away_that_is_still_a_snapshot() {
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let limits = Limits { threads: 1, ..LIMITS };
        let store: Arc<dyn ObjectStore> = Arc::new(world.store.clone());
        let other = world::open(Arc::clone(&store), &world.key, Cache::memory(), limits).await.unwrap();
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        for n in 0..8 {
            tree::put(dir, &format!("{n}"), n, 400 << 10);
        }
        let first = snapshot_of(&other, &back_up(&other, dir).await.unwrap()).await;
        for n in 0..4 {
            tree::put(dir, &format!("{n}"), 100 + n, 400 << 10);
        }
        let after = tree::read(dir);
        let second = snapshot_of(&other, &back_up(&other, dir).await.unwrap()).await;
        let mount = mount(&world.open().await).await;
        let (old, new) = (mount.of(&first, dir), mount.of(&second, dir));
        let open = mount
            .look(move || {
                // The mount knows the old packs from now on.
                assert_eq!(fs::read(new.join("7")).unwrap(), noise(7, 400 << 10));
                File::open(old.join("0")).unwrap()
            })
            .await;
        let stored = packs(&world).await;
        forget(&other, std::slice::from_ref(&first)).await.unwrap();
        prune_to_the_end(&other, "beside a mount").await;
        assert!(stored.iter().any(|name| !name.is_empty()) && packs(&world).await != stored);
        tree::assert_same(&after, &mount.tree(&second, dir).await, "after the prune");
        // What was forgotten is an error, not zeros.
        let gone = mount.look(move || open.read_at(&mut [0; 4096], 300 << 10).map_err(|e| e.raw_os_error()));
        assert_eq!(gone.await, Err(Some(5)));
        let top = mount.at.path().join("by-id").join(first.short());
        let hidden = mount.look(move || {
            std::thread::sleep(Duration::from_millis(1100)); // the kernel may know it for a second
            top.exists()
        });
        assert!(!hidden.await);
        mount.end().await;
    });
}

#[test]
fn a_directory_of_any_size_is_listed_in_pieces_and_its_files_are_forgotten() {
    if !can_mount() {
        return;
    }
    run(async {
        const FILES: u64 = 12_000;
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
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
fn what_is_kept_in_memory_has_a_bound() {
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
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
        // The limit of this repository is 64 MiB; four answers hold a frame of up to 8 MiB each, the readers 12 MiB.
        let grown = resident().saturating_sub(before);
        assert!(grown < 108 * MIB, "{} MiB more than before", grown / MIB);
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

/// A directory with the same files, each nothing but a hole.
fn hollow_copy(dir: &Path, snapshot_dir: &Path) -> (TempDir, Vec<HollowFile>) {
    let copy = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (path, node) in tree::read(dir) {
        let to = copy.path().join(&path);
        match node.kind {
            "dir" => fs::create_dir(&to).unwrap(),
            _ => {
                File::create_new(&to).unwrap().set_len(node.size).unwrap();
                let key = world::key_of(&snapshot_dir.join(&path));
                files.push(HollowFile { path, key, size: node.size });
            }
        }
    }
    (copy, files)
}

/// Paths and contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Option<String>> {
    tree::read(dir).into_iter().map(|(path, node)| (path, node.content)).collect()
}

/// Does the same to two directories, whatever it is.
fn work_on(dirs: [&Path; 2], dice: &mut Dice) {
    let name = |n: u64| format!("{}/{n}", ["a", "b"][(n % 2) as usize]);
    let mut kept: Vec<[File; 2]> = Vec::new();
    for round in 0..400 {
        let (one, other) = (name(dice.roll(6)), name(dice.roll(12)));
        let (at, len) = (dice.roll(3 * MIB as u64), 1 + dice.roll(90_000) as usize);
        let at = if dice.roll(2) == 0 { at / 8192 * 8192 } else { at };
        let what = dice.roll(9);
        let mut seen = Vec::new();
        for (which, dir) in dirs.into_iter().enumerate() {
            let open = || File::options().read(true).write(true).open(dir.join(&one));
            let done = match what {
                0 | 1 => open().and_then(|file| file.write_all_at(&noise(round, len), at)),
                2 => open().and_then(|file| file.set_len(at)),
                3 if dice_is_rare(round) => fs::remove_file(dir.join(&one)),
                3 => fs::rename(dir.join(&one), dir.join(&other)),
                4 => fs::write(dir.join(&other), noise(round, len)),
                5 => open().map(|file| match which {
                    0 => kept.push([file.try_clone().unwrap(), file]),
                    _ => kept.last_mut().unwrap()[1] = file,
                }),
                _ => Ok(()),
            };
            let found = open().and_then(|file| {
                let mut found = vec![0; len];
                let n = file.read_at(&mut found, at)?;
                Ok((found[..n].to_vec(), file.metadata()?.len()))
            });
            seen.push((done.map_err(|e| e.kind()), found.map_err(|e| e.kind())));
        }
        assert!(seen[0] == seen[1], "round {round}, {what}: {:?}, {:?}", seen[0].0, seen[1].0);
        // What was opened stays what it was, also without a name.
        for [first, second] in &kept {
            let mut found = [vec![0; 5000], vec![0; 5000]];
            let n = first.read_at(&mut found[0], at).unwrap();
            assert_eq!(second.read_at(&mut found[1], at).unwrap(), n, "round {round}");
            assert!(found[0] == found[1], "round {round}");
            assert_eq!(first.metadata().unwrap().len(), second.metadata().unwrap().len());
        }
        if kept.len() > 8 {
            kept.remove(0);
        }
    }
}

fn dice_is_rare(round: u64) -> bool {
    round.is_multiple_of(5)
}

#[test]
fn a_directory_of_holes_is_the_full_one_to_who_works_in_it() {
    if !can_mount() {
        return;
    }
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        fs::create_dir(dir.join("a")).unwrap();
        fs::create_dir(dir.join("b")).unwrap();
        for n in 0..6 {
            let name = format!("{}/{n}", ["a", "b"][n % 2]);
            tree::put(dir, &name, n as u64, n * 700_001 + n * n * 8192);
        }
        tree::put(dir, "b/untouched", 7, 3 * MIB + 1);
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let full = tempfile::tempdir().unwrap();
        let (hollow, files) = hollow_copy(dir, dir);
        for (path, _) in contents(dir).iter().filter(|(_, content)| content.is_none()) {
            fs::create_dir(full.path().join(path)).unwrap();
        }
        for file in &files {
            fs::copy(dir.join(&file.path), full.path().join(&file.path)).unwrap();
        }
        let most: u64 = files.iter().map(|file| file.size).sum();
        let stand_in = StandIn { seen: "control".into(), beneath: "control.incomplete".into() };
        fs::write(hollow.path().join("control.incomplete"), b"beneath").unwrap();
        fs::write(full.path().join("control"), b"beneath").unwrap();
        let tree = repository.tree(&snapshot).await.unwrap();
        let heard = Arc::new(Heard::default());
        let monitor = Arc::clone(&heard) as Arc<dyn Monitor>;
        let filling = fill_as_needed(&tree, hollow.path(), files, stand_in, monitor).await.unwrap();
        let missing = filling.missing_bytes();
        assert!(missing >= most && missing < most + 7 * 8192);
        let (one, other) = (hollow.path().to_owned(), full.path().to_owned());
        let work = move || {
            assert_eq!(fs::read(one.join("control")).unwrap(), b"beneath");
            assert!(!one.join("control.incomplete").exists());
            work_on([&one, &other], &mut Dice::new(3));
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        assert!((3 * MIB as u64..missing).contains(&filling.missing_bytes()));
        filling.fetch_all(Cancel::default()).await.unwrap();
        assert_eq!(filling.missing_bytes(), 0);
        assert_eq!(filling.unmount().await.unwrap(), Unmounted::Gone);
        assert!(!hollow.path().join("control").exists(), "nobody takes it for whole");
        fs::rename(hollow.path().join("control.incomplete"), hollow.path().join("control")).unwrap();
        assert_eq!(contents(full.path()), contents(hollow.path()));
        assert_eq!(*heard.0.lock().unwrap(), Vec::<String>::new());
    });
}
