//! A tree in memory, as a source.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keepwell_catalog::{Entry, EntryKind, MapKey};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};

/// What a tree should hold: metadata without size and extents, and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TreeModel(pub BTreeMap<MapKey, Thing>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thing {
    pub entry: Entry,
    pub parts: Vec<Part>,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Data(Vec<u8>),
    Hole(u64),
}

/// A key from a path.
pub(crate) fn key(path: &str) -> MapKey {
    MapKey::from_components(path.split('/').filter(|c| !c.is_empty())).unwrap()
}

/// Bytes that do not compress.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

impl Thing {
    pub fn new(kind: EntryKind) -> Self {
        Self { entry: Entry { mode: 0o640, mtime: (7, 0), ..Entry::new(kind) }, parts: Vec::new() }
    }

    pub fn file(data: impl Into<Vec<u8>>) -> Self {
        Self { parts: vec![Part::Data(data.into())], ..Self::new(EntryKind::File) }
    }

    pub fn link(first: &str) -> Self {
        let mut link = Self::new(EntryKind::HardLink);
        link.entry.hard_link = Some(key(first));
        link
    }

    /// The content, holes as zeros.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.parts {
            match part {
                Part::Data(data) => out.extend_from_slice(data),
                Part::Hole(length) => out.resize(out.len() + *length as usize, 0),
            }
        }
        out
    }
}

impl TreeModel {
    pub fn without(mut self, path: &str) -> Self {
        self.0.remove(&key(path));
        self
    }

    pub fn with(mut self, path: &str, thing: Thing) -> Self {
        let mut parent = key(path).parent();
        while let Some(directory) = parent.filter(|p| *p != MapKey::root()) {
            parent = directory.parent();
            self.0.entry(directory).or_insert_with(|| Thing::new(EntryKind::Directory));
        }
        self.0.insert(key(path), thing);
        self
    }

    /// The same with content as one piece, as a restore gives it.
    pub fn flat(&self) -> Self {
        let flat = |thing: &Thing| {
            let bytes = thing.bytes();
            let parts = if bytes.is_empty() { Vec::new() } else { vec![Part::Data(bytes)] };
            Thing { entry: thing.entry.clone(), parts }
        };
        Self(self.0.iter().map(|(key, thing)| (key.clone(), flat(thing))).collect())
    }

    /// What a restore of the model gives: further names have the metadata of their file.
    pub fn as_restored(&self) -> Self {
        let mut flat = self.flat();
        for thing in flat.0.values_mut() {
            if let Some(first) = thing.entry.hard_link.clone() {
                thing.entry = self.0[&first].entry.clone();
                thing.entry.kind = EntryKind::HardLink;
                thing.entry.hard_link = Some(first);
            }
        }
        flat
    }
}

/// Fails with the keys that differ; the trees themselves would fill pages.
pub(crate) fn assert_same(left: &TreeModel, right: &TreeModel) {
    let keys: std::collections::BTreeSet<_> = left.0.keys().chain(right.0.keys()).collect();
    let differ: Vec<_> = keys
        .into_iter()
        .filter(|key| left.0.get(*key) != right.0.get(*key))
        .map(|key| (key, left.0.get(key).map(|t| &t.entry), right.0.get(key).map(|t| &t.entry)))
        .collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

/// Captures a model; counts what was opened.
#[derive(Debug, Default)]
pub(crate) struct MemorySource {
    tree: TreeModel,
    pub opened: Arc<AtomicU64>,
}

impl MemorySource {
    pub fn new(tree: TreeModel) -> Self {
        Self { tree, opened: Arc::default() }
    }
}

impl Source for MemorySource {
    fn kind(&self) -> &str {
        "memory"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![b"/memory".to_vec()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        for (key, thing) in &self.tree.0 {
            let hash = blake3::hash(format!("{thing:?}").as_bytes());
            let item = Item {
                key: key.clone(),
                kind: thing.entry.kind,
                size: thing.bytes().len() as u64,
                fingerprint: hash.as_bytes()[..16].try_into().unwrap(),
                hard_link: thing.entry.hard_link.clone(),
            };
            if visit(Found::Item(item)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let Some(thing) = self.tree.0.get(&item.key) else { return Ok(None) };
        let content = thing.entry.kind.has_content().then(|| {
            Box::new(Parts { parts: thing.parts.clone().into_iter(), data: Vec::new().into_iter() }) as _
        });
        Ok(Some(Opened { entry: thing.entry.clone(), content }))
    }
}

struct Parts {
    parts: std::vec::IntoIter<Part>,
    data: std::vec::IntoIter<u8>,
}

impl Content for Parts {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        while self.data.len() == 0 {
            match self.parts.next() {
                None => return Ok(Piece::End),
                Some(Part::Hole(length)) => return Ok(Piece::Hole(length)),
                Some(Part::Data(data)) => self.data = data.into_iter(),
            }
        }
        let n = buf.len().min(self.data.len());
        self.data.by_ref().take(n).zip(buf).for_each(|(byte, slot)| *slot = byte);
        Ok(Piece::Data(n))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// Trees of up to some twenty things, three levels deep, of every kind, with names that need care.
pub(crate) fn tree_model() -> impl Strategy<Value = TreeModel> {
    let component = prop_oneof![
        Just(b"a".to_vec()),
        Just(b"b".to_vec()),
        Just("\u{e4}".as_bytes().to_vec()),
        Just(vec![0xff, b'x']),
        Just(vec![1, b'y']),
        Just(vec![b'n'; 120]),
        vec(b'a'..=b'd', 1..3),
    ];
    let path = vec(component, 1..4);
    btree_map(path, (thing(), any::<u8>()), 0..20).prop_map(|things| {
        let mut tree = TreeModel::default();
        let mut files = Vec::new();
        for (path, (mut thing, choice)) in things {
            let key = MapKey::from_components(&path).unwrap();
            let blocked = (1..path.len()).any(|n| {
                let above = MapKey::from_components(&path[..n]).unwrap();
                let above = tree.0.entry(above).or_insert_with(|| Thing::new(EntryKind::Directory));
                above.entry.kind != EntryKind::Directory
            });
            if blocked || tree.0.contains_key(&key) {
                continue;
            }
            if thing.entry.kind == EntryKind::HardLink {
                match files.get(usize::from(choice) % files.len().max(1)) {
                    Some(first) => thing.entry.hard_link = Some(MapKey::clone(first)),
                    None => continue,
                }
            }
            if thing.entry.kind == EntryKind::File {
                files.push(key.clone());
            }
            tree.0.insert(key, thing);
        }
        tree
    })
}

fn thing() -> impl Strategy<Value = Thing> {
    let part = prop_oneof![
        (0u64..6, 1usize..3000).prop_map(|(seed, len)| Part::Data(noise(seed, len))),
        (1u64..5000).prop_map(Part::Hole),
        // Long enough for extents beyond those in the entry itself.
        (0u64..3).prop_map(|seed| Part::Data(noise(seed, 60_000))),
    ];
    let kind = prop_oneof![
        6 => Just(EntryKind::File),
        2 => Just(EntryKind::Directory),
        2 => Just(EntryKind::HardLink),
        1 => Just(EntryKind::Symlink),
        1 => Just(EntryKind::Fifo),
        1 => Just(EntryKind::CharDevice),
        1 => Just(EntryKind::Socket),
    ];
    (kind, vec(part, 0..4), 0u32..=0o7777, any::<u32>(), any::<(i32, u16)>(), any::<bool>()).prop_map(
        |(kind, parts, mode, uid, (seconds, nanos), more)| {
            let mut thing = Thing::new(kind);
            thing.entry.mode = mode;
            thing.entry.uid = uid;
            thing.entry.mtime = (seconds.into(), u32::from(nanos));
            thing.entry.user = more.then(|| "ann".into());
            if more && kind != EntryKind::HardLink {
                thing.entry.xattrs =
                    vec![(b"user.a=b".to_vec(), vec![0, 1, 2]), (b"user.z".to_vec(), vec![])];
            }
            match kind {
                EntryKind::File => thing.parts = parts,
                EntryKind::Symlink => thing.entry.link_target = Some(vec![b't'; nanos as usize % 150 + 1]),
                EntryKind::CharDevice => thing.entry.device = Some((4, u32::from(nanos))),
                _ => {}
            }
            thing
        },
    )
}
