//! The agent as it is run: on a repository, from its configuration, to its exit code.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::{CreateOptions, Created, Repository};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_storage::{LocalFs, LocalOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A directory with a repository, its key, a tree, and a place for the agent's state.
struct Place(TempDir);

impl Place {
    async fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let store = LocalFs::create(place.path("repository"), &LocalOptions::default()).await.unwrap();
        let options =
            CreateOptions { owner: "test".into(), member: "test".into(), store_hint: None, probe: None };
        let key = Created::generate(&options, 1).unwrap().store(&store).await.unwrap();
        fs::write(place.path("key"), key.to_toml().expose()).unwrap();
        fs::set_permissions(place.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(place.path("tree")).unwrap();
        fs::write(place.path("tree/file"), "content").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a configuration with one job and starts the agent on it.
    fn start(&self, every: &str, rules: &str, arguments: &[&str]) -> Child {
        let top = self.0.path().display();
        let text = format!(
            "state-directory = \"{top}/state\"\n[job.test]\nrepository = \"{top}/repository\"\n\
             key-file = \"{top}/key\"\npaths = [\"{top}/tree\"]\nevery = \"{every}\"\n{rules}\n"
        );
        fs::write(self.path("config"), text).unwrap();
        agent(&self.path("config"), arguments)
    }

    fn once(&self, every: &str, rules: &str) -> (Option<i32>, String) {
        ended(self.start(every, rules, &["--once"]).wait_with_output().unwrap())
    }

    /// Runs the agent until it says this, then ends it; gives all that it said.
    async fn until(&self, every: &str, rules: &str, says: &str) -> String {
        let mut child = self.start(every, rules, &[]);
        let (mut lines, says) = (BufReader::new(child.stderr.take().unwrap()).lines(), says.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let mut log = String::new();
            while !log.contains(&says) {
                let Some(line) = lines.next() else { panic!("it never says `{says}`: {log}") };
                log.push_str(&line.unwrap());
                log.push('\n');
            }
            log
        });
        let log = tokio::time::timeout(Duration::from_secs(240), read).await;
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        log.expect("it says so in time").unwrap()
    }

    fn commits(&self) -> usize {
        let writers = fs::read_dir(self.path("repository/commits")).into_iter().flatten();
        writers.map(|writer| fs::read_dir(writer.unwrap().path()).unwrap().count()).sum()
    }
}

fn agent(config: &Path, arguments: &[&str]) -> Child {
    agent_after("--default-signal=HUP", config, arguments)
}

/// With what `env` does to a signal before: whoever runs the tests may have it ignored.
fn agent_after(signal: &str, config: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new("env");
    command.arg(signal).arg(env!("CARGO_BIN_EXE_keepwell-agent")).arg("--config").arg(config);
    command.args(arguments).env_remove("KEEPWELL_LOG").stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn once_runs_what_is_due_and_nothing_else() {
    let place = Place::new().await;
    let (code, log) = place.once("1h", "");
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("backed up").count(), 1, "{log}");
    assert!(log.contains("job=\"test\"") && log.contains("new=1"), "{log}");
    assert_eq!(place.commits(), 1);
    let (code, log) = place.once("1h", "");
    assert_eq!((code, log.as_str()), (Some(0), ""));
    assert_eq!(place.commits(), 1);
}

#[tokio::test]
async fn a_key_that_others_can_read_is_warned_of() {
    let place = Place::new().await;
    fs::set_permissions(place.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, log) = place.once("1h", "");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the key can be read by others") && log.contains("0644"), "{log}");
}

#[tokio::test]
async fn a_run_that_cannot_be_remembered_is_told_all_the_same() {
    let place = Place::new().await;
    fs::create_dir_all(place.path("state/.test.partial")).unwrap();
    let (code, log) = place.once("1h", "");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("backed up") && log.contains("cannot be remembered"), "{log}");
}

#[tokio::test]
async fn a_failure_says_what_may_help() {
    let place = Place::new().await;
    fs::remove_file(place.path("repository/keepwell.json")).unwrap();
    let (code, log) = place.once("1h", "");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("hint=\"`keepwell init` makes one"), "{log}");
}

#[tokio::test]
async fn rules_are_applied_after_each_run() {
    let place = Place::new().await;
    let rules = "retention = { last = 1 }";
    for forgotten in [0, 1, 1] {
        let (code, log) = place.once("1s", rules);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("forgotten={forgotten}")), "{log}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
}

#[tokio::test]
async fn a_backup_counts_although_nothing_could_be_forgotten_or_copied_after_it() {
    let place = Place::new().await;
    // That of a host that may only write.
    let store = LocalFs::open(place.path("repository"), &LocalOptions::default()).await.unwrap();
    let owner = KeyFile::parse(&fs::read_to_string(place.path("key")).unwrap()).unwrap();
    let repository = Repository::builder(Arc::new(store)).open(owner).await.unwrap();
    let key = repository.new_member("host", Roles::WRITER, None).unwrap();
    repository.enroll(&key).await.unwrap();
    fs::write(place.path("key"), key.to_toml().expose()).unwrap();
    let rules = format!(
        "retention = {{ last = 1 }}\n[[job.test.copy]]\nname = \"near\"\nto = \"{}/near\"",
        place.0.path().display()
    );
    let (code, log) = place.once("1h", &rules);
    assert_eq!(code, Some(1), "{log}");
    for told in ["backed up", "not forgotten", "cannot decrypt", "not copied", "cannot copy snapshots"] {
        assert!(log.contains(told), "`{told}`: {log}");
    }
    let (code, log) = place.once("1h", &rules);
    assert_eq!((code, log.as_str()), (Some(0), ""), "it is not made again for that");
    assert_eq!(place.commits(), 1);
}

#[tokio::test]
async fn a_copy_among_what_is_backed_up_is_left_out() {
    let place = Place::new().await;
    let near = place.path("tree/near");
    let rules = format!("[[job.test.copy]]\nname = \"near\"\nto = \"{}\"", near.display());
    for _ in 0..2 {
        let (code, log) = place.once("1h", &rules);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(" files=1 "), "{log}");
        fs::remove_file(place.path("state/test.last")).unwrap();
    }
    assert!(near.join("keepwell.json").exists());
}

#[tokio::test]
async fn a_failure_is_told_and_tried_again() {
    let place = Place::new().await;
    fs::rename(place.path("key"), place.path("key.away")).unwrap();
    let (code, log) = place.once("1h", "");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("failed") && log.contains("No such file"), "{log}");
    fs::rename(place.path("key.away"), place.path("key")).unwrap();
    let (code, log) = place.once("1h", "");
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn copies_are_brought_up_to_date_after_each_run() {
    let place = Place::new().await;
    let top = place.0.path().display();
    let rules = format!(
        "[[job.test.copy]]\nname = \"near\"\nto = \"{top}/near\"\nretention = {{ last = 1 }}\nprune = true\n\
         [[job.test.copy]]\nname = \"safe\"\nto = \"{top}/safe\"\nwhen-attached = true\nmax-age = \"1h\""
    );
    for forgotten in [0, 1] {
        let (code, log) = place.once("1s", &rules);
        assert_eq!(code, Some(1), "a copy that nobody has seen is too old: {log}");
        assert!(log.contains("copied job=\"test\" copy=\"near\" snapshots=1"), "{log}");
        assert!(log.contains(&format!("forgotten={forgotten}\n")), "{log}");
        assert!(log.contains("the copy is too old job=\"test\" copy=\"safe\""), "{log}");
        assert!(log.contains("not attached job=\"test\" copy=\"safe\""), "{log}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    fs::rename(place.path("near"), place.path("safe")).unwrap();
    let (code, log) = place.once("1s", &rules);
    assert_eq!(code, Some(0), "it is attached again: {log}");
    assert!(log.contains("copied job=\"test\" copy=\"safe\" snapshots=2"), "what it lacks comes: {log}");
}

#[tokio::test]
async fn an_empty_place_is_taken_for_a_disk_that_is_away() {
    let place = Place::new().await;
    fs::create_dir(place.path("disk")).unwrap();
    let top = place.0.path().display();
    let rules = format!("[[job.test.copy]]\nname = \"safe\"\nto = \"{top}/disk\"\nwhen-attached = true");
    let (code, log) = place.once("1h", &rules);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("not attached job=\"test\" copy=\"safe\""), "{log}");
    assert!(walk(&place.path("disk")).is_empty(), "a copy was begun beneath the disk");
}

#[tokio::test]
async fn a_copy_is_proved_and_brought_up_to_date_when_it_is_attached_between_runs() {
    let place = Place::new().await;
    let top = place.0.path().display();
    let rules = format!(
        "[[job.test.copy]]\nname = \"safe\"\nto = \"{top}/safe\"\nwhen-attached = true\nverify = \"1s\""
    );
    let near = rules.replace("when-attached = true\n", "").replace("/safe", "/away");
    let (code, log) = place.once("1h", &near);
    assert_eq!(code, Some(0), "{log}");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // The next run is an hour away; the disk comes back damaged, and then healed.
    let pack = walk(&place.path("away/data")).pop().unwrap();
    let sound = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, vec![0; sound.len()]).unwrap();
    fs::rename(place.path("away"), place.path("safe")).unwrap();
    let log = place.until("1h", &rules, "not copied job=\"test\" copy=\"safe\"").await;
    assert!(log.contains("damaged"), "{log}");
    fs::write(place.path("safe").join(pack.strip_prefix(place.path("away")).unwrap()), sound).unwrap();
    let log = place.until("1h", &rules, "copied job=\"test\" copy=\"safe\" snapshots=0").await;
    assert!(!log.contains("backed up"), "no run was due: {log}");
}

#[tokio::test]
async fn a_copy_that_is_behind_the_last_run_is_brought_up_to_date_when_the_agent_starts() {
    let place = Place::new().await;
    let top = place.0.path().display();
    let rules = format!("[[job.test.copy]]\nname = \"near\"\nto = \"{top}/away/near\"");
    fs::write(place.path("away"), "no directory").unwrap();
    let (code, log) = place.once("1h", &rules);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("backed up") && log.contains("not copied job=\"test\" copy=\"near\""), "{log}");
    fs::remove_file(place.path("away")).unwrap();
    let log = place.until("1h", &rules, "copied job=\"test\" copy=\"near\" snapshots=1").await;
    assert!(!log.contains("backed up"), "no run was due: {log}");
}

/// Files below a directory.
fn walk(at: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_its_position() {
    let place = Place::new().await;
    let (code, log) = place.once("1h", "exclude = []");
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("config:7:1: unknown field `exclude`"), "{log}");
}

/// SIGHUP too: systemd takes a death by it for a clean end, and a unit with `Restart=on-failure` would not start again.
#[tokio::test]
async fn a_hangup_ends_the_agent_in_order() {
    let place = Place::new().await;
    let mut child = place.start("1h", "", &[]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("backed up"));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(lines.next().unwrap().unwrap().contains("ending"));
}

/// Of `nohup keepwell-agent` nobody wants to hear that the terminal is gone.
#[tokio::test]
async fn a_hangup_that_is_ignored_stays_so() {
    let place = Place::new().await;
    assert_eq!(place.once("1h", "").0, Some(0));
    fs::remove_dir_all(place.path("state")).unwrap();
    let mut child = agent_after("--ignore-signal=HUP", &place.path("config"), &[]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("backed up"));
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & 1, 1, "{status}");
    for signal in [Signal::HUP, Signal::TERM] {
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_signal_ends_the_agent_after_several_runs() {
    let place = Place::new().await;
    let child = place.start("1s", "", &[]);
    let began = Instant::now();
    while place.commits() < 2 {
        assert!(began.elapsed() < Duration::from_secs(240), "no second run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    let (code, log) = ended(child.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ending"), "{log}");
}
