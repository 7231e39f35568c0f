//! [`FileSource`]: files as a source of snapshots.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::env::Clock;
use backup_core::source::{Content, Found, Item, Opened, Preflight, Source, SourceError};
use keepwell_catalog::{Entry, EntryKind, MapKey, readable};
use rustix::fs::{OFlags, fstat};
use rustix::io::{Errno, Result};

use crate::content::FileContent;
use crate::handle::Handle;
use crate::look::Look;
use crate::options::FileOptions;
use crate::owners::Owners;
use crate::tree::{Tree, io_error, shown, without_atime};
use crate::walk::Walk;

/// A kernel before 6.13 stamps changes with a clock that may stand still for this long.
const CHANGE_TIME_STEP: Duration = Duration::from_millis(10);

/// Files and directories as a [`Source`].
///
/// Keys are the components of absolute paths, byte for byte. The directories that lead to a given path are captured as
/// well, without what else is in them. No symlink beneath a given path is ever followed, also when another process swaps
/// things during the capture; what vanishes meanwhile is left out, what is replaced by something else is a problem.
///
/// The first name of an inode in key order carries it; further names are [`EntryKind::HardLink`]. Contents are read
/// without changing access times where that is allowed (root, or the owner).
///
/// ```
/// use std::ops::ControlFlow;
/// use std::sync::Arc;
/// use backup_core::env::SystemClock;
/// use backup_core::source::{Found, Source};
/// use keepwell_source_files::{FileOptions, FileSource};
///
/// let options = FileOptions { paths: vec!["/usr/share".into()], ..FileOptions::default() };
/// let source = FileSource::new(&options, Arc::new(SystemClock))?;
/// let mut seen = Vec::new();
/// source.walk(&mut |found| {
///     if let Found::Item(item) = found {
///         seen.push(item.key.display_path());
///     }
///     if seen.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// })?;
/// assert_eq!(seen, ["usr", "usr/share"]);
/// # Ok::<(), backup_core::source::SourceError>(())
/// ```
#[derive(Debug)]
pub struct FileSource {
    tree: Tree,
    owners: Owners,
    clock: Arc<dyn Clock>,
}

impl FileSource {
    /// Checks the options, reads the exclude files and the names of users and groups; looks at none of the paths yet.
    ///
    /// The clock is compared with the change times of files: one that changed within the last 10 ms is read only after
    /// that time, so that a change made after the reading cannot carry the same time stamp and go unnoticed. Where change
    /// times are whole seconds, what changed within the last two is read again by the next capture instead.
    pub fn new(options: &FileOptions, clock: Arc<dyn Clock>) -> std::result::Result<Self, SourceError> {
        Ok(Self { tree: Tree::new(options)?, owners: Owners::of_this_machine(), clock })
    }

    /// The same source without these absolute paths and everything in them, whatever the patterns say: what belongs to the
    /// backups themselves, such as the directory that this very capture is stored in. What was asked for is captured all the
    /// same, and the preflight names those that lie beneath it.
    #[must_use]
    pub fn without(mut self, paths: &[PathBuf]) -> Self {
        let given = self.paths();
        self.tree.rules.leave_out(paths, &given);
        self
    }

    /// A sentence for each path that is there and left out whatever the patterns say; one for three
    /// and more in the same directory, since a cache has a directory for every repository.
    fn excepted(&self) -> Vec<String> {
        let given = self.paths();
        let is_beneath = |path: &Path| given.iter().any(|given| path.starts_with(OsStr::from_bytes(given)));
        let excepted = self.tree.rules.except().iter().filter(|except| !given.contains(except));
        let paths = excepted.map(|except| Path::new(OsStr::from_bytes(except)));
        let mut siblings: BTreeMap<Option<&Path>, Vec<&Path>> = BTreeMap::new();
        for path in paths.filter(|path| is_beneath(path) && path.symlink_metadata().is_ok()) {
            siblings.entry(path.parent()).or_default().push(path);
        }
        let named = |path: &Path| readable(path.as_os_str().as_bytes());
        let sentences = siblings.into_iter().flat_map(|(parent, paths)| match (parent, paths.as_slice()) {
            (Some(parent), [_, _, _, ..]) => vec![format!(
                "{} directories in `{}` are left out: they belong to the backups themselves.",
                paths.len(),
                named(parent)
            )],
            (_, paths) => {
                let sentence = |path: &&Path| {
                    format!("`{}` is left out: it belongs to the backups themselves.", named(path))
                };
                paths.iter().map(sentence).collect()
            }
        });
        sentences.collect()
    }

    fn open_file(&self, path: &[u8]) -> Result<(Look, Handle)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = without_atime(flags, |flags| self.tree.open(path, flags))?;
        self.settled(fd).map(|(look, fd)| (look, Handle::of_data(fd)))
    }

    fn open_place(&self, path: &[u8]) -> Result<(Look, Handle)> {
        let fd = self.tree.open(path, OFlags::PATH)?;
        self.settled(fd).map(|(look, fd)| (look, Handle::of_place(fd)))
    }

    /// Looks at `fd`, and waits until a further change would get another change time.
    fn settled(&self, fd: OwnedFd) -> Result<(Look, OwnedFd)> {
        let look = Look::from(fstat(&fd)?);
        let changed = look.ctime.0.saturating_mul(1_000_000_000).saturating_add(look.ctime.1.into());
        let age = u64::try_from(self.clock.now().saturating_sub(changed)).map(Duration::from_nanos);
        if let Some(wait) = age.ok().and_then(|age| CHANGE_TIME_STEP.checked_sub(age)) {
            std::thread::sleep(wait);
            return Ok((Look::from(fstat(&fd)?), fd));
        }
        Ok((look, fd))
    }

    fn open_item(&self, item: &Item, path: &[u8]) -> std::result::Result<Opened, Failure> {
        let (look, handle) =
            if item.kind == EntryKind::File { self.open_file(path)? } else { self.open_place(path)? };
        if let Some(first) = &item.hard_link {
            return self.open_link(first, &look);
        }
        if look.kind() != Some(item.kind) {
            return Err(Failure::Changed("was replaced by something else while it was captured"));
        }
        let mut entry = self.entry(item.kind, &look);
        entry.xattrs = handle.xattrs()?;
        if item.kind == EntryKind::Symlink {
            entry.link_target = Some(handle.read_link()?);
        }
        let content = (item.kind == EntryKind::File)
            .then(|| Box::new(FileContent::new(handle.into_fd(), look)) as Box<dyn Content>);
        Ok(Opened { entry, content })
    }

    fn open_link(&self, first: &MapKey, look: &Look) -> std::result::Result<Opened, Failure> {
        let first_path = first.to_os_path_bytes().map_err(|_| Errno::INVAL)?;
        let carrier = match self.open_place(&first_path) {
            Err(Errno::NOENT) => return Err(Failure::Changed("lost its first name while it was captured")),
            opened => opened?.0,
        };
        if carrier.identity() != look.identity() {
            return Err(Failure::Changed("is no longer the same file as its first name"));
        }
        let mut entry = self.entry(EntryKind::HardLink, look);
        entry.hard_link = Some(first.clone());
        Ok(Opened { entry, content: None })
    }

    fn entry(&self, kind: EntryKind, look: &Look) -> Entry {
        let mut entry = look.entry(kind);
        entry.user = self.owners.user(look.uid);
        entry.group = self.owners.group(look.gid);
        entry
    }
}

impl Source for FileSource {
    fn kind(&self) -> &str {
        "files"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.tree.roots.paths()
    }

    fn preflight(&self) -> std::result::Result<Preflight, SourceError> {
        let mut notes = Vec::new();
        for path in self.paths() {
            let below_top = path.strip_prefix(b"/").unwrap_or(&path);
            let look = match self.tree.open(below_top, OFlags::PATH).and_then(|fd| fstat(&fd)) {
                Ok(stat) => Look::from(stat),
                Err(Errno::NOENT) => return Err(SourceError::NotFound { path: shown(below_top) }),
                Err(error) => return Err(io_error("open", below_top, error)),
            };
            if look.kind() == Some(EntryKind::Symlink) {
                let path = shown(below_top);
                notes.push(format!("`{path}` is a symlink: the link is captured, not what it leads to."));
            }
        }
        notes.extend(self.excepted());
        if !rustix::process::geteuid().is_root() {
            notes.push("Not running as root: what this user may not read becomes a problem.".to_owned());
        }
        Ok(Preflight { notes })
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> std::result::Result<(), SourceError> {
        // A visitor that breaks off has what it wanted.
        let _ = Walk::new(&self.tree, &*self.clock, visit).run();
        Ok(())
    }

    fn open(&self, item: &Item) -> std::result::Result<Option<Opened>, SourceError> {
        let path = item.key.to_os_path_bytes();
        let path = path.map_err(|error| SourceError::Other(format!("`{}` is no path: {error}", item.key)))?;
        match self.open_item(item, &path) {
            Ok(opened) => Ok(Some(opened)),
            Err(Failure::Os(Errno::NOENT)) => Ok(None),
            Err(Failure::Os(error)) => Err(io_error("open", &path, error)),
            Err(Failure::Changed(fact)) => Err(SourceError::Other(format!("`{}` {fact}", shown(&path)))),
        }
    }
}

/// Why an item could not be opened.
enum Failure {
    Os(Errno),
    /// It is no longer what the walk saw.
    Changed(&'static str),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Os(error)
    }
}
