//! The copies that a profile names: what belongs into each, and what is known of those that are away.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use backup_core::{CopyRules, Repository, Snapshot};
use keepwell_catalog::retention::{RetentionPolicy, Slots};
use keepwell_crypto::Secret;
use keepwell_crypto::keyfile::KeyFile;
use serde::{Deserialize, Serialize};

use crate::config::{CopyConfig, Only};
use crate::context::Context;
use crate::location::Location;
use crate::retention::RetentionArgs;
use crate::{open, secret};

const FILE: &str = "copies.toml";
const HEADER: &str =
    "# When each copy was last written, for the days on which it is not there. Written by `keepwell`.\n\n";

/// Whether an error says that a place is not there, or does not answer, rather than that something is wrong with it.
pub fn is_away(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<backup_core::Error>());
    causes.any(|error| match error {
        backup_core::Error::NoRepository { .. } => true,
        backup_core::Error::Storage(error) => error.is_away(),
        _ => false,
    })
}

/// The copies that may stand in for the repository that is asked for: those of the profile, unless options or environment
/// name a place that the profile does not know.
pub fn at_hand(ctx: &Context) -> &[CopyConfig] {
    let named = ctx.global.repository.as_ref().or(ctx.environment.repository.as_ref());
    let is_known = |text: &String| Location::parse(text).is_ok_and(|place| place.is_of_profile(ctx));
    if named.is_none_or(is_known) { &ctx.profile.copies } else { &[] }
}

/// Of these, the ones from which single objects of the repository at a place can be had: other places with the same keys.
pub fn sources<'c>(ctx: &'c Context, place: &'c Location) -> impl Iterator<Item = &'c CopyConfig> {
    let is_here = move |copy: &CopyConfig| Location::parse(&copy.to).is_ok_and(|there| there.is_same(place));
    at_hand(ctx).iter().filter(move |copy| copy.key_file.is_none() && !is_here(copy))
}

/// What belongs into a copy, and how long it stays.
pub fn rules(copy: &CopyConfig) -> CopyRules {
    CopyRules {
        datasets: copy.datasets.clone(),
        hosts: copy.hosts.clone(),
        tags: copy.tags.clone(),
        selection: policy(copy),
        retention: copy.retention.as_ref().map(RetentionArgs::policy).unwrap_or_default(),
        beside: Vec::new(),
    }
}

/// The same, with those of the other copies of the profile at its place.
pub fn rules_at(ctx: &Context, place: &Location, copy: &CopyConfig) -> CopyRules {
    CopyRules { beside: place.copies(ctx).into_iter().map(rules).collect(), ..rules(copy) }
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

/// Whether the keys of a snapshot are destroyed: it goes nowhere any more.
pub fn is_erased(repository: &Repository, snapshot: &Snapshot) -> bool {
    snapshot.manifest().is_ok_and(|manifest| repository.is_erased(manifest.domain))
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    datasets: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    newest: jiff::Timestamp,
}

impl Entry {
    fn new(copy: &CopyConfig, newest: jiff::Timestamp) -> Self {
        let CopyConfig { to, datasets, hosts, tags, .. } = copy.clone();
        Self { to, datasets, hosts, tags, newest }
    }

    /// Whether it is about the same snapshots at the same place: several copies may lie there, of several profiles.
    fn is_of(&self, copy: &CopyConfig) -> bool {
        self.to == copy.to
            && self.datasets == copy.datasets
            && self.hosts == copy.hosts
            && self.tags == copy.tags
    }
}

/// Remembers how new a copy is.
pub fn remember(ctx: &Context, copy: &CopyConfig, newest: Option<i64>) -> Result<()> {
    let Some(newest) = newest.and_then(|n| jiff::Timestamp::from_nanosecond(i128::from(n)).ok()) else {
        return Ok(());
    };
    let mut remembered = load(ctx)?;
    remembered.copy.retain(|entry| !entry.is_of(copy));
    remembered.copy.push(Entry::new(copy, newest));
    let text = toml::to_string(&remembered).context("encode what is known of the copies")?;
    secret::replace_private(&path(ctx), &Secret::new(format!("{HEADER}{text}")))
}

/// How new a copy was when it was last there. A time that is still to come was told by a clock that was wrong.
pub fn remembered(ctx: &Context, copy: &CopyConfig) -> Option<i64> {
    let found = load(ctx).ok()?.copy.into_iter().find(|entry| entry.is_of(copy))?;
    i64::try_from(found.newest.as_nanosecond()).ok().filter(|newest| *newest <= ctx.now())
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
    /// `None` if no copy is at hand.
    pub fn new(ctx: &Context, key: &KeyFile, except: &Location) -> Option<Box<Self>> {
        let some = sources(ctx, except).next().is_some();
        some.then(|| Box::new(Self { ctx: ctx.clone(), key: key.clone(), except: except.clone() }))
    }
}

#[async_trait]
impl backup_core::Copies for Fallback {
    async fn open(&self) -> Vec<(String, Repository)> {
        let mut opened = Vec::new();
        for copy in sources(&self.ctx, &self.except) {
            match open::quietly(&self.ctx, &copy.to, self.key.clone()).await {
                Ok(repository) => opened.push((copy.name().to_owned(), repository)),
                Err(error) => {
                    let why = crate::exit::one_line(&error);
                    self.ctx.printer.warn(format_args!("the copy {} cannot be used: {why}", copy.name()));
                }
            }
        }
        opened
    }
}

#[cfg(test)]
mod tests;
