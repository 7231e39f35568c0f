//! How much of each pack is used.

use std::collections::HashMap;

use keepwell_catalog::{ContentName, IndexSet, PackClass, PackRef, Segment, names};

use crate::Error;
use crate::mark::Marks;

/// What a pack is: the folder that it lies in, and its name there. What a segment of the other class says of the name is about
/// another pack.
pub(super) type PackId = (PackClass, ContentName);

/// So many different things are heard of one pack: whoever writes may say any number.
const SAID_MAX: usize = 16;

/// One pack of the index.
#[derive(Debug, Clone)]
pub(super) struct PackUse {
    pub class: PackClass,
    pub name: ContentName,
    /// What segments say of it; where that is more than one thing, the pack alone tells which is so.
    pub said: Vec<PackRef>,
    /// Stored bytes, as the store lists it; none if it is not there.
    pub size: u64,
    /// Stored bytes of frames that hold something live.
    pub live: u64,
    /// Stored bytes of all frames.
    pub total: u64,
    /// Bytes of all chunks before compression.
    pub plain: u64,
    /// Entries that are live.
    pub live_entries: u64,
    /// Number of the first segment that has some of these; if none has, of the last that lists it.
    pub segment: usize,
}

impl PackUse {
    fn new((class, name): PackId, size: u64) -> Self {
        let said = Vec::new();
        Self { class, name, said, size, live: 0, total: 0, plain: 0, live_entries: 0, segment: 0 }
    }

    pub fn id(&self) -> PackId {
        (self.class, self.name)
    }

    /// Whether the store has it. Whoever may write can list any name.
    pub fn is_there(&self) -> bool {
        self.size > 0
    }

    /// The key of its object.
    pub fn key(&self) -> String {
        names::pack_key(self.class, &self.name).to_string()
    }

    /// Takes in what one segment says. Several list the same frames while a merge is not over, and any writer may list some
    /// again: they add up to nothing more. Frames that are longer than the pack are none.
    fn take(&mut self, number: usize, pack: PackRef, sums: &Sums) {
        self.hear(pack);
        if self.live_entries == 0 {
            self.segment = number;
        }
        self.live_entries += sums.live_entries;
        self.live = self.live.saturating_add(sums.live);
        self.total = self.total.max(if sums.total <= self.size { sums.total } else { 0 });
        self.plain = self.plain.max(sums.plain);
    }

    /// What has the size that the store lists comes before what has not.
    fn hear(&mut self, pack: PackRef) {
        let size = self.size;
        if self.said.contains(&pack) {
            return;
        }
        if self.said.len() < SAID_MAX {
            self.said.reserve_exact(1); // mostly it is the only one, and there may be a million packs
            self.said.push(pack);
        } else if pack.size == size
            && let Some(other) = self.said.iter_mut().find(|other| other.size != size)
        {
            *other = pack;
        }
    }

    /// No more of it is in use, or not, than there is of it, whatever was said.
    fn settle(&mut self) {
        self.live = self.live.min(self.size.max(1));
        self.total = self.total.max(self.live);
    }
}

/// What the index says of one frame.
#[derive(Default)]
struct FrameUse {
    stored: u64,
    plain: u64,
    live_plain: u64,
    live_entries: u64,
}

impl FrameUse {
    /// The share of its stored bytes that its live chunks hold; never nothing while one is live, for a pack without
    /// live bytes is deleted.
    fn live_stored(&self) -> u64 {
        if self.live_entries == 0 {
            return 0;
        }
        let share = u128::from(self.stored) * u128::from(self.live_plain) / u128::from(self.plain.max(1));
        u64::try_from(share).unwrap_or(u64::MAX).clamp(1, self.stored.max(1))
    }
}

/// What one segment says of a pack, summed up.
#[derive(Default, Clone)]
struct Sums {
    live: u64,
    total: u64,
    plain: u64,
    live_entries: u64,
}

/// Live and total bytes of every pack, of which the store lists these with these sizes. Reads the whole index, a segment at
/// a time, and holds the frames of one.
///
/// Chunks of a frame count by their share of it, so that what is dead beside one live chunk is found too.
pub(super) fn pack_uses(
    index: &IndexSet,
    marks: &Marks,
    stored: &HashMap<PackId, u64>,
) -> Result<HashMap<PackId, PackUse>, Error> {
    let mut uses: HashMap<PackId, PackUse> = HashMap::new();
    for (number, (_, segment)) in index.segments().iter().enumerate() {
        let sums = sums_of(segment, number, marks)?;
        for (pack, sums) in segment.packs().iter().zip(&sums) {
            let id = (segment.class(), pack.name);
            let size = || stored.get(&id).copied().unwrap_or(0);
            uses.entry(id).or_insert_with(|| PackUse::new(id, size())).take(number, *pack, sums);
        }
    }
    uses.values_mut().for_each(PackUse::settle);
    Ok(uses)
}

/// For each pack of a segment's table.
fn sums_of(segment: &Segment, number: usize, marks: &Marks) -> Result<Vec<Sums>, Error> {
    let mut frames: HashMap<(u32, u32), FrameUse> = HashMap::new();
    for item in segment.iter() {
        let (ordinal, entry) = item?;
        let frame = frames.entry((entry.pack, entry.frame_offset)).or_default();
        frame.stored = frame.stored.max(u64::from(entry.frame_length));
        frame.plain += u64::from(entry.length);
        if marks.get(number, ordinal) {
            frame.live_entries += 1;
            frame.live_plain += u64::from(entry.length);
        }
    }
    let mut sums = vec![Sums::default(); segment.packs().len()];
    for ((pack, _), frame) in frames {
        let Some(sums) = sums.get_mut(pack as usize) else { continue };
        sums.live = sums.live.saturating_add(frame.live_stored());
        sums.total = sums.total.saturating_add(frame.stored);
        sums.plain = sums.plain.saturating_add(frame.plain);
        sums.live_entries += frame.live_entries;
    }
    Ok(sums)
}
