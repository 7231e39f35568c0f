//! What changed between two snapshots.

use std::collections::HashMap;
use std::ops::ControlFlow;

use keepwell_catalog::{Change, Entry, EntryKind, Extent, MapKey, MapReader, diff, record_extents};
use keepwell_crypto::ChunkId;

use super::pipe::pipe;
use super::{Tree, carrier, head};
use crate::Error;
use crate::repository::{Repository, Snapshot};

const AHEAD: usize = 256;

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// Only the later snapshot has it.
    Added,
    /// Only the earlier snapshot has it.
    Removed,
    /// It is something else: a file where a directory was.
    Type,
    /// The bytes of a file, where a symlink leads, the number of a device.
    Content,
    /// Only modes, owners, times, attributes, or which names a file has.
    Metadata,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeChange {
    /// Where.
    pub key: MapKey,
    /// How.
    pub kind: ChangeKind,
    /// The entry in the earlier snapshot; of a long file its head (see [`Tree::entry`]).
    pub before: Option<Entry>,
    /// The entry in the later snapshot, likewise.
    pub after: Option<Entry>,
    /// Bytes of content that it has now and had not. Counted by chunks, holes left out.
    pub bytes_added: u64,
    /// Bytes of content that it had and has no more.
    pub bytes_removed: u64,
}

/// Things by what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Files, objects, and further names of files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks, devices, FIFOs, sockets.
    pub others: u64,
}

impl Count {
    fn add(&mut self, kind: EntryKind) {
        match kind {
            EntryKind::File | EntryKind::Object | EntryKind::HardLink => self.files += 1,
            EntryKind::Directory => self.directories += 1,
            _ => self.others += 1,
        }
    }
}

/// The sums of all changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffSummary {
    /// Only in the later snapshot.
    pub added: Count,
    /// Only in the earlier.
    pub removed: Count,
    /// Something else now, counted as what they are in the later.
    pub retyped: Count,
    /// With other content.
    pub changed: Count,
    /// With other metadata only.
    pub touched: Count,
    /// Sum over all changes.
    pub bytes_added: u64,
    /// Sum over all changes.
    pub bytes_removed: u64,
}

impl DiffSummary {
    fn add(&mut self, change: &TreeChange) {
        let counts = match change.kind {
            ChangeKind::Added => &mut self.added,
            ChangeKind::Removed => &mut self.removed,
            ChangeKind::Type => &mut self.retyped,
            ChangeKind::Content => &mut self.changed,
            ChangeKind::Metadata => &mut self.touched,
        };
        if let Some(entry) = change.after.as_ref().or(change.before.as_ref()) {
            counts.add(entry.kind);
        }
        self.bytes_added += change.bytes_added;
        self.bytes_removed += change.bytes_removed;
    }
}

impl Repository {
    /// Compares two snapshots and visits what differs, in the order of the tree; gives the sums of what was visited.
    ///
    /// Subtrees that both share are not read, so the cost follows the changes. Holds the extents of one changed file at
    /// a time. Snapshots of different domains share no ids: everything with content then counts as changed. Fails with
    /// [`Error::NotAllowed`] for a credential that cannot decrypt.
    pub async fn diff(
        &self,
        before: &Snapshot,
        after: &Snapshot,
        mut visit: impl FnMut(&TreeChange) -> ControlFlow<()>,
    ) -> Result<DiffSummary, Error> {
        let (before, after) = (self.tree(before).await?, self.tree(after).await?);
        let mut summary = DiffSummary::default();
        let trees = (before.clone(), after.clone());
        let produce =
            move |send: &mut dyn FnMut(TreeChange) -> ControlFlow<()>| compare(&trees.0, &trees.1, send);
        let compared = pipe(&after, AHEAD, produce, |change| {
            summary.add(&change);
            Ok(visit(&change))
        })
        .await;
        match compared {
            Err(failure) => Err(before.explained(failure).await),
            Ok(()) => Ok(summary),
        }
    }
}

/// Groups the records that differ by entry.
fn compare(
    before: &Tree,
    after: &Tree,
    send: &mut dyn FnMut(TreeChange) -> ControlFlow<()>,
) -> Result<(), Error> {
    let readers = (before.reader(), after.reader());
    let mut group: Option<Group> = None;
    for change in diff(&readers.0, &readers.1)? {
        let change = change?;
        let key = change.entry_key()?;
        match &mut group {
            Some(group) if group.key == key => group.take(&change)?,
            _ => {
                let mut next = Group::new(key);
                next.take(&change)?;
                if let Some(done) = group.replace(next)
                    && send(done.finish(readers)?).is_break()
                {
                    return Ok(());
                }
            }
        }
    }
    if let Some(last) = group {
        let _ = send(last.finish(readers)?);
    }
    Ok(())
}

/// The records of one entry that differ.
struct Group {
    key: MapKey,
    /// Both sides of the entry's own record, if that differs.
    heads: Option<(Option<Entry>, Option<Entry>)>,
    /// Whether records with further extents differ.
    extents: bool,
    /// Bytes per chunk after less those before.
    balance: HashMap<ChunkId, i64>,
}

impl Group {
    fn new(key: MapKey) -> Self {
        Self { key, heads: None, extents: false, balance: HashMap::new() }
    }

    fn take(&mut self, change: &Change) -> Result<(), Error> {
        for (value, sign) in [(&change.before, -1), (&change.after, 1)] {
            let Some(value) = value else { continue };
            for extent in record_extents(&change.key, value)? {
                if let Extent::Chunk { id, length, .. } = extent {
                    *self.balance.entry(id).or_default() += sign * i64::from(length);
                }
            }
        }
        if change.is_sub_record() {
            self.extents = true;
            return Ok(());
        }
        let decode = |value: &Option<Vec<u8>>| value.as_deref().map(Entry::decode).transpose();
        self.heads = Some((decode(&change.before)?, decode(&change.after)?));
        Ok(())
    }

    fn finish(self, readers: (MapReader<'_>, MapReader<'_>)) -> Result<TreeChange, Error> {
        let (before, after) = match self.heads {
            Some(heads) => heads,
            None => (head(&readers.0, &self.key)?, head(&readers.1, &self.key)?),
        };
        let kind = match (&before, &after) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            (Some(before), Some(after)) => {
                let linked = before.hard_link.is_some() || after.hard_link.is_some();
                if linked {
                    judge_links(readers, &self.key, before, after)?
                } else {
                    judge(before, after, self.extents)
                }
            }
        };
        let sum = |sign: i64| self.balance.values().map(|n| (sign * n).max(0).unsigned_abs()).sum();
        Ok(TreeChange { key: self.key, kind, before, after, bytes_added: sum(1), bytes_removed: sum(-1) })
    }
}

fn judge(before: &Entry, after: &Entry, extents_differ: bool) -> ChangeKind {
    let same = before.size == after.size
        && before.content == after.content
        && before.link_target == after.link_target
        && before.device == after.device;
    if before.kind != after.kind {
        ChangeKind::Type
    } else if extents_differ || !same {
        ChangeKind::Content
    } else {
        ChangeKind::Metadata
    }
}

/// Where a name of a file is a further one, the files behind the names are compared.
fn judge_links(
    readers: (MapReader<'_>, MapReader<'_>),
    key: &MapKey,
    before: &Entry,
    after: &Entry,
) -> Result<ChangeKind, Error> {
    let (before_key, before) = carrier(&readers.0, key, before.clone())?;
    let (after_key, after) = carrier(&readers.1, key, after.clone())?;
    let judged = judge(&before, &after, before.more_extents != after.more_extents);
    if judged != ChangeKind::Metadata || before.more_extents == 0 {
        return Ok(judged);
    }
    let mut theirs = readers.1.extents(&after_key, &after)?;
    for extent in readers.0.extents(&before_key, &before)? {
        if theirs.next().transpose()? != Some(extent?) {
            return Ok(ChangeKind::Content);
        }
    }
    Ok(ChangeKind::Metadata)
}
