//! Writers, and what works like one: a copier into this store, and the undo of a retirement.

use crate::model::{Model, Next};
use crate::plans::{PlanCursor, Reading};
use crate::rules::Rule;
use crate::state::{Chunks, End, Mask, Memory, Session, Side, State, bits, each_chunk};

/// What a writer wants, and the slots it may use.
#[derive(Debug, Clone, Copy)]
pub struct WriterSpec {
    /// Chunks of the snapshot to be committed.
    pub want: Chunks,
    /// Chunks of a checkpoint that its first session commits; 0 = no checkpoint.
    pub checkpoint: Chunks,
    /// The store it writes to.
    pub store: usize,
    /// First of its session slots; attempt n uses slot `session + n`.
    pub session: usize,
    /// First of its pack slots; attempt n uploads pack `pack + n`.
    pub pack: usize,
    /// Sessions it may begin after the first.
    pub restarts: u8,
    /// It may crash at any step and begin again, looking for packs it uploaded before.
    pub crashes: bool,
    /// Another process of the same writer takes its numbers from the same slots, so each lists them first.
    pub shares_numbers: bool,
    /// What kind of writer it is.
    pub kind: WriterKind,
}

/// The kinds of writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriterKind {
    /// Backs up.
    Backup,
    /// Copies the snapshot of session 0 of the first store into this one.
    Copier,
    /// Brings back the snapshot of session 0 after its retirement; what it uploads it must find in the store.
    Undo,
}

/// Where a writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// About to list which numbers are taken.
    Number,
    /// About to claim its session.
    Claim,
    /// About to read whether its checkpoint is retired.
    Retirements,
    /// Reading plans.
    Plans,
    /// Listing packs of its earlier sessions.
    Packs,
    /// About to read the index.
    Index,
    /// About to upload a pack.
    Upload,
    /// About to write an index segment.
    Entry,
    /// About to claim the session after the checkpoint.
    ClaimNext,
    /// About to commit.
    Commit,
    /// Finished, given up, or crashed for good.
    Done,
    /// Finished, and was told of a commit that nobody will ever look at.
    Misled,
}

/// What a writer remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriterState {
    /// Where it is.
    pub at: At,
    attempt: u8,
    /// Its session was claimed to go on after a checkpoint.
    continues: bool,
    /// Chunks of its checkpoint that it relies on without looking them up.
    roots: Chunks,
    plans: PlanCursor,
    listed: Mask,
    indexed: Mask,
    packs_read: bool,
    index_read: bool,
    plans_read: bool,
    known: Chunks,
    need: Chunks,
    entry: Mask,
}

impl WriterState {
    /// A writer before its first step.
    pub fn first(spec: &WriterSpec) -> Self {
        Self { at: if spec.shares_numbers { At::Number } else { At::Claim }, ..Self::start() }
    }

    fn start() -> Self {
        Self {
            at: At::Claim,
            attempt: 0,
            continues: false,
            roots: 0,
            plans: PlanCursor::START,
            listed: 0,
            indexed: 0,
            packs_read: false,
            index_read: false,
            plans_read: false,
            known: 0,
            need: 0,
            entry: 0,
        }
    }

    /// A writer at the start of session number `attempt`.
    fn begin(attempt: u8) -> Self {
        Self { attempt, ..Self::start() }
    }

    /// Whether a checkpoint is retired under a capture that is at work in the session claimed for going on.
    pub fn has_lost_its_checkpoint(&self, spec: &WriterSpec, s: &State) -> bool {
        let open = s.open_sessions(Side::WHOLE) & (1 << (spec.session + usize::from(self.attempt))) != 0;
        self.continues && open && s.retired & (1 << spec.session) != 0
    }

    fn done() -> Self {
        Self { at: At::Done, ..Self::start() }
    }
}

/// Appends the possible steps of writer `me`.
pub fn steps(model: &Model, s: &State, me: usize, spec: &WriterSpec, w: &WriterState, out: &mut Next) {
    let writer = Writer { model, s, me, spec, w: *w };
    match w.at {
        At::Number => writer.choose_number(out),
        At::Claim => writer.claim(out),
        At::Retirements => writer.read_retirements(out),
        At::Plans => writer.read_plans(out),
        At::Packs => writer.list_packs(out),
        At::Index => writer.read_index(out),
        At::Upload => writer.upload(out),
        At::Entry => writer.write_entry(out),
        At::ClaimNext => writer.claim_next(out),
        At::Commit => writer.commit(out),
        At::Done | At::Misled => {}
    }
    let idle = matches!(w.at, At::Number | At::Claim | At::Done | At::Misled);
    if spec.crashes && !idle && w.attempt < spec.restarts {
        writer.push(out, "crashes and starts again", 0, WriterState::begin(w.attempt + 1), |_| {});
    }
}

struct Writer<'a> {
    model: &'a Model,
    s: &'a State,
    me: usize,
    spec: &'a WriterSpec,
    w: WriterState,
}

impl Writer<'_> {
    fn has(&self, rule: Rule) -> bool {
        self.model.rules.has(rule)
    }

    fn session(&self) -> usize {
        self.spec.session + usize::from(self.w.attempt)
    }

    fn side(&self) -> Side {
        self.model.sides[self.spec.store]
    }

    fn push(
        &self,
        out: &mut Next,
        what: &'static str,
        detail: u8,
        w: WriterState,
        change: impl FnOnce(&mut State),
    ) {
        let mut next = *self.s;
        next.actors[self.me] = Memory::Writer(w);
        change(&mut next);
        self.model.push(out, self.me, what, detail, next);
    }

    /// Whether this attempt commits the checkpoint rather than the snapshot.
    fn is_checkpoint(&self) -> bool {
        self.w.attempt == 0 && self.spec.checkpoint != 0
    }

    fn want(&self) -> Chunks {
        if self.is_checkpoint() { self.spec.checkpoint } else { self.spec.want }
    }

    /// Whether this writer begins a session at all; without it no keeper can see it.
    fn uses_session(&self) -> bool {
        match self.spec.kind {
            WriterKind::Backup => true,
            WriterKind::Copier => self.has(Rule::CopyOwnSession),
            WriterKind::Undo => self.has(Rule::UndoInSession),
        }
    }

    /// Lists claims and ends, as another process of the same writer may have taken numbers.
    fn choose_number(&self, out: &mut Next) {
        let own =
            (0..=self.spec.restarts).fold(0, |all, n| all | 1u8 << (self.spec.session + usize::from(n)));
        let taken = (self.s.claims | self.s.ended()) & own;
        let next = bits(taken).max().map_or(self.spec.session, |n| n + 1);
        if own & 1u8.checked_shl(next as u32).unwrap_or(0) == 0 {
            return self.push(out, "has no number left in the model", 0, WriterState::done(), |_| {});
        }
        let w = WriterState::begin((next - self.spec.session) as u8);
        self.push(out, "chooses number", next as u8, w, |_| {});
    }

    fn claim(&self, out: &mut Next) {
        if self.spec.kind == WriterKind::Undo && self.s.retired & 1 == 0 {
            return;
        }
        if self.uses_session() && self.s.claims & (1 << self.session()) != 0 {
            let taken = self.session() as u8;
            return self.push(out, "finds it is taken: number", taken, self.start_again(), |_| {});
        }
        let read_first = !self.has(Rule::ClaimBeforeReading) && !self.w.index_read;
        if read_first || !self.uses_session() {
            let w = self.after_claim();
            return self.push(out, "begins without a session", 0, w, |_| {});
        }
        let (slot, w) = (self.session(), self.after_claim());
        self.push(out, "claims session", slot as u8, w, |next| next.claims |= 1 << slot);
    }

    /// The session in which a capture goes on is claimed before the checkpoint ends the one before.
    fn claim_next(&self, out: &mut Next) {
        let (slot, w) = (self.session() + 1, WriterState { at: At::Commit, ..self.w });
        self.push(out, "claims, to go on there, session", slot as u8, w, |next| next.claims |= 1 << slot);
    }

    fn after_claim(&self) -> WriterState {
        if self.w.known != 0 || self.w.index_read {
            return self.decided(WriterState { index_read: true, ..self.w });
        }
        if self.spec.checkpoint != 0 && self.w.attempt > 0 {
            return WriterState { at: At::Retirements, ..self.w };
        }
        self.first_reading()
    }

    /// Notes the chunks under its own checkpoint, which need no lookup unless that is retired.
    fn read_retirements(&self, out: &mut Next) {
        let first = self.spec.session;
        let own = self.s.sessions[first];
        let retired = self.has(Rule::WriterReadsRetirements) && self.s.retired & (1 << first) != 0;
        let usable = own.end == End::Checkpoint && !retired;
        let w = WriterState { roots: if usable { own.chunks } else { 0 }, ..self.w };
        let w = Writer { w, ..*self }.first_reading();
        self.push(out, "reads the retirements:", self.s.retired, w, |_| {});
    }

    fn first_reading(&self) -> WriterState {
        let first = if self.has(Rule::PlansBeforeIndex) { At::Plans } else { At::Index };
        let list_early = self.looks_for_packs() && !self.has(Rule::ListingAfterPlans);
        WriterState { at: if list_early { At::Packs } else { first }, ..self.w }
    }

    fn looks_for_packs(&self) -> bool {
        self.spec.crashes && self.w.attempt > 0
    }

    fn read_plans(&self, out: &mut Next) {
        if self.spec.kind == WriterKind::Copier && !self.has(Rule::CopyTargetPlans) {
            let w = self.after_plans(PlanCursor::found(self.s.doomed(self.model.sides[0], None)));
            return self.push(out, "reads the origin's plans instead; doomed:", w.plans.doomed, w, |_| {});
        }
        for reading in self.w.plans.advance(self.model, self.s, self.side(), None) {
            match reading {
                Reading::More(plans, what, set) => {
                    self.push(out, what, set, WriterState { plans, ..self.w }, |_| {});
                }
                Reading::Finished(plans) => {
                    let w = self.after_plans(plans);
                    self.push(out, "has read the plans; doomed:", plans.doomed, w, |_| {});
                }
            }
        }
    }

    fn after_plans(&self, plans: PlanCursor) -> WriterState {
        let w = WriterState { plans: plans.result(), plans_read: true, ..self.w };
        if self.looks_for_packs() && !w.packs_read {
            return WriterState { at: At::Packs, ..w };
        }
        if w.index_read { self.decided(w) } else { WriterState { at: At::Index, ..w } }
    }

    fn list_packs(&self, out: &mut Next) {
        let own = (0..self.w.attempt).fold(0, |all, n| all | 1 << (self.spec.pack + usize::from(n)));
        let journal = if self.has(Rule::ResumeNeedsListing) { self.s.packs } else { u8::MAX };
        let listed = own & journal;
        let at = if self.w.plans_read || !self.has(Rule::PlansBeforeIndex) { At::Index } else { At::Plans };
        let w = WriterState { listed, packs_read: true, at, ..self.w };
        self.push(out, "looks for packs of its earlier sessions:", listed, w, |_| {});
    }

    fn read_index(&self, out: &mut Next) {
        let indexed = self.s.indexed(self.side());
        let w = WriterState { indexed, index_read: true, ..self.w };
        let w = match (w.plans_read, self.has(Rule::ClaimBeforeReading)) {
            (false, _) => WriterState { at: At::Plans, ..w },
            (true, true) => self.decided(w),
            (true, false) => WriterState { at: At::Claim, ..w },
        };
        self.push(out, "reads the index:", indexed, w, |_| {});
    }

    /// Decides per chunk: reuse or upload. Local, hence part of the step before.
    fn decided(&self, w: WriterState) -> WriterState {
        let mut need = 0;
        let mut entry = 0;
        for chunk in each_chunk(self.want() & !w.roots & !w.known) {
            let usable = !self.avoided(&w);
            let in_index = self.s.holding(w.indexed & usable, chunk);
            let orphan = self.s.holding(w.listed & usable, chunk);
            if in_index != 0 {
                continue;
            }
            if orphan == 0 {
                need |= chunk;
            }
            entry |= orphan;
        }
        let all = self.spec.want;
        let resolved = each_chunk(all).filter(|c| self.s.holding(w.indexed & !self.avoided(&w), *c) != 0);
        let known = if self.is_checkpoint() && !self.has(Rule::ReloadAfterCheckpoint) {
            resolved.fold(self.spec.checkpoint, |set, c| set | c)
        } else {
            0
        };
        let w = WriterState { need, entry, known, ..w };
        let at = match (need, entry) {
            (0, 0) => self.end_step(),
            (0, _) => self.before_commit(),
            _ => At::Upload,
        };
        forget_reads(WriterState { at, ..w })
    }

    fn avoided(&self, w: &WriterState) -> Mask {
        let obeys = match self.spec.kind {
            WriterKind::Undo => self.has(Rule::UndoAvoidsDoomed),
            WriterKind::Backup | WriterKind::Copier => self.has(Rule::AvoidDoomed),
        };
        if obeys { w.plans.doomed } else { 0 }
    }

    fn before_commit(&self) -> At {
        if self.has(Rule::IndexBeforeCommit) { At::Entry } else { self.end_step() }
    }

    fn end_step(&self) -> At {
        let next_first = self.is_checkpoint() && self.has(Rule::ClaimBeforeEnd);
        if next_first { At::ClaimNext } else { At::Commit }
    }

    /// Packs from which it could take what it uploads; a backup has its source.
    fn sources(&self) -> Option<Mask> {
        match self.spec.kind {
            WriterKind::Backup => None,
            WriterKind::Copier => Some(self.s.resolvable(self.model.sides[0])),
            WriterKind::Undo => Some(self.s.resolvable(self.side())),
        }
    }

    fn upload(&self, out: &mut Next) {
        let missing = |sources| each_chunk(self.w.need).any(|c| self.s.holding(sources, c) == 0);
        if self.sources().is_some_and(missing) {
            return self.push(out, "cannot read what it would upload", 0, WriterState::done(), |_| {});
        }
        let own = self.spec.pack + usize::from(self.w.attempt);
        let need = self.w.need;
        let same = (0..own).find(|p| self.s.content[*p] == need);
        let pack = if self.has(Rule::RandomSuffix) { own } else { same.unwrap_or(own) };
        let w = WriterState { at: self.before_commit(), need: 0, entry: self.w.entry | 1 << pack, ..self.w };
        let put = |next: &mut State| {
            next.content[pack] = need;
            next.packs |= 1 << pack;
        };
        self.push(out, "uploads pack", pack as u8, w, put);
        if self.model.late {
            self.push(out, "uploads, with a second request under way, pack", pack as u8, w, |next| {
                put(next);
                next.late_puts |= 1 << pack;
            });
        }
        if self.model.late && self.spec.crashes && self.w.attempt < self.spec.restarts {
            let again = WriterState::begin(self.w.attempt + 1);
            self.push(out, "crashes with the put under way of pack", pack as u8, again, |next| {
                next.content[pack] = need;
                next.late_puts |= 1 << pack;
            });
        }
    }

    fn write_entry(&self, out: &mut Next) {
        let entry = self.w.entry;
        let at = if self.has(Rule::IndexBeforeCommit) { self.end_step() } else { At::Done };
        let w = if at == At::Done { WriterState::done() } else { WriterState { at, entry: 0, ..self.w } };
        self.push(out, "writes index segments for packs", entry, w, |next| {
            bits(entry).for_each(|p| next.segments[p] = 1 << p);
        });
        if self.model.late && at != At::Done {
            self.push(out, "writes, with a second request under way, segments for", entry, w, |next| {
                bits(entry).for_each(|p| next.segments[p] = 1 << p);
                next.late_entries |= entry;
            });
        }
    }

    fn commit(&self, out: &mut Next) {
        if self.spec.kind == WriterKind::Undo && !self.has(Rule::UndoInSession) {
            return self
                .push(out, "undoes the retirement by a record", 0, WriterState::done(), |n| n.retired &= !1);
        }
        let (slot, want) = (self.session(), self.want());
        let end = if self.is_checkpoint() { End::Checkpoint } else { End::Snapshot };
        let mut probe = *self.s;
        if self.s.ends_gone & (1 << slot) != 0 {
            let misled = WriterState { at: At::Misled, ..WriterState::done() };
            return self.push(out, "commits, below what is sealed, session", slot as u8, misled, |_| {});
        }
        if probe.end_session(slot, end) || !self.has(Rule::ConditionalCommit) {
            let done = Session { end, chunks: want };
            self.push(out, "commits session", slot as u8, self.after_commit(), |n| n.sessions[slot] = done);
        } else {
            self.push(out, "is refused: fenced in session", slot as u8, self.start_again(), |_| {});
        }
        if self.model.late && self.spec.crashes && self.w.attempt < self.spec.restarts {
            let again = WriterState::begin(self.w.attempt + 1);
            self.push(out, "crashes with the commit under way of session", slot as u8, again, |next| {
                if next.sessions[slot].end == End::None {
                    next.sessions[slot].chunks = want;
                    next.late_commits |= 1 << slot;
                }
            });
        }
    }

    fn after_commit(&self) -> WriterState {
        if !self.has(Rule::IndexBeforeCommit) && self.w.entry != 0 {
            return WriterState { at: At::Entry, ..self.w };
        }
        if !self.is_checkpoint() {
            return WriterState::done();
        }
        let next = WriterState { known: self.w.known, continues: true, ..WriterState::begin(1) };
        if !self.has(Rule::ClaimBeforeEnd) {
            return next;
        }
        Writer { w: next, ..*self }.after_claim()
    }

    fn start_again(&self) -> WriterState {
        if self.w.attempt >= self.spec.restarts {
            return WriterState::done();
        }
        let next = WriterState::begin(self.w.attempt + 1);
        if self.spec.shares_numbers { WriterState { at: At::Number, ..next } } else { next }
    }
}

/// Drops what no later step looks at, so that equal futures are equal states.
fn forget_reads(w: WriterState) -> WriterState {
    WriterState {
        plans: PlanCursor::START,
        roots: 0,
        listed: 0,
        indexed: 0,
        packs_read: false,
        plans_read: false,
        ..w
    }
}
