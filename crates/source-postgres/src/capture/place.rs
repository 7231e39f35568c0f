//! Where files of a cluster lie in a snapshot, and what their names say.

use keepwell_catalog::{MapError, MapKey};

use crate::cluster::{DATA, TABLESPACES};

/// Tablespace of shared relations.
const GLOBAL: u32 = 1664;

/// What a relation file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relation {
    /// OID of the tablespace; 0 is the default of the database.
    pub tablespace: u32,
    /// OID of the database; 0 for shared relations.
    pub database: u32,
    /// The number in the name of the file.
    pub file: u32,
    /// Which part of the relation.
    pub segment: u32,
}

impl Relation {
    /// Of a path below the data directory, or below a tablespace; `None` for what is no relation file.
    pub fn of(space: Option<u32>, path: &[String]) -> Option<Self> {
        let (tablespace, database, name) = match (space, path) {
            (None, [base, database, name]) if base == "base" => (0, database.parse().ok()?, name),
            (None, [global, name]) if global == "global" => (GLOBAL, 0, name),
            (Some(space), [version, database, name]) if version.starts_with("PG_") => {
                (space, database.parse().ok()?, name)
            }
            _ => return None,
        };
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, segment.parse().ok()?),
            None => (name.as_str(), 0),
        };
        let (file, fork) = name.split_once('_').unwrap_or((name, ""));
        let digits = !file.is_empty() && file.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || !matches!(fork, "" | "fsm" | "vm" | "init") {
            return None;
        }
        Some(Self { tablespace, database, file: file.parse().ok()?, segment })
    }
}

/// Key of a path of the data directory or of a tablespace.
pub(super) fn key(space: Option<u32>, path: &[String]) -> Result<MapKey, MapError> {
    let names = path.iter().map(String::as_bytes);
    match space {
        None => MapKey::from_components([DATA.as_bytes()].into_iter().chain(names)),
        Some(oid) => {
            let oid = oid.to_string();
            MapKey::from_components([TABLESPACES.as_bytes(), oid.as_bytes()].into_iter().chain(names))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(space: Option<u32>, path: &str) -> Option<(u32, u32, u32, u32)> {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        Relation::of(space, &path).map(|r| (r.tablespace, r.database, r.file, r.segment))
    }

    #[test]
    fn names_say_what_is_a_relation() {
        assert_eq!(of(None, "base/5/16384"), Some((0, 5, 16384, 0)));
        assert_eq!(of(None, "base/5/16384.12"), Some((0, 5, 16384, 12)));
        assert_eq!(of(None, "base/5/16384_vm"), Some((0, 5, 16384, 0)));
        assert_eq!(of(None, "base/5/16384_fsm.1"), Some((0, 5, 16384, 1)));
        assert_eq!(of(None, "global/1262"), Some((1664, 0, 1262, 0)));
        assert_eq!(of(Some(99), "PG_15_202209061/5/16384"), Some((99, 5, 16384, 0)));
        for other in [
            "base/5/pg_filenode.map",
            "base/5/PG_VERSION",
            "global/pg_control",
            "pg_xact/0000",
            "base/5/t3_16384",
            "base/5/16384_x",
            "base/5/16384.",
        ] {
            assert_eq!(of(None, other), None, "{other}");
        }
        assert_eq!(of(Some(99), "base/5/16384"), None);
    }
}
