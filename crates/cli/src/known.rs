//! Which key file belongs to which repository, so that later commands need not be told:
//! `$XDG_CONFIG_HOME/keepwell/repositories.toml`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use keepwell_crypto::{RepositoryId, Secret};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
use crate::secret;

const FILE: &str = "repositories.toml";
const HEADER: &str =
    "# Which key file belongs to which repository. Written by `keepwell`; safe to edit or delete.\n\n";

/// What is remembered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Known {
    #[serde(default)]
    repository: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    location: String,
    id: String,
    key_file: PathBuf,
}

impl Known {
    /// Reads what is remembered; nothing where there is no such file.
    pub fn load(ctx: &Context) -> Result<Self> {
        let path = path(ctx);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("read `{}`", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
        }
    }

    /// The key file of a repository: by its location, else by its id, wherever that repository now is.
    pub fn key_file(&self, location: &Location, id: &str) -> Option<&Path> {
        let here = location.to_string();
        let by_place = self.repository.iter().find(|e| e.location == here && e.id == id);
        let found = by_place.or_else(|| self.repository.iter().find(|e| e.id == id));
        found.map(|e| e.key_file.as_path())
    }

    /// The key files of all of them.
    pub fn key_files(&self) -> impl Iterator<Item = &Path> {
        self.repository.iter().map(|entry| entry.key_file.as_path())
    }

    /// Refuses a repository at a place where this host knows others and not this one. Whoever holds the store can have put it
    /// there: one to which this host has a key as well, and whose readers would read what is backed up.
    pub fn refuse_another(&self, location: &Location, id: &str) -> Result<()> {
        // As people write it: with a slash at its end, or by a symlink.
        let (text, real) = (location.to_string(), location.path().and_then(|path| path.canonicalize().ok()));
        let is_here = |entry: &&Entry| {
            let known = Location::parse(&entry.location).ok();
            let path = known.as_ref().and_then(Location::path);
            entry.location == text || (path.is_some() && (path == location.path() || path == real.as_deref()))
        };
        let mut here = self.repository.iter().filter(is_here).peekable();
        if here.peek().is_none() || here.any(|e| e.id == id) {
            return Ok(());
        }
        let message = format!("at `{location}` is repository {id}, and this host knows another one there");
        Err(Complaint::new(Exit::WrongKey, message)
            .hint("If that is as it should be, name its key: `--key-file FILE`.")
            .into())
    }
}

/// Remembers the key file of a repository. Others that were made at its place stay known there: disks may take turns.
pub fn remember(ctx: &Context, location: &Location, id: RepositoryId, key_file: &Path) -> Result<()> {
    let mut known = Known::load(ctx)?;
    let (here, id) = (location.to_string(), id.to_string());
    known.repository.retain(|e| e.location != here || e.id != id);
    known.repository.push(Entry { location: here, id, key_file: key_file.to_path_buf() });
    let text = toml::to_string(&known).context("encode the list of repositories")?;
    secret::replace_private(&path(ctx), &Secret::new(format!("{HEADER}{text}")))
}

fn path(ctx: &Context) -> PathBuf {
    ctx.environment.config_dir().join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_place_of_a_known_repository_is_refused() {
        let place = |text: &str| Location::parse(text).unwrap();
        let entry = |text: &str, id: &str| Entry {
            location: place(text).to_string(),
            id: id.to_owned(),
            key_file: PathBuf::from("key"),
        };
        let known = Known { repository: vec![entry("/a", "one"), entry("/b", "two"), entry("/b", "three")] };
        for (location, id, is_known) in [
            ("/a", "one", true),
            ("/a", "two", false),
            ("/b", "one", false),
            ("/b", "two", true),
            ("/b", "three", true),
            ("/new", "one", true),
            ("/a/", "two", false),
            ("/a/", "one", true),
            ("s3://bucket", "one", true),
        ] {
            let refused = known.refuse_another(&place(location), id).is_err();
            assert_eq!(refused, !is_known, "{id} at {location}");
        }
        let dir = tempfile::tempdir().unwrap();
        let (made, link) = (dir.path().canonicalize().unwrap(), dir.path().join("link"));
        std::os::unix::fs::symlink(&made, &link).unwrap();
        let known = Known { repository: vec![entry(made.to_str().unwrap(), "one")] };
        known.refuse_another(&place(link.to_str().unwrap()), "one").unwrap();
        known.refuse_another(&place(link.to_str().unwrap()), "two").unwrap_err();
    }
}
