//! Which bytes of one WAL file are archived.

use std::collections::{BTreeSet, HashMap};

use keepwell_catalog::wal::{WalHash, WalName, WalPlace};

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
        if !differing(names).is_empty() {
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

/// Files of a timeline of which the same stretch is archived with two different contents, by one writer or by several.
pub(crate) fn differing(names: &[WalName]) -> BTreeSet<u64> {
    let mut known: HashMap<(u64, u32, u32), WalHash> = HashMap::new();
    let mut found = BTreeSet::new();
    for name in names {
        if let WalPlace::Bytes { file, from, to } = name.place
            && *known.entry((file, from, to)).or_insert(name.hash) != name.hash
        {
            found.insert(file);
        }
    }
    found
}

#[cfg(test)]
mod tests {
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
