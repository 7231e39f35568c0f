//! `keepwell rewrite`.

use std::sync::Arc;

use anyhow::Result;
use backup_core::{RewriteOptions, Snapshot};
use keepwell_catalog::EntryKind;
use serde_json::{Value, json};

use super::restore::globs;
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::select::{self, Filter};

const EXAMPLES: &str = "\
Examples:
  keepwell rewrite latest --exclude '*.iso'
  keepwell rewrite --all --exclude /srv/uploads/secret.pdf

Nothing is ever changed in place: the snapshot is written anew, without what is excluded, and
the old one is forgotten. What only the old one needed goes with the next prune.";

/// Write snapshots anew without some of their paths
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshots
    #[arg(required_unless_present = "all")]
    snapshots: Vec<String>,
    /// All snapshots that the filters accept
    #[arg(long, conflicts_with = "snapshots")]
    all: bool,
    /// What to leave out, in the language of `.gitignore`; repeatable
    #[arg(long, required = true, value_name = "PATTERN")]
    exclude: Vec<String>,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `rewrite`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let patterns = Arc::new(globs::patterns(&args.exclude)?);
    let opened = open::repository(ctx).await?;
    if !opened.repository.access().is_keeper() {
        return Err(Complaint::new(
            Exit::WrongKey,
            "this credential cannot forget the snapshots as they were",
        )
        .hint("Use a key file with the role keeper.")
        .into());
    }
    let snapshots = opened.repository.snapshots().await?;
    let chosen: Vec<&Snapshot> = if args.all {
        let accepted = snapshots.iter().filter(|s| args.filter.accepts(s));
        accepted.filter(|s| select::is_readable(ctx, &opened.repository, s)).collect()
    } else {
        let named = args.snapshots.iter().map(|name| select::select(&snapshots, &args.filter, name));
        named.collect::<Result<_>>()?
    };
    let names: Vec<String> = chosen.iter().map(|s| s.short()).collect();
    confirm(
        ctx,
        &format!("Write {} anew without {}?", names.join(", "), args.exclude.join(", ")),
        Unattended::RefuseUnseen,
    )?;
    ctx.interrupt.ends_by_itself();
    for snapshot in chosen {
        let mut options = RewriteOptions::of(snapshot)?;
        let patterns = Arc::clone(&patterns);
        options.exclude = Some(Arc::new(move |key, kind| {
            key.to_os_path_bytes()
                .is_ok_and(|path| globs::fits(&patterns, &path, kind == EntryKind::Directory))
        }));
        let report = opened.repository.rewrite(snapshot, options).await?;
        if report.records_removed == 0 {
            // The same tree under a new id serves nobody.
            let as_before = format!("nothing was left out of snapshot {}", snapshot.short());
            opened.repository.forget(&[(&report.snapshot, as_before.clone())]).await?;
            ctx.printer.line(format_args!("{as_before}: it stays as it is"));
            let fields =
                json!({ "before": snapshot.id.to_string(), "after": Value::Null, "records_removed": 0 });
            ctx.printer.json("rewrite", fields);
            continue;
        }
        let after = report.snapshot.short();
        opened.repository.forget(&[(snapshot, format!("written anew as {after}"))]).await?;
        ctx.printer.line(format_args!(
            "snapshot {} is now {after}, without {} records",
            snapshot.short(),
            report.records_removed
        ));
        let fields = json!({ "before": snapshot.id.to_string(), "after": report.snapshot.id.to_string(),
            "records_removed": report.records_removed });
        ctx.printer.json("rewrite", fields);
    }
    opened.progress.end();
    Ok(Exit::Done)
}
