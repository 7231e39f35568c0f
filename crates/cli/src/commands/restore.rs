//! `keepwell restore`.

pub mod expect;
pub mod globs;
pub mod mounts;
pub mod place;
pub mod safety;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use backup_core::target::RestoreTarget;
use backup_core::{NeededPack, RestoreOptions, RestorePlan, RestoreReport, Select, Snapshot, Tree};
use keepwell_catalog::{Entry, MapKey, readable};
use keepwell_source_files::{FileTarget, TargetOptions};
use keepwell_storage::LifecycleRule;
use serde_json::json;

use self::expect::Expected;
use self::place::{Made, Parts, Scope, parts};
use super::warm_up;
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::copies;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::ours;
use crate::select::{self, Filter, Part};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell restore latest --target /tmp/back            everything, below /tmp/back
  keepwell restore latest:/home/me --target /tmp/me     a directory, as /tmp/me
  keepwell restore latest~1:/etc/fstab --target /tmp    a file, as /tmp/fstab
  keepwell restore latest --target /                    where it was
  keepwell restore latest --target /tmp/back --include '*.conf'
  keepwell restore 2026-11-20:/srv --target /srv --delete --dry-run
  keepwell restore latest --target /tmp/back --expect web1/42

Only what differs is written, so an interrupted restore can be run again.
What stands in the target is backed up first; the last lines say how to undo.
Exit code 3 means: some things could not be restored, or not completely.";

/// Restore a snapshot, or a part of it
///
/// Shows what it will do and how much room there is before it does anything. Restoring into a directory that is not empty
/// replaces what differs, after a snapshot of what stands there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to restore: SNAPSHOT or SNAPSHOT:/PATH. SNAPSHOT is `latest`, `latest~1`, an id, `tag:NAME`, `host:NAME`,
    /// `dataset:NAME` or a time
    #[arg(value_name = "SNAPSHOT[:/PATH]")]
    source: String,
    /// The directory to restore into; made if it is missing
    #[arg(short, long, value_name = "DIR")]
    target: PathBuf,
    /// Only what matches this pattern, with what is below it; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Not what matches this pattern; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Remove what stands in restored directories and is not in the snapshot, but nothing on other file systems there
    #[arg(long)]
    delete: bool,
    /// The snapshot is from somebody who must not gain rights here: leave out devices, setuid bits and security attributes
    #[arg(long)]
    untrusted: bool,
    /// The witness of a snapshot, noted earlier (`show` prints it): refuse a store that has nothing as new by that writer,
    /// because it was set back
    #[arg(long, value_name = "WRITER/SEQ")]
    expect: Option<Expected>,
    /// Do not back up what stands in the target
    #[arg(long)]
    no_safety_snapshot: bool,
    /// Return only when everything is on the disk; without it, the system writes it out in its own time
    #[arg(long)]
    sync: bool,
    /// Go on though packs lie in an archive: what is in them is named and not restored
    #[arg(long)]
    leave_archived: bool,
    /// Only show what would be done, and what must be thawed first
    #[arg(short = 'n', long, visible_alias = "plan")]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
}

/// So many of the things that will be removed, or that stay whatever happens, are named.
const REMOVALS_NAMED: usize = 5;

/// One directory to restore into, with what goes there.
struct Job {
    place: PathBuf,
    target: Arc<FileTarget>,
    options: RestoreOptions,
    plan: RestorePlan,
    /// What the target directory itself becomes.
    root: Option<Entry>,
}

/// What all parts of a restore have in common.
struct Whole<'a> {
    snapshot: &'a Snapshot,
    tree: &'a Tree,
    /// The directory that the caller named.
    named: &'a Path,
    /// Captured paths of which the snapshot has nothing.
    missing: &'a [MapKey],
    select: Option<Select>,
    options: TargetOptions,
}

/// Runs `restore`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let part = Part::parse(&args.source)?;
    let target = std::path::absolute(&args.target).map_err(|e| Complaint::usage(e.to_string()))?;
    let select = globs::select(&args.include, &args.exclude)?;
    let (opened, snapshots) = open::with_snapshots(ctx).await?;
    let expected = args.expect.as_ref();
    let checked =
        expected.map(|expected| expect::check(&opened.repository, &snapshots, expected)).transpose()?;
    let snapshot = select::select(&snapshots, &args.filter, &part.name)?;
    let newest = expect::newest(&snapshots, snapshot);
    let tree = opened.repository.tree(snapshot).await?;
    let Parts { scopes, missing } = parts(&tree, snapshot, part.path, &target, args.delete).await?;
    let occupied = place::is_occupied(&target);
    let mut made = Made::directories(&target)?;
    scopes.iter().for_each(|scope| made.expect(&scope.target));
    let options =
        TargetOptions { untrusted: args.untrusted, keep: ours::untouched(ctx, &opened.location, &target) };
    let whole = Whole { snapshot, tree: &tree, named: &target, missing: &missing, select, options };
    let planned = plan(&opened, &whole, &scopes, args.delete).await;
    let jobs = planned.inspect_err(|_| made.undo())?;
    describe(ctx, snapshot, &target, &jobs, &args, occupied);
    for path in &missing {
        let path = path.display_path();
        let why = "was not captured: what stands there stays as it is";
        ctx.printer.warn(format_args!("the snapshot is not complete, and `/{path}` {why}"));
    }
    let fits = RestorePlan::check_space_for_all(jobs.iter().map(|job| &job.plan));
    if args.dry_run {
        made.undo();
        archived(ctx, &opened, snapshot, &jobs).await?;
        return Ok(fits.map(|()| Exit::Done)?);
    }
    fits.inspect_err(|_| made.undo())?;
    if !args.leave_archived && may_be_archived(ctx, &opened).await.inspect_err(|_| made.undo())? {
        let needed = needed(&opened, snapshot, &jobs).await;
        needed.and_then(|needed| warm_up::demand_readable(&needed)).inspect_err(|_| made.undo())?;
    }
    if occupied {
        opened.progress.end();
        confirm(ctx, "Restore over what is there?", Unattended::Refuse).inspect_err(|_| made.undo())?;
        opened.progress.begin();
    }
    let saved = match occupied && !args.no_safety_snapshot {
        true => safety::back_up(ctx, &opened, Some(&tree), &scopes, &args.source).await?,
        false => None,
    };
    ctx.interrupt.ends_by_itself();
    let began = std::time::Instant::now();
    let report = execute(&opened, snapshot, jobs, &args).await;
    opened.progress.end();
    let outcome = report.map(|report| {
        let exit = print(ctx, &report, began.elapsed(), &newest.to_string());
        expect::say(ctx, newest, checked);
        exit
    });
    if let Some(saved) = &saved {
        safety::say_how_to_undo(ctx, saved);
    }
    outcome
}

/// Says which packs of a store in the network must be thawed first.
async fn archived(ctx: &Context, opened: &Opened, snapshot: &Snapshot, jobs: &[Job]) -> Result<()> {
    let is_remote = opened.location.path().is_none();
    let needed = if is_remote { needed(opened, snapshot, jobs).await? } else { Vec::new() };
    opened.progress.end();
    if is_remote {
        warm_up::describe(ctx, &needed);
    }
    Ok(())
}

/// The packs that these need, by name.
async fn needed(opened: &Opened, snapshot: &Snapshot, jobs: &[Job]) -> Result<Vec<NeededPack>> {
    let mut needed = Vec::new();
    for job in jobs {
        needed.extend(opened.repository.packs_needed(snapshot, job.options.clone()).await?);
    }
    needed.sort_by(|a, b| a.key.cmp(&b.key));
    needed.dedup();
    Ok(needed)
}

/// Whether packs may lie in an archive, as far as the settings or the rules of the bucket tell: to ask about each costs a
/// request. What a copy with the same keys has is taken from there.
async fn may_be_archived(ctx: &Context, opened: &Opened) -> Result<bool> {
    if opened.location.path().is_some() || copies::sources(ctx, &opened.location).next().is_some() {
        return Ok(false);
    }
    if opened.location.archives(ctx)? || ctx.profile.warm_up_command.is_some() {
        return Ok(true);
    }
    let Some(control) = opened.repository.store().control() else { return Ok(false) };
    let lifecycle = control.bucket().await.lifecycle;
    Ok(lifecycle.known().is_some_and(|rules| rules.iter().any(LifecycleRule::archives)))
}

async fn plan(opened: &Opened, whole: &Whole<'_>, scopes: &[Scope], delete: bool) -> Result<Vec<Job>> {
    let Whole { snapshot, tree, named, missing, select, options } = whole;
    let mut jobs = Vec::new();
    for scope in scopes {
        let root = match select.is_none() && place::takes_root_metadata(scope, delete) {
            true => place::root_of(tree, scope).await?,
            false => None,
        };
        let target = FileTarget::create(named, options);
        let (target, within) = (target.map_err(backup_core::Error::from)?, scope.within(named)?);
        let target = if within == MapKey::root() { Ok(target) } else { target.below(&within) };
        let mut target = target.map_err(backup_core::Error::from)?;
        if delete {
            target = target.sparing(scope.lost(snapshot, missing)?);
        }
        let target = Arc::new(target);
        let select = place::without_kept(select.clone(), scope, &target);
        let options = RestoreOptions { below: scope.below.clone(), select, delete };
        let shown: Arc<dyn RestoreTarget> = Arc::<FileTarget>::clone(&target);
        let plan = opened.repository.plan_restore(snapshot, shown, options.clone()).await?;
        jobs.push(Job { place: scope.target.clone(), target, options, plan, root });
    }
    Ok(jobs)
}

fn describe(ctx: &Context, snapshot: &Snapshot, target: &Path, jobs: &[Job], args: &Args, occupied: bool) {
    let sum = |of: fn(&RestorePlan) -> u64| jobs.iter().map(|job| of(&job.plan)).sum::<u64>();
    let (entries, files, bytes) = (sum(|p| p.entries), sum(|p| p.files), sum(|p| p.bytes));
    let needed = sum(|p| p.needed);
    let free = jobs.iter().filter_map(|job| job.plan.free).min();
    let printer = &ctx.printer;
    let (id, when) = (snapshot.short(), text::time(select::taken(snapshot)));
    let what = snapshot.manifest().map(|m| readable(format!("{} of {}", m.dataset, m.host)));
    let what = what.unwrap_or_default();
    printer.say(format_args!("restore snapshot {id} ({when}, {what}) to {}", target.display()));
    let room = free.map_or_else(String::new, |free| format!("; {} free", text::bytes(free)));
    printer.say(format_args!("  {}, {}{room}", text::count(files, "file", "files"), text::bytes(bytes)));
    let removed = sum(|p| p.removed);
    name_kept(ctx, jobs);
    if occupied {
        let others = if args.delete { removal(removed) } else { "everything else stays".to_owned() };
        printer.say(format_args!("  the target is not empty: what differs is replaced, {others}"));
        name_removed(ctx, jobs.iter().map(|job| (job.place.as_path(), &job.plan)));
        if let Some(spared) = spared(snapshot).filter(|_| args.delete) {
            printer.say(spared);
        }
        if !args.no_safety_snapshot {
            printer.say("  what is there now is backed up first");
        }
    }
    let fields = json!({
        "snapshot": snapshot.id.to_string(),
        "target": target.to_string_lossy(),
        "entries": entries,
        "files": files,
        "bytes": bytes,
        "bytes_needed": needed,
        "bytes_free": free,
        "removed": removed,
        "target_is_empty": !occupied,
        "dry_run": args.dry_run,
    });
    printer.json("restore_plan", fields);
}

/// What is not removed because a snapshot lacks it only for not being complete, in words.
fn spared(snapshot: &Snapshot) -> Option<String> {
    let manifest = snapshot.manifest().ok().filter(|_| !snapshot.commit.complete)?;
    let (named, all) = (manifest.problems.len() as u64, manifest.problem_count);
    let of_all = match named < all {
        true => format!(", and it names {} of {}", text::number(named), text::number(all)),
        false => String::new(),
    };
    Some(format!(
        "  the snapshot is not complete{of_all}: what it names as not captured stays where it stands"
    ))
}

/// Names some of what is there and stays whatever the snapshot has in its place.
fn name_kept(ctx: &Context, jobs: &[Job]) {
    let mut kept: BTreeSet<String> = jobs.iter().flat_map(|job| job.target.kept()).collect();
    kept.retain(|path| Path::new(path).exists());
    for path in kept.iter().take(REMOVALS_NAMED) {
        ctx.printer.say(format_args!("  {path} stays as it is: it belongs to the backups themselves"));
    }
    if kept.len() > REMOVALS_NAMED {
        ctx.printer.say("  …");
    }
}

/// How much will be removed, in words.
pub fn removal(count: u64) -> String {
    match count {
        0 => "nothing is removed".to_owned(),
        1 => "1 thing that the snapshot lacks is removed".to_owned(),
        n => format!("{} things that the snapshot lacks are removed", text::number(n)),
    }
}

/// Names some of what will be removed.
pub fn name_removed<'p>(ctx: &Context, plans: impl IntoIterator<Item = (&'p Path, &'p RestorePlan)>) {
    let named = plans.into_iter().flat_map(|(place, plan)| {
        let place = place.display().to_string();
        plan.removed_first.iter().map(move |path| format!("{}{path}", place.trim_end_matches('/')))
    });
    let named: Vec<String> = named.collect();
    for path in named.iter().take(REMOVALS_NAMED) {
        ctx.printer.say(format_args!("    removed: {path}"));
    }
    if named.len() > REMOVALS_NAMED {
        ctx.printer.say("    …");
    }
}

async fn execute(opened: &Opened, snapshot: &Snapshot, jobs: Vec<Job>, args: &Args) -> Result<RestoreReport> {
    let mut sum = RestoreReport::default();
    for job in jobs {
        let target: Arc<dyn RestoreTarget> = Arc::<FileTarget>::clone(&job.target);
        let report = opened.repository.restore(snapshot, target, job.options).await?;
        sum.add(report);
        if let Some(root) = job.root {
            job.target.apply_own_metadata(&root).map_err(backup_core::Error::from)?;
        }
        sum.left_out.extend(job.target.left_out());
        if args.sync {
            let target = Arc::clone(&job.target);
            tokio::task::spawn_blocking(move || target.sync()).await?.map_err(backup_core::Error::from)?;
        }
    }
    Ok(sum)
}

fn print(ctx: &Context, report: &RestoreReport, took: std::time::Duration, newest: &str) -> Exit {
    let printer = &ctx.printer;
    let written = text::count(report.files_written, "file", "files");
    printer.line(format_args!(
        "restored {written}, {}, in {}; {} were already right{}",
        text::bytes(report.bytes_written),
        text::duration(took),
        text::number(report.files_unchanged),
        match report.removed {
            0 => String::new(),
            n => format!("; {} removed", text::number(n)),
        }
    ));
    for left_out in report.left_out.iter().take(20) {
        printer.warn(left_out);
    }
    if report.left_out.len() > 20 {
        printer.warn(format_args!("… and {} more of this kind", report.left_out.len() - 20));
    }
    if report.problem_count > 0 {
        let problems = text::count(report.problem_count, "thing", "things");
        printer.warn(format_args!("{problems} could not be restored"));
    }
    let fields = json!({
        "seconds": took.as_secs_f64(),
        "files_written": report.files_written,
        "files_unchanged": report.files_unchanged,
        "directories": report.directories,
        "others": report.others,
        "bytes_written": report.bytes_written,
        "bytes_unchanged": report.bytes_unchanged,
        "removed": report.removed,
        "left_out": report.left_out,
        "problems": report.problem_count,
        "newest_seen": newest,
    });
    printer.json("restore", fields);
    if report.problem_count > 0 || !report.left_out.is_empty() { Exit::Skipped } else { Exit::Done }
}
