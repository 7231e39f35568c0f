//! `keepwell-agent`: backs up by a schedule.
//!
//! See `docs/guide/agent.md`.

mod config;
mod copy;
mod due;
mod run;
mod schedule;
mod state;
mod stop;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use backup_core::env::SystemClock;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::schedule::{Mode, Outcome};
use crate::stop::Stop;

/// Back up by a schedule
///
/// Runs the jobs of the configuration when they are due, until it gets SIGTERM, SIGINT or SIGHUP.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 a job failed, 2 the configuration is wrong, 3 some data was skipped, 130 interrupted."
)]
struct Arguments {
    /// The configuration: `[job.NAME]` with repository, key-file, paths and every
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Run what is due now, then end
    #[arg(long)]
    once: bool,
    /// What to log, such as `info` or `warn,keepwell_agent=debug`
    #[arg(long, value_name = "FILTER", env = "KEEPWELL_LOG", default_value = "info")]
    log: String,
}

const FAILED: u8 = 1;
const WRONG_CONFIGURATION: u8 = 2;
const SKIPPED: u8 = 3;
const INTERRUPTED: u8 = 130;

/// Packs of many megabytes are made on one thread and dropped on another; glibc keeps what was freed for the thread that
/// made it, which doubled the memory of a restore.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    keepwell_storage::raise_file_limit();
    let arguments = Arguments::parse();
    let filter = EnvFilter::builder().parse_lossy(&arguments.log);
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_ansi(ansi)
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(io::stderr)
        .init();
    let config = match config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    let mode = if arguments.once { Mode::Once } else { Mode::Forever };
    ExitCode::from(match work(config, mode) {
        Ok(outcome) if mode == Mode::Once => code_of(outcome),
        Ok(_) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            FAILED
        }
    })
}

fn code_of(outcome: Outcome) -> u8 {
    match outcome {
        Outcome { interrupted: true, .. } => INTERRUPTED,
        Outcome { failed: true, .. } => FAILED,
        Outcome { skipped: true, .. } => SKIPPED,
        Outcome { .. } => 0,
    }
}

fn work(config: config::Config, mode: Mode) -> Result<Outcome> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let stop = Stop::on_signals()?;
        schedule::work(config, Arc::new(SystemClock), stop, mode).await
    })
}
