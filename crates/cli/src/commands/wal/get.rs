//! `wal get`, a restore_command.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::archive::{ArchiveError, Asker, Fetched, fetch_for};
use keepwell_source_postgres::lsn::{Lsn, Segment, SegmentSize, Timeline};
use keepwell_source_postgres::{recovery, serve};

use crate::commands::pg::helper_socket;
use crate::context::Context;
use crate::exit::Exit;
use crate::{open, secret};

const EXAMPLES: &str = "\
In postgresql.conf of a server that recovers:
  restore_command = 'keepwell --repository PLACE --key-file FILE wal get %f %p'

Example:
  keepwell wal get 000000010000000000000003 /srv/copy/pg_wal/000000010000000000000003";

/// Fetch one file of WAL for a recovering server, as its restore_command
///
/// Exit code 0: it is there. 1: the archive does not have it, and nothing later, or the server has it itself, or is a
/// standby. 255: anything else; the server then stops instead of opening with less than there is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the file: %f
    file: String,
    /// Where to put it: %p
    path: PathBuf,
    /// System identifier of the cluster [default: that of the data directory in which the command runs]
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
    /// Fetch ahead: the first call leaves a `wal serve` behind, which the next ones ask, and which ends by itself
    #[arg(long)]
    prefetch: bool,
    /// Ask the `wal serve` that listens here
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["prefetch", "system"])]
    socket: Option<PathBuf>,
    /// WAL before this position came with the base backup: where the archive lacks it, or has less, the server takes its own
    #[arg(long, value_name = "LSN", hide = true)]
    own_until: Option<Lsn>,
    /// The server has a target, before the next gap in the archive: for it the log ends at that
    #[arg(long, hide = true, conflicts_with = "socket")]
    to_gap: bool,
    /// The server follows this timeline: what later ones lack is no gap on its way, and of these it asks only which are taken
    #[arg(long, value_name = "NUMBER", hide = true, conflicts_with = "socket")]
    follows: Option<Timeline>,
}

/// Runs `wal get`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let fetched = match obtain(ctx, &args).await {
        Err(error) if goes_on(&args, &error) => {
            if is_gap(&error) && is_standby(&args) {
                // One without a primary waits here for ever.
                ctx.printer.warn(crate::exit::one_line(&error));
            }
            Fetched::Missing
        }
        // The server would put it in the place of its own, and perhaps not get to the end of the base backup.
        Ok(Fetched::Found(content)) if beside(&args).is_some_and(|own| has_more(&own, &content)) => {
            Fetched::Missing
        }
        fetched => fetched?,
    };
    match fetched {
        Fetched::Found(content) => {
            place(&args.path, &content).with_context(|| format!("write `{}`", args.path.display()))?;
            ctx.printer.verbose(format_args!("`{}` is restored", args.file));
            Ok(Exit::Done)
        }
        Fetched::Missing => {
            ctx.printer.verbose(format_args!("`{}` is not archived", args.file));
            Ok(Exit::Failed)
        }
    }
}

async fn obtain(ctx: &Context, args: &Args) -> Result<Fetched> {
    if let Some(socket) = &args.socket {
        let place = || format!("ask for `{}` at `{}`", args.file, socket.display());
        return serve::ask(socket, &args.file).with_context(place);
    }
    let system = match args.system {
        Some(system) => system,
        None => super::own_system()?,
    };
    if args.prefetch && !secret::reads_descriptor(ctx) {
        let socket = helper_socket(ctx, system);
        let leave = || leave_helper(ctx, &socket, system);
        if let Some(found) = of_helper(ctx, &socket, &args.file, leave) {
            return Ok(found);
        }
    }
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let reader = opened.repository.wal_reader(system)?;
    Ok(fetch_for(&reader, &args.file, asker(args)).await?)
}

/// What is known of the server, as far as its settings still say so: this command stays among them.
fn asker(args: &Args) -> Asker {
    let told = Asker { to_gap: args.to_gap, follows: args.follows };
    let settings = data(args).and_then(|data| fs::read_to_string(data.join("postgresql.auto.conf")).ok());
    settings.map_or_else(Asker::default, |settings| recovery::still_known(told, &settings))
}

/// The file, if a helper has it. Where none listens, yet or any more, one is left for the next calls. A helper only saves time:
/// whatever goes wrong with it, the file is fetched without before it counts.
fn of_helper(
    ctx: &Context,
    socket: &Path,
    file: &str,
    leave: impl FnOnce() -> Result<()>,
) -> Option<Fetched> {
    let trouble = match serve::ask(socket, file) {
        Ok(fetched @ Fetched::Found(_)) => return Some(fetched),
        // The server would open: a helper that has another repository in hand must not be the one to say so.
        Ok(Fetched::Missing) => return None,
        Err(error) if is_absent(&error) => leave().err()?,
        Err(error) => error.into(),
    };
    ctx.printer.verbose(format_args!("the helper does not help: {trouble:#}"));
    None
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Starts a `wal serve` with our own options, which goes on without us.
fn leave_helper(ctx: &Context, socket: &Path, system: u64) -> Result<()> {
    let program = std::env::current_exe().context("find our own program")?;
    let mut command = Command::new(program);
    command
        .args(ctx.global.again())
        .args(["wal", "serve", "--left-behind", "--idle", "60", "--system"])
        .arg(system.to_string());
    command.arg(socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start `wal serve`")?;
    Ok(())
}

/// Whether a server gets along without a file that the archive lacks while it has others: it has the file itself, or it is a
/// standby, which asks its primary.
fn goes_on(args: &Args, error: &anyhow::Error) -> bool {
    let begins_later = |error: &ArchiveError| matches!(error, ArchiveError::BeginsLater { .. });
    let before = is_told(error, begins_later, serve::begins_later);
    // `pg restore` has made sure that the target is before that, and the server reads ahead of it.
    let is_planned = args.own_until.is_some();
    // A standby opens for nobody but who promotes it. What it asks for may be on its way, and what follows there already.
    (is_gap(error) && (came_along(args) || is_standby(args)))
        || (before && (is_planned || beside(args).is_some() || is_standby(args)))
}

/// Whether the archive has later files than the one that it lacks.
fn is_gap(error: &anyhow::Error) -> bool {
    is_told(error, |error| matches!(error, ArchiveError::Gap { .. }), serve::is_gap)
}

/// Whether the archive itself says so, or a helper.
fn is_told(error: &anyhow::Error, itself: fn(&ArchiveError) -> bool, helper: fn(&io::Error) -> bool) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<ArchiveError>().is_some_and(itself)
            || cause.downcast_ref::<io::Error>().is_some_and(helper)
    })
}

/// Where the data directory may have the file itself.
fn beside(args: &Args) -> Option<PathBuf> {
    let beside = args.path.with_file_name(&args.file);
    (beside != args.path && beside.is_file()).then_some(beside)
}

/// Whether the data directory has the file, from the base backup.
fn came_along(args: &Args) -> bool {
    let (Some(until), Some(own)) = (args.own_until, beside(args)) else { return false };
    let size = fs::metadata(own).ok().and_then(|own| SegmentSize::new(own.len()));
    let segment = size.and_then(|size| Some((size, Segment::parse(&args.file, size).ok()?)));
    segment.is_some_and(|(size, segment)| size.start_of(segment.number) < until)
}

/// Whether the data directory is that of a standby.
fn is_standby(args: &Args) -> bool {
    data(args).is_some_and(|data| data.join("standby.signal").exists())
}

/// The data directory, in whose `pg_wal` the file is to be put.
fn data(args: &Args) -> Option<&Path> {
    args.path.parent().and_then(Path::parent)
}

/// Whether a file of the data directory begins with what is archived of it, and goes on where that ends, in zeros.
fn has_more(own: &Path, archived: &[u8]) -> bool {
    let end = archived.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let goes_on = |own: Vec<u8>| {
        own.len() == archived.len() && own[..end] == archived[..end] && own[end..].iter().any(|b| *b != 0)
    };
    end < archived.len() && fs::read(own).is_ok_and(goes_on)
}

/// Puts the file there in one step: half a file would be taken for a whole one.
fn place(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".keepwell");
    let beside = PathBuf::from(beside);
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // On a full disk this may be what the server needs to go on.
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_file_does_not_take_the_place_of_what_came_with_the_base_backup() {
        let dir = tempfile::tempdir().unwrap();
        let (size, end) = (1 << 20, 5000);
        let args = |until: u64| Args {
            file: "000000010000000000000003".to_owned(),
            path: dir.path().join("RECOVERYXLOG"),
            system: None,
            prefetch: false,
            socket: None,
            own_until: Some(Lsn::new(until)),
            to_gap: false,
            follows: None,
        };
        assert!(beside(&args(4 << 20)).is_none() && !came_along(&args(4 << 20)), "it did not come");
        let own = dir.path().join("000000010000000000000003");
        let whole = vec![7_u8; size];
        fs::write(&own, &whole).unwrap();
        assert!(!came_along(&args(3 << 20)), "it begins behind the end of the base backup");
        assert!(came_along(&args((3 << 20) + 1)));
        assert_eq!(beside(&args(0)), Some(own.clone()));
        assert_eq!(beside(&Args { path: own.clone(), ..args(0) }), None, "that is what is to be written");
        let archived = |fill: u8, end: usize| [vec![fill; end], vec![0; size - end]].concat();
        assert!(has_more(&own, &archived(7, end)));
        assert!(has_more(&own, &archived(7, 0)));
        assert!(!has_more(&own, &whole), "the archive has all of it");
        assert!(!has_more(&own, &archived(8, end)), "it has something else");
        assert!(!has_more(&own, &archived(7, end)[1..]));
        // What the server took from the archive when less of it was there.
        fs::write(&own, archived(7, end)).unwrap();
        assert!(!has_more(&own, &archived(7, end + 1)) && !has_more(&own, &archived(7, end)));
        assert!(!has_more(&dir.path().join("missing"), &whole));
    }

    #[test]
    fn what_only_the_archive_lacks_ends_no_recovery_early() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        fs::create_dir(&wal).unwrap();
        let file = "000000010000000000000003".to_owned();
        let args = |own_until| Args {
            file: file.clone(),
            path: wal.join("RECOVERYXLOG"),
            system: None,
            prefetch: false,
            socket: None,
            own_until,
            to_gap: false,
            follows: None,
        };
        let before = anyhow::Error::from(ArchiveError::BeginsLater { file: file.clone() });
        let gap = ArchiveError::Gap { file: file.clone(), timeline: Timeline::FIRST };
        let gap = anyhow::Error::from(gap).context("ask");
        let other = anyhow::anyhow!("the store is away");
        let all = |args: &Args| [&before, &gap, &other].map(|error| goes_on(args, error));
        assert_eq!(all(&args(None)), [false; 3], "it would open with less than there is");
        assert_eq!(all(&args(Some(Lsn::new(1)))), [true, false, false]);
        fs::write(dir.path().join("standby.signal"), "").unwrap();
        assert_eq!(all(&args(None)), [true, true, false], "it waits, or asks its primary");
        fs::remove_file(dir.path().join("standby.signal")).unwrap();
        fs::write(wal.join(&file), vec![7; 1 << 20]).unwrap();
        assert_eq!(all(&args(None)), [true, false, false]);
        assert_eq!(all(&args(Some(Lsn::new(4 << 20)))), [true, true, false]);
    }

    #[test]
    fn what_a_server_was_told_counts_as_long_as_its_settings_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            file: "000000010000000000000003".to_owned(),
            path: dir.path().join("pg_wal/RECOVERYXLOG"),
            system: None,
            prefetch: false,
            socket: None,
            own_until: None,
            to_gap: true,
            follows: Some(Timeline::FIRST),
        };
        assert_eq!(asker(&args), Asker::default());
        let settings = "recovery_target_timeline = '1'\nrecovery_target_xid = '7'\n";
        fs::write(dir.path().join("postgresql.auto.conf"), settings).unwrap();
        assert_eq!(asker(&args), Asker { to_gap: true, follows: Some(Timeline::FIRST) });
    }

    #[test]
    fn a_helper_that_cannot_be_left_behind_is_no_failure() {
        let (ctx, dir) = (Context::of_profiles(""), tempfile::tempdir().unwrap());
        let socket = dir.path().join("nobody");
        let mut tried = false;
        let leave = || -> Result<()> {
            tried = true;
            Err(anyhow::anyhow!("no process is left"))
        };
        assert_eq!(of_helper(&ctx, &socket, "000000010000000000000003", leave), None);
        assert!(tried);
        fs::write(&socket, "no socket").unwrap();
        assert_eq!(of_helper(&ctx, &socket, "000000010000000000000003", || Ok(())), None);
    }

    #[test]
    fn a_file_that_could_not_be_put_in_place_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("RECOVERYXLOG");
        place(&path, b"old").unwrap();
        place(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("by something")).unwrap();
        assert!(place(&taken, b"new").is_err());
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["RECOVERYXLOG", "taken"]);
    }
}
