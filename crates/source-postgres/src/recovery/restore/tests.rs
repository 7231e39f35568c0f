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
    assert!(settings.starts_with("shared_buffers = '1GB'\nrestore_command = 'get %f %p'\n"), "{settings}");
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
