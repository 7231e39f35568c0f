//! Keepers: repack, plan, fence, rescan, verdict, delete.

use crate::model::{Model, Next};
use crate::plans::{PlanCursor, Reading};
use crate::rules::Rule;
use crate::state::{Chunks, End, Mask, Memory, Plan, Side, State, bits, each_chunk};

/// What a keeper may do, and the slots it may use.
#[derive(Debug, Clone, Copy)]
pub struct KeeperSpec {
    /// The store it prunes.
    pub store: usize,
    /// Sets of packs it may choose to condemn. There is no scan in the model: *any* existing set is a possible
    /// result of one, however stale, so what is safe here is safe whatever the scan believed.
    pub choices: &'static [Mask],
    /// May decide and finish plans of other keepers.
    pub takes_over: bool,
    /// May copy live chunks out of packs.
    pub repacks: bool,
    /// It wakes up just before the verdict of this plan, having found nothing to keep.
    pub stalled: Option<usize>,
    /// Its slot for a repack session.
    pub session: usize,
    /// Its slot for the pack of a repack.
    pub pack: usize,
}

/// Where a keeper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum At {
    /// About to read the retirements.
    Retirements,
    /// About to claim a session for a repack.
    CopyClaim,
    /// About to upload the copy.
    CopyPut,
    /// About to write the copy's index segment.
    CopyEntry,
    /// About to end the repack session.
    CopyCommit,
    /// About to choose a number for its plan, or somebody else's plan.
    Pick,
    /// About to create the plan.
    Create,
    /// About to list sessions.
    Sessions,
    /// Waiting for the listed sessions, or fencing them.
    Ends,
    /// About to read all commits.
    Commits,
    /// About to read the index.
    Index,
    /// Reading the other plans.
    Plans,
    /// About to create the verdict.
    Verdict,
    /// Deleting.
    Delete,
    /// Finished, or crashed for good.
    Done,
}

/// What a keeper remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeeperState {
    /// Where it is.
    pub at: At,
    retired: u8,
    plan: u8,
    wait: u8,
    plans: PlanCursor,
    live: Chunks,
    indexed: Mask,
    keep: Mask,
    copy: Chunks,
    copied: bool,
    rescanned: bool,
}

impl KeeperState {
    /// A keeper before its first step.
    pub fn start() -> Self {
        Self {
            at: At::Retirements,
            retired: 0,
            plan: 0,
            wait: 0,
            plans: PlanCursor::START,
            live: 0,
            indexed: 0,
            keep: 0,
            copy: 0,
            copied: false,
            rescanned: false,
        }
    }

    /// A keeper that takes over plan `plan`.
    pub fn taking_over(plan: usize, retired: u8) -> Self {
        Self { at: At::Sessions, plan: plan as u8, retired, ..Self::start() }
    }

    /// A keeper that found nothing to keep in plan `plan` and has stalled before its verdict.
    pub fn stalled(plan: usize) -> Self {
        Self { at: At::Verdict, plan: plan as u8, ..Self::start() }
    }

    /// A keeper that repacks `chunks`.
    pub fn copying(chunks: Chunks) -> Self {
        Self { at: At::CopyClaim, copy: chunks, ..Self::start() }
    }

    fn done() -> Self {
        Self { at: At::Done, ..Self::start() }
    }
}

/// Appends the possible steps of keeper `me`.
pub fn steps(model: &Model, s: &State, me: usize, spec: &KeeperSpec, k: &KeeperState, out: &mut Next) {
    let keeper = Keeper { model, s, me, spec, k: *k };
    match k.at {
        At::Retirements => keeper.read_retirements(out),
        At::CopyClaim => keeper.copy_claim(out),
        At::CopyPut => keeper.copy_put(out),
        At::CopyEntry => keeper.copy_entry(out),
        At::CopyCommit => keeper.copy_commit(out),
        At::Pick => keeper.pick(out),
        At::Create => keeper.create(out),
        At::Sessions => keeper.list_sessions(out),
        At::Ends => keeper.wait_or_fence(out),
        At::Commits => keeper.read_commits(out),
        At::Index => keeper.read_index(out),
        At::Plans => keeper.read_plans(out),
        At::Verdict => keeper.verdict(out),
        At::Delete => keeper.delete(out),
        At::Done => {}
    }
}

struct Keeper<'a> {
    model: &'a Model,
    s: &'a State,
    me: usize,
    spec: &'a KeeperSpec,
    k: KeeperState,
}

impl Keeper<'_> {
    fn has(&self, rule: Rule) -> bool {
        self.model.rules.has(rule)
    }

    fn push(
        &self,
        out: &mut Next,
        what: &'static str,
        detail: u8,
        k: KeeperState,
        change: impl FnOnce(&mut State),
    ) {
        let mut next = *self.s;
        next.actors[self.me] = Memory::Keeper(k);
        change(&mut next);
        self.model.push(out, self.me, what, detail, next);
    }

    fn repacks_before_plan(&self) -> bool {
        self.has(Rule::RepackGuarded) && self.has(Rule::RepackBeforePlan)
    }

    fn repacks_in_session(&self) -> bool {
        self.has(Rule::RepackGuarded) && self.has(Rule::RepackInSession)
    }

    fn side(&self) -> Side {
        self.model.sides[self.spec.store]
    }

    fn own_plan(&self) -> Plan {
        self.s.plans[usize::from(self.k.plan)]
    }

    fn read_retirements(&self, out: &mut Next) {
        let retired = self.s.retired;
        let at = if self.has(Rule::PlanBeforeSessions) { At::Pick } else { At::Sessions };
        let k = KeeperState { at, retired, ..self.k };
        self.push(out, "reads the retirements:", retired, k, |_| {});
        if self.spec.repacks && self.repacks_before_plan() {
            for copy in each_chunk(self.model.live(self.s, self.side(), retired)) {
                let k = KeeperState { at: self.first_copy_step(), retired, copy, ..self.k };
                self.push(out, "reads the retirements, will repack chunk", copy, k, |_| {});
            }
        }
    }

    fn first_copy_step(&self) -> At {
        if self.repacks_in_session() { At::CopyClaim } else { At::CopyPut }
    }

    fn copy_claim(&self, out: &mut Next) {
        let slot = self.spec.session;
        let k = KeeperState { at: At::CopyPut, ..self.k };
        self.push(out, "claims a repack session", slot as u8, k, |next| {
            next.claims |= 1 << slot;
        });
    }

    fn copy_put(&self, out: &mut Next) {
        let sources = each_chunk(self.k.copy).all(|c| self.s.holding(self.s.resolvable(self.side()), c) != 0);
        if !sources {
            return self.push(out, "finds nothing to copy from", 0, KeeperState::done(), |_| {});
        }
        let (pack, content) = (self.spec.pack, self.k.copy);
        let at = if self.has(Rule::RepackDurable) { At::CopyEntry } else { self.after_copy() };
        self.push(
            out,
            "copies live chunks into pack",
            pack as u8,
            KeeperState { at, copied: true, ..self.k },
            |n| {
                n.content[pack] = content;
                n.packs |= 1 << pack;
            },
        );
    }

    fn copy_entry(&self, out: &mut Next) {
        let pack = self.spec.pack;
        let at = match (self.has(Rule::RepackDurable), self.repacks_in_session()) {
            (false, _) => At::Done,
            (true, true) => At::CopyCommit,
            (true, false) => self.after_copy(),
        };
        let k =
            if at == At::Done { KeeperState::done() } else { KeeperState { at, copied: false, ..self.k } };
        self.push(
            out,
            "writes the index segment of pack",
            pack as u8,
            self.with_copied_released(k),
            |next| {
                next.segments[pack] = 1 << pack;
            },
        );
    }

    /// A copy made after the rescan replaces what the verdict would have kept.
    fn with_copied_released(&self, k: KeeperState) -> KeeperState {
        let replaces = k.rescanned && !self.repacks_in_session();
        KeeperState { keep: if replaces { 0 } else { k.keep }, ..k }
    }

    fn copy_commit(&self, out: &mut Next) {
        let slot = self.spec.session;
        let mut probe = *self.s;
        let at = self.after_copy();
        if probe.end_session(slot, End::IndexOnly) {
            let keep = if self.k.rescanned { 0 } else { self.k.keep };
            let k = KeeperState { at, keep, ..self.k };
            self.push(out, "commits the repack session", slot as u8, k, |n| {
                n.sessions[slot].end = End::IndexOnly
            });
        } else {
            let k = KeeperState { at, ..self.k };
            self.push(out, "is refused: its repack was fenced", slot as u8, k, |_| {});
        }
    }

    fn after_copy(&self) -> At {
        match (self.k.rescanned, self.has(Rule::PlanBeforeSessions)) {
            (true, _) => At::Verdict,
            (false, true) => At::Pick,
            (false, false) => At::Sessions,
        }
    }

    fn pick(&self, out: &mut Next) {
        if self.spec.takes_over {
            self.take_over(out);
        }
        if !self.has(Rule::OwnPlanOnlyRelease) {
            self.release_foreign(out);
        }
        let Some(n) = self.s.next_plan(self.side(), self.model.first_plan) else { return };
        let reserved = self.has(Rule::PlanNamesUnique);
        let k = KeeperState { at: At::Create, plan: n as u8, copy: 0, ..self.k };
        if self.model.plans_in_pages || !reserved {
            self.push(out, "chooses number", n as u8, k, |next| next.plans[n].used |= reserved);
        } else {
            Keeper { k, ..*self }.create(out);
        }
    }

    fn take_over(&self, out: &mut Next) {
        for (n, plan) in self.s.plans_of(self.side()) {
            let dead = plan.condemned & !plan.kept & self.s.packs;
            if !plan.decided {
                let k = KeeperState { plan: n as u8, copy: 0, ..self.k };
                let k = Keeper { k, ..*self }.after_plan();
                self.push(out, "takes over plan", n as u8, k, |_| {});
            } else if dead != 0 {
                let k =
                    KeeperState { at: At::Delete, plan: n as u8, keep: plan.kept, ..KeeperState::start() };
                self.push(out, "finishes decided plan", n as u8, k, |_| {});
            }
        }
    }

    fn release_foreign(&self, out: &mut Next) {
        for (n, _) in self.s.plans_of(self.side()).filter(|(_, plan)| !plan.decided) {
            self.push(out, "releases the packs of foreign plan", n as u8, KeeperState::done(), |next| {
                next.plans[n].kept = next.plans[n].condemned;
            });
        }
    }

    fn create(&self, out: &mut Next) {
        let n = usize::from(self.k.plan);
        if self.own_plan().present && !self.has(Rule::PlanNamesUnique) {
            let k = KeeperState { at: At::Pick, plan: 0, ..self.k };
            return self.push(out, "finds the number taken", n as u8, k, |_| {});
        }
        for condemned in self.spec.choices.iter().copied().filter(|set| set & !self.s.packs == 0) {
            self.push(out, "creates its plan, condemning packs", condemned, self.after_plan(), |next| {
                let old = next.plans[n];
                next.plans[n] = Plan { used: true, present: true, condemned, ..old };
            });
        }
    }

    fn after_plan(&self) -> KeeperState {
        let at = match (self.has(Rule::PlanBeforeSessions), self.has(Rule::RescanAfterFence)) {
            (false, _) => At::Ends,
            (true, true) => At::Sessions,
            (true, false) => self.rescan_start(),
        };
        KeeperState { at, ..self.k }
    }

    fn list_sessions(&self, out: &mut Next) {
        let wait = self.s.open_sessions(self.side());
        let at = if self.has(Rule::PlanBeforeSessions) { At::Ends } else { At::Pick };
        self.push(out, "lists open sessions:", wait, KeeperState { at, wait, ..self.k }, |_| {});
    }

    fn wait_or_fence(&self, out: &mut Next) {
        let open = self.k.wait & self.s.open_sessions(self.side());
        if open == 0 || !self.has(Rule::FenceOrWait) {
            let at = if self.has(Rule::RescanAfterFence) { self.rescan_start() } else { self.after_rescan() };
            let wait = if self.has(Rule::FencesStay) { 0 } else { self.k.wait };
            let what =
                if open == 0 { "sees all listed sessions ended" } else { "takes open sessions for dead" };
            return self.push(out, what, open, KeeperState { at, wait, ..self.k }, |_| {});
        }
        for slot in bits(open) {
            self.push(out, "fences session", slot as u8, self.k, |next| next.sessions[slot].end = End::Fence);
        }
    }

    fn rescan_start(&self) -> At {
        if self.has(Rule::RescanPlansLast) { At::Commits } else { At::Plans }
    }

    fn read_commits(&self, out: &mut Next) {
        let retired = if self.has(Rule::RetirementsFirst) { self.k.retired } else { self.s.retired };
        let live = self.model.live(self.s, self.side(), retired);
        self.push(
            out,
            "reads all commits; live chunks:",
            live,
            KeeperState { at: At::Index, live, ..self.k },
            |_| {},
        );
    }

    fn read_index(&self, out: &mut Next) {
        let copied = if self.k.copied { 1 << self.spec.pack } else { 0 };
        let indexed = self.s.indexed(self.side()) | copied;
        let k = KeeperState { at: At::Plans, indexed, ..self.k };
        if self.has(Rule::RescanPlansLast) {
            return self.push(out, "reads the index:", indexed, k, |_| {});
        }
        Keeper { k, ..*self }.decide(self.k.plans.doomed, out);
    }

    fn read_plans(&self, out: &mut Next) {
        let own = Some(usize::from(self.k.plan));
        for reading in self.k.plans.advance(self.model, self.s, self.side(), own) {
            match reading {
                Reading::More(plans, what, set) => {
                    self.push(out, what, set, KeeperState { plans, ..self.k }, |_| {});
                }
                Reading::Finished(plans) => {
                    let doomed = if self.has(Rule::RescanCountsPlans) { plans.doomed } else { 0 };
                    if self.has(Rule::RescanPlansLast) {
                        self.decide(doomed, out);
                    } else {
                        let plans = PlanCursor::found(doomed);
                        let k = KeeperState { at: At::Commits, plans, ..self.k };
                        self.push(out, "has read the other plans; doomed:", doomed, k, |_| {});
                    }
                }
            }
        }
    }

    /// Which packs must stay, given what was read. Local, hence part of the last reading.
    fn decide(&self, doomed: Mask, out: &mut Next) {
        let own = self.own_plan().condemned;
        let mut keep = 0;
        let mut unsafe_chunks = 0;
        for chunk in each_chunk(self.k.live) {
            let locations = self.s.holding(self.k.indexed, chunk);
            if locations == 0 {
                return self.push(
                    out,
                    "finds a chunk without a location and stops",
                    chunk,
                    KeeperState::done(),
                    |_| {},
                );
            }
            if locations & !own & !doomed == 0 {
                keep |= locations & own;
                unsafe_chunks |= chunk;
            }
        }
        let read = KeeperState { retired: 0, plans: PlanCursor::START, live: 0, indexed: 0, ..self.k };
        let k = KeeperState { keep, rescanned: true, ..read };
        let at = if self.has(Rule::RescanAfterFence) { self.after_rescan() } else { At::Sessions };
        self.push(out, "has rescanned; must keep packs", keep, KeeperState { at, ..k }, |_| {});
        if self.spec.repacks && !self.repacks_before_plan() && keep != 0 {
            let k = KeeperState { at: self.first_copy_step(), copy: unsafe_chunks, ..k };
            self.push(out, "has rescanned; will copy chunks", unsafe_chunks, k, |_| {});
        }
    }

    fn after_rescan(&self) -> At {
        if self.has(Rule::VerdictBeforeDelete) { At::Verdict } else { At::Delete }
    }

    fn verdict(&self, out: &mut Next) {
        let plan = self.own_plan();
        let n = usize::from(self.k.plan);
        let at = if self.has(Rule::VerdictBeforeDelete) { At::Delete } else { At::Done };
        let k = KeeperState { at, copy: 0, rescanned: false, ..self.k };
        let k = if at == At::Done { KeeperState::done() } else { k };
        if !plan.decided {
            let keep = self.k.keep;
            self.push(out, "creates the verdict, releasing", keep, k, |next| {
                next.plans[n].decided = true;
                next.plans[n].kept = keep;
            });
        } else if self.has(Rule::VerdictBinding) {
            let k = KeeperState { keep: plan.kept, ..k };
            self.push(out, "finds a verdict and obeys it: releasing", plan.kept, k, |_| {});
        } else {
            self.push(out, "finds a verdict and goes by its own", plan.kept, k, |_| {});
        }
    }

    fn delete(&self, out: &mut Next) {
        let condemned = self.own_plan().condemned & !self.k.keep & self.s.packs;
        let Some(pack) = bits(condemned).next() else { return self.finish(out) };
        self.push(out, "deletes pack", pack as u8, self.k, |next| next.packs &= !(1 << pack));
        if self.model.late {
            self.push(out, "deletes, with a second request under way, pack", pack as u8, self.k, |next| {
                next.packs &= !(1 << pack);
                next.late_deletes |= 1 << pack;
            });
        }
    }

    fn finish(&self, out: &mut Next) {
        let at = match (self.has(Rule::VerdictBeforeDelete), self.k.copied) {
            (false, _) => At::Verdict,
            (true, true) => At::CopyEntry,
            (true, false) => At::Done,
        };
        let k = if at == At::Done { KeeperState::done() } else { KeeperState { at, ..self.k } };
        let (n, wait) = (usize::from(self.k.plan), self.k.wait);
        self.push(out, "has finished", 0, k, |next| {
            if !self.has(Rule::PlanNeverWithdrawn) {
                next.plans[n].present = false;
            }
            for slot in bits(wait).filter(|slot| self.s.sessions[*slot].end == End::Fence) {
                next.sessions[slot].end = End::None;
            }
        });
    }
}
