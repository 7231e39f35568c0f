//! The log of a database, from which a keeper removes what no base backup needs.

use backup_core::wal::{WalFloor, WalTrimReport};
use backup_core::{Error, Repository};
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_storage::Operation;
use tokio::task::JoinHandle;

use super::stage::{Host, Stage, Stop, ended, expect, files, patient, said, soon};
use crate::log::{FILE_BYTES, Log, SYSTEM, USED_BYTES};
use crate::oracle::Wrong;

impl Stage {
    /// Archives the file that the log is at, and goes on to the next.
    async fn archive(&self) -> Result<(), Wrong> {
        let repository = self.host().await?.repository;
        let archive = repository.wal_writer("log", SYSTEM, FILE_BYTES, false).await.map_err(said)?;
        let file = self.log.file();
        let (place, bytes) = Log::piece(file, 0, USED_BYTES);
        archive.put(1, place, bytes, None).await.map_err(said)?;
        self.log.leave(file);
        Ok(())
    }

    /// Begins to remove what of the log no base backup needs.
    fn trim(&self, keeper: &Host) -> JoinHandle<Result<WalTrimReport, Error>> {
        let (repository, log) = (keeper.repository.clone(), self.log.clone());
        tokio::spawn(async move {
            let floors = |repository: Repository| {
                let log = log.clone();
                async move {
                    let mut begun = Vec::new();
                    for snapshot in repository.snapshots().await? {
                        let attempt = snapshot.manifest()?.description.parse().unwrap_or_default();
                        begun.extend(log.begun(attempt));
                    }
                    Ok(begun
                        .into_iter()
                        .min()
                        .map(|file| WalFloor { system: SYSTEM, file })
                        .into_iter()
                        .collect())
                }
            };
            repository.trim_wal(&patient(), floors).await
        })
    }

    /// The files that are archived.
    async fn archived(&self) -> Result<Vec<u64>, Wrong> {
        let file = |name: &String| match name.parse::<WalName>().ok()?.place {
            WalPlace::Bytes { file, .. } => Some(file),
            WalPlace::History => None,
        };
        Ok(self.names("wal/").await?.iter().filter_map(file).collect())
    }

    /// Of every snapshot all of the log is there from where it began.
    async fn logs_are_whole(&self) -> Result<(), Wrong> {
        let archived = self.archived().await?;
        for snapshot in self.host().await?.repository.snapshots().await.map_err(said)? {
            let attempt: u64 = snapshot.manifest().map_err(said)?.description.parse().unwrap_or_default();
            let first = self.log.begun(attempt).ok_or("a snapshot has not begun")?;
            if let Some(lost) = (first..self.log.file()).find(|file| !archived.contains(file)) {
                return Err(format!(
                    "attempt {attempt} needs the log from file {first} on, and {lost} is gone"
                ));
            }
        }
        Ok(())
    }
}

/// A base backup has begun when a keeper finds the floor, and is committed while it waits.
pub(super) async fn a_base_backup_is_at_work() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    stage.archive().await?;
    let mut slow = stage.begin(&stage.host().await?, files(&[1]), &[(0, Stop::Wait)]);
    slow.waits().await?;
    stage.archive().await?;
    stage.back_up(files(&[2])).await?;
    let keeper = stage.host().await?;
    keeper.gate.shut(|operation, key| operation == Operation::List && key == "sessions/");
    let trim = stage.trim(&keeper);
    soon(keeper.gate.reached()).await?;
    keeper.gate.open();
    slow.go_on().await?.map_err(said)?;
    let report = ended(trim).await?.map_err(said)?;
    stage.logs_are_whole().await?;
    expect(report.outdated == 1 && stage.archived().await? == [1], "one file goes")
}

/// A base backup begins after a keeper has listed sessions, and is at work still when the keeper finds the floor again;
/// meanwhile another one has begun later and is committed, and those before are forgotten.
pub(super) async fn a_base_backup_begins_while_a_keeper_waits() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    stage.archive().await?;
    stage.back_up(files(&[1])).await?;
    let keeper = stage.host().await?;
    keeper.gate.shut(|operation, key| operation == Operation::List && key == "sessions/");
    let trim = stage.trim(&keeper);
    soon(keeper.gate.reached()).await?;
    keeper.gate.shut(|operation, key| operation == Operation::List && key == "commits/");
    keeper.gate.open();
    soon(keeper.gate.reached()).await?;
    let mut slow = stage.begin(&stage.host().await?, files(&[2]), &[(0, Stop::Wait)]);
    slow.waits().await?;
    stage.archive().await?;
    stage.back_up(files(&[3])).await?;
    stage.forget_all_but(1).await?;
    keeper.gate.open();
    let report = ended(trim).await?.map_err(said)?;
    slow.go_on().await?.map_err(said)?;
    stage.logs_are_whole().await?;
    expect(report.outdated == 1 && stage.archived().await? == [1], "one file goes")
}
