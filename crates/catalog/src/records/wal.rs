//! Records of archived logs (format §15).

use keepwell_crypto::MemberId;

use super::codec::{MapWriter, read_map, required};
use crate::error::CatalogError;
use crate::wal::{WalHash, WalPlace};

/// What a piece of a log says about itself; signed, and stored with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Who archived it.
    pub writer: MemberId,
    /// Which cluster's log.
    pub system: u64,
    /// Which timeline.
    pub timeline: u32,
    /// Which part.
    pub place: WalPlace,
    /// How long each file of the log is, in bytes.
    pub file_bytes: u32,
    /// Keyed hash of the plaintext.
    pub hash: WalHash,
    /// That of the piece which this one continues, if it was archived before.
    pub previous: Option<WalHash>,
    /// When it was archived, by the writer's clock, in nanoseconds since 1970.
    pub time: i64,
}

impl WalHeader {
    /// Kind of the signed record.
    pub const KIND: &str = "wal";
    const WHAT: &str = "header of a WAL piece";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.writer.as_bytes());
        map.uint(1, self.system);
        map.uint(2, u64::from(self.timeline));
        if let WalPlace::Bytes { file, from, to } = self.place {
            map.uint(3, file);
            map.uint(4, u64::from(from));
            map.uint(5, u64::from(to));
        }
        map.uint(6, u64::from(self.file_bytes));
        map.bytes(7, self.hash.as_bytes());
        if let Some(previous) = &self.previous {
            map.bytes(8, previous.as_bytes());
        }
        map.int(9, self.time);
        map.finish()
    }

    /// Reads the payload of a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut writer, mut system, mut timeline, mut time) = (None, None, None, None);
        let (mut file, mut from, mut to, mut file_bytes) = (None, None, None, None);
        let (mut hash, mut previous) = (None, None);
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                0 => writer = Some(reader.member()?),
                1 => system = Some(reader.uint()?),
                2 => timeline = Some(reader.uint32()?),
                3 => file = Some(reader.uint()?),
                4 => from = Some(reader.uint32()?),
                5 => to = Some(reader.uint32()?),
                6 => file_bytes = Some(reader.uint32()?),
                7 => hash = Some(WalHash::from_bytes(reader.exact()?)),
                8 => previous = Some(WalHash::from_bytes(reader.exact()?)),
                9 => time = Some(reader.int()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let place = match (file, from, to) {
            (None, None, None) => WalPlace::History,
            (Some(file), Some(from), Some(to)) => WalPlace::Bytes { file, from, to },
            _ => return Err(CatalogError::malformed(Self::WHAT, "its place is incomplete")),
        };
        Ok(WalHeader {
            writer: required(Self::WHAT, "writer", writer)?,
            system: required(Self::WHAT, "system", system)?,
            timeline: required(Self::WHAT, "timeline", timeline)?,
            place,
            file_bytes: required(Self::WHAT, "file size", file_bytes)?,
            hash: required(Self::WHAT, "hash", hash)?,
            previous,
            time: required(Self::WHAT, "time", time)?,
        })
    }
}

/// Says which cluster the log of a dataset is of; the one with the highest number is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalCluster {
    /// Who archives.
    pub writer: MemberId,
    /// Of which dataset (format §11).
    pub tag: [u8; 16],
    /// Number of this record.
    pub n: u64,
    /// The cluster.
    pub system: u64,
    /// When this was decided, in nanoseconds since 1970.
    pub time: i64,
}

impl WalCluster {
    /// Kind of the signed record.
    pub const KIND: &str = "wal-cluster";
    const WHAT: &str = "record of a log's cluster";

    /// Deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.bytes(0, self.writer.as_bytes());
        map.bytes(1, &self.tag);
        map.uint(2, self.n);
        map.uint(3, self.system);
        map.int(4, self.time);
        map.finish()
    }

    /// Reads the payload of such a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let (mut writer, mut tag, mut n, mut system, mut time) = (None, None, None, None, None);
        read_map(Self::WHAT, bytes, |reader, key| {
            match key {
                0 => writer = Some(reader.member()?),
                1 => tag = Some(reader.exact()?),
                2 => n = Some(reader.uint()?),
                3 => system = Some(reader.uint()?),
                4 => time = Some(reader.int()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(WalCluster {
            writer: required(Self::WHAT, "writer", writer)?,
            tag: required(Self::WHAT, "tag", tag)?,
            n: required(Self::WHAT, "number", n)?,
            system: required(Self::WHAT, "system", system)?,
            time: required(Self::WHAT, "time", time)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding() {
        let header = WalHeader {
            writer: MemberId::from_bytes([1; 8]),
            system: u64::MAX,
            timeline: 3,
            place: WalPlace::Bytes { file: 1 << 40, from: 0, to: 7 },
            file_bytes: 16 << 20,
            hash: WalHash::from_bytes([2; 16]),
            previous: Some(WalHash::from_bytes([3; 16])),
            time: -1,
        };
        assert_eq!(WalHeader::decode(&header.encode()).unwrap(), header);
        let history = WalHeader { place: WalPlace::History, previous: None, ..header };
        assert_eq!(WalHeader::decode(&history.encode()).unwrap(), history);
        let cluster =
            WalCluster { writer: MemberId::from_bytes([1; 8]), tag: [5; 16], n: 1, system: 2, time: 3 };
        assert_eq!(WalCluster::decode(&cluster.encode()).unwrap(), cluster);
    }

    #[test]
    fn half_a_place_is_refused() {
        let mut map = MapWriter::default();
        map.uint(3, 1);
        assert!(WalHeader::decode(&map.finish()).is_err());
    }
}
