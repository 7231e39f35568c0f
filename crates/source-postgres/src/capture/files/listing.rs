//! Which files of a cluster belong to a base backup: what the server leaves out of one is left out here.

use std::collections::BTreeSet;

/// What becomes of a name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is taken, a directory with all that is in it.
    Taken,
    /// The directory is taken and what is in it is not: a server makes it anew, or it comes from elsewhere.
    Emptied,
    Left,
}

/// Directories whose content a server makes anew when it starts.
const EMPTIED: [&str; 7] =
    ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];
/// Of the running server, or of another backup.
const LEFT: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];
/// What names of files begin with that hold what was too much for memory.
const TEMPORARY: &str = "pgsql_tmp";
/// What names of files begin with that a server makes anew when they are missing.
const CACHE: &str = "pg_internal.init";

/// What becomes of `path`, below the data directory or below the tablespace `space`. `beside` are the names in the
/// directory that it lies in, of which a directory of relations needs to know all.
pub(super) fn fate(space: Option<u32>, path: &[String], major: u32, beside: &BTreeSet<String>) -> Fate {
    let Some(name) = path.last() else { return Fate::Taken };
    if name.starts_with(TEMPORARY) || name.starts_with(CACHE) || LEFT.contains(&name.as_str()) {
        return Fate::Left;
    }
    if EMPTIED.contains(&name.as_str()) {
        return Fate::Emptied;
    }
    match (space, path) {
        // WAL is taken when all is over, tablespaces stand beside the data directory, and this file comes last.
        (None, [name]) if name == "pg_wal" || name == "pg_tblspc" => Fate::Emptied,
        (None, [global, name]) if global == "global" && name == "pg_control" => Fate::Left,
        // Other majors may have theirs in the same place.
        (Some(_), [version]) if !version.starts_with(&format!("PG_{major}_")) => Fate::Left,
        (None, [base, database, name]) if base == "base" => relation(database, name, beside),
        (Some(_), [_, database, name]) => relation(database, name, beside),
        _ => Fate::Taken,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Temporary relations are left out, and all of unlogged ones but what they begin anew from.
fn relation(database: &str, name: &str, beside: &BTreeSet<String>) -> Fate {
    if !is_number(database) {
        return Fate::Taken;
    }
    let stem =
        name.split_once('.').map_or(name, |(stem, segment)| if is_number(segment) { stem } else { "" });
    let mut parts = stem.split('_');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    let is_temporary =
        first.strip_prefix('t').is_some_and(is_number) && second.is_some_and(is_number) && parts.count() < 2;
    let is_unlogged = is_number(first) && second != Some("init") && beside.contains(&format!("{first}_init"));
    if is_temporary || is_unlogged { Fate::Left } else { Fate::Taken }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(space: Option<u32>, path: &str, beside: &[&str]) -> Fate {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        let beside = beside.iter().map(|name| (*name).to_owned()).collect();
        fate(space, &path, 15, &beside)
    }

    #[test]
    fn what_a_server_leaves_out_is_left_out() {
        for (path, expected) in [
            ("base", Fate::Taken),
            ("PG_VERSION", Fate::Taken),
            ("postgresql.auto.conf", Fate::Taken),
            ("postgresql.auto.conf.tmp", Fate::Left),
            ("postmaster.pid", Fate::Left),
            ("backup_label", Fate::Left),
            ("backup_label.old", Fate::Taken),
            ("global/pg_control", Fate::Left),
            ("global/pg_internal.init.77", Fate::Left),
            ("global/1262", Fate::Taken),
            ("pg_wal", Fate::Emptied),
            ("pg_tblspc", Fate::Emptied),
            ("pg_replslot", Fate::Emptied),
            ("pg_xact", Fate::Taken),
            ("base/pgsql_tmp", Fate::Left),
            ("base/5/pg_internal.init", Fate::Left),
            ("base/5/pg_filenode.map", Fate::Taken),
        ] {
            assert_eq!(of(None, path, &[]), expected, "{path}");
        }
        assert_eq!(of(Some(9), "PG_15_202209061", &[]), Fate::Taken);
        assert_eq!(of(Some(9), "PG_17_202406281", &[]), Fate::Left, "another major");
        assert_eq!(of(Some(9), "PG_15_202209061/pgsql_tmp", &[]), Fate::Left);
    }

    #[test]
    fn of_relations_only_what_recovery_needs() {
        let beside = ["16384", "16384_init", "16385"];
        for (name, expected) in [
            ("16385", Fate::Taken),
            ("16385.1", Fate::Taken),
            ("16385_fsm", Fate::Taken),
            ("16384", Fate::Left),
            ("16384.1", Fate::Left),
            ("16384_fsm", Fate::Left),
            ("16384_vm.2", Fate::Left),
            ("16384_init", Fate::Taken),
            ("t3_16399", Fate::Left),
            ("t3_16399_fsm", Fate::Left),
            ("t3_16399.1", Fate::Left),
            ("t3_16399_fsm_x", Fate::Taken),
            ("tx_16399", Fate::Taken),
        ] {
            assert_eq!(of(None, &format!("base/5/{name}"), &beside), expected, "{name}");
            assert_eq!(of(Some(9), &format!("PG_15_202209061/5/{name}"), &beside), expected, "{name}");
        }
        assert_eq!(of(None, "base/other/t3_16399", &[]), Fate::Taken, "no directory of a database");
    }
}
