//! Logical backups. That every kind of object comes back, scripts/postgres-logical.sh shows.

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::env::SystemClock;
use backup_core::{BackupOptions, Cancel, Snapshot};
use keepwell_source_postgres::logical::{
    Destination, DumpError, DumpOptions, DumpSnapshot, DumpSource, LoadOptions, Loaded, Loader, Owners,
    Pattern, Privileges, Programs, Proof, Roles, Selection,
};

use crate::receive::as_owner;
use crate::server::{Server, connect, majors, options};
use crate::world::World;

fn bin_dir(server: &Server) -> Option<PathBuf> {
    let directory = server.value("CLIENT_BIN");
    (!directory.is_empty()).then(|| PathBuf::from(directory))
}

async fn dump(world: &World, server: &Server, change: impl FnOnce(&mut DumpOptions)) -> Snapshot {
    let mut dump = DumpOptions { bin_dir: bin_dir(server), ..DumpOptions::default() };
    change(&mut dump);
    let source = DumpSource::connect(&options(&server.socket()), dump, Arc::new(SystemClock)).await.unwrap();
    let backup = BackupOptions { dataset: "db".to_owned(), ..BackupOptions::default() };
    let report = world.repository.backup(Arc::new(source), backup).await.unwrap();
    assert!(report.complete && report.problem_count == 0, "{:?}", report.problems);
    let snapshots = world.repository.snapshots().await.unwrap();
    snapshots.into_iter().find(|snapshot| snapshot.id == report.snapshot).unwrap()
}

async fn load(world: &World, server: &Server, snapshot: &Snapshot, name: &str, into: &str) -> Loaded {
    try_load(world, server, snapshot, name, into).await.unwrap()
}

async fn try_load(
    world: &World,
    server: &Server,
    snapshot: &Snapshot,
    name: &str,
    into: &str,
) -> Result<Loaded, DumpError> {
    let directory = tempfile::tempdir().unwrap();
    let options = LoadOptions {
        programs: Programs::find(server.value("MAJOR").parse().unwrap(), bin_dir(server).as_deref(), &[])
            .unwrap(),
        jobs: 3,
        selection: Selection::default(),
        owners: Owners::AsDumped,
        privileges: Privileges::AsDumped,
        roles: Roles::MakeMissing,
        proof: Proof::Content,
        directory: directory.path().to_path_buf(),
        cancel: Cancel::default(),
    };
    let to = crate::server::options(&server.socket());
    let mut loader = Loader::new(&world.repository, snapshot, &to, options).await.unwrap();
    loader.load(name, into, Destination::New).await
}

async fn ask(server: &Server, database: &str, sql: &str) -> String {
    let mut client =
        connect(&server.socket().replace("dbname=postgres", &format!("dbname={database}"))).await;
    let rows = client.query(sql, "ask a test's question").await.unwrap();
    rows.text(0, 0).unwrap_or_default().to_owned()
}

/// What a table holds, whatever the order.
const SUM: &str = "SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM big t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_in_parts_is_one_moment_of_it_while_it_is_written() {
    for major in majors() {
        let server = Server::start(major, &[]);
        server.sql("CREATE TABLE big (n int PRIMARY KEY, at int NOT NULL, filler text)").await;
        server
            .sql("INSERT INTO big SELECT n, 0, repeat('x', n % 300) FROM generate_series(1, 20000) n")
            .await;
        server.sql("CREATE TABLE counter AS SELECT 0 AS at").await;
        // Whoever sees `counter` at k sees every row of `big` at k, wherever in the table it is by then.
        let writer = {
            let text = server.socket();
            tokio::spawn(async move {
                let mut client = connect(&text).await;
                loop {
                    let sql = "BEGIN; UPDATE counter SET at = at + 1; UPDATE big SET at = at + 1; COMMIT";
                    client.query(sql, "write").await.unwrap();
                }
            })
        };
        let world = World::new().await;
        let snapshot = dump(&world, &server, |options| options.part_pages = 16).await;
        writer.abort();
        let _ = writer.await;
        let described = DumpSnapshot::open(&world.repository, &snapshot).await.unwrap();
        let database = described.database("postgres").await.unwrap();
        let big = database.tables.iter().find(|table| table.name == "big").unwrap();
        assert!(big.parts > 5 && big.rows == Some(20_000), "{big:?}");
        let loaded = load(&world, &server, &snapshot, "postgres", "back").await;
        assert_eq!((loaded.tables, loaded.rows), (2, 20_001));
        let apart = "SELECT count(*) FROM big, counter WHERE big.at <> counter.at";
        assert_eq!(ask(&server, "back", apart).await, "0");
        assert_eq!(
            ask(&server, "back", "SELECT count(*) FROM pg_index WHERE indrelid = 'big'::regclass").await,
            "1"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comments_on_what_is_built_on_rows_come_back() {
    let server = Server::start(majors()[0], &[]);
    server.sql("CREATE TABLE big (n int PRIMARY KEY, at int UNIQUE)").await;
    server.sql("CREATE INDEX big_both ON big (n, at)").await;
    server.sql("CREATE TABLE small (n int CONSTRAINT to_big REFERENCES big)").await;
    server.sql("COMMENT ON INDEX big_both IS 'both'; COMMENT ON INDEX big_pkey IS 'first'").await;
    server.sql("COMMENT ON CONSTRAINT big_at_key ON big IS 'second'").await;
    server.sql("COMMENT ON CONSTRAINT to_big ON small IS 'third'").await;
    let world = World::new().await;
    let snapshot = dump(&world, &server, |_| {}).await;
    load(&world, &server, &snapshot, "postgres", "back").await;
    let sql = "SELECT concat_ws(' ', obj_description('big_both'::regclass), obj_description('big_pkey'::regclass), \
        (SELECT string_agg(obj_description(oid, 'pg_constraint'), ' ' ORDER BY conname) FROM pg_constraint))";
    assert_eq!(ask(&server, "back", sql).await, "both first second third");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extensions_that_a_dump_of_a_schema_lacks_are_named() {
    let server = Server::start(majors()[0], &[]);
    let there = "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'";
    if ask(&server, "postgres", there).await == "0" {
        eprintln!("skipped: this server has no `citext`");
        return;
    }
    server.sql("CREATE EXTENSION citext; CREATE SCHEMA app; CREATE SCHEMA plain").await;
    server.sql("CREATE TABLE app.t (name citext); CREATE TABLE plain.t AS SELECT 1 AS n").await;
    let world = World::new().await;
    let only = |schema: &str| vec![Pattern::schema(schema).unwrap()];
    let snapshot = dump(&world, &server, |options| options.selection.schemas = only("app")).await;
    let failed = try_load(&world, &server, &snapshot, "postgres", "back").await.unwrap_err();
    assert_eq!(failed.to_string(), "the backup makes no extensions, and its database had `citext`");
    assert!(failed.hint().unwrap().contains("CREATE EXTENSION"), "{failed:?}");
    let left = "SELECT count(*) FROM pg_database WHERE datname = 'back'";
    assert_eq!(ask(&server, "postgres", left).await, "0");
    // What does not need them is loaded.
    let snapshot = dump(&world, &server, |options| options.selection.schemas = only("plain")).await;
    assert_eq!(load(&world, &server, &snapshot, "postgres", "back").await.tables, 1);
    let snapshot = dump(&world, &server, |_| {}).await;
    assert_eq!(load(&world, &server, &snapshot, "postgres", "all").await.tables, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_drop_left_half_removed_is_no_database() {
    let server = Server::start(majors()[0], &[]);
    server.sql("CREATE DATABASE half").await;
    // As a server leaves one whose removal was interrupted.
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'").await;
    let world = World::new().await;
    let snapshot = dump(&world, &server, |_| {}).await;
    let described = DumpSnapshot::open(&world.repository, &snapshot).await.unwrap();
    let names: Vec<&str> = described.dump().databases.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["postgres"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_dumped_without_what_is_not_logged() {
    let server = Server::start(majors()[0], &[]);
    server.sql("CREATE TABLE kept AS SELECT generate_series(1, 10) AS n").await;
    // From 15 on its sequence is not logged either.
    server.sql("CREATE UNLOGGED TABLE quick (id serial, n int)").await;
    server.sql("INSERT INTO quick (n) SELECT generate_series(1, 10)").await;
    let (bin, data) = (server.value("BIN"), server.data().display());
    let restart = format!(
        "touch {data}/standby.signal && {bin}/pg_ctl restart -w -t 60 -s -m fast -D {data} -l /dev/null"
    );
    assert!(as_owner(&server, &restart));
    let world = World::new().await;
    let snapshot = dump(&world, &server, |_| {}).await;
    let described = DumpSnapshot::open(&world.repository, &snapshot).await.unwrap();
    let dump = described.dump();
    let is_told = |sentence: &String| sentence.contains("not logged") && sentence.contains("public.quick");
    assert!(dump.from_standby && dump.left_out.iter().any(is_told), "{:?}", dump.left_out);
    assert!(!dump.left_out.iter().any(|sentence| sentence.contains("excluded")), "{:?}", dump.left_out);
    server.sql("SELECT pg_promote()").await;
    let loaded = load(&world, &server, &snapshot, "postgres", "back").await;
    assert_eq!((loaded.tables, loaded.rows), (1, 10));
    assert_eq!(ask(&server, "back", "SELECT count(*) FROM quick").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_the_server_does_not_take_is_left_out_and_told() {
    let server = Server::start(majors()[0], &[]);
    server.sql("ALTER DATABASE postgres SET work_mem = '5MB'").await;
    // One of a tablespace that is not there is taken by a database, and by no session.
    server.sql("ALTER DATABASE postgres SET temp_tablespaces = gone").await;
    server.sql("ALTER DATABASE postgres SET search_path = app, public").await;
    // As a setting of an older major, which this one does not know.
    let unknown =
        "UPDATE pg_db_role_setting SET setconfig = 'of_old=on'::text || setconfig WHERE setrole = 0";
    server.sql(unknown).await;
    let world = World::new().await;
    let snapshot = dump(&world, &server, |_| {}).await;
    let loaded = load(&world, &server, &snapshot, "postgres", "back").await;
    let told =
        "the setting `of_old` of the database is left out: unrecognized configuration parameter \"of_old\"";
    assert_eq!(loaded.notes, [told]);
    let sql = "SELECT array_to_string(setconfig, '; ') FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase \
        WHERE datname = 'back'";
    assert_eq!(
        ask(&server, "postgres", sql).await,
        "work_mem=5MB; temp_tablespaces=gone; search_path=app, public"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_by_the_hash_of_an_enum_are_known_however_it_is_had() {
    let server = Server::start(majors()[0], &[]);
    server.sql("CREATE TYPE mood AS ENUM ('bad', 'fine', 'good', 'best'); CREATE DOMAIN felt AS mood").await;
    server.sql("CREATE FUNCTION same(mood) RETURNS mood IMMUTABLE LANGUAGE sql AS 'SELECT $1'").await;
    for (name, key) in [("as_domain", "what"), ("by_expression", "same(what)")] {
        server.sql(&format!("CREATE TABLE {name} (what felt) PARTITION BY HASH ({key})")).await;
        for part in 0..4 {
            let sql = format!(
                "CREATE TABLE {name}_{part} PARTITION OF {name} FOR VALUES WITH (MODULUS 4, REMAINDER {part})"
            );
            server.sql(&sql).await;
        }
        server.sql(&format!("INSERT INTO {name} SELECT unnest(enum_range(NULL::mood))")).await;
    }
    let world = World::new().await;
    let snapshot = dump(&world, &server, |_| {}).await;
    let described = DumpSnapshot::open(&world.repository, &snapshot).await.unwrap();
    let database = described.database("postgres").await.unwrap();
    let roots: Vec<_> =
        database.tables.iter().map(|table| table.root.as_ref().map(|(_, name)| name.as_str())).collect();
    assert_eq!(roots, [[Some("as_domain"); 4], [Some("by_expression"); 4]].concat());
    let loaded = load(&world, &server, &snapshot, "postgres", "back").await;
    assert_eq!((loaded.tables, loaded.rows), (8, 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_megabytes_and_bytes_of_every_encoding_come_back() {
    let server = Server::start(majors()[0], &[]);
    server
        .sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
        .await;
    server
        .sql("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        .await;
    let mut sums = Vec::new();
    for (name, text) in [("latin", "U&'caf\\00e9'"), ("bytes", "E'caf\\351 \\377'")] {
        ask(&server, name, "CREATE TABLE big (n int, text text)").await;
        // In the encoding of the database, as programs of that time do.
        let client =
            format!("SET client_encoding = '{}'; ", if name == "latin" { "LATIN1" } else { "SQL_ASCII" });
        ask(&server, name, &format!("{client}INSERT INTO big VALUES (1, {text})")).await;
        ask(&server, name, "INSERT INTO big VALUES (2, repeat('x', 3000000)), (3, repeat(E'\\n', 3000000))")
            .await;
        sums.push(
            ask(
                &server,
                name,
                "SELECT md5(string_agg(convert_to(text, 'SQL_ASCII'), '' ORDER BY n)) FROM big",
            )
            .await,
        );
    }
    let world = World::new().await;
    let snapshot = dump(&world, &server, |_| {}).await;
    for (name, sum) in ["latin", "bytes"].into_iter().zip(sums) {
        load(&world, &server, &snapshot, name, &format!("{name}_back")).await;
        let sql = "SELECT md5(string_agg(convert_to(text, 'SQL_ASCII'), '' ORDER BY n)) FROM big";
        assert_eq!(ask(&server, &format!("{name}_back"), sql).await, sum, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_dump_stores_only_what_changed_and_a_failed_one_leaves_no_snapshot() {
    let server = Server::start(majors()[0], &[]);
    server.sql("CREATE TABLE big AS SELECT n, md5(n::text) AS text FROM generate_series(1, 30000) n").await;
    server.sql("CREATE TABLE small AS SELECT 1 AS n").await;
    let world = World::new().await;
    let first = dump(&world, &server, |_| {}).await;
    server.sql("INSERT INTO small VALUES (2)").await;
    let second = dump(&world, &server, |_| {}).await;
    let read = |snapshot: &Snapshot| snapshot.manifest().unwrap().statistics.new_plain_bytes;
    assert!(read(&first) > 1_000_000 && read(&second) < 100_000, "{} {}", read(&first), read(&second));
    let before = ask(&server, "postgres", SUM).await;
    load(&world, &server, &first, "postgres", "back").await;
    assert_eq!(ask(&server, "back", SUM).await, before);
    assert_eq!(ask(&server, "back", "SELECT count(*) FROM small").await, "1");

    server.sql("CREATE ROLE modest LOGIN").await;
    let modest = server.socket().replace("user=postgres", "user=modest");
    let dump = DumpOptions { bin_dir: bin_dir(&server), ..DumpOptions::default() };
    let source = DumpSource::connect(&options(&modest), dump, Arc::new(SystemClock)).await.unwrap();
    let failed = world.repository.backup(Arc::new(source), BackupOptions::default()).await;
    assert!(failed.is_err());
    assert_eq!(world.repository.snapshots().await.unwrap().len(), 2);
}
