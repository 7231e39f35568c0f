//! Keyrings and the keys of an erasable domain: what is decoded is encoded the same again.
#![no_main]
use keepwell_crypto::keyring::{DomainKeys, Keyring};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(keyring) = Keyring::from_bytes(data) {
        let bytes = keyring.to_bytes();
        assert_eq!(*Keyring::from_bytes(&bytes).expect("its own bytes").to_bytes(), *bytes);
        assert!(keyring.without_read_keys().to_bytes().len() <= bytes.len());
    }
    if let Ok(keys) = DomainKeys::from_bytes(data) {
        let bytes = keys.to_bytes();
        assert_eq!(*DomainKeys::from_bytes(&bytes).expect("its own bytes").to_bytes(), *bytes);
    }
});
