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

/// Fetch one file of WAL for a recovering server, as its restore_command
///
/// Exit code 0: it is there. 1: the archive does not have it, and has no gap here. 255: anything else; the server then
/// stops instead of opening with less than there is.
#[derive(Debug, clap::Args)]
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
    /// WAL before this position came with the base backup: where the archive lacks it, the server takes its own
    #[arg(long, value_name = "LSN", hide = true)]
    own_until: Option<Lsn>,
}

/// Runs `wal get`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let fetched = match obtain(ctx, &args).await {
        Err(error) if is_gap(&error) && is_own(&args) => Fetched::Missing,
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

/// Whether the data directory has a file itself, that the archive need not have.
fn is_own(args: &Args) -> bool {
    let Some(until) = args.own_until else { return false };
    let beside = args.path.with_file_name(&args.file);
    let size = fs::metadata(&beside).ok().and_then(|found| SegmentSize::new(found.len()));
    let segment = size.and_then(|size| Some((Segment::parse(&args.file, size).ok()?, size)));
    segment.is_some_and(|(segment, size)| size.start_of(segment.number) < until)
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
