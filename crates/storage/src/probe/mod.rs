//! The live self-test of a store.

mod bucket;
mod creates;
mod rights;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use bucket::BucketReport;
pub use rights::{Right, Rights};

use crate::random::random_name;
use crate::{Key, ObjectStore, StorageError, StorageErrorKind};

/// What a live self-test found out about a store.
///
/// Trial runs find stores that ignore conditions; they cannot prove that all hosts see the same winner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The store, as it describes itself.
    pub store: String,
    /// Writers per race.
    pub racers: u32,
    /// Races run; none where the store itself says that it does not create exclusively.
    pub races: u32,
    /// Every race had exactly one winner, and the object held the winner's bytes.
    pub exclusive_create: bool,
    /// Storing under a taken name was refused, and the object kept its bytes.
    pub overwrite_refused: bool,
    /// What these credentials may do.
    #[serde(default)]
    pub rights: Rights,
    /// How the bucket is set up; absent where the store has none, or no way to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketReport>,
    /// What is beneath a local store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystemReport>,
    /// What the store promises, as sentences.
    pub findings: Vec<String>,
    /// What to know: what it does not promise, what was not checked, advice.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What must be mended.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// What a live self-test found out about the file system under a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemReport {
    /// `ext4`, `nfs`, `smb`, …; an unknown one as its magic number in hexadecimal.
    pub kind: String,
    /// Bytes that we may still write.
    pub free_bytes: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// How an object gets its name without replacing another.
    pub exclusive_by: ExclusiveBy,
    /// A directory can be synced, so that names are durable.
    pub directory_sync: bool,
    /// A file that was asked to be private is.
    pub private_modes: bool,
}

/// The ways of a file system to name a file without replacing another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExclusiveBy {
    /// `renameat2` with `RENAME_NOREPLACE`.
    Rename,
    /// `link`, then `unlink`.
    Link,
    /// Neither; every put fails.
    Nothing,
}

/// Whose credentials are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Somebody's who maintains the repository, and so must be able to delete.
    Keeper,
    /// A backup host's, which should be able to add, and to destroy nothing.
    Writer,
}

/// How to test a store.
#[derive(Clone, Copy)]
pub struct ProbeOptions<'a> {
    /// Whose credentials these are.
    pub role: Role,
    /// What our keys begin with in the bucket, without slashes at its ends; empty for none. Lifecycle rules for other
    /// keys do not matter.
    pub prefix: &'a str,
    /// This machine's clock, to compare with the store's.
    pub now: &'a (dyn Fn() -> SystemTime + Sync),
}

impl fmt::Debug for ProbeOptions<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProbeOptions")
            .field("role", &self.role)
            .field("prefix", &self.prefix)
            .finish()
    }
}

impl ProbeReport {
    /// Whether several maintainers may work on the store at a time.
    pub fn conditional_create(&self) -> bool {
        self.exclusive_create && self.overwrite_refused
    }

    pub(crate) fn new(store: String) -> Self {
        Self {
            store,
            racers: 0,
            races: 0,
            exclusive_create: true,
            overwrite_refused: true,
            rights: Rights::default(),
            bucket: None,
            file_system: None,
            findings: Vec::new(),
            notes: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// Tests a store live: races writers for names under `probe/`, tries what these credentials may do to such an object,
/// and asks how the bucket is set up.
///
/// Some 70 small requests. The objects are deleted again, also after a failure, as far as the store lets us; a writer's
/// credentials, which cannot delete, leave a few objects of some bytes. Fails if the store cannot be reached, or
/// nothing can be stored in it; everything else is in the report.
pub async fn probe(
    store: &Arc<dyn ObjectStore>,
    options: &ProbeOptions<'_>,
) -> Result<ProbeReport, StorageError> {
    let mut report = objects(store, options.role).await?;
    match store.control() {
        Some(control) => bucket::examine(&*control, options, &mut report).await,
        None => report.notes.push(
            "Not checked, because there is no common way to ask such a store: versions, locks, rules that delete or move \
             objects, its clock."
                .into(),
        ),
    }
    rights::judge(&mut report, options.role);
    Ok(report)
}

/// The part that every store can do.
pub(crate) async fn objects(store: &Arc<dyn ObjectStore>, role: Role) -> Result<ProbeReport, StorageError> {
    let mut report = ProbeReport::new(store.describe());
    creates::examine(store, role, &mut report).await?;
    rights::examine(store, &mut report).await?;
    Ok(report)
}

/// Adds what the rights that were found mean for somebody in that role.
pub(crate) fn judge(report: &mut ProbeReport, role: Role) {
    rights::judge(report, role);
}

/// A name under `probe/` that nobody else has.
fn fresh_key(store: &dyn ObjectStore) -> Result<Key, StorageError> {
    let name = random_name().map_err(|error| {
        let message = format!("no random bytes: {error}");
        StorageError::new(StorageErrorKind::Other, "probe", store.describe(), message)
    })?;
    Ok(Key::new(&format!("probe/{name}")).expect("`probe/` and hexadecimal digits make a key"))
}

#[cfg(test)]
mod tests;
