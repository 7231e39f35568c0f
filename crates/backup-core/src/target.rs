//! Where a restore writes: the [`RestoreTarget`] trait, the other half of a source.
//!
//! The engine decides *what* to write (which chunks differ, in which order packs are read); a target knows *how* to
//! create, confine and finish things. Keys handed to a target are relative to the target's root.

use keepwell_catalog::{Entry, MapKey};

/// A place that a snapshot can be restored into.
///
/// Called from several threads at once. The engine makes a directory before what is in it, and finishes it (mode, times)
/// after everything in it, soon after the last of that; later it changes nothing there. Hard links to what is in it may
/// still be asked for, unless its mode keeps its owner from going through it: such a directory is finished at the end.
pub trait RestoreTarget: Send + Sync {
    /// What stands at `key` now: its metadata (without content), or `None`. Never follows a symlink.
    fn existing(&self, key: &MapKey) -> Result<Option<Entry>, TargetError>;

    /// Opens a regular file that exists, for comparing and for writing what differs, until it is what `entry` says. Nobody
    /// may read new content who could read the old one and may not read the new one.
    fn open_existing(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError>;

    /// Makes a directory, usable by the engine whatever its final mode; an existing directory stays. Anything else in
    /// its place is replaced.
    fn make_dir(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError>;

    /// Creates a file with its whole content and metadata at once; replaces what is there, atomically. Where nothing is, a
    /// crash may leave a part of it.
    fn write_file(&self, key: &MapKey, entry: &Entry, content: &[u8]) -> Result<(), TargetError>;

    /// Creates a file of `entry.size` bytes, all hole, to be filled by [`TargetFile::write_at`] and ended by
    /// [`TargetFile::finish`]; until then it does not stand under its name.
    fn create_file(&self, key: &MapKey, entry: &Entry) -> Result<Box<dyn TargetFile>, TargetError>;

    /// Creates a symlink, FIFO, device or socket with its metadata, replacing what is there. Returns what was left out
    /// on purpose (a device under the untrusted policy), as a message.
    fn make_other(&self, key: &MapKey, entry: &Entry) -> Result<Option<String>, TargetError>;

    /// Makes `key` another name of the file at `first`.
    fn hard_link(&self, key: &MapKey, first: &MapKey) -> Result<(), TargetError>;

    /// Applies the metadata of an existing thing (not its content). Used for directories, and for files whose content was
    /// already right.
    fn apply_metadata(&self, key: &MapKey, entry: &Entry) -> Result<(), TargetError>;

    /// Names in the directory at `key`, in byte order; empty if there is no directory. For `--delete`.
    fn list_dir(&self, key: Option<&MapKey>) -> Result<Vec<Vec<u8>>, TargetError>;

    /// Whether nothing stands in the target: nothing is looked for there then, compared or removed. A target that does not
    /// list all that stands there, so that it stays, says so itself.
    fn is_empty(&self) -> Result<bool, TargetError> {
        Ok(self.list_dir(None)?.is_empty())
    }

    /// Whether the directory at `key` lies on another file system than the target, one that is mounted within it, or in a
    /// directory from elsewhere that is bound there. What a snapshot lacks there is not removed: it need not ever have
    /// belonged to what was captured.
    fn is_mounted(&self, key: Option<&MapKey>) -> Result<bool, TargetError>;

    /// Removes what is at `key`, with everything below it. Absent is fine.
    fn remove(&self, key: &MapKey) -> Result<(), TargetError>;

    /// Bytes free for an ordinary user where the target lives, if that can be known.
    fn free_bytes(&self) -> Result<Option<u64>, TargetError>;

    /// The number of the file system that the target lives on: targets with the same one share what is free there. `None`,
    /// which is what is said if nobody says otherwise: it shares with none.
    fn file_system(&self) -> Result<Option<u64>, TargetError> {
        Ok(None)
    }
}

/// A file being written or compared. All but `finish` may be called from several threads at once.
pub trait TargetFile: Send + Sync {
    /// Reads exactly `buf.len()` bytes at `offset`; a shorter file gives `Ok(false)`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, TargetError>;

    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), TargetError>;

    /// Makes the bytes from `offset` a hole (or zeros) of `length` bytes, if they are not already.
    fn punch_hole(&self, offset: u64, length: u64) -> Result<(), TargetError>;

    /// Sets the final size and metadata and puts the file under its name.
    fn finish(self: Box<Self>, entry: &Entry) -> Result<(), TargetError>;
}

/// Why a target refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The snapshot asks for something outside the target, or through a symlink.
    #[error("`{path}` is refused: {reason}")]
    Refused {
        /// The path asked for.
        path: String,
        /// Why.
        reason: String,
    },
    /// An operation failed.
    #[error("{operation} `{path}`")]
    Io {
        /// The verb.
        operation: &'static str,
        /// Where.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}
