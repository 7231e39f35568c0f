//! Why there is no mount, and what is missing for one.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;

const DEVICE: &str = "/dev/fuse";
/// Mounts and unmounts for users; part of the package `fuse3` of every distribution.
const HELPER: &str = "fusermount3";

/// What can keep a mount from coming or staying.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The repository could not be read.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// The directory cannot be looked at, or is none.
    #[error("`{directory}` cannot be mounted on", directory = directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There is a mount already whose process has died.
    #[error("`{directory}` is the mount of a process that has died", directory = directory.display())]
    Dead {
        /// The directory.
        directory: PathBuf,
    },
    /// The kernel's FUSE device is missing or closed to us.
    #[error("`/dev/fuse` cannot be opened")]
    Device(#[source] io::Error),
    /// Only root may mount without this helper.
    #[error("`fusermount3` is not installed, and only root may mount without it")]
    NoHelper,
    /// The kernel or the helper refused.
    #[error("mount on `{directory}`", directory = directory.display())]
    Refused {
        /// The directory.
        directory: PathBuf,
        /// Their reason.
        #[source]
        source: io::Error,
    },
    /// The mount ended with an error, or cannot be ended.
    #[error("the mount on `{directory}`", directory = directory.display())]
    Broken {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl MountError {
    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Directory { .. } => Some("Name a directory that exists; it need not be empty.".to_owned()),
            Self::Dead { directory } => {
                Some(format!("Remove it with `umount {0}` or `fusermount3 -u {0}`.", directory.display()))
            }
            Self::Device(error) if error.kind() == io::ErrorKind::NotFound => Some(
                "Load the kernel module (`modprobe fuse`); a container needs `--device /dev/fuse --cap-add SYS_ADMIN`.".to_owned(),
            ),
            Self::Device(_) => Some("Who mounts must be able to read and write that device.".to_owned()),
            Self::NoHelper => {
                Some("Install the package `fuse3`, or run the command as root (in a container with the capability SYS_ADMIN).".to_owned())
            }
            Self::Refused { .. } | Self::Broken { .. } => None,
        }
    }
}

/// The directory as an absolute path, if one can mount there.
pub(crate) fn usable(directory: &Path) -> Result<PathBuf, MountError> {
    let refuse = |source: io::Error| match source.raw_os_error() {
        Some(code) if code == Errno::ENOTCONN as i32 => {
            MountError::Dead { directory: directory.to_path_buf() }
        }
        _ => MountError::Directory { directory: directory.to_path_buf(), source },
    };
    let absolute = directory.canonicalize().map_err(refuse)?;
    if !std::fs::metadata(&absolute).map_err(refuse)?.is_dir() {
        return Err(refuse(Errno::ENOTDIR.into()));
    }
    let device = std::fs::File::options().read(true).write(true).open(DEVICE);
    device.map_err(MountError::Device)?;
    Ok(absolute)
}

/// Says why a mount was refused. The library asks the helper when the kernel says that we may not.
pub(crate) fn refused(directory: &Path, everybody: bool, source: io::Error) -> MountError {
    if source.kind() == io::ErrorKind::NotFound {
        return MountError::NoHelper;
    }
    let denied = everybody && source.kind() == io::ErrorKind::PermissionDenied;
    let source = match denied {
        true => io::Error::other("`user_allow_other` is not set in `/etc/fuse.conf`"),
        false => source,
    };
    MountError::Refused { directory: directory.to_path_buf(), source }
}

/// Runs the helper; whether it did what it was asked.
pub(crate) fn helper(arguments: &[&OsStr]) -> io::Result<bool> {
    let mut command = Command::new(HELPER);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success())
}
