//! Captures that read files one by one, by all workers of the engine at once: the server is told that a backup is taken, and
//! its files are read as they lie there, on its own host or through its SQL functions. What is then in the snapshot is what
//! the server would have sent.
//!
//! The walk opens files and hands them over; when all have been read, `pg_control` follows, the server is told that the
//! backup is over, and the WAL that it takes is read from `pg_wal`. A capture that fails in between ends its session, and
//! with that the backup.

mod asked;
mod changes;
mod control;
mod file;
mod here;
mod listing;
mod place;
mod sessions;
mod there;
mod values;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::env::Timestamp;
use backup_core::source::Found;
use keepwell_catalog::EntryKind;

use self::changes::Changes;
pub use self::control::LocalError;
use self::control::{CONTROL, Marks};
use self::file::Shared;
use self::here::Here;
use self::place::Place;
use self::sessions::Sessions;
use self::there::There;
use self::walk::Walk;
use super::basis::{Basis, Origin};
use super::intake::{OrStop, Taken, Visit, data_key, entry, own_file};
use super::manifest::{self, Read};
use super::report::own_entry;
use super::{CaptureError, PgSource, Reading, Streamed, increment, place as keys};
use crate::lsn::{Lsn, Timeline};
use crate::replication::{Checkpoint, SlotName, Started};
use crate::wire::{Client, PgError, Rows};

/// What a role lacks who may not do something.
const DENIED: &str = "42501";
/// First major with this setting.
const TRANSACTION_TIMEOUT_MAJOR: u32 = 17;
/// First major whose functions have today's names.
const NEW_NAMES: u32 = 15;
/// Below the data directory.
const WAL: &str = "pg_wal";

/// A cluster on this host: `named` is its data directory as it is called here, `slot` holds its WAL.
async fn here(
    source: &PgSource,
    client: &mut Client,
    named: Option<&Path>,
    slot: Option<&SlotName>,
) -> Result<Place, CaptureError> {
    let directory =
        named.map(Path::to_owned).or_else(|| source.facts.data_directory.clone().map(PathBuf::from));
    let directory = directory.ok_or(LocalError::Unknown)?;
    let rows = client.query("SHOW port", "ask for the port").await?;
    let marks = Marks { system: source.identity.system_id, port: rows.first("port"), slot };
    Ok(Place::Here(Here::prove(directory, &marks)?))
}

/// A cluster as its server shows it.
async fn there(source: &PgSource, client: &mut Client, visit: Visit<'_>) -> Result<Place, CaptureError> {
    let sessions = Sessions::new(source.handle.clone(), &source.connect, client).await?;
    let functions = match client.major() >= NEW_NAMES {
        true => ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"],
        false => ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"],
    };
    let there = There::new(sessions, client, functions).await?;
    if let Some(note) = there.note() {
        visit(Found::Note(note.to_owned())).or_stop()?;
    }
    Ok(Place::There(there))
}

/// Captures the cluster, whose WAL `slot` holds.
pub(super) async fn capture(
    source: &PgSource,
    client: &mut Client,
    slot: Option<&SlotName>,
    basis: Option<&Arc<Basis>>,
    visit: Visit<'_>,
) -> Result<Streamed, CaptureError> {
    let place = match &source.options.reading {
        Reading::Local { directory } => here(source, client, directory.as_deref(), slot).await?,
        Reading::Sql | Reading::Sent => there(source, client, visit).await?,
    };
    let start = begin(source, client).await?;
    let changes = changes(source, client, basis, start, visit).await?;
    let map = source.page_map(basis, visit)?;
    let method = match (&changes, &map) {
        (Some(_), _) => Some("wal-summaries"),
        (None, Some(map)) if map.compares() => Some("page-map"),
        _ => None,
    };
    let sizes: Option<u64> = source.databases.iter().map(|database| database.size).sum();
    if let Some(bytes) = sizes {
        visit(Found::Expected(bytes)).or_stop()?;
    }
    let compares = map.is_some();
    let shared = Arc::new(Shared::new(map));
    let mut walk = Walk::new(&place, source.facts.server_version_num / 10_000, &shared, visit);
    walk.judge = source.facts.data_checksums.then_some(start);
    walk.compares = compares;
    walk.changes = changes.as_ref().zip(basis.map(Arc::as_ref));
    let owner = walk.root()?;
    let spaces = walk.spaces(client).await?;
    for space in &spaces {
        walk.space(space.oid, owner).await?;
    }
    walk.data().await?;
    wait(&shared, &place)?;
    control_file(&place, &shared, walk.visit).await?;
    let ended = end(source, client).await?;
    let (mut files, bad) = shared.take();
    walk.wal(start, ended.stop, source.segment).await?;
    // Only what was read to its end counts.
    wait(&shared, &place)?;
    let name = |path: &str| path.strip_prefix(WAL).and_then(|name| name.strip_prefix('/')).map(str::to_owned);
    let wal = shared.take().0.iter().filter_map(|file| Some((name(&file.path)?, file.size))).collect();
    let now = source.clock.now();
    label_files(&ended, (now, owner), &mut files, walk.visit)?;
    let origin = Origin {
        system: source.identity.system_id.to_string(),
        major: source.facts.server_version_num / 10_000,
        timeline: ended.timeline.get(),
        begun: None,
        counted: None,
        checksums: Some(source.facts.data_checksums),
        bad: Vec::new(),
        start: start.to_string(),
        stop: ended.stop.to_string(),
        time: now,
    };
    let manifest = manifest::of_files(&mut files, &origin);
    let taken = Taken { bad, wal, manifest, owner, ..Taken::default() };
    let lost = |error| Found::Note(format!("{} ({error})", super::intake::MAP_LOST));
    let (map, note) = shared.take_map().map_or_else(|error| (None, Some(lost(error))), |map| (map, None));
    if let Some(note) = note {
        (walk.visit)(note).or_stop()?;
    }
    let started =
        Started { start, timeline: ended.timeline, tablespaces: spaces, estimate: sizes.unwrap_or(0) };
    let increment = basis.zip(method).map(|(basis, method)| increment(basis, method));
    Ok(Streamed { started, taken, end: (ended.stop, ended.timeline), increment, map })
}

/// Waits until every content was read or given up.
fn wait(shared: &Shared, place: &Place) -> Result<(), CaptureError> {
    shared.wait();
    place.check()
}

/// A lack of privileges is not the server's fault.
fn denied(result: Result<Rows, PgError>) -> Result<Rows, CaptureError> {
    match result {
        Err(PgError::Server { error, .. }) if error.code == DENIED => {
            Err(LocalError::Denied { reason: error.to_string() }.into())
        }
        other => Ok(other?),
    }
}

/// A session lasts as long as it is needed, and a statement until we took its answer, whatever limits the server has.
async fn keep(client: &mut Client) -> Result<(), PgError> {
    let newer = (client.major() >= TRANSACTION_TIMEOUT_MAJOR).then_some("transaction_timeout");
    for setting in ["statement_timeout", "idle_session_timeout"].into_iter().chain(newer) {
        client.query(&format!("SET {setting} = 0"), "keep the session").await?;
    }
    Ok(())
}

/// Tells the server that a backup begins, which lasts as long as the session.
async fn begin(source: &PgSource, client: &mut Client) -> Result<Lsn, CaptureError> {
    keep(client).await?;
    let label = source.options.label.replace('\'', "''");
    let fast = source.options.checkpoint == Checkpoint::Fast;
    let sql = match client.major() >= NEW_NAMES {
        true => format!("SELECT pg_backup_start('{label}', {fast}) AS lsn"),
        false => format!("SELECT pg_start_backup('{label}', {fast}, false) AS lsn"),
    };
    let rows = denied(client.query(&sql, "begin a backup").await)?;
    let start = rows.first("lsn").and_then(|text| text.parse().ok());
    start.ok_or_else(|| CaptureError::Odd("the server does not say where the backup begins".to_owned()))
}

/// What changed, where the server knows it and there is something to build on.
async fn changes(
    source: &PgSource,
    client: &mut Client,
    basis: Option<&Arc<Basis>>,
    start: Lsn,
    visit: Visit<'_>,
) -> Result<Option<Changes>, CaptureError> {
    let Some(basis) = basis.filter(|_| source.has_summaries()) else { return Ok(None) };
    match changes::ask(client, basis, start, source.identity.timeline).await? {
        Ok(changes) => Ok(Some(changes)),
        Err(reason) => {
            visit(Found::Note(format!("everything is read: {reason}"))).or_stop()?;
            Ok(None)
        }
    }
}

/// What the server says at the end.
struct Ended {
    stop: Lsn,
    timeline: Timeline,
    label: String,
    map: String,
}

async fn end(source: &PgSource, client: &mut Client) -> Result<Ended, CaptureError> {
    // It need not wait until the WAL is archived: we look at it ourselves.
    let function =
        if client.major() >= NEW_NAMES { "pg_backup_stop(false)" } else { "pg_stop_backup(false, false)" };
    let sql = format!("SELECT lsn, labelfile, spcmapfile FROM {function}");
    let rows = denied(client.query(&sql, "end the backup").await)?;
    let read = || {
        let label = rows.first("labelfile")?.to_owned();
        let timeline = label.lines().find_map(|line| line.strip_prefix("START TIMELINE: "))?.parse().ok()?;
        let map = rows.first("spcmapfile").unwrap_or_default().to_owned();
        Some(Ended { stop: rows.first("lsn")?.parse().ok()?, timeline, label, map })
    };
    let odd = || CaptureError::Odd("the server does not say where the backup ends".to_owned());
    let mut ended = read().ok_or_else(odd)?;
    if source.facts.from_standby {
        // It may have followed its primary to another timeline meanwhile.
        let sql = "SELECT min_recovery_end_timeline AS timeline FROM pg_control_recovery()";
        let rows = client.query(sql, "ask for the timeline").await?;
        ended.timeline = rows.first("timeline").and_then(|text| text.parse().ok()).ok_or_else(odd)?;
    }
    Ok(ended)
}

/// What the server says of the backup, byte for byte.
fn label_files(
    ended: &Ended,
    (now, owner): (Timestamp, (u32, u32)),
    files: &mut Vec<Read>,
    visit: Visit<'_>,
) -> Result<(), CaptureError> {
    let map = (!ended.map.is_empty()).then_some(("tablespace_map", &ended.map));
    for (name, text) in [("backup_label", &ended.label)].into_iter().chain(map) {
        let (size, crc) = (text.len() as u64, Some(crc_fast::crc32_iscsi(text.as_bytes())));
        files.push(Read { path: name.to_owned(), size, crc });
        visit(own_file(data_key(name)?, own_entry(now, owner), text.clone().into_bytes())).or_stop()?;
    }
    Ok(())
}

/// `pg_control`, which says how far recovery must go at least when it is read from a standby; so it comes last.
async fn control_file(place: &Place, shared: &Shared, visit: Visit<'_>) -> Result<(), CaptureError> {
    let (bytes, head) = place.control().await?;
    let key = keys::key(None, &head.path)?;
    let size = bytes.len() as u64;
    shared.add(Read { path: CONTROL.to_owned(), size, crc: Some(crc_fast::crc32_iscsi(&bytes)) });
    visit(own_file(key, entry(EntryKind::File, &head), bytes)).or_stop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{message, played};

    #[tokio::test]
    async fn no_limit_of_the_server_ends_a_session_while_it_is_needed() {
        let settings =
            ["SET statement_timeout = 0", "SET idle_session_timeout = 0", "SET transaction_timeout = 0"];
        for (known, is_kept) in [(2, false), (3, true)] {
            let answers = settings[..known].iter().map(|setting| (*setting, message(b'C', b"SET\0")));
            let (_dir, mut client) = played(answers.collect()).await;
            assert_eq!(keep(&mut client).await.is_ok(), is_kept, "{known}");
        }
    }
}
