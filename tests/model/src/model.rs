//! A scenario: which actors share a store, where they start, and under which rules.

use std::fmt;
use std::ops::Range;

use crate::explore::{Outcome, explore};
use crate::keeper::{self, KeeperSpec, KeeperState};
use crate::mergers::{self, MergerSpec, MergerState, PlanMergerState};
use crate::reader::{self, ReaderSpec, ReaderState};
use crate::rules::{Rule, Rules};
use crate::state::{ACTORS, Chunks, End, Memory, SESSIONS, Side, State, bits, each_chunk};
use crate::tidy::{self, SweeperSpec, SweeperState, TidierState};
use crate::writer::{self, WriterKind, WriterSpec, WriterState};

/// One actor of a scenario.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// A writer, copier or undo.
    Writer(WriterSpec),
    /// A keeper.
    Keeper(KeeperSpec),
    /// An index merge.
    Merger(MergerSpec),
    /// A merge of plans.
    PlanMerger,
    /// An owner who retires the commit of a session at any time.
    Retirer(usize),
    /// A long reader.
    Reader(ReaderSpec),
    /// A keeper that retires checkpoints of dead captures.
    Tidier,
    /// A keeper that seals ends in a ledger and removes claims.
    Sweeper(SweeperSpec),
}

/// A scenario with the rules in force.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its name in outputs.
    pub name: &'static str,
    /// Its actors, at most [`ACTORS`].
    pub roles: Vec<Role>,
    /// The rules in force.
    pub rules: Rules,
    /// The store at the start, with the actors' memories not yet set.
    pub store: State,
    /// Requests may be applied a second time, or after their sender crashed.
    pub late: bool,
    /// Plans are listed page by page and fetched one by one (needed where plans are merged).
    pub plans_in_pages: bool,
    /// The lowest plan number.
    pub first_plan: usize,
    /// The stores: the first, and that into which a copier writes. A scenario with one store has it twice.
    pub sides: [Side; 2],
    /// A keeper that takes no part, but must be able to mend every reachable state alone.
    pub rescuer: Option<KeeperSpec>,
    /// Keepers of one kind, which nothing tells apart: states that differ in which of them is where count once.
    pub alike: Range<usize>,
}

/// One step of a trace.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    actor: &'static str,
    index: usize,
    what: &'static str,
    detail: u8,
}

/// The steps possible in a state, each with the state it leads to.
pub type Next = Vec<(Step, State)>;

impl fmt::Display for Step {
    /// `keeper 1 deletes pack 0`; sets are printed as `{0,2}` after a colon or a plural.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.actor, self.index, self.what)?;
        let is_set =
            self.what.ends_with(':') || self.what.ends_with(['s', 'g']) && self.what != "has finished";
        if is_set {
            let items: Vec<String> = bits(self.detail).map(|bit| bit.to_string()).collect();
            return write!(f, " {{{}}}", items.join(","));
        }
        let names_one =
            ["pack", "session", "plan", "segment", "number"].iter().any(|end| self.what.ends_with(end));
        if names_one { write!(f, " {}", self.detail) } else { Ok(()) }
    }
}

impl Model {
    /// The same scenario without one rule.
    #[must_use]
    pub fn without(&self, rule: Rule) -> Model {
        Model { rules: self.rules.without(rule), ..self.clone() }
    }

    /// Searches every reachable state, up to `limit` of them.
    pub fn check(&self, limit: usize) -> Outcome<Step> {
        explore(self.initial(), |s, out| self.distinct_successors(s, out), |s| self.invariant(s), limit)
    }

    fn distinct_successors(&self, s: &State, out: &mut Next) {
        self.successors(s, out);
        if self.alike.is_empty() {
            return;
        }
        for (_, next) in out {
            next.actors[self.alike.clone()].sort_unstable_by_key(|memory| match memory {
                Memory::Keeper(keeper) => Some(*keeper),
                _ => None,
            });
        }
    }

    /// The state before anybody's first step.
    pub fn initial(&self) -> State {
        assert!(self.roles.len() <= ACTORS, "scenario `{}` has too many actors", self.name);
        let mut state = self.store;
        for (memory, role) in state.actors.iter_mut().zip(&self.roles) {
            *memory = match role {
                Role::Writer(spec) => Memory::Writer(WriterState::first(spec)),
                Role::Keeper(spec) => {
                    Memory::Keeper(spec.stalled.map_or(KeeperState::start(), KeeperState::stalled))
                }
                Role::Merger(_) => Memory::Merger(MergerState::start()),
                Role::PlanMerger => Memory::PlanMerger(PlanMergerState::start()),
                Role::Retirer(_) => Memory::None,
                Role::Reader(_) => Memory::Reader(ReaderState::start()),
                Role::Tidier => Memory::Tidier(TidierState::start(self)),
                Role::Sweeper(_) => Memory::Sweeper(SweeperState::start()),
            };
        }
        state
    }

    pub(crate) fn push(&self, out: &mut Next, me: usize, what: &'static str, detail: u8, next: State) {
        let actor = self.roles.get(me).map_or("keeper", Role::noun);
        out.push((Step { actor, index: me, what, detail }, next));
    }

    fn successors(&self, s: &State, out: &mut Next) {
        for (me, role) in self.roles.iter().enumerate() {
            match (role, &s.actors[me]) {
                (Role::Writer(spec), Memory::Writer(w)) => writer::steps(self, s, me, spec, w, out),
                (Role::Keeper(spec), Memory::Keeper(k)) => keeper::steps(self, s, me, spec, k, out),
                (Role::Merger(spec), Memory::Merger(m)) => mergers::merger_steps(self, s, me, spec, m, out),
                (Role::PlanMerger, Memory::PlanMerger(m)) => mergers::plan_merger_steps(self, s, me, m, out),
                (Role::Reader(spec), Memory::Reader(r)) => reader::steps(self, s, me, spec, r, out),
                (Role::Tidier, Memory::Tidier(t)) => tidy::tidier_steps(self, s, me, t, out),
                (Role::Sweeper(spec), Memory::Sweeper(w)) => tidy::sweeper_steps(self, s, me, spec, w, out),
                (Role::Retirer(session), _) => self.retire(s, me, *session, out),
                _ => {}
            }
        }
        self.late_requests(s, out);
    }

    fn retire(&self, s: &State, me: usize, session: usize, out: &mut Next) {
        let ended = matches!(s.sessions[session].end, End::Snapshot | End::Checkpoint);
        if ended && s.actors[me] == Memory::None && s.retired & (1 << session) == 0 {
            let mut next = *s;
            next.retired |= 1 << session;
            self.push(out, me, "retires session", session as u8, next);
        }
    }

    /// The store applies requests whose senders no longer wait for them.
    fn late_requests(&self, s: &State, out: &mut Next) {
        let mut land = |what, detail: usize, next: State| {
            out.push((Step { actor: "store", index: 0, what, detail: detail as u8 }, next));
        };
        for pack in bits(s.late_puts) {
            let late_puts = s.late_puts & !(1 << pack);
            land("applies a late put of pack", pack, State { packs: s.packs | 1 << pack, late_puts, ..*s });
        }
        for pack in bits(s.late_deletes) {
            let late_deletes = s.late_deletes & !(1 << pack);
            land(
                "applies a late delete of pack",
                pack,
                State { packs: s.packs & !(1 << pack), late_deletes, ..*s },
            );
        }
        for segment in bits(s.late_entries) {
            let mut next = State { late_entries: s.late_entries & !(1 << segment), ..*s };
            next.segments[segment] = 1 << segment;
            land("applies a late put of segment", segment, next);
        }
        for n in bits(s.late_plans) {
            let mut next = State { late_plans: s.late_plans & !(1 << n), ..*s };
            next.plans[n].present = true;
            land("applies a late put of plan", n, next);
        }
        for slot in bits(s.late_commits) {
            let mut next = State { late_commits: s.late_commits & !(1 << slot), ..*s };
            if next.sessions[slot].end == End::None || !self.rules.has(Rule::ConditionalCommit) {
                next.sessions[slot].end = End::Snapshot;
            }
            land("applies a late commit of session", slot, next);
        }
    }

    /// Chunks that a keeper of a store, which honours the retirements `retired`, takes for live.
    pub fn live(&self, s: &State, side: Side, retired: u8) -> Chunks {
        let retired = retired | self.retired_elsewhere(s);
        let unseen = s.sealed_open | !side.sessions;
        let roots = s.sessions.iter().enumerate().filter(|(slot, session)| match session.end {
            _ if unseen & (1 << slot) != 0 => false,
            End::Snapshot => retired & (1 << slot) == 0,
            End::Checkpoint => retired & (1 << slot) == 0 && !self.superseded(s, *slot),
            End::None | End::IndexOnly | End::Fence => false,
        });
        roots.fold(0, |all, (_, session)| all | session.chunks)
    }

    /// Sessions of copiers whose original is retired in its own store, which must not count.
    fn retired_elsewhere(&self, s: &State) -> u8 {
        if self.rules.has(Rule::ForeignRetirements) || s.retired & 1 == 0 {
            return 0;
        }
        let copies = self.roles.iter().filter_map(|role| match role {
            Role::Writer(spec) if spec.kind == WriterKind::Copier => Some(spec),
            _ => None,
        });
        let slots = copies.flat_map(|spec| spec.session..=spec.session + usize::from(spec.restarts));
        slots.fold(0, |all, slot| all | 1 << slot)
    }

    /// Whether a later session of the same writer has taken the place of the checkpoint in `slot`.
    fn superseded(&self, s: &State, slot: usize) -> bool {
        let attempts = self.roles.iter().find_map(|role| match role {
            Role::Writer(spec) if spec.session == slot => Some(spec.restarts),
            _ => None,
        });
        let own = slot + 1..=slot + usize::from(attempts.unwrap_or(0));
        let later = if self.rules.has(Rule::SupersededByName) { own } else { slot + 1..=SESSIONS - 1 };
        let claimed = |later: usize| s.claims & (1 << later) != 0;
        later.into_iter().any(|later| match s.sessions[later].end {
            End::Snapshot => true,
            _ => claimed(later) && !self.rules.has(Rule::CheckpointUntilCommit),
        })
    }

    /// [`Model::sound`], and a lone keeper can mend what crashed keepers left behind.
    pub fn invariant(&self, s: &State) -> Result<(), String> {
        self.sound(s)?;
        self.rescuer.as_ref().map_or(Ok(()), |spec| crate::rescue::check(self, spec, s))
    }

    /// Every chunk of every committed snapshot that is not retired can be resolved and fetched, and no reader was
    /// told otherwise.
    pub fn sound(&self, s: &State) -> Result<(), String> {
        let snapshots = s
            .sessions
            .iter()
            .enumerate()
            .filter(|(slot, session)| session.end == End::Snapshot && s.retired & (1 << slot) == 0);
        for (slot, session) in snapshots {
            let resolvable = s.resolvable(self.side_of(slot));
            let lost = each_chunk(session.chunks).find(|c| s.holding(resolvable, *c) == 0);
            if let Some(chunk) = lost {
                return Err(format!("snapshot of session {slot} has lost chunk {}", chunk.trailing_zeros()));
            }
        }
        self.no_lie(s)?;
        self.no_false_alarm(s)
    }

    /// The store of a session.
    fn side_of(&self, slot: usize) -> Side {
        let [first, second] = self.sides;
        if first.sessions & (1 << slot) != 0 { first } else { second }
    }

    /// No writer reports a snapshot that nobody sees, and no keeper takes a checkpoint from a capture at work.
    fn no_lie(&self, s: &State) -> Result<(), String> {
        let keepers_retire = self.roles.iter().any(|role| matches!(role, Role::Tidier));
        for pair in self.roles.iter().zip(&s.actors) {
            let (Role::Writer(spec), Memory::Writer(w)) = pair else { continue };
            if w.at == writer::At::Misled {
                return Err("a backup was reported, and nobody sees its snapshot".into());
            }
            if keepers_retire && w.has_lost_its_checkpoint(spec, s) {
                return Err("a capture at work has lost its checkpoint".into());
            }
        }
        Ok(())
    }

    fn no_false_alarm(&self, s: &State) -> Result<(), String> {
        let mut readers = self.roles.iter().zip(&s.actors);
        let wrong = readers.any(|pair| match pair {
            (Role::Reader(spec), Memory::Reader(r)) => {
                let live =
                    s.sessions[spec.session].end == End::Snapshot && s.retired & (1 << spec.session) == 0;
                live && r.at == reader::At::Damage
            }
            _ => false,
        });
        if wrong { Err("a reader reports a sound snapshot as damaged".into()) } else { Ok(()) }
    }
}

impl Role {
    fn noun(&self) -> &'static str {
        match self {
            Role::Writer(spec) => match spec.kind {
                WriterKind::Backup => "writer",
                WriterKind::Copier => "copier",
                WriterKind::Undo => "undo",
            },
            Role::Keeper(_) => "keeper",
            Role::Merger(_) => "index merge",
            Role::PlanMerger => "plan merge",
            Role::Retirer(_) => "owner",
            Role::Reader(_) => "reader",
            Role::Tidier | Role::Sweeper(_) => "keeper",
        }
    }
}
