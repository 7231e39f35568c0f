//! Trees in memory: made by chance, captured as a source, compared after a restore.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use crate::dice::Dice;

/// Contents that all writers draw from, so that they share chunks and come back to what was pruned long ago.
const CONTENTS: u64 = 14;
/// Enough for the nodes of a tree to be more than one.
const ATTRIBUTE_BYTES: usize = 60 << 10;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory with a large attribute of this version.
    Directory(u8),
    /// A file.
    File(Vec<u8>),
}

/// A tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(pub BTreeMap<MapKey, Node>);

/// The bytes of a content; those with a higher number are longer.
pub(crate) fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 200 + 450 * number as usize];
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_le_bytes());
    blake3::Hasher::new_keyed(&key).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn key(path: &str) -> MapKey {
    MapKey::from_components(path.split('/')).expect("simple names")
}

impl Tree {
    /// Changes a few things; a tree with nothing in it becomes one.
    pub fn change(&mut self, dice: &mut Dice) {
        for number in 0..3u8 {
            let directory = self.0.entry(key(&format!("d{number}"))).or_insert(Node::Directory(0));
            if dice.chance(700) {
                *directory = Node::Directory(dice.roll(4) as u8);
            }
        }
        for _ in 0..=dice.roll(4) {
            let path = match dice.roll(3) {
                0 => format!("f{}", dice.roll(4)),
                _ => format!("d{}/f{}", dice.roll(3), dice.roll(4)),
            };
            match dice.roll(6) {
                0 => _ = self.0.remove(&key(&path)),
                1 => {
                    let own = (0..300 + dice.roll(3000)).map(|_| dice.roll(256) as u8).collect();
                    self.0.insert(key(&path), Node::File(own));
                }
                2 => {
                    let both = [content(dice.roll(CONTENTS)), content(dice.roll(CONTENTS))].concat();
                    self.0.insert(key(&path), Node::File(both));
                }
                _ => _ = self.0.insert(key(&path), Node::File(content(dice.roll(CONTENTS)))),
            }
        }
    }

    /// Where the two differ, as text; `None` if they are the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let describe = |node: Option<&Node>| match node {
            None => "nothing".to_owned(),
            Some(Node::Directory(version)) => format!("directory {version}"),
            Some(Node::File(bytes)) => {
                format!("{} bytes {}", bytes.len(), &blake3::hash(bytes).to_hex()[..8])
            }
        };
        let keys = self.0.keys().chain(other.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let differs = keys.into_iter().find(|key| self.0.get(*key) != other.0.get(*key))?;
        let (ours, theirs) = (describe(self.0.get(differs)), describe(other.0.get(differs)));
        Some(format!("`{}`: {ours} instead of {theirs}", differs.display_path()))
    }

    /// What a thing is as an entry, without its content.
    fn entry(node: &Node) -> Entry {
        match node {
            Node::Directory(version) => Entry {
                mode: 0o755,
                xattrs: vec![(b"user.large".to_vec(), vec![*version; ATTRIBUTE_BYTES])],
                ..Entry::new(EntryKind::Directory)
            },
            Node::File(_) => Entry { mode: 0o640, mtime: (7, 0), ..Entry::new(EntryKind::File) },
        }
    }

    /// A thing from its restored entry and content.
    pub fn node(entry: &Entry, content: Vec<u8>) -> Node {
        match entry.kind {
            EntryKind::Directory => {
                let version = entry.xattrs.first().and_then(|(_, value)| value.first().copied());
                Node::Directory(version.unwrap_or(u8::MAX))
            }
            _ => Node::File(content),
        }
    }
}

/// A tree as a source that now and then takes its time.
pub(crate) struct SlowTree {
    pub tree: Tree,
    /// Before which items the walk waits, by their number.
    pub waits: Vec<usize>,
    /// Waits; `false` when the process has crashed meanwhile.
    pub wait: Box<dyn Fn() -> bool + Send + Sync>,
    /// Is called when the walk begins.
    pub begin: Box<dyn Fn() + Send + Sync>,
}

impl Source for SlowTree {
    fn kind(&self) -> &str {
        "simulated"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![b"/simulated".to_vec()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        (self.begin)();
        for (number, (key, node)) in self.tree.0.iter().enumerate() {
            if self.waits.contains(&number) && !(self.wait)() {
                return Err(SourceError::Other("the process has crashed".to_owned()));
            }
            let (kind, size, hash) = match node {
                Node::Directory(version) => (EntryKind::Directory, 0, blake3::hash(&[*version])),
                Node::File(bytes) => (EntryKind::File, bytes.len() as u64, blake3::hash(bytes)),
            };
            let mut fingerprint = [1; 16];
            fingerprint[1..].copy_from_slice(&hash.as_bytes()[..15]);
            let item = Item { key: key.clone(), kind, size, fingerprint, hard_link: None };
            if visit(Found::Item(item)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let Some(node) = self.tree.0.get(&item.key) else { return Ok(None) };
        let content = match node {
            Node::Directory(_) => None,
            Node::File(bytes) => Some(Box::new(Bytes { left: bytes.clone() }) as Box<dyn Content>),
        };
        Ok(Some(Opened { entry: Tree::entry(node), content }))
    }
}

struct Bytes {
    left: Vec<u8>,
}

impl Content for Bytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        let n = buf.len().min(self.left.len());
        buf[..n].copy_from_slice(&self.left[..n]);
        self.left.drain(..n);
        Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}
