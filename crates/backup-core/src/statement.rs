//! Statements about a repository that are kept outside it: what a member or owner signed, and who that was.

use keepwell_crypto::trust::Roles;
use keepwell_crypto::{MemberId, SigningKey, Statement};

use crate::error::Error;
use crate::repository::Repository;

const ACTION: &str = "sign a statement";
const KIND: &str = keepwell_crypto::STATEMENT_KIND;

/// Who signed a statement that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signatory {
    /// Its id.
    pub id: MemberId,
    /// Its name in the trust chain.
    pub name: String,
}

impl Repository {
    /// Signs a JSON object with the credential's key: its text with three more fields at the end (format §18).
    ///
    /// The member's key signs, or an owner's where the credential has no other. Fails for a member that was revoked, and
    /// for a text that is no JSON object with a field. Nothing is stored.
    pub fn sign_statement(&self, object: &str) -> Result<String, Error> {
        serde_json::from_str::<serde::de::IgnoredAny>(object)
            .map_err(|error| Error::Invalid(format!("a statement: it is not JSON: {error}")))?;
        let statement = Statement::sign(self.statement_key()?, self.id(), object);
        Ok(statement.map_err(|error| Error::Invalid(format!("a statement: {error}")))?.to_text())
    }

    /// Tells who signed a statement, if a member or owner in force of this repository did, and not a bit of it changed.
    ///
    /// A member that was revoked is no longer believed. Reads nothing but the trust chain at hand.
    pub fn check_statement(&self, text: &[u8]) -> Result<Signatory, Error> {
        let damaged = |reason: String| Error::Damaged { object: "statement".to_owned(), reason };
        let statement = Statement::parse(text).map_err(|error| damaged(error.to_string()))?;
        if statement.repository() != self.id() {
            let own = self.id();
            return Err(damaged(format!(
                "it is of repository {}, and this one is {own}",
                statement.repository()
            )));
        }
        let (envelope, chain, id) = (statement.envelope(), self.chain(), statement.signer());
        let name = match chain.verify_owner(&envelope, KIND) {
            Ok(owner) => owner.name.clone(),
            Err(keepwell_crypto::trust::TrustError::UnknownSigner { .. }) => {
                let any = Roles::WRITER | Roles::READER | Roles::KEEPER;
                chain
                    .verify_member(&envelope, KIND, any, None)
                    .map_err(|e| damaged(e.to_string()))?
                    .name
                    .clone()
            }
            Err(error) => return Err(damaged(error.to_string())),
        };
        Ok(Signatory { id, name })
    }

    fn statement_key(&self) -> Result<&SigningKey, Error> {
        let access = self.access();
        match (&access.signing, &access.owner) {
            (Some(key), _) if self.chain().revoked_from(&key.member_id()).is_none() => Ok(key),
            (_, Some(owner)) => Ok(&owner.root),
            (Some(key), None) => Err(Error::WrongKey(format!("member {} was revoked", key.member_id()))),
            (None, None) => Err(access.cannot(ACTION)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keepwell_crypto::keyfile::KeyFile;
    use keepwell_storage::{Memory, ObjectStore};

    use super::*;
    use crate::{CreateOptions, Created};

    const OBJECT: &str = "{\n  \"type\": \"test\"\n}";

    async fn created(store: &Arc<dyn ObjectStore>) -> KeyFile {
        let create =
            CreateOptions { owner: "ann".into(), member: "host".into(), store_hint: None, probe: None };
        Created::generate(&create, 1).unwrap().store(&**store).await.unwrap()
    }

    async fn open(store: &Arc<dyn ObjectStore>, key: KeyFile) -> Repository {
        Repository::builder(Arc::clone(store)).open(key).await.unwrap()
    }

    #[tokio::test]
    async fn who_signed_a_statement_is_told_until_it_is_revoked() {
        let store: Arc<dyn ObjectStore> = Arc::new(Memory::new());
        let key = created(&store).await;
        let repository = open(&store, key.clone()).await;
        let own = repository.sign_statement(OBJECT).unwrap();
        assert_eq!(repository.check_statement(own.as_bytes()).unwrap().name, "host");
        let kit = open(&store, KeyFile { member: None, ..key.clone() }).await;
        let owners = kit.sign_statement(OBJECT).unwrap();
        assert_eq!(repository.check_statement(owners.as_bytes()).unwrap().name, "ann");

        let verifier = repository.new_member("verifier", Roles::READER, None).unwrap();
        let id = verifier.member.as_ref().unwrap().signing.member_id();
        repository.enroll(&verifier).await.unwrap();
        let readers = open(&store, verifier.clone()).await.sign_statement(OBJECT).unwrap();
        let repository = open(&store, key.clone()).await;
        assert_eq!(
            repository.check_statement(readers.as_bytes()).unwrap(),
            Signatory { id, name: "verifier".into() }
        );
        repository.revoke(id, None, "test").await.unwrap();
        let repository = open(&store, key.clone()).await;
        let error = repository.check_statement(readers.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("`statement` is damaged: ") && error.contains("revoked"), "{error}");

        let elsewhere: Arc<dyn ObjectStore> = Arc::new(Memory::new());
        let other = created(&elsewhere).await;
        let other = open(&elsewhere, other).await;
        let error = other.check_statement(own.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("it is of repository"), "{error}");
        for text in ["{\"a\": }", "{\"a\": 1}, {\"b\": 2}", "{a}", "[1]", "{}"] {
            assert!(matches!(repository.sign_statement(text), Err(Error::Invalid(_))), "{text}");
        }
        let forged = own.replace("test", "best");
        assert!(repository.check_statement(forged.as_bytes()).is_err());
    }
}
