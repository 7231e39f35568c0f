//! Against servers that are played here: hostile ones, and recordings of real ones.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::{Channel, start};
use super::error::PgError;
use super::frame::{Wire, cut};
use super::{Client, ServerError};
use crate::options::{ConnectOptions, SessionKind, Surroundings};

/// A message of the server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

fn auth(kind: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), rest].concat())
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn error(code: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0").as_bytes())
}

fn options(text: &str) -> ConnectOptions {
    ConnectOptions::resolve(
        &format!("host=db user=ann password=sesame {text}"),
        &Surroundings::default(),
        "t",
    )
    .unwrap()
}

/// Lets a server say all this, whatever it hears; gives what became of the session, and what it heard.
async fn against(
    says: &[Vec<u8>],
    options: &ConnectOptions,
    channel: Channel,
) -> (Result<Client, PgError>, Vec<u8>) {
    let (ours, mut theirs) = tokio::io::duplex(64 << 20);
    theirs.write_all(&says.concat()).await.unwrap();
    let result = start(Box::new(ours), &channel, options, &options.hosts[0]);
    let result = tokio::time::timeout(Duration::from_secs(60), result).await.expect("it must not hang");
    let (mut heard, quiet) = (BytesMut::new(), Duration::from_millis(50));
    while matches!(tokio::time::timeout(quiet, theirs.read_buf(&mut heard)).await, Ok(Ok(1..))) {}
    (result, heard.to_vec())
}

async fn refusal(says: &[Vec<u8>], text: &str, channel: Channel) -> String {
    let (result, heard) = against(says, &options(text), channel).await;
    assert!(!heard.windows(6).any(|w| w == b"sesame"), "the password was sent in clear");
    let error = result.expect_err("must be refused");
    assert!(!format!("{error:?}").contains("sesame"));
    error.to_string()
}

#[tokio::test]
async fn a_stranger_cannot_make_us_allocate() {
    for length in [u32::MAX, 0x7fff_ffff, 30_001, 3, 0] {
        let says = [[&b"R"[..], &length.to_be_bytes()].concat()];
        let text = refusal(&says, "", Channel::Clear).await;
        assert_eq!(
            text,
            format!("the server breaks the protocol: a message of type `R` says it is {length} bytes long")
        );
    }
}

#[tokio::test]
async fn a_password_in_clear_is_not_sent_where_others_can_listen() {
    let text = refusal(&[auth(3, b"")], "", Channel::Clear).await;
    assert_eq!(text, "db:5432 asks for a password in clear over a connection without TLS; it was not sent");
    let text = refusal(&[auth(3, b"")], "channel_binding=require", Channel::Tls { end_point: None }).await;
    assert_eq!(text, "db:5432 asks for a password in clear, and channel binding is required");
    let says = [auth(3, b""), auth(0, b""), parameter("server_version", "15.18 (Debian)"), ready()];
    let (client, heard) = against(&says, &options(""), Channel::Tls { end_point: None }).await;
    assert_eq!(client.unwrap().major(), 15);
    assert!(heard.windows(6).any(|w| w == b"sesame"), "over TLS it is");
}

#[tokio::test]
async fn scram_costs_no_more_than_a_bounded_time() {
    let sasl = auth(10, b"SCRAM-SHA-256\0\0");
    let text = refusal(&[sasl.clone(), auth(11, b"r=x,s=c2FsdA==,i=4294967295")], "", Channel::Clear).await;
    assert_eq!(
        text,
        "db:5432 asks for 4294967295 iterations of SCRAM, and 1000000 are the most that are done"
    );
    for challenge in [
        &b"r=x,s=c2FsdA=="[..],
        b"i=1",
        b"",
        b"i=99999999999999999999999",
        b"\xff\xfe,i=1",
        b"r=y,s=c2FsdA==,i=1",
    ] {
        let text = refusal(&[sasl.clone(), auth(11, challenge)], "", Channel::Clear).await;
        assert!(text.contains("SCRAM"), "{text}");
    }
}

#[tokio::test]
async fn a_server_cannot_skip_its_part_of_the_proof() {
    let sasl = auth(10, b"SCRAM-SHA-256\0\0");
    let text = refusal(&[sasl.clone(), auth(0, b"")], "", Channel::Clear).await;
    assert!(text.contains("does not belong into an authentication"), "{text}");
    let text =
        refusal(&[auth(0, b"")], "channel_binding=require", Channel::Tls { end_point: Some(vec![1; 32]) })
            .await;
    assert_eq!(text, "db:5432 lets us in without the channel binding that is required");
    let bound = Channel::Tls { end_point: Some(vec![1; 32]) };
    let text = refusal(&[sasl], "channel_binding=require", bound).await;
    assert_eq!(text, "db:5432 cannot bind the password exchange to the TLS channel, which is required");
}

#[tokio::test]
async fn what_a_server_reports_without_end_is_refused() {
    let says: Vec<_> =
        std::iter::once(auth(0, b"")).chain((0..2000).map(|n| parameter(&format!("p{n}"), "x"))).collect();
    let text = refusal(&says, "", Channel::Clear).await;
    assert_eq!(text, "the server breaks the protocol: it reports parameters without end");
    let mut says = vec![auth(0, b""), parameter("server_version", "15"), ready()];
    says.push(message(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"));
    let row = message(b'D', &[&b"\0\x01\0\x0f\0\0"[..], &vec![b'x'; 0x0f_0000]].concat());
    says.extend(std::iter::repeat_n(row, 40));
    says.extend(std::iter::repeat_n(
        message(b'D', &[&b"\0\x01\0\x0f\0\0"[..], &vec![b'x'; 0x0f_0000]].concat()),
        30,
    ));
    let (ours, mut theirs) = tokio::io::duplex(128 << 20);
    theirs.write_all(&says.concat()).await.unwrap();
    let options = options("");
    let mut client = start(Box::new(ours), &Channel::Clear, &options, &options.hosts[0]).await.unwrap();
    let error = client.query("SELECT 1", "ask").await.unwrap_err();
    assert_eq!(error.to_string(), "the server breaks the protocol: its answer is longer than 64 MiB");
}

#[tokio::test]
async fn tables_without_end_are_refused_also_when_they_have_no_rows() {
    let head = |columns: u16| {
        let column = [&b"c\0"[..], &[0; 18]].concat();
        message(b'T', &[&columns.to_be_bytes()[..], &column.repeat(columns.into())].concat())
    };
    for (columns, count) in [(1000, 1100), (0, 1_100_000)] {
        let mut says = vec![auth(0, b""), parameter("server_version", "15"), ready()];
        says.extend(std::iter::repeat_n(head(columns), count));
        let (ours, mut theirs) = tokio::io::duplex(64 << 20);
        theirs.write_all(&says.concat()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let options = options("");
        let mut client = start(Box::new(ours), &Channel::Clear, &options, &options.hosts[0]).await.unwrap();
        let error = client.query("SELECT 1", "ask").await.unwrap_err();
        assert_eq!(error.to_string(), "the server breaks the protocol: its answer is longer than 64 MiB");
    }
}

#[tokio::test]
async fn every_common_refusal_says_what_to_do() {
    let hba = "no pg_hba.conf entry for host \"10.0.0.7\", user \"ann\", database \"x\", no encryption";
    let cases = [
        (
            "28P01",
            "password authentication failed for user \"ann\"",
            "The password is wrong, or none was given: use ~/.pgpass, PGPASSWORD or a service file.",
        ),
        (
            "28000",
            hba,
            "Add a line for this role, database and address to pg_hba.conf, as in `hostssl all keepwell 10.0.0.0/8 scram-sha-256`, and reload the server.",
        ),
        (
            "42501",
            "must be superuser or replication role to start walsender",
            "The role needs REPLICATION: `ALTER ROLE keepwell REPLICATION`, run by a superuser.",
        ),
        ("3D000", "database \"x\" does not exist", "Name a database that exists, as in `dbname=postgres`."),
        (
            "53300",
            "sorry, too many clients already",
            "All connections or all walsenders are taken: see `max_connections` and `max_wal_senders`.",
        ),
    ];
    for (code, text, hint) in cases {
        let (result, _) = against(&[error(code, text)], &options(""), Channel::Clear).await;
        let failure = result.err().unwrap();
        assert_eq!(failure.to_string(), format!("db:5432 refuses the connection: {text} ({code})"));
        assert_eq!(failure.hint().as_deref(), Some(hint));
    }
    let says = [auth(0, b""), parameter("server_version", "13.22"), ready()];
    let (result, _) = against(&says, &options(""), Channel::Clear).await;
    let old = result.err().unwrap();
    assert_eq!(old.to_string(), "db:5432 runs PostgreSQL 13.22; 14 is the oldest supported");
    assert_eq!(
        old.hint().as_deref(),
        Some("Dump it with its own `pg_dump`, and keep the file by `keepwell pg import`.")
    );
    let (result, _) = against(&[auth(7, b"")], &options(""), Channel::Clear).await;
    assert_eq!(result.err().unwrap().to_string(), "db:5432 asks for Kerberos, which is not supported");
}

#[test]
fn limits_of_a_known_server_are_those_of_each_kind() {
    for (tag, length, fine) in [
        (b'd', 1 << 20, true),
        (b'd', (1 << 20) + 1, false),
        (b'D', 16 << 20, true),
        (b'T', 65537, false),
        (b'E', 1 << 19, false),
    ] {
        let mut input = BytesMut::from(&[&[tag][..], &(length as u32).to_be_bytes()].concat()[..]);
        assert_eq!(cut(&mut input, true).is_ok(), fine, "{tag} {length}");
    }
}

#[tokio::test]
async fn messages_arrive_whole_however_they_are_cut() {
    let stream =
        [message(b'd', b"one"), message(b'd', b""), message(b'd', b"three"), message(b'c', b"")].concat();
    for piece in [1, 2, 5, 7, stream.len()] {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let stream = stream.clone();
        let server = tokio::spawn(async move {
            for part in stream.chunks(piece) {
                theirs.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            theirs
        });
        let mut wire = Wire::new(Box::new(ours));
        wire.trusted = true;
        let mut texts = Vec::new();
        // The future is dropped again and again; no byte may go with it.
        loop {
            tokio::select! {
                biased;
                next = wire.next() => match next.unwrap() {
                    super::frame::Message::CopyData(data) => texts.push(data),
                    _ => break,
                },
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(texts, ["one", "", "three"]);
        drop(server.await.unwrap());
    }
}

#[test]
fn an_error_is_read_with_all_its_parts() {
    let shown = ServerError { code: "X".into(), message: "m".into(), detail: Some("d".into()), hint: None };
    assert_eq!(shown.to_string(), "m (X): d");
    let mut input = BytesMut::from(&message(b'E', b"Cxx000\0Mm")[..]);
    assert!(cut(&mut input, true).is_err(), "it ends in the middle of a text");
}

#[tokio::test]
async fn an_error_in_a_stream_is_not_lost_when_nobody_waits_for_its_end() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    let says = [
        auth(0, b""),
        parameter("server_version", "15"),
        ready(),
        message(b'W', b"\0\0\0"),
        error("58P01", "removed"),
    ];
    theirs.write_all(&says.concat()).await.unwrap();
    let options = options("");
    let mut client = start(Box::new(ours), &Channel::Clear, &options, &options.hosts[0]).await.unwrap();
    let Ok(crate::wire::Answer::CopyBoth) = client.run("START", "start").await else { panic!() };
    let mut copy = client.copy_both();
    let waited = tokio::time::timeout(Duration::from_millis(20), copy.next()).await;
    assert!(waited.is_err(), "the server is not ready again yet");
    theirs.write_all(&ready()).await.unwrap();
    let failure = copy.next().await.unwrap_err();
    assert!(matches!(&failure, PgError::Server { error, .. } if error.code == "58P01"), "{failure}");
}

#[tokio::test]
async fn a_row_of_any_length_comes_in_parts_where_rows_are_copied_and_is_refused_elsewhere() {
    let long = 3 << 20;
    let says = [
        auth(0, b""),
        parameter("server_version", "15"),
        ready(),
        message(b'H', b"\0\0\0"),
        message(b'd', b"short\n"),
        message(b'd', &vec![b'x'; long]),
        message(b'd', b"\n"),
        message(b'c', b""),
        ready(),
    ];
    for session in [SessionKind::Ordinary, SessionKind::Replication] {
        let (ours, mut theirs) = tokio::io::duplex(64 << 20);
        theirs.write_all(&says.concat()).await.unwrap();
        let options = ConnectOptions { session, ..options("") };
        let mut client = start(Box::new(ours), &Channel::Clear, &options, &options.hosts[0]).await.unwrap();
        assert!(matches!(client.run("COPY x TO STDOUT", "copy").await.unwrap(), super::Answer::CopyOut(_)));
        let (mut found, mut longest) = (Vec::new(), 0);
        let mut copy = client.copy_out("copy");
        let error = loop {
            match copy.next().await {
                Ok(Some(part)) => {
                    longest = longest.max(part.len());
                    found.extend_from_slice(&part);
                }
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        let expected = "the server breaks the protocol: a message of type `d` says it is 3145732 bytes long";
        match session {
            SessionKind::Ordinary => {
                assert_eq!(error, None);
                assert_eq!(found, [&b"short\n"[..], &vec![b'x'; long], b"\n"].concat());
                assert!(longest < long, "it was kept as a whole");
            }
            SessionKind::Replication => assert_eq!(error.as_deref(), Some(expected)),
        }
    }
}
