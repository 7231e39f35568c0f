//! Places of repositories as people type them: what is accepted is displayed so that it is understood alike.
#![no_main]
use keepwell_storage::Location;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(location) = text.parse::<Location>() {
        let shown = location.to_string();
        assert_eq!(shown.parse::<Location>().as_ref().ok(), Some(&location), "{text:?} became {shown:?}");
    }
});
