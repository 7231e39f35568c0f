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

    /// Adds a block. Finding the ones that must go is a scan of all blocks: hundreds, against the read and the
    /// decoding that a miss has just cost.
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
            let oldest = self.blocks.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            let Some((gone, _)) = oldest.and_then(|key| self.blocks.remove(&key)) else { break };
            self.bytes -= gone.weight();
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
