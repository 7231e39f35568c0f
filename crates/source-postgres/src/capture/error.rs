//! Why a cluster could not be captured.

use std::io;

use keepwell_catalog::MapError;

use super::files::LocalError;
use super::tape::TapeError;
use crate::lsn::Lsn;
use crate::wire::PgError;

/// Why a cluster could not be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The server.
    #[error(transparent)]
    Server(#[from] PgError),
    /// An archive that cannot be read.
    #[error(transparent)]
    Tape(#[from] TapeError),
    /// A name that cannot be a key.
    #[error(transparent)]
    Name(#[from] MapError),
    /// The files of the server cannot be read here.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The role may not call what files are read by.
    #[error("the role `{role}` may not call {functions}")]
    Rights {
        /// The role, quoted for SQL where it must be.
        role: String,
        /// The functions with their arguments, separated by commas.
        functions: String,
        /// The database of the connection; rights differ between databases.
        database: String,
    },
    /// The server always writes `pg_control` anew, or it is damaged.
    #[error("`pg_control` has a checksum that does not fit, however often it is read")]
    Control,
    /// A segment of WAL cannot be opened.
    #[error("open `pg_wal/{file}`")]
    Wal {
        /// Its name.
        file: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server is built in a way that is not supported.
    #[error("the server is built with {what} of {size} bytes, and {supported} are supported")]
    Build {
        /// Pages or segments.
        what: &'static str,
        /// Their size.
        size: u64,
        /// The size that is supported.
        supported: u64,
    },
    /// WAL that recovery needs did not come along.
    #[error("not all WAL from {start} to {stop} is there: `{file}` is missing")]
    WalMissing {
        /// Where the backup begins.
        start: Lsn,
        /// Where it ends.
        stop: Lsn,
        /// The file.
        file: String,
    },
    /// A file was cut off between the last summary and the begin of the backup, and another summary came in between.
    #[error(
        "`{path}` was cut off while the backup began, and the server may not tell all that changed in it since"
    )]
    CutOff {
        /// The file in the snapshot.
        path: String,
    },
    /// The server does what no server does.
    #[error("{0}")]
    Odd(String),
    /// A content was given up before its end.
    #[error("a file of the base backup was not read to its end")]
    NotRead,
    /// The engine wants no more.
    #[error("interrupted")]
    Stopped,
}

impl CaptureError {
    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Server(error) => error.hint(),
            Self::Local(error) => Some(error.hint()),
            Self::Rights { role, functions, database } => Some(format!(
                "As a superuser, in the database `{database}`: `GRANT EXECUTE ON FUNCTION {functions} TO {role}`."
            )),
            Self::Control => Some(
                "Nothing was committed. Run it again; look at the disk of the server if it fails again.".into(),
            ),
            Self::CutOff { .. } => Some("Nothing was committed. Run it again.".into()),
            Self::WalMissing { .. } => Some(
                "Nothing was committed. Free a replication slot (`max_replication_slots`), or raise `wal_keep_size`, and \
                 run it again."
                    .into(),
            ),
            _ => None,
        }
    }
}
