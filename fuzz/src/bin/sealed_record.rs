//! Sealed records by somebody who has our recipient: whatever is inside decodes within its limit, or is refused.
#![no_main]
use std::sync::OnceLock;

use keepwell_catalog::open_record;
use keepwell_crypto::{Identity, seal};

const SECRET: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
const LIMIT_BYTES: usize = 1 << 16;
static IDENTITY: OnceLock<Identity> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let identity = IDENTITY.get_or_init(|| Identity::parse(SECRET).expect("the constant is an identity"));
    let sealed = seal(&[identity.recipient()], data).expect("in memory");
    if let Ok(plain) = open_record(std::slice::from_ref(identity), &sealed, LIMIT_BYTES) {
        assert!(plain.len() <= LIMIT_BYTES);
    }
});
