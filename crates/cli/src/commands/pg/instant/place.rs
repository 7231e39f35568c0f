//! The directory that an instant server lives in, and what a killed process left of one.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use backup_core::env::{Rng, SystemRng};
use keepwell_mount::{FILLING_NAME, take_away_now};
use rustix::process::{Pid, Signal, kill_process};

use crate::commands::pg::{marked, places};
use crate::context::Context;
use crate::exit::Complaint;
use crate::mountinfo::{self, Mounted};

/// Names of directories that nobody asked to keep begin so.
const PREFIX: &str = "keepwell-instant-";
/// A file that is locked as long as its process lives, in the directory of what is not a cluster yet.
const MARKER: &str = "keepwell-instant";
/// The longest name of a directory that can hold the server's socket.
const NAME_BYTES_MAX: usize = 90;
/// A server that was told to end may take so long.
const POLLS_MAX: u32 = 100;
const POLL_EVERY: Duration = Duration::from_millis(100);

/// A directory for a server; with everything in it removed when this is dropped, unless it is kept.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// User and group that the server runs as.
    pub owner: Option<(u32, u32)>,
    /// It stood there already, empty.
    stood: bool,
    is_kept: bool,
    /// The marker, locked.
    marker: Option<File>,
}

impl Place {
    /// Makes one to keep.
    pub fn to_keep(directory: &Path, owner: Option<&str>) -> Result<Self> {
        let directory = std::path::absolute(directory).map_err(|e| Complaint::usage(e.to_string()))?;
        let stood = directory.exists();
        if stood {
            clear(&directory)?;
        }
        Self::make(directory, owner, stood)
    }

    /// Makes one below `parent`, where those of killed processes are removed first.
    pub fn to_discard(ctx: &Context, parent: &Path, owner: Option<&str>) -> Result<Self> {
        let parent = std::path::absolute(parent).map_err(|e| Complaint::usage(e.to_string()))?;
        marked::sweep(ctx, &parent, PREFIX, clear)?;
        // In a container each run has the same process number.
        let mut random = [0_u8; 4];
        SystemRng.fill(&mut random);
        Self::make(parent.join(format!("{PREFIX}{:08x}", u32::from_ne_bytes(random))), owner, false)
    }

    fn make(path: PathBuf, owner: Option<&str>, stood: bool) -> Result<Self> {
        let owner = places::owner(&path, owner)?;
        if !stood {
            let made = fs::DirBuilder::new().mode(0o700).create(&path);
            made.with_context(|| format!("create `{}`", path.display()))?;
        }
        let mut found = fs::read_dir(&path).with_context(|| format!("list `{}`", path.display()))?;
        if found.next().is_some() {
            return Err(Complaint::usage(format!("`{}` is not empty", path.display()))
                .hint("Name a directory that is empty, or is not there yet.")
                .into());
        }
        let path = path.canonicalize().with_context(|| format!("look at `{}`", path.display()))?;
        // From here on it is removed again if anything fails.
        let mut place = Self { path, owner, stood, is_kept: false, marker: None };
        place.prepare()?;
        Ok(place)
    }

    fn prepare(&mut self) -> Result<()> {
        let path = &self.path;
        if path.as_os_str().len() > NAME_BYTES_MAX {
            return Err(Complaint::usage(format!(
                "no socket fits below `{}`: the name is too long",
                path.display()
            ))
            .into());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .context("close the directory to others")?;
        self.marker = Some(marked::mark(path, MARKER)?);
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group)).context("hand over the directory")?;
        }
        let passed = self.owner.and_then(|owner| places::obstacle(&path.join("data"), owner));
        match passed {
            None => Ok(()),
            Some(obstacle) => Err(Complaint::failed(format!(
                "the user of the server cannot pass `{}` on the way to `{}`",
                obstacle.display(),
                path.display()
            ))
            .hint("Name a directory that it can reach: `--scratch DIR`, or `--keep DIR`.")
            .into()),
        }
    }

    /// Where it is, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it for the server alone.
    pub fn private(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("create `{}`", path.display()))?;
        if let Some((user, group)) = self.owner {
            chown(&path, Some(user), Some(group))
                .with_context(|| format!("hand over `{}`", path.display()))?;
        }
        Ok(path)
    }

    /// What is in it stays, and is no longer taken for what a killed process left.
    pub fn keep(mut self) -> Result<()> {
        fs::remove_file(self.path.join(MARKER)).context("take away the mark")?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed is left in plain sight, and the next run tries again.
            let _ = take_away_left(&self.path);
            let emptied = marked::empty(&self.path, MARKER);
            if !self.stood {
                let _ = emptied.and_then(|()| fs::remove_dir(&self.path));
            }
        }
    }
}

/// Empties a directory if a killed process left it: ends its server, and takes away what is mounted in it. Whether there
/// was something. What became a cluster stays.
fn clear(directory: &Path) -> Result<bool> {
    let Some(_marker) = marked::left(directory, MARKER)? else { return Ok(false) };
    let directory = directory.canonicalize().with_context(|| format!("look at `{}`", directory.display()))?;
    end_servers(&directory.join("data"))?;
    take_away_left(&directory)?;
    if directory.join("data/global/pg_control").exists() {
        fs::remove_file(directory.join(MARKER)).context("take away the mark")?;
        return Ok(false);
    }
    marked::empty(&directory, MARKER).with_context(|| format!("empty `{}`", directory.display()))?;
    Ok(true)
}

/// Takes away what is mounted at a directory or below it, in use or not. The process that served it must have ended.
fn take_away_left(directory: &Path) -> Result<()> {
    let mounted = mountinfo::read().context("read the table of mounts")?;
    // What was mounted last may stand over the others.
    for mounted in mounted.iter().rev().filter(|mounted| is_left(mounted, directory)) {
        take_away_now(&mounted.point)?;
    }
    Ok(())
}

fn is_left(Mounted { point, kind, source }: &Mounted, directory: &Path) -> bool {
    kind.starts_with(b"fuse") && source == FILLING_NAME.as_bytes() && point.starts_with(directory)
}

/// Ends what still runs of a server in a data directory whose file system is gone.
fn end_servers(data: &Path) -> Result<()> {
    for poll in 0..=POLLS_MAX {
        let left = servers(data)?;
        if left.is_empty() {
            return Ok(());
        }
        let signal = if poll < POLLS_MAX / 2 { Signal::QUIT } else { Signal::KILL };
        for pid in left {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
        thread::sleep(POLL_EVERY);
    }
    Err(Complaint::failed(format!("a server still runs in `{}`", data.display())).into())
}

fn servers(data: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let process = entry.context("list the processes")?.path();
        let number = process.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else { continue };
        let is_postgres = || fs::read(process.join("comm")).is_ok_and(|name| name == b"postgres\n");
        if fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == data) && is_postgres() {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(directory: &Path) -> BTreeSet<String> {
        let found = fs::read_dir(directory).unwrap();
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn only_what_is_ours_and_below_the_directory_is_taken_away() {
        for (point, kind, source, expected) in [
            ("/srv/a b", "fuse", "keepwell-instant", true),
            ("/srv/a b/data", "fuse", "keepwell-instant", true),
            ("/srv/a bc", "fuse", "keepwell-instant", false),
            ("/srv/a b/other", "fuse", "sshfs", false),
            ("/srv/a b/mnt", "tmpfs", "keepwell-instant", false),
        ] {
            let mounted = Mounted { point: point.into(), kind: kind.into(), source: source.into() };
            assert_eq!(is_left(&mounted, Path::new("/srv/a b")), expected, "{mounted:?}");
        }
    }

    #[test]
    fn two_that_are_thrown_away_have_places_of_their_own() {
        let owner = rustix::process::geteuid().is_root().then_some("root");
        let dir = tempfile::tempdir().unwrap();
        let ctx = Context::of_profiles("");
        let first = Place::to_discard(&ctx, dir.path(), owner).unwrap();
        let second = Place::to_discard(&ctx, dir.path(), owner).unwrap();
        assert!(first.path() != second.path() && first.path().exists());
        drop((first, second));
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_runs_or_is_a_cluster_is_not() {
        let owner = rustix::process::geteuid().is_root().then_some("root");
        let dir = tempfile::tempdir().unwrap();
        let (runs, left, whole) =
            (dir.path().join("runs"), dir.path().join("left"), dir.path().join("whole"));
        let place = Place::to_keep(&runs, owner).unwrap();
        fs::create_dir(runs.join("data")).unwrap();
        assert!(!clear(&runs).unwrap(), "its process lives");
        assert!(Place::to_keep(&runs, owner).unwrap_err().to_string().contains("is not empty"));
        for directory in [&left, &whole] {
            fs::create_dir_all(directory.join("data/global")).unwrap();
            fs::write(directory.join(MARKER), "").unwrap();
        }
        fs::write(whole.join("data/global/pg_control"), "").unwrap();
        assert!(clear(&left).unwrap() && names(&left).is_empty());
        assert!(!clear(&whole).unwrap() && names(&whole) == ["data".to_owned()].into());
        fs::write(left.join("theirs"), "").unwrap();
        assert!(!clear(&left).unwrap() && left.join("theirs").exists(), "nobody marked it");
        drop(place);
        assert!(!runs.exists());
        fs::create_dir(&runs).unwrap();
        let place = Place::to_keep(&runs, owner).unwrap();
        fs::create_dir(runs.join("data")).unwrap();
        drop(place);
        assert!(names(&runs).is_empty(), "the directory was there");
        let place = Place::to_keep(&runs, owner).unwrap();
        fs::create_dir(runs.join("data")).unwrap();
        place.keep().unwrap();
        assert_eq!(names(&runs), ["data".to_owned()].into());
    }
}
