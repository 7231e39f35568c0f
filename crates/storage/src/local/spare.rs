//! Memory of large reads, used again for the next one.
//!
//! Allocators give so much memory back to the kernel as soon as it is free, and the kernel clears every page of what it
//! hands out: reading packs one after another spent as much time on that as on hashing them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Reads of at least this many bytes: packs, as a rule. Allocators keep what is smaller.
pub(super) const LARGE_BYTES: usize = 4 << 20;
/// So many buffers are kept at most …
const KEPT_MAX: usize = 4;
/// … and so many bytes in all of them.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Buffers are a multiple of this long, so that one that held a pack holds most others.
const STEP_BYTES: usize = 1 << 20;

/// Buffers that nobody holds at the moment. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    /// A buffer of at least `length` bytes, whatever is in it. `None`: there is not so much memory.
    pub(super) fn take(&self, length: usize) -> Option<Lent> {
        let kept = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = kept.iter().position(|buffer| buffer.len() >= length);
            // What is too short goes, and makes room for one that is not.
            let chosen = fits.or_else(|| kept.len().checked_sub(1));
            chosen.map(|at| kept.swap_remove(at))
        };
        let buffer = match kept.filter(|buffer| buffer.len() >= length) {
            Some(buffer) => buffer,
            None => {
                let rounded = length.checked_next_multiple_of(STEP_BYTES)?;
                let mut fresh = Vec::new();
                fresh.try_reserve_exact(rounded).ok()?;
                fresh.resize(rounded, 0);
                fresh
            }
        };
        Some(Lent { buffer, length, spare: self.clone() })
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = kept.iter().map(Vec::len).sum();
        if kept.len() < KEPT_MAX && bytes.saturating_add(buffer.len()) <= KEPT_BYTES_MAX {
            kept.push(buffer);
        }
    }
}

/// A buffer in use; it comes back when the last who holds it lets go.
pub(super) struct Lent {
    buffer: Vec<u8>,
    length: usize,
    spare: Spare,
}

impl Lent {
    /// What is to be filled.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }

    /// What was filled.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spare.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(spare: &Spare) -> Vec<usize> {
        spare.0.lock().unwrap().iter().map(Vec::len).collect()
    }

    #[test]
    fn one_read_after_another_needs_one_buffer() {
        let spare = Spare::default();
        let place = |bytes: &Bytes| bytes.as_ptr() as usize;
        let mut first = spare.take(5 << 20).unwrap();
        first.bytes_mut().fill(7);
        let bytes = first.into_bytes();
        let (there, part) = (place(&bytes), bytes.slice(100..200));
        drop(bytes);
        assert!(kept(&spare).is_empty(), "a part of it is still held");
        assert_eq!(part[..], [7; 100]);
        drop(part);
        for length in [5 << 20, LARGE_BYTES, (5 << 20) - 1] {
            let again = spare.take(length).unwrap().into_bytes();
            assert_eq!((again.len(), place(&again)), (length, there));
        }
        drop(spare.take((5 << 20) + 1).unwrap());
        assert_eq!(kept(&spare), [6 << 20], "the shorter one went");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let spare = Spare::default();
        drop((0..6).map(|_| spare.take(LARGE_BYTES).unwrap()).collect::<Vec<_>>());
        assert_eq!(kept(&spare), [LARGE_BYTES; KEPT_MAX]);
        drop([spare.take(60 << 20).unwrap(), spare.take(60 << 20).unwrap()]);
        let bytes: usize = kept(&spare).iter().sum();
        assert!(bytes <= KEPT_BYTES_MAX, "{bytes}");
    }
}
