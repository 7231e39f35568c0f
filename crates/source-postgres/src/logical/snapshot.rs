//! A logical backup as it lies in a repository.

use std::io::Write;

use backup_core::{Repository, Snapshot, Tree};
use keepwell_catalog::MapKey;

use super::DumpError;
use super::describe::{
    DATABASE_FILE, DATABASES, DESCRIPTION_BYTES_MAX, DUMP_FILE, DatabaseDump, Dump, GLOBALS_FILE, Table,
};
use super::names::component;
use super::tables::{part_name, table_path};

/// A snapshot of databases, open for reading. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DumpSnapshot {
    tree: Tree,
    dump: Dump,
}

impl DumpSnapshot {
    /// Opens it and reads its description.
    pub async fn open(repository: &Repository, snapshot: &Snapshot) -> Result<Self, DumpError> {
        let tree = repository.tree(snapshot).await?;
        let dump = Dump::parse(&small(&tree, &[DUMP_FILE]).await?)?;
        Ok(Self { tree, dump })
    }

    /// What it says about itself.
    pub fn dump(&self) -> &Dump {
        &self.dump
    }

    /// What it says about one of its databases.
    pub async fn database(&self, name: &str) -> Result<DatabaseDump, DumpError> {
        if !self.dump.databases.iter().any(|database| database.name == name) {
            return Err(DumpError::NoDatabase { name: name.to_owned(), place: "in the snapshot" });
        }
        DatabaseDump::parse(&small(&self.tree, &[DATABASES, &component(name), DATABASE_FILE]).await?)
    }

    /// Roles and tablespaces, as SQL.
    pub async fn globals(&self) -> Result<String, DumpError> {
        let sql = small(&self.tree, &[GLOBALS_FILE]).await?;
        String::from_utf8(sql).map_err(|_| DumpError::Description {
            name: GLOBALS_FILE.to_owned(),
            reason: "it is not UTF-8".to_owned(),
        })
    }

    /// Writes a file of a database.
    pub(super) async fn write(
        &self,
        database: &str,
        name: &str,
        out: &mut (dyn Write + Send),
    ) -> Result<(), DumpError> {
        let key = MapKey::from_components([DATABASES, &component(database), name])?;
        Ok(self.tree.dump_file(&key, out).await?)
    }

    /// The keys of a table's rows, in order.
    pub(super) fn parts(&self, database: &str, table: &Table) -> Result<Vec<MapKey>, DumpError> {
        let directory = table_path(&[DATABASES, &component(database)], table);
        let key = |number: u32| {
            let name = part_name(number as usize);
            let names = directory.iter().map(String::as_str).chain([name.as_str()]);
            Ok(MapKey::from_components(names)?)
        };
        (1..=table.parts).map(key).collect()
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }
}

/// A description, which is bounded.
async fn small(tree: &Tree, names: &[&str]) -> Result<Vec<u8>, DumpError> {
    let key = MapKey::from_components(names)?;
    let wrong = |reason: &str| DumpError::Description { name: key.display_path(), reason: reason.to_owned() };
    match tree.entry(&key).await? {
        Some(entry) if entry.size > DESCRIPTION_BYTES_MAX => return Err(wrong("it is longer than 256 MiB")),
        Some(_) => {}
        None => return Err(wrong("it is missing")),
    }
    let mut content = Vec::new();
    tree.dump_file(&key, &mut content).await?;
    Ok(content)
}
