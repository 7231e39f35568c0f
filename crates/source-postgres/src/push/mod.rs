//! Archiving finished WAL files one by one, as a server's archive_command does.
//!
//! A server hands over one file at a time and waits for each. While one is stored, those that are ready behind it are
//! stored too; asked for one of these, it is found in the archive and the answer costs a listing, or in [`Ahead`], and
//! costs nothing. Or another process, that holds a [`Turn`], stores these while the server asks on ([`Pusher::follow`]).

mod ahead;
mod follow;
mod memory;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use backup_core::Repository;
use backup_core::wal::WalWriter;
use bytes::Bytes;
use keepwell_catalog::wal::{WAL_PIECE_BYTES_MAX, WalHash, WalName, WalPlace};
use tokio::task::JoinSet;

use ahead::Stamp;
pub use ahead::{Ahead, Turn};
pub use follow::is_followed;
use memory::Buffers;

use crate::history::{HISTORY_BYTES_MAX, History, HistoryError};
use crate::log::unfinished;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

/// Files that are on their way at once. Of these as many are read and sealed as there are threads.
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
    /// A segment whose end the server has not come to.
    #[error("the log in `{path}` ends at {end}, and the segment does not")]
    Unfinished {
        /// The file.
        path: String,
        /// Where it ends.
        end: Lsn,
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
            Self::Repository(backup_core::Error::Invalid(text)) if text.starts_with("the log of") => Some(
                "Give another cluster a dataset of its own: `--dataset NAME`, also for its base backups. If it takes the place \
                 of the old one, as after pg_upgrade, `keepwell wal receive --new-cluster` says so once."
                    .into(),
            ),
            Self::Repository(error) => error.hint(),
            Self::Unfinished { .. } => Some(
                "A standby with `archive_mode = always` hands over what it has not received to its end, and asks again when it has."
                    .into(),
            ),
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
    ahead: Option<Ahead>,
    alone: bool,
    buffers: Buffers,
}

impl Pusher {
    /// For this dataset, which is bound to the first cluster that archives for it.
    pub fn new(repository: Repository, dataset: String) -> Self {
        let buffers = Buffers::new(repository.limits().threads.min(AT_ONCE));
        Self { repository, dataset, ahead: None, alone: false, buffers }
    }

    /// Notes there what is stored ahead.
    pub fn noting(self, ahead: Ahead) -> Self {
        Self { ahead: Some(ahead), ..self }
    }

    /// Leaves what is ready behind a file to others.
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Archives a file of a server's `pg_wal`. Returns when it is durable, together with those that were ready behind it.
    ///
    /// May be called again for the same file. `system` is the cluster that the data directory says it is. Files of another
    /// cluster, other content for a stretch that is archived, and segments that a standby has not received to their end are refused.
    /// What is stored ahead may fail: then it is tried again when it is asked for.
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
        let (content, segment, size) = match read(&self.buffers, path, system).await {
            Err(PushError::Unfinished { .. }) if is_past(path) => return Ok(Pushed::NotNeeded),
            read => read?,
        };
        let archive = self.repository.wal_writer(&self.dataset, system, size.get(), false).await?;
        if is_archived(&archive, segment, size, &content).await? {
            return Ok(Pushed::Already);
        }
        if self.alone {
            return store(&archive, segment, size, content).await.map(|()| Pushed::Stored);
        }
        let ahead = tokio::spawn(store_ahead(
            archive.clone(),
            self.buffers.clone(),
            ready_behind(path, segment, size),
        ));
        let stored = store(&archive, segment, size, content).await;
        let stored_ahead = ahead.await.map_err(|e| backup_core::Error::Task(e.to_string()))?;
        if let Some(ahead) = &self.ahead {
            ahead.note(&stored_ahead);
        }
        stored.map(|()| Pushed::Stored)
    }

    async fn push_history(&self, path: &Path, number: &str, system: u64) -> Result<Pushed, PushError> {
        let shown = path.display().to_string();
        let timeline = timeline_of(number).ok_or_else(|| PushError::NotWal {
            path: shown.clone(),
            reason: "it is the history of no timeline".into(),
        })?;
        let content = bounded(path, HISTORY_BYTES_MAX as u64, |path| fs::read(path))?;
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

/// Of the name of a history file.
fn timeline_of(number: &str) -> Option<Timeline> {
    u32::from_str_radix(number, 16).ok().filter(|_| number.len() == 8).and_then(Timeline::new)
}

/// Whether the timeline of a segment ended in it or before it, as a history beside it says. The first segment of the next
/// timeline begins with what this one has, and no more will come.
fn is_past(path: &Path) -> bool {
    let Some((directory, segment, size)) = follow::place(path) else { return false };
    let beside = fs::read_dir(directory).into_iter().flatten().flatten();
    beside.filter_map(|file| history_in(&file.path())).any(|history| {
        history.end_of(segment.timeline).is_some_and(|end| size.number_at(end) <= segment.number)
    })
}

/// Whether a server writes what others have sent it: then it lies beside a signal that it recovers. A primary hands over what
/// it has written to the end; to refuse that for a doubt of ours would fill its disk.
fn is_received(path: &Path) -> bool {
    let data = path.parent().and_then(Path::parent);
    data.is_some_and(|data| ["standby.signal", "recovery.signal"].iter().any(|name| data.join(name).exists()))
}

fn history_in(path: &Path) -> Option<History> {
    let timeline = timeline_of(path.file_name()?.to_str()?.strip_suffix(".history")?)?;
    let content = bounded(path, HISTORY_BYTES_MAX as u64, |path| fs::read(path)).ok()?;
    History::parse(timeline, &content).ok()
}

fn bounded<T>(path: &Path, most: u64, read: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, PushError> {
    let failed = |source| PushError::Read { path: path.display().to_string(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > most {
        let reason = format!("it has {length} bytes, and {most} at most are expected");
        return Err(PushError::NotWal { path: path.display().to_string(), reason });
    }
    read(path).map_err(failed)
}

/// Reads a segment and proves by its first page that it is one of this cluster at this place; of one that was sent to this
/// server, that it came to its end.
async fn read(
    buffers: &Buffers,
    path: &Path,
    system: u64,
) -> Result<(Bytes, Segment, SegmentSize), PushError> {
    let (room, path) = (buffers.room().await, path.to_path_buf());
    let task = tokio::task::spawn_blocking(move || {
        let content = bounded(&path, 1 << 30, |path| room.read(path))?;
        let wrong = |reason: String| PushError::NotWal { path: path.display().to_string(), reason };
        let size = SegmentSize::new(content.len() as u64)
            .ok_or_else(|| wrong(format!("no segment has {} bytes", content.len())))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let segment = Segment::parse(&name, size).map_err(|error| wrong(error.to_string()))?;
        let file = segment.file_number(size);
        crate::archive::check_first_page(&content, system, segment.timeline, file, size).map_err(wrong)?;
        match unfinished(&content).filter(|_| is_received(&path) || is_past(&path)) {
            Some(end) => Err(PushError::Unfinished { path: path.display().to_string(), end }),
            None => Ok((content, segment, size)),
        }
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

/// Gives the memory of what is stored back before the last of it is on its way.
async fn store(
    archive: &WalWriter,
    segment: Segment,
    size: SegmentSize,
    mut content: Bytes,
) -> Result<(), PushError> {
    let mut previous: Option<WalHash> = None;
    for (from, to, place) in blocks(segment, size) {
        let bytes = content.split_to((to - from) as usize);
        previous = Some(archive.put(segment.timeline.get(), place, bytes, previous).await?.1);
    }
    Ok(())
}

/// Stores these files, and gives those that are archived now. What fails is tried again when it is asked for.
async fn store_ahead(archive: WalWriter, buffers: Buffers, files: Vec<PathBuf>) -> Vec<(PathBuf, Stamp)> {
    let (mut running, mut stored) = (JoinSet::new(), Vec::new());
    let mut files = files.into_iter();
    loop {
        while running.len() < AT_ONCE
            && let Some(file) = files.next()
        {
            running.spawn(store_one(archive.clone(), buffers.clone(), file));
        }
        match running.join_next().await {
            Some(done) => stored.extend(done.ok().flatten()),
            None => return stored,
        }
    }
}

/// Stores this file if it is not archived; `None` if that failed.
async fn store_one(archive: WalWriter, buffers: Buffers, file: PathBuf) -> Option<(PathBuf, Stamp)> {
    // Before it is read: what changes afterwards is another file.
    let stamp = Stamp::of(&file)?;
    let (content, segment, size) = read(&buffers, &file, archive.system()).await.ok()?;
    if !is_archived(&archive, segment, size, &content).await.ok()? {
        store(&archive, segment, size, content).await.ok()?;
    }
    Some((file, stamp))
}

/// Files of the same timeline that wait behind this one, as `archive_status` says.
fn ready_behind(path: &Path, segment: Segment, size: SegmentSize) -> Vec<PathBuf> {
    let Some(directory) = path.parent() else { return Vec::new() };
    let behind = (1..=AHEAD_MAX as u64).map(|step| Segment { number: segment.number + step, ..segment });
    behind.map(|segment| directory.join(segment.file_name(size))).take_while(|path| is_ready(path)).collect()
}

/// Whether a server waits for this file of its `pg_wal` to be archived.
fn is_ready(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name("archive_status").join(format!("{name}.ready")).exists()
}

#[cfg(test)]
mod tests;
