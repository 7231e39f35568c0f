//! Getting a cluster back: to which moment, from which base backup, along which timelines; its files, its settings, and a
//! server that recovers.

mod backups;
mod collations;
mod extensions;
mod owned;
mod plan;
mod restore;
mod saved;
mod scratch;
pub(crate) mod server;
mod settings;
mod target;
mod verify;
pub(crate) mod watch;

pub use backups::{BaseBackup, SOURCE_KIND, base_backups};
pub use collations::{LocalServer, OtherCollation};
pub use extensions::MissingExtension;
pub use plan::{PlanError, Planner, RecoveryPlan};
pub use restore::{
    ClusterReport, HOLLOW_CONTROL_FILE, HollowPart, Layout, LeftHollow, Places, RestoreError, complete,
    restore, restore_hollow,
};
pub use saved::SAVED_KIND;
pub(crate) use scratch::run;
pub use scratch::{Scratch, ScratchOptions};
pub use server::{Binaries, RunningServer, Said, ServerError, Start, StopSignal, Until};
pub use settings::{Archiving, Mode, RecoverySettings, still_known};
pub use target::{Bound, Target, TargetTime};
pub use verify::{Expect, Ladder, Level, Outcome, Question, Step, failed, fault, not_restored};
