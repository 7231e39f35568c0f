//! `keepwell prune`.

use anyhow::{Context as _, Result};
use backup_core::wal::{WalFloor, WalTrimReport};
use backup_core::{PruneOptions, PruneReport, Repository};
use keepwell_source_postgres::retention::wal_floors;
use serde_json::json;

use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::Exit;
use crate::open::{self, Opened};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell prune --dry-run
  keepwell prune --max-repack 10GiB

The plan is shown before anything is removed, and on a terminal it is asked for.
Others may back up, restore and check meanwhile. Interrupted, it loses nothing; the
next run goes on.";

/// `--max-unused` unless told otherwise.
const MAX_UNUSED_PERCENT: f64 = 5.0;

/// Remove what no snapshot needs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// How to prune; also for `forget --prune`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How much of the stored bytes may stay unused rather than be repacked [default: 5]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_unused: Option<f64>,
    /// Repack at most so much in one run
    #[arg(long, value_name = "SIZE", value_parser = text::parse_bytes)]
    max_repack: Option<u64>,
    /// Prune a store that cannot create exclusively: nothing else may work on the repository meanwhile
    #[arg(long)]
    exclusive: bool,
}

impl Options {
    /// Whether anything is asked for.
    pub fn is_set(&self) -> bool {
        self.max_unused.is_some() || self.max_repack.is_some() || self.exclusive
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    number.filter(|n| (0.0..=100.0).contains(n)).ok_or_else(|| format!("`{text}` is not from 0 to 100"))
}

/// Runs `prune`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let dry_run = if args.dry_run { DryRun::Yes } else { DryRun::No };
    execute(ctx, opened, &args.options, dry_run).await
}

/// Whether something is only to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRun {
    /// Show.
    Yes,
    /// Do.
    No,
}

/// Prunes. The plan is shown first, and on a terminal it is asked for.
pub async fn execute(ctx: &Context, opened: Opened, options: &Options, dry_run: DryRun) -> Result<Exit> {
    let planned = async {
        let plan = opened.repository.plan_prune(settings(options)).await?;
        Ok::<_, anyhow::Error>((plan, trim(&opened, options, DryRun::Yes).await?))
    };
    let planned = planned.await;
    opened.progress.end();
    let (plan, wal) = planned?;
    print_plan(ctx, plan.report(), &wal, None);
    if dry_run == DryRun::Yes {
        return Ok(Exit::Done);
    }
    // With nothing to remove there is still something to do: dead sessions to end, locks to extend, indexes to merge.
    let idle = is_idle(plan.report()) && wal.is_idle();
    if !idle {
        confirm(ctx, "Remove this?", Unattended::Proceed)?;
    }
    opened.progress.begin();
    ctx.interrupt.ends_by_itself();
    let pruned = async {
        let report = opened.repository.carry_out(plan).await?;
        Ok::<_, anyhow::Error>((report, trim(&opened, options, DryRun::No).await?))
    };
    let pruned = pruned.await;
    opened.progress.end();
    let (report, wal) = pruned?;
    print(ctx, &report, &wal);
    if idle && report.objects_deleted > 0 {
        ctx.printer
            .say("  This is what interrupted runs and forgotten snapshots left; no snapshot needs it.");
    }
    Ok(Exit::Done)
}

/// Removes WAL that no base backup needs.
async fn trim(opened: &Opened, options: &Options, dry_run: DryRun) -> Result<WalTrimReport> {
    let options = PruneOptions { dry_run: dry_run == DryRun::Yes, ..settings(options) };
    let trimmed = opened.repository.trim_wal(&options, floors).await;
    trimmed.context("remove WAL that no base backup needs")
}

/// The same at a copy, which keeps the tails that it would get again.
pub async fn trim_copy(copy: &Repository, dry_run: DryRun) -> Result<WalTrimReport> {
    let options = PruneOptions { dry_run: dry_run == DryRun::Yes, ..PruneOptions::default() };
    let trimmed = copy.trim_outdated_wal(&options, floors).await;
    trimmed.context("remove WAL that no base backup needs")
}

async fn floors(repository: Repository) -> Result<Vec<WalFloor>> {
    Ok(wal_floors(&repository).await?)
}

fn settings(options: &Options) -> PruneOptions {
    PruneOptions {
        max_unused: options.max_unused.unwrap_or(MAX_UNUSED_PERCENT) / 100.0,
        max_repack_bytes: options.max_repack.unwrap_or(u64::MAX),
        exclusive: options.exclusive,
        ..PruneOptions::default()
    }
}

/// Whether no pack would be removed or rewritten.
pub fn is_idle(plan: &PruneReport) -> bool {
    plan.packs_unused == 0 && plan.packs_repacked == 0
}

/// Shows what a prune would do: of the repository, or of a copy of the profile.
pub fn print_plan(ctx: &Context, plan: &PruneReport, wal: &WalTrimReport, copy: Option<&str>) {
    let (packs, size) = (text::count(plan.packs, "pack", "packs"), text::bytes(plan.pack_bytes));
    ctx.printer
        .line(format_args!("stored: {size} in {packs}, {} of it unused", text::bytes(plan.unused_bytes)));
    if is_idle(plan) && wal.is_idle() {
        ctx.printer.line("nothing to remove");
    } else {
        ctx.printer.line(format_args!(
            "to remove: {}; to repack: {}",
            text::count(plan.packs_unused, "pack", "packs"),
            text::count(plan.packs_repacked, "pack", "packs")
        ));
    }
    print_held(ctx, plan);
    if !wal.is_idle() {
        ctx.printer.line(format_args!(
            "of archived WAL: {} before the oldest base backup, {} that others hold as a whole, {}",
            text::count(wal.outdated, "piece", "pieces"),
            text::count(wal.superseded, "piece", "pieces"),
            text::bytes(wal.bytes)
        ));
    }
    let mut fields = fields(plan, wal);
    fields["copy"] = json!(copy);
    ctx.printer.json("prune_plan", fields);
}

/// What the store holds back.
fn print_held(ctx: &Context, report: &PruneReport) {
    if report.packs_locked > 0 {
        let (packs, size) =
            (text::count(report.packs_locked, "pack", "packs"), text::bytes(report.locked_bytes));
        ctx.printer.say(format_args!("  left {packs}, {size}, that the store keeps locked"));
    }
    if report.packs_archived > 0 {
        let packs = text::count(report.packs_archived, "pack", "packs");
        ctx.printer.say(format_args!("  left {packs} in an archive, although mostly unused"));
    }
}

fn print(ctx: &Context, report: &PruneReport, wal: &WalTrimReport) {
    let objects = text::count(report.objects_deleted, "object", "objects");
    ctx.printer.line(format_args!(
        "removed {objects}, {}; repacked {} ({})",
        text::bytes(report.bytes_freed),
        text::count(report.packs_repacked, "pack", "packs"),
        text::bytes(report.repacked_bytes),
    ));
    if report.fenced > 0 {
        let sessions = text::count(report.fenced, "session", "sessions");
        ctx.printer.say(format_args!("  ended {sessions} that showed no sign of life"));
    }
    print_held(ctx, report);
    if report.locks_extended > 0 {
        let objects = text::count(report.locks_extended, "object", "objects");
        ctx.printer.say(format_args!("  locked {objects} for longer"));
    }
    if !wal.is_idle() {
        let pieces = text::count(wal.outdated + wal.superseded, "piece", "pieces");
        ctx.printer.line(format_args!("removed {pieces} of archived WAL, {}", text::bytes(wal.bytes)));
    }
    ctx.printer.json("prune", fields(report, wal));
}

fn fields(report: &PruneReport, wal: &WalTrimReport) -> serde_json::Value {
    json!({
        "packs": report.packs,
        "pack_bytes": report.pack_bytes,
        "unused_bytes": report.unused_bytes,
        "packs_unused": report.packs_unused,
        "packs_repacked": report.packs_repacked,
        "repacked_bytes": report.repacked_bytes,
        "objects_deleted": report.objects_deleted,
        "bytes_freed": report.bytes_freed,
        "kept": report.kept,
        "fenced": report.fenced,
        "segments_merged": report.segments_merged,
        "plans_merged": report.plans_merged,
        "records_swept": report.records_swept,
        "nodes_read": report.nodes_read,
        "packs_locked": report.packs_locked,
        "locked_bytes": report.locked_bytes,
        "packs_archived": report.packs_archived,
        "locks_extended": report.locks_extended,
        "wal_outdated": wal.outdated,
        "wal_superseded": wal.superseded,
        "wal_bytes": wal.bytes,
    })
}
