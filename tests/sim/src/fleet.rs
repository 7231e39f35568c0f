//! Many worlds on all processors. A world needs an operating system process for itself, so each batch gets one.

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use keepwell_sim::Report;

use crate::args::Args;

/// Worlds that a process lives through before it makes room.
const BATCH: u64 = 5;
/// Failures that are shown in full.
const SHOWN: usize = 20;

/// What a process reports about one world.
pub(crate) struct Line(String);

impl Line {
    pub fn of(seed: u64, report: &Report) -> Self {
        let counts: Vec<String> =
            report.counts().iter().map(|(name, count)| format!("{name}={count}")).collect();
        Self(format!("ok {seed} {} {}", report.hash, counts.join(" ")))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Default)]
struct Sums {
    worlds: u64,
    failed: BTreeMap<u64, String>,
    counts: BTreeMap<String, u64>,
    /// Worlds in which a count was not zero.
    seen: BTreeMap<String, u64>,
}

/// Lives through all of them, and says what came of it; `false` when a promise was broken.
pub(crate) fn run(args: &Args) -> bool {
    let started = Instant::now();
    let (next, enough) = (AtomicU64::new(args.from), AtomicBool::new(false));
    let sums = Mutex::new(Sums::default());
    let end = args.from + args.seeds;
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let from = next.fetch_add(BATCH, Ordering::SeqCst);
                    if from >= end || enough.load(Ordering::SeqCst) {
                        return;
                    }
                    let lines = batch(from, BATCH.min(end - from));
                    let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                    sums.take(&lines, from);
                    enough.fetch_or(args.first && !sums.failed.is_empty(), Ordering::SeqCst);
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    sums.print(started.elapsed().as_secs());
    sums.failed.is_empty()
}

/// Lives through a few worlds in another process; gives what that wrote.
fn batch(from: u64, seeds: u64) -> String {
    let this = std::env::current_exe().expect("the program knows where it is");
    let mut command = Command::new(this);
    command.args(["--here", "--from", &from.to_string(), "--seeds", &seeds.to_string()]);
    let output = command.stdin(Stdio::null()).output().expect("the program starts once more");
    let mut lines = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code().is_none_or(|code| code > 1) {
        let errors = String::from_utf8_lossy(&output.stderr);
        let seed = from + lines.lines().count() as u64;
        lines.push_str(&format!("FAILED {seed} 0 - it died: {}\n", errors.trim().replace('\n', " / ")));
    }
    lines
}

impl Sums {
    fn take(&mut self, lines: &str, from: u64) {
        for line in lines.lines() {
            let mut words = line.splitn(3, ' ');
            let (kind, seed) = (words.next(), words.next().and_then(|seed| seed.parse().ok()));
            let rest = words.next().unwrap_or_default();
            self.worlds += 1;
            if kind != Some("ok") {
                self.failed.insert(seed.unwrap_or(from), rest.to_owned());
                continue;
            }
            for (name, count) in rest.split(' ').filter_map(|word| word.split_once('=')) {
                let count: u64 = count.parse().unwrap_or_default();
                *self.counts.entry(name.to_owned()).or_default() += count;
                *self.seen.entry(name.to_owned()).or_default() += u64::from(count > 0);
            }
        }
    }

    fn print(&self, seconds: u64) {
        for (seed, wrong) in self.failed.iter().take(SHOWN) {
            let mut words = wrong.splitn(3, ' ');
            let (step, _, wrong) = (words.next(), words.next(), words.next().unwrap_or_default());
            println!("seed {seed}, step {}: {wrong}", step.unwrap_or_default());
        }
        println!("{} worlds, {} failed, {seconds} s", self.worlds, self.failed.len());
        for (name, count) in &self.counts {
            println!("  {count:9} {name}, in {} worlds", self.seen[name]);
        }
    }
}
