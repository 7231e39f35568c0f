//! `keepwell forget`.

use anyhow::Result;
use backup_core::{Snapshot, SnapshotState, Verdict, retain};
use keepwell_catalog::Manifest;
use keepwell_catalog::retention::RetentionPolicy;
use serde_json::json;

use super::prune::{self, DryRun};
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::retention::RetentionArgs;
use crate::select::{self, Filter};
use crate::table::{Align, Table};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell forget --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run
  keepwell forget --keep-last 10 --prune       and give the space back
  keepwell forget 1a2b3c4d                     these, whatever the rules say
  keepwell forget                              by the rules of the profile

Rules count each dataset of each host by itself. The last complete snapshot always
stays. The table says of each snapshot why it stays or goes.";

/// Forget snapshots, by rules or by name
///
/// Forgotten snapshots are no longer listed; the space is given back by `prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Snapshots to forget; by default the rules decide
    snapshots: Vec<String>,
    #[command(flatten)]
    retention: RetentionArgs,
    /// Prune afterwards
    #[arg(long)]
    prune: bool,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten, next_help_heading = "With --prune")]
    prune_options: prune::Options,
}

/// Runs `forget`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let policy = policy(ctx, &args)?;
    if args.prune_options.is_set() && !args.prune {
        return Err(Complaint::usage("how to prune is said, and `--prune` is not").into());
    }
    let opened = open::repository(ctx).await?;
    refuse_unable(&opened, &args)?;
    let snapshots = opened.repository.snapshots().await?;
    let proved = opened.repository.proved_since().await?;
    let verdicts = match &policy {
        Some(policy) => {
            retain(policy, ctx.now(), snapshots.iter().filter(|s| args.filter.accepts(s)), proved)
        }
        None => by_name(ctx, &snapshots, &args)?,
    };
    print(ctx, &verdicts);
    let going: Vec<(&Snapshot, String)> =
        verdicts.iter().filter(|v| !v.keep).map(|v| (v.snapshot, v.reasons.join("; "))).collect();
    let count = text::count(going.len() as u64, "snapshot", "snapshots");
    let dry_run = if args.dry_run { DryRun::Yes } else { DryRun::No };
    if dry_run == DryRun::No && !going.is_empty() {
        opened.progress.end();
        confirm(ctx, &format!("Forget {count}?"), Unattended::Proceed)?;
        opened.repository.forget(&going).await?;
    }
    let verb = if args.dry_run { "would forget" } else { "forgot" };
    ctx.printer.line(format_args!("{verb} {count}, kept {}", verdicts.len() - going.len()));
    let kept = verdicts.len() - going.len();
    ctx.printer.json("forget", json!({ "forgotten": going.len(), "kept": kept, "dry_run": args.dry_run }));
    if !args.prune {
        opened.progress.end();
        return Ok(Exit::Done);
    }
    if dry_run == DryRun::Yes && !going.is_empty() {
        ctx.printer.say("What could be removed now, as long as these are not forgotten:");
    }
    opened.progress.begin();
    prune::execute(ctx, opened, &args.prune_options, dry_run).await
}

/// Says at once what would come to light only after a table was shown.
fn refuse_unable(opened: &Opened, args: &Args) -> Result<()> {
    let access = opened.repository.access();
    let role = access.describe();
    if !opened.repository.can_read() {
        return Err(
            backup_core::Error::NotAllowed { action: "decrypt, and so not decide what stays", role }.into()
        );
    }
    if !access.is_keeper() && !args.dry_run {
        return Err(backup_core::Error::NotAllowed { action: "forget snapshots", role }.into());
    }
    Ok(())
}

/// The rules in force; `None` when snapshots are named.
fn policy(ctx: &Context, args: &Args) -> Result<Option<RetentionPolicy>> {
    let given = args.retention.policy();
    match (args.snapshots.is_empty(), given.is_empty()) {
        (false, true) => Ok(None),
        (false, false) => Err(Complaint::usage("give rules or snapshots, not both").into()),
        (true, false) => Ok(Some(given)),
        (true, true) => {
            let policy = ctx.profile.retention.as_ref().map(RetentionArgs::policy).filter(|p| !p.is_empty());
            policy.map(Some).ok_or_else(|| {
                Complaint::usage("nothing says what to keep")
                    .hint("Say, for example, `--keep-daily 14 --keep-monthly 12`, or set `retention` in a profile.")
                    .into()
            })
        }
    }
}

fn by_name<'s>(ctx: &Context, snapshots: &'s [Snapshot], args: &Args) -> Result<Vec<Verdict<'s>>> {
    let mut verdicts: Vec<Verdict<'_>> = Vec::new();
    for name in &args.snapshots {
        let snapshot = select::select(snapshots, &args.filter, name)?;
        if let SnapshotState::Readable(manifest) = &snapshot.state {
            refuse_kept(ctx, snapshot, manifest)?;
        }
        if !verdicts.iter().any(|v| v.snapshot.id == snapshot.id) {
            let reasons = vec!["named".to_owned()];
            verdicts.push(Verdict { snapshot, keep: false, by_rule: false, anomaly: None, reasons });
        }
    }
    Ok(verdicts)
}

fn refuse_kept(ctx: &Context, snapshot: &Snapshot, manifest: &Manifest) -> Result<()> {
    let id = snapshot.short();
    let kept = match manifest.keep_until {
        _ if manifest.keep_forever => "for ever".to_owned(),
        Some(until) if until > ctx.now() => format!("until {}", text::time(until)),
        _ => return Ok(()),
    };
    Err(Complaint::failed(format!("snapshot {id} is to be kept {kept}"))
        .hint(format!("`keepwell tag {id} --allow-forget` lifts that."))
        .into())
}

fn print(ctx: &Context, verdicts: &[Verdict<'_>]) {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("ID", Align::Left),
        ("Time", Align::Left),
        ("Host", Align::Left),
        ("Dataset", Align::Left),
        ("Why", Align::Left),
    ]);
    for verdict in verdicts {
        let (snapshot, word) = (verdict.snapshot, if verdict.keep { "keep" } else { "forget" });
        let fields = json!({
            "snapshot": snapshot.id.to_string(),
            "keep": verdict.keep,
            "anomaly": verdict.anomaly,
            "reasons": verdict.reasons,
        });
        ctx.printer.json("verdict", fields);
        let (host, dataset) = match &snapshot.state {
            SnapshotState::Readable(m) => (m.host.clone(), m.dataset.clone()),
            _ => ("-".to_owned(), "-".to_owned()),
        };
        let time = text::time(select::taken(snapshot));
        table.row(vec![word.to_owned(), snapshot.short(), time, host, dataset, verdict.reasons.join("; ")]);
    }
    if !table.is_empty() {
        table.print(&ctx.printer);
    }
}
