//! What became of each item, on its way to the snapshot.

use crossbeam_channel::Sender;
use keepwell_catalog::{MapKey, Statistics};

use super::encoded::Encoded;
use crate::Error;

/// What one item contributes to the snapshot.
#[derive(Debug)]
pub(super) struct Outcome {
    pub key: MapKey,
    /// The encoded entry with its sub-key records; `None` when nothing could be captured.
    pub entry: Option<Encoded>,
    /// Whether it is an item of the walk. What a walk only complains of may be an item as well: a bad line in an ignore file.
    pub is_item: bool,
    /// For a further name of a file: the first.
    pub first_name: Option<MapKey>,
    /// For the recipes; zero means "look again next time".
    pub fingerprint: [u8; 16],
    /// Whether something that is there could not be captured: then the snapshot is not complete.
    pub lost: bool,
    /// What went wrong, if anything did.
    pub problem: Option<String>,
    /// Whether the entry of the last capture was taken over as it was.
    pub reused: bool,
    /// Whether it is also what comes next in the last capture's recipes: nothing before it is gone.
    pub follows: bool,
    /// What this item adds to the statistics.
    pub counts: Statistics,
}

impl Outcome {
    /// An item of which nothing was captured although it is there.
    pub fn lost(key: MapKey, message: String) -> Self {
        Self { lost: true, ..Self::gone(key, message) }
    }

    /// An item that vanished while it was looked at.
    pub fn gone(key: MapKey, message: String) -> Self {
        Self {
            key,
            entry: None,
            is_item: true,
            first_name: None,
            lost: false,
            fingerprint: [0; 16],
            problem: Some(message),
            reused: false,
            follows: false,
            counts: Statistics::default(),
        }
    }
}

/// What arrives at the assembler, in any order.
#[derive(Debug)]
pub(super) enum Step {
    /// A batch is done.
    Batch { number: u64, outcomes: Vec<Outcome> },
    /// Everything before is done and packed: publish a checkpoint, then answer.
    Checkpoint { answer: Sender<Result<(), Error>> },
}
