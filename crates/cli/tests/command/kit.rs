//! `key kit` on standard output.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::keepwell;

#[test]
fn a_kit_that_goes_into_a_file_for_all_to_read_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("home")).unwrap();
    let command = |words: &[&str]| {
        let mut command = keepwell(dir.path());
        command.arg("--repository").arg(path("repository")).args(words);
        command
    };
    let made = command(&["init"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for (mode, is_told) in [(0o644, true), (0o600, false)] {
        let kit = File::create(path("kit.txt")).unwrap();
        kit.set_permissions(Permissions::from_mode(mode)).unwrap();
        let printed = command(&["key", "kit"]).stdout(kit).output().unwrap();
        let told = String::from_utf8_lossy(&printed.stderr).into_owned();
        assert!(printed.status.success(), "{told}");
        assert_eq!(told.contains("kit.txt` can be read by others"), is_told, "{mode:o}: {told}");
        assert!(fs::read_to_string(path("kit.txt")).unwrap().contains("KEEPWELL RECOVERY KIT"));
    }
}
