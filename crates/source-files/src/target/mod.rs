//! [`FileTarget`]: a directory that a snapshot is restored into.

mod file;
mod metadata;
mod place;
mod remove;
mod temporary;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::target::{RestoreTarget, TargetError, TargetFile};
use keepwell_catalog::{Entry, EntryKind, MapKey};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fstatvfs, linkat, makedev, mkdirat, mknodat, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result as OsResult};

use crate::beneath::PASSAGE;
use crate::handle::Handle;
use crate::listing::{Listing, ListingBuffer};
use crate::mounts::Mount;
use crate::target::file::{RestoredFile, write_all_at};
use crate::target::metadata::Metadata;
use crate::target::place::{At, Base};
use crate::target::temporary::{Temporary, create_new};

/// So often is a directory tried again where another process puts something else.
const RACES_MAX: usize = 64;

/// What a [`FileTarget`] accepts from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetOptions {
    /// The snapshot is from somebody who must not gain rights here: devices, setuid, setgid, sticky (except on
    /// directories) and attributes in `security.` and `trusted.` are left out. Default: everything is put back.
    pub untrusted: bool,
    /// Absolute paths in which nothing is made, changed or removed, such as the directory that the snapshot is stored in.
    /// [`list_dir`](RestoreTarget::list_dir) does not show them, everything else refuses what lies there, and the directories
    /// that lead to them stay.
    pub keep: Vec<PathBuf>,
}

/// A directory as a [`RestoreTarget`].
///
/// Nothing is ever created, changed or removed outside: the kernel resolves every path beneath the directory without
/// following a symlink (`openat2`; before Linux 5.6, name by name), also while other processes swap things. A file with
/// several names is never changed in place but replaced, because a name may be outside. A directory goes only by
/// [`remove`](RestoreTarget::remove).
///
/// What is replaced is replaced by a rename. After a crash a file being created may be left behind as
/// `.keepwell-<process>-<number>.part`, a small one where nothing was before under its own name. Nothing is flushed until
/// [`sync`](Self::sync).
///
/// Owners, modes, times and attributes that this process may not set, or the file system does not have, are left out and
/// told by [`left_out`](Self::left_out); setuid and setgid are set only together with the right owner.
///
/// ```
/// use backup_core::target::RestoreTarget;
/// use keepwell_catalog::{Entry, EntryKind, MapKey};
/// use keepwell_source_files::{FileTarget, TargetOptions};
///
/// let dir = tempfile::tempdir()?;
/// let target = FileTarget::create(dir.path(), &TargetOptions::default())?;
/// let mut entry = Entry::new(EntryKind::File);
/// (entry.mode, entry.size, entry.mtime) = (0o640, 5, (1_000_000_000, 1));
/// target.write_file(&MapKey::from_components(["motd"])?, &entry, b"hello")?;
/// assert_eq!(std::fs::read(dir.path().join("motd"))?, b"hello");
/// assert!(target.write_file(&MapKey::from_components(["..", "motd"])?, &entry, b"hello").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileTarget {
    base: Base,
    metadata: Arc<Metadata>,
    spared: HashSet<MapKey>,
}

impl FileTarget {
    /// Opens the directory at `path`, making it and those above it if need be. Symlinks in `path` are followed.
    pub fn create(path: &Path, options: &TargetOptions) -> Result<Self, TargetError> {
        let failed =
            |operation, source| TargetError::Io { operation, path: path.display().to_string(), source };
        std::fs::create_dir_all(path).map_err(|error| failed("create", error))?;
        let base = Base::open(path, &options.keep)?;
        Ok(Self::of(base, options.untrusted))
    }

    fn of(base: Base, untrusted: bool) -> Self {
        Self { base, metadata: Arc::new(Metadata::new(untrusted)), spared: HashSet::new() }
    }

    /// The same target, in which what stands at these keys, and in the directories there, is not listed: a restore that
    /// removes what the snapshot lacks leaves it where it is.
    #[must_use]
    pub fn sparing(self, keys: impl IntoIterator<Item = MapKey>) -> Self {
        Self { spared: keys.into_iter().collect(), ..self }
    }

    /// The names in a directory, but for what is not touched.
    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, TargetError> {
        let fd = match self.base.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            opened => opened.map_err(|error| self.base.failed("open", path, error))?,
        };
        let (listing, result) = Listing::read(&fd, &mut ListingBuffer::new());
        result.map_err(|error| self.base.failed("list", path, error))?;
        let mut names = listing.into_names();
        names.retain(|name| !self.base.keeps(path, name));
        Ok(names)
    }

    fn spares(&self, directory: &MapKey, name: &[u8]) -> bool {
        self.spared.contains(directory) || directory.child(name).is_ok_and(|key| self.spared.contains(&key))
    }

    /// The directory at `key` as a target of its own, made if need be together with those that lead to it. A symlink on
    /// the way is refused and not followed, like everything else that is no directory.
    pub fn below(&self, key: &MapKey) -> Result<Self, TargetError> {
        let path = self.base.path(key)?;
        for depth in 1..=key.depth() {
            let at = self.base.at(&MapKey::from_components(key.components().take(depth))
                .map_err(|_| self.base.refused(&path, "it is no path of plain names"))?)?;
            match mkdirat(&at.parent, at.name(), Mode::RWXU | Mode::RWXG | Mode::RWXO) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(at.failed("make directory", error)),
            }
        }
        let base = self.base.below(&path).map_err(|error| self.base.failed("open", &path, error))?;
        Ok(Self::of(base, self.metadata.untrusted))
    }

    /// Gives the directory itself the metadata of `entry`, as [`apply_metadata`](RestoreTarget::apply_metadata) gives it to
    /// what is in it.
    pub fn apply_own_metadata(&self, entry: &Entry) -> Result<(), TargetError> {
        let at = self.base.itself().map_err(|error| self.base.failed("open", b"", error))?;
        let fd = at.parent.try_clone().map_err(|_| at.failed("open", Errno::MFILE))?;
        self.metadata.apply(&at, &Handle::of_data(fd), entry)
    }

    /// The paths below in which nothing is made, changed or removed, for messages.
    pub fn kept(&self) -> Vec<String> {
        self.base.kept()
    }

    /// Whether nothing is made, changed or removed at `key`.
    pub fn is_kept(&self, key: &MapKey) -> bool {
        self.base.path(key).is_ok_and(|path| self.base.is_kept(&path))
    }

    /// What could or should not be put back, one message each; the first thousand of
    /// [`left_out_count`](Self::left_out_count). What [`make_other`](RestoreTarget::make_other) returns is not repeated.
    pub fn left_out(&self) -> Vec<String> {
        self.metadata.left_out().1
    }

    /// How many things could or should not be put back.
    pub fn left_out_count(&self) -> u64 {
        self.metadata.left_out().0
    }

    /// Waits until everything written is on its disk, also on file systems that are mounted within the target. Fails if
    /// something written since the target was opened could not be written out.
    pub fn sync(&self) -> Result<(), TargetError> {
        self.base.flush().map_err(|error| self.base.failed("flush", b"", error))
    }

    /// Fills a file that has no name, or one nobody else uses yet.
    fn fill(&self, at: &At, handle: &Handle, entry: &Entry, content: &[u8]) -> Result<(), TargetError> {
        write_all_at(handle, 0, content).map_err(|error| at.failed("write", error))?;
        self.metadata.apply(at, handle, entry)
    }

    fn write_new(
        &self,
        at: &At,
        fd: std::os::fd::OwnedFd,
        entry: &Entry,
        content: &[u8],
    ) -> Result<(), TargetError> {
        let filled = self.fill(at, &Handle::of_data(fd), entry, content);
        if filled.is_err() {
            // The first error is the one to tell.
            let _ = unlinkat(&at.parent, at.name(), AtFlags::empty());
        }
        filled
    }

    /// Why a thing is not made at all.
    fn withheld(&self, at: &At, entry: &Entry) -> Option<String> {
        let is_device = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let withheld = is_device && self.metadata.untrusted;
        withheld.then(|| format!("`{}`: device left out: the snapshot is not trusted", at.shown()))
    }

    fn dress(&self, at: &At, name: &[u8], entry: &Entry) -> Result<(), TargetError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&at.parent, name, flags, Mode::empty());
        let handle = Handle::of_place(opened.map_err(|error| at.failed("open", error))?);
        let look = handle.look().map_err(|error| at.failed("look at", error))?;
        if look.kind() != Some(entry.kind) || look.nlink != 1 {
            return Err(at.refused("another process replaced it"));
        }
        self.metadata.apply(at, &handle, entry)
    }
}

impl RestoreTarget for FileTarget {
    fn existing(&self, key: &MapKey) -> Result<Option<Entry>, TargetError> {
        let Some(at) = self.base.at_if_any(key)? else { return Ok(None) };
        // Most often nothing is there, and one question tells.
        match at.look().and_then(|_| read_entry(&at)) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(at.failed("look at", error)),
        }
    }

    fn open_existing(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        let file = RestoredFile::open(self.base.at(key)?, Arc::clone(&self.metadata), entry)?;
        Ok(Box::new(file))
    }

    fn make_dir(&self, key: &MapKey, _entry: &Entry) -> Result<(), TargetError> {
        let at = self.base.at(key)?;
        for _ in 0..RACES_MAX {
            match mkdirat(&at.parent, at.name(), Mode::RWXU) {
                Err(Errno::EXIST) => {}
                made => return made.map_err(|error| at.failed("make directory", error)),
            }
            match at.look() {
                Ok(look) if look.is_dir() => return make_usable(&at, look.mode()),
                Ok(_) => match unlinkat(&at.parent, at.name(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                    Err(error) => return Err(at.failed("replace", error)),
                },
                Err(Errno::NOENT) => {}
                Err(error) => return Err(at.failed("look at", error)),
            }
        }
        Err(at.refused("another process keeps replacing it"))
    }

    fn write_file(&self, key: &MapKey, entry: &Entry, content: &[u8]) -> Result<(), TargetError> {
        let at = self.base.at(key)?;
        match create_new(&at.parent, at.name()) {
            Ok(fd) => return self.write_new(&at, fd, entry, content),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(at.failed("create", error)),
        }
        let made = Temporary::make(&at, |name| create_new(&at.parent, name));
        let (temporary, fd) = made.map_err(|error| at.failed("create", error))?;
        self.fill(&at, &Handle::of_data(fd), entry, content)?;
        temporary.rename_to(&at)
    }

    fn create_file(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError> {
        let file = RestoredFile::create(self.base.at(key)?, Arc::clone(&self.metadata), entry.size)?;
        Ok(Box::new(file))
    }

    fn make_other(&self, key: &MapKey, entry: &Entry) -> Result<Option<String>, TargetError> {
        let at = self.base.at(key)?;
        if let Some(message) = self.withheld(&at, entry) {
            return Ok(Some(message));
        }
        let make = |name: &[u8]| make_node(&at, name, entry);
        let result = match make(at.name()) {
            Err(Errno::EXIST) => match Temporary::make(&at, make) {
                Ok((temporary, ())) => {
                    self.dress(&at, temporary.name(), entry)?;
                    return temporary.rename_to(&at).map(|()| None);
                }
                Err(error) => Err(error),
            },
            made => made,
        };
        match result {
            Ok(()) => self.dress(&at, at.name(), entry).map(|()| None),
            Err(Errno::OPNOTSUPP) => Err(at.refused("this kind is not made here")),
            Err(error @ Errno::PERM) => Ok(Some(format!("`{}`: not made: {error}", at.shown()))),
            Err(error) => Err(at.failed("create", error)),
        }
    }

    fn hard_link(&self, key: &MapKey, first: &MapKey) -> Result<(), TargetError> {
        let (at, first) = (self.base.at(key)?, self.base.at(first)?);
        let link = |name: &[u8]| linkat(&first.parent, first.name(), &at.parent, name, AtFlags::empty());
        match link(at.name()) {
            Err(Errno::EXIST) => {}
            linked => return linked.map_err(|error| at.failed("link", error)),
        }
        let identity = |at: &At| at.look().map(|look| look.identity());
        if identity(&at).is_ok_and(|there| identity(&first) == Ok(there)) {
            return Ok(());
        }
        let (temporary, ()) = Temporary::make(&at, link).map_err(|error| at.failed("link", error))?;
        temporary.rename_to(&at)
    }

    fn apply_metadata(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError> {
        let at = self.base.at(key)?;
        if entry.kind == EntryKind::File {
            return Box::new(RestoredFile::open(at, Arc::clone(&self.metadata), entry)?).finish(entry);
        }
        let failed = |error| at.failed("open", error);
        let listed = if entry.kind == EntryKind::Directory {
            at.open(OFlags::RDONLY | OFlags::DIRECTORY)
        } else {
            Err(Errno::ACCESS)
        };
        let handle = match listed {
            Err(Errno::ACCESS) => at.open_place().map_err(failed)?,
            opened => Handle::of_data(opened.map_err(failed)?),
        };
        if handle.look().map_err(failed)?.kind() != Some(entry.kind) {
            return Err(at.refused("something else stands there"));
        }
        self.metadata.apply(&at, &handle, entry)
    }

    fn list_dir(&self, key: Option<&MapKey>) -> Result<Vec<Vec<u8>>, TargetError> {
        let path = key.map_or(Ok(Vec::new()), |key| self.base.path(key))?;
        let mut names = self.names(&path)?;
        if !self.spared.is_empty() {
            let directory = key.cloned().unwrap_or_default();
            names.retain(|name| !self.spares(&directory, name));
        }
        Ok(names)
    }

    fn is_empty(&self) -> Result<bool, TargetError> {
        Ok(self.names(b"")?.is_empty())
    }

    fn is_mounted(&self, key: Option<&MapKey>) -> Result<bool, TargetError> {
        let path = key.map_or(Ok(Vec::new()), |key| self.base.path(key))?;
        match self.base.open_beneath(&path, PASSAGE).and_then(Mount::of) {
            Ok(found) => Ok(found != self.base.mount),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(self.base.failed("look at", &path, error)),
        }
    }

    fn remove(&self, key: &MapKey) -> Result<(), TargetError> {
        let Some(at) = self.base.at_if_any(key)? else { return Ok(()) };
        self.base.forget(at.path());
        remove::remove(&self.base, &at)
    }

    fn free_bytes(&self) -> Result<Option<u64>, TargetError> {
        let found =
            fstatvfs(&self.base.fd).map_err(|error| self.base.failed("ask the free space of", b"", error))?;
        Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    fn file_system(&self) -> Result<Option<u64>, TargetError> {
        Ok(Some(self.base.mount.dev))
    }
}

/// The metadata of what stands at `at`, and its size.
fn read_entry(at: &At) -> OsResult<Entry> {
    let handle = at.open_place()?;
    let look = handle.look()?;
    let Some(kind) = look.kind() else { return Err(Errno::OPNOTSUPP) };
    let mut entry = look.entry(kind);
    entry.xattrs = match handle.xattrs() {
        // Attributes of a file that this user may not read: setting them will show what is possible.
        Err(Errno::ACCESS) => Vec::new(),
        xattrs => xattrs?,
    };
    match kind {
        EntryKind::File => entry.size = look.size,
        EntryKind::Symlink => entry.link_target = Some(handle.read_link()?),
        _ => {}
    }
    Ok(entry)
}

/// Makes a symlink, FIFO, device or socket; `EOPNOTSUPP` for any other kind.
fn make_node(at: &At, name: &[u8], entry: &Entry) -> OsResult<()> {
    let node = |kind, device| mknodat(&at.parent, name, kind, Mode::RUSR | Mode::WUSR, device);
    let device = entry.device.map_or(0, |(major, minor)| makedev(major, minor));
    match entry.kind {
        EntryKind::Symlink => symlinkat(entry.link_target.as_deref().unwrap_or_default(), &at.parent, name),
        EntryKind::Fifo => node(FileType::Fifo, 0),
        EntryKind::Socket => node(FileType::Socket, 0),
        EntryKind::CharDevice => node(FileType::CharacterDevice, device),
        EntryKind::BlockDevice => node(FileType::BlockDevice, device),
        EntryKind::File | EntryKind::Directory | EntryKind::HardLink | EntryKind::Object => {
            Err(Errno::OPNOTSUPP)
        }
    }
}

/// Lets an ordinary owner work in an existing directory that its mode shuts; root is let in anyway.
fn make_usable(at: &At, mode: u32) -> Result<(), TargetError> {
    if mode & 0o700 == 0o700 || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    match at.open_place().and_then(|handle| handle.set_mode(mode | 0o700)) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(at.failed("open up", error)),
    }
}
