//! A server of our own, for formats that only PostgreSQL's programs write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::load::LoadOptions;
use super::{DumpError, Format};
use crate::options::{ConnectOptions, Surroundings};
use crate::recovery::server::{RunningServer, Start, StopSignal, Until, command};
use crate::recovery::{Binaries, ServerError, run};

/// An empty server starts in a second.
const START_MAX: Duration = Duration::from_secs(120);
const SUPERUSER: &str = "postgres";

/// An empty server that nobody else can reach. It is to be stopped; its directories are the caller's to remove.
#[derive(Debug)]
pub struct ScratchServer {
    server: RunningServer,
    connect: ConnectOptions,
}

/// Where such a server lives.
#[derive(Debug, Clone)]
pub struct ScratchPlace {
    /// A directory of its own, which belongs to `owner`.
    pub directory: PathBuf,
    /// A directory for its socket, with a short name, that only the owner can enter.
    pub socket: PathBuf,
    /// User and group that it runs as; `None` for our own.
    pub owner: Option<(u32, u32)>,
}

impl ScratchServer {
    /// Makes a cluster and starts a server on it.
    pub async fn start(binaries: &Binaries, place: &ScratchPlace) -> Result<Self, DumpError> {
        let data = place.directory.join("data");
        let initdb = binaries.program("initdb").ok_or_else(|| missing("initdb"))?;
        let mut make = command(&initdb, place.owner, &place.directory);
        make.args(["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
        run(make).await?;
        let socket = place.socket.display().to_string();
        let settings = [
            ("listen_addresses", ""),
            ("port", "5432"),
            ("unix_socket_directories", socket.as_str()),
            ("autovacuum", "off"),
            ("fsync", "off"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("max_wal_size", "10GB"),
            ("max_locks_per_transaction", "1024"),
        ];
        let start = Start {
            binaries: binaries.clone(),
            directory: data,
            owner: place.owner,
            options: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            log: place.directory.join("server.log"),
        };
        let mut server = start.run()?;
        server.wait(Until::Open, START_MAX).await?;
        let quoted = socket.replace('\\', r"\\").replace('\'', r"\'");
        let text = format!("host='{quoted}' port=5432 user={SUPERUSER} dbname=postgres");
        let connect = ConnectOptions::resolve(&text, &Surroundings::default(), "keepwell")
            .map_err(crate::wire::PgError::from)?;
        Ok(Self { server, connect })
    }

    /// How it is reached.
    pub fn connect(&self) -> &ConnectOptions {
        &self.connect
    }

    /// Writes one of its databases as an archive of `pg_dump`.
    pub async fn archive(
        &self,
        database: &str,
        format: Format,
        options: &LoadOptions,
        output: &Path,
    ) -> Result<(), DumpError> {
        let mut dump = options.command("pg_dump", Some(&self.connect.ordinary(database)));
        match format {
            Format::Custom => dump.arg("--format=custom"),
            Format::Directory => {
                dump.arg("--format=directory").arg(format!("--jobs={}", options.jobs.max(1)))
            }
        };
        dump.arg("--file").arg(output);
        Ok(run(dump).await?)
    }

    /// Stops it at once.
    pub async fn stop(self) -> Result<(), DumpError> {
        Ok(self.server.stop(StopSignal::Immediate).await?)
    }
}

fn missing(program: &str) -> ServerError {
    let source = std::io::Error::new(std::io::ErrorKind::NotFound, "it is not beside the server");
    ServerError::Run { program: program.to_owned(), source }
}
