//! Is the disk there? A repository on a mount that is not mounted must be refused, not created beneath it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::LocalOptions;
use super::errno::storage_error;
use crate::{StorageError, StorageErrorKind};

/// `f_type` of a directory where automount waits, and nothing is mounted yet.
const AUTOFS_MAGIC: u64 = 0x0187;
/// Symbolic links followed before a path is taken for a loop, as in the kernel.
const LINKS_MAX: u32 = 40;

/// Fails with `NotMounted` unless what should hold `given` (absolute) and `resolved` (without links) is mounted.
pub(super) fn check_mounted(
    operation: &'static str,
    given: &Path,
    resolved: &Path,
    options: &LocalOptions,
) -> Result<(), StorageError> {
    if let Some(mount) = &options.require_mount {
        if !given.starts_with(mount) && !resolved.starts_with(resolve(operation, mount)?) {
            let message = format!("it does not lie on `{}`, which has to be mounted for it", mount.display());
            let error = StorageError::new(StorageErrorKind::Invalid, operation, given.display(), message);
            return Err(error.with_hint("Correct `require-mount`, or the place of the repository."));
        }
        check_mount_point(operation, given, mount)?;
    }
    match std::fs::read(&options.fstab) {
        Ok(table) => match longest_mount_point(&table, &[given, resolved]) {
            Some(mount) => check_mount_point(operation, given, &mount),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Err(storage_error(operation, options.fstab.display(), errno))
        }
    }
}

fn check_mount_point(operation: &'static str, repository: &Path, mount: &Path) -> Result<(), StorageError> {
    if is_mount_point(mount).map_err(|error| storage_error(operation, mount.display(), error))? {
        return Ok(());
    }
    let (mount, repository) = (mount.display(), repository.display());
    let message = format!("`{mount}` is not mounted; the repository `{repository}` lives on it");
    Err(StorageError::new(StorageErrorKind::NotMounted, operation, repository, message)
        .with_hint(format!("Mount it (`mount {mount}`) and try again; nothing was written.")))
}

/// Whether a file system is mounted at `path`. Opens it, so that automount gets its chance.
fn is_mount_point(path: &Path) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::ACCESS) => rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()),
        result => result,
    };
    let directory = match opened {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        result => result?,
    };
    if rustix::fs::fstatfs(&directory)?.f_type as u64 == AUTOFS_MAGIC {
        return Ok(false);
    }
    let facts = rustix::fs::statx(&directory, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    if facts.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Kernels before 5.8. `..` of the root directory is itself.
    let here = rustix::fs::fstat(&directory)?;
    let above = rustix::fs::statat(&directory, "..", AtFlags::empty())?;
    Ok(here.st_dev != above.st_dev || here.st_ino == above.st_ino)
}

/// The longest mount point in an fstab at or above one of `paths`; `/` does not count, it is always mounted.
fn longest_mount_point(table: &[u8], paths: &[&Path]) -> Option<PathBuf> {
    let above =
        |mount: &PathBuf| mount.parent().is_some() && paths.iter().any(|path| path.starts_with(mount));
    table
        .split(|byte| *byte == b'\n')
        .filter_map(mount_point)
        .filter(above)
        .max_by_key(|mount| mount.components().count())
}

/// The second field of an fstab line, unescaped; nothing for comments, swap and the like.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|field| !field.is_empty());
    let device = fields.next()?;
    let mount = fields.next()?;
    (!device.starts_with(b"#") && mount.starts_with(b"/"))
        .then(|| PathBuf::from(OsString::from_vec(unescape(mount))))
}

/// Undoes fstab's `\040` for space, `\011` for tab, `\012` and `\134`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// `path` absolute and without symbolic links. Unlike `canonicalize`, the end of it need not exist: a link into a
/// disk that is not mounted is followed as far as it says.
pub(super) fn resolve(operation: &'static str, path: &Path) -> Result<PathBuf, StorageError> {
    let fail = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
        storage_error(operation, path.display(), errno)
    };
    let mut todo = parts(std::path::absolute(path).map_err(fail)?.components());
    let mut resolved = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == OsStr::new("..") {
            resolved.pop();
            continue;
        }
        resolved.push(&part); // an absolute part starts anew
        let Ok(target) = std::fs::read_link(&resolved) else { continue };
        links += 1;
        if links > LINKS_MAX {
            return Err(storage_error(operation, path.display(), Errno::LOOP));
        }
        resolved.pop();
        let mut before = parts(target.components());
        before.append(&mut todo);
        todo = before;
    }
    Ok(resolved)
}

fn parts<'a>(components: impl Iterator<Item = Component<'a>>) -> VecDeque<OsString> {
    components
        .filter(|component| !matches!(component, Component::CurDir))
        .map(|component| OsStr::from_bytes(component.as_os_str().as_bytes()).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_above_the_path_is_found() {
        let table = b"# /dev/sda9 /mnt/comment ext4\n\
            UUID=1 / ext4 defaults 0 1\n\
            UUID=2\t/mnt\text4 defaults 0 2\n\
            nas:/x   /mnt/nas  nfs  rw,noauto 0 0\n\
            UUID=3 none swap sw 0 0\n\
            UUID=4 /mnt/my\\040disk/ ext4\n\
            broken\n\
            \n   #indented /mnt/nas/deeper ext4\n";
        for (path, expected) in [
            ("/mnt/nas/backup", Some("/mnt/nas")),
            ("/mnt/nas", Some("/mnt/nas")),
            ("/mnt/nasty", Some("/mnt")),
            ("/mnt/my disk/backup", Some("/mnt/my disk/")),
            ("/mnt/comment/x", Some("/mnt")),
            ("/srv/backup", None),
        ] {
            assert_eq!(longest_mount_point(table, &[Path::new(path)]), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn escapes_are_undone_and_malformed_ones_kept() {
        for (escaped, plain) in
            [("a\\040b", "a b"), ("a\\134b", "a\\b"), ("\\04", "\\04"), ("\\999", "\\999"), ("\\", "\\")]
        {
            assert_eq!(unescape(escaped.as_bytes()), plain.as_bytes(), "{escaped}");
        }
    }

    #[test]
    fn resolving_follows_links_also_beyond_what_exists() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        link("real", "near");
        link("/nowhere/nas", "dangling");
        link("loop", "loop");
        for (path, expected) in [
            ("real/x/y", root.join("real/x/y")),
            ("near/x", root.join("real/x")),
            ("near/../near/./x", root.join("real/x")),
            ("dangling/backup", "/nowhere/nas/backup".into()),
        ] {
            assert_eq!(resolve("open", &root.join(path)).unwrap(), expected, "{path}");
        }
        assert_eq!(resolve("open", &root.join("loop")).unwrap_err().kind, StorageErrorKind::Invalid);
    }

    #[test]
    fn mount_points_are_told_from_directories() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(is_mount_point(Path::new("/")), Ok(true));
        assert_eq!(is_mount_point(Path::new("/proc")), Ok(true));
        assert_eq!(is_mount_point(directory.path()), Ok(false));
        assert_eq!(is_mount_point(&directory.path().join("none")), Ok(false));
    }
}
