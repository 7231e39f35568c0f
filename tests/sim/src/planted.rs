//! Faults that are planted in the engine, and how soon the simulation finds each. They are named where they are planted.

use std::process::Command;

use keepwell_sim::DIRECTED;

use crate::args::Args;

/// What each fault is.
const FAULTS: &[(&str, &str)] = &[
    ("skip-fence", "a prune neither waits for open sessions nor fences them"),
    ("sessions-before-plan", "open sessions are settled before the plan exists"),
    ("verdict-before-fence", "a plan is judged before open sessions are settled"),
    ("no-rescan", "the verdict releases nothing but manifests and state"),
    ("rescan-ignores-others", "the rescan counts packs that other plans condemn as safe"),
    ("delete-before-verdict", "packs are deleted before the verdict"),
    ("release-nothing", "packs that the verdict releases are deleted all the same"),
    ("verdict-not-binding", "a keeper that was second goes by its own verdict"),
    ("retirements-read-late", "a prune honours retirements that are newer than its list of sessions"),
    ("withdraw-plan", "a plan is withdrawn after its packs were deleted"),
    ("merged-plan-never", "plans are deleted without the plan that replaces them"),
    ("merge-drops-doomed", "a merge drops entries of packs that a verdict may still release"),
    ("merge-deletes-first", "a merge deletes its inputs before its output exists"),
    ("merge-deletes-all", "a merge deletes segments that were written meanwhile"),
    ("checkpoint-is-no-root", "checkpoints do not protect what they hold"),
    ("checkpoint-superseded-by-any", "any later snapshot of its writer makes a checkpoint no root"),
    ("checkpoint-keeps-index", "after a checkpoint plans and index are not read anew"),
    ("read-before-claim", "plans and index are read before the session is claimed"),
    ("reuse-doomed", "a writer reuses chunks of packs that a plan condemns"),
    ("stale-cache", "a writer goes by plans and index of an earlier backup"),
    ("claim-without-nonce", "two claims can have the same bytes"),
    ("fenced-is-fine", "a refused commit counts as published"),
    ("commit-before-packs", "the commit does not wait for packs"),
    ("commit-before-index", "packs are not listed in the index"),
    ("own-412-fails", "our own object under the name counts as a failure"),
    ("own-412-is-ours", "somebody else's object under the name counts as ours"),
    ("retry-412-fails", "after a lost answer our own object counts as a failure"),
    ("retry-412-is-ours", "after a lost answer any object counts as ours"),
    ("swallow-full", "a full disk counts as success"),
    ("same-suffix", "the random part of names is always the same"),
    ("same-randomness", "file keys and nonces repeat"),
    ("lists-checkpoints", "checkpoints are listed as snapshots"),
    ("reader-skips-doomed", "a reader takes doomed packs for gone"),
    ("reader-looks-once", "a reader does not look again when a chunk has moved"),
    ("believe-revoked", "commits of revoked writers are believed"),
    ("believe-unsigned", "commits are believed whoever signed them"),
    ("chunk-id-unchecked", "what was read is not compared with its id"),
    (
        "log-floors-once",
        "a log is cut where no base backup reached that was committed before running sessions were waited for",
    ),
    (
        "log-floors-rise",
        "a log is cut where no base backup reaches that is committed after running sessions were waited for",
    ),
];

/// Plants one after the other; `false` when one survives.
pub(crate) fn run(args: &Args) -> bool {
    let chosen = FAULTS.iter().filter(|(name, _)| args.only.as_deref().is_none_or(|only| only == *name));
    println!("| fault | what it breaks | killed by world | because |\n|---|---|---|---|");
    let (mut killed, mut survived) = (0, Vec::new());
    for (name, what) in chosen {
        let found = match DIRECTED.contains(name) {
            true => directed_failure(name),
            false => first_failure(name, args),
        };
        let (seed, why) = found.clone().unwrap_or_else(|| ("none".to_owned(), String::new()));
        println!("| `{name}` | {what} | {seed} | {why} |");
        if found.is_some() { killed += 1 } else { survived.push(*name) }
    }
    println!("\n{killed} killed within {} worlds each; survivors: {survived:?}", args.seeds);
    survived.is_empty()
}

/// Why the world that was written for the fault fails with it.
fn directed_failure(fault: &str) -> Option<(String, String)> {
    let this = std::env::current_exe().expect("the program knows where it is");
    let mut command = Command::new(this);
    let output = command.args(["--directed", fault]).env("KEEPWELL_PLANTED", fault).output();
    let text = String::from_utf8_lossy(&output.expect("the program starts once more").stdout).into_owned();
    let why = text.trim_end().strip_prefix(&format!("directed {fault}: "))?;
    (why != "all promises kept").then(|| ("directed".to_owned(), shortened(why)))
}

/// The first seed that fails with the fault, and why.
fn first_failure(fault: &str, args: &Args) -> Option<(String, String)> {
    let this = std::env::current_exe().expect("the program knows where it is");
    let mut command = Command::new(this);
    let (seeds, from, jobs) = (args.seeds.to_string(), args.from.to_string(), args.jobs.to_string());
    command.args(["--first", "--seeds", &seeds, "--from", &from, "--jobs", &jobs]);
    let output = command.env("KEEPWELL_PLANTED", fault).output().expect("the program starts once more");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("seed "))?;
    let (seed, why) = line.split_once(", step ")?;
    let why = why.split_once(": ").map_or(why, |(_, why)| why);
    Some((seed.trim_start_matches("seed ").to_owned(), shortened(why)))
}

fn shortened(why: &str) -> String {
    why.chars().take(100).collect::<String>().replace('|', "/")
}
