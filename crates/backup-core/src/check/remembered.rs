//! When this host last proved each pack: remembered in the local cache, so that regular checks share the work.

use std::collections::BTreeMap;
use std::io::Read;

use keepwell_catalog::ContentName;

use crate::Error;
use crate::cache::Cache;
use crate::env::Timestamp;

const NAME: &str = "proved";

pub(crate) fn load(cache: &Cache) -> BTreeMap<ContentName, Timestamp> {
    let mut text = String::new();
    if let Some(file) = cache.open(NAME) {
        // A file that cannot be read means that everything counts as never proved.
        let _ = file.reader().read_to_string(&mut text);
    }
    let parse = |line: &str| {
        let (name, time) = line.split_once(' ')?;
        Some((name.parse().ok()?, time.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

pub(super) fn save(cache: &Cache, proved: &BTreeMap<ContentName, Timestamp>) -> Result<(), Error> {
    let text: String = proved.iter().map(|(name, time)| format!("{name} {time}\n")).collect();
    cache.store(NAME, text.as_bytes())
}
