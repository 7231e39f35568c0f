//! `copy` with the copies of a profile.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::keepwell;

/// A home with a profile, its repository and a tree.
struct Place(TempDir);

impl Place {
    /// `copy` is the table of its one copy; `TOP` in it is the directory that all of this is in.
    fn new(copy: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let top = place.0.path().display().to_string();
        for directory in ["tree", "home/.config/keepwell", "home/.local/share/keepwell"] {
            fs::create_dir_all(place.path(directory)).unwrap();
        }
        fs::write(place.path("tree/file"), "something").unwrap();
        let config = format!(
            "[profile.default]\nrepository = \"{top}/repository\"\npaths = [\"{top}/tree\"]\n\
             [[profile.default.copy]]\n{}\n",
            copy.replace("TOP", &top)
        );
        fs::write(place.path("home/.config/keepwell/config.toml"), config).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = keepwell(self.0.path());
        command.args(words);
        command
    }

    fn run(&self, words: &[&str]) -> (String, String) {
        let output = self.command(words).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {told}", output.status);
        (String::from_utf8_lossy(&output.stdout).into_owned(), told)
    }
}

#[test]
fn a_copy_that_cannot_be_remembered_is_a_copy_all_the_same() {
    let place = Place::new("name = \"near\"\nto = \"TOP/copy\"");
    let remembered = place.path("home/.local/share/keepwell/copies.toml");
    fs::write(&remembered, "damaged").unwrap();
    place.run(&["init"]);
    place.run(&["backup"]);
    let (said, told) = place.run(&["--json", "copy"]);
    assert!(said.contains("\"state\":\"up to date\""), "{said}");
    assert!(told.contains("the copy near: how new it is cannot be remembered: "), "{told}");
    assert_eq!(fs::read_to_string(remembered).unwrap(), "damaged", "it is not ours to lose");
    place.run(&["-r", place.path("copy").to_str().unwrap(), "ls", "latest"]);
}

#[test]
fn a_copy_that_was_waited_for_gets_what_came_meanwhile() {
    let place = Place::new("name = \"safe\"\nto = \"TOP/safe\"\nwhen-attached = true");
    place.run(&["init"]);
    place.run(&["backup"]);
    place.run(&["copy", "--to", place.path("away").to_str().unwrap()]);
    let mut waiting = place.command(&["--json", "copy", "--wait"]);
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting until the copy safe is attached") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "it waits for nothing");
    }
    fs::write(place.path("tree/file"), "something else").unwrap();
    place.run(&["backup"]);
    fs::rename(place.path("away"), place.path("safe")).unwrap();
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {rest}", output.status);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("\"copied\":1") && said.contains("\"snapshots\":2"), "{said}");
}

#[test]
fn of_several_copies_at_one_place_each_is_remembered_for_itself() {
    let place = Place::new(
        "name = \"a\"\nto = \"TOP/disk\"\ndatasets = [\"a\"]\n\
         [[profile.default.copy]]\nname = \"b\"\nto = \"TOP/disk\"\ndatasets = [\"b\"]",
    );
    place.run(&["init"]);
    for dataset in ["a", "b"] {
        place.run(&["backup", "--dataset", dataset]);
    }
    for _ in 0..2 {
        place.run(&["copy"]);
        let text = fs::read_to_string(place.path("home/.local/share/keepwell/copies.toml")).unwrap();
        let mut newest: Vec<&str> = text.lines().filter(|line| line.starts_with("newest")).collect();
        newest.dedup();
        assert_eq!(newest.len(), 2, "{text}");
    }
}
