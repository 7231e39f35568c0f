//! Which bytes of one WAL file are archived.

use keepwell_catalog::wal::{WalName, WalPlace};

/// What the pieces of one file hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Pieces that together hold the file from its beginning, in order; where they overlap, the later ones go on.
    pub pieces: Vec<(u32, u32, WalName)>,
    /// Up to where they hold it without a gap.
    pub end: u32,
}

/// A coverage, or the news that it is not unique.
pub(crate) enum Covered {
    One(Coverage),
    /// Two pieces of the same stretch with different content.
    Conflict,
}

impl Coverage {
    /// Of all pieces of one file of one writer.
    pub fn of(names: &[WalName]) -> Covered {
        let mut pieces: Vec<(u32, u32, WalName)> = names
            .iter()
            .filter_map(|name| match name.place {
                WalPlace::Bytes { from, to, .. } => Some((from, to, *name)),
                WalPlace::History => None,
            })
            .collect();
        // The longest of those with the same beginning comes first.
        pieces.sort_by_key(|(from, to, name)| (*from, u32::MAX - *to, *name));
        if pieces.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].1 == pair[1].1) {
            return Covered::Conflict;
        }
        let (mut end, mut used) = (0, Vec::new());
        for (from, to, name) in pieces {
            if from <= end && to > end {
                end = to;
                used.push((from, to, name));
            }
        }
        Covered::One(Self { pieces: used, end })
    }
}

#[cfg(test)]
mod tests {
    use keepwell_catalog::wal::WalHash;
    use keepwell_crypto::MemberId;

    use super::*;

    fn piece(from: u32, to: u32, hash: u8) -> WalName {
        let writer = MemberId::from_bytes([1; 8]);
        let place = WalPlace::Bytes { file: 1, from, to };
        WalName { writer, system: 1, timeline: 1, place, hash: WalHash::from_bytes([hash; 16]) }
    }

    fn covered(names: &[WalName]) -> Option<(u32, Vec<(u32, u32)>)> {
        match Coverage::of(names) {
            Covered::One(c) => Some((c.end, c.pieces.iter().map(|(from, to, _)| (*from, *to)).collect())),
            Covered::Conflict => None,
        }
    }

    #[test]
    fn tails_add_up_until_the_whole_replaces_them() {
        let tails = [piece(0, 5, 1), piece(5, 9, 2)];
        assert_eq!(covered(&tails), Some((9, vec![(0, 5), (5, 9)])));
        let whole = [piece(0, 5, 1), piece(5, 9, 2), piece(0, 16, 3)];
        assert_eq!(covered(&whole), Some((16, vec![(0, 16)])));
        assert_eq!(covered(&[piece(0, 5, 1), piece(6, 9, 2)]), Some((5, vec![(0, 5)])));
        assert_eq!(covered(&[piece(3, 9, 2)]), Some((0, vec![])));
        assert_eq!(covered(&[piece(0, 5, 1), piece(3, 9, 2)]), Some((9, vec![(0, 5), (3, 9)])));
        assert_eq!(covered(&[piece(0, 5, 1), piece(0, 5, 2)]), None);
        assert_eq!(covered(&[]), Some((0, vec![])));
    }
}
