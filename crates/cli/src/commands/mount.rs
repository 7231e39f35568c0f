//! `keepwell mount`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use backup_core::monitor::Monitor;
use keepwell_mount::{Audience, MountOptions, Unmounted};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::printer::Printer;
use crate::select::Filter;

const EXAMPLES: &str = "\
Examples:
  keepwell mount /mnt/backups                         stays until Ctrl-C
  ls /mnt/backups/by-host/orders/home/latest/home/me
  cp -a /mnt/backups/by-time/2026-11-21T12:00:05Z/etc /tmp/etc
  keepwell mount /mnt/backups --dataset orders-db --allow-other &
  umount /mnt/backups

  by-id/ID                      what a snapshot holds
  by-time/TIME                  a link to it, by the end of the backup (UTC)
  by-host/HOST/DATASET/TIME     the same, and `latest` in each";

/// New snapshots show after so long.
const REFRESH_EVERY: Duration = Duration::from_secs(10);

/// Show snapshots as a read-only file system
///
/// Nothing is read before it is looked at, and everything that is read is verified. Stays until it is interrupted or
/// unmounted. Needs /dev/fuse, and `fusermount3` for users other than root.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// An existing directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Let other users in, as far as modes and owners in the snapshots allow; else only you, and you may read everything
    #[arg(long)]
    allow_other: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `mount`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::for_reading(ctx).await?;
    let filter = args.filter;
    let options = MountOptions {
        accepts: Arc::new(move |snapshot| filter.accepts(snapshot)),
        audience: if args.allow_other { Audience::Everybody } else { Audience::Owner },
        refresh_every: REFRESH_EVERY,
        monitor: Arc::new(Complaints::new(Arc::clone(&ctx.printer))),
    };
    let mut mounted = keepwell_mount::mount(&opened.repository, &args.directory, options).await?;
    opened.progress.end();
    ctx.interrupt.ends_by_itself();
    take_away_at_last(ctx, mounted.directory());
    let directory = mounted.directory().display().to_string();
    ctx.printer.line(format_args!("mounted on {directory}"));
    ctx.printer.say(format_args!("unmount it with Ctrl-C, or with `umount {directory}`"));
    ctx.printer.json("mounted", json!({ "directory": directory }));
    tokio::select! {
        ended = mounted.ended() => {
            ended?;
            return Ok(Exit::Done);
        }
        () = ctx.interrupt.requested() => {}
    }
    if mounted.unmount().await? == Unmounted::InUse {
        ctx.printer.warn(format_args!("`{directory}` was in use; who still reads there gets errors"));
    }
    Ok(Exit::Done)
}

/// On a second Ctrl-C the file system goes with the process, instead of staying as a dead one.
pub fn take_away_at_last(ctx: &Context, directory: &Path) {
    let directory = directory.to_path_buf();
    ctx.interrupt.before_the_end(move || {
        // There is nobody left to be told.
        let _ = keepwell_mount::take_away_now(&directory);
    });
}

/// Says why something cannot be read; who asks for the same again and again hears it once.
#[derive(Debug)]
pub struct Complaints {
    printer: Arc<Printer>,
    last: Mutex<(String, String)>,
}

impl Complaints {
    /// They go where everything goes.
    pub fn new(printer: Arc<Printer>) -> Self {
        Self { printer, last: Mutex::default() }
    }
}

impl Monitor for Complaints {
    fn problem(&self, item: &str, message: &str) {
        let this = (item.to_owned(), message.to_owned());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == this {
            return;
        }
        self.printer.warn(format_args!("`{item}`: {message}"));
        self.printer.json("problem", json!({ "item": item, "message": message }));
        *last = this;
    }

    fn note(&self, message: &str) {
        self.printer.say(message);
    }
}
