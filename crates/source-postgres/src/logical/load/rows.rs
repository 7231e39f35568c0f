//! Rows into tables, several at once, and what is there afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use backup_core::Cancel;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use keepwell_catalog::MapKey;
use tokio::runtime::Handle;

use super::super::describe::Table;
use super::super::names::qualified;
use super::super::snapshot::DumpSnapshot;
use super::super::tables::columns;
use super::super::tally::{Counted, Tally};
use super::super::{DumpError, session};
use super::Proof;
use crate::options::ConnectOptions;
use crate::wire::{Answer, Client};

/// Pieces of a file between the repository and the server; each is a chunk.
const AHEAD: usize = 8;

/// A way to a database, for several sessions.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub handle: Handle,
    pub connect: ConnectOptions,
    pub encoding: String,
    pub jobs: usize,
    pub cancel: Cancel,
}

impl Way {
    /// Fails when somebody wants the load to end.
    pub fn go_on(&self) -> Result<(), DumpError> {
        match self.cancel.is_cancelled() {
            true => Err(backup_core::Error::Cancelled.into()),
            false => Ok(()),
        }
    }

    /// Works through a list, each session on one of its items at a time. The first error ends all.
    fn each<T: Send>(
        &self,
        items: Vec<T>,
        work: impl Fn(&mut Client, T) -> Result<(), DumpError> + Sync,
    ) -> Result<(), DumpError> {
        self.go_on()?;
        let jobs = self.jobs.clamp(1, items.len().max(1));
        let (queue, failed) = (Mutex::new(VecDeque::from(items)), AtomicBool::new(false));
        let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let run = || {
            let mut client = self.handle.block_on(async {
                let mut client = session::connect(&self.connect, &self.connect.database).await?;
                session::raw(&mut client, &self.encoding).await?;
                Ok::<_, DumpError>(client)
            })?;
            while !failed.load(Ordering::Relaxed)
                && let Some(item) = take()
            {
                self.go_on()?;
                work(&mut client, item)?;
            }
            self.handle.block_on(client.close());
            Ok(())
        };
        std::thread::scope(|scope| {
            let run = || run().inspect_err(|_: &DumpError| failed.store(true, Ordering::Relaxed));
            let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(run)).collect();
            let results = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(DumpError::Odd("a thread of the load broke".to_owned())))
            });
            results.fold(Ok(()), Result::and)
        })
    }

    /// Fills tables, those of extensions one after the other.
    pub fn fill(&self, from: &DumpSnapshot, database: &str, tables: &[&Table]) -> Result<(), DumpError> {
        let (mut in_order, mut parts) = (Vec::new(), Vec::new());
        for table in tables {
            for key in from.parts(database, table)? {
                let list = if table.is_of_extension() { &mut in_order } else { &mut parts };
                list.push((*table, key));
            }
        }
        if !in_order.is_empty() {
            let alone = Self { jobs: 1, ..self.clone() };
            alone.each(in_order, |client, (table, key)| self.part(client, from, table, &key))?;
        }
        // What takes longest begins first.
        parts.sort_by_key(|(table, _)| std::cmp::Reverse(table.bytes / u64::from(table.parts.max(1))));
        self.each(parts, |client, (table, key)| self.part(client, from, table, &key))
    }

    fn part(
        &self,
        client: &mut Client,
        from: &DumpSnapshot,
        table: &Table,
        key: &MapKey,
    ) -> Result<(), DumpError> {
        let (target, own) = target(table);
        let action = format!("fill the table {target}");
        // Rows that are frozen from the beginning are written once, and not again by the first who reads them.
        let frozen = own && table.parts == 1 && table.condition.is_none();
        let listed = if table.columns.is_empty() { String::new() } else { format!(" ({})", columns(table)) };
        let copy = format!("COPY {target}{listed} FROM STDIN{}", if frozen { " WITH (FREEZE)" } else { "" });
        if frozen {
            let begin = format!("BEGIN; TRUNCATE ONLY {target}");
            self.handle.block_on(client.query(&begin, &action))?;
        }
        self.handle.block_on(async {
            match client.run(&copy, &action).await? {
                Answer::CopyIn => Ok(()),
                _ => Err(DumpError::Odd("the server does not copy".to_owned())),
            }
        })?;
        self.pour(client, from, key, &action)?;
        if frozen {
            self.handle.block_on(client.query("COMMIT", &action))?;
        }
        Ok(())
    }

    /// From the repository to the server: one thread reads, this one sends.
    fn pour(
        &self,
        client: &mut Client,
        from: &DumpSnapshot,
        key: &MapKey,
        action: &str,
    ) -> Result<(), DumpError> {
        std::thread::scope(|scope| {
            let (sender, pieces) = bounded(AHEAD);
            let reader = scope.spawn(move || {
                let mut pipe = Pipe(sender);
                self.handle.block_on(from.tree().dump_file(key, &mut pipe))
            });
            let sent = self.handle.block_on(send(client, &pieces, action));
            // Whoever still reads for us hears that nobody listens.
            drop(pieces);
            let read = reader.join().unwrap_or_else(|_| Err(backup_core::Error::Task("it broke".to_owned())));
            match (sent, read) {
                (Err(error), _) => Err(error),
                (Ok(copy), Ok(())) => Ok(self.handle.block_on(copy.finish())?),
                (Ok(copy), Err(error)) => {
                    self.handle.block_on(copy.give_up("the backup cannot be read"))?;
                    Err(error.into())
                }
            }
        })
    }

    /// Counts the rows of tables, or reads them too. The order is that of the list.
    pub fn count(&self, tables: &[&Table], proof: Proof) -> Result<Vec<Counted>, DumpError> {
        let found = Mutex::new(vec![Counted::default(); tables.len()]);
        let items: Vec<_> = tables.iter().copied().enumerate().collect();
        self.each(items, |client, (at, table)| {
            let counted = match proof {
                Proof::Counts => self.handle.block_on(rows_of(client, table))?,
                Proof::Content => self.handle.block_on(content_of(client, table))?,
            };
            found.lock().unwrap_or_else(PoisonError::into_inner)[at] = counted;
            Ok(())
        })?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gathers statistics of everything that has some.
    pub fn analyze(&self) -> Result<(), DumpError> {
        let sql = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
                   AND has_table_privilege(c.oid, 'SELECT') ORDER BY c.relpages DESC";
        let names = self.handle.block_on(async {
            let mut client = session::connect(&self.connect, &self.connect.database).await?;
            let rows = client.query(sql, "ask for tables").await?;
            session::each(&rows, "tables", |text| Some(qualified(&text(0)?, &text(1)?)))
        })?;
        self.each(names, |client, name| {
            let sql = format!("ANALYZE {name}");
            self.handle.block_on(client.query(&sql, &format!("analyze {name}")))?;
            Ok(())
        })
    }
}

/// Where rows of a table go, and whether that is the table itself.
fn target(table: &Table) -> (String, bool) {
    match &table.root {
        Some((schema, name)) => (qualified(schema, name), false),
        None => (qualified(&table.schema, &table.name), true),
    }
}

struct Pipe(Sender<Bytes>);

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(Bytes::copy_from_slice(buf));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the server takes no more"))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn send<'a>(
    client: &'a mut Client,
    pieces: &Receiver<Bytes>,
    action: &'a str,
) -> Result<crate::wire::CopyIn<'a>, DumpError> {
    let mut copy = client.copy_into(action);
    while let Ok(piece) = pieces.recv() {
        copy.send(&piece).await?;
    }
    Ok(copy)
}

fn selected(table: &Table) -> String {
    let condition = table.condition.as_deref().unwrap_or_default();
    format!("FROM ONLY {} {condition}", qualified(&table.schema, &table.name))
}

async fn rows_of(client: &mut Client, table: &Table) -> Result<Counted, DumpError> {
    let action = format!("count the rows of {}", qualified(&table.schema, &table.name));
    let rows = client.query(&format!("SELECT count(*) AS count {}", selected(table)), &action).await?;
    let rows = rows.first("count").and_then(|count| count.parse().ok());
    Ok(Counted { rows: rows.ok_or_else(|| session::odd("the number of rows"))?, ..Counted::default() })
}

async fn content_of(client: &mut Client, table: &Table) -> Result<Counted, DumpError> {
    let action = format!("read the table {}", qualified(&table.schema, &table.name));
    let sql = format!("COPY (SELECT {} {}) TO STDOUT", columns(table), selected(table));
    let Answer::CopyOut(_) = client.run(&sql, &action).await? else {
        return Err(DumpError::Odd("the server does not copy".to_owned()));
    };
    let mut tally = Tally::default();
    while let Some(data) = client.copy_out(&action).next().await? {
        tally.take(&data);
    }
    client.answer(&action).await?;
    tally.finish().ok_or_else(|| DumpError::Odd("the last row has no end".to_owned()))
}

/// The first table whose rows are not those of the backup. Tables that are loaded through one root count together: where
/// a row of them belongs is for the server to say.
pub(super) fn difference(tables: &[&Table], found: &[Counted], proof: Proof) -> Option<(String, u64, u64)> {
    let mut sums: BTreeMap<String, (Counted, Counted)> = BTreeMap::new();
    for (table, found) in tables.iter().zip(found) {
        let sum = sums.entry(target(table).0).or_default();
        let expected = Counted {
            rows: table.rows.unwrap_or_default(),
            bytes: 0,
            sum: table.hash.as_deref().and_then(super::super::tally::parse).unwrap_or_default(),
        };
        sum.0.add(expected);
        sum.1.add(*found);
    }
    let differs = |(expected, found): &(Counted, Counted)| {
        expected.rows != found.rows || (proof == Proof::Content && expected.sum != found.sum)
    };
    let (name, (expected, found)) = sums.into_iter().find(|(_, both)| differs(both))?;
    Some((name, expected.rows, found.rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_begun_after_the_wish_to_end() {
        let (_dir, _listener, connect) = crate::testing::socket();
        let cancel = Cancel::default();
        let way = Way {
            handle: Handle::current(),
            connect,
            encoding: "UTF8".into(),
            jobs: 2,
            cancel: cancel.clone(),
        };
        cancel.cancel();
        let ended = way.each(vec![1, 2], |_, item| panic!("{item} was begun"));
        assert!(matches!(ended, Err(DumpError::Repository(backup_core::Error::Cancelled))));
    }

    #[test]
    fn a_table_with_other_rows_is_named_and_partitions_of_one_root_count_together() {
        let table = |name: &str, rows: u64, root: Option<&str>| Table {
            oid: 1,
            schema: "s".into(),
            name: name.into(),
            columns: Vec::new(),
            rows: Some(rows),
            hash: Some(Counted { sum: u128::from(rows), ..Counted::default() }.hash()),
            bytes: 0,
            parts: 1,
            condition: None,
            root: root.map(|root| ("s".to_owned(), root.to_owned())),
        };
        let (a, b, c) = (table("a", 3, Some("r")), table("b", 4, Some("r")), table("c", 5, None));
        let tables = [&a, &b, &c];
        let counted = |rows: u64, sum: u128| Counted { rows, bytes: 0, sum };
        let found = [counted(7, 7), counted(0, 0), counted(5, 6)];
        assert_eq!(difference(&tables, &found, Proof::Counts), None);
        assert_eq!(difference(&tables, &found, Proof::Content), Some(("\"s\".\"c\"".to_owned(), 5, 5)));
        let found = [counted(7, 7), counted(1, 0), counted(5, 5)];
        assert_eq!(difference(&tables, &found, Proof::Counts), Some(("\"s\".\"r\"".to_owned(), 7, 8)));
    }
}
