//! `repair --from`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::keepwell;

/// Whether the command succeeds, and what it says beside its data.
fn run(dir: &Path, words: &[&str]) -> (bool, String) {
    let output = keepwell(dir).arg("--yes").args(words).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn no_other_repository_takes_the_place_of_one_that_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("home")).unwrap();
    let run = |words: &[&str]| run(dir.path(), &[&["--no-cache"][..], words].concat());
    for (place, key) in [("own", "own.key"), ("other", "other.key")] {
        let (done, told) = run(&["-r", place, "--key-file", key, "init"]);
        assert!(done, "{told}");
    }
    let records = || {
        let names = fs::read_dir(path("own/trust")).unwrap().map(|entry| entry.unwrap().path());
        let mut records: Vec<(PathBuf, Vec<u8>)> =
            names.map(|name| (name.clone(), fs::read(name).unwrap())).collect();
        records.sort();
        records
    };
    let before = records();
    fs::remove_dir_all(path("own/keys")).unwrap();
    // By a wrong place, and by a wrong key beside it.
    for words in [&["-r", "own"][..], &["-r", "own", "--key-file", "other.key"]] {
        let (done, told) = run(&[words, &["repair", "--from", "other"]].concat());
        assert!(!done && told.contains("`other` is a copy of another repository"), "{told}");
        assert_eq!(records(), before, "{told}");
    }
}

#[test]
fn a_record_of_trust_that_this_host_has_seen_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("home")).unwrap();
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/file"), "something").unwrap();
    let run = |words: &[&str]| run(dir.path(), &[&["-r", "own"][..], words].concat());
    let enroll = ["key", "enroll", "--name", "web", "--role", "writer", "--output", "web.key"];
    for words in [&["init"][..], &["backup", "tree"], &enroll, &["copy", "--to", "copy"]] {
        let (done, told) = run(words);
        assert!(done, "{words:?}: {told}");
    }
    let records = fs::read_dir(path("own/trust")).unwrap().map(|entry| entry.unwrap().path());
    let newest = records.max().unwrap();
    fs::remove_file(&newest).unwrap();
    let (done, told) = run(&["snapshots"]);
    assert!(!done && told.contains("this host has seen record"), "{told}");
    let (done, told) = run(&["repair", "--from", "copy"]);
    assert!(done && newest.exists(), "{told}");
    let (done, told) = run(&["snapshots"]);
    assert!(done, "{told}");
}
