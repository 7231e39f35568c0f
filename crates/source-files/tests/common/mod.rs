//! What the tests share: a capture and a restore without the engine, and a tree that has one of everything.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::env::SystemClock;
use backup_core::source::{Content, Found, Item, Opened, Piece, Source};
use backup_core::target::RestoreTarget;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_source_files::{FileOptions, FileSource, FileTarget, TargetOptions};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, mknodat, renameat_with,
    utimensat,
};

/// A version 2 ACL: owner rwx, user 12 r-x, group r--, mask r-x, others none.
pub const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 12, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16,
    0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// One captured thing with its content; holes are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub key: MapKey,
    pub entry: Entry,
    pub content: Vec<(u64, Option<Vec<u8>>)>,
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn source(options: &FileOptions) -> FileSource {
    FileSource::new(options, Arc::new(SystemClock)).unwrap()
}

pub fn source_of(path: &Path) -> FileSource {
    source(&FileOptions { paths: vec![path.to_owned()], ..FileOptions::default() })
}

/// All items and all problems, which are checked to come in strictly ascending order.
pub fn walk(source: &FileSource) -> (Vec<Item>, Vec<(String, String)>) {
    let (mut items, mut problems) = (Vec::<Item>::new(), Vec::new());
    let visit = &mut |found| {
        match found {
            Found::Item(item) => {
                let before = items.last().map(|item| item.key.clone());
                assert!(before.is_none_or(|before| before < item.key), "{:?} came too late", item.key);
                assert_ne!(item.fingerprint, [0; 16]);
                items.push(item);
            }
            Found::Problem { key, message } => problems.push((key.display_path(), message)),
            other => panic!("{other:?} is not what a walk of files finds"),
        }
        ControlFlow::Continue(())
    };
    source.walk(visit).unwrap();
    (items, problems)
}

/// Keys of a walk below `path`, as text.
pub fn names(source: &FileSource, path: &Path) -> Vec<String> {
    let base = key_of(path);
    let (items, problems) = walk(source);
    assert_eq!(problems, []);
    let below = items.iter().filter(|item| item.key.starts_with(&base) && item.key != base);
    below.map(|item| item.key.display_path()[base.display_path().len() + 1..].to_owned()).collect()
}

pub fn key_of(path: &Path) -> MapKey {
    let components = path.components().skip(1).map(|component| component.as_os_str().as_bytes().to_vec());
    MapKey::from_components(components).unwrap()
}

pub fn read_all(mut content: Box<dyn Content>) -> Vec<(u64, Option<Vec<u8>>)> {
    let (mut pieces, mut offset) = (Vec::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match content.read(&mut buffer).unwrap() {
            Piece::Data(count) => {
                pieces.push((offset, Some(buffer[..count].to_vec())));
                offset += count as u64;
            }
            Piece::Hole(length) => {
                pieces.push((offset, None));
                offset += length;
            }
            Piece::End => break,
            Piece::Kept(_) => panic!("a file keeps nothing"),
        }
    }
    assert!(!content.changed_while_read().unwrap());
    pieces
}

/// Everything at and below `path`, with keys that begin with its last component.
pub fn capture(path: &Path) -> Vec<Captured> {
    let source = source_of(path);
    let (items, problems) = walk(&source);
    assert_eq!(problems, []);
    let above = key_of(path).depth() - 1;
    let relative = |key: &MapKey| MapKey::from_components(key.components().skip(above)).unwrap();
    let below = items.iter().filter(|item| item.key.depth() > above);
    below
        .map(|item| {
            let Opened { mut entry, content } = source.open(item).unwrap().expect("it is still there");
            entry.hard_link = entry.hard_link.as_ref().map(relative);
            if item.kind == EntryKind::File {
                entry.size = item.size;
            }
            Captured { key: relative(&item.key), entry, content: content.map(read_all).unwrap_or_default() }
        })
        .collect()
}

/// Writes what was captured into `target`, files of more than one piece through [`RestoreTarget::create_file`].
pub fn restore(target: &FileTarget, captured: &[Captured]) {
    for Captured { key, entry, content } in captured {
        match entry.kind {
            EntryKind::Directory => target.make_dir(key, entry).unwrap(),
            EntryKind::HardLink => target.hard_link(key, entry.hard_link.as_ref().unwrap()).unwrap(),
            EntryKind::File => restore_file(target, key, entry, content),
            _ => assert_eq!(target.make_other(key, entry).unwrap(), None),
        }
    }
    for Captured { key, entry, .. } in captured.iter().rev().filter(|c| c.entry.kind == EntryKind::Directory)
    {
        target.apply_metadata(key, entry).unwrap();
    }
}

fn restore_file(target: &FileTarget, key: &MapKey, entry: &Entry, content: &[(u64, Option<Vec<u8>>)]) {
    match content {
        [] => target.write_file(key, entry, b"").unwrap(),
        [(0, Some(data))] => target.write_file(key, entry, data).unwrap(),
        pieces => {
            let file = target.create_file(key, entry).unwrap();
            for (offset, data) in pieces {
                match data {
                    Some(data) => file.write_at(*offset, data).unwrap(),
                    None => file.punch_hole(*offset, 1).unwrap(),
                }
            }
            file.finish(entry).unwrap();
        }
    }
}

pub fn target(path: &Path) -> FileTarget {
    FileTarget::create(path, &TargetOptions::default()).unwrap()
}

pub fn key(path: &str) -> MapKey {
    MapKey::from_components(path.split('/')).unwrap()
}

/// A plain file's entry.
pub fn file_entry(size: usize) -> Entry {
    let mut entry = Entry::new(EntryKind::File);
    (entry.mode, entry.size, entry.mtime) = (0o644, size as u64, (1_600_000_000, 123_456_789));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    (entry.uid, entry.gid) = (uid, gid);
    entry
}

pub fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A tree with one of everything, at `dir/tree`.
pub fn nasty_tree(dir: &Path) -> PathBuf {
    let root = dir.join("tree");
    let odd = root.join("sub dir").join(std::ffi::OsStr::from_bytes(b"no\xffutf8\n\x01\x02"));
    std::fs::create_dir_all(&odd).unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = root.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    std::fs::write(odd.join("inside"), "odd").unwrap();
    file("empty", b"");
    set_time(&file("old", b"1901"), -2_147_483_648, 999_999_999);
    set_time(&file("before 1970", b"-1"), -1, 1);
    set_time(&file("far", b"2100"), 4_102_444_800, 123_456_789);
    let first = file("a link", b"shared");
    std::fs::hard_link(&first, odd.join("another name")).unwrap();
    std::fs::hard_link(&first, root.join("z link")).unwrap();
    symlink("../does not exist", root.join("dangling")).unwrap();
    symlink("/etc/passwd", root.join("to passwd")).unwrap();
    set_time(&root.join("dangling"), 1_000, 77);
    sparse_file(&root.join("sparse"), 9 << 20, &[(1 << 20, b"one"), (5 << 20, b"five")]);
    sparse_file(&root.join("all hole"), 3 << 20, &[]);
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    file("big", &big);
    set_xattr(&file("xattrs", b"x"), "user.one", b"1");
    set_xattr(&root.join("xattrs"), "user.large", &[7; 2_000]);
    set_xattr(&root.join("xattrs"), "user.none", b"");
    set_mode(&file("acl", b"acl"), 0o640);
    set_xattr(&root.join("acl"), "system.posix_acl_access", ACL);
    std::fs::create_dir(root.join("default acl")).unwrap();
    set_xattr(&root.join("default acl"), "system.posix_acl_default", ACL);
    file("default acl/child", b"inherits an acl");
    std::fs::create_dir(root.join("shut")).unwrap();
    file("shut/in", b"readable by root only");
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, root.join("socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    for mode in [0o7777, 0o4755, 0o2711, 0o1666, 0] {
        set_mode(&file(&format!("mode {mode:o}"), b"m"), mode);
    }
    if is_root() {
        privileged(&root);
    }
    set_mode(&root.join("sub dir"), 0o3775);
    set_mode(&root.join("shut"), 0o000);
    set_time(&root.join("sub dir"), 12_345, 6_789);
    root
}

fn privileged(root: &Path) {
    for (name, kind, device) in
        [("char", FileType::CharacterDevice, (1, 3)), ("block", FileType::BlockDevice, (259, 70_000))]
    {
        let device = rustix::fs::makedev(device.0, device.1);
        mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o660), device).unwrap();
    }
    for (name, uid, gid) in [("far", 12_345, 54_321), ("dangling", 1, 2), ("fifo", 3, 4), ("shut", 5, 6)] {
        std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).unwrap();
    }
    let setuid = root.join("setuid of another");
    std::fs::write(&setuid, "s").unwrap();
    std::os::unix::fs::lchown(&setuid, Some(65_534), Some(65_534)).unwrap();
    set_mode(&setuid, 0o6751);
    set_xattr(&setuid, "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set_mode(&setuid, 0o6751);
    set_xattr(&root.join("dangling"), "trusted.of link", b"itself");
    set_xattr(&root.join("fifo"), "trusted.of fifo", b"f");
}

/// A file of `size` bytes of which only `pieces` (offset, bytes) are data.
pub fn sparse_file(path: &Path, size: u64, pieces: &[(u64, &[u8])]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// Bytes on disk.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Runs `work` while another thread swaps what stands at `a` and `b`, over and over, also if `work` panics.
pub fn while_swapping<T>(a: &Path, b: &Path, work: impl FnOnce() -> T) -> T {
    struct Stop<'s>(&'s AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stopped);
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                // One of them may be missing for a moment.
                let _ = renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
            }
        });
        work()
    })
}
