//! Receiving WAL, and recovering from what was received.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use keepwell_source_postgres::archive::{ArchiveError, Fetched, fetch, survey};
use keepwell_source_postgres::lsn::{Lsn, Segment, SegmentSize, Timeline};
use keepwell_source_postgres::receive::ReceiveError;
use keepwell_source_postgres::replication::SlotName;

use crate::server::{Server, majors};
use crate::world::World;

async fn position(server: &Server) -> Lsn {
    let rows = server.sql("SELECT pg_current_wal_flush_lsn() AS at").await;
    rows.first("at").unwrap().parse().unwrap()
}

fn name(timeline: Timeline, at: Lsn) -> String {
    let size = SegmentSize::default();
    Segment { timeline, number: size.number_at(at) }.file_name(size)
}

#[tokio::test]
async fn what_is_received_is_what_the_server_wrote_and_goes_on_after_a_stop() {
    for major in majors() {
        let server = Server::start(major, &[]);
        let world = World::new().await;
        let mut running = world.receive(&server.socket(), |_| {});
        // A slot holds WAL from the moment it is created.
        running.until(|p| p.streaming).await;
        server.sql("CREATE TABLE t AS SELECT g, repeat('x', 900) FROM generate_series(1, 40000) g").await;
        let first = position(&server).await;
        running.durable(first).await;
        let stopped = running.stop().await;
        assert_eq!((stopped.gaps, stopped.connections), (0, 1));
        server.sql("INSERT INTO t SELECT g, repeat('y', 900) FROM generate_series(1, 40000) g").await;
        let last = position(&server).await;
        let mut running = world.receive(&server.socket(), |_| {});
        running.durable(last).await;
        running.stop().await;
        let system = server.client().await.identify().await.unwrap().system_id;
        let reader = world.reader(system.get());
        let found = survey(&reader).await.unwrap();
        assert_eq!(found.gaps, []);
        assert_eq!(found.stretches.len(), 1, "{found:?}");
        assert!(found.stretches[0].to >= last);
        let size = SegmentSize::default();
        let mut compared = 0;
        for number in size.number_at(found.stretches[0].from)..=size.number_at(last) {
            let file = Segment { timeline: Timeline::FIRST, number }.file_name(size);
            let Fetched::Found(ours) = fetch(&reader, &file).await.unwrap() else {
                panic!("{file} is missing")
            };
            // Up to the end of what was written: the server's file may go on with an older one's bytes.
            let end = (last.get() - size.start_of(number).get()).min(u64::from(size.get())) as usize;
            let theirs = std::fs::read(server.data().join("pg_wal").join(&file));
            if let Ok(theirs) = theirs {
                assert!(ours[..end] == theirs[..end], "{file} differs");
                compared += 1;
            }
        }
        assert!(compared >= 1);
        let slot = server.client().await.slot(&SlotName::new("keepwell").unwrap()).await.unwrap().unwrap();
        assert!(slot.restart.unwrap() >= first && !slot.active, "{slot:?}");
    }
}

/// Puts everything that recovery from `from` on can ask for into a directory.
async fn fetch_all(world: &World, system: u64, timelines: u32, from: Lsn, to: Lsn, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let (reader, size) = (world.reader(system), SegmentSize::default());
    for timeline in (1..=timelines).filter_map(Timeline::new) {
        let mut files = vec![timeline.history_file()];
        files.extend(
            (size.number_at(from)..=size.number_at(to))
                .map(|number| Segment { timeline, number }.file_name(size)),
        );
        for file in files {
            match fetch(&reader, &file).await {
                Ok(Fetched::Found(content)) => std::fs::write(dir.join(file), content).unwrap(),
                Ok(Fetched::Missing) | Err(ArchiveError::BeginsLater { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Recovers a base backup with the files of a directory; gives what a query answers then.
async fn recover(server: &Server, base: &Path, wal: &Path, target: &str, sql: &str) -> String {
    let owner = server.value("OWNER");
    let mut conf = std::fs::read_to_string(base.join("postgresql.auto.conf")).unwrap_or_default();
    conf.push_str(&format!(
        "restore_command = 'cp {}/%f %p'\n{target}\nrecovery_target_action = 'promote'\n",
        wal.display()
    ));
    conf.push_str("synchronous_standby_names = ''\narchive_mode = off\n");
    std::fs::write(base.join("postgresql.auto.conf"), conf).unwrap();
    std::fs::write(base.join("recovery.signal"), "").unwrap();
    for path in [base, wal] {
        assert!(Command::new("chown").arg("-R").arg(owner).arg(path).status().unwrap().success());
    }
    let socket = server.scratch().join("recovered-socket");
    std::fs::create_dir_all(&socket).unwrap();
    assert!(Command::new("chown").arg(owner).arg(&socket).status().unwrap().success());
    let ctl = |verb: &str| {
        let options = format!("-p 6543 -c listen_addresses= -c unix_socket_directories={}", socket.display());
        let command = format!(
            "{}/pg_ctl {verb} -w -t 60 -s -D {} -l {}/recovery.log -o '{options}'",
            server.value("BIN"),
            base.display(),
            socket.display()
        );
        as_owner(server, &command)
    };
    if !ctl("start") {
        panic!("{}", std::fs::read_to_string(socket.join("recovery.log")).unwrap_or_default());
    }
    let text = format!("host={} port=6543 user=postgres dbname=postgres", socket.display());
    let mut answer = String::new();
    for _ in 0..300 {
        let mut client = crate::server::connect(&text).await;
        let open = client.query("SELECT NOT pg_is_in_recovery() AS open", "look").await.unwrap();
        if open.first("open") == Some("t") {
            answer = client.query(sql, "ask").await.unwrap().text(0, 0).unwrap_or_default().to_owned();
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    ctl("stop -m immediate");
    answer
}

/// Runs a command of bash as the user whose files the server's are.
pub fn as_owner(server: &Server, command: &str) -> bool {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut run = if root { Command::new("setpriv") } else { Command::new("env") };
    if root {
        let owner = server.value("OWNER");
        run.args(["--reuid", owner, "--regid", owner, "--clear-groups", "env"]);
    }
    let quiet = || std::process::Stdio::null();
    run.args(["bash", "-c", command])
        .stdin(quiet())
        .stdout(quiet())
        .stderr(quiet())
        .current_dir(server.scratch())
        .status()
        .unwrap()
        .success()
}

/// Copies the cluster with pg_basebackup; gives where its recovery begins.
fn base_backup(server: &Server, to: &Path) {
    let parent = to.parent().unwrap();
    assert!(Command::new("chown").arg(server.value("OWNER")).arg(parent).status().unwrap().success());
    let command = format!(
        "{}/pg_basebackup -h {} -p {} -U postgres -D {} -X none -c fast --no-manifest",
        server.value("CLIENT_BIN"),
        server.value("SOCKET"),
        server.value("PORT"),
        to.display()
    );
    assert!(as_owner(server, &command), "{command}");
}

#[tokio::test]
async fn a_server_recovers_to_the_last_commit_and_to_any_moment_before() {
    for major in majors() {
        let server = Server::start(major, &[]);
        if server.value("CLIENT_BIN").is_empty() {
            continue;
        }
        let world = World::new().await;
        let mut running = world.receive(&server.socket(), |_| {});
        running.until(|p| p.streaming).await;
        let from = position(&server).await;
        server.sql("CREATE TABLE t AS SELECT 1 AS n").await;
        let copies: Vec<_> = (0..2).map(|n| server.scratch().join(format!("copy{n}"))).collect();
        copies.iter().for_each(|copy| base_backup(&server, copy));
        for n in 2..=50 {
            server.sql(&format!("INSERT INTO t VALUES ({n})")).await;
        }
        let middle = position(&server).await;
        for n in 51..=100 {
            server.sql(&format!("INSERT INTO t VALUES ({n})")).await;
        }
        let last = position(&server).await;
        // No segment was switched: the end is in tails.
        running.durable(last).await;
        let system = running.stop().await.system.unwrap();
        let wal = server.scratch().join("wal");
        fetch_all(&world, system.get(), 1, from, last, &wal).await;
        let count = "SELECT count(*) || ' ' || max(n) FROM t";
        assert_eq!(recover(&server, &copies[0], &wal, "", count).await, "100 100");
        let target = format!("recovery_target_lsn = '{middle}'");
        assert_eq!(recover(&server, &copies[1], &wal, &target, count).await, "50 50");
    }
}

#[tokio::test]
async fn a_store_that_is_away_loses_nothing_and_the_server_is_not_told_otherwise() {
    let major = majors()[0];
    let server = Server::start(major, &[]);
    let world = World::new().await;
    let mut running = world.receive(&server.socket(), |_| {});
    running.until(|p| p.streaming).await;
    running.durable(position(&server).await).await;
    world.store.away.store(true, Ordering::SeqCst);
    let before = running.progress.borrow().durable;
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 900) FROM generate_series(1, 120000) g").await;
    let last = position(&server).await;
    // Far more than it may hold in memory; it stops reading and the slot keeps the rest.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let stuck = *running.progress.borrow();
    assert!(stuck.durable < last && stuck.durable.get() - before.get() < 1 << 20, "{stuck:?}");
    assert!(stuck.received.get() - before.get() <= 6 * (16 << 20), "{stuck:?}");
    let rows = server
        .sql("SELECT flush_lsn AS at, restart_lsn AS kept FROM pg_stat_replication, pg_replication_slots")
        .await;
    let at = |column| rows.first(column).unwrap().parse::<Lsn>().unwrap();
    assert!(at("at") <= stuck.durable && at("kept") <= stuck.durable, "{rows:?}");
    world.store.away.store(false, Ordering::SeqCst);
    running.durable(last).await;
    let progress = running.stop().await;
    assert_eq!((progress.gaps, progress.connections), (0, 1));
    assert_eq!(survey(&world.reader(progress.system.unwrap().get())).await.unwrap().gaps, []);
}

#[tokio::test]
async fn as_a_synchronous_standby_a_commit_is_archived_before_it_returns() {
    for major in majors() {
        let server = Server::start(major, &["--conf", "synchronous_standby_names = '\"keepwell-test\"'"]);
        let world = World::new().await;
        let mut running = world.receive(&server.socket(), |options| options.synchronous = true);
        running.until(|p| p.streaming).await;
        server.sql("CREATE TABLE t (n int)").await;
        let mut client = server.client().await;
        for n in 0..30 {
            client.query(&format!("INSERT INTO t VALUES ({n})"), "insert").await.unwrap();
            let rows = client.query("SELECT pg_current_wal_insert_lsn() AS at", "look").await.unwrap();
            let archived = running.progress.borrow().durable;
            let at: Lsn = rows.first("at").unwrap().parse().unwrap();
            // Between the two statements only background work writes WAL, of at most a few records.
            assert!(archived.plus(8192) >= at, "commit {n} at {at} returned with {archived} archived");
        }
        client.close().await;
        running.stop().await;
    }
}

#[tokio::test]
async fn after_a_failover_it_goes_on_along_the_new_timeline() {
    for major in majors() {
        let old = Server::start(major, &[]);
        if old.value("CLIENT_BIN").is_empty() {
            continue;
        }
        let standby = old.scratch().join("standby");
        base_backup(&old, &standby);
        let socket = old.scratch().join("standby-socket");
        std::fs::create_dir(&socket).unwrap();
        let _ = Command::new("chown").arg(old.value("OWNER")).arg(&socket).status();
        let conf = format!(
            "primary_conninfo = 'host={} port={} user=postgres'\n",
            old.value("SOCKET"),
            old.value("PORT")
        );
        std::fs::write(standby.join("postgresql.auto.conf"), conf).unwrap();
        std::fs::write(standby.join("standby.signal"), "").unwrap();
        let _ = Command::new("chown").arg("-R").arg(old.value("OWNER")).arg(&standby).status();
        let ctl = |verb: &str| {
            let options =
                format!("-p 6544 -c listen_addresses= -c unix_socket_directories={}", socket.display());
            as_owner(
                &old,
                &format!(
                    "{}/pg_ctl {verb} -w -t 60 -s -D {} -l {}/log -o '{options}'",
                    old.value("BIN"),
                    standby.display(),
                    socket.display()
                ),
            )
        };
        assert!(ctl("start"));
        let world = World::new().await;
        let both = format!(
            "host={},{} port={},6544 user=postgres dbname=postgres target_session_attrs=primary",
            old.value("SOCKET"),
            socket.display(),
            old.value("PORT")
        );
        let mut running = world.receive(&both, |_| {});
        running.until(|p| p.streaming).await;
        old.sql("CREATE TABLE t AS SELECT g, repeat('x', 900) FROM generate_series(1, 20000) g").await;
        let at_failover = position(&old).await;
        running.durable(at_failover).await;
        let new = format!("host={} port=6544 user=postgres dbname=postgres", socket.display());
        let mut client = crate::server::connect(&new).await;
        for _ in 0..200 {
            let rows = client.query("SELECT pg_last_wal_replay_lsn() AS at", "look").await.unwrap();
            if rows.first("at").unwrap().parse::<Lsn>().unwrap() >= at_failover {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(as_owner(
            &old,
            &format!("{}/pg_ctl stop -m immediate -s -D {}", old.value("BIN"), old.data().display())
        ));
        client.query("SELECT pg_promote()", "promote").await.unwrap();
        client.query("INSERT INTO t VALUES (0, 'after')", "insert").await.unwrap();
        client.query("CHECKPOINT", "checkpoint").await.unwrap();
        let rows = client.query("SELECT pg_current_wal_flush_lsn() AS at", "look").await.unwrap();
        let last: Lsn = rows.first("at").unwrap().parse().unwrap();
        let second = Timeline::new(2).unwrap();
        running.until(|p| p.timeline == Some(second) && p.durable >= last).await;
        let progress = running.stop().await;
        assert_eq!(progress.gaps, 0);
        let reader = world.reader(progress.system.unwrap().get());
        let found = survey(&reader).await.unwrap();
        assert_eq!(found.gaps, []);
        assert_eq!(found.stretches.iter().map(|s| s.timeline.get()).collect::<Vec<_>>(), [1, 2]);
        assert!(matches!(fetch(&reader, "00000002.history").await.unwrap(), Fetched::Found(_)));
        assert!(matches!(fetch(&reader, &name(second, last)).await.unwrap(), Fetched::Found(_)));
        assert_eq!(fetch(&reader, "00000003.history").await.unwrap(), Fetched::Missing);
        ctl("stop -m immediate");
        // The script stops the server once more at the end; it has to run for that.
        assert!(as_owner(
            &old,
            &format!(
                "{}/pg_ctl start -w -s -D {} -l /dev/null -o '-p {}'",
                old.value("BIN"),
                old.data().display(),
                old.value("PORT")
            )
        ));
        // The old primary comes back, and is refused: it lost the failover.
        let refused = world.receive(&old.socket(), |_| {}).task.await.unwrap().unwrap_err();
        assert!(matches!(refused, ReceiveError::Diverged { .. }), "{refused}");
    }
}

#[tokio::test]
async fn another_cluster_under_the_same_name_and_a_missing_slot_are_refused() {
    let majors = majors();
    let (one, other) = (Server::start(majors[0], &[]), Server::start(majors[0], &[]));
    let world = World::new().await;
    let mut running = world.receive(&one.socket(), |_| {});
    running.until(|p| p.streaming).await;
    running.stop().await;
    let refused = world.receive(&other.socket(), |_| {}).task.await.unwrap().unwrap_err();
    assert!(refused.to_string().starts_with("the log of `postgres` is that of cluster "), "{refused}");
    assert!(refused.hint().unwrap().contains("--new-cluster"));
    let none = world.receive(&one.socket(), |options| {
        options.create_slot = false;
        options.slot = SlotName::new("nobody");
    });
    let none = none.task.await.unwrap().unwrap_err();
    assert_eq!(none.to_string(), "there is no replication slot `nobody`");
    let mut allowed = world.receive(&other.socket(), |options| options.rebind = true);
    allowed.until(|p| p.streaming).await;
    allowed.stop().await;
}

#[tokio::test]
async fn a_receiver_that_was_killed_while_one_piece_was_slow_leaves_no_hole() {
    let server = Server::start(majors()[0], &[]);
    let world = World::new().await;
    let mut running = world.receive(&server.socket(), |_| {});
    running.until(|p| p.streaming).await;
    running.durable(position(&server).await).await;
    let size = SegmentSize::default();
    let held = Segment { timeline: Timeline::FIRST, number: size.number_at(position(&server).await) + 1 };
    *world.store.held.lock().unwrap() = Some(format!("/{:016x}/", held.file_number(size)));
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 900) FROM generate_series(1, 60000) g").await;
    let system = running.progress.borrow().system.unwrap().get();
    let archive = world.repository.wal_writer("postgres", system, size.get(), false).await.unwrap();
    let next = Segment { number: held.number + 1, ..held };
    while !archive.has_from(1, next.file_number(size)).await.unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    running.task.abort();
    let _ = running.task.await;
    *world.store.held.lock().unwrap() = None;
    server.sql("CHECKPOINT").await;
    let mut running = world.receive(&server.socket(), |_| {});
    running.until(|p| p.streaming).await;
    let begun = running.progress.borrow().durable;
    assert!(begun <= size.start_of(held.number + 1), "{begun} is behind what was never stored");
    running.durable(position(&server).await).await;
    running.stop().await;
    let found = survey(&world.reader(system)).await.unwrap();
    assert_eq!((found.gaps.len(), found.stretches.len()), (0, 1), "{found:?}");
}

#[tokio::test]
async fn a_gap_is_named_and_the_archive_goes_on_after_it() {
    let server =
        Server::start(majors()[0], &["--conf", "min_wal_size = 32MB", "--conf", "max_wal_size = 32MB"]);
    let world = World::new().await;
    let mut running = world.receive(&server.socket(), |options| options.slot = None);
    running.until(|p| p.streaming).await;
    let seen = position(&server).await;
    running.durable(seen).await;
    let system = running.stop().await.system.unwrap();
    // Nothing holds the WAL back.
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 900) FROM generate_series(1, 100000) g").await;
    server.sql("CHECKPOINT").await;
    server.sql("SELECT pg_switch_wal()").await;
    server.sql("CHECKPOINT").await;
    let mut running = world.receive(&server.socket(), |options| options.slot = None);
    running.until(|p| p.streaming && p.gaps == 1).await;
    server.sql("INSERT INTO t VALUES (0, '')").await;
    running.durable(position(&server).await).await;
    running.stop().await;
    let reader = world.reader(system.get());
    let found = survey(&reader).await.unwrap();
    assert_eq!((found.gaps.len(), found.stretches.len()), (1, 2), "{found:?}");
    let gap = found.gaps[0];
    assert!(gap.from >= seen && gap.to > gap.from);
    // Recovery must not take the gap for the end of the WAL.
    let inside = name(Timeline::FIRST, gap.from.plus(16 << 20));
    let error = fetch(&reader, &inside).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`{inside}` is missing from the archive, and later WAL of timeline 1 is there")
    );
}
