//! What `COPY … TO STDOUT (FORMAT binary)` sends of a table with one column, cut into its values as it arrives.

use bytes::{Buf, Bytes};

/// Eleven bytes that every copy begins with, flags that must be zero, and the length of an extension, of which there is none.
const HEAD: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of the number of columns: no more rows.
const TRAILER: i16 = -1;
/// In place of a length.
const NULL: i32 = -1;

/// A copy that is not what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Odd;

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Head,
    Columns,
    Length,
    Content(usize),
    Over,
}

/// Gathers values.
#[derive(Debug, Default)]
pub(super) struct Values {
    stage: Stage,
    gathered: Vec<u8>,
}

impl Values {
    /// Takes the next value out of `data`, with `None` for NULL. `Ok(None)` when more is needed, or none will come. A value
    /// longer than `most` is refused.
    pub fn next(&mut self, data: &mut Bytes, most: usize) -> Result<Option<Option<Bytes>>, Odd> {
        loop {
            let wanted = match self.stage {
                Stage::Head => HEAD.len(),
                Stage::Columns => 2,
                Stage::Length => 4,
                Stage::Content(length) => length,
                Stage::Over if data.is_empty() => return Ok(None),
                Stage::Over => return Err(Odd),
            };
            // A value that has arrived as a whole is not copied.
            if self.gathered.is_empty() && data.len() >= wanted && matches!(self.stage, Stage::Content(_)) {
                self.stage = Stage::Columns;
                return Ok(Some(Some(data.split_to(wanted))));
            }
            let more = (wanted - self.gathered.len()).min(data.len());
            self.gathered.extend_from_slice(&data[..more]);
            data.advance(more);
            if self.gathered.len() < wanted {
                return Ok(None);
            }
            let gathered = std::mem::take(&mut self.gathered);
            if let Some(value) = self.step(gathered, most)? {
                return Ok(Some(value));
            }
        }
    }

    /// What was waited for is there.
    fn step(&mut self, gathered: Vec<u8>, most: usize) -> Result<Option<Option<Bytes>>, Odd> {
        self.stage = match (&self.stage, gathered.as_slice()) {
            (Stage::Head, head) if head == HEAD => Stage::Columns,
            (Stage::Columns, &[a, b]) => match i16::from_be_bytes([a, b]) {
                1 => Stage::Length,
                TRAILER => Stage::Over,
                _ => return Err(Odd),
            },
            (Stage::Length, &[a, b, c, d]) => match i32::from_be_bytes([a, b, c, d]) {
                NULL => {
                    self.stage = Stage::Columns;
                    return Ok(Some(None));
                }
                length => Stage::Content(usize::try_from(length).ok().filter(|l| *l <= most).ok_or(Odd)?),
            },
            (Stage::Content(_), _) => {
                self.stage = Stage::Columns;
                return Ok(Some(Some(gathered.into())));
            }
            _ => return Err(Odd),
        };
        Ok(None)
    }

    /// Whether the copy may end here.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn copy(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = HEAD.to_vec();
        for value in values {
            bytes.extend(1i16.to_be_bytes());
            let length = value.map_or(NULL, |value| value.len() as i32);
            bytes.extend(length.to_be_bytes());
            bytes.extend(value.unwrap_or_default());
        }
        bytes.extend(TRAILER.to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8], step: usize, most: usize) -> Result<(Vec<Option<Bytes>>, bool), Odd> {
        let (mut values, mut found) = (Values::default(), Vec::new());
        for piece in bytes.chunks(step) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(value) = values.next(&mut piece, most)? {
                found.push(value);
            }
            assert!(piece.is_empty());
        }
        Ok((found, values.is_over()))
    }

    #[test]
    fn values_are_found_wherever_the_stream_is_cut() {
        let long = vec![7; 900];
        let bytes = copy(&[Some(b"abc"), None, Some(b""), Some(&long)]);
        for step in [1, 2, 19, 100, 10_000] {
            let (values, over) = read(&bytes, step, 900).unwrap();
            let expected = [Some(b"abc".as_slice()), None, Some(b""), Some(long.as_slice())];
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            assert_eq!((values.as_slice(), over), (expected.as_slice(), true), "in steps of {step}");
            assert_eq!(read(&bytes, step, 899), Err(Odd), "more than was asked for");
            assert!(!read(&bytes[..bytes.len() - 1], step, 900).unwrap().1);
        }
        assert!(read(&[&bytes[..], b"x"].concat(), 100, 900).is_err(), "something behind the end");
    }

    proptest! {
        #[test]
        fn no_copy_makes_it_panic_or_gives_more_than_was_asked_for(
            at in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
            step in 1usize..64,
        ) {
            let mut bytes = copy(&[Some(b"abc"), None, Some(b""), Some(&[9; 80])]);
            for (at, to) in at {
                let length = bytes.len();
                bytes[at % length] = to;
            }
            if let Ok((values, _)) = read(&bytes, step, 80) {
                prop_assert!(values.iter().flatten().all(|value| value.len() <= 80));
            }
        }
    }
}
