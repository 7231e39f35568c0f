//! One database in the place of another.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::DumpError;
use super::super::names::{ident, literal};
use super::super::session::{self, odd};
use super::database::exists;
use crate::options::ConnectOptions;
use crate::wire::{Client, PgError};

/// How long a server is waited for that broke the connection: it may recover from a crash.
const RETURN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// Which databases change names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swap<'a> {
    /// Gets the name, and is not there under its own any more.
    pub new: &'a str,
    /// The name.
    pub name: &'a str,
    /// What the one that had the name is called then.
    pub old: &'a str,
}

impl Swap<'_> {
    /// Puts the new database in the place of the old one. Connections to that are ended, and none can come in between; both
    /// renames are one transaction. If that fails, both are called what they were; [`DumpError::Closed`] if the old one takes
    /// no connections then, whatever became of the names, and [`DumpError::Unclear`] if that could not be found out.
    ///
    /// `client` is a session that `connect` makes again when the connection breaks: the server may have done what it was
    /// told to, and could not say so.
    pub(super) async fn run(self, client: &mut Client, connect: &ConnectOptions) -> Result<(), DumpError> {
        let ours = Backend::of(client).await?;
        let mut swapped = self.close_and_exchange(client).await;
        if let Err(Failed { is_closed: false, source }) = swapped {
            return Err(source.into());
        }
        if swapped.as_ref().is_err_and(|failed| !matches!(failed.source, PgError::Server { .. })) {
            let (again, is_exchanged) = self.look(&ours, connect).await?;
            *client = again;
            if is_exchanged {
                swapped = Ok(());
            }
        }
        let is_exchanged = swapped.is_ok();
        let kept = if is_exchanged { self.old } else { self.name };
        let open = format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", ident(kept));
        if let Err(error) = client.query(&open, &self.action()).await {
            return Err(DumpError::Closed { name: kept.to_owned(), is_exchanged, source: Box::new(error) });
        }
        swapped.map_err(|failed| failed.source.into())
    }

    fn action(&self) -> String {
        format!("replace the database `{}`", self.name)
    }

    async fn close_and_exchange(&self, client: &mut Client) -> Result<(), Failed> {
        let close = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", ident(self.name));
        let closed = client.query(&close, &self.action()).await;
        closed.map_err(|source| {
            let is_closed = !matches!(source, PgError::Server { .. });
            Failed { is_closed, source }
        })?;
        self.exchange(client).await.map_err(|source| Failed { is_closed: true, source })
    }

    /// Waits for the end of each, for as long as it says. Who belongs to no role is an autovacuum worker, which only superusers
    /// may end: the server does so itself before it renames.
    fn end_others(&self) -> String {
        format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname IN ({}, {}) \
             AND pid <> pg_backend_pid() AND usesysid IS NOT NULL",
            literal(self.name),
            literal(self.new)
        )
    }

    async fn exchange(&self, client: &mut Client) -> Result<(), PgError> {
        let action = self.action();
        client.query(&self.end_others(), &action).await?;
        let sql = format!(
            "BEGIN; ALTER DATABASE {name} RENAME TO {}; ALTER DATABASE {} RENAME TO {name}; COMMIT",
            ident(self.old),
            ident(self.new),
            name = ident(self.name)
        );
        let renamed = client.query(&sql, &action).await;
        if let Err(PgError::Server { .. }) = renamed {
            client.query("ROLLBACK", &action).await?;
        }
        renamed.map(drop)
    }

    /// Connects again, and finds out whether the names were exchanged.
    async fn look(&self, ours: &Backend, connect: &ConnectOptions) -> Result<(Client, bool), DumpError> {
        let looked = async {
            let mut client = again(connect).await?;
            ours.end(&mut client).await?;
            // Nobody else knows these names.
            let is_exchanged = exists(&mut client, self.old).await? && !exists(&mut client, self.new).await?;
            Ok::<_, DumpError>((client, is_exchanged))
        };
        looked.await.map_err(|source| DumpError::Unclear {
            name: self.name.to_owned(),
            new: self.new.to_owned(),
            old: self.old.to_owned(),
            source: Box::new(source),
        })
    }
}

/// How far it got.
#[derive(Debug)]
struct Failed {
    /// Whether the old database may take no connections now.
    is_closed: bool,
    source: PgError,
}

async fn again(connect: &ConnectOptions) -> Result<Client, DumpError> {
    let end = Instant::now() + RETURN;
    loop {
        match session::connect(connect, &connect.database).await {
            Err(_) if Instant::now() < end => sleep(PAUSE).await,
            connected => return connected,
        }
    }
}

/// The server's process of a session. Its number alone may pass to another.
#[derive(Debug)]
struct Backend {
    pid: String,
    start: String,
}

impl Backend {
    async fn of(client: &mut Client) -> Result<Self, DumpError> {
        let sql = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let rows = client.query(sql, "ask who we are").await?;
        let text = |column| rows.first(column).map(str::to_owned).ok_or_else(|| odd("our session"));
        Ok(Self { pid: text("pid")?, start: text("backend_start")? })
    }

    /// Ends it, if it is still there. What it did not commit by then it never will.
    async fn end(&self, client: &mut Client) -> Result<(), DumpError> {
        let sql = format!(
            "SELECT pg_terminate_backend(pid, 10000) AS ended FROM pg_stat_activity WHERE pid = {} AND backend_start = {}",
            literal(&self.pid),
            literal(&self.start)
        );
        let rows = client.query(&sql, "end the session that was lost").await?;
        match rows.first("ended") {
            Some("f") => Err(DumpError::Odd("the session that was lost does not end".to_owned())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::{greeted, message, played, row, socket};

    const SWAP: Swap<'static> = Swap { new: "new", name: "x", old: "y" };

    fn who() -> Vec<u8> {
        row(&[("pid", "7"), ("backend_start", "2026-11-22 11:00:00+00")])
    }

    fn done() -> Vec<u8> {
        message(b'C', b"ALTER DATABASE\0")
    }

    #[test]
    fn nobody_is_ended_whom_only_a_superuser_may_end_and_the_server_ends_itself() {
        let sql = SWAP.end_others();
        assert!(
            sql.ends_with("datname IN ('x', 'new') AND pid <> pg_backend_pid() AND usesysid IS NOT NULL"),
            "{sql}"
        );
    }

    #[tokio::test]
    async fn a_database_that_could_not_be_opened_again_is_named() {
        let closed = ("ALTER DATABASE \"x\" ALLOW_CONNECTIONS false", done());
        let (ended, exchanged, back) = (
            ("SELECT pg_terminate_backend", done()),
            ("BEGIN; ALTER DATABASE", done()),
            ("ROLLBACK", done()),
        );
        let opened = ("ALTER DATABASE \"x\" ALLOW_CONNECTIONS true", done());
        // What is not among the answers fails.
        let swapped = async |mut answers: Vec<(&'static str, Vec<u8>)>| {
            answers.push(("SELECT pid", who()));
            let (_dir, mut client) = played(answers).await;
            let nowhere = ConnectOptions::resolve("user=ann", &Default::default(), "test").unwrap();
            SWAP.run(&mut client, &nowhere).await.unwrap_err()
        };
        let refused = swapped(vec![]).await;
        assert!(matches!(refused, DumpError::Server(_)), "nothing was done: {refused}");
        let failed = swapped(vec![closed.clone(), ended.clone(), back.clone(), opened]).await;
        assert!(matches!(failed, DumpError::Server(_)), "it is what it was: {failed}");
        let before = vec![closed.clone(), ended.clone(), back];
        for (kept, expected, answers) in [("x", false, before), ("y", true, vec![closed, ended, exchanged])] {
            let failed = swapped(answers).await;
            let hint = failed.hint().unwrap();
            assert!(hint.contains(&format!("ALTER DATABASE \"{kept}\" ALLOW_CONNECTIONS true")), "{hint}");
            let DumpError::Closed { name, is_exchanged, .. } = failed else { panic!("{failed}") };
            assert_eq!((name.as_str(), is_exchanged), (kept, expected));
        }
    }

    /// A server that breaks the connection at this command, lets us in again, and has these databases then. Gives what came
    /// of it, and what the server was told after that.
    async fn broken(
        at: &'static str,
        there: &'static [&'static str],
    ) -> (Result<(), DumpError>, Vec<String>) {
        let (_dir, listener, options) = socket();
        let server = tokio::spawn(async move {
            let mut heard = Vec::new();
            for is_first in [true, false] {
                let mut stream = greeted(&listener).await;
                while let Ok(b'Q') = stream.read_u8().await {
                    let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
                    stream.read_exact(&mut body).await.unwrap();
                    let command = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
                    if is_first && command.starts_with(at) {
                        break;
                    }
                    let is_there = there.iter().any(|name| command.ends_with(&format!("datname = '{name}'")));
                    let answer = match command.starts_with("SELECT pid") || is_there {
                        true => who(),
                        false => done(),
                    };
                    stream.write_all(&[answer, message(b'Z', b"I")].concat()).await.unwrap();
                    if !is_first {
                        heard.push(command);
                    }
                }
            }
            heard
        });
        let mut client = Client::connect(&options).await.unwrap();
        let swapped = SWAP.run(&mut client, &options).await;
        client.close().await;
        (swapped, server.await.unwrap())
    }

    #[tokio::test]
    async fn when_the_answer_is_lost_what_holds_is_found_out() {
        let open = |name: &str| format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS true");
        let (swapped, heard) = broken("BEGIN", &["x", "y"]).await;
        assert!(swapped.is_ok(), "the server had committed: {swapped:?}");
        assert_eq!(heard.last(), Some(&open("y")));
        let ends =
            |command: &&String| command.contains("pg_terminate_backend") && command.contains("pid = '7'");
        let (end, look) =
            (heard.iter().position(|c| ends(&c)), heard.iter().position(|c| c.ends_with("= 'y'")));
        assert!(
            end.is_some() && end < look,
            "a commit that is under way could come after the look: {heard:?}"
        );
        for at in ["ALTER DATABASE \"x\" ALLOW_CONNECTIONS false", "SELECT pg_terminate_backend", "BEGIN"] {
            let (swapped, heard) = broken(at, &["x", "new"]).await;
            let failed = swapped.unwrap_err();
            assert!(matches!(failed, DumpError::Server(PgError::Broken(_))), "{at}: {failed:?}");
            assert_eq!(heard.last(), Some(&open("x")), "{at}");
        }
    }
}
