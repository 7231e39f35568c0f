//! JSON that somebody signed, for people and programs to keep outside a repository.

use std::str::FromStr;

use crate::ids::{MemberId, RepositoryId};
use crate::sign::{SigningKey, sign_detached};
use crate::signed::Signed;

/// Kind that statements are signed under; no record of a repository has it.
pub const STATEMENT_KIND: &str = "statement";
/// No statement is longer, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 16 << 20;

const REPOSITORY: &str = ",\n  \"repository\": \"";
const SIGNER: &str = "\",\n  \"signer\": \"";
const SIGNATURE: &str = ",\n  \"signature\": \"";
const END: &str = "\"\n}\n";

/// Why a text is no statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// It is not UTF-8 that begins as an object, or is too long.
    #[error("it is not the text of a JSON object of at most 16 MiB")]
    NotAnObject,
    /// It does not end as one.
    #[error("it does not end with a repository, a signer and a signature")]
    Unsigned,
}

/// A JSON object whose last three fields say in which repository, by whom and with which signature it was signed.
///
/// It means nothing until its [`envelope`](Self::envelope) was verified: the object is text of whoever wrote the file.
/// ```
/// use keepwell_crypto::{RepositoryId, STATEMENT_KIND, SigningKey, Statement};
///
/// let (key, repository) = (SigningKey::generate(), RepositoryId::generate());
/// let text = Statement::sign(&key, repository, "{\n  \"restored\": true\n}")?.to_text();
///
/// let statement = Statement::parse(text.as_bytes())?;
/// assert_eq!(statement.signer(), key.member_id());
/// assert!(statement.envelope().verify(&key.verifying_key(), repository, STATEMENT_KIND).is_ok());
/// let altered = Statement::parse(text.replace("true", "null").as_bytes())?;
/// assert!(altered.envelope().verify(&key.verifying_key(), repository, STATEMENT_KIND).is_err());
/// # Ok::<(), keepwell_crypto::StatementError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Everything before the signature's own field.
    signed: String,
    repository: RepositoryId,
    signer: MemberId,
    signature: [u8; 64],
}

impl Statement {
    /// Signs a JSON object with at least one field, as it is written: not a byte of it changes. Of the text only the braces
    /// are looked for; that there is JSON between them, the caller vouches.
    pub fn sign(key: &SigningKey, repository: RepositoryId, object: &str) -> Result<Self, StatementError> {
        let fields = object.trim().strip_suffix('}').ok_or(StatementError::NotAnObject)?.trim_end();
        if !fields.starts_with('{') || fields.len() < 2 || fields.len() > STATEMENT_BYTES_MAX - 1024 {
            return Err(StatementError::NotAnObject);
        }
        let signer = key.member_id();
        let signed = format!("{fields}{REPOSITORY}{repository}{SIGNER}{signer}\"");
        let signature = sign_detached(key, repository, STATEMENT_KIND, signed.as_bytes());
        Ok(Self { signed, repository, signer, signature })
    }

    /// Reads what [`to_text`](Self::to_text) wrote, and nothing else: there is one text for a statement. Nothing is
    /// verified yet.
    pub fn parse(text: &[u8]) -> Result<Self, StatementError> {
        if text.len() > STATEMENT_BYTES_MAX || text.first() != Some(&b'{') {
            return Err(StatementError::NotAnObject);
        }
        let text = std::str::from_utf8(text).map_err(|_| StatementError::NotAnObject)?;
        let parts = || {
            let rest = text.strip_suffix(END)?;
            let (signed, signature) = rest.rsplit_once(SIGNATURE)?;
            let rest = signed.strip_suffix('"')?;
            let (rest, signer) = rest.rsplit_once(SIGNER)?;
            let (fields, repository) = rest.rsplit_once(REPOSITORY)?;
            let signature = lower_hex(signature)?;
            let (repository, signer) =
                (RepositoryId::from_str(repository).ok()?, MemberId::from_str(signer).ok()?);
            // As they are signed: with a field, and without room after it.
            (fields.len() >= 2 && fields.trim_end() == fields).then(|| Self {
                signed: signed.to_owned(),
                repository,
                signer,
                signature,
            })
        };
        parts().ok_or(StatementError::Unsigned)
    }

    /// The text: a JSON object, and a newline.
    pub fn to_text(&self) -> String {
        format!("{}{SIGNATURE}{}{END}", self.signed, hex::encode(self.signature))
    }

    /// The repository whose members may have signed it.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// Who is said to have signed.
    pub fn signer(&self) -> MemberId {
        self.signer
    }

    /// What a trust chain verifies, as of kind [`STATEMENT_KIND`].
    pub fn envelope(&self) -> Signed {
        Signed {
            kind: STATEMENT_KIND.to_owned(),
            payload: self.signed.clone().into_bytes(),
            signer: self.signer,
            signature: self.signature,
        }
    }
}

fn lower_hex(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    (hex::encode(bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "{\n  \"type\": \"pg_verify\",\n  \"sound\": true\n}\n";

    fn made() -> (SigningKey, RepositoryId, Statement) {
        let (key, repository) = (SigningKey::from_seed(&[3; 32]), RepositoryId::from_bytes([5; 16]));
        let statement = Statement::sign(&key, repository, OBJECT).unwrap();
        (key, repository, statement)
    }

    fn holds(text: &[u8], key: &SigningKey, repository: RepositoryId) -> bool {
        Statement::parse(text).is_ok_and(|statement| {
            statement.repository() == repository
                && statement.envelope().verify(&key.verifying_key(), repository, STATEMENT_KIND).is_ok()
        })
    }

    #[test]
    fn a_statement_is_its_object_with_three_more_fields() {
        let (key, repository, statement) = made();
        let text = statement.to_text();
        assert_eq!(Statement::parse(text.as_bytes()), Ok(statement.clone()));
        assert!(holds(text.as_bytes(), &key, repository));
        assert!(
            text.starts_with("{\n  \"type\": \"pg_verify\",\n  \"sound\": true,\n  \"repository\": \"0505"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 7, "{text}");
        let other = SigningKey::from_seed(&[4; 32]);
        assert!(!holds(text.as_bytes(), &other, repository), "another signer");
        assert!(!holds(text.as_bytes(), &key, RepositoryId::from_bytes([6; 16])), "another repository");
    }

    #[test]
    fn no_bit_of_a_statement_can_be_changed_and_nothing_added_or_cut() {
        let (key, repository, statement) = made();
        let text = statement.to_text().into_bytes();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                assert!(!holds(&changed, &key, repository), "byte {at}, bit {bit}");
            }
            assert!(!holds(&text[..at], &key, repository), "cut at {at}");
        }
        for more in ["\n", " ", "}", "\0"] {
            assert!(!holds(&[&text[..], more.as_bytes()].concat(), &key, repository));
            assert!(!holds(&[more.as_bytes(), &text[..]].concat(), &key, repository));
        }
    }

    #[test]
    fn what_is_no_object_is_not_signed() {
        let (key, repository, _) = made();
        for object in ["", "{}", "{ }", "[1]", "{\"a\": 1", "null"] {
            assert_eq!(
                Statement::sign(&key, repository, object),
                Err(StatementError::NotAnObject),
                "{object}"
            );
        }
        assert_eq!(Statement::parse(OBJECT.as_bytes()), Err(StatementError::Unsigned));
        assert_eq!(Statement::parse(b"\xff"), Err(StatementError::NotAnObject));
    }
}
