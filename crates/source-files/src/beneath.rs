//! Opening things beneath a directory without following a single symlink.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::{Errno, Result};

/// Longer paths are opened in steps: the kernel takes at most 4,095 bytes at once.
const STEP_BYTES_MAX: usize = 3_800;

/// `EAGAIN` means that a rename or mount raced with the resolution; the next try usually succeeds.
const RACES_MAX: usize = 128;

/// Flags for a directory that is only used to reach what is in it.
pub(crate) const PASSAGE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Opens `path`, names joined by `/`, beneath `base`. The kernel refuses (`ELOOP`, `EXDEV`) every symlink, also as the
/// last name, and every way out; kernels before 5.6 are asked name by name (`ELOOP` or `ENOTDIR`). An empty path is
/// `base` itself. With [`OFlags::PATH`] a symlink at the end is opened as such.
pub(crate) fn open_beneath(base: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (head, tail) = cut(path);
    match head {
        None if tail.is_empty() => open_step(base.as_fd(), b".", flags, mode),
        None => open_step(base.as_fd(), tail, flags, mode),
        Some(head) => {
            let mut passage = open_beneath(base, head, PASSAGE, Mode::empty())?;
            let mut rest = tail;
            while let (Some(head), tail) = cut(rest) {
                passage = open_step(
                    passage.as_fd(),
                    head,
                    PASSAGE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                rest = tail;
            }
            open_step(passage.as_fd(), rest, flags, mode)
        }
    }
}

/// Splits off as much as fits into one step; `None` if all does.
fn cut(path: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if path.len() <= STEP_BYTES_MAX {
        return (None, path);
    }
    match path[..STEP_BYTES_MAX].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (Some(&path[..slash]), &path[slash + 1..]),
        None => (None, path),
    }
}

fn open_step(base: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    if !kernel_confines() {
        return open_by_name(base, path, flags, mode);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES_MAX {
        match openat2(base, path, flags, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

fn open_by_name(base: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (Some(&path[..slash]), &path[slash + 1..]),
        None => (None, path),
    };
    let mut passage: Option<OwnedFd> = None;
    for step in directory.into_iter().flat_map(|directory| directory.split(|&byte| byte == b'/')) {
        let from = passage.as_ref().map_or(base, AsFd::as_fd);
        refuse_upwards(step)?;
        passage = Some(openat(from, step, PASSAGE | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    }
    refuse_upwards(name)?;
    openat(passage.as_ref().map_or(base, AsFd::as_fd), name, flags, mode)
}

fn refuse_upwards(name: &[u8]) -> Result<()> {
    if name == b".." || name.is_empty() { Err(Errno::XDEV) } else { Ok(()) }
}

/// Whether `openat2` works here: not before Linux 5.6, nor under old container runtimes, which answer `EPERM`.
fn kernel_confines() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let probe = || openat2(CWD, c"/", PASSAGE | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    *ANSWER.get_or_init(|| !matches!(probe(), Err(Errno::NOSYS | Errno::PERM)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn world() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in/side")).unwrap();
        std::fs::write(dir.path().join("in/side/file"), "x").unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        symlink("..", dir.path().join("in/up")).unwrap();
        symlink("side", dir.path().join("in/sideways")).unwrap();
        symlink("side/file", dir.path().join("in/to_file")).unwrap();
        let base = openat(CWD, dir.path().join("in"), PASSAGE, Mode::empty()).unwrap();
        (dir, base)
    }

    #[test]
    fn both_ways_of_opening_refuse_symlinks_and_ways_out() {
        let (_dir, base) = world();
        let ways = [open_step, open_by_name as fn(BorrowedFd<'_>, &[u8], OFlags, Mode) -> _];
        for (index, open) in ways.iter().enumerate() {
            let open =
                |path: &[u8]| open(base.as_fd(), path, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty());
            assert!(open(b"side/file").is_ok(), "way {index}");
            for path in [&b"up/secret"[..], b"../secret", b"side/../../secret", b"sideways/file", b"to_file"]
            {
                assert!(open(path).is_err(), "way {index}: {}", String::from_utf8_lossy(path));
            }
        }
        assert!(open_beneath(&base, b"/etc/passwd", OFlags::RDONLY, Mode::empty()).is_err());
        assert!(open_beneath(&base, b"", PASSAGE, Mode::empty()).is_ok());
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_opened_in_steps() {
        let (_dir, base) = world();
        let name = [b'n'; 200];
        let mut at = openat(&base, c"side", PASSAGE, Mode::empty()).unwrap();
        let mut path = b"side".to_vec();
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, &name[..], Mode::RWXU).unwrap();
            at = openat(&at, &name[..], PASSAGE, Mode::empty()).unwrap();
            path.push(b'/');
            path.extend_from_slice(&name);
        }
        let found = open_beneath(&base, &path, PASSAGE, Mode::empty()).unwrap();
        assert_eq!(rustix::fs::fstat(&found).unwrap().st_ino, rustix::fs::fstat(&at).unwrap().st_ino);
    }
}
