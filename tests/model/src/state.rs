//! The store as the actors see it, and what each actor remembers.
//!
//! Packs, segments and sessions live in numbered slots; a set of them is a bit mask. A slot is a name: it is never
//! given to a second object (except where a switched-off rule does just that).

use crate::keeper::KeeperState;
use crate::mergers::{MergerState, PlanMergerState};
use crate::reader::ReaderState;
use crate::tidy::{SweeperState, TidierState};
use crate::writer::WriterState;

/// Slots for packs, and for the index segments written together with them.
pub const PACKS: usize = 8;
/// Slots for sessions.
pub const SESSIONS: usize = 8;
/// Numbers for plans.
pub const PLANS: usize = 4;
/// Actors in one scenario.
pub const ACTORS: usize = 6;

/// Bit set of packs or segments.
pub type Mask = u8;
/// Bit set of chunks.
pub type Chunks = u8;

/// One of the stores: the names that belong to it. What an actor lists is what its store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// Slots of packs and of segments.
    pub packs: Mask,
    /// Slots of sessions.
    pub sessions: u8,
    /// Numbers of plans.
    pub plans: u8,
}

impl Side {
    /// The only store of a scenario.
    pub const WHOLE: Side = Side { packs: u8::MAX, sessions: u8::MAX, plans: u8::MAX };
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum End {
    /// It has no end (yet); whether it is open is a matter of its claim.
    #[default]
    None,
    /// Ended by a snapshot.
    Snapshot,
    /// Ended by a checkpoint.
    Checkpoint,
    /// Ended by a commit that holds no snapshot: a repack.
    IndexOnly,
    /// Ended by a fence.
    Fence,
}

/// A session and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Session {
    /// Its end.
    pub end: End,
    /// The chunks its commit refers to.
    pub chunks: Chunks,
}

/// A prune plan with its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Plan {
    /// The number was given out at some time.
    pub used: bool,
    /// The object exists.
    pub present: bool,
    /// The verdict exists.
    pub decided: bool,
    /// Packs it condemns.
    pub condemned: Mask,
    /// Packs released again.
    pub kept: Mask,
}

/// What one actor remembers between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    /// No actor in this place, or one that needs no memory.
    None,
    /// A writer, copier or undo.
    Writer(WriterState),
    /// A keeper.
    Keeper(KeeperState),
    /// An index merge.
    Merger(MergerState),
    /// A merge of plans.
    PlanMerger(PlanMergerState),
    /// A long reader.
    Reader(ReaderState),
    /// Who retires checkpoints of dead captures.
    Tidier(TidierState),
    /// Who seals ends in a ledger and removes claims.
    Sweeper(SweeperState),
}

/// One state of the store and all actors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// Packs that exist.
    pub packs: Mask,
    /// What each pack name holds, whether the pack exists or not.
    pub content: [Chunks; PACKS],
    /// The packs that each segment has entries for; 0 = no such segment.
    pub segments: [Mask; PACKS],
    /// Plans by number.
    pub plans: [Plan; PLANS],
    /// Sessions by slot.
    pub sessions: [Session; SESSIONS],
    /// Claims that exist.
    pub claims: u8,
    /// Sessions below the number of a ledger: everybody takes them for ended.
    pub sealed: u8,
    /// Of these, the ones that had no end when they were sealed; the ledger knows nothing of what they commit later.
    pub sealed_open: u8,
    /// Sessions whose end was deleted once a ledger held it.
    pub ends_gone: u8,
    /// Sessions whose commits are retired.
    pub retired: u8,
    /// Puts of packs that are under way without a living sender.
    pub late_puts: Mask,
    /// Puts of index segments likewise.
    pub late_entries: Mask,
    /// Commits likewise, by session.
    pub late_commits: u8,
    /// Plans likewise.
    pub late_plans: u8,
    /// Deletes of packs likewise.
    pub late_deletes: Mask,
    /// The actors.
    pub actors: [Memory; ACTORS],
}

impl State {
    /// Packs of a store that some index segment has entries for.
    pub fn indexed(&self, side: Side) -> Mask {
        self.segments.iter().fold(0, |all, one| all | one) & side.packs
    }

    /// Packs of a store that exist and that some index segment has entries for.
    pub fn resolvable(&self, side: Side) -> Mask {
        self.packs & self.indexed(side)
    }

    /// Packs among `packs` that hold `chunk` (a mask of one bit).
    pub fn holding(&self, packs: Mask, chunk: Chunks) -> Mask {
        bits(packs).filter(|p| self.content[*p] & chunk != 0).fold(0, |all, p| all | 1 << p)
    }

    /// The plans of a store that exist.
    pub fn plans_of(&self, side: Side) -> impl Iterator<Item = (usize, &Plan)> {
        let plans = self.plans.iter().enumerate();
        plans.filter(move |(n, plan)| plan.present && side.plans & (1 << n) != 0)
    }

    /// Packs condemned and not released by any plan of the store other than `except`.
    pub fn doomed(&self, side: Side, except: Option<usize>) -> Mask {
        let others = self.plans_of(side).filter(|(n, _)| Some(*n) != except);
        others.fold(0, |all, (_, plan)| all | (plan.condemned & !plan.kept))
    }

    /// The number after the highest ever used in the store, at least `first`, if the model has room for it.
    pub fn next_plan(&self, side: Side, first: usize) -> Option<usize> {
        let after_used = bits(side.plans).filter(|n| *n < PLANS && self.plans[*n].used).max().map(|n| n + 1);
        let from = after_used.unwrap_or(first);
        bits(side.plans).find(|n| *n >= from && *n < PLANS)
    }

    /// Sessions that have an end, as far as their own records say.
    pub fn ended(&self) -> u8 {
        bits_of(&self.sessions, |session| session.end != End::None)
    }

    /// Sessions of a store that are claimed and have no end.
    pub fn open_sessions(&self, side: Side) -> u8 {
        self.claims & !self.ended() & !self.sealed & side.sessions
    }

    /// Ends a session; refused (false) when it has an end.
    pub fn end_session(&mut self, slot: usize, end: End) -> bool {
        let free = self.sessions[slot].end == End::None;
        if free {
            self.sessions[slot].end = end;
        }
        free
    }
}

/// Positions of the set bits, lowest first.
pub fn bits(mask: u8) -> impl Iterator<Item = usize> {
    (0..8).filter(move |bit| mask & (1 << bit) != 0)
}

/// The chunks of a set, one mask each.
pub fn each_chunk(chunks: Chunks) -> impl Iterator<Item = Chunks> {
    bits(chunks).map(|bit| 1 << bit)
}

fn bits_of<T>(items: &[T], wanted: impl Fn(&T) -> bool) -> u8 {
    items.iter().enumerate().filter(|(_, item)| wanted(item)).fold(0, |all, (n, _)| all | 1 << n)
}
