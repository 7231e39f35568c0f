//! What a copy's own rules do not keep there: shown with the reasons, asked for, forgotten, and pruned.

use anyhow::Result;
use backup_core::wal::WalTrimReport;
use backup_core::{Approval, CopyRules, PruneOptions, PruneReport, Retirement, Snapshot};
use serde_json::json;

use crate::commands::prune::{self, DryRun};
use crate::config::CopyConfig;
use crate::confirm::{Unattended, agreed};
use crate::context::Context;
use crate::open::Opened;
use crate::select;
use crate::table::{Align, Table};
use crate::text;

/// Forgets at a copy what its rules do not keep, and prunes there if the profile says so. What is not confirmed stays.
pub async fn retire(
    ctx: &Context,
    config: &CopyConfig,
    rules: &CopyRules,
    target: &Opened,
) -> Result<Retirement> {
    let prune = config.prune.then(PruneOptions::default);
    let done = rules.retire(ctx.now(), &target.repository, prune, &mut Asking { ctx, config, target }).await;
    target.progress.end();
    done
}

/// Removes at a copy the WAL that none of its base backups needs, if the profile says that it is pruned, and the key there
/// may. What is not confirmed stays.
///
/// Not only when something was forgotten just now: that may have been long ago.
pub async fn trim(ctx: &Context, config: &CopyConfig, target: &Opened) -> Result<WalTrimReport> {
    let copy = &target.repository;
    if !config.prune || !copy.access().is_keeper() || !copy.can_read() {
        return Ok(WalTrimReport::default());
    }
    let planned = prune::trim_copy(copy, DryRun::Yes).await;
    target.progress.end();
    let planned = planned?;
    if planned.is_idle() {
        return Ok(planned);
    }
    let name = config.name();
    let (pieces, size) = (text::count(planned.outdated, "piece", "pieces"), text::bytes(planned.bytes));
    ctx.printer.line(format_args!(
        "the copy {name}: to remove of archived WAL: {pieces} before its oldest base backup, {size}"
    ));
    if !agreed(ctx, "Remove this?", Unattended::Proceed)? {
        ctx.printer.say(format_args!("no archived WAL was removed at the copy {name}"));
        return Ok(WalTrimReport::default());
    }
    target.progress.begin();
    let done = prune::trim_copy(copy, DryRun::No).await;
    target.progress.end();
    done
}

/// Shows what is to go, and asks whoever sits there.
struct Asking<'a> {
    ctx: &'a Context,
    config: &'a CopyConfig,
    target: &'a Opened,
}

impl Approval for Asking<'_> {
    type Error = anyhow::Error;

    fn forget(&mut self, going: &[(&Snapshot, String)]) -> Result<bool> {
        let (ctx, name) = (self.ctx, self.config.name());
        self.target.progress.end();
        show(ctx, self.config, going, DryRun::No);
        let count = text::count(going.len() as u64, "snapshot", "snapshots");
        let agreed = agreed(ctx, &format!("Forget {count} at the copy {name}?"), Unattended::Proceed)?;
        if agreed {
            self.target.progress.begin();
        } else {
            ctx.printer.say(format_args!("nothing was forgotten at the copy {name}"));
        }
        Ok(agreed)
    }

    fn prune(&mut self, plan: &PruneReport) -> Result<bool> {
        let (ctx, name) = (self.ctx, self.config.name());
        self.target.progress.end();
        ctx.printer.line(format_args!("the copy {name}:"));
        prune::print_plan(ctx, plan, &WalTrimReport::default(), Some(name));
        let agreed = prune::is_idle(plan) || agreed(ctx, "Remove this?", Unattended::Proceed)?;
        if agreed {
            self.target.progress.begin();
        } else {
            ctx.printer.say(format_args!("nothing was removed at the copy {name}"));
        }
        Ok(agreed)
    }
}

/// Says of each snapshot why the copy does not keep it.
pub fn show(ctx: &Context, config: &CopyConfig, going: &[(&Snapshot, String)], dry_run: DryRun) {
    if going.is_empty() {
        return;
    }
    let verb = if dry_run == DryRun::Yes { "would forget" } else { "forgets" };
    ctx.printer.line(format_args!("the copy {} {verb}:", config.name()));
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("Time", Align::Left),
        ("Host", Align::Left),
        ("Dataset", Align::Left),
        ("Why", Align::Left),
    ]);
    for (snapshot, reason) in going {
        let of = snapshot.manifest().ok();
        let name = |name: Option<&String>| name.map_or_else(|| "-".to_owned(), Clone::clone);
        table.row(vec![
            snapshot.short(),
            text::time(select::taken(snapshot)),
            name(of.map(|m| &m.host)),
            name(of.map(|m| &m.dataset)),
            reason.clone(),
        ]);
        let fields = json!({
            "copy": config.name(),
            "snapshot": snapshot.id.to_string(),
            "reason": reason,
            "dry_run": dry_run == DryRun::Yes,
        });
        ctx.printer.json("copy_forgets", fields);
    }
    table.print(&ctx.printer);
}

#[cfg(test)]
mod tests;
