//! Configuration files that the server has outside its data directory, as Debian does: read over SQL, where the role may.

use std::collections::BTreeSet;

use backup_core::source::{Found, Item, Opened};
use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::CaptureError;
use super::facts::Facts;
use super::intake::{OrStop, Visit, own_file};
use crate::cluster::{CONFIG, ConfigFile};
use crate::wire::{Client, PgError};

/// More of a file is not taken.
const FILE_MAX: usize = 4 << 20;
/// Files of one server.
const FILES_MAX: usize = 1000;

/// What a role lacks who may not do something.
const DENIED: &str = "42501";

/// Finds the files and captures those that the role may read.
pub(super) async fn capture(
    client: &mut Client,
    facts: &Facts,
    owner: (u32, u32),
    visit: Visit<'_>,
) -> Result<Vec<ConfigFile>, CaptureError> {
    let Some(directory) = &facts.data_directory else {
        let text = "configuration files outside the data directory are not looked for: the role may not know where they \
                    are (`GRANT pg_read_all_settings TO` it)";
        visit(Found::Note(text.to_owned())).or_stop()?;
        return Ok(Vec::new());
    };
    let inside = format!("{}/", directory.trim_end_matches('/'));
    let paths = paths(client).await?;
    let mut found = Vec::new();
    let mut above = BTreeSet::new();
    for path in paths.into_iter().filter(|path| path.starts_with('/') && !path.starts_with(&inside)) {
        let Some(key) = key(&path) else { continue };
        let content = read(client, &path).await?;
        found.push(ConfigFile { path, captured: content.is_some() });
        if let Some(content) = content {
            directories(&key, owner, &mut above, visit)?;
            let entry = Entry { mode: 0o600, uid: owner.0, gid: owner.1, ..Entry::new(EntryKind::File) };
            visit(own_file(key, entry, content)).or_stop()?;
        }
    }
    if found.iter().any(|file| !file.captured) {
        let text = "configuration files outside the data directory are not captured: the role may not read them \
                    (`GRANT pg_read_server_files TO` it, and EXECUTE on pg_read_binary_file)";
        visit(Found::Note(text.to_owned())).or_stop()?;
    }
    Ok(found)
}

fn key(path: &str) -> Option<MapKey> {
    let names: Vec<&str> = path.split('/').skip(1).collect();
    if names.iter().any(|name| name.is_empty() || *name == "." || *name == "..") {
        return None;
    }
    MapKey::from_components([CONFIG].into_iter().chain(names)).ok()
}

/// Directories down to the file, each once.
fn directories(
    key: &MapKey,
    (uid, gid): (u32, u32),
    above: &mut BTreeSet<MapKey>,
    visit: Visit<'_>,
) -> Result<(), CaptureError> {
    let names: Vec<_> = key.components().collect();
    for depth in 1..names.len() {
        let key = MapKey::from_components(&names[..depth])?;
        if above.insert(key.clone()) {
            let entry = Entry { mode: 0o700, uid, gid, ..Entry::new(EntryKind::Directory) };
            let item =
                Item { key, kind: EntryKind::Directory, size: 0, fingerprint: [0; 16], hard_link: None };
            visit(Found::Opened(item, Box::new(Opened { entry, content: None }))).or_stop()?;
        }
    }
    Ok(())
}

/// Every file that the server names, as far as the role may know.
async fn paths(client: &mut Client) -> Result<BTreeSet<String>, PgError> {
    let mut queries = vec![
        "SELECT setting FROM pg_settings WHERE name IN ('config_file', 'hba_file', 'ident_file')",
        "SELECT DISTINCT sourcefile FROM pg_settings WHERE sourcefile IS NOT NULL",
        "SELECT DISTINCT sourcefile FROM pg_file_settings WHERE sourcefile IS NOT NULL",
    ];
    if client.major() >= 16 {
        queries.push("SELECT DISTINCT file_name FROM pg_hba_file_rules");
        queries.push("SELECT DISTINCT file_name FROM pg_ident_file_mappings");
    }
    let mut paths = BTreeSet::new();
    for query in queries {
        match client.query(query, "ask for configuration files").await {
            Ok(rows) => {
                let text = |row| rows.text(row, 0).map(str::to_owned);
                paths.extend((0..rows.rows.len()).filter_map(text).take(FILES_MAX));
            }
            Err(PgError::Server { error, .. }) if error.code == DENIED => {}
            Err(error) => return Err(error),
        }
    }
    Ok(paths)
}

/// The content of a file; `None` where the role may not read it, or it is not there.
async fn read(client: &mut Client, path: &str) -> Result<Option<Vec<u8>>, PgError> {
    let quoted = path.replace('\'', "''");
    let sql = format!("SELECT encode(pg_read_binary_file('{quoted}', 0, {FILE_MAX}), 'hex') AS content");
    match client.query(&sql, &format!("read `{path}`")).await {
        Ok(rows) => Ok(rows.first("content").and_then(|text| hex::decode(text).ok())),
        Err(PgError::Server { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
