//! `key enroll`.

use std::fs;
use std::process::Command;

use keepwell_crypto::Secret;
use keepwell_crypto::keyfile::KeyFile;

use crate::keepwell;

#[test]
fn a_new_key_is_not_put_under_the_passphrase_of_the_one_at_hand() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("home")).unwrap();
    fs::write(path("owner.txt"), "of the owner\n").unwrap();
    fs::write(path("web.txt"), "of the host\n").unwrap();
    let run = |place: &str, words: &[&str]| {
        let mut command = keepwell(dir.path());
        command.args(["--no-cache", "--passphrase-file", "owner.txt", "--repository"]).arg(path(place));
        let output = command.args(words).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {told}", output.status);
        told
    };
    run("repository", &["init"]);
    let copied = Command::new("cp").arg("-a").arg(path("repository")).arg(path("ahead")).status().unwrap();
    assert!(copied.success());
    let enroll = ["key", "enroll", "--name", "web", "--role", "writer", "--output", "web.key"];
    let enroll = [&enroll[..], &["--passphrase", "--new-passphrase-file", "web.txt"]].concat();
    run("ahead", &enroll);
    let text = fs::read_to_string(path("web.key")).unwrap();
    assert!(KeyFile::unprotect(&text, &Secret::from("of the owner")).is_err());
    assert_eq!(KeyFile::unprotect(&text, &Secret::from("of the host")).unwrap().name, "web");
    // Here it does not count yet, as if the command had been interrupted.
    assert!(run("repository", &enroll).contains("going on with the key"));
}
