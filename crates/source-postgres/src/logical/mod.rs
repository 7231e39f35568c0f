//! Logical backups: databases as definitions and rows (format.md §17), out of a server of any supported major and into
//! one of the same or a newer one.
//!
//! Definitions are written and read by PostgreSQL's own `pg_dump` and `pg_restore`; rows go through connections of our
//! own, several at once that see the same snapshot. An ordinary role is enough, and REPLICATION is not needed.

mod archive_head;
mod catalog;
mod content;
mod describe;
mod export;
mod import;
mod load;
pub(crate) mod names;
mod out;
mod programs;
mod selection;
mod server;
mod session;
mod snapshot;
mod source;
mod tables;
mod tally;

use std::io;

use keepwell_catalog::MapError;

pub use self::describe::{
    DATA, DATABASE_FILE, DATABASES, DUMP_FILE, DUMP_KIND, DatabaseDump, DatabaseSum, Dump, ForeignKey,
    GLOBALS_FILE, LARGE_OBJECTS_FILE, Privilege, Properties, SCHEMA_FILE, Sequence, Setting, Table,
};
pub use self::export::write_sql;
pub use self::import::{Compression, DumpFormat, IMPORT_FILE, IMPORT_KIND, Import, ImportSource};
pub use self::load::{Destination, LoadOptions, Loaded, Loader, MadeRoles, Owners, Privileges, Proof, Roles};
pub use self::names::Pattern;
pub use self::programs::Programs;
pub use self::selection::Selection;
pub use self::server::{ScratchPlace, ScratchServer};
pub use self::snapshot::DumpSnapshot;
pub use self::source::{DumpOptions, DumpSource};

/// Reads the head of an archive of `pg_dump`; for the fuzzer.
#[doc(hidden)]
pub fn fuzz_archive_head(bytes: &[u8]) {
    if let Some(head) = archive_head::archive_head(bytes) {
        assert!(head.database.len() + head.server.len() <= 3 * bytes.len());
        let _ = head.time(&jiff::tz::TimeZone::UTC);
    }
}
use crate::recovery::ServerError;
use crate::wire::PgError;

/// Archives that `pg_restore` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One file, `-Fc`.
    Custom,
    /// A directory, `-Fd`.
    Directory,
}

/// Why databases could not be dumped or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The server.
    #[error(transparent)]
    Server(#[from] PgError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// A server of our own.
    #[error(transparent)]
    Scratch(#[from] ServerError),
    /// A name that cannot be a key.
    #[error(transparent)]
    Name(#[from] MapError),
    /// There are no client programs that are new enough.
    #[error("`pg_dump`, `pg_dumpall` and `pg_restore` of PostgreSQL {major} or newer are not on this host")]
    NoPrograms {
        /// The oldest that will do.
        major: u32,
    },
    /// A program could not be run.
    #[error("run `{program}`")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("`{program}` failed: {reason}")]
    Program {
        /// The program.
        program: String,
        /// What it complained about.
        reason: String,
    },
    /// A database that was asked for is not there.
    #[error("there is no database `{name}` {place}")]
    NoDatabase {
        /// Its name.
        name: String,
        /// `on the server`, `in the snapshot`.
        place: &'static str,
    },
    /// A selection that means nothing.
    #[error("`{pattern}` fits no table of database `{database}`")]
    FitsNothing {
        /// What was asked for.
        pattern: String,
        /// Where.
        database: String,
    },
    /// The server cannot make extensions that the database uses.
    #[error("the server does not have the extensions `{names}`")]
    NoExtensions {
        /// Their names.
        names: String,
    },
    /// A program failed with definitions of single schemas or tables, which come without extensions.
    #[error("the backup makes no extensions, and its database had `{names}`")]
    LacksExtensions {
        /// Their names.
        names: String,
        /// What failed.
        #[source]
        source: Box<DumpError>,
    },
    /// Roles that the database is to belong to, or that may do something with it, are missing.
    #[error("the server does not have the roles `{names}`")]
    NoRoles {
        /// Their names.
        names: String,
    },
    /// What was loaded is not what was dumped.
    #[error("{table} has {found} rows, and the backup has {expected}; or their content differs")]
    RowsDiffer {
        /// The table.
        table: String,
        /// In the backup.
        expected: u64,
        /// In the database.
        found: u64,
    },
    /// A database that was closed while names were exchanged could not be opened again.
    #[error("the database `{name}` takes no connections")]
    Closed {
        /// Its name by now.
        name: String,
        /// Whether the new one is in its place.
        is_exchanged: bool,
        /// Why not.
        #[source]
        source: Box<PgError>,
    },
    /// The connection was lost while names were exchanged, and no other came about.
    #[error("whether `{new}` took the place of the database `{name}` could not be found out")]
    Unclear {
        /// The name.
        name: String,
        /// What the new database was called.
        new: String,
        /// What the old one is called if it did.
        old: String,
        /// Why not.
        #[source]
        source: Box<DumpError>,
    },
    /// A description that cannot be read.
    #[error("`{name}` cannot be read: {reason}")]
    Description {
        /// The entry.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A file.
    #[error("{operation} `{path}`")]
    File {
        /// The verb.
        operation: String,
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file that is something else.
    #[error("`{path}` is no dump of PostgreSQL: {reason}")]
    NotADump {
        /// The file.
        path: String,
        /// How that shows.
        reason: String,
    },
    /// A file is not what it was.
    #[error("`{path}` is damaged: `{beside}` says `{expected}`, and it has `{found}`")]
    Checksum {
        /// The file.
        path: String,
        /// The file with checksums.
        beside: String,
        /// What that says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file with checksums that has none.
    #[error("`{beside}` has no checksum of `{name}`")]
    NoChecksum {
        /// The file with checksums.
        beside: String,
        /// The file.
        name: String,
    },
    /// The server does what no server does.
    #[error("{0}")]
    Odd(String),
    /// The engine wants no more.
    #[error("interrupted")]
    Stopped,
}

impl DumpError {
    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Server(PgError::Server { error, .. }) if error.code == "42501" => Some(
                "A dump reads everything: `GRANT pg_read_all_data TO` the role, or leave things out with \
                 `--exclude-table` or `--exclude-schema`."
                    .into(),
            ),
            Self::Server(PgError::Server { error, .. }) if error.code == "55P03" => Some(
                "Somebody changes the definition of that table at this moment. Run it again afterwards."
                    .into(),
            ),
            Self::Server(error) => error.hint(),
            Self::Repository(error) => error.hint(),
            Self::Scratch(error) => error.hint(),
            Self::Closed { name, .. } => Some(format!(
                "Open it again: `ALTER DATABASE {} ALLOW_CONNECTIONS true`.",
                names::ident(name)
            )),
            Self::Unclear { name, old, .. } => Some(format!(
                "Look at the server: if it has a database `{old}`, that is the old one, and `{name}` the new one. Whichever is \
                 the old one, open it again: `ALTER DATABASE {} ALLOW_CONNECTIONS true`, or of {}.",
                names::ident(old),
                names::ident(name)
            )),
            Self::NoExtensions { .. } => Some(
                "Install them on the server's host, for its major; PostgreSQL's own are in the package `postgresql-contrib`."
                    .into(),
            ),
            Self::LacksExtensions { .. } => Some(
                "`pg_dump` leaves them out of a dump of single schemas or tables. Make a database by `CREATE DATABASE`, \
                 `CREATE EXTENSION` and `CREATE SCHEMA`, and load into it with `--clean`; or dump the whole database, and load a \
                 part of it."
                    .into(),
            ),
            Self::NoRoles { .. } => Some(
                "Make them, or load it without: `--owner ROLE` or `--no-owner`, and `--no-privileges`.".into(),
            ),
            Self::NoPrograms { .. } => {
                Some("Install the client programs, or name their directory: `--bin-dir DIR`.".into())
            }
            _ => None,
        }
    }
}
