//! What a store in the network is opened with.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{StorageError, StorageErrorKind};

/// A credential is far smaller.
const SECRET_BYTES_MAX: u64 = 1 << 20;

/// A secret as text: wiped when dropped, and never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretText(…)")
    }
}

/// What proves to a store who we are. What a store has no use for is ignored.
///
/// SFTP has none here: `ssh` logs in, with the keys, agents and hosts that it is set up for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// S3: id of the access key. Not a secret by itself.
    pub access_key: Option<String>,
    /// S3: the access key.
    pub secret_key: Option<SecretText>,
    /// S3: what belongs to a temporary access key.
    pub session_token: Option<SecretText>,
    /// GCS: the JSON of a service account, or of another credential of Google's libraries.
    pub service_account: Option<SecretText>,
    /// Azure: the key of the storage account.
    pub account_key: Option<SecretText>,
    /// Azure: a shared access signature.
    pub sas_token: Option<SecretText>,
    /// WebDAV: the password of the setting `user`.
    pub password: Option<SecretText>,
    /// WebDAV, GCS: a bearer token.
    pub token: Option<SecretText>,
    /// Other services: options that are secrets, by the names that OpenDAL gives them.
    pub options: BTreeMap<String, SecretText>,
}

/// Where [`Credentials`] come from, as a table of a configuration file: no secret stands in it.
///
/// Each secret is the content of a file, or what a shell command prints; a line break at its end does not belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CredentialSources {
    /// [`ConnectOptions::ambient`](crate::ConnectOptions::ambient). Default: yes.
    pub ambient: Option<bool>,
    /// [`Credentials::access_key`] itself.
    pub access_key: Option<String>,
    /// [`Credentials::secret_key`].
    pub secret_key_file: Option<PathBuf>,
    /// The same, by a command.
    pub secret_key_command: Option<String>,
    /// [`Credentials::session_token`].
    pub session_token_file: Option<PathBuf>,
    /// The same, by a command.
    pub session_token_command: Option<String>,
    /// [`Credentials::service_account`].
    pub service_account_file: Option<PathBuf>,
    /// The same, by a command.
    pub service_account_command: Option<String>,
    /// [`Credentials::account_key`].
    pub account_key_file: Option<PathBuf>,
    /// The same, by a command.
    pub account_key_command: Option<String>,
    /// [`Credentials::sas_token`].
    pub sas_token_file: Option<PathBuf>,
    /// The same, by a command.
    pub sas_token_command: Option<String>,
    /// [`Credentials::password`].
    pub password_file: Option<PathBuf>,
    /// The same, by a command.
    pub password_command: Option<String>,
    /// [`Credentials::token`].
    pub token_file: Option<PathBuf>,
    /// The same, by a command.
    pub token_command: Option<String>,
    /// [`Credentials::options`]: files by the names of options.
    pub option_files: BTreeMap<String, PathBuf>,
}

impl CredentialSources {
    /// Reads the files and runs the commands; waits for them. `Invalid` for a secret that is given in both ways.
    pub fn read(&self) -> Result<Credentials, StorageError> {
        let mut options = BTreeMap::new();
        for (name, file) in &self.option_files {
            options.insert(name.clone(), read_file(file)?);
        }
        Ok(Credentials {
            access_key: self.access_key.clone(),
            secret_key: secret("secret-key", &self.secret_key_file, &self.secret_key_command)?,
            session_token: secret("session-token", &self.session_token_file, &self.session_token_command)?,
            service_account: secret(
                "service-account",
                &self.service_account_file,
                &self.service_account_command,
            )?,
            account_key: secret("account-key", &self.account_key_file, &self.account_key_command)?,
            sas_token: secret("sas-token", &self.sas_token_file, &self.sas_token_command)?,
            password: secret("password", &self.password_file, &self.password_command)?,
            token: secret("token", &self.token_file, &self.token_command)?,
            options,
        })
    }

    /// The files that are named, for a `~` to be replaced in them.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let single = [
            &mut self.secret_key_file,
            &mut self.session_token_file,
            &mut self.service_account_file,
            &mut self.account_key_file,
            &mut self.sas_token_file,
            &mut self.password_file,
            &mut self.token_file,
        ];
        single.into_iter().flatten().chain(self.option_files.values_mut())
    }
}

fn secret(
    name: &str,
    file: &Option<PathBuf>,
    command: &Option<String>,
) -> Result<Option<SecretText>, StorageError> {
    match (file, command) {
        (Some(_), Some(_)) => {
            let message = format!("`{name}-file` and `{name}-command` are both given");
            Err(StorageError::new(StorageErrorKind::Invalid, "open", "credentials", message))
        }
        (Some(file), None) => read_file(file).map(Some),
        (None, Some(command)) => run(command).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_file(file: &Path) -> Result<SecretText, StorageError> {
    File::open(file).and_then(read_all).map_err(|error| unreadable(&file.display(), &error))
}

fn run(command: &str) -> Result<SecretText, StorageError> {
    let fail = |error: &dyn fmt::Display| unreadable(&command, error);
    let spawned =
        Command::new("/bin/sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| fail(&error))?;
    let output = child.stdout.take().map(read_all).transpose().map_err(|error| fail(&error))?;
    let status = child.wait().map_err(|error| fail(&error))?;
    if status.success() { Ok(output.unwrap_or_default()) } else { Err(fail(&status)) }
}

fn read_all(from: impl Read) -> io::Result<SecretText> {
    let mut text = Zeroizing::new(String::new());
    from.take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.trim_end_matches(['\n', '\r']).into())
}

fn unreadable(source: &dyn fmt::Display, why: &dyn fmt::Display) -> StorageError {
    let message = format!("a credential cannot be read: {why}");
    StorageError::new(StorageErrorKind::Invalid, "open", source, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_and_commands_and_are_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "hunter2\n").unwrap();
        let sources = CredentialSources {
            secret_key_file: Some(file),
            password_command: Some("printf 'open sesame\\r\\n'".into()),
            ..CredentialSources::default()
        };
        let credentials = sources.read().unwrap();
        assert_eq!(credentials.secret_key.as_ref().unwrap().expose(), "hunter2");
        assert_eq!(credentials.password.as_ref().unwrap().expose(), "open sesame");
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn a_secret_comes_from_one_place() {
        let sources = CredentialSources {
            password_file: Some("/nonexistent".into()),
            password_command: Some("echo x".into()),
            ..CredentialSources::default()
        };
        let refused = sources.read().unwrap_err().to_string();
        assert!(refused.contains("`password-file` and `password-command` are both given"), "{refused}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let file = CredentialSources { token_file: Some("/nonexistent/token".into()), ..Default::default() };
        assert!(file.read().unwrap_err().to_string().contains("/nonexistent/token"));
        let command =
            CredentialSources { token_command: Some("echo x; exit 3".into()), ..Default::default() };
        assert!(command.read().unwrap_err().to_string().contains("exit status: 3"));
    }
}
