//! Text forms that people paste: recipients, identities, keys, ids.
#![no_main]
use keepwell_crypto::{ChunkId, GroupId, Identity, Recipient, SigningKey, VerifyingKey};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(recipient) = text.parse::<Recipient>() {
        assert_eq!(
            recipient.to_string().parse::<Recipient>().map(|r| r.to_string()).ok(),
            Some(recipient.to_string())
        );
    }
    if let Ok(identity) = Identity::parse(text) {
        let text = identity.to_secret_string().expect("it is in no device");
        let again = Identity::parse(text.expose()).expect("its own text");
        assert_eq!(again.recipient().to_string(), identity.recipient().to_string());
    }
    if let Ok(key) = SigningKey::parse(text) {
        let again = SigningKey::parse(key.to_secret_string().expose()).expect("its own text");
        assert_eq!(again.member_id(), key.member_id());
    }
    if let Ok(key) = text.parse::<VerifyingKey>() {
        assert_eq!(key.to_string().parse::<VerifyingKey>().ok(), Some(key));
    }
    if let Ok(id) = text.parse::<ChunkId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(id) = text.parse::<GroupId>() {
        assert_eq!(id.to_string(), text);
    }
});
