//! The scenarios that are searched, small enough for every test run or large for an evening.

use crate::keeper::KeeperSpec;
use crate::mergers::MergerSpec;
use crate::model::{Model, Role};
use crate::reader::ReaderSpec;
use crate::rules::Rules;
use crate::state::{ACTORS, Chunks, End, Mask, Memory, PACKS, PLANS, Plan, SESSIONS, Session, Side, State};
use crate::tidy::SweeperSpec;
use crate::writer::{WriterKind, WriterSpec};

const A: Chunks = 1;
const B: Chunks = 2;

/// How much is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Seconds in all: the test suite.
    Small,
    /// Minutes, and some gigabytes of memory.
    Large,
    /// The one scenario with three writers and three keepers; more memory, and longer.
    Crowd,
}

/// Every scenario of a size, with all rules in force.
pub fn all(size: Size) -> Vec<Model> {
    if size == Size::Crowd {
        return vec![crowd(3, 3)];
    }
    let large = size == Size::Large;
    vec![
        writers(large),
        late(large),
        duplicate(large),
        stray_entry(large),
        takeover(large),
        stalled_keeper(large),
        forget(large),
        repack(large),
        checkpoint(large),
        abandoned(large),
        ledger(large),
        resume(large),
        index_merge(large),
        plan_merge(large),
        plan_names(large),
        stalled_merge(large),
        shrinking_plans(large),
        shrinking_resume(large),
        undo(large),
        copy(large),
        reader(large),
        crowd(if large { 3 } else { 2 }, 2),
    ]
}

/// The scenario of that name.
pub fn named(size: Size, name: &str) -> Option<Model> {
    all(size).into_iter().find(|model| model.name == name)
}

/// Backups that would like to reuse a pack nobody references any more, and keepers that condemn it.
fn writers(large: bool) -> Model {
    let store = store(&[A], None);
    let mut roles = vec![writer(A, 1, 1, 1), keeper(&[0b1]), keeper(&[0b1])];
    if large {
        roles.push(writer(A, 3, 3, 1));
    }
    model("writers", store, roles)
}

/// The same with requests that are applied twice or after their sender's death.
fn late(large: bool) -> Model {
    let roles = vec![crashing(A, 1, 1, if large { 2 } else { 1 }), keeper(&[0b1, 0b10, 0b11])];
    Model { late: true, ..model("late requests", store(&[A], None), roles) }
}

/// A live chunk in two packs, and keepers that each condemn one of them; a crashed plan is never touched.
fn duplicate(large: bool) -> Model {
    let choices: &'static [Mask] = &[0b1, 0b10, 0b11];
    let mut roles = vec![keeper(choices), keeper(choices)];
    if large {
        roles.push(keeper(choices));
    } else {
        roles.push(writer(A, 1, 2, 1));
    }
    let rescuer = KeeperSpec { repacks: true, session: 7, pack: 7, ..keeper_spec(choices) };
    Model { rescuer: Some(rescuer), ..model("duplicate", store(&[A, A], Some(A)), roles) }
}

/// The same where keepers decide and finish each other's plans.
fn takeover(large: bool) -> Model {
    let choices: &'static [Mask] = &[0b1, 0b10, 0b11];
    let spec = KeeperSpec { takes_over: true, ..keeper_spec(choices) };
    let mut roles = vec![Role::Keeper(spec), Role::Keeper(spec), writer(A, 1, 2, 1)];
    if large {
        roles.push(Role::Keeper(spec));
    }
    Model { rescuer: Some(spec), ..model("takeover", store(&[A, A], None), roles) }
}

/// A keeper that stalled before its verdict; meanwhile its chunk went live in another pack.
fn stalled_keeper(large: bool) -> Model {
    let spec = |choices| KeeperSpec { takes_over: true, ..keeper_spec(choices) };
    let stalled = KeeperSpec { stalled: Some(0), ..spec(&[]) };
    let mut roles = vec![Role::Keeper(stalled), Role::Keeper(spec(&[])), Role::Keeper(spec(&[0b10]))];
    if large {
        roles.push(Role::Keeper(spec(&[0b1, 0b10])));
    }
    let mut store = store(&[A, A], Some(A));
    store.plans[0] = Plan { used: true, present: true, condemned: 0b1, ..Plan::default() };
    model("stalled keeper", store, roles)
}

/// A fenced writer that still writes the index entry of a pack which a keeper has already judged.
fn stray_entry(large: bool) -> Model {
    let mut roles = vec![writer(A, 1, 1, 0), keeper(&[0b1]), keeper(&[0b10])];
    if large {
        roles.push(keeper(&[0b1, 0b10]));
    }
    model("stray entry", store(&[A], Some(A)), roles)
}

/// A snapshot that is forgotten at any moment of a prune.
fn forget(large: bool) -> Model {
    let mut roles = vec![keeper(&[0b1]), keeper(&[0b1]), Role::Retirer(0), writer(A, 1, 1, 1)];
    if large {
        roles.push(keeper(&[0b1]));
    }
    model("forget", store(&[A], Some(A)), roles)
}

/// A pack that is half dead and gets repacked while others prune and write.
fn repack(large: bool) -> Model {
    let spec = |slot| {
        let choices: &'static [Mask] = &[0b1, 0b10, 0b100, 0b11];
        Role::Keeper(KeeperSpec { repacks: true, session: slot, pack: slot, ..keeper_spec(choices) })
    };
    let mut roles = vec![spec(1), spec(2)];
    if large {
        roles.push(writer(B, 3, 3, 1));
    }
    model("repack", store(&[A | B], Some(A)), roles)
}

/// A long capture with a checkpoint, which an owner may retire at any time.
fn checkpoint(large: bool) -> Model {
    let spec = WriterSpec { checkpoint: A, ..writer_spec(A | B, 1, 2, 2) };
    let mut roles = vec![Role::Writer(spec), keeper(&[0b1, 0b10]), Role::Retirer(1), writer(B, 4, 5, 0)];
    if large {
        roles.push(keeper(&[0b1, 0b10]));
    }
    model("checkpoint", store(&[A, B], None), roles)
}

/// Captures of one writer, dead and alive, while keepers retire the checkpoints of those that died.
fn abandoned(large: bool) -> Model {
    let capture =
        WriterSpec { checkpoint: A, crashes: true, ..writer_spec(A | B, 1, 2, if large { 3 } else { 2 }) };
    let mut roles = vec![Role::Writer(capture), Role::Tidier, keeper(&[0b1])];
    if large {
        roles.push(Role::Tidier);
    }
    model("abandoned", store(&[A, B], None), roles)
}

/// Two processes of one writer, one of which may have chosen its number long ago, while ends are sealed and claims go.
fn ledger(large: bool) -> Model {
    let process = |pack| Role::Writer(WriterSpec { shares_numbers: true, ..writer_spec(A, 1, pack, 2) });
    let mut roles =
        vec![process(1), process(4), keeper(&[0b1]), Role::Sweeper(SweeperSpec { first: 1, last: 3 })];
    if large {
        roles.push(Role::Sweeper(SweeperSpec { first: 1, last: 3 }));
    }
    model("ledger", store(&[A], None), roles)
}

/// A writer that crashes anywhere and resumes from the packs it left.
fn resume(large: bool) -> Model {
    let roles =
        vec![crashing(A, 1, 1, if large { 2 } else { 1 }), keeper(&[0b10, 0b100]), keeper(&[0b10, 0b100])];
    Model { late: large, ..model("resume", store(&[], None), roles) }
}

/// Segments merged, and dead entries dropped, while others write and prune.
fn index_merge(large: bool) -> Model {
    let merger = |segment| Role::Merger(MergerSpec { segment, drops: true });
    let mut roles = vec![writer(A | B, 1, 2, 1), keeper(&[0b1, 0b11]), merger(6)];
    if large {
        roles.push(merger(7));
    }
    Model { late: large, ..model("index merge", store(&[A, B], Some(B)), roles) }
}

/// Plans merged while others read and prune.
fn plan_merge(large: bool) -> Model {
    let spec = |choices| KeeperSpec { takes_over: large, ..keeper_spec(choices) };
    let keepers: [&'static [Mask]; 2] = if large { [&[0b1, 0b10], &[0b1, 0b10]] } else { [&[0b1], &[0b10]] };
    let roles = vec![
        writer(A, 1, 2, 0),
        Role::Keeper(spec(keepers[0])),
        Role::Keeper(spec(keepers[1])),
        Role::PlanMerger,
    ];
    Model { plans_in_pages: true, first_plan: 1, ..model("plan merge", store(&[A, A], None), roles) }
}

/// A keeper that chose its plan's number long ago, while that plan number lives and goes.
fn plan_names(large: bool) -> Model {
    let spec = |choices| KeeperSpec { takes_over: large, ..keeper_spec(choices) };
    let roles = vec![Role::Keeper(spec(&[0b1])), Role::Keeper(spec(&[0b10])), Role::PlanMerger];
    Model { plans_in_pages: true, first_plan: 1, ..model("plan names", store(&[A, B], Some(B)), roles) }
}

/// A stalled keeper whose plan is decided otherwise and merged away before it wakes up, and comes back by a late
/// request.
fn stalled_merge(large: bool) -> Model {
    let stalled = stalled_keeper(false);
    let mut roles = stalled.roles;
    roles.push(Role::PlanMerger);
    if large {
        roles.push(Role::Merger(MergerSpec { segment: 7, drops: true }));
    }
    let store = State { late_plans: 0b1, ..stalled.store };
    Model { name: "stalled merge", roles, store, plans_in_pages: true, ..stalled }
}

/// Plans that may lose names again (with the rule against it switched off): packs gone from listing and index.
fn shrinking_plans(large: bool) -> Model {
    let merger = |segment| Role::Merger(MergerSpec { segment, drops: true });
    let mut roles = vec![writer(A, 1, 1, 0), keeper(&[0b1]), Role::PlanMerger, merger(6)];
    if large {
        roles.push(merger(7));
    }
    Model { first_plan: 1, ..model("shrinking plans", store(&[A], None), roles) }
}

/// The same for a writer that resumes from a pack no index names.
fn shrinking_resume(large: bool) -> Model {
    let mut roles = vec![crashing(A, 1, 1, 1), keeper(&[0b10]), Role::PlanMerger];
    if large {
        roles.push(keeper(&[0b10, 0b100]));
    }
    Model { first_plan: 1, ..model("shrinking resume", store(&[], None), roles) }
}

/// A retirement that is taken back while keepers act on it.
fn undo(large: bool) -> Model {
    let undo = WriterSpec { kind: WriterKind::Undo, ..writer_spec(A, 1, 2, u8::from(large)) };
    let mut roles = vec![Role::Writer(undo), keeper(&[0b1]), keeper(&[0b10])];
    if large {
        roles.push(writer(A, 3, 4, 1));
    }
    let mut store = store(&[A, A], Some(A));
    store.retired = 1;
    model("undo", store, roles)
}

/// Two stores, each with its snapshots, plans and keeper; a snapshot is copied from the first to the second while it is
/// forgotten and pruned in the first, and while the second is pruned.
fn copy(large: bool) -> Model {
    let origin = Side { packs: 0b111, sessions: 0b11, plans: 0b11 };
    let target = Side { packs: !0b111, sessions: !0b11, plans: 0b1100 };
    let copier = WriterSpec { kind: WriterKind::Copier, store: 1, ..writer_spec(A, 3, 5, 1) };
    let there = KeeperSpec { store: 1, ..keeper_spec(&[0b1000, 0b1_0000, 0b10_0000]) };
    let mut roles = vec![Role::Writer(copier), Role::Keeper(there), keeper(&[0b1, 0b10]), Role::Retirer(0)];
    if large {
        roles.push(Role::Keeper(there));
    }
    let mut store = store(&[A, A], Some(A));
    store.packs |= 0b1_1000;
    (store.content[3], store.content[4]) = (A, B);
    store.segments[3] = 0b1_1000;
    store.sessions[2] = Session { end: End::Snapshot, chunks: B };
    Model { sides: [origin, target], ..model("copy", store, roles) }
}

/// A long restore while packs are repacked under it.
fn reader(large: bool) -> Model {
    let reader = Role::Reader(ReaderSpec { session: 0, chunk: A });
    let spec = |slot| {
        let choices: &'static [Mask] = &[0b1, 0b10];
        Role::Keeper(KeeperSpec { repacks: true, session: slot, pack: slot, ..keeper_spec(choices) })
    };
    let mut roles = vec![reader, spec(1), spec(2)];
    if large {
        roles.push(Role::Merger(MergerSpec { segment: 7, drops: true }));
    }
    model("reader", store(&[A], Some(A)), roles)
}

/// Many writers with a backup each, which would all like to reuse what each of many keepers condemns.
fn crowd(writers: usize, keepers: usize) -> Model {
    let mut roles = vec![keeper(&[0b1]); keepers];
    roles.extend((1..=writers).map(|n| writer(A, n, n, 0)));
    Model { alike: 0..keepers, ..model("crowd", store(&[A], None), roles) }
}

fn model(name: &'static str, store: State, roles: Vec<Role>) -> Model {
    Model {
        name,
        roles,
        rules: Rules::ALL,
        store,
        late: false,
        plans_in_pages: false,
        first_plan: 0,
        sides: [Side::WHOLE; 2],
        rescuer: None,
        alike: 0..0,
    }
}

/// A store with these packs, all in segment 0, and perhaps a snapshot in session 0.
fn store(packs: &[Chunks], snapshot: Option<Chunks>) -> State {
    let existing = ((1u16 << packs.len()) - 1) as Mask;
    let mut content = [0; PACKS];
    content[..packs.len()].copy_from_slice(packs);
    let mut segments = [0; PACKS];
    segments[0] = existing;
    let mut sessions = [Session::default(); SESSIONS];
    if let Some(chunks) = snapshot {
        sessions[0] = Session { end: End::Snapshot, chunks };
    }
    State {
        packs: existing,
        content,
        segments,
        plans: [Plan::default(); PLANS],
        sessions,
        claims: u8::from(snapshot.is_some()),
        sealed: 0,
        sealed_open: 0,
        ends_gone: 0,
        retired: 0,
        late_puts: 0,
        late_entries: 0,
        late_commits: 0,
        late_plans: 0,
        late_deletes: 0,
        actors: [Memory::None; ACTORS],
    }
}

fn keeper_spec(choices: &'static [Mask]) -> KeeperSpec {
    KeeperSpec { store: 0, choices, takes_over: false, repacks: false, stalled: None, session: 0, pack: 0 }
}

fn keeper(choices: &'static [Mask]) -> Role {
    Role::Keeper(keeper_spec(choices))
}

fn writer_spec(want: Chunks, session: usize, pack: usize, restarts: u8) -> WriterSpec {
    WriterSpec {
        want,
        checkpoint: 0,
        store: 0,
        session,
        pack,
        restarts,
        crashes: false,
        shares_numbers: false,
        kind: WriterKind::Backup,
    }
}

fn writer(want: Chunks, session: usize, pack: usize, restarts: u8) -> Role {
    Role::Writer(writer_spec(want, session, pack, restarts))
}

fn crashing(want: Chunks, session: usize, pack: usize, restarts: u8) -> Role {
    Role::Writer(WriterSpec { crashes: true, ..writer_spec(want, session, pack, restarts) })
}
