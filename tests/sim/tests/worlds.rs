//! The simulation as a test: the same seed gives the same world, and no promise is broken in some hundred of them.
//!
//! `KEEPWELL_SIM_SEEDS` says how many, and `KEEPWELL_SIM_FROM` where to begin.

use std::process::{Command, Output};

fn simulate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keepwell-sim")).args(args).output().expect("the program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Alone and after other worlds, in different processes: neither races nor what was before may leave a trace.
#[test]
fn a_seed_gives_the_same_world_every_time() {
    let first = text(&simulate(&["--here", "--from", "1", "--seeds", "12"]));
    assert_eq!(first.lines().count(), 12, "{first}");
    for seed in 1..=12 {
        let again = text(&simulate(&["--here", "--from", &seed.to_string(), "--seeds", "1"]));
        assert_eq!(again.trim_end(), first.lines().nth(seed - 1).unwrap_or_default(), "seed {seed}");
    }
}

#[allow(clippy::disallowed_methods)] // a harness is told by its environment how long to search
fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[test]
fn no_promise_is_broken() {
    let (seeds, from) = (setting("KEEPWELL_SIM_SEEDS", "150"), setting("KEEPWELL_SIM_FROM", "1"));
    let output = simulate(&["--seeds", &seeds, "--from", &from]);
    assert!(output.status.success(), "{}", text(&output));
    let seen = |count: &str| {
        let text = text(&output);
        let line = text.lines().find(|line| line.contains(count)).unwrap_or_default().to_owned();
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
    };
    for count in
        ["snapshots", "packs-deleted", "packs-repacked", "segments-merged", "objects-kept", "crashes"]
    {
        assert!(seen(count) > 0, "no world had any {count}:\n{}", text(&output));
    }
}
