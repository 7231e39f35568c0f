//! Items on their way to the engine.

use std::ops::ControlFlow;

use backup_core::env::Timestamp;
use backup_core::source::{Content, Found, Item, Opened};
use bytes::Bytes;
use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::DumpError;
use super::content::BytesContent;

pub(super) type Visit<'v> = &'v mut dyn FnMut(Found) -> ControlFlow<()>;

/// Where items go.
pub(super) struct Out<'v> {
    pub visit: Visit<'v>,
    pub now: Timestamp,
}

impl Out<'_> {
    fn send(&mut self, found: Found) -> Result<(), DumpError> {
        if (self.visit)(found).is_break() { Err(DumpError::Stopped) } else { Ok(()) }
    }

    pub fn note(&mut self, text: &str) -> Result<(), DumpError> {
        self.send(Found::Note(format!("left out: {text}")))
    }

    fn entry(&self, kind: EntryKind, mode: u32) -> Entry {
        Entry { mode, mtime: (self.now.div_euclid(1_000_000_000), 0), ..Entry::new(kind) }
    }

    fn item<C: AsRef<str>>(path: &[C], kind: EntryKind, size: u64) -> Result<Item, DumpError> {
        let key = MapKey::from_components(path.iter().map(|name| name.as_ref().as_bytes()))?;
        Ok(Item { key, kind, size, fingerprint: [0; 16], hard_link: None })
    }

    pub fn directory<C: AsRef<str>>(&mut self, path: &[C]) -> Result<(), DumpError> {
        let item = Self::item(path, EntryKind::Directory, 0)?;
        let entry = self.entry(EntryKind::Directory, 0o700);
        self.send(Found::Opened(item, Box::new(Opened { entry, content: None })))
    }

    pub fn file<C: AsRef<str>>(
        &mut self,
        path: &[C],
        size: u64,
        content: impl Content + 'static,
    ) -> Result<(), DumpError> {
        let item = Self::item(path, EntryKind::File, size)?;
        let opened = Opened { entry: self.entry(EntryKind::File, 0o600), content: Some(Box::new(content)) };
        self.send(Found::Opened(item, Box::new(opened)))
    }

    pub fn json<C: AsRef<str>>(
        &mut self,
        path: &[C],
        value: &impl serde::Serialize,
    ) -> Result<(), DumpError> {
        let mut json = serde_json::to_vec_pretty(value).map_err(|error| DumpError::Odd(error.to_string()))?;
        json.push(b'\n');
        let size = json.len() as u64;
        self.file(path, size, BytesContent(Bytes::from(json)))
    }
}
