//! Captures that read the server's files one by one, on its host or through its functions. That servers run from them, scripts/postgres-base.sh shows.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::env::SystemClock;
use backup_core::{BackupOptions, BackupReport, Depth};
use keepwell_catalog::MapKey;
use keepwell_source_postgres::capture::{CaptureError, CaptureOptions, PageMaps, PgSource, Reading};
use keepwell_source_postgres::cluster::Cluster;
use keepwell_source_postgres::wire::Client;

use crate::server::{Server, majors, options};
use crate::world::World;

const LOCAL: Reading = Reading::Local { directory: None };

/// Reading on or off the host, with page maps in a directory of the test's.
fn how(reading: Reading, maps: &Path) -> CaptureOptions {
    let page_maps = Some(PageMaps { path: maps.join("map"), key: [7; 32] });
    CaptureOptions { reading, page_maps, ..CaptureOptions::default() }
}

async fn capture(
    world: &World,
    connect: &str,
    capture: CaptureOptions,
) -> Result<(BackupReport, Cluster), String> {
    let source = PgSource::connect(&options(connect), capture, Arc::new(SystemClock)).await.unwrap();
    let source = Arc::new(source);
    let backup = BackupOptions { dataset: "pg".to_owned(), ..BackupOptions::default() };
    let report = world.repository.backup(Arc::clone(&source) as _, backup).await;
    let causes = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    };
    report.map(|report| (report, source.cluster().unwrap())).map_err(|error| causes(&error))
}

/// Everything in a snapshot but WAL: modes, owners and contents by key.
async fn files(world: &World, report: &BackupReport) -> BTreeMap<String, (u32, u32, Vec<u8>)> {
    let snapshots = world.repository.snapshots().await.unwrap();
    let snapshot = snapshots.iter().find(|snapshot| snapshot.id == report.snapshot).unwrap();
    let tree = world.repository.tree(snapshot).await.unwrap();
    let mut found = Vec::new();
    let visit = |key: &MapKey, entry: &keepwell_catalog::Entry| {
        found.push((key.clone(), entry.mode, entry.uid, entry.kind.has_content()));
        ControlFlow::Continue(())
    };
    tree.list(&MapKey::root(), Depth::All, visit).await.unwrap();
    let mut files = BTreeMap::new();
    for (key, mode, uid, has_content) in found {
        let path = format!("/{}", key.display_path().trim_start_matches('/'));
        let mut content = Vec::new();
        if has_content && !path.contains("data/pg_wal/0") {
            tree.dump_file(&key, &mut content).await.unwrap();
        }
        if !path.contains("pg_wal/0") && !path.contains("archive_status/") {
            files.insert(path, (mode, uid, content));
        }
    }
    files
}

fn space(server: &Server) -> PathBuf {
    let space = server.scratch().join("space");
    std::fs::create_dir(&space).unwrap();
    std::os::unix::fs::chown(&space, Some(owner(server)), None).unwrap();
    space
}

fn owner(server: &Server) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(server.data()).unwrap())
}

#[tokio::test]
async fn what_is_read_here_is_what_a_server_sends() {
    for (major, checksums) in majors().into_iter().flat_map(|major| [(major, true), (major, false)]) {
        let server = Server::start(major, if checksums { &[] } else { &["--no-checksums"] });
        let space = space(&server);
        server.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await;
        server.sql("CREATE TABLE people TABLESPACE apart AS SELECT g, repeat('x', 500) FROM generate_series(1, 9000) g").await;
        server.sql("CREATE UNLOGGED TABLE lost AS SELECT g FROM generate_series(1, 9000) g").await;
        let mut other: Client = server.client().await;
        let temporary = "CREATE TEMPORARY TABLE gone AS SELECT g FROM generate_series(1, 9000) g";
        other.query(temporary, "make a temporary table").await.unwrap();
        server.sql("VACUUM").await;
        server.sql("CHECKPOINT").await;
        let world = World::new().await;
        let maps = tempfile::tempdir().unwrap();
        let sent = capture(&world, &server.socket(), how(Reading::Sent, maps.path())).await.unwrap();
        for (reading, name) in [(LOCAL, "local"), (Reading::Sql, "sql")] {
            let read = capture(&world, &server.socket(), how(reading, maps.path())).await.unwrap();
            assert!(sent.0.complete && read.0.complete, "{:?} {:?}", sent.0.problems, read.0.problems);
            assert_eq!((sent.1.capture.as_str(), read.1.capture.as_str()), ("stream", name));
            assert_eq!(sent.1.tablespaces, read.1.tablespaces);
            alike(files(&world, &sent.0).await, files(&world, &read.0).await, &format!("{major}, {name}"));
        }
    }
}

/// That two snapshots hold the same, but for what differs from one backup to the next, whoever reads it.
fn alike(
    mut sent: BTreeMap<String, (u32, u32, Vec<u8>)>,
    mut read: BTreeMap<String, (u32, u32, Vec<u8>)>,
    what: &str,
) {
    let apart = [
        "/data/backup_label",
        "/data/backup_manifest",
        "/data/global/pg_control",
        "/data/pg_logical/replorigin_checkpoint",
        "/cluster.json",
    ];
    for name in apart {
        assert!(sent.remove(name).is_some() && read.remove(name).is_some(), "{what}: {name}");
    }
    let names = |files: &BTreeMap<String, _>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&read), names(&sent), "{what}");
    for (name, file) in &sent {
        // Statistics and the oldest transaction are written by the checkpoint between the two.
        let same = file == &read[name];
        assert!(same || !name.contains("/base/") && !name.contains("tablespaces"), "{what}: {name}");
    }
}

#[tokio::test]
async fn each_way_of_reading_builds_on_the_others() {
    for (major, settings) in [(15, vec![]), (17, vec!["--conf", "summarize_wal = on"])] {
        let server = Server::start(major, &settings);
        server
            .sql("CREATE TABLE people AS SELECT g, repeat('x', 500) AS text FROM generate_series(1, 40000) g")
            .await;
        server.sql("VACUUM (FREEZE) people").await;
        let (world, maps) = (World::new().await, tempfile::tempdir().unwrap());
        let expected = if major >= 17 { "wal-summaries" } else { "page-map" };
        let ways = [Reading::Sent, LOCAL, LOCAL, Reading::Sql, Reading::Sql, Reading::Sent];
        for (number, reading) in ways.into_iter().enumerate() {
            server.sql(&format!("UPDATE people SET text = '{number}' WHERE g % 9000 = 5")).await;
            let (report, cluster) =
                capture(&world, &server.socket(), how(reading.clone(), maps.path())).await.unwrap();
            assert!(report.complete, "{:?}", report.problems);
            let method = cluster.increment.map(|increment| increment.method);
            if number == 0 {
                assert_eq!(method, None);
                continue;
            }
            assert_eq!(method.as_deref(), Some(expected), "{major}, {reading:?}");
            let s = &report.statistics;
            // Of 22 MiB of the table a handful of pages; the rest is WAL.
            assert!(s.new_plain_bytes < 40 << 20 && s.new_stored_bytes < 2 << 20, "{major}: {s:?}");
            if major >= 17 && reading != Reading::Sent {
                assert!(s.bytes_read < s.logical_bytes / 2, "{s:?}");
            }
            let path = server.sql("SELECT pg_relation_filepath('people') AS path").await;
            let path = path.first("path").unwrap().to_owned();
            server.sql("CHECKPOINT").await;
            let stored = &files(&world, &report).await[&format!("/data/{path}")].2;
            assert!(*stored == std::fs::read(server.data().join(&path)).unwrap(), "{major}, {reading:?}");
        }
    }
}

#[tokio::test]
async fn a_damaged_page_is_named_whoever_reads_it_and_whatever_was_built_on() {
    for (major, settings) in [(majors()[0], vec![]), (17, vec!["--conf", "summarize_wal = on"])] {
        let server = Server::start(major, &settings);
        server.sql("CREATE TABLE people AS SELECT g, repeat('x', 500) FROM generate_series(1, 1000) g").await;
        server.sql("VACUUM people").await;
        server.sql("CHECKPOINT").await;
        let path = server.sql("SELECT pg_relation_filepath('people') AS path").await;
        let path = path.first("path").unwrap().to_owned();
        let file = std::fs::File::options().write(true).open(server.data().join(&path)).unwrap();
        for block in [3, 7] {
            file.write_all_at(b"rot", block * 8192 + 5000).unwrap();
        }
        let (world, maps) = (World::new().await, tempfile::tempdir().unwrap());
        for reading in [LOCAL, Reading::Sql, LOCAL] {
            let (report, cluster) =
                capture(&world, &server.socket(), how(reading, maps.path())).await.unwrap();
            let message =
                "the checksum of blocks 3, 7 of `public.people` in database `postgres` does not fit";
            assert_eq!(report.problems, [(format!("/data/{path}"), message.to_owned())]);
            assert!(!report.complete && cluster.bad_pages == 2);
        }
    }
}

#[tokio::test]
async fn what_is_not_this_servers_directory_is_refused() {
    let (server, other) = (Server::start(majors()[0], &[]), Server::start(majors()[0], &[]));
    let (world, maps) = (World::new().await, tempfile::tempdir().unwrap());
    let refusal = async |directory: &Path, connect: &str| {
        let reading = Reading::Local { directory: Some(directory.to_owned()) };
        capture(&world, connect, how(reading, maps.path())).await.map(|_| ()).unwrap_err()
    };
    let error = refusal(other.data(), &server.socket()).await;
    assert!(error.contains("is not the data directory of this server: it is of cluster"), "{error}");
    assert!(refusal(maps.path(), &server.socket()).await.contains("pg_control"));
    // A copy has the same identifier.
    let copy = maps.path().join("copy");
    std::fs::create_dir_all(copy.join("global")).unwrap();
    for name in ["global/pg_control", "postmaster.pid"] {
        std::fs::copy(server.data().join(name), copy.join(name)).unwrap();
    }
    let error = refusal(&copy, &server.socket()).await;
    assert!(error.contains("it does not have the replication slot"), "{error}");
    server.sql("CREATE ROLE modest LOGIN REPLICATION").await;
    let modest = server.socket().replace("user=postgres", "user=modest");
    let error = refusal(server.data(), &modest).await;
    assert!(error.contains("the role may not begin or end a backup"), "{error}");
    let error = capture(&world, &modest, how(LOCAL, maps.path())).await.map(|_| ()).unwrap_err();
    assert!(error.contains("the role may not know where the server has its files"), "{error}");
    assert!(world.repository.snapshots().await.unwrap().is_empty(), "nothing was committed");
    // No backup is left running on the server.
    let left = server.sql("SELECT count(*) AS n FROM pg_replication_slots").await;
    assert_eq!(left.first("n"), Some("0"));
    assert!(capture(&world, &server.socket(), how(LOCAL, maps.path())).await.is_ok());
}

/// What the guide grants, and nothing else.
fn grants(major: u32) -> String {
    let (begin, end) = match major {
        14 => ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"),
        _ => ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
    };
    format!(
        "GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), \
         pg_read_binary_file(text, bigint, bigint, boolean), {begin}, {end} TO modest"
    )
}

#[tokio::test]
async fn a_role_that_may_call_the_functions_reads_all_of_a_cluster() {
    for major in majors() {
        let server = Server::start(major, &[]);
        let space = space(&server);
        server.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await;
        server.sql("CREATE TABLE people TABLESPACE apart AS SELECT g, repeat('x', 500) FROM generate_series(1, 9000) g").await;
        server.sql("CREATE ROLE modest LOGIN REPLICATION").await;
        let modest = server.socket().replace("user=postgres", "user=modest");
        let (world, maps) = (World::new().await, tempfile::tempdir().unwrap());
        let take = async || {
            let capture = how(Reading::Sql, maps.path());
            Arc::new(PgSource::connect(&options(&modest), capture, Arc::new(SystemClock)).await.unwrap())
        };
        let backup = BackupOptions { dataset: "pg".to_owned(), ..BackupOptions::default() };
        let error = world.repository.backup(take().await, backup.clone()).await.unwrap_err();
        let mut cause: &dyn std::error::Error = &error;
        let error = loop {
            match (cause.downcast_ref::<CaptureError>(), cause.source()) {
                (Some(error), _) => break error,
                (None, Some(source)) => cause = source,
                (None, None) => panic!("{error}"),
            }
        };
        assert!(
            error
                .to_string()
                .starts_with("the role `modest` may not call pg_ls_dir(text, boolean, boolean), ")
        );
        let hint = error.hint().unwrap();
        let expected = format!("As a superuser, in the database `postgres`: `{}`.", grants(major));
        assert_eq!(hint, expected);
        server.sql(&grants(major)).await;
        // What is no directory of PostgreSQL's may be a link to anywhere; a link to a file is taken as the file.
        std::fs::create_dir(server.data().join("archive")).unwrap();
        std::fs::write(server.data().join("archive/x"), b"x").unwrap();
        let report = world.repository.backup(take().await, backup).await.unwrap();
        assert!(report.complete, "{:?}", report.problems);
        let files = files(&world, &report).await;
        assert!(!files.contains_key("/data/archive") && files.contains_key("/data/PG_VERSION"));
        let path = server.sql("SELECT pg_relation_filepath('people') AS path").await;
        let path = path.first("path").unwrap().to_owned();
        let stored = &files[&format!("/tablespaces/{}", path.strip_prefix("pg_tblspc/").unwrap())].2;
        server.sql("CHECKPOINT").await;
        assert_eq!(stored, &std::fs::read(server.data().join(&path)).unwrap(), "{major}");
    }
}

#[tokio::test]
async fn a_file_that_the_server_cannot_read_is_a_problem_and_no_end() {
    let server = Server::start(majors()[0], &[]);
    let path = server.data().join("base/secret");
    std::fs::write(&path, b"x").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let (world, maps) = (World::new().await, tempfile::tempdir().unwrap());
    let (report, _) = capture(&world, &server.socket(), how(Reading::Sql, maps.path())).await.unwrap();
    let [(key, message)] = report.problems.as_slice() else { panic!("{:?}", report.problems) };
    assert_eq!(key, "/data/base/secret");
    assert!(message.contains("Permission denied"), "{message}");
    assert!(files(&world, &report).await.contains_key("/data/PG_VERSION"));
}
