//! Commits, checkpoints and fences: how a session ends (format §11).

use keepwell_crypto::{Digest, GroupId, MemberId, SnapshotId, StoreId};

use super::codec::{MapWriter, Reader, put_member_uint, read_map, required};
use crate::cbor::{put_array, put_bytes, put_text, put_uint};
use crate::error::CatalogError;
use crate::names::ContentName;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommitKind {
    /// With a snapshot.
    Snapshot,
    /// With a partial snapshot that only keeps its data alive; never shown or counted.
    Checkpoint,
    /// With nothing, by the writer itself or by a keeper.
    Fence,
    /// With index segments but no snapshot, as a merge does.
    IndexOnly,
}

impl CommitKind {
    fn code(self) -> u64 {
        match self {
            CommitKind::Snapshot => 0,
            CommitKind::Checkpoint => 1,
            CommitKind::Fence => 2,
            CommitKind::IndexOnly => 3,
        }
    }

    fn from_code(code: u64) -> Result<Self, CatalogError> {
        match code {
            0 => Ok(CommitKind::Snapshot),
            1 => Ok(CommitKind::Checkpoint),
            2 => Ok(CommitKind::Fence),
            3 => Ok(CommitKind::IndexOnly),
            kind => Err(CatalogError::UnknownKind { what: "commit kind", kind }),
        }
    }

    /// Whether such an end names a manifest, whose data must be kept.
    pub fn has_manifest(self) -> bool {
        matches!(self, CommitKind::Snapshot | CommitKind::Checkpoint)
    }
}

/// Payload of the record that ends session `n` of a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Store in which the session worked.
    pub store: StoreId,
    /// Whose session.
    pub writer: MemberId,
    /// Which session.
    pub n: u64,
    /// How it ended.
    pub kind: CommitKind,
    /// When, by the clock of whoever signed; nanoseconds since 1970.
    pub time: i64,
    /// This writer's ends since its last own commit, with the SHA-256 of their stored bytes.
    pub previous: Vec<(u64, Digest)>,
    /// The newest commit seen of every other writer.
    pub seen: Vec<(MemberId, u64)>,
    /// The manifest; present if and only if the kind has one.
    pub manifest: Option<ContentName>,
    /// The snapshot that the manifest describes; present if and only if the kind has one.
    pub snapshot: Option<SnapshotId>,
    /// SHA-256 of the stored bytes of the session's list.
    pub list: Option<Digest>,
    /// Group whose index the session wrote to.
    pub group: Option<GroupId>,
    /// The writer states that the capture is whole.
    pub complete: bool,
    /// Bytes of content of the snapshot, holes included.
    pub logical_bytes: u64,
    /// End of the capture by the writer's clock, in nanoseconds since 1970.
    pub capture: Option<i64>,
    /// Stored envelope of the commit in the store that the snapshot was copied from.
    pub origin: Option<Vec<u8>>,
    /// Recipes in `state/<writer>/`.
    pub state: Vec<ContentName>,
    /// Tells this writer's datasets apart without naming them: see [`dataset_tag`].
    pub dataset_tag: Option<[u8; 16]>,
    /// Numbers of this writer's checkpoints that this end makes unnecessary: they are no roots any more.
    pub supersedes: Vec<u64>,
}

/// The tag of a dataset: the first 16 bytes of its name's id, as if `dataset ‖ 00 ‖ name` were a chunk of type 0.
///
/// Lets a writer find its last commit of a dataset although it cannot read its own manifests.
pub fn dataset_tag(key: &keepwell_crypto::IdKey, dataset: &str) -> [u8; 16] {
    let name = [b"dataset\0", dataset.as_bytes()].concat();
    let id = key.chunk_id(keepwell_crypto::ChunkKind::Content, &name);
    let mut tag = [0; 16];
    tag.copy_from_slice(&id.as_bytes()[..16]);
    tag
}

impl Commit {
    /// Kind of the signed record.
    pub const KIND: &str = "commit";
    const WHAT: &str = "commit";

    /// An end with nothing: that of a session that failed or was given up.
    pub fn fence(store: StoreId, writer: MemberId, n: u64, time: i64) -> Self {
        Commit {
            store,
            writer,
            n,
            kind: CommitKind::Fence,
            time,
            previous: Vec::new(),
            seen: Vec::new(),
            manifest: None,
            snapshot: None,
            list: None,
            group: None,
            complete: false,
            logical_bytes: 0,
            capture: None,
            origin: None,
            state: Vec::new(),
            dataset_tag: None,
            supersedes: Vec::new(),
        }
    }

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.bytes(1, self.writer.as_bytes());
        map.uint(2, self.n);
        map.uint(3, self.kind.code());
        map.int(4, self.time);
        map.array(5, &self.previous, |out, (n, digest)| {
            put_array(out, 2);
            put_uint(out, *n);
            put_bytes(out, digest.as_bytes());
        });
        map.array(6, &self.seen, put_member_uint);
        if let Some(manifest) = &self.manifest {
            map.text(7, &manifest.to_string());
        }
        if let Some(snapshot) = &self.snapshot {
            map.bytes(8, snapshot.as_bytes());
        }
        if let Some(list) = &self.list {
            map.bytes(9, list.as_bytes());
        }
        if let Some(group) = &self.group {
            map.text(10, &group.to_string());
        }
        map.bool(11, self.complete);
        map.uint(12, self.logical_bytes);
        if let Some(capture) = self.capture {
            map.int(13, capture);
        }
        if let Some(origin) = &self.origin {
            map.bytes(14, origin);
        }
        map.array(15, &self.state, |out, name| put_text(out, &name.to_string()));
        if let Some(tag) = &self.dataset_tag {
            map.bytes(16, tag);
        }
        map.array(17, &self.supersedes, |out, n| put_uint(out, *n));
        map.finish()
    }

    /// Reads the payload of a commit, checkpoint or fence.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let mut parts = Parts::default();
        read_map(Self::WHAT, bytes, |reader, key| parts.read(reader, key))?;
        let commit = parts.finish()?;
        let has_manifest = commit.kind.has_manifest();
        if commit.manifest.is_some() != has_manifest || commit.snapshot.is_some() != has_manifest {
            let reason = if has_manifest { "it names no manifest" } else { "its kind has no manifest" };
            return Err(CatalogError::malformed(Self::WHAT, reason));
        }
        Ok(commit)
    }
}

/// The fields of a commit as they are met.
#[derive(Default)]
struct Parts {
    store: Option<StoreId>,
    writer: Option<MemberId>,
    n: Option<u64>,
    kind: Option<CommitKind>,
    time: Option<i64>,
    previous: Option<Vec<(u64, Digest)>>,
    seen: Option<Vec<(MemberId, u64)>>,
    manifest: Option<ContentName>,
    snapshot: Option<SnapshotId>,
    list: Option<Digest>,
    group: Option<GroupId>,
    complete: Option<bool>,
    logical_bytes: Option<u64>,
    capture: Option<i64>,
    origin: Option<Vec<u8>>,
    state: Option<Vec<ContentName>>,
    dataset_tag: Option<[u8; 16]>,
    supersedes: Option<Vec<u64>>,
}

impl Parts {
    fn read(&mut self, reader: &mut Reader<'_>, key: u64) -> Result<bool, CatalogError> {
        match key {
            0 => self.store = Some(StoreId::from_bytes(reader.exact()?)),
            1 => self.writer = Some(reader.member()?),
            2 => self.n = Some(reader.uint()?),
            3 => self.kind = Some(CommitKind::from_code(reader.uint()?)?),
            4 => self.time = Some(reader.int()?),
            5 => {
                self.previous = Some(reader.array(|reader| {
                    reader.tuple(2)?;
                    Ok((reader.uint()?, reader.digest()?))
                })?);
            }
            6 => self.seen = Some(reader.array(Reader::member_uint)?),
            7 => self.manifest = Some(reader.parsed()?),
            8 => self.snapshot = Some(SnapshotId::from_bytes(reader.exact()?)),
            9 => self.list = Some(reader.digest()?),
            10 => self.group = Some(reader.parsed()?),
            11 => self.complete = Some(reader.bool()?),
            12 => self.logical_bytes = Some(reader.uint()?),
            13 => self.capture = Some(reader.int()?),
            14 => self.origin = Some(reader.bytes()?.to_vec()),
            15 => self.state = Some(reader.array(Reader::parsed)?),
            16 => self.dataset_tag = Some(reader.exact()?),
            17 => self.supersedes = Some(reader.array(Reader::uint)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<Commit, CatalogError> {
        Ok(Commit {
            store: required(Commit::WHAT, "store", self.store)?,
            writer: required(Commit::WHAT, "writer", self.writer)?,
            n: required(Commit::WHAT, "number", self.n)?,
            kind: required(Commit::WHAT, "kind", self.kind)?,
            time: required(Commit::WHAT, "time", self.time)?,
            previous: required(Commit::WHAT, "array of earlier ends", self.previous)?,
            seen: required(Commit::WHAT, "array of seen ends", self.seen)?,
            manifest: self.manifest,
            snapshot: self.snapshot,
            list: self.list,
            group: self.group,
            complete: required(Commit::WHAT, "completeness", self.complete)?,
            logical_bytes: required(Commit::WHAT, "logical size", self.logical_bytes)?,
            capture: self.capture,
            origin: self.origin,
            state: required(Commit::WHAT, "array of recipes", self.state)?,
            dataset_tag: self.dataset_tag,
            supersedes: required(Commit::WHAT, "array of checkpoints", self.supersedes)?,
        })
    }
}
