//! What the server tells about its cluster over SQL, as far as the role may know.

use std::collections::BTreeMap;

use super::Asked;
use crate::cluster::{Answer, Database, Extension, Space};
use crate::options::ConnectOptions;
use crate::wire::{Client, PgError, Rows};

/// A server recovers only with at least as much of these as its primary had.
const RECOVERY_SETTINGS: &str = "'max_connections', 'max_worker_processes', 'max_wal_senders', \
                                 'max_prepared_transactions', 'max_locks_per_transaction'";

/// A number or a time is far shorter.
const ANSWER_BYTES_MAX: usize = 1000;

/// What is asked before a capture.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub server_version_num: u32,
    pub version: String,
    pub from_standby: bool,
    pub data_checksums: bool,
    pub block_size: u32,
    pub segment_pages: u32,
    pub data_directory: Option<String>,
    pub summarize_wal: bool,
    /// When the server began to count its archiver's work: anew whenever it recovers, and not where it was ended in order.
    pub counted: Option<String>,
    pub settings: BTreeMap<String, String>,
}

fn odd(what: &str) -> PgError {
    PgError::Protocol(format!("its answer to a question about {what} cannot be read"))
}

fn number<T: std::str::FromStr>(rows: &Rows, column: &str) -> Option<T> {
    rows.first(column)?.parse().ok()
}

/// Asks for the facts.
pub(super) async fn ask(client: &mut Client) -> Result<Facts, PgError> {
    let sql = "SELECT version() AS version, pg_is_in_recovery() AS standby, \
               (SELECT setting FROM pg_settings WHERE name = 'server_version_num') AS number, \
               (SELECT setting FROM pg_settings WHERE name = 'data_checksums') AS checksums, \
               (SELECT setting FROM pg_settings WHERE name = 'block_size') AS block, \
               (SELECT setting FROM pg_settings WHERE name = 'segment_size') AS segment, \
               (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS directory, \
               (SELECT setting FROM pg_settings WHERE name = 'summarize_wal') AS summaries, \
               (SELECT extract(epoch FROM stats_reset) FROM pg_stat_archiver) AS counted";
    let rows = client.query(sql, "ask for the server's settings").await?;
    let listed = format!("SELECT name, setting FROM pg_settings WHERE name IN ({RECOVERY_SETTINGS})");
    let settings = client.query(&listed, "ask for the server's settings").await?;
    let read = || {
        Some(Facts {
            server_version_num: number(&rows, "number")?,
            version: rows.first("version")?.to_owned(),
            from_standby: rows.first("standby")? == "t",
            data_checksums: rows.first("checksums")? == "on",
            block_size: number(&rows, "block")?,
            segment_pages: number(&rows, "segment")?,
            data_directory: rows.first("directory").map(str::to_owned),
            summarize_wal: rows.first("summaries") == Some("on"),
            counted: rows.first("counted").map(str::to_owned),
            settings: (0..settings.rows.len())
                .filter_map(|row| {
                    Some((settings.text(row, 0)?.to_owned(), settings.text(row, 1)?.to_owned()))
                })
                .collect(),
        })
    };
    read().ok_or_else(|| odd("the server's settings"))
}

/// Tablespaces but the default ones.
pub(super) async fn tablespaces(client: &mut Client) -> Result<Vec<Space>, PgError> {
    let sql = "SELECT oid, pg_tablespace_location(oid), spcname FROM pg_tablespace \
               WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";
    let rows = client.query(sql, "ask for tablespaces").await?;
    let space = |row| {
        Some(Space {
            oid: rows.text(row, 0)?.parse().ok()?,
            location: rows.text(row, 1)?.to_owned(),
            name: rows.text(row, 2).map(str::to_owned),
        })
    };
    (0..rows.rows.len()).map(space).collect::<Option<_>>().ok_or_else(|| odd("tablespaces"))
}

/// All databases, each asked on a connection of its own; with what could not be found out, and why.
pub(super) async fn databases(
    client: &mut Client,
    connect: &ConnectOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Database>, PgError> {
    let collation = if client.major() >= 15 { "datcollversion" } else { "NULL" };
    let sql = format!(
        "SELECT oid, datname, CASE WHEN has_database_privilege(oid, 'CONNECT') \
         OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN pg_database_size(oid) END, \
         pg_encoding_to_char(encoding), datcollate, datctype, {collation}, \
         datallowconn AND has_database_privilege(oid, 'CONNECT') FROM pg_database ORDER BY oid"
    );
    let rows = client.query(&sql, "ask for databases").await?;
    let text = |row, column| rows.text(row, column).map(str::to_owned);
    let mut found = Vec::new();
    for row in 0..rows.rows.len() {
        let read = || {
            Some(Database {
                oid: rows.text(row, 0)?.parse().ok()?,
                name: text(row, 1)?,
                size: rows.text(row, 2).and_then(|size| size.parse().ok()),
                tables: None,
                encoding: text(row, 3)?,
                collate: text(row, 4),
                ctype: text(row, 5),
                collation_version: text(row, 6),
                extensions: None,
            })
        };
        let mut database = read().ok_or_else(|| odd("databases"))?;
        if rows.text(row, 7) == Some("t") {
            let options = ConnectOptions { database: database.name.clone(), ..connect.clone() };
            if let Err(error) = look_into(&options, &mut database).await {
                let reason = crate::one_line(&error);
                notes.push(format!(
                    "tables and extensions of `{}` are not on record: {reason}",
                    database.name
                ));
            }
        }
        found.push(database);
    }
    Ok(found)
}

async fn look_into(connect: &ConnectOptions, database: &mut Database) -> Result<(), PgError> {
    let mut client = Client::connect(connect).await?;
    let sql = "SELECT count(*) AS tables FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";
    database.tables = number(&client.query(sql, "count the tables").await?, "tables");
    let rows =
        client.query("SELECT extname, extversion FROM pg_extension ORDER BY 1", "ask for extensions").await?;
    let extension =
        |row| Some(Extension { name: rows.text(row, 0)?.to_owned(), version: rows.text(row, 1)?.to_owned() });
    database.extensions = (0..rows.rows.len()).map(extension).collect();
    client.close().await;
    Ok(())
}

/// What questions are answered now; with those that were not, and why.
pub(super) async fn answers(
    connect: &ConnectOptions,
    questions: &[Asked],
    notes: &mut Vec<String>,
) -> Vec<Answer> {
    let mut answers = Vec::new();
    for Asked { database, sql } in questions {
        match ask_one(&connect.ordinary(database), sql).await {
            Ok(answer) => answers.push(Answer { database: database.clone(), sql: sql.clone(), answer }),
            Err(error) => {
                let reason = crate::one_line(&error);
                notes.push(format!("the answer to `{sql}` in `{database}` is not on record: {reason}"));
            }
        }
    }
    answers
}

async fn ask_one(connect: &ConnectOptions, sql: &str) -> Result<Option<String>, PgError> {
    let mut client = Client::connect(connect).await?;
    client.query("SET default_transaction_read_only = on", "prepare the session").await?;
    let rows = client.query(sql, "ask what is to be recorded").await?;
    client.close().await;
    let answer = rows.text(0, 0).map(str::to_owned);
    match answer.as_ref().is_some_and(|answer| answer.len() > ANSWER_BYTES_MAX) {
        true => Err(PgError::Protocol(format!("its answer has more than {ANSWER_BYTES_MAX} bytes"))),
        false => Ok(answer),
    }
}

/// Names of the database and the relation that a file is of, by the OIDs in its path. Asks on a connection of its own.
pub(super) async fn relation_name(
    connect: &ConnectOptions,
    database: &str,
    tablespace: u32,
    file: u32,
) -> Result<Option<String>, PgError> {
    let mut client =
        Client::connect(&ConnectOptions { database: database.to_owned(), ..connect.clone() }).await?;
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_filenode_relation({tablespace}, {file})"
    );
    let rows = client.query(&sql, "ask for the name of a relation").await?;
    client.close().await;
    Ok(rows.first("name").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::{greeted, message, row, socket};

    #[tokio::test]
    async fn answers_are_recorded_and_what_is_not_answered_is_noted() {
        let (_dir, listener, options) = socket();
        let server = tokio::spawn(async move {
            let mut heard = Vec::new();
            for _ in 0..3 {
                let mut stream = greeted(&listener).await;
                while let Ok(b'Q') = stream.read_u8().await {
                    let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
                    stream.read_exact(&mut body).await.unwrap();
                    let command = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
                    let answer = match command.as_str() {
                        "SELECT count" => row(&[("count", "20000")]),
                        "SELECT long" => row(&[("long", "x".repeat(2000).as_str())]),
                        "SELECT none" => message(b'E', b"SERROR\0C42601\0Mwhat?\0\0"),
                        _ => message(b'C', b"SET\0"),
                    };
                    stream.write_all(&[answer, message(b'Z', b"I")].concat()).await.unwrap();
                    heard.push(command);
                }
            }
            heard
        });
        let asked = |sql: &str| Asked { database: "clinic".to_owned(), sql: sql.to_owned() };
        let mut notes = Vec::new();
        let questions = ["SELECT count", "SELECT none", "SELECT long"].map(asked);
        let found = answers(&options, &questions, &mut notes).await;
        let expected =
            Answer { database: "clinic".into(), sql: "SELECT count".into(), answer: Some("20000".into()) };
        assert_eq!(found, [expected]);
        assert!(
            notes[0].starts_with("the answer to `SELECT none` in `clinic` is not on record: "),
            "{notes:?}"
        );
        assert!(notes[1].ends_with("its answer has more than 1000 bytes"), "{notes:?}");
        let heard = server.await.unwrap();
        assert_eq!(heard[0], "SET default_transaction_read_only = on", "it changes nothing");
    }
}
