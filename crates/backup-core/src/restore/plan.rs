//! What a restore would do, before it does anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use keepwell_catalog::{Entry, EntryKind, MapKey, MapReader};

use super::chosen::{kept_of, others};
use super::tree::Visit;
use super::{RestoreOptions, is_fatal};
use crate::Error;
use crate::error::shown;
use crate::read::Nodes;
use crate::repository::{Repository, Snapshot};
use crate::target::RestoreTarget;

/// Sizes of a restore, found by reading the tree. Nothing is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestorePlan {
    /// Everything that will be restored.
    pub entries: u64,
    /// Files among them.
    pub files: u64,
    /// Their content in bytes; what stands in the target already is not subtracted.
    pub bytes: u64,
    /// Bytes of content that must be written at most: holes take no room, existing files are counted as their size less.
    pub needed: u64,
    /// Bytes free in the target, if that is known.
    pub free: Option<u64>,
    /// The file system that the target lives on, as [`RestoreTarget::file_system`] says.
    pub file_system: Option<u64>,
    /// What stands in restored directories, or in directories that make way for something else, and would be removed,
    /// everything below directories counted.
    pub removed: u64,
    /// The first of these, without what is below directories; at most 10.
    pub removed_first: Vec<String>,
}

/// So many of the things that would be removed are named.
const REMOVED_NAMED: usize = 10;

impl RestorePlan {
    /// Fails when the target clearly has too little room.
    pub fn check_space(&self) -> Result<(), Error> {
        Self::check_space_for_all([self])
    }

    /// Fails when the targets of several restores clearly have too little room for all of them: those on one file system
    /// share what is free there.
    pub fn check_space_for_all<'p>(plans: impl IntoIterator<Item = &'p Self>) -> Result<(), Error> {
        let mut shared: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for plan in plans {
            let Some(free) = plan.free else { continue };
            let (needed, free) = match plan.file_system {
                None => (plan.needed, free),
                Some(number) => {
                    let (sum, least) = shared.entry(number).or_insert((0, free));
                    (*sum, *least) = (sum.saturating_add(plan.needed), free.min(*least));
                    (*sum, *least)
                }
            };
            if free < needed {
                return Err(Error::NoSpace { needed, free, place: "the target".to_owned() });
            }
        }
        Ok(())
    }
}

impl Repository {
    /// Says what a restore would do and whether there is room for it.
    ///
    /// Reads the whole tree that is to be restored, and the facts of the files that stand in the target.
    pub async fn plan_restore(
        &self,
        snapshot: &Snapshot,
        target: Arc<dyn RestoreTarget>,
        options: RestoreOptions,
    ) -> Result<RestorePlan, Error> {
        let planned = self.plan_restore_with(Arc::new(Nodes::new(self)), snapshot, target, options);
        match self.unless_cancelled(planned).await {
            Err(failure) => Err(self.explained(snapshot, failure).await),
            plan => plan,
        }
    }

    /// Of one path few chunks may be needed, and not the whole index.
    pub(super) async fn refresh_index_for(&self, options: &RestoreOptions) -> Result<(), Error> {
        match (&options.below, &options.select) {
            (Some(_), None) => self.refresh_index_as_needed().await,
            _ => self.refresh_index().await.map(|_| ()),
        }
    }

    /// The same through nodes that the restore then goes on with.
    pub(super) async fn plan_restore_with(
        &self,
        nodes: Arc<Nodes>,
        snapshot: &Snapshot,
        target: Arc<dyn RestoreTarget>,
        options: RestoreOptions,
    ) -> Result<RestorePlan, Error> {
        self.refresh_index_for(&options).await?;
        self.note_dead_packs().await;
        let root = snapshot.manifest()?.root;
        let name = snapshot.short();
        let task = tokio::task::spawn_blocking(move || {
            let (free, file_system) = (target.free_bytes()?, target.file_system()?);
            let fresh = target.is_empty()?;
            let reader = MapReader::new(&*nodes, root);
            let mut measuring = Measuring {
                target: &*target,
                reader,
                fresh,
                options: &options,
                plan: RestorePlan::default(),
            };
            super::tree::visit(&reader, &options, &name, &mut |step| measuring.step(step))?;
            Ok::<_, Error>(RestorePlan { free, file_system, ..measuring.plan })
        });
        task.await.map_err(|e| Error::Task(e.to_string()))?
    }
}

struct Measuring<'t> {
    target: &'t dyn RestoreTarget,
    reader: MapReader<'t>,
    fresh: bool,
    options: &'t RestoreOptions,
    plan: RestorePlan,
}

impl Measuring<'_> {
    fn step(&mut self, step: Visit<'_>) -> Result<(), Error> {
        match step {
            Visit::Entry { source, target, entry } => self.entry(source, target, entry),
            Visit::Unread { error, .. } if is_fatal(&error) => Err(error),
            Visit::Parent { .. } | Visit::Unread { .. } => Ok(()), // the restore says what is missing
            Visit::Leave { source, target, names: Some(names) } if self.options.delete && !self.fresh => {
                self.leave(source, target, names)
            }
            Visit::Leave { .. } => Ok(()),
        }
    }

    fn entry(&mut self, source: &MapKey, key: &MapKey, entry: &Entry) -> Result<(), Error> {
        self.plan.entries += 1;
        let makes_way = self.options.delete && entry.kind != EntryKind::Directory;
        let looks = !self.fresh && (makes_way || entry.kind.has_content());
        // What cannot be looked at, the restore names.
        let standing = if looks { self.target.existing(key).ok().flatten() } else { None };
        if makes_way && standing.as_ref().is_some_and(|there| there.kind == EntryKind::Directory) {
            self.make_way(source, key)?;
        }
        if entry.kind.has_content() { self.file(source, entry, standing.as_ref()) } else { Ok(()) }
    }

    fn file(&mut self, source: &MapKey, entry: &Entry, standing: Option<&Entry>) -> Result<(), Error> {
        self.plan.files += 1;
        self.plan.bytes = self.plan.bytes.saturating_add(entry.size);
        let mut holes = 0;
        // What cannot be read needs no room, and is named when it is restored.
        for extent in self.reader.extents(source, entry)?.map_while(Result::ok) {
            holes += if extent.chunk().is_none() { extent.length() } else { 0 };
        }
        let needed = (entry.size - holes.min(entry.size)).saturating_sub(standing.map_or(0, |e| e.size));
        self.plan.needed = self.plan.needed.saturating_add(needed);
        Ok(())
    }

    /// Counts what is in a directory that stands where something else goes.
    fn make_way(&mut self, source: &MapKey, key: &MapKey) -> Result<(), Error> {
        match kept_of(self.target, self.options, source, key) {
            Ok(None) => {}
            Err(error) if is_fatal(&error) => return Err(error),
            Ok(Some(_)) | Err(_) => return Ok(()), // the restore names it
        }
        let inner = self.count(key)?.saturating_sub(1);
        self.remove(key, inner);
        Ok(())
    }

    /// Notes that something goes, and so many things with it.
    fn remove(&mut self, key: &MapKey, things: u64) {
        if things > 0 && self.plan.removed_first.len() < REMOVED_NAMED {
            self.plan.removed_first.push(shown(key));
        }
        self.plan.removed += things;
    }

    /// Counts what stands in a directory and is not in the snapshot.
    fn leave(&mut self, source: &MapKey, directory: Option<&MapKey>, names: &[Vec<u8>]) -> Result<(), Error> {
        let others = match others(self.target, self.options, source, directory, names) {
            Err(error) if !is_fatal(&error) => return Ok(()), // the restore names it
            others => others?,
        };
        if others.is_empty() || self.target.is_mounted(directory)? {
            return Ok(());
        }
        for key in others {
            let things = self.count(&key)?;
            self.remove(&key, things);
        }
        Ok(())
    }

    /// One thing, and everything below it but what is on another file system.
    fn count(&self, key: &MapKey) -> Result<u64, Error> {
        let mut sum = 0;
        let mut waiting = vec![key.clone()];
        while let Some(key) = waiting.pop() {
            let Ok(Some(entry)) = self.target.existing(&key) else { continue };
            let is_directory = entry.kind == EntryKind::Directory;
            if is_directory && self.target.is_mounted(Some(&key))? {
                continue;
            }
            sum += 1;
            if is_directory {
                for name in self.target.list_dir(Some(&key)).unwrap_or_default() {
                    waiting.push(key.child(&name)?);
                }
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_a_file_system_shares_its_room() {
        let plan =
            |needed, free, file_system| RestorePlan { needed, free, file_system, ..Default::default() };
        let fits = |plans: &[RestorePlan]| RestorePlan::check_space_for_all(plans).is_ok();
        let (six, four) = (plan(6, Some(10), Some(1)), plan(4, Some(10), Some(1)));
        assert!(fits(&[six.clone(), four.clone()]), "to the last byte");
        assert!(!fits(&[six.clone(), plan(5, Some(10), Some(1))]), "each would fit by itself");
        assert!(fits(&[six.clone(), plan(5, Some(10), Some(2))]), "another file system");
        assert!(fits(&[six.clone(), plan(5, Some(10), None), plan(5, Some(10), None)]), "nothing is known");
        assert!(!fits(&[six, four, plan(5, Some(4), Some(2))]));
        assert!(fits(&[plan(u64::MAX, None, Some(1))]));
    }
}
