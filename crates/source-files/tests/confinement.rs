//! Nothing that a snapshot says or another process does makes a restore reach outside its target.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::common::{self, file_entry, key, target};
use backup_core::target::{RestoreTarget, TargetError};
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_source_files::{FileTarget, TargetOptions};

/// A target beside a directory that must not be touched.
struct World {
    dir: tempfile::TempDir,
}

/// Everything that a touch would change, the access time left out.
type Untouched = Vec<(PathBuf, u32, u32, u64, (i64, i64), Vec<u8>)>;

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("outside/sub")).unwrap();
        for name in ["outside/file", "outside/sub/file"] {
            fs::write(dir.path().join(name), "precious").unwrap();
        }
        fs::create_dir(dir.path().join("target")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn target(&self) -> FileTarget {
        target(&self.path("target"))
    }

    fn outside(&self) -> Untouched {
        let mut found: Untouched = Vec::new();
        for name in ["outside", "outside/file", "outside/sub", "outside/sub/file"] {
            let path = self.path(name);
            let seen = fs::symlink_metadata(&path).unwrap();
            let content = match fs::read_dir(&path) {
                Ok(entries) => {
                    entries.flat_map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect()
                }
                Err(_) => fs::read(&path).unwrap(),
            };
            found.push((
                path,
                seen.mode(),
                seen.uid(),
                seen.nlink(),
                (seen.ctime(), seen.ctime_nsec()),
                content,
            ));
        }
        found
    }
}

fn directory() -> Entry {
    let mut entry = Entry::new(EntryKind::Directory);
    (entry.mode, entry.mtime) = (0o777, (1, 1));
    entry
}

fn link_to(target: &Path) -> Entry {
    let mut entry = Entry::new(EntryKind::Symlink);
    entry.link_target = Some(target.as_os_str().as_encoded_bytes().to_vec());
    entry
}

/// Asks for everything a target can do at `key`; what is refused or fails is not counted.
fn do_everything(target: &FileTarget, key: &MapKey, inside: &MapKey) -> Vec<Result<(), TargetError>> {
    let mut entry = file_entry(4);
    (entry.mode, entry.xattrs) = (0o4777, vec![(b"user.x".to_vec(), b"y".to_vec())]);
    let changed = |make: &dyn Fn() -> Result<Box<dyn backup_core::target::TargetFile>, TargetError>| {
        let file = make()?;
        file.write_at(0, b"EVIL")?;
        file.punch_hole(0, 4096)?;
        file.finish(&file_entry(4))
    };
    vec![
        target.write_file(key, &entry, b"EVIL"),
        changed(&|| target.create_file(key, &entry)),
        changed(&|| target.open_existing(key, &file_entry(5))),
        target.apply_metadata(key, &entry),
        target.make_other(key, &link_to(Path::new("x"))).map(drop),
        target.hard_link(key, inside),
        target.hard_link(inside, key),
        target.make_dir(key, &directory()),
        target.apply_metadata(key, &directory()),
        target.remove(key),
    ]
}

#[test]
fn keys_that_are_no_plain_path_are_refused() {
    let world = World::new();
    let (target, before) = (world.target(), world.outside());
    target.write_file(&key("inside"), &file_entry(1), b"x").unwrap();
    let refused: [&[&[u8]]; 8] = [
        &[],
        &[b".."],
        &[b"."],
        &[b"..", b"outside", b"file"],
        &[b"../outside/file"],
        &[b"a/b"],
        &[b"/etc"],
        &[b"a\0b"],
    ];
    for components in refused {
        let (key, inside) = (MapKey::from_components(components).unwrap(), key("inside"));
        for (index, done) in do_everything(&target, &key, &inside).into_iter().enumerate() {
            assert!(matches!(done, Err(TargetError::Refused { .. })), "{components:?} {index}: {done:?}");
        }
        assert!(target.existing(&key).is_err());
    }
    assert_eq!(world.outside(), before);
    assert_eq!(target.list_dir(None).unwrap(), [b"inside"]);
}

#[test]
fn nothing_is_reached_through_a_symlink() {
    let world = World::new();
    let before = world.outside();
    for link in ["../outside", "/"] {
        let target = world.target();
        let outside = world.path("outside");
        let way = if link == "/" { Path::new("/") } else { Path::new(link) };
        target.make_other(&key("d"), &link_to(way)).unwrap();
        let below: Vec<_> = match link {
            "/" => outside
                .join("file")
                .components()
                .skip(1)
                .map(|c| c.as_os_str().as_encoded_bytes().to_vec())
                .collect(),
            _ => vec![b"file".to_vec()],
        };
        let through = MapKey::from_components([b"d".to_vec()].into_iter().chain(below)).unwrap();
        for (index, done) in do_everything(&target, &through, &key("inside")).into_iter().enumerate() {
            let absent_is_fine = index == 9;
            assert_eq!(done.is_ok(), absent_is_fine, "{link} {index}: {done:?}");
        }
        assert_eq!(target.existing(&through).unwrap(), None);
        assert_eq!(target.list_dir(Some(&key("d"))).unwrap(), Vec::<Vec<u8>>::new());
        // The symlink itself is replaced, not followed.
        target.make_dir(&key("d"), &directory()).unwrap();
        target.write_file(&key("d/file"), &file_entry(3), b"mine").unwrap();
        target.remove(&key("d")).unwrap();
        assert_eq!(world.outside(), before);
    }
}

#[test]
fn a_symlink_that_stands_where_a_file_goes_is_replaced() {
    let world = World::new();
    let before = world.outside();
    let target = world.target();
    for (index, name) in ["write", "create", "link", "other"].into_iter().enumerate() {
        symlink("../outside/file", world.path("target").join(name)).unwrap();
        assert!(target.open_existing(&key(name), &file_entry(5)).is_err());
        assert!(target.apply_metadata(&key(name), &file_entry(8)).is_err());
        match index {
            0 => target.write_file(&key(name), &file_entry(1), b"x").unwrap(),
            1 => target.create_file(&key(name), &file_entry(1)).unwrap().finish(&file_entry(1)).unwrap(),
            2 => target.hard_link(&key(name), &key("write")).unwrap(),
            _ => assert_eq!(target.make_other(&key(name), &Entry::new(EntryKind::Fifo)).unwrap(), None),
        }
        assert!(!world.path("target").join(name).is_symlink());
    }
    assert_eq!(world.outside(), before);
}

#[test]
fn a_hard_link_to_outside_is_never_written_through() {
    let world = World::new();
    let target = world.target();
    let name = world.path("target/hard");
    let content = || fs::read(world.path("outside/file")).unwrap();
    let seen = || {
        fs::metadata(world.path("outside/file")).map(|seen| (seen.mode(), seen.mtime(), seen.uid())).unwrap()
    };
    let before = seen();
    for step in 0..5 {
        let _ = fs::remove_file(&name);
        fs::hard_link(world.path("outside/file"), &name).unwrap();
        let mut entry = file_entry(8);
        entry.mode = 0o4777;
        match step {
            0 => target.write_file(&key("hard"), &entry, b"replaced").unwrap(),
            1 => target.apply_metadata(&key("hard"), &entry).unwrap(),
            2 => target.remove(&key("hard")).unwrap(),
            _ => {
                let file = target.open_existing(&key("hard"), &file_entry(5)).unwrap();
                let mut there = [0; 8];
                assert!(file.read_at(0, &mut there).unwrap());
                if step == 3 {
                    file.write_at(4, b"EVIL").unwrap()
                } else {
                    file.punch_hole(0, 8).unwrap()
                }
                assert_eq!(content(), b"precious");
                assert!(file.read_at(0, &mut there).unwrap());
                assert_eq!(&there, if step == 3 { b"precEVIL" } else { &[0; 8] });
                file.finish(&entry).unwrap();
            }
        }
        assert_eq!((content().as_slice(), seen()), (&b"precious"[..], before), "step {step}");
        if step != 2 {
            let seen = fs::metadata(&name).unwrap();
            assert_eq!(
                (seen.nlink(), seen.mode() & 0o7777, seen.mtime()),
                (1, 0o4777, 1_600_000_000),
                "step {step}"
            );
        }
    }
    let leftovers = target.list_dir(None).unwrap();
    assert_eq!(leftovers, [b"hard"], "no temporary file stays");
}

#[test]
fn a_directory_is_never_replaced_by_anything_else() {
    let world = World::new();
    let target = world.target();
    target.make_dir(&key("d"), &directory()).unwrap();
    target.write_file(&key("d/f"), &file_entry(1), b"x").unwrap();
    for (index, done) in [
        target.write_file(&key("d"), &file_entry(1), b"x"),
        target.create_file(&key("d"), &file_entry(1)).and_then(|file| file.finish(&file_entry(1))),
        target.make_other(&key("d"), &Entry::new(EntryKind::Fifo)).map(drop),
        target.hard_link(&key("d"), &key("d/f")),
        target.open_existing(&key("d"), &file_entry(5)).map(drop),
        target.apply_metadata(&key("d"), &file_entry(1)),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(matches!(done, Err(TargetError::Refused { .. })), "{index}: {done:?}");
    }
    assert_eq!(target.list_dir(Some(&key("d"))).unwrap(), [b"f"]);
    assert_eq!(target.list_dir(None).unwrap(), [b"d"]);
}

#[test]
fn what_is_bound_into_the_target_from_elsewhere_is_not_removed() {
    let world = World::new();
    let (target, bound) = (world.target(), world.path("target/extra/bound"));
    fs::create_dir_all(&bound).unwrap();
    let before = world.outside();
    let status =
        std::process::Command::new("mount").arg("--bind").arg(world.path("outside")).arg(&bound).status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("mounting is not allowed here");
        return;
    }
    let refused = target.remove(&key("extra"));
    let paths = [None, Some("extra"), Some("extra/bound"), Some("extra/bound/sub")];
    let mounted = paths.map(|path| target.is_mounted(path.map(key).as_ref()));
    std::process::Command::new("umount").arg(&bound).status().unwrap();
    assert_eq!(world.outside(), before);
    assert!(refused.unwrap_err().to_string().contains("is mounted there"));
    assert_eq!(mounted.map(Result::unwrap), [false, false, true, true]);
    target.remove(&key("extra")).unwrap();
}

#[test]
fn a_symlink_swapped_in_by_another_process_never_leads_outside() {
    let world = World::new();
    fs::create_dir_all(world.path("target/d/sub")).unwrap();
    symlink("../outside", world.path("target/s")).unwrap();
    let before = world.outside();
    let mut succeeded = 0;
    common::while_swapping(&world.path("target/d"), &world.path("target/s"), || {
        for round in 0..4_000 {
            // A fresh target has no directory open yet: every name is resolved during the race.
            let target = world.target();
            let name = if round % 2 == 0 { "d/file" } else { "d/sub/file" };
            let done = do_everything(&target, &key(name), &key("inside"));
            succeeded += done.iter().filter(|done| done.is_ok()).count();
            let _ = (target.existing(&key(name)), target.list_dir(Some(&key("d"))));
        }
    });
    assert!(succeeded > 1_000, "the race left {succeeded} operations");
    assert_eq!(world.outside(), before);
}

#[test]
fn what_is_left_out_cannot_speak_to_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let options = TargetOptions { untrusted: true, ..TargetOptions::default() };
    let target = FileTarget::create(dir.path(), &options).unwrap();
    let mut entry = file_entry(1);
    entry.xattrs = vec![(b"trusted.\x1b[31m".to_vec(), b"1".to_vec())];
    target.write_file(&key("f"), &entry, b"x").unwrap();
    let left_out = target.left_out().concat();
    assert!(left_out.contains("attribute trusted.\\u{1b}[31m: "), "{left_out:?}");
    assert!(!left_out.chars().any(char::is_control), "{left_out:?}");
}

#[test]
fn an_untrusted_snapshot_gets_no_rights() {
    let world = World::new();
    let options = TargetOptions { untrusted: true, ..TargetOptions::default() };
    let target = FileTarget::create(&world.path("target"), &options).unwrap();
    let mut entry = file_entry(1);
    entry.mode = 0o7755;
    let attributes = [("security.capability", "x"), ("trusted.t", "x"), ("user.fine", "x")];
    entry.xattrs = attributes.map(|(name, value)| (name.into(), value.into())).to_vec();
    target.write_file(&key("file"), &entry, b"x").unwrap();
    entry.kind = EntryKind::Directory;
    (entry.size, entry.xattrs) = (0, Vec::new());
    target.make_dir(&key("dir"), &entry).unwrap();
    target.apply_metadata(&key("dir"), &entry).unwrap();
    let mut device = Entry::new(EntryKind::CharDevice);
    device.device = Some((1, 3));
    let message = target.make_other(&key("null"), &device).unwrap().unwrap();
    assert!(message.ends_with("/target/null`: device left out: the snapshot is not trusted"), "{message}");
    assert_eq!(target.existing(&key("null")).unwrap(), None);
    let file = target.existing(&key("file")).unwrap().unwrap();
    assert_eq!((file.mode, file.xattrs), (0o755, vec![(b"user.fine".to_vec(), b"x".to_vec())]));
    assert_eq!(target.existing(&key("dir")).unwrap().unwrap().mode, 0o1755);
    let base = world.path("target").display().to_string();
    let expected = [
        "file`: attribute security.capability: the snapshot is not trusted",
        "file`: attribute trusted.t: the snapshot is not trusted",
        "file`: mode 7755 became 0755: the snapshot is not trusted",
        "dir`: mode 7755 became 1755: the snapshot is not trusted",
    ];
    assert_eq!(target.left_out(), expected.map(|text| format!("`{base}/{text}")));
    assert_eq!(target.left_out_count(), 4);
}

#[test]
fn a_directory_below_is_reached_without_a_symlink_or_not_at_all() {
    let world = World::new();
    let before = world.outside();
    symlink(world.path("outside"), world.path("target/link")).unwrap();
    fs::write(world.path("target/file"), "x").unwrap();
    let target = world.target();
    for name in ["link", "link/sub", "file", "file/sub"] {
        let refused = target.below(&key(name)).unwrap_err().to_string();
        assert!(refused.contains("is refused"), "{name}: {refused}");
    }
    assert_eq!(world.outside(), before);
    let below = target.below(&key("a/b")).unwrap();
    below.write_file(&key("f"), &file_entry(1), b"x").unwrap();
    let mut own = directory();
    own.mode = 0o711;
    below.apply_own_metadata(&own).unwrap();
    assert_eq!(fs::metadata(world.path("target/a/b")).unwrap().mode() & 0o7777, 0o711);
    assert!(world.path("target/a/b/f").exists());
}
