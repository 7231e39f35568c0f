//! A source that is made up: things that no honest file system has, and sources that fail.

use std::io;
use std::ops::ControlFlow;

use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use crate::noise;

/// One thing.
#[derive(Debug, Clone)]
pub struct Thing {
    /// Where.
    pub key: MapKey,
    /// Its metadata.
    pub entry: Entry,
    /// Its content, if it is a file.
    pub data: Data,
}

/// A content.
#[derive(Debug, Clone)]
pub enum Data {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A hole of this many bytes.
    Hole(u64),
}

/// How a source fails, at the thing with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Not at all.
    None,
    /// The walk ends with an error.
    Walk(usize),
    /// The walk panics.
    WalkPanic(usize),
    /// It cannot be opened.
    Open(usize),
    /// Opening it panics.
    OpenPanic(usize),
    /// Reading it fails.
    Read(usize),
}

/// The source.
#[derive(Debug, Clone)]
pub struct Made {
    things: Vec<Thing>,
    trouble: Trouble,
    size: u64,
}

impl Made {
    /// Of these things, in any order.
    pub fn new(mut things: Vec<Thing>) -> Self {
        things.sort_by(|a, b| a.key.cmp(&b.key));
        Self { things, trouble: Trouble::None, size: 1 }
    }

    /// The same with trouble; and every thing claims to have `size` bytes, whatever it has.
    pub fn with(self, trouble: Trouble, size: u64) -> Self {
        Self { trouble, size, ..self }
    }

    fn number(&self, key: &MapKey) -> Option<usize> {
        self.things.binary_search_by(|thing| thing.key.cmp(key)).ok()
    }
}

/// A key of these components, whatever they are.
pub fn key<C: AsRef<[u8]>>(components: impl IntoIterator<Item = C>) -> MapKey {
    MapKey::from_components(components).unwrap()
}

/// An entry with a mode that an owner can work with.
pub fn entry(kind: EntryKind) -> Entry {
    Entry { mode: 0o755, mtime: (1_500_000_000, 5), ..Entry::new(kind) }
}

/// A regular file.
pub fn file<C: AsRef<[u8]>>(components: impl IntoIterator<Item = C>, bytes: &[u8]) -> Thing {
    Thing { key: key(components), entry: entry(EntryKind::File), data: Data::Bytes(bytes.to_vec()) }
}

/// Anything without content.
pub fn thing<C: AsRef<[u8]>>(components: impl IntoIterator<Item = C>, entry: Entry) -> Thing {
    Thing { key: key(components), entry, data: Data::Bytes(Vec::new()) }
}

/// Many files; every eighth is large enough for a frame of its own.
pub fn many(count: u64) -> Made {
    let things = (0..count).map(|i| {
        let len = if i % 8 == 0 { 700 << 10 } else { 900 };
        file([format!("{i:05}")], &noise(i, len))
    });
    Made::new(things.collect())
}

impl Source for Made {
    fn kind(&self) -> &str {
        "made"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![b"made".to_vec()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        for (number, thing) in self.things.iter().enumerate() {
            match self.trouble {
                Trouble::Walk(at) if at == number => return Err(SourceError::Other("walked into it".into())),
                Trouble::WalkPanic(at) if at == number => panic!("a panic on purpose"),
                _ => {}
            }
            let item = Item {
                key: thing.key.clone(),
                kind: thing.entry.kind,
                size: self.size,
                fingerprint: [0; 16],
                hard_link: thing.entry.hard_link.clone(),
            };
            if visit(Found::Item(item)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let Some(number) = self.number(&item.key) else { return Ok(None) };
        let fails = match self.trouble {
            Trouble::Open(at) if at == number => return Err(SourceError::Other("shut".into())),
            Trouble::OpenPanic(at) if at == number => panic!("a panic on purpose"),
            Trouble::Read(at) => at == number,
            _ => false,
        };
        let thing = &self.things[number];
        let content = Reading { data: thing.data.clone(), at: 0, fails };
        let content = (thing.entry.kind == EntryKind::File).then(|| Box::new(content) as Box<dyn Content>);
        Ok(Some(Opened { entry: thing.entry.clone(), content }))
    }
}

struct Reading {
    data: Data,
    at: usize,
    fails: bool,
}

impl Content for Reading {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        match &self.data {
            Data::Hole(length) if self.at == 0 => {
                self.at = 1;
                Ok(Piece::Hole(*length))
            }
            Data::Bytes(bytes) if self.at < bytes.len() => {
                if self.fails && self.at > 0 {
                    return Err(io::Error::other("it hurts to read on"));
                }
                let n = buf.len().min(bytes.len() - self.at).min(100_000);
                buf[..n].copy_from_slice(&bytes[self.at..self.at + n]);
                self.at += n;
                Ok(Piece::Data(n))
            }
            _ => Ok(Piece::End),
        }
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}
