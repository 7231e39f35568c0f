//! The names in one directory, in byte order.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{FileType, RawDir};
use rustix::io::{Errno, Result};

/// Room for the answers of `getdents64`.
const BUFFER_BYTES: usize = 64 << 10;

/// All names of one directory in one allocation: some 30 bytes for each.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The names, one after the other.
    bytes: Vec<u8>,
    names: Vec<Span>,
    next: usize,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    length: u32,
    kind: FileType,
}

/// The buffer a [`Listing`] is read through; one is enough for a whole walk.
pub(crate) struct ListingBuffer(Vec<u8>);

impl ListingBuffer {
    pub fn new() -> Self {
        Self(Vec::with_capacity(BUFFER_BYTES))
    }

    fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        self.0.spare_capacity_mut()
    }
}

impl Listing {
    /// Reads the directory open at `fd` to its end. After an error the listing holds what came before it.
    pub fn read(fd: impl AsFd, buffer: &mut ListingBuffer) -> (Self, Result<()>) {
        let mut listing = Self::default();
        let mut directory = RawDir::new(fd, buffer.room());
        let mut result = Ok(());
        while let Some(entry) = directory.next() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => listing.push(entry.file_name().to_bytes(), entry.file_type()),
                Err(Errno::INTR) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        listing.sort();
        (listing, result)
    }

    /// Adds names that are to be visited whether or not they were read.
    pub fn include<'n>(&mut self, names: impl Iterator<Item = &'n [u8]>) {
        let known = self.names.len();
        for name in names {
            self.push(name, FileType::Unknown);
        }
        if self.names.len() > known {
            self.sort();
        }
    }

    /// Whether `name` is one of the names still to come.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.names[self.next..].binary_search_by(|span| self.name_bytes(*span).cmp(name)).is_ok()
    }

    /// Keeps only `name` of what is to come.
    pub fn retain(&mut self, name: &[u8]) {
        let mut names = std::mem::take(&mut self.names);
        names.retain(|span| self.name_bytes(*span) == name);
        (self.names, self.next) = (names, 0);
    }

    /// The next name and the kind the directory gives for it, often [`FileType::Unknown`].
    pub fn advance(&mut self) -> Option<(&[u8], FileType)> {
        let span = *self.names.get(self.next)?;
        self.next += 1;
        Some((self.name_bytes(span), span.kind))
    }

    /// Every name.
    pub fn into_names(self) -> Vec<Vec<u8>> {
        self.names.iter().map(|span| self.name_bytes(*span).to_vec()).collect()
    }

    fn push(&mut self, name: &[u8], kind: FileType) {
        let Ok(length) = u32::try_from(name.len()) else { return };
        self.names.push(Span { start: self.bytes.len(), length, kind });
        self.bytes.extend_from_slice(name);
    }

    fn name_bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.start..span.start + span.length as usize]
    }

    /// Sorts, and drops what was listed twice (a rename during the reading does that).
    fn sort(&mut self) {
        let mut names = std::mem::take(&mut self.names);
        names.sort_unstable_by(|a, b| self.name_bytes(*a).cmp(self.name_bytes(*b)));
        names.dedup_by(|a, b| self.name_bytes(*a) == self.name_bytes(*b));
        self.names = names;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_sorted_once_and_with_those_included() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "ab", "a-"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let fd = std::fs::File::open(dir.path()).unwrap();
        let (mut listing, result) = Listing::read(&fd, &mut ListingBuffer::new());
        result.unwrap();
        listing.include([&b"aa"[..], b"b"].into_iter());
        assert!(listing.contains(b"a-") && !listing.contains(b"-"));
        assert_eq!(listing.advance().map(|(name, _)| name), Some(&b"a"[..]));
        assert_eq!(listing.into_names(), [&b"a"[..], b"a-", b"aa", b"ab", b"b"]);
    }

    #[test]
    fn a_directory_of_many_names_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..5_000 {
            std::fs::write(dir.path().join(format!("some rather long name {number:05}")), "").unwrap();
        }
        let fd = std::fs::File::open(dir.path()).unwrap();
        let (mut listing, result) = Listing::read(&fd, &mut ListingBuffer::new());
        result.unwrap();
        let mut last = Vec::new();
        let mut count = 0;
        while let Some((name, _)) = listing.advance() {
            assert!(name > last.as_slice());
            last = name.to_vec();
            count += 1;
        }
        assert_eq!(count, 5_000);
    }
}
