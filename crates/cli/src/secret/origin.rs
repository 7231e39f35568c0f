//! Where secrets come from.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use keepwell_crypto::Secret;

use crate::context::Context;
use crate::exit::{Complaint, Exit};

/// A key file or a passphrase is far smaller.
pub(super) const SECRET_BYTES_MAX: u64 = 1 << 20;

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

/// A secret from a file or a pipe.
pub(super) fn read_all(from: impl Read) -> Result<Secret> {
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

/// What may say where a secret comes from.
pub(super) struct Ways<'a> {
    /// Options: a file, a command, a descriptor.
    pub options: (&'a Option<PathBuf>, &'a Option<String>, Option<u32>),
    /// The environment likewise, with the number of the descriptor as it is written.
    pub environment: (&'a Option<PathBuf>, &'a Option<String>, Option<&'a str>),
    /// The variable with that number.
    pub variable: &'static str,
    /// The name of the systemd credential.
    pub credential: &'static str,
    /// The profile: a file, a command.
    pub profile: (&'a Option<PathBuf>, &'a Option<String>),
}

impl Ways<'_> {
    /// What the first of them says, in the order above.
    pub fn first(&self, ctx: &Context) -> Result<Option<Origin>> {
        let file = |path: &Option<PathBuf>| path.clone().map(Origin::File);
        let command = |text: &Option<String>| text.clone().map(Origin::Command);
        let (options, environment, profile) = (self.options, self.environment, self.profile);
        let named = file(options.0)
            .or_else(|| command(options.1))
            .or_else(|| options.2.map(Origin::Descriptor))
            .or_else(|| file(environment.0))
            .or_else(|| command(environment.1));
        if named.is_some() {
            return Ok(named);
        }
        let number = descriptor(environment.2, self.variable)?;
        Ok(number
            .or_else(|| credential(ctx, self.credential))
            .or_else(|| file(profile.0))
            .or_else(|| command(profile.1)))
    }
}

/// The descriptor whose number a variable holds.
fn descriptor(text: Option<&str>, variable: &str) -> Result<Option<Origin>> {
    let parse = |text: &str| {
        let wrong = || Complaint::usage(format!("`{text}` in {variable} is no file descriptor"));
        text.parse().map(Origin::Descriptor).map_err(|_| wrong())
    };
    Ok(text.map(parse).transpose()?)
}

fn credential(ctx: &Context, name: &str) -> Option<Origin> {
    let path = ctx.environment.credentials.as_ref()?.join(name);
    path.exists().then_some(Origin::File(path))
}
