//! One snapshot that is shown: its tree, opened when first used.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use backup_core::{Browser, Error, Snapshot, Tree};
use keepwell_catalog::{Manifest, MapKey};
use tokio::runtime::Handle;

use crate::attributes;

/// In larger snapshots every file has one name: counting them would read the whole tree.
const COUNTED_ENTRIES_MAX: u64 = 200_000;

/// A snapshot that is shown.
#[derive(Debug)]
pub(crate) struct Shown {
    pub snapshot: Snapshot,
    /// The start of its id, as people type it; unlike every other one that is shown.
    pub name: String,
    pub taken: SystemTime,
    tree: OnceLock<Tree>,
    opening: Mutex<()>,
    /// Files with further names, and how many.
    names: OnceLock<HashMap<MapKey, u32>>,
}

impl Shown {
    pub fn new(snapshot: Snapshot, name: String, manifest: &Manifest) -> Self {
        let nanoseconds = manifest.capture_end.rem_euclid(1_000_000_000);
        let taken = attributes::time((
            manifest.capture_end.div_euclid(1_000_000_000),
            u32::try_from(nanoseconds).unwrap_or_default(),
        ));
        Self { snapshot, name, taken, tree: OnceLock::new(), opening: Mutex::new(()), names: OnceLock::new() }
    }

    /// The tree; opens it. Another failure than the first gets another try.
    pub fn tree(&self, browser: &Browser, handle: &Handle) -> Result<&Tree, Error> {
        if let Some(tree) = self.tree.get() {
            return Ok(tree);
        }
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = self.tree.get() {
            return Ok(tree);
        }
        let tree = handle.block_on(browser.tree(&self.snapshot))?;
        Ok(self.tree.get_or_init(|| tree))
    }

    /// How many names a file has. Reads the tree once, of a snapshot that is not too large for that; of one that cannot be
    /// read as a whole every file counts as having one, because what is sound of it is to be seen.
    pub fn names(&self, tree: &Tree, key: &MapKey) -> u32 {
        let count = |names: &HashMap<MapKey, u32>| 1 + names.get(key).copied().unwrap_or_default();
        if let Some(names) = self.names.get() {
            return count(names);
        }
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        count(self.names.get_or_init(|| self.further_names(tree).unwrap_or_default()))
    }

    fn further_names(&self, tree: &Tree) -> Result<HashMap<MapKey, u32>, Error> {
        let manifest = self.snapshot.manifest()?;
        let is_worth_it = manifest.statistics.others > 0 && manifest.entries <= COUNTED_ENTRIES_MAX;
        if is_worth_it { tree.further_names_blocking() } else { Ok(HashMap::new()) }
    }
}
