//! A tree that exists only as a rule, as a source: nothing of the machine gets into the counts.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use anyhow::Result;
use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use crate::{noise, text};

/// Directories and files by key. A file is a seed and a size; `None` is a directory.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeMap<MapKey, Option<(u64, usize)>>);

impl Tree {
    /// `directories` directories of `files` files of a few KiB, and `large` files of 3 MiB beside them.
    pub fn generate(directories: u64, files: u64, large: u64) -> Result<Self> {
        let mut tree = Self::default();
        for directory in 0..directories {
            let name = format!("directory-{directory:04}");
            tree.0.insert(MapKey::from_components([&name])?, None);
            for file in 0..files {
                let seed = directory * files + file;
                let key = MapKey::from_components([name.as_str(), &format!("{file:04}.txt")])?;
                tree.0.insert(key, Some((seed, 500 + (seed * 7919 % 8000) as usize)));
            }
        }
        for n in 0..large {
            tree.put(&format!("large-{n:02}"), 1_000_000 + n, 3 << 20)?;
        }
        Ok(tree)
    }

    /// Adds or changes a file at the top.
    pub fn put(&mut self, name: &str, seed: u64, size: usize) -> Result<()> {
        self.0.insert(MapKey::from_components([name])?, Some((seed, size)));
        Ok(())
    }

    /// Removes what is at the top under names that begin so.
    pub fn remove(&mut self, prefix: &str) {
        self.0.retain(|key, _| {
            !key.components().next().is_some_and(|name| name.starts_with(prefix.as_bytes()))
        });
    }

    /// Number of entries.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.values().flatten().map(|(_, size)| *size as u64).sum()
    }
}

impl Source for Tree {
    fn kind(&self) -> &str {
        "generated"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        for (key, file) in &self.0 {
            let (seed, size) = file.unwrap_or_default();
            let mut fingerprint = [1; 16];
            fingerprint[..8].copy_from_slice(&seed.to_le_bytes());
            let item = Item {
                key: key.clone(),
                kind: if file.is_some() { EntryKind::File } else { EntryKind::Directory },
                size: size as u64,
                fingerprint,
                hard_link: None,
            };
            if visit(Found::Item(item)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let file = self.0.get(&item.key).copied().flatten();
        let content = file.map(|(seed, size)| {
            let bytes = if seed % 2 == 0 { text(seed, size) } else { noise(seed, size) };
            Box::new(Bytes { bytes, at: 0 }) as Box<dyn Content>
        });
        let entry = Entry { mode: 0o755, mtime: (1_000_000_000, 0), ..Entry::new(item.kind) };
        Ok(Some(Opened { entry, content }))
    }
}

struct Bytes {
    bytes: Vec<u8>,
    at: usize,
}

impl Content for Bytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        let length = buf.len().min(self.bytes.len() - self.at);
        buf[..length].copy_from_slice(&self.bytes[self.at..self.at + length]);
        self.at += length;
        Ok(if length == 0 { Piece::End } else { Piece::Data(length) })
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}
