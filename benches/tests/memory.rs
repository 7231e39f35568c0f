//! What a writer needs in memory, as the system counts it, in a process of its own.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::path::Path;
use std::process::Command;

/// Runs the program under the usual limit of open files; gives what it says.
fn many_packs(arguments: &[&str]) -> String {
    let limited = "ulimit -S -n 1024 && exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_many-packs")]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The number in the line that begins so.
fn kib(said: &str, what: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_else(|| panic!("{said}"));
    line.trim().trim_end_matches(" KiB").parse().unwrap()
}

/// Backs 100 MB up into a repository of a million packs and 10,000 snapshots, with an empty cache and with a full one.
fn writer_stays_within_its_limit(packs_per_segment: &str) {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap();
    many_packs(&["make", at, "1000000", "4", packs_per_segment, "10000"]);
    for cache in ["an empty cache", "a full cache"] {
        let said = many_packs(&["back-up", at, "100"]);
        let (limit, peak) = (kib(&said, "limit "), kib(&said, "peak "));
        assert!(peak <= limit, "with {cache}: {said}");
        assert!(Path::new(at).join("cache").is_dir());
    }
}

/// As prunes merged it once.
#[test]
fn a_million_packs_in_few_segments() {
    writer_stays_within_its_limit("250000");
}

/// As backups write it, where nobody prunes.
#[test]
fn a_million_packs_in_thousands_of_segments() {
    writer_stays_within_its_limit("256");
}
