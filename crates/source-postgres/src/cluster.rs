//! What a snapshot says about the cluster it is of: `cluster.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the entry that holds it.
pub const CLUSTER_FILE: &str = "cluster.json";
/// Entry below which the data directory lies.
pub const DATA: &str = "data";
/// Entry below which tablespaces lie, each under its OID.
pub const TABLESPACES: &str = "tablespaces";
/// Entry below which configuration files lie that the server has elsewhere, under their absolute paths.
pub const CONFIG: &str = "config";

/// The content of `cluster.json` (format.md §16). What could not be found out is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// 1.
    pub format: u32,
    /// Decimal.
    pub system_identifier: String,
    /// Timeline of `stop_lsn`.
    pub timeline: u32,
    /// As in 150018.
    pub server_version_num: u32,
    /// What `version()` says.
    pub version: String,
    /// Recovery begins here.
    pub start_lsn: String,
    /// The cluster is consistent from here on.
    pub stop_lsn: String,
    /// RFC 3339.
    pub start_time: String,
    /// RFC 3339.
    pub stop_time: String,
    /// Whether the server was in recovery.
    pub from_standby: bool,
    /// `included` or `archive`.
    pub wal: String,
    /// Bytes.
    pub wal_segment_size: u32,
    /// Bytes.
    pub block_size: u32,
    /// Whether pages bear checksums.
    pub data_checksums: bool,
    /// Where the server has it.
    pub data_directory: Option<String>,
    /// All but the default ones.
    pub tablespaces: Vec<Space>,
    /// All databases, templates included.
    pub databases: Vec<Database>,
    /// What a recovering server must not have less of.
    pub settings: BTreeMap<String, String>,
    /// Configuration files outside the data directory.
    pub configuration: Vec<ConfigFile>,
    /// `stream` or `local`.
    pub capture: String,
    /// What it builds on; `None` for a full read.
    pub increment: Option<Increment>,
    /// Pages whose checksum does not fit.
    pub bad_pages: u64,
    /// The first of them.
    pub bad_page_examples: Vec<BadPage>,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Its OID.
    pub oid: u32,
    /// Where the server has it.
    pub location: String,
    /// Its name.
    pub name: Option<String>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: Option<u64>,
    /// Tables of users, partitioned ones and materialized views included.
    pub tables: Option<u64>,
    /// Name of its encoding.
    pub encoding: String,
    /// LC_COLLATE.
    pub collate: Option<String>,
    /// LC_CTYPE.
    pub ctype: Option<String>,
    /// Version of the collation that its indexes were made with (15 and newer).
    pub collation_version: Option<String>,
    /// Installed extensions.
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

#[cfg(test)]
mod tests {
    use super::*;

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
            system_identifier: "7710603854990343878".into(),
            timeline: 2,
            server_version_num: 150_018,
            version: "PostgreSQL 15.18".into(),
            start_lsn: "0/2000028".into(),
            stop_lsn: "0/2000100".into(),
            start_time: "2026-11-21T15:09:06.994706056Z".into(),
            stop_time: "2026-11-21T15:09:09Z".into(),
            from_standby: true,
            wal: "included".into(),
            wal_segment_size: 16 << 20,
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
        };
        let read = crate::recovery::Cluster::parse(&serde_json::to_vec(&cluster).unwrap()).unwrap();
        assert_eq!(read.system_identifier.to_string(), cluster.system_identifier);
        assert_eq!(
            (read.start_lsn.to_string(), read.stop_lsn.to_string()),
            (cluster.start_lsn, cluster.stop_lsn)
        );
        assert_eq!((read.timeline.get(), read.from_standby, read.data_directory), (2, true, None));
        assert_eq!(read.tablespaces[0].location, "/srv/apart");
        assert_eq!(read.stop_time, 1_795_273_749_000_000_000);
    }
}
