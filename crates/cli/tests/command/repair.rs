//! `repair --from`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[test]
fn no_other_repository_takes_the_place_of_one_that_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("home")).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
        command.env_clear().env("HOME", path("home")).current_dir(dir.path()).stdin(Stdio::null());
        let output = command.args(["--no-cache", "--yes"]).args(words).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
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
