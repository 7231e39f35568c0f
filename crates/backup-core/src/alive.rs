//! Which sessions of this host still have a living process: a lock file per session in the local cache.
//!
//! Only a matter of speed: a session without a living process can be fenced at once instead of after minutes of
//! silence. Fencing is safe either way.

use std::fs::{self, File};

use keepwell_crypto::MemberId;

use crate::cache::Cache;

const DIRECTORY: &str = "alive";

/// Locked while its session's process lives; the file itself stays until the session has ended.
#[derive(Debug)]
pub(crate) struct AliveFile {
    _file: File,
}

impl AliveFile {
    /// Only for a session that this process has claimed: anybody else would leave a file that says, once it is unlocked,
    /// that the session is dead. The file has its name only when it is locked, for the same reason.
    ///
    /// `None` where there is no cache directory, or it cannot be written: then keepers wait for silence.
    pub fn create(cache: &Cache, writer: MemberId, n: u64) -> Option<Self> {
        let directory = cache.path()?.join(DIRECTORY);
        fs::create_dir_all(&directory).ok()?;
        let path = directory.join(format!("{writer}-{n}"));
        let unnamed = path.with_extension("new");
        let file = File::create(&unnamed).ok()?;
        let locked = file.try_lock().is_ok();
        if locked && fs::rename(&unnamed, path).is_ok() {
            return Some(Self { _file: file });
        }
        let _ = fs::remove_file(unnamed);
        None
    }
}

/// Whether the session was begun on this host, with this cache, by a process that is gone.
pub(crate) fn is_known_dead(cache: &Cache, writer: MemberId, n: u64) -> bool {
    let Some(path) = cache.path() else { return false };
    let Ok(file) = File::open(path.join(DIRECTORY).join(format!("{writer}-{n}"))) else { return false };
    // Where it cannot be locked at all (some network file systems), nobody knows, and silence has to tell.
    file.try_lock().is_ok()
}

/// Removes the traces of a session that has ended.
pub(crate) fn forget(cache: &Cache, writer: MemberId, n: u64) {
    if let Some(path) = cache.path() {
        let _ = fs::remove_file(path.join(DIRECTORY).join(format!("{writer}-{n}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, block_on};
    use crate::write::Session;

    #[test]
    fn who_loses_the_race_for_a_number_says_nothing_about_its_winner() {
        block_on(async {
            let world = World::new().await;
            let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let open = |at: usize| world.open_cached(&world.key, Cache::directory(directories[at].path()));
            let (here, there, there_too) = (open(0).await, open(1).await, open(1).await);
            // Two hosts with one credential, and two processes on one of them.
            let winner = Session::claim(&here).await.unwrap();
            let loser = Session::claim(&there).await.unwrap();
            let last = Session::claim(&there_too).await.unwrap();
            assert_eq!([winner.n(), loser.n(), last.n()], [0, 1, 2]);
            let writer = winner.writer();
            let dead = |repository: &crate::Repository, n| is_known_dead(repository.cache(), writer, n);
            for repository in [&here, &there, &there_too] {
                assert_eq!([0, 1, 2].map(|n| dead(repository, n)), [false; 3]);
            }
            drop((winner, loser));
            assert_eq!([0, 1, 2].map(|n| dead(&here, n)), [true, false, false], "each knows its own host");
            assert_eq!([0, 1, 2].map(|n| dead(&there, n)), [false, true, false]);
        });
    }
}
