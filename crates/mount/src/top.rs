//! The made-up top of the file system: snapshots by id, and links to them by time, host and dataset.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backup_core::Snapshot;
use jiff::Timestamp;
use keepwell_catalog::Manifest;
use keepwell_crypto::SnapshotId;

use crate::shown::Shown;

/// Digits of an id that people type; more where two snapshots begin alike.
const ID_DIGITS: usize = 8;
const NANOSECONDS: i64 = 1_000_000_000;

/// What stands under a name.
#[derive(Debug)]
pub(crate) enum Made {
    Directory(BTreeMap<Vec<u8>, Made>),
    Link(Vec<u8>),
    Snapshot(Arc<Shown>),
}

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Top {
    root: Made,
    shown: BTreeMap<SnapshotId, Arc<Shown>>,
}

impl Top {
    /// Shows these snapshots, oldest first. What `before` showed stays the same.
    pub fn new(snapshots: Vec<(Snapshot, Manifest)>, before: Option<&Self>) -> Self {
        let ids: BTreeSet<String> = snapshots.iter().map(|(snapshot, _)| snapshot.id.to_string()).collect();
        let mut by_id = BTreeMap::new();
        let mut by_time = BTreeMap::new();
        let mut by_host = BTreeMap::new();
        let mut shown = BTreeMap::new();
        for (snapshot, manifest) in snapshots {
            let id = snapshot.id;
            let known = before.and_then(|before| before.shown.get(&id)).cloned();
            let one = known.unwrap_or_else(|| {
                let name = short(&ids, &id.to_string());
                Arc::new(Shown::new(snapshot, name, &manifest))
            });
            let time = free_name(&by_time, &manifest, &one.name);
            by_time.insert(time, Made::Link(format!("../by-id/{}", one.name).into_bytes()));
            let host = directory(&mut by_host, &manifest.host);
            let dataset = directory(host, &manifest.dataset);
            let time = free_name(dataset, &manifest, &one.name);
            let target = format!("../../../by-id/{}", one.name).into_bytes();
            dataset.insert(b"latest".to_vec(), Made::Link(time.clone()));
            dataset.insert(time, Made::Link(target));
            by_id.insert(one.name.clone().into_bytes(), Made::Snapshot(Arc::clone(&one)));
            shown.insert(id, one);
        }
        let top = [("by-id", by_id), ("by-time", by_time), ("by-host", by_host)];
        let root =
            top.into_iter().map(|(name, of)| (name.as_bytes().to_vec(), Made::Directory(of))).collect();
        Self { root: Made::Directory(root), shown }
    }

    /// What stands at a path.
    pub fn find(&self, path: &[Vec<u8>]) -> Option<&Made> {
        path.iter().try_fold(&self.root, |at, name| match at {
            Made::Directory(children) => children.get(name),
            _ => None,
        })
    }
}

/// So much of an id that no other begins alike.
fn short(ids: &BTreeSet<String>, id: &str) -> String {
    let alike = |digits: usize| ids.iter().filter(|other| other.starts_with(&id[..digits])).count();
    let digits = (ID_DIGITS..id.len()).find(|digits| alike(*digits) == 1).unwrap_or(id.len());
    id[..digits].to_owned()
}

fn directory<'m>(parent: &'m mut BTreeMap<Vec<u8>, Made>, name: &str) -> &'m mut BTreeMap<Vec<u8>, Made> {
    let made = parent.entry(file_name(name)).or_insert_with(|| Made::Directory(BTreeMap::new()));
    match made {
        Made::Directory(children) => children,
        _ => unreachable!("hosts and datasets are directories only"),
    }
}

/// The time of a snapshot, which `--at` and names of snapshots understand: the first whole second at which it is there.
/// With its id where another one has that name.
fn free_name(taken: &BTreeMap<Vec<u8>, Made>, manifest: &Manifest, id: &str) -> Vec<u8> {
    let second = manifest.capture_end.div_euclid(NANOSECONDS)
        + i64::from(manifest.capture_end.rem_euclid(NANOSECONDS) > 0);
    let time = Timestamp::from_second(second).unwrap_or_default().to_string().into_bytes();
    if taken.contains_key(&time) { [&time, b"-".as_slice(), id.as_bytes()].concat() } else { time }
}

/// A host or dataset as the name of a file: what cannot stand in one is written `%2F`.
fn file_name(name: &str) -> Vec<u8> {
    if matches!(name, "." | "..") {
        return name.replace('.', "%2E").into_bytes();
    }
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'/' | b'%' | 0 => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ => escaped.push(byte),
        }
    }
    if escaped.is_empty() { b"%".to_vec() } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_and_dataset_is_a_file_name_of_its_own() {
        for (name, file) in [
            ("orders-db", "orders-db"),
            ("/home", "%2Fhome"),
            ("a%2Fb", "a%252Fb"),
            ("..", "%2E%2E"),
            ("", "%"),
            ("ä", "ä"),
        ] {
            assert_eq!(file_name(name), file.as_bytes(), "{name}");
        }
    }

    #[test]
    fn ids_are_as_long_as_it_takes() {
        let ids = ["0123456789", "0123456700", "ff00000000"].map(str::to_owned).into();
        assert_eq!(short(&ids, "0123456789"), "012345678");
        assert_eq!(short(&ids, "ff00000000"), "ff000000");
    }
}
