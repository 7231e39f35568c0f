//! How many workers of a backup there are, and how large their packs, so that all of it stays within the limit of memory
//! however many processors there are.

use super::packer::{DATA_FRAME_BYTES, OWN_FRAME_MIN};
use super::uploads::IN_FLIGHT_MAX;
use crate::chunker::ChunkSizes;
use crate::repository::Limits;

/// No pack is finished before it has so many bytes, whatever the limit, but where nothing more comes: a prune merges those that
/// are smaller.
pub(crate) const PACK_BYTES_MIN: usize = 4 << 20;
/// Packs beside those of the workers: that of the tree, and those on their way.
const OTHER_PACKS: usize = 1 + IN_FLIGHT_MAX;

/// What a worker reads into: two of the largest chunks.
pub(crate) fn buffer_bytes(sizes: ChunkSizes) -> usize {
    2 * sizes.max
}

/// What the workers of a backup share out among them: five eighths of the limit. The rest is for the index, what waits to be
/// listed in it, items on their way, and the program itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub workers: usize,
    /// A pack is finished when it has grown to about this many bytes.
    pub pack_bytes: usize,
}

impl Budget {
    /// As many workers as there are threads, if there is room for packs of the smallest size; then packs as large as is wanted,
    /// if there is room for those.
    pub fn new(limits: Limits, sizes: ChunkSizes, level: i32, wanted_pack_bytes: usize) -> Self {
        let (share, worker) = (share_bytes(limits), worker_bytes(sizes, level));
        let smallest = open_pack_bytes(PACK_BYTES_MIN, sizes);
        let affordable = share.saturating_sub(OTHER_PACKS * smallest) / (worker + smallest);
        let workers = limits.threads.clamp(1, affordable.max(1));
        let a_pack = share.saturating_sub(workers * worker) / (workers + OTHER_PACKS);
        let pack_bytes = a_pack.saturating_sub(frame_bytes(sizes)) / 5 * 4;
        Self { workers, pack_bytes: pack_bytes.min(wanted_pack_bytes).max(PACK_BYTES_MIN) }
    }
}

fn share_bytes(limits: Limits) -> usize {
    limits.memory_bytes / 8 * 5
}

/// The largest frame that is put together.
fn frame_bytes(sizes: ChunkSizes) -> usize {
    sizes.max.max(DATA_FRAME_BYTES)
}

/// A worker without its pack: what it reads into, the frame of small chunks, a chunk with a frame of its own, what frames are
/// compressed to, and what compresses them.
fn worker_bytes(sizes: ChunkSizes, level: i32) -> usize {
    let own_frame = if sizes.max < OWN_FRAME_MIN { 0 } else { sizes.max };
    buffer_bytes(sizes) + DATA_FRAME_BYTES + own_frame + frame_bytes(sizes) + compressor_bytes(level)
}

/// An open pack with its padding, when the frame that fills it was added.
fn open_pack_bytes(pack_bytes: usize, sizes: ChunkSizes) -> usize {
    pack_bytes + pack_bytes / 4 + frame_bytes(sizes)
}

/// The tables of zstd for inputs of at most 4 MiB, at this level and at level 1.
fn compressor_bytes(level: i32) -> usize {
    let tables = match level {
        ..=5 => 2 << 20,
        6 => 4 << 20,
        7..=9 => 13 << 20,
        _ => 52 << 20,
    };
    tables + (1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 256 << 20;
    const WANTED: usize = 16 << 20;

    fn of(threads: usize, sizes: ChunkSizes, level: i32) -> Budget {
        Budget::new(Limits { threads, memory_bytes: LIMIT }, sizes, level, WANTED)
    }

    fn used_bytes(budget: Budget, sizes: ChunkSizes, level: i32) -> usize {
        let packs = (budget.workers + OTHER_PACKS) * open_pack_bytes(budget.pack_bytes, sizes);
        budget.workers * worker_bytes(sizes, level) + packs
    }

    #[test]
    fn the_limit_holds_for_any_number_of_processors() {
        for threads in 2..=128 {
            for sizes in [ChunkSizes::FILES, ChunkSizes::DUMPS] {
                for level in [1, 3, 6, 9, 19] {
                    let budget = of(threads, sizes, level);
                    let used = used_bytes(budget, sizes, level);
                    assert!(
                        used <= LIMIT / 8 * 5,
                        "{used} with {threads} threads at level {level}: {budget:?}"
                    );
                    assert!((1..=threads).contains(&budget.workers), "{budget:?}");
                }
            }
        }
    }

    #[test]
    fn two_processors_have_packs_as_large_as_is_wanted_and_more_have_more_workers() {
        assert_eq!(of(2, ChunkSizes::FILES, 3), Budget { workers: 2, pack_bytes: WANTED });
        let many = of(128, ChunkSizes::FILES, 3);
        assert!(many.workers >= 4 && many.pack_bytes < WANTED, "{many:?}");
        assert!(of(128, ChunkSizes::DUMPS, 3).workers >= 8);
        let roomy = Limits { threads: 16, memory_bytes: 1 << 30 };
        let roomy = Budget::new(roomy, ChunkSizes::FILES, 3, WANTED);
        assert_eq!(roomy.workers, 16);
    }

    #[test]
    fn there_is_a_worker_however_little_memory_there_is() {
        let tight = Limits { threads: 0, memory_bytes: 0 };
        let budget = Budget::new(tight, ChunkSizes::FILES, 19, WANTED);
        assert_eq!(budget, Budget { workers: 1, pack_bytes: PACK_BYTES_MIN });
    }
}
