//! Identities whose secret stays in a device.

use std::fmt;
use std::io;
use std::sync::Arc;

use age::DecryptError;
use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use age_core::primitives::{aead_decrypt, hkdf};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use zeroize::{Zeroize, Zeroizing};

use crate::error::CryptoError;
use crate::recipient::Recipient;

/// Kind and label of what age adds to a header for an X25519 recipient (C2SP age.md).
const TAG: &str = "X25519";
const LABEL: &[u8] = b"age-encryption.org/v1/X25519";

/// Why a device did not answer, as whoever speaks to it says it.
pub type DeviceError = Box<dyn std::error::Error + Send + Sync>;

/// Something that holds an X25519 secret and does not hand it out: a token, a card, a helper on another host.
///
/// [`Identity::in_device`](crate::Identity::in_device) makes an identity of it that opens what is sealed to its public key, as
/// that of an owner in a key file that is put together in memory. Others see an ordinary `age1…`: neither the format nor
/// those who seal know where the secret is. The key that an owner signs with is another one, and no matter of this trait.
///
/// ```
/// use std::sync::Arc;
///
/// use keepwell_crypto::{DeviceError, Identity, KeyAgreement, open, seal};
///
/// struct Token {
///     // Stands for a connection to the device, which computes this itself.
///     secret: [u8; 32],
/// }
///
/// impl KeyAgreement for Token {
///     fn public_key(&self) -> [u8; 32] {
///         x25519_dalek::x25519(self.secret, x25519_dalek::X25519_BASEPOINT_BYTES)
///     }
///
///     fn agree(&self, with: &[u8; 32]) -> Result<[u8; 32], DeviceError> {
///         Ok(x25519_dalek::x25519(self.secret, *with))
///     }
/// }
///
/// let identity = Identity::in_device(Arc::new(Token { secret: [7; 32] }))?;
/// let sealed = seal(&[identity.recipient()], b"a keyring")?;
/// assert_eq!(open(&[identity], &sealed, 1 << 20)?, b"a keyring");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait KeyAgreement: Send + Sync {
    /// The public key as RFC 7748 encodes it. Asked for once.
    fn public_key(&self) -> [u8; 32];

    /// X25519 (RFC 7748) of the secret and another's public key.
    ///
    /// Called for each recipient that an object is sealed to, in their order, until one turns out to be the device's; from any
    /// thread, and from several at once. May block until somebody has touched or unlocked the device.
    fn agree(&self, with: &[u8; 32]) -> Result<[u8; 32], DeviceError>;
}

/// An identity of age that lets the device do what only the secret can.
#[derive(Clone)]
pub(crate) struct DeviceIdentity {
    device: Arc<dyn KeyAgreement>,
    point: [u8; 32],
    recipient: Recipient,
}

impl DeviceIdentity {
    pub fn new(device: Arc<dyn KeyAgreement>) -> Result<Self, CryptoError> {
        let point = device.public_key();
        Ok(Self { device, point, recipient: Recipient::of_point(&point)? })
    }

    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// The key of the file, if this stanza was made for the device.
    fn unwrap_own(&self, stanza: &Stanza) -> Result<Option<FileKey>, DecryptError> {
        let [share] = &stanza.args[..] else { return Err(DecryptError::InvalidHeader) };
        let share = BASE64_STANDARD_NO_PAD.decode(share).ok();
        let share: [u8; 32] =
            share.and_then(|share| share.try_into().ok()).ok_or(DecryptError::InvalidHeader)?;
        let agreed =
            self.device.agree(&share).map_err(|e| DecryptError::Io(io::Error::other(NoAnswer(e))))?;
        let agreed = Zeroizing::new(agreed);
        if *agreed == [0; 32] {
            return Err(DecryptError::InvalidHeader); // what everybody would agree on
        }
        let salt = [share, self.point].concat();
        let key = Zeroizing::new(hkdf(&salt, LABEL, &*agreed));
        // That it does not decrypt only means that it is for another recipient.
        let Ok(mut plain) = aead_decrypt(&key, FILE_KEY_BYTES, &stanza.body) else { return Ok(None) };
        let file_key = FileKey::init_with_mut(|file_key| file_key.copy_from_slice(&plain));
        plain.zeroize();
        Ok(Some(file_key))
    }
}

impl age::Identity for DeviceIdentity {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        (stanza.tag == TAG).then(|| self.unwrap_own(stanza).transpose()).flatten()
    }
}

/// What the age library passes on of a device that did not answer.
#[derive(Debug)]
struct NoAnswer(DeviceError);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NoAnswer {}

/// The error of a device in what the age library says, or that itself.
pub(crate) fn device_error(error: io::Error) -> Result<DeviceError, io::Error> {
    error.downcast::<NoAnswer>().map(|NoAnswer(error)| error)
}
