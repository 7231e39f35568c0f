//! Which extents the bytes belong to that wait for their chunk.

use keepwell_catalog::Extent;
use keepwell_crypto::ChunkId;

/// Stands for "as in the last capture" in extents that are not resolved yet. No chunk has this id.
pub(super) const KEPT: ChunkId = ChunkId::from_bytes([0; 32]);

/// The extents at the end of a content whose bytes are not stored yet, in order.
#[derive(Debug, Default)]
pub(super) struct Runs {
    waiting: Vec<usize>,
    /// Whether the last of them is the content's last extent and may still grow.
    open: bool,
}

impl Runs {
    /// This many new bytes follow.
    pub fn extend(&mut self, content: &mut Vec<Extent>, bytes: usize) {
        let more = u32::try_from(bytes).expect("a buffer is smaller than 4 GiB");
        match content.last_mut() {
            Some(Extent::Chunk { length, .. }) if self.open && !self.waiting.is_empty() => *length += more,
            _ => {
                self.waiting.push(content.len());
                content.push(Extent::Chunk { id: KEPT, offset: 0, length: more });
                self.open = true;
            }
        }
    }

    /// Something else follows.
    pub fn close(&mut self) {
        self.open = false;
    }

    /// The first `bytes` of those that wait are now a chunk.
    pub fn settle(&mut self, content: &mut Vec<Extent>, chunk: ChunkId, bytes: u32) {
        let (mut at, mut done, mut over) = (0, 0, 0);
        for index in &self.waiting {
            let Some(Extent::Chunk { id, offset, length }) = content.get_mut(*index) else { break };
            if at == bytes {
                break;
            }
            (*id, *offset) = (chunk, at);
            over = length.saturating_sub(bytes - at);
            *length -= over;
            at += *length;
            done += 1;
        }
        self.waiting.drain(..done);
        if over > 0 {
            // Only the last run reaches beyond a chunk: as soon as enough bytes are there, they are cut.
            self.waiting.push(content.len());
            content.push(Extent::Chunk { id: KEPT, offset: 0, length: over });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> ChunkId {
        ChunkId::from_bytes([byte; 32])
    }

    fn chunk(byte: u8, offset: u32, length: u32) -> Extent {
        Extent::Chunk { id: id(byte), offset, length }
    }

    #[test]
    fn one_run_becomes_chunk_after_chunk() {
        let (mut runs, mut content) = (Runs::default(), Vec::new());
        runs.extend(&mut content, 7);
        runs.extend(&mut content, 5);
        runs.settle(&mut content, id(1), 4);
        runs.settle(&mut content, id(2), 4);
        runs.extend(&mut content, 1);
        runs.settle(&mut content, id(3), 5);
        assert_eq!(content, [chunk(1, 0, 4), chunk(2, 0, 4), chunk(3, 0, 5)]);
    }

    #[test]
    fn what_is_new_between_kept_stretches_shares_a_chunk() {
        let (mut runs, mut content) = (Runs::default(), Vec::new());
        let hole = Extent::Hole { length: 9 };
        runs.extend(&mut content, 3);
        runs.close();
        content.push(hole);
        runs.extend(&mut content, 4);
        runs.close();
        content.push(hole);
        runs.extend(&mut content, 8);
        runs.settle(&mut content, id(1), 10);
        runs.settle(&mut content, id(2), 5);
        let expected = [chunk(1, 0, 3), hole, chunk(1, 3, 4), hole, chunk(1, 7, 3), chunk(2, 0, 5)];
        assert_eq!(content, expected);
        runs.close();
        content.push(hole);
        runs.extend(&mut content, 2);
        runs.settle(&mut content, id(3), 2);
        assert_eq!(content.last(), Some(&chunk(3, 0, 2)));
    }
}
