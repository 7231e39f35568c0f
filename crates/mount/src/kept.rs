//! Entries of a moment ago: who lists a directory then asks about each thing in it.

use std::collections::HashMap;
use std::sync::Arc;

use keepwell_catalog::{Entry, MapKey};

use crate::shown::Shown;

/// Entries of which something was listed or asked a moment ago; twice as many are kept.
const ENTRIES_KEPT: usize = 2048;
/// Larger extended attributes are not kept.
const XATTRS_KEPT_MAX: usize = 4096;

/// The entries of one snapshot that were needed last, in two generations.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    young: HashMap<MapKey, Arc<Entry>>,
    old: HashMap<MapKey, Arc<Entry>>,
    of: Option<Arc<Shown>>,
}

impl Kept {
    pub fn get(&mut self, shown: &Arc<Shown>, key: &MapKey) -> Option<Arc<Entry>> {
        let of = self.of.as_ref()?;
        if of.snapshot.id != shown.snapshot.id {
            return None;
        }
        self.young.get(key).or_else(|| self.old.get(key)).cloned()
    }

    pub fn keep(&mut self, shown: &Arc<Shown>, key: &MapKey, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        if self.of.as_ref().is_none_or(|of| of.snapshot.id != shown.snapshot.id) {
            *self = Self { of: Some(Arc::clone(shown)), ..Self::default() };
        }
        if self.young.len() >= ENTRIES_KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if xattrs <= XATTRS_KEPT_MAX {
            self.young.insert(key.clone(), Arc::clone(&entry));
        }
        entry
    }
}
