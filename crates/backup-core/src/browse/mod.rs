//! Reading inside snapshots without restoring them: list, dump, archive, compare.
//!
//! All of it runs on a thread of its own, a bounded step ahead of the caller, who is handed what was found in the order
//! of the tree. A credential that cannot decrypt gets [`Error::NotAllowed`], and whoever does not find something because the
//! snapshot was forgotten meanwhile, or its writer revoked, [`Error::NoSuchSnapshot`].

mod archive;
mod content;
mod diff;
mod header;
mod links;
mod pipe;
mod random;
mod raw;

use std::ops::ControlFlow;
use std::sync::Arc;

use keepwell_catalog::{Entry, EntryKind, MapKey, MapReader};
use keepwell_crypto::ChunkId;
use tokio::runtime::Handle;

use self::pipe::pipe;
use crate::Error;
use crate::error::shown;
use crate::read::{Contents, Nodes};
use crate::repository::{Repository, Snapshot};

pub use archive::{ArchiveFormat, ArchiveReport};
pub use diff::{ChangeKind, Count, DiffSummary, TreeChange};
pub use random::{OpenFile, Stretch};

pub(crate) use content::{PieceOfFile, Pieces};
pub(crate) use links::FirstNames;
pub(crate) use raw::{Raw, Step, for_each_raw};

/// Entries that travel together from the thread that reads the tree to the caller …
const LIST_BATCH: usize = 256;
/// … and how many such batches it may be ahead.
const LIST_AHEAD: usize = 4;

/// The tree of one snapshot. Cheap to clone; clones share what was fetched.
#[derive(Debug, Clone)]
pub struct Tree(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Browser,
    root: ChunkId,
    snapshot: Snapshot,
}

/// Opens trees that share what was fetched, for whoever reads in many snapshots at once. Cheap to clone.
///
/// It and all its trees together take less than half of the repository's memory limit.
#[derive(Debug, Clone)]
pub struct Browser(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    repository: Repository,
    handle: Handle,
    nodes: Nodes,
    contents: Contents,
}

/// How far a listing goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only what lies directly in the directory. Costs a few tree nodes per child, however much is below it.
    Children,
    /// Everything below.
    All,
}

impl Repository {
    /// Opens the tree of a snapshot for reading.
    ///
    /// Costs a listing of the index, and what changed in it; where nothing of it is at hand, large parts of it are left
    /// where they are, and each of the first lookups there costs a request. The tree itself is read as it is used. Fails
    /// with [`Error::NotAllowed`] for a credential that cannot decrypt. Whatever is read in it later fails with
    /// [`Error::NoSuchSnapshot`] where it is gone because the snapshot was forgotten meanwhile, or its writer revoked.
    pub async fn tree(&self, snapshot: &Snapshot) -> Result<Tree, Error> {
        self.browser().tree(snapshot).await
    }

    /// Begins to read in snapshots. Reads nothing yet. Must be called within a tokio runtime, which must outlive it.
    pub fn browser(&self) -> Browser {
        let (nodes, contents) = (Nodes::new(self), Contents::new(self));
        Browser(Arc::new(Shared { repository: self.clone(), handle: Handle::current(), nodes, contents }))
    }
}

impl Browser {
    /// As [`Repository::tree`].
    pub async fn tree(&self, snapshot: &Snapshot) -> Result<Tree, Error> {
        let repository = &self.0.repository;
        let manifest = snapshot.manifest()?;
        repository.data_identities(manifest.domain)?;
        repository.unless_cancelled(repository.refresh_index_as_needed()).await?;
        Ok(Tree(Arc::new(Inner { shared: self.clone(), root: manifest.root, snapshot: snapshot.clone() })))
    }
}

impl Tree {
    /// The entry at a key, or `None`.
    ///
    /// Of a file with more than 32 extents only the first stand in [`Entry::content`]; see
    /// [`Entry::more_extents`](keepwell_catalog::Entry). Costs one tree node per level at most.
    pub async fn entry(&self, key: &MapKey) -> Result<Option<Entry>, Error> {
        let key = key.clone();
        self.run(move |tree| tree.head(&key)).await
    }

    /// The entry at a key and, if that is a further name of a file, the entry that carries it, with its key.
    ///
    /// Fails with [`Error::NoSuchPath`] where there is nothing.
    pub async fn resolve(&self, key: &MapKey) -> Result<(MapKey, Entry), Error> {
        let key = key.clone();
        self.run(move |tree| tree.carrier(&key)).await
    }

    /// Visits what is below a directory, in the order of the tree: a directory before its content, names by their bytes.
    ///
    /// The entry at `key` itself is not visited. Entries are as in [`Tree::entry`]. Memory stays flat however large the
    /// tree. Fails with [`Error::NoSuchPath`] when there is nothing at the key and nothing below it.
    pub async fn list(
        &self,
        key: &MapKey,
        depth: Depth,
        mut visit: impl FnMut(&MapKey, &Entry) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let (tree, key) = (self.clone(), key.clone());
        let produce = move |send: &mut dyn FnMut(Vec<(MapKey, Entry)>) -> ControlFlow<()>| {
            tree.send_entries(&key, depth, send)
        };
        pipe(self, LIST_AHEAD, produce, |batch| {
            for (key, entry) in &batch {
                if visit(key, entry).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
        .await
    }

    fn send_entries(
        &self,
        key: &MapKey,
        depth: Depth,
        send: &mut dyn FnMut(Vec<(MapKey, Entry)>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let reader = self.reader();
        let entries = match depth {
            Depth::Children => reader.children(key)?,
            Depth::All => reader.heads_below(key)?,
        };
        let mut batch = Vec::new();
        let mut found = *key == MapKey::root();
        for item in entries {
            let item = item?;
            found = true;
            if item.0 == *key {
                continue;
            }
            batch.push(item);
            if batch.len() >= LIST_BATCH && send(std::mem::take(&mut batch)).is_break() {
                return Ok(());
            }
        }
        if !found && self.head(key)?.is_none() {
            return Err(self.no_such_path(key));
        }
        let _ = send(batch);
        Ok(())
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let tree = self.clone();
        let task = tokio::task::spawn_blocking(move || work(&tree));
        match task.await.map_err(|e| Error::Task(e.to_string()))? {
            Err(failure) => Err(self.explained(failure).await),
            done => done,
        }
    }

    /// What is to be said of a failure: see [`Repository::explained`].
    async fn explained(&self, failure: Error) -> Error {
        self.repository().explained(&self.0.snapshot, failure).await
    }
}

/// For ordinary threads, which may block.
impl Tree {
    /// The map beneath.
    pub(crate) fn reader(&self) -> MapReader<'_> {
        MapReader::new(&self.0.shared.0.nodes, self.0.root)
    }

    pub(crate) fn repository(&self) -> &Repository {
        &self.0.shared.0.repository
    }

    pub(crate) fn contents(&self) -> &Contents {
        &self.0.shared.0.contents
    }

    /// The entry at a key, of a long file only its head.
    pub(crate) fn head(&self, key: &MapKey) -> Result<Option<Entry>, Error> {
        head(&self.reader(), key)
    }

    /// The entry that carries the content of what is at a key.
    pub(crate) fn carrier(&self, key: &MapKey) -> Result<(MapKey, Entry), Error> {
        let entry = self.head(key)?.ok_or_else(|| self.no_such_path(key))?;
        carrier(&self.reader(), key, entry)
    }

    /// What was read, or what is to be said of the failure.
    pub(crate) fn told<T>(&self, read: Result<T, Error>) -> Result<T, Error> {
        read.map_err(|failure| self.0.shared.0.handle.block_on(self.explained(failure)))
    }

    fn no_such_path(&self, key: &MapKey) -> Error {
        Error::NoSuchPath { path: shown(key), snapshot: self.0.snapshot.short() }
    }
}

fn head(reader: &MapReader<'_>, key: &MapKey) -> Result<Option<Entry>, Error> {
    let value = reader.get(key.as_bytes())?;
    Ok(value.map(|value| Entry::decode(&value)).transpose()?)
}

/// Follows a hard link to the entry that carries the inode; anything else is its own carrier.
fn carrier(reader: &MapReader<'_>, key: &MapKey, entry: Entry) -> Result<(MapKey, Entry), Error> {
    let Some(first) = &entry.hard_link else { return Ok((key.clone(), entry)) };
    match head(reader, first)? {
        Some(carrier) if carrier.kind != EntryKind::HardLink => Ok((first.clone(), carrier)),
        _ => Err(Error::damaged(
            shown(key),
            format_args!("`{}`, its first name, is not in the tree", shown(first)),
        )),
    }
}

#[cfg(test)]
mod tests;
