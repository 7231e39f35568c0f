//! Retirements, prune plans, what they released, and remembered marks (format §13).

use keepwell_crypto::{MemberId, SnapshotId, StoreId};

use super::codec::{MapWriter, Reader, put_member_uint, read_map, required};
use crate::cbor::{put_array, put_bytes, put_text, put_uint};
use crate::error::CatalogError;
use crate::names::PlanName;

/// A snapshot that is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetiredSnapshot {
    /// Whose snapshot.
    pub writer: MemberId,
    /// Session that committed it.
    pub seq: u64,
    /// Why, in the words of the retention decision or of a person.
    pub reason: String,
}

/// Payload of a retirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Store in which it holds; a copy elsewhere lives by its own retention.
    pub store: StoreId,
    /// Which record.
    pub n: u64,
    /// Nanoseconds since 1970.
    pub time: i64,
    /// What is forgotten.
    pub snapshots: Vec<RetiredSnapshot>,
    /// What an earlier record forgot and comes back.
    pub undone: Vec<(MemberId, u64)>,
}

impl Retired {
    /// Kind of the signed record.
    pub const KIND: &str = "retired";
    const WHAT: &str = "retirement";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.uint(1, self.n);
        map.int(2, self.time);
        map.array(3, &self.snapshots, |out, snapshot| {
            put_array(out, 3);
            put_bytes(out, snapshot.writer.as_bytes());
            put_uint(out, snapshot.seq);
            put_text(out, &snapshot.reason);
        });
        map.array(4, &self.undone, put_member_uint);
        map.finish()
    }

    /// Reads the payload of a retirement.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut head, mut time, mut snapshots, mut undone) = (Head::default(), None, None, None);
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                2 => time = Some(reader.int()?),
                3 => {
                    snapshots = Some(reader.array(|reader| {
                        reader.tuple(3)?;
                        let (writer, seq) = (reader.member()?, reader.uint()?);
                        Ok(RetiredSnapshot { writer, seq, reason: reader.text()? })
                    })?);
                }
                4 => undone = Some(reader.array(Reader::member_uint)?),
                _ => return head.read(reader, key),
            }
            Ok(true)
        })?;
        let (store, n) = head.finish(Self::WHAT)?;
        let time = required(Self::WHAT, "time", time)?;
        Ok(Retired {
            store,
            n,
            time,
            snapshots: required(Self::WHAT, "array of snapshots", snapshots)?,
            undone: required(Self::WHAT, "array of what is undone", undone)?,
        })
    }
}

/// Payload of a prune plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Store that is pruned.
    pub store: StoreId,
    /// Which plan.
    pub name: PlanName,
    /// Nanoseconds since 1970.
    pub time: i64,
    /// Whole keys of the objects that are to go; entries that lead to them do not exist from now on.
    pub condemned: Vec<String>,
    /// Decided plans that this one replaces; if there are any, it is decided itself and releases nothing.
    pub merged: Vec<PlanName>,
}

impl Plan {
    /// Kind of the signed record.
    pub const KIND: &str = "gc";
    const WHAT: &str = "prune plan";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.uint(1, self.name.n());
        map.int(2, self.time);
        map.texts(3, &self.condemned);
        map.array(4, &self.merged, |out, name| put_text(out, &name.to_string()));
        if let Some(suffix) = self.name.suffix() {
            map.bytes(5, &suffix);
        }
        map.finish()
    }

    /// Reads the payload of a prune plan.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut head, mut time, mut condemned, mut merged) = (Head::default(), None, None, None);
        let mut suffix = None;
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                2 => time = Some(reader.int()?),
                3 => condemned = Some(reader.texts()?),
                4 => merged = Some(reader.array(Reader::parsed)?),
                5 => suffix = Some(reader.exact()?),
                _ => return head.read(reader, key),
            }
            Ok(true)
        })?;
        let (store, n) = head.finish(Self::WHAT)?;
        let time = required(Self::WHAT, "time", time)?;
        let name = PlanName::from_parts(n, suffix);
        Ok(Plan {
            store,
            name,
            time,
            condemned: required(Self::WHAT, "array of objects", condemned)?,
            merged: required(Self::WHAT, "array of merged plans", merged)?,
        })
    }
}

/// Payload of the verdict on a prune plan: what it condemned, but is kept after all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Store that is pruned.
    pub store: StoreId,
    /// Which plan.
    pub name: PlanName,
    /// Whole keys of the objects that stay.
    pub released: Vec<String>,
}

impl Kept {
    /// Kind of the signed record.
    pub const KIND: &str = "kept";
    const WHAT: &str = "release of a prune plan";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.uint(1, self.name.n());
        map.texts(2, &self.released);
        if let Some(suffix) = self.name.suffix() {
            map.bytes(3, &suffix);
        }
        map.finish()
    }

    /// Reads the payload of a release.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut head, mut released, mut suffix) = (Head::default(), None, None);
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                2 => released = Some(reader.texts()?),
                3 => suffix = Some(reader.exact()?),
                _ => return head.read(reader, key),
            }
            Ok(true)
        })?;
        let (store, n) = head.finish(Self::WHAT)?;
        let name = PlanName::from_parts(n, suffix);
        Ok(Kept { store, name, released: required(Self::WHAT, "array of objects", released)? })
    }
}

/// Payload of remembered marks: where to find what each snapshot needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Store that they describe.
    pub store: StoreId,
    /// Which record.
    pub n: u64,
    /// Snapshots, each with the name of the object that holds its marks.
    pub snapshots: Vec<(SnapshotId, String)>,
}

impl Marks {
    /// Kind of the signed record.
    pub const KIND: &str = "marks";
    const WHAT: &str = "marks";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.uint(1, self.n);
        map.array(2, &self.snapshots, |out, (snapshot, name)| {
            put_array(out, 2);
            put_bytes(out, snapshot.as_bytes());
            put_text(out, name);
        });
        map.finish()
    }

    /// Reads the payload of remembered marks.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut head, mut snapshots) = (Head::default(), None);
        read_map(Self::WHAT, bytes, |reader, key| match key {
            2 => {
                snapshots = Some(reader.array(|reader| {
                    reader.tuple(2)?;
                    Ok((SnapshotId::from_bytes(reader.exact()?), reader.text()?))
                })?);
                Ok(true)
            }
            _ => head.read(reader, key),
        })?;
        let (store, n) = head.finish(Self::WHAT)?;
        Ok(Marks { store, n, snapshots: required(Self::WHAT, "array of snapshots", snapshots)? })
    }
}

/// Where a numbered record belongs: fields 0 and 1 of each record in this file.
#[derive(Default)]
struct Head {
    store: Option<StoreId>,
    n: Option<u64>,
}

impl Head {
    fn read(&mut self, reader: &mut Reader<'_>, key: u64) -> Result<bool, CatalogError> {
        match key {
            0 => self.store = Some(StoreId::from_bytes(reader.exact()?)),
            1 => self.n = Some(reader.uint()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self, what: &'static str) -> Result<(StoreId, u64), CatalogError> {
        Ok((required(what, "store", self.store)?, required(what, "number", self.n)?))
    }
}
