//! Directories whose metadata waits until everything in them is there.

use keepwell_catalog::{Entry, MapKey};

/// Who owns a directory may go through it.
const SEARCH: u32 = 0o100;

/// Directories that were made and are not finished yet. What is restored in tree order has numbers, in order; a directory
/// is ready when everything of its numbers has been delivered.
#[derive(Default)]
pub(super) struct Directories {
    /// Those on the way to the current entry, the innermost last.
    open: Vec<Open>,
    /// Those that are complete but for what was not delivered yet, the deepest first.
    left: Vec<Finished>,
    /// Those that nobody may go through once they are finished: a link to something in them may still come.
    closed: Vec<Finished>,
}

struct Open {
    key: MapKey,
    entry: Entry,
    /// The number of the first thing in it.
    first: u64,
}

/// A directory and the metadata that it gets.
pub(super) type Finished = (MapKey, Entry);

/// What becomes of a directory when nothing more comes in it.
#[derive(Debug, PartialEq)]
pub(super) enum Left<'d> {
    /// It gets its metadata now.
    Ready(Box<Finished>),
    /// It gets this with what is delivered next.
    Waits(&'d Entry),
    /// It gets its metadata at the end.
    Closed,
    /// It could not be made.
    Unknown,
}

impl Directories {
    /// A directory was made; what comes next in it has this number.
    pub fn enter(&mut self, key: &MapKey, entry: &Entry, next: u64) {
        self.open.push(Open { key: key.clone(), entry: entry.clone(), first: next });
    }

    /// Nothing more comes in a directory; the next thing, elsewhere, has the number `next`, and all before `delivered` are
    /// there.
    pub fn leave(&mut self, key: &MapKey, next: u64, delivered: u64) -> Left<'_> {
        let Some(Open { key, entry, first }) = self.open.pop_if(|open| open.key == *key) else {
            return Left::Unknown;
        };
        if entry.mode & SEARCH == 0 {
            self.closed.push((key, entry));
            return Left::Closed;
        }
        if next <= first.max(delivered) {
            return Left::Ready(Box::new((key, entry)));
        }
        self.left.push((key, entry));
        self.left.last().map_or(Left::Unknown, |(_, entry)| Left::Waits(entry))
    }

    /// Everything that has a number was delivered: those that waited for it, the deepest first.
    pub fn delivered(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.left)
    }

    /// At the end, those that are still there, the deepest first.
    pub fn rest(self) -> Vec<Finished> {
        [self.left, self.closed].concat()
    }
}

#[cfg(test)]
mod tests {
    use keepwell_catalog::EntryKind;

    use super::*;
    use crate::testing::key;

    fn entry(mode: u32) -> Entry {
        Entry { mode, ..Entry::new(EntryKind::Directory) }
    }

    fn names(finished: Vec<Finished>) -> Vec<String> {
        finished.into_iter().map(|(key, _)| key.display_path()).collect()
    }

    fn ready(key: &MapKey) -> Left<'static> {
        Left::Ready(Box::new((key.clone(), entry(0o755))))
    }

    #[test]
    fn a_directory_waits_for_what_is_in_it_and_no_longer() {
        let mut directories = Directories::default();
        let (a, b, c) = (key("a"), key("a/b"), key("a/c"));
        directories.enter(&a, &entry(0o755), 0);
        directories.enter(&b, &entry(0o555), 0);
        // A file in b, the number 0, comes with the window.
        assert_eq!(directories.leave(&b, 1, 0), Left::Waits(&entry(0o555)));
        directories.enter(&c, &entry(0o755), 1);
        assert_eq!(directories.leave(&c, 1, 0), ready(&c), "nothing is in it");
        assert_eq!(directories.leave(&a, 1, 0), Left::Waits(&entry(0o755)), "b is in it");
        assert_eq!(names(directories.delivered()), ["a/b", "a"], "the deepest first");
        assert!(directories.rest().is_empty());
    }

    #[test]
    fn what_was_delivered_before_is_not_waited_for() {
        let mut directories = Directories::default();
        let a = key("a");
        for delivered in [7, 6] {
            directories.enter(&a, &entry(0o755), 3);
            // Of the numbers 3 to 6 all were delivered, or all but the last.
            let left = directories.leave(&a, 7, delivered);
            assert_eq!(left == ready(&a), delivered == 7);
        }
    }

    #[test]
    fn of_a_large_tree_no_more_is_held_than_lies_between_two_deliveries() {
        let mut directories = Directories::default();
        let (mut most, mut finished) = (0, 0);
        let top = key("top");
        directories.enter(&top, &entry(0o755), 0);
        for n in 0..10_000u64 {
            // A file in each, delivered ten at a time.
            let (directory, delivered) = (key(&format!("top/{n:05}")), n / 10 * 10);
            if delivered == n {
                finished += directories.delivered().len();
            }
            directories.enter(&directory, &entry(0o755), n);
            directories.leave(&directory, n + 1, delivered);
            most = most.max(directories.open.len() + directories.left.len() + directories.closed.len());
        }
        assert_eq!((most, finished), (11, 9_990));
    }

    #[test]
    fn one_that_nobody_may_go_through_stays_open_to_the_end() {
        let mut directories = Directories::default();
        let (a, b, lost) = (key("a"), key("a/b"), key("a/lost"));
        directories.enter(&a, &entry(0o755), 0);
        directories.enter(&b, &entry(0o644), 0);
        assert_eq!(directories.leave(&lost, 0, 0), Left::Unknown, "it could not be made");
        assert_eq!(directories.leave(&b, 0, 0), Left::Closed);
        assert_eq!(directories.leave(&a, 0, 0), ready(&a));
        assert_eq!(names(directories.rest()), ["a/b"]);
    }
}
