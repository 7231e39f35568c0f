//! A simulated store: strongly consistent, as the contract of `ObjectStore` demands, with small pages, a disk that can be
//! full, a clock of its own that it may tell the times of, and hours in which nobody can see it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use keepwell_storage::{Key, ObjectInfo, Page, StorageError, StorageErrorKind};

use crate::clock::BEGINNING;
use crate::net::{Answer, Call, Outcome};
use crate::weather::Weather;

/// Stores tell times to the second.
const SECOND: i64 = 1_000_000_000;

/// The objects of one store.
#[derive(Debug, Clone)]
pub(crate) struct Vault {
    pub objects: BTreeMap<Key, Bytes>,
    /// When each was stored, by the store's clock.
    stored: BTreeMap<Key, i64>,
    /// The store's clock, in nanoseconds since 1970.
    now: i64,
    /// Whether it tells times.
    tells_times: bool,
    /// Whether nothing can be created.
    pub full: bool,
    /// Until which step nobody can see it.
    pub away_until: u64,
    /// Objects in a page of a listing.
    pub page: usize,
}

/// What a call has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Created(Key, Bytes),
    Deleted(Key),
}

impl Vault {
    pub fn new(weather: &Weather) -> Self {
        Self {
            objects: BTreeMap::new(),
            stored: BTreeMap::new(),
            now: BEGINNING,
            tells_times: weather.times,
            full: false,
            away_until: 0,
            page: weather.page,
        }
    }

    /// Time passes at the store.
    pub fn advance(&mut self, by: Duration) {
        self.now += i64::try_from(by.as_nanos()).expect("a world lasts less than 292 years");
    }

    /// Serves a call.
    pub fn serve(&mut self, call: &Call) -> (Outcome, Option<Change>) {
        match call {
            Call::Wait => (Ok(Answer::Done), None),
            Call::Put(key, body) => self.put(call, key, body),
            Call::Get(key) => (self.find(call, key).map(Answer::Body), None),
            Call::GetRange(key, from, to) => (self.range(call, key, *from, *to), None),
            Call::Head(key) => (self.find(call, key).map(|body| Answer::Info(self.info(key, &body))), None),
            Call::List(prefix, after) => (Ok(Answer::Page(self.list(prefix, after.as_ref()))), None),
            Call::Delete(key) => {
                self.stored.remove(key);
                let gone = self.objects.remove(key).map(|_| Change::Deleted(key.clone()));
                (Ok(Answer::Done), gone)
            }
        }
    }

    fn put(&mut self, call: &Call, key: &Key, body: &Bytes) -> (Outcome, Option<Change>) {
        if self.objects.contains_key(key) {
            return (Err(StorageError::already_exists(key)), None);
        }
        if self.full {
            return (Err(call.fails(StorageErrorKind::NoSpace, "the disk is full")), None);
        }
        self.objects.insert(key.clone(), body.clone());
        self.stored.insert(key.clone(), self.now / SECOND * SECOND);
        (Ok(Answer::Done), Some(Change::Created(key.clone(), body.clone())))
    }

    fn find(&self, call: &Call, key: &Key) -> Result<Bytes, StorageError> {
        self.objects.get(key).cloned().ok_or_else(|| StorageError::not_found(call.subject().0, key))
    }

    fn range(&self, call: &Call, key: &Key, from: u64, to: u64) -> Outcome {
        let body = self.find(call, key)?;
        if from > to || to > body.len() as u64 {
            return Err(StorageError::out_of_range(key, &(from..to), body.len() as u64));
        }
        Ok(Answer::Body(body.slice(from as usize..to as usize)))
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> Page {
        let start = after.map_or("", Key::as_str).max(prefix);
        let mut found = self
            .objects
            .range::<str, _>((Bound::Excluded(start), Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .map(|(key, body)| self.info(key, body));
        let objects = found.by_ref().take(self.page).collect();
        Page { objects, more: found.next().is_some() }
    }

    fn info(&self, key: &Key, body: &Bytes) -> ObjectInfo {
        let stored = self.stored.get(key).copied().unwrap_or(BEGINNING);
        ObjectInfo { key: key.clone(), size: body.len() as u64, modified: self.tells_times.then_some(stored) }
    }
}
