//! Going through the tree of a snapshot: what goes where, and in which order.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use keepwell_catalog::{Entry, EntryKind, Gap, MapKey, MapReader};
use keepwell_crypto::ChunkId;

use super::chosen::{kept_of, others};
use super::directories::{Directories, Finished, Left};
use super::job::Job;
use super::parts::Parts;
use super::window::{EXTENTS_MAX, Link, Window};
use super::{RestoreOptions, Work, deliver, is_fatal};
use crate::Error;
use crate::error::{one_line, shown};
use crate::read::Nodes;
use crate::target::TargetError;

/// Files with several names whose place is remembered; that of others is found in the tree again.
const FIRST_NAMES_MAX: usize = 16_384;

/// A step through the selected part of a tree.
pub(super) enum Visit<'v> {
    /// Something to restore at `target`; `source` is its key in the snapshot. Directories come before their content. Of a
    /// file with many extents this is the head.
    Entry { source: &'v MapKey, target: &'v MapKey, entry: &'v Entry },
    /// A directory of which the snapshot says nothing, or nothing that can be read, and which holds something that comes.
    Parent { target: &'v MapKey },
    /// All of the directory `source` was visited. `target` is `None` for the target's root. `names` are all that it has in
    /// the snapshot, where that is known and the options ask for what is not among them to be removed.
    Leave { source: &'v MapKey, target: Option<&'v MapKey>, names: Option<&'v [Vec<u8>]> },
    /// A part of the tree that cannot be read.
    Unread { gap: &'v Gap, error: Error },
}

/// A directory on the way to the current entry.
struct Level {
    source: MapKey,
    target: Option<MapKey>,
    entry: Option<Entry>,
    made: bool,
    names: Option<Vec<Vec<u8>>>,
    /// Whether `names` are all that it has.
    whole: bool,
}

impl Level {
    fn known_names(&self) -> Option<&[Vec<u8>]> {
        self.names.as_deref().filter(|_| self.whole)
    }
}

/// Visits what the options select.
pub(super) fn visit(
    reader: &MapReader<'_>,
    options: &RestoreOptions,
    snapshot: &str,
    step: &mut dyn FnMut(Visit<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let below = options.below.clone().unwrap_or_else(MapKey::root);
    let top = Level {
        source: below.clone(),
        target: None,
        entry: None,
        made: true,
        names: options.delete.then(Vec::new),
        whole: true,
    };
    let mut levels = vec![top];
    let mut seen = false;
    let mut entries = reader.heads_below(&below)?;
    while let Some(item) = entries.next() {
        seen = true;
        let (key, entry) = match item {
            Ok(found) => found,
            Err(error) => {
                let Some(gap) = entries.pass()? else { return Err(error.into()) };
                levels.iter_mut().for_each(|level| level.whole = false);
                step(Visit::Unread { gap: &gap, error: error.into() })?;
                continue;
            }
        };
        if key == below {
            if entry.kind != EntryKind::Directory {
                let name = key.name().map(|n| n.into_owned()).unwrap_or_default();
                let target = MapKey::from_components([name])?;
                return step(Visit::Entry { source: &key, target: &target, entry: &entry });
            }
            continue;
        }
        while levels.len() > 1 && !levels.last().is_some_and(|l| key.starts_with(&l.source)) {
            leave(&mut levels, step)?;
        }
        let target = descend(&mut levels, &key)?;
        let selected = options.select.as_ref().is_none_or(|select| select(&key, &entry));
        if selected {
            make_parents(&mut levels, step)?;
            step(Visit::Entry { source: &key, target: &target, entry: &entry })?;
        }
        if entry.kind == EntryKind::Directory {
            let (source, target, entry) = (key, Some(target), Some(entry));
            let names = options.delete.then(Vec::new);
            levels.push(Level { source, target, entry, made: selected, names, whole: true });
        }
    }
    while levels.len() > 1 {
        leave(&mut levels, step)?;
    }
    if !seen && options.below.is_some() {
        return Err(Error::NoSuchPath { path: shown(&below), snapshot: snapshot.to_owned() });
    }
    step(Visit::Leave { source: &levels[0].source, target: None, names: levels[0].known_names() })
}

/// Enters the directories above a key that have no entry that could be read, and gives its place in the target.
fn descend(levels: &mut Vec<Level>, key: &MapKey) -> Result<MapKey, Error> {
    loop {
        let level = levels.last_mut().expect("the top level is never left");
        let depth = level.source.depth();
        let name = key.components().nth(depth).map(|name| name.into_owned()).unwrap_or_default();
        let target = match &level.target {
            Some(parent) => parent.child(&name)?,
            None => MapKey::from_components([&name])?,
        };
        let source = level.source.child(&name)?;
        if let Some(names) = &mut level.names {
            names.push(name);
        }
        if key.depth() <= depth + 1 {
            return Ok(target);
        }
        let target = Some(target);
        levels.push(Level { source, target, entry: None, made: false, names: None, whole: false });
    }
}

/// Directories that were not selected themselves but hold something that is.
fn make_parents(
    levels: &mut [Level],
    step: &mut dyn FnMut(Visit<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    for level in levels.iter_mut().filter(|l| !l.made) {
        level.made = true;
        match (&level.target, &level.entry) {
            (Some(target), Some(entry)) => step(Visit::Entry { source: &level.source, target, entry })?,
            (Some(target), None) => step(Visit::Parent { target })?,
            (None, _) => {}
        }
    }
    Ok(())
}

fn leave(levels: &mut Vec<Level>, step: &mut dyn FnMut(Visit<'_>) -> Result<(), Error>) -> Result<(), Error> {
    match levels.pop() {
        Some(level) if level.made => {
            let (source, target) = (&level.source, level.target.as_ref());
            step(Visit::Leave { source, target, names: level.known_names() })
        }
        _ => Ok(()),
    }
}

/// Everything of a restore that happens in tree order; content is delivered window by window.
struct Restorer<'w> {
    work: &'w Work,
    options: &'w RestoreOptions,
    reader: MapReader<'w>,
    window: Window,
    /// Where files are restored that have further names, by their key in the snapshot; only the last of them.
    first_names: HashMap<MapKey, MapKey>,
    /// Likewise of files that are restored under another name than their first. All of them: nothing else tells.
    carriers: HashMap<MapKey, MapKey>,
    directories: Directories,
}

/// Runs a restore on an ordinary thread.
pub(super) fn restore(
    work: &Work,
    nodes: &Nodes,
    root: ChunkId,
    options: &RestoreOptions,
    snapshot: &str,
) -> Result<(), Error> {
    let reader = MapReader::new(nodes, root);
    let mut restorer = Restorer {
        work,
        options,
        reader: MapReader::new(nodes, root),
        window: Window::default(),
        first_names: HashMap::new(),
        carriers: HashMap::new(),
        directories: Directories::default(),
    };
    visit(&reader, options, snapshot, &mut |step| restorer.step(step))?;
    restorer.finish()
}

impl Restorer<'_> {
    fn step(&mut self, step: Visit<'_>) -> Result<(), Error> {
        self.work.repository.cancel().check()?;
        match step {
            Visit::Entry { source, target, entry } => {
                let done = self.refuse_kept(source, target, entry);
                let done = done.and_then(|()| self.place(source, target, entry));
                done.or_else(|error| self.work.problem(target, error))
            }
            Visit::Parent { target } => {
                let made = self.work.target.make_dir(target, &unknown_directory());
                made.or_else(|error| self.work.problem(target, error.into()))
            }
            Visit::Leave { source, target, names } => self.leave(source, target, names),
            Visit::Unread { error, .. } if is_fatal(&error) => Err(error),
            Visit::Unread { gap, error } => {
                let reason = format_args!("{}; nothing is restored {gap}", one_line(&error)).to_string();
                self.work.problem(&gap.from, Error::damaged("the tree", reason))
            }
        }
    }

    /// Refuses where a directory would make way with something in it that the options do not choose.
    fn refuse_kept(&self, source: &MapKey, target: &MapKey, entry: &Entry) -> Result<(), Error> {
        let work = self.work;
        let is_asked = work.delete && !work.fresh && self.options.select.is_some();
        if !is_asked || entry.kind == EntryKind::Directory || !is_directory(work, target)? {
            return Ok(());
        }
        match kept_of(&*work.target, self.options, source, target)? {
            None => Ok(()),
            Some(kept) => {
                let reason = format!("a directory stands there, and `{}` is not chosen", shown(&kept));
                Err(TargetError::Refused { path: shown(target), reason }.into())
            }
        }
    }

    fn place(&mut self, source: &MapKey, target: &MapKey, entry: &Entry) -> Result<(), Error> {
        let work = self.work;
        match entry.kind {
            EntryKind::Directory => {
                work.target.make_dir(target, entry)?;
                work.tally.directories.fetch_add(1, Ordering::Relaxed);
                self.directories.enter(target, entry, self.window.next());
            }
            EntryKind::File | EntryKind::Object => self.content(source, target, entry)?,
            EntryKind::HardLink => return self.place_link(source, target, entry),
            _ => {
                make_way(work, target)?;
                if let Some(left_out) = work.target.make_other(target, entry)? {
                    work.tally.leave_out(left_out);
                }
                work.tally.others.fetch_add(1, Ordering::Relaxed);
                work.repository.monitor().advance(1, 0);
            }
        }
        Ok(())
    }

    /// A further name of a file. If its first name is not restored, the first of these names becomes the file.
    fn place_link(&mut self, source: &MapKey, target: &MapKey, entry: &Entry) -> Result<(), Error> {
        let first = entry
            .hard_link
            .as_ref()
            .ok_or_else(|| Error::damaged(shown(target), "a hard link without a first name"))?;
        if let Some(restored) = self.carriers.get(first).or_else(|| self.first_names.get(first)) {
            let restored = restored.clone();
            return self.queue_link(target, restored);
        }
        let head = self.reader.heads_below(first)?.next().transpose()?.filter(|(key, _)| key == first);
        let carrier = head.filter(|(_, entry)| entry.kind != EntryKind::HardLink);
        let (_, whole) = carrier.ok_or_else(|| {
            Error::damaged(
                shown(target),
                format_args!("`{}`, its first name, is not in the tree", shown(first)),
            )
        })?;
        if self.is_selected(first, &whole)
            && first < source
            && let Some(restored) = relative(first, common_prefix_len(source, target))
        {
            if self.first_names.len() >= FIRST_NAMES_MAX {
                self.first_names.clear();
            }
            self.first_names.insert(first.clone(), restored.clone());
            return self.queue_link(target, restored);
        }
        self.carriers.insert(first.clone(), target.clone());
        self.place(first, target, &whole)
    }

    /// Restores the content of a file, now or with the window. One that fills a window by itself is delivered in parts.
    fn content(&mut self, source: &MapKey, target: &MapKey, head: &Entry) -> Result<(), Error> {
        let with = |content| Entry { content, more_extents: 0, ..head.clone() };
        if head.more_extents == 0 {
            return self.queue(Job::new(target.clone(), head.clone()));
        }
        let reader = self.reader;
        let mut extents = reader.extents(source, head)?;
        let mut part = extents.by_ref().take(EXTENTS_MAX).collect::<Result<Vec<_>, _>>()?;
        if part.len() < EXTENTS_MAX {
            return self.queue(Job::new(target.clone(), with(part)));
        }
        self.flush()?;
        let mut parts = Parts::begin(self.work, target)?;
        while !part.is_empty() {
            if !parts.deliver(self.work, target, with(part))? {
                return Ok(());
            }
            part = extents.by_ref().take(EXTENTS_MAX).collect::<Result<Vec<_>, _>>()?;
        }
        parts.finish(self.work, head)
    }

    /// Whether a thing is restored by this run, and can be linked to then: a device may be left out. What stands in the target
    /// under its name says nothing.
    fn is_selected(&self, source: &MapKey, entry: &Entry) -> bool {
        let is_made = matches!(entry.kind, EntryKind::Symlink | EntryKind::Fifo | EntryKind::Socket);
        (entry.kind.has_content() || is_made)
            && self.options.below.as_ref().is_none_or(|below| source.starts_with(below))
            && self.options.select.as_ref().is_none_or(|select| select(source, entry))
    }

    fn queue(&mut self, job: Job) -> Result<(), Error> {
        self.window.push(job);
        self.flush_if_full()
    }

    fn queue_link(&mut self, target: &MapKey, first: MapKey) -> Result<(), Error> {
        self.window.push_link(Link { key: target.clone(), first });
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), Error> {
        if self.window.is_full() { self.flush() } else { Ok(()) }
    }

    /// Delivers the window: files, then links to them, then the metadata of directories that only waited for these.
    fn flush(&mut self) -> Result<(), Error> {
        let (jobs, links) = self.window.take();
        deliver::deliver(self.work, &jobs)?;
        drop(jobs);
        for Link { key, first } in links {
            if self.work.has_failed(&first) {
                let reason = format!("`{}`, the same file, could not be restored", shown(&first));
                self.work.problem(&key, Error::damaged(shown(&key), reason))?;
                continue;
            }
            let linked = make_way(self.work, &key);
            match linked.and_then(|()| Ok(self.work.target.hard_link(&key, &first)?)) {
                Ok(()) => {
                    self.work.tally.others.fetch_add(1, Ordering::Relaxed);
                    self.work.repository.monitor().advance(1, 0);
                }
                Err(error) => self.work.problem(&key, error)?,
            }
        }
        let waited = self.directories.delivered();
        waited.into_iter().try_for_each(|directory| finish_directory(self.work, directory))
    }

    fn leave(
        &mut self,
        source: &MapKey,
        target: Option<&MapKey>,
        names: Option<&[Vec<u8>]>,
    ) -> Result<(), Error> {
        if let Some(names) = names.filter(|_| self.work.delete && !self.work.fresh) {
            // What cannot be looked into costs what should go there, and nothing else.
            let removed = self.remove_others(source, target, names);
            let at = target.cloned().unwrap_or_else(MapKey::root);
            removed.or_else(|error| self.work.problem(&at, error))?;
        }
        let Some(target) = target else { return Ok(()) };
        match self.directories.leave(target, self.window.next(), self.window.delivered()) {
            Left::Ready(directory) => finish_directory(self.work, *directory),
            Left::Waits(entry) => {
                self.window.keeps(target, entry);
                self.flush_if_full()
            }
            Left::Closed | Left::Unknown => Ok(()),
        }
    }

    fn remove_others(
        &mut self,
        source: &MapKey,
        target: Option<&MapKey>,
        names: &[Vec<u8>],
    ) -> Result<(), Error> {
        let others = others(&*self.work.target, self.options, source, target, names)?;
        let stays = !others.is_empty() && self.work.target.is_mounted(target)?;
        for key in others {
            if stays {
                let why = "not removed: another file system is mounted there";
                self.work.tally.leave_out(format!("`{}`: {why}", shown(&key)));
                continue;
            }
            match self.work.target.remove(&key) {
                Ok(()) => _ = self.work.tally.removed.fetch_add(1, Ordering::Relaxed),
                Err(error) => self.work.problem(&key, error.into())?,
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), Error> {
        self.flush()?;
        let rest = self.directories.rest();
        rest.into_iter().try_for_each(|directory| finish_directory(self.work, directory))
    }
}

/// Removes a directory that stands where something goes that is no file, if the options allow it.
fn make_way(work: &Work, target: &MapKey) -> Result<(), Error> {
    if work.delete && !work.fresh && is_directory(work, target)? {
        work.target.remove(target)?;
    }
    Ok(())
}

/// Whether a directory stands there in the target.
fn is_directory(work: &Work, target: &MapKey) -> Result<bool, Error> {
    Ok(work.target.existing(target)?.is_some_and(|there| there.kind == EntryKind::Directory))
}

/// Gives a directory its metadata: nothing in it changes any more.
fn finish_directory(work: &Work, (key, entry): Finished) -> Result<(), Error> {
    if let Err(error) = work.target.apply_metadata(&key, &entry) {
        work.problem(&key, error.into())?;
    }
    work.repository.monitor().advance(1, 0);
    Ok(())
}

/// What is made where a directory has to be whose entry cannot be read: for nobody but the owner.
fn unknown_directory() -> Entry {
    Entry { mode: 0o700, ..Entry::new(EntryKind::Directory) }
}

/// How many leading components of the snapshot's key the target's key lacks.
fn common_prefix_len(source: &MapKey, target: &MapKey) -> usize {
    source.depth().saturating_sub(target.depth())
}

/// The key without its first `skip` components.
fn relative(key: &MapKey, skip: usize) -> Option<MapKey> {
    let rest: Vec<Vec<u8>> = key.components().skip(skip).map(|c| c.into_owned()).collect();
    if rest.is_empty() { None } else { MapKey::from_components(rest).ok() }
}
