//! A bounded cache of decoded blocks, shared by all segments of an index.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::block::Block;

/// Which block: number of the segment, number of the block in it.
type BlockKey = (usize, usize);

/// Keeps the most recently used blocks, up to a number of bytes. Safe to use from several threads.
#[derive(Debug)]
pub(crate) struct BlockCache {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: HashMap<BlockKey, (Arc<Block>, u64)>,
    bytes: usize,
    max_bytes: usize,
    /// Counts uses; the block with the smallest count goes first.
    clock: u64,
    /// Blocks and their counts as they once were, the smallest last. One that was used since is younger than all that were
    /// not, and those that came since are, too: so the last one whose count is the same is the oldest of all.
    oldest: Vec<(u64, BlockKey)>,
}

impl BlockCache {
    /// A cache that holds at most `max_bytes` of decoded blocks.
    pub(crate) fn new(max_bytes: usize) -> Self {
        BlockCache { state: Mutex::new(State { max_bytes, ..State::default() }) }
    }

    /// From now on it holds at most so many bytes.
    pub(crate) fn limit(&self, max_bytes: usize) {
        let mut state = self.lock();
        state.max_bytes = max_bytes;
        state.drop_oldest();
    }

    /// Bytes of the blocks that it holds.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: BlockKey) -> Option<Arc<Block>> {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let (block, used) = state.blocks.get_mut(&key)?;
        *used = now;
        Some(Arc::clone(block))
    }

    /// Adds a block.
    pub(crate) fn insert(&self, key: BlockKey, block: &Arc<Block>) {
        let mut state = self.lock();
        if block.weight() > state.max_bytes {
            return;
        }
        state.clock += 1;
        let now = state.clock;
        if let Some((old, _)) = state.blocks.insert(key, (Arc::clone(block), now)) {
            state.bytes -= old.weight();
        }
        state.bytes += block.weight();
        state.drop_oldest();
    }
}

impl State {
    fn drop_oldest(&mut self) {
        while self.bytes > self.max_bytes {
            let Some(key) = self.pop_oldest() else { break };
            if let Some((gone, _)) = self.blocks.remove(&key) {
                self.bytes -= gone.weight();
            }
        }
    }

    /// Sorts all of them once for as many as go until none is left as it was: a scan for each took longer than decoding it.
    fn pop_oldest(&mut self) -> Option<BlockKey> {
        loop {
            if self.oldest.is_empty() {
                self.oldest.extend(self.blocks.iter().map(|(key, (_, used))| (*used, *key)));
                self.oldest.sort_unstable_by(|a, b| b.cmp(a));
            }
            let (then, key) = self.oldest.pop()?;
            if self.blocks.get(&key).is_some_and(|(_, used)| *used == then) {
                return Some(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::block::BLOCK_OVERHEAD_BYTES;

    fn block(weight: usize) -> Arc<Block> {
        Arc::new(Block::parse(vec![0; weight - BLOCK_OVERHEAD_BYTES], 0).unwrap())
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let cache = BlockCache::new(3000);
        for key in 0..3 {
            cache.insert((0, key), &block(1000));
        }
        assert!(cache.get((0, 0)).is_some());
        cache.insert((1, 0), &block(1000));
        assert!(cache.get((0, 1)).is_none());
        assert!(cache.get((0, 0)).is_some() && cache.get((0, 2)).is_some() && cache.get((1, 0)).is_some());
    }

    /// Whatever is used between: as a list that is moved to the front shows.
    #[test]
    fn the_order_of_use_decides_however_often_blocks_go() {
        let cache = BlockCache::new(16_000);
        let mut newest_first: Vec<usize> = Vec::new();
        let mut random = 1_u64;
        for _ in 0..5000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = (random >> 33) as usize % 24;
            let is_there = cache.get((0, key)).is_some();
            assert_eq!(is_there, newest_first.contains(&key));
            if !is_there {
                cache.insert((0, key), &block(1000));
            }
            newest_first.retain(|other| *other != key);
            newest_first.insert(0, key);
            newest_first.truncate(16);
        }
    }

    #[test]
    fn a_lower_limit_holds_at_once() {
        let cache = BlockCache::new(3000);
        (0..3).for_each(|key| cache.insert((0, key), &block(1000)));
        cache.limit(1500);
        assert!(cache.get((0, 2)).is_some());
        assert_eq!(cache.bytes(), 1000);
    }

    #[test]
    fn what_does_not_fit_is_not_kept() {
        let cache = BlockCache::new(3000);
        cache.insert((0, 0), &block(3001));
        assert!(cache.get((0, 0)).is_none());
        cache.insert((0, 1), &block(3000));
        cache.insert((0, 1), &block(2000));
        cache.insert((0, 2), &block(1000));
        assert!(cache.get((0, 1)).is_some() && cache.get((0, 2)).is_some());
    }
}
