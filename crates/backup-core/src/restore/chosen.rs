//! What of the things that stand in the target a restore may remove.

use keepwell_catalog::{EntryKind, MapKey};

use super::{RestoreOptions, Select};
use crate::Error;
use crate::target::RestoreTarget;

/// Where a thing is in the snapshot, and in the target.
type Place = (MapKey, MapKey);

/// What stands in a directory of the target, is not among the names that the snapshot has there, and would be restored if it
/// were: what the options do not choose is none of this restore's business. Each goes with everything in it: of a directory
/// that holds something the options do not choose, this is what else is in it.
pub(super) fn others(
    target: &dyn RestoreTarget,
    options: &RestoreOptions,
    source: &MapKey,
    directory: Option<&MapKey>,
    names: &[Vec<u8>],
) -> Result<Vec<MapKey>, Error> {
    let listed = target.list_dir(directory)?.into_iter();
    let unknown = listed.filter(|name| names.binary_search(name).is_err());
    let Some(select) = &options.select else {
        return unknown.map(|name| child(directory, &name)).collect();
    };
    let places: Result<Vec<Place>, Error> =
        unknown.map(|name| Ok((source.child(&name)?, child(directory, &name)?))).collect();
    Chosen { target, select }.among(places?)
}

/// Of a directory that stands where something else is to go, something that the options do not choose: the directory itself,
/// or what is in it. `None` where all of it may go.
pub(super) fn kept_of(
    target: &dyn RestoreTarget,
    options: &RestoreOptions,
    source: &MapKey,
    key: &MapKey,
) -> Result<Option<MapKey>, Error> {
    match &options.select {
        None => Ok(None),
        Some(select) => Chosen { target, select }.left_of(source, key),
    }
}

fn child(directory: Option<&MapKey>, name: &[u8]) -> Result<MapKey, Error> {
    Ok(match directory {
        Some(directory) => directory.child(name)?,
        None => MapKey::from_components([name])?,
    })
}

/// What of the things that stand in the target the options choose.
struct Chosen<'t> {
    target: &'t dyn RestoreTarget,
    select: &'t Select,
}

/// A directory that is being looked through.
struct Open {
    /// `None` of the one that all of it is in, which stays.
    key: Option<MapKey>,
    /// What in it was not looked at yet; the next comes last.
    waiting: Vec<Place>,
    /// How many things were to go before any in it.
    before: usize,
    /// Whether everything in it was chosen so far.
    whole: bool,
}

impl Chosen<'_> {
    /// What of these things may go: of a directory that must stay, what is chosen in it. Looks at each thing once.
    fn among(&self, mut places: Vec<Place>) -> Result<Vec<MapKey>, Error> {
        places.reverse();
        let mut goes = Vec::new();
        let mut open = vec![Open { key: None, waiting: places, before: 0, whole: true }];
        while let Some(directory) = open.last_mut() {
            let Some((source, key)) = directory.waiting.pop() else {
                leave(&mut open, &mut goes);
                continue;
            };
            match self.look(&source, &key)? {
                None => directory.whole = false,
                Some(false) => goes.push(key),
                Some(true) => {
                    let mut waiting = self.inner(&source, &key)?;
                    waiting.reverse();
                    open.push(Open { key: Some(key), waiting, before: goes.len(), whole: true });
                }
            }
        }
        Ok(goes)
    }

    /// Something at a place, or in the directory there, that is not chosen.
    fn left_of(&self, source: &MapKey, key: &MapKey) -> Result<Option<MapKey>, Error> {
        let mut waiting = vec![(source.clone(), key.clone())];
        while let Some((source, key)) = waiting.pop() {
            match self.look(&source, &key)? {
                None => return Ok(Some(key)),
                Some(false) => {}
                Some(true) => waiting.extend(self.inner(&source, &key)?),
            }
        }
        Ok(None)
    }

    /// Whether a thing that is chosen is a directory to look into. One on another file system is not: whoever removes it says
    /// that it stays.
    fn look(&self, source: &MapKey, key: &MapKey) -> Result<Option<bool>, Error> {
        let standing = self.target.existing(key)?.filter(|standing| (self.select)(source, standing));
        let Some(standing) = standing else { return Ok(None) };
        Ok(Some(standing.kind == EntryKind::Directory && !self.target.is_mounted(Some(key))?))
    }

    fn inner(&self, source: &MapKey, key: &MapKey) -> Result<Vec<Place>, Error> {
        let names = self.target.list_dir(Some(key))?.into_iter();
        names.map(|name| Ok((source.child(&name)?, key.child(&name)?))).collect()
    }
}

/// Leaves the directory that is being looked through: where all in it is chosen, it goes as a whole.
fn leave(open: &mut Vec<Open>, goes: &mut Vec<MapKey>) {
    let Some(Open { key: Some(key), before, whole, .. }) = open.pop() else { return };
    if whole {
        goes.truncate(before);
        goes.push(key);
    } else if let Some(above) = open.last_mut() {
        above.whole = false;
    }
}
