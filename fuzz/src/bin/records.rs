//! Payloads of signed records and manifests. The first byte chooses the kind.
//!
//! Decoders skip fields that they do not know, so it is the decoded value that must survive.
#![no_main]
use keepwell_catalog::{Commit, Kept, List, Manifest, Marks, Plan, Retired, Session};

macro_rules! round_trip {
    ($kind:ty, $bytes:expr) => {
        if let Ok(record) = <$kind>::decode($bytes) {
            let encoded = record.encode();
            assert_eq!(<$kind>::decode(&encoded).expect("its own bytes"), record);
        }
    };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        0 => round_trip!(Commit, bytes),
        1 => round_trip!(Session, bytes),
        2 => round_trip!(List, bytes),
        3 => round_trip!(Retired, bytes),
        4 => round_trip!(Plan, bytes),
        5 => round_trip!(Kept, bytes),
        6 => round_trip!(Marks, bytes),
        _ => round_trip!(Manifest, bytes),
    }
});
