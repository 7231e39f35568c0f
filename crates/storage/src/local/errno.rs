//! From the kernel's error numbers to errors that a person can act on.

use std::fmt;

use rustix::io::Errno;

use crate::{StorageError, StorageErrorKind};

pub(super) const SUSPECT_HINT: &str = "The disk, its controller or its connection may be failing: read the kernel log (`dmesg`), \
     then check the repository before trusting it with more.";
const NO_SPACE_HINT: &str = "Snapshots that are there are not harmed. Free space on the disk that holds the repository and run the command again: it goes on with what was stored. `keepwell forget --prune` with stricter rules frees some.";
const PERMISSION_HINT: &str = "Objects are private to the user who created the repository: run as that user.";
const READ_ONLY_HINT: &str = "The disk is mounted read-only; the kernel does that by itself after an error: read `dmesg` before remounting it.";
const DEVICE_HINT: &str = "The disk or its connection is failing, or the server of a `soft` mount does not answer: read the kernel log (`dmesg`), then check the repository.";
const LINK_HINT: &str =
    "A repository holds no symbolic links: move the data itself, or mount the other disk there.";
const STALE_HINT: &str = "On the server the directory is gone, or the export: see that both are there, mount it again if need be, and try again.";
const CROSS_DEVICE_HINT: &str = "A repository must be on one file system: `.tmp` and every directory in it.";

/// The typed error of a failed system call.
pub(super) fn storage_error(
    operation: &'static str,
    subject: impl fmt::Display,
    errno: Errno,
) -> StorageError {
    let (kind, message, hint) = explain(errno);
    let message = message.map_or_else(|| std::io::Error::from(errno).to_string(), str::to_owned);
    let error = StorageError::new(kind, operation, subject, message).with_source(std::io::Error::from(errno));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

fn explain(errno: Errno) -> (StorageErrorKind, Option<&'static str>, Option<&'static str>) {
    use StorageErrorKind as Kind;
    match errno {
        Errno::NOENT | Errno::NOTDIR => (Kind::NotFound, Some("no such object"), None),
        Errno::EXIST => (Kind::AlreadyExists, Some("the object exists already"), None),
        Errno::NOSPC => (Kind::NoSpace, Some("no space left on the device"), Some(NO_SPACE_HINT)),
        Errno::DQUOT => (Kind::NoSpace, Some("the disk quota is used up"), Some(NO_SPACE_HINT)),
        Errno::ROFS => (Kind::ReadOnly, Some("the file system is mounted read-only"), Some(READ_ONLY_HINT)),
        Errno::ACCESS | Errno::PERM => {
            (Kind::PermissionDenied, Some("permission denied"), Some(PERMISSION_HINT))
        }
        Errno::IO => (Kind::Device, Some("the device reported an input/output error"), Some(DEVICE_HINT)),
        Errno::LOOP => (Kind::Invalid, Some("its path goes through a symbolic link"), Some(LINK_HINT)),
        Errno::XDEV => {
            (Kind::Invalid, Some("its directory is on another file system"), Some(CROSS_DEVICE_HINT))
        }
        Errno::NAMETOOLONG | Errno::FBIG => (Kind::Invalid, None, None),
        Errno::STALE => (Kind::Unavailable, None, Some(STALE_HINT)),
        Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH | Errno::NOTCONN | Errno::CONNREFUSED => {
            (Kind::Unavailable, None, None)
        }
        Errno::AGAIN | Errno::INTR | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            (Kind::Unavailable, None, None)
        }
        _ => (Kind::Other, None, None),
    }
}
