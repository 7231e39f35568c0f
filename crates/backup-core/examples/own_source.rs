//! A source of one's own: the settings of a program, which live in memory, captured into a repository and read back.
//!
//! `docs/adding-a-source.md` walks through this file.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use backup_core::{BackupOptions, CreateOptions, Created, Repository};
use keepwell_catalog::{Entry, EntryKind, MapError, MapKey};
use keepwell_storage::{Memory, ObjectStore};

/// Settings by section and name.
type Settings = BTreeMap<String, BTreeMap<String, String>>;

/// Captures settings as a tree: a directory per section, a file per setting.
struct SettingsSource {
    program: String,
    settings: Settings,
}

impl Source for SettingsSource {
    fn kind(&self) -> &str {
        "settings"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![self.program.clone().into_bytes()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        match self.settings.is_empty() {
            false => Ok(Preflight::default()),
            true => Err(SourceError::Other(format!("`{}` has no settings", self.program))),
        }
    }

    // A `BTreeMap` iterates in the order of its keys, which is the order of the tree: a section before its settings.
    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        for (section, settings) in &self.settings {
            let directory = [(section.as_str(), None)];
            let files = settings.iter().map(|(name, value)| (name.as_str(), Some(value.as_str())));
            for (name, value) in directory.into_iter().chain(files) {
                let found = match item(section, name, value) {
                    Ok(item) => Found::Item(item),
                    // What cannot be captured is named in the report, and the walk goes on.
                    Err(error) => Found::Problem { key: MapKey::root(), message: error.to_string() },
                };
                if visit(found).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let names: Vec<String> =
            item.key.components().map(|name| String::from_utf8_lossy(&name).into_owned()).collect();
        match names.as_slice() {
            [section] if self.settings.contains_key(section) => {
                let entry = Entry { mode: 0o755, ..Entry::new(EntryKind::Directory) };
                Ok(Some(Opened { entry, content: None }))
            }
            [section, name] => Ok(self.settings.get(section).and_then(|s| s.get(name)).map(|value| {
                let entry = Entry { mode: 0o644, ..Entry::new(EntryKind::File) };
                let content = Text(io::Cursor::new(value.clone().into_bytes()));
                Opened { entry, content: Some(Box::new(content)) }
            })),
            _ => Ok(None),
        }
    }
}

/// An item as the walk sees it. The fingerprint says whether the value is another one than last time.
fn item(section: &str, name: &str, value: Option<&str>) -> Result<Item, MapError> {
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&blake3::hash(value.unwrap_or_default().as_bytes()).as_bytes()[..16]);
    let key = MapKey::from_components([section])?;
    Ok(Item {
        key: if value.is_some() { key.child(name.as_bytes())? } else { key },
        kind: if value.is_some() { EntryKind::File } else { EntryKind::Directory },
        size: value.map_or(0, |value| value.len() as u64),
        fingerprint,
        hard_link: None,
    })
}

/// A value, read front to back.
struct Text(io::Cursor<Vec<u8>>);

impl Content for Text {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        Ok(match io::Read::read(&mut self.0, buf)? {
            0 => Piece::End,
            n => Piece::Data(n),
        })
    }

    // What lives in memory and is borrowed cannot change meanwhile.
    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store: Arc<dyn ObjectStore> = Arc::new(Memory::new());
    let options =
        CreateOptions { owner: "ann".into(), member: "laptop".into(), store_hint: None, probe: None };
    let key = Created::generate(&options, 0)?.store(&*store).await?;
    let repository = Repository::builder(store).open(key).await?;

    let mut settings = Settings::new();
    settings.entry("display".into()).or_default().insert("theme".into(), "dark".into());
    settings.entry("network".into()).or_default().insert("proxy".into(), "none".into());
    let mut options = BackupOptions { dataset: "settings".into(), ..BackupOptions::default() };
    for theme in ["dark", "light"] {
        settings.entry("display".into()).or_default().insert("theme".into(), theme.into());
        let source = SettingsSource { program: "editor".into(), settings: settings.clone() };
        options.tags = vec![theme.into()];
        let report = repository.backup(Arc::new(source), options.clone()).await?;
        println!("{}: {} bytes read", report.snapshot, report.statistics.bytes_read);
    }

    let snapshots = repository.snapshots().await?;
    let [dark, light] = snapshots.as_slice() else { return Err("there should be two snapshots".into()) };
    let summary = repository
        .diff(dark, light, |change| {
            println!("{:?} {}", change.kind, change.key);
            ControlFlow::Continue(())
        })
        .await?;
    let mut theme = Vec::new();
    let tree = repository.tree(light).await?;
    tree.dump_file(&MapKey::from_components(["display", "theme"])?, &mut theme).await?;
    println!("the theme is {}; {} setting changed", String::from_utf8_lossy(&theme), summary.changed.files);
    Ok(())
}
