//! What the self-test can say about a directory beyond what it says about every store.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::errno::storage_error;
use super::kind::kind_of;
use super::put::{Placed, TEMP_SUFFIX, Temp};
use super::{Disk, LocalFs};
use crate::probe::{ExclusiveBy, FileSystemReport, ProbeReport, Role};
use crate::{ObjectStore, StorageError};

impl LocalFs {
    /// Tests the directory live: races creators, tries to overwrite, and asks what the file system can do.
    ///
    /// Takes about a second and leaves no object. NFS and SMB mounts are judged by what they do here.
    pub async fn probe(&self, role: Role) -> Result<ProbeReport, StorageError> {
        let store: Arc<dyn ObjectStore> = Arc::new(self.clone());
        let file_system = self.run(|disk| disk.probe()).await?;
        let mut report = crate::probe::objects(&store, role).await?;
        assess(&file_system, &mut report);
        report.file_system = Some(file_system);
        crate::probe::judge(&mut report, role);
        Ok(report)
    }
}

impl Disk {
    fn probe(&self) -> Result<FileSystemReport, StorageError> {
        self.try_probe().map_err(|error| storage_error("probe", self.path.display(), error))
    }

    fn try_probe(&self) -> Result<FileSystemReport, Errno> {
        let space = rustix::fs::fstatvfs(&self.root)?;
        let temp = self.new_temp()?;
        let mode = rustix::fs::fstat(&temp.file)?.st_mode & 0o777;
        Ok(FileSystemReport {
            kind: kind_of(self.root.as_fd())?,
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            directory_sync: (self.sync.directory)(self.root.as_fd()).is_ok(),
            private_modes: mode & 0o077 == 0,
            exclusive_by: self.exclusive_by(&temp)?,
        })
    }

    /// Names a file in `.tmp/` the way objects get their names.
    fn exclusive_by(&self, temp: &Temp) -> Result<ExclusiveBy, Errno> {
        let directory = &temp.name.directory;
        let name = format!("probe-{}", temp.name.name.trim_end_matches(TEMP_SUFFIX));
        let placed = self.place(temp, directory.as_fd(), &name);
        match placed {
            Err(Errno::OPNOTSUPP) => return Ok(ExclusiveBy::Nothing),
            Err(error) => return Err(error),
            Ok(_) => rustix::fs::unlinkat(directory, &name, AtFlags::empty())?,
        }
        Ok(if placed == Ok(Placed::Renamed) { ExclusiveBy::Rename } else { ExclusiveBy::Link })
    }
}

/// What the facts mean; what the file system is and how much room it has, they say themselves.
fn assess(facts: &FileSystemReport, report: &mut ProbeReport) {
    match facts.exclusive_by {
        ExclusiveBy::Rename => report.findings.push("It renames without replacing.".into()),
        ExclusiveBy::Link => report
            .findings
            .push("It cannot rename without replacing, so objects get their names by linking.".into()),
        ExclusiveBy::Nothing => report
            .problems
            .push("It can neither rename without replacing nor link: it cannot hold a repository.".into()),
    }
    if !facts.directory_sync {
        report
            .problems
            .push("It does not confirm that names are durable: a crash may lose the last objects.".into());
    }
    if !facts.private_modes {
        report.notes.push(
            "It does not keep files private to their owner: mount it with options such as `file_mode=0600` and \
             `dir_mode=0700`."
                .into(),
        );
    }
    report.notes.extend(advice(&facts.kind).map(str::to_owned));
}

fn advice(kind: &str) -> Option<&'static str> {
    match kind {
        "nfs" => Some(
            "The NFS export should have the option `sync`: with `async` the server confirms what a crash of it loses.",
        ),
        "smb" => {
            Some("On SMB the server decides what a sync means: see that it does not ignore flush requests.")
        }
        "fuse" | "9p" => Some("What a sync means is up to the program behind this mount."),
        "tmpfs" | "ramfs" => Some("It is in memory: everything in it is lost at a reboot."),
        "overlay" => Some("It is the inside of a container: everything in it is lost with the container."),
        "fat" | "exfat" => Some("It has no journal: a crash can damage files written long before."),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disqualifies_a_file_system_is_a_problem() {
        let sound = FileSystemReport {
            kind: "ext4".into(),
            free_bytes: 1,
            total_bytes: 2,
            directory_sync: true,
            private_modes: true,
            exclusive_by: ExclusiveBy::Rename,
        };
        let judged = |facts: FileSystemReport| {
            let mut report = ProbeReport::new(String::new());
            assess(&facts, &mut report);
            (report.findings.len(), report.notes.len(), report.problems.len())
        };
        assert_eq!(judged(sound.clone()), (1, 0, 0));
        let exclusive_by = ExclusiveBy::Nothing;
        assert_eq!(judged(FileSystemReport { exclusive_by, ..sound.clone() }), (0, 0, 1));
        assert_eq!(judged(FileSystemReport { directory_sync: false, ..sound.clone() }), (1, 0, 1));
        assert_eq!(judged(FileSystemReport { private_modes: false, ..sound.clone() }), (1, 1, 0));
        assert_eq!(judged(FileSystemReport { kind: "fat".into(), ..sound }), (1, 1, 0));
    }
}
