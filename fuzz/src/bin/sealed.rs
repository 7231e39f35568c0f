//! Headers of sealed objects, and whole objects that nobody sealed to us.
#![no_main]
use std::sync::OnceLock;

use keepwell_crypto::{Identity, MAX_HEADER_BYTES, header_len, open};

static IDENTITY: OnceLock<Identity> = OnceLock::new();
const SECRET: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(length) = header_len(data) {
        assert!(length <= data.len() && length <= MAX_HEADER_BYTES && data[length - 1] == b'\n');
        assert_eq!(header_len(&data[..length]).ok(), Some(length));
    }
    let identity = IDENTITY.get_or_init(|| Identity::parse(SECRET).expect("the constant is an identity"));
    if let Ok(plain) = open(std::slice::from_ref(identity), data, 1 << 20) {
        assert!(plain.len() < data.len());
    }
});
