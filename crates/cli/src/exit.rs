//! Exit codes, and the one function that maps errors to them.

use std::fmt;
use std::process::ExitCode;

use backup_core::Error as CoreError;
use keepwell_crypto::CryptoError;
use keepwell_crypto::keyfile::{KeyFileError, UnprotectError};
use keepwell_crypto::trust::TrustError;
#[cfg(all(feature = "mount", target_os = "linux"))]
use keepwell_mount::MountError;
use keepwell_source_postgres::archive::ArchiveError;
use keepwell_source_postgres::capture::CaptureError;
use keepwell_source_postgres::logical::DumpError;
use keepwell_source_postgres::push::PushError;
use keepwell_source_postgres::receive::ReceiveError;
use keepwell_source_postgres::recovery::{PlanError, RestoreError, ServerError};
use keepwell_source_postgres::wire::PgError;
use keepwell_storage::{StorageError, StorageErrorKind};

/// How a command ends. The numbers are documented in `docs/scripting.md` and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// The command failed.
    Failed = 1,
    /// The command line or the configuration makes no sense.
    Usage = 2,
    /// Finished, but some data was skipped.
    Skipped = 3,
    /// There is no repository.
    NoRepository = 10,
    /// Another process is in the way; try again.
    Locked = 11,
    /// The key is missing, wrong, or may not do this.
    WrongKey = 12,
    /// Verification found damage.
    Damage = 13,
    /// The data was erased on purpose: its keys are destroyed.
    Erased = 14,
    /// A copy is older than it may be.
    Stale = 15,
    /// Stopped by a signal.
    Interrupted = 130,
    /// `wal get` failed. A recovering server takes anything up to 125 for the end of the WAL, and would open.
    Recovery = 255,
}

impl Exit {
    /// The number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The graver of two, for a command that did several things: what must be looked at now hides what can wait. Of two
    /// that are as grave, the first.
    #[must_use]
    pub fn graver(self, other: Self) -> Self {
        if other.gravity() > self.gravity() { other } else { self }
    }

    fn gravity(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Stale => 1,
            Self::Skipped => 2,
            Self::Failed
            | Self::Usage
            | Self::NoRepository
            | Self::Locked
            | Self::WrongKey
            | Self::Erased
            | Self::Recovery => 3,
            Self::Damage => 4,
            Self::Interrupted => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

/// A failure of the command itself: what happened, what may help, and the exit code.
#[derive(Debug)]
pub struct Complaint {
    exit: Exit,
    message: String,
    hints: Vec<String>,
}

impl Complaint {
    /// A failure with an exit code. The message is a lower-case fact without a full stop.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hints: Vec::new() }
    }

    /// The command line or configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Whether there is a sentence about what may help.
    pub fn has_hints(&self) -> bool {
        !self.hints.is_empty()
    }

    /// Adds a sentence about what may help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Complaint {}

/// The exit code of an error: that of the outermost cause which has one.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    // One that was added to an error is no cause by itself.
    let complaint = error.downcast_ref::<Complaint>().map(|complaint| complaint.exit);
    complaint.or_else(|| error.chain().find_map(exit_of_cause)).unwrap_or(Exit::Failed)
}

fn exit_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(complaint) = cause.downcast_ref::<Complaint>() {
        return Some(complaint.exit);
    }
    if let Some(error) = cause.downcast_ref::<CoreError>() {
        return exit_of_core(error);
    }
    if let Some(error) = cause.downcast_ref::<StorageError>() {
        return exit_of_storage(error);
    }
    if let Some(ReceiveError::Repository(error)) = cause.downcast_ref::<ReceiveError>() {
        return exit_of_core(error);
    }
    if let Some(error) = cause.downcast_ref::<ArchiveError>() {
        return Some(match error {
            ArchiveError::Repository(error) => return exit_of_core(error),
            _ => Exit::Damage,
        });
    }
    if let Some(PushError::Repository(error)) = cause.downcast_ref::<PushError>() {
        return exit_of_core(error);
    }
    match cause.downcast_ref::<PlanError>() {
        Some(PlanError::Repository(error) | PlanError::Archive(ArchiveError::Repository(error))) => {
            return exit_of_core(error);
        }
        Some(PlanError::Archive(_)) => return Some(Exit::Damage),
        _ => {}
    }
    match cause.downcast_ref::<DumpError>() {
        Some(DumpError::Repository(error)) => return exit_of_core(error),
        Some(DumpError::RowsDiffer { .. } | DumpError::Description { .. } | DumpError::Checksum { .. }) => {
            return Some(Exit::Damage);
        }
        _ => {}
    }
    #[cfg(all(feature = "mount", target_os = "linux"))]
    if let Some(MountError::Repository(error)) = cause.downcast_ref::<MountError>() {
        return exit_of_core(error);
    }
    if let Some(RestoreError::Engine(error)) = cause.downcast_ref::<RestoreError>() {
        return exit_of_core(error);
    }
    if cause.downcast_ref::<KeyFileError>().is_some() || cause.downcast_ref::<UnprotectError>().is_some() {
        return Some(Exit::WrongKey);
    }
    None
}

fn exit_of_core(error: &CoreError) -> Option<Exit> {
    match error {
        CoreError::NoRepository { .. } => Some(Exit::NoRepository),
        CoreError::WrongKey(_) | CoreError::NotAllowed { .. } => Some(Exit::WrongKey),
        CoreError::Fenced { .. } => Some(Exit::Locked),
        CoreError::Erased { .. } => Some(Exit::Erased),
        CoreError::Damaged { .. } | CoreError::ChunkLost { .. } | CoreError::Catalog(_) => Some(Exit::Damage),
        CoreError::Trust(error) => Some(match **error {
            TrustError::WrongGenesis { .. } => Exit::WrongKey,
            _ => Exit::Damage,
        }),
        CoreError::Crypto(error) => match **error {
            CryptoError::NoMatchingKey { .. } | CryptoError::WrongPassphrase => Some(Exit::WrongKey),
            CryptoError::Damaged { .. } => Some(Exit::Damage),
            _ => None,
        },
        CoreError::Storage(error) => exit_of_storage(error),
        _ => None,
    }
}

fn exit_of_storage(error: &StorageError) -> Option<Exit> {
    match error.kind {
        StorageErrorKind::NotMounted => Some(Exit::NoRepository),
        _ => None,
    }
}

/// Sentences on what may help, from every cause that has some.
pub fn hints_of(error: &anyhow::Error) -> Vec<String> {
    let outermost = error.downcast_ref::<Complaint>();
    let mut hints = outermost.map_or_else(Vec::new, |complaint| complaint.hints.clone());
    for cause in error.chain() {
        #[cfg(all(feature = "mount", target_os = "linux"))]
        if let Some(mount) = cause.downcast_ref::<MountError>() {
            hints.extend(mount.hint());
        }
        if let Some(complaint) = cause.downcast_ref::<Complaint>() {
            if !outermost.is_some_and(|outermost| std::ptr::eq(outermost, complaint)) {
                hints.extend(complaint.hints.iter().cloned());
            }
        } else if let Some(core) = cause.downcast_ref::<CoreError>() {
            hints.extend(core.hint());
        } else if let Some(receive) = cause.downcast_ref::<ReceiveError>() {
            hints.extend(receive.hint());
        } else if let Some(capture) = cause.downcast_ref::<CaptureError>() {
            hints.extend(capture.hint());
        } else if let Some(dump) = cause.downcast_ref::<DumpError>() {
            hints.extend(dump.hint());
        } else if let Some(archive) = cause.downcast_ref::<ArchiveError>() {
            hints.extend(archive.hint());
        } else if let Some(push) = cause.downcast_ref::<PushError>() {
            hints.extend(push.hint());
        } else if let Some(plan) = cause.downcast_ref::<PlanError>() {
            hints.extend(plan.hint());
        } else if let Some(restore) = cause.downcast_ref::<RestoreError>() {
            hints.extend(restore.hint());
        } else if let Some(server) = cause.downcast_ref::<ServerError>() {
            hints.extend(server.hint());
        } else if let Some(server) = cause.downcast_ref::<PgError>() {
            hints.extend(server.hint());
        } else if let Some(storage) = cause.downcast_ref::<StorageError>() {
            hints.extend(storage.hint.clone());
        }
    }
    hints.dedup();
    hints
}

/// An error with its causes on one line; a cause that only repeats what stands there already is left out.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use keepwell_crypto::DomainId;

    use super::*;

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        let not_mounted = StorageError::new(StorageErrorKind::NotMounted, "open", "/mnt/nas", "not mounted");
        let wrong_key = CoreError::WrongKey("unknown".into());
        for (error, exit) in [
            (anyhow::anyhow!("whatever"), Exit::Failed),
            (Complaint::usage("x").into(), Exit::Usage),
            (anyhow::anyhow!("whatever").context(Complaint::usage("x")), Exit::Usage),
            (anyhow::Error::from(Complaint::usage("x")).context("y"), Exit::Usage),
            (CoreError::NoRepository { place: "x".into() }.into(), Exit::NoRepository),
            (CoreError::from(not_mounted).into(), Exit::NoRepository),
            (anyhow::Error::from(wrong_key).context("open the repository"), Exit::WrongKey),
            (CoreError::Fenced { writer: "w".into(), seq: 1 }.into(), Exit::Locked),
            (CoreError::Damaged { object: "o".into(), reason: "r".into() }.into(), Exit::Damage),
            (CoreError::Erased { domain: DomainId::from_bytes([1; 4]) }.into(), Exit::Erased),
        ] {
            assert_eq!(exit_of(&error), exit, "{error:?}");
        }
    }

    #[test]
    fn what_is_grave_is_not_hidden_by_what_came_before() {
        for (exits, gravest) in [
            ([Exit::Stale, Exit::Done], Exit::Stale),
            ([Exit::Stale, Exit::Damage], Exit::Damage),
            ([Exit::Damage, Exit::Stale], Exit::Damage),
            ([Exit::Stale, Exit::Failed], Exit::Failed),
            ([Exit::Failed, Exit::Damage], Exit::Damage),
            ([Exit::WrongKey, Exit::NoRepository], Exit::WrongKey),
        ] {
            assert_eq!(exits.into_iter().fold(Exit::Done, Exit::graver), gravest, "{exits:?}");
        }
    }

    #[test]
    fn what_may_help_is_said_once_wherever_it_stands() {
        let inner = || anyhow::Error::from(Complaint::failed("x").hint("One.").hint("Two."));
        assert_eq!(hints_of(&inner()), ["One.", "Two."]);
        assert_eq!(hints_of(&inner().context("y")), ["One.", "Two."]);
        let outer = inner().context(Complaint::usage("y").hint("Zero."));
        assert_eq!(hints_of(&outer), ["Zero.", "One.", "Two."]);
    }

    #[test]
    fn causes_are_joined_once() {
        let error = anyhow::anyhow!("no space left").context("put `x`: no space left").context("backup");
        assert_eq!(one_line(&error), "backup: put `x`: no space left");
    }
}
