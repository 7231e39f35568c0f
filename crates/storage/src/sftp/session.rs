//! The connection: an `ssh` process that runs the `sftp` subsystem of the server.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openssh_sftp_client::error::SftpErrorKind;
use openssh_sftp_client::{Error, Sftp, SftpOptions};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use crate::location::{Place, Settings};
use crate::{StorageError, StorageErrorKind as Kind};

/// What is kept of what `ssh` says.
const WORDS_MAX: usize = 500;

/// Whom to connect to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) place: String,
    arguments: Vec<String>,
    pub(super) timeout: Duration,
}

/// A running `ssh`; dropping it ends the process.
pub(super) struct Session {
    pub(super) sftp: Sftp,
    _ssh: Child,
}

impl Target {
    /// The target of a location, which must be an SFTP one.
    pub(super) fn new(place: &Place, settings: &Settings, timeout: Duration) -> Option<Self> {
        let Place::Sftp { user, host, port, .. } = place else { return None };
        let mut arguments: Vec<String> = Vec::new();
        let mut option = |text: String| arguments.extend(["-o".to_owned(), text]);
        for fixed in [
            "BatchMode=yes", // nobody is there to answer questions
            "ClearAllForwardings=yes",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
            "ConnectTimeout=20",
        ] {
            option(fixed.to_owned());
        }
        if let Some(file) = &settings.identity_file {
            option(format!("IdentityFile={}", quoted(file)));
            option("IdentitiesOnly=yes".to_owned());
        }
        if let Some(file) = &settings.known_hosts_file {
            option(format!("UserKnownHostsFile={}", quoted(file)));
            option("StrictHostKeyChecking=yes".to_owned());
        }
        arguments.extend(port.iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
        arguments.extend(user.iter().flat_map(|user| ["-l".to_owned(), user.clone()]));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        arguments.extend(["-s".to_owned(), "--".to_owned(), host, "sftp".to_owned()]);
        Some(Self { place: place.to_string(), arguments, timeout })
    }

    pub(super) async fn connect(&self) -> Result<Session, StorageError> {
        let spawned = Command::new("ssh")
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut ssh = spawned.map_err(|error| {
            StorageError::new(Kind::Invalid, "open", &self.place, format!("`ssh` cannot be run: {error}"))
                .with_hint("Install the OpenSSH client.")
        })?;
        let words = ssh.stderr.take().map(listen).unwrap_or_default();
        let (Some(stdin), Some(stdout)) = (ssh.stdin.take(), ssh.stdout.take()) else {
            return Err(self.failed("`ssh` has no input or output", &words));
        };
        match tokio::time::timeout(self.timeout, Sftp::new(stdin, stdout, SftpOptions::new())).await {
            Ok(Ok(sftp)) => Ok(Session { sftp, _ssh: ssh }),
            Ok(Err(_)) => {
                // It has ended, or will: what it said is the reason.
                let _ = tokio::time::timeout(Duration::from_secs(2), ssh.wait()).await;
                Err(self.failed("the server cannot be logged in to", &words))
            }
            Err(_) => Err(self.failed("the server does not answer", &words)),
        }
    }

    fn failed(&self, what: &str, words: &Words) -> StorageError {
        let said = words.lock().unwrap_or_else(PoisonError::into_inner);
        let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let said = said.trim();
        let message = if said.is_empty() { what.to_owned() } else { format!("{what}: {said}") };
        let refused = ["Permission denied", "Host key verification failed", "Could not resolve", "subsystem"];
        let kind = match refused.iter().any(|words| said.contains(words)) {
            true => Kind::PermissionDenied,
            false => Kind::Unavailable,
        };
        StorageError::new(kind, "open", &self.place, message)
            .with_hint("Try `sftp` by hand as the same user: keys, agent and known hosts are those of `ssh`.")
    }

    /// Translates a failure, and says whether the connection is still good.
    pub(super) fn failure(
        &self,
        operation: &'static str,
        subject: &str,
        error: Error,
    ) -> (StorageError, bool) {
        let new = |kind, message: String| StorageError::new(kind, operation, subject, message);
        match error {
            Error::SftpError(SftpErrorKind::NoSuchFile, _) => {
                (new(Kind::NotFound, "no such object".into()), true)
            }
            Error::SftpError(SftpErrorKind::PermDenied, _) => {
                let error =
                    new(Kind::PermissionDenied, format!("{} does not permit it to this user", self.place));
                (error.with_hint("Check the owner and the modes of the directory on the server."), true)
            }
            Error::SftpError(_, words) => {
                let error = new(Kind::Other, format!("{} says: {words:?}", self.place));
                (error.with_hint("Try the same with `sftp` by hand; the server's log may say more."), true)
            }
            error => {
                (new(Kind::Unavailable, format!("the connection to {} broke: {error}", self.place)), false)
            }
        }
    }
}

/// A path as `ssh` takes it in an option: what stands behind a space would be another argument, or another file.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

type Words = Arc<Mutex<String>>;

/// Keeps the beginning of what `ssh` says, and reads on so that it never waits for us.
fn listen(mut stderr: ChildStderr) -> Words {
    let words = Words::default();
    let kept = Arc::clone(&words);
    tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < WORDS_MAX {
                kept.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        }
    });
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Location;

    #[test]
    fn a_path_with_a_space_is_one_path() {
        let location: Location =
            "sftp://me@host/x?identity-file=/my%20keys/id&known-hosts-file=/my%20keys/hosts".parse().unwrap();
        let target = Target::new(&location.place, &location.settings, Duration::from_secs(1)).unwrap();
        for option in ["IdentityFile=\"/my keys/id\"", "UserKnownHostsFile=\"/my keys/hosts\""] {
            assert!(target.arguments.iter().any(|argument| argument == option), "{:?}", target.arguments);
        }
    }
}
