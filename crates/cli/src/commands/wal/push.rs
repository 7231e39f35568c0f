//! `wal push`, an archive_command.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::push::{Ahead, Pushed, Pusher, Turn, is_followed};
use serde_json::json;

use crate::commands::pg::ahead_note;
use crate::context::Context;
use crate::exit::Exit;
use crate::{open, secret};

const EXAMPLES: &str = "\
In postgresql.conf:
  archive_command = 'keepwell --repository PLACE --key-file FILE wal push %p'

Example:
  keepwell wal push pg_wal/000000010000000000000003";

/// Archive one finished file of WAL, as a server's archive_command
///
/// Exit code 0: it is durable in the repository, or was before. Anything else: the server keeps it and asks again. While
/// one is stored, the next ones that are ready are stored too. For those who prefer it to `wal receive`, which loses
/// seconds instead of files when the server's disk dies.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The file: %p
    path: PathBuf,
    /// Name of what is backed up; that of its base backups
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    dataset: String,
    /// System identifier of the cluster [default: that of the data directory in which the command runs]
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
    /// Leave a process behind that archives what is ready while the server asks for one file after the other; it ends by
    /// itself
    #[arg(long)]
    ahead: bool,
    /// Be that process: archive what is ready behind the file
    #[arg(long, hide = true)]
    follow: bool,
}

/// Runs `wal push`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let system = match args.system {
        Some(system) => system,
        None => super::own_system()?,
    };
    let ahead = Ahead::new(ahead_note(ctx, system, &args.dataset));
    if args.follow {
        super::leave_terminal()?;
        pusher(ctx, &args, ahead).await?.follow(&args.path, system).await?;
        return Ok(Exit::Done);
    }
    let pushed = match ahead.has(&args.path) || (args.ahead && ahead.wait_for(&args.path).await) {
        true => Pushed::Already,
        false => push(ctx, &args, system, ahead).await?,
    };
    let (word, text) = match pushed {
        Pushed::Stored => ("stored", "is archived"),
        Pushed::Already => ("already", "was archived already"),
        Pushed::NotNeeded => ("not-needed", "is not needed for recovery"),
    };
    ctx.printer.verbose(format_args!("`{}` {text}", args.path.display()));
    ctx.printer.json("pushed", json!({ "file": args.path, "result": word }));
    Ok(Exit::Done)
}

/// Archives the file ourselves. What is ready behind it is left to a process of its own, if that is wanted and there is none.
async fn push(ctx: &Context, args: &Args, system: u64, ahead: Ahead) -> Result<Pushed> {
    let is_shared = is_shared(ctx, args, &ahead, |turn| leave_follower(ctx, args, system, turn));
    let pusher = pusher(ctx, args, ahead).await?;
    let pusher = if is_shared { pusher.alone() } else { pusher };
    Ok(pusher.push(&args.path, system).await?)
}

/// Whether what is ready behind the file is left to another process, perhaps one that is started here. It only saves time:
/// where there can be none, we do it.
fn is_shared(ctx: &Context, args: &Args, ahead: &Ahead, leave: impl FnOnce(Turn) -> Result<()>) -> bool {
    // Without a file that can be locked, or a second look at a secret, one process has to do.
    if !args.ahead || secret::reads_descriptor(ctx) {
        return false;
    }
    match ahead.turn() {
        Ok(Some(turn)) if is_followed(&args.path) => leave(turn)
            .inspect_err(|error| {
                let why = crate::exit::one_line(error);
                ctx.printer.verbose(format_args!("nobody archives ahead: {why}"));
            })
            .is_ok(),
        Ok(_) => true,
        Err(_) => false,
    }
}

async fn pusher(ctx: &Context, args: &Args, ahead: Ahead) -> Result<Pusher> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    Ok(Pusher::new(opened.repository.clone(), args.dataset.clone()).noting(ahead))
}

/// Starts ourselves once more, with our own options, to go on without us. The turn ends with that process.
fn leave_follower(ctx: &Context, args: &Args, system: u64, turn: Turn) -> Result<()> {
    // Unsaid, who is asked for this file again waits for it, a minute at most.
    let _ = turn.behind(&args.path);
    let program = std::env::current_exe().context("find our own program")?;
    let mut command = Command::new(program);
    command
        .args(ctx.global.again())
        .args(["wal", "push", "--follow", "--dataset", &args.dataset, "--system"])
        .arg(system.to_string())
        .arg("--")
        .arg(&args.path);
    command.stdin(turn.into_file()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start a process that archives ahead")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_process_that_cannot_be_left_behind_is_no_failure_and_leaves_its_turn() {
        let (ctx, dir) = (Context::of_profiles(""), tempfile::tempdir().unwrap());
        let file = |name: &str| dir.path().join(name);
        fs::create_dir(file("archive_status")).unwrap();
        fs::write(file("000000010000000000000001"), vec![0; 1 << 20]).unwrap();
        fs::write(file("archive_status/000000010000000000000002.ready"), "").unwrap();
        let args = |name: &str| Args {
            path: file(name),
            dataset: "postgres".to_owned(),
            system: None,
            ahead: true,
            follow: false,
        };
        let ahead = Ahead::new(file("cache/note"));
        let none = |_: Turn| -> Result<()> { Err(anyhow::anyhow!("no process is left")) };
        let first = args("000000010000000000000001");
        assert!(!is_shared(&ctx, &first, &ahead, none));
        let held = std::cell::RefCell::new(None);
        let keep = |turn: Turn| -> Result<()> {
            *held.borrow_mut() = Some(turn);
            Ok(())
        };
        assert!(is_shared(&ctx, &first, &ahead, keep));
        assert!(held.borrow().is_some() && is_shared(&ctx, &first, &ahead, none), "somebody does it already");
        drop(held.take());
        assert!(is_shared(&ctx, &args("000000010000000000000009"), &ahead, none), "nothing is behind it");
        let nowhere = Ahead::new(Path::new("/proc/none/note").to_owned());
        assert!(!is_shared(&ctx, &first, &nowhere, |_| Ok(())));
    }
}
