//! Databases out of a snapshot, into a server.

mod database;
mod roles;
mod rows;
pub(super) mod schema;
mod swap;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use backup_core::{Cancel, Repository, Snapshot};
use tokio::runtime::Handle;

use self::rows::Way;
use self::schema::{Archive, Without};
use self::swap::Swap;
use super::describe::{DatabaseDump, ForeignKey, LARGE_OBJECTS_FILE, SCHEMA_FILE, Table};
use super::names::{literal, qualified};
use super::selection::Selection;
use super::session::{self, each, odd};
use super::snapshot::DumpSnapshot;
use super::{DumpError, Programs};
use crate::options::ConnectOptions;
use crate::wire::Client;

/// Whose things become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owners {
    /// Those of the original.
    AsDumped,
    /// The role's that loads.
    Ours,
    /// This role's: schemas, relations, routines, types and large objects. What needs more rights, as event triggers do,
    /// becomes that of the role that loads.
    Role(String),
}

/// Who may do what afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// As in the original.
    AsDumped,
    /// The defaults.
    None,
}

/// What happens to roles that the server lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    /// They are made.
    MakeMissing,
    /// Nothing.
    Leave,
}

/// Where a database is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Into a new one. If that fails it is dropped again.
    New,
    /// Into one that is there: what the dump has is dropped first, in one transaction, and all large objects if it has
    /// some. What fails later leaves the database without it.
    Clean,
}

/// How the result is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By the number of rows of every table.
    Counts,
    /// By reading every row again.
    Content,
}

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Client programs, as new as those that dumped.
    pub programs: Programs,
    /// Sessions at once.
    pub jobs: usize,
    /// Tables whose rows are loaded. Definitions are always loaded as a whole.
    pub selection: Selection,
    /// Whose things become.
    pub owners: Owners,
    /// Who may do what.
    pub privileges: Privileges,
    /// What happens to missing roles.
    pub roles: Roles,
    /// How it is proved.
    pub proof: Proof,
    /// A directory that only we can enter, for definitions.
    pub directory: PathBuf,
    /// Ends a load before its next step, as an error does: a new database is dropped again.
    pub cancel: Cancel,
}

impl LoadOptions {
    pub(super) fn command(&self, name: &str, connect: Option<&ConnectOptions>) -> Command {
        self.programs.command(name, connect)
    }

    /// Tells `pg_restore` whose things become and who may do what.
    pub(super) fn say_owners(&self, command: &mut Command) {
        match &self.owners {
            Owners::AsDumped => {}
            // A role may be given what it may not make, such as an extension.
            Owners::Ours | Owners::Role(_) => {
                command.arg("--no-owner");
            }
        }
        if self.privileges == Privileges::None {
            command.arg("--no-privileges");
        }
    }
}

/// Roles that were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MadeRoles {
    /// Their names.
    pub names: Vec<String>,
    /// What was left out, as sentences.
    pub notes: Vec<String>,
}

/// What was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Tables.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes, as text.
    pub bytes: u64,
    /// What was left out or is different, as sentences.
    pub notes: Vec<String>,
}

/// Loads databases of one snapshot into one server.
#[derive(Debug)]
pub struct Loader {
    repository: Repository,
    from: DumpSnapshot,
    connect: ConnectOptions,
    options: LoadOptions,
    /// A session in another database than those that are made.
    client: Client,
    handle: Handle,
}

impl Loader {
    /// Opens the snapshot and connects. The database of the connection is not one that is replaced.
    pub async fn new(
        repository: &Repository,
        snapshot: &Snapshot,
        connect: &ConnectOptions,
        options: LoadOptions,
    ) -> Result<Self, DumpError> {
        let from = DumpSnapshot::open(repository, snapshot).await?;
        let client = session::connect(connect, &connect.database).await?;
        let connect = session::only(connect, &client);
        let needed = from.dump().program_major;
        if options.programs.major() < needed {
            return Err(DumpError::NoPrograms { major: needed });
        }
        let repository = repository.clone();
        Ok(Self { repository, from, connect, options, client, handle: Handle::current() })
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &DumpSnapshot {
        &self.from
    }

    /// Whether the server has a database of this name.
    pub async fn exists(&mut self, name: &str) -> Result<bool, DumpError> {
        database::exists(&mut self.client, name).await
    }

    /// Makes roles that are missing, if it shall.
    pub async fn make_roles(&mut self) -> Result<MadeRoles, DumpError> {
        match self.options.roles {
            Roles::MakeMissing => {
                let globals = self.from.globals().await?;
                roles::make_missing(&mut self.client, &globals).await
            }
            Roles::Leave => Ok(MadeRoles::default()),
        }
    }

    /// Loads a database under a name. When it returns, the rows of every table were proved against the snapshot.
    pub async fn load(&mut self, name: &str, into: &str, place: Destination) -> Result<Loaded, DumpError> {
        let dumped = self.from.database(name).await?;
        let chosen = chosen(&dumped, &self.options.selection)?;
        database::check_extensions(&mut self.client, &dumped).await?;
        let whose = (&self.options.owners, self.options.privileges);
        database::check_roles(&mut self.client, &dumped.properties, whose, place).await?;
        if place == Destination::New {
            database::create(&mut self.client, into, &dumped.properties).await?;
        }
        let filled = self.fill(&dumped, &chosen, into, place).await;
        match (filled, place) {
            (Ok(loaded), _) => Ok(loaded),
            (Err(error), Destination::New) => {
                // Half a database must not be taken for a whole one. The first error is the one to report.
                let _ = database::drop_database(&mut self.client, into).await;
                Err(error)
            }
            (Err(error), Destination::Clean) => Err(error),
        }
    }

    async fn fill(
        &mut self,
        dumped: &DatabaseDump,
        chosen: &[&Table],
        into: &str,
        place: Destination,
    ) -> Result<Loaded, DumpError> {
        let mut notes = Vec::new();
        let without = self.without(dumped, chosen, &mut notes).await?;
        let mut bytes = Vec::new();
        self.from.write(&dumped.name, SCHEMA_FILE, &mut bytes).await?;
        let mut archive = Archive::new(&self.options.directory, "schema.dump", &bytes)?;
        let lacking = match place {
            Destination::New => archive.lacks(&dumped.extensions, &self.options)?,
            // Whoever made the database has made what it needs.
            Destination::Clean => Vec::new(),
        };
        if !lacking.is_empty() {
            let names = lacking.join("`, `");
            self.repository.monitor().note(&format!(
                "the backup is of single schemas or tables and makes no extensions; its database had `{names}`"
            ));
        }
        archive.without(&without, &self.options)?;
        let connect = self.connect.ordinary(into);
        let major = self.client.major();
        if place == Destination::Clean {
            let keys = dumped.foreign_keys.iter().map(|key| key.name.as_str()).collect();
            let removal = archive.removal(major, &keys, &self.options)?;
            let mut client = session::connect(&connect, into).await?;
            let large_objects = match dumped.large_objects.unwrap_or_default() {
                0 => "",
                _ => "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata;",
            };
            let sql = format!("{large_objects}{removal}");
            client.query(&sql, "remove what is there").await?;
            client.close().await;
        }
        let way = Way {
            handle: self.handle.clone(),
            connect: connect.clone(),
            encoding: dumped.properties.encoding.clone(),
            jobs: self.options.jobs,
            cancel: self.options.cancel.clone(),
        };
        let filled = tokio::task::block_in_place(|| {
            way.go_on()?;
            archive.load_before(&connect, major, &without, &self.options)?;
            way.fill(&self.from, &dumped.name, chosen)?;
            if !without.large_objects && dumped.large_objects.unwrap_or_default() > 0 {
                self.large_objects(dumped, &connect, major)?;
            }
            self.handle.block_on(self.sequences(dumped, chosen, into))?;
            way.go_on()?;
            archive.load_behind(&connect, major, &without, &self.options)?;
            self.prove(dumped, chosen, &way, &without)?;
            way.analyze()
        });
        filled.map_err(|error| for_lack(error, &lacking))?;
        if let Owners::Role(role) = &self.options.owners {
            let mut client = session::connect(&connect, into).await?;
            database::give_to(&mut client, role).await?;
            client.close().await;
        }
        if place == Destination::New {
            notes.extend(database::set_up(&mut self.client, into, &dumped.properties, &self.options).await?);
        }
        Ok(Loaded {
            tables: chosen.len() as u64,
            rows: chosen.iter().filter_map(|table| table.rows).sum(),
            bytes: chosen.iter().map(|table| table.bytes).sum(),
            notes,
        })
    }

    async fn without(
        &mut self,
        dumped: &DatabaseDump,
        chosen: &[&Table],
        notes: &mut Vec<String>,
    ) -> Result<Without, DumpError> {
        let mut without = without_of(dumped, chosen, &self.options.selection, notes);
        let rows = self.client.query("SELECT spcname FROM pg_tablespace", "ask for tablespaces").await?;
        let there = each(&rows, "tablespaces", |text| text(0))?;
        let missing: Vec<&String> =
            self.from.dump().tablespaces.iter().filter(|name| !there.contains(name)).collect();
        if !missing.is_empty() {
            notes.push("everything is in the default tablespace: the server lacks others".to_owned());
        }
        without.tablespaces = !missing.is_empty();
        Ok(without)
    }

    fn large_objects(
        &self,
        dumped: &DatabaseDump,
        connect: &ConnectOptions,
        major: u32,
    ) -> Result<(), DumpError> {
        let mut command = self.options.command("pg_restore", Some(connect));
        self.options.say_owners(&mut command);
        let mut feed = |input: &mut std::process::ChildStdin| {
            self.handle.block_on(self.from.write(&dumped.name, LARGE_OBJECTS_FILE, input))
        };
        schema::run(&mut command, Some(&mut feed), self.options.programs.major(), major)
    }

    /// Puts sequences where they stood.
    async fn sequences(&self, dumped: &DatabaseDump, chosen: &[&Table], into: &str) -> Result<(), DumpError> {
        let commands = sequence_commands(dumped, chosen, &self.options.selection);
        let mut client = session::connect(&self.connect, into).await?;
        for some in commands.chunks(1000) {
            client.query(&some.join("; "), "set sequences").await?;
        }
        client.close().await;
        Ok(())
    }

    fn prove(
        &self,
        dumped: &DatabaseDump,
        chosen: &[&Table],
        way: &Way,
        without: &Without,
    ) -> Result<(), DumpError> {
        let found = way.count(chosen, self.options.proof)?;
        if let Some((table, expected, found)) = rows::difference(chosen, &found, self.options.proof) {
            return Err(DumpError::RowsDiffer { table, expected, found });
        }
        if let (Some(expected), false) = (dumped.large_objects, without.large_objects) {
            let found = self.handle.block_on(async {
                let mut client = session::connect(&way.connect, &way.connect.database).await?;
                let sql = "SELECT count(*) AS count FROM pg_largeobject_metadata";
                let rows = client.query(sql, "count large objects").await?;
                rows.first("count").and_then(|n| n.parse().ok()).ok_or_else(|| odd("large objects"))
            })?;
            if found < expected {
                return Err(DumpError::RowsDiffer { table: "large objects".to_owned(), expected, found });
            }
        }
        Ok(())
    }

    /// Puts the database `new` in the place of `name`, which is kept as `old`. Connections to it are ended.
    pub async fn swap(&mut self, new: &str, name: &str, old: &str) -> Result<(), DumpError> {
        Swap { new, name, old }.run(&mut self.client, &self.connect).await
    }

    /// Drops a database.
    pub async fn drop_database(&mut self, name: &str) -> Result<(), DumpError> {
        database::drop_database(&mut self.client, name).await
    }
}

/// A program that fails where extensions are lacking mostly fails for that.
fn for_lack(error: DumpError, lacking: &[&str]) -> DumpError {
    match error {
        DumpError::Program { .. } if !lacking.is_empty() => {
            DumpError::LacksExtensions { names: lacking.join("`, `"), source: Box::new(error) }
        }
        other => other,
    }
}

/// The tables that are loaded, in the order in which one after the other can be. A pattern that fits none is a mistake.
pub(super) fn chosen<'d>(
    dumped: &'d DatabaseDump,
    selection: &Selection,
) -> Result<Vec<&'d Table>, DumpError> {
    for pattern in selection.schemas.iter().chain(&selection.tables) {
        if !dumped.tables.iter().any(|t| t.rows.is_some() && pattern.matches(&t.schema, &t.name)) {
            let database = dumped.name.clone();
            return Err(DumpError::FitsNothing { pattern: pattern.to_string(), database });
        }
    }
    let takes = |t: &&Table| {
        t.rows.is_some() && selection.takes(&t.schema, &t.name) && selection.takes_rows(&t.schema, &t.name)
    };
    Ok(in_order(dumped.tables.iter().filter(takes).collect(), &dumped.foreign_keys))
}

/// Tables of extensions first, each behind those that it refers to: their foreign keys are there before their rows.
fn in_order<'d>(tables: Vec<&'d Table>, keys: &[ForeignKey]) -> Vec<&'d Table> {
    let (mut waiting, others): (Vec<&'d Table>, Vec<&'d Table>) =
        tables.into_iter().partition(|table| table.is_of_extension());
    let mut ordered = Vec::new();
    while !waiting.is_empty() {
        let oids: BTreeSet<u32> = waiting.iter().map(|table| table.oid).collect();
        let waits = |table: &&Table| {
            keys.iter().any(|key| key.from == table.oid && key.to != key.from && oids.contains(&key.to))
        };
        let (later, now): (Vec<&'d Table>, Vec<&'d Table>) = waiting.into_iter().partition(waits);
        // Those of a circle have no order; the server says what is wrong.
        let is_circle = now.is_empty();
        ordered.extend(now);
        if is_circle {
            ordered.extend(later);
            break;
        }
        waiting = later;
    }
    ordered.extend(others);
    ordered
}

/// What cannot be made with these tables alone.
pub(super) fn without_of(
    dumped: &DatabaseDump,
    chosen: &[&Table],
    selection: &Selection,
    notes: &mut Vec<String>,
) -> Without {
    let partial = *selection != Selection::default();
    let has_rows: BTreeSet<u32> = chosen.iter().map(|table| table.oid).collect();
    let dangling = dumped.foreign_keys.iter().filter(|key| {
        let refers = has_rows.contains(&key.from) || !dumped.tables.iter().any(|t| t.oid == key.from);
        let there = has_rows.contains(&key.to) || (key.partitioned && !partial);
        refers && !there
    });
    let mut foreign_keys = BTreeSet::new();
    for key in dangling {
        notes.push(format!("the foreign key `{}` is left out: what it refers to is not loaded", key.name));
        foreign_keys.insert(key.oid);
    }
    let empty = dumped.tables.len() - chosen.len();
    if empty > 0 {
        notes.push(format!("the other tables ({empty}) are there, without rows"));
    }
    let large_objects = partial && dumped.large_objects.unwrap_or_default() > 0;
    if large_objects {
        notes.push("large objects are left out: tables or schemas were named".to_owned());
    }
    Without { foreign_keys, large_objects, tablespaces: false }
}

/// What puts sequences where they stood.
pub(super) fn sequence_commands(
    dumped: &DatabaseDump,
    chosen: &[&Table],
    selection: &Selection,
) -> Vec<String> {
    let whole = *selection == Selection::default();
    let belongs = |table: &Option<u32>| match table {
        Some(oid) => whole || chosen.iter().any(|table| table.oid == *oid),
        None => whole,
    };
    dumped
        .sequences
        .iter()
        .filter(|sequence| belongs(&sequence.table))
        .map(|sequence| {
            let name = literal(&qualified(&sequence.schema, &sequence.name));
            let (value, called) = (sequence.last_value, sequence.is_called);
            format!("SELECT pg_catalog.setval({name}, {value}, {called})")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_extensions_come_first_and_none_before_what_it_refers_to() {
        let table = |oid: u32, name: &str, condition: &str| {
            format!(
                r#"{{ "oid": {oid}, "schema": "s", "name": "{name}", "columns": [], "rows": 1, "hash": null, "bytes": 0,
                "parts": 1, "condition": {condition}, "root": null }}"#
            )
        };
        let key = |from: u32, to: u32| {
            format!(r#"{{ "oid": 9, "name": "k", "from": {from}, "to": {to}, "partitioned": false }}"#)
        };
        let tables =
            [(1, "a", "null"), (2, "layer", r#""""#), (3, "leaf", r#""""#), (4, "topology", r#""""#)];
        let tables = tables.map(|(oid, name, condition)| table(oid, name, condition)).join(",");
        let names = |keys: &[String]| -> Vec<String> {
            let json = format!(
                r#"{{ "format": 1, "name": "clinic", "encoding": "UTF8", "collate": "C", "ctype": "C",
                "provider": "c", "locale": null, "icu_rules": null, "collation_version": null, "owner": "ann",
                "connection_limit": -1, "comment": null, "privileges": null, "settings": [], "extensions": [],
                "tables": [{tables}], "sequences": [], "foreign_keys": [{}], "large_objects": 0 }}"#,
                keys.join(",")
            );
            let dumped = DatabaseDump::parse(json.as_bytes()).unwrap();
            let chosen = chosen(&dumped, &Selection::default()).unwrap();
            chosen.into_iter().map(|table| table.name.clone()).collect()
        };
        let keys = [key(3, 2), key(2, 4), key(4, 4), key(1, 2)];
        assert_eq!(names(&keys), ["topology", "layer", "leaf", "a"]);
        assert_eq!(names(&[key(2, 4), key(4, 2)]), ["leaf", "layer", "topology", "a"], "a circle ends");
    }
}
