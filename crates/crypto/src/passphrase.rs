//! Texts under a passphrase: armored age files with one scrypt recipient.

use std::io::{Read, Write};

use age::secrecy::SecretString;
use age::{armor, scrypt};
use zeroize::Zeroizing;

use crate::error::CryptoError;
use crate::seal::SealWriter;
use crate::secret::Secret;

/// scrypt works with N = 2^18: about a second and 256 MiB. Pinned, since the age library would measure the machine.
const WORK_FACTOR: u8 = 18;
/// 1 GiB and a few seconds; a text that asks for more is refused.
const WORK_FACTOR_MAX: u8 = 20;
/// Far more than a key file has.
const TEXT_MAX_BYTES: usize = 1 << 20;
const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";

/// Whether a text is an armored age file.
pub(crate) fn is_armored(text: &str) -> bool {
    without_mark(text).trim_start().starts_with(BEGIN)
}

/// Without the mark that some editors put before a text in UTF-8.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Seals a text under a passphrase; `age -d` opens it.
pub(crate) fn protect(plain: &Secret, passphrase: &Secret) -> Result<String, CryptoError> {
    protect_with(plain, passphrase, WORK_FACTOR)
}

fn protect_with(plain: &Secret, passphrase: &Secret, log_n: u8) -> Result<String, CryptoError> {
    let io = |source| CryptoError::Io { source };
    let mut recipient = scrypt::Recipient::new(SecretString::from(passphrase.expose()));
    recipient.set_work_factor(log_n);
    let armor = armor::ArmoredWriter::wrap_output(Vec::new(), armor::Format::AsciiArmor).map_err(io)?;
    let mut writer = SealWriter::with_age_recipients(std::iter::once(&recipient as _), armor)?;
    writer.write_all(plain.expose().as_bytes()).map_err(io)?;
    let bytes = writer.finish().and_then(|armor| armor.finish()).map_err(io)?;
    Ok(String::from_utf8(bytes).expect("armor is ASCII"))
}

/// Opens a text that [`protect`] or `age -p -a` made.
pub(crate) fn unprotect(armored: &str, passphrase: &Secret) -> Result<Secret, CryptoError> {
    if armored.len() > 2 * TEXT_MAX_BYTES {
        return Err(CryptoError::damaged("it is far longer than a key file"));
    }
    let damage = |error| CryptoError::from_decrypt(error, 1, WORK_FACTOR_MAX);
    let mut identity = scrypt::Identity::new(SecretString::from(passphrase.expose()));
    identity.set_max_work_factor(WORK_FACTOR_MAX);
    let binary = dearmor(armored)?;
    crate::seal::header_len(&binary).map_err(|_| CryptoError::damaged("the header is malformed"))?;
    let decryptor = age::Decryptor::new_buffered(&binary[..]).map_err(damage)?;
    if !decryptor.is_scrypt() {
        return Err(CryptoError::damaged("it is not under a passphrase"));
    }
    let mut stream = decryptor.decrypt(std::iter::once(&identity as _)).map_err(|error| match error {
        age::DecryptError::DecryptionFailed => CryptoError::WrongPassphrase,
        other => damage(other),
    })?;
    let mut plain = Zeroizing::new(Vec::with_capacity(binary.len()));
    stream.read_to_end(&mut plain).map_err(CryptoError::from_read)?;
    let text = std::str::from_utf8(&plain).map_err(|_| CryptoError::damaged("it is not a text"))?;
    Ok(Secret::from(text))
}

/// What was printed, mailed or copied from a window may have blanks around its lines, and empty lines between them: neither
/// is part of an armor, and the age library refuses them.
fn dearmor(armored: &str) -> Result<Vec<u8>, CryptoError> {
    let lines = without_mark(armored).lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut binary = Vec::new();
    let mut reader = armor::ArmoredReader::new(text.as_bytes());
    reader.read_to_end(&mut binary).map_err(|_| CryptoError::damaged("the armor is malformed"))?;
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As little work as scrypt can do: the tests of the pinned factor are elsewhere, and slow.
    fn cheap(text: &str) -> String {
        protect_with(&Secret::from(text), &Secret::from("right"), 1).unwrap()
    }

    #[test]
    fn only_the_passphrase_opens() {
        let armored = cheap("key file");
        assert_eq!(unprotect(&armored, &Secret::from("right")).unwrap().expose(), "key file");
        assert_eq!(
            unprotect(&format!("\n{armored}\n\n"), &Secret::from("right")).unwrap().expose(),
            "key file"
        );
        for wrong in ["", "Right", "right "] {
            let error = unprotect(&armored, &Secret::from(wrong)).unwrap_err();
            assert!(matches!(error, CryptoError::WrongPassphrase), "{error:?}");
        }
    }

    /// A text on paper is typed or copied back by somebody in a hurry.
    #[test]
    fn blanks_around_lines_lose_nothing() {
        let armored = cheap("kit");
        let spread = [
            armored.replace('\n', "\r\n"),
            armored.replace('\n', "  \n"),
            armored.replace('\n', "\n\n\t"),
            format!("\u{feff}  {armored}"),
        ];
        for text in spread {
            assert!(is_armored(&text), "{text:?}");
            assert_eq!(unprotect(&text, &Secret::from("right")).unwrap().expose(), "kit", "{text:?}");
        }
    }

    #[test]
    fn every_damaged_byte_and_every_truncation_is_refused() {
        let armored = cheap("x");
        let passphrase = Secret::from("right");
        let text = armored.trim_end();
        for at in 0..text.len() {
            assert!(unprotect(&text[..at], &passphrase).is_err(), "truncated to {at}");
            let mut damaged = text.as_bytes().to_vec();
            damaged[at] ^= 1 << (at % 7);
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(unprotect(&damaged, &passphrase).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_text_under_a_passphrase_is_damage() {
        let sealed = crate::seal(&[crate::Identity::generate().recipient()], b"x").unwrap();
        let armor = armor::ArmoredWriter::wrap_output(Vec::new(), armor::Format::AsciiArmor);
        let mut armor = armor.unwrap();
        armor.write_all(&sealed).unwrap();
        let to_a_recipient = String::from_utf8(armor.finish().unwrap()).unwrap();
        for text in ["", "format = 1", BEGIN, &to_a_recipient, &"x".repeat(3 << 20)] {
            let error = unprotect(text, &Secret::from("right")).unwrap_err();
            assert!(matches!(error, CryptoError::Damaged { .. }), "{error:?}");
        }
    }
}
