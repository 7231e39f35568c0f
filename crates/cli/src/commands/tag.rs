//! `keepwell tag`.

use anyhow::Result;
use backup_core::{RewriteOptions, Snapshot};
use clap::builder::NonEmptyStringValueParser;
use keepwell_catalog::readable;
use serde_json::json;

use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::{self, Filter};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell tag latest --add before-upgrade --keep-forever
  keepwell tag 1a2b3c4d --remove weekly --description 'the last good one'

Nothing is ever changed in place: the snapshot is written anew, under a new id, and the
old one is forgotten. Its content stays where it is. What changes is shown first, and on
a terminal it is asked for.";

/// Change the tags and the description of snapshots, and how long they are kept
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshots
    #[arg(required = true)]
    snapshots: Vec<String>,
    /// Add a tag
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    add: Vec<String>,
    /// Remove a tag
    #[arg(long, value_name = "TAG")]
    remove: Vec<String>,
    /// Replace all tags
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new(), conflicts_with_all = ["add", "remove"])]
    set: Vec<String>,
    /// A sentence about the snapshot
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Never let `forget` remove it
    #[arg(long, group = "keep")]
    keep_forever: bool,
    /// Do not let `forget` remove it before this time
    #[arg(long, value_name = "TIME", group = "keep")]
    keep_until: Option<String>,
    /// Let `forget` remove it
    #[arg(long, group = "keep")]
    allow_forget: bool,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `tag`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    let snapshots = opened.repository.snapshots().await?;
    let chosen = select::select_all(&snapshots, &args.filter, &args.snapshots)?;
    let changes = chosen.into_iter().map(|snapshot| Ok((snapshot, changed(ctx, &args, snapshot)?)));
    let changes = changes.collect::<Result<Vec<(&Snapshot, RewriteOptions)>>>()?;
    opened.progress.end();
    if !args.dry_run && !opened.repository.access().is_keeper() {
        return Err(Complaint::new(Exit::WrongKey, "this credential cannot forget the snapshot as it was")
            .hint("Use a key file with the role keeper.")
            .into());
    }
    for (snapshot, options) in &changes {
        show(ctx, snapshot, options, args.dry_run)?;
    }
    if args.dry_run {
        return Ok(Exit::Done);
    }
    let count = text::count(changes.len() as u64, "snapshot", "snapshots");
    confirm(ctx, &format!("Write {count} anew, and forget the old?"), Unattended::Proceed)?;
    opened.progress.begin();
    ctx.interrupt.ends_by_itself();
    for (snapshot, options) in changes {
        change(ctx, &opened, snapshot, options).await?;
    }
    opened.progress.end();
    Ok(Exit::Done)
}

/// Shows what becomes of a snapshot.
fn show(ctx: &Context, snapshot: &Snapshot, options: &RewriteOptions, dry_run: bool) -> Result<()> {
    let before = RewriteOptions::of(snapshot)?;
    let kept = |options: &RewriteOptions| match options.keep_until {
        _ if options.keep_forever => "for ever".to_owned(),
        Some(until) => format!("until {}", text::time(until)),
        None => "as the rules say".to_owned(),
    };
    let tags = |options: &RewriteOptions| format!("[{}]", options.tags.join(", "));
    let described = |options: &RewriteOptions| format!("`{}`", options.description);
    let changes = [
        ("tags", tags(&before), tags(options)),
        ("description", described(&before), described(options)),
        ("kept", kept(&before), kept(options)),
    ];
    ctx.printer.say(format_args!("snapshot {} is written anew, and forgotten as it was:", snapshot.short()));
    for (what, before, after) in changes.iter().filter(|(_, before, after)| before != after) {
        ctx.printer.say(readable(format!("  {what}: {before} -> {after}")));
    }
    let fields = json!({
        "snapshot": snapshot.id.to_string(),
        "tags": options.tags,
        "description": options.description,
        "keep_until": options.keep_until.map(text::rfc3339),
        "keep_forever": options.keep_forever,
        "dry_run": dry_run,
    });
    ctx.printer.json("tag_plan", fields);
    Ok(())
}

fn changed(ctx: &Context, args: &Args, snapshot: &Snapshot) -> Result<RewriteOptions> {
    let mut options = RewriteOptions::of(snapshot)?;
    let before =
        (options.tags.clone(), options.description.clone(), options.keep_until, options.keep_forever);
    if !args.set.is_empty() {
        options.tags.clone_from(&args.set);
    }
    options.tags.retain(|tag| !args.remove.contains(tag));
    for tag in &args.add {
        if !options.tags.contains(tag) {
            options.tags.push(tag.clone());
        }
    }
    if let Some(description) = &args.description {
        options.description.clone_from(description);
    }
    if args.keep_forever {
        options.keep_forever = true;
    } else if let Some(time) = &args.keep_until {
        (options.keep_until, options.keep_forever) = (Some(text::time_to_come(time, ctx.now())?), false);
    } else if args.allow_forget {
        (options.keep_until, options.keep_forever) = (None, false);
    }
    if before == (options.tags.clone(), options.description.clone(), options.keep_until, options.keep_forever)
    {
        let complaint = Complaint::usage(format!("nothing would change in snapshot {}", snapshot.short()));
        return Err(complaint.hint("Say `--add TAG`, `--remove TAG`, `--description TEXT` …").into());
    }
    Ok(options)
}

async fn change(ctx: &Context, opened: &Opened, snapshot: &Snapshot, options: RewriteOptions) -> Result<()> {
    let tags = options.tags.clone();
    let report = opened.repository.rewrite(snapshot, options).await?;
    let new = &report.snapshot;
    opened.repository.forget(&[(snapshot, format!("written anew as {}", new.short()))]).await?;
    let shown = readable(tags.join(", "));
    ctx.printer.line(format_args!("snapshot {} is now {} [{shown}]", snapshot.short(), new.short()));
    let fields = json!({ "before": snapshot.id.to_string(), "after": new.id.to_string(), "tags": tags });
    ctx.printer.json("tag", fields);
    Ok(())
}
