//! `wal get`, a restore_command.

use std::ffi::OsString;
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
            Ok(fetched) => return Ok(fetched),
            // Nobody listens yet, or any more. Whatever went wrong, it is tried without a helper before it counts.
            Err(error) if is_absent(&error) => leave_helper(&socket, system)?,
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
fn leave_helper(socket: &Path, system: u64) -> Result<()> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let before = words.windows(2).position(|pair| pair[0] == "wal" && pair[1] == "get");
    let before = before.map_or(&words[..0], |at| &words[1..at]);
    let program = std::env::current_exe().context("find our own program")?;
    let mut command = Command::new(program);
    command.args(before).args(["wal", "serve", "--idle", "60", "--system"]).arg(system.to_string());
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
    let mut file = fs::File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
