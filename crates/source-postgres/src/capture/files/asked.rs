//! The bytes of a file that the server reads for us, a range at a time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::changes::Stretch;
use super::file::Bits;
use super::sessions::{Asking, PIECE, Sessions};
use crate::logical::names::literal;
use crate::wire::PgError;

/// Ranges of one question.
const RANGES_MAX: usize = 256;
/// Questions that wait for their answer, so that the server reads while we work.
const AHEAD: usize = 2;

/// Part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    at: u64,
    bytes: u64,
}

/// What of a file is to be read, as one question after the other.
fn questions(stretches: &[Stretch]) -> VecDeque<VecDeque<Range>> {
    let (mut all, mut last, mut bytes, mut begin) = (VecDeque::new(), VecDeque::new(), 0, 0);
    for stretch in stretches {
        let mut at = std::mem::replace(&mut begin, stretch.end);
        while !stretch.kept && at < stretch.end {
            let range = Range { at, bytes: (stretch.end - at).min(PIECE) };
            if bytes + range.bytes > PIECE || last.len() == RANGES_MAX {
                all.push_back(std::mem::take(&mut last));
                bytes = 0;
            }
            (at, bytes) = (at + range.bytes, bytes + range.bytes);
            last.push_back(range);
        }
    }
    if !last.is_empty() {
        all.push_back(last);
    }
    all
}

/// The same in SQL. What is not there is NULL.
fn question(path: &str, ranges: &VecDeque<Range>) -> String {
    let list = |number: fn(&Range) -> u64| {
        ranges.iter().map(|range| number(range).to_string()).collect::<Vec<_>>().join(",")
    };
    format!(
        "SELECT pg_read_binary_file({}, r.at, r.bytes, true) FROM unnest('{{{}}}'::bigint[], '{{{}}}'::bigint[]) AS r(at, bytes)",
        literal(path),
        list(|range| range.at),
        list(|range| range.bytes)
    )
}

/// A file that is read through a session, front to back.
pub(super) struct Asked {
    sessions: Arc<Sessions>,
    path: String,
    /// Questions to come.
    questions: VecDeque<VecDeque<Range>>,
    /// What of those that were sent has not arrived.
    sent: VecDeque<VecDeque<Range>>,
    asking: Option<Asking>,
    /// What arrived last, and where it belongs.
    held: (u64, Bytes),
    /// Whether less arrived than was asked for: the file ends there.
    cut: bool,
    /// Whether it may vanish: what recovery makes anew, or removes.
    may_vanish: bool,
}

impl Asked {
    /// Of a file below the data directory.
    pub fn new(sessions: &Arc<Sessions>, path: &str, stretches: &[Stretch], may_vanish: bool) -> Self {
        Self {
            sessions: Arc::clone(sessions),
            path: path.to_owned(),
            questions: questions(stretches),
            sent: VecDeque::new(),
            asking: None,
            held: (0, Bytes::new()),
            cut: false,
            may_vanish,
        }
    }

    /// A file all of which was read already.
    pub fn held(sessions: &Arc<Sessions>, path: &str, content: Bytes) -> Self {
        Self { held: (0, content), ..Self::new(sessions, path, &[], true) }
    }

    /// The next range, with what is there of it; `None` when all have been read.
    async fn next(&mut self) -> Result<Option<(Range, Option<Bytes>)>, PgError> {
        if self.sent.is_empty() && self.questions.is_empty() {
            return Ok(None);
        }
        let mut asking = match self.asking.take() {
            Some(asking) => asking,
            None => Asking::new(self.sessions.take().await?),
        };
        while self.sent.len() < AHEAD
            && let Some(ranges) = self.questions.pop_front()
        {
            asking.ask(&question(&self.path, &ranges)).await?;
            self.sent.push_back(ranges);
        }
        let odd =
            || PgError::Protocol("it sends fewer or more ranges of a file than were asked for".to_owned());
        let ranges = self.sent.front_mut().ok_or_else(odd)?;
        let range = ranges.pop_front().ok_or_else(odd)?;
        let value = asking.next().await?.ok_or_else(odd)?;
        if value.as_ref().is_some_and(|value| value.len() as u64 > range.bytes) {
            return Err(odd());
        }
        if ranges.is_empty() {
            if asking.next().await?.is_some() {
                return Err(odd());
            }
            self.sent.pop_front();
        }
        if self.sent.is_empty() && self.questions.is_empty() {
            self.sessions.give(asking.client);
        } else {
            self.asking = Some(asking);
        }
        Ok(Some((range, value)))
    }
}

impl Bits for Asked {
    fn read_at(&mut self, buffer: &mut [u8], mut at: u64) -> io::Result<usize> {
        let mut got = 0;
        while got < buffer.len() {
            let (begin, held) = &self.held;
            let skipped = at.checked_sub(*begin).and_then(|skipped| usize::try_from(skipped).ok());
            if let Some(rest) =
                skipped.and_then(|skipped| held.get(skipped..)).filter(|rest| !rest.is_empty())
            {
                let bytes = rest.len().min(buffer.len() - got);
                buffer[got..got + bytes].copy_from_slice(&rest[..bytes]);
                (got, at) = (got + bytes, at + bytes as u64);
                continue;
            }
            if self.cut {
                break;
            }
            let sessions = Arc::clone(&self.sessions);
            let Some((range, value)) = sessions.block_on(self.next())? else { break };
            if value.is_none() && !self.may_vanish {
                return Err(io::Error::new(io::ErrorKind::NotFound, "it vanished while it was read"));
            }
            self.held = (range.at, value.unwrap_or_default());
            self.cut = (self.held.1.len() as u64) < range.bytes;
        }
        Ok(got)
    }

    fn read_again(&mut self, page: &mut [u8], at: u64) -> io::Result<usize> {
        let range = Range { at, bytes: page.len() as u64 };
        let question = question(&self.path, &VecDeque::from([range]));
        let values = self.sessions.block_on(self.sessions.values(&question))?;
        let found = values.into_iter().next().flatten().unwrap_or_default();
        let bytes = found.len().min(page.len());
        page[..bytes].copy_from_slice(&found[..bytes]);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `at+bytes` of every range, questions apart by `|`, in KiB.
    fn of(stretches: &[(u64, bool)]) -> String {
        let stretches: Vec<Stretch> =
            stretches.iter().map(|(end, kept)| Stretch { end: end << 10, kept: *kept }).collect();
        let range = |range: &Range| format!("{}+{}", range.at >> 10, range.bytes >> 10);
        let ranges = |ranges: &VecDeque<Range>| ranges.iter().map(range).collect::<Vec<_>>().join(" ");
        questions(&stretches).iter().map(ranges).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn a_question_is_for_a_mebibyte_at_most() {
        assert_eq!(of(&[]), "");
        assert_eq!(of(&[(0, false)]), "");
        assert_eq!(of(&[(1024, false)]), "0+1024");
        assert_eq!(of(&[(2500, false)]), "0+1024 | 1024+1024 | 2048+452");
        assert_eq!(of(&[(8, true), (16, false), (800, true), (808, false), (900, true)]), "8+8 800+8");
        assert_eq!(of(&[(8, false), (16, true), (1040, false)]), "0+8 | 16+1024");
        let scattered: Vec<(u64, bool)> = (1..=600).map(|n| (n, n % 2 == 0)).collect();
        assert_eq!(of(&scattered).split(" | ").map(|q| q.split(' ').count()).collect::<Vec<_>>(), [256, 44]);
    }

    #[test]
    fn a_question_names_the_file_and_its_ranges() {
        let ranges = VecDeque::from([Range { at: 0, bytes: 8192 }, Range { at: 16384, bytes: 5 }]);
        assert_eq!(
            question("log/it's", &ranges),
            "SELECT pg_read_binary_file('log/it''s', r.at, r.bytes, true) \
             FROM unnest('{0,16384}'::bigint[], '{8192,5}'::bigint[]) AS r(at, bytes)"
        );
    }
}
