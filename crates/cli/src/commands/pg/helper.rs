//! How a recovering server gets its WAL: through a socket of ours while we run, or by a command of its own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use backup_core::wal::WalReader;
use keepwell_source_postgres::archive::Asker;
use keepwell_source_postgres::recovery::RecoveryPlan;
use keepwell_source_postgres::serve::WalServer;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::discard::Discarded;
use crate::context::Context;
use crate::exit::Complaint;
use crate::open::Opened;
use crate::secret::{self, Origin};

/// Serves WAL on a socket of its own until it is dropped.
#[derive(Debug)]
pub struct Helper {
    directory: PathBuf,
    /// The directory, if it is its own.
    own: Option<Discarded>,
    /// Dropped, it ends the server.
    _stop: watch::Sender<bool>,
}

impl Helper {
    /// Begins to serve; only `owner` (and root) can ask.
    pub fn start(
        ctx: &Context,
        reader: WalReader,
        plan: &RecoveryPlan,
        owner: Option<(u32, u32)>,
    ) -> Result<Self> {
        let directory = Discarded::for_socket(ctx, owner)?;
        let server = WalServer::new(reader, plan.asker());
        let mut started = Self::start_in(directory.path().to_path_buf(), server, owner)?;
        started.own = Some(directory);
        Ok(started)
    }

    /// The same in a directory that is there already, and is removed in the end. Its name must be short.
    pub fn start_in(directory: PathBuf, server: Arc<WalServer>, owner: Option<(u32, u32)>) -> Result<Self> {
        let socket = directory.join("wal");
        let listener = UnixListener::bind(&socket).context("listen on a socket")?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
            .context("close the socket to others")?;
        if let Some((user, group)) = owner {
            chown(&socket, Some(user), Some(group)).context("hand over the socket")?;
        }
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(server.run(listener, None, stopped));
        Ok(Self { directory, own: None, _stop: stop })
    }

    /// The `restore_command` that asks it.
    pub fn restore_command(&self, plan: &RecoveryPlan) -> Result<String> {
        let mut words = vec![program()?, "--quiet".to_owned(), "wal".to_owned(), "get".to_owned()];
        words.extend(["--socket".to_owned(), self.directory.join("wal").display().to_string()]);
        words.extend(own_until(plan));
        Ok(command_line(words))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.own.is_none() {
            // Whoever made what it lies in removes that.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// The `restore_command` for a server that recovers without us.
pub fn lasting_command(ctx: &Context, opened: &Opened, plan: &RecoveryPlan, asker: Asker) -> Result<String> {
    let mut words = vec![program()?, "--quiet".to_owned()];
    let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
    add("--repository", opened.location.to_string());
    let id = opened.repository.id().to_string();
    match secret::find_key(ctx, &opened.location, &id)? {
        Origin::File(path) => add("--key-file", absolute(&path)),
        Origin::Command(command) => add("--key-command", command),
        Origin::Descriptor(_) => {
            return Err(Complaint::usage("a restore_command cannot read the key from our file descriptor")
                .hint("Name a key file that the server can read: `--key-file FILE`.")
                .into());
        }
    }
    let (options, environment) = (&ctx.global, &ctx.environment);
    if let Some(file) = options.config.as_ref().or(environment.config.as_ref()) {
        add("--config", absolute(file));
    }
    if let Some(profile) = options.profile.as_ref().or(environment.profile.as_ref()) {
        add("--profile", profile.clone());
    }
    if let Some(file) = options.passphrase_file.as_ref().or(environment.passphrase_file.as_ref()) {
        add("--passphrase-file", absolute(file));
    } else if let Some(command) =
        options.passphrase_command.as_ref().or(environment.passphrase_command.as_ref())
    {
        add("--passphrase-command", command.clone());
    }
    words.extend(["wal", "get", "--prefetch", "--system"].map(str::to_owned));
    words.push(plan.backup.cluster.system_identifier.to_string());
    words.extend(own_until(plan));
    if asker.to_gap {
        words.push("--to-gap".to_owned());
    }
    if let Some(timeline) = asker.follows {
        words.extend(["--follows".to_owned(), timeline.to_string()]);
    }
    Ok(command_line(words))
}

/// Files that such a command reads with the rights of the server's user.
pub fn read_by_it(ctx: &Context, opened: &Opened) -> Result<Vec<PathBuf>> {
    let (options, environment) = (&ctx.global, &ctx.environment);
    let key = match secret::find_key(ctx, &opened.location, &opened.repository.id().to_string())? {
        Origin::File(path) => Some(path),
        Origin::Command(_) | Origin::Descriptor(_) => None,
    };
    let hint = opened.location.path().map(|path| path.join("keepwell.json"));
    let config = options.config.clone().or_else(|| environment.config.clone());
    let passphrase = options.passphrase_file.clone().or_else(|| environment.passphrase_file.clone());
    let files = [Some(PathBuf::from(program()?)), key, hint, config, passphrase];
    Ok(files.into_iter().flatten().map(|path| PathBuf::from(absolute(&path))).collect())
}

fn own_until(plan: &RecoveryPlan) -> Vec<String> {
    plan.own_until.map_or_else(Vec::new, |at| vec!["--own-until".to_owned(), at.to_string()])
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

fn program() -> Result<String> {
    Ok(std::env::current_exe().context("find our own program")?.display().to_string())
}

/// As the server gives it to a shell: words in quotes where they need some, and a `%` of their own doubled.
fn command_line(words: Vec<String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,".contains(c);
    let quoted = words.into_iter().map(|word| {
        let word = word.replace('%', "%%");
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    let mut line = quoted.collect::<Vec<_>>().join(" ");
    line.push_str(" %f %p");
    line
}

/// Where a helper for the log of a cluster listens that `wal get --prefetch` starts: one for each repository, and for each
/// way to open it.
pub fn helper_socket(ctx: &Context, system: u64) -> PathBuf {
    ctx.cache_dir().join(format!("wal-{system:016x}-{}.socket", repository_tag(ctx)))
}

/// Where `wal push` notes what it archived ahead.
pub fn ahead_note(ctx: &Context, system: u64, dataset: &str) -> PathBuf {
    let dataset = keepwell_crypto::Digest::of(dataset.as_bytes()).to_string();
    ctx.cache_dir().join(format!("wal-{system:016x}-{}-{}.ahead", repository_tag(ctx), &dataset[..16]))
}

/// Stands for a repository and a way to open it, without opening it.
fn repository_tag(ctx: &Context) -> String {
    let (options, environment) = (&ctx.global, &ctx.environment);
    let meant = format!(
        "{:?}",
        (
            options.again(),
            std::env::current_dir().ok().filter(|_| is_relative(ctx)),
            (&environment.repository, &environment.key_file, &environment.key_command),
            (&environment.config, &environment.profile, ctx.profile.repository.as_ref()),
        )
    );
    let mut digest = keepwell_crypto::Digest::of(meant.as_bytes()).to_string();
    digest.truncate(16);
    digest
}

/// Whether what is meant depends on where we run.
fn is_relative(ctx: &Context) -> bool {
    let (options, environment) = (&ctx.global, &ctx.environment);
    let places = [options.repository.as_deref(), environment.repository.as_deref()];
    let files = [&options.key_file, &environment.key_file, &options.config, &environment.config];
    places.into_iter().flatten().any(|place| !place.contains(':') && !place.starts_with('/'))
        || files.into_iter().flatten().any(|file| file.is_relative())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn another_repository_has_another_helper() {
        let socket = |words: &[&str], system| {
            let words = [&["keepwell", "--quiet"], words, &["version"]].concat();
            let global = crate::args::Arguments::try_parse_from(words).unwrap().global;
            let printer = crate::printer::Printer::new(&global, &Default::default());
            helper_socket(&Context::new(global, Default::default(), printer.into()).unwrap(), system)
        };
        let one = ["-r", "/srv/one", "--cache-dir", "/c"];
        assert_eq!(socket(&one, 7), socket(&one, 7));
        for other in [
            &["-r", "/srv/other", "--cache-dir", "/c"][..],
            &["-r", "/srv/one", "--cache-dir", "/c", "--key-file", "/k"],
        ] {
            assert_ne!(socket(&one, 7), socket(other, 7));
        }
        assert_ne!(socket(&one, 7), socket(&one, 8));
        assert_eq!(socket(&one, 7).parent(), Some(Path::new("/c")));
    }

    #[test]
    fn a_command_line_survives_the_shell_and_the_server() {
        let words = ["keepwell", "--repository", "/srv/a b's", "--key-file", "/k%1"].map(str::to_owned);
        assert_eq!(
            command_line(words.to_vec()),
            r"keepwell --repository '/srv/a b'\''s' --key-file '/k%%1' %f %p"
        );
    }
}
