//! Base backups as snapshots. That servers run from them, scripts/postgres-base.sh shows.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use backup_core::env::SystemClock;
use backup_core::{BackupOptions, BackupReport};
use keepwell_catalog::MapKey;
use keepwell_source_postgres::capture::{CaptureOptions, PgSource};
use keepwell_source_postgres::cluster::Cluster;

use crate::server::{Server, majors, options};
use crate::world::World;

async fn capture(world: &World, connect: &str, capture: CaptureOptions) -> (BackupReport, Cluster) {
    let source = PgSource::connect(&options(connect), capture, Arc::new(SystemClock)).await.unwrap();
    let source = Arc::new(source);
    let backup = BackupOptions { dataset: "pg".to_owned(), ..BackupOptions::default() };
    let report = world.repository.backup(Arc::clone(&source) as _, backup).await.unwrap();
    (report, source.cluster().unwrap())
}

async fn content(world: &World, report: &BackupReport, path: &str) -> Vec<u8> {
    let snapshots = world.repository.snapshots().await.unwrap();
    let snapshot = snapshots.iter().find(|snapshot| snapshot.id == report.snapshot).unwrap();
    let tree = world.repository.tree(snapshot).await.unwrap();
    let key = MapKey::from_components(path.split('/').filter(|name| !name.is_empty())).unwrap();
    let mut out = Vec::new();
    tree.dump_file(&key, &mut out).await.unwrap();
    out
}

#[tokio::test]
async fn a_damaged_page_is_named_and_the_snapshot_is_not_complete_unless_that_is_allowed() {
    for major in majors() {
        let server = Server::start(major, &[]);
        server.sql("CREATE TABLE people AS SELECT g, repeat('x', 500) FROM generate_series(1, 1000) g").await;
        server.sql("VACUUM people").await;
        server.sql("CHECKPOINT").await;
        let rows = server.sql("SELECT pg_relation_filepath('people') AS path").await;
        let path = rows.first("path").unwrap().to_owned();
        let world = World::new().await;
        let (report, cluster) = capture(&world, &server.socket(), CaptureOptions::default()).await;
        assert!(report.complete && cluster.bad_pages == 0, "{:?}", report.problems);
        assert_eq!(
            content(&world, &report, &format!("data/{path}")).await,
            std::fs::read(server.data().join(&path)).unwrap()
        );

        // Not where the server has it in memory: on the disk, as disks do it.
        let file = std::fs::File::options().write(true).open(server.data().join(&path)).unwrap();
        for block in [3, 7] {
            file.write_all_at(b"rot", block * 8192 + 5000).unwrap();
        }
        let (report, cluster) = capture(&world, &server.socket(), CaptureOptions::default()).await;
        let message = "the checksum of blocks 3, 7 of `public.people` in database `postgres` does not fit";
        assert_eq!(report.problems, [(format!("/data/{path}"), message.to_owned())]);
        assert!(!report.complete);
        let named: Vec<_> = cluster
            .bad_page_examples
            .iter()
            .map(|page| (page.block, page.relation.as_deref().unwrap()))
            .collect();
        assert_eq!((cluster.bad_pages, named), (2, vec![(3, "public.people"), (7, "public.people")]));
        let allowed = CaptureOptions { allow_bad_pages: true, ..CaptureOptions::default() };
        let (report, cluster) = capture(&world, &server.socket(), allowed).await;
        assert!(report.complete && report.problem_count == 0 && cluster.bad_pages == 2);
    }
}

#[tokio::test]
async fn without_checksums_pages_are_not_judged() {
    let server = Server::start(majors()[0], &["--no-checksums"]);
    let (report, cluster) = capture(&World::new().await, &server.socket(), CaptureOptions::default()).await;
    assert!(report.complete && !cluster.data_checksums && cluster.bad_pages == 0);
}

#[tokio::test]
async fn configuration_elsewhere_comes_along_if_the_role_may_read_it() {
    let major = majors()[0];
    let elsewhere = tempfile::Builder::new().prefix("keepwell-conf-").tempdir().unwrap();
    std::fs::set_permissions(elsewhere.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = elsewhere.path().join("more.conf");
    std::fs::write(&file, "work_mem = '5MB'\n").unwrap();
    let server = Server::start(major, &["--conf", &format!("include '{}'", file.display())]);
    let world = World::new().await;
    let (report, cluster) = capture(&world, &server.socket(), CaptureOptions::default()).await;
    let found: Vec<_> = cluster.configuration.iter().map(|f| (f.path.clone(), f.captured)).collect();
    assert_eq!(found, [(file.display().to_string(), true)]);
    assert_eq!(content(&world, &report, &format!("config{}", file.display())).await, b"work_mem = '5MB'\n");
    assert_eq!(cluster.data_directory.as_deref(), Some(server.data().to_str().unwrap()));
    let recorded: Cluster = serde_json::from_slice(&content(&world, &report, "cluster.json").await).unwrap();
    assert_eq!(recorded, cluster);

    server.sql("CREATE ROLE modest LOGIN REPLICATION").await;
    server.sql("CREATE ROLE knowing LOGIN REPLICATION IN ROLE pg_read_all_settings").await;
    for (role, expected) in [("modest", vec![]), ("knowing", vec![(file.display().to_string(), false)])] {
        let connect = server.socket().replace("user=postgres", &format!("user={role}"));
        let (report, cluster) = capture(&world, &connect, CaptureOptions::default()).await;
        let found: Vec<_> = cluster.configuration.iter().map(|f| (f.path.clone(), f.captured)).collect();
        assert_eq!((found, report.complete), (expected, true), "{role}");
    }
}
