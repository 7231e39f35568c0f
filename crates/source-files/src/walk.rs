//! The walk: every item in key order, one `lstat` each.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use backup_core::env::Clock;
use backup_core::source::{Found, Item};
use keepwell_catalog::{EntryKind, MapKey};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::{Errno, Result};

use crate::beneath::PASSAGE;
use crate::ladder::Ladder;
use crate::listing::{Listing, ListingBuffer};
use crate::look::Look;
use crate::roots::{NodeId, Roots};
use crate::rules::{CACHE_TAG, Layer, is_cache};
use crate::tree::{Tree, without_atime};

type Visit<'a> = &'a mut dyn FnMut(Found) -> ControlFlow<()>;

/// A walk in progress. It holds the names in the directories from the top to the current one (some 30 bytes each), one key
/// for each inode that has names still to come, and a bounded number of descriptors: no more, however large or deep the tree.
pub(crate) struct Walk<'a> {
    tree: &'a Tree,
    clock: &'a dyn Clock,
    visit: Visit<'a>,
    steps: Vec<Step>,
    ladder: Ladder,
    /// The absolute path of what is looked at; empty for `/`.
    path: Vec<u8>,
    links: HashMap<(u64, u64), Link>,
    buffer: ListingBuffer,
}

/// A directory on the way from the top to the current one.
struct Step {
    key: MapKey,
    listing: Listing,
    /// Bytes of [`Walk::path`] that name it.
    path_bytes: usize,
    scope: Scope,
    layer: Option<Arc<Layer>>,
}

/// What of a directory is captured.
#[derive(Clone, Copy)]
struct Scope {
    /// Its node if it is on the way to a given path.
    node: Option<NodeId>,
    /// Whether everything in it is, or only what leads to a given path.
    whole: bool,
    /// The file system to stay on.
    dev: u64,
}

/// An inode with names still to come.
struct Link {
    first: MapKey,
    names_to_come: u64,
}

impl<'a> Walk<'a> {
    pub fn new(tree: &'a Tree, clock: &'a dyn Clock, visit: Visit<'a>) -> Self {
        let (ladder, links) = (Ladder::default(), HashMap::new());
        let (steps, path, buffer) = (Vec::new(), Vec::new(), ListingBuffer::new());
        Self { tree, clock, visit, steps, ladder, path, links, buffer }
    }

    /// Walks to the end, or until the visitor breaks off.
    pub fn run(mut self) -> ControlFlow<()> {
        let whole = self.tree.roots.is_given(Roots::TOP);
        let opened = without_atime(directory_flags(whole), |flags| self.tree.open(b"", flags));
        let looked = opened.and_then(|fd| Ok((Look::from(fstat(&fd)?), fd)));
        let scope = |dev| Scope { node: Some(Roots::TOP), whole, dev };
        match looked {
            Ok((look, fd)) => self.enter(MapKey::root(), scope(look.dev), fd, look.identity())?,
            Err(error) => self.problem(MapKey::root(), &format!("cannot be opened: {error}"))?,
        }
        while let Some(step) = self.steps.last_mut() {
            self.path.truncate(step.path_bytes);
            let Some((name, kind)) = step.listing.advance() else {
                self.steps.pop();
                self.ladder.pop();
                continue;
            };
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            let node = step.scope.node.and_then(|node| self.tree.roots.child(node, name));
            match step.key.child(name) {
                Ok(key) => self.look_at(key, node, kind)?,
                Err(error) => {
                    let key = step.key.clone();
                    self.problem(key, &format!("something in it cannot be recorded: {error}"))?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Looks at [`Walk::path`], visits it, and goes in if it is a directory to go into.
    fn look_at(&mut self, key: MapKey, node: Option<NodeId>, listed: FileType) -> ControlFlow<()> {
        let is_listed = listed != FileType::Unknown;
        if is_listed && node.is_none() && self.is_left_out(listed == FileType::Directory) {
            return ControlFlow::Continue(());
        }
        let look = match self.stat(node) {
            Ok(look) => look,
            Err(Errno::NOENT) if node.is_none() => return ControlFlow::Continue(()),
            Err(error) => return self.problem(key, &format!("cannot be looked at: {error}")),
        };
        let left_out = !(is_listed && node.is_none()) && self.is_left_out(look.is_dir());
        let too_large = look.is_file() && look.size > self.tree.rules.larger_than;
        if node.is_none() && (left_out || too_large) {
            return ControlFlow::Continue(());
        }
        let Some(kind) = look.kind() else {
            return self.problem(key, "is a type of file that is not known");
        };
        if kind != EntryKind::Directory {
            let hard_link = self.first_name(&key, &look);
            return self.item(key, kind, &look, hard_link);
        }
        self.item(key.clone(), kind, &look, None)?;
        match self.scope(node, &look, left_out) {
            Some(scope) => self.descend(key, scope, &look),
            None => ControlFlow::Continue(()),
        }
    }

    /// Whether a pattern leaves out [`Walk::path`].
    fn is_left_out(&self, is_dir: bool) -> bool {
        let Some(Step { scope, layer, .. }) = self.steps.last() else { return false };
        let rules = &self.tree.rules;
        scope.whole
            && rules.have_patterns(layer.as_deref())
            && rules.leaves_out(layer.as_deref(), &self.path, is_dir)
    }

    /// What to capture in the directory just looked at; `None` for nothing.
    fn scope(&self, node: Option<NodeId>, look: &Look, left_out: bool) -> Option<Scope> {
        let roots = &self.tree.roots;
        let above = self.steps.last()?.scope;
        if node.is_some_and(|node| roots.is_given(node)) {
            return Some(Scope { node, whole: true, dev: look.dev });
        }
        let stays = !self.tree.rules.one_file_system || look.dev == above.dev;
        let whole = above.whole && stays && !left_out;
        let leads_on = node.is_some_and(|node| roots.leads_on(node));
        (whole || leads_on).then_some(Scope { node, whole, dev: above.dev })
    }

    fn stat(&mut self, node: Option<NodeId>) -> Result<Look> {
        let flags = if self.follows(node) { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let (directory, name) = here(&mut self.ladder, self.tree, &self.path)?;
        statat(directory, name, flags).map(Look::from)
    }

    /// Whether a symlink is followed: only on the way to a given path.
    fn follows(&self, node: Option<NodeId>) -> bool {
        node.is_some_and(|node| self.tree.roots.leads_on(node))
    }

    /// The first name of an inode that has several; remembers `key` if it is the first.
    fn first_name(&mut self, key: &MapKey, look: &Look) -> Option<MapKey> {
        if look.nlink < 2 {
            return None;
        }
        let Some(link) = self.links.get_mut(&look.identity()) else {
            self.links.insert(look.identity(), Link { first: key.clone(), names_to_come: look.nlink - 1 });
            return None;
        };
        link.names_to_come -= 1;
        if link.names_to_come > 0 {
            return Some(link.first.clone());
        }
        self.links.remove(&look.identity()).map(|link| link.first)
    }

    fn item(
        &mut self,
        key: MapKey,
        kind: EntryKind,
        look: &Look,
        hard_link: Option<MapKey>,
    ) -> ControlFlow<()> {
        let kind = if hard_link.is_some() { EntryKind::HardLink } else { kind };
        let size = if kind == EntryKind::File { look.size } else { 0 };
        let fingerprint = look.fingerprint(hard_link.as_ref().map(MapKey::as_bytes), self.clock.now());
        (self.visit)(Found::Item(Item { key, kind, size, fingerprint, hard_link }))
    }

    fn problem(&mut self, key: MapKey, message: &str) -> ControlFlow<()> {
        (self.visit)(Found::Problem { key, message: message.to_owned() })
    }

    /// Opens the directory [`Walk::path`], of which `seen` is the last look, and makes it the current one.
    fn descend(&mut self, key: MapKey, scope: Scope, seen: &Look) -> ControlFlow<()> {
        let nofollow = if self.follows(scope.node) { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = directory_flags(scope.whole) | nofollow | OFlags::CLOEXEC;
        let opened = here(&mut self.ladder, self.tree, &self.path).and_then(|(directory, name)| {
            let fd = without_atime(flags, |flags| openat(directory, name, flags, Mode::empty()))?;
            Ok((Look::from(fstat(&fd)?).identity(), fd))
        });
        match opened {
            Ok((identity, fd)) if identity == seen.identity() => self.enter(key, scope, fd, identity),
            Ok(_) | Err(Errno::LOOP | Errno::NOTDIR) => self.problem(key, "was replaced while it was walked"),
            Err(Errno::NOENT) => ControlFlow::Continue(()),
            Err(error) => self.problem(key, &format!("cannot be opened: {error}")),
        }
    }

    /// Lists the directory open at `fd` and makes it the current one.
    fn enter(&mut self, key: MapKey, scope: Scope, fd: OwnedFd, identity: (u64, u64)) -> ControlFlow<()> {
        let mut listing = Listing::default();
        let mut layer = self.steps.last().and_then(|step| step.layer.clone());
        if scope.whole {
            let (read, result) = Listing::read(&fd, &mut self.buffer);
            listing = read;
            if let Err(error) = result {
                self.problem(key.clone(), &format!("cannot be listed to its end: {error}"))?;
            }
            if self.tree.rules.exclude_caches && listing.contains(CACHE_TAG) && is_cache(&fd) {
                listing.retain(CACHE_TAG);
            }
            layer = self.ignore_files(&key, &listing, &fd, layer)?;
        }
        if let Some(node) = scope.node {
            listing.include(self.tree.roots.names(node));
        }
        self.steps.push(Step { key, listing, path_bytes: self.path.len(), scope, layer });
        self.ladder.push(fd, identity);
        ControlFlow::Continue(())
    }

    /// Adds the ignore files of a directory to those above.
    fn ignore_files(
        &mut self,
        key: &MapKey,
        listing: &Listing,
        fd: &OwnedFd,
        mut layer: Option<Arc<Layer>>,
    ) -> ControlFlow<(), Option<Arc<Layer>>> {
        for name in &self.tree.rules.ignore_file_names {
            if listing.contains(name) {
                let (with_it, result) = Layer::read(fd, name, &self.path, layer);
                layer = with_it;
                if let Err(message) = result {
                    let file = key.child(name).unwrap_or_else(|_| key.clone());
                    self.problem(file, &message)?;
                }
            }
        }
        ControlFlow::Continue(layer)
    }
}

/// The current directory, and the last name of `path` in it.
fn here<'w>(ladder: &'w mut Ladder, tree: &Tree, path: &'w [u8]) -> Result<(BorrowedFd<'w>, &'w [u8])> {
    let slash = path.iter().rposition(|&byte| byte == b'/').ok_or(Errno::NOENT)?;
    let directory =
        ladder.top(|| tree.open(path[..slash].strip_prefix(b"/").unwrap_or_default(), PASSAGE))?;
    Ok((directory, &path[slash + 1..]))
}

/// A directory that is not listed needs no right to read it.
fn directory_flags(listed: bool) -> OFlags {
    if listed { OFlags::RDONLY | OFlags::DIRECTORY } else { PASSAGE }
}
