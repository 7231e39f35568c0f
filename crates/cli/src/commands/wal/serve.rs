//! `wal serve`.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use keepwell_source_postgres::archive::Asker;
use keepwell_source_postgres::serve::WalServer;
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;

const EXAMPLES: &str = "\
Example:
  keepwell wal serve /run/keepwell/wal.socket";

/// Serve WAL to recovering servers over a socket, ahead of what they ask for
///
/// `wal get --socket` asks it, and `wal get --prefetch` starts one by itself. Whoever can reach the socket can read the
/// WAL: it is made so that only its owner can.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The socket to listen on
    socket: PathBuf,
    /// System identifier of the cluster [default: the only one that is archived]
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
    /// End when nobody asked for so long
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle: Option<u64>,
    /// Be the process that `wal get --prefetch` leaves behind
    #[arg(long, hide = true)]
    left_behind: bool,
}

/// Runs `wal serve`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let shown = args.socket.display().to_string();
    if args.left_behind {
        super::leave_terminal()?;
    }
    if let Some(directory) = args.socket.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("create `{}`", directory.display()))?;
    }
    refuse_other(&args.socket)?;
    // Held to the end: of several that are started at once one stays.
    let lock = args.socket.with_extension("lock");
    let lock = File::options().write(true).create(true).truncate(false).open(lock);
    let lock = lock.context("create the lock beside the socket")?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Complaint::new(Exit::Locked, format!("somebody serves at `{shown}` already")).into());
    }
    // As `wal get` opens it: a copy that is behind would end a recovery early.
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let system = match super::systems(&opened, args.system).await?[..] {
        [one] => one,
        _ => {
            return Err(Complaint::usage("there is not one cluster in the archive")
                .hint("Say which: `--system NUMBER`.")
                .into());
        }
    };
    let reader = opened.repository.wal_reader(system.get())?;
    if refuse_other(&args.socket)? {
        fs::remove_file(&args.socket).with_context(|| format!("remove `{shown}`, which nobody serves"))?;
    }
    let listener = UnixListener::bind(&args.socket).with_context(|| format!("listen at `{shown}`"))?;
    fs::set_permissions(&args.socket, fs::Permissions::from_mode(0o600))
        .context("close the socket to others")?;
    ctx.interrupt.ends_by_itself();
    ctx.printer.say(format_args!("serving the WAL of cluster {system} at {shown}"));
    let (stop, stopped) = watch::channel(false);
    let interrupt = ctx.interrupt.clone();
    let watcher = tokio::spawn(async move {
        interrupt.requested().await;
        let _ = stop.send(true);
        std::future::pending::<()>().await;
    });
    let served = WalServer::new(reader, Asker::default())
        .run(listener, args.idle.map(Duration::from_secs), stopped)
        .await;
    watcher.abort();
    fs::remove_file(&args.socket).with_context(|| format!("remove `{shown}`"))?;
    served.context("accept requests")?;
    Ok(Exit::Done)
}

/// Whether a socket stands there already, perhaps of a server that was killed. Fails for anything else: it is not ours to
/// remove.
fn refuse_other(socket: &Path) -> Result<bool> {
    match fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(Complaint::usage(format!("`{}` is there, and is no socket", socket.display()))
            .hint("Name a socket that is not there yet.")
            .into()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at `{}`", socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_socket_is_taken_for_one_that_a_killed_server_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(!refuse_other(&path("new")).unwrap());
        drop(UnixListener::bind(path("left")).unwrap());
        assert!(refuse_other(&path("left")).unwrap());
        fs::write(path("file"), "theirs").unwrap();
        std::os::unix::fs::symlink(path("left"), path("link")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        for name in ["file", "link", "directory"] {
            let refused = refuse_other(&path(name)).unwrap_err().to_string();
            assert!(refused.ends_with("is there, and is no socket"), "{refused}");
        }
        assert!(refuse_other(&path("file/in it")).unwrap_err().to_string().starts_with("look at `"));
    }
}
