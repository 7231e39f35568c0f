//! Secrets: read from files, commands, descriptors, systemd credentials or the terminal, never from the command line. Here,
//! the keys.

mod origin;
mod passphrase;
mod private;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::{RepositoryId, Secret};

use self::origin::{Ways, read_all};
use self::passphrase::{named_passphrase, new_passphrase, passphrase};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::known::Known;
use crate::location::Location;

pub use self::origin::Origin;
pub use self::passphrase::{NewPassphrase, restore_terminal};
pub use self::private::{replace_private, write_private};

const CREDENTIAL: &str = "keepwell-key";

/// The key that options, environment, systemd or the profile name, in this order.
pub fn named_key(ctx: &Context) -> Result<Option<Origin>> {
    let (options, environment, profile) = (&ctx.global, &ctx.environment, &ctx.profile);
    let ways = Ways {
        options: (&options.key_file, &options.key_command, options.key_fd),
        environment: (&environment.key_file, &environment.key_command, environment.key_fd.as_deref()),
        variable: "KEEPWELL_KEY_FD",
        credential: CREDENTIAL,
        profile: (&profile.key_file, &profile.key_command),
    };
    ways.first(ctx)
}

/// The file that a new key is to be written to, if somebody named one.
pub fn named_key_file(ctx: &Context) -> Option<PathBuf> {
    let option = ctx.global.key_file.clone().or_else(|| ctx.environment.key_file.clone());
    option.or_else(|| ctx.profile.key_file.clone())
}

/// The place of the key file of a repository when nobody names one.
pub fn default_key_file(ctx: &Context, id: &str) -> PathBuf {
    ctx.environment.config_dir().join("keys").join(format!("{id}.key"))
}

/// The key to a repository, from wherever it can be had.
pub fn find_key(ctx: &Context, location: &Location, id: &str) -> Result<Origin> {
    if let Some(origin) = named_key(ctx)? {
        return Ok(origin);
    }
    let known = Known::load(ctx)?;
    known.refuse_another(location, id)?;
    let remembered = known.key_file(location, id).map(Path::to_path_buf);
    let candidates = remembered.into_iter().chain([default_key_file(ctx, id)]);
    let found = candidates.into_iter().find(|path| path.exists());
    found.map(Origin::File).ok_or_else(|| {
        Complaint::new(Exit::WrongKey, format!("there is no key at hand for the repository at `{location}`"))
            .hint("Name it: `--key-file FILE`, `--key-command`, `--key-fd`, or KEEPWELL_KEY_FILE.")
            .hint("A recovery kit is a key file too: type it into a file.")
            .into()
    })
}

/// The keys that were read, by where they come from: a pipe can be read, and a passphrase be asked for, only once, however
/// many places are tried with a key.
#[derive(Debug, Clone, Default)]
pub struct Keys(Arc<Mutex<Vec<(Origin, KeyFile)>>>);

impl Keys {
    fn get(&self, origin: &Origin) -> Option<KeyFile> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(from, _)| from == origin).map(|(_, key)| key.clone())
    }

    fn put(&self, origin: &Origin, key: &KeyFile) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((origin.clone(), key.clone()));
    }
}

/// Reads and, if need be, unlocks a key file; the second time it is remembered.
pub fn load_key(ctx: &Context, origin: &Origin) -> Result<KeyFile> {
    if let Some(key) = ctx.keys.get(origin) {
        return Ok(key);
    }
    let key = read_key(ctx, origin)?;
    ctx.keys.put(origin, &key);
    Ok(key)
}

fn read_key(ctx: &Context, origin: &Origin) -> Result<KeyFile> {
    if let Origin::File(path) = origin {
        warn_if_public(ctx, path);
    }
    let shown = origin.describe();
    let text = origin.read().map_err(|error| {
        let message = format!("the key cannot be read: {}", crate::exit::one_line(&error));
        Complaint::new(Exit::WrongKey, message)
    })?;
    unlock(&text, &shown, |prompt| passphrase(ctx, prompt))
}

/// Reads a key file that nobody but this user can have written or read: one that this user saved, under `new` if under any.
pub fn load_own_key(ctx: &Context, path: &Path, new: &NewPassphrase) -> Result<KeyFile> {
    let shown = format!("`{}`", path.display());
    let file = File::open(path).with_context(|| format!("open {shown}"))?;
    let metadata = file.metadata().with_context(|| format!("look at {shown}"))?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !is_ours || !metadata.is_file() || metadata.mode() & 0o077 != 0 {
        return Err(Complaint::failed(format!("{shown} is not a file of this user alone")).into());
    }
    let text = read_all(file).with_context(|| format!("read {shown}"))?;
    unlock(&text, &shown, |prompt| new.read_again(ctx, prompt))
}

/// The key in a text, whose passphrase is asked for if it has one.
fn unlock(text: &Secret, shown: &str, ask_for: impl FnOnce(&str) -> Result<Secret>) -> Result<KeyFile> {
    let unusable = || format!("the key in {shown} cannot be used");
    if KeyFile::is_protected(text.expose()) {
        let passphrase = ask_for(&format!("Passphrase of {shown}: "))?;
        return KeyFile::unprotect(text.expose(), &passphrase).with_context(unusable);
    }
    KeyFile::parse(text.expose()).with_context(unusable)
}

/// Says so where what was printed went into a file that others can read, as a shell makes them.
pub fn warn_if_output_is_public(ctx: &Context) {
    if let Ok(path) = fs::read_link("/proc/self/fd/1") {
        warn_if_public(ctx, &path);
    }
}

fn warn_if_public(ctx: &Context, path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.mode() & 0o077 != 0
        && metadata.is_file()
    {
        let (mode, shown) = (metadata.mode() & 0o777, path.display());
        ctx.printer
            .warn(format_args!("`{shown}` can be read by others (mode {mode:04o}); `chmod 600 {shown}`"));
    }
}

/// Whether a secret comes through a file descriptor: a process of our own would read it away from us, or find it empty.
pub fn reads_descriptor(ctx: &Context) -> bool {
    [named_key(ctx), named_passphrase(ctx)]
        .iter()
        .any(|named| matches!(named, Ok(Some(Origin::Descriptor(_)))))
}

/// Refuses a place for keys that is inside the repository which they open: whoever has the one would have the other.
pub fn refuse_inside(location: &Location, file: &Path, option: &str) -> Result<()> {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    let directory = file.parent().unwrap_or(&file);
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if !location.path().is_some_and(|repository| real(directory).starts_with(real(repository))) {
        return Ok(());
    }
    let complaint = Complaint::usage("the key file would lie inside the repository that it opens");
    Err(complaint.hint(format!("Name one elsewhere: `{option}`.")).into())
}

/// Saves a key file where it belongs, protected if that is asked for.
pub fn save_key(ctx: &Context, path: &Path, key: &KeyFile, protection: Protection) -> Result<()> {
    let text = match protection {
        Protection::Plain => key.to_toml(),
        Protection::Passphrase => {
            Secret::new(key.protect(&new_passphrase(ctx)?).context("protect the key file")?)
        }
    };
    write_private(path, &text)
}

/// Whether a key file is written under a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// As it is, mode 0600.
    Plain,
    /// Under a passphrase.
    Passphrase,
}

/// The file name of a new member's key.
pub fn member_key_file(ctx: &Context, id: RepositoryId, name: &str) -> PathBuf {
    let safe: String =
        name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    default_key_file(ctx, &format!("{id}-{safe}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn a_descriptor_that_makes_no_sense_matters_only_where_it_is_used() {
        let mut ctx = Context::of_profiles("");
        ctx.environment.key_fd = Some("three".to_owned());
        ctx.environment.passphrase_fd = Some("three".to_owned());
        assert_eq!(exit_of(&named_key(&ctx).unwrap_err()), Exit::Usage);
        assert_eq!(exit_of(&named_passphrase(&ctx).unwrap_err()), Exit::Usage);
        assert!(!reads_descriptor(&ctx));
        let path = PathBuf::from("file");
        (ctx.global.key_file, ctx.environment.passphrase_file) = (Some(path.clone()), Some(path.clone()));
        assert_eq!(named_key(&ctx).unwrap(), Some(Origin::File(path.clone())));
        assert_eq!(named_passphrase(&ctx).unwrap(), Some(Origin::File(path)));
    }

    #[test]
    fn no_key_lies_in_the_repository_that_it_opens() {
        let refused = |place: &str, file: &str| {
            refuse_inside(&Location::parse(place).unwrap(), Path::new(file), "--output FILE").is_err()
        };
        assert!(refused("/srv/backup", "/srv/backup/kit.txt") && refused("/srv/backup", "/srv/backup/a/kit"));
        assert!(!refused("/srv/backup", "/srv/backup.kit") && !refused("/srv/backup", "/srv/kit.txt"));
        let here = std::path::absolute("repository").unwrap();
        assert!(refused(here.to_str().unwrap(), "repository/kit.txt"));
        assert!(!refused("s3://bucket/prefix", "kit.txt"));
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join("repository/../kit.txt");
        fs::create_dir(dir.path().join("repository")).unwrap();
        assert!(!refused(dir.path().join("repository").to_str().unwrap(), beside.to_str().unwrap()));
    }

    #[test]
    fn a_secret_that_can_be_read_once_is_seen_wherever_it_is_named() {
        let mut ctx = Context::of_profiles("");
        assert!(!reads_descriptor(&ctx));
        ctx.environment.passphrase_fd = Some("3".to_owned());
        assert!(reads_descriptor(&ctx));
        ctx.global.passphrase_command = Some("pass".to_owned());
        assert!(!reads_descriptor(&ctx), "the option counts");
        ctx.global.key_fd = Some(4);
        assert!(reads_descriptor(&ctx));
    }
}
