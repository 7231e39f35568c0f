//! What commands share that recover a cluster: what to begin with, where to end, and a scratch cluster to do it in.

use std::path::{Path, PathBuf};

use anyhow::Result;
use backup_core::Snapshot;
use keepwell_catalog::MapKey;
use keepwell_source_postgres::recovery::{
    self, BaseBackup, Binaries, Planner, RecoveryPlan, Target, base_backups,
};

use super::scratch::ScratchArgs;
use super::target::TargetArgs;
use crate::context::Context;
use crate::open::Opened;
use crate::select::{self, Filter, Part};
use crate::text;

/// A recovery in a scratch cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub scratch: ScratchArgs,
    #[command(flatten)]
    pub filter: Filter,
}

impl RecoverArgs {
    /// The way to the target, from the base backup that is named or from the one that fits best.
    pub async fn plan(
        &self,
        opened: &Opened,
        snapshot: Option<&str>,
        target: &Target,
    ) -> Result<RecoveryPlan> {
        let backups = find_backups(opened, snapshot, &self.filter).await?;
        let planner = Planner::new(opened.repository.clone(), backups)?;
        Ok(planner.plan(target, self.target.timeline).await?)
    }

    /// Programs of the major of the cluster.
    pub fn binaries(&self, ctx: &Context, plan: &RecoveryPlan) -> Result<Binaries> {
        find_binaries(ctx, plan.backup.cluster.major(), self.scratch.bin_dir.as_deref())
    }
}

/// `NAME=VALUE` of `--set`.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(fine) || value.contains(['\n', '\r']) {
        return Err(format!("`{text}` cannot be a setting"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Says so when a base backup is not whole.
pub fn warn_of_incomplete(ctx: &Context, plan: &RecoveryPlan) {
    let snapshot = &plan.backup.snapshot;
    if !snapshot.commit.complete {
        let problems = snapshot.manifest().map_or(0, |manifest| manifest.problem_count);
        ctx.printer.warn(format_args!(
            "snapshot {} is not complete: {} when it was taken, as `keepwell show` says",
            snapshot.short(),
            text::count(problems, "problem", "problems")
        ));
    }
}

/// The base backups that may be begun with, whole or not: the planner prefers those that are.
pub async fn find_backups(opened: &Opened, name: Option<&str>, filter: &Filter) -> Result<Vec<BaseBackup>> {
    let snapshots = opened.repository.snapshots().await?;
    let part = name.map(Part::parse).transpose()?;
    let root: Option<&MapKey> = part.as_ref().and_then(|part| part.path.as_ref());
    let of_kind =
        |s: &Snapshot| root.is_some() || s.manifest().is_ok_and(|m| m.source_kind == recovery::SOURCE_KIND);
    let fits = |s: &Snapshot| filter.accepts(s) && of_kind(s);
    let candidates: Vec<_> = snapshots.into_iter().filter(fits).collect();
    let chosen = match part.as_ref().map(|part| part.name.as_str()) {
        None | Some("latest") => candidates,
        Some(name) => vec![select::select(&candidates, &Filter::default(), name)?.clone()],
    };
    Ok(base_backups(&opened.repository, &chosen, root).await?)
}

/// Programs of a major: where we are told, where packages put them, or on the path.
pub fn find_binaries(ctx: &Context, major: u32, named: Option<&Path>) -> Result<Binaries> {
    let more: Vec<PathBuf> = match named {
        Some(directory) => vec![directory.to_path_buf()],
        None => ctx.environment.path.clone(),
    };
    Ok(Binaries::find(major, &more)?)
}
