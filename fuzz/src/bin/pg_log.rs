//! Records of a log, as whoever wrote the archive would have them: from the middle of one on, with segments that are missing.
#![no_main]
use keepwell_source_postgres::log::{RecordKind, Records};
use keepwell_source_postgres::lsn::SegmentSize;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let size = SegmentSize::new(1 << 20).expect("a size that clusters have");
    let Some((cut, content)) = bytes.split_first() else { return };
    // Two segments, the first of them cut somewhere.
    let (first, second) = content.split_at(usize::from(*cut) * 97 % (content.len() + 1));
    for numbers in [(1, 2), (1, 5), (0xff_ffff_ffff, 0x100_0000_0000)] {
        let (mut records, mut last) = (Records::new(size), None);
        for (number, segment) in [(numbers.0, first), (numbers.1, second)] {
            let end = size.start_of(number).plus(segment.len() as u64);
            records.read(number, segment, &mut |record| {
                assert!(last.is_none_or(|last| record.start > last) && record.start < end);
                last = Some(record.start);
                if let RecordKind::RestorePoint { name, .. } = record.kind {
                    assert!(name.len() <= 3 * 64);
                }
            });
            assert!(records.open_record().is_none_or(|open| open < end));
        }
    }
});
