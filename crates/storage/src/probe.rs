//! The live self-test of a store.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{Key, ObjectStore, StorageError, StorageErrorKind};

/// Writers that race for one name.
const RACERS: u32 = 16;
/// Names that they race for, one after the other.
const ROUNDS: u32 = 4;

/// What a live self-test found out about a store.
///
/// Trial runs find stores that ignore conditions; they cannot prove that all hosts see the same winner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The store, as it describes itself.
    pub store: String,
    /// Writers per race.
    pub racers: u32,
    /// Races run.
    pub races: u32,
    /// Every race had exactly one winner, and the object held the winner's bytes.
    pub exclusive_create: bool,
    /// Storing under a taken name was refused, and the object kept its bytes.
    pub overwrite_refused: bool,
    /// What is beneath a local store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystemReport>,
    /// The findings as sentences, for people.
    pub findings: Vec<String>,
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

impl ProbeReport {
    /// Whether several maintainers may work on the store at a time.
    pub fn conditional_create(&self) -> bool {
        self.exclusive_create && self.overwrite_refused
    }
}

/// Races writers for names under `probe/` and tries to overwrite the winner's object.
///
/// The few small objects that it makes are deleted again, also after a failure, as far as the store lets us.
pub async fn probe(store: &Arc<dyn ObjectStore>) -> Result<ProbeReport, StorageError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| {
        StorageError::new(
            StorageErrorKind::Other,
            "probe",
            store.describe(),
            format!("no random bytes: {error}"),
        )
    })?;
    let mut report = ProbeReport {
        store: store.describe(),
        racers: RACERS,
        races: ROUNDS,
        exclusive_create: true,
        overwrite_refused: true,
        file_system: None,
        findings: Vec::new(),
    };
    for round in 0..ROUNDS {
        let name = format!("probe/{}-{round}", hex::encode(random));
        let key = Key::new(&name).expect("`probe/`, hexadecimal and decimal digits make a key");
        let outcome = race(store, &key, &mut report).await;
        let cleaned = store.delete(&key).await;
        outcome.and(cleaned)?;
    }
    describe_creates(&mut report);
    Ok(report)
}

async fn race(store: &Arc<dyn ObjectStore>, key: &Key, report: &mut ProbeReport) -> Result<(), StorageError> {
    let mut racers = JoinSet::new();
    for racer in 0..RACERS {
        let (store, key) = (Arc::clone(store), key.clone());
        racers.spawn(async move { (racer, store.put_new(&key, racer_body(racer)).await) });
    }
    let mut winners = Vec::new();
    for (racer, result) in racers.join_all().await {
        match result {
            Ok(()) => winners.push(racer),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    let stored = store.get(key).await?;
    report.exclusive_create &= winners.len() == 1 && stored == racer_body(winners[0]);
    let again = store.put_new(key, racer_body(RACERS)).await;
    report.overwrite_refused &=
        again.is_err_and(|error| error.is_already_exists()) && store.get(key).await? == stored;
    Ok(())
}

fn racer_body(racer: u32) -> Bytes {
    format!("racer {racer}").into()
}

fn describe_creates(report: &mut ProbeReport) {
    report.findings.push(if report.exclusive_create {
        format!("{RACERS} writers raced for one name {ROUNDS} times, and exactly one won each time.")
    } else {
        "Several writers, or none, believed they had created the same object: only one maintainer at a time may \
         work on this repository."
            .into()
    });
    report.findings.push(if report.overwrite_refused {
        "Overwriting an object was refused.".into()
    } else {
        "An object could be overwritten: a faulty or hostile writer can destroy backups in this store.".into()
    });
}
