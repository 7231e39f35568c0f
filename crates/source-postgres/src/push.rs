//! Archiving finished WAL files one by one, as a server's archive_command does.
//!
//! A server hands over one file at a time and waits for each. While one is stored, those that are ready behind it are
//! stored too; asked for one of these, it is found in the archive and the answer costs a listing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use backup_core::Repository;
use backup_core::wal::WalWriter;
use bytes::Bytes;
use keepwell_catalog::wal::{WAL_PIECE_BYTES_MAX, WalHash, WalName, WalPlace};
use tokio::task::JoinSet;

use crate::history::{HISTORY_BYTES_MAX, History, HistoryError};
use crate::lsn::{Segment, SegmentSize, Timeline};

/// Files that are stored at once; of ordinary size they take some 64 MiB.
const AT_ONCE: usize = 4;
/// Files that are stored ahead in one call.
const AHEAD_MAX: usize = 16;

/// Why a file was not archived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// The file cannot be read.
    #[error("read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not what its name says.
    #[error("`{path}` is no WAL: {reason}")]
    NotWal {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A history file does not make sense.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The same stretch is archived with other content.
    #[error("`{file}` is archived already, with other content")]
    Different {
        /// Name of the file.
        file: String,
    },
}

impl PushError {
    /// What the operator may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Different { .. } => Some(
                "Two servers archive into the same place: is this a copy, or a primary that lost a failover?"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was stored.
    Stored,
    /// The very same was archived before.
    Already,
    /// Recovery never asks for such a file: a backup label, or the unfinished end of a timeline.
    NotNeeded,
}

/// Archives files of one cluster for a dataset.
#[derive(Debug, Clone)]
pub struct Pusher {
    repository: Repository,
    dataset: String,
}

impl Pusher {
    /// For this dataset, which is bound to the first cluster that archives for it.
    pub fn new(repository: Repository, dataset: String) -> Self {
        Self { repository, dataset }
    }

    /// Archives a file of a server's `pg_wal`. Returns when it is durable, together with those that were ready behind it.
    ///
    /// May be called again for the same file. `system` is the cluster that the data directory says it is. Files of another
    /// cluster, and other content for a stretch that is archived, are refused. What is stored ahead may fail: then it is
    /// tried again when it is asked for.
    pub async fn push(&self, path: &Path, system: u64) -> Result<Pushed, PushError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(number) = name.strip_suffix(".history") {
            return self.push_history(path, number, system).await;
        }
        if name.len() != 24 {
            return match name.ends_with(".backup") || name.ends_with(".partial") {
                true => Ok(Pushed::NotNeeded),
                false => Err(PushError::NotWal { path: name, reason: "it has no name of one".into() }),
            };
        }
        let (content, segment, size) = read(path, system).await?;
        let archive = self.repository.wal_writer(&self.dataset, system, size.get(), false).await?;
        if is_archived(&archive, segment, size, &content).await? {
            return Ok(Pushed::Already);
        }
        let ahead = ready_behind(path, segment, size);
        let mut running = JoinSet::new();
        for path in ahead {
            if running.len() >= AT_ONCE {
                running.join_next().await;
            }
            let archive = archive.clone();
            running.spawn(async move {
                let (content, segment, size) = read(&path, archive.system()).await?;
                match is_archived(&archive, segment, size, &content).await? {
                    true => Ok(()),
                    false => store(&archive, segment, size, content).await,
                }
            });
        }
        store(&archive, segment, size, content).await?;
        while let Some(ended) = running.join_next().await {
            let _: Result<(), PushError> = ended.map_err(|e| backup_core::Error::Task(e.to_string()))?;
        }
        Ok(Pushed::Stored)
    }

    async fn push_history(&self, path: &Path, number: &str, system: u64) -> Result<Pushed, PushError> {
        let shown = path.display().to_string();
        let timeline =
            u32::from_str_radix(number, 16).ok().filter(|_| number.len() == 8).and_then(Timeline::new);
        let timeline = timeline.ok_or_else(|| PushError::NotWal {
            path: shown.clone(),
            reason: "it is the history of no timeline".into(),
        })?;
        let content = bounded(path, HISTORY_BYTES_MAX as u64)?;
        History::parse(timeline, &content)?;
        let archive =
            self.repository.wal_writer(&self.dataset, system, SegmentSize::default().get(), false).await?;
        let known = archive.pieces_from(timeline.get(), u64::MAX).await?;
        let hash = archive.hash(&content);
        match known.iter().find(|name| name.place == WalPlace::History) {
            Some(name) if name.hash == hash => return Ok(Pushed::Already),
            Some(_) => return Err(PushError::Different { file: timeline.history_file() }),
            None => {}
        }
        archive.put(timeline.get(), WalPlace::History, Bytes::from(content), None).await?;
        Ok(Pushed::Stored)
    }
}

fn bounded(path: &Path, most: u64) -> Result<Vec<u8>, PushError> {
    let failed = |source| PushError::Read { path: path.display().to_string(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > most {
        let reason = format!("it has {length} bytes, and {most} at most are expected");
        return Err(PushError::NotWal { path: path.display().to_string(), reason });
    }
    fs::read(path).map_err(failed)
}

/// Reads a segment and proves by its first page that it is one of this cluster at this place.
async fn read(path: &Path, system: u64) -> Result<(Bytes, Segment, SegmentSize), PushError> {
    let path = path.to_path_buf();
    let task = tokio::task::spawn_blocking(move || {
        let content = bounded(&path, 1 << 30)?;
        let wrong = |reason: String| PushError::NotWal { path: path.display().to_string(), reason };
        let size = SegmentSize::new(content.len() as u64)
            .ok_or_else(|| wrong(format!("no segment has {} bytes", content.len())))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let segment = Segment::parse(&name, size).map_err(|error| wrong(error.to_string()))?;
        let file = segment.file_number(size);
        crate::archive::check_first_page(&content, system, segment.timeline, file, size).map_err(wrong)?;
        Ok((Bytes::from(content), segment, size))
    });
    task.await.map_err(|e| backup_core::Error::Task(e.to_string()))?
}

/// The stretches in which a segment is archived.
fn blocks(segment: Segment, size: SegmentSize) -> impl Iterator<Item = (u32, u32, WalPlace)> {
    let block = size.get().min(WAL_PIECE_BYTES_MAX as u32);
    (0..size.get() / block).map(move |index| {
        let (from, to) = (index * block, (index + 1) * block);
        (from, to, WalPlace::Bytes { file: segment.file_number(size), from, to })
    })
}

/// Whether all of a segment is archived as it is. Fails where something else is archived at its place.
async fn is_archived(
    archive: &WalWriter,
    segment: Segment,
    size: SegmentSize,
    content: &Bytes,
) -> Result<bool, PushError> {
    let names = archive.pieces_of(segment.timeline.get(), segment.file_number(size)).await?;
    let differs = names.iter().any(|name| match name.place {
        WalPlace::Bytes { from, to, .. } => {
            let own = content.get(from as usize..to as usize);
            own.is_none_or(|own| archive.hash(own) != name.hash)
        }
        WalPlace::History => false,
    });
    if differs {
        return Err(PushError::Different { file: segment.file_name(size) });
    }
    let has = |place: WalPlace| names.iter().any(|name: &WalName| name.place == place);
    Ok(blocks(segment, size).all(|(_, _, place)| has(place)))
}

async fn store(
    archive: &WalWriter,
    segment: Segment,
    size: SegmentSize,
    content: Bytes,
) -> Result<(), PushError> {
    let mut previous: Option<WalHash> = None;
    for (from, to, place) in blocks(segment, size) {
        let bytes = content.slice(from as usize..to as usize);
        previous = Some(archive.put(segment.timeline.get(), place, bytes, previous).await?.1);
    }
    Ok(())
}

/// Files of the same timeline that wait behind this one, as `archive_status` says.
fn ready_behind(path: &Path, segment: Segment, size: SegmentSize) -> Vec<PathBuf> {
    let Some(directory) = path.parent() else { return Vec::new() };
    let ready = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        directory.join("archive_status").join(format!("{name}.ready")).exists()
    };
    let behind = (1..=AHEAD_MAX as u64).map(|step| Segment { number: segment.number + step, ..segment });
    behind.map(|segment| directory.join(segment.file_name(size))).take_while(ready).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::archive::{Fetched, fetch};
    use crate::testing::{SYSTEM, World, content, segment, size};

    /// A `pg_wal` with these segments, all of them ready.
    fn directory(numbers: std::ops::Range<u64>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("archive_status")).unwrap();
        for number in numbers {
            let name = segment(number).file_name(size());
            fs::write(dir.path().join(&name), content(SYSTEM, number, 1)).unwrap();
            fs::write(dir.path().join("archive_status").join(format!("{name}.ready")), "").unwrap();
        }
        dir
    }

    #[tokio::test]
    async fn a_file_is_archived_once_and_those_ready_behind_it_with_it() {
        let (world, dir) = (World::new().await, directory(3..7));
        let pusher = Pusher::new(world.repository.clone(), "db".into());
        let path = |number: u64| dir.path().join(segment(number).file_name(size()));
        assert_eq!(pusher.push(&path(3), SYSTEM).await.unwrap(), Pushed::Stored);
        for number in 3..7 {
            assert_eq!(pusher.push(&path(number), SYSTEM).await.unwrap(), Pushed::Already, "{number}");
        }
        let reader = world.repository.wal_reader(SYSTEM).unwrap();
        for number in 3..7 {
            let found = fetch(&reader, &segment(number).file_name(size())).await.unwrap();
            assert_eq!(found, Fetched::Found(content(SYSTEM, number, 1)));
        }
        for file in ["000000010000000000000003.00000028.backup", "000000010000000000000003.partial"] {
            assert_eq!(pusher.push(&dir.path().join(file), SYSTEM).await.unwrap(), Pushed::NotNeeded);
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused_and_changes_nothing() {
        let (world, dir) = (World::new().await, directory(3..5));
        let pusher = Pusher::new(world.repository.clone(), "db".into());
        let path = dir.path().join(segment(3).file_name(size()));
        pusher.push(&path, SYSTEM).await.unwrap();
        fs::write(&path, content(SYSTEM, 3, 2)).unwrap();
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::Different { .. })));
        fs::write(&path, content(SYSTEM, 9, 1)).unwrap();
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::NotWal { .. })));
        fs::write(&path, content(SYSTEM + 1, 3, 1)).unwrap();
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::NotWal { .. })));
        let bound = pusher.push(&path, SYSTEM + 1).await.unwrap_err();
        assert!(bound.to_string().starts_with("the log of `db` is that of cluster"), "{bound}");
        fs::write(&path, "short").unwrap();
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::NotWal { .. })));
        assert!(matches!(
            pusher.push(&dir.path().join("nowhere"), SYSTEM).await,
            Err(PushError::NotWal { .. })
        ));
        fs::write(&path, content(SYSTEM, 3, 1)).unwrap();
        world.store.away.store(true, Ordering::SeqCst);
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::Repository(_))));
    }

    #[tokio::test]
    async fn what_a_receiver_archived_in_part_is_completed() {
        let (world, dir) = (World::new().await, directory(3..4));
        world.put(3, 1, 4000).await;
        let pusher = Pusher::new(world.repository.clone(), "db".into());
        let path = dir.path().join(segment(3).file_name(size()));
        assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Stored);
        assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Already);
    }

    #[tokio::test]
    async fn a_history_has_one_content() {
        let (world, dir) = (World::new().await, directory(3..3));
        let pusher = Pusher::new(world.repository.clone(), "db".into());
        let path = dir.path().join("00000002.history");
        fs::write(&path, "1\t0/5000000\tx\n").unwrap();
        assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Stored);
        assert_eq!(pusher.push(&path, SYSTEM).await.unwrap(), Pushed::Already);
        fs::write(&path, "1\t0/6000000\tx\n").unwrap();
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::Different { .. })));
        fs::write(&path, "nonsense\n").unwrap();
        assert!(matches!(pusher.push(&path, SYSTEM).await, Err(PushError::History(_))));
    }
}
