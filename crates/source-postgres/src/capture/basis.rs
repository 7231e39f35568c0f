//! What the last capture holds, as far as the next one can build on it.

use std::collections::BTreeMap;

use backup_core::source::Previous;
use keepwell_catalog::MapKey;
use serde::{Deserialize, Serialize};

use super::place::Relation;
use crate::cluster::{CLUSTER_FILE, DATA, TABLESPACES};
use crate::history::History;
use crate::lsn::{Lsn, Timeline};

/// Attribute of the entry `cluster.json` that holds the [`Origin`]: a writer sees it in its recipes, and cannot read contents.
pub(super) const ORIGIN: &str = "postgres";
/// A file that is put together from more parts than one for so many bytes is read in full again.
const FRAGMENT_BYTES: u64 = 32 << 10;
/// Where more files than that have damaged pages, nothing is built on.
pub(super) const BAD_FILES_MAX: usize = 200;
/// So many parts are always fine.
const FRAGMENTS_FREE: u64 = 64;

/// Which capture it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub system: String,
    pub major: u32,
    pub timeline: u32,
    /// Where that timeline began. Two servers that were recovered to different places may both have begun one of this number.
    #[serde(default)]
    pub begun: Option<String>,
    /// Since when its server had counted (`pg_stat_archiver.stats_reset`). Two servers that were recovered to the same place
    /// tell the same of their timelines, and each counts from its own recovery.
    #[serde(default)]
    pub counted: Option<String>,
    /// Whether pages bore checksums. Not known of a snapshot that may lack what a server did not tell (`cutoff.rs`).
    #[serde(default)]
    pub checksums: Option<bool>,
    /// Files with damaged pages, by their paths in the snapshot, [`BAD_FILES_MAX`] and one at most.
    #[serde(default)]
    pub bad: Vec<String>,
    pub start: String,
    pub stop: String,
    /// Nanoseconds since 1970.
    pub time: i64,
}

#[cfg(test)]
impl Origin {
    /// One that tests change.
    pub fn example() -> Self {
        Self {
            system: "7".into(),
            major: 17,
            timeline: 1,
            begun: None,
            counted: None,
            checksums: Some(true),
            bad: Vec::new(),
            start: "0/28".into(),
            stop: "0/99".into(),
            time: 5,
        }
    }
}

impl Origin {
    /// Whether its timeline is the one of this number that the server's history has, and the server the same, as far as both
    /// are known. A recovery after a crash passes for another server: then everything is read once.
    pub fn is_in(&self, history: Option<&History>, counted: Option<&str>) -> bool {
        let Some(timeline) = Timeline::new(self.timeline) else { return false };
        let own: Option<Lsn> = self.begun.as_deref().and_then(|begun| begun.parse().ok());
        let known = history.and_then(|history| history.begin_of(timeline));
        let is_same = self.counted.is_some() && self.counted.as_deref() == counted;
        timeline == Timeline::FIRST || (is_same && own.is_some() && own == known)
    }

    /// Why its pages cannot be kept on the word of a server whose pages bear checksums now, or do not; `None` if they can.
    /// To switch checksums on changes every page, and no WAL tells it.
    pub fn outdated_pages(&self, checksums: bool) -> Option<&'static str> {
        match self.checksums {
            None => Some("the last snapshot may lack pages that a server did not tell an older version of"),
            Some(false) if checksums => Some("page checksums were switched on since the last snapshot"),
            Some(_) => None,
        }
    }
}

/// The last capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Basis {
    pub origin: Origin,
    /// Sizes of the relation files that can be built on.
    pub files: BTreeMap<MapKey, u64>,
}

impl Basis {
    /// Of the entries of a snapshot; `None` if it is not one of ours.
    pub fn of(entries: Vec<Previous>) -> Option<Self> {
        let cluster = MapKey::from_components([CLUSTER_FILE]).ok()?;
        let origin = entries.iter().find(|entry| entry.key == cluster)?.attributes.get(ORIGIN)?;
        let origin: Origin = serde_json::from_slice(origin).ok()?;
        let fit = |entry: &Previous| {
            entry.whole
                && entry.extents as u64 <= FRAGMENTS_FREE + entry.size / FRAGMENT_BYTES
                && is_relation(&entry.key)
                && !is_visibility_map(&entry.key)
                // A page that is kept is not looked at, and would pass for a sound one from then on.
                && (origin.bad.is_empty() || !origin.bad.contains(&entry.key.display_path()))
        };
        let files = entries.into_iter().filter(fit).map(|entry| (entry.key, entry.size)).collect();
        Some(Self { origin, files })
    }
}

/// The archive and the path in it of a key.
pub(super) fn origin_of(key: &MapKey) -> Option<(Option<u32>, Vec<String>)> {
    let names: Option<Vec<String>> =
        key.components().map(|name| String::from_utf8(name.as_ref().to_vec()).ok()).collect();
    let mut names = names?;
    match names.first()?.as_str() {
        DATA => Some((None, names.split_off(1))),
        TABLESPACES if names.len() > 1 => Some((Some(names[1].parse().ok()?), names.split_off(2))),
        _ => None,
    }
}

/// Its bits are taken away by records of the WAL that name only the page of the table, so that WAL summaries do not tell it: a
/// page that is kept would show rows as visible to all that were deleted since. It is small, and always read.
fn is_visibility_map(key: &MapKey) -> bool {
    let name = key.name().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default();
    name.split('.').next().is_some_and(|stem| stem.ends_with("_vm"))
}

fn is_relation(key: &MapKey) -> bool {
    origin_of(key).is_some_and(|(space, path)| Relation::of(space, &path).is_some())
}

#[cfg(test)]
mod tests {
    use keepwell_catalog::EntryKind;

    use super::*;

    #[test]
    fn a_timeline_of_the_same_number_that_began_elsewhere_is_another_one() {
        let history = |number, text: &str| History::parse(Timeline::new(number).unwrap(), text.as_bytes());
        let origin = |timeline, begun: Option<&str>| Origin {
            timeline,
            begun: begun.map(str::to_owned),
            counted: Some("1793.5".into()),
            start: "0/900".into(),
            stop: "0/999".into(),
            ..Origin::example()
        };
        let third = history(3, "1\t0/500\tx\n2\t0/A00\tx\n").unwrap();
        assert!(
            origin(1, None).is_in(Some(&third), Some("1793.5"))
                && origin(1, None).is_in(None, Some("1793.5"))
        );
        assert!(origin(2, Some("0/500")).is_in(Some(&third), Some("1793.5")));
        assert!(origin(3, Some("0/A00")).is_in(Some(&third), Some("1793.5")));
        // Recovered to another place, and opened under the same number.
        assert!(
            !origin(2, Some("0/400")).is_in(Some(&third), Some("1793.5"))
                && !origin(3, Some("0/B00")).is_in(Some(&third), Some("1793.5"))
        );
        assert!(
            !origin(2, None).is_in(Some(&third), Some("1793.5")),
            "an older version did not write it down"
        );
        assert!(
            !origin(2, Some("0/500")).is_in(None, Some("1793.5"))
                && !origin(4, Some("0/A00")).is_in(Some(&third), Some("1793.5"))
        );
        // Recovered to the same place.
        for counted in [None, Some("1801.5")] {
            assert!(!origin(2, Some("0/500")).is_in(Some(&third), counted));
            assert!(origin(1, None).is_in(Some(&third), counted));
        }
        let old = r#"{"system":"7","major":17,"timeline":1,"start":"0/28","stop":"0/99","time":5}"#;
        let old = serde_json::from_str::<Origin>(old).unwrap();
        assert_eq!(old.begun, None);
        // Checksums were off, or on; nobody wrote it down.
        let with = |checksums| Origin { checksums: Some(checksums), ..old.clone() };
        assert!(with(false).outdated_pages(true).is_some() && with(false).outdated_pages(false).is_none());
        assert!(with(true).outdated_pages(true).is_none() && with(true).outdated_pages(false).is_none());
        assert!(old.outdated_pages(true).is_some() && old.outdated_pages(false).is_some());
    }

    #[test]
    fn only_whole_relations_that_are_not_in_too_many_parts_are_built_on() {
        let entry = |path: &str, extents, whole| Previous {
            key: MapKey::from_components(path.split('/')).unwrap(),
            kind: EntryKind::File,
            size: 1 << 20,
            attributes: BTreeMap::new(),
            extents,
            whole,
        };
        let origin = Origin { bad: vec!["data/base/5/5".into()], ..Origin::example() };
        let mut cluster = entry("cluster.json", 1, true);
        let mut entries = vec![
            entry("data/base/5/1", 96, true),
            entry("data/base/5/2", 97, true),
            entry("data/base/5/3", 1, false),
            entry("data/base/5/PG_VERSION", 1, true),
            entry("data/base/5/1_vm", 1, true),
            entry("data/base/5/5", 1, true),
            entry("data/base/5/1_vm.1", 1, true),
            entry("data/base/5/1_fsm", 1, true),
            entry("tablespaces/99/PG_17_x/5/4", 1, true),
        ];
        assert_eq!(Basis::of(entries.clone()), None, "it does not say which capture it was");
        cluster.attributes.insert(ORIGIN.to_owned(), serde_json::to_vec(&origin).unwrap());
        entries.push(cluster);
        let basis = Basis::of(entries).unwrap();
        let paths: Vec<String> = basis.files.keys().map(MapKey::display_path).collect();
        assert_eq!(paths, ["data/base/5/1", "data/base/5/1_fsm", "tablespaces/99/PG_17_x/5/4"]);
        assert_eq!(basis.origin, origin);
    }
}
