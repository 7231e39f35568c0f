//! `keepwell pg backup`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use backup_core::env::{Rng, SystemClock, SystemRng};
use backup_core::{BackupOptions, BackupReport, Repository};
use keepwell_source_postgres::capture::{Asked, CaptureOptions, PageMaps, PgSource, Reading};
use keepwell_source_postgres::cluster::Cluster;
use keepwell_source_postgres::replication::Checkpoint;
use serde_json::json;

use super::questions;
use crate::commands::backup::{self, About};
use crate::context::Context;
use crate::exit::Exit;
use crate::printer::joined;
use crate::{open, text};

const EXAMPLES: &str = "\
Examples:
  keepwell pg backup 'host=db1 user=keepwell' --dataset orders
  keepwell pg backup postgresql://keepwell@db1/ --dataset orders --json
  keepwell pg backup user=keepwell --dataset orders --questions checks.toml";

/// Take a base backup of a PostgreSQL cluster
///
/// The server sends its files over an ordinary connection; nothing is installed on its host. The role needs REPLICATION.
/// The WAL from begin to end is part of the snapshot, so that it recovers by itself. Pages whose checksum does not fit are
/// named, the exit code is 3, and the snapshot does not count as complete.
///
/// On the server's own host, as a user who may read its files, `--local` reads them itself, by several threads. From
/// elsewhere, `--parallel` reads them over several connections, through functions that the role must be allowed to call.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The server, as psql takes it; several hosts may be named
    #[arg(default_value = "")]
    connection: String,
    /// Name of what is backed up; that of its WAL
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    dataset: String,
    /// Build on no earlier snapshot: read everything
    #[arg(long)]
    full: bool,
    /// Let the server spread the checkpoint at the start, which may take minutes, instead of making it at once
    #[arg(long)]
    spread_checkpoint: bool,
    /// Read the files here, on the server's host, with as many threads as --threads says, instead of having them sent
    #[arg(long)]
    local: bool,
    /// The data directory as it is called here, if the server calls it otherwise or does not tell
    #[arg(long, value_name = "DIR", requires = "local")]
    data_directory: Option<PathBuf>,
    /// Read the files through the server's SQL functions, over as many connections as --threads says, instead of having
    /// them sent on one
    #[arg(long, conflicts_with = "local")]
    parallel: bool,
    /// Let the server send at most so much per second, such as 50MiB
    #[arg(long, value_name = "SIZE", value_parser = text::parse_bytes, conflicts_with_all = ["local", "parallel"])]
    max_rate: Option<u64>,
    /// Only note pages whose checksum does not fit
    #[arg(long)]
    allow_bad_pages: bool,
    /// Ask these questions of `pg verify` now, and record the answers in the snapshot (`at-least-recorded`)
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    #[command(flatten)]
    about: About,
}

/// Runs `pg backup`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let connect = super::super::wal::connection(ctx, &args.connection)?;
    let asked = args.questions.as_deref().map(questions::read).transpose()?.unwrap_or_default();
    let opened = open::repository(ctx).await?;
    let about = args.about.options(ctx, &opened.repository, args.dataset.clone())?;
    let options = BackupOptions { reread: args.full, ..about };
    let reading = match (args.local, args.parallel) {
        (true, _) => Reading::Local { directory: args.data_directory },
        (_, true) => Reading::Sql,
        _ => Reading::Sent,
    };
    let capture = CaptureOptions {
        reading,
        checkpoint: if args.spread_checkpoint { Checkpoint::Spread } else { Checkpoint::Fast },
        // What the server takes: from 32 KiB to 1 GiB.
        max_rate_kb: args.max_rate.map(|bytes| (bytes / 1024).clamp(32, 1 << 20) as u32),
        allow_bad_pages: args.allow_bad_pages,
        page_maps: page_maps(&opened.repository, &args.dataset),
        questions: asked.into_iter().map(|q| Asked { database: q.database, sql: q.sql }).collect(),
        ..CaptureOptions::default()
    };
    let began = Instant::now();
    let source = Arc::new(PgSource::connect(&connect, capture, Arc::new(SystemClock)).await?);
    ctx.interrupt.ends_by_itself();
    let capture: Arc<dyn backup_core::source::Source> = Arc::clone(&source) as _;
    let report = opened.repository.backup(capture, options).await;
    opened.progress.end();
    print(ctx, &report?, &args.dataset, source.cluster().as_ref(), began.elapsed())
}

/// Beside the cache of this store. A name of a dataset may hold anything, so its hash names the file.
fn page_maps(repository: &Repository, dataset: &str) -> Option<PageMaps> {
    let mut key = [0; 32];
    SystemRng.fill(&mut key);
    let name = keepwell_crypto::Digest::of(dataset.as_bytes()).to_string();
    let path = repository.cache_path()?.join("page-maps").join(name);
    Some(PageMaps { path, key })
}

fn print(
    ctx: &Context,
    report: &BackupReport,
    dataset: &str,
    cluster: Option<&Cluster>,
    took: Duration,
) -> Result<Exit> {
    let s = &report.statistics;
    let id = ctx.printer.strong(&report.snapshot.to_string()[..8]);
    let (size, stored) = (text::bytes(s.logical_bytes), text::bytes(s.new_stored_bytes));
    ctx.printer.line(format_args!("snapshot {id} of {dataset}: {size}, in {}", text::duration(took)));
    ctx.printer.say(format_args!("  {} read, {stored} added to the repository", text::bytes(s.bytes_read)));
    if let Some(cluster) = cluster {
        let how = match &cluster.increment {
            None => "everything was read".to_owned(),
            Some(increment) if increment.method == "page-map" => {
                format!("what differs from {} was stored", increment.start_lsn)
            }
            Some(increment) => format!("what changed since {} was read", increment.start_lsn),
        };
        ctx.printer.say(format_args!(
            "  recovers from {} to {} on timeline {} of cluster {}; {how}",
            cluster.start_lsn, cluster.stop_lsn, cluster.timeline, cluster.system_identifier
        ));
    }
    let bad_pages = cluster.map_or(0, |cluster| cluster.bad_pages);
    if bad_pages > 0 {
        let pages = text::count(bad_pages, "damaged page", "damaged pages");
        ctx.printer
            .warn(format_args!("the server has {pages}: restore what they hold from an older snapshot"));
    }
    let fields = joined(backup::fields(report, dataset, took), json!({ "cluster": cluster }));
    ctx.printer.json("pg_backup", fields);
    Ok(if report.problem_count > 0 { Exit::Skipped } else { Exit::Done })
}
