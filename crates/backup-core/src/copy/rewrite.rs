//! Snapshots made anew in their own repository: without some of their paths, or under other labels.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use keepwell_catalog::{
    Entry, EntryKind, Extent, Manifest, MapBuilder, MapKey, PackClass, Problem, Root, Statistics,
    dataset_tag, push_entry, record_extents, snapshot_id,
};
use keepwell_crypto::{ChunkId, ChunkKind, DomainId};

use crate::Error;
use crate::backup::{Novelty, StoredNodes, begin_uploads, count_kind};
use crate::browse::{FirstNames, Raw, Step, Tree, for_each_raw};
use crate::env::Timestamp;
use crate::error::shown;
use crate::repository::{Repository, Snapshot, SnapshotState, read_own_ends};
use crate::write::{Ending, PackSettings, Packer, Session, Uploads};

/// Says what a rewriting leaves out. Asked for every key whose directory stays; what is below a directory that goes is
/// gone with it. May be asked about the same key again and must answer the same.
pub type Exclude = Arc<dyn Fn(&MapKey, EntryKind) -> bool + Send + Sync>;

/// What a rewritten snapshot is like. Begin with [`RewriteOptions::of`] and change what should differ.
#[derive(Clone)]
pub struct RewriteOptions {
    /// What to leave out; `None` keeps the whole tree.
    pub exclude: Option<Exclude>,
    /// Labels.
    pub tags: Vec<String>,
    /// Free text.
    pub description: String,
    /// Not to be forgotten before this time.
    pub keep_until: Option<Timestamp>,
    /// Never to be forgotten by a retention rule.
    pub keep_forever: bool,
    /// Name and version of the program, for the manifest.
    pub program: String,
}

impl RewriteOptions {
    /// Everything as the snapshot has it. Fails for a snapshot whose manifest cannot be read.
    pub fn of(snapshot: &Snapshot) -> Result<Self, Error> {
        let manifest = snapshot.manifest()?;
        Ok(Self {
            exclude: None,
            tags: manifest.tags.clone(),
            description: manifest.description.clone(),
            keep_until: manifest.keep_until,
            keep_forever: manifest.keep_forever,
            program: manifest.program.clone(),
        })
    }
}

impl fmt::Debug for RewriteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RewriteOptions")
            .field("exclude", &self.exclude.is_some())
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

/// What a rewriting did.
#[derive(Debug, Clone)]
pub struct RewriteReport {
    /// The new snapshot; the old one stands until it is retired.
    pub snapshot: Snapshot,
    /// Records of the tree that are gone.
    pub records_removed: u64,
    /// Chunks that were stored: new tree nodes, and what lay only in packs that a prune is about to delete.
    pub stored_chunks: u64,
}

impl Repository {
    /// Makes a snapshot anew without some of its paths or under other labels, and commits it beside the old one, with
    /// `original` set to it. Whoever wants the old one gone retires it afterwards.
    ///
    /// Reads no content: chunks keep their ids, and tree nodes that do not change are not stored again. Still every node
    /// of the tree is read and every chunk under it looked up, even if only a label changes, because a prune may run at
    /// the same time and nothing but an entry in a pack that no plan condemns may be relied on (docs/pruning.md). What
    /// lies only in condemned packs is read and stored anew. Needs the right to write and to read. A crash or failure
    /// leaves everything as it was; a chunk that is lost refuses the rewriting. Where an earlier rewriting, after which the
    /// old snapshot was not retired, came to the same, its result is given and nothing is made.
    pub async fn rewrite(
        &self,
        snapshot: &Snapshot,
        options: RewriteOptions,
    ) -> Result<RewriteReport, Error> {
        let manifest = snapshot.manifest()?;
        let tree = self.tree(snapshot).await?;
        self.monitor().phase("rewrite");
        self.monitor().total(manifest.entries, 0);
        let session = Session::claim(self).await?;
        let rewriting = self.rewrite_in(&session, snapshot, manifest, tree, options);
        let (commit, rewritten, stored_chunks) = match self.unless_cancelled(rewriting).await {
            Ok(Rewriting::New(ending, rewritten, stored_chunks)) => {
                (session.end(*ending).await?, rewritten, stored_chunks)
            }
            Ok(Rewriting::Old(twin)) => {
                session.abandon().await;
                let records_removed = manifest.entries.saturating_sub(twin.manifest()?.entries);
                return Ok(RewriteReport { snapshot: *twin, records_removed, stored_chunks: 0 });
            }
            Err(error) => {
                let failure = session.fail(error).await;
                return Err(self.explained(snapshot, failure).await);
            }
        };
        let id = snapshot_id(&rewritten.encode());
        let records_removed = manifest.entries.saturating_sub(rewritten.entries);
        let state = SnapshotState::Readable(rewritten);
        let first = self.first_commit(&commit);
        let snapshot = Snapshot { id, commit, state, stored: None, first };
        Ok(RewriteReport { snapshot, records_removed, stored_chunks })
    }

    /// Everything between the claim of a session and its end.
    async fn rewrite_in(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        manifest: &Manifest,
        tree: Tree,
        options: RewriteOptions,
    ) -> Result<Rewriting, Error> {
        let uploads = begin_uploads(self).await?;
        let rebuilt = self.rebuild(&uploads, tree, manifest, options.exclude.clone()).await?;
        uploads.flush().await?;
        let stored_chunks = uploads.stored().chunks;
        let is_newest = self.is_newest(session, snapshot, manifest).await?;
        let mut ending = Ending::again(&snapshot.commit, None, self.origin_for(snapshot).await?);
        let rewritten = rebuilt.manifest(self, session, snapshot, manifest, options);
        if let Some(twin) = self.twin_of(&rewritten).await? {
            return Ok(Rewriting::Old(Box::new(twin)));
        }
        ending.manifest = Some(uploads.put_manifest(&rewritten).await?);
        ending.logical_bytes = rewritten.statistics.logical_bytes;
        ending.created = uploads.take_created();
        if is_newest {
            ending.dataset_tag = snapshot.commit.dataset_tag;
            ending.state.clone_from(&snapshot.commit.state);
        }
        Ok(Rewriting::New(Box::new(ending), Box::new(rewritten), stored_chunks))
    }

    /// A listed snapshot that is this one but for who made it, and when.
    async fn twin_of(&self, rewritten: &Manifest) -> Result<Option<Snapshot>, Error> {
        let key = |m: &Manifest| {
            let kept = (m.keep_until, m.keep_forever);
            (m.original, m.root, m.tags.clone(), m.description.clone(), kept)
        };
        let mut listed = self.snapshots().await?.into_iter();
        Ok(listed.find(|s| s.manifest().is_ok_and(|manifest| key(manifest) == key(rewritten))))
    }

    /// What a commit that takes the place of a snapshot's has as its origin, so that it keeps its place among the others.
    pub(crate) async fn origin_for(&self, snapshot: &Snapshot) -> Result<Vec<u8>, Error> {
        match &snapshot.commit.origin {
            Some(origin) => Ok(origin.clone()),
            None => self.commit_bytes(snapshot).await,
        }
    }

    /// Whether this writer's next backup of the dataset would build on the snapshot. Only then may a rewriting take its
    /// place; otherwise the next backup would start from older state.
    async fn is_newest(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        manifest: &Manifest,
    ) -> Result<bool, Error> {
        let (writer, n) = snapshot.place();
        let tag = dataset_tag(&self.domain_for(Some(manifest.domain))?.id_key, &manifest.dataset);
        if writer != session.writer() || snapshot.commit.dataset_tag != Some(tag) {
            return Ok(false);
        }
        let mut newer = read_own_ends(self, writer).await?;
        newer.retain(|other| *other > n);
        for other in newer {
            let end = self.read_end(writer, other).await?;
            if end.commit.dataset_tag == Some(tag) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn rebuild(
        &self,
        uploads: &Uploads,
        tree: Tree,
        manifest: &Manifest,
        exclude: Option<Exclude>,
    ) -> Result<Rebuilt, Error> {
        let (repository, uploads, domain) = (self.clone(), uploads.clone(), manifest.domain);
        let problems = manifest.problems.clone();
        let task = tokio::task::spawn_blocking(move || {
            let filter = Filter { tree: &tree, exclude };
            let mut rebuild = Rebuild::new(&repository, &uploads, &filter, domain)?;
            for_each_raw(&tree.reader(), |raw| rebuild.take(raw))?;
            rebuild.finish(problems)
        });
        task.await.map_err(|e| Error::Task(e.to_string()))?
    }
}

/// What a rewriting came to.
enum Rewriting {
    /// A snapshot that is to be committed, and how many chunks were stored for it.
    New(Box<Ending>, Box<Manifest>, u64),
    /// One that there is already.
    Old(Box<Snapshot>),
}

/// Answers what goes.
struct Filter<'t> {
    tree: &'t Tree,
    exclude: Option<Exclude>,
}

impl Filter<'_> {
    fn drops(&self, key: &MapKey, kind: EntryKind) -> bool {
        self.exclude.as_ref().is_some_and(|exclude| exclude(key, kind))
    }

    /// Whether a key goes, by itself or with a directory above it.
    fn drops_path(&self, key: &MapKey, kind: EntryKind) -> bool {
        let mut above = key.parent();
        while let Some(directory) = above.filter(|directory| *directory != MapKey::root()) {
            if self.drops(&directory, EntryKind::Directory) {
                return true;
            }
            above = directory.parent();
        }
        self.drops(key, kind)
    }
}

/// A tree being built from another one.
struct Rebuild<'r> {
    repository: &'r Repository,
    uploads: &'r Uploads,
    filter: &'r Filter<'r>,
    builder: MapBuilder,
    nodes: StoredNodes<'r>,
    /// For content that lies only in condemned packs.
    content: BTreeMap<DomainId, Packer<'r>>,
    first_names: FirstNames,
    counts: Statistics,
    /// Whether the records that follow belong to an entry whose head was written by other means.
    skip_records: bool,
}

/// What came out.
struct Rebuilt {
    root: Root,
    counts: Statistics,
    problems: Vec<Problem>,
}

impl<'r> Rebuild<'r> {
    fn new(
        repository: &'r Repository,
        uploads: &'r Uploads,
        filter: &'r Filter<'r>,
        domain: DomainId,
    ) -> Result<Self, Error> {
        let id_key = repository.id_key(domain)?;
        let packer = Packer::new(uploads, PackSettings::for_moved(repository, PackClass::Meta, domain)?)?;
        Ok(Self {
            repository,
            uploads,
            filter,
            builder: MapBuilder::new(id_key.boundary()),
            nodes: StoredNodes::new(packer, uploads.known(), id_key),
            content: BTreeMap::new(),
            first_names: FirstNames::default(),
            counts: Statistics::default(),
            skip_records: false,
        })
    }

    fn take(&mut self, raw: Raw<'_>) -> Result<Step, Error> {
        let (raw_key, value) = match raw {
            Raw::More { .. } if self.skip_records => return Ok(Step::Next),
            Raw::More { key, value } => (key, value),
            Raw::Entry { key, value } => {
                let entry = Entry::decode(value)?;
                self.skip_records = false;
                self.repository.monitor().advance(1, 0);
                if self.filter.drops(key, entry.kind) {
                    return Ok(Step::SkipBelow);
                }
                if let Some(first) = &entry.hard_link
                    && self.filter.drops_path(first, EntryKind::File)
                {
                    self.take_orphan(key, first.clone(), entry)?;
                    return Ok(Step::Next);
                }
                count_kind(&mut self.counts, &entry, Novelty::Unchanged);
                (key.as_bytes(), value)
            }
        };
        for extent in record_extents(raw_key, value)? {
            self.resolve(&extent)?;
        }
        Ok(self.builder.push(raw_key, value, &mut self.nodes).map(|()| Step::Next)?)
    }

    /// A further name whose first name goes: the first of these carries the file, the others link to it.
    fn take_orphan(&mut self, key: &MapKey, first: MapKey, mut entry: Entry) -> Result<(), Error> {
        match self.first_names.stand_in(&first, key) {
            Some(carrier) => entry.hard_link = Some(carrier),
            None => {
                let carrier = self.filter.tree.reader().entry(&first)?;
                entry =
                    carrier.ok_or_else(|| Error::damaged(shown(key), "its first name is not in the tree"))?;
            }
        }
        count_kind(&mut self.counts, &entry, Novelty::Unchanged);
        for extent in &entry.content {
            self.resolve(extent)?;
        }
        self.skip_records = true;
        Ok(push_entry(&mut self.builder, key, &entry, &mut self.nodes)?)
    }

    /// Sees to it that a chunk has a location that may be relied on.
    fn resolve(&mut self, extent: &Extent) -> Result<(), Error> {
        let Some(id) = extent.chunk() else { return Ok(()) };
        if !self.uploads.known().claim(id)? {
            return Ok(());
        }
        let chunk = self.filter.tree.contents().chunk(id)?;
        let domain = self.domain_of(id, &chunk)?;
        if !self.content.contains_key(&domain) {
            let settings = PackSettings::for_moved(self.repository, PackClass::Data, domain)?;
            self.content.insert(domain, Packer::new(self.uploads, settings)?);
        }
        match self.content.get_mut(&domain) {
            Some(packer) => packer.add(*id, &chunk),
            None => Ok(()),
        }
    }

    /// A snapshot may use chunks of several domains if its dataset moved from one to another. The one whose key gives the
    /// chunk its id, whatever the index says of the packs that hold it.
    fn domain_of(&self, id: &ChunkId, chunk: &[u8]) -> Result<DomainId, Error> {
        let mut domains = self.repository.access().domains();
        let found = domains.find(|keys| keys.id_key.chunk_id(ChunkKind::Content, chunk) == *id);
        found.map(|keys| keys.id).ok_or_else(|| Error::damaged(id, "no key at hand gives it its name"))
    }

    fn finish(mut self, mut problems: Vec<Problem>) -> Result<Rebuilt, Error> {
        let root = self.builder.finish(&mut self.nodes)?;
        self.nodes.packer.finish()?;
        self.content.values_mut().try_for_each(Packer::finish)?;
        problems.retain(|problem| match MapKey::from_bytes(problem.key.as_slice()) {
            Ok(key) => !self.filter.drops_path(&key, EntryKind::File),
            Err(_) => true,
        });
        Ok(Rebuilt { root, counts: self.counts, problems })
    }
}

impl Rebuilt {
    fn manifest(
        self,
        repository: &Repository,
        session: &Session,
        snapshot: &Snapshot,
        manifest: &Manifest,
        options: RewriteOptions,
    ) -> Manifest {
        let dropped = (manifest.problems.len() - self.problems.len()) as u64;
        Manifest {
            repository: repository.id(),
            writer: session.writer(),
            seq: session.n(),
            tags: options.tags,
            description: options.description,
            keep_until: options.keep_until,
            keep_forever: options.keep_forever,
            program: options.program,
            root: self.root.id,
            entries: self.root.entries,
            statistics: Statistics {
                files: self.counts.files,
                directories: self.counts.directories,
                others: self.counts.others,
                logical_bytes: self.counts.logical_bytes,
                ..manifest.statistics
            },
            problem_count: manifest.problem_count.saturating_sub(dropped),
            problems: self.problems,
            original: Some(snapshot.id),
            ..manifest.clone()
        }
    }
}
