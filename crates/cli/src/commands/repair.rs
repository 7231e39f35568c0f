//! `keepwell repair`.

use anyhow::Result;
use backup_core::{CheckOptions, ReadData, RepairReport};
use serde_json::json;

use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell repair --dry-run                     what is wrong
  keepwell repair --from /mnt/disk/backup       heal it from a copy
  keepwell repair --read-data --from /mnt/disk/backup

Nothing that is sound is given up: what was lost is stored again under new names, and
damaged objects go only then. Exit code 13 means: something is wrong still.";

/// Heal damage, from what is left and from another copy
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Another copy of this repository, made by `copy`
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// Read all content to find the damage
    #[arg(long)]
    read_data: bool,
    /// Only show what is wrong
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Runs `repair`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let read = if args.read_data { ReadData::Everything } else { ReadData::Nothing };
    let credential = open::credential(ctx).await?;
    let key = credential.key.clone();
    let opened = credential.open(ctx).await?;
    let report = opened.repository.check(CheckOptions { read }).await;
    opened.progress.end();
    let report = report?;
    super::check::print(ctx, &report);
    if report.is_sound() {
        return Ok(Exit::Done);
    }
    if args.dry_run {
        return Ok(Exit::Damage);
    }
    confirm(ctx, "Repair this?", Unattended::Refuse)?;
    let copy = match &args.from {
        Some(place) => Some(open::copy(ctx, place, key.clone()).await?),
        None => None,
    };
    let opened = open::credential(ctx).await?.open(ctx).await?;
    let report = opened.repository.repair(copy.as_ref().map(|c| &c.repository), read).await;
    opened.progress.end();
    let report = report?;
    print(ctx, &report);
    if report.after.is_sound() {
        return Ok(Exit::Done);
    }
    let complaint = Complaint::new(Exit::Damage, "not everything could be made good");
    Err(match args.from {
        None => complaint.hint("Another copy of the repository may have what is missing: `--from PLACE`."),
        Some(_) => complaint.hint("Neither store has what is missing; `check` lists what is affected."),
    }
    .into())
}

fn print(ctx: &Context, report: &RepairReport) {
    ctx.printer.line(format_args!(
        "put back {}, listed {} again, replaced {}, restored {} and {}",
        text::count(report.records_restored, "record", "records"),
        text::count(report.packs_indexed, "pack", "packs"),
        text::count(report.packs_replaced, "pack", "packs"),
        text::count(report.chunks_restored, "chunk", "chunks"),
        text::count(report.snapshots_restored, "snapshot", "snapshots"),
    ));
    if report.after.is_sound() {
        ctx.printer.line(ctx.printer.colored("32", "no damage is left"));
    } else {
        super::check::print(ctx, &report.after);
    }
    let fields = json!({
        "sound": report.after.is_sound(),
        "records_restored": report.records_restored,
        "ends_fenced": report.ends_fenced,
        "packs_indexed": report.packs_indexed,
        "packs_replaced": report.packs_replaced,
        "chunks_restored": report.chunks_restored,
        "snapshots_restored": report.snapshots_restored,
        "findings": report.after.findings.len(),
    });
    ctx.printer.json("repair", fields);
}
