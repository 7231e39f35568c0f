//! The configuration file of the command: what is wrong is explained with its place, whatever the text is.
//!
//! The command is no library; its decoder and what that needs are compiled in here.
#![no_main]
#![allow(dead_code, reason = "of these files only the decoder is called")]

#[path = "../../../crates/cli/src/config.rs"]
mod config;
#[path = "../../../crates/cli/src/exit.rs"]
mod exit;
#[path = "../../../crates/cli/src/retention.rs"]
mod retention;
#[path = "../../../crates/cli/src/text.rs"]
mod text;

use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    for profile in [None, Some("nightly")] {
        let (file, home) = (Path::new("config.toml"), Path::new("/home/me"));
        let wanted = config::Wanted { file, file_is_named: true, profile, home };
        match config::read(text, "config.toml", &wanted) {
            Ok(loaded) => {
                let paths = loaded.profile.paths.iter().chain(&loaded.profile.key_file);
                assert!(paths.into_iter().all(|path| !path.starts_with("~")), "not expanded");
            }
            Err(error) => {
                assert!(!exit::one_line(&error).is_empty());
                assert_eq!(exit::exit_of(&error).number(), 2, "{error:?}");
            }
        }
    }
});
