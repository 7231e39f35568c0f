//! Signed statements: there is one text for each, and no other is read.
#![no_main]
use keepwell_crypto::{SigningKey, Statement};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let key = SigningKey::from_seed(&[3; 32]);
    if let Ok(statement) = Statement::parse(bytes) {
        assert_eq!(statement.to_text().as_bytes(), bytes);
        // Nobody here knows the secret of the seeds' signer.
        assert!(
            statement.envelope().verify(&key.verifying_key(), statement.repository(), "statement").is_err()
        );
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let repository = keepwell_crypto::RepositoryId::from_bytes([5; 16]);
    if let Ok(signed) = Statement::sign(&key, repository, text) {
        assert_eq!(Statement::parse(signed.to_text().as_bytes()), Ok(signed));
    }
});
