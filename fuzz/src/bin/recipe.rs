//! Recipes: first the bytes as they are, then as the plain content of one frame; what is read is written again.
#![no_main]
use keepwell_catalog::RecipeReader;

fn read(stored: &[u8]) {
    let Ok(mut reader) = RecipeReader::new(stored) else { return };
    for key in [&b"a\0"[..], b"b\0", b"b\0c\0", b"\xff"] {
        if reader.advance_to(key).is_err() {
            assert!(reader.advance_to(b"\xff\xff").is_err(), "damage is reported again");
            return;
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    read(data);
    let mut plain = b"KWRCPE\0\x01".to_vec();
    plain.extend_from_slice(data);
    read(&zstd::encode_all(plain.as_slice(), 1).expect("in memory"));
});
