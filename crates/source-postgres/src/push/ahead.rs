//! Which files were archived before they were asked for.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How long a file is waited for that another process is to archive.
const WAIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(2);
/// Of other files nobody archives any ahead.
const SEGMENT_NAME_BYTES: usize = 24;

/// A file beside the cache that names the files of WAL that the last push stored ahead.
///
/// A server asks for one file after the other; what is noted here is answered without the repository, which would take
/// several times as long as to start the program. A file counts as the same while inode, change time and length are; any
/// doubt, and a note that is lost or damaged, means that the repository is asked. Whoever sets up a new repository in the
/// place of another has at most the few files of one note answered for the old one, none of which the new one can use:
/// it has no base backup before them.
#[derive(Debug, Clone)]
pub struct Ahead {
    note: PathBuf,
}

/// The right to archive ahead, which one process at a time has. It ends with the last copy of the file, at the latest with
/// the process that was given it.
#[derive(Debug)]
pub struct Turn(File);

impl Turn {
    /// Says behind which file is archived: whoever is asked for this one, or for one before it, need not wait for us.
    pub fn behind(&self, file: &Path) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.write_all_at(file.file_name().unwrap_or_default().as_bytes(), 0)
    }

    /// To hand it to another process, as its standard input.
    pub fn into_file(self) -> File {
        self.0
    }
}

/// What tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &Path) -> Option<Self> {
        let about = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            device: about.dev(),
            inode: about.ino(),
            bytes: about.len(),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}.{:09}", self.device, self.inode, self.bytes, self.changed.0, self.changed.1)
    }
}

impl Ahead {
    /// In this file, which need not be there. It has to be another one for another repository, dataset or cluster.
    pub fn new(note: PathBuf) -> Self {
        Self { note }
    }

    /// Whether this file was archived ahead, as it is now.
    pub fn has(&self, file: &Path) -> bool {
        let (Some(stamp), Some(name)) = (Stamp::of(file), file.file_name()) else { return false };
        let line = line(name.to_string_lossy().as_ref(), stamp);
        fs::read_to_string(&self.note).is_ok_and(|note| note.split_inclusive('\n').any(|l| l == line))
    }

    /// The right to archive ahead, if nobody has it. Fails where no file can be locked.
    pub fn turn(&self) -> io::Result<Option<Turn>> {
        let path = self.turn_file();
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Turn(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn turn_file(&self) -> PathBuf {
        self.note.with_extension("turn")
    }

    /// Whether somebody who archives ahead comes to this file, as far as is known.
    fn comes_to(&self, name: &OsStr) -> bool {
        let begun = fs::read(self.turn_file()).unwrap_or_default();
        begun.len() != SEGMENT_NAME_BYTES || begun.as_slice() < name.as_bytes()
    }

    /// Waits until this file is noted. `false`: nobody archives ahead any more, does not come to it, or has not within a
    /// minute.
    pub async fn wait_for(&self, file: &Path) -> bool {
        let Some(name) = file.file_name().filter(|name| name.len() == SEGMENT_NAME_BYTES) else {
            return false;
        };
        let end = tokio::time::Instant::now() + WAIT;
        while tokio::time::Instant::now() < end {
            // In this order: what was noted before the turn ended is seen.
            let nobody = !matches!(self.turn(), Ok(None));
            if self.has(file) {
                return true;
            }
            if nobody || !self.comes_to(name) {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// Notes these files in the place of those before. Where it cannot be written there is none.
    pub(super) fn note(&self, files: &[(PathBuf, Stamp)]) {
        let mut text = String::new();
        for (file, stamp) in files {
            text.push_str(&line(&file.file_name().unwrap_or_default().to_string_lossy(), *stamp));
        }
        if self.replace(&text).is_err() {
            // Then the repository is asked.
            let _ = fs::remove_file(&self.note);
        }
    }

    fn replace(&self, text: &str) -> std::io::Result<()> {
        let directory = self.note.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.persist(&self.note)?;
        Ok(())
    }
}

fn line(name: &str, stamp: Stamp) -> String {
    format!("{name} {stamp}\n")
}
