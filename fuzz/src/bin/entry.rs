//! Entries of a snapshot. A decoder skips fields that it does not know, so only what it knows is compared.
#![no_main]
use keepwell_catalog::Entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(entry) = Entry::decode(data) {
        if entry.content.len() > keepwell_catalog::INLINE_EXTENTS_MAX {
            return;
        }
        let encoded = entry.encode().expect("what was decoded can be encoded");
        assert!(encoded.len() <= data.len());
        assert_eq!(Entry::decode(&encoded).expect("what was encoded can be decoded"), entry);
        if encoded.len() == data.len() {
            assert_eq!(encoded, data);
        }
    }
});
