//! `pg_control`, and whether a directory is the data directory of the server that we talk to.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::replication::{SlotName, SystemId};

/// Below the data directory.
pub(super) const CONTROL: &str = "global/pg_control";
/// PostgreSQL writes it with this size and uses the begin of it.
pub(super) const CONTROL_BYTES: u64 = 8192;

/// Why the files of a server cannot be read on this host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The server does not say where its files are, and nobody else did.
    #[error("the role may not know where the server has its files")]
    Unknown,
    /// A file or directory that must be readable is not.
    #[error("read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The files are those of another server.
    #[error("`{path}` is not the data directory of this server: {reason}")]
    Other {
        /// The directory.
        path: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// The server always writes it anew, or it is damaged.
    /// The role may not begin a backup.
    #[error("the role may not begin or end a backup: {reason}")]
    Denied {
        /// What the server says.
        reason: String,
    },
}

impl LocalError {
    /// What the operator may do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown => "Name the directory (`--data-directory`), or `GRANT pg_read_all_settings TO` the role.",
            Self::Read { .. } => {
                "Run it on the host of the database, as the user that the server runs as, or as root."
            }
            Self::Other { .. } => {
                "Run it on the host of the server that the connection leads to, and name its directory \
                 (`--data-directory`) if it is called otherwise here, as in a container; or leave `--local` away."
            }
            Self::Denied { .. } => {
                "As a superuser, in the database of the connection, from PostgreSQL 15 on: `GRANT EXECUTE ON FUNCTION \
                 pg_backup_start(text, boolean), pg_backup_stop(boolean) TO` the role; on 14: pg_start_backup(text, \
                 boolean, boolean) and pg_stop_backup(boolean, boolean)."
            }
        }
        .to_owned()
    }
}

pub(super) fn read_error(path: &Path) -> impl FnOnce(io::Error) -> LocalError {
    let path = path.to_owned();
    |source| LocalError::Read { path, source }
}

/// What shows that a directory is the server's own.
pub(super) struct Marks<'a> {
    pub system: SystemId,
    pub port: Option<&'a str>,
    /// A slot that the server made a moment ago.
    pub slot: Option<&'a SlotName>,
}

/// Whether `directory` is the data directory of the server with these marks. A copy of it has the same identifier, a standby
/// on this host as well; but no other server has the slot that this one just made.
pub(super) fn prove(directory: &Path, marks: &Marks<'_>) -> Result<(), LocalError> {
    let other = |reason| Err(LocalError::Other { path: directory.to_owned(), reason });
    let control = directory.join(CONTROL);
    let mut system = [0; 8];
    File::open(&control).and_then(|mut file| file.read_exact(&mut system)).map_err(read_error(&control))?;
    let system = SystemId::new(u64::from_ne_bytes(system));
    if system != marks.system {
        return other(format!("it is of cluster {system}, and the server of {}", marks.system));
    }
    let pid = directory.join("postmaster.pid");
    let pid = match fs::read_to_string(&pid) {
        Ok(pid) => pid,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return other("no server runs in it".to_owned());
        }
        Err(error) => return Err(read_error(&pid)(error)),
    };
    if let (Some(port), Some(found)) = (marks.port, pid.lines().nth(3))
        && port != found
    {
        return other(format!("the server in it listens on port {found}, and this one on {port}"));
    }
    match marks.slot {
        Some(slot) if !directory.join(format!("pg_replslot/{slot}")).is_dir() => {
            other(format!("it does not have the replication slot `{slot}` of this backup"))
        }
        _ => Ok(()),
    }
}

/// Reads `pg_control` once, with its metadata; it may be caught half written.
pub(super) fn read(directory: &Path) -> Result<(Vec<u8>, fs::Metadata), LocalError> {
    let path = directory.join(CONTROL);
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(read_error(&path))?;
    let metadata = file.metadata().map_err(read_error(&path))?;
    file.take(CONTROL_BYTES + 1).read_to_end(&mut bytes).map_err(read_error(&path))?;
    Ok((bytes, metadata))
}

/// Whether the checksum fits. It is the last thing that is not zero, whatever the version has before it.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let (words, []) = bytes.as_chunks::<4>() else { return false };
    let Some(last) = words.iter().rposition(|word| *word != [0; 4]) else { return false };
    bytes.len() as u64 == CONTROL_BYTES
        && crc_fast::crc32_iscsi(&bytes[..4 * last]) == u32::from_ne_bytes(words[last])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(system: u64) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_BYTES as usize];
        bytes[..8].copy_from_slice(&system.to_ne_bytes());
        bytes[100..292].fill(7);
        let sum = crc_fast::crc32_iscsi(&bytes[..292]);
        bytes[292..296].copy_from_slice(&sum.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_torn_control_file_is_noticed() {
        let good = control(9);
        assert!(is_whole(&good));
        assert_eq!(crc_fast::crc32_iscsi(b"123456789"), 0xe306_9283, "the CRC that PostgreSQL means");
        for at in [0, 150, 291, 293, 5000] {
            let mut torn = good.clone();
            torn[at] ^= 1;
            assert!(!is_whole(&torn), "at {at}");
        }
        assert!(!is_whole(&good[..296]) && !is_whole(&good[..295]) && !is_whole(&vec![0; 8192]));
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("global")).unwrap();
        fs::write(dir.path().join(CONTROL), &good).unwrap();
        assert_eq!(read(dir.path()).unwrap().0, good);
        fs::write(dir.path().join(CONTROL), &good[..4096]).unwrap();
        assert!(!is_whole(&read(dir.path()).unwrap().0));
    }

    #[test]
    fn another_servers_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let slot = SlotName::new("keepwell_backup_7").unwrap();
        let marks = Marks { system: SystemId::new(9), port: Some("5433"), slot: Some(&slot) };
        let proved = || prove(dir.path(), &marks).map_err(|error| error.to_string());
        assert!(proved().unwrap_err().starts_with("read `"));
        fs::create_dir(dir.path().join("global")).unwrap();
        fs::write(dir.path().join(CONTROL), control(8)).unwrap();
        assert!(proved().unwrap_err().ends_with("it is of cluster 8, and the server of 9"));
        fs::write(dir.path().join(CONTROL), control(9)).unwrap();
        assert!(proved().unwrap_err().ends_with("no server runs in it"));
        fs::write(dir.path().join("postmaster.pid"), "77\n/data\n1700000000\n5432\n").unwrap();
        assert!(
            proved().unwrap_err().ends_with("the server in it listens on port 5432, and this one on 5433")
        );
        fs::write(dir.path().join("postmaster.pid"), "77\n/data\n1700000000\n5433\n").unwrap();
        assert!(
            proved().unwrap_err().contains("`keepwell_backup_7`"),
            "a standby of it, on the same port elsewhere"
        );
        fs::create_dir_all(dir.path().join("pg_replslot/keepwell_backup_7")).unwrap();
        assert_eq!(proved(), Ok(()));
    }
}
