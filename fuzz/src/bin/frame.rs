//! Frames: any bytes decode within the limit or are refused, and honest ones give their content back.
#![no_main]
use backup_core::pack::decode_frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(plain) = decode_frame(data, None) {
        assert!(plain.len() <= 8 << 20);
        assert_eq!(decode_frame(data, Some(plain.len())).expect("the same frame"), plain);
        assert!(decode_frame(data, Some(plain.len() + 1)).is_err());
    }
    let frame = zstd::bulk::compress(data, 1).expect("in memory");
    assert_eq!(decode_frame(&frame, Some(data.len())).expect("an honest frame"), data);
    assert!(decode_frame(&frame[..frame.len() - 1], None).is_err());
});
