//! The publishing side of a backup: its sessions, its parent, its manifest, its commit.

use keepwell_catalog::{CommitKind, ContentName, Manifest, MapKey, Problem, RecipeReader, dataset_tag};
use keepwell_crypto::SnapshotId;
use tokio::runtime::Handle;

use super::assemble::Assembled;
use super::recipes::{self, Basis, RecipesOut};
use super::{BackupOptions, BackupReport, begin_uploads};
use crate::Error;
use crate::cache::{CachedFile, CachedReader};
use crate::error::shown;
use crate::parallel;
use crate::planted::planted;
use crate::repository::Repository;
use crate::source::Source;
use crate::write::{Ending, Session, Uploads};

/// What a backup builds on.
#[derive(Debug, Clone)]
struct Parent {
    n: u64,
    snapshot: SnapshotId,
    state: Vec<ContentName>,
}

pub(super) struct Publisher {
    repository: Repository,
    handle: Handle,
    session: Option<Session>,
    parent: Option<Parent>,
    tag: [u8; 16],
    started: i64,
    source_kind: String,
    paths: Vec<Vec<u8>>,
    checkpoints: u64,
    verified_chunks: u64,
    /// The last checkpoint of this capture, which the next end makes unnecessary.
    superseded: Vec<u64>,
    pub options: BackupOptions,
    pub uploads: Uploads,
}

impl Publisher {
    /// Claims a session, then reads what it relies on, in that order.
    pub async fn begin(
        repository: &Repository,
        source: &dyn Source,
        options: BackupOptions,
    ) -> Result<Self, Error> {
        // Keyed by the domain: what is sealed to another one must not be reused.
        let tag = dataset_tag(&repository.domain_for(options.domain)?.id_key, &options.dataset);
        let started = options.capture_time.unwrap_or_else(|| repository.now());
        let early = if planted("read-before-claim") { Some(begin_uploads(repository).await) } else { None };
        let mut session = Session::claim(repository).await?;
        let uploads = match early {
            Some(early) => early,
            None => begin_uploads(repository).await,
        };
        let uploads = match uploads {
            Ok(uploads) => uploads,
            Err(error) => return Err(session.fail(error).await),
        };
        let parent = match find_parent(repository, &mut session, &tag).await {
            Ok(found) => found,
            Err(error) => return Err(session.fail(error).await),
        };
        Ok(Self {
            repository: repository.clone(),
            handle: Handle::current(),
            session: Some(session),
            parent,
            tag,
            started,
            source_kind: source.kind().to_owned(),
            paths: source.paths(),
            checkpoints: 0,
            verified_chunks: 0,
            superseded: Vec::new(),
            options,
            uploads,
        })
    }

    /// The recipes of the parent, from the cache or from `state/`; `None` means that everything is read.
    pub fn recipes_in(&self) -> Result<Option<(RecipeReader<CachedReader>, CachedFile)>, Error> {
        let Some(parent) = self.parent.as_ref().filter(|_| !self.options.reread) else { return Ok(None) };
        let cache = self.repository.cache();
        if recipes::read_basis(cache, &self.tag).is_none() && !parent.state.is_empty() {
            let writer = self.session().writer();
            let fetched =
                self.handle.block_on(recipes::download(&self.repository, writer, &self.tag, &parent.state));
            if let Err(error) = fetched {
                let reason = crate::error::one_line(&error);
                self.repository.monitor().note(&format!(
                    "every file is read: the state of the last backup is not at hand ({reason})"
                ));
                return Ok(None);
            }
        }
        let Some(file) = cache.open(&recipes::cache_name(&self.tag)) else { return Ok(None) };
        let reader = RecipeReader::new(file.reader()).ok();
        Ok(reader.map(|reader| (reader, file)))
    }

    /// Where the new recipes go; `old` are those of the parent.
    pub fn recipes_out(&self, old: Option<CachedFile>) -> RecipesOut {
        RecipesOut::new(self.repository.cache(), &self.tag, old)
    }

    /// Publishes what was captured so far as a root that prune respects, and goes on in a new session.
    pub fn checkpoint(&mut self, so_far: Assembled) -> Result<(), Error> {
        let handle = self.handle.clone();
        handle.block_on(async {
            self.uploads.flush().await?;
            self.prove(&so_far).await?;
            let manifest = self.uploads.put_manifest(&self.manifest(&so_far)).await?;
            // The next session begins before this one ends: as long as a capture is alive, one of its sessions is open.
            let next = Session::claim(&self.repository).await?;
            let session = self.session.replace(next).ok_or(Error::Cancelled)?;
            let n = session.n();
            let ending = self.ending(CommitKind::Checkpoint, manifest, &so_far, Vec::new());
            session.end(ending).await?;
            self.superseded = vec![n];
            self.checkpoints += 1;
            // From here on nothing known from before counts, but for what the checkpoint holds, if it still does.
            let writer = self.session().writer();
            let retired = self.repository.retired_as_far_as_readable().await?;
            if retired.contains(&(writer, n)) {
                return Err(Error::Fenced { writer: writer.to_string(), seq: n });
            }
            self.uploads.renew().await
        })
    }

    /// Writes the manifest and commits.
    pub fn finish(
        mut self,
        assembled: Assembled,
        recipes_out: RecipesOut,
        changed: bool,
    ) -> Result<BackupReport, Error> {
        let handle = self.handle.clone();
        let published = handle.block_on(self.publish(assembled, recipes_out, changed));
        published.map_err(|error| self.fail(error))
    }

    /// Ends the session without a result, and gives what is to be said of the failure. What it stored is kept for the next
    /// run.
    pub fn fail(&mut self, failure: Error) -> Error {
        let Some(session) = self.session.take() else { return failure };
        self.handle.block_on(async {
            self.uploads.salvage().await;
            session.fail(failure).await
        })
    }

    async fn publish(
        &mut self,
        assembled: Assembled,
        recipes_out: RecipesOut,
        changed: bool,
    ) -> Result<BackupReport, Error> {
        self.uploads.flush().await?;
        let stored = self.uploads.stored();
        let mut assembled = assembled;
        assembled.counts.new_stored_bytes = stored.pack_bytes;
        self.prove(&assembled).await?;
        let state = self.keep_recipes(&assembled, recipes_out, changed).await?;
        let (name, snapshot) = self.uploads.put_manifest(&self.manifest(&assembled)).await?;
        let ending = self.ending(CommitKind::Snapshot, (name, snapshot), &assembled, state);
        let session = self.session.take().ok_or(Error::Cancelled)?;
        let n = session.n();
        session.end(ending).await?;
        let basis = Basis { n, entries: assembled.root.entries };
        // It is committed, whatever becomes of the note about it.
        if let Err(error) = recipes::write_basis(self.repository.cache(), &self.tag, basis) {
            self.note_cache(&error);
        }
        Ok(BackupReport {
            snapshot,
            seq: n,
            parent: self.parent.as_ref().map(|p| p.snapshot),
            statistics: assembled.counts,
            problems: described(&assembled.problems),
            problem_count: assembled.problem_count,
            complete: assembled.complete,
            checkpoints: self.checkpoints,
            verified_chunks: self.verified_chunks,
        })
    }

    /// Proves what was stored in this session, if that is wanted. What is gone because the session was fenced meanwhile is
    /// not damaged.
    async fn prove(&mut self, assembled: &Assembled) -> Result<(), Error> {
        if !self.options.verify {
            return Ok(());
        }
        let created = self.uploads.stored().created;
        let proved = crate::check::prove_session(&self.repository, &assembled.root, &created).await;
        let (writer, n) = (self.session().writer(), self.session().n());
        match proved {
            Err(Error::Damaged { .. } | Error::ChunkLost { .. })
                if self.repository.read_end(writer, n).await.is_ok() =>
            {
                Err(Error::Fenced { writer: writer.to_string(), seq: n })
            }
            proved => proved.map(|chunks| self.verified_chunks += chunks),
        }
    }

    /// Puts the recipes into the cache, and into `state/` unless the parent's are the same; into neither where the cache
    /// cannot be written. Recipes are checked against the index whenever they are used, so it does no harm if the commit
    /// then fails.
    async fn keep_recipes(
        &self,
        assembled: &Assembled,
        recipes_out: RecipesOut,
        changed: bool,
    ) -> Result<Vec<ContentName>, Error> {
        let basis = recipes::read_basis(self.repository.cache(), &self.tag);
        let same = |parent: &&Parent| {
            !changed
                && !parent.state.is_empty()
                && basis == Some(Basis { n: parent.n, entries: assembled.root.entries })
        };
        if let Some(parent) = self.parent.as_ref().filter(same) {
            return Ok(parent.state.clone());
        }
        if let Err(error) = recipes_out.publish() {
            self.note_cache(&error);
            return Ok(Vec::new());
        }
        let writer = self.session().writer();
        recipes::upload(&self.repository, writer, &self.tag, &self.uploads).await
    }

    fn note_cache(&self, error: &Error) {
        let what = "the next backup may read every file: the local cache does not keep what this one found";
        self.repository.note_useless_cache(what, error);
    }

    fn manifest(&self, assembled: &Assembled) -> Manifest {
        let options = &self.options;
        let session = self.session();
        Manifest {
            repository: self.repository.id(),
            writer: session.writer(),
            seq: session.n(),
            dataset: options.dataset.clone(),
            host: options.host.clone(),
            paths: self.paths.clone(),
            tags: options.tags.clone(),
            capture_start: self.started,
            capture_end: options.capture_time.unwrap_or_else(|| self.repository.now()),
            time_zone: options.time_zone.clone(),
            group: self.repository.group(),
            domain: options.domain.unwrap_or(self.repository.domain().id),
            root: assembled.root.id,
            entries: assembled.root.entries,
            statistics: assembled.counts,
            problems: assembled
                .problems
                .iter()
                .map(|(key, message)| Problem { key: key.clone(), message: message.clone() })
                .collect(),
            problem_count: assembled.problem_count,
            source_kind: self.source_kind.clone(),
            parent: self.parent.as_ref().map(|p| p.snapshot),
            program: options.program.clone(),
            original: options.original,
            keep_until: options.keep_until,
            keep_forever: options.keep_forever,
            description: options.description.clone(),
            extra: options.extra.clone(),
            later: Vec::new(),
        }
    }

    fn ending(
        &self,
        kind: CommitKind,
        manifest: (ContentName, SnapshotId),
        assembled: &Assembled,
        state: Vec<ContentName>,
    ) -> Ending {
        Ending {
            kind,
            manifest: Some(manifest),
            complete: kind == CommitKind::Snapshot && assembled.complete,
            logical_bytes: assembled.counts.logical_bytes,
            capture: Some(self.started),
            state,
            dataset_tag: Some(self.tag),
            origin: None,
            supersedes: self.superseded.clone(),
            created: self.uploads.take_created(),
        }
    }

    fn session(&self) -> &Session {
        self.session.as_ref().expect("a session is open between begin and the end")
    }
}

/// The newest snapshot of the dataset by this writer. Checkpoints since then are left alone: their capture may be alive.
async fn find_parent(
    repository: &Repository,
    session: &mut Session,
    tag: &[u8; 16],
) -> Result<Option<Parent>, Error> {
    let known = recipes::read_basis(repository.cache(), tag).map(|b| b.n);
    let (mut last, mut at_once) = (None, 1);
    loop {
        let mut wanted = Vec::new();
        while wanted.len() < at_once
            && let Some(n) = session.end_before(last).await?
            && known.is_none_or(|known| n >= known)
        {
            last = Some(n);
            wanted.push(n);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        // Mostly the first one is it. A writer of many datasets has many others before it.
        at_once = (at_once * 4).min(64);
        let writer = session.writer();
        let reads = wanted.into_iter().map(|n| {
            let repository = repository.clone();
            async move {
                match repository.read_end(writer, n).await {
                    Ok(end) => Ok(Some((n, end.commit))),
                    Err(Error::Damaged { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        });
        for (n, commit) in parallel::all(reads).await?.into_iter().flatten() {
            if commit.dataset_tag == Some(*tag)
                && let (CommitKind::Snapshot, Some(snapshot)) = (commit.kind, commit.snapshot)
            {
                return Ok(Some(Parent { n, snapshot, state: commit.state }));
            }
        }
    }
}

fn described(problems: &[(Vec<u8>, String)]) -> Vec<(String, String)> {
    let path = |key: &[u8]| MapKey::from_bytes(key).map_or_else(|_| "?".to_owned(), |key| shown(&key));
    problems.iter().map(|(key, message)| (path(key), message.clone())).collect()
}
