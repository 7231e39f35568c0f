//! Why a cluster could not be restored.

use std::io;
use std::path::Path;

/// Why a cluster could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The repository or the target.
    #[error(transparent)]
    Engine(#[from] backup_core::Error),
    /// A server runs in the directory.
    #[error("a server runs in `{directory}` (process {pid})")]
    Running {
        /// The data directory.
        directory: String,
        /// Its process, or one of its processes.
        pid: u32,
    },
    /// A server has a tablespace where one is to be restored.
    #[error("a server (process {pid}) has a tablespace in `{place}`")]
    InUse {
        /// The tablespace's place.
        place: String,
        /// One of the server's processes.
        pid: u32,
    },
    /// A cluster stands in a directory below the place, which would be removed.
    #[error("`{cluster}`, a data directory, stands in `{directory}`, and would be removed")]
    AboveCluster {
        /// The place.
        directory: String,
        /// The directory in it.
        cluster: String,
    },
    /// Nothing of a cluster stands in the place, and other things, which would be removed.
    #[error("`{directory}` is no data directory, and what stands in it would be removed, such as `{name}`")]
    NoCluster {
        /// The place.
        directory: String,
        /// One of the things.
        name: String,
    },
    /// A base backup is made of files and directories; anything else could lead a restore out of its place.
    #[error("`{path}` in the snapshot is a {kind}, which no base backup has")]
    NoFile {
        /// Where in the snapshot.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// What stands in `pg_wal` cannot be moved aside.
    #[error("the WAL in `{wal}` cannot be moved to `{place}`, which is on another file system")]
    OtherFileSystem {
        /// Where it is.
        wal: String,
        /// Where it would go.
        place: String,
    },
    /// A tablespace has no place.
    #[error("tablespace {oid} has no place to go")]
    NoPlace {
        /// Its number.
        oid: u32,
    },
    /// Some files could not be restored: the cluster must not be started.
    #[error("{count} files could not be restored, the first is `{first}`: {reason}")]
    Incomplete {
        /// How many.
        count: u64,
        /// The first.
        first: String,
        /// Why not.
        reason: String,
    },
    /// An operation on a file failed.
    #[error("{operation} `{path}`")]
    Io {
        /// The verb.
        operation: &'static str,
        /// Where.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// What the operator may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.hint(),
            Self::Running { directory, .. } => Some(format!("Stop it first: `pg_ctl stop -D {directory}`.")),
            Self::InUse { place, .. } => Some(format!(
                "Stop that server if this cluster takes its place, or say where this one's tablespace goes: `--tablespace \
                 {place}=NEW`."
            )),
            Self::AboveCluster { cluster, .. } => {
                Some(format!("Name the data directory itself: `{cluster}`, or one that is empty."))
            }
            Self::NoCluster { .. } => {
                Some("Name the data directory itself, or one that is empty or not there yet.".into())
            }
            Self::Incomplete { .. } => {
                Some("`keepwell check` says what is damaged; a copy may have it.".into())
            }
            Self::OtherFileSystem { wal, .. } => Some(format!(
                "It may be the last there is: move `{wal}` to a safe place yourself, and restore again."
            )),
            Self::NoFile { .. } | Self::NoPlace { .. } | Self::Io { .. } => None,
        }
    }
}

/// Puts the operation and the place to the error of a file.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.display().to_string();
    move |source| RestoreError::Io { operation, path, source }
}
