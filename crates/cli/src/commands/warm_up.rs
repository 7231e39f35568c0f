//! `keepwell warm-up`, and what `restore --plan` says of packs in an archive.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use backup_core::{NeededPack, RestoreOptions, Snapshot};
use clap::ValueEnum;
use keepwell_storage::{ThawSpeed, Tier};
use serde_json::json;

use super::restore::globs;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::{self, Filter, Part};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell restore latest:/home/me --target /tmp/back --plan      what must be thawed
  keepwell warm-up latest:/home/me                                ask for it, and wait
  keepwell warm-up latest --days 3 --speed bulk --no-wait

A store that has no such request of its own gets a command, which finds the names of the
objects on its standard input, one on each line, with the prefix or path of the repository:
  keepwell warm-up latest --command 'xargs -n 1 our-tape-robot fetch'";

/// The first pause between two looks, which doubles …
const LOOK_FIRST: Duration = Duration::from_secs(1);
/// … up to this one.
const LOOK_LAST: Duration = Duration::from_secs(600);

/// Make the packs readable that a restore needs and that lie in an archive
///
/// Asks the store for them and waits until they can be read, which takes minutes to two days. Interrupted, it may be run again:
/// what was asked for is on its way.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What will be restored: SNAPSHOT or SNAPSHOT:/PATH, as for `restore`
    #[arg(value_name = "SNAPSHOT[:/PATH]")]
    source: String,
    /// Only what matches this pattern, with what is below it; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Not what matches this pattern; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// For how many days they stay readable
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    days: u32,
    /// How fast, and how dear
    #[arg(long, value_enum, value_name = "SPEED", default_value = "standard")]
    speed: Speed,
    /// A shell command that asks for them instead; default: that of the profile
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Do not wait until they can be read
    #[arg(long)]
    no_wait: bool,
    /// Only show what would be asked for
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Speed {
    /// Cheapest; up to two days from the deepest archive.
    Bulk,
    /// Some hours.
    Standard,
    /// Minutes, where the archive has it.
    Expedited,
}

/// Runs `warm-up`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let part = Part::parse(&args.source)?;
    let options = RestoreOptions {
        below: part.path.clone(),
        select: globs::select(&args.include, &args.exclude)?,
        ..RestoreOptions::default()
    };
    let opened = open::repository(ctx).await?;
    let snapshots = opened.repository.snapshots().await?;
    let snapshot = select::select(&snapshots, &args.filter, &part.name)?;
    let packs = opened.repository.packs_needed(snapshot, options.clone()).await?;
    opened.progress.end();
    describe(ctx, &packs);
    if args.dry_run || packs.iter().all(|pack| pack.tier.is_readable()) {
        return Ok(Exit::Done);
    }
    let command = args.command.clone().or_else(|| ctx.profile.warm_up_command.clone());
    match command {
        Some(command) => ask_by_command(&opened, &packs, &command)?,
        None => {
            let speed = match args.speed {
                Speed::Bulk => ThawSpeed::Bulk,
                Speed::Standard => ThawSpeed::Standard,
                Speed::Expedited => ThawSpeed::Expedited,
            };
            opened.repository.thaw(&packs, args.days, speed).await?;
        }
    }
    ctx.printer.line("asked for them");
    if args.no_wait { Ok(Exit::Done) } else { wait(ctx, &opened, snapshot, options).await }
}

/// Hands the names of archived packs to a command, as the store knows them.
fn ask_by_command(opened: &Opened, packs: &[NeededPack], command: &str) -> Result<()> {
    let above = opened.location.above_keys();
    let archived = packs.iter().filter(|pack| !pack.tier.is_readable());
    let names: String = archived.map(|pack| format!("{above}{}\n", pack.key)).collect();
    // What it says is talk: our own output may be lines of JSON.
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(std::io::stderr())
        .spawn()
        .context("run the command that warms up")?;
    // A command that does not want to know them all is right to say so by its exit code.
    let written = child.stdin.take().map(|mut input| input.write_all(names.as_bytes()));
    let status = child.wait().context("wait for the command that warms up")?;
    if !status.success() {
        return Err(Complaint::failed(format!("the command that warms up failed: {status}")).into());
    }
    written.transpose().context("hand the names of packs to the command that warms up")?;
    Ok(())
}

async fn wait(ctx: &Context, opened: &Opened, snapshot: &Snapshot, options: RestoreOptions) -> Result<Exit> {
    ctx.interrupt.ends_by_itself();
    let mut pause = LOOK_FIRST;
    loop {
        let packs = opened.repository.packs_needed(snapshot, options.clone()).await?;
        let waiting = packs.iter().filter(|pack| !pack.tier.is_readable()).count();
        if waiting == 0 {
            ctx.printer.line("everything can be read now");
            return Ok(Exit::Done);
        }
        ctx.printer.say(format_args!("  {} to go", text::count(waiting as u64, "pack", "packs")));
        ctx.printer.json("warming_up", json!({ "packs_waiting": waiting }));
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = ctx.interrupt.requested() => {} }
        if ctx.interrupt.is_requested() {
            return Err(Complaint::new(Exit::Interrupted, "interrupted")
                .hint("What was asked for is on its way; run the command again to wait for it.")
                .into());
        }
        pause = (pause * 2).min(LOOK_LAST);
    }
}

/// Fails if packs that are needed must be thawed first.
pub fn demand_readable(packs: &[NeededPack]) -> Result<()> {
    let waiting: Vec<&NeededPack> = packs.iter().filter(|pack| !pack.tier.is_readable()).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let (count, bytes) = (waiting.len() as u64, waiting.iter().map(|pack| pack.size).sum());
    let thawing = waiting.iter().filter(|pack| pack.tier == Tier::Thawing).count();
    let on_its_way = if thawing > 0 { format!(", {thawing} of them on the way") } else { String::new() };
    let message = format!(
        "{} ({}) must be thawed first{on_its_way}; nothing was restored",
        text::count(count, "pack", "packs"),
        text::bytes(bytes)
    );
    Err(Complaint::failed(message)
        .hint("`keepwell warm-up` with the same snapshot and path asks for them and waits.")
        .hint("With `--leave-archived` everything else is restored, and what lies in them is named.")
        .into())
}

/// Says what of these packs lies in an archive.
pub fn describe(ctx: &Context, packs: &[NeededPack]) {
    let sum = |fits: fn(Tier) -> bool| {
        let those = packs.iter().filter(|pack| fits(pack.tier));
        those.fold((0_u64, 0_u64), |(count, bytes), pack| (count + 1, bytes + pack.size))
    };
    let all = sum(|_| true);
    let archived = sum(|tier| tier == Tier::Archived);
    let thawing = sum(|tier| tier == Tier::Thawing);
    let shown = |(count, bytes): (u64, u64)| {
        format!("{} ({})", text::count(count, "pack", "packs"), text::bytes(bytes))
    };
    let state = match (archived.0, thawing.0) {
        (0, 0) => "all can be read now".to_owned(),
        (_, 0) => format!("{} in an archive: `keepwell warm-up` asks for them", shown(archived)),
        (0, _) => format!("{} being thawed", shown(thawing)),
        (_, _) => format!("{} in an archive, {} being thawed", shown(archived), shown(thawing)),
    };
    ctx.printer.line(format_args!("needs {}; {state}", shown(all)));
    for pack in packs.iter().filter(|pack| !pack.tier.is_readable()) {
        ctx.printer.verbose(format_args!("  {}: {}", pack.key, name(pack.tier)));
    }
    let listed: Vec<_> = packs
        .iter()
        .filter(|pack| !pack.tier.is_readable())
        .map(|pack| json!({ "object": pack.key.to_string(), "bytes": pack.size, "state": name(pack.tier) }))
        .collect();
    let fields = json!({
        "packs": all.0, "bytes": all.1,
        "archived": archived.0, "archived_bytes": archived.1,
        "thawing": thawing.0, "thawing_bytes": thawing.1,
        "not_readable": listed,
    });
    ctx.printer.json("packs_needed", fields);
}

fn name(tier: Tier) -> &'static str {
    match tier {
        Tier::Ready => "ready",
        Tier::Archived => "archived",
        Tier::Thawing => "thawing",
        Tier::Thawed(_) => "thawed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_that_must_be_thawed_are_counted() {
        let pack = |tier| NeededPack { key: "data/x".parse().unwrap(), size: 1 << 20, tier };
        assert!(demand_readable(&[pack(Tier::Ready), pack(Tier::Thawed(None))]).is_ok());
        assert!(demand_readable(&[]).is_ok());
        let waiting = [pack(Tier::Ready), pack(Tier::Archived), pack(Tier::Thawing)];
        let error = demand_readable(&waiting).unwrap_err().to_string();
        assert!(error.contains("2 packs (2.00 MiB) must be thawed first, 1 of them on the way"), "{error}");
    }
}
