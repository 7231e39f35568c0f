//! The replication client: ways in, commands, streams.

use std::path::Path;
use std::process::Command;

use keepwell_source_postgres::lsn::{Lsn, SegmentSize, Timeline};
use keepwell_source_postgres::replication::{
    BackupCommand, BackupEvent, Begun, Checkpoint, SlotName, StreamEnd, WalMessage,
};
use keepwell_source_postgres::wire::{Client, PgError};

use crate::server::{Server, connect, majors, options};

#[tokio::test]
async fn commands_of_replication_and_sql_share_a_connection() {
    for major in majors() {
        // Ordinary lines only: `replication` is not among them.
        let server = Server::start(major, &["--hba", "local all all trust"]);
        let mut client = server.client().await;
        assert_eq!(client.major(), major);
        let identity = client.identify().await.unwrap();
        assert_eq!(identity.timeline, Timeline::FIRST);
        let rows = client.query("SELECT system_identifier FROM pg_control_system()", "look").await.unwrap();
        assert_eq!(rows.first("system_identifier"), Some(identity.system_id.to_string().as_str()));
        assert_eq!(client.segment_size().await.unwrap(), SegmentSize::default());
        assert_eq!(client.timeline_history(Timeline::FIRST).await.unwrap(), None);
        let missing = client.timeline_history(Timeline::new(7).unwrap()).await.unwrap_err();
        assert!(matches!(&missing, PgError::Server { error, .. } if error.code == "58P01"), "{missing}");
        let name = SlotName::new("kw_test").unwrap();
        assert_eq!(client.slot(&name).await.unwrap(), None);
        client.create_slot(&name, false).await.unwrap();
        let slot = client.slot(&name).await.unwrap().unwrap();
        assert!(slot.restart.is_some() && !slot.active && slot.kind == "physical", "{slot:?}");
        let twice = client.create_slot(&name, false).await.unwrap_err();
        assert_eq!(twice.to_string(), "create the slot `kw_test`");
        client.drop_slot(&name).await.unwrap();
        assert_eq!(
            client.query("SELECT 1 AS one, NULL AS none", "ask").await.unwrap().first("one"),
            Some("1")
        );
        client.close().await;
    }
}

fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, a server certificate for `localhost`, and a client certificate for `carl`, in `dir`.
fn certificates(dir: &Path) {
    std::fs::write(dir.join("server.ext"), "subjectAltName = DNS:localhost\n").unwrap();
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-authority -keyout ca.key -out ca.crt",
    );
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other-authority -keyout other.key -out other.crt",
    );
    for (name, subject, extra) in
        [("server", "/CN=localhost", "-extfile server.ext"), ("carl", "/CN=carl", "-extfile server.ext")]
    {
        openssl(
            dir,
            &format!("req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -days 2 -sha384 -CA ca.crt -CAkey ca.key -CAcreateserial -in {name}.csr -out {name}.crt {extra}"
            ),
        );
    }
}

fn chown(path: &Path, owner: &str) {
    let _ = Command::new("chown").arg(owner).arg(path).status();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A server with TLS, SCRAM and MD5 roles, and lines of pg_hba.conf for each way in.
async fn guarded(major: u32) -> Server {
    let server = Server::start(
        major,
        &[
            "--hba",
            "local all postgres trust",
            "--hba",
            "hostssl all carl 127.0.0.1/32 cert",
            "--hba",
            "hostssl all clear 127.0.0.1/32 password",
            "--hba",
            "hostnossl all nossl 127.0.0.1/32 scram-sha-256",
            "--hba",
            "host all old 127.0.0.1/32 md5",
            "--hba",
            "host all scram,plain 127.0.0.1/32 scram-sha-256",
        ],
    );
    let dir = server.scratch().join("certs");
    std::fs::create_dir(&dir).unwrap();
    certificates(&dir);
    for name in ["server.crt", "server.key", "ca.crt"] {
        let to = server.data().join(name);
        std::fs::copy(dir.join(name), &to).unwrap();
        chown(&to, server.value("OWNER"));
    }
    chown(&dir.join("carl.key"), "root");
    let mut client = server.client().await;
    for sql in [
        "ALTER SYSTEM SET ssl = on",
        "ALTER SYSTEM SET ssl_ca_file = 'ca.crt'",
        "SELECT pg_reload_conf()",
        "SET password_encryption = 'scram-sha-256'",
        "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'open sesame'",
        "CREATE ROLE nossl LOGIN REPLICATION PASSWORD 'open sesame'",
        "CREATE ROLE clear LOGIN REPLICATION PASSWORD 'open sesame'",
        "CREATE ROLE plain LOGIN PASSWORD 'open sesame'",
        "CREATE ROLE carl LOGIN REPLICATION",
        "SET password_encryption = 'md5'",
        "CREATE ROLE old LOGIN REPLICATION PASSWORD 'open sesame'",
    ] {
        client.query(sql, "prepare").await.unwrap();
    }
    // The reload is asynchronous.
    for _ in 0..200 {
        if client.query("SHOW ssl", "look").await.unwrap().first("ssl") == Some("on") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        client = server.client().await;
    }
    server
}

#[tokio::test]
async fn every_way_in_works_and_checks_what_it_says() {
    for major in majors() {
        let server = guarded(major).await;
        let certs = server.scratch().join("certs");
        let ca = format!("sslrootcert={}", certs.join("ca.crt").display());
        let other = format!("sslrootcert={}", certs.join("other.crt").display());
        let own = format!("sslrootcert={}", certs.join("server.crt").display());
        let pass = "password='open sesame'";
        let carl = format!("sslcert={0}/carl.crt sslkey={0}/carl.key", certs.display());
        let bound = format!("user=scram {pass} sslmode=require channel_binding=require");
        let works = [
            format!("user=scram {pass}"),
            format!("user=scram {pass} sslmode=disable"),
            bound.clone(),
            format!("user=scram {pass} sslmode=verify-full {ca}"),
            format!("user=scram {pass} sslmode=verify-full {own}"),
            format!("user=old {pass} sslmode=disable"),
            format!("user=clear {pass} sslmode=prefer"),
            format!("user=clear {pass} sslmode=allow"),
            format!("user=nossl {pass} sslmode=prefer"),
            format!("user=carl sslmode=verify-full {ca} {carl}"),
        ];
        for text in &works {
            let mut client = connect(&server.tcp(text)).await;
            assert!(client.identify().await.is_ok(), "{text}");
            let ssl = client
                .query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", "look")
                .await
                .unwrap();
            let clear = text.contains("disable") || text.contains("nossl");
            assert_eq!(ssl.first("ssl"), Some(if clear { "f" } else { "t" }), "{text}");
            client.close().await;
        }
        let by_address =
            |text: &str| format!("host=127.0.0.1 port={} dbname=postgres {text}", server.value("PORT"));
        connect(&by_address(&format!("user=scram {pass} sslmode=verify-ca {ca}"))).await.close().await;
        let refused = [
            (server.tcp("user=scram password=wrong"), "password authentication failed"),
            (server.tcp("user=scram"), "none is given"),
            (server.tcp(&format!("user=plain {pass}")), "(42501)"),
            (server.tcp(&format!("user=nobody {pass}")), "no pg_hba.conf entry"),
            (server.tcp(&format!("user=nossl {pass} sslmode=require")), "no pg_hba.conf entry"),
            (server.tcp(&format!("user=scram {pass} sslmode=verify-full {other}")), "fails at TLS"),
            (server.tcp(&format!("user=scram {pass} sslmode=verify-ca {other}")), "fails at TLS"),
            (by_address(&format!("user=scram {pass} sslmode=verify-full {ca}")), "fails at TLS"),
            (by_address(&format!("user=scram {pass} sslmode=verify-full {own}")), "fails at TLS"),
            (
                server.tcp(&format!("user=scram {pass} sslmode=disable channel_binding=require")),
                "cannot bind",
            ),
            (server.tcp("user=scram sslmode=verify-ca sslrootcert=/nonexistent"), "/nonexistent"),
        ];
        for (text, fact) in &refused {
            let error = Client::connect(&options(text)).await.expect_err(text);
            assert!(error.to_string().contains(fact), "{text}: {error}");
        }
    }
}

#[tokio::test]
async fn of_several_hosts_the_fitting_one_is_found() {
    for major in majors() {
        let server = Server::start(major, &[]);
        let (socket, port) = (server.value("SOCKET"), server.value("PORT"));
        let text = format!(
            "host=/nonexistent,{socket} port=1,{port} user=postgres dbname=postgres target_session_attrs=read-write"
        );
        assert_eq!(connect(&text).await.host(), format!("{socket}:{port}"));
        for wanted in ["standby", "read-only"] {
            let text = format!("{} target_session_attrs={wanted}", server.socket());
            let error = Client::connect(&options(&text)).await.unwrap_err();
            assert!(matches!(error, PgError::WrongKind { .. }), "{error}");
        }
        let either = format!("{} target_session_attrs=prefer-standby", server.socket());
        assert!(!connect(&either).await.is_standby());
        let none = Client::connect(&options("host=/nonexistent,/nowhere user=postgres")).await.unwrap_err();
        assert!(
            none.to_string().starts_with("none of 2 servers will do: connect to /nonexistent:5432: "),
            "{none}"
        );
    }
}

#[tokio::test]
async fn the_stream_brings_every_byte_and_ends_in_order() {
    for major in majors() {
        let server = Server::start(major, &[]);
        let mut client = server.client().await;
        let slot = SlotName::new("kw_stream").unwrap();
        client.create_slot(&slot, false).await.unwrap();
        server.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g").await;
        let identity = client.identify().await.unwrap();
        let from = SegmentSize::default().start_of(SegmentSize::default().number_at(identity.position));
        let Begun::Stream(mut stream) = client.start_wal(Some(&slot), from, identity.timeline).await.unwrap()
        else {
            panic!()
        };
        let mut received = Vec::new();
        while from.plus(received.len() as u64) < identity.position {
            match stream.next().await.unwrap().unwrap() {
                WalMessage::Data { start, data, .. } => {
                    assert_eq!(start, from.plus(received.len() as u64));
                    received.extend_from_slice(&data);
                }
                WalMessage::KeepAlive { .. } => {}
            }
        }
        let file = server.data().join("pg_wal").join(
            keepwell_source_postgres::lsn::Segment {
                timeline: Timeline::FIRST,
                number: SegmentSize::default().number_at(from),
            }
            .file_name(SegmentSize::default()),
        );
        assert!(
            std::fs::read(file).unwrap().starts_with(&received),
            "the same bytes as on the server's disk"
        );
        stream.report(identity.position, identity.position, 0, false).await.unwrap();
        assert_eq!(stream.end(false).await.unwrap(), StreamEnd::Closed);
        // The connection is free again, and the slot has moved with what we reported.
        for _ in 0..100 {
            if client.slot(&slot).await.unwrap().unwrap().restart == Some(identity.position) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(client.slot(&slot).await.unwrap().unwrap().restart, Some(identity.position));
        let future = Lsn::new(1 << 50);
        let Begun::Stream(mut stream) = client.start_wal(None, future, identity.timeline).await.unwrap()
        else {
            panic!()
        };
        let error = stream.next().await.unwrap_err();
        assert_eq!(error.to_string(), "stream the WAL");
        assert!(client.identify().await.is_ok(), "an error ends the stream and not the connection");
    }
}

#[tokio::test]
async fn a_base_backup_arrives_in_order_in_both_syntaxes() {
    for major in majors() {
        let server = Server::start(major, &[]);
        let space = server.scratch().join("space");
        std::fs::create_dir(&space).unwrap();
        let _ = Command::new("chown").arg(server.value("OWNER")).arg(&space).status();
        server.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display())).await;
        server.sql("CREATE TABLE t TABLESPACE s AS SELECT 1").await;
        let mut client = server.client().await;
        let command = BackupCommand {
            label: "it's a label".into(),
            checkpoint: Checkpoint::Fast,
            max_rate_kb: None,
            server_checks_pages: true,
            wal: false,
            incremental: false,
        };
        let (started, mut stream) = client.base_backup(&command).await.unwrap();
        assert_eq!(started.tablespaces.len(), 1);
        assert_eq!(started.tablespaces[0].location, space.display().to_string());
        let (mut archives, mut bytes, mut manifest) = (Vec::new(), 0, Vec::new());
        while let Some(event) = stream.next().await.unwrap() {
            match event {
                BackupEvent::Archive(space) => archives.push(space),
                BackupEvent::Data(data) => bytes += data.len() as u64,
                BackupEvent::Manifest(data) => manifest.extend_from_slice(&data),
            }
        }
        let (end, timeline) = stream.end().unwrap();
        assert!(end > started.start && timeline == started.timeline);
        assert_eq!(archives, [Some(started.tablespaces[0].clone()), None]);
        assert!(bytes > started.estimate / 2 && bytes > 10 << 20, "{bytes} of {}", started.estimate);
        assert!(manifest.starts_with(b"{ \"PostgreSQL-Backup-Manifest-Version\""));
        assert!(client.identify().await.is_ok(), "the connection is free again");
    }
}
