//! Files of an incremental base backup (17 and newer): the blocks that changed, to be put between what was there.

use bytes::{Buf, Bytes};

use super::content::Part;
use super::page::{PAGE, SEGMENT_PAGES};

const MAGIC: u32 = 0xd3ae_1f0d;
const HEAD: usize = 12;

/// An incremental file as it arrives.
#[derive(Debug)]
pub(super) struct Patch {
    head: Vec<u8>,
    /// Length of the head with all block numbers and what fills its last page.
    head_bytes: usize,
    /// Changed blocks, ascending.
    blocks: Vec<u32>,
    /// Blocks of the result.
    total: u64,
    /// Blocks that the last capture has.
    before: u64,
    /// The result is described up to this block.
    at: u64,
    next: usize,
    /// Bytes of the current block that came.
    within: usize,
}

impl Patch {
    /// `before` is the size of the file in the last capture.
    pub fn new(before: u64) -> Self {
        Self {
            head: Vec::new(),
            head_bytes: HEAD,
            blocks: Vec::new(),
            total: 0,
            before: before / PAGE as u64,
            at: 0,
            next: 0,
            within: 0,
        }
    }

    /// Size of the result; known when the head has come.
    pub fn size(&self) -> u64 {
        self.total * PAGE as u64
    }

    /// Number of a changed block in the file.
    pub fn block(&self, index: u32) -> u32 {
        self.blocks.get(index as usize).copied().unwrap_or(u32::MAX)
    }

    /// Takes in the next bytes; pages among them are left in `data`, to be looked at, once it is known what they are.
    pub fn head(&mut self, data: &mut Bytes) -> Result<(), &'static str> {
        while self.head.len() < self.head_bytes && !data.is_empty() {
            let more = (self.head_bytes - self.head.len()).min(data.len());
            self.head.extend_from_slice(&data[..more]);
            data.advance(more);
            if self.head.len() == HEAD {
                self.begin()?;
            }
            if self.head.len() == self.head_bytes && self.head_bytes > HEAD {
                self.numbers()?;
            }
        }
        Ok(())
    }

    fn word(&self, at: usize) -> u32 {
        self.head.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    fn begin(&mut self) -> Result<(), &'static str> {
        let (count, length) = (self.word(4), self.word(8));
        if self.word(0) != MAGIC {
            return Err("it does not begin as one");
        }
        if count > SEGMENT_PAGES {
            return Err("it has more blocks than a segment");
        }
        // Of a relation that was cut off in a later segment, some servers say where that was, counted from this one's begin.
        self.total = length.min(SEGMENT_PAGES).into();
        if count > 0 {
            self.head_bytes = (HEAD + 4 * count as usize).next_multiple_of(PAGE);
        }
        Ok(())
    }

    fn numbers(&mut self) -> Result<(), &'static str> {
        let count = self.word(4) as usize;
        self.blocks = (0..count).map(|index| self.word(HEAD + 4 * index)).collect();
        if !self.blocks.is_sorted_by(|a, b| a < b) {
            return Err("its blocks are out of order");
        }
        let last = self.blocks.last().copied().unwrap_or(0);
        if last >= SEGMENT_PAGES {
            return Err("it has more blocks than a segment");
        }
        self.total = self.total.max(u64::from(last) + 1);
        Ok(())
    }

    /// Puts the next bytes of changed blocks in their places.
    pub fn body(&mut self, mut data: Bytes, out: &mut Vec<Part>) -> Result<(), &'static str> {
        while !data.is_empty() {
            let block = *self.blocks.get(self.next).ok_or("it is longer than it says")?;
            if self.within == 0 {
                self.gap(block.into(), out);
            }
            let bytes = (PAGE - self.within).min(data.len());
            out.push(Part::Data(data.split_to(bytes)));
            self.within += bytes;
            if self.within == PAGE {
                (self.within, self.at) = (0, u64::from(block) + 1);
                self.next += 1;
            }
        }
        Ok(())
    }

    /// All came: what is behind the last changed block.
    pub fn end(&mut self, out: &mut Vec<Part>) -> Result<(), &'static str> {
        if self.head.len() < self.head_bytes || self.next < self.blocks.len() {
            return Err("it is cut short");
        }
        self.gap(self.total, out);
        Ok(())
    }

    /// Describes what lies before block `to`: as it was, or empty where there was nothing.
    fn gap(&mut self, to: u64, out: &mut Vec<Part>) {
        let kept = to.min(self.before).saturating_sub(self.at);
        let empty = to.saturating_sub(self.at + kept);
        if kept > 0 {
            out.push(Part::Kept(kept * PAGE as u64));
        }
        if empty > 0 {
            out.push(Part::Hole(empty * PAGE as u64));
        }
        self.at = self.at.max(to);
    }
}

/// Reads an incremental file in two pieces, as the first byte says, and looks whether it describes every block once.
pub(super) fn fuzz(bytes: &[u8]) {
    let Some((split, rest)) = bytes.split_first() else { return };
    let (first, second) = rest.split_at(usize::from(*split).min(rest.len()));
    let (mut patch, mut parts) = (Patch::new(5 * PAGE as u64), Vec::new());
    for piece in [first, second] {
        let mut data = Bytes::copy_from_slice(piece);
        if patch.head(&mut data).is_err() || patch.body(data, &mut parts).is_err() {
            return;
        }
    }
    if patch.end(&mut parts).is_ok() {
        assert!(patch.size() <= SEGMENT_PAGES as u64 * PAGE as u64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(blocks: &[u32], length: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [MAGIC, blocks.len() as u32, length].iter().chain(blocks) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        if !blocks.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        }
        blocks.iter().for_each(|block| bytes.extend_from_slice(&[*block as u8; PAGE]));
        bytes
    }

    /// `d3` is block 3, `k2` two kept blocks, `h1` an empty one.
    fn read(bytes: &[u8], before: u64, step: usize) -> Result<(String, u64), &'static str> {
        let (mut patch, mut parts) = (Patch::new(before * PAGE as u64), Vec::new());
        for piece in bytes.chunks(step) {
            let mut piece = Bytes::copy_from_slice(piece);
            patch.head(&mut piece)?;
            patch.body(piece, &mut parts)?;
        }
        patch.end(&mut parts)?;
        let (mut text, mut pending) = (Vec::new(), 0);
        for part in parts {
            match part {
                Part::Data(data) => {
                    pending += data.len();
                    if pending == PAGE {
                        text.push(format!("d{}", data[0]));
                        pending = 0;
                    }
                }
                Part::Kept(bytes) => text.push(format!("k{}", bytes / PAGE as u64)),
                Part::Hole(bytes) => text.push(format!("h{}", bytes / PAGE as u64)),
                Part::End => {}
            }
        }
        Ok((text.join(" "), patch.size() / PAGE as u64))
    }

    #[test]
    fn blocks_are_put_between_what_was_there() {
        for step in [1, 7, 4096, PAGE, 5 * PAGE + 3] {
            let text = |blocks: &[u32], length, before| read(&file(blocks, length), before, step).unwrap();
            assert_eq!(text(&[], 5, 5), ("k5".into(), 5), "nothing changed");
            assert_eq!(text(&[], 3, 5), ("k3".into(), 3), "it was cut off");
            assert_eq!(text(&[], 0, 5), (String::new(), 0));
            assert_eq!(text(&[1, 2, 4], 5, 5), ("k1 d1 d2 k1 d4".into(), 5));
            assert_eq!(
                text(&[0, 6], 5, 5),
                ("d0 k4 h1 d6".into(), 7),
                "it grew, and block 5 was never written"
            );
            assert_eq!(text(&[4], 2, 2), ("k2 h2 d4".into(), 5));
            assert_eq!(text(&[0], 4, 2), ("d0 k1 h2".into(), 4));
            let (all, before) = (SEGMENT_PAGES, u64::from(SEGMENT_PAGES));
            assert_eq!(
                text(&[1], all + all / 2, before),
                (format!("k1 d1 k{}", all - 2), before),
                "a later segment was cut off"
            );
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let mut longer = file(&[1], 5);
        longer.push(0);
        let mut wrong = file(&[], 5);
        wrong[0] ^= 1;
        let cut = &file(&[1, 2], 5)[..3 * PAGE - 1];
        let many = [MAGIC.to_le_bytes(), u32::MAX.to_le_bytes(), 5u32.to_le_bytes()].concat();
        for bad in [
            &longer[..],
            &wrong,
            cut,
            &many,
            &file(&[2, 1], 5),
            &file(&[1, 1], 5),
            &file(&[SEGMENT_PAGES], 5),
            b"abc",
        ] {
            assert!(read(bad, 5, 1000).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_incremental_file_makes_it_panic(
            blocks in prop::collection::vec(0u32..20, 0..6),
            length: u32,
            at in prop::collection::vec((0usize..40, any::<u8>()), 0..3),
            split: u8,
        ) {
            let mut bytes = file(&blocks, length);
            for (at, to) in at {
                let length = bytes.len();
                bytes[at % length] = to;
            }
            fuzz(&[&[split][..], &bytes].concat());
        }
    }
}
