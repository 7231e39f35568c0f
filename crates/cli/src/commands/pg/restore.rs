//! `pg restore`.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use backup_core::RestorePlan;
use keepwell_catalog::MapKey;
use keepwell_source_postgres::recovery::{
    self, Archiving, BaseBackup, Binaries, ClusterReport, Layout, Mode, Planner, RecoveryPlan,
    RecoverySettings, Start, Target, Until, base_backups,
};
use keepwell_source_postgres::replication::SystemId;
use serde_json::json;

use super::helper::{self, Helper};
use super::places::{self, Directories};
use super::target::TargetArgs;
use crate::commands::restore::place::{Made, Scope, is_occupied};
use crate::commands::restore::safety;
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::{self, Filter, Part};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell pg restore /var/lib/postgresql/15/main --start
  keepwell pg restore --to-time '2026-11-21 12:04:10+00' /srv/copy --dry-run
  keepwell pg restore --to-name before_migration /srv/copy --tablespace fast=/srv/copy-fast
  keepwell pg restore 1a2b3c4d --to-immediate /srv/copy
  keepwell pg restore --standby /var/lib/postgresql/15/main

Into a directory that is not empty only what differs is written, after a snapshot
of what stands there; its WAL is moved aside. A restored copy does not archive
unless you say so.";

/// Restore a cluster, and recover it to a moment
///
/// Finds the newest base backup that ended before the moment and the timelines that lead there, and refuses what cannot
/// be reached. Shows the plan before it does anything.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_missing_positional = true)]
pub struct Args {
    /// The base backup to begin with [default: the newest that ended before the target]
    #[arg(value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// The data directory to restore into
    #[arg(value_name = "DIR", required = true)]
    directory: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Follow the log for ever as a standby
    #[arg(long, conflicts_with = "target")]
    standby: bool,
    /// What the server does at the target: promote, pause or shutdown
    #[arg(long, value_name = "ACTION", default_value = "promote", value_parser = ["promote", "pause", "shutdown"])]
    action: String,
    /// Put a tablespace elsewhere: its place, name or number, and the new place; may be repeated
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<String>,
    /// Whose the files become [default: whose the directory is, or `postgres`, for root; else our own]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Give the restored cluster a setting, such as `port=5433`; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Let the restored cluster archive its WAL as the original did
    #[arg(long)]
    keep_archiving: bool,
    /// Start the server, and wait until it has recovered and opened; with --standby or --action pause until it can be
    /// read, with --action shutdown until it has shut down at the target
    #[arg(long)]
    start: bool,
    /// Where the server's programs are
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Wait so long for the server
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    start_timeout: u64,
    /// Do not back up what stands in the directory
    #[arg(long)]
    no_safety_snapshot: bool,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
}

/// `NAME=VALUE` of `--set`.
fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(fine) || value.contains(['\n', '\r']) {
        return Err(format!("`{text}` cannot be a setting"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Everything that was decided.
struct Prepared {
    plan: RecoveryPlan,
    layout: Layout,
    settings: RecoverySettings,
    directories: Directories,
    parts: Vec<(PathBuf, RestorePlan)>,
    occupied: Vec<PathBuf>,
}

/// Runs `pg restore`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let target = args.target.target()?;
    let opened = open::for_reading(ctx).await?;
    let mut backups = find_backups(&opened, args.snapshot.as_deref(), &args.filter).await?;
    let standing = standing_system(&args.directory)?;
    let is_named = args.snapshot.as_deref().is_some_and(|name| name != "latest");
    if backups.iter().any(|backup| Some(backup.cluster.system_identifier) == standing) && !is_named {
        backups.retain(|backup| Some(backup.cluster.system_identifier) == standing);
    }
    let planner = Planner::new(opened.repository.clone(), backups)?;
    let plan = planner.plan(&target, args.target.timeline).await?;
    if let Some(standing) = standing.filter(|standing| *standing != plan.backup.cluster.system_identifier) {
        refuse_other_cluster(ctx, standing, &plan, is_named)?;
    }
    let binaries = match args.start {
        true => Some(find_binaries(ctx, plan.backup.cluster.major(), args.bin_dir.as_deref())?),
        false => None,
    };
    let (prepared, made) = prepare(ctx, &opened, plan, &args).await?;
    opened.progress.end();
    describe(ctx, &prepared, &args);
    if let Some(pid) = prepared.layout.running() {
        let directory = prepared.layout.directory.display().to_string();
        return Err(recovery::RestoreError::Running { directory, pid }.into());
    }
    prepared.layout.check_wal()?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    prepared.parts.iter().try_for_each(|(_, part)| part.check_space())?;
    if !prepared.occupied.is_empty() {
        confirm(ctx, "Restore over what is there?", Unattended::Refuse)?;
    }
    made.keep();
    execute(ctx, prepared, binaries, &args).await
}

/// The cluster that stands in a directory, if one does.
fn standing_system(directory: &Path) -> Result<Option<SystemId>> {
    let (path, mut first) = (directory.join("global/pg_control"), [0; 8]);
    match fs::File::open(&path).and_then(|mut file| file.read_exact(&mut first)) {
        Ok(()) => Ok(Some(SystemId::new(u64::from_ne_bytes(first)))),
        // It may be what has to be restored.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}

/// Over another cluster only a base backup that was named is restored.
fn refuse_other_cluster(
    ctx: &Context,
    standing: SystemId,
    plan: &RecoveryPlan,
    is_named: bool,
) -> Result<()> {
    let own = plan.backup.cluster.system_identifier;
    let fact = format!("cluster {standing} stands in the directory, and the base backup is of cluster {own}");
    if is_named {
        ctx.printer.warn(fact);
        return Ok(());
    }
    Err(Complaint::failed(fact)
        .hint("Restore into an empty directory, or name the snapshot that is to take its place.")
        .into())
}

/// Says so when a base backup is not whole.
pub fn warn_of_incomplete(ctx: &Context, plan: &RecoveryPlan) {
    let snapshot = &plan.backup.snapshot;
    if !snapshot.commit.complete {
        let problems = snapshot.manifest().map_or(0, |manifest| manifest.problem_count);
        ctx.printer.warn(format_args!(
            "snapshot {} is not complete: {} when it was taken, as `keepwell show` says",
            snapshot.short(),
            text::count(problems, "problem", "problems")
        ));
    }
}

/// Directories that were made for the plan; removed again unless they are kept.
struct Undo(Vec<Made>);

impl Undo {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.0.iter().rev().for_each(Made::undo);
    }
}

/// The base backups that may be begun with, whole or not: the planner prefers those that are.
pub async fn find_backups(opened: &Opened, name: Option<&str>, filter: &Filter) -> Result<Vec<BaseBackup>> {
    let snapshots = opened.repository.snapshots().await?;
    let part = name.map(Part::parse).transpose()?;
    let root: Option<&MapKey> = part.as_ref().and_then(|part| part.path.as_ref());
    let of_kind = |s: &backup_core::Snapshot| {
        root.is_some() || s.manifest().is_ok_and(|m| m.source_kind == recovery::SOURCE_KIND)
    };
    let fits = |s: &backup_core::Snapshot| filter.accepts(s) && of_kind(s);
    let candidates: Vec<_> = snapshots.into_iter().filter(fits).collect();
    let chosen = match part.as_ref().map(|part| part.name.as_str()) {
        None | Some("latest") => candidates,
        Some(name) => vec![select::select(&candidates, &Filter::default(), name)?.clone()],
    };
    Ok(base_backups(&opened.repository, &chosen, root).await?)
}

/// Programs of a major: where we are told, where packages put them, or on the path.
pub fn find_binaries(ctx: &Context, major: u32, named: Option<&Path>) -> Result<Binaries> {
    let more: Vec<PathBuf> = match named {
        Some(directory) => vec![directory.to_path_buf()],
        None => ctx.environment.path.clone(),
    };
    Ok(Binaries::find(major, &more)?)
}

async fn prepare(
    ctx: &Context,
    opened: &Opened,
    plan: RecoveryPlan,
    args: &Args,
) -> Result<(Prepared, Undo)> {
    let cluster = &plan.backup.cluster;
    let layout = places::layout(ctx, cluster, &args.directory, &args.tablespace, args.owner.as_deref())?;
    let settings = RecoverySettings {
        mode: match args.standby {
            true => Mode::Standby,
            false => Mode::Recover {
                target: plan.target.clone(),
                timeline: plan.history.timeline(),
                action: args.action.clone(),
            },
        },
        restore_command: helper::lasting_command(ctx, opened, &plan)?,
        archiving: if args.keep_archiving { Archiving::AsBackedUp } else { Archiving::Off },
        more: args.set.clone(),
    };
    let directories = Directories::default();
    let all: Vec<&PathBuf> = std::iter::once(&layout.directory).chain(layout.tablespaces.values()).collect();
    let occupied = all.iter().copied().filter(|path| is_occupied(path)).cloned().collect();
    let mut undo = Undo(Vec::new());
    for path in all {
        undo.0.push(Made::directories(path)?);
    }
    let parts = layout.plan(&opened.repository, &plan.backup, &directories).await?;
    Ok((Prepared { plan, layout, settings, directories, parts, occupied }, undo))
}

fn describe(ctx: &Context, prepared: &Prepared, args: &Args) {
    let Prepared { plan, layout, settings, parts, occupied, .. } = prepared;
    let (printer, cluster) = (&ctx.printer, &plan.backup.cluster);
    let directory = layout.directory.display();
    let what = if args.standby { "a standby".to_owned() } else { plan.target.to_string() };
    printer.say(format_args!("recover cluster {} to {what} in {directory}", cluster.system_identifier));
    printer.say(format_args!(
        "  snapshot {} of PostgreSQL {}, ended {} at {}",
        plan.backup.snapshot.short(),
        cluster.major(),
        text::time(cluster.stop_time),
        cluster.stop_lsn
    ));
    for (timeline, from, to) in &plan.timelines {
        printer.say(format_args!("  log of timeline {timeline} from {from} to {to}"));
    }
    let last = plan.last_end.map_or_else(
        || "no transaction ended in it".to_owned(),
        |end| format!("the last transaction that can be reached ended {}", text::time(end)),
    );
    printer.say(format_args!("  {} of log at most; {last}", text::bytes(plan.log_bytes())));
    if let Some(gap) = plan.gap {
        printer
            .warn(format_args!("the log from {} to {} is missing; the target lies before", gap.from, gap.to));
    }
    for (place, part) in parts {
        let room = part.free.map_or_else(String::new, |free| format!("; {} free", text::bytes(free)));
        let (files, bytes) = (text::count(part.files, "file", "files"), text::bytes(part.bytes));
        printer.say(format_args!("  {}: {files}, {bytes}{room}", place.display()));
    }
    let names: Vec<_> =
        settings.list().into_iter().map(|(name, value)| format!("{name} = '{value}'")).collect();
    printer.say(format_args!("  settings: {}", names.join(", ")));
    if !occupied.is_empty() {
        printer.say("  it is not empty: what differs is replaced, what the snapshot lacks is removed");
        if !args.no_safety_snapshot {
            printer.say("  what stands there is backed up first");
        }
    }
    warn_of_incomplete(ctx, plan);
    printer.json("pg_restore_plan", plan_json(prepared, args));
    warnings(ctx, prepared);
}

fn plan_json(prepared: &Prepared, args: &Args) -> serde_json::Value {
    let Prepared { plan, layout, settings, parts, occupied, .. } = prepared;
    let cluster = &plan.backup.cluster;
    let timelines = plan.timelines.iter().map(|(timeline, from, to)| {
        json!({ "timeline": timeline.get(), "from": from.to_string(), "to": to.to_string() })
    });
    let sum = |of: fn(&RestorePlan) -> u64| parts.iter().map(|(_, part)| of(part)).sum::<u64>();
    json!({
        "snapshot": plan.backup.snapshot.id.to_string(),
        "system": cluster.system_identifier.to_string(),
        "major": cluster.major(),
        "target": plan.target.to_string(),
        "position": plan.position.map(|at| at.to_string()),
        "timeline": plan.history.timeline().get(),
        "timelines": timelines.collect::<Vec<_>>(),
        "log_bytes": plan.log_bytes(),
        "last_transaction": plan.last_end.map(text::rfc3339),
        "gap": plan.gap.map(|gap| json!({ "from": gap.from.to_string(), "to": gap.to.to_string() })),
        "directory": layout.directory,
        "tablespaces": layout.tablespaces,
        "files": sum(|p| p.files),
        "bytes": sum(|p| p.bytes),
        "bytes_needed": sum(|p| p.needed),
        "bytes_free": parts.iter().filter_map(|(_, part)| part.free).min(),
        "settings": settings.list().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "occupied": occupied,
        "standby": args.standby,
        "dry_run": args.dry_run,
    })
}

/// What would stop the server, as far as it can be seen from here.
fn warnings(ctx: &Context, prepared: &Prepared) {
    let Some(owner) = prepared.layout.owner else { return };
    for directory in std::iter::once(&prepared.layout.directory).chain(prepared.layout.tablespaces.values()) {
        if let Some(obstacle) = places::obstacle(directory, owner) {
            ctx.printer.warn(format_args!(
                "the owner of the files cannot pass `{}` on the way to `{}`",
                obstacle.display(),
                directory.display()
            ));
        }
    }
}

async fn execute(ctx: &Context, prepared: Prepared, binaries: Option<Binaries>, args: &Args) -> Result<Exit> {
    let Prepared { plan, layout, settings, directories, occupied, .. } = prepared;
    // The progress of the plan is over.
    let opened = open::for_reading(ctx).await?;
    let saved = match !occupied.is_empty() && !args.no_safety_snapshot {
        true => {
            let scope = Scope { below: None, target: layout.directory.clone(), captured: occupied };
            safety::back_up(ctx, &opened, &[scope], &plan.backup.snapshot.short()).await?
        }
        false => None,
    };
    ctx.interrupt.ends_by_itself();
    let began = Instant::now();
    let restored =
        recovery::restore(&opened.repository, &plan.backup, &layout, &settings, &directories).await;
    opened.progress.end();
    let outcome = restored.map(|report| print(ctx, &report, &directories, began.elapsed()));
    if let Some(saved) = &saved {
        safety::say_how_to_undo(ctx, saved);
    }
    let exit = outcome?;
    match binaries {
        Some(binaries) => start(ctx, &opened, &plan, &layout, binaries, args).await.map(|()| exit),
        None => {
            ctx.printer.say(format_args!(
                "start the server to recover: pg_ctl start -D {}",
                layout.directory.display()
            ));
            Ok(exit)
        }
    }
}

fn print(ctx: &Context, report: &ClusterReport, directories: &Directories, took: Duration) -> Exit {
    let files = &report.files;
    ctx.printer.line(format_args!(
        "restored {}, {}, in {}; {} were right already; {} removed",
        text::count(files.files_written, "file", "files"),
        text::bytes(files.bytes_written),
        text::duration(took),
        text::number(files.files_unchanged),
        text::number(files.removed)
    ));
    if let Some(place) = &report.saved_wal {
        ctx.printer.say(format_args!("the WAL that stood there is in {} now", place.display()));
    }
    let left_out: Vec<String> = files.left_out.iter().cloned().chain(directories.left_out()).collect();
    left_out.iter().take(20).for_each(|text| ctx.printer.warn(text));
    ctx.printer.json(
        "pg_restore",
        json!({
            "seconds": took.as_secs_f64(),
            "files_written": files.files_written,
            "files_unchanged": files.files_unchanged,
            "bytes_written": files.bytes_written,
            "bytes_unchanged": files.bytes_unchanged,
            "removed": files.removed,
            "saved_wal": report.saved_wal,
            "left_out": left_out,
        }),
    );
    if left_out.is_empty() { Exit::Done } else { Exit::Skipped }
}

async fn start(
    ctx: &Context,
    opened: &Opened,
    plan: &RecoveryPlan,
    layout: &Layout,
    binaries: Binaries,
    args: &Args,
) -> Result<()> {
    let system = plan.backup.cluster.system_identifier.get();
    let mut options = Vec::new();
    // A standby needs its WAL for longer than we are here, and so does a server that waits at the target.
    let until = until(args.standby, &args.action, &plan.target);
    let helper = match until {
        Until::Open => Some(Helper::start(opened.repository.wal_reader(system)?, layout.owner)?),
        Until::Readable | Until::ShutDown => None,
    };
    if let Some(helper) = &helper {
        options.push(("restore_command".to_owned(), helper.restore_command(plan)?));
    }
    options.extend(configuration(plan, layout)?);
    let log = layout.directory.with_file_name(format!(
        "{}.log",
        layout.directory.file_name().unwrap_or_default().to_string_lossy()
    ));
    let began = Instant::now();
    let start = Start {
        binaries,
        directory: layout.directory.clone(),
        owner: layout.owner,
        options,
        log: log.clone(),
    };
    let mut server = start.run()?;
    ctx.printer.say(format_args!("the server recovers; it says in {} what it does", log.display()));
    let said = server.wait(until, Duration::from_secs(args.start_timeout)).await?;
    let took = began.elapsed();
    let state = match until {
        Until::Open => "open",
        Until::Readable => "open for reading",
        Until::ShutDown => "at the target, and shut down,",
    };
    ctx.printer.line(format_args!("the server is {state} after {}", text::duration(took)));
    if let Some(stopped) = &said.stopped {
        ctx.printer.say(format_args!("  {stopped}"));
    }
    if let Some(last) = &said.last_transaction {
        ctx.printer.say(format_args!("  the last transaction ended at {last}"));
    }
    ctx.printer.json(
        "pg_started",
        json!({ "seconds": took.as_secs_f64(), "pid": server.pid(), "stopped": said.stopped,
            "last_transaction": said.last_transaction, "timeline": said.timeline, "log": log }),
    );
    Ok(())
}

/// What a server that was started does first.
fn until(standby: bool, action: &str, target: &Target) -> Until {
    match action {
        _ if standby => Until::Readable,
        // The end of the log is no target, and nothing is done there but to open.
        _ if *target == Target::Latest => Until::Open,
        "pause" => Until::Readable,
        "shutdown" => Until::ShutDown,
        _ => Until::Open,
    }
}

/// Where the server finds its configuration, if that is not in the data directory.
fn configuration(plan: &RecoveryPlan, layout: &Layout) -> Result<Vec<(String, String)>> {
    if layout.directory.join("postgresql.conf").exists() {
        return Ok(Vec::new());
    }
    let outside = plan.backup.cluster.configuration.iter().map(|file| PathBuf::from(&file.path));
    let found = outside.filter(|path| path.file_name().is_some_and(|name| name == "postgresql.conf"));
    let found = found.into_iter().find(|path| fs::metadata(path).is_ok()).ok_or_else(|| {
        Complaint::failed(
            "the cluster's postgresql.conf lies outside the data directory, and is not on this host",
        )
        .hint("The snapshot has it below `config/`: `keepwell restore SNAPSHOT:/config --target DIR`.")
    })?;
    let directory = layout.directory.to_str().context("the data directory has a strange name")?;
    Ok(vec![
        ("config_file".to_owned(), found.display().to_string()),
        ("data_directory".to_owned(), directory.to_owned()),
        ("external_pid_file".to_owned(), String::new()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_opens_gets_its_log_from_us() {
        let to = Target::Immediate;
        assert_eq!(until(false, "promote", &to), Until::Open);
        assert_eq!(until(false, "pause", &to), Until::Readable);
        assert_eq!(until(false, "shutdown", &to), Until::ShutDown);
        assert_eq!(until(false, "shutdown", &Target::Latest), Until::Open);
        assert_eq!(until(true, "promote", &to), Until::Readable);
    }

    #[test]
    fn a_directory_says_which_cluster_stands_in_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(standing_system(dir.path()).unwrap(), None);
        fs::create_dir(dir.path().join("global")).unwrap();
        let control = dir.path().join("global/pg_control");
        fs::write(&control, "short").unwrap();
        assert_eq!(standing_system(dir.path()).unwrap(), None, "damaged");
        fs::write(&control, [&7_u64.to_ne_bytes()[..], &[0; 100]].concat()).unwrap();
        assert_eq!(standing_system(dir.path()).unwrap(), Some(SystemId::new(7)));
    }
}
