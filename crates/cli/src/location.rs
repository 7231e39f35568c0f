//! Where a repository is.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use backup_core::env::{Rng, SystemRng};
use backup_core::{Error as CoreError, RepositoryHint};
use keepwell_storage::{
    ConnectOptions, LocalFs, LocalOptions, ObjectStore, Place, ProbeOptions, ProbeReport, Purpose,
    RateLimits, RetryPolicy, Retrying, Role, Settings, Size, StorageErrorKind, Throttled, connect,
    is_archive_class, probe,
};

use crate::config::{CopyConfig, Profile};
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
                let store: Arc<dyn ObjectStore> = Arc::new(retrying(store));
                let now = || SystemTime::UNIX_EPOCH + Duration::from_nanos(ctx.now().try_into().unwrap_or(0));
                probe(&store, &ProbeOptions { role, prefix: self.prefix(), now: &now }).await
            }
        };
        Ok(report.map_err(CoreError::from)?)
    }

    /// The kind of store, and the place in it.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Bucket and prefix, if it is one of a service that knows policies.
    pub fn bucket(&self) -> Option<(&str, &str)> {
        match &self.0.place {
            Place::S3 { bucket, prefix } | Place::Gcs { bucket, prefix } => Some((bucket, prefix)),
            Place::Azblob { container, prefix } => Some((container, prefix)),
            _ => None,
        }
    }

    /// What the location, or the profile that knows it, says about the store.
    pub fn settings(&self, ctx: &Context) -> Settings {
        let settings = self.0.settings.clone();
        match self.profile(ctx) {
            Some(profile) => settings.or(&profile.storage),
            None => settings,
        }
    }

    /// What stands before our keys in the names that the store itself has for objects; empty, or ending in `/`.
    pub fn above_keys(&self) -> String {
        let above = match &self.0.place {
            Place::Directory(path) => path.to_string_lossy().into_owned(),
            Place::Sftp { path, .. } => path.clone(),
            Place::Webdav { url } => {
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                rest.find('/').map_or("/", |slash| &rest[slash..]).to_owned()
            }
            Place::Opendal { options, .. } => options.get("root").cloned().unwrap_or_default(),
            Place::S3 { prefix, .. } | Place::Gcs { prefix, .. } | Place::Azblob { prefix, .. } => {
                prefix.clone()
            }
        };
        if above.is_empty() || above.ends_with('/') { above } else { format!("{above}/") }
    }

    /// Whether new data packs go to a class of S3 from which they must be thawed.
    pub fn archives(&self, ctx: &Context) -> Result<bool> {
        if self.bucket().is_none() {
            return Ok(false);
        }
        let settings = self.0.settings.clone().or(&self.options(ctx)?.settings);
        let class = settings.cold_class.or(settings.storage_class);
        Ok(class.is_some_and(|class| is_archive_class(&class)))
    }

    /// What our keys begin with in a bucket.
    pub fn prefix(&self) -> &str {
        self.bucket().map_or("", |(_, prefix)| prefix)
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
        let copies = self.copies(ctx);
        if copies.is_empty() {
            return self.profile(ctx)?.require_mount.clone();
        }
        copies.into_iter().find_map(|copy| copy.require_mount.clone())
    }

    /// What the profile in force says of this place as one of its copies; a place may be named several times, with
    /// different datasets.
    pub fn copies<'a>(&self, ctx: &'a Context) -> Vec<&'a CopyConfig> {
        let is_here = |copy: &&CopyConfig| Self::parse(&copy.to).is_ok_and(|place| place.is_same(self));
        ctx.profile.copies.iter().filter(is_here).collect()
    }

    /// Whether the profile in force keeps its repository, or a copy of it, here.
    pub fn is_of_profile(&self, ctx: &Context) -> bool {
        let own = ctx.profile.repository.as_deref();
        let own = own.map_or_else(|| Ok(Self::default_of(ctx)), Self::parse);
        own.is_ok_and(|own| own.is_same(self)) || !self.copies(ctx).is_empty()
    }

    /// Whether both lead to the same place, also by a symlink.
    pub fn is_same(&self, other: &Self) -> bool {
        let real = |location: &Self| location.path().and_then(|path| path.canonicalize().ok());
        self.0.place == other.0.place || real(self).is_some_and(|path| real(other) == Some(path))
    }

    /// The profile whose settings and credentials are meant for this place: one that names it as its repository, the
    /// profile in force first, or else the profile in force if it names none. No credential goes to another place.
    pub fn profile<'a>(&self, ctx: &'a Context) -> Option<&'a Profile> {
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

/// Tries again after pauses of random length, so that many hosts do not come back at the same moment.
fn retrying<S: ObjectStore>(store: S) -> Retrying<S> {
    Retrying::new(store, RetryPolicy::default()).with_jitter(|| {
        let mut bytes = [0; 8];
        SystemRng.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    })
}

fn wrap(ctx: &Context, store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    let rate = |option: Option<u64>, profile: Option<Size>| {
        option.or(profile.map(|size| size.0)).and_then(NonZeroU64::new)
    };
    let limits = RateLimits {
        upload_bytes_per_second: rate(ctx.global.limit_upload, ctx.profile.limits.upload),
        download_bytes_per_second: rate(ctx.global.limit_download, ctx.profile.limits.download),
    };
    Arc::new(retrying(Throttled::new(store, limits)))
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
    fn what_one_copy_at_a_place_wants_mounted_all_of_them_want() {
        let ctx = Context::of_profiles(
            "[profile.default]\nrequire-mount = \"/srv\"\n[[profile.default.copy]]\nto = \"/mnt/disk/x\"\n\
             datasets = [\"a\"]\n[[profile.default.copy]]\nto = \"/mnt/disk/x\"\nrequire-mount = \"/mnt/disk\"\n\
             [[profile.default.copy]]\nto = \"/mnt/other\"\n",
        );
        let wanted = |place: &str| Location::parse(place).unwrap().require_mount(&ctx);
        assert_eq!(wanted("/mnt/disk/x"), Some("/mnt/disk".into()));
        assert_eq!(wanted("/mnt/other"), None);
        assert_eq!(wanted("/srv/own"), Some("/srv".into()));
    }

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
        for (text, above) in [
            ("/srv/x", "/srv/x/"),
            ("s3://bucket", ""),
            ("s3://bucket/x", "x/"),
            ("sftp://host/srv/x", "/srv/x/"),
            ("sftp://host/~/x", "x/"),
            ("webdavs://host/dav/x", "/dav/x/"),
            ("webdavs://host", "/"),
            ("opendal:memory", ""),
            ("opendal:webdav?root=x", "x/"),
        ] {
            assert_eq!(Location::parse(text).unwrap().above_keys(), above, "{text}");
        }
        for text in ["", "file:", "s4://bucket/x", "s3://bucket?secret-key=x"] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}
