//! Extensions that a restored cluster needs and a host may lack.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::server::Binaries;
use crate::cluster::Cluster;

/// An extension of a database that is not installed on this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingExtension {
    /// Its name.
    pub name: String,
    /// The version that the database has.
    pub version: String,
    /// The database.
    pub database: String,
}

impl fmt::Display for MissingExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {} of database `{}`", self.name, self.version, self.database)
    }
}

impl Binaries {
    /// The extensions of a cluster that are not installed beside these programs, in order of their names.
    ///
    /// `None` when it is not known where this build of the server has its extensions. What the capturing role could not
    /// list is passed over.
    pub fn missing_extensions(&self, cluster: &Cluster) -> Option<Vec<MissingExtension>> {
        let place = extension_directory(self.directory(), cluster.major())?;
        let installed = |name: &str| place.join(format!("{name}.control")).is_file();
        let mut missing = BTreeSet::new();
        for database in &cluster.databases {
            for extension in database.extensions.iter().flatten() {
                // A name of an extension has no slash; one that does is not looked for elsewhere.
                if !extension.name.contains('/') && !installed(&extension.name) {
                    missing.insert(MissingExtension {
                        name: extension.name.clone(),
                        version: extension.version.clone(),
                        database: database.name.clone(),
                    });
                }
            }
        }
        Some(missing.into_iter().collect())
    }
}

/// Where a server looks for control files, as packages lay it out: Debian, RPM and a build of one's own.
fn extension_directory(programs: &Path, major: u32) -> Option<PathBuf> {
    let candidates = [
        format!("../../../../share/postgresql/{major}/extension"),
        "../share/extension".to_owned(),
        "../share/postgresql/extension".to_owned(),
        format!("../share/postgresql/{major}/extension"),
    ];
    // One without the language that every server has is not the place.
    let found = candidates.iter().map(|place| programs.join(place));
    found.into_iter().find(|place| place.join("plpgsql.control").is_file())
}

/// The extension or library that a program complains to lack, in the server's words.
pub(super) fn missing_in(complaint: &str) -> Option<&str> {
    let quoted = |begin: &str, end: &str| {
        let (_, rest) = complaint.split_once(begin)?;
        let (name, _) = rest.split_once(end)?;
        (!name.is_empty() && name.len() <= 200 && !name.contains('\n')).then_some(name)
    };
    quoted("extension \"", "\" is not available")
        .or_else(|| quoted("could not access file \"", "\": No such file"))
        .map(|name| name.strip_prefix("$libdir/").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cluster::Extension;
    use crate::recovery::ServerError;

    #[test]
    fn what_a_host_lacks_is_found_wherever_packages_put_it() {
        let json = r#"{ "format": 1, "system_identifier": "7", "server_version_num": 150018, "timeline": 1,
            "start_lsn": "0/28", "stop_lsn": "0/100", "start_time": 0, "stop_time": 0, "wal_segment_size": 16777216,
            "databases": [{ "oid": 5, "name": "shop", "extensions": null }, { "oid": 6, "name": "clinic",
            "extensions": [{ "name": "plpgsql", "version": "1.0" }, { "name": "bloom", "version": "1.1" },
            { "name": "../bloom", "version": "1" }] }] }"#;
        let cluster = Cluster::parse(json.as_bytes()).unwrap();
        assert_eq!(cluster.databases[1].extensions.as_ref().unwrap()[1], extension("bloom", "1.1"));
        for place in ["usr/share/postgresql/15/extension", "usr/lib/postgresql/15/share/extension"] {
            let dir = tempfile::tempdir().unwrap();
            let programs = dir.path().join("usr/lib/postgresql/15/bin");
            fs::create_dir_all(&programs).unwrap();
            fs::write(programs.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 15.1'\n").unwrap();
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(programs.join("postgres"), executable).unwrap();
            let binaries = Binaries::find(15, &[programs]).unwrap();
            assert_eq!(binaries.missing_extensions(&cluster), None, "nobody knows where they would be");
            fs::create_dir_all(dir.path().join(place)).unwrap();
            fs::write(dir.path().join(place).join("plpgsql.control"), "").unwrap();
            let missing = binaries.missing_extensions(&cluster).unwrap();
            let shown: Vec<_> = missing.iter().map(MissingExtension::to_string).collect();
            assert_eq!(shown, ["`bloom` 1.1 of database `clinic`"]);
            fs::write(dir.path().join(place).join("bloom.control"), "").unwrap();
            assert_eq!(binaries.missing_extensions(&cluster), Some(Vec::new()));
        }
    }

    fn extension(name: &str, version: &str) -> Extension {
        Extension { name: name.to_owned(), version: version.to_owned() }
    }

    #[test]
    fn what_servers_say_of_missing_extensions_is_understood() {
        for (said, name) in [
            (
                "pg_amcheck: error: query failed: ERROR:  extension \"amcheck\" is not available\nDETAIL:  Could not",
                "amcheck",
            ),
            ("ERROR:  could not access file \"$libdir/bloom\": No such file or directory", "bloom"),
            ("could not access file \"pg_stat_statements\": No such file or directory", "pg_stat_statements"),
        ] {
            assert_eq!(missing_in(said), Some(name));
        }
        for said in [
            "",
            "extension \"x",
            "ERROR:  relation \"x\" is not available",
            "could not access file \"\": No such file",
        ] {
            assert_eq!(missing_in(said), None, "{said}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_install() {
        let program = ServerError::NoExtension { program: "pg_amcheck".into(), name: "amcheck".into() };
        assert_eq!(
            program.to_string(),
            "`pg_amcheck` needs the extension `amcheck`, which is not installed on this host"
        );
        assert_eq!(
            program.hint().as_deref(),
            Some(
                "Install the package of this major that has `amcheck`; the server's own extensions are in \
                 `postgresql-contrib`."
            )
        );
        let reason = "could not access file \"timescaledb\": No such file or directory";
        let server = ServerError::Ended { status: "exit status: 1".into(), reason: reason.into() };
        assert_eq!(server.to_string(), format!("the server ended (exit status: 1): {reason}"));
        assert_eq!(
            server.hint().as_deref(),
            Some(
                "The server loads `timescaledb` at its start, which is not installed on this host: install it, or leave \
                 it out by `--set shared_preload_libraries=`."
            )
        );
    }
}
