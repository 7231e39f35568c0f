//! Reading a recipe.

use std::cmp::Ordering;
use std::io::{self, BufReader, Read, Write};

use super::{FRAME_PLAIN_BYTES, MAGIC, NO_FINGERPRINT, RecipeWriter};
use crate::entry::peek_more_extents;
use crate::error::CatalogError;
use crate::key::split_sub_key;
use crate::map::{RECORD_KEY_BYTES_MAX, RECORD_VALUE_BYTES_MAX};

/// Frames that need a larger window than 8 MiB (2^23) are refused; the writer's need 1 MiB at most.
const WINDOW_LOG_MAX: u32 = 23;
/// Most bytes of sub-key records that are handed out with one entry: about ten million extents.
const SUB_RECORDS_BYTES_MAX: usize = 512 << 20;

/// An entry found in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecipeRef<'r> {
    /// What the source said of it at the time.
    pub fingerprint: [u8; 16],
    /// The encoded entry.
    pub value: &'r [u8],
    /// All of its sub-key records, in order.
    pub extra: &'r [SubRecord],
}

/// A sub-key record of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubRecord {
    /// The raw key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// Reads a recipe front to back, in step with something else that is sorted by key.
///
/// Memory is bounded by the largest record, and by the sub-key records of an entry that was asked for.
pub struct RecipeReader<R: Read> {
    plain: Plain<zstd::stream::read::Decoder<'static, BufReader<R>>>,
    /// The record it stands at; what `advance_to` returned stays readable in `found`.
    key: Vec<u8>,
    fingerprint: [u8; 16],
    /// Length of the record's value, which is next in `plain`.
    value_len: usize,
    state: State,
    found: Vec<u8>,
    found_key: Vec<u8>,
    extra: Vec<SubRecord>,
    passed_over: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first record.
    Start,
    /// At a record whose value was not taken yet.
    Record,
    End,
    /// After an error; every further call reports the damage again.
    Broken,
}

impl<R: Read> RecipeReader<R> {
    /// Opens a recipe and checks its magic.
    pub fn new(input: R) -> Result<Self, CatalogError> {
        let mut decoder = zstd::stream::read::Decoder::new(input).map_err(read_failed)?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(read_failed)?;
        let mut plain = Plain { input: decoder, buffer: Vec::new(), start: 0, ended: false };
        if plain.take(MAGIC.len())? != MAGIC {
            return Err(CatalogError::Recipe { what: "it is no recipe of this version" });
        }
        Ok(Self {
            plain,
            key: Vec::new(),
            fingerprint: NO_FINGERPRINT,
            value_len: 0,
            state: State::Start,
            found: Vec::new(),
            found_key: Vec::new(),
            extra: Vec::new(),
            passed_over: 0,
        })
    }

    /// Records that [`RecipeReader::advance_to`] passed over so far because nobody asked for them.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// Copies the first `records` records of a recipe that was just opened; sub-key records count.
    pub fn copy_first<W: Write>(
        mut self,
        records: u64,
        to: &mut RecipeWriter<W>,
    ) -> Result<(), CatalogError> {
        for _ in 0..records {
            self.read_key()?;
            if self.state == State::End {
                return Err(CatalogError::Recipe { what: "it is cut short" });
            }
            let value = self.plain.take(self.value_len)?;
            to.push(&self.key, &self.fingerprint, value)?;
        }
        Ok(())
    }

    /// Passes over all records with a smaller key and returns the one with exactly this key, if there is one.
    ///
    /// Keys of successive calls must ascend strictly; for one that does not, the answer is `None`. After an error the
    /// recipe is of no further use: go on without one, which only costs reading everything.
    pub fn advance_to(&mut self, key: &[u8]) -> Result<Option<RecipeRef<'_>>, CatalogError> {
        let found = self.find(key);
        match found {
            Ok(None) => Ok(None),
            Ok(Some(fingerprint)) => {
                Ok(Some(RecipeRef { fingerprint, value: &self.found, extra: &self.extra }))
            }
            Err(error) => {
                self.state = State::Broken;
                Err(error)
            }
        }
    }

    /// The next entry with its raw key, or `None` at the end. After an error the recipe is of no further use.
    pub fn next_entry(&mut self) -> Result<Option<(&[u8], RecipeRef<'_>)>, CatalogError> {
        let next = self.find_next();
        match next {
            Ok(None) => Ok(None),
            Ok(Some(fingerprint)) => {
                let recipe = RecipeRef { fingerprint, value: &self.found, extra: &self.extra };
                Ok(Some((&self.found_key, recipe)))
            }
            Err(error) => {
                self.state = State::Broken;
                Err(error)
            }
        }
    }

    fn find_next(&mut self) -> Result<Option<[u8; 16]>, CatalogError> {
        if self.state == State::Start {
            self.read_key()?;
        }
        match self.state {
            State::End => Ok(None),
            State::Broken | State::Start => Err(CatalogError::Recipe { what: "an earlier read failed" }),
            State::Record => {
                let key = self.key.clone();
                let fingerprint = self.take_entry(&key)?;
                self.found_key = key;
                Ok(Some(fingerprint))
            }
        }
    }

    fn find(&mut self, key: &[u8]) -> Result<Option<[u8; 16]>, CatalogError> {
        if self.state == State::Start {
            self.read_key()?;
        }
        loop {
            match self.state {
                State::End => return Ok(None),
                State::Broken | State::Start => {
                    return Err(CatalogError::Recipe { what: "an earlier read failed" });
                }
                State::Record => {}
            }
            match self.key.as_slice().cmp(key) {
                Ordering::Greater => return Ok(None),
                Ordering::Less => {
                    self.passed_over += 1;
                    self.plain.take(self.value_len)?;
                    self.read_key()?;
                }
                Ordering::Equal => return self.take_entry(key).map(Some),
            }
        }
    }

    /// Takes the entry it stands at with its sub-key records, and moves on behind them.
    fn take_entry(&mut self, key: &[u8]) -> Result<[u8; 16], CatalogError> {
        let fingerprint = self.fingerprint;
        let value = self.plain.take(self.value_len)?;
        self.found.clear();
        self.found.extend_from_slice(value);
        self.extra.clear();
        self.read_key()?;
        let mut bytes = 0;
        while self.state == State::Record && is_sub_key_of(&self.key, key) {
            bytes += self.value_len;
            if bytes > SUB_RECORDS_BYTES_MAX || self.fingerprint != NO_FINGERPRINT {
                return Err(CatalogError::Recipe {
                    what: "its sub-key records are not what a writer writes",
                });
            }
            let value = self.plain.take(self.value_len)?.to_vec();
            self.extra.push(SubRecord { key: self.key.clone(), value });
            self.read_key()?;
        }
        let claimed = peek_more_extents(&self.found)
            .map_err(|_| CatalogError::Recipe { what: "an entry is damaged" })?;
        if claimed as usize != self.extra.len() {
            return Err(CatalogError::Recipe { what: "an entry has lost sub-key records" });
        }
        Ok(fingerprint)
    }

    /// Reads the next record up to its value.
    fn read_key(&mut self) -> Result<(), CatalogError> {
        if self.plain.is_at_end()? {
            self.state = State::End;
            return Ok(());
        }
        let shared = self.plain.varint()?;
        let rest_len = self.plain.varint()?;
        if shared > self.key.len()
            || rest_len > RECORD_KEY_BYTES_MAX
            || shared + rest_len > RECORD_KEY_BYTES_MAX
        {
            return Err(CatalogError::Recipe { what: "a key is too long" });
        }
        let rest = self.plain.take(rest_len)?;
        let ascends = match (self.key.get(shared), rest.first()) {
            (Some(before), Some(after)) => before < after,
            (None, after) => after.is_some() || self.state == State::Start,
            (Some(_), None) => false,
        };
        if !ascends {
            return Err(CatalogError::Recipe { what: "its keys do not ascend" });
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(rest);
        self.fingerprint.copy_from_slice(self.plain.take(16)?);
        self.value_len = self.plain.varint()?;
        if self.value_len > RECORD_VALUE_BYTES_MAX {
            return Err(CatalogError::Recipe { what: "a value is too long" });
        }
        self.state = State::Record;
        Ok(())
    }
}

impl<R: Read> std::fmt::Debug for RecipeReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecipeReader").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The decompressed bytes, of which any run up to the size of a record can be looked at in place.
struct Plain<D> {
    input: D,
    /// What was read ahead, from `start` on.
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
}

impl<D: Read> Plain<D> {
    fn is_at_end(&mut self) -> Result<bool, CatalogError> {
        if self.start == self.buffer.len() {
            self.fill(1)?;
        }
        Ok(self.start == self.buffer.len())
    }

    /// The next `length` bytes.
    fn take(&mut self, length: usize) -> Result<&[u8], CatalogError> {
        if self.buffer.len() - self.start < length {
            self.fill(length)?;
        }
        let taken = self.buffer.get(self.start..self.start + length);
        let taken = taken.ok_or(CatalogError::Recipe { what: "it is cut short" })?;
        self.start += length;
        Ok(taken)
    }

    /// A number that fits in 28 bits, more than any length there is.
    fn varint(&mut self) -> Result<usize, CatalogError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                let is_shortest = byte != 0 || shift == 0;
                return if is_shortest {
                    Ok(value)
                } else {
                    Err(CatalogError::Recipe { what: "a number is padded" })
                };
            }
        }
        Err(CatalogError::Recipe { what: "a number is too large" })
    }

    /// Reads until at least `length` bytes are there or the input ends.
    fn fill(&mut self, length: usize) -> Result<(), CatalogError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let wanted = length.max(FRAME_PLAIN_BYTES);
        while self.buffer.len() < length && !self.ended {
            let missing = (wanted - self.buffer.len()) as u64;
            let read =
                self.input.by_ref().take(missing).read_to_end(&mut self.buffer).map_err(read_failed)?;
            self.ended = read == 0;
        }
        Ok(())
    }
}

fn is_sub_key_of(raw: &[u8], key: &[u8]) -> bool {
    matches!(split_sub_key(raw), (entry, Some(_)) if entry == key)
}

fn read_failed(source: io::Error) -> CatalogError {
    CatalogError::RecipeIo { operation: "read", source }
}
