//! What a base backup says about itself, as far as restoring it has to know (format §16).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::lsn::{Lsn, SegmentSize, Timeline};
use crate::replication::SystemId;

/// A cluster with ten thousand databases has some 10 MB of it.
pub const CLUSTER_BYTES_MAX: u64 = 64 << 20;
const FORMAT: u32 = 1;

/// A base backup, as far as restoring it has to know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Cluster {
    /// Version of this description.
    pub format: u32,
    /// Which cluster.
    #[serde(deserialize_with = "system")]
    pub system_identifier: SystemId,
    /// As `SHOW server_version_num`: 150018.
    #[serde(deserialize_with = "number")]
    pub server_version_num: u32,
    /// The timeline at the end.
    #[serde(deserialize_with = "timeline")]
    pub timeline: Timeline,
    /// Recovery begins here.
    #[serde(deserialize_with = "parsed")]
    pub start_lsn: Lsn,
    /// The cluster is consistent from here on.
    #[serde(deserialize_with = "parsed")]
    pub stop_lsn: Lsn,
    /// By the clock of whoever captured; nanoseconds since 1970.
    #[serde(deserialize_with = "moment")]
    pub start_time: i64,
    /// Likewise.
    #[serde(deserialize_with = "moment")]
    pub stop_time: i64,
    /// Whether a standby was backed up.
    #[serde(default)]
    pub from_standby: bool,
    /// Length of WAL segments.
    #[serde(deserialize_with = "segment_size")]
    pub wal_segment_size: SegmentSize,
    /// Whether pages have checksums.
    #[serde(default)]
    pub data_checksums: bool,
    /// Where the cluster lived.
    pub data_directory: Option<String>,
    /// Tablespaces outside the data directory.
    #[serde(default)]
    pub tablespaces: Vec<Tablespace>,
    /// Databases, with what could be learned about them.
    #[serde(default)]
    pub databases: Vec<Database>,
    /// Configuration files outside the data directory.
    #[serde(default)]
    pub configuration: Vec<ConfigFile>,
    /// Settings that a recovering server must not have less of.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Tablespace {
    /// Its number; also the name of its link in `pg_tblspc`.
    #[serde(deserialize_with = "number")]
    pub oid: u32,
    /// Where it lived.
    pub location: String,
    /// Its name in SQL.
    #[serde(default)]
    pub name: Option<String>,
}

/// A configuration file outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ConfigFile {
    /// Absolute.
    pub path: String,
}

/// A database of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Database {
    /// Its number; also the name of its directories.
    #[serde(deserialize_with = "number")]
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// Why a description cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`cluster.json` cannot be used: {reason}")]
pub struct ClusterError {
    reason: String,
}

impl Cluster {
    /// Reads a `cluster.json`. Fields that are not known are ignored; another format is refused.
    pub fn parse(json: &[u8]) -> Result<Self, ClusterError> {
        let fail = |reason: String| ClusterError { reason };
        if json.len() as u64 > CLUSTER_BYTES_MAX {
            return Err(fail("it is larger than 64 MiB".to_owned()));
        }
        let cluster: Self = serde_json::from_slice(json).map_err(|error| fail(error.to_string()))?;
        if cluster.format != FORMAT {
            return Err(fail(format!("it is of format {}, and this program knows {FORMAT}", cluster.format)));
        }
        if cluster.stop_lsn < cluster.start_lsn {
            return Err(fail("it ends before it begins".to_owned()));
        }
        Ok(cluster)
    }

    /// The major version, as 15.
    pub fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    /// Number of the first segment that recovery reads.
    pub fn start_segment(&self) -> u64 {
        self.wal_segment_size.number_at(self.start_lsn)
    }
}

/// Numbers beyond 2^53 are written as text by many.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Number(u64),
    Text(String),
}

fn number<'de, T: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let number = match Loose::deserialize(from)? {
        Loose::Number(number) => Some(number),
        Loose::Text(text) => text.parse().ok(),
    };
    let fits = number.and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| serde::de::Error::custom("a number is expected"))
}

fn system<'de, D: Deserializer<'de>>(from: D) -> Result<SystemId, D::Error> {
    number(from).map(SystemId::new)
}

fn timeline<'de, D: Deserializer<'de>>(from: D) -> Result<Timeline, D::Error> {
    Timeline::new(number(from)?).ok_or_else(|| serde::de::Error::custom("there is no timeline 0"))
}

fn segment_size<'de, D: Deserializer<'de>>(from: D) -> Result<SegmentSize, D::Error> {
    SegmentSize::new(number(from)?).ok_or_else(|| serde::de::Error::custom("no cluster has such segments"))
}

fn parsed<'de, T: std::str::FromStr<Err: std::fmt::Display>, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Moment {
        Nanoseconds(i64),
        Text(String),
    }
    let text = match Moment::deserialize(from)? {
        Moment::Nanoseconds(nanoseconds) => return Ok(nanoseconds),
        Moment::Text(text) => text,
    };
    let moment: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
    i64::try_from(moment.as_nanosecond()).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{ "format": 1, "system_identifier": "7710603854990343878", "server_version_num": 150018,
        "timeline": 2, "start_lsn": "0/3000028", "stop_lsn": "0/3000100", "start_time": "2026-11-21T12:00:00Z",
        "stop_time": "2026-11-21T12:00:01.5Z", "from_standby": false, "wal_segment_size": 16777216,
        "block_size": 8192, "data_checksums": true, "data_directory": "/var/lib/postgresql/15/main",
        "tablespaces": [{ "oid": 16406, "location": "/srv/fast", "name": "fast" }],
        "databases": [{ "oid": 5, "name": "postgres", "size": 7000000 }], "settings": { "max_connections": "100" } }"#;

    #[test]
    fn a_description_is_read_and_what_is_not_known_is_passed_over() {
        let cluster = Cluster::parse(WHOLE.as_bytes()).unwrap();
        assert_eq!(cluster.system_identifier, SystemId::new(7_710_603_854_990_343_878));
        assert_eq!((cluster.major(), cluster.start_segment()), (15, 3));
        assert_eq!(cluster.stop_time, 1_795_262_401_500_000_000);
        assert_eq!(cluster.tablespaces[0].oid, 16406);
        let number = WHOLE.replace("\"7710603854990343878\"", "7710603854990343878");
        assert_eq!(Cluster::parse(number.as_bytes()).unwrap(), cluster);
    }

    #[test]
    fn what_cannot_be_a_base_backup_is_refused() {
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("\"timeline\": 2", "\"timeline\": 0"),
            ("0/3000100", "0/2000100"),
            ("0/3000028", "3000028"),
            ("16777216", "16777217"),
            ("2026-11-21T12:00:00Z", "noon"),
            ("\"oid\": 16406", "\"oid\": -1"),
        ] {
            assert!(Cluster::parse(WHOLE.replace(from, to).as_bytes()).is_err(), "{to}");
        }
        for cut in 0..WHOLE.len() {
            assert!(Cluster::parse(&WHOLE.as_bytes()[..cut]).is_err());
        }
    }
}
