//! Listings: a directory is handed to the kernel piece by piece.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use backup_core::Error;
use fuser::FileType;

/// Entries that are read at once.
pub(crate) const BATCH: usize = 256;
/// The kernel takes no longer names.
const NAME_BYTES_MAX: usize = 1024;

/// Gives the lines behind a name, or the first ones; none at the end.
type ReadLines<'r> = dyn FnMut(Option<&[u8]>) -> Result<Vec<Line>, Error> + 'r;

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub ino: u64,
    pub kind: FileType,
    pub name: Vec<u8>,
}

impl Line {
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// Whether the kernel can show it: objects of a bucket may have names that no file has.
    fn is_file_name(&self) -> bool {
        let name = self.name.as_slice();
        !matches!(name, b"" | b"." | b"..")
            && name.len() <= NAME_BYTES_MAX
            && !name.iter().any(|byte| matches!(byte, b'/' | 0))
    }
}

/// An open directory. Its lines are counted; the kernel goes on by number, mostly where it stopped.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Those of `.` and `..`.
    dots: [Line; 2],
    /// Number of the first line that waits.
    next: u64,
    waiting: VecDeque<Line>,
    /// The last name that was read.
    after: Option<Vec<u8>>,
    is_read: bool,
}

impl Listing {
    pub fn new(own: u64, parent: u64) -> Self {
        let dot = |name: &[u8], ino| Line { ino, kind: FileType::Directory, name: name.to_vec() };
        let dots = [dot(b".", own), dot(b"..", parent)];
        Self { waiting: dots.clone().into(), dots, next: 0, after: None, is_read: false }
    }

    /// Hands out lines from the given number on until `take` has no room; `take` is told the number of the next line.
    pub fn hand_out(
        &mut self,
        from: u64,
        read: &mut ReadLines<'_>,
        take: &mut dyn FnMut(u64, &Line) -> bool,
    ) -> Result<(), Error> {
        if from < self.next {
            let [own, parent] = &self.dots;
            *self = Self::new(own.ino, parent.ino);
        }
        loop {
            while let Some(line) = self.waiting.front() {
                if self.next >= from && take(self.next + 1, line) {
                    return Ok(());
                }
                self.waiting.pop_front();
                self.next += 1;
            }
            if self.is_read {
                return Ok(());
            }
            let lines = read(self.after.as_deref())?;
            match lines.last() {
                Some(last) => self.after = Some(last.name.clone()),
                None => self.is_read = true,
            }
            self.waiting.extend(lines.into_iter().filter(Line::is_file_name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_on_where_they_stopped_and_from_anywhere() {
        let names: Vec<String> = (0..1000).map(|n| format!("{n:04}")).collect();
        let mut reads = 0;
        let mut read = |after: Option<&[u8]>| {
            reads += 1;
            let behind = names.iter().filter(|name| after.is_none_or(|after| name.as_bytes() > after));
            let line =
                |name: &String| Line { ino: 9, kind: FileType::RegularFile, name: name.clone().into() };
            Ok(behind.take(BATCH).map(line).collect())
        };
        let mut listing = Listing::new(5, 1);
        let mut all = Vec::new();
        let mut next = 0;
        loop {
            let mut room = 7;
            let before = next;
            let mut take = |number: u64, line: &Line| {
                if room == 0 {
                    return true;
                }
                room -= 1;
                next = number;
                all.push(String::from_utf8(line.name.clone()).unwrap());
                false
            };
            listing.hand_out(before, &mut read, &mut take).unwrap();
            if next == before {
                break;
            }
        }
        assert_eq!(all[..2], [".", ".."]);
        assert_eq!(all[2..], names[..]);
        let mut only = |from: u64| {
            let mut found = None;
            let mut take = |_: u64, line: &Line| found.replace(line.name.clone()).is_some();
            listing.hand_out(from, &mut read, &mut take).unwrap();
            found.map(|_| ())
        };
        assert_eq!(only(1002), None);
        assert_eq!(only(500), Some(()));
        assert!(reads < 12, "{reads}");
    }

    #[test]
    fn names_that_no_file_has_are_not_shown() {
        for (name, shown) in [
            (b"a".as_slice(), true),
            (b"\xff\x01", true),
            (b"..", false),
            (b"a/b", false),
            (b"a\0b", false),
            (&[b'a'; 1025], false),
        ] {
            let line = Line { ino: 2, kind: FileType::RegularFile, name: name.to_vec() };
            assert_eq!(line.is_file_name(), shown, "{name:?}");
        }
    }
}
