//! Counting and hashing rows as they pass, in whatever order and pieces they come.

/// Rows, and the sum of their hashes. What a COPY in text sends is rows that end in a line feed; one within a value is
/// written as `\n`.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    rows: u64,
    bytes: u64,
    sum: u128,
    /// The begin of a row whose end has not come.
    open: Option<Box<blake3::Hasher>>,
}

/// What a table, or a part of one, holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub rows: u64,
    pub bytes: u64,
    pub sum: u128,
}

impl Counted {
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub fn hash(&self) -> String {
        hex::encode(self.sum.to_le_bytes())
    }
}

/// Reads what [`Counted::hash`] wrote.
pub(crate) fn parse(hash: &str) -> Option<u128> {
    let bytes: [u8; 16] = hex::decode(hash).ok()?.try_into().ok()?;
    Some(u128::from_le_bytes(bytes))
}

fn first_half(hash: &blake3::Hash) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_le_bytes(half)
}

impl Tally {
    pub fn take(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (row, rest) = data.split_at(end + 1);
            let hash = match self.open.take() {
                Some(mut hasher) => hasher.update(row).finalize(),
                None => blake3::hash(row),
            };
            self.rows += 1;
            self.sum = self.sum.wrapping_add(first_half(&hash));
            data = rest;
        }
        if !data.is_empty() {
            self.open.get_or_insert_with(Default::default).update(data);
        }
    }

    /// The result; `None` if it broke off within a row.
    pub fn finish(self) -> Option<Counted> {
        self.open.is_none().then_some(Counted { rows: self.rows, bytes: self.bytes, sum: self.sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(pieces: &[&[u8]]) -> Option<Counted> {
        let mut tally = Tally::default();
        pieces.iter().for_each(|piece| tally.take(piece));
        tally.finish()
    }

    #[test]
    fn neither_pieces_nor_the_order_of_rows_matter_and_every_row_counts() {
        let whole = tally(&[b"1\ta\n2\tb\n2\tb\n"]).unwrap();
        assert_eq!((whole.rows, whole.bytes), (3, 12));
        assert_eq!(tally(&[b"1\t", b"a\n2\tb", b"\n", b"2\tb\n"]), Some(whole));
        assert_eq!(tally(&[b"2\tb\n1\ta\n2\tb\n"]), Some(whole));
        let mut parts = tally(&[b"2\tb\n"]).unwrap();
        parts.add(tally(&[b"1\ta\n2\tb\n"]).unwrap());
        assert_eq!(parts, whole);
        assert_ne!(tally(&[b"1\ta\n1\ta\n2\tb\n"]).unwrap().sum, whole.sum);
        assert_ne!(tally(&[b"1\ta\n2\tb\n"]).unwrap().sum, whole.sum);
        assert_eq!(tally(&[b"\n\n"]).unwrap().rows, 2, "rows without columns");
        assert_eq!(tally(&[b"1\ta\n2"]), None);
    }
}
