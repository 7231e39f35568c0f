//! What a capture says about itself: `cluster.json`, damaged pages, and whether all WAL came along.

use std::collections::BTreeSet;

use backup_core::env::Timestamp;
use backup_core::source::Found;
use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::basis::{BAD_FILES_MAX, ORIGIN, Origin};
use super::facts::relation_name;
use super::intake::{BadFile, OrStop, Taken, Visit, own_file};
use super::{CaptureError, PgSource, Reading};
use crate::cluster::{BadPage, CLUSTER_FILE, Cluster, Space};
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};
use crate::replication::Started;

/// Damaged pages that are named in `cluster.json`.
const EXAMPLES_MAX: usize = 100;
/// Damaged files whose relation is asked for.
const NAMED_MAX: usize = 20;

/// Every segment from the one with `start` to the one with the last byte before `stop` must be there in full, be it of
/// this timeline or of one that it came from.
pub(super) fn check_wal(taken: &Taken, start: Lsn, stop: Lsn, size: SegmentSize) -> Result<(), CaptureError> {
    let whole = |(name, bytes): &(String, u64)| {
        Segment::parse(name, size)
            .ok()
            .filter(|_| *bytes == u64::from(size.get()))
            .map(|segment| segment.number)
    };
    let there: BTreeSet<u64> = taken.wal.iter().filter_map(whole).collect();
    let last = size.number_at(Lsn::new(stop.get().saturating_sub(1)));
    match (size.number_at(start)..=last).find(|number| !there.contains(number)) {
        None => Ok(()),
        Some(number) => {
            let file = Segment { timeline: Timeline::FIRST, number }.file_name(size);
            Err(CaptureError::WalMissing { start, stop, file: format!("…{}", &file[8..]) })
        }
    }
}

/// What is known when the stream is over; the caller adds configuration and damaged pages.
pub(super) fn cluster(
    source: &PgSource,
    started: &Started,
    (stop, timeline): (Lsn, Timeline),
    (start_time, stop_time): (Timestamp, Timestamp),
) -> Cluster {
    let name = |oid: u32| source.spaces.iter().find(|space| space.oid == oid)?.name.clone();
    let space = |space: &crate::replication::Tablespace| Space {
        oid: space.oid,
        location: space.location.clone(),
        name: name(space.oid),
    };
    let facts = &source.facts;
    Cluster {
        format: 1,
        system_identifier: source.identity.system_id,
        timeline,
        server_version_num: facts.server_version_num,
        version: facts.version.clone(),
        start_lsn: started.start,
        stop_lsn: stop,
        start_time,
        stop_time,
        from_standby: facts.from_standby,
        wal: "included".to_owned(),
        wal_segment_size: source.segment,
        block_size: facts.block_size,
        data_checksums: facts.data_checksums,
        data_directory: facts.data_directory.clone(),
        tablespaces: started.tablespaces.iter().map(space).collect(),
        databases: source.databases.clone(),
        settings: facts.settings.clone(),
        configuration: Vec::new(),
        capture: match source.options.reading {
            Reading::Sent => "stream",
            Reading::Local { .. } => "local",
            Reading::Sql => "sql",
        }
        .to_owned(),
        increment: None,
        bad_pages: 0,
        bad_page_examples: Vec::new(),
        answers: source.answers.clone(),
    }
}

/// The entry that says what the snapshot is of.
pub(super) fn cluster_file(
    cluster: &Cluster,
    origin: &Origin,
    now: Timestamp,
    owner: (u32, u32),
) -> Result<Found, CaptureError> {
    let odd = |error: serde_json::Error| CaptureError::Odd(error.to_string());
    let mut bytes = serde_json::to_vec_pretty(cluster).map_err(odd)?;
    bytes.push(b'\n');
    let mut entry = own_entry(now, owner);
    entry.attributes.insert(ORIGIN.to_owned(), serde_json::to_vec(origin).map_err(odd)?);
    Ok(own_file(MapKey::from_components([CLUSTER_FILE])?, entry, bytes))
}

/// Metadata of a file that we wrote ourselves.
pub(super) fn own_entry(now: Timestamp, (uid, gid): (u32, u32)) -> Entry {
    Entry { mode: 0o600, uid, gid, mtime: (now.div_euclid(1_000_000_000), 0), ..Entry::new(EntryKind::File) }
}

/// Names the damaged pages, and says so: as problems, or as notes where they are allowed.
pub(super) async fn bad_pages(
    source: &PgSource,
    files: &[BadFile],
    visit: Visit<'_>,
) -> Result<(u64, Vec<BadPage>), CaptureError> {
    let mut examples = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let of = |database: &&crate::cluster::Database| database.oid == file.relation.database;
        let database = source.databases.iter().find(of).map(|database| database.name.clone());
        let asked = database.as_ref().unwrap_or(&source.connect.database);
        let relation = match number < NAMED_MAX {
            // What it cannot be asked is still named by its file.
            true => relation_name(&source.connect, asked, file.relation.tablespace, file.relation.file)
                .await
                .unwrap_or_default(),
            false => None,
        };
        let message = describe(file, database.as_deref(), relation.as_deref());
        let found = match source.options.allow_bad_pages {
            true => Found::Note(format!("`{}`: {message}", file.key.display_path())),
            false => Found::Problem { key: file.key.clone(), message },
        };
        visit(found).or_stop()?;
        let room = EXAMPLES_MAX - examples.len();
        examples.extend(file.blocks.iter().take(room).map(|block| BadPage {
            path: file.key.display_path(),
            block: *block,
            database: database.clone(),
            relation: relation.clone(),
        }));
    }
    Ok((files.iter().map(|file| file.count).sum(), examples))
}

/// The damaged files as the next capture needs them.
pub(super) fn bad_paths(files: &[BadFile]) -> Vec<String> {
    files.iter().take(BAD_FILES_MAX + 1).map(|file| file.key.display_path()).collect()
}

fn describe(file: &BadFile, database: Option<&str>, relation: Option<&str>) -> String {
    let blocks: Vec<String> = file.blocks.iter().take(5).map(u32::to_string).collect();
    let more = file.count.saturating_sub(blocks.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let relation =
        relation.map_or_else(|| format!("file {}", file.relation.file), |name| format!("`{name}`"));
    let place = match (database, file.relation.database) {
        (Some(name), _) => format!(" in database `{name}`"),
        (None, 0) => String::new(),
        (None, oid) => format!(" in database {oid}"),
    };
    let word = if file.count == 1 { "block" } else { "blocks" };
    format!("the checksum of {word} {}{more} of {relation}{place} does not fit", blocks.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::place::Relation;
    use super::*;

    #[test]
    fn a_segment_that_is_missing_or_short_is_noticed() {
        let size = SegmentSize::default();
        let bytes = u64::from(size.get());
        let file = |timeline: u32, number| {
            let name = Segment { timeline: Timeline::new(timeline).unwrap(), number }.file_name(size);
            (name, bytes)
        };
        let check = |files: Vec<(String, u64)>, start: u64, stop: u64| {
            let taken = Taken { wal: files.into_iter().collect(), ..Taken::default() };
            check_wal(&taken, Lsn::new(start), Lsn::new(stop), size).map_err(|error| error.to_string())
        };
        let noise = ("archive_status".to_owned(), 0);
        assert_eq!(check(vec![file(1, 2), file(2, 3), noise.clone()], 2 * bytes + 40, 4 * bytes), Ok(()));
        let error = check(vec![file(1, 2), noise], 2 * bytes + 40, 3 * bytes + 1).unwrap_err();
        assert_eq!(error, "not all WAL from 0/2000028 to 0/3000001 is there: `…0000000000000003` is missing");
        assert!(check(vec![(file(1, 2).0, 100)], 2 * bytes, 2 * bytes + 9).is_err());
    }

    #[test]
    fn damage_is_named() {
        let relation = Relation { tablespace: 0, database: 5, file: 16384, segment: 0 };
        let key = MapKey::from_components(["data"]).unwrap();
        let mut file = BadFile { key, relation, blocks: vec![3], count: 1 };
        let text = describe(&file, Some("shop"), Some("public.orders"));
        assert_eq!(text, "the checksum of block 3 of `public.orders` in database `shop` does not fit");
        (file.blocks, file.count) = ((0..100).collect(), 4000);
        let text = describe(&file, None, None);
        assert_eq!(
            text,
            "the checksum of blocks 0, 1, 2, 3, 4 and 3995 more of file 16384 in database 5 does not fit"
        );
    }
}
