//! Lives through worlds: `keepwell-sim --seeds 500 [--from 1] [--jobs 2] [--first]`, or one of them with everything that
//! happens in it: `keepwell-sim --seed 7 [--trace]`. `keepwell-sim --directed FAULT` lives through one written by hand.

mod args;
mod fleet;
mod planted;

use std::process::ExitCode;
use std::time::Instant;

use keepwell_sim::{Trace, run};

use crate::args::Args;

/// Lines of a failed world that are shown.
const LINES_SHOWN: usize = 25;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("{message}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    if let Some(fault) = &args.directed {
        return directed(fault);
    }
    let ok = match args.seed {
        Some(seed) => one(seed, args.trace),
        None if args.planted => planted::run(&args),
        None if args.here => here(&args),
        None => fleet::run(&args),
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One world, for people.
fn one(seed: u64, everything: bool) -> bool {
    let started = Instant::now();
    let (trace, ended) = run(seed, if everything { Trace::printed() } else { Trace::kept() });
    let shown = trace.text();
    for line in &shown[shown.len().saturating_sub(LINES_SHOWN)..] {
        println!("    {line}");
    }
    let (lines, hash, took) = (trace.lines(), trace.hash(), started.elapsed());
    match &ended {
        Ok(report) => {
            println!("seed {seed}: all promises kept; {lines} lines, hash {hash}, {took:.1?}\n{report:#?}")
        }
        Err(failure) => {
            println!("seed {seed}: step {}: {}\n{lines} lines, hash {hash}", failure.step, failure.wrong)
        }
    }
    ended.is_ok()
}

/// The world that was written for a planted fault.
fn directed(fault: &str) -> ExitCode {
    match keepwell_sim::run_directed(fault) {
        Ok(()) => {
            println!("directed {fault}: all promises kept");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            println!("directed {fault}: {}", wrong.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Several worlds one after the other, for the process that gathers results.
fn here(args: &Args) -> bool {
    let mut all = true;
    for seed in args.from..args.from + args.seeds {
        let (trace, ended) = run(seed, Trace::hash_only());
        match ended {
            Ok(report) => println!("{}", fleet::Line::of(seed, &report)),
            Err(failure) => {
                let wrong = failure.wrong.replace('\n', " ");
                println!("FAILED {seed} {} {} {wrong}", failure.step, trace.hash());
                all = false;
            }
        }
    }
    all
}
