//! Texts that come from people and servers: connection strings, positions, names of segments, timeline histories.
#![no_main]
use keepwell_source_postgres::history::History;
use keepwell_source_postgres::lsn::{Lsn, Segment, SegmentSize, Timeline};
use keepwell_source_postgres::options::{ConnectOptions, Surroundings};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let last = Timeline::new(u32::MAX).expect("not zero");
    if let Ok(history) = History::parse(last, bytes) {
        for (timeline, end) in history.ancestors() {
            assert!(history.contains(*timeline, *end));
            assert_ne!(history.timeline_at(*end), *timeline);
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(lsn));
    }
    let size = SegmentSize::default();
    if let Ok(segment) = Segment::parse(text, size) {
        assert_eq!(segment.file_name(size), text);
    }
    // Files that a text names are not to be read here.
    if !text.contains('/') && !text.contains("ssl") && !text.contains("file") && !text.contains("service") {
        let surroundings = Surroundings { user: Some("fuzz".to_owned()), ..Surroundings::default() };
        if let Ok(options) = ConnectOptions::resolve(text, &surroundings, "fuzz") {
            assert!(!options.hosts.is_empty());
        }
    }
});
