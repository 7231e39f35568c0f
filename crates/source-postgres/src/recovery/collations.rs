//! Collations that sort otherwise on this host than where the indexes of a cluster were made.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::scratch::{Scratch, output};
use super::server::{Binaries, ServerError, command};
use crate::wire::PgError;

/// What a cluster has from the beginning, and where it is asked what is no database's own. Either may be gone or closed.
pub(super) const FIRST: [&str; 2] = ["postgres", "template1"];
/// Databases that can be asked. What a DROP DATABASE left half removed has this limit, and nobody gets in.
pub(super) const DATABASES: &str =
    "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname";
/// What a database's own objects use: each cluster has hundreds of others.
const USED: &str = "SELECT format('%I.%I', n.nspname, c.collname), c.collversion, pg_collation_actual_version(c.oid) \
    FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace \
    WHERE c.collversion <> pg_collation_actual_version(c.oid) AND EXISTS (SELECT FROM pg_depend d \
    WHERE d.refclassid = 'pg_collation'::regclass AND d.refobjid = c.oid)";
/// That of the database itself, which has a version from 15 on.
const DEFAULT: &str = "SELECT '', datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
    WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)";
/// A server that is open answers at once.
const CONNECT_TIMEOUT_S: &str = "10";

/// A collation whose version on this host is another one: what is ordered by it, indexes above all, may not be so here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherCollation {
    /// The database.
    pub database: String,
    /// Its name; `None` for the one that the database itself has.
    pub name: Option<String>,
    /// The version that the indexes were made with.
    pub recorded: String,
    /// The version here.
    pub here: String,
}

impl fmt::Display for OtherCollation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "`{name}` of ")?;
        }
        write!(
            f,
            "database `{}` was made with version {}, and here is {}",
            self.database, self.recorded, self.here
        )
    }
}

fn question(major: u32) -> String {
    if major >= 15 { format!("{DEFAULT} UNION ALL {USED} ORDER BY 1") } else { format!("{USED} ORDER BY 1") }
}

fn other(database: &str, row: [&str; 3]) -> OtherCollation {
    let [name, recorded, here] = row.map(str::to_owned);
    OtherCollation {
        database: database.to_owned(),
        name: Some(name).filter(|n| !n.is_empty()),
        recorded,
        here,
    }
}

impl Scratch {
    /// Collations of its databases that are other ones on this host; its server is open.
    pub async fn other_collations(&self, major: u32) -> Result<Vec<OtherCollation>, PgError> {
        let (mut found, question) = (Vec::new(), question(major));
        for database in self.databases().await? {
            let rows = self.query(&database, &question).await?;
            for row in 0..rows.rows.len() {
                let text = |column| rows.text(row, column).unwrap_or_default();
                found.push(other(&database, [text(0), text(1), text(2)]));
            }
        }
        Ok(found)
    }
}

/// Asks the server of a data directory as the user that it runs as, which `peer` and `trust` let in.
#[derive(Debug)]
pub struct LocalServer {
    program: PathBuf,
    owner: Option<(u32, u32)>,
    directory: PathBuf,
    socket: String,
    port: String,
}

impl LocalServer {
    /// The server that runs there. `None` without `psql` of its major, or if it has no socket.
    pub fn find(binaries: &Binaries, directory: &Path, owner: Option<(u32, u32)>) -> Option<Self> {
        let noted = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
        let (port, socket) = address(&noted)?;
        Some(Self {
            program: binaries.program("psql")?,
            owner,
            directory: directory.to_owned(),
            socket,
            port,
        })
    }

    /// Collations of its databases that are other ones on this host.
    pub async fn other_collations(&self, major: u32) -> Result<Vec<OtherCollation>, ServerError> {
        let (mut found, question) = (Vec::new(), question(major));
        for database in self.databases().await?.split('\0').filter(|name| !name.is_empty()) {
            let answer = self.ask(database, &question).await?;
            let fields: Vec<&str> = answer.split('\0').collect();
            found.extend(fields.as_chunks::<3>().0.iter().map(|row| other(database, *row)));
        }
        Ok(found)
    }

    async fn databases(&self) -> Result<String, ServerError> {
        let [first, second] = FIRST;
        match self.ask(first, DATABASES).await {
            Err(refused) => self.ask(second, DATABASES).await.map_err(|_| refused),
            answer => answer,
        }
    }

    /// Fields of all rows, each with a zero byte behind it.
    async fn ask(&self, database: &str, sql: &str) -> Result<String, ServerError> {
        let mut command: Command = command(&self.program, self.owner, &self.directory);
        command.args([
            "-X",
            "-A",
            "-t",
            "-w",
            "-z",
            "-0",
            "-q",
            "-h",
            &self.socket,
            "-p",
            &self.port,
            "-c",
            sql,
        ]);
        command.arg("-d").arg(connection_to(database)).env("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT_S);
        output(command).await
    }
}

/// A name with `=` in it would be read as a connection string.
fn connection_to(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Port and first socket, of lines that the server writes into `postmaster.pid`.
fn address(noted: &str) -> Option<(String, String)> {
    let mut lines = noted.lines().skip(3);
    let (port, socket) = (lines.next()?.trim(), lines.next()?.trim());
    let is_port = port.parse::<u16>().is_ok();
    (is_port && socket.starts_with('/')).then(|| (port.to_owned(), socket.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn programs(directory: &Path, psql: &str) -> Binaries {
        let server = "#!/bin/sh\necho 'postgres (PostgreSQL) 15.1'\n";
        for (name, text) in [("postgres", server), ("psql", psql)] {
            fs::write(directory.join(name), text).unwrap();
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Binaries::find(15, &[directory.to_owned()]).unwrap()
    }

    #[tokio::test]
    async fn a_server_is_asked_for_all_its_databases_whatever_they_are_called() {
        let dir = tempfile::tempdir().unwrap();
        // The first question is the one for databases; the last word is where it is asked.
        let psql = "#!/bin/sh\nfor last; do :; done\ncase $last in\n\
            \"dbname='postgres'\") case $* in *'datconnlimit <> -2'*) printf 'a=b\\0it'\"'\"'s\\0postgres\\0';; esac;;\n\
            \"dbname='a=b'\") printf '\\0002.31\\0002.36\\0public.\"x y\"\\000153.14\\000153.112\\0';;\n\
            \"dbname='it\\\\'s'\") echo 'permission denied' >&2; exit 2;;\nesac\n";
        let binaries = programs(dir.path(), psql);
        let directory = dir.path().join("data");
        fs::create_dir(&directory).unwrap();
        assert!(LocalServer::find(&binaries, &directory, None).is_none(), "nothing runs there");
        fs::write(directory.join("postmaster.pid"), "7\n/data\n1\n5433\n/run/socket\n*\n").unwrap();
        let server = LocalServer::find(&binaries, &directory, None).unwrap();
        assert_eq!((server.port.as_str(), server.socket.as_str()), ("5433", "/run/socket"));
        let failed = server.other_collations(15).await.unwrap_err();
        assert!(failed.to_string().ends_with("permission denied"), "{failed}");
        let binaries = programs(dir.path(), &psql.replace("exit 2", "exit 0"));
        let server = LocalServer::find(&binaries, &directory, None).unwrap();
        let shown: Vec<_> =
            server.other_collations(15).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "database `a=b` was made with version 2.31, and here is 2.36",
                "`public.\"x y\"` of database `a=b` was made with version 153.14, and here is 153.112",
            ]
        );
    }

    #[tokio::test]
    async fn a_server_without_a_database_of_the_usual_name_is_asked_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let psql = "#!/bin/sh\nfor last; do :; done\ncase $last in\n\
            \"dbname='template1'\") case $* in *datconnlimit*) printf 'template1\\0';; \
            *) printf '\\0002.31\\0002.36\\0';; esac;;\n\
            *) echo 'database \"postgres\" does not exist' >&2; exit 2;;\nesac\n";
        let binaries = programs(dir.path(), psql);
        fs::write(dir.path().join("postmaster.pid"), "7\n/data\n1\n5433\n/run/socket\n*\n").unwrap();
        let server = LocalServer::find(&binaries, dir.path(), None).unwrap();
        let found = server.other_collations(15).await.unwrap();
        assert_eq!(found, [other("template1", ["", "2.31", "2.36"])]);
        let binaries = programs(dir.path(), &psql.replace("template1", "clinic"));
        let refused =
            LocalServer::find(&binaries, dir.path(), None).unwrap().other_collations(15).await.unwrap_err();
        assert!(refused.to_string().ends_with("database \"postgres\" does not exist"), "{refused}");
    }

    #[test]
    fn only_a_server_with_a_socket_has_an_address() {
        for text in
            ["", "7\n/data\n1\n5433\n", "7\n/data\n1\n5433\n\n127.0.0.1\n", "7\n/data\n1\nport\n/run\n"]
        {
            assert_eq!(address(text), None, "{text:?}");
        }
        assert!(!question(14).contains("datcollversion") && question(15).contains("datcollversion"));
    }
}
