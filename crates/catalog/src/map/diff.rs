//! What changed between two maps.

use std::cmp::Ordering;

use super::reader::MapReader;
use super::walk::{Head, Walk};
use crate::MapKey;
use crate::error::MapError;
use crate::key::split_sub_key;

/// A key whose value differs; at least one of the two sides is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The raw key of the record, which may be a sub-key.
    pub key: Vec<u8>,
    /// The value in the first map.
    pub before: Option<Vec<u8>>,
    /// The value in the second map.
    pub after: Option<Vec<u8>>,
}

impl Change {
    /// The entry that the record is or belongs to.
    pub fn entry_key(&self) -> Result<MapKey, MapError> {
        MapKey::from_bytes(split_sub_key(&self.key).0)
    }

    /// Whether it is a record with further extents, not an entry.
    pub fn is_sub_record(&self) -> bool {
        split_sub_key(&self.key).1.is_some()
    }
}

/// Compares two maps, in key order. Subtrees that both share are not fetched, so the cost follows the changes.
pub fn diff<'a>(before: &MapReader<'a>, after: &MapReader<'a>) -> Result<Diff<'a>, MapError> {
    if before.root() == after.root() {
        return Ok(Diff { sides: None });
    }
    let before = Walk::open(before.source(), before.root())?;
    let after = Walk::open(after.source(), after.root())?;
    Ok(Diff { sides: Some((before, after)) })
}

/// The changes between two maps; ends after the first error.
pub struct Diff<'a> {
    /// `None` when nothing is left to compare.
    sides: Option<(Walk<'a>, Walk<'a>)>,
}

impl Iterator for Diff<'_> {
    type Item = Result<Change, MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (before, after) = self.sides.as_mut()?;
        let change = next_change(before, after);
        if !matches!(change, Ok(Some(_))) {
            self.sides = None;
        }
        change.transpose()
    }
}

impl std::fmt::Debug for Diff<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Diff").field("done", &self.sides.is_none()).finish()
    }
}

/// What to do next, and on which sides.
enum Step {
    Enter { before: bool, after: bool },
    Skip,
    Report(Change),
}

fn next_change(before: &mut Walk<'_>, after: &mut Walk<'_>) -> Result<Option<Change>, MapError> {
    loop {
        let step = match (before.head(), after.head()) {
            (None, None) => return Ok(None),
            (Some(head), None) => alone_before(&head),
            (None, Some(head)) => alone_after(&head),
            (Some(left), Some(right)) => match left.key().cmp(right.key()) {
                Ordering::Less => alone_before(&left),
                Ordering::Greater => alone_after(&right),
                Ordering::Equal => compare(&left, &right),
            },
        };
        match step {
            Step::Skip => {
                before.advance()?;
                after.advance()?;
            }
            Step::Enter { before: enter_before, after: enter_after } => {
                if enter_before {
                    before.descend()?;
                }
                if enter_after {
                    after.descend()?;
                }
            }
            Step::Report(change) => {
                if change.before.is_some() {
                    before.advance()?;
                }
                if change.after.is_some() {
                    after.advance()?;
                }
                return Ok(Some(change));
            }
        }
    }
}

/// `head` sorts before everything that is left on the other side.
fn alone_before(head: &Head<'_>) -> Step {
    match head {
        Head::Tree(..) => Step::Enter { before: true, after: false },
        Head::Record(key, value) => {
            Step::Report(Change { key: key.to_vec(), before: Some(value.to_vec()), after: None })
        }
    }
}

fn alone_after(head: &Head<'_>) -> Step {
    match head {
        Head::Tree(..) => Step::Enter { before: false, after: true },
        Head::Record(key, value) => {
            Step::Report(Change { key: key.to_vec(), before: None, after: Some(value.to_vec()) })
        }
    }
}

/// Both start with the same key.
fn compare(left: &Head<'_>, right: &Head<'_>) -> Step {
    match (left, right) {
        (Head::Tree(_, before, _), Head::Tree(_, after, _)) if before.id == after.id => Step::Skip,
        // Of two trees the higher one is entered first: its child may be the other.
        (Head::Tree(_, _, before), Head::Tree(_, _, after)) => {
            Step::Enter { before: before >= after, after: after >= before }
        }
        (Head::Record(_, before), Head::Record(_, after)) if before == after => Step::Skip,
        (Head::Record(key, before), Head::Record(_, after)) => Step::Report(Change {
            key: key.to_vec(),
            before: Some(before.to_vec()),
            after: Some(after.to_vec()),
        }),
        (Head::Tree(..), Head::Record(..)) => Step::Enter { before: true, after: false },
        (Head::Record(..), Head::Tree(..)) => Step::Enter { before: false, after: true },
    }
}
