//! How much of each pack is used.

use std::collections::HashMap;

use keepwell_catalog::{ContentName, IndexSet, PackClass, PackRef, names};

use crate::Error;
use crate::mark::Marks;

/// What a pack is: the folder that it lies in, and its name there. What a segment of the other class says of the name is about
/// another pack.
pub(super) type PackId = (PackClass, ContentName);

/// One pack of the index.
#[derive(Debug, Clone)]
pub(super) struct PackUse {
    pub class: PackClass,
    pub pack: PackRef,
    /// Stored bytes of frames that hold something live.
    pub live: u64,
    /// Stored bytes of all frames.
    pub total: u64,
    /// Bytes of all chunks before compression.
    pub plain: u64,
}

impl PackUse {
    pub fn id(&self) -> PackId {
        (self.class, self.pack.name)
    }

    /// The key of its object.
    pub fn key(&self) -> String {
        names::pack_key(self.class, &self.pack.name).to_string()
    }
}

/// What the index says of one frame.
#[derive(Default)]
struct FrameUse {
    stored: u64,
    plain: u64,
    live_plain: u64,
    live: bool,
}

impl FrameUse {
    /// The share of its stored bytes that its live chunks hold; never nothing while one is live, for a pack without
    /// live bytes is deleted.
    fn live_stored(&self) -> u64 {
        if !self.live {
            return 0;
        }
        let share = u128::from(self.stored) * u128::from(self.live_plain) / u128::from(self.plain.max(1));
        u64::try_from(share).unwrap_or(u64::MAX).clamp(1, self.stored.max(1))
    }
}

/// Live and total bytes of every pack. Reads the whole index, a segment at a time, and holds the frames of one.
///
/// Chunks of a frame count by their share of it, so that what is dead beside one live chunk is found too.
pub(super) fn pack_uses(index: &IndexSet, marks: &Marks) -> Result<HashMap<PackId, PackUse>, Error> {
    let mut uses: HashMap<PackId, PackUse> = HashMap::new();
    for (number, (_, segment)) in index.segments().iter().enumerate() {
        let mut frames: HashMap<(u32, u32), FrameUse> = HashMap::new();
        for item in segment.iter() {
            let (ordinal, entry) = item?;
            let frame = frames.entry((entry.pack, entry.frame_offset)).or_default();
            frame.stored = u64::from(entry.frame_length);
            frame.plain += u64::from(entry.length);
            if marks.get(number, ordinal) {
                frame.live = true;
                frame.live_plain += u64::from(entry.length);
            }
        }
        for ((pack, _), frame) in frames {
            let Some(pack) = segment.packs().get(pack as usize) else { continue };
            let used = uses.entry((segment.class(), pack.name)).or_insert(PackUse {
                class: segment.class(),
                pack: *pack,
                live: 0,
                total: 0,
                plain: 0,
            });
            used.plain += frame.plain;
            used.total += frame.stored;
            used.live += frame.live_stored();
        }
    }
    Ok(uses)
}
