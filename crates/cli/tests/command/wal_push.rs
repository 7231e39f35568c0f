//! `wal push --ahead` as a server runs it: the command itself, in a data directory that is made up.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SYSTEM: u64 = 7_710_603_854_990_343_878;
const SEGMENT: u32 = 1 << 20;
/// For what comes in the end, unless something is wrong.
const LONG: Duration = Duration::from_secs(300);

/// A server with finished WAL, and a repository for it.
struct Server(TempDir);

impl Server {
    /// The segments up to this one are ready.
    fn new(last: u64) -> Self {
        let server = Self(tempfile::tempdir().unwrap());
        for directory in ["home", "data/global", "data/pg_wal/archive_status"] {
            fs::create_dir_all(server.path(directory)).unwrap();
        }
        fs::write(server.path("data/global/pg_control"), SYSTEM.to_ne_bytes()).unwrap();
        for number in 1..=last {
            fs::write(server.path("data/pg_wal").join(name(number)), content(number)).unwrap();
            fs::write(server.status(number, "ready"), "").unwrap();
        }
        server.run(&["init"]);
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn status(&self, number: u64, state: &str) -> PathBuf {
        self.path("data/pg_wal/archive_status").join(format!("{}.{state}", name(number)))
    }

    /// The command, where a server runs it.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
        command.env_clear().env("HOME", self.path("home")).current_dir(self.path("data"));
        command.arg("--repository").arg(self.path("repository")).arg("--cache-dir").arg(self.path("cache"));
        command.arg("--json").args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the command says, which has to succeed.
    fn run(&self, words: &[&str]) -> String {
        said(&self.command(words).output().unwrap())
    }

    /// Asks for a segment.
    fn push(&self, number: u64) -> Command {
        self.command(&["wal", "push", "--ahead", &format!("pg_wal/{}", name(number))])
    }

    fn is_pushed(&self, number: u64, result: &str) -> bool {
        said(&self.push(number).output().unwrap()).contains(&format!("\"result\":\"{result}\""))
    }

    /// Asks for these segments one after the other.
    fn archive(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            said(&self.push(number).output().unwrap());
            self.done(number);
        }
    }

    /// Takes note that a segment is archived.
    fn done(&self, number: u64) {
        fs::rename(self.status(number, "ready"), self.status(number, "done")).unwrap();
    }

    /// The file with this extension beside the cache, once it is there.
    fn beside_cache(&self, extension: &str) -> Option<PathBuf> {
        let mut files = fs::read_dir(self.path("cache")).ok()?.map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|found| found == extension))
    }

    /// How many segments are noted as archived ahead.
    fn noted(&self) -> usize {
        let note = self.beside_cache("ahead").map(|note| fs::read_to_string(note).unwrap_or_default());
        note.map_or(0, |note| note.lines().count())
    }

    /// Waits until nobody archives ahead.
    fn wait_for_follower(&self) {
        let turn = self.beside_cache("turn").expect("nobody ever archived ahead");
        let turn = File::options().write(true).open(turn).unwrap();
        until("who archives ahead ends", || flock(&turn, FlockOperation::NonBlockingLockExclusive).is_ok());
    }

    /// Whoever archives ahead for us.
    fn follower(&self) -> Option<Pid> {
        let ours = self.0.path().as_os_str().as_bytes();
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0);
            let is_it =
                words.clone().any(|word| word == b"--follow") && words.any(|word| word.starts_with(ours));
            Pid::from_raw(number).filter(|_| is_it)
        })
    }

    /// The archive has no gap, and these segments come back as they were.
    fn has(&self, numbers: impl IntoIterator<Item = u64>) {
        self.run(&["wal", "gaps"]);
        for number in numbers {
            let back = self.path("back");
            self.run(&["wal", "get", &name(number), back.to_str().unwrap()]);
            assert!(fs::read(&back).unwrap() == content(number), "segment {number}");
        }
    }
}

fn name(number: u64) -> String {
    format!("00000001{:08X}{:08X}", number >> 12, number & 0xfff)
}

/// A segment that begins with a page of WAL.
fn content(number: u64) -> Vec<u8> {
    const PAGE: usize = 8192;
    let mut content = vec![number as u8; SEGMENT as usize];
    // All of it lies within one record.
    let mut left = 1_u32 << 29;
    for (index, page) in content.chunks_mut(PAGE).enumerate() {
        let (info, header) = if index == 0 { (3, 40) } else { (1, 24) };
        let place = number * u64::from(SEGMENT) + (index * PAGE) as u64;
        page[..4].copy_from_slice(&[0x10, 0xd1, info, 0]);
        page[8..16].copy_from_slice(&place.to_le_bytes());
        page[16..20].copy_from_slice(&left.to_le_bytes());
        left -= (PAGE - header) as u32;
    }
    content[24..32].copy_from_slice(&SYSTEM.to_le_bytes());
    content[32..36].copy_from_slice(&SEGMENT.to_le_bytes());
    content[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
    content
}

fn said(output: &Output) -> String {
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}{wrong}", output.status);
    said.into_owned()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what}: not yet");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_ready_is_archived_by_a_process_that_ends_and_is_then_answered_without_the_repository() {
    let server = Server::new(12);
    assert!(server.is_pushed(1, "stored"));
    server.done(1);
    server.wait_for_follower();
    assert_eq!(server.noted(), 11);
    let (repository, away) = (server.path("repository"), server.path("away"));
    fs::rename(&repository, &away).unwrap();
    for number in 2..=12 {
        assert!(server.is_pushed(number, "already"), "segment {number}");
        server.done(number);
    }
    fs::rename(&away, &repository).unwrap();
    server.has(1..=12);
    // Nothing is behind it: nobody is left.
    fs::write(server.path("data/pg_wal").join(name(13)), content(13)).unwrap();
    assert!(server.is_pushed(13, "stored"));
    assert_eq!(server.noted(), 11);
}

#[test]
fn nothing_is_lost_with_a_process_that_is_killed_while_it_archives_ahead() {
    // So many that it is there until it is killed: it gets only so far ahead of a server that asks for nothing.
    let server = Server::new(70);
    assert!(server.is_pushed(1, "stored"));
    until("something is archived ahead", || server.noted() > 0);
    kill_process(server.follower().unwrap(), Signal::KILL).unwrap();
    server.wait_for_follower();
    server.archive(1..=70);
    server.wait_for_follower();
    assert_eq!(server.follower(), None);
    server.has([1, 2, 3, 36, 69, 70]);
}

#[test]
fn several_at_once_do_each_other_no_harm() {
    let server = Server::new(20);
    for numbers in [[1, 1, 2, 2], [3, 1, 9, 20]] {
        let running = numbers.map(|number| server.push(number).spawn().unwrap());
        for push in running {
            said(&push.wait_with_output().unwrap());
        }
    }
    server.archive(1..=20);
    server.wait_for_follower();
    server.has(1..=20);
}

#[test]
fn what_cannot_be_archived_ahead_is_told_to_whoever_asks_for_it() {
    let server = Server::new(6);
    fs::write(server.path("data/pg_wal").join(name(4)), content(9)).unwrap();
    assert!(server.is_pushed(1, "stored"));
    server.wait_for_follower();
    server.archive(1..=3);
    let refused = server.push(4).output().unwrap();
    let wrong = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && wrong.contains("is no WAL"), "{wrong}");
    fs::write(server.path("data/pg_wal").join(name(4)), content(4)).unwrap();
    server.archive(4..=6);
    server.wait_for_follower();
    server.has(1..=6);
}

#[test]
fn who_archives_ahead_never_asks_at_the_terminal_of_the_server() {
    let server = Server::new(2);
    let passphrase = server.path("passphrase");
    fs::write(&passphrase, "x").unwrap();
    server.run(&["key", "passphrase", "--new-passphrase-file", passphrase.to_str().unwrap()]);
    let words = ["wal", "push", "--follow", &format!("pg_wal/{}", name(1))];
    let follow = server.command(&words);
    let line: Vec<String> = [follow.get_program()]
        .into_iter()
        .chain(follow.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // Gives it a terminal, at which nobody would ever answer. Not alone in its session, as a command that is the last one would be.
    let mut terminal = Command::new("timeout");
    terminal.args(["300", "script", "-qec", &format!("{}; exit $?", line.join(" ")), "/dev/null"]);
    terminal
        .env_clear()
        .env("HOME", server.path("home"))
        .env("PATH", "/usr/bin:/bin")
        .env("SHELL", "/bin/sh");
    let output = terminal.current_dir(server.path("data")).stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && !shown.contains("Passphrase of"), "{shown}");
    assert!(shown.contains("there is no terminal to ask on"), "{shown}");
}
