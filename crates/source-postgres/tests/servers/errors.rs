//! What people read when something is not as it should be: word for word, with what to do about it.

use std::sync::Arc;
use std::time::Duration;

use backup_core::env::SystemClock;
use keepwell_source_postgres::capture::{CaptureOptions, PgSource};
use keepwell_source_postgres::logical::{DumpOptions, DumpSource};
use keepwell_source_postgres::receive::{ReceiveError, ReceiveOptions};
use keepwell_source_postgres::replication::SlotName;
use keepwell_source_postgres::wire::{Client, PgError};

use crate::server::{Server, connect, majors, options};
use crate::world::World;

const REPLICATION: &str =
    "The role needs REPLICATION: `ALTER ROLE keepwell REPLICATION`, run by a superuser.";
const HBA: &str = "Add a line for this role, database and address to pg_hba.conf, as in `hostssl all keepwell 10.0.0.0/8 \
                   scram-sha-256`, and reload the server.";

/// An error with its causes, and its hint.
fn said(error: &PgError) -> (String, String) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    (text, error.hint().unwrap_or_default())
}

async fn refused(text: &str) -> PgError {
    Client::connect(&options(text)).await.err().unwrap_or_else(|| panic!("{text} was let in"))
}

/// Why a receiver gives up, in words and with what to do.
async fn given_up(connect: &str, change: impl FnOnce(&mut ReceiveOptions)) -> (String, String) {
    let world = World::new().await;
    let ended = tokio::time::timeout(Duration::from_secs(60), world.receive(connect, change).task).await;
    let error = ended.expect("it waits for what will not pass").unwrap().expect_err("nothing was wrong");
    match &error {
        ReceiveError::Server(error) => said(error),
        error => (error.to_string(), error.hint().unwrap_or_default()),
    }
}

#[tokio::test]
async fn who_is_not_let_in_reads_why_and_what_to_do() {
    for major in majors() {
        let server = Server::start(
            major,
            &["--hba", "local all all trust", "--hba", "host all keepwell,modest 127.0.0.1/32 scram-sha-256"],
        );
        server.sql("CREATE ROLE keepwell LOGIN REPLICATION PASSWORD 'open sesame'").await;
        server.sql("CREATE ROLE modest LOGIN PASSWORD 'open sesame'").await;
        let at = format!("localhost:{}", server.value("PORT"));
        let replication = match major {
            ..=15 => "must be superuser or replication role to start walsender (42501)",
            _ => {
                "permission denied to start WAL sender (42501): Only roles with the REPLICATION attribute may start a WAL \
                 sender process."
            }
        };
        let hba = "no pg_hba.conf entry for host \"127.0.0.1\", user \"nobody\", database \"postgres\", no encryption (28000)";
        let cases = [
            (
                "user=keepwell password=wrong",
                "password authentication failed for user \"keepwell\" (28P01)",
                "The password is wrong, or none was given: use ~/.pgpass, PGPASSWORD or a service file.",
            ),
            ("user=modest password='open sesame'", replication, REPLICATION),
            ("user=nobody password=x", hba, HBA),
            (
                "user=keepwell password='open sesame' dbname=clinic",
                "database \"clinic\" does not exist (3D000)",
                "Name a database that exists, as in `dbname=postgres`.",
            ),
        ];
        for (text, fact, hint) in cases {
            let (message, advice) = said(&refused(&server.tcp(text)).await);
            assert_eq!(message, format!("{at} refuses the connection: {fact}"), "{major}");
            assert_eq!(advice, hint, "{major}");
        }
        let none = refused(&server.tcp("user=keepwell")).await;
        assert_eq!(
            none.to_string(),
            format!(
                "{at} asks for a password, and none is given: use ~/.pgpass, PGPASSWORD or a service file"
            )
        );
        // A base backup and a dump say the same.
        let clock = Arc::new(SystemClock);
        let wrong = options(&server.tcp("user=keepwell password=wrong"));
        let capture = PgSource::connect(&wrong, CaptureOptions::default(), clock.clone()).await.unwrap_err();
        let dump = DumpSource::connect(&wrong, DumpOptions::default(), clock).await.unwrap_err();
        for (message, hint) in [(capture.to_string(), capture.hint()), (dump.to_string(), dump.hint())] {
            assert_eq!(message, format!("{at} refuses the connection: {}", cases[0].1));
            assert_eq!(hint.as_deref(), Some(cases[0].2));
        }
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_with_what_may_be_the_matter() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (message, hint) = said(&refused(&format!("host=127.0.0.1 port={closed} user=x dbname=x")).await);
    assert_eq!(message, format!("connect to 127.0.0.1:{closed}: Connection refused (os error 111)"));
    assert_eq!(hint, "Nothing listens there: check host and port, and `listen_addresses` of the server.");
    let (message, hint) = said(&refused("host=/nonexistent port=5433 user=x dbname=x").await);
    assert_eq!(message, "connect to /nonexistent:5433: No such file or directory (os error 2)");
    assert_eq!(
        hint,
        "There is no such socket: check the directory and the port, and whether the server runs."
    );
    let (message, hint) = said(&refused("host=no-such-host.invalid user=x dbname=x").await);
    assert!(
        message.starts_with("connect to no-such-host.invalid:5432: failed to lookup address information: ")
    );
    assert_eq!(
        hint,
        "Check the name of the host and the way there; `psql` with the same words fails as well."
    );
    // One that takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let (message, hint) =
        said(&refused(&format!("host=127.0.0.1 port={port} user=x dbname=x connect_timeout=2")).await);
    assert_eq!(message, format!("127.0.0.1:{port} did not answer within 2 s"));
    assert_eq!(
        hint,
        "Something on the way swallows what is sent, a firewall perhaps, or the server hangs; `connect_timeout` says how \
         long to wait."
    );
}

#[tokio::test]
async fn a_server_without_room_for_replication_says_which_setting() {
    for major in majors() {
        let quote = if major >= 17 { "\"max_wal_senders\"" } else { "max_wal_senders" };
        // `wal_level = minimal` goes with no other number of senders.
        let server =
            Server::start(major, &["--conf", "wal_level = minimal", "--conf", "max_wal_senders = 0"]);
        let at = format!("{}:{}", server.value("SOCKET"), server.value("PORT"));
        let fact = format!("number of requested standby connections exceeds {quote} (currently 0) (53300)");
        // It does not wait for a restart that nobody may plan.
        let (message, hint) = given_up(&server.socket(), |_| {}).await;
        assert_eq!(message, format!("{at} refuses the connection: {fact}"));
        assert_eq!(
            hint,
            "The server lets nobody replicate: set `wal_level = replica` and `max_wal_senders = 10`, and restart it."
        );
        drop(server);

        let server =
            Server::start(major, &["--conf", "max_wal_senders = 1", "--conf", "max_replication_slots = 1"]);
        let at = format!("{}:{}", server.value("SOCKET"), server.value("PORT"));
        let mut only = server.client().await;
        only.create_slot(&SlotName::new("taken").unwrap(), false).await.unwrap();
        let error = refused(&server.socket()).await;
        let fact = format!("number of requested standby connections exceeds {quote} (currently 1) (53300)");
        assert!(error.is_passing(), "whoever is connected may go");
        assert_eq!(
            said(&error),
            (
                format!("{at} refuses the connection: {fact}"),
                "All connections or all walsenders are taken: see `max_connections` and `max_wal_senders`."
                    .to_owned()
            )
        );
        only.close().await;
        // The session of `only` may take a moment to end.
        for _ in 0..100 {
            if let Ok(client) = Client::connect(&options(&server.socket())).await {
                client.close().await;
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (message, hint) = given_up(&server.socket(), |_| {}).await;
        assert_eq!(message, "create the slot `keepwell`: all replication slots are in use (53400)");
        assert_eq!(
            hint,
            "All replication slots are taken: raise `max_replication_slots` or drop one that nobody uses."
        );
        drop(server);

        let server = Server::start(major, &["--conf", "max_replication_slots = 0"]);
        let (message, hint) = given_up(&server.socket(), |_| {}).await;
        if message == "create the slot `keepwell`: all replication slots are in use (53400)" {
            continue; // said so by a server that counts the slots before it looks at the setting
        }
        let quote = if major >= 17 { "\"max_replication_slots\"" } else { "max_replication_slots" };
        assert_eq!(
            message,
            format!("create the slot `keepwell`: replication slots can only be used if {quote} > 0 (55000)")
        );
        assert_eq!(
            hint,
            "Set `wal_level = replica` and `max_replication_slots = 10`, and restart the server."
        );
    }
}

#[tokio::test]
async fn a_slot_that_is_not_there_or_not_ours_is_named() {
    for major in majors() {
        let server = Server::start(major, &["--conf", "wal_level = logical"]);
        let unknown = given_up(&server.socket(), |options| options.create_slot = false).await;
        let expected = (
            "there is no replication slot `keepwell`",
            "--create-slot creates it; it then holds WAL back on the server until it is archived.",
        );
        assert_eq!((unknown.0.as_str(), unknown.1.as_str()), expected);
        server.sql("SELECT pg_create_logical_replication_slot('keepwell', 'pgoutput')").await;
        let other = given_up(&server.socket(), |_| {}).await;
        let expected = (
            "the replication slot `keepwell` is of the kind `logical`, and a physical one is needed",
            "Somebody else uses it: leave it alone, and name another one with --slot and --create-slot.",
        );
        assert_eq!((other.0.as_str(), other.1.as_str()), expected);
        server.sql("SELECT pg_drop_replication_slot('keepwell')").await;
        // In use by another receiver: that passes, and is waited for.
        let world = World::new().await;
        let mut first = world.receive(&server.socket(), |_| {});
        first.until(|p| p.streaming).await;
        let mut client = connect(&server.socket()).await;
        let slot = SlotName::new("keepwell").unwrap();
        let identity = client.identify().await.unwrap();
        let error = client.start_wal(Some(&slot), identity.position, identity.timeline).await.err();
        let error = match error {
            Some(error) => error,
            None => panic!("two receivers stream from one slot"),
        };
        let (message, hint) = said(&error);
        let begin = format!("stream the WAL from {} on timeline 1: ", identity.position);
        let fact = message.strip_prefix(&begin).unwrap_or_else(|| panic!("{message}"));
        assert!(fact.starts_with("replication slot \"keepwell\" is active for PID "), "{message}");
        assert!(fact.ends_with(" (55006)"), "{message}");
        assert!(error.is_passing());
        assert_eq!(
            hint,
            "The slot is in use, perhaps by a receiver that still runs; `pg_stat_replication` shows whose."
        );
        first.stop().await;
    }
}
