//! Key files and recovery kits.

use keepwell_crypto::keyfile::{KeyFile, KeyFileError, MemberKeys, OwnerKeys, UnprotectError};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{Digest, Identity, RepositoryId, Secret, SigningKey};
use proptest::prelude::*;

fn key_file() -> KeyFile {
    KeyFile {
        repository: RepositoryId::from_bytes([0xab; 16]),
        genesis: Digest::of(b"genesis"),
        name: "alice \"a\\b\"\t\u{1f510}".into(),
        owner: Some(OwnerKeys { identity: Identity::generate(), root: SigningKey::generate() }),
        member: Some(MemberKeys {
            identity: Identity::generate(),
            signing: SigningKey::generate(),
            roles: Roles::WRITER | Roles::KEEPER,
        }),
        store_hint: Some("s3://bucket/prefix".into()),
    }
}

fn place(text: &str) -> (usize, usize, String) {
    match KeyFile::parse(text).unwrap_err() {
        KeyFileError::At { line, column, reason } => (line, column, reason),
        other => panic!("{other}"),
    }
}

#[test]
fn round_trip() {
    let file = key_file();
    let text = file.to_toml();
    let again = KeyFile::parse(text.expose()).unwrap();
    assert_eq!(again.to_toml().expose(), text.expose());
    assert_eq!((again.name, again.genesis, again.store_hint), (file.name, file.genesis, file.store_hint));
    assert_eq!(again.member.unwrap().roles, Roles::WRITER | Roles::KEEPER);
    let owner = again.owner.unwrap();
    assert_eq!(owner.root.member_id(), file.owner.unwrap().root.member_id());
}

#[test]
fn the_recovery_kit_explains_itself_and_parses() {
    let file = key_file();
    let kit = file.recovery_kit_text().unwrap();
    let again = KeyFile::parse(kit.expose()).unwrap();
    assert!(again.member.is_none());
    assert_eq!(again.owner.as_ref().unwrap().root.member_id(), file.owner.as_ref().unwrap().root.member_id());
    assert_eq!((again.repository, again.genesis), (file.repository, file.genesis));
    for words in ["RECOVERY KIT", "How to store it", "without Keepwell", "age -d", "zstd -d", "sha256sum"] {
        assert!(kit.expose().contains(words), "{words}");
    }
    assert!(kit.expose().lines().all(|line| line.chars().count() <= 96), "it must fit on paper");
    // The reader in plain Python finds keys by pattern: the comments must not look like one.
    assert_eq!(kit.expose().matches("AGE-SECRET-KEY-1").count(), 1);
    let without_owner = KeyFile { owner: None, ..file };
    assert!(matches!(without_owner.recovery_kit_text(), Err(KeyFileError::NoOwner { .. })));
}

#[test]
fn unknown_keys_are_refused_with_their_position() {
    let text = key_file().to_toml();
    let line = text.expose().lines().position(|line| line.starts_with("[member]")).unwrap() + 2;
    let with = text.expose().replace("[member]\n", "[member]\npassword = \"hunter2\"\n");
    assert_eq!(place(&with), (line, 1, "the key `password` is unknown".into()));
    assert_eq!(
        KeyFile::parse(&with).unwrap_err().to_string(),
        format!("the key file is wrong at line {line}, column 1: the key `password` is unknown")
    );
}

#[test]
fn wrong_values_are_refused_with_their_position() {
    let text = key_file().to_toml();
    let text = text.expose();
    let line_of = |start: &str| text.lines().position(|line| line.starts_with(start)).unwrap() + 1;
    let line = line_of("genesis");
    assert_eq!(
        place(&text.replace("genesis = \"", "genesis = \"z")),
        (line, 11, "not a digest: 64 lower-case hex digits are needed".into())
    );
    let roles = text.replace("\"keeper\"", "\"root\"");
    assert_eq!(place(&roles), (line_of("roles"), 20, "a role is `writer`, `reader` or `keeper`".into()));
    let none = text.replace("[\"writer\", \"keeper\"]", "[]");
    assert_eq!(place(&none), (line_of("roles"), 9, "at least one role is needed".into()));
    let newer = text.replace("format = 1", "format = 2");
    assert_eq!(place(&newer), (line_of("format"), 10, "only format 1 is known to this version".into()));
    let typed = text.replace("format = 1", "format = \"1\"");
    assert_eq!(place(&typed), (line_of("format"), 10, "a value has the wrong type".into()));
    let missing = text.replace("genesis", "# genesis");
    assert_eq!(place(&missing).2, "the key `genesis` is missing");
    let keyless = &text[..text.find("[owner]").unwrap()];
    assert_eq!(place(keyless).2, "neither `[owner]` nor `[member]` is there");
    assert_eq!(place("a = [").2, "this is not TOML");
}

/// Breaks a genuine file in every way that comes to mind; no message may repeat a secret.
#[test]
fn no_error_repeats_a_secret() {
    let file = key_file();
    let text = file.to_toml();
    let text = text.expose();
    let owner = file.owner.as_ref().unwrap();
    let secrets = [owner.identity.to_secret_string().unwrap(), owner.root.to_secret_string()];
    for secret in &secrets {
        let secret = secret.expose();
        let (middle, lower) = (&secret[30..60], secret.to_lowercase());
        let typo = format!("{}!{}", &secret[..70], &secret[70..]);
        let broken = [
            text.replace(secret, &typo),
            text.replace(&format!("\"{secret}\""), secret),
            text.replace(&format!("\"{secret}\""), &format!("[\"{secret}\"]")),
            text.replace(&format!("\"{secret}\""), &format!("\"{secret}")),
            text.replace("format = 1", &format!("format = \"{secret}\"")),
            text.replace("name = ", &format!("{secret} = ")),
            text.replace("name = ", &format!("{lower} = ")),
            text.replace("name = ", &format!("name = {{ \"{secret}\" = 1 }}\nx = ")),
            text.replace("\"keeper\"", &format!("\"{secret}\"")),
            text.replace("[member]", &format!("[{secret}]")),
            text.replace("genesis = \"", &format!("genesis = \"{secret}")),
            format!("{secret}\n{text}"),
        ];
        for (case, broken) in broken.iter().enumerate() {
            let error = KeyFile::parse(broken).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(
                !shown.contains(middle) && !shown.to_uppercase().contains(middle),
                "case {case}: {shown}"
            );
        }
    }
    let shown = format!("{file:?}");
    assert!(!shown.contains("SECRET-KEY-1") && !shown.contains("SIGNING-KEY-1"), "{shown}");
}

#[test]
fn a_passphrase_protects_and_age_opens_it() {
    let file = key_file();
    let passphrase = Secret::from("correct horse battery staple");
    let armored = file.protect(&passphrase).unwrap();
    assert!(armored.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"));
    assert!(KeyFile::is_protected(&armored) && !KeyFile::is_protected(file.to_toml().expose()));
    assert_eq!(KeyFile::parse(&armored).unwrap_err(), KeyFileError::Protected);
    let again = KeyFile::unprotect(&armored, &passphrase).unwrap();
    assert_eq!(again.to_toml().expose(), file.to_toml().expose());
    let body: String = armored.lines().filter(|line| !line.starts_with("-----")).collect();
    let stanza = String::from_utf8_lossy(&decode_base64(&body)).lines().nth(1).unwrap().to_owned();
    assert!(
        stanza.starts_with("-> scrypt ") && stanza.ends_with(" 18"),
        "the work factor is pinned: {stanza}"
    );
}

/// A header that asks for 2^30 must be refused at once, and not after a terabyte of memory.
#[test]
fn excessive_work_is_refused() {
    let armored = include_str!("../../../../tests/fixtures/excessive-work.age.txt");
    let error = KeyFile::unprotect(armored, &Secret::from("pass")).unwrap_err();
    let UnprotectError::Open(source) = error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "the passphrase work factor 2^30 is above the limit of 2^20");
}

fn decode_base64(text: &str) -> Vec<u8> {
    let value = |c: u8| {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        alphabet.iter().position(|known| *known == c).map(|at| at as u32)
    };
    let digits: Vec<u32> = text.bytes().filter_map(value).collect();
    let groups = digits.chunks(4).filter(|group| group.len() == 4);
    groups.flat_map(|g| (g[0] << 18 | g[1] << 12 | g[2] << 6 | g[3]).to_be_bytes()[1..].to_vec()).collect()
}

proptest! {
    #[test]
    fn any_text_parses_or_fails(text in ".*", line in "[a-z_]{1,10} = .*") {
        let _ = KeyFile::parse(&text);
        let _ = KeyFile::parse(&format!("{}{line}", key_file().to_toml().expose()));
    }

    #[test]
    fn any_name_round_trips(name in ".*", hint in proptest::option::of(".*")) {
        let file = KeyFile { name: name.clone(), store_hint: hint.clone(), ..key_file() };
        let again = KeyFile::parse(file.to_toml().expose()).unwrap();
        prop_assert_eq!((again.name, again.store_hint), (name, hint));
    }
}
