//! PostgreSQL as a source: a native replication client, base backups, continuous WAL, recovery.
//!
//! Supported are PostgreSQL 14 and newer. Nothing is installed on the database's host: an ordinary role with the
//! REPLICATION attribute and an ordinary line of pg_hba.conf are enough.
//!
//! The library never reads the environment or the clock: connections come from [`options::ConnectOptions`], which is
//! resolved from a text and the [`options::Surroundings`] that the program hands in.

pub mod archive;
pub mod capture;
pub mod cluster;
pub mod history;
pub mod log;
pub mod logical;
pub mod lsn;
pub mod options;
pub mod push;
pub mod receive;
pub mod recovery;
pub mod replication;
pub mod retention;
pub mod serve;
pub mod wire;

#[cfg(test)]
mod testing;

/// An error with its causes, on one line.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
