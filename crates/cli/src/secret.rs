//! Secrets: read from files, commands, descriptors, systemd credentials or the terminal, never from the command line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::{RepositoryId, Secret};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::known::Known;
use crate::location::Location;

/// A key file or a passphrase is far smaller.
const SECRET_BYTES_MAX: u64 = 1 << 20;
const KEY_CREDENTIAL: &str = "keepwell-key";
const PASSPHRASE_CREDENTIAL: &str = "keepwell-passphrase";

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// The standard output of a shell command.
    Command(String),
    /// An inherited file descriptor.
    Descriptor(u32),
}

impl Origin {
    /// Reads all of it.
    pub fn read(&self) -> Result<Secret> {
        let text = match self {
            Self::File(path) => {
                let file = File::open(path).with_context(|| format!("open `{}`", path.display()))?;
                read_all(file).with_context(|| format!("read `{}`", path.display()))?
            }
            Self::Command(command) => run(command)?,
            Self::Descriptor(number) => {
                let file = File::open(format!("/proc/self/fd/{number}"));
                read_all(file.with_context(|| format!("open file descriptor {number}"))?)
                    .with_context(|| format!("read file descriptor {number}"))?
            }
        };
        Ok(text)
    }

    /// For messages.
    pub fn describe(&self) -> String {
        match self {
            Self::File(path) => format!("`{}`", path.display()),
            Self::Command(command) => format!("the output of `{command}`"),
            Self::Descriptor(number) => format!("file descriptor {number}"),
        }
    }
}

fn read_all(from: impl Read) -> Result<Secret> {
    let mut text = String::new();
    from.take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Secret::new(text))
}

fn run(command: &str) -> Result<Secret> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run `{command}`"))?;
    let output = child.stdout.take().map(read_all).transpose()?.unwrap_or_else(|| Secret::from(""));
    let status = child.wait().with_context(|| format!("wait for `{command}`"))?;
    if !status.success() {
        return Err(Complaint::new(Exit::WrongKey, format!("`{command}` failed ({status})")).into());
    }
    Ok(output)
}

/// The key that options, environment, systemd or the profile name, in this order.
pub fn named_key(ctx: &Context) -> Result<Option<Origin>> {
    let (options, environment, profile) = (&ctx.global, &ctx.environment, &ctx.profile);
    let file = |path: &Option<PathBuf>| path.clone().map(Origin::File);
    let command = |text: &Option<String>| text.clone().map(Origin::Command);
    let named = file(&options.key_file)
        .or_else(|| command(&options.key_command))
        .or_else(|| options.key_fd.map(Origin::Descriptor))
        .or_else(|| file(&environment.key_file))
        .or_else(|| command(&environment.key_command));
    if named.is_some() {
        return Ok(named);
    }
    let number = descriptor(environment.key_fd.as_deref(), "KEEPWELL_KEY_FD")?;
    Ok(number
        .or_else(|| credential(ctx, KEY_CREDENTIAL))
        .or_else(|| file(&profile.key_file))
        .or_else(|| command(&profile.key_command)))
}

/// The descriptor whose number a variable holds.
fn descriptor(text: Option<&str>, variable: &str) -> Result<Option<Origin>> {
    let parse = |text: &str| {
        let wrong = || Complaint::usage(format!("`{text}` in {variable} is no file descriptor"));
        text.parse().map(Origin::Descriptor).map_err(|_| wrong())
    };
    Ok(text.map(parse).transpose()?)
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

/// The passphrase that options, environment, systemd or the profile give, in this order.
fn named_passphrase(ctx: &Context) -> Result<Option<Origin>> {
    let (options, environment, profile) = (&ctx.global, &ctx.environment, &ctx.profile);
    let file = |path: &Option<PathBuf>| path.clone().map(Origin::File);
    let command = |text: &Option<String>| text.clone().map(Origin::Command);
    let named = file(&options.passphrase_file)
        .or_else(|| command(&options.passphrase_command))
        .or_else(|| options.passphrase_fd.map(Origin::Descriptor))
        .or_else(|| file(&environment.passphrase_file))
        .or_else(|| command(&environment.passphrase_command));
    if named.is_some() {
        return Ok(named);
    }
    let number = descriptor(environment.passphrase_fd.as_deref(), "KEEPWELL_PASSPHRASE_FD")?;
    Ok(number
        .or_else(|| credential(ctx, PASSPHRASE_CREDENTIAL))
        .or_else(|| file(&profile.passphrase_file))
        .or_else(|| command(&profile.passphrase_command)))
}

/// Whether a secret comes through a file descriptor: a process of our own would read it away from us, or find it empty.
pub fn reads_descriptor(ctx: &Context) -> bool {
    [named_key(ctx), named_passphrase(ctx)]
        .iter()
        .any(|named| matches!(named, Ok(Some(Origin::Descriptor(_)))))
}

fn credential(ctx: &Context, name: &str) -> Option<Origin> {
    let path = ctx.environment.credentials.as_ref()?.join(name);
    path.exists().then_some(Origin::File(path))
}

/// A passphrase, asked for if nothing names it.
fn passphrase(ctx: &Context, prompt: &str) -> Result<Secret> {
    match named_passphrase(ctx)? {
        Some(origin) => passphrase_from(&origin),
        None => ctx.printer.suspend(|| ask(prompt)),
    }
}

/// A passphrase from somewhere; a newline at its end does not belong to it.
fn passphrase_from(origin: &Origin) -> Result<Secret> {
    let text = origin.read().with_context(|| format!("read the passphrase from {}", origin.describe()))?;
    not_empty(Secret::from(text.expose().trim_end_matches(['\n', '\r'])))
}

/// Where the new passphrase of a key file or a kit comes from; by default it is asked for.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct NewPassphrase {
    /// Read the new passphrase from a file instead of asking for it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// Take the new passphrase from the output of a shell command
    #[arg(long, value_name = "COMMAND", conflicts_with = "new_passphrase_file")]
    new_passphrase_command: Option<String>,
}

impl NewPassphrase {
    /// Whether it is named.
    pub fn is_named(&self) -> bool {
        self.new_passphrase_file.is_some() || self.new_passphrase_command.is_some()
    }

    /// Reads it, or asks for it twice.
    pub fn read(&self, ctx: &Context) -> Result<Secret> {
        match (&self.new_passphrase_file, &self.new_passphrase_command) {
            (Some(file), _) => passphrase_from(&Origin::File(file.clone())),
            (None, Some(command)) => passphrase_from(&Origin::Command(command.clone())),
            (None, None) => ask_twice(ctx),
        }
    }

    /// Reads it again, for what is under it already, or asks for it once.
    fn read_again(&self, ctx: &Context, prompt: &str) -> Result<Secret> {
        if self.is_named() { self.read(ctx) } else { ctx.printer.suspend(|| ask(prompt)) }
    }
}

/// A new passphrase from where options, environment or profile say, or asked for twice.
fn new_passphrase(ctx: &Context) -> Result<Secret> {
    match named_passphrase(ctx)? {
        Some(origin) => passphrase_from(&origin),
        None => ask_twice(ctx),
    }
}

/// A new passphrase, asked for twice.
fn ask_twice(ctx: &Context) -> Result<Secret> {
    ctx.printer.suspend(|| {
        let first = not_empty(ask("New passphrase: ")?)?;
        if ask("Again: ")?.expose() != first.expose() {
            return Err(Complaint::usage("the two passphrases differ").into());
        }
        Ok(first)
    })
}

fn not_empty(passphrase: Secret) -> Result<Secret> {
    if passphrase.expose().is_empty() {
        Err(Complaint::usage("the passphrase is empty").into())
    } else {
        Ok(passphrase)
    }
}

/// How the terminal was before it stopped to show what is typed.
static ECHOING: Mutex<Option<Termios>> = Mutex::new(None);

fn ask(prompt: &str) -> Result<Secret> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(|_| {
        Complaint::new(Exit::WrongKey, "a passphrase is needed, and there is no terminal to ask on")
            .hint("Give it with `--passphrase-file`, `--passphrase-command` or KEEPWELL_PASSPHRASE_FD.")
    })?;
    let before = tcgetattr(&terminal).context("read the settings of the terminal")?;
    *ECHOING.lock().unwrap_or_else(PoisonError::into_inner) = Some(before.clone());
    let mut silent = before;
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &silent).context("silence the terminal")?;
    let answer = read_answer(&terminal, prompt);
    restore_terminal_of(&terminal);
    answer
}

fn read_answer(mut terminal: &File, prompt: &str) -> Result<Secret> {
    terminal.write_all(prompt.as_bytes()).context("write to the terminal")?;
    let mut line = String::new();
    BufReader::new(terminal.take(SECRET_BYTES_MAX)).read_line(&mut line).context("read from the terminal")?;
    let _ = terminal.write_all(b"\n");
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    Ok(Secret::new(line))
}

fn restore_terminal_of(terminal: impl AsFd) {
    if let Some(before) = ECHOING.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(terminal, OptionalActions::Flush, &before);
    }
}

/// Lets the terminal show again what is typed, for the moment before the process ends.
pub fn restore_terminal() {
    if let Ok(terminal) = File::options().read(true).write(true).open("/dev/tty") {
        restore_terminal_of(terminal);
    }
}

/// Writes a new file that only its owner can read, durably. Refuses to replace one.
pub fn write_private(path: &Path, text: &Secret) -> Result<()> {
    make_parent(path)?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let complaint = Complaint::failed(format!("`{}` exists already", path.display()));
            anyhow::Error::from(complaint.hint("Move it away, or name another file."))
        }
        _ => anyhow::Error::from(error).context(format!("create `{}`", path.display())),
    })?;
    let written = file.write_all(text.expose().as_bytes()).and_then(|()| file.sync_all());
    let written = written.and_then(|()| sync_parent(path));
    if written.is_err() {
        let _ = fs::remove_file(path); // half a secret is of no use, and not to lie about
    }
    written.with_context(|| format!("write `{}`", path.display()))
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

/// Makes the name of a file durable.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Replaces a private file, durably and at once. Of a symlink, what it leads to: that is where the old text is.
pub fn replace_private(path: &Path, text: &Secret) -> Result<()> {
    let resolved = path.canonicalize();
    let path = resolved.as_deref().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
    write_private(&partial, text)?;
    let renamed = fs::rename(&partial, path);
    if renamed.is_err() {
        let _ = fs::remove_file(&partial);
    }
    renamed.with_context(|| format!("rename to `{}`", path.display()))?;
    sync_parent(path).with_context(|| format!("write `{}`", path.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else { return Ok(()) };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.with_context(|| format!("create `{}`", parent.display()))
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
    fn a_secret_that_cannot_take_its_place_is_left_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = dir.path().join("key");
        fs::create_dir(&in_the_way).unwrap();
        replace_private(&in_the_way, &Secret::from("secret")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
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
