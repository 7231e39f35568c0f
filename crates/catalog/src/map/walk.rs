//! Walking the tree of a map: a stack of node cursors that descends only when told to.

use std::ops::ControlFlow;

use keepwell_crypto::ChunkId;

use super::NodeSource;
use super::node::{Child, NodeCursor};
use crate::error::MapError;

/// What a [`Walk`] stands at.
pub(super) enum Head<'w> {
    /// A subtree not entered: its first key, what it is, and the level of its root.
    Tree(&'w [u8], &'w Child, u8),
    /// A record.
    Record(&'w [u8], &'w [u8]),
}

impl<'w> Head<'w> {
    /// The record's key, or the first key of the subtree.
    pub(super) fn key(&self) -> &'w [u8] {
        match self {
            Self::Tree(key, ..) | Self::Record(key, _) => key,
        }
    }
}

/// A position in a map: at a subtree that was not entered yet, at a record, or at the end.
pub(super) struct Walk<'a> {
    source: &'a dyn NodeSource,
    /// From the root down; each stands on a record.
    stack: Vec<NodeCursor>,
    /// The last key below what was left behind; the next one must be greater.
    passed: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// Fetches the root and stands at its first record or child.
    pub(super) fn open(source: &'a dyn NodeSource, root: &ChunkId) -> Result<Self, MapError> {
        let mut cursor = NodeCursor::open_root(*root, source.node(root)?)?;
        let stack = if cursor.step()? { vec![cursor] } else { Vec::new() };
        Ok(Self { source, stack, passed: Vec::new() })
    }

    /// Where it stands; `None` at the end.
    pub(super) fn head(&self) -> Option<Head<'_>> {
        let top = self.stack.last()?;
        Some(match top.child() {
            Some(child) => Head::Tree(top.key(), child, top.level() - 1),
            None => Head::Record(top.key(), top.value()),
        })
    }

    /// Enters the subtree it stands at; does nothing at a record.
    pub(super) fn descend(&mut self) -> Result<(), MapError> {
        let Some(top) = self.stack.last() else { return Ok(()) };
        let Some(child) = top.child() else { return Ok(()) };
        let bytes = self.source.node(&child.id)?;
        let cursor = NodeCursor::open_child(child, bytes, top.level(), top.key())?;
        self.stack.push(cursor);
        Ok(())
    }

    /// Passes over the record or the whole subtree it stands at.
    pub(super) fn advance(&mut self) -> Result<(), MapError> {
        let mut left_a_node = false;
        while let Some(top) = self.stack.last_mut() {
            if top.step()? {
                if left_a_node && top.key() <= self.passed.as_slice() {
                    return Err(top.damaged("its children overlap"));
                }
                return Ok(());
            }
            if let Some(done) = self.stack.pop()
                && done.level() == 0
            {
                self.passed = done.into_key();
            }
            left_a_node = true;
        }
        Ok(())
    }

    /// Moves forward to the first record whose key is at least `target`; never back. Fetches one node per level at most.
    pub(super) fn seek(&mut self, target: &[u8]) -> Result<(), MapError> {
        self.leave_until(target)?;
        while let Some(top) = self.stack.last_mut() {
            top.step_while_at_most(target)?;
            if top.child().is_none() {
                break;
            }
            self.descend()?;
        }
        self.settle(target)
    }

    /// Pops what lies wholly before `target`.
    fn leave_until(&mut self, target: &[u8]) -> Result<(), MapError> {
        for depth in 0..self.stack.len() {
            let cursor = &self.stack[depth];
            if cursor.child().is_some() && cursor.next_is_at_most(target)? {
                self.stack.truncate(depth + 1);
                self.passed.clear();
                break;
            }
        }
        Ok(())
    }

    /// From the last record at most `target`, takes the step that is left if that record is smaller.
    fn settle(&mut self, target: &[u8]) -> Result<(), MapError> {
        if self.stack.last().is_some_and(|top| top.key() < target) {
            self.advance()?;
        }
        self.enter()
    }

    /// Descends until it stands at a record or at the end.
    pub(super) fn enter(&mut self) -> Result<(), MapError> {
        while self.stack.last().is_some_and(|top| top.child().is_some()) {
            self.descend()?;
        }
        Ok(())
    }
}

/// Visits every node and every record of a map, each node before what is below it and records in key order.
///
/// `visit_node` says whether to fetch the node and go on below it; a mark phase answers `false` for nodes that it has
/// seen, and pays only for what differs between snapshots. The root is visited too.
pub fn walk_nodes(
    source: &dyn NodeSource,
    root: &ChunkId,
    visit_node: &mut dyn FnMut(&ChunkId) -> bool,
    visit_value: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), MapError> {
    let mut failed = Ok(());
    walk_nodes_past(source, root, visit_node, visit_value, &mut |error| {
        failed = Err(error);
        ControlFlow::Break(())
    });
    failed
}

/// As [`walk_nodes`]; a node that cannot be read is handed to `broken`, which says whether to go on behind everything
/// below it.
pub fn walk_nodes_past(
    source: &dyn NodeSource,
    root: &ChunkId,
    visit_node: &mut dyn FnMut(&ChunkId) -> bool,
    visit_value: &mut dyn FnMut(&[u8], &[u8]),
    broken: &mut dyn FnMut(MapError) -> ControlFlow<()>,
) {
    if visit_node(root)
        && let Err(error) = walk_below(source, root, visit_node, visit_value, broken)
    {
        let _ = broken(error);
    }
}

fn walk_below(
    source: &dyn NodeSource,
    root: &ChunkId,
    visit_node: &mut dyn FnMut(&ChunkId) -> bool,
    visit_value: &mut dyn FnMut(&[u8], &[u8]),
    broken: &mut dyn FnMut(MapError) -> ControlFlow<()>,
) -> Result<(), MapError> {
    let mut walk = Walk::open(source, root)?;
    while let Some(head) = walk.head() {
        let enter = match head {
            Head::Tree(_, child, _) => visit_node(&child.id),
            Head::Record(key, value) => {
                visit_value(key, value);
                false
            }
        };
        if !enter {
            walk.advance()?;
        } else if let Err(error) = walk.descend() {
            if broken(error).is_break() {
                return Ok(());
            }
            walk.advance()?;
        }
    }
    Ok(())
}
