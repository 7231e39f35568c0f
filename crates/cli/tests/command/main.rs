//! The command itself, as people and servers run it.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::path::Path;
use std::process::{Command, Stdio};

mod copies;
mod enroll;
mod kit;
mod repair;
mod wal_push;

/// The command in a directory with a home of its own, with nothing else of the caller's, and with nobody to ask.
fn keepwell(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
    command.env_clear().env("HOME", dir.join("home")).current_dir(dir).stdin(Stdio::null());
    command
}
