//! A captured snapshot as something that can be captured.

use std::io;
use std::ops::ControlFlow;

use bytes::{Buf, Bytes};
use keepwell_catalog::{Entry, EntryKind, Manifest, MapKey};

use crate::Error;
use crate::browse::{PieceOfFile, Pieces, Raw, Step, Tree, for_each_raw};
use crate::repository::{Repository, Snapshot};
use crate::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};

/// A snapshot as a [`Source`], so that copying into a repository with other keys is simply a backup.
///
/// The fingerprint of an item is a hash of its records in the tree: what an earlier copy of the same dataset has taken
/// is not read again. Holes stay holes and hard links stay links. What the capture had reported as a problem is reported
/// again. An item that cannot be read for damage is a problem of the new capture; where the store does not answer, or the
/// snapshot was forgotten meanwhile, there is none.
#[derive(Debug)]
pub struct SnapshotSource {
    tree: Tree,
    manifest: Manifest,
}

impl Repository {
    /// Opens a snapshot as a source. Costs and fails as [`Repository::tree`] does.
    pub async fn snapshot_source(&self, snapshot: &Snapshot) -> Result<SnapshotSource, Error> {
        let manifest = snapshot.manifest()?.clone();
        Ok(SnapshotSource { tree: self.tree(snapshot).await?, manifest })
    }
}

impl SnapshotSource {
    /// Whether the content of an item can be read to its end. Runs on an ordinary thread.
    pub(super) fn gives(&self, key: &MapKey) -> bool {
        let Ok(Some(entry)) = self.tree.head(key) else { return false };
        if !entry.kind.has_content() {
            return false;
        }
        let mut pieces = Pieces::new(&self.tree, key, &entry);
        loop {
            match pieces.next() {
                Ok(Some(_)) => {}
                ended => return ended.is_ok(),
            }
        }
    }
}

impl Source for SnapshotSource {
    fn kind(&self) -> &str {
        &self.manifest.source_kind
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.manifest.paths.clone()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    /// The problems of the capture come last: a manifest names the first thousand, and of those of the copy itself it has to
    /// be known which they are, so that they are tried again.
    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        if self.walk_items(visit)?.is_break() {
            return Ok(());
        }
        for problem in &self.manifest.problems {
            let Ok(key) = MapKey::from_bytes(problem.key.as_slice()) else { continue };
            if visit(Found::Problem { key, message: problem.message.clone() }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let head = self.tree.told(self.tree.head(&item.key));
        let Some(mut entry) = head.map_err(failed)? else { return Ok(None) };
        let content = entry.kind.has_content().then(|| {
            let pieces = Pieces::new(&self.tree, &item.key, &entry);
            Box::new(SnapshotContent { tree: self.tree.clone(), pieces, data: Bytes::new() })
                as Box<dyn Content>
        });
        entry.content.clear();
        (entry.size, entry.more_extents) = (0, 0);
        Ok(Some(Opened { entry, content }))
    }
}

impl SnapshotSource {
    fn walk_items(
        &self,
        visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SourceError> {
        let mut ended = ControlFlow::Continue(());
        let mut waiting: Option<Waiting> = None;
        let walked = for_each_raw(&self.tree.reader(), |raw| match raw {
            Raw::More { value, .. } => {
                if let Some(waiting) = &mut waiting {
                    waiting.hash(value);
                }
                Ok(Step::Next)
            }
            Raw::Entry { key, value } => {
                let next = Waiting::new(key, value)?;
                if let Some(done) = waiting.replace(next)
                    && visit(done.found()).is_break()
                {
                    (waiting, ended) = (None, ControlFlow::Break(()));
                    return Ok(Step::Stop);
                }
                Ok(Step::Next)
            }
        });
        self.tree.told(walked).map_err(failed)?;
        if let Some(last) = waiting {
            ended = visit(last.found());
        }
        Ok(ended)
    }
}

/// An item whose further records are still to come.
struct Waiting {
    key: MapKey,
    kind: EntryKind,
    size: u64,
    hard_link: Option<MapKey>,
    hasher: blake3::Hasher,
}

impl Waiting {
    fn new(key: &MapKey, value: &[u8]) -> Result<Self, Error> {
        let Entry { kind, size, hard_link, .. } = Entry::decode(value)?;
        let mut waiting = Self { key: key.clone(), kind, size, hard_link, hasher: blake3::Hasher::new() };
        waiting.hash(value);
        Ok(waiting)
    }

    /// Values are hashed with their length, so that no two sequences of records are hashed alike.
    fn hash(&mut self, value: &[u8]) {
        self.hasher.update(&(value.len() as u64).to_le_bytes());
        self.hasher.update(value);
    }

    fn found(self) -> Found {
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&self.hasher.finalize().as_bytes()[..16]);
        let Self { key, kind, size, hard_link, .. } = self;
        Found::Item(Item { key, kind, size, fingerprint, hard_link })
    }
}

/// The content of one file of a snapshot.
struct SnapshotContent {
    tree: Tree,
    pieces: Pieces,
    /// What is left of the piece at hand.
    data: Bytes,
}

impl Content for SnapshotContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        while self.data.is_empty() {
            let piece = self.tree.told(self.pieces.next());
            match piece.map_err(|error| io::Error::other(failed(error)))? {
                None => return Ok(Piece::End),
                Some(PieceOfFile::Hole(length)) => return Ok(Piece::Hole(length)),
                Some(PieceOfFile::Data(data)) => self.data = data,
            }
        }
        let n = self.data.len().min(buf.len());
        self.data.copy_to_slice(&mut buf[..n]);
        Ok(Piece::Data(n))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// What is damaged costs an item. Where the store does not answer, or the snapshot was forgotten meanwhile, others would be
/// lacking as well, and a copy would look as if they were damaged.
fn failed(error: Error) -> SourceError {
    let is_of_item = match &error {
        Error::Storage(error) => error.is_not_found(),
        Error::NoSuchSnapshot(_) | Error::Cancelled => false,
        _ => true,
    };
    match is_of_item {
        true => SourceError::Other(crate::error::one_line(&error)),
        false => SourceError::Failed(Box::new(error)),
    }
}
