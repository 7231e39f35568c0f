//! The head of an archive of `pg_dump -Fc`.

use backup_core::env::Timestamp;

/// What the head of an archive says.
pub(super) struct ArchiveHead {
    /// Seconds, minutes, hours, day, month from 0, years since 1900.
    time: [i32; 6],
    pub database: String,
    pub server: String,
}

impl ArchiveHead {
    /// As nanoseconds since 1970; `None` for a time that no calendar has.
    pub fn time(&self, zone: &jiff::tz::TimeZone) -> Option<Timestamp> {
        let [second, minute, hour, day, month, year] = self.time.map(i16::try_from);
        let small = |n: Result<i16, _>, more: i16| i8::try_from(n.ok()?.checked_add(more)?).ok();
        let time = jiff::civil::DateTime::new(
            year.ok()?.checked_add(1900)?,
            small(month, 1)?,
            small(day, 0)?,
            small(hour, 0)?,
            small(minute, 0)?,
            small(second, 0)?,
            0,
        );
        let nanoseconds = time.ok()?.to_zoned(zone.clone()).ok()?.timestamp().as_nanosecond();
        Timestamp::try_from(nanoseconds).ok()
    }
}

/// Reads the head of a custom archive: magic, version, sizes of numbers, format, compression, time, names.
pub(super) fn archive_head(head: &[u8]) -> Option<ArchiveHead> {
    let (major, minor) = (*head.get(5)?, *head.get(6)?);
    let mut input = Input { rest: head.get(7..)?, int_size: 4 };
    // Revision; sizes of numbers and of offsets; format.
    input.byte()?;
    input.int_size = usize::from(input.byte()?);
    input.byte()?;
    input.byte()?;
    match (major, minor) {
        (1, 15..) => drop(input.byte()?),
        (1, 4..) => drop(input.number()?),
        _ => return None,
    }
    let mut time = [0; 6];
    for part in &mut time {
        *part = input.number()?;
    }
    // Whether summer time was in force.
    input.number()?;
    Some(ArchiveHead { time, database: input.text()?, server: input.text()? })
}

struct Input<'a> {
    rest: &'a [u8],
    int_size: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// A sign, then the bytes of the number, the least first.
    fn number(&mut self) -> Option<i32> {
        let negative = self.byte()? != 0;
        let mut value: u32 = 0;
        for at in 0..self.int_size {
            let byte = u32::from(self.byte()?);
            match at {
                0..=3 => value |= byte << (8 * at),
                _ if byte == 0 => {}
                _ => return None,
            }
        }
        let value = i32::try_from(value).ok()?;
        Some(if negative { -value } else { value })
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let text = self.rest.get(..length)?;
        self.rest = &self.rest[length..];
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_head_of_an_archive_says_when_it_was_made_and_of_what() {
        // Version 1.14, numbers of 4 bytes, offsets of 8, custom.
        let mut head = b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec();
        let mut number = |value: i32| {
            head.push(u8::from(value < 0));
            head.extend(value.unsigned_abs().to_le_bytes());
        };
        [-1, 5, 4, 3, 2, 0, 126, 0, 6].into_iter().for_each(&mut number);
        head.extend(b"clinic");
        head.extend([0, 4, 0, 0, 0]);
        head.extend(b"15.3");
        let archive = archive_head(&head).unwrap();
        assert_eq!((archive.database.as_str(), archive.server.as_str()), ("clinic", "15.3"));
        let time = archive.time(&jiff::tz::TimeZone::UTC).unwrap();
        assert_eq!(
            jiff::Timestamp::from_nanosecond(time.into()).unwrap().to_string(),
            "2026-01-02T03:04:05Z"
        );
        for length in 0..head.len() {
            assert!(archive_head(&head[..length]).is_none(), "{length}");
        }
        // The least number there is, of which there is no positive one.
        head[11..16].copy_from_slice(&[1, 0, 0, 0, 0x80]);
        assert!(archive_head(&head).is_none());
    }

    proptest! {
        #[test]
        fn no_head_makes_it_panic(rest in prop::collection::vec(any::<u8>(), 0..120), minor in 3u8..18, sizes in 0u8..9) {
            crate::logical::fuzz_archive_head(&[&b"PGDMP\x01"[..], &[minor, 0, sizes, 8, 1], &rest].concat());
        }
    }
}
