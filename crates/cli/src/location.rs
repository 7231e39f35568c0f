//! Where a repository is.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use backup_core::Error as CoreError;
use keepwell_storage::{
    LocalFs, LocalOptions, ObjectStore, RateLimits, RetryPolicy, Retrying, StorageErrorKind, Throttled,
};

use crate::context::Context;
use crate::exit::Complaint;
use crate::stop::StoppableStore;

/// A directory that holds, or will hold, a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(PathBuf);

impl Location {
    /// Understands a path, also as `file:PATH`; it becomes absolute.
    pub fn parse(text: &str) -> Result<Self> {
        let path = text.strip_prefix("file:").unwrap_or(text);
        let path = path.strip_prefix("//").filter(|_| text.starts_with("file:")).unwrap_or(path);
        if path.is_empty() {
            return Err(Complaint::usage("the repository has no name").into());
        }
        if let Some((scheme, _)) = path.split_once("://") {
            let complaint = Complaint::usage(format!("repositories at `{scheme}://` are not supported"));
            return Err(complaint.hint("Name a directory; a mounted NFS or SMB share is one.").into());
        }
        let absolute = std::path::absolute(path);
        absolute.map(Self).map_err(|e| Complaint::usage(format!("`{path}` is no path: {e}")).into())
    }

    /// The repository that is used when nobody names one.
    pub fn default_of(ctx: &Context) -> Self {
        Self(ctx.environment.data_dir().join("repository"))
    }

    /// The one that options, environment or profile name.
    pub fn named(ctx: &Context) -> Result<Option<Self>> {
        let text = ctx.global.repository.as_ref();
        let text = text.or(ctx.environment.repository.as_ref()).or(ctx.profile.repository.as_ref());
        text.map(|text| Self::parse(text)).transpose()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens the store that must be there already.
    pub async fn open(&self, ctx: &Context) -> Result<Arc<dyn ObjectStore>> {
        let store = LocalFs::open(&self.0, &self.options(ctx)).await.map_err(|error| match error.kind {
            StorageErrorKind::NotFound => CoreError::NoRepository { place: format!("`{self}`") },
            _ => error.into(),
        })?;
        Ok(wrap(ctx, store))
    }

    /// Makes the store, or opens it if it is empty.
    pub async fn create(&self, ctx: &Context) -> Result<LocalFs> {
        Ok(LocalFs::create(&self.0, &self.options(ctx)).await.map_err(CoreError::from)?)
    }

    fn options(&self, ctx: &Context) -> LocalOptions {
        LocalOptions { require_mount: ctx.profile.require_mount.clone(), ..LocalOptions::default() }
    }
}

fn wrap(ctx: &Context, store: LocalFs) -> Arc<dyn ObjectStore> {
    let rate = |option: Option<u64>, profile: Option<crate::config::Size>| {
        option.or(profile.map(|size| size.0)).and_then(NonZeroU64::new)
    };
    let limits = RateLimits {
        upload_bytes_per_second: rate(ctx.global.limit_upload, ctx.profile.limits.upload),
        download_bytes_per_second: rate(ctx.global.limit_download, ctx.profile.limits.download),
    };
    let store = Retrying::new(Throttled::new(store, limits), RetryPolicy::default());
    Arc::new(StoppableStore::new(store, ctx.interrupt.clone()))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
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
            assert_eq!(Location::parse(text).unwrap().path(), Path::new(path), "{text}");
        }
        assert!(Location::parse("relative").unwrap().path().is_absolute());
        for text in ["", "file:", "s3://bucket/x"] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}
