//! A data directory as the server's own functions show it.
//!
//! They say nothing of owners and permissions: those are what the server gives the files that it makes. Nor do they tell a
//! link from what it leads to, so of the directory itself only directories are followed that are PostgreSQL's.

use std::sync::Arc;

use bytes::Bytes;

use super::super::CaptureError;
use super::super::facts;
use super::super::tape::Head;
use super::control::{CONTROL, CONTROL_BYTES};
use super::place::{Listing, Look, below, control_path};
use super::sessions::Sessions;
use crate::logical::names::literal;
use crate::replication::Tablespace;
use crate::wire::{Client, PgError};

/// What the role must be able to call, but for what begins and ends a backup.
const FUNCTIONS: [&str; 3] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];
const LIST: &str = "list files";

/// A data directory that is read through sessions with its server.
pub(super) struct There {
    pub sessions: Arc<Sessions>,
    /// Permissions of its directories.
    mode: u32,
    /// `None` where the role may not know.
    owner: Option<(u32, u32)>,
}

/// Fails with the names of the functions that the role may not call, of these and of `others`.
async fn rights(client: &mut Client, others: [&str; 2]) -> Result<(), CaptureError> {
    let names: Vec<String> = FUNCTIONS.into_iter().chain(others).map(literal).collect();
    let sql = format!(
        "SELECT current_database() AS database, quote_ident(current_user) AS role, string_agg(f, ', ') AS functions \
         FROM unnest(ARRAY[{}]) AS f WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')",
        names.join(", ")
    );
    let rows = client.query(&sql, "ask what the role may do").await?;
    let text = |column| rows.first(column).unwrap_or_default().to_owned();
    match rows.first("functions") {
        None => Ok(()),
        Some(functions) => Err(CaptureError::Rights {
            functions: functions.to_owned(),
            database: text("database"),
            role: text("role"),
        }),
    }
}

impl There {
    /// Makes sure that the role may call the server's functions, of which `others` begin and end a backup.
    pub async fn new(
        sessions: Sessions,
        client: &mut Client,
        others: [&str; 2],
    ) -> Result<Self, CaptureError> {
        rights(client, others).await?;
        let rows = client.query("SHOW data_directory_mode", "ask for permissions").await?;
        let mode = rows.first("data_directory_mode").and_then(|mode| u32::from_str_radix(mode, 8).ok());
        let owner = owner(&sessions).await?;
        Ok(Self { sessions: Arc::new(sessions), mode: mode.unwrap_or(0o700) & 0o777, owner })
    }

    /// What an operator should know.
    pub fn note(&self) -> Option<&'static str> {
        self.owner.is_none().then_some(
            "whose the files are is not on record, and `restore` makes them root's where it can (`GRANT pg_read_server_files \
             TO` the role); `pg restore` gives them to the user of the server",
        )
    }

    /// What PostgreSQL would have made there.
    pub fn head(&self, path: Vec<String>, directory: bool) -> Head {
        let mode = if directory { self.mode } else { self.mode & 0o666 };
        let (uid, gid) = self.owner.unwrap_or_default();
        Head { path, directory, size: 0, mode, uid, gid, mtime: 0 }
    }

    /// Names in a directory with what they are; none if it is gone.
    pub async fn list(&self, space: Option<u32>, above: &[String]) -> Result<Listing, PgError> {
        let path = below(space, above);
        let path = if path.is_empty() { ".".to_owned() } else { path };
        let (path, inside) = (literal(&path), literal(&format!("{path}/")));
        // Names as they are: what is no UTF-8 would not survive as text.
        let sql = format!(
            "SELECT encode(textsend(n), 'hex'), s.size, s.isdir, extract(epoch FROM s.modification)::bigint \
             FROM pg_ls_dir({path}, true, false) AS n, LATERAL pg_stat_file({inside} || n, true) AS s"
        );
        let mut listing = Listing::default();
        let each = |line: &str| {
            let mut words = line.split('\t');
            let mut word = || words.next();
            let (name, size, directory, time) = (hex::decode(word()?).ok()?, word()?, word()?, word()?);
            match String::from_utf8(name) {
                Err(name) => listing.odd.push(name.into_bytes()),
                // It came and went.
                Ok(_) if size == "\\N" => {}
                Ok(name) => {
                    let path = above.iter().chain([&name]).cloned().collect();
                    let head = self.head(path, directory == "t");
                    let (size, mtime) = (size.parse().ok()?, time.parse().ok()?);
                    listing.names.insert(name, Some(Head { size, mtime, ..head }));
                }
            }
            Some(())
        };
        self.sessions.lines(&sql, LIST, each).await?;
        Ok(listing)
    }

    /// Contents of small files; `None` for what is gone, an inner error with what the server says of it.
    pub async fn together(
        &self,
        files: &[(String, u64)],
    ) -> Result<Vec<Result<Option<Bytes>, String>>, PgError> {
        match self.sessions.values(&question(files)).await {
            Ok(found) if found.len() == files.len() => return Ok(found.into_iter().map(Ok).collect()),
            Ok(_) => {
                return Err(PgError::Protocol("it sends fewer or more files than were asked for".to_owned()));
            }
            Err(PgError::Server { .. }) => {}
            Err(error) => return Err(error),
        }
        // It does not say which of them it was.
        let mut all = Vec::new();
        for file in files {
            all.push(match self.sessions.values(&question(std::slice::from_ref(file))).await {
                Ok(found) => Ok(found.into_iter().next().flatten()),
                Err(PgError::Server { error, .. }) => Err(error.to_string()),
                Err(error) => return Err(error),
            });
        }
        Ok(all)
    }

    /// `pg_control`, which may be caught half written.
    pub async fn control(&self) -> Result<(Vec<u8>, Head), PgError> {
        // A byte more than there should be.
        let file = (CONTROL.to_owned(), CONTROL_BYTES + 1);
        let found = self.sessions.values(&question(&[file])).await?.into_iter().next().flatten();
        let bytes = found.unwrap_or_default().to_vec();
        let size = bytes.len() as u64;
        Ok((bytes, Head { size, ..self.head(control_path(), false) }))
    }
}

/// Whose the files are, where the role may read more than the data directory.
async fn owner(sessions: &Sessions) -> Result<Option<(u32, u32)>, PgError> {
    let status = match sessions.values(&question(&[("/proc/self/status".to_owned(), 4096)])).await {
        Ok(found) => found.into_iter().next().flatten().unwrap_or_default(),
        Err(PgError::Server { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&status);
    let number =
        |name| text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().nth(1)?.parse().ok());
    Ok(number("Uid:").zip(number("Gid:")))
}

/// The first bytes of each file.
fn question(files: &[(String, u64)]) -> String {
    let paths: Vec<String> = files.iter().map(|(path, _)| literal(path)).collect();
    let sizes: Vec<String> = files.iter().map(|(_, size)| size.to_string()).collect();
    format!(
        "SELECT pg_read_binary_file(f.path, 0, f.bytes, true) \
         FROM unnest(ARRAY[{}], '{{{}}}'::bigint[]) AS f(path, bytes)",
        paths.join(", "),
        sizes.join(",")
    )
}

/// Tablespaces but the default ones.
pub(super) async fn spaces(client: &mut Client) -> Result<Vec<Tablespace>, PgError> {
    let found = facts::tablespaces(client).await?;
    Ok(found.into_iter().map(|space| Tablespace { oid: space.oid, location: space.location }).collect())
}

/// Whether a listed name is followed.
pub(super) fn look(listed: &Option<Head>, space: Option<u32>, path: &[String]) -> Look {
    match (listed, space, path) {
        (None, ..) => Look::Gone,
        (Some(head), None, [name]) if head.directory && !is_postgres(name) => Look::Left(format!(
            "the directory `{name}` is none of PostgreSQL's and may be a link to elsewhere: it is left out"
        )),
        (Some(head), ..) => Look::Is(head.clone()),
    }
}

/// Whether a directory of that name, right in the data directory, is one that PostgreSQL makes.
fn is_postgres(name: &str) -> bool {
    name.starts_with("pg_") || matches!(name, "base" | "global" | "log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_postgresql_are_followed() {
        let head = |path: &str, directory| {
            let path = path.split('/').map(str::to_owned).collect();
            Some(Head { path, directory, size: 1, mode: 0, uid: 0, gid: 0, mtime: 0 })
        };
        let is = |path: &str, directory, space| {
            let head = head(path, directory);
            let path: Vec<String> = path.split('/').map(str::to_owned).collect();
            match look(&head, space, &path) {
                Look::Is(found) => Some(found) == head,
                _ => false,
            }
        };
        for name in ["base", "global", "pg_xact", "log"] {
            assert!(is(name, true, None), "{name}");
        }
        assert!(is("archive", false, None) && is("base/archive", true, None) && is("archive", true, Some(9)));
        assert!(!is("archive", true, None), "it may lead to all archives of the company");
        assert!(matches!(look(&None, None, &["base".to_owned()]), Look::Gone));
    }

    #[test]
    fn files_are_asked_for_together() {
        let files = [("PG_VERSION".to_owned(), 3), ("base/5/it's".to_owned(), 8192)];
        assert_eq!(
            question(&files),
            "SELECT pg_read_binary_file(f.path, 0, f.bytes, true) \
             FROM unnest(ARRAY['PG_VERSION', 'base/5/it''s'], '{3,8192}'::bigint[]) AS f(path, bytes)"
        );
    }
}
