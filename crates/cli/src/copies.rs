//! The copies that a profile names: what belongs into each, and what is known of those that are away.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use backup_core::{Repository, Snapshot, SnapshotState, retain};
use keepwell_catalog::retention::{RetentionPolicy, Slots};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::{Secret, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::config::{CopyConfig, Only};
use crate::context::Context;
use crate::location::Location;
use crate::retention::RetentionArgs;
use crate::{open, secret, select};

const FILE: &str = "copies.toml";
const HEADER: &str =
    "# When each copy was last written, for the days on which it is not there. Written by `keepwell`.\n\n";

/// The settings under which the place of a copy is opened.
pub fn context(ctx: &Context, copy: &CopyConfig) -> Context {
    let mut ctx = ctx.clone();
    ctx.profile.require_mount.clone_from(&copy.require_mount);
    ctx
}

/// The snapshots that a copy is there for, before its retention.
pub fn selection<'s>(now: i64, copy: &CopyConfig, snapshots: &'s [Snapshot]) -> Vec<&'s Snapshot> {
    let named = |names: &[String], name: &String| names.is_empty() || names.contains(name);
    let fits = |snapshot: &&Snapshot| match &snapshot.state {
        SnapshotState::Readable(m) => {
            named(&copy.datasets, &m.dataset)
                && named(&copy.hosts, &m.host)
                && (copy.tags.is_empty() || m.tags.iter().any(|tag| copy.tags.contains(tag)))
        }
        _ => false,
    };
    let fitting = snapshots.iter().filter(fits);
    let policy = policy(copy);
    if policy.is_empty() {
        return fitting.collect();
    }
    retain(&policy, now, fitting, None).into_iter().filter(|v| v.by_rule).map(|v| v.snapshot).collect()
}

fn policy(copy: &CopyConfig) -> RetentionPolicy {
    let mut policy = RetentionPolicy::default();
    let within = copy.within.map(|age| age.span());
    let (slots, spans) = match copy.only {
        None => {
            policy.within = within;
            return policy;
        }
        Some(Only::Hourly) => (&mut policy.hourly, &mut policy.within_hourly),
        Some(Only::Daily) => (&mut policy.daily, &mut policy.within_daily),
        Some(Only::Weekly) => (&mut policy.weekly, &mut policy.within_weekly),
        Some(Only::Monthly) => (&mut policy.monthly, &mut policy.within_monthly),
        Some(Only::Yearly) => (&mut policy.yearly, &mut policy.within_yearly),
    };
    match within {
        Some(_) => *spans = within,
        None => *slots = Some(Slots::Forever),
    }
    policy
}

/// Of the selected snapshots, those that the copy lacks and that its own rules would keep.
pub fn missing<'s>(
    now: i64,
    copy: &CopyConfig,
    selected: Vec<&'s Snapshot>,
    there: &'s [Snapshot],
) -> Vec<&'s Snapshot> {
    let held: HashSet<SnapshotId> = there.iter().map(Snapshot::origin_id).collect();
    let lacking: Vec<&Snapshot> = selected.into_iter().filter(|s| !held.contains(&s.origin_id())).collect();
    let Some(policy) = copy.retention.as_ref().map(RetentionArgs::policy) else { return lacking };
    let ids: HashSet<SnapshotId> = lacking.iter().map(|s| s.id).collect();
    let all = there.iter().chain(lacking);
    let kept = retain(&policy, now, all, None).into_iter().filter(|verdict| verdict.keep);
    kept.map(|verdict| verdict.snapshot).filter(|snapshot| ids.contains(&snapshot.id)).collect()
}

/// What the copy's own rules do not keep, with the reasons.
pub fn going<'s>(
    now: i64,
    copy: &CopyConfig,
    there: &'s [Snapshot],
    proved: Option<i64>,
) -> Vec<(&'s Snapshot, String)> {
    let policy = copy.retention.as_ref().map(RetentionArgs::policy).unwrap_or_default();
    let verdicts = retain(&policy, now, there, proved).into_iter().filter(|verdict| !verdict.keep);
    verdicts.map(|verdict| (verdict.snapshot, verdict.reasons.join("; "))).collect()
}

/// When the newest of these was captured.
pub fn newest(snapshots: &[Snapshot]) -> Option<i64> {
    snapshots.iter().map(select::taken).max()
}

/// Whether the newest snapshot of a copy is older than it may be.
pub fn is_stale(ctx: &Context, copy: &CopyConfig, newest: Option<i64>) -> Result<bool> {
    let Some(age) = copy.max_age else { return Ok(false) };
    let limit = crate::text::before(ctx.now(), age.span())?;
    Ok(newest.is_none_or(|newest| newest < limit))
}

/// What is remembered of the copies.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    #[serde(default)]
    copy: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    to: String,
    newest: jiff::Timestamp,
}

/// Remembers how new a copy is.
pub fn remember(ctx: &Context, copy: &CopyConfig, newest: Option<i64>) -> Result<()> {
    let Some(newest) = newest.and_then(|n| jiff::Timestamp::from_nanosecond(i128::from(n)).ok()) else {
        return Ok(());
    };
    let mut remembered = load(ctx)?;
    remembered.copy.retain(|entry| entry.to != copy.to);
    remembered.copy.push(Entry { to: copy.to.clone(), newest });
    let text = toml::to_string(&remembered).context("encode what is known of the copies")?;
    secret::replace_private(&path(ctx), &Secret::new(format!("{HEADER}{text}")))
}

/// How new a copy was when it was last there.
pub fn remembered(ctx: &Context, copy: &CopyConfig) -> Option<i64> {
    let found = load(ctx).ok()?.copy.into_iter().find(|entry| entry.to == copy.to)?;
    i64::try_from(found.newest.as_nanosecond()).ok()
}

fn load(ctx: &Context) -> Result<Remembered> {
    let path = path(ctx);
    match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("read `{}`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::default()),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}

fn path(ctx: &Context) -> PathBuf {
    ctx.environment.data_dir().join(FILE)
}

/// Opens the copies of the profile with the key of the repository, when the engine needs them.
#[derive(Debug)]
pub struct Fallback {
    ctx: Context,
    key: KeyFile,
    /// The place that is in use already.
    except: Location,
}

impl Fallback {
    /// `None` if the profile names no copy.
    pub fn new(ctx: &Context, key: &KeyFile, except: &Location) -> Option<Box<Self>> {
        let some = !ctx.profile.copies.is_empty();
        some.then(|| Box::new(Self { ctx: ctx.clone(), key: key.clone(), except: except.clone() }))
    }
}

#[async_trait]
impl backup_core::Copies for Fallback {
    async fn open(&self) -> Vec<(String, Repository)> {
        let mut opened = Vec::new();
        let same_keys = self.ctx.profile.copies.iter().filter(|copy| copy.key_file.is_none());
        for copy in same_keys {
            if Location::parse(&copy.to).is_ok_and(|place| place == self.except) {
                continue;
            }
            match open::quietly(&context(&self.ctx, copy), &copy.to, self.key.clone()).await {
                Ok(repository) => opened.push((copy.name().to_owned(), repository)),
                Err(error) => tracing::info!(copy = copy.name(), %error, "a copy cannot be used"),
            }
        }
        opened
    }
}

#[cfg(test)]
mod tests;
