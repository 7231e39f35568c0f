//! Which sessions of this host still have a living process: a lock file per session in the local cache.
//!
//! Only a matter of speed: a session without a living process can be fenced at once instead of after minutes of
//! silence. Fencing is safe either way.

use std::fs::{self, File, TryLockError};

use keepwell_crypto::MemberId;

use crate::cache::Cache;

const DIRECTORY: &str = "alive";

/// Locked while its session's process lives; the file itself stays until the session has ended.
#[derive(Debug)]
pub(crate) struct AliveFile {
    _file: File,
}

impl AliveFile {
    /// `None` where there is no cache directory, or it cannot be written: then keepers wait for silence.
    pub fn create(cache: &Cache, writer: MemberId, n: u64) -> Option<Self> {
        let directory = cache.path()?.join(DIRECTORY);
        fs::create_dir_all(&directory).ok()?;
        let path = directory.join(format!("{writer}-{n}"));
        let file = File::create(&path).ok()?;
        file.try_lock().ok()?;
        Some(Self { _file: file })
    }
}

/// Whether the session was begun on this host, with this cache, by a process that is gone.
pub(crate) fn is_known_dead(cache: &Cache, writer: MemberId, n: u64) -> bool {
    let Some(path) = cache.path() else { return false };
    let Ok(file) = File::open(path.join(DIRECTORY).join(format!("{writer}-{n}"))) else { return false };
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Removes the traces of a session that has ended.
pub(crate) fn forget(cache: &Cache, writer: MemberId, n: u64) {
    if let Some(path) = cache.path() {
        let _ = fs::remove_file(path.join(DIRECTORY).join(format!("{writer}-{n}")));
    }
}
