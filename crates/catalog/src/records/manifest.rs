//! Manifests: the full description of a snapshot (format §10).

use std::collections::BTreeMap;

use keepwell_crypto::{ChunkId, DomainId, GroupId, MemberId, RepositoryId, SnapshotId};
use sha2::{Digest, Sha256};

use super::codec::{MapWriter, Reader, read_map, required};
use crate::cbor::{put_array, put_bytes, put_map, put_text};
use crate::error::CatalogError;

/// The repository format that this version reads and writes.
pub const FORMAT_VERSION: u64 = 1;

/// Most pairs of `extra`, and most fields of later versions, that are read: each takes many times its bytes in memory.
const PAIRS_MAX: usize = 10_000;
const WHAT: &str = "manifest";

/// Everything that is known about a snapshot except its content, which `root` leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Repository that the snapshot was taken into.
    pub repository: RepositoryId,
    /// Who took it.
    pub writer: MemberId,
    /// Session of that writer that ended in its commit.
    pub seq: u64,
    /// What retention counts together, as `orders-db` or `home`.
    pub dataset: String,
    /// Host that the data came from.
    pub host: String,
    /// What was captured, as the source names it; file paths for files.
    pub paths: Vec<Vec<u8>>,
    /// Labels that people and policies gave it.
    pub tags: Vec<String>,
    /// When the capture began, in nanoseconds since 1970 by the writer's clock.
    pub capture_start: i64,
    /// When it ended.
    pub capture_end: i64,
    /// IANA time zone in which retention forms its calendar buckets.
    pub time_zone: String,
    /// Group whose index resolves its chunks.
    pub group: GroupId,
    /// Domain of its content.
    pub domain: DomainId,
    /// Root node of the Merkle map.
    pub root: ChunkId,
    /// Records in the map, sub-keys included.
    pub entries: u64,
    /// Counts for reports.
    pub statistics: Statistics,
    /// The first problems, at most 1000; `problem_count` says how many there were.
    pub problems: Vec<Problem>,
    /// Entries that could not be captured, or only in part.
    pub problem_count: u64,
    /// Which source took it, as `files`.
    pub source_kind: String,
    /// Snapshot that it was taken incrementally from.
    pub parent: Option<SnapshotId>,
    /// Version of the program that took it.
    pub program: String,
    /// Snapshot that it was rewritten from.
    pub original: Option<SnapshotId>,
    /// Not to be forgotten before this time, in nanoseconds since 1970.
    pub keep_until: Option<i64>,
    /// Never to be forgotten.
    pub keep_forever: bool,
    /// Free text.
    pub description: String,
    /// What sources store beside it, as a start LSN.
    pub extra: BTreeMap<String, Vec<u8>>,
    /// Fields that a later version has added: their keys, ascending and above 25, and their values in CBOR. They stay when a
    /// manifest is written anew.
    pub later: Vec<(u64, Vec<u8>)>,
}

/// Something that a capture could not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Key of the entry in the Merkle map.
    pub key: Vec<u8>,
    /// What happened.
    pub message: String,
}

/// Counts of one capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Every other entry.
    pub others: u64,
    /// Bytes of content, holes included.
    pub logical_bytes: u64,
    /// Files that the parent did not have.
    pub new_files: u64,
    /// Files that differ from the parent's.
    pub changed_files: u64,
    /// Files equal to the parent's.
    pub unchanged_files: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Chunks that no index knew.
    pub new_chunks: u64,
    /// Their plain bytes.
    pub new_plain_bytes: u64,
    /// What they take in the store.
    pub new_stored_bytes: u64,
}

/// The id of the snapshot that a manifest with these CBOR bytes describes: their SHA-256.
pub fn snapshot_id(manifest: &[u8]) -> SnapshotId {
    SnapshotId::from_bytes(Sha256::digest(manifest).into())
}

impl Manifest {
    /// Deterministic CBOR; [`snapshot_id`] of it names the snapshot.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.uint(0, FORMAT_VERSION);
        map.bytes(1, self.repository.as_bytes());
        map.bytes(2, self.writer.as_bytes());
        map.uint(3, self.seq);
        map.text(4, &self.dataset);
        map.text(5, &self.host);
        map.array(6, &self.paths, |out, path| put_bytes(out, path));
        map.texts(7, &self.tags);
        map.int(8, self.capture_start);
        map.int(9, self.capture_end);
        map.text(10, &self.time_zone);
        map.text(11, &self.group.to_string());
        map.text(12, &self.domain.to_string());
        map.bytes(13, self.root.as_bytes());
        map.uint(14, self.entries);
        map.map(15, self.statistics.to_map());
        map.array(16, &self.problems, |out, problem| {
            put_array(out, 2);
            put_bytes(out, &problem.key);
            put_text(out, &problem.message);
        });
        map.uint(17, self.problem_count);
        self.encode_optional(&mut map);
        map.finish()
    }

    fn encode_optional(&self, map: &mut MapWriter) {
        map.text(18, &self.source_kind);
        if let Some(parent) = &self.parent {
            map.bytes(19, parent.as_bytes());
        }
        map.text(20, &self.program);
        if let Some(original) = &self.original {
            map.bytes(21, original.as_bytes());
        }
        if let Some(keep_until) = self.keep_until {
            map.int(22, keep_until);
        }
        map.bool(23, self.keep_forever);
        map.text(24, &self.description);
        encode_extra(&self.extra, map.field(25));
        for (key, value) in &self.later {
            map.field(*key).extend_from_slice(value);
        }
    }

    /// Reads a manifest; refuses other format versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let mut parts = Parts::default();
        read_map(WHAT, bytes, |reader, key| parts.read(reader, key))?;
        parts.finish()
    }
}

/// Keys order by their encoding, so shorter ones come first.
fn encode_extra(extra: &BTreeMap<String, Vec<u8>>, out: &mut Vec<u8>) {
    let mut pairs: Vec<_> = extra.iter().collect();
    pairs.sort_by_key(|(name, _)| (name.len(), *name));
    put_map(out, pairs.len() as u64);
    for (name, value) in pairs {
        put_text(out, name);
        put_bytes(out, value);
    }
}

fn decode_extra(reader: &mut Reader<'_>) -> Result<BTreeMap<String, Vec<u8>>, CatalogError> {
    let mut extra = BTreeMap::new();
    let mut last = (0, String::new());
    let pairs = reader.map_len()?;
    if pairs > PAIRS_MAX as u64 {
        return Err(reader.malformed("its extra map has too many keys"));
    }
    for at in 0..pairs {
        let name = reader.text()?;
        let place = (name.len(), name.clone());
        if at > 0 && place <= last {
            return Err(reader.malformed("a key of its extra map comes out of order"));
        }
        last = place;
        extra.insert(name, reader.bytes()?.to_vec());
    }
    Ok(extra)
}

/// The fields of a manifest as they are met.
#[derive(Default)]
struct Parts {
    format: Option<u64>,
    repository: Option<RepositoryId>,
    writer: Option<MemberId>,
    seq: Option<u64>,
    dataset: Option<String>,
    host: Option<String>,
    paths: Option<Vec<Vec<u8>>>,
    tags: Option<Vec<String>>,
    capture_start: Option<i64>,
    capture_end: Option<i64>,
    time_zone: Option<String>,
    group: Option<GroupId>,
    domain: Option<DomainId>,
    root: Option<ChunkId>,
    entries: Option<u64>,
    statistics: Option<Statistics>,
    problems: Option<Vec<Problem>>,
    problem_count: Option<u64>,
    source_kind: Option<String>,
    parent: Option<SnapshotId>,
    program: Option<String>,
    original: Option<SnapshotId>,
    keep_until: Option<i64>,
    keep_forever: Option<bool>,
    description: Option<String>,
    extra: Option<BTreeMap<String, Vec<u8>>>,
    later: Vec<(u64, Vec<u8>)>,
}

impl Parts {
    fn read(&mut self, reader: &mut Reader<'_>, key: u64) -> Result<bool, CatalogError> {
        match key {
            0 => self.format = Some(read_format(reader)?),
            1 => self.repository = Some(RepositoryId::from_bytes(reader.exact()?)),
            2 => self.writer = Some(reader.member()?),
            3 => self.seq = Some(reader.uint()?),
            4 => self.dataset = Some(reader.text()?),
            5 => self.host = Some(reader.text()?),
            6 => self.paths = Some(reader.array(|reader| Ok(reader.bytes()?.to_vec()))?),
            7 => self.tags = Some(reader.texts()?),
            8 => self.capture_start = Some(reader.int()?),
            9 => self.capture_end = Some(reader.int()?),
            10 => self.time_zone = Some(reader.text()?),
            11 => self.group = Some(reader.parsed()?),
            12 => self.domain = Some(reader.parsed()?),
            13 => self.root = Some(ChunkId::from_bytes(reader.exact()?)),
            14 => self.entries = Some(reader.uint()?),
            15 => self.statistics = Some(Statistics::read(reader)?),
            16 => self.problems = Some(reader.array(Problem::read)?),
            17 => self.problem_count = Some(reader.uint()?),
            18 => self.source_kind = Some(reader.text()?),
            19 => self.parent = Some(SnapshotId::from_bytes(reader.exact()?)),
            20 => self.program = Some(reader.text()?),
            21 => self.original = Some(SnapshotId::from_bytes(reader.exact()?)),
            22 => self.keep_until = Some(reader.int()?),
            23 => self.keep_forever = Some(reader.bool()?),
            24 => self.description = Some(reader.text()?),
            25 => self.extra = Some(decode_extra(reader)?),
            _ if self.later.len() == PAIRS_MAX => {
                return Err(reader.malformed("it has too many fields of later versions"));
            }
            later => self.later.push((later, reader.raw()?.to_vec())),
        }
        Ok(true)
    }

    fn finish(self) -> Result<Manifest, CatalogError> {
        required(WHAT, "format", self.format)?;
        Ok(Manifest {
            repository: required(WHAT, "repository", self.repository)?,
            writer: required(WHAT, "writer", self.writer)?,
            seq: required(WHAT, "seq", self.seq)?,
            dataset: required(WHAT, "dataset", self.dataset)?,
            host: required(WHAT, "host", self.host)?,
            paths: required(WHAT, "array of paths", self.paths)?,
            tags: required(WHAT, "array of tags", self.tags)?,
            capture_start: required(WHAT, "capture start", self.capture_start)?,
            capture_end: required(WHAT, "capture end", self.capture_end)?,
            time_zone: required(WHAT, "time zone", self.time_zone)?,
            group: required(WHAT, "group", self.group)?,
            domain: required(WHAT, "domain", self.domain)?,
            root: required(WHAT, "root", self.root)?,
            entries: required(WHAT, "number of entries", self.entries)?,
            statistics: required(WHAT, "statistics", self.statistics)?,
            problems: required(WHAT, "array of problems", self.problems)?,
            problem_count: required(WHAT, "number of problems", self.problem_count)?,
            source_kind: required(WHAT, "source kind", self.source_kind)?,
            parent: self.parent,
            program: required(WHAT, "program version", self.program)?,
            original: self.original,
            keep_until: self.keep_until,
            keep_forever: required(WHAT, "mark of what is kept for ever", self.keep_forever)?,
            description: required(WHAT, "description", self.description)?,
            extra: required(WHAT, "extra map", self.extra)?,
            later: self.later,
        })
    }
}

fn read_format(reader: &mut Reader<'_>) -> Result<u64, CatalogError> {
    match reader.uint()? {
        FORMAT_VERSION => Ok(FORMAT_VERSION),
        kind => Err(CatalogError::UnknownKind { what: "manifest format", kind }),
    }
}

impl Problem {
    fn read(reader: &mut Reader<'_>) -> Result<Self, CatalogError> {
        reader.tuple(2)?;
        Ok(Problem { key: reader.bytes()?.to_vec(), message: reader.text()? })
    }
}

impl Statistics {
    fn counters(&mut self) -> [&mut u64; 11] {
        [
            &mut self.files,
            &mut self.directories,
            &mut self.others,
            &mut self.logical_bytes,
            &mut self.new_files,
            &mut self.changed_files,
            &mut self.unchanged_files,
            &mut self.bytes_read,
            &mut self.new_chunks,
            &mut self.new_plain_bytes,
            &mut self.new_stored_bytes,
        ]
    }

    fn to_map(mut self) -> MapWriter {
        let mut map = MapWriter::default();
        for (key, counter) in (0..).zip(self.counters()) {
            map.uint(key, *counter);
        }
        map
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CatalogError> {
        let mut statistics = Statistics::default();
        reader.map(|reader, key| {
            let mut counters = statistics.counters();
            let Some(counter) = usize::try_from(key).ok().and_then(|key| counters.get_mut(key)) else {
                return Ok(false);
            };
            **counter = reader.uint()?;
            Ok(true)
        })?;
        Ok(statistics)
    }
}
