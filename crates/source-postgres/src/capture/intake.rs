//! Takes in the stream of a base backup: from archives to items with contents, checking pages on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use backup_core::source::{Found, Item, Opened};
use bytes::Bytes;
use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::CaptureError;
use super::basis::Basis;
use super::content::{Arriving, Feed, Part, arriving, complete};
use super::cutoff::CutOff;
use super::manifest::MARK;
use super::page::{Pages, SEGMENT_PAGES, is_sound};
use super::pagemap::{Compare, PageMap};
use super::patch::Patch;
use super::place::{self, Relation};
use super::tape::{Head, Step, Tape};
use crate::cluster::{DATA, TABLESPACES};
use crate::lsn::Lsn;
use crate::replication::Tablespace;

/// Smaller files are gathered before a worker hears of them.
const GATHERED_MAX: u64 = 1 << 20;
/// The manifest names every file of the cluster; a million of them need about 200 MiB.
const MANIFEST_MAX: usize = 1 << 30;

/// A file some of whose pages do not fit their checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadFile {
    pub key: MapKey,
    pub relation: Relation,
    /// The first blocks, as numbers in the relation.
    pub blocks: Vec<u32>,
    pub count: u64,
}

/// What there is to say about a stream when it is over.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub bad: Vec<BadFile>,
    /// Names of files in `pg_wal`, with their sizes.
    pub wal: BTreeSet<(String, u64)>,
    pub manifest: Vec<u8>,
    /// Files that were put together, by their path below the data directory, with their sizes.
    pub patched: BTreeMap<String, u64>,
    /// Owner and group of the data directory.
    pub owner: (u32, u32),
}

/// What it means that there is no page map for the next time.
pub(super) const MAP_LOST: &str =
    "which pages there are cannot be kept on this host; the next backup will store more";

/// Where items go.
pub(super) type Visit<'v> = &'v mut dyn FnMut(Found) -> ControlFlow<()>;

pub(super) struct Intake<'v, 'b> {
    visit: Visit<'v>,
    /// Pages that changed since then are not judged; `None` when pages bear no checksums.
    judge: Option<Lsn>,
    /// What an incremental backup builds on.
    basis: Option<&'b Basis>,
    /// For a server that does not say what changed.
    map: Option<PageMap>,
    /// What of the basis is not there any more.
    cut: CutOff,
    space: Option<u32>,
    roots: BTreeSet<MapKey>,
    tape: Tape,
    open: Option<Open>,
    taken: Taken,
}

/// The file that is arriving.
struct Open {
    to: To,
    check: Option<Check>,
    /// For one of which only changes arrive.
    patch: Option<Patch>,
    compare: Option<(MapKey, Compare)>,
    path: String,
}

enum To {
    /// Gathered until it is complete.
    Gather { key: MapKey, head: Head, parts: Vec<Part>, pages: bool },
    /// On its way to a worker.
    Worker(Feed),
}

impl To {
    fn put(&mut self, part: Part) -> Result<(), CaptureError> {
        match self {
            Self::Gather { parts, .. } => parts.push(part),
            Self::Worker(feed) if !feed.send(part) => return Err(CaptureError::NotRead),
            Self::Worker(_) => {}
        }
        Ok(())
    }
}

/// Looks at the pages of a file.
struct Check {
    pages: Pages,
    next: u32,
    file: BadFile,
}

impl Check {
    fn push(&mut self, data: &Bytes, start: Lsn, patch: Option<&Patch>) {
        let Self { pages, next, file } = self;
        pages.push(data, &mut |page| {
            let in_file = patch.map_or(*next, |patch| patch.block(*next));
            let block = file.relation.segment.wrapping_mul(SEGMENT_PAGES).wrapping_add(in_file);
            if !is_sound(page, block, start) {
                file.count += 1;
                if file.blocks.len() < 100 {
                    file.blocks.push(block);
                }
            }
            *next += 1;
        });
    }
}

impl<'v, 'b> Intake<'v, 'b> {
    /// `judge` is where the backup begins, if pages bear checksums; `basis` what an incremental one builds on;
    /// `map` what pages are compared with.
    pub fn new(visit: Visit<'v>, judge: Option<Lsn>, basis: Option<&'b Basis>, map: Option<PageMap>) -> Self {
        Self {
            visit,
            judge,
            basis,
            map,
            cut: CutOff::default(),
            space: None,
            roots: BTreeSet::new(),
            tape: Tape::default(),
            open: None,
            taken: Taken::default(),
        }
    }

    /// Tells which files were cut off since the basis.
    pub fn knowing(self, cut: CutOff) -> Self {
        Self { cut, ..self }
    }

    /// The next archive begins.
    pub fn archive(&mut self, space: Option<&Tablespace>) -> Result<(), CaptureError> {
        self.end_archive()?;
        self.tape = Tape::default();
        self.space = space.map(|space| space.oid);
        Ok(())
    }

    fn end_archive(&self) -> Result<(), CaptureError> {
        if self.open.is_none() && self.tape.is_between_entries() {
            Ok(())
        } else {
            Err(CaptureError::Odd("an archive of the base backup ends in the middle of a file".to_owned()))
        }
    }

    /// The next bytes of the archive. May wait for the workers.
    pub fn data(&mut self, mut data: Bytes) -> Result<(), CaptureError> {
        while let Some(step) = self.tape.next(&mut data)? {
            match step {
                Step::Entry(head) => self.begin(head)?,
                Step::Data(data) => self.content(data)?,
                Step::EntryEnd => self.end()?,
            }
        }
        Ok(())
    }

    /// The next bytes of the manifest.
    pub fn manifest(&mut self, data: &Bytes) -> Result<(), CaptureError> {
        self.end_archive()?;
        if self.taken.manifest.len() + data.len() > MANIFEST_MAX {
            return Err(CaptureError::Odd("the manifest of the base backup has no end".to_owned()));
        }
        self.taken.manifest.extend_from_slice(data);
        Ok(())
    }

    /// The stream is over.
    pub fn finish(self) -> Result<(Taken, Option<PageMap>), CaptureError> {
        self.end_archive()?;
        Ok((self.taken, self.map))
    }

    fn begin(&mut self, mut head: Head) -> Result<(), CaptureError> {
        self.root(&head)?;
        let marked = match self.basis {
            Some(_) => head.path.last_mut().and_then(|name| name.strip_prefix(MARK).map(str::to_owned)),
            None => None,
        };
        if let (Some(name), Some(last)) = (&marked, head.path.last_mut()) {
            last.clone_from(name);
        }
        let key = place::key(self.space, &head.path)?;
        if head.directory {
            return (self.visit)(directory(key, &head)).or_stop();
        }
        let relation = Relation::of(self.space, &head.path);
        let patch = match (marked, self.basis.and_then(|basis| basis.files.get(&key))) {
            (None, _) => None,
            (Some(_), Some(size)) if relation.is_some() => {
                Some(Patch::new(self.cut.still_there(self.space, &head.path, *size)))
            }
            (Some(_), _) => return Err(patch_error(&key, "it is not in the manifest")),
        };
        if let ([wal, name], None) = (head.path.as_slice(), self.space)
            && wal == "pg_wal"
        {
            self.taken.wal.insert((name.clone(), head.size));
        }
        let check = relation.filter(|_| self.judge.is_some()).map(|relation| Check {
            pages: Pages::default(),
            next: 0,
            file: BadFile { key: key.clone(), relation, blocks: Vec::new(), count: 0 },
        });
        let path = match self.space {
            None => head.path.join("/"),
            Some(oid) => format!("pg_tblspc/{oid}/{}", head.path.join("/")),
        };
        let pages = relation.is_some();
        let map = self.map.as_ref().filter(|_| pages);
        let compare = map.map(|map| (key.clone(), map.begin(&key)));
        let to = if head.size <= GATHERED_MAX {
            To::Gather { key, head, parts: Vec::new(), pages }
        } else {
            let (feed, content) = arriving(pages);
            self.visit_file(key, &head, content)?;
            To::Worker(feed)
        };
        self.open = Some(Open { to, check, patch, compare, path });
        Ok(())
    }

    fn content(&mut self, mut data: Bytes) -> Result<(), CaptureError> {
        let Some(Open { to, check, patch, compare, path }) = &mut self.open else { return Ok(()) };
        let refused = |what| CaptureError::Odd(format!("`{path}` is no incremental file: {what}"));
        if let Some(patch) = patch {
            patch.head(&mut data).map_err(refused)?;
        }
        if let (Some(check), Some(start)) = (check, self.judge) {
            check.push(&data, start, patch.as_ref());
        }
        let mut parts = Vec::new();
        match (patch, compare) {
            (Some(patch), _) => patch.body(data, &mut parts).map_err(refused)?,
            (None, Some((_, compare))) => compare.push(data, &mut parts),
            (None, None) => return to.put(Part::Data(data)),
        }
        parts.into_iter().try_for_each(|part| to.put(part))
    }

    fn end(&mut self) -> Result<(), CaptureError> {
        let Some(Open { mut to, check, patch, compare, path }) = self.open.take() else { return Ok(()) };
        if let Some(check) = check.filter(|check| check.file.count > 0) {
            self.taken.bad.push(check.file);
        }
        if let Some((key, mut compare)) = compare {
            let mut parts = Vec::new();
            compare.end(&mut parts);
            parts.into_iter().try_for_each(|part| to.put(part))?;
            self.remember(&key, &compare)?;
        }
        if let Some(mut patch) = patch {
            let mut parts = Vec::new();
            let ended = patch.end(&mut parts);
            ended.map_err(|what| CaptureError::Odd(format!("`{path}` is no incremental file: {what}")))?;
            parts.into_iter().try_for_each(|part| to.put(part))?;
            self.taken.patched.insert(path.clone(), patch.size());
        }
        match to {
            To::Gather { key, head, parts, .. } if self.basis.is_some() && path == LABEL => {
                let label = whole_label(&parts);
                self.taken.patched.insert(path, label.len() as u64);
                (self.visit)(own_file(key, entry(EntryKind::File, &head), label)).or_stop()
            }
            To::Gather { key, head, parts, pages } => self.visit_file(key, &head, complete(parts, pages)),
            To::Worker(feed) if feed.send(Part::End) => Ok(()),
            To::Worker(_) => Err(CaptureError::NotRead),
        }
    }

    /// A map that cannot be written is given up; the next capture then has none to compare with.
    fn remember(&mut self, key: &MapKey, compare: &Compare) -> Result<(), CaptureError> {
        let Some(Err(error)) = self.map.as_mut().map(|map| map.end(key, compare)) else { return Ok(()) };
        self.map = None;
        (self.visit)(Found::Note(format!("{MAP_LOST} ({error})"))).or_stop()
    }

    fn visit_file(&mut self, key: MapKey, head: &Head, content: Arriving) -> Result<(), CaptureError> {
        let item =
            Item { key, kind: EntryKind::File, size: head.size, fingerprint: [0; 16], hard_link: None };
        let opened = Opened { entry: entry(EntryKind::File, head), content: Some(Box::new(content)) };
        (self.visit)(Found::Opened(item, Box::new(opened))).or_stop()
    }

    /// The directory that an archive is the content of is not in it.
    fn root(&mut self, first: &Head) -> Result<(), CaptureError> {
        let mode = if first.mode & 0o050 == 0 { 0o700 } else { 0o750 };
        let root = Head { path: Vec::new(), directory: true, mode, size: 0, ..first.clone() };
        let mut keys = vec![place::key(self.space, &[])?];
        if self.space.is_some() {
            keys.insert(0, MapKey::from_components([TABLESPACES])?);
        }
        for key in keys {
            if self.roots.insert(key.clone()) {
                (self.visit)(directory(key, &root)).or_stop()?;
            }
        }
        if self.space.is_none() {
            self.taken.owner = (first.uid, first.gid);
        }
        Ok(())
    }
}

const LABEL: &str = "backup_label";

/// The label without the lines that say that the backup is incremental: the result is not.
fn whole_label(parts: &[Part]) -> Vec<u8> {
    let bytes: Vec<u8> = parts
        .iter()
        .flat_map(|part| if let Part::Data(data) = part { &data[..] } else { &[] })
        .copied()
        .collect();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| !line.starts_with(b"INCREMENTAL FROM ")).flatten().copied().collect()
}

fn patch_error(key: &MapKey, what: &str) -> CaptureError {
    CaptureError::Odd(format!("`{}` came as an incremental file, and {what}", key.display_path()))
}

/// Whether the engine wants more.
pub(super) trait OrStop {
    fn or_stop(self) -> Result<(), CaptureError>;
}

impl OrStop for ControlFlow<()> {
    fn or_stop(self) -> Result<(), CaptureError> {
        if self.is_break() { Err(CaptureError::Stopped) } else { Ok(()) }
    }
}

pub(super) fn entry(kind: EntryKind, head: &Head) -> Entry {
    Entry { mode: head.mode, uid: head.uid, gid: head.gid, mtime: (head.mtime, 0), ..Entry::new(kind) }
}

/// An item for a directory.
pub(super) fn directory(key: MapKey, head: &Head) -> Found {
    let item = Item { key, kind: EntryKind::Directory, size: 0, fingerprint: [0; 16], hard_link: None };
    Found::Opened(item, Box::new(Opened { entry: entry(EntryKind::Directory, head), content: None }))
}

/// An item that we wrote ourselves, beside what the server sent.
pub(super) fn own_file(key: MapKey, entry: Entry, bytes: Vec<u8>) -> Found {
    let size = bytes.len() as u64;
    let item = Item { key, kind: EntryKind::File, size, fingerprint: [0; 16], hard_link: None };
    let parts = if bytes.is_empty() { Vec::new() } else { vec![Part::Data(bytes.into())] };
    Found::Opened(item, Box::new(Opened { entry, content: Some(Box::new(complete(parts, false))) }))
}

/// Key of a file of the data directory.
pub(super) fn data_key(name: &str) -> Result<MapKey, CaptureError> {
    Ok(MapKey::from_components([DATA, name])?)
}
