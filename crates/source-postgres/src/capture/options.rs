//! How to capture.

use std::path::PathBuf;

use super::pagemap::PageMaps;
use crate::replication::Checkpoint;

/// Where the files come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reading {
    /// The server sends them, on one connection.
    #[default]
    Sent,
    /// They are read on the server's own host, by as many threads as the engine has workers. The process must be one that
    /// may read the data directory, and the role one that may call `pg_backup_start` and `pg_backup_stop`.
    Local {
        /// The data directory as it is called here; `None` for the path that the server gives.
        directory: Option<PathBuf>,
    },
    /// They are read by the server's SQL functions, over as many ordinary connections as the engine has workers. The role must
    /// be one that may call `pg_backup_start`, `pg_backup_stop`, `pg_ls_dir`, `pg_stat_file` and `pg_read_binary_file`. Owners
    /// are on record only where it may read all files of the server (`pg_read_server_files`); elsewhere root is.
    Sql,
}

/// How to capture.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Where the files come from.
    pub reading: Reading,
    /// How the backup begins.
    pub checkpoint: Checkpoint,
    /// At most this many kilobytes per second; `None` for no limit. Counts for what is sent.
    pub max_rate_kb: Option<u32>,
    /// Whether pages whose checksum does not fit are only noted. Otherwise they are problems, and the snapshot does not
    /// count as complete.
    pub allow_bad_pages: bool,
    /// Goes into `backup_label`.
    pub label: String,
    /// Where to keep which pages there are, for servers that do not say what changed (16 and older, and newer ones without
    /// `summarize_wal`). Without it, more is stored of files that changed a little.
    pub page_maps: Option<PageMaps>,
    /// What the server is asked before the capture begins; the answers go into `cluster.json`.
    pub questions: Vec<Asked>,
}

/// A question whose answer is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// In which database it is asked. The role needs the right to read what it is about.
    pub database: String,
    /// The statement; the first value of its first row counts.
    pub sql: String,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            reading: Reading::Sent,
            checkpoint: Checkpoint::Fast,
            max_rate_kb: None,
            allow_bad_pages: false,
            label: "keepwell".to_owned(),
            page_maps: None,
            questions: Vec::new(),
        }
    }
}
