//! What a snapshot says about the logical backup that it is: `dump.json` and `database.json` (format.md §17).

use serde::{Deserialize, Serialize};

use super::DumpError;
use crate::cluster::Extension;

/// Kind of the source that dumps databases.
pub const DUMP_KIND: &str = "postgres-dump";
/// Name of the entry that says what the snapshot is of.
pub const DUMP_FILE: &str = "dump.json";
/// Name of the entry with roles and tablespaces.
pub const GLOBALS_FILE: &str = "globals.sql";
/// Entry below which databases lie.
pub const DATABASES: &str = "databases";
/// Name of the entry that describes a database.
pub const DATABASE_FILE: &str = "database.json";
/// Name of the entry with the definitions of a database, an archive of `pg_dump`.
pub const SCHEMA_FILE: &str = "schema.dump";
/// Name of the entry with large objects, an archive of `pg_dump`.
pub const LARGE_OBJECTS_FILE: &str = "large-objects.dump";
/// Entry below which the rows of a database lie.
pub const DATA: &str = "data";
/// A description beyond this is refused.
pub(crate) const DESCRIPTION_BYTES_MAX: u64 = 256 << 20;
const FORMAT: u32 = 1;

/// The content of `dump.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// 1.
    pub format: u32,
    /// As in 150018.
    pub server_version_num: u32,
    /// What `version()` says.
    pub version: String,
    /// Whether the server was in recovery.
    pub from_standby: bool,
    /// Major of the `pg_dump` that wrote the archives; they are read by that or a newer one.
    pub program_major: u32,
    /// RFC 3339.
    pub start_time: String,
    /// RFC 3339.
    pub stop_time: String,
    /// Whether `globals.sql` has the passwords of roles.
    pub passwords: bool,
    /// Names of the tablespaces but the default ones.
    pub tablespaces: Vec<String>,
    /// The databases, in order of their names.
    pub databases: Vec<DatabaseSum>,
    /// What was left out, as sentences.
    pub left_out: Vec<String>,
}

/// A database in `dump.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSum {
    /// Its name.
    pub name: String,
    /// Tables whose rows are there.
    pub tables: u64,
    /// Rows of all of them.
    pub rows: u64,
    /// Bytes of all of them, as text.
    pub bytes: u64,
}

/// The content of a `database.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseDump {
    /// 1.
    pub format: u32,
    /// Its name.
    pub name: String,
    /// What it is created with, and what is set for it.
    #[serde(flatten)]
    pub properties: Properties,
    /// Installed extensions.
    pub extensions: Vec<Extension>,
    /// Tables whose rows belong to the dump.
    pub tables: Vec<Table>,
    /// Where sequences stood, at the earliest at the moment of the snapshot.
    pub sequences: Vec<Sequence>,
    /// Foreign keys between tables.
    pub foreign_keys: Vec<ForeignKey>,
    /// How many large objects there are; `None` if they were left out.
    pub large_objects: Option<u64>,
}

/// What a database is created with, and what is set for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Name of the encoding. That of all rows too.
    pub encoding: String,
    /// LC_COLLATE.
    pub collate: String,
    /// LC_CTYPE.
    pub ctype: String,
    /// `c` (libc), `i` (ICU) or `b` (built in).
    pub provider: String,
    /// Locale of the provider, if it is not libc.
    pub locale: Option<String>,
    /// Rules that tailor an ICU collation.
    pub icu_rules: Option<String>,
    /// Version of the collation as the server recorded it.
    pub collation_version: Option<String>,
    /// Role that owns it.
    pub owner: String,
    /// How many may be connected; -1 for no limit.
    pub connection_limit: i64,
    /// Its comment.
    pub comment: Option<String>,
    /// Who may do what; `None` for the default.
    pub privileges: Option<Vec<Privilege>>,
    /// Settings of `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`.
    pub settings: Vec<Setting>,
}

/// A privilege on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privilege {
    /// The role; `None` for everybody.
    pub role: Option<String>,
    /// `CONNECT`, `CREATE` or `TEMPORARY`.
    pub privilege: String,
    /// Whether it may be passed on.
    pub grantable: bool,
}

/// A setting of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// For this role only.
    pub role: Option<String>,
    /// Its name.
    pub name: String,
    /// Its value, as the catalog has it.
    pub value: String,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// In the source.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Columns of the rows in their order; what the server computes itself is not among them.
    pub columns: Vec<String>,
    /// Number of rows; `None` if they were left out.
    pub rows: Option<u64>,
    /// The sum of the hashes of all rows (format.md §17), 32 hex digits; the order of rows does not matter.
    pub hash: Option<String>,
    /// Bytes of the rows as text.
    pub bytes: u64,
    /// Files that they lie in, named by numbers from 1 on.
    pub parts: u32,
    /// Of a table that an extension made: which of its rows are the user's, as the end of a query. May be empty.
    pub condition: Option<String>,
    /// Loaded into this table, whose partition it is, because hashes of its key do not outlive a dump.
    pub root: Option<(String, String)>,
}

impl Table {
    /// Whether an extension makes it, with what is built on it.
    pub(super) fn is_of_extension(&self) -> bool {
        self.condition.is_some()
    }
}

/// A sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Where it stood.
    pub last_value: i64,
    /// Whether that value was given out.
    pub is_called: bool,
    /// OID of the table whose column it belongs to.
    pub table: Option<u32>,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// Of the constraint, in the source.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// OID of the table that refers.
    pub from: u32,
    /// OID of the table that is referred to.
    pub to: u32,
    /// Whether that one is partitioned, and so not among the tables.
    pub partitioned: bool,
}

impl Dump {
    /// Reads a `dump.json`.
    pub fn parse(json: &[u8]) -> Result<Self, DumpError> {
        let dump: Self = parse(DUMP_FILE, json)?;
        check(DUMP_FILE, dump.format).map(|()| dump)
    }

    /// Major of the server.
    pub fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }
}

impl DatabaseDump {
    /// Reads a `database.json`.
    pub fn parse(json: &[u8]) -> Result<Self, DumpError> {
        let database: Self = parse(DATABASE_FILE, json)?;
        check(DATABASE_FILE, database.format).map(|()| database)
    }

    /// The sums.
    pub fn sum(&self) -> DatabaseSum {
        let counted = || self.tables.iter().filter_map(|table| table.rows);
        DatabaseSum {
            name: self.name.clone(),
            tables: counted().count() as u64,
            rows: counted().sum(),
            bytes: self.tables.iter().map(|table| table.bytes).sum(),
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, json: &[u8]) -> Result<T, DumpError> {
    serde_json::from_slice(json)
        .map_err(|error| DumpError::Description { name: name.to_owned(), reason: error.to_string() })
}

fn check(name: &str, format: u32) -> Result<(), DumpError> {
    match format {
        FORMAT => Ok(()),
        other => {
            let reason = format!("it has format {other}, and this version reads {FORMAT}");
            Err(DumpError::Description { name: name.to_owned(), reason })
        }
    }
}
