//! Patterns of what to restore.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use backup_core::Select;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use keepwell_catalog::{EntryKind, MapKey};

use crate::exit::Complaint;

/// Accepts what fits an include (if there are any) and no exclude; what is below something that fits does too.
pub fn select(include: &[String], exclude: &[String]) -> Result<Option<Select>> {
    if include.is_empty() && exclude.is_empty() {
        return Ok(None);
    }
    let (all, include, exclude) = (include.is_empty(), patterns(include)?, patterns(exclude)?);
    Ok(Some(Arc::new(move |key, entry| {
        let Ok(path) = key.to_os_path_bytes() else { return all };
        let is_dir = entry.kind == EntryKind::Directory;
        (all || fits(&include, &path, is_dir)) && !fits(&exclude, &path, is_dir)
    })))
}

/// Matches with the rules of `.gitignore`, relative to `/`.
pub fn patterns(lines: &[String]) -> Result<Gitignore> {
    let mut builder = GitignoreBuilder::new("/");
    for line in lines {
        builder.add_line(None, line).map_err(|e| Complaint::usage(format!("`{line}` is no pattern: {e}")))?;
    }
    builder.build().map_err(|e| Complaint::usage(format!("the patterns are too much: {e}")).into())
}

/// Whether a path (as in a snapshot, without the leading slash) or one of its parents fits.
pub fn fits(patterns: &Gitignore, path: &[u8], is_dir: bool) -> bool {
    let path = Path::new(OsStr::from_bytes(path));
    let path = path.strip_prefix("/").unwrap_or(path);
    patterns.matched_path_or_any_parents(path, is_dir).is_ignore()
}

/// Whether a thing itself fits, whatever its parents.
pub fn fits_itself(patterns: &Gitignore, key: &MapKey, is_dir: bool) -> bool {
    let Ok(path) = key.to_os_path_bytes() else { return false };
    let path = Path::new(OsStr::from_bytes(&path));
    patterns.matched(path.strip_prefix("/").unwrap_or(path), is_dir).is_ignore()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names_places_and_what_is_below() {
        let lines = ["*.conf", "/srv/data", "logs/"].map(str::to_owned);
        let patterns = patterns(&lines).unwrap();
        for (path, is_dir, expected) in [
            ("etc/a.conf", false, true),
            ("etc/a.config", false, false),
            ("srv/data", true, true),
            ("srv/data/x/y", false, true),
            ("x/srv/data", false, false),
            ("var/logs", true, true),
            ("var/logs", false, false),
        ] {
            assert_eq!(fits(&patterns, path.as_bytes(), is_dir), expected, "{path}");
        }
    }
}
