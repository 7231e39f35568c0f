use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use keepwell_source_files::{FileTarget, TargetOptions};

use super::*;
use crate::lsn::Lsn;
use crate::recovery::{Archiving, Mode};
use crate::testing::{Made, SYSTEM, World};

/// Directories that a test restores into.
#[derive(Default)]
struct Opened(Mutex<BTreeMap<PathBuf, Arc<FileTarget>>>);

impl Places for Opened {
    fn open(&self, directory: &Path) -> Result<Arc<dyn RestoreTarget>, TargetError> {
        let target = Arc::new(FileTarget::create(directory, &TargetOptions::default())?);
        self.0.lock().unwrap().insert(directory.to_owned(), Arc::clone(&target));
        Ok(target)
    }

    fn sync(&self) -> Result<(), TargetError> {
        self.0.lock().unwrap().values().try_for_each(|target| target.sync())
    }
}

fn made(more: &str) -> Made {
    Made::new(SYSTEM, Lsn::new(0x28), Lsn::new(0x100), 1_795_248_000, more)
}

fn layout(root: &Path) -> Layout {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Layout {
        directory: root.join("target"),
        tablespaces: BTreeMap::from([(16_400, root.join("fast"))]),
        owner: Some(own),
        saved_wal: root.join("saved-wal"),
    }
}

async fn restored(made: Made, root: &Path) -> Result<ClusterReport, RestoreError> {
    let world = World::new().await;
    let backup = made.back_up(&world, "db").await;
    let settings = RecoverySettings {
        mode: Mode::Standby,
        restore_command: "get %f %p".into(),
        archiving: Archiving::Off,
        more: Vec::new(),
    };
    restore(&world.repository, &backup, &layout(root), &settings, &Opened::default()).await
}

fn link_to(path: &Path) -> Entry {
    Entry { link_target: Some(path.as_os_str().as_bytes().to_vec()), ..Entry::new(EntryKind::Symlink) }
}

#[tokio::test]
async fn a_snapshot_with_links_is_refused_and_writes_nothing_outside_its_target() {
    let names =
        ["postgresql.auto.conf", "tablespace_map", "recovery.signal", "global", "pg_tblspc", "base/1/2"];
    for name in names {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::write(&outside, "theirs").unwrap();
        let mut made = made("");
        if name == "global" {
            made = made.empty_of("data/global");
        }
        made.thing(&format!("data/{name}"), link_to(&outside));
        let refused = restored(made, root.path()).await.unwrap_err();
        assert!(matches!(&refused, RestoreError::NoFile { kind: "symlink", .. }), "{name}: {refused}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "theirs");
        assert!(!root.path().join("target").exists());
    }
}

#[tokio::test]
async fn links_that_stand_in_the_target_are_replaced_and_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let (outside, target) = (root.path().join("outside"), root.path().join("target"));
    fs::create_dir(&target).unwrap();
    fs::write(&outside, "theirs").unwrap();
    for name in ["postgresql.auto.conf", "standby.signal", "tablespace_map", "global"] {
        std::os::unix::fs::symlink(&outside, target.join(name)).unwrap();
    }
    let space = r#", "tablespaces": [{ "oid": 16400, "location": "/nowhere/fast", "name": "fast" }]"#;
    let mut made = made(space);
    made.file("data/postgresql.auto.conf", b"shared_buffers = '1GB'\nrestore_command = 'old'\n");
    made.file("tablespaces/16400/PG_15_202209061/5/1", &[1; 9000]);
    made.file("tablespaces/16400/stray", b"not a tablespace's");
    made.thing("data/pg_tblspc/16400", link_to(Path::new("/nowhere/fast")));
    let other = root.path().join("fast/PG_14_202107181");
    fs::create_dir_all(&other).unwrap();
    let stale = root.path().join("fast/PG_15_202209061/5");
    fs::create_dir_all(&stale).unwrap();
    fs::write(stale.join("9"), "a table of later").unwrap();
    let report = restored(made, root.path()).await.unwrap();
    assert!(report.files.problems.is_empty());
    assert_eq!(fs::read_to_string(&outside).unwrap(), "theirs");
    let settings = fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
    assert!(settings.starts_with("shared_buffers = '1GB'\narchive_cleanup_command = ''\n"), "{settings}");
    assert!(
        settings.contains("\nrestore_command = 'get %f %p'\n") && !settings.contains("old"),
        "{settings}"
    );
    assert_eq!(fs::read(target.join("global/pg_control")).unwrap(), [7; 100]);
    for name in ["postgresql.auto.conf", "standby.signal", "tablespace_map", "global/pg_control"] {
        let found = fs::symlink_metadata(target.join(name)).unwrap();
        assert!(found.is_file(), "{name}");
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_link(target.join("pg_tblspc/16400")).unwrap(), root.path().join("fast"));
    let map = fs::read_to_string(target.join("tablespace_map")).unwrap();
    assert_eq!(map, format!("16400 {}\n", root.path().join("fast").display()));
    // What is another cluster's, or another version's, stays; what is this one's and not in the snapshot goes.
    assert!(other.exists());
    assert_eq!(fs::read(stale.join("1")).unwrap(), [1; 9000]);
    assert!(!stale.join("9").exists() && !root.path().join("fast/stray").exists());
}

#[tokio::test]
async fn wal_is_moved_aside_or_nothing_is_touched() {
    let root = tempfile::tempdir().unwrap();
    let wal = root.path().join("target/pg_wal");
    fs::create_dir_all(&wal).unwrap();
    fs::write(wal.join("000000010000000000000003"), "the last there is").unwrap();
    layout(root.path()).check_wal().unwrap();
    // Another file system.
    let elsewhere = Layout { saved_wal: PathBuf::from("/proc/saved"), ..layout(root.path()) };
    assert!(matches!(elsewhere.check_wal(), Err(RestoreError::OtherFileSystem { .. })));
    let report = restored(made(""), root.path()).await.unwrap();
    let saved = report.saved_wal.unwrap();
    assert_eq!(fs::read_to_string(saved.join("000000010000000000000003")).unwrap(), "the last there is");
    layout(root.path()).check_wal().unwrap();
    // What cannot be listed may hold the last WAL.
    fs::write(&wal, "no directory").unwrap();
    assert!(matches!(layout(root.path()).check_wal(), Err(RestoreError::Io { operation: "list", .. })));
}

#[tokio::test]
async fn a_hollow_cluster_has_everything_but_content_and_is_one_only_when_it_was_filled() {
    const PAGES: &[u8] = &[5; 70_000];
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("target");
    let space = r#", "tablespaces": [{ "oid": 16400, "location": "/nowhere/fast", "name": "fast" }]"#;
    let mut made = made(space);
    made.file("data/postgresql.auto.conf", b"shared_buffers = '1GB'\n");
    made.file("data/backup_manifest", PAGES);
    made.file("data/base/1/1", &[1; 9000]);
    made.file("data/base/1/2", PAGES);
    made.file("tablespaces/16400/PG_15_202209061/5/1", PAGES);
    made.file("tablespaces/16400/stray", PAGES);
    made.thing("data/pg_tblspc/16400", link_to(Path::new("/nowhere/fast")));
    let world = World::new().await;
    let backup = made.back_up(&world, "db").await;
    let layout = layout(root.path());
    let settings = RecoverySettings {
        mode: Mode::Standby,
        restore_command: "get %f %p".into(),
        archiving: Archiving::Off,
        more: Vec::new(),
    };
    let places = Opened::default();
    let parts = restore_hollow(&world.repository, &backup, &layout, &settings, &places).await.unwrap();
    let shown: Vec<_> = parts
        .iter()
        .map(|part| {
            let files: Vec<_> =
                part.files.iter().map(|file| (file.path.display().to_string(), file.size)).collect();
            (part.directory.clone(), files)
        })
        .collect();
    let fast = root.path().join("fast");
    assert_eq!(
        shown,
        [
            (target.clone(), vec![("base/1/2".to_owned(), 70_000)]),
            (fast.clone(), vec![("PG_15_202209061/5/1".to_owned(), 70_000)])
        ]
    );
    assert_eq!(fs::read(target.join("backup_manifest")).unwrap(), PAGES, "changed before a server runs");
    assert_eq!(fs::read(target.join("base/1/1")).unwrap(), [1; 9000]);
    assert!(!fast.join("stray").exists());
    for hole in [target.join("base/1/2"), fast.join("PG_15_202209061/5/1")] {
        let found = fs::metadata(&hole).unwrap();
        assert_eq!((found.len(), found.blocks()), (70_000, 0), "{}", hole.display());
        fs::write(&hole, PAGES).unwrap();
    }
    assert!(!target.join("global/pg_control").exists(), "no server takes it for a cluster");
    complete(&backup, &layout, &places).unwrap();
    assert_eq!(fs::read(target.join("global/pg_control")).unwrap(), [7; 100]);
    assert!(!target.join("global").join(HOLLOW_CONTROL_FILE).exists());
    let settings = fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
    assert_eq!(settings, "shared_buffers = '1GB'\narchive_mode = 'off'\n");
    // Whoever asks again has no hollow cluster any more.
    assert!(complete(&backup, &layout, &places).is_err());
}

/// A process of this program that works in a directory until its input ends, as it does at the latest with this test.
fn at_work(program: &Path, directory: &Path) -> Child {
    fs::create_dir(directory).unwrap();
    Command::new(program).current_dir(directory).stdin(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_server_is_found_whatever_its_program_is_called_and_whatever_number_it_has_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let (layout, program) = (layout(root.path()), root.path().join("postmaster"));
    assert_eq!(layout.running(), None, "there is no directory");
    fs::write(&program, "#!/bin/sh\nread -r _\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = at_work(&program, &layout.directory);
    let mut other = at_work(&program, &root.path().join("other"));
    let noted = |pid: u32| {
        fs::write(layout.directory.join("postmaster.pid"), format!("{pid}\n/data\n")).unwrap();
        layout.running()
    };
    assert_eq!(noted(server.id()), Some(server.id()));
    // As it is in a container, and as it is when nothing of the first process is left.
    for elsewhere in [1, other.id(), u32::MAX] {
        assert_eq!(noted(elsewhere), Some(server.id()));
    }
    drop(server.stdin.take());
    server.wait().unwrap();
    assert_eq!(noted(other.id()), None, "the number passed to another server");
    drop(other.stdin.take());
    other.wait().unwrap();
}

#[tokio::test]
async fn a_tablespace_of_a_server_that_runs_elsewhere_is_refused_and_stays_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (fast, moved) = (root.path().join("fast"), root.path().join("moved"));
    let theirs = fast.join("PG_15_202209061/5/1");
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    fs::write(&theirs, "theirs").unwrap();
    let program = root.path().join("postgres");
    fs::write(&program, "#!/bin/sh\nread -r _\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = at_work(&program, &moved);
    fs::create_dir(moved.join("pg_tblspc")).unwrap();
    std::os::unix::fs::symlink(&fast, moved.join("pg_tblspc/16400")).unwrap();
    let made = made(r#", "tablespaces": [{ "oid": 16400, "location": "/nowhere", "name": "fast" }]"#);
    let refused = restored(made, root.path()).await.unwrap_err();
    assert!(matches!(refused, RestoreError::InUse { pid, .. } if pid == server.id()), "{refused}");
    assert!(refused.hint().unwrap().contains("--tablespace"), "{refused}");
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
    drop(server.stdin.take());
    server.wait().unwrap();
    assert!(layout(root.path()).check_running().is_ok());
}

#[tokio::test]
async fn a_directory_above_a_cluster_or_of_something_else_is_refused_and_stays_as_it_is() {
    let refused = async |things: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        for thing in things {
            let path = root.path().join("target").join(thing);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "theirs").unwrap();
        }
        let result = restored(made(""), root.path()).await;
        assert!(result.is_ok() || things.iter().all(|thing| root.path().join("target").join(thing).exists()));
        result.err()
    };
    // Also where a cluster stands beside it.
    for things in
        [&["main/PG_VERSION"][..], &["main/postmaster.pid"], &["PG_VERSION", "old/global/pg_control"]]
    {
        let error = refused(things).await.unwrap();
        assert!(matches!(&error, RestoreError::AboveCluster { .. }), "{things:?}: {error}");
        let named = things.last().unwrap().split('/').next().unwrap();
        assert!(error.hint().unwrap().contains(&format!("target/{named}`")), "{:?}", error.hint());
    }
    for things in [&["notes"][..], &["15/other/notes", "lost+found/x"]] {
        let error = refused(things).await.unwrap();
        assert!(matches!(error, RestoreError::NoCluster { .. }), "{things:?}: {error}");
    }
    // What an interrupted restore left, and a file system of its own.
    for things in [&["base/1/2", "log/notes"][..], &["global/pg_filenode.map"], &["lost+found/x"], &[]] {
        assert!(refused(things).await.is_none(), "{things:?}");
    }
}

#[tokio::test]
async fn the_plan_says_what_is_removed_and_wal_that_is_moved_aside_is_not() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("target");
    for name in ["PG_VERSION", "base/1/9", "pg_wal/000000010000000000000003", "pg_wal/archive_status/x.done"]
    {
        fs::create_dir_all(target.join(name).parent().unwrap()).unwrap();
        fs::write(target.join(name), "stands").unwrap();
    }
    let world = World::new().await;
    let mut made = made("");
    made.file("data/base/1/2", &[1; 100]);
    made.thing("data/pg_wal/archive_status", Entry { mode: 0o700, ..Entry::new(EntryKind::Directory) });
    let backup = made.back_up(&world, "db").await;
    let layout = layout(root.path());
    let planned = async || {
        let plans = layout.plan(&world.repository, &backup, &Opened::default()).await.unwrap();
        (plans[0].1.removed, plans[0].1.removed_first.clone())
    };
    assert_eq!(planned().await, (1, vec!["/base/1/9".to_owned()]));
    fs::remove_file(target.join("pg_wal/000000010000000000000003")).unwrap();
    assert_eq!(planned().await.0, 2, "what stands there is no WAL");
}
