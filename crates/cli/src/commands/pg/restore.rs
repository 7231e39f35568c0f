//! `pg restore`.

mod show;
mod start;

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use backup_core::RestorePlan;
use keepwell_source_postgres::archive::Asker;
use keepwell_source_postgres::recovery::{
    self, Archiving, Binaries, Layout, Mode, Planner, RecoveryPlan, RecoverySettings, Target, Until,
};
use keepwell_source_postgres::replication::SystemId;

use self::show::{describe, print, warn_of_extensions};
use super::helper;
use super::pace::Pace;
use super::places::{self, Directories};
use super::recover::{find_backups, find_binaries, setting};
use super::target::TargetArgs;
use crate::commands::restore::place::{Made, Scope, is_occupied};
use crate::commands::restore::safety;
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::Filter;

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
    /// Let the restored cluster archive its WAL, and follow its subscriptions, as the original did
    #[arg(long)]
    keep_archiving: bool,
    /// Start the server, and wait until it has recovered and opened; with --standby or --action pause until it can be
    /// read, with --action shutdown until it has shut down at the target
    #[arg(long)]
    start: bool,
    /// Where the server's programs are
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Wait so long for the server; one that has not opened by then is stopped in order, and may be started again
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    start_timeout: u64,
    /// Do not back up what stands in the directory
    #[arg(long)]
    no_safety_snapshot: bool,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    filter: Filter,
}

/// Everything that was decided.
struct Prepared {
    plan: RecoveryPlan,
    layout: Layout,
    settings: RecoverySettings,
    directories: Directories,
    parts: Vec<(PathBuf, RestorePlan)>,
    occupied: Vec<PathBuf>,
    pace: Pace,
    /// What the server reads to get its log, unless it has that from us.
    needed: Vec<PathBuf>,
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
    warn_of_extensions(ctx, &prepared.plan, binaries.as_ref(), args.bin_dir.as_deref());
    prepared.layout.check_running()?;
    prepared.layout.check_wal()?;
    RestorePlan::check_space_for_all(prepared.parts.iter().map(|(_, part)| part))?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    if !prepared.occupied.is_empty() {
        confirm(ctx, "Restore over what is there?", Unattended::Refuse)?;
    }
    made.keep();
    execute(ctx, opened, prepared, binaries, &args).await
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

async fn prepare(
    ctx: &Context,
    opened: &Opened,
    plan: RecoveryPlan,
    args: &Args,
) -> Result<(Prepared, Undo)> {
    let cluster = &plan.backup.cluster;
    let layout = places::layout(ctx, cluster, &args.directory, &args.tablespace, args.owner.as_deref())?;
    layout.check_place()?;
    if let (true, Some(at)) = (args.standby, plan.left_at) {
        return Err(Complaint::failed(format!(
            "the log of timeline {} is not archived yet, and that of the one before goes on behind {at}, where it was left",
            plan.history.timeline()
        ))
        .hint("A standby would go on there. Wait until the new primary has archived a segment; its log may be on its way.")
        .into());
    }
    // To the end of the log a server goes and opens, also where it is told of the place.
    let action = if plan.target == Target::Latest { "promote" } else { args.action.as_str() };
    // A standby follows every timeline, and has no target.
    let asker = if args.standby { Asker::default() } else { plan.asker() };
    let settings = RecoverySettings {
        mode: match args.standby {
            true => Mode::Standby,
            false => Mode::Recover {
                target: plan.stop(),
                timeline: plan.history.timeline(),
                action: action.to_owned(),
            },
        },
        restore_command: helper::lasting_command(ctx, opened, &plan, asker)?,
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
    let needed = match args.start && start::until(args.standby, &args.action, &plan.target) == Until::Open {
        true => Vec::new(),
        false => helper::read_by_it(ctx, opened)?,
    };
    let pace = Pace::of(&opened.repository);
    Ok((Prepared { plan, layout, settings, directories, parts, occupied, pace, needed }, undo))
}

/// Restores from where the plan was made of: another place may have less of the log.
async fn execute(
    ctx: &Context,
    opened: Opened,
    prepared: Prepared,
    binaries: Option<Binaries>,
    args: &Args,
) -> Result<Exit> {
    let Prepared { plan, layout, settings, directories, occupied, .. } = prepared;
    opened.progress.begin();
    let saved = match !occupied.is_empty() && !args.no_safety_snapshot {
        true => {
            let scope = Scope { below: None, target: layout.directory.clone(), captured: occupied };
            safety::back_up(ctx, &opened, None, &[scope], &plan.backup.snapshot.short()).await?
        }
        false => None,
    };
    ctx.interrupt.ends_by_itself();
    let began = Instant::now();
    let restored =
        recovery::restore(&opened.repository, &plan.backup, &layout, &settings, &directories).await;
    opened.progress.end();
    if let Ok(report) = &restored {
        Pace::note_files(&opened.repository, report.files.bytes_written, began.elapsed());
    }
    let outcome = restored.map(|report| print(ctx, &report, &directories, began.elapsed()));
    if let Some(saved) = &saved {
        safety::say_how_to_undo(ctx, saved);
    }
    let exit = outcome?;
    match binaries {
        Some(binaries) => start::start(ctx, &opened, &plan, &layout, binaries, args).await.map(|()| exit),
        None => {
            ctx.printer.say(format_args!(
                "start the server to recover: pg_ctl start -D {}",
                layout.directory.display()
            ));
            Ok(exit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
