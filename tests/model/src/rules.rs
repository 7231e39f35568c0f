//! The rules of the protocol, each of which can be switched off to see what it prevents.

use std::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// One rule of the protocol in `docs/pruning.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Rule { $($(#[$doc])* $variant,)* }

        impl Rule {
            /// Every rule and caution, in the order of the table in `docs/pruning.md`.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant,)*];

            /// The name used in `docs/pruning.md` and in the output of the binary.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$variant => $name,)* }
            }
        }
    };
}

rules! {
    /// A writer claims its session before it reads plans or index. Off: afterwards.
    ClaimBeforeReading => "claim-before-reading",
    /// A writer reads the plans before the index. Off: the index first.
    PlansBeforeIndex => "plans-before-index",
    /// A writer that lists a plan and finds it gone lists again. Off: it goes on without it.
    RelistMissingPlan => "relist-missing-plan",
    /// A writer never reuses a chunk of a doomed pack. Off: any index entry will do.
    AvoidDoomed => "avoid-condemned",
    /// Names carry a random suffix. Off: same bytes, same name; "already exists" counts as stored.
    RandomSuffix => "random-suffix",
    /// The index segment is durable before the commit. Off: after it.
    IndexBeforeCommit => "index-before-commit",
    /// The commit is created only if the session has no end yet. Off: it overwrites a fence.
    ConditionalCommit => "conditional-commit",
    /// A pack of an earlier session counts only if a listing shows it. Off: the journal's word is enough.
    ResumeNeedsListing => "resume-needs-listing",
    /// That listing is made after reading the plans. Off: before.
    ListingAfterPlans => "resume-listing-after-plans",
    /// After a checkpoint plans and index are read anew. Off: knowledge of the session before is kept.
    ReloadAfterCheckpoint => "index-reload-after-checkpoint",
    /// A checkpoint is a root until a commit that supersedes it. Off: until the next session is claimed.
    CheckpointUntilCommit => "checkpoint-retired-after-next-commit",
    /// Only a commit that names the checkpoint supersedes it. Off: any later commit.
    SupersededByName => "checkpoint-superseded-by-name",
    /// The session in which a capture goes on is claimed before the checkpoint ends the last. Off: afterwards.
    ClaimBeforeEnd => "claim-before-checkpoint-end",
    /// A keeper retires only checkpoints whose writer has no open session. Off: any.
    AbandonedWithoutSession => "abandoned-without-session",
    /// It reads the ends, then lists the sessions. Off: the sessions first.
    AbandonedEndsFirst => "abandoned-ends-before-sessions",
    /// A writer counts its own checkpoint only if it reads, after the claim, that it is not retired.
    WriterReadsRetirements => "writer-reads-retirements",
    /// A keeper honours only retirements read before it lists sessions. Off: those of the rescan.
    RetirementsFirst => "retirements-read-first",
    /// No plan name is used twice, not even after a merge removed the plan. Off: a free number is taken again.
    PlanNamesUnique => "plan-names-never-reused",
    /// The plan is durable before sessions are listed. Off: sessions are listed first.
    PlanBeforeSessions => "plan-before-sessions",
    /// A keeper waits for, or fences, every session it listed. Off: it takes them for dead.
    FenceOrWait => "fence-or-wait",
    /// Fences stay. Off: the keeper tidies fenced sessions away.
    FencesStay => "fences-stay",
    /// Claims and beats are removed only of sessions that have an end. Off: of any.
    SweepOnlyEnded => "sweep-only-ended",
    /// Ends stay when a ledger holds them. Off: they are deleted.
    EndsStay => "ends-stay",
    /// A ledger reaches up to the first session without an end. Off: up to the newest end.
    LedgerWithoutGaps => "ledger-without-gaps",
    /// The keeper reads commits and index again after the fences. Off: what it knew at the plan decides.
    RescanAfterFence => "rescan-after-fence",
    /// The rescan reads commits, then the index, then the other plans. Off: the other plans first.
    RescanPlansLast => "rescan-reads-plans-last",
    /// A location in a pack that another plan dooms does not count. Off: it does.
    RescanCountsPlans => "rescan-counts-other-plans",
    /// The verdict is created before the first delete. Off: after the last.
    VerdictBeforeDelete => "verdict-before-delete",
    /// A keeper whose verdict is refused acts on the one that exists. Off: on its own.
    VerdictBinding => "verdict-binding",
    /// A verdict stays when its plan is merged. Off: it is deleted after the plan.
    VerdictsStay => "verdicts-stay",
    /// Only a verdict releases packs. Off: another keeper releases what it finds needed, unasked.
    OwnPlanOnlyRelease => "own-plan-only-release",
    /// A plan stays when its packs are gone. Off: the keeper removes it at the end.
    PlanNeverWithdrawn => "plan-never-withdrawn-after-delete",
    /// A repack is protected: both of the next two. Off: neither.
    RepackGuarded => "repack-guarded",
    /// Chunks are copied before their pack is condemned. Off: after the rescan, before the verdict.
    RepackBeforePlan => "repack-before-plan",
    /// The copy's index entry is durable before the original goes. Off: it follows.
    RepackDurable => "repack-durable-before-delete",
    /// The copy is made in a session that ends in a commit. Off: without.
    RepackInSession => "repack-inside-session",
    /// An index merge deletes only the segments it read. Off: all others.
    MergeDeletesOnlyInputs => "merge-deletes-only-inputs",
    /// A merged segment is durable before its inputs go. Off: they go first.
    MergedSegmentFirst => "merged-segment-created-first",
    /// A merge drops only entries of packs that a verdict left doomed. Off: of any condemned pack.
    MergeDropsOnlyDecided => "merge-drops-only-decided",
    /// A merged plan is durable before its inputs go. Off: they go first.
    MergedPlanFirst => "merged-plan-created-first",
    /// A merged plan has a higher number than its inputs. Off: a lower one.
    MergedPlanHigher => "merged-plan-higher",
    /// Only plans with a verdict are merged. Off: any.
    MergeOnlyDecidedPlans => "merge-only-decided-plans",
    /// No name ever leaves the plans. Off: a merge drops packs that no listing and no segment shows.
    NamesNeverLeave => "names-never-leave-plans",
    /// A retirement is undone by a session and a commit. Off: by a record, after the same check.
    UndoInSession => "undo-inside-session",
    /// An undo resolves chunks only in packs that are not doomed. Off: in any.
    UndoAvoidsDoomed => "undo-only-if-not-condemned",
    /// A copy claims a session in the target store. Off: only in the origin.
    CopyOwnSession => "copy-own-session",
    /// A copier obeys the target's plans. Off: the origin's.
    CopyTargetPlans => "copy-obeys-target-plans",
    /// A keeper counts only its own store's retirements. Off: the origin's as well.
    ForeignRetirements => "foreign-retirements-are-evidence",
    /// A reader lists the index again after "not found". Off: it reports damage.
    ReaderListsAgain => "reader-lists-again",
    /// A reader resolves in condemned packs too. Off: it takes them for gone.
    ReaderIgnoresPlans => "reader-ignores-plans",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rules in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// The whole protocol.
    pub const ALL: Rules = Rules(u64::MAX);

    /// The same rules but one.
    #[must_use]
    pub fn without(self, rule: Rule) -> Rules {
        Rules(self.0 & !(1 << rule as u8))
    }

    /// Whether `rule` is in force.
    pub fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}
