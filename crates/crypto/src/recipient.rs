//! Whom bytes are sealed to, and who opens them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use age::secrecy::ExposeSecret;

use crate::device::{DeviceIdentity, KeyAgreement};
use crate::error::CryptoError;
use crate::secret::Secret;

const IDENTITY_KIND: &str = "age identity";
const RECIPIENT_KIND: &str = "age recipient";

/// The public half of an [`Identity`]: who holds it can seal, not open.
///
/// The text form is what the `age` command takes (`age1…`). Kinds other than X25519 will be further variants inside.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipient(RecipientKind);

#[derive(Clone, PartialEq, Eq, Hash)]
enum RecipientKind {
    X25519(age::x25519::Recipient),
}

impl Recipient {
    /// That of an X25519 public key. Points of low order are refused.
    pub(crate) fn of_point(point: &[u8; 32]) -> Result<Self, CryptoError> {
        let text = bech32::encode::<bech32::Bech32>(bech32::Hrp::parse_unchecked("age"), point);
        text.unwrap_or_default().parse()
    }

    pub(crate) fn as_age(&self) -> &dyn age::Recipient {
        match &self.0 {
            RecipientKind::X25519(recipient) => recipient,
        }
    }
}

impl FromStr for Recipient {
    type Err = CryptoError;

    /// Parses `age1…`. Points of low order are refused: anybody could open what is sealed to them.
    fn from_str(text: &str) -> Result<Self, CryptoError> {
        let invalid = |reason| CryptoError::InvalidKey { kind: RECIPIENT_KIND, reason };
        if text.trim_start().to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(invalid("this is a secret key, give the public `age1…` instead"));
        }
        let recipient = text.parse().map_err(|_| invalid("it does not decode as `age1…`"))?;
        let (_, point) = bech32::decode(text).map_err(|_| invalid("it does not decode as `age1…`"))?;
        if is_low_order(&point) {
            return Err(invalid("the point has a low order"));
        }
        Ok(Self(RecipientKind::X25519(recipient)))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            RecipientKind::X25519(recipient) => recipient.fmt(f),
        }
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// A secret that opens what was sealed to its [`Recipient`].
#[derive(Clone)]
pub struct Identity(IdentityKind);

#[derive(Clone)]
enum IdentityKind {
    X25519(age::x25519::Identity),
    Device(DeviceIdentity),
}

impl Identity {
    /// One whose secret stays in a device, which is asked whenever something is opened. Points of low order are refused.
    pub fn in_device(device: Arc<dyn KeyAgreement>) -> Result<Self, CryptoError> {
        Ok(Self(IdentityKind::Device(DeviceIdentity::new(device)?)))
    }

    /// Draws a fresh X25519 identity.
    pub fn generate() -> Self {
        Self(IdentityKind::X25519(age::x25519::Identity::generate()))
    }

    /// Parses `AGE-SECRET-KEY-1…`, as `age-keygen` writes it. The error never repeats the text.
    pub fn parse(text: &str) -> Result<Self, CryptoError> {
        let identity = text.parse().map_err(|_| CryptoError::InvalidKey {
            kind: IDENTITY_KIND,
            reason: "it does not decode as `AGE-SECRET-KEY-1…`",
        })?;
        Ok(Self(IdentityKind::X25519(identity)))
    }

    /// The text form, `AGE-SECRET-KEY-1…`: a line of an identity file for the `age` command. `None` for what stays in a
    /// device.
    pub fn to_secret_string(&self) -> Option<Secret> {
        match &self.0 {
            IdentityKind::X25519(identity) => Some(Secret::from(identity.to_string().expose_secret())),
            IdentityKind::Device(_) => None,
        }
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        match &self.0 {
            IdentityKind::X25519(identity) => Recipient(RecipientKind::X25519(identity.to_public())),
            IdentityKind::Device(device) => device.recipient().clone(),
        }
    }

    pub(crate) fn as_age(&self) -> &dyn age::Identity {
        match &self.0 {
            IdentityKind::X25519(identity) => identity,
            IdentityKind::Device(device) => device,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.recipient())
    }
}

/// Whether an X25519 exchange with this point gives zero whatever the secret. The age library panics on them.
fn is_low_order(point: &[u8]) -> bool {
    let mut masked = point.to_vec();
    if let Some(last) = masked.last_mut() {
        *last &= 0x7f; // X25519 ignores the top bit (RFC 7748 §5)
    }
    low_order_points().iter().any(|low| low[..] == masked[..])
}

/// All u-coordinates of order 1, 2, 4 and 8 on Curve25519 and its twist, with their non-canonical forms.
fn low_order_points() -> [[u8; 32]; 7] {
    let small = |first: u8| {
        let mut point = [0; 32];
        point[0] = first;
        point
    };
    let near_prime = |first: u8| {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (first, 0x7f);
        point
    };
    let order_8 = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ];
    let other_order_8 = [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ];
    [small(0), small(1), order_8, other_order_8, near_prime(0xec), near_prime(0xed), near_prime(0xee)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_order_recipients_are_refused_and_the_list_is_right() {
        let hrp = bech32::Hrp::parse("age").unwrap();
        for mut point in low_order_points() {
            for top_bit in [0, 0x80] {
                point[31] |= top_bit;
                let text = bech32::encode::<bech32::Bech32>(hrp, &point).unwrap();
                // The age library takes the point and then panics: this is what the list protects from.
                let raw: age::x25519::Recipient = text.parse().unwrap();
                let sealed = std::panic::catch_unwind(|| {
                    age::Encryptor::with_recipients(std::iter::once(&raw as _)).is_ok()
                });
                assert!(sealed.is_err(), "{text} is not of low order");
                let error = text.parse::<Recipient>().unwrap_err();
                assert_eq!(error.to_string(), "not a valid age recipient: the point has a low order");
            }
        }
    }

    #[test]
    fn keys_of_the_age_tool_are_understood() {
        // A pair printed by age-keygen, from the test data of the age project.
        let identity =
            Identity::parse("AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33")
                .unwrap();
        let recipient = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
        assert_eq!(identity.recipient().to_string(), recipient);
        assert_eq!(recipient.parse::<Recipient>().unwrap(), identity.recipient());
    }

    #[test]
    fn a_secret_given_as_a_recipient_is_not_repeated() {
        let secret = Identity::generate().to_secret_string().unwrap();
        let error = secret.expose().parse::<Recipient>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret.expose()[15..]));
        let error = Identity::parse(&secret.expose()[..40]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret.expose()[16..40]));
    }
}
