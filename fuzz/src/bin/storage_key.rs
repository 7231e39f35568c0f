//! Keys of objects: what is accepted stays as it was, and cannot leave a directory.
#![no_main]
use keepwell_storage::Key;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(key) = text.parse::<Key>() {
        assert_eq!(key.as_str(), text);
        assert_eq!(key.to_string(), text);
        assert!(!text.starts_with('/') && text.len() <= 512);
        assert!(text.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255));
    }
});
