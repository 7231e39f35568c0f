//! `keepwell check`.

use std::time::Duration;

use anyhow::Result;
use backup_core::{CheckOptions, CheckReport, Finding, ReadData};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::printer::Volume;
use crate::retention::Age;
use crate::{open, text};

const EXAMPLES: &str = "\
Examples:
  keepwell check                              is everything there that snapshots need?
  keepwell check --read-data                  and can all of it be decrypted and proved?
  keepwell check --read-data-older-than 30d   run daily: everything is read within 30 days
  keepwell check --without-key                hashes and signatures only, where no key may be

Exit code 13 means: damage was found. Nothing is changed.";

/// So many affected paths are shown to who does not ask for more.
const PATHS_SHOWN: usize = 20;

/// Verify that every snapshot can be restored
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Read, decrypt and prove all content
    #[arg(long, group = "how")]
    read_data: bool,
    /// Read a random share of it, such as 10%
    #[arg(long, value_name = "SHARE", group = "how", value_parser = share)]
    read_data_share: Option<f64>,
    /// Read what this host has not read within this time
    #[arg(long, value_name = "AGE", group = "how")]
    read_data_older_than: Option<Age>,
    /// Verify hashes and signatures of the stored objects, without any key
    #[arg(long, group = "how")]
    without_key: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let (digits, divisor) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let share =
        digits.trim().parse::<f64>().map_err(|_| format!("`{text}` is no share; try `10%`"))? / divisor;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("`{text}` is not from 0% to 100%")) }
}

/// Runs `check`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if args.without_key {
        return scrub(ctx).await;
    }
    let read = match (args.read_data, args.read_data_share, args.read_data_older_than) {
        (true, ..) => ReadData::Everything,
        (_, Some(share), _) => ReadData::Share(share),
        (.., Some(age)) => ReadData::OlderThan(length(ctx, age)?),
        _ => ReadData::Nothing,
    };
    let opened = open::repository(ctx).await?;
    let report = opened.repository.check(CheckOptions { read }).await;
    opened.progress.end();
    let report = report?;
    print(ctx, &report);
    if report.is_sound() {
        return Ok(Exit::Done);
    }
    ctx.printer
        .say("Next: `keepwell repair`, or `keepwell repair --from COPY` for what only a copy still has.");
    Ok(Exit::Damage)
}

/// How long a length of calendar time has been, counted back from now.
pub fn length(ctx: &Context, age: Age) -> Result<Duration> {
    let now = ctx.now();
    Ok(Duration::from_nanos(now.abs_diff(text::before(now, age.span())?)))
}

/// Shows what a check found.
pub fn print(ctx: &Context, report: &CheckReport) {
    let printer = &ctx.printer;
    findings(ctx, report.findings.iter());
    affected(ctx, &report.damaged_paths);
    printer.line(format_args!(
        "checked {}: {}, {}, {} of them read",
        text::count(report.snapshots, "snapshot", "snapshots"),
        text::count(report.chunks, "chunk", "chunks"),
        text::bytes(report.pack_bytes),
        text::bytes(report.bytes_read),
    ));
    if report.erased_snapshots > 0 {
        let erased = text::count(report.erased_snapshots, "snapshot lies", "snapshots lie");
        printer.say(format_args!("  {erased} in erased domains; their data is gone"));
    }
    if report.orphans > 0 {
        let orphans = text::count(report.orphans, "pack belongs", "packs belong");
        printer.say(format_args!("  {orphans} to nothing; a prune removes such packs"));
    }
    if report.open_sessions > 0 {
        let sessions = text::count(report.open_sessions, "session is", "sessions are");
        printer.say(format_args!("  {sessions} open: of a run at work, or of one that was killed"));
    }
    if report.packs_archived > 0 {
        let archived = text::count(report.packs_archived, "pack lies", "packs lie");
        printer.warn(format_args!(
            "{archived} in an archive and could not be read, so nothing is known of their content"
        ));
    }
    verdict(ctx, report.is_sound(), report.damaged_snapshots.len());
    let fields = json!({
        "sound": report.is_sound(),
        "snapshots": report.snapshots,
        "erased_snapshots": report.erased_snapshots,
        "nodes": report.nodes,
        "chunks": report.chunks,
        "packs": report.packs,
        "pack_bytes": report.pack_bytes,
        "packs_read": report.packs_read,
        "bytes_read": report.bytes_read,
        "packs_archived": report.packs_archived,
        "orphans": report.orphans,
        "open_sessions": report.open_sessions,
        "findings": report.findings.len(),
        "damaged_snapshots": report.damaged_snapshots,
    });
    printer.json("check", fields);
}

/// One pack may have a thousand files: what is wrong must not scroll away.
fn affected(ctx: &Context, paths: &[String]) {
    let printer = &ctx.printer;
    let shown = if printer.volume() > Volume::Normal { paths.len() } else { PATHS_SHOWN };
    for path in paths.iter().take(shown) {
        printer.line(format_args!("  affected: {path}"));
    }
    if paths.len() > shown {
        printer.line("  and others: `--verbose` names more of them");
    }
    for path in paths {
        printer.json("damaged_path", json!({ "path": path }));
    }
}

fn findings<'f>(ctx: &Context, findings: impl Iterator<Item = &'f Finding>) {
    for Finding { object, what } in findings {
        let damage = ctx.printer.colored("31;1", "damage:");
        ctx.printer.line(format_args!("{damage} {object}: {what}"));
        ctx.printer.json("damage", json!({ "object": object, "message": what }));
    }
}

fn verdict(ctx: &Context, sound: bool, snapshots: usize) {
    if sound {
        ctx.printer.line(ctx.printer.colored("32", "no damage was found"));
    } else {
        let affected = text::count(snapshots as u64, "snapshot is", "snapshots are");
        ctx.printer.line(ctx.printer.colored("31;1", &format!("damage was found; {affected} affected")));
    }
}

async fn scrub(ctx: &Context) -> Result<Exit> {
    let location = open::location(ctx)?;
    let store = location.open(ctx).await?;
    let report = backup_core::scrub(&*store, None, true).await?;
    findings(ctx, report.findings.iter());
    let objects = text::count(report.objects, "object", "objects");
    ctx.printer.line(format_args!("hashed {objects}, {}", text::bytes(report.bytes)));
    ctx.printer.line(format_args!("genesis fingerprint: {} (compare it with a key file)", report.genesis));
    let sound = report.findings.is_empty();
    ctx.printer.line(if sound { "no damage was found" } else { "damage was found" });
    let fields = json!({
        "sound": sound,
        "objects": report.objects,
        "bytes": report.bytes,
        "genesis": report.genesis,
        "findings": report.findings.len(),
    });
    ctx.printer.json("scrub", fields);
    Ok(if sound { Exit::Done } else { Exit::Damage })
}
