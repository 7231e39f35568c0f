//! Passphrases, and the terminal that they are asked for on.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use keepwell_crypto::Secret;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::origin::{Origin, SECRET_BYTES_MAX, Ways};
use crate::context::Context;
use crate::exit::{Complaint, Exit};

const CREDENTIAL: &str = "keepwell-passphrase";

/// The passphrase that options, environment, systemd or the profile give, in this order.
pub(super) fn named_passphrase(ctx: &Context) -> Result<Option<Origin>> {
    let (options, environment, profile) = (&ctx.global, &ctx.environment, &ctx.profile);
    let ways = Ways {
        options: (&options.passphrase_file, &options.passphrase_command, options.passphrase_fd),
        environment: (
            &environment.passphrase_file,
            &environment.passphrase_command,
            environment.passphrase_fd.as_deref(),
        ),
        variable: "KEEPWELL_PASSPHRASE_FD",
        credential: CREDENTIAL,
        profile: (&profile.passphrase_file, &profile.passphrase_command),
    };
    ways.first(ctx)
}

/// A passphrase, asked for if nothing names it.
pub(super) fn passphrase(ctx: &Context, prompt: &str) -> Result<Secret> {
    match named_passphrase(ctx)? {
        Some(origin) => passphrase_from(&origin),
        None => ctx.printer.suspend(|| ask(prompt)),
    }
}

/// A passphrase from somewhere; a newline at its end does not belong to it.
fn passphrase_from(origin: &Origin) -> Result<Secret> {
    let text = origin.read().map_err(|error| {
        let message = format!("the passphrase cannot be read: {}", crate::exit::one_line(&error));
        Complaint::new(Exit::WrongKey, message)
    })?;
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
    pub(super) fn read_again(&self, ctx: &Context, prompt: &str) -> Result<Secret> {
        if self.is_named() { self.read(ctx) } else { ctx.printer.suspend(|| ask(prompt)) }
    }
}

/// A new passphrase from where options, environment or profile say, or asked for twice.
pub(super) fn new_passphrase(ctx: &Context) -> Result<Secret> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn a_passphrase_that_is_not_there_is_a_key_that_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let error = passphrase_from(&Origin::File(dir.path().join("none"))).unwrap_err();
        assert_eq!(exit_of(&error), Exit::WrongKey);
        assert!(error.to_string().starts_with("the passphrase cannot be read: open `"), "{error}");
    }
}
