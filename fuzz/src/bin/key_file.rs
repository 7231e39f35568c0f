//! Key files: what is parsed is written and parsed again; an error never repeats a secret.
#![no_main]
use keepwell_crypto::keyfile::KeyFile;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match KeyFile::parse(text) {
        Ok(file) => {
            let written = file.to_toml();
            let again = KeyFile::parse(written.expose()).expect("its own text");
            assert_eq!(again.to_toml().expose(), written.expose());
            if file.owner.is_some() {
                let kit = file.recovery_kit_text().expect("an owner has a recovery kit");
                assert!(KeyFile::parse(kit.expose()).is_ok());
            }
        }
        Err(error) => {
            // A message may name the form of a key, `AGE-SECRET-KEY-1…`, and nothing of what follows in the text.
            let message = error.to_string();
            assert!(message.split("KEY-1").skip(1).all(|rest| rest.starts_with('…')), "{message}");
        }
    }
});
