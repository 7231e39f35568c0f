//! Where a repository is.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use backup_core::{Error as CoreError, RepositoryHint};
use keepwell_storage::{
    ConnectOptions, LocalFs, LocalOptions, ObjectStore, Place, ProbeOptions, ProbeReport, Purpose,
    RateLimits, RetryPolicy, Retrying, Role, StorageErrorKind, Throttled, connect, probe,
};

use crate::config::Profile;
use crate::context::Context;
use crate::exit::Complaint;

/// Where a repository is, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(keepwell_storage::Location);

impl Location {
    /// Understands a path or a URL; a path becomes absolute.
    pub fn parse(text: &str) -> Result<Self> {
        let mut location: keepwell_storage::Location =
            text.parse().map_err(|error: keepwell_storage::InvalidLocation| {
                let complaint = Complaint::usage(error.to_string());
                error.hint.into_iter().fold(complaint, Complaint::hint)
            })?;
        if let Place::Directory(path) = &mut location.place {
            *path = std::path::absolute(&*path)
                .map_err(|e| Complaint::usage(format!("`{}` is no path: {e}", path.display())))?;
        }
        Ok(Self(location))
    }

    /// The repository that is used when nobody names one.
    pub fn default_of(ctx: &Context) -> Self {
        Self(keepwell_storage::Location::directory(ctx.environment.data_dir().join("repository")))
    }

    /// The one that options, environment or profile name.
    pub fn named(ctx: &Context) -> Result<Option<Self>> {
        let text = ctx.global.repository.as_ref();
        let text = text.or(ctx.environment.repository.as_ref()).or(ctx.profile.repository.as_ref());
        text.map(|text| Self::parse(text)).transpose()
    }

    /// The directory, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.place {
            Place::Directory(path) => Some(path),
            _ => None,
        }
    }

    /// Opens the store that must be there already.
    pub async fn open(&self, ctx: &Context) -> Result<Arc<dyn ObjectStore>> {
        let store =
            connect(&self.0, &self.options(ctx)?, Purpose::Open).await.map_err(|error| match error.kind {
                StorageErrorKind::NotFound => CoreError::NoRepository { place: format!("`{self}`") },
                _ => error.into(),
            })?;
        Ok(wrap(ctx, store))
    }

    /// Makes the store, or opens it if it is empty.
    pub async fn create(&self, ctx: &Context) -> Result<Arc<dyn ObjectStore>> {
        let store = connect(&self.0, &self.options(ctx)?, Purpose::Create).await.map_err(CoreError::from)?;
        Ok(wrap(ctx, store))
    }

    /// Whether a repository is there. What is there and cannot be looked at is an error, and no reason to make one.
    pub async fn is_repository(&self, ctx: &Context) -> Result<bool> {
        let store = match self.open(ctx).await {
            Ok(store) => store,
            Err(error) => return if is_missing(&error) { Ok(false) } else { Err(error) },
        };
        match RepositoryHint::read(&*store).await {
            Ok(_) => Ok(true),
            Err(CoreError::NoRepository { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs the live self-test of the store, which must be there.
    pub async fn probe(&self, ctx: &Context, role: Role) -> Result<ProbeReport> {
        let options = self.options(ctx)?;
        let report = match self.path() {
            Some(path) => {
                LocalFs::open(path, &options.local).await.map_err(CoreError::from)?.probe(role).await
            }
            None => {
                let store = connect(&self.0, &options, Purpose::Open).await.map_err(CoreError::from)?;
                let store: Arc<dyn ObjectStore> = Arc::new(Retrying::new(store, RetryPolicy::default()));
                let now = || SystemTime::UNIX_EPOCH + Duration::from_nanos(ctx.now().try_into().unwrap_or(0));
                probe(&store, &ProbeOptions { role, prefix: self.prefix(), now: &now }).await
            }
        };
        Ok(report.map_err(CoreError::from)?)
    }

    /// Bucket and prefix, if it is one of an S3 service.
    pub fn bucket(&self) -> Option<(&str, &str)> {
        match &self.0.place {
            Place::S3 { bucket, prefix } => Some((bucket, prefix)),
            _ => None,
        }
    }

    /// Whether the service is not the vendor's own.
    pub fn has_endpoint(&self, ctx: &Context) -> Result<bool> {
        Ok(self.0.settings.endpoint.is_some() || self.options(ctx)?.settings.endpoint.is_some())
    }

    /// What our keys begin with in a bucket.
    pub fn prefix(&self) -> &str {
        match &self.0.place {
            Place::S3 { prefix, .. } | Place::Gcs { prefix, .. } | Place::Azblob { prefix, .. } => prefix,
            _ => "",
        }
    }

    /// What the profile that knows this place says about it.
    fn options(&self, ctx: &Context) -> Result<ConnectOptions> {
        let local = LocalOptions { require_mount: self.require_mount(ctx), ..LocalOptions::default() };
        let Some(profile) = self.profile(ctx) else {
            return Ok(ConnectOptions { ambient: true, local, ..ConnectOptions::default() });
        };
        Ok(ConnectOptions {
            settings: profile.storage.clone(),
            credentials: profile.credentials.read().map_err(CoreError::from)?,
            ambient: profile.credentials.ambient.unwrap_or(true),
            local,
        })
    }

    /// The mount point that this place asks for, as a copy of the profile or as the repository of one.
    fn require_mount(&self, ctx: &Context) -> Option<PathBuf> {
        let is_here = |to: &str| Self::parse(to).is_ok_and(|place| place.0.place == self.0.place);
        match ctx.profile.copies.iter().find(|copy| is_here(&copy.to)) {
            Some(copy) => copy.require_mount.clone(),
            None => self.profile(ctx)?.require_mount.clone(),
        }
    }

    /// The profile whose settings and credentials are meant for this place: one that names it as its repository, the
    /// profile in force first, or else the profile in force if it names none. No credential goes to another place.
    fn profile<'a>(&self, ctx: &'a Context) -> Option<&'a Profile> {
        let is_here = |profile: &Profile| {
            let named = profile.repository.as_deref().and_then(|text| Self::parse(text).ok());
            named.is_some_and(|named| named.0.place == self.0.place)
        };
        let mut profiles = std::iter::once(&ctx.profile).chain(&ctx.other_profiles);
        profiles
            .find(|profile| is_here(profile))
            .or_else(|| Some(&ctx.profile).filter(|p| p.repository.is_none()))
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<CoreError>(), Some(CoreError::NoRepository { .. }))
}

fn wrap(ctx: &Context, store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    let rate = |option: Option<u64>, profile: Option<crate::config::Size>| {
        option.or(profile.map(|size| size.0)).and_then(NonZeroU64::new)
    };
    let limits = RateLimits {
        upload_bytes_per_second: rate(ctx.global.limit_upload, ctx.profile.limits.upload),
        download_bytes_per_second: rate(ctx.global.limit_download, ctx.profile.limits.download),
    };
    Arc::new(Retrying::new(Throttled::new(store, limits), RetryPolicy::default()))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_an_absolute_path() {
        for (text, path) in [
            ("/srv/x", "/srv/x"),
            ("file:/srv/x", "/srv/x"),
            ("file:///srv/x", "/srv/x"),
            ("/a/./b/", "/a/b"),
        ] {
            assert_eq!(Location::parse(text).unwrap().path(), Some(Path::new(path)), "{text}");
        }
        assert!(Location::parse("relative").unwrap().path().unwrap().is_absolute());
        assert_eq!(Location::parse("s3://bucket/x").unwrap().path(), None);
        for text in ["", "file:", "s4://bucket/x", "s3://bucket?secret-key=x"] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}
