//! `copy` with the copies of a profile.

use std::fs;
use std::process::{Command, Stdio};

#[test]
fn a_copy_that_cannot_be_remembered_is_a_copy_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let top = dir.path().display();
    for directory in ["tree", "home/.config/keepwell", "home/.local/share/keepwell"] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    fs::write(path("tree/file"), "something").unwrap();
    let config = format!(
        "[profile.default]\nrepository = \"{top}/repository\"\npaths = [\"{top}/tree\"]\n\
         [[profile.default.copy]]\nname = \"near\"\nto = \"{top}/copy\"\n"
    );
    fs::write(path("home/.config/keepwell/config.toml"), config).unwrap();
    let remembered = path("home/.local/share/keepwell/copies.toml");
    fs::write(&remembered, "damaged").unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
        command.env_clear().env("HOME", path("home")).current_dir(dir.path()).stdin(Stdio::null());
        let output = command.args(words).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {told}", output.status);
        (String::from_utf8_lossy(&output.stdout).into_owned(), told)
    };
    run(&["init"]);
    run(&["backup"]);
    let (said, told) = run(&["--json", "copy"]);
    assert!(said.contains("\"state\":\"up to date\""), "{said}");
    assert!(told.contains("the copy near: how new it is cannot be remembered: "), "{told}");
    assert_eq!(fs::read_to_string(remembered).unwrap(), "damaged", "it is not ours to lose");
    run(&["-r", path("copy").to_str().unwrap(), "ls", "latest"]);
}
