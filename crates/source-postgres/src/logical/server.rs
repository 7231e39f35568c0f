//! A server of our own, for formats that only PostgreSQL's programs write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::load::LoadOptions;
use super::{DumpError, Format};
use crate::options::{ConnectOptions, Surroundings};
use crate::recovery::server::{RunningServer, Start, StopSignal, Until, command};
use crate::recovery::watch::Watch;
use crate::recovery::{Binaries, ServerError, run};

/// An empty server starts in a second.
const START_MAX: Duration = Duration::from_secs(120);
const SUPERUSER: &str = "postgres";

/// An empty server that nobody else can reach. Dropping it stops it, and may take some seconds; it also ends when this
/// process dies. Its directories are the caller's to remove.
#[derive(Debug)]
pub struct ScratchServer {
    /// `None` once it was stopped.
    server: Option<RunningServer>,
    watch: Option<Watch>,
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
            directory: data.clone(),
            owner: place.owner,
            options: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            log: place.directory.join("server.log"),
        };
        let quoted = socket.replace('\\', r"\\").replace('\'', r"\'");
        let text = format!("host='{quoted}' port=5432 user={SUPERUSER} dbname=postgres");
        let connect = ConnectOptions::resolve(&text, &Surroundings::default(), "keepwell")
            .map_err(crate::wire::PgError::from)?;
        // From here on it is ours to stop, also when nobody waits for it any more.
        let mut started = Self { server: None, watch: None, connect };
        let server = started.server.insert(start.run()?);
        let watch = Watch::over(server.pid(), &data, place.owner)
            .map_err(|source| ServerError::Run { program: "/bin/sh".to_owned(), source })?;
        started.watch = Some(watch);
        server.wait(Until::Open, START_MAX).await?;
        Ok(started)
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
    pub async fn stop(mut self) -> Result<(), DumpError> {
        match self.server.take() {
            Some(server) => Ok(server.stop(StopSignal::Immediate).await?),
            None => Ok(()),
        }
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.stop_now();
        }
        // It watched until now.
        self.watch = None;
    }
}

fn missing(program: &str) -> ServerError {
    let source = std::io::Error::new(std::io::ErrorKind::NotFound, "it is not beside the server");
    ServerError::Run { program: program.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_server_that_nobody_waits_for_any_more_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let version = "case $1 in --version) echo 'postgres (PostgreSQL) 15.1'; exit;; esac";
        for (name, script) in [
            ("initdb", "for last; do :; done; mkdir \"$last\""),
            ("postgres", "echo $$ > pid.new; mv pid.new pid; exec sleep 600"),
        ] {
            fs::write(path(name), format!("#!/bin/sh\n{version}\n{script}\n")).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let binaries = Binaries::find(15, &[dir.path().to_owned()]).unwrap();
        let place =
            ScratchPlace { directory: dir.path().to_owned(), socket: dir.path().to_owned(), owner: None };
        let begun = async {
            while !path("data/pid").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            started = ScratchServer::start(&binaries, &place) => panic!("{started:?}"),
            () = begun => {}
        }
        let pid = fs::read_to_string(path("data/pid")).unwrap();
        assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists());
    }
}
