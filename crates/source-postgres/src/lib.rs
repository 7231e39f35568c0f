//! PostgreSQL as a source: a native replication client, base backups, continuous WAL, recovery.
//!
//! Supported are PostgreSQL 14 and newer. Nothing is installed on the database's host: an ordinary role with the
//! REPLICATION attribute and an ordinary line of pg_hba.conf are enough.
//!
//! The library never reads the environment or the clock: connections come from [`options::ConnectOptions`], which is
//! resolved from a text and the [`options::Surroundings`] that the program hands in.
//!
//! ```no_run
//! # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
//! use keepwell_source_postgres::options::{ConnectOptions, Surroundings};
//! use keepwell_source_postgres::wire::Client;
//!
//! let options = ConnectOptions::resolve("host=db1 user=backup", &Surroundings::default(), "my service")?;
//! let mut client = Client::connect(&options).await?;
//! let identity = client.identify().await?;
//! println!("cluster {} is at {}", identity.system_id, identity.position);
//! # Ok(())
//! # }
//! ```
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

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

pub(crate) use backup_core::one_line;
