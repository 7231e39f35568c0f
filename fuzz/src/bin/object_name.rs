//! Names of objects: accepted exactly as they are written, and always valid keys of a store.
#![no_main]
use keepwell_catalog::{ContentName, ObjectName};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<ObjectName>() {
        assert_eq!(name.to_string(), text);
        assert_eq!(name.key().as_str(), text);
        assert!(!ObjectName::is_reserved(text));
    }
    if let Ok(name) = text.parse::<ContentName>() {
        assert_eq!(name.to_string(), text);
    }
});
