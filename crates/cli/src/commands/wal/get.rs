//! `wal get`, a restore_command.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::archive::{ArchiveError, Fetched, fetch};
use keepwell_source_postgres::lsn::{Lsn, Segment, SegmentSize};
use keepwell_source_postgres::serve;

use crate::commands::pg::helper_socket;
use crate::context::Context;
use crate::exit::Exit;
use crate::open;

const EXAMPLES: &str = "\
In postgresql.conf of a server that recovers:
  restore_command = 'keepwell --repository PLACE --key-file FILE wal get %f %p'

Example:
  keepwell wal get 000000010000000000000003 /srv/copy/pg_wal/000000010000000000000003";

/// Fetch one file of WAL for a recovering server, as its restore_command
///
/// Exit code 0: it is there. 1: the archive does not have it, and has no gap here. 255: anything else; the server then
/// stops instead of opening with less than there is.
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
}

/// Runs `wal get`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let fetched = match (obtain(ctx, &args).await, own(&args)) {
        (Err(error), Some(_)) if is_gap(&error) => Fetched::Missing,
        // The server would put it in the place of its own, and not get to the end of the base backup.
        (Ok(Fetched::Found(content)), Some(own)) if has_more(&own, &content) => Fetched::Missing,
        (fetched, _) => fetched?,
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
    if args.prefetch {
        let socket = helper_socket(ctx, system);
        match serve::ask(&socket, &args.file) {
            Ok(fetched @ Fetched::Found(_)) => return Ok(fetched),
            // The server would open: a helper that has another repository in hand must not be the one to say so.
            Ok(Fetched::Missing) => {}
            // Nobody listens yet, or any more. Whatever went wrong, it is tried without a helper before it counts.
            Err(error) if is_absent(&error) => leave_helper(ctx, &socket, system)?,
            Err(error) => ctx.printer.verbose(format_args!("the helper does not help: {error}")),
        }
    }
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let reader = opened.repository.wal_reader(system)?;
    Ok(fetch(&reader, &args.file).await?)
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
        .args(["wal", "serve", "--idle", "60", "--system"])
        .arg(system.to_string());
    command.arg(socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().context("start `wal serve`")?;
    Ok(())
}

/// Whether the archive answered, and has other WAL than what was asked for.
fn is_gap(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref::<ArchiveError>(), Some(ArchiveError::Gap { .. }))
            || cause.downcast_ref::<io::Error>().is_some_and(serve::is_gap)
    })
}

/// Where the data directory has a file itself, that the archive need not have.
fn own(args: &Args) -> Option<PathBuf> {
    let until = args.own_until?;
    let beside = args.path.with_file_name(&args.file);
    let size = SegmentSize::new(fs::metadata(&beside).ok()?.len())?;
    let segment = Segment::parse(&args.file, size).ok()?;
    (size.start_of(segment.number) < until).then_some(beside)
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
        };
        assert_eq!(own(&args(4 << 20)), None, "it did not come");
        let beside = dir.path().join("000000010000000000000003");
        let whole = vec![7_u8; size];
        fs::write(&beside, &whole).unwrap();
        assert_eq!(own(&args(3 << 20)), None, "it begins behind the end of the base backup");
        assert_eq!(own(&args((3 << 20) + 1)), Some(beside.clone()));
        let archived = |fill: u8, end: usize| [vec![fill; end], vec![0; size - end]].concat();
        assert!(has_more(&beside, &archived(7, end)));
        assert!(has_more(&beside, &archived(7, 0)));
        assert!(!has_more(&beside, &whole), "the archive has all of it");
        assert!(!has_more(&beside, &archived(8, end)), "it has something else");
        assert!(!has_more(&beside, &archived(7, end)[1..]));
        // What the server took from the archive when less of it was there.
        fs::write(&beside, archived(7, end)).unwrap();
        assert!(!has_more(&beside, &archived(7, end + 1)) && !has_more(&beside, &archived(7, end)));
        assert!(!has_more(&dir.path().join("missing"), &whole));
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
