//! `pg instant`.

mod place;
mod saved;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use backup_core::{Cancel, Tree};
use keepwell_mount::{Filling, HollowFile, StandIn, fill_as_needed};
use keepwell_source_postgres::recovery::{
    Binaries, HOLLOW_CONTROL_FILE, HollowPart, RecoveryPlan, Said, Scratch, ScratchOptions,
};
use keepwell_source_postgres::serve::WalServer;
use serde_json::json;

use self::place::Place;
use super::helper::Helper;
use super::places::Directories;
use super::recover::{RecoverArgs, setting, warn_of_incomplete};
use super::scratch::RECOVERY_MAX;
use crate::commands::mount::{Complaints, take_away_at_last};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell pg instant --at '2026-11-21 12:04:10+00'              look, and throw it away
  keepwell pg instant latest --to-immediate --set shared_buffers=1GB
  keepwell pg instant --at '2026-11-21 12:04:10+00' --keep /srv/then
  keepwell pg instant --at '2026-11-21 12:04:10+00' --save before-upgrade
  keepwell pg instant --saved before-upgrade                     again, without a replay
  keepwell pg instant --at '2026-11-21 12:04:10+00' --dry-run    can it be reached?

The server listens in a directory that only its user and root can enter; how to connect
is said when it is open. You may write: what is written stays with this server, and the
repository is only read. It waits for no disk and archives nothing.

Ctrl-C, or stopping the server, ends it and removes everything. With --keep everything
is fetched while it serves; then it is restarted once, waits for the disk, and needs us
no more: DIR/data is an ordinary data directory. With --save what was recovered becomes
a snapshot of its own, and the server ends. What a killed run left is removed by the
next one with the same --scratch or --keep.";

/// Unless somebody says otherwise. The log that is fetched ahead comes on top.
const MEMORY_BYTES: u64 = 96 << 20;
/// Segments of the log, each of 16 MiB as a rule.
const LOG_AHEAD: u64 = 2;

/// Start a server on a moment at once, without restoring the cluster first
///
/// Finds base backup and timeline as `pg restore` does. Small files are restored; pages of the others come from the
/// repository when the server reads them. Needs /dev/fuse, and `fusermount3` for users other than root.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The base backup to begin with [default: the newest that ended before the target]
    #[arg(value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Fetch everything while it serves, and keep it as an ordinary cluster in this directory, which is empty or not there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Store what was recovered under this name, for `--saved`, and end; reads all of it once
    #[arg(long, value_name = "NAME", conflicts_with = "keep")]
    save: Option<String>,
    /// Start on what was stored under this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["snapshot", "target", "exclusive", "timeline", "save"])]
    saved: Option<String>,
    /// Give the server a setting, such as `shared_buffers=1GB`; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    recover: RecoverArgs,
}

/// Runs `pg instant`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let began = Instant::now();
    let target = args.recover.target.target()?;
    let ctx = &frugal(ctx);
    let opened = match args.save {
        Some(_) => open::repository(ctx).await?,
        None => open::for_reading(ctx).await?,
    };
    if let Some(name) = &args.save {
        saved::refuse_taken(&opened, name).await?;
    }
    let plan = match &args.saved {
        Some(name) => saved::plan(&opened, name, &args.recover.filter).await?,
        None => args.recover.plan(&opened, args.snapshot.as_deref(), &target).await?,
    };
    describe(ctx, &plan, &args);
    if args.dry_run {
        opened.progress.end();
        return Ok(Exit::Done);
    }
    let binaries = args.recover.binaries(ctx, &plan)?;
    ctx.interrupt.ends_by_itself();
    let owner = args.recover.scratch.owner.as_deref();
    let place = match &args.keep {
        Some(directory) => Place::to_keep(directory, owner)?,
        None => Place::to_discard(ctx, &args.recover.scratch.scratch, owner)?,
    };
    let work = Work { ctx, opened: &opened, plan: &plan, args: &args, began };
    work.run(binaries, place).await
}

/// What answers a server stands beside it, on a host that may have been made for something else.
fn frugal(ctx: &Context) -> Context {
    let mut ctx = ctx.clone();
    if ctx.profile.limits.memory.is_none() {
        ctx.global.memory.get_or_insert(MEMORY_BYTES);
    }
    ctx
}

fn describe(ctx: &Context, plan: &RecoveryPlan, args: &Args) {
    let cluster = &plan.backup.cluster;
    ctx.printer.say(format_args!("recover cluster {} to {}", cluster.system_identifier, plan.target));
    ctx.printer.say(format_args!(
        "  snapshot {} of PostgreSQL {}, ended {} at {}; {} of log at most",
        plan.backup.snapshot.short(),
        cluster.major(),
        text::time(cluster.stop_time),
        cluster.stop_lsn,
        text::bytes(plan.log_bytes())
    ));
    warn_of_incomplete(ctx, plan);
    ctx.printer.json(
        "pg_instant_plan",
        json!({
            "snapshot": plan.backup.snapshot.id.to_string(),
            "system": cluster.system_identifier.to_string(),
            "major": cluster.major(),
            "target": plan.target.to_string(),
            "timeline": plan.history.timeline().get(),
            "log_bytes": plan.log_bytes(),
            "last_transaction": plan.last_end.map(text::rfc3339),
            "keep": args.keep,
            "dry_run": args.dry_run,
        }),
    );
}

/// What is to become of the server's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Everything is there.
    Whole,
    Discarded(Exit),
}

struct Work<'a> {
    ctx: &'a Context,
    opened: &'a Opened,
    plan: &'a RecoveryPlan,
    args: &'a Args,
    began: Instant,
}

impl Work<'_> {
    /// Makes the files, runs the server over them, and clears up.
    async fn run(&self, binaries: Binaries, place: Place) -> Result<Exit> {
        let (repository, plan) = (&self.opened.repository, self.plan);
        let reader = repository.wal_reader(plan.backup.cluster.system_identifier.get())?;
        let log = WalServer::with_ahead(reader, LOG_AHEAD, plan.asker());
        let helper = Helper::start_in(place.private("wal")?, log, place.owner)?;
        let restore_command = match self.args.saved {
            // What is archived under the number of its timeline is another server's log.
            Some(_) => "false".to_owned(),
            None => helper.restore_command(plan)?,
        };
        let options = ScratchOptions {
            directory: place.path().to_owned(),
            socket: place.path().to_owned(),
            owner: place.owner,
            restore_command,
            superuser: self.args.recover.scratch.superuser.clone(),
        };
        let directories = Directories::default();
        let restored = Scratch::restore_hollow(repository, plan, binaries, options, &directories).await;
        self.opened.progress.end();
        let (mut scratch, parts) = restored?;
        scratch.set(self.args.set.clone());
        let tree = plan.backup.tree(repository).await?;
        let mut over = Fillings::default();
        let used = match over.mount(self.ctx, &tree, parts).await {
            Ok(()) => self.serve(&mut scratch, &over).await,
            Err(error) => Err(error),
        };
        let is_whole = matches!(used, Ok(Fate::Whole));
        let stopped = if is_whole { scratch.stop_in_order().await } else { scratch.stop().await };
        let missing = over.missing_bytes();
        over.unmount().await?;
        if let Fate::Discarded(exit) = used? {
            return Ok(stopped.map(|()| exit)?);
        }
        stopped?;
        if missing > 0 {
            return Err(Complaint::failed(format!("{} were not fetched", text::bytes(missing))).into());
        }
        scratch.keep(&plan.backup, &directories)?;
        drop(helper);
        let directory = place.path().to_owned();
        place.keep()?;
        let again = Instant::now();
        scratch.start(&plan.backup, RECOVERY_MAX).await?;
        self.say_kept(&scratch, &directory, again.elapsed());
        Ok(Exit::Done)
    }

    /// Runs the server until it is to end, or everything is there.
    async fn serve(&self, scratch: &mut Scratch, over: &Fillings) -> Result<Fate> {
        let interrupted = || backup_core::Error::Cancelled;
        let starting = scratch.start(&self.plan.backup, RECOVERY_MAX);
        let said = tokio::select! {
            said = starting => said?,
            () = self.ctx.interrupt.requested() => return Err(interrupted().into()),
        };
        self.plan.check_end(&said)?;
        self.say_open(scratch, over, &said);
        if let Some(name) = &self.args.save {
            return saved::save(self.ctx, self.opened, scratch, name).await.map(Fate::Discarded);
        }
        if self.args.keep.is_none() {
            tokio::select! {
                ended = scratch.ended() => ended?,
                () = self.ctx.interrupt.requested() => {}
            }
            self.ctx.printer.say("removing the server and what it wrote");
            return Ok(Fate::Discarded(Exit::Done));
        }
        let began = Instant::now();
        let fetching = over.fetch_all(self.ctx.interrupt.cancel());
        tokio::pin!(fetching);
        tokio::select! {
            fetched = &mut fetching => fetched?,
            ended = scratch.ended() => {
                // Somebody stopped it; what is missing is fetched all the same.
                ended?;
                fetching.await?;
            }
        }
        let took = text::duration(began.elapsed());
        self.ctx.printer.line(format_args!("everything is here after {took}; the server is restarted"));
        Ok(Fate::Whole)
    }

    fn say_open(&self, scratch: &Scratch, over: &Fillings, said: &Said) {
        let (printer, took) = (&self.ctx.printer, self.began.elapsed());
        let (total, fetched) = (over.bytes, over.fetched_bytes());
        printer.line(format_args!(
            "the server is open after {}; {} of {} were fetched",
            text::duration(took),
            text::bytes(fetched),
            text::bytes(total)
        ));
        if let Some(stopped) = &said.stopped {
            printer.say(format_args!("  {stopped}"));
        }
        if let Some(last) = &said.last_transaction {
            printer.say(format_args!("  the last transaction ended at {last}"));
        }
        let data = scratch.data();
        let directory = data.parent().unwrap_or(data);
        self.say_how_to_connect(directory);
        match (&self.args.keep, &self.args.save) {
            (None, None) => printer.say("Ctrl-C ends it and removes everything"),
            (None, Some(_)) => printer.say("reading all of it once; Ctrl-C ends it and removes everything"),
            (Some(_), _) => printer.say("fetching the rest; Ctrl-C ends it and removes everything"),
        }
        printer.json(
            "pg_instant",
            json!({ "seconds": took.as_secs_f64(), "pid": scratch.pid(), "directory": directory,
                "port": self.port(), "bytes": total, "bytes_fetched": fetched, "stopped": said.stopped,
                "last_transaction": said.last_transaction, "timeline": said.timeline }),
        );
    }

    fn say_kept(&self, scratch: &Scratch, directory: &Path, took: Duration) {
        let (printer, data) = (&self.ctx.printer, scratch.data());
        printer.line(format_args!(
            "the server is open again after {}, and needs us no more",
            text::duration(took)
        ));
        self.say_how_to_connect(directory);
        printer.say(format_args!("its files are in {}; stop it with `pg_ctl stop -D {0}`", data.display()));
        printer.json(
            "pg_instant_kept",
            json!({ "seconds": self.began.elapsed().as_secs_f64(), "restart_seconds": took.as_secs_f64(),
                "pid": scratch.pid(), "directory": directory, "port": self.port(), "data": data }),
        );
    }

    fn say_how_to_connect(&self, directory: &Path) {
        let port = match self.port() {
            "5432" => String::new(),
            port => format!(" -p {port}"),
        };
        self.ctx.printer.say(format_args!(
            "connect with `psql -h {}{port} -U {} postgres`",
            directory.display(),
            self.args.recover.scratch.superuser
        ));
    }

    fn port(&self) -> &str {
        let own = self.args.set.iter().rfind(|(name, _)| name.eq_ignore_ascii_case("port"));
        own.map_or("5432", |(_, port)| port)
    }
}

/// What stands over the directories of a cluster.
#[derive(Debug, Default)]
struct Fillings {
    over: Vec<Filling>,
    /// Of all hollow files.
    bytes: u64,
}

impl Fillings {
    /// Stands over the directories. If that fails, what does already is to be taken away.
    async fn mount(&mut self, ctx: &Context, tree: &Tree, parts: Vec<HollowPart>) -> Result<()> {
        for HollowPart { directory, files } in parts {
            self.bytes += files.iter().map(|file| file.size).sum::<u64>();
            let hollow = |file: keepwell_source_postgres::recovery::LeftHollow| HollowFile {
                path: file.path,
                key: file.key,
                size: file.size,
            };
            let files = files.into_iter().map(hollow).collect();
            let stand_in = StandIn { seen: "pg_control".into(), beneath: HOLLOW_CONTROL_FILE.into() };
            let monitor = Arc::new(Complaints::new(Arc::clone(&ctx.printer)));
            let filling = fill_as_needed(tree, &directory, files, stand_in, monitor).await;
            self.over.push(filling.with_context(|| format!("stand over `{}`", directory.display()))?);
            take_away_at_last(ctx, &directory);
        }
        Ok(())
    }

    fn missing_bytes(&self) -> u64 {
        self.over.iter().map(Filling::missing_bytes).sum()
    }

    fn fetched_bytes(&self) -> u64 {
        self.over.iter().map(Filling::fetched_bytes).sum()
    }

    async fn fetch_all(&self, cancel: Cancel) -> Result<()> {
        for filling in &self.over {
            filling.fetch_all(cancel.clone()).await?;
        }
        Ok(())
    }

    async fn unmount(self) -> Result<()> {
        for filling in self.over {
            filling.unmount().await?;
        }
        Ok(())
    }
}
