//! Trees of files: making them, reading them, comparing them.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::noise;

/// Everything about one thing in a tree that a restore must bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `file`, `dir`, `link`, …
    pub kind: &'static str,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// BLAKE3 of the content.
    pub content: Option<String>,
    /// Size of the content.
    pub size: u64,
    /// Where a symlink leads.
    pub target: Option<Vec<u8>>,
    /// Device number.
    pub device: Option<u64>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same inode, for a further one.
    pub same_as: Option<PathBuf>,
}

/// A tree: what is below a directory, by path relative to it.
pub type Tree = BTreeMap<PathBuf, Node>;

/// Reads the tree below a directory.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    read_into(root, Path::new(""), &mut tree);
    let mut firsts: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for (path, node) in &mut tree {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        if node.kind == "file" && meta.nlink() > 1 {
            let first = firsts.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone());
            node.same_as = (first != path).then(|| first.clone());
        }
    }
    tree
}

fn read_into(root: &Path, below: &Path, tree: &mut Tree) {
    for item in fs::read_dir(root.join(below)).unwrap() {
        let path = below.join(item.unwrap().file_name());
        let node = read_node(&root.join(&path));
        let is_dir = node.kind == "dir";
        tree.insert(path.clone(), node);
        if is_dir {
            read_into(root, &path, tree);
        }
    }
}

fn read_node(path: &Path) -> Node {
    let meta = fs::symlink_metadata(path).unwrap();
    let file_type = meta.file_type();
    let kinds = [
        ("file", file_type.is_file()),
        ("dir", file_type.is_dir()),
        ("link", file_type.is_symlink()),
        ("fifo", file_type.is_fifo()),
        ("socket", file_type.is_socket()),
        ("char", file_type.is_char_device()),
        ("block", file_type.is_block_device()),
    ];
    let kind = kinds.iter().find(|(_, is)| *is).unwrap().0;
    let is_device = matches!(kind, "char" | "block");
    let is_file = kind == "file";
    Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        content: is_file.then(|| blake3::hash(&fs::read(path).unwrap()).to_string()),
        size: if is_file { meta.len() } else { 0 },
        target: file_type.is_symlink().then(|| fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()),
        device: is_device.then(|| meta.rdev()),
        xattrs: xattrs(path),
        same_as: None,
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names) else { return BTreeMap::new() };
    let names = names[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Fails with the first differences if two trees are not the same.
pub fn assert_same(expected: &Tree, found: &Tree, what: &str) {
    let differences = differences(expected, found);
    assert!(
        differences.is_empty(),
        "{what}: {} differences: {:#?}",
        differences.len(),
        &differences[..differences.len().min(8)]
    );
}

/// What differs between two trees, a sentence for each thing.
pub fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut list = Vec::new();
    for (path, node) in expected {
        match found.get(path) {
            None => list.push(format!("{} is missing", path.display())),
            Some(other) if other != node => {
                list.push(format!("{}: expected {node:?}, found {other:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    let more = found.keys().filter(|path| !expected.contains_key(*path));
    list.extend(more.map(|path| format!("{} should not be there", path.display())));
    list
}

/// Fails if anything in `found` is not as in `expected`; things may be missing.
pub fn assert_part_of(expected: &Tree, found: &Tree, what: &str) {
    for (path, node) in found.iter().filter(|(_, node)| node.kind == "file") {
        let content = expected.get(path).map(|expected| (&expected.content, expected.size));
        assert_eq!(content, Some((&node.content, node.size)), "{what}: {}", path.display());
    }
}

/// Writes a file of noise, making directories as needed, with a modification time that depends on the seed.
pub fn put(root: &Path, path: &str, seed: u64, len: usize) {
    put_bytes(root, path, seed, &noise(seed, len));
}

/// As [`put`], with given bytes.
pub fn put_bytes(root: &Path, path: &str, seed: u64, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    stamp(&file, seed);
}

/// Sets a modification time that depends on the seed, with nanoseconds.
pub fn stamp(file: &File, seed: u64) {
    let time = UNIX_EPOCH + Duration::new(1_600_000_000 + seed % 1000, (seed % 999_999_937) as u32);
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// Sets permission bits.
pub fn chmod(root: &Path, path: &str, mode: u32) {
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
}
