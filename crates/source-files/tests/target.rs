//! How a target changes, lists and removes things, as root and as an ordinary user.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::common::{self, file_entry, is_root, key, set_mode, set_xattr, sparse_file, target};
use backup_core::target::RestoreTarget;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_source_files::{FileTarget, TargetOptions};

#[test]
fn a_file_is_changed_in_place_and_gets_its_size_and_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, vec![b'a'; 300_000]).unwrap();
    set_mode(&path, 0o6755);
    set_xattr(&path, "user.old", b"x");
    let inode = fs::metadata(&path).unwrap().ino();
    let target = target(dir.path());
    let mut entry = file_entry(400_002);
    entry.mode = 0o2755;
    let file = target.open_existing(&key("f"), &entry).unwrap();
    let mut buffer = [0; 10];
    assert!(file.read_at(299_990, &mut buffer).unwrap());
    assert!(!file.read_at(299_991, &mut buffer).unwrap(), "shorter than asked for");
    file.write_at(0, b"start").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755, "new content does not lend old rights");
    file.write_at(400_000, b"end").unwrap();
    file.punch_hole(4_096, 8_192).unwrap();
    file.finish(&entry).unwrap();
    let seen = fs::metadata(&path).unwrap();
    assert_eq!((seen.ino(), seen.len(), seen.mode() & 0o7777), (inode, 400_002, 0o2755));
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (1_600_000_000, 123_456_789));
    let content = fs::read(&path).unwrap();
    assert_eq!(
        (&content[..6], &content[4_095..4_098], &content[400_000..]),
        (&b"starta"[..], &b"a\0\0"[..], &b"en"[..])
    );
    assert_eq!(content[4_096 + 8_192], b'a');
    assert_eq!(target.existing(&key("f")).unwrap().unwrap().xattrs, []);
}

#[test]
fn nobody_reads_a_secret_through_the_file_that_it_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let target = target(dir.path());
    for (mode, acl) in [(0o644, false), (0o600, true)] {
        fs::write(&path, vec![b'a'; 300_000]).unwrap();
        set_mode(&path, mode);
        if acl {
            set_xattr(&path, "system.posix_acl_access", common::ACL);
        }
        let mut held = fs::File::open(&path).unwrap();
        let mut entry = file_entry(300_000);
        entry.mode = 0o600;
        let file = target.open_existing(&key("f"), &entry).unwrap();
        file.write_at(0, b"secret").unwrap();
        let mut seen = String::new();
        held.read_to_string(&mut seen).unwrap();
        assert!(!seen.contains("secret"), "{mode:o}: who has the old file open reads the new one");
        file.finish(&entry).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(fs::read(&path).unwrap().starts_with(b"secretaaa"));
    }
}

#[test]
fn a_right_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let mut entry = file_entry(5);
    entry.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    target.write_file(&key("f"), &entry, b"right").unwrap();
    let changed = || {
        fs::metadata(dir.path().join("f")).map(|seen| (seen.ctime(), seen.ctime_nsec(), seen.ino())).unwrap()
    };
    let before = changed();
    target.apply_metadata(&key("f"), &entry).unwrap();
    let file = target.open_existing(&key("f"), &entry).unwrap();
    file.punch_hole(5, 100).unwrap();
    file.finish(&entry).unwrap();
    target.hard_link(&key("f2"), &key("f")).unwrap();
    let linked = changed();
    target.hard_link(&key("f2"), &key("f")).unwrap();
    target.apply_metadata(&key("f2"), &entry).unwrap();
    assert_eq!((before.2, changed()), (linked.2, linked));
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let file = target.create_file(&key("f"), &file_entry(1 << 30)).unwrap();
    file.write_at(1 << 20, b"data").unwrap();
    assert_eq!(target.existing(&key("f")).unwrap(), None);
    assert_eq!(target.list_dir(None).unwrap().len(), 1);
    drop(file);
    assert_eq!(target.list_dir(None).unwrap().len(), 0);
}

#[test]
fn holes_in_a_sparse_file_stay_holes_when_it_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    sparse_file(&path, 1 << 30, &[(0, b"head"), (1 << 29, b"middle")]);
    fs::hard_link(&path, dir.path().join("other name")).unwrap();
    let target = target(dir.path());
    let file = target.open_existing(&key("s"), &file_entry(5)).unwrap();
    file.write_at(0, b"HEAD").unwrap();
    file.punch_hole(1 << 29, 1 << 29).unwrap();
    file.finish(&file_entry(1 << 30)).unwrap();
    assert!(common::allocated(&path) <= 1 << 20);
    let mut start = [0; 4];
    fs::File::open(dir.path().join("other name")).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"head");
}

#[test]
fn what_is_there_is_described_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let tree = common::nasty_tree(dir.path());
    let target = target(dir.path());
    for captured in common::capture(&tree) {
        let mut found = target.existing(&captured.key).unwrap().unwrap();
        (found.user, found.group) = (captured.entry.user.clone(), captured.entry.group.clone());
        if captured.entry.kind != EntryKind::HardLink {
            assert_eq!(found, captured.entry, "{}", captured.key);
        }
    }
    let names = target.list_dir(Some(&key("tree"))).unwrap();
    assert!(names.is_sorted() && names.len() > 20);
    assert_eq!(target.list_dir(Some(&key("tree/empty"))).unwrap().len(), 0);
    assert_eq!(target.list_dir(Some(&key("absent/deeper"))).unwrap().len(), 0);
    assert_eq!(target.existing(&key("tree/empty/below a file")).unwrap(), None);
    for gone in ["absent", "absent/deeper", "tree/empty/below a file", "tree", "tree"] {
        target.remove(&key(gone)).unwrap();
    }
    assert_eq!(target.list_dir(None).unwrap().len(), 0);
    assert!(target.free_bytes().unwrap().is_some_and(|free| free > 0));
}

#[test]
fn what_is_spared_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["gone", "lost/in", "d/lost", "d/gone"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    let target = target(dir.path()).sparing(["lost", "d/lost"].map(key));
    for (directory, names) in
        [(None, &["d", "gone"][..]), (Some("d"), &["gone"][..]), (Some("lost"), &[][..])]
    {
        let listed = target.list_dir(directory.map(key).as_ref()).unwrap();
        assert_eq!(listed, names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>());
    }
    let all = target.sparing([MapKey::root()]);
    assert_eq!(all.list_dir(None).unwrap(), Vec::<Vec<u8>>::new());
    assert!(!all.is_empty().unwrap(), "what stands there is compared, and in the way of other things");
    assert_eq!(all.list_dir(Some(&key("d"))).unwrap().len(), 2);
}

#[test]
fn what_is_kept_is_neither_shown_nor_touched() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    for directory in ["share/store/data", "share/other", "storehouse"] {
        fs::create_dir_all(top.join(directory)).unwrap();
    }
    fs::write(top.join("share/store/data/pack"), "p").unwrap();
    std::os::unix::fs::symlink("top", dir.path().join("way")).unwrap();
    let keep = vec![dir.path().join("way/share/store"), top.join("share/later")];
    let options = TargetOptions { keep, ..TargetOptions::default() };
    let whole = FileTarget::create(&top, &options).unwrap();
    let part = whole.below(&key("share")).unwrap();
    assert_eq!(whole.list_dir(None).unwrap(), [b"share".to_vec(), b"storehouse".to_vec()]);
    for (target, way) in [(&whole, "share/"), (&part, "")] {
        let at = |name: &str| key(&format!("{way}{name}"));
        assert!(target.is_kept(&at("store")) && !target.is_kept(&at("other")));
        for refused in ["store", "store/data/pack", "store/new", "later"] {
            let error = target.write_file(&at(refused), &file_entry(1), b"x").unwrap_err().to_string();
            assert!(error.contains("belongs to the backups themselves"), "{error}");
            assert!(target.remove(&at(refused)).is_err());
        }
        let share = (!way.is_empty()).then(|| key("share"));
        assert_eq!(target.list_dir(share.as_ref()).unwrap(), [b"other".to_vec()]);
    }
    whole.remove(&key("share")).unwrap();
    whole.remove(&key("storehouse")).unwrap();
    assert_eq!(fs::read(top.join("share/store/data/pack")).unwrap(), b"p");
    assert!(!top.join("share/other").exists() && !top.join("storehouse").exists());
    for inside in ["share/store", "share/store/data"] {
        let error = FileTarget::create(&top.join(inside), &options).unwrap_err().to_string();
        assert!(error.contains("belongs to the backups themselves"), "{error}");
    }
}

#[test]
fn a_directory_removed_and_made_again_is_not_confused_with_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let entry = Entry::new(EntryKind::Directory);
    for round in 0..3 {
        target.make_dir(&key("d"), &entry).unwrap();
        target.make_dir(&key("d/e"), &entry).unwrap();
        target.write_file(&key("d/e/f"), &file_entry(1), b"x").unwrap();
        assert!(dir.path().join("d/e/f").exists(), "round {round}");
        target.remove(&key("d")).unwrap();
    }
}

#[test]
fn several_threads_restore_into_the_same_directories() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    for number in 0..300 {
        target.make_dir(&key(&format!("d{number}")), &Entry::new(EntryKind::Directory)).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let target = &target;
            scope.spawn(move || {
                for number in 0..2_000 {
                    let path = format!("d{}/f{thread}-{number}", number % 300);
                    target.write_file(&key(&path), &file_entry(path.len()), path.as_bytes()).unwrap();
                }
            });
        }
    });
    let files = (0..300).map(|number| target.list_dir(Some(&key(&format!("d{number}")))).unwrap().len());
    assert_eq!(files.sum::<usize>(), 8_000);
}

/// The other test runs this one as user 65534, in a directory which that user owns.
#[test]
fn ordinary_user_part() {
    if is_root() {
        return;
    }
    let dir = tempfile::tempdir_in(".").unwrap();
    let target = target(dir.path());
    let mut entry = file_entry(1);
    (entry.uid, entry.gid, entry.mode) = (0, 0, 0o6755);
    entry.xattrs = vec![(b"trusted.t".to_vec(), b"1".to_vec()), (b"user.u".to_vec(), b"2".to_vec())];
    target.write_file(&key("f"), &entry, b"x").unwrap();
    let found = target.existing(&key("f")).unwrap().unwrap();
    assert_eq!((found.mode, found.mtime, found.xattrs.len()), (0o755, entry.mtime, 1));
    let left_out = target.left_out().join("\n");
    for part in ["owner 0:0: ", "attribute trusted.t: ", "mode 6755 became 0755: its owner is another"] {
        assert!(left_out.contains(part), "{part} in {left_out}");
    }
    let mut device = Entry::new(EntryKind::CharDevice);
    device.device = Some((1, 3));
    assert!(target.make_other(&key("null"), &device).unwrap().is_some());
    shut_things(&target, dir.path());
    let source = common::source_of(&dir.path().canonicalize().unwrap());
    set_mode(&dir.path().join("shut"), 0);
    let (_, problems) = common::walk(&source);
    set_mode(&dir.path().join("shut"), 0o700);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].1, "cannot be opened: Permission denied (os error 13)");
}

/// Files without the right to write or read, and a directory without the right to go in: their owner restores into them.
fn shut_things(target: &keepwell_source_files::FileTarget, dir: &Path) {
    fs::write(dir.join("read only"), "before").unwrap();
    set_mode(&dir.join("read only"), 0o000);
    let file = target.open_existing(&key("read only"), &file_entry(5)).unwrap();
    file.write_at(0, b"AFTER!").unwrap();
    let mut entry = file_entry(6);
    entry.mode = 0o400;
    file.finish(&entry).unwrap();
    assert_eq!(fs::read(dir.join("read only")).unwrap(), b"AFTER!");
    // Its content is right, and only an attribute is missing.
    entry.xattrs = vec![(b"user.late".to_vec(), b"1".to_vec())];
    target.open_existing(&key("read only"), &entry).unwrap().finish(&entry).unwrap();
    let found = target.existing(&key("read only")).unwrap().unwrap();
    assert_eq!((found.mode, found.xattrs), (0o400, entry.xattrs));
    fs::create_dir(dir.join("shut")).unwrap();
    set_mode(&dir.join("shut"), 0o000);
    target.make_dir(&key("shut"), &Entry::new(EntryKind::Directory)).unwrap();
    target.write_file(&key("shut/in"), &file_entry(1), b"x").unwrap();
    let mut entry = Entry::new(EntryKind::Directory);
    (entry.uid, entry.gid) = (file_entry(0).uid, file_entry(0).gid);
    (entry.mode, entry.mtime) = (0o500, (5, 5));
    target.apply_metadata(&key("shut"), &entry).unwrap();
    assert_eq!(fs::metadata(dir.join("shut")).unwrap().permissions().mode() & 0o7777, 0o500);
}

#[test]
fn an_ordinary_user_restores_what_it_may_and_is_told_the_rest() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    set_mode(&program, 0o755);
    set_mode(dir.path(), 0o755);
    std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
    let run = Command::new(&program)
        .args(["--exact", "target::ordinary_user_part"])
        .current_dir(dir.path())
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && output.contains("1 passed"), "{output}");
}
