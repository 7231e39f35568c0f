//! Pages of relations: their checksum as PostgreSQL computes it, and checking a stream of them.

use bytes::Bytes;

use crate::lsn::Lsn;

/// Size of a page; servers built with another are refused before anything is read.
pub(crate) const PAGE: usize = 8192;
/// Pages per segment file of a relation, as every packaged server has it.
pub(crate) const SEGMENT_PAGES: u32 = 131_072;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where the 32 sums begin; part of PostgreSQL's definition of a page checksum.
const BASES: [u32; LANES] = [
    0x5b1f_36e9,
    0xb852_5960,
    0x02ab_50aa,
    0x1de6_6d2a,
    0x79ff_467a,
    0x9bb9_f8a3,
    0x217e_7cd2,
    0x83e1_3d2c,
    0xf8d4_474f,
    0xe39e_b970,
    0x42c6_ae16,
    0x9932_16fa,
    0x7b09_3b5d,
    0x98da_ff3c,
    0xf718_902a,
    0x0b1c_9cdb,
    0xe58f_764b,
    0x1876_36bc,
    0x5d7b_3bb1,
    0xe73d_e7de,
    0x92be_c979,
    0xcca6_c0b2,
    0x304a_0979,
    0x85aa_43d4,
    0x7831_25bb,
    0x6ca8_eaa2,
    0xe407_eac6,
    0x4b5c_fc3e,
    0x9fbf_8c76,
    0x15ca_20be,
    0xf2ca_9fd3,
    0x959b_d756,
];

#[inline]
fn mix(sums: &mut [u32; LANES], values: &[u32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ *value;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// The checksum that the page should bear as block `number` of its relation. The one it bears is left out of account.
pub(crate) fn checksum(page: &[u8; PAGE], number: u32) -> u16 {
    let mut sums = BASES;
    for (row, bytes) in page.chunks_exact(4 * LANES).enumerate() {
        let mut values = [0; LANES];
        for (value, word) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = u32::from_le_bytes(*word);
        }
        if row == 0 {
            // The low half of the third word is the checksum itself.
            values[2] &= 0xffff_0000;
        }
        mix(&mut sums, &values);
    }
    mix(&mut sums, &[0; LANES]);
    mix(&mut sums, &[0; LANES]);
    let sum = sums.iter().fold(number, |all, sum| all ^ sum);
    // Never zero, which is what a page without a checksum has.
    (sum % 65_535 + 1) as u16
}

/// What a page header says about where in the WAL it was last changed.
pub(crate) fn lsn(page: &[u8; PAGE]) -> Lsn {
    let half =
        |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn::new((half(0) << 32) | half(4))
}

/// Whether the page is as it was allocated: without content and without a checksum.
pub(crate) fn is_new(page: &[u8; PAGE]) -> bool {
    page[14] == 0 && page[15] == 0
}

/// Whether the page is what was once written as this block. One that changed since the backup began may be torn: recovery
/// writes it anew from the WAL.
pub(crate) fn is_sound(page: &[u8; PAGE], number: u32, start: Lsn) -> bool {
    is_new(page) || lsn(page) >= start || checksum(page, number) == u16::from_le_bytes([page[8], page[9]])
}

/// Cuts a stream of bytes into pages.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    part: Vec<u8>,
}

impl Pages {
    /// Shows every page that is complete now.
    pub fn push(&mut self, data: &Bytes, each: &mut dyn FnMut(&[u8; PAGE])) {
        let mut data: &[u8] = data;
        if !self.part.is_empty() {
            let (more, rest) = data.split_at(data.len().min(PAGE - self.part.len()));
            self.part.extend_from_slice(more);
            data = rest;
            if let Ok(page) = self.part.as_slice().try_into() {
                each(page);
                self.part.clear();
            }
        }
        let (pages, rest) = data.as_chunks::<PAGE>();
        pages.iter().for_each(each);
        self.part.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: impl Fn(usize) -> u8) -> Box<[u8; PAGE]> {
        let mut page = Box::new([0; PAGE]);
        page.iter_mut().enumerate().for_each(|(at, byte)| *byte = fill(at));
        page
    }

    /// What `page_checksum` of the extension pageinspect says of the same pages, on PostgreSQL 15.
    #[test]
    fn checksums_are_those_that_a_server_computes() {
        let varied = page(|at| (at % 251) as u8);
        for (block, sum) in [(0, 7648), (3, 7645), (131_072, 7646), (2_147_483_647, 25_122)] {
            assert_eq!(checksum(&varied, block), sum, "block {block}");
        }
        let bare = page(|at| u8::from(at == 14));
        assert_eq!((checksum(&bare, 0), checksum(&bare, 1)), (21_607, 21_606));
    }

    #[test]
    fn a_page_changed_since_the_start_is_not_judged() {
        let mut damaged = page(|at| (at % 251) as u8);
        let own = lsn(&damaged);
        assert!(!is_sound(&damaged, 3, Lsn::new(own.get() + 1)));
        assert!(is_sound(&damaged, 3, own), "it may be torn");
        let sum = checksum(&damaged, 3).to_le_bytes();
        damaged[8..10].copy_from_slice(&sum);
        assert!(is_sound(&damaged, 3, Lsn::new(u64::MAX)));
        assert!(!is_sound(&damaged, 4, Lsn::new(u64::MAX)), "another block");
        damaged[8000] ^= 1;
        assert!(!is_sound(&damaged, 3, Lsn::new(u64::MAX)));
        assert!(is_sound(&page(|_| 0), 3, Lsn::new(u64::MAX)), "a new page has no checksum");
    }

    #[test]
    fn pages_are_found_wherever_the_stream_is_cut() {
        let all: Vec<u8> = (0..3 * PAGE + 100).map(|at| (at / PAGE) as u8).collect();
        for step in [1000, PAGE, PAGE + 1, 5 * PAGE] {
            let (mut pages, mut seen) = (Pages::default(), Vec::new());
            for piece in all.chunks(step) {
                pages.push(&Bytes::copy_from_slice(piece), &mut |page| {
                    assert!(page.iter().all(|byte| *byte == page[0]));
                    seen.push(page[0]);
                });
            }
            assert_eq!(seen, [0, 1, 2], "in steps of {step}");
        }
    }
}
