//! The walk through a data directory and its tablespaces: opens what belongs to the backup and hands it to the workers.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use backup_core::source::{Found, Item, Opened};
use keepwell_catalog::{EntryKind, MapKey};

use super::super::CaptureError;
use super::super::basis::Basis;
use super::super::intake::{OrStop, Visit, directory, entry, own_file};
use super::super::place::{self as keys, Relation};
use super::super::tape::Head;
use super::WAL;
use super::changes::{Changes, Stretch};
use super::file::{Bits, Plan, Reader, Shared};
use super::listing::{Fate, fate};
use super::place::{Listing, Look, Place, below};
use super::sessions::PIECE;
use crate::cluster::TABLESPACES;
use crate::lsn::{Lsn, Segment, SegmentSize};
use crate::replication::Tablespace;
use crate::wire::Client;

/// First major that keeps WAL summaries, in a directory of their own.
const SUMMARIES_MAJOR: u32 = super::super::SUMMARIES_MAJOR;
/// Files that are read together.
const GATHERED_MAX: usize = 256;

pub(super) struct Walk<'w, 'v> {
    pub place: &'w Place,
    pub major: u32,
    /// Where the backup begins, if pages bear checksums.
    pub judge: Option<Lsn>,
    /// Whether pages are compared with a page map.
    pub compares: bool,
    /// What changed since the last capture, if that is known.
    pub changes: Option<(&'w Changes, &'w Basis)>,
    pub shared: &'w Arc<Shared>,
    pub visit: Visit<'v>,
    /// Small files that are about to be read together.
    gathered: Vec<(Plan, Head)>,
}

impl<'w, 'v> Walk<'w, 'v> {
    pub fn new(place: &'w Place, major: u32, shared: &'w Arc<Shared>, visit: Visit<'v>) -> Self {
        Self {
            place,
            major,
            judge: None,
            compares: false,
            changes: None,
            shared,
            visit,
            gathered: Vec::new(),
        }
    }

    /// The data directory itself; gives its owner and group.
    pub fn root(&mut self) -> Result<(u32, u32), CaptureError> {
        let head = self.place.root()?;
        (self.visit)(directory(keys::key(None, &[])?, &head)).or_stop()?;
        Ok((head.uid, head.gid))
    }

    /// Finds the tablespaces.
    pub async fn spaces(&mut self, client: &mut Client) -> Result<Vec<Tablespace>, CaptureError> {
        let spaces = self.place.spaces(client).await?;
        if !spaces.is_empty() {
            let key = MapKey::from_components([TABLESPACES])?;
            (self.visit)(directory(key, &self.place.root()?)).or_stop()?;
        }
        Ok(spaces)
    }

    /// All files of a tablespace; `owner` is that of the data directory.
    pub async fn space(&mut self, oid: u32, owner: (u32, u32)) -> Result<(), CaptureError> {
        // Its group may be anything: an administrator made it. A server sends only what it made in it itself.
        let head = Head { uid: owner.0, gid: owner.1, ..self.place.space(oid)? };
        (self.visit)(directory(keys::key(Some(oid), &[])?, &head)).or_stop()?;
        self.below(Some(oid)).await
    }

    /// All files of the data directory, but for what comes last.
    pub async fn data(&mut self) -> Result<(), CaptureError> {
        self.below(None).await
    }

    async fn below(&mut self, space: Option<u32>) -> Result<(), CaptureError> {
        let mut waiting = vec![Vec::new()];
        while let Some(above) = waiting.pop() {
            let listing = self.list(space, &above).await?;
            let names: BTreeSet<String> = listing.names.keys().cloned().collect();
            for (name, listed) in &listing.names {
                let path: Vec<String> = above.iter().chain([name]).cloned().collect();
                let fate = fate(space, &path, self.major, &names);
                if fate == Fate::Left {
                    continue;
                }
                match self.place.look(listed, (space, &path), fate)? {
                    Look::Gone => {}
                    Look::Left(note) => (self.visit)(Found::Note(note)).or_stop()?,
                    Look::Is(head) if head.directory => {
                        self.directory(space, &head)?;
                        if fate == Fate::Taken {
                            waiting.push(path);
                        }
                    }
                    Look::Is(head) => self.file(space, head).await?,
                }
            }
        }
        self.read_gathered().await
    }

    /// What is in a directory; names that cannot be kept are problems.
    async fn list(&mut self, space: Option<u32>, above: &[String]) -> Result<Listing, CaptureError> {
        let mut listing = self.place.list(space, above).await?;
        for name in std::mem::take(&mut listing.odd) {
            let mut key: Vec<Vec<u8>> =
                keys::key(space, above)?.components().map(|name| name.as_ref().to_vec()).collect();
            key.push(name);
            let message = "its name is no UTF-8, which a backup manifest cannot hold".to_owned();
            (self.visit)(Found::Problem { key: MapKey::from_components(key)?, message }).or_stop()?;
        }
        Ok(listing)
    }

    /// A directory; in that of the WAL what a server expects there.
    fn directory(&mut self, space: Option<u32>, head: &Head) -> Result<(), CaptureError> {
        (self.visit)(directory(keys::key(space, &head.path)?, head)).or_stop()?;
        if space.is_some() || head.path != [WAL] {
            return Ok(());
        }
        let summaries = (self.major >= SUMMARIES_MAJOR).then_some("summaries");
        for name in ["archive_status"].into_iter().chain(summaries) {
            let path = [WAL.to_owned(), name.to_owned()];
            (self.visit)(directory(keys::key(None, &path)?, head)).or_stop()?;
        }
        Ok(())
    }

    async fn file(&mut self, space: Option<u32>, head: Head) -> Result<(), CaptureError> {
        let key = keys::key(space, &head.path)?;
        let (opening, head) = match self.place.open(space, head) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(()),
            Err(error) => return self.problem(key, &format!("cannot be opened: {error}")),
        };
        let plan = self.plan(space, key, &head);
        if self.place.gathers(&plan, head.size) {
            return self.gather(plan, head).await;
        }
        let bits = self.place.bits(opening, &plan)?;
        self.hand_over(bits, plan, &head)
    }

    fn problem(&mut self, key: MapKey, message: &str) -> Result<(), CaptureError> {
        (self.visit)(Found::Problem { key, message: message.to_owned() }).or_stop()
    }

    fn plan(&self, space: Option<u32>, key: MapKey, head: &Head) -> Plan {
        let relation = Relation::of(space, &head.path);
        let name = head.path.last().map_or("", String::as_str);
        let known = relation.zip(self.changes).and_then(|(relation, (changes, basis))| {
            changes.stretches(relation, name, head.size, basis.files.get(&key).copied())
        });
        Plan {
            key,
            path: below(space, &head.path),
            relation,
            judge: self.judge,
            stretches: known.unwrap_or_else(|| vec![Stretch { end: head.size, kept: false }]),
            compare: self.compares && relation.is_some(),
        }
    }

    /// Keeps a small file until enough of them are there to be read together.
    async fn gather(&mut self, plan: Plan, head: Head) -> Result<(), CaptureError> {
        let bytes: u64 = self.gathered.iter().map(|(_, head)| head.size).sum();
        if bytes + head.size > PIECE || self.gathered.len() == GATHERED_MAX {
            self.read_gathered().await?;
        }
        self.gathered.push((plan, head));
        Ok(())
    }

    /// Reads what was gathered. What is gone by now is left out: an empty file in its place could keep a server from starting.
    async fn read_gathered(&mut self) -> Result<(), CaptureError> {
        let gathered = std::mem::take(&mut self.gathered);
        let files: Vec<(String, u64)> =
            gathered.iter().map(|(plan, head)| (plan.path.clone(), head.size)).collect();
        if files.is_empty() {
            return Ok(());
        }
        for (bits, (plan, head)) in self.place.together(&files).await?.into_iter().zip(gathered) {
            match bits {
                Ok(Some(bits)) => self.hand_over(bits, plan, &head)?,
                Ok(None) => {}
                Err(reason) => self.problem(plan.key, &format!("cannot be read: {reason}"))?,
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, bits: Box<dyn Bits>, plan: Plan, head: &Head) -> Result<(), CaptureError> {
        self.place.check()?;
        let item = Item {
            key: plan.key.clone(),
            kind: EntryKind::File,
            size: head.size,
            fingerprint: [0; 16],
            hard_link: None,
        };
        let content = Reader::new(bits, plan, self.shared);
        let opened = Opened { entry: entry(EntryKind::File, head), content: Some(Box::new(content)) };
        (self.visit)(Found::Opened(item, Box::new(opened))).or_stop()
    }

    /// WAL of the backup, and histories of timelines, each with the mark that it needs no archiving.
    pub async fn wal(&mut self, start: Lsn, stop: Lsn, size: SegmentSize) -> Result<(), CaptureError> {
        let (first, last) = (size.number_at(start), size.number_at(Lsn::new(stop.get().saturating_sub(1))));
        let listing = self.list(None, &[WAL.to_owned()]).await?;
        for (name, listed) in &listing.names {
            let number = Segment::parse(name, size).ok().map(|segment| segment.number);
            if !number.map_or_else(|| name.ends_with(".history"), |number| (first..=last).contains(&number)) {
                continue;
            }
            let path = [WAL.to_owned(), name.clone()];
            let Look::Is(head) = self.place.look(listed, (None, &path), Fate::Taken)? else { continue };
            let refused = |error: io::Error| CaptureError::Wal { file: name.clone(), source: error };
            let Some((opening, head)) = self.place.open(None, head).map_err(refused)? else { continue };
            let done = [WAL.to_owned(), "archive_status".to_owned(), format!("{name}.done")];
            let mark = entry(EntryKind::File, &head);
            (self.visit)(own_file(keys::key(None, &done)?, mark, Vec::new())).or_stop()?;
            let plan = Plan {
                key: keys::key(None, &path)?,
                path: below(None, &path),
                relation: None,
                judge: None,
                stretches: vec![Stretch { end: head.size, kept: false }],
                compare: false,
            };
            let bits = self.place.bits(opening, &plan)?;
            self.hand_over(bits, plan, &head)?;
        }
        Ok(())
    }
}
