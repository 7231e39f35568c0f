//! Text that must not leak.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret text: a passphrase, an encoded key, a whole key file.
///
/// It is wiped when dropped, and `Debug` never shows it. There is no `Display`: whoever prints it writes
/// [`expose`](Self::expose), which is easy to search for.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Takes over a text. Copies that were made of it before are the caller's to wipe.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
