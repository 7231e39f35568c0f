//! Opening the repository that a command works on.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use backup_core::{Builder, Cache, Limits, Repository, RepositoryHint, Snapshot};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_storage::ObjectStore;

use crate::context::Context;
use crate::copies::{self, Fallback};
use crate::exit::{Complaint, Exit};
use crate::known::Known;
use crate::location::Location;
use crate::progress::Progress;
use crate::secret::{self, Origin};

/// Least memory the engine works with.
const MEMORY_BYTES_MIN: u64 = 64 << 20;

/// An open repository and what shows its progress.
#[derive(Debug)]
pub struct Opened {
    /// The repository.
    pub repository: Repository,
    /// Where it reports to; end it before the final report is printed.
    pub progress: Arc<Progress>,
    /// Where it is.
    pub location: Location,
}

/// A place, its store, and the key to it; nothing is proved yet.
#[derive(Debug)]
pub struct Credential {
    /// Where the repository is.
    pub location: Location,
    /// Its store.
    pub store: Arc<dyn ObjectStore>,
    /// The key.
    pub key: KeyFile,
    /// The file that the key came from, if it was one.
    pub key_file: Option<PathBuf>,
}

/// Opens the repository that options, environment, profile or key file name, or else the default one.
pub async fn repository(ctx: &Context) -> Result<Opened> {
    credential(ctx).await?.open(ctx).await
}

/// The same for reading: what is lost or damaged there is taken from the copies that the profile names; and if it cannot
/// be opened at all, the first of them that can be takes its place. Copies of another repository than the one that was
/// asked for are never used.
pub async fn for_reading(ctx: &Context) -> Result<Opened> {
    Ok(fall_over(ctx, false).await?.0)
}

/// The same, with the snapshots: a place that cannot list them is given up as one that cannot be opened.
pub async fn with_snapshots(ctx: &Context) -> Result<(Opened, Vec<Snapshot>)> {
    fall_over(ctx, true).await
}

async fn fall_over(ctx: &Context, listed: bool) -> Result<(Opened, Vec<Snapshot>)> {
    let first = match credential(ctx).await {
        Ok(credential) => open_listed(ctx, credential, listed).await,
        Err(error) => Err(error),
    };
    let Err(error) = first else { return first };
    if !is_about_the_place(&error) {
        return Err(error);
    }
    for copy in copies::at_hand(ctx) {
        let opened = async {
            let place = Location::parse(&copy.to)?;
            open_listed(ctx, credential_at(ctx, place, copy.key_file.as_ref()).await?, listed).await
        };
        match opened.await {
            Ok((opened, snapshots)) => {
                ctx.printer.warn(format_args!(
                    "the repository cannot be used ({}); going on with the copy {}",
                    crate::exit::one_line(&error),
                    copy.name()
                ));
                let fields =
                    serde_json::json!({ "copy": copy.name(), "location": opened.location.to_string() });
                ctx.printer.json("copy_used", fields);
                return Ok((opened, snapshots));
            }
            Err(why) => {
                let why = crate::exit::one_line(&why);
                ctx.printer.warn(format_args!("the copy {} cannot be used: {why}", copy.name()));
            }
        }
    }
    Err(error)
}

async fn open_listed(ctx: &Context, credential: Credential, listed: bool) -> Result<(Opened, Vec<Snapshot>)> {
    let opened = credential.open_with_copies(ctx).await?;
    if !listed {
        return Ok((opened, Vec::new()));
    }
    match opened.repository.snapshots().await {
        Ok(snapshots) => Ok((opened, snapshots)),
        Err(error) => {
            opened.progress.end();
            Err(error.into())
        }
    }
}

/// Whether another place of the same repository may do where this one did not.
pub fn is_about_the_place(error: &anyhow::Error) -> bool {
    use backup_core::Error as E;
    error.chain().filter_map(|cause| cause.downcast_ref::<E>()).any(|error| {
        matches!(error, E::NoRepository { .. } | E::Storage(_) | E::Damaged { .. } | E::Trust(_))
    })
}

/// Finds that repository and its key.
pub async fn credential(ctx: &Context) -> Result<Credential> {
    let (location, key) = place(ctx)?;
    match key {
        Some((key, path)) => {
            let store = location.open(ctx).await?;
            RepositoryHint::read(&*store).await?;
            Ok(Credential { location, store, key, key_file: Some(path) })
        }
        None => credential_at(ctx, location, None).await,
    }
}

/// The place of that repository.
pub fn location(ctx: &Context) -> Result<Location> {
    Ok(place(ctx)?.0)
}

/// The place, and the key if that had to be read to learn the place: a passphrase can be given only once.
fn place(ctx: &Context) -> Result<(Location, Option<(KeyFile, PathBuf)>)> {
    if let Some(location) = Location::named(ctx)? {
        return Ok((location, None));
    }
    // A key alone suffices, as with a recovery kit: it remembers where it belongs.
    let Some(Origin::File(path)) = secret::named_key(ctx)? else {
        return Ok((Location::default_of(ctx), None));
    };
    let key = secret::load_key(ctx, &Origin::File(path.clone()))?;
    let location = match &key.store_hint {
        Some(hint) => Location::parse(hint)?,
        None => Location::default_of(ctx),
    };
    Ok((location, Some((key, path))))
}

/// Finds the key to the repository at a place: the file named, or what can be found.
pub async fn credential_at(
    ctx: &Context,
    location: Location,
    key_file: Option<&PathBuf>,
) -> Result<Credential> {
    let store = location.open(ctx).await?;
    let hint = RepositoryHint::read(&*store).await?;
    let origin = match key_file {
        Some(file) => Origin::File(file.clone()),
        None => secret::find_key(ctx, &location, &hint.repository)?,
    };
    let key = secret::load_key(ctx, &origin)?;
    let key_file = match origin {
        Origin::File(path) => Some(path),
        _ => None,
    };
    Ok(Credential { location, store, key, key_file })
}

impl Credential {
    /// Opens the repository with the key.
    pub async fn open(self, ctx: &Context) -> Result<Opened> {
        self.open_using(ctx, None).await
    }

    /// The same, with the copies that the profile names at hand.
    pub async fn open_with_copies(self, ctx: &Context) -> Result<Opened> {
        let fallback = Fallback::new(ctx, &self.key, &self.location);
        self.open_using(ctx, fallback).await
    }

    async fn open_using(self, ctx: &Context, fallback: Option<Box<Fallback>>) -> Result<Opened> {
        let progress = Progress::start(ctx);
        let monitor: Arc<dyn backup_core::monitor::Monitor> = Arc::<Progress>::clone(&progress);
        let mut builder = builder(ctx, self.store)?.monitor(monitor);
        if let Some(fallback) = fallback {
            builder = builder.copies(fallback);
        }
        let repository = builder.open(self.key).await?;
        tracing::debug!(id = %repository.id(), store = %repository.store_id(), "opened");
        Ok(Opened { repository, progress, location: self.location })
    }
}

fn builder(ctx: &Context, store: Arc<dyn ObjectStore>) -> Result<Builder> {
    Ok(Repository::builder(store).cache(cache(ctx)).limits(limits(ctx)?).cancel(ctx.interrupt.cancel()))
}

/// Opens the store of the same repository at a place, without showing anything.
pub async fn quietly(ctx: &Context, place: &str, key: KeyFile) -> Result<Repository> {
    let store = Location::parse(place)?.open(ctx).await?;
    Ok(builder(ctx, store)?.open(key).await?)
}

fn cache(ctx: &Context) -> Cache {
    if ctx.global.no_cache { Cache::memory() } else { Cache::directory(ctx.cache_dir()) }
}

fn limits(ctx: &Context) -> Result<Limits> {
    let mut limits = Limits::default();
    if let Some(threads) = ctx.global.threads.or(ctx.profile.limits.threads) {
        limits.threads = usize::from(threads.max(1));
    }
    if let Some(bytes) = ctx.global.memory.or(ctx.profile.limits.memory.map(|size| size.0)) {
        if bytes < MEMORY_BYTES_MIN {
            return Err(Complaint::usage("the memory must be at least 64MiB").into());
        }
        limits.memory_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
    Ok(limits)
}

/// Opens a further place: with the key at hand if its repository is the same, and else with the key file that is named for
/// it or known to belong there.
pub async fn further(
    ctx: &Context,
    location: Location,
    key: &KeyFile,
    other_key_file: Option<&PathBuf>,
) -> Result<Opened> {
    let store = location.open(ctx).await?;
    let hint = RepositoryHint::read(&*store).await?;
    let key = match hint.repository == key.repository.to_string() {
        true => key.clone(),
        false => other_key(ctx, other_key_file, &location, &hint.repository)?,
    };
    Credential { location, store, key, key_file: None }.open(ctx).await
}

fn other_key(ctx: &Context, named: Option<&PathBuf>, place: &Location, id: &str) -> Result<KeyFile> {
    let file = match named {
        Some(file) => file.clone(),
        None => {
            let known = Known::load(ctx)?;
            known.refuse_another(place, id)?;
            let remembered = known.key_file(place, id).map(PathBuf::from);
            remembered.unwrap_or_else(|| secret::default_key_file(ctx, id))
        }
    };
    if !file.exists() {
        let message = format!("there is no key at hand for the repository at `{place}`");
        return Err(Complaint::new(Exit::WrongKey, message)
            .hint("Name it: `key-file` of the copy in the profile, or, to copy there, `--to-key-file FILE`.")
            .into());
    }
    secret::load_key(ctx, &Origin::File(file))
}

/// Opens another store of the same repository with the same key.
pub async fn copy(ctx: &Context, place: &str, key: KeyFile) -> Result<Opened> {
    let location = Location::parse(place)?;
    let store = location.open(ctx).await?;
    let opened = Credential { location, store, key, key_file: None }.open(ctx).await?;
    opened.progress.end();
    Ok(opened)
}

#[cfg(test)]
mod tests;
