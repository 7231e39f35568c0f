//! What stands where a cluster is to go.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::{Layout, RestoreError, failed};

/// Each restore, also one that was interrupted, leaves some of these in a data directory.
const OF_A_CLUSTER: [&str; 8] =
    ["PG_VERSION", "backup_label", "backup_manifest", "base", "global", "pg_tblspc", "pg_wal", "pg_xact"];
/// A data directory has one of these, and none of its own directories has.
const MARKS: [&str; 3] = ["PG_VERSION", "postmaster.pid", "global/pg_control"];
/// A file system of its own has it from the beginning.
const LOST_AND_FOUND: &str = "lost+found";
/// What names of a server's program contain: some packages start it by the second.
const SERVERS: [&str; 2] = ["postgres", "postmaster"];

impl Layout {
    /// Fails while a server runs in the data directory, or one of whatever cluster has a tablespace where one goes: a data
    /// directory may have been moved, and its tablespaces stay where they are.
    pub fn check_running(&self) -> Result<(), RestoreError> {
        if let Some(pid) = self.running() {
            return Err(RestoreError::Running { directory: self.directory.display().to_string(), pid });
        }
        let taken: Vec<_> = self.tablespaces.values().filter_map(|path| Some((place(path)?, path))).collect();
        if taken.is_empty() {
            return Ok(());
        }
        for pid in processes().filter(|pid| is_named(*pid, "comm")) {
            for used in tablespaces_of(pid) {
                if let Some((_, path)) = taken.iter().find(|(place, _)| *place == used) {
                    return Err(RestoreError::InUse { place: path.display().to_string(), pid });
                }
            }
        }
        Ok(())
    }

    /// A process of a server that runs in the data directory. Also one in a container, whose number there is another one,
    /// and one whose first process has died, as far as we may see in which directory it works.
    pub fn running(&self) -> Option<u32> {
        let own = place(&self.directory)?;
        let noted = fs::read_to_string(self.directory.join("postmaster.pid")).ok();
        let noted: Option<u32> = noted.and_then(|text| text.lines().next()?.trim().parse().ok());
        let is_server = |pid| is_named(pid, "comm") || is_named(pid, "cmdline");
        // The number may have passed to another process, which works elsewhere.
        let noted = noted.filter(|pid| is_server(*pid) && at_work(*pid).is_none_or(|place| place == own));
        noted.or_else(|| processes().find(|pid| is_named(*pid, "comm") && at_work(*pid) == Some(own)))
    }

    /// Fails when the data directory's place holds what a restore must not remove: another data directory, or things of
    /// which none is a cluster's.
    pub fn check_place(&self) -> Result<(), RestoreError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", &self.directory)(error)),
        };
        let directory = || self.directory.display().to_string();
        let (mut stranger, mut is_cluster) = (None, false);
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.directory))?;
            if is_data_directory(&entry.path()) {
                let cluster = entry.path().display().to_string();
                return Err(RestoreError::AboveCluster { directory: directory(), cluster });
            }
            let name = entry.file_name();
            match OF_A_CLUSTER.iter().any(|own| name == *own) {
                true => is_cluster = true,
                false if name == LOST_AND_FOUND => {}
                false => stranger = Some(name.to_string_lossy().into_owned()),
            }
        }
        match stranger {
            Some(name) if !is_cluster => Err(RestoreError::NoCluster { directory: directory(), name }),
            _ => Ok(()),
        }
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether what this file says of a process names a server.
fn is_named(pid: u32, file: &str) -> bool {
    let said = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    SERVERS.iter().any(|name| said.contains(name))
}

/// In which directory a process works; `None` for one that we may not look at.
fn at_work(pid: u32) -> Option<(u64, u64)> {
    place(Path::new(&format!("/proc/{pid}/cwd")))
}

/// Where the tablespaces of a server lie; none of one that we may not look at.
fn tablespaces_of(pid: u32) -> impl Iterator<Item = (u64, u64)> {
    let links = fs::read_dir(format!("/proc/{pid}/cwd/pg_tblspc")).into_iter().flatten().flatten();
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    links.filter_map(move |link| match fs::read_link(link.path()) {
        Ok(path) => place_within(&root, &path),
        // One inside the data directory is none.
        Err(_) => place(&link.path()),
    })
}

/// The place that a path means to those whose root this is: in a container it leads elsewhere than here.
fn place_within(root: &Path, path: &Path) -> Option<(u64, u64)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open(root, flags, Mode::empty()).ok()?;
    match openat2(&top, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(found) => File::from(found).metadata().ok().map(|found| (found.dev(), found.ino())),
        // Before Linux 5.6, and under old container runtimes: right but for links on the way that begin at the root.
        Err(Errno::NOSYS | Errno::PERM) => place(&root.join(path.strip_prefix("/").unwrap_or(path))),
        Err(_) => None,
    }
}

/// Device and number of a directory, whatever it is called.
fn place(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|found| (found.dev(), found.ino()))
}

/// Also one that a link leads to.
fn is_data_directory(path: &Path) -> bool {
    MARKS.iter().any(|mark| path.join(mark).symlink_metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_means_what_it_means_to_the_server_in_its_container() {
        let (root, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inside = |path: &Path| root.path().join(path.strip_prefix("/").unwrap());
        // Here the same words lead to another directory.
        let space = theirs.path().join("space");
        fs::create_dir(&space).unwrap();
        fs::create_dir_all(inside(&space)).unwrap();
        let link = Path::new("/link");
        symlink(theirs.path(), inside(link)).unwrap();
        let expected = place(&inside(&space));
        assert!(expected.is_some() && expected != place(&space));
        assert_eq!(place_within(root.path(), &space), expected);
        assert_eq!(place_within(root.path(), &link.join("space")), expected);
        assert_eq!(place_within(root.path(), Path::new("/missing")), None);
        assert_eq!(place_within(Path::new("/proc/self/root"), &space), place(&space));
    }
}
