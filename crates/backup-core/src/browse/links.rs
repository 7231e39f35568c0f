//! Hard links of a part of a tree.

use std::collections::HashMap;

use keepwell_catalog::MapKey;

/// Which names stand in for first names that the part does not have.
///
/// Takes memory for each inode of which a further name is in the part and the first is not.
#[derive(Debug, Default)]
pub(crate) struct FirstNames(HashMap<MapKey, MapKey>);

impl FirstNames {
    /// The name that already stands in for `first`. If there is none, `name` does from now on, and must carry the inode.
    pub fn stand_in(&mut self, first: &MapKey, name: &MapKey) -> Option<MapKey> {
        let known = self.0.get(first).cloned();
        if known.is_none() {
            self.0.insert(first.clone(), name.clone());
        }
        known
    }
}
