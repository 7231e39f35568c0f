//! Opening paths beneath the root without ever following a symbolic link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::kind::is_smb;

/// How often the kernel may ask to resolve again because something above was renamed meanwhile.
const RESOLVE_ATTEMPTS: u32 = 64;

/// Opens `path` beneath `root`; a symbolic link anywhere in it is `ELOOP`. An empty path is the root itself.
///
/// What another host has made is found at once: a client of NFS would deny for half a minute what it has looked for in
/// vain, and one of SMB for a second, unless it is told to ask the server for the directory.
pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    match resolve_beneath(root, path, flags) {
        Err(Errno::NOENT) => {
            ask_on_the_way(root, path);
            resolve_beneath(root, path, flags)
        }
        result => result,
    }
}

/// Has the kernel ask the server, if there is one, what is in a directory, and forget what was not in there.
pub(super) fn ask_server(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(directory, "", flags, StatxFlags::BASIC_STATS)?;
    if is_smb(directory)? {
        // Its client compares no times: it finds a name that it has denied when it reads the directory.
        for entry in Dir::read_from(directory)? {
            entry?;
        }
    }
    Ok(())
}

/// Asks for every directory that is there on the way to `path`.
fn ask_on_the_way(root: BorrowedFd<'_>, path: &str) {
    if ask_server(root).is_err() {
        return;
    }
    for (end, _) in path.match_indices('/') {
        let step = resolve_beneath(root, &path[..end], OFlags::RDONLY | OFlags::DIRECTORY);
        if !step.is_ok_and(|directory| ask_server(directory.as_fd()).is_ok()) {
            return; // what is missing, or wrong, the caller hears when it looks again
        }
    }
}

fn resolve_beneath(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RESOLVE_ATTEMPTS {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => continue,
            Err(Errno::NOSYS | Errno::PERM) => break, // kernels before 5.6, and containers that forbid it
            result => return result,
        }
    }
    open_step_by_step(root, path, flags)
}

/// Opens a directory beneath `root` for reading and syncing.
pub(super) fn open_directory(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn open_step_by_step(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let Some((directories, name)) = path.rsplit_once('/') else {
        refuse_link(root, path)?;
        return rustix::fs::openat(root, path, flags, Mode::empty());
    };
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for component in directories.split('/') {
        let from = at.as_ref().map_or(root, AsFd::as_fd);
        refuse_link(from, component)?;
        let next = rustix::fs::openat(from, component, step, Mode::empty())?;
        at = Some(next);
    }
    let from = at.as_ref().map_or(root, AsFd::as_fd);
    refuse_link(from, name)?;
    rustix::fs::openat(from, name, flags, Mode::empty())
}

/// Tells a link apart from a file; safety does not rest on it, since every open has `O_NOFOLLOW`.
fn refuse_link(directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let facts = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(facts.st_mode) == FileType::Symlink { Err(Errno::LOOP) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Open = fn(BorrowedFd<'_>, &str, OFlags) -> Result<OwnedFd, Errno>;

    #[test]
    fn both_ways_of_opening_refuse_every_symbolic_link() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::fs::write(root.path().join("real/file"), "f").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("away")).unwrap();
        std::os::unix::fs::symlink("real", root.path().join("near")).unwrap();
        std::os::unix::fs::symlink("file", root.path().join("real/link")).unwrap();
        let fd = std::fs::File::open(root.path()).unwrap();
        for open in [open_beneath as Open, open_step_by_step as Open] {
            for (path, expected) in [
                ("real/file", Ok(())),
                ("real", Ok(())),
                ("away/secret", Err(Errno::LOOP)),
                ("away", Err(Errno::LOOP)),
                ("near/file", Err(Errno::LOOP)),
                ("real/link", Err(Errno::LOOP)),
                ("real/none", Err(Errno::NOENT)),
                ("none/file", Err(Errno::NOENT)),
                ("real/file/x", Err(Errno::NOTDIR)),
            ] {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                assert_eq!(open(fd.as_fd(), path, flags).map(|_| ()), expected, "{path}");
            }
        }
    }
}
