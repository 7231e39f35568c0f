//! Reading the records of the log, as far as planning a recovery needs them: where they begin, when transactions ended,
//! restore points.

use crate::lsn::{Lsn, SegmentSize};

/// Pages of the log have this size unless PostgreSQL was built otherwise.
const PAGE: usize = 8192;
pub(super) const SHORT_HEADER: usize = 24;
pub(super) const LONG_HEADER: usize = 40;
pub(super) const RECORD_HEADER: usize = 24;
/// So much of each record is looked at: the header, what may stand before the main data, and a restore point.
const KEPT: usize = 160;
/// And so much of one that ends a prepared transaction: its number stands behind what else ended with it.
const KEPT_OF_PREPARED: usize = 4 << 20;
pub(super) const FIRST_IS_CONTINUATION: u16 = 0x0001;
pub(super) const LONG: u16 = 0x0002;
pub(super) const MANAGER_XLOG: u8 = 0;
const MANAGER_TRANSACTION: u8 = 1;
const RESTORE_POINT: u8 = 0x70;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
/// The first word of every page of PostgreSQL 17; newer ones have greater ones.
const MAGIC_17: u16 = 0xd116;
/// Microseconds between 1970 and 2000.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
/// PostgreSQL itself refuses longer ones.
pub(super) const RECORD_BYTES_MAX: u32 = 1 << 30;

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it begins.
    pub start: Lsn,
    /// What it is.
    pub kind: RecordKind,
}

/// What a record is, as far as recovery targets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKind {
    /// A transaction ended.
    End {
        /// Its number; `None` for a prepared one whose record is longer than what is looked at.
        xid: Option<u32>,
        /// How.
        ending: Ending,
        /// When, by the server's clock; nanoseconds since 1970.
        time: i64,
    },
    /// A name was given to this place.
    RestorePoint {
        /// The name.
        name: String,
        /// When; nanoseconds since 1970.
        time: i64,
    },
    /// Anything else.
    Other,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It took effect.
    Commit,
    /// It did not.
    Abort,
}

/// Takes stretches of a log and finds the records in them.
///
/// It may begin at the beginning of any segment, in the middle of a record, which is then passed over. A page that is not
/// one of the log, or a record that cannot be one, ends its segment: behind a switch of segments there are zeros.
#[derive(Debug)]
pub struct Records {
    size: SegmentSize,
    /// The first word of the last page.
    magic: u16,
    state: State,
}

#[derive(Debug)]
enum State {
    Between,
    Within {
        /// Where the record began; `None` when that was not seen.
        start: Option<Lsn>,
        /// Its first bytes.
        head: Vec<u8>,
        /// Bytes of it that are still to come.
        left: u32,
    },
}

impl Records {
    /// A reader for a log with segments of this size.
    pub fn new(size: SegmentSize) -> Self {
        Self { size, magic: 0, state: State::Between }
    }

    /// Where the record began that was not read to its end yet.
    pub fn open_record(&self) -> Option<Lsn> {
        match &self.state {
            State::Within { start, .. } => *start,
            State::Between => None,
        }
    }

    /// Reads a segment, or the beginning of one. Segments must follow each other.
    pub fn read(&mut self, number: u64, content: &[u8], visit: &mut dyn FnMut(Record)) {
        let base = self.size.start_of(number);
        for (index, page) in content.chunks(PAGE).enumerate() {
            if self.page(base.plus((index * PAGE) as u64), page, visit).is_none() {
                self.state = State::Between;
                return;
            }
        }
    }

    /// `None` when the page is none of the log, or the rest of it is empty.
    fn page(&mut self, base: Lsn, page: &[u8], visit: &mut dyn FnMut(Record)) -> Option<()> {
        if page.len() < SHORT_HEADER || page[1] != 0xd1 || u64_at(page, 8)? != base.get() {
            return None;
        }
        self.magic = u16::from_le_bytes(page[..2].try_into().ok()?);
        let info = u16::from_le_bytes(page[2..4].try_into().ok()?);
        let mut at = if info & LONG != 0 { LONG_HEADER } else { SHORT_HEADER };
        if info & FIRST_IS_CONTINUATION == 0 {
            self.state = State::Between;
        } else {
            let rest = u32_at(page, 16)?;
            // Another length than expected: that record was abandoned in a crash, and this is the rest of another one.
            if !matches!(&self.state, State::Within { left, .. } if *left == rest) {
                self.state = State::Within { start: None, head: Vec::new(), left: rest };
            }
        }
        loop {
            at = self.go_on(page, at, visit);
            if at + 4 > page.len() {
                return Some(());
            }
            let left = u32_at(page, at)?;
            if !(RECORD_HEADER as u32..=RECORD_BYTES_MAX).contains(&left) {
                return None;
            }
            self.state = State::Within { start: Some(base.plus(at as u64)), head: Vec::new(), left };
        }
    }

    /// Takes what the page has of the open record; gives where the next one begins.
    fn go_on(&mut self, page: &[u8], at: usize, visit: &mut dyn FnMut(Record)) -> usize {
        let State::Within { start, head, left } = &mut self.state else { return at };
        let here = page.get(at..).unwrap_or_default();
        let here = &here[..here.len().min(*left as usize)];
        if start.is_some() {
            keep(head, here);
        }
        *left -= here.len() as u32;
        if *left > 0 {
            return page.len();
        }
        if let Some(start) = *start {
            visit(Record { start, kind: kind(head, self.magic).unwrap_or(RecordKind::Other) });
        }
        self.state = State::Between;
        (at + here.len()).next_multiple_of(8)
    }
}

/// Takes what comes of a record, as far as it is looked at.
fn keep(head: &mut Vec<u8>, here: &[u8]) {
    let (first, rest) = here.split_at(here.len().min(KEPT.saturating_sub(head.len())));
    head.extend_from_slice(first);
    if ends_prepared(head) {
        head.extend_from_slice(&rest[..rest.len().min(KEPT_OF_PREPARED.saturating_sub(head.len()))]);
    }
}

fn ends_prepared(head: &[u8]) -> bool {
    let operation = head.get(16).map(|info| info & 0x70);
    head.get(17) == Some(&MANAGER_TRANSACTION) && matches!(operation, Some(COMMIT_PREPARED | ABORT_PREPARED))
}

fn kind(head: &[u8], magic: u16) -> Option<RecordKind> {
    let (info, manager) = (*head.get(16)? & 0xf0, *head.get(17)?);
    if manager == MANAGER_XLOG && info == RESTORE_POINT {
        let main = main_data(head)?;
        let name = main.get(8..72)?.split(|byte| *byte == 0).next()?;
        let name = String::from_utf8_lossy(name).into_owned();
        return Some(RecordKind::RestorePoint { name, time: time_at(main)? });
    }
    if manager != MANAGER_TRANSACTION {
        return None;
    }
    let main = main_data(head)?;
    let own = Some(u32_at(head, 4)?);
    let (ending, xid) = match info & 0x70 {
        0x00 => (Ending::Commit, own),
        0x20 => (Ending::Abort, own),
        COMMIT_PREPARED => (Ending::Commit, prepared(main, magic)),
        ABORT_PREPARED => (Ending::Abort, prepared(main, magic)),
        _ => return None,
    };
    Some(RecordKind::End { xid, ending, time: time_at(main)? })
}

/// The number of a prepared transaction: behind its time, flags that say what follows, and the lists that they name.
fn prepared(main: &[u8], magic: u16) -> Option<u32> {
    const HAS_DATABASE: u32 = 1;
    const HAS_PREPARED: u32 = 1 << 4;
    // Of subtransactions, relations that were dropped, statistics that were, and messages to other sessions; each begins
    // with how many there are.
    let statistic = if magic > MAGIC_17 { 16 } else { 12 };
    let lists: [(u32, usize); 4] = [(1 << 1, 4), (1 << 2, 12), (1 << 8, statistic), (1 << 3, 16)];
    let flags = u32_at(main, 8)?;
    let mut at: usize = if flags & HAS_DATABASE == 0 { 12 } else { 20 };
    for (_, bytes) in lists.into_iter().filter(|(flag, _)| flags & flag != 0) {
        let count = u32_at(main, at)? as usize;
        at = count.checked_mul(bytes)?.checked_add(at + 4)?;
    }
    if flags & HAS_PREPARED == 0 { None } else { u32_at(main, at) }
}

/// What belongs to the record itself and to no block. `None` for a record that has blocks.
fn main_data(head: &[u8]) -> Option<&[u8]> {
    let mut at = RECORD_HEADER;
    loop {
        at += match head.get(at)? {
            255 => return head.get(at + 2..),
            254 => return head.get(at + 5..),
            // The origin of a replicated transaction, and the transaction above it.
            253 => 3,
            252 => 5,
            _ => return None,
        };
    }
}

fn time_at(main: &[u8]) -> Option<i64> {
    let microseconds = u64_at(main, 0)? as i64;
    microseconds.checked_add(EPOCH_MICROSECONDS)?.checked_mul(1000)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A log of these records from the beginning of segment 1 on, as PostgreSQL lays it out; with where each begins.
    fn log(records: &[Vec<u8>]) -> (Vec<u8>, Vec<Lsn>) {
        let (mut out, mut starts) = (Vec::new(), Vec::new());
        let header = |out: &mut Vec<u8>, rest: u32| {
            let at = out.len() as u64;
            let long = at.is_multiple_of(MIB);
            let info = if long { LONG } else { 0 } | if rest > 0 { FIRST_IS_CONTINUATION } else { 0 };
            out.extend_from_slice(&0xd110_u16.to_le_bytes());
            out.extend_from_slice(&info.to_le_bytes());
            out.extend_from_slice(&1u32.to_le_bytes());
            out.extend_from_slice(&(MIB + at).to_le_bytes());
            out.extend_from_slice(&u64::from(rest).to_le_bytes());
            out.resize(out.len() + if long { 16 } else { 0 }, 7);
        };
        for record in records {
            out.resize(out.len().next_multiple_of(8), 0);
            let mut rest = &record[..];
            if out.len().is_multiple_of(PAGE) {
                header(&mut out, 0);
            }
            starts.push(Lsn::new(MIB + out.len() as u64));
            loop {
                let room = PAGE - out.len() % PAGE;
                let (now, later) = rest.split_at(room.min(rest.len()));
                out.extend_from_slice(now);
                if later.is_empty() {
                    break;
                }
                rest = later;
                header(&mut out, rest.len() as u32);
            }
        }
        (out, starts)
    }

    fn record(manager: u8, info: u8, xid: u32, main: &[u8]) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER];
        record[4..8].copy_from_slice(&xid.to_le_bytes());
        (record[16], record[17]) = (info, manager);
        record.extend_from_slice(&[253, 1, 0]);
        match u8::try_from(main.len()) {
            Ok(length) => record.extend_from_slice(&[255, length]),
            Err(_) => record.extend([&[254][..], &(main.len() as u32).to_le_bytes()].concat()),
        }
        record.extend_from_slice(main);
        let total = record.len() as u32;
        record[..4].copy_from_slice(&total.to_le_bytes());
        record
    }

    fn read(content: &[u8], size: SegmentSize) -> Vec<Record> {
        let (mut found, mut records) = (Vec::new(), Records::new(size));
        for (index, segment) in content.chunks(size.get() as usize).enumerate() {
            records.read(1 + index as u64, segment, &mut |record| found.push(record));
        }
        found
    }

    #[test]
    fn ends_of_transactions_and_restore_points_are_found_with_their_times() {
        let mut point = vec![0; 72];
        point[..8].copy_from_slice(&1_000_000i64.to_le_bytes());
        point[8..14].copy_from_slice(b"before");
        let commit = record(MANAGER_TRANSACTION, 0x80, 745, &2_000_000i64.to_le_bytes());
        let prepared = record(MANAGER_TRANSACTION, 0x30, 9, &3_000_000i64.to_le_bytes());
        let (content, starts) = log(&[
            record(MANAGER_XLOG, RESTORE_POINT, 0, &point),
            record(10, 0, 745, &[1; 9000]),
            commit,
            prepared,
        ]);
        let second = EPOCH_MICROSECONDS * 1000 + 1_000_000_000;
        let found = read(&content, SegmentSize::new(MIB).unwrap());
        let kinds = [
            RecordKind::RestorePoint { name: "before".into(), time: second },
            RecordKind::Other,
            RecordKind::End { xid: Some(745), ending: Ending::Commit, time: second + 1_000_000_000 },
            RecordKind::End { xid: None, ending: Ending::Commit, time: second + 2_000_000_000 },
        ];
        let expected = starts.into_iter().zip(kinds).map(|(start, kind)| Record { start, kind });
        assert_eq!(found, expected.collect::<Vec<_>>());
    }

    /// What ends a prepared transaction: time, flags, and what these name, lists with so many entries of so many bytes.
    fn end_of_prepared(flags: u32, lists: &[(u32, usize)], xid: u32) -> Vec<u8> {
        let mut main = 3_000_000i64.to_le_bytes().to_vec();
        main.extend(flags.to_le_bytes());
        main.extend([9; 8]);
        for (count, bytes) in lists {
            main.extend(count.to_le_bytes());
            main.resize(main.len() + *count as usize * bytes, 9);
        }
        main.extend(xid.to_le_bytes());
        // The name that it was prepared under.
        main.extend(b"two phases\0");
        main
    }

    #[test]
    fn a_prepared_transaction_is_known_by_the_number_that_it_was_prepared_with() {
        let size = SegmentSize::new(MIB).unwrap();
        let xid = |records: &[Vec<u8>], magic: Option<u16>| {
            let (mut content, _) = log(records);
            for page in content.chunks_mut(PAGE).filter(|_| magic.is_some()) {
                page[..2].copy_from_slice(&magic.unwrap_or_default().to_le_bytes());
            }
            match read(&content, size)[..] {
                [Record { kind: RecordKind::End { xid, .. }, .. }] => xid,
                ref other => panic!("{other:?}"),
            }
        };
        let all = 0b1_1001_1111;
        for info in [0x30 | 0x80, 0x40 | 0x80] {
            // Subtransactions, relations, statistics, messages. The first alone take more than ten pages.
            let main = end_of_prepared(all, &[(20_000, 4), (3, 12), (5, 12), (7, 16)], 4711);
            let records = [record(MANAGER_TRANSACTION, info, 0, &main)];
            assert_eq!(xid(&records, None), Some(4711));
            assert_eq!(xid(&records, Some(MAGIC_17)), Some(4711));
            // An entry of statistics is longer from 18 on.
            let main = end_of_prepared(all, &[(20_000, 4), (3, 12), (5, 16), (7, 16)], 4712);
            assert_eq!(xid(&[record(MANAGER_TRANSACTION, info, 0, &main)], Some(0xd118)), Some(4712));
            // One that says that more follows than does has no number, and is the end of a transaction all the same.
            let main = end_of_prepared(all, &[], u32::MAX);
            assert_eq!(xid(&[record(MANAGER_TRANSACTION, info, 0, &main)], None), None);
        }
    }

    proptest! {
        #[test]
        fn every_record_is_found_from_wherever_reading_begins(lengths in prop::collection::vec(0usize..40_000, 1..200)) {
            let records: Vec<_> = lengths.iter().map(|n| record(10, 0, 1, &vec![3; *n])).collect();
            let (content, starts) = log(&records);
            let size = SegmentSize::new(MIB).unwrap();
            let found: Vec<Lsn> = read(&content, size).into_iter().map(|r| r.start).collect();
            prop_assert_eq!(&found, &starts);
            // A tail that ends in the middle of a record does not have that record.
            let cut = content.len() - lengths.last().map_or(0, |n| n.min(&100) / 2) - 1;
            prop_assert_eq!(read(&content[..cut], size).len(), starts.len() - 1);
            if content.len() > MIB as usize {
                let (mut later, mut records) = (Vec::new(), Records::new(size));
                for (index, segment) in content.chunks(MIB as usize).enumerate().skip(1) {
                    records.read(1 + index as u64, segment, &mut |record| later.push(record.start));
                }
                let expected: Vec<Lsn> = starts.into_iter().filter(|start| start.get() >= 2 * MIB).collect();
                prop_assert_eq!(later, expected);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut content in prop::collection::vec(any::<u8>(), 0..20_000), page: bool) {
            if page && content.len() > 24 {
                (content[1], content[2], content[3]) = (0xd1, 1, 0);
                content[8..16].copy_from_slice(&MIB.to_le_bytes());
            }
            read(&content, SegmentSize::new(MIB).unwrap());
        }
    }
}
