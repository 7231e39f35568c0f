//! `keepwell copy`.

mod all;
mod retire;

pub use all::warn_stale;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use backup_core::{BackupOptions, Snapshot};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_source_postgres::retention::wal_floors;
use serde_json::{Value, json};

use crate::config::CopyConfig;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
use crate::open::{self, Opened};
use crate::select::{self, Filter};
use crate::{copies, known, text};

const EXAMPLES: &str = "\
Examples:
  keepwell copy                                  to every copy that the profile names
  keepwell copy --to cloud                       to one of these
  keepwell copy --to safe --wait                 and wait until its disk is attached
  keepwell copy --to /mnt/disk/backup            everything, to a second disk
  keepwell copy latest --to /mnt/nas/backup
  keepwell copy --to /srv/other --to-key-file other.key

Where there is no repository yet, one with the same keys is made: a copy that the same
key file opens. Into a repository with other keys everything is encrypted anew. Only
what is missing travels; an interrupted copy goes on where it was. What the rules of a
copy of the profile no longer keep is shown with the reasons, and forgotten there; on a
terminal it is asked for, and `--dry-run` only shows it. `keepwell copies` shows what
the copies of the profile hold, and how old they are.";

/// Copy snapshots to another repository
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshots; by default all
    snapshots: Vec<String>,
    /// Where to: a place, or the name of a copy of the profile; by default to all of these
    #[arg(long, value_name = "PLACE")]
    to: Option<String>,
    /// The key file of the other repository, if it has keys of its own
    #[arg(long, value_name = "FILE")]
    to_key_file: Option<PathBuf>,
    /// Wait until copies that are not there are attached
    #[arg(long)]
    wait: bool,
    /// Only show what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    filter: Filter,
}

/// What was done.
#[derive(Debug, Default)]
struct Sums {
    copied: usize,
    skipped: usize,
    failed: Vec<(String, String)>,
    unread: u64,
    bytes: u64,
    wal_pieces: u64,
    wal_bytes: u64,
}

impl Sums {
    /// As scripts see them.
    fn fields(&self) -> Value {
        let failed = self.failed.iter().map(|(id, why)| json!({ "snapshot": id, "message": why }));
        json!({
            "copied": self.copied,
            "skipped": self.skipped,
            "failed": failed.collect::<Vec<_>>(),
            "unread_items": self.unread,
            "stored_bytes": self.bytes,
            "wal_pieces": self.wal_pieces,
            "wal_bytes": self.wal_bytes,
        })
    }
}

/// Runs `copy`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let Some(to) = &args.to else {
        refuse_choice(&args)?;
        return all::run(ctx, &ctx.profile.copies.iter().collect::<Vec<_>>(), args.wait, args.dry_run).await;
    };
    let configured = configured(ctx, to);
    if !configured.is_empty() {
        refuse_choice(&args)?;
        return all::run(ctx, &configured, args.wait, args.dry_run).await;
    }
    let place = Location::parse(to)?;
    refuse_misspelt(ctx, to, &place)?;
    let credential = open::credential(ctx).await?;
    let key = Key { file: credential.key.clone(), path: credential.key_file.clone() };
    let opened = credential.open(ctx).await?;
    let snapshots = opened.repository.snapshots().await?;
    let mut chosen = chosen(&snapshots, &args)?;
    leave_out_erased(ctx, &opened, &mut chosen);
    if args.dry_run {
        opened.progress.end();
        let count = text::count(chosen.len() as u64, "snapshot", "snapshots");
        ctx.printer.line(format_args!("would make sure that {count} are at {place}"));
        let fields = json!({ "location": place.to_string(), "snapshots": chosen.len() });
        ctx.printer.json("copy_plan", fields);
        return Ok(Exit::Done);
    }
    let target = open_target(ctx, &opened, &key, &place, args.to_key_file.as_ref()).await?;
    ctx.interrupt.ends_by_itself();
    let sums = copy(&opened, &target, &chosen).await;
    opened.progress.end();
    target.progress.end();
    Ok(print(ctx, &place, &sums?))
}

/// The copies of the profile that are called so; several where a place without a name is there once for each dataset.
fn configured<'c>(ctx: &'c Context, to: &str) -> Vec<&'c CopyConfig> {
    ctx.profile.copies.iter().filter(|copy| copy.name() == to).collect()
}

/// A bare word that is neither the name of a copy nor a directory is a slip: it would become a first copy in the directory
/// where somebody happens to be.
fn refuse_misspelt(ctx: &Context, to: &str, place: &Location) -> Result<()> {
    let is_there = place.path().is_none_or(|path| path.symlink_metadata().is_ok());
    if ctx.profile.copies.is_empty() || to.contains('/') || is_there {
        return Ok(());
    }
    let names: Vec<&str> = ctx.profile.copies.iter().map(CopyConfig::name).collect();
    let meant = match text::closest(to, names.iter().copied()) {
        Some(close) => format!("Did you mean `{close}`?"),
        None => format!("There are: {}.", names.join(", ")),
    };
    Err(Complaint::usage(format!("the profile has no copy `{to}`, and there is no directory of that name"))
        .hint(meant)
        .hint(format!("For a first copy in a new directory write `--to ./{to}`."))
        .into())
}

/// What is copied to a configured copy is configured.
fn refuse_choice(args: &Args) -> Result<()> {
    let chosen = !args.snapshots.is_empty() || args.to_key_file.is_some() || args.filter.is_set();
    if chosen {
        return Err(Complaint::usage("what goes to a copy of the profile stands in the profile")
            .hint("Name another place with `--to PLACE` to choose snapshots, or leave the choice out.")
            .into());
    }
    Ok(())
}

/// The key of the origin, and the file that it came from, if it was one.
struct Key {
    file: KeyFile,
    path: Option<PathBuf>,
}

/// Opens the repository at a place, or makes a copy of the origin there.
async fn open_target(
    ctx: &Context,
    from: &Opened,
    key: &Key,
    place: &Location,
    other_key_file: Option<&PathBuf>,
) -> Result<Opened> {
    if !place.is_repository(ctx).await? {
        let store = place.create(ctx).await?;
        from.repository.create_copy(&*store).await?;
        ctx.printer.say(format_args!("made a copy of the repository at {place}, with the same keys"));
        if let Some(file) = &key.path {
            known::remember(ctx, place, from.repository.id(), file)?;
        }
    }
    open::further(ctx, place.clone(), &key.file, other_key_file).await
}

fn chosen(snapshots: &[Snapshot], args: &Args) -> Result<Vec<Snapshot>> {
    if args.snapshots.is_empty() {
        return Ok(snapshots.iter().filter(|s| args.filter.accepts(s)).cloned().collect());
    }
    let named = select::select_all(snapshots, &args.filter, &args.snapshots)?;
    Ok(named.into_iter().cloned().collect())
}

fn leave_out_erased(ctx: &Context, opened: &Opened, chosen: &mut Vec<Snapshot>) {
    chosen.retain(|snapshot| {
        let erased = copies::is_erased(&opened.repository, snapshot);
        if erased {
            ctx.printer
                .say(format_args!("snapshot {} lies in an erased domain and is left out", snapshot.short()));
        }
        !erased
    });
}

/// Copies snapshots, and then the WAL that base backups which are there need.
async fn copy(from: &Opened, to: &Opened, snapshots: &[Snapshot]) -> Result<Sums> {
    let mut sums = copy_snapshots(from, to, snapshots).await?;
    if from.repository.wal_systems().await?.is_empty() {
        return Ok(sums);
    }
    // Whoever may only write there cannot see what is there.
    let holder = if to.repository.can_read() { to } else { from };
    let floors = wal_floors(&holder.repository).await.context("find out which WAL the copy needs")?;
    let wal = from.repository.copy_wal(&to.repository, &floors).await.context("copy archived WAL")?;
    (sums.wal_pieces, sums.wal_bytes) = (wal.stored, wal.bytes);
    Ok(sums)
}

async fn copy_snapshots(from: &Opened, to: &Opened, snapshots: &[Snapshot]) -> Result<Sums> {
    let mut sums = Sums::default();
    if from.repository.id() == to.repository.id() {
        let report = from.repository.copy_to_store(&to.repository, snapshots).await?;
        (sums.copied, sums.skipped, sums.bytes) = (report.copied.len(), report.skipped.len(), report.bytes);
        return Ok(sums);
    }
    let options = BackupOptions {
        program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..BackupOptions::default()
    };
    let report = from.repository.copy_snapshots(&to.repository, snapshots, &options).await?;
    (sums.copied, sums.skipped) = (report.copied.len(), report.skipped.len());
    sums.failed = report.failed.into_iter().map(|(id, why)| (id.to_string(), why)).collect();
    for copied in &report.copied {
        sums.unread += copied.unread;
        sums.bytes += copied.report.statistics.new_stored_bytes;
    }
    Ok(sums)
}

fn print(ctx: &Context, place: &Location, sums: &Sums) -> Exit {
    let copied = text::count(sums.copied as u64, "snapshot", "snapshots");
    let stored = text::bytes(sums.bytes);
    ctx.printer
        .line(format_args!("copied {copied} to {place}, {stored}; {} were there already", sums.skipped));
    if sums.wal_pieces > 0 {
        let pieces = text::count(sums.wal_pieces, "piece", "pieces");
        ctx.printer.line(format_args!("copied {pieces} of archived WAL, {}", text::bytes(sums.wal_bytes)));
    }
    for (snapshot, why) in &sums.failed {
        ctx.printer.warn(format_args!("snapshot {} could not be copied: {why}", &snapshot[..8]));
    }
    if sums.unread > 0 {
        ctx.printer.warn(format_args!(
            "{} are damaged here and missing there",
            text::count(sums.unread, "item", "items")
        ));
    }
    ctx.printer.json("copy", sums.fields());
    if !sums.failed.is_empty() || sums.unread > 0 { Exit::Damage } else { Exit::Done }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{exit_of, hints_of};

    #[test]
    fn a_misspelt_name_makes_no_copy() {
        let ctx = Context::of_profiles("[[profile.default.copy]]\nname = \"safe\"\nto = \"/mnt/safe\"\n");
        let refused = |ctx: &Context, to: &str| {
            let place = Location::parse(to).unwrap();
            refuse_misspelt(ctx, to, &place).err()
        };
        let error = refused(&ctx, "saef-of-nobody").unwrap();
        assert_eq!(exit_of(&error), Exit::Usage);
        assert!(hints_of(&error).concat().contains("`--to ./saef-of-nobody`"), "{error:?}");
        assert!(hints_of(&refused(&ctx, "saef").unwrap())[0].contains("`safe`"));
        for to in ["./saef", "/mnt/saef", "s3://saef", "src"] {
            assert!(refused(&ctx, to).is_none(), "{to}");
        }
        assert!(refused(&Context::of_profiles("[profile.default]\n"), "saef").is_none());
    }

    #[test]
    fn all_copies_of_a_name_are_meant() {
        let ctx = Context::of_profiles(
            "[[profile.default.copy]]\nto = \"/mnt/two\"\ndatasets = [\"home\"]\n\
             [[profile.default.copy]]\nto = \"/mnt/two\"\ndatasets = [\"mail\"]\n\
             [[profile.default.copy]]\nname = \"two\"\nto = \"/mnt/three\"\n",
        );
        let datasets: Vec<_> =
            configured(&ctx, "/mnt/two").into_iter().flat_map(|copy| &copy.datasets).collect();
        assert_eq!(datasets, ["home", "mail"]);
        assert_eq!(configured(&ctx, "two").len(), 1);
        assert!(configured(&ctx, "/mnt/three").is_empty());
    }
}
