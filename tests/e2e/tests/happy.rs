//! Nothing goes wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::env::SystemClock;
use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use backup_core::{BackupOptions, Cache, Limits, RestoreOptions, Select};
use keepwell_e2e::{noise, run, tree, within, world};
use keepwell_source_files::{FileOptions, FileSource, FileTarget, TargetOptions};
use keepwell_storage::{Memory, list_all};
use world::{World, assert_sound, back_up, back_up_with, forget, options, restored, snapshot_of};

const MIB: usize = 1 << 20;

/// A bit of everything, a few MiB.
fn fill(dir: &Path, seed: u64) {
    tree::put(dir, "empty", seed, 0);
    tree::put(dir, "one", seed, 1);
    tree::put(dir, "small/a", seed + 1, 1000);
    tree::put(dir, "small/b", seed + 2, 70_000);
    tree::put(dir, "medium", seed + 3, 300_000);
    tree::put(dir, "large", seed + 4, 5 * MIB);
    tree::put(dir, "copy/of/large", seed + 4, 5 * MIB);
    tree::put_bytes(dir, "zeros", seed, &vec![0; 3 * MIB]);
    for i in 0..300 {
        tree::put(dir, &format!("many/{}/{i}", i % 7), seed + i, 10 + i as usize * 13);
    }
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.write_all_at(&noise(seed, 100_000), 7 * MIB as u64).unwrap();
    sparse.set_len(40 * MIB as u64).unwrap();
    tree::stamp(&sparse, seed);
    symlink("../somewhere/else", dir.join("small/link")).unwrap();
    fs::hard_link(dir.join("large"), dir.join("small/large too")).unwrap();
    fs::create_dir(dir.join("empty dir")).unwrap();
    tree::chmod(dir, "small/a", 0o4751);
    tree::chmod(dir, "small/b", 0o000);
    tree::chmod(dir, "empty dir", 0o1730);
}

#[test]
fn snapshots_come_back_as_they_were() {
    for threads in [1, 4] {
        run(async {
            let world = World::new().await;
            let limits = Limits { threads, ..world::LIMITS };
            let open = || async {
                world::open(Arc::new(world.store.clone()), &world.key, Cache::memory(), limits).await.unwrap()
            };
            let repository = open().await;
            let source = tempfile::tempdir().unwrap();
            let dir = source.path();
            fill(dir, 1);
            let first = tree::read(dir);
            let one = back_up(&repository, dir).await.unwrap();
            assert_eq!(one.problems, []);

            tree::put(dir, "small/a", 99, 2000);
            tree::put(dir, "new/file", 98, 2 * MIB);
            fs::remove_file(dir.join("medium")).unwrap();
            fs::remove_dir_all(dir.join("many/3")).unwrap();
            tree::chmod(dir, "one", 0o600);
            let second = tree::read(dir);
            let two = back_up(&repository, dir).await.unwrap();
            assert_eq!(two.parent, Some(one.snapshot));
            assert!(two.statistics.bytes_read < 3 * MIB as u64, "{:?}", two.statistics);

            let other = open().await; // another host's view: an empty cache
            for repository in [&repository, &other] {
                let one = snapshot_of(repository, &one).await;
                tree::assert_same(&first, &restored(repository, &one, dir).await, "first");
                let two = snapshot_of(repository, &two).await;
                tree::assert_same(&second, &restored(repository, &two, dir).await, "second");
                assert_sound(repository, "after two backups").await;
            }
            let scrub = backup_core::scrub(&world.store, None, true).await.unwrap();
            assert!(scrub.findings.is_empty(), "{:?}", scrub.findings);
        });
    }
}

#[test]
fn an_incremental_backup_with_a_lost_cache_reads_nothing() {
    run(async {
        let world = World::new().await;
        let source = tempfile::tempdir().unwrap();
        fill(source.path(), 1);
        back_up(&world.open().await, source.path()).await.unwrap();
        let content = world.names("data/").await;
        let again = back_up(&world.open().await, source.path()).await.unwrap();
        assert_eq!((again.statistics.bytes_read, again.statistics.changed_files), (0, 0));
        // Tree nodes may be new: other tests change the time of the temporary directory above, which is in the snapshot.
        assert_eq!(world.names("data/").await, content);
        let reread = BackupOptions { reread: true, verify: true, ..options() };
        let third = back_up_with(&world.open().await, source.path(), reread).await.unwrap();
        assert!(third.statistics.bytes_read > 10 * MIB as u64);
        assert_eq!(world.names("data/").await, content);
    });
}

/// Bytes of all packs with content.
async fn stored(world: &World) -> u64 {
    list_all(&world.store, "data/").await.unwrap().iter().map(|info| info.size).sum()
}

#[test]
fn what_is_forgotten_goes_and_the_rest_stays() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        let mut snapshots = Vec::new();
        // Every generation replaces half of the files, so that packs are partly and wholly unused.
        for generation in 0..4u64 {
            for i in 0..8u64 {
                if i % 2 == 0 || generation == 0 {
                    tree::put(dir, &format!("d/{i}"), generation * 100 + i, MIB);
                }
            }
            let tree = tree::read(dir);
            let report = back_up(&repository, dir).await.unwrap();
            snapshots.push((snapshot_of(&repository, &report).await, tree));
        }
        for (forgotten, keep) in [(vec![1, 2], vec![0, 3]), (vec![0], vec![3])] {
            let going: Vec<_> = forgotten.iter().map(|i: &usize| snapshots[*i].0.clone()).collect();
            forget(&repository, &going).await.unwrap();
            let before = stored(&world).await;
            let report = world::prune_to_the_end(&repository, "after forgetting").await;
            assert!(report.packs_unused + report.packs_repacked > 0, "{report:?}");
            // Each of the forgotten has four files of noise of its own; new packs are padded otherwise than the old.
            let freed = before - stored(&world).await;
            assert!(freed >= (forgotten.len() * 3 * MIB) as u64, "{freed} bytes");
            for repository in [&repository, &world.open().await] {
                assert_eq!(repository.snapshots().await.unwrap().len(), keep.len());
                for (snapshot, tree) in keep.iter().map(|i: &usize| &snapshots[*i]) {
                    tree::assert_same(tree, &restored(repository, snapshot, dir).await, "kept");
                }
            }
            let scrub = backup_core::scrub(&world.store, None, true).await.unwrap();
            assert!(scrub.findings.is_empty(), "{:?}", scrub.findings);
        }
    });
}

#[test]
fn checkpoints_between_batches() {
    for threads in [1, 4] {
        run(async {
            let store = Memory::new();
            let key = world::create(&store).await;
            let limits = Limits { threads, ..world::LIMITS };
            let repository =
                world::open(Arc::new(store.clone()), &key, Cache::memory(), limits).await.unwrap();
            let source = tempfile::tempdir().unwrap();
            let dir = source.path();
            for i in 0..12 {
                tree::put(dir, &format!("{i}"), i, MIB);
            }
            let options = BackupOptions { checkpoint_every: Duration::ZERO, verify: true, ..options() };
            let report = back_up_with(&repository, dir, options).await.unwrap();
            assert!(report.checkpoints >= 12, "{}", report.checkpoints);
            // Also what was stored before a checkpoint is proved, not only what came after the last one.
            assert!(report.verified_chunks >= report.statistics.new_chunks, "{report:?}");
            let snapshot = snapshot_of(&repository, &report).await;
            tree::assert_same(
                &tree::read(dir),
                &restored(&repository, &snapshot, dir).await,
                "with checkpoints",
            );
            assert_sound(&repository, "with checkpoints").await;
            assert_eq!(repository.snapshots().await.unwrap().len(), 1, "a checkpoint is no snapshot");
            world::prune_to_the_end(&repository, "checkpoints are roots no longer").await;
            tree::assert_same(&tree::read(dir), &restored(&repository, &snapshot, dir).await, "after prune");
        });
    }
}

#[test]
fn one_large_file_and_a_proof() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        tree::put(source.path(), "large", 5, 64 * MIB);
        let options = BackupOptions { verify: true, ..options() };
        let report = back_up_with(&repository, source.path(), options).await.unwrap();
        assert!(report.verified_chunks > 32);
        let snapshot = snapshot_of(&repository, &report).await;
        let expected = tree::read(source.path());
        tree::assert_same(&expected, &restored(&repository, &snapshot, source.path()).await, "large");
    });
}

#[test]
fn a_restore_over_an_older_state_writes_only_what_differs() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        fill(dir, 1);
        let report = back_up(&repository, dir).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        let expected = tree::read(dir);
        let to = tempfile::tempdir().unwrap();
        world::restore(&repository, &snapshot, dir, to.path()).await.unwrap();
        File::options()
            .write(true)
            .open(to.path().join("copy/of/large"))
            .unwrap()
            .write_all_at(b"x", 3_000_000)
            .unwrap();
        tree::put(to.path(), "one", 7, 5000);
        fs::remove_file(to.path().join("zeros")).unwrap();
        let grown = File::options().write(true).open(to.path().join("medium")).unwrap();
        grown.write_all_at(b"to be cut off", 300_000).unwrap();
        let again = world::restore(&repository, &snapshot, dir, to.path()).await.unwrap();
        assert_eq!(again.problems, []);
        assert!(again.bytes_written < 8 * MIB as u64, "{again:?}");
        assert_eq!(again.files_written, 4, "one was only shortened: {again:?}");
        tree::assert_same(&expected, &tree::read(to.path()), "corrected");
    });
}

#[test]
fn a_further_name_alone_does_not_take_what_stands_under_the_first() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        tree::put(dir, "a", 1, 2 * MIB);
        fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
        fs::hard_link(dir.join("a"), dir.join("c")).unwrap();
        let report = back_up(&repository, dir).await.unwrap();
        let snapshot = snapshot_of(&repository, &report).await;
        let to = tempfile::tempdir().unwrap();
        tree::put(to.path(), "a", 2, MIB);
        let before = tree::read(to.path());
        let target = FileTarget::create(to.path(), &TargetOptions::default()).unwrap();
        let select: Select = Arc::new(|key, _| key.name().is_some_and(|name| *name != *b"a"));
        let below = Some(world::key_of(dir));
        let options = RestoreOptions { below, select: Some(select), ..RestoreOptions::default() };
        let report = repository.restore(&snapshot, Arc::new(target), options).await.unwrap();
        assert_eq!(report.problems, []);
        let (expected, found) = (tree::read(dir), tree::read(to.path()));
        assert_eq!(found[Path::new("a")], before[Path::new("a")], "what was not selected stays");
        assert_eq!(found[Path::new("b")].content, expected[Path::new("a")].content);
        assert_eq!(found[Path::new("c")].same_as.as_deref(), Some(Path::new("b")));
    });
}

/// No directory is held in memory as a whole, and one entry more costs what lies around it.
#[test]
fn a_directory_of_200_000_entries() {
    const ENTRIES: usize = 200_000;
    within(Duration::from_secs(600), async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        for i in 0..ENTRIES {
            File::create(source.path().join(format!("{i}"))).unwrap();
        }
        let first = back_up(&repository, source.path()).await.unwrap();
        assert_eq!((first.statistics.files, first.problems.len()), (ENTRIES as u64, 0));
        let stored = async || {
            let trees = list_all(&world.store, "meta/").await.unwrap();
            trees.iter().map(|pack| pack.size).sum::<u64>()
        };
        let before = stored().await;
        File::create(source.path().join("one more")).unwrap();
        let second = back_up(&repository, source.path()).await.unwrap();
        let added = stored().await - before;
        assert!(added * 5 < before, "{added} bytes beside {before}");
        let snapshot = snapshot_of(&repository, &second).await;
        let back = restored(&repository, &snapshot, source.path()).await;
        tree::assert_same(&tree::read(source.path()), &back, "200,000 entries");
    });
}

#[test]
fn a_hundred_gibibytes_of_holes_cost_what_lies_between_them() {
    const SIZE: u64 = 100 << 30;
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let islands = [(0, 1), (37 << 30, 2), (SIZE - 5000, 3)];
        let file = File::create(source.path().join("image")).unwrap();
        file.set_len(SIZE).unwrap();
        for (at, seed) in islands {
            file.write_all_at(&noise(seed, 5000), at).unwrap();
        }
        drop(file);
        let report = back_up(&repository, source.path()).await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.statistics.logical_bytes, SIZE);
        assert!(report.statistics.bytes_read < MIB as u64, "{:?}", report.statistics);

        let snapshot = snapshot_of(&repository, &report).await;
        let to = tempfile::tempdir().unwrap();
        let restored = world::restore(&repository, &snapshot, source.path(), to.path()).await.unwrap();
        assert_eq!(restored.problems, []);
        let image = File::open(to.path().join("image")).unwrap();
        let look = image.metadata().unwrap();
        assert_eq!(look.len(), SIZE);
        assert!(look.blocks() * 512 < MIB as u64, "{} blocks", look.blocks());
        for (at, seed) in islands {
            let mut found = vec![0; 5000];
            image.read_exact_at(&mut found, at).unwrap();
            assert!(found == noise(seed, 5000), "at {at}");
        }
        assert_sound(&repository, "after a sparse file").await;
    });
}

/// Files to which something happens: before they are opened, or when the first piece of them was read.
struct Restless {
    files: FileSource,
    dir: PathBuf,
}

struct Meddled {
    content: Box<dyn Content>,
    path: Option<PathBuf>,
}

/// What happens to a file, by its name.
fn meddle(path: &Path) {
    let open = || File::options().write(true).open(path).unwrap();
    let len = 3 * MIB as u64;
    match path.file_name().and_then(|name| name.to_str()) {
        Some("grows") => open().write_all_at(b"more", len).unwrap(),
        Some("shrinks") => open().set_len(len / 2).unwrap(),
        Some("is rewritten") => open().write_all_at(&noise(9, MIB), 2 * MIB as u64).unwrap(),
        Some("is removed") => fs::remove_file(path).unwrap(),
        _ => {}
    }
}

impl Source for Restless {
    fn kind(&self) -> &str {
        self.files.kind()
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.files.paths()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        self.files.preflight()
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        self.files.walk(visit)
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let name =
            item.key.name().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default();
        let path = self.dir.join(&name);
        if name == "is gone" {
            fs::remove_file(&path).unwrap();
        }
        let opened = self.files.open(item)?;
        Ok(opened.map(|opened| Opened {
            content: opened.content.map(|content| Box::new(Meddled { content, path: Some(path) }) as _),
            entry: opened.entry,
        }))
    }
}

impl Content for Meddled {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        let piece = self.content.read(buf)?;
        if let Some(path) = self.path.take() {
            meddle(&path);
        }
        Ok(piece)
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        self.content.changed_while_read()
    }
}

#[test]
fn files_that_change_while_they_are_read_are_counted_and_named() {
    run(async {
        let world = World::new().await;
        let repository = world.open().await;
        let source = tempfile::tempdir().unwrap();
        let dir = source.path();
        let restless = ["grows", "is removed", "is rewritten", "shrinks"];
        for (seed, name) in (1..).zip(restless.iter().chain(&["is gone", "stays"])) {
            tree::put(dir, name, seed, 3 * MIB);
        }
        let options = FileOptions { paths: vec![dir.to_path_buf()], ..FileOptions::default() };
        let files = FileSource::new(&options, Arc::new(SystemClock)).unwrap();
        let meddled = Arc::new(Restless { files, dir: dir.to_path_buf() });
        let report = repository.backup(meddled, world::options()).await.unwrap();
        assert_eq!(report.problem_count, 5, "{:?}", report.problems);
        let named: BTreeSet<&str> =
            report.problems.iter().filter_map(|(path, _)| Some(path.rsplit_once('/')?.1)).collect();
        assert_eq!(named, restless.into_iter().chain(["is gone"]).collect(), "{:?}", report.problems);
        let expected = |path: &str| match path.ends_with("is gone") {
            true => "vanished before it could be read",
            false => "changed while it was read",
        };
        assert!(report.problems.iter().all(|(path, why)| why == expected(path)), "{:?}", report.problems);

        let snapshot = snapshot_of(&repository, &report).await;
        let manifest = snapshot.manifest().unwrap();
        assert_eq!((manifest.problem_count, manifest.problems.len()), (5, 5), "the snapshot says so too");
        let found = restored(&repository, &snapshot, dir).await;
        assert_eq!(found[Path::new("stays")], tree::read(dir)[Path::new("stays")]);
        assert!(!found.contains_key(Path::new("is gone")), "what is gone before it is read is left out");

        // They are opened again the next time, though nothing has changed since.
        let report = back_up(&repository, dir).await.unwrap();
        assert_eq!(report.problems, []);
        let snapshot = snapshot_of(&repository, &report).await;
        tree::assert_same(&tree::read(dir), &restored(&repository, &snapshot, dir).await, "at rest");
    });
}
