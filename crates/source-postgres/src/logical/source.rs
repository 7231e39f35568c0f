//! Databases as a source of snapshots.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::env::{Clock, Timestamp};
use backup_core::source::{Item, Opened, Order, Preflight, Source, SourceError};
use tokio::runtime::Handle;

use super::DumpError;
use super::catalog::{self, Inventory};
use super::content::{Outcome, ProgramContent, RowsContent, Shared};
use super::describe::{
    DATABASE_FILE, DATABASES, DUMP_FILE, DUMP_KIND, DatabaseDump, Dump, GLOBALS_FILE, LARGE_OBJECTS_FILE,
    Properties, SCHEMA_FILE, Table,
};
use super::names::{component, qualified};
use super::out::{Out, Visit};
use super::programs::Programs;
use super::selection::Selection;
use super::session::{self, odd};
use super::tables::{copies, part_name, settle, table_path};
use crate::options::ConnectOptions;
use crate::wire::Client;

/// Tables are locked in one command as long as it names no more than these.
const LOCKED_AT_ONCE: usize = 500;
/// How long we, and `pg_dump`, wait for a table that somebody else has locked.
const LOCK_WAIT: &str = "60s";
/// Names of a list in a sentence.
const NAMED_MAX: usize = 10;

/// What to dump, and with what.
#[derive(Debug, Clone)]
pub struct DumpOptions {
    /// Names of databases; none for all that take connections and are no templates.
    pub databases: Vec<String>,
    /// Which of their tables.
    pub selection: Selection,
    /// Where the client programs are; `None` for the usual places and those of `path`.
    pub bin_dir: Option<PathBuf>,
    /// Further places to look for them.
    pub path: Vec<PathBuf>,
    /// A table of more than one and a half times as many pages is read in parts of this many.
    pub part_pages: u64,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self {
            databases: Vec::new(),
            selection: Selection::default(),
            bin_dir: None,
            path: Vec::new(),
            // 256 MiB: one part is seconds of work, and a table of a terabyte has four thousand.
            part_pages: 32_768,
        }
    }
}

/// Databases of a server as a source. One capture each.
#[derive(Debug)]
pub struct DumpSource {
    connect: ConnectOptions,
    options: DumpOptions,
    programs: Programs,
    clock: Arc<dyn Clock>,
    handle: Handle,
    databases: Vec<String>,
    facts: Facts,
    done: Mutex<Option<Dump>>,
}

#[derive(Debug)]
struct Facts {
    version_num: u32,
    version: String,
    standby: bool,
    passwords: bool,
    tablespaces: Vec<String>,
}

/// A database whose snapshot is held.
struct Held {
    name: String,
    client: Client,
    shared: Arc<Shared>,
    properties: Properties,
    inventory: Inventory,
    snapshot: String,
}

impl DumpSource {
    /// Connects and asks what there is. Must be called within a tokio runtime, which must outlive the source.
    pub async fn connect(
        connect: &ConnectOptions,
        options: DumpOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, DumpError> {
        let mut client = session::connect(connect, &connect.database).await?;
        let connect = session::only(connect, &client);
        let facts = facts(&mut client).await?;
        let programs = Programs::find(facts.version_num / 10_000, options.bin_dir.as_deref(), &options.path)?;
        let there = catalog::databases(&mut client).await?;
        client.close().await;
        if let Some(name) = options.databases.iter().find(|name| !there.contains(name)) {
            return Err(DumpError::NoDatabase { name: name.clone(), place: "on the server" });
        }
        let wanted = |name: &String| options.databases.is_empty() || options.databases.contains(name);
        let databases = there.into_iter().filter(wanted).collect();
        let (handle, done) = (Handle::current(), Mutex::default());
        Ok(Self { connect, options, programs, clock, handle, databases, facts, done })
    }

    /// What was dumped; `None` before the walk has ended well.
    pub fn dump(&self) -> Option<Dump> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn run(&self, visit: Visit<'_>) -> Result<(), DumpError> {
        let mut out = Out { visit, now: self.clock.now() };
        let mut dump = Dump {
            format: 1,
            server_version_num: self.facts.version_num,
            version: self.facts.version.clone(),
            from_standby: self.facts.standby,
            program_major: self.programs.major(),
            start_time: rfc3339(out.now),
            stop_time: String::new(),
            passwords: self.facts.passwords,
            tablespaces: self.facts.tablespaces.clone(),
            databases: Vec::new(),
            left_out: Vec::new(),
        };
        self.globals(&mut out, &mut dump)?;
        out.directory(&[DATABASES])?;
        let mut fitted = BTreeSet::new();
        for name in &self.databases {
            let held = self.handle.block_on(self.hold(name))?;
            let database = self.database(held, &mut out, &mut dump, &mut fitted)?;
            dump.databases.push(database.sum());
        }
        self.fits(&fitted)?;
        dump.stop_time = rfc3339(self.clock.now());
        out.json(&[DUMP_FILE], &dump)?;
        for sentence in &dump.left_out {
            out.note(sentence)?;
        }
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(dump);
        Ok(())
    }

    /// A pattern that fits nothing is a mistake: what it was to take, or to leave out, has another name.
    fn fits(&self, fitted: &BTreeSet<String>) -> Result<(), DumpError> {
        let selection = &self.options.selection;
        let lists = [
            &selection.schemas,
            &selection.tables,
            &selection.exclude_schemas,
            &selection.exclude_tables,
            &selection.exclude_rows,
        ];
        match lists.into_iter().flatten().map(ToString::to_string).find(|text| !fitted.contains(text)) {
            None => Ok(()),
            Some(pattern) => Err(DumpError::FitsNothing { pattern, database: self.databases.join("`, `") }),
        }
    }

    fn globals(&self, out: &mut Out<'_>, dump: &mut Dump) -> Result<(), DumpError> {
        let shared = Shared::new(self.handle.clone(), self.connect.clone(), "UTF8".to_owned(), String::new());
        let mut command = self.programs.command("pg_dumpall", Some(&self.connect));
        command.args(["--globals-only", "--encoding=UTF8", "--database"]).arg(&self.connect.database);
        if !self.facts.passwords {
            command.arg("--no-role-passwords");
            dump.left_out.push("passwords of roles: this role may not read them".to_owned());
        }
        out.file(&[GLOBALS_FILE], 0, ProgramContent::new(&shared, command))?;
        dump.left_out.extend(shared.wait()?.warnings);
        Ok(())
    }

    /// Begins: from here on everything of this database is seen as it is now.
    async fn hold(&self, name: &str) -> Result<Held, DumpError> {
        let mut client = session::connect(&self.connect, name).await?;
        begin(&mut client).await?;
        let rows = client.query("SELECT pg_export_snapshot() AS id", "share the snapshot").await?;
        let snapshot = rows.first("id").ok_or_else(|| odd("the snapshot"))?.to_owned();
        let properties = catalog::properties(&mut client, name).await?;
        let inventory = catalog::inventory(&mut client, &self.options.selection).await?;
        let names: Vec<String> =
            inventory.tables.iter().map(|t| qualified(&t.table.schema, &t.table.name)).collect();
        for some in names.chunks(LOCKED_AT_ONCE) {
            let listed = some.iter().map(|name| format!("ONLY {name}")).collect::<Vec<_>>().join(", ");
            let sql = format!("LOCK TABLE {listed} IN ACCESS SHARE MODE");
            client.query(&sql, &format!("lock the tables of `{name}`")).await?;
        }
        let connect = self.connect.ordinary(name);
        let shared = Shared::new(self.handle.clone(), connect, properties.encoding.clone(), snapshot.clone());
        Ok(Held { name: name.to_owned(), client, shared, properties, inventory, snapshot })
    }

    fn pg_dump(&self, held: &Held) -> Command {
        let connect = self.connect.ordinary(&held.name);
        let mut command = self.programs.command("pg_dump", Some(&connect));
        command.args(["--format=custom", "--compress=0"]).arg(format!("--lock-wait-timeout={LOCK_WAIT}"));
        command.arg(format!("--snapshot={}", held.snapshot));
        command
    }

    fn database(
        &self,
        mut held: Held,
        out: &mut Out<'_>,
        dump: &mut Dump,
        fitted: &mut BTreeSet<String>,
    ) -> Result<DatabaseDump, DumpError> {
        let place = component(&held.name);
        let path = [DATABASES, place.as_str()];
        out.directory(&path)?;
        let mut schema = self.pg_dump(&held);
        schema.args(["--section=pre-data", "--section=post-data"]).args(self.options.selection.arguments());
        let key = [path[0], path[1], SCHEMA_FILE];
        out.file(&key, 0, ProgramContent::new(&held.shared, schema))?;
        let large_objects = self.large_objects(&held, out, &path)?;
        let mut tables = self.tables(&held, out, &path)?;
        let Outcome { counted, warnings } = held.shared.wait()?;
        settle(&mut tables, &counted);
        let sequences =
            self.handle.block_on(catalog::sequences(&mut held.client, &held.inventory.sequences))?;
        self.left_out(&held, &tables, large_objects, warnings, &mut dump.left_out);
        self.note_fits(&held, fitted);
        let database = DatabaseDump {
            format: 1,
            name: held.name,
            properties: held.properties,
            extensions: held.inventory.extensions,
            tables,
            sequences,
            foreign_keys: held.inventory.foreign_keys,
            large_objects,
        };
        out.json(&[path[0], path[1], DATABASE_FILE], &database)?;
        self.handle.block_on(held.client.close());
        Ok(database)
    }

    /// `pg_dump` takes them only as a whole.
    fn large_objects(
        &self,
        held: &Held,
        out: &mut Out<'_>,
        path: &[&str; 2],
    ) -> Result<Option<u64>, DumpError> {
        let count = held.inventory.large_objects;
        if self.options.selection.is_partial() {
            return Ok(None);
        }
        if count > 0 {
            let mut command = self.pg_dump(held);
            command.args(["--section=data", "--blobs", "--exclude-table-data=*.*"]);
            let key = [path[0], path[1], LARGE_OBJECTS_FILE];
            out.file(&key, 0, ProgramContent::new(&held.shared, command))?;
        }
        Ok(Some(count))
    }

    /// Starts the rows of all tables on their way, the largest parts first.
    fn tables(&self, held: &Held, out: &mut Out<'_>, path: &[&str; 2]) -> Result<Vec<Table>, DumpError> {
        let mut tables = Vec::new();
        let mut parts = Vec::new();
        let mut directories: BTreeSet<Vec<String>> = BTreeSet::new();
        for (at, found) in held.inventory.tables.iter().enumerate() {
            let mut table = found.table.clone();
            if found.rows {
                let pages = self.options.part_pages;
                let copies = copies(&table, if found.heap { found.pages } else { 0 }, pages);
                table.parts = u32::try_from(copies.len()).map_err(|_| odd("the size of a table"))?;
                let place = table_path(path, &table);
                directories.extend((3..=place.len()).map(|to| place[..to].to_vec()));
                let size = found.pages.min(pages) * 8192;
                let numbered = copies.into_iter().enumerate();
                parts.extend(numbered.map(|(number, sql)| (size, at, place.clone(), number + 1, sql)));
            }
            tables.push(table);
        }
        for directory in &directories {
            out.directory(directory)?;
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.0));
        for (size, at, mut place, number, sql) in parts {
            let name = qualified(&tables[at].schema, &tables[at].name);
            place.push(part_name(number));
            out.file(&place, size, RowsContent::new(&held.shared, at, &name, sql))?;
        }
        Ok(tables)
    }

    fn left_out(
        &self,
        held: &Held,
        tables: &[Table],
        large_objects: Option<u64>,
        warnings: Vec<String>,
        left_out: &mut Vec<String>,
    ) {
        let of = |what: String| format!("`{}`: {what}", held.name);
        if !held.inventory.foreign.is_empty() {
            left_out.push(of(format!("rows of foreign tables ({})", some(&held.inventory.foreign))));
        }
        let unlogged = &held.inventory.unlogged;
        if !unlogged.is_empty() {
            let what = "what is not logged, of which a standby has nothing";
            left_out.push(of(format!("{what} ({})", some(unlogged))));
        }
        let without: Vec<String> = tables
            .iter()
            .filter(|table| table.rows.is_none())
            .map(|table| format!("{}.{}", table.schema, table.name))
            .filter(|name| !unlogged.contains(name))
            .collect();
        if !without.is_empty() {
            left_out.push(of(format!("rows of excluded tables ({})", some(&without))));
        }
        if large_objects.is_none() && held.inventory.large_objects > 0 {
            left_out.push(of("large objects: tables or schemas were named".to_owned()));
        }
        if self.options.selection != Selection::default() {
            left_out.push(of("what was not selected".to_owned()));
        }
        left_out.extend(warnings.into_iter().map(of));
    }

    fn note_fits(&self, held: &Held, fitted: &mut BTreeSet<String>) {
        let selection = &self.options.selection;
        let lists = [&selection.schemas, &selection.tables, &selection.exclude_rows];
        for pattern in lists.into_iter().flatten() {
            let names = || held.inventory.tables.iter().map(|t| (&t.table.schema, &t.table.name));
            if names().any(|(schema, name)| pattern.matches(schema, name)) {
                fitted.insert(pattern.to_string());
            }
        }
        // What is excluded is not in the inventory; `pg_dump` does not mind either.
        let lists = [&selection.exclude_schemas, &selection.exclude_tables];
        fitted.extend(lists.into_iter().flatten().map(ToString::to_string));
    }
}

impl Source for DumpSource {
    fn kind(&self) -> &str {
        DUMP_KIND
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.databases.iter().map(|name| name.clone().into_bytes()).collect()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn walk(&self, visit: Visit<'_>) -> Result<(), SourceError> {
        match self.run(visit) {
            // The engine, which said so, knows why.
            Ok(()) | Err(DumpError::Stopped) => Ok(()),
            Err(error) => Err(SourceError::Failed(Box::new(error))),
        }
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        Err(SourceError::Other(format!("`{}` came without its content", item.key.display_path())))
    }
}

/// Begins to see the database as it is now.
async fn begin(client: &mut Client) -> Result<(), DumpError> {
    client.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "begin").await?;
    // Whoever holds a lock may do so for ever, and a wait for it cannot be interrupted. Also a table's size waits for one.
    client.query(&format!("SET LOCAL lock_timeout = '{LOCK_WAIT}'"), "limit the wait for locks").await?;
    Ok(())
}

async fn facts(client: &mut Client) -> Result<Facts, DumpError> {
    let sql = "SELECT version() AS version, current_setting('server_version_num') AS number, \
               pg_is_in_recovery() AS standby, has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS passwords";
    let rows = client.query(sql, "ask for the server's version").await?;
    let spaces = client
        .query("SELECT spcname FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1", "ask for tablespaces")
        .await?;
    let read = || {
        Some(Facts {
            version_num: rows.first("number")?.parse().ok()?,
            version: rows.first("version")?.to_owned(),
            standby: rows.first("standby")? == "t",
            passwords: rows.first("passwords")? == "t",
            tablespaces: (0..spaces.rows.len())
                .filter_map(|row| spaces.text(row, 0).map(str::to_owned))
                .collect(),
        })
    };
    read().ok_or_else(|| odd("its version"))
}

fn some(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn rfc3339(time: Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(time.into()).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_lock_for_ever() {
        let done = || crate::testing::message(b'C', b"SET\0");
        let begun = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", done());
        // What is not among the answers fails.
        let (_dir, mut client) = crate::testing::played(vec![begun.clone()]).await;
        assert!(begin(&mut client).await.is_err(), "it began without a limit");
        let limited = ("SET LOCAL lock_timeout = '60s'", done());
        let (_dir, mut client) = crate::testing::played(vec![begun, limited]).await;
        begin(&mut client).await.unwrap();
    }
}
