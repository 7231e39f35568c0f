//! Snapshots made to do harm: nothing is written outside the target, time and memory stay bounded, and whoever does not
//! trust a snapshot gets no rights from it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::{Error, Repository, RestoreOptions, RestoreReport, Snapshot};
use keepwell_catalog::{Entry, EntryKind};
use keepwell_e2e::made::{Data, Made, Thing, entry, file, key, thing};
use keepwell_e2e::tree::{self, Tree};
use keepwell_e2e::{run, world};
use keepwell_source_files::{FileTarget, TargetOptions};
use world::{World, options, snapshot_of};

/// A target, and beside it what must stay as it is.
struct Ground {
    root: tempfile::TempDir,
    before: Tree,
}

impl Ground {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        tree::put(root.path(), "outside/file", 1, 1000);
        tree::put(root.path(), "outside/dir/file", 2, 1000);
        fs::create_dir(root.path().join("target")).unwrap();
        let before = tree::read(&root.path().join("outside"));
        Self { root, before }
    }

    fn target(&self) -> PathBuf {
        self.root.path().join("target")
    }

    fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    fn assert_untouched(&self, what: &str) {
        tree::assert_same(&self.before, &tree::read(&self.outside()), what);
        let mut names: Vec<_> =
            fs::read_dir(self.root.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "target"], "{what}");
    }
}

async fn capture(things: Vec<Thing>) -> (Repository, Snapshot) {
    let world = World::new().await;
    let repository = world.open().await;
    let report = repository.backup(Arc::new(Made::new(things)), options()).await.unwrap();
    let snapshot = snapshot_of(&repository, &report).await;
    (repository, snapshot)
}

async fn restore(
    (repository, snapshot): &(Repository, Snapshot),
    to: &Path,
    untrusted: bool,
) -> Result<RestoreReport, Error> {
    let target =
        Arc::new(FileTarget::create(to, &TargetOptions { untrusted, ..TargetOptions::default() }).unwrap());
    repository.restore(snapshot, target, RestoreOptions { delete: true, ..RestoreOptions::default() }).await
}

fn link_to(path: &Path) -> Entry {
    Entry { link_target: Some(path.as_os_str().as_bytes().to_vec()), ..entry(EntryKind::Symlink) }
}

fn hard_link_to<C: AsRef<[u8]>>(first: impl IntoIterator<Item = C>) -> Entry {
    Entry { hard_link: Some(key(first)), ..entry(EntryKind::HardLink) }
}

#[test]
fn names_and_links_that_lead_outside() {
    run(async {
        let ground = Ground::new();
        let outside = ground.outside();
        let directory = || entry(EntryKind::Directory);
        let cases: Vec<(&str, Vec<Thing>)> = vec![
            (
                "parent",
                vec![thing([".."], directory()), file(["..", "outside"], b"x"), file(["..", "evil"], b"x")],
            ),
            (
                "deep parent",
                vec![thing(["d"], directory()), file(["d", "..", "..", "outside", "file"], b"x")],
            ),
            ("dot", vec![file(["."], b"x"), file(["d", "."], b"x")]),
            ("slash", vec![file(["../outside/file"], b"x"), file(["/etc/keepwell-evil"], b"x")]),
            ("absolute", vec![file([outside.join("file").as_os_str().as_bytes()], b"x")]),
            ("nul", vec![file([b"a\0b".as_slice()], b"x")]),
            (
                "beneath a symlink",
                vec![thing(["d"], link_to(&outside)), file(["d", "file"], b"x"), file(["d", "new"], b"x")],
            ),
            (
                "deep beneath a symlink",
                vec![
                    thing(["d"], link_to(&outside)),
                    thing(["d", "dir"], Entry { mode: 0o777, ..directory() }),
                    file(["d", "dir", "file"], b"x"),
                    thing(["d", "dir", "link"], link_to(Path::new("/etc"))),
                ],
            ),
            (
                "hard link out",
                vec![
                    file(["a"], b"x"),
                    thing(["b"], hard_link_to(["..", "outside", "file"])),
                    thing(["c"], hard_link_to([outside.join("file").as_os_str().as_bytes()])),
                    thing(["e"], hard_link_to(["nowhere"])),
                    thing(["f"], hard_link_to(["f"])),
                    thing(["g"], hard_link_to(["h"])),
                    thing(["h"], hard_link_to(["g"])),
                ],
            ),
            (
                "hard link through a symlink",
                vec![thing(["d"], link_to(&outside)), thing(["e"], hard_link_to(["d", "file"]))],
            ),
            ("beneath a file", vec![file(["f"], b"x"), file(["f", "g"], b"x")]),
            (
                "hole beyond any disk",
                vec![
                    Thing { data: Data::Hole(1 << 60), ..file(["hole"], b"") },
                    Thing { data: Data::Hole(i64::MAX as u64), ..file(["hole2"], b"") },
                    file(["z"], b"x"),
                ],
            ),
        ];
        for (what, things) in cases {
            for untrusted in [false, true] {
                for prepared in [false, true] {
                    let _ = fs::remove_dir_all(ground.target());
                    fs::create_dir(ground.target()).unwrap();
                    if prepared {
                        // What stands there already is as hostile: links to outside under the same names.
                        symlink(&outside, ground.target().join("d")).unwrap();
                        symlink(outside.join("file"), ground.target().join("f")).unwrap();
                        fs::hard_link(outside.join("file"), ground.target().join("a")).unwrap();
                    }
                    let what = format!("{what}, untrusted {untrusted}, prepared {prepared}");
                    match Box::pin(capture_or_refuse(things.clone())).await {
                        None => {}
                        Some(captured) => {
                            let ended = restore(&captured, &ground.target(), untrusted).await;
                            drop(ended); // refused as a whole, or thing by thing
                        }
                    }
                    let _ = fs::remove_file(ground.target().join("a"));
                    ground.assert_untouched(&what);
                }
            }
        }
    });
}

/// `None` if the engine does not even capture it.
async fn capture_or_refuse(things: Vec<Thing>) -> Option<(Repository, Snapshot)> {
    let world = World::new().await;
    let repository = world.open().await;
    let report = repository.backup(Arc::new(Made::new(things)), options()).await.ok()?;
    let snapshot = snapshot_of(&repository, &report).await;
    Some((repository, snapshot))
}

#[test]
fn a_symlink_swapped_in_while_restoring() {
    run(async {
        let ground = Ground::new();
        let mut things = vec![thing(["d"], entry(EntryKind::Directory))];
        for i in 0..60 {
            things.push(file(["d".to_owned(), format!("{i}")], &keepwell_e2e::noise(i, 9000)));
        }
        things.push(file(["d", "file"], b"evil"));
        let captured = capture(things).await;
        let done = AtomicBool::new(false);
        let (target, outside) = (ground.target(), ground.outside());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let _ = fs::rename(target.join("d"), target.join("aside"));
                    let _ = symlink(&outside, target.join("d"));
                    std::thread::yield_now();
                    let _ = fs::remove_file(target.join("d"));
                    let _ = fs::rename(target.join("aside"), target.join("d"));
                }
            });
            let restores = async {
                for _ in 0..40 {
                    let target = FileTarget::create(&ground.target(), &TargetOptions::default()).unwrap();
                    let _ =
                        captured.0.restore(&captured.1, Arc::new(target), RestoreOptions::default()).await;
                }
            };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(restores));
            done.store(true, Ordering::SeqCst);
        });
        ground.assert_untouched("swapped");
    });
}

#[test]
fn rights_come_back_only_from_those_who_are_trusted() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make devices and privileged attributes");
        return;
    }
    run(async {
        let ground = Ground::new();
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let xattrs = vec![
            (b"security.capability".to_vec(), capability.to_vec()),
            (b"trusted.evil".to_vec(), b"1".to_vec()),
            (b"user.harmless".to_vec(), b"2".to_vec()),
        ];
        let able = Entry { xattrs, ..entry(EntryKind::File) };
        let device = Entry { device: Some((1, 3)), mode: 0o666, ..entry(EntryKind::CharDevice) };
        let things = vec![
            Thing {
                entry: Entry { mode: 0o6755, ..entry(EntryKind::File) },
                ..file(["setuid"], b"#!/bin/sh")
            },
            Thing { entry: able, ..file(["able"], b"binary") },
            thing(["null"], device.clone()),
            thing(["disk"], Entry { device: Some((8, 0)), kind: EntryKind::BlockDevice, ..device }),
            thing(["shared"], Entry { mode: 0o3777, ..entry(EntryKind::Directory) }),
        ];
        let captured = capture(things).await;
        restore(&captured, &ground.target(), true).await.unwrap();
        let found = tree::read(&ground.target());
        assert_eq!(found[Path::new("setuid")].mode, 0o755);
        let names: Vec<_> = found[Path::new("able")].xattrs.keys().cloned().collect();
        assert_eq!(names, [b"user.harmless".to_vec()]);
        assert!(
            !found.contains_key(Path::new("null")) && !found.contains_key(Path::new("disk")),
            "{found:?}"
        );
        assert_eq!(found[Path::new("shared")].mode & 0o6000, 0);

        let trusting = Ground::new();
        let report = restore(&captured, &trusting.target(), false).await.unwrap();
        assert_eq!((report.problems, report.left_out), (vec![], vec![]));
        let found = tree::read(&trusting.target());
        assert_eq!(found[Path::new("setuid")].mode, 0o6755);
        assert_eq!(found[Path::new("able")].xattrs.len(), 3, "{:?}", found[Path::new("able")]);
        assert_eq!(found[Path::new("null")].device, Some(0x103));
        assert_eq!(found[Path::new("disk")].kind, "block");
        assert_eq!(found[Path::new("shared")].mode, 0o3777);
        assert_eq!(found[Path::new("shared")].mtime, (1_500_000_000, 5));
    });
}
