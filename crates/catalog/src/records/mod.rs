//! The small records of a repository (format §10, §11, §13), each with `encode` and a strict `decode`.
//!
//! `encode` writes deterministic CBOR: the same record gives the same bytes for ever. Fields of type `Option` are left
//! out when they are `None`; everything else is always written. `decode` refuses trailing bytes, keys out of order,
//! a missing field and an unknown kind; it skips map keys that a later version may have added. So a decoded record
//! may encode to fewer bytes than it came from: whoever copies a record copies its bytes.
//!
//! The names that records carry are content names where the record says which folder they belong to (a commit's
//! manifest and state, a segment's packs), and whole keys of the store where it does not (lists and prune plans).

pub(crate) mod codec;
mod commit;
mod gc;
mod manifest;
mod session;
mod wal;

pub use commit::{Commit, CommitKind, dataset_tag};
pub use gc::{Kept, Marks, Plan, Retired, RetiredSnapshot};
pub use manifest::{FORMAT_VERSION, Manifest, Problem, Statistics, snapshot_id};
pub use session::{List, ListedObject, Session, SessionKind};
pub use wal::{WalCluster, WalHeader};

#[cfg(test)]
mod tests;
