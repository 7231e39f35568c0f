//! Sessions and lists: who is at work, and what it created (format §11).

use keepwell_crypto::{MemberId, StoreId};

use super::codec::{MapWriter, put_text_uint, read_map, required};
use crate::error::CatalogError;

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionKind {
    /// It creates objects and ends in a commit or a fence.
    Writer,
    /// It only reads, for long enough that a prune should wait for it.
    Reader,
}

/// Payload of the claim of a session, and of each of its beats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Store in which the session works.
    pub store: StoreId,
    /// Whose session.
    pub writer: MemberId,
    /// Which session of that writer.
    pub n: u64,
    /// 0 in the claim, then which beat.
    pub k: u64,
    /// Time of this record by the writer's clock, in nanoseconds since 1970.
    pub time: i64,
    /// What the session does.
    pub kind: SessionKind,
    /// Random in a claim, so that no two claims have the same bytes, whatever the clocks of their hosts say.
    pub nonce: Option<[u8; 8]>,
}

impl Session {
    /// Kind of the signed record.
    pub const KIND: &str = "session";
    const WHAT: &str = "session record";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.bytes(1, self.writer.as_bytes());
        map.uint(2, self.n);
        map.uint(3, self.k);
        map.int(4, self.time);
        map.uint(5, self.kind.code());
        if let Some(nonce) = &self.nonce {
            map.bytes(6, nonce);
        }
        map.finish()
    }

    /// Reads the payload of a session record.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut store, mut writer, mut n, mut k, mut time) = (None, None, None, None, None);
        let (mut kind, mut nonce) = (None, None);
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                0 => store = Some(StoreId::from_bytes(reader.exact()?)),
                1 => writer = Some(reader.member()?),
                2 => n = Some(reader.uint()?),
                3 => k = Some(reader.uint()?),
                4 => time = Some(reader.int()?),
                5 => kind = Some(SessionKind::from_code(reader.uint()?)?),
                6 => nonce = Some(reader.exact()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Session {
            store: required(Self::WHAT, "store", store)?,
            writer: required(Self::WHAT, "writer", writer)?,
            n: required(Self::WHAT, "number", n)?,
            k: required(Self::WHAT, "beat", k)?,
            time: required(Self::WHAT, "time", time)?,
            kind: required(Self::WHAT, "kind", kind)?,
            nonce,
        })
    }
}

impl SessionKind {
    fn code(self) -> u64 {
        match self {
            SessionKind::Writer => 0,
            SessionKind::Reader => 1,
        }
    }

    fn from_code(code: u64) -> Result<Self, CatalogError> {
        match code {
            0 => Ok(SessionKind::Writer),
            1 => Ok(SessionKind::Reader),
            kind => Err(CatalogError::UnknownKind { what: "session kind", kind }),
        }
    }
}

/// An object that a session created.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedObject {
    /// Whole key in the store.
    pub name: String,
    /// Stored size in bytes.
    pub size: u64,
}

/// Payload of a list: what session `n` created, so that a scrub without keys also sees what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Store of the session.
    pub store: StoreId,
    /// Whose session.
    pub writer: MemberId,
    /// Which session.
    pub n: u64,
    /// The objects, in the order of creation.
    pub objects: Vec<ListedObject>,
}

impl List {
    /// Kind of the signed record.
    pub const KIND: &str = "list";
    const WHAT: &str = "list";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.store.as_bytes());
        map.bytes(1, self.writer.as_bytes());
        map.uint(2, self.n);
        map.array(3, &self.objects, |out, object| put_text_uint(out, &object.name, object.size));
        map.finish()
    }

    /// Reads the payload of a list.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut store, mut writer, mut n, mut objects) = (None, None, None, None);
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                0 => store = Some(StoreId::from_bytes(reader.exact()?)),
                1 => writer = Some(reader.member()?),
                2 => n = Some(reader.uint()?),
                3 => {
                    objects = Some(reader.array(|reader| {
                        reader.tuple(2)?;
                        Ok(ListedObject { name: reader.text()?, size: reader.uint()? })
                    })?);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(List {
            store: required(Self::WHAT, "store", store)?,
            writer: required(Self::WHAT, "writer", writer)?,
            n: required(Self::WHAT, "number", n)?,
            objects: required(Self::WHAT, "array of objects", objects)?,
        })
    }
}
