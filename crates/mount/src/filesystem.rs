//! What the kernel is told of: what lies where, and what is open of it.

mod answers;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use backup_core::{Browser, Error, OpenFile, Repository, Snapshot, SnapshotState, Tree, one_line};
use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, ReplyDirectory};
use keepwell_catalog::{Entry, EntryKind, Manifest, MapKey};
use tokio::runtime::Handle;

use crate::attributes::{attributes, kind, made_up};
use crate::directory::{BATCH, Line, Listing};
use crate::kept::Kept;
use crate::nodes::{Nodes, Place};
use crate::shown::Shown;
use crate::top::{Made, Top};
use crate::{MountOptions, lock, sweep};

/// What a snapshot holds never changes.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);
/// The made-up top does.
const SHORTLY: Duration = Duration::from_secs(1);
/// Of the memory limit, this part is for the table of what the kernel knows …
const NODES_SHARE: usize = 16;
/// … of which one takes about so much.
const NODE_BYTES: usize = 400;

/// What lies where, and what is open of it.
pub(crate) struct Snapshots {
    repository: Repository,
    browser: Browser,
    handle: Handle,
    options: MountOptions,
    top: RwLock<Arc<Top>>,
    looked: Mutex<Instant>,
    nodes: Arc<Nodes>,
    entries: Mutex<Kept>,
    files: Mutex<HashMap<u64, Arc<Opened>>>,
    listings: Mutex<HashMap<u64, Arc<Mutex<Listing>>>>,
    next_handle: AtomicU64,
}

struct Opened {
    shown: Arc<Shown>,
    key: MapKey,
    file: OpenFile,
}

type Answer<T> = Result<T, Errno>;

impl Snapshots {
    pub async fn new(repository: &Repository, options: MountOptions) -> Result<Self, Error> {
        let listed = list(repository, &options).await?;
        let limit = repository.limits().memory_bytes / NODES_SHARE / NODE_BYTES;
        Ok(Self {
            repository: repository.clone(),
            browser: repository.browser(),
            handle: Handle::current(),
            options,
            top: RwLock::new(Arc::new(Top::new(listed, None))),
            looked: Mutex::new(Instant::now()),
            nodes: Arc::new(Nodes::new(limit)),
            entries: Mutex::default(),
            files: Mutex::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    pub fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes)
    }

    /// Looks for new snapshots, if it is time. Others meanwhile see the old ones.
    fn refresh(&self) {
        let Ok(mut looked) = self.looked.try_lock() else { return };
        if looked.elapsed() < self.options.refresh_every {
            return;
        }
        match self.handle.block_on(list(&self.repository, &self.options)) {
            Ok(listed) => {
                let top = Arc::new(Top::new(listed, Some(&self.top())));
                *self.top.write().unwrap_or_else(PoisonError::into_inner) = top;
            }
            Err(error) => self.options.monitor.problem("snapshots", &one_line(&error)),
        }
        *looked = Instant::now();
    }

    fn top(&self) -> Arc<Top> {
        Arc::clone(&self.top.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn place(&self, ino: INodeNo) -> Answer<Place> {
        self.nodes.place(ino.0).ok_or(Errno::ENOENT)
    }

    /// Says why something cannot be had, to those who cannot see it in the error number.
    fn failed(&self, shown: &Shown, key: &MapKey, error: &Error) -> Errno {
        if matches!(error, Error::NoSuchPath { .. }) {
            return Errno::ENOENT;
        }
        let item = format!("{}:/{}", shown.name, key.display_path());
        self.options.monitor.problem(&item, &one_line(error));
        Errno::EIO
    }

    fn tree<'s>(&self, shown: &'s Shown) -> Result<&'s Tree, Error> {
        shown.tree(&self.browser, &self.handle)
    }

    /// The entry at a key; of a further name of a file, that file.
    fn entry(&self, shown: &Arc<Shown>, key: &MapKey) -> Result<Option<(MapKey, Arc<Entry>)>, Error> {
        let tree = self.tree(shown)?;
        let kept = lock(&self.entries).get(shown, key);
        let entry = match kept {
            Some(entry) => entry,
            None => match tree.entry_blocking(key)? {
                Some(entry) => lock(&self.entries).keep(shown, key, entry),
                None => return Ok(None),
            },
        };
        if entry.kind != EntryKind::HardLink {
            return Ok(Some((key.clone(), entry)));
        }
        let (first, entry) = tree.resolve_blocking(key)?;
        let entry = lock(&self.entries).keep(shown, &first, entry);
        Ok(Some((first, entry)))
    }

    fn entry_at(&self, shown: &Arc<Shown>, key: &MapKey) -> Answer<(MapKey, Arc<Entry>)> {
        let found = self.entry(shown, key).map_err(|error| self.failed(shown, key, &error))?;
        found.ok_or(Errno::ENOENT)
    }

    fn attributes_at(&self, ino: u64, place: &Place) -> Answer<(Duration, FileAttr)> {
        match place {
            Place::Made(path) => match self.top().find(path).ok_or(Errno::ENOENT)? {
                Made::Directory(_) => {
                    Ok((SHORTLY, made_up(ino, FileType::Directory, 0, SystemTime::UNIX_EPOCH)))
                }
                Made::Link(to) => {
                    let size = to.len() as u64;
                    Ok((SHORTLY, made_up(ino, FileType::Symlink, size, SystemTime::UNIX_EPOCH)))
                }
                Made::Snapshot(_) => Err(Errno::ENOENT),
            },
            Place::Inside(shown, key) => {
                let (_, entry) = self.entry_at(shown, key)?;
                Ok((FOR_EVER, self.attributes_of(ino, shown, key, &entry)?))
            }
        }
    }

    fn attributes_of(&self, ino: u64, shown: &Shown, key: &MapKey, entry: &Entry) -> Answer<FileAttr> {
        if *key == MapKey::root() && entry.mtime == (0, 0) {
            return Ok(made_up(ino, FileType::Directory, 0, shown.taken));
        }
        let counts = entry.kind != EntryKind::Directory;
        let names = if counts { self.tree(shown).map(|tree| shown.names(tree, key)) } else { Ok(1) };
        Ok(attributes(ino, entry, names.map_err(|error| self.failed(shown, key, &error))?))
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<(Duration, FileAttr)> {
        match self.place(parent)? {
            Place::Made(mut path) => {
                self.refresh();
                path.push(name.as_bytes().to_vec());
                let top = self.top();
                let place = match top.find(&path).ok_or(Errno::ENOENT)? {
                    Made::Snapshot(shown) => Place::Inside(Arc::clone(shown), MapKey::root()),
                    _ => Place::Made(path),
                };
                let ino = self.nodes.tell(place.clone(), None);
                let (_, attributes) =
                    self.attributes_at(ino, &place).inspect_err(|_| self.nodes.forget(ino, 1))?;
                Ok((SHORTLY, attributes))
            }
            Place::Inside(shown, directory) => {
                let key = directory.child(name.as_bytes()).map_err(|_| Errno::ENAMETOOLONG)?;
                let (first, entry) = self.entry_at(&shown, &key)?;
                let place = Place::Inside(Arc::clone(&shown), first.clone());
                let found = (parent.0, name.as_bytes().to_vec());
                let found = (entry.kind != EntryKind::Directory).then_some(found);
                let mut attributes = self.attributes_of(0, &shown, &first, &entry)?;
                attributes.ino = INodeNo(self.nodes.tell(place, found));
                Ok((FOR_EVER, attributes))
            }
        }
    }

    /// The lines of a made-up directory; all of them at once.
    fn made_lines(&self, path: &[Vec<u8>]) -> Vec<Line> {
        let top = self.top();
        let Some(Made::Directory(children)) = top.find(path) else { return Vec::new() };
        let line = |(name, made): (&Vec<u8>, &Made)| {
            let (place, kind) = match made {
                Made::Snapshot(shown) => {
                    (Place::Inside(Arc::clone(shown), MapKey::root()), FileType::Directory)
                }
                Made::Directory(_) => {
                    (Place::Made([path, std::slice::from_ref(name)].concat()), FileType::Directory)
                }
                Made::Link(_) => {
                    (Place::Made([path, std::slice::from_ref(name)].concat()), FileType::Symlink)
                }
            };
            Line { ino: self.nodes.number(&place), kind, name: name.clone() }
        };
        children.iter().map(line).collect()
    }

    /// The next lines of a directory in a snapshot.
    fn lines(&self, shown: &Arc<Shown>, key: &MapKey, after: Option<&[u8]>) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        for (child, entry) in self.tree(shown)?.children_blocking(key, after, BATCH)? {
            let name = child.name().map(|name| name.into_owned()).unwrap_or_default();
            let carrier = entry.hard_link.clone().unwrap_or_else(|| child.clone());
            let ino = self.nodes.number(&Place::Inside(Arc::clone(shown), carrier));
            lines.push(Line { ino, kind: kind(entry.kind), name });
            lock(&self.entries).keep(shown, &child, entry);
        }
        Ok(lines)
    }

    fn hand_out(&self, ino: INodeNo, fh: FileHandle, from: u64, reply: &mut ReplyDirectory) -> Answer<()> {
        let listing = lock(&self.listings).get(&fh.0).cloned().ok_or(Errno::EBADF)?;
        let place = self.place(ino)?;
        let mut read = |after: Option<&[u8]>| match &place {
            Place::Made(path) => {
                let behind = |line: &Line| after.is_none_or(|after| line.name.as_slice() > after);
                Ok(self.made_lines(path).into_iter().filter(behind).collect())
            }
            Place::Inside(shown, key) => self.lines(shown, key, after),
        };
        let mut take = |next: u64, line: &Line| reply.add(INodeNo(line.ino), next, line.kind, line.name());
        let done = lock(&listing).hand_out(from, &mut read, &mut take);
        done.map_err(|error| match &place {
            Place::Inside(shown, key) => self.failed(shown, key, &error),
            Place::Made(_) => Errno::EIO,
        })
    }

    fn open_file(&self, ino: INodeNo) -> Answer<u64> {
        let Place::Inside(shown, key) = self.place(ino)? else { return Err(Errno::EINVAL) };
        let opened = self.tree(&shown).and_then(|tree| tree.open_blocking(&key));
        let file = opened.map_err(|error| self.failed(&shown, &key, &error))?;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.files).insert(handle, Arc::new(Opened { shown, key, file }));
        Ok(handle)
    }

    fn opened(&self, fh: FileHandle) -> Answer<Arc<Opened>> {
        lock(&self.files).get(&fh.0).cloned().ok_or(Errno::EBADF)
    }

    fn target(&self, ino: INodeNo) -> Answer<Vec<u8>> {
        match self.place(ino)? {
            Place::Made(path) => match self.top().find(&path) {
                Some(Made::Link(target)) => Ok(target.clone()),
                _ => Err(Errno::EINVAL),
            },
            Place::Inside(shown, key) => {
                let (_, entry) = self.entry_at(&shown, &key)?;
                entry.link_target.clone().ok_or(Errno::EINVAL)
            }
        }
    }

    /// Runs with the extended attributes of an inode.
    fn xattrs<T>(&self, ino: INodeNo, look: impl FnOnce(&[(Vec<u8>, Vec<u8>)]) -> T) -> Answer<T> {
        match self.place(ino)? {
            Place::Made(_) => Ok(look(&[])),
            Place::Inside(shown, key) => Ok(look(&self.entry_at(&shown, &key)?.1.xattrs)),
        }
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots").field("repository", &self.repository).finish_non_exhaustive()
    }
}

impl Nodes {
    /// Begins to keep the table small; without it the table would grow as long as the kernel has memory.
    pub fn sweep_with(self: &Arc<Self>, notifier: fuser::Notifier) -> std::io::Result<()> {
        sweep::start(Arc::clone(self), notifier)
    }
}

/// The snapshots to show, oldest first. Those whose manifests cannot be read are reported and left out.
async fn list(repository: &Repository, options: &MountOptions) -> Result<Vec<(Snapshot, Manifest)>, Error> {
    let mut listed = Vec::new();
    for snapshot in repository.snapshots().await? {
        match &snapshot.state {
            SnapshotState::Readable(manifest) if (options.accepts)(&snapshot) => {
                let manifest = Manifest::clone(manifest);
                listed.push((snapshot, manifest));
            }
            SnapshotState::Damaged(reason) => options.monitor.problem(&snapshot.short(), reason),
            SnapshotState::Readable(_) => {}
            // A credential that cannot decrypt has nothing to show.
            SnapshotState::Sealed => {
                snapshot.manifest()?;
            }
        }
    }
    Ok(listed)
}
