//! What a snapshot says about the cluster it is of: `cluster.json` (format.md §16).

mod values;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lsn::{Lsn, SegmentSize, Timeline};
use crate::replication::SystemId;

/// Name of the entry that holds it.
pub const CLUSTER_FILE: &str = "cluster.json";
/// Entry below which the data directory lies.
pub const DATA: &str = "data";
/// Entry below which tablespaces lie, each under its OID.
pub const TABLESPACES: &str = "tablespaces";
/// Entry below which configuration files lie that the server has elsewhere, under their absolute paths.
pub const CONFIG: &str = "config";
/// A cluster with ten thousand databases has some 10 MB of it.
pub const CLUSTER_BYTES_MAX: u64 = 64 << 20;
const FORMAT: u32 = 1;

/// The content of `cluster.json` (format.md §16). What could not be found out is `None`. Fields that a recovery can do without
/// may be missing when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Version of this description: 1.
    pub format: u32,
    /// Which cluster.
    #[serde(serialize_with = "values::as_text", deserialize_with = "values::system")]
    pub system_identifier: SystemId,
    /// Timeline of `stop_lsn`.
    #[serde(serialize_with = "values::from_timeline", deserialize_with = "values::timeline")]
    pub timeline: Timeline,
    /// As in 150018.
    #[serde(deserialize_with = "values::number")]
    pub server_version_num: u32,
    /// What `version()` says.
    #[serde(default)]
    pub version: String,
    /// Recovery begins here.
    #[serde(serialize_with = "values::as_text", deserialize_with = "values::parsed")]
    pub start_lsn: Lsn,
    /// The cluster is consistent from here on.
    #[serde(serialize_with = "values::as_text", deserialize_with = "values::parsed")]
    pub stop_lsn: Lsn,
    /// By the clock of whoever captured; nanoseconds since 1970.
    #[serde(serialize_with = "values::from_moment", deserialize_with = "values::moment")]
    pub start_time: i64,
    /// Likewise.
    #[serde(serialize_with = "values::from_moment", deserialize_with = "values::moment")]
    pub stop_time: i64,
    /// Whether the server was in recovery.
    #[serde(default)]
    pub from_standby: bool,
    /// `included` or `archive`.
    #[serde(default)]
    pub wal: String,
    /// Length of WAL segments.
    #[serde(serialize_with = "values::from_segment_size", deserialize_with = "values::segment_size")]
    pub wal_segment_size: SegmentSize,
    /// Bytes.
    #[serde(default)]
    pub block_size: u32,
    /// Whether pages bear checksums.
    #[serde(default)]
    pub data_checksums: bool,
    /// Where the server has it.
    pub data_directory: Option<String>,
    /// All but the default ones.
    #[serde(default)]
    pub tablespaces: Vec<Space>,
    /// All databases, templates included.
    #[serde(default)]
    pub databases: Vec<Database>,
    /// What a recovering server must not have less of.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Configuration files outside the data directory.
    #[serde(default)]
    pub configuration: Vec<ConfigFile>,
    /// `stream`, `local` or `sql`.
    #[serde(default)]
    pub capture: String,
    /// What it builds on; `None` for a full read.
    #[serde(default)]
    pub increment: Option<Increment>,
    /// Pages whose checksum does not fit.
    #[serde(default)]
    pub bad_pages: u64,
    /// The first of them.
    #[serde(default)]
    pub bad_page_examples: Vec<BadPage>,
    /// What the server answered before the capture began, so that every recovery of it holds at least that.
    #[serde(default)]
    pub answers: Vec<Answer>,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Its OID; also the name of its link in `pg_tblspc`.
    #[serde(deserialize_with = "values::number")]
    pub oid: u32,
    /// Where the server has it.
    pub location: String,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its OID; also the name of its directories.
    #[serde(deserialize_with = "values::number")]
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Bytes.
    #[serde(default)]
    pub size: Option<u64>,
    /// Tables of users, partitioned ones and materialized views included.
    #[serde(default)]
    pub tables: Option<u64>,
    /// Name of its encoding.
    #[serde(default)]
    pub encoding: String,
    /// LC_COLLATE.
    #[serde(default)]
    pub collate: Option<String>,
    /// LC_CTYPE.
    #[serde(default)]
    pub ctype: Option<String>,
    /// Version of the collation that its indexes were made with (15 and newer).
    #[serde(default)]
    pub collation_version: Option<String>,
    /// Installed extensions.
    #[serde(default)]
    pub extensions: Option<Vec<Extension>>,
}

/// An extension of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A configuration file outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Absolute.
    pub path: String,
    /// Whether the role could read it.
    #[serde(default)]
    pub captured: bool,
}

/// What a capture built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Increment {
    /// `start_lsn` of the snapshot before.
    pub start_lsn: String,
    /// Its timeline.
    pub timeline: u32,
    /// `wal-summaries` or `page-map`.
    pub method: String,
}

/// A page whose checksum does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    /// The file, as a path in the snapshot.
    pub path: String,
    /// The block of the relation.
    pub block: u32,
    /// Name of the database, if it could be found out.
    pub database: Option<String>,
    /// Name of the relation, with its schema.
    pub relation: Option<String>,
}

/// What a server answered to a question of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where it was asked.
    pub database: String,
    /// The statement.
    pub sql: String,
    /// The first value of its first row; `None` where there is none.
    pub answer: Option<String>,
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

    /// What a capture writes, a recovery reads.
    #[test]
    fn a_recovery_understands_it() {
        let space = Space { oid: 16_385, location: "/srv/apart".into(), name: Some("apart".into()) };
        let database = Database {
            oid: 5,
            name: "shop".into(),
            size: Some(9),
            tables: None,
            encoding: "UTF8".into(),
            collate: Some("C".into()),
            ctype: None,
            collation_version: None,
            extensions: Some(vec![Extension { name: "plpgsql".into(), version: "1.0".into() }]),
        };
        let cluster = Cluster {
            format: 1,
            system_identifier: SystemId::new(7_710_603_854_990_343_878),
            timeline: Timeline::new(2).unwrap(),
            server_version_num: 150_018,
            version: "PostgreSQL 15.18".into(),
            start_lsn: Lsn::new(0x200_0028),
            stop_lsn: Lsn::new(0x200_0100),
            start_time: 1_795_273_746_994_706_056,
            stop_time: 1_795_273_749_000_000_000,
            from_standby: true,
            wal: "included".into(),
            wal_segment_size: SegmentSize::default(),
            block_size: 8192,
            data_checksums: true,
            data_directory: None,
            tablespaces: vec![space],
            databases: vec![database],
            settings: BTreeMap::from([("max_connections".into(), "100".into())]),
            configuration: vec![ConfigFile { path: "/etc/x.conf".into(), captured: false }],
            capture: "stream".into(),
            increment: None,
            bad_pages: 0,
            bad_page_examples: Vec::new(),
            answers: vec![Answer {
                database: "shop".into(),
                sql: "SELECT 1".into(),
                answer: Some("1".into()),
            }],
        };
        let json = serde_json::to_value(&cluster).unwrap();
        assert_eq!(json["system_identifier"], "7710603854990343878");
        assert_eq!((&json["timeline"], &json["wal_segment_size"]), (&2.into(), &(16 << 20).into()));
        assert_eq!((&json["start_lsn"], &json["stop_lsn"]), (&"0/2000028".into(), &"0/2000100".into()));
        assert_eq!(json["start_time"], "2026-11-21T15:09:06.994706056Z");
        assert_eq!(json["stop_time"], "2026-11-21T15:09:09Z");
        assert_eq!(Cluster::parse(&serde_json::to_vec(&cluster).unwrap()).unwrap(), cluster);
    }
}
