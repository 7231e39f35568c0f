//! `keepwell forget`.

use anyhow::Result;
use backup_core::{Checked, CopyRules, Snapshot, SnapshotState, Verdict, retain};
use keepwell_catalog::Manifest;
use serde_json::json;

use super::prune::{self, DryRun};
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::copies;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
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
  keepwell -r /mnt/disk/backup forget          by those of its copy there

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
    /// Prune afterwards
    #[arg(long)]
    prune: bool,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten, next_help_heading = "With --prune")]
    prune_options: prune::Options,
}

/// Runs `forget`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if !args.snapshots.is_empty() && !args.retention.policy().is_empty() {
        return Err(Complaint::usage("give rules or snapshots, not both").into());
    }
    if args.prune_options.is_set() && !args.prune {
        return Err(Complaint::usage("options for pruning are given, and `--prune` is not").into());
    }
    let opened = open::repository(ctx).await?;
    refuse_unable(&opened, &args)?;
    let snapshots = opened.repository.snapshots().await?;
    let checked = opened.repository.checked().await?;
    let verdicts = match args.snapshots.is_empty() {
        true => by_rules(ctx, &args, &opened.location, &snapshots, &checked)?,
        false => by_name(ctx, &snapshots, &args)?,
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
    let kept = verdicts.len() - going.len();
    // Of snapshots that were named, those that stay are nobody's question; "kept 0" would be a shock.
    let rest = match (args.snapshots.is_empty(), args.dry_run) {
        (false, _) => String::new(),
        (true, true) => format!(" and keep {kept}"),
        (true, false) => format!(", kept {kept}"),
    };
    ctx.printer.line(format_args!("{} {count}{rest}", if args.dry_run { "would forget" } else { "forgot" }));
    if verdicts.is_empty() {
        ctx.printer.warn("no snapshot matches");
    }
    ctx.printer.json("forget", json!({ "forgotten": going.len(), "kept": kept, "dry_run": args.dry_run }));
    if !args.prune {
        opened.progress.end();
        return Ok(Exit::Done);
    }
    if dry_run == DryRun::Yes && !going.is_empty() {
        ctx.printer.say("What a prune could remove now, before these are forgotten:");
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

fn by_rules<'s>(
    ctx: &Context,
    args: &Args,
    place: &Location,
    snapshots: &'s [Snapshot],
    checked: &Checked,
) -> Result<Vec<Verdict<'s>>> {
    let given = args.retention.policy();
    let rules = match given.is_empty() {
        false => vec![CopyRules { retention: given, ..CopyRules::default() }],
        true => standing(ctx, place)?,
    };
    let mut verdicts: Vec<Verdict<'s>> = Vec::new();
    for rules in &rules {
        let theirs = snapshots.iter().filter(|s| args.filter.accepts(s) && rules.concern(s));
        for verdict in retain(&rules.retention, ctx.now(), theirs, checked) {
            match verdicts.iter_mut().find(|v| v.snapshot.id == verdict.snapshot.id) {
                None => verdicts.push(verdict),
                // What one of them keeps stays.
                Some(known) if verdict.keep && !known.keep => *known = verdict,
                Some(_) => {}
            }
        }
    }
    Ok(verdicts)
}

/// The rules that the configuration has for a place: those of the copies of the profile that lie there, and else of the
/// profile that knows it. What is kept in one place says nothing of another.
fn standing(ctx: &Context, place: &Location) -> Result<Vec<CopyRules>> {
    let copies = place.copies(ctx);
    let mut rules: Vec<CopyRules> = copies.iter().map(|copy| copies::rules(copy)).collect();
    if copies.is_empty() {
        let retention = place.profile(ctx).and_then(|profile| profile.retention.as_ref());
        let retention = retention.map(RetentionArgs::policy).unwrap_or_default();
        rules.push(CopyRules { retention, ..CopyRules::default() });
    }
    // One without retention keeps everything that it is about, whatever another at the same place says.
    if rules.iter().any(|rules| !rules.retention.is_empty()) {
        return Ok(rules);
    }
    Err(match copies.first() {
        Some(copy) => Complaint::usage(format!("the copy {} keeps everything: it has no `retention`", copy.name()))
            .hint("Say, for example, `--keep-daily 14 --keep-monthly 12`, or set `retention` of the copy in the profile."),
        None => Complaint::usage("nothing says what to keep")
            .hint("Say, for example, `--keep-daily 14 --keep-monthly 12`, or set `retention` in a profile."),
    }
    .into())
}

fn by_name<'s>(ctx: &Context, snapshots: &'s [Snapshot], args: &Args) -> Result<Vec<Verdict<'s>>> {
    let mut verdicts: Vec<Verdict<'_>> = Vec::new();
    for snapshot in select::select_all(snapshots, &args.filter, &args.snapshots)? {
        if let SnapshotState::Readable(manifest) = &snapshot.state {
            refuse_kept(ctx, snapshot, manifest)?;
        }
        let reasons = vec!["named".to_owned()];
        verdicts.push(Verdict { snapshot, keep: false, by_rule: false, anomaly: None, reasons });
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

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILES: &str = r#"
[profile.default]
repository = "/srv/primary"
retention = { last = 3 }
[[profile.default.copy]]
to = "/mnt/archive"
retention = { yearly = 7 }
[[profile.default.copy]]
to = "/mnt/two"
datasets = ["home"]
retention = { daily = 9 }
[[profile.default.copy]]
to = "/mnt/two"
datasets = ["mail"]
retention = { weekly = 5 }
[[profile.default.copy]]
to = "/mnt/both"
retention = { last = 1 }
[[profile.default.copy]]
to = "/mnt/both"
tags = ["tax"]
[[profile.default.copy]]
name = "all"
to = "/mnt/all"
[profile.other]
repository = "/srv/other"
retention = { hourly = 2 }
"#;

    #[test]
    fn each_place_forgets_by_its_own_rules() {
        let ctx = Context::of_profiles(PROFILES);
        let rules = |place: &str| standing(&ctx, &Location::parse(place).unwrap());
        let only = |place: &str| rules(place).unwrap().pop().unwrap().retention;
        assert!(only("/srv/primary").last.is_some());
        let archive = only("/mnt/archive");
        assert!(
            archive.yearly.is_some() && archive.last.is_none(),
            "the rules of another place: {archive:?}"
        );
        assert!(only("/srv/other").hourly.is_some());
        let two = rules("/mnt/two").unwrap();
        assert!(two.len() == 2 && two[0].datasets == ["home"] && two[1].retention.weekly.is_some());
        let both = rules("/mnt/both").unwrap();
        assert!(both.len() == 2 && both[1].retention.is_empty(), "one keeps what it is about");
        for (place, why) in [("/mnt/all", "the copy all keeps everything"), ("/srv/unknown", "nothing says")]
        {
            let error = rules(place).unwrap_err();
            assert!(error.to_string().contains(why), "{place}: {error}");
        }
    }

    #[test]
    fn a_symlink_to_a_copy_is_that_copy() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let mut ctx = Context::of_profiles(PROFILES);
        ctx.profile.copies[0].to = dir.path().join("real").display().to_string();
        let link = Location::parse(dir.path().join("link").to_str().unwrap()).unwrap();
        assert!(standing(&ctx, &link).unwrap()[0].retention.yearly.is_some());
    }
}
