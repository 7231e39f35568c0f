//! Signed records: one value has one encoding.
#![no_main]
use keepwell_crypto::Signed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = Signed::from_bytes(data) {
        assert_eq!(signed.to_bytes(), data);
    }
});
