//! The write-ahead log of the one database of a world: how far it has come, where base backups began, and what of it a
//! store must hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_crypto::MemberId;

use crate::oracle::Wrong;

/// The number of the cluster.
pub(crate) const SYSTEM: u64 = 7;
/// Length of each of its files.
pub(crate) const FILE_BYTES: u32 = 1 << 20;
/// How much of a file is ever written.
pub(crate) const USED_BYTES: u32 = 90;

/// Where the log is. Clones are the same log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Position>>);

#[derive(Debug, Default)]
struct Position {
    file: u64,
    /// By attempt.
    begun: BTreeMap<u64, u64>,
}

impl Log {
    /// The file that is being written.
    pub fn file(&self) -> u64 {
        self.position().file
    }

    /// This file is full.
    pub fn leave(&self, file: u64) {
        let mut position = self.position();
        position.file = position.file.max(file + 1);
    }

    /// A base backup begins here.
    pub fn begin(&self, attempt: u64) {
        let mut position = self.position();
        let file = position.file;
        position.begun.insert(attempt, file);
    }

    /// The first file that a base backup needs; nothing for what is none.
    pub fn begun(&self, attempt: u64) -> Option<u64> {
        self.position().begun.get(&attempt).copied()
    }

    /// A stretch of a file.
    pub fn piece(file: u64, from: u32, to: u32) -> (WalPlace, Bytes) {
        let mut bytes = vec![0; USED_BYTES as usize];
        blake3::Hasher::new().update(&file.to_le_bytes()).finalize_xof().fill(&mut bytes);
        (WalPlace::Bytes { file, from, to }, Bytes::from(bytes).slice(from as usize..to as usize))
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file of a timeline, as somebody archived it.
type File = (u64, MemberId, u32);

/// The pieces of a store.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// Every stretch that was ever stored, and whether it is there now.
    files: BTreeMap<File, BTreeMap<(u32, u32), bool>>,
}

impl Pieces {
    pub fn created(&mut self, name: &WalName) {
        if let Some((file, range)) = place(name) {
            self.files.entry(file).or_default().insert(range, true);
        }
    }

    /// `floor` is the first file that a base backup needs which must restore; nothing if none must.
    pub fn deleted(&mut self, name: &WalName, floor: Option<u64>) -> Result<(), Wrong> {
        let Some((file, range)) = place(name) else { return Err("it must never be deleted".to_owned()) };
        self.files.entry(file).or_default().insert(range, false);
        if floor.is_some_and(|floor| floor <= file.0) && !self.is_held(file, range) {
            return Err(format!("LOST: file {} of the log, which a base backup needs", file.0));
        }
        Ok(())
    }

    /// Whether all of the log from this file on is there that ever was.
    pub fn whole_from(&self, floor: u64) -> Result<(), Wrong> {
        for (file, ranges) in self.files.iter().filter(|(file, _)| file.0 >= floor) {
            if ranges.keys().any(|range| !self.is_held(*file, *range)) {
                return Err(format!("LOST: file {} of the log, which it needs from {floor} on", file.0));
            }
        }
        Ok(())
    }

    fn is_held(&self, file: File, range: (u32, u32)) -> bool {
        let holds = |(other, there): (&(u32, u32), &bool)| *there && other.0 <= range.0 && range.1 <= other.1;
        self.files.get(&file).is_some_and(|ranges| ranges.iter().any(holds))
    }
}

fn place(name: &WalName) -> Option<(File, (u32, u32))> {
    match name.place {
        WalPlace::Bytes { file, from, to } => Some(((file, name.writer, name.timeline), (from, to))),
        WalPlace::History => None,
    }
}
