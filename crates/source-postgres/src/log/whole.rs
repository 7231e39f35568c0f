//! Whether a server has come to the end of a segment.

use crate::lsn::Lsn;

use super::records::{
    FIRST_IS_CONTINUATION, LONG, LONG_HEADER, MANAGER_XLOG, RECORD_BYTES_MAX, RECORD_HEADER, SHORT_HEADER,
    u32_at, u64_at,
};

/// The record that the page before left open was abandoned in a crash (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
const FIRST_IS_IN_ITS_PLACE: u16 = 0x0008;
const SWITCH: u8 = 0x40;

/// Where the log of a segment ends before the segment does; `None` for a whole one. `content` has the first page of one, and
/// as many bytes.
///
/// A standby that archives (`archive_mode = always`) hands over what it has not received to its end, when its server shuts
/// down, ends its timeline, or gave it a file that is filled up with zeros. Behind the end are zeros then, or what the file
/// held before. So every page must have its place in the log, and every record name the one before it, as they have for a
/// server that recovers; behind a switch of segments is nothing but zeros. What the last record has on the last page is not
/// looked at.
pub(crate) fn unfinished(content: &[u8]) -> Option<Lsn> {
    let start = u64_at(content, 8).unwrap_or_default();
    let page_bytes = u32_at(content, LONG_HEADER - 4).unwrap_or_default() as usize;
    if !page_bytes.is_power_of_two() || !(1 << 10..=1 << 16).contains(&page_bytes) {
        return Some(Lsn::new(start));
    }
    let mut walk = Walk::default();
    for (index, page) in content.chunks(page_bytes).enumerate() {
        match walk.page(Lsn::new(start).plus((index * page_bytes) as u64), page) {
            Page::GoesOn => {}
            Page::Switched => return None,
            Page::MaySwitch(at) => {
                let rest = content.get(index * page_bytes + at..).unwrap_or_default();
                return rest.iter().any(|byte| *byte != 0).then(|| Lsn::new(start).plus(at as u64));
            }
            Page::Ends(at) => return Some(at),
        }
    }
    None
}

/// How it goes on behind a page.
enum Page {
    GoesOn,
    /// The next segment follows.
    Switched,
    /// So far into this page it does not, behind a record whose header begins in the segment before: that may be a switch.
    MaySwitch(usize),
    /// Here is nothing of this place in the log.
    Ends(Lsn),
}

/// A record that is not read to its end yet.
struct Open {
    /// Where it begins; `None` for one of the segment before, of which no header is seen.
    start: Option<Lsn>,
    header: [u8; RECORD_HEADER],
    /// So much of the header is known: it may lie on two pages.
    known: usize,
    left: u32,
}

#[derive(Default)]
struct Walk {
    begun: bool,
    /// Whether the only record so far is one whose header began in the segment before.
    is_within_header: bool,
    open: Option<Open>,
    /// Where the record before began, as far as that was seen.
    previous: Option<Lsn>,
}

impl Walk {
    fn page(&mut self, base: Lsn, page: &[u8]) -> Page {
        let (Some(word), Some(rest)) = (u32_at(page, 0), u32_at(page, 16)) else { return Page::Ends(base) };
        let info = (word >> 16) as u16;
        if page[1] != 0xd1 || u64_at(page, 8) != Some(base.get()) || !self.continues(info, rest) {
            return Page::Ends(base);
        }
        let mut at = if info & LONG != 0 { LONG_HEADER } else { SHORT_HEADER };
        loop {
            if let Some(open) = &mut self.open {
                let here = page.get(at..).unwrap_or_default();
                let here = &here[..here.len().min(open.left as usize)];
                if !open.take(here, self.previous) {
                    return Page::Ends(open.start.unwrap_or(base));
                }
                if open.left > 0 {
                    return Page::GoesOn;
                }
                if open.is_switch() {
                    return Page::Switched;
                }
                self.previous = open.start;
                self.open = None;
                at = (at + here.len()).next_multiple_of(8);
            }
            let Some(left) = u32_at(page, at) else { return Page::GoesOn };
            if std::mem::take(&mut self.is_within_header) && left == 0 {
                return Page::MaySwitch(at);
            }
            let start = base.plus(at as u64);
            if !(RECORD_HEADER as u32..=RECORD_BYTES_MAX).contains(&left) {
                return Page::Ends(start);
            }
            self.open = Some(Open::new(Some(start), left));
        }
    }

    /// Whether a page that says this of its first record may follow.
    fn continues(&mut self, info: u16, rest: u32) -> bool {
        let is_first = !std::mem::replace(&mut self.begun, true);
        let left = self.open.as_ref().map(|open| open.left);
        match (left, info & FIRST_IS_CONTINUATION != 0) {
            (None, true) if is_first => {
                self.open = Some(Open::new(None, rest));
                self.is_within_header = (rest as usize) < RECORD_HEADER;
                true
            }
            (None, goes_on) => !goes_on,
            (Some(left), true) => left == rest,
            (Some(_), false) => {
                (self.open, self.previous) = (None, None);
                info & FIRST_IS_IN_ITS_PLACE != 0
            }
        }
    }
}

impl Open {
    fn new(start: Option<Lsn>, left: u32) -> Self {
        Self { start, header: [0; RECORD_HEADER], known: 0, left }
    }

    /// Takes what a page has of it. `false` if it does not name the record before it.
    fn take(&mut self, here: &[u8], previous: Option<Lsn>) -> bool {
        self.left -= here.len() as u32;
        let more = here.len().min(RECORD_HEADER - self.known);
        if self.start.is_none() || more == 0 {
            return true;
        }
        self.header[self.known..self.known + more].copy_from_slice(&here[..more]);
        self.known += more;
        let is_known = self.known == RECORD_HEADER;
        !is_known || previous.is_none_or(|previous| u64_at(&self.header, 8) == Some(previous.get()))
    }

    fn is_switch(&self) -> bool {
        self.start.is_some() && self.header[17] == MANAGER_XLOG && self.header[16] & 0xf0 == SWITCH
    }
}

#[cfg(test)]
mod tests {
    use std::iter::{once, repeat};

    use super::*;
    use crate::testing::{SYSTEM, content, finished, size};

    const PAGE: usize = 8192;
    const MIB: usize = 1 << 20;

    fn begin_page(out: &mut Vec<u8>, rest: usize) {
        let is_first = out.is_empty();
        let long = if is_first { LONG } else { 0 };
        let info = if rest > 0 { long | FIRST_IS_CONTINUATION } else { long };
        let address = (MIB + out.len()) as u64;
        out.extend_from_slice(&0xd110_u16.to_le_bytes());
        out.extend_from_slice(&info.to_le_bytes());
        out.extend_from_slice(&1_u32.to_le_bytes());
        out.extend_from_slice(&address.to_le_bytes());
        out.extend_from_slice(&(rest as u64).to_le_bytes());
        if is_first {
            out.extend_from_slice(&SYSTEM.to_le_bytes());
            out.extend_from_slice(&(MIB as u32).to_le_bytes());
            out.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    /// Segment 1 with records of these lengths, one after the other, as far as it goes; with where each begins.
    fn segment(lengths: impl IntoIterator<Item = usize>) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut starts) = (Vec::new(), Vec::<usize>::new());
        for length in lengths {
            out.resize(out.len().next_multiple_of(8), 0);
            if out.len() == MIB {
                break;
            }
            if out.len().is_multiple_of(PAGE) {
                begin_page(&mut out, 0);
            }
            let mut record = vec![9; length];
            record[..4].copy_from_slice(&(length as u32).to_le_bytes());
            let previous = starts.last().map_or(0, |at| MIB + at);
            record[8..16].copy_from_slice(&(previous as u64).to_le_bytes());
            starts.push(out.len());
            let mut rest = &record[..];
            loop {
                let (now, later) = rest.split_at((PAGE - out.len() % PAGE).min(rest.len()));
                out.extend_from_slice(now);
                rest = later;
                if rest.is_empty() || out.len() == MIB {
                    break;
                }
                begin_page(&mut out, rest.len());
            }
            if out.len() == MIB {
                break;
            }
        }
        (out, starts)
    }

    fn end(offset: usize) -> Option<Lsn> {
        Some(Lsn::new((MIB + offset) as u64))
    }

    #[test]
    fn what_was_not_received_to_its_end_is_not_whole_whatever_lies_behind() {
        // Of such lengths some headers of records lie on two pages.
        let (whole, starts) = segment((0..).map(|number| 24 + number * 37));
        assert_eq!((whole.len(), unfinished(&whole)), (MIB, None));
        let (zeros, stale) = (vec![0; MIB], content(SYSTEM, 7, 5));
        let (mut other, _) = segment(repeat(80));
        other.chunks_mut(PAGE).for_each(|page| page[10] = 0x70);
        let cuts = (48..MIB).step_by(9973).chain(starts.iter().map(|at| at + 24));
        for cut in cuts.filter(|cut| *cut < MIB - PAGE) {
            for behind in [&zeros, &stale, &other] {
                let torn = [&whole[..cut], &behind[cut..]].concat();
                let found = unfinished(&torn).map(Lsn::get);
                assert!(found.is_some_and(|at| at <= (MIB + cut + PAGE) as u64), "cut at {cut}: {found:?}");
            }
        }
    }

    #[test]
    fn behind_a_switch_of_segments_is_nothing() {
        let (mut switched, starts) = segment([100, 5000, 8000, 24]);
        switched.resize(MIB, 0);
        assert_eq!(unfinished(&switched), end(starts[3] + 24));
        (switched[starts[3] + 16], switched[starts[3] + 17]) = (SWITCH, MANAGER_XLOG);
        assert_eq!(unfinished(&switched), None);
        switched[starts[3] + 17] = 1;
        assert_eq!(unfinished(&switched), end(starts[3] + 24), "another kind of record");
    }

    #[test]
    fn a_switch_whose_header_began_in_the_segment_before_ends_this_one() {
        let mut log = Vec::new();
        begin_page(&mut log, 16);
        log.resize(LONG_HEADER + 16, 9);
        log.resize(MIB, 0);
        assert_eq!(unfinished(&log), None);
        log[MIB - 1] = 1;
        assert_eq!(unfinished(&log), end(LONG_HEADER + 16), "what the file held before lies there");
        log[MIB - 1] = 0;
        log[16] = 24;
        assert_eq!(unfinished(&log), end(LONG_HEADER + 24), "all of its header is here, and it is none");
    }

    #[test]
    fn a_record_that_was_abandoned_in_a_crash_is_followed_by_another() {
        let (mut log, _) = segment([100, 20_000]);
        log.truncate(PAGE);
        let (others, starts) = segment(once(PAGE - LONG_HEADER).chain(repeat(3000)));
        assert_eq!(starts[1], PAGE + SHORT_HEADER);
        log.extend_from_slice(&others[PAGE..]);
        assert_eq!(unfinished(&log), end(PAGE), "nobody says that it was");
        log[PAGE + 2..PAGE + 4].copy_from_slice(&FIRST_IS_IN_ITS_PLACE.to_le_bytes());
        assert_eq!(unfinished(&log), None);
    }

    #[test]
    fn a_segment_within_one_record_is_whole_and_zeros_are_none() {
        let mut torn = finished(SYSTEM, 3, 1);
        assert_eq!(unfinished(&torn), None);
        let start = size().start_of(3);
        torn[5 * PAGE..].fill(0);
        assert_eq!(unfinished(&torn), Some(start.plus(5 * PAGE as u64)));
        torn[36..40].fill(1);
        assert_eq!(unfinished(&torn), Some(start), "no page has this length");
        assert!(unfinished(&[]).is_some() && unfinished(&torn[..40]).is_some());
    }
}
