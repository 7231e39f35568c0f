//! Sealed records: `age( zstd( CBOR ) )` (format §1).

use keepwell_crypto::{Identity, Recipient};
use zeroize::Zeroizing;

use crate::error::CatalogError;
use crate::frame;

const LEVEL: i32 = 3;

/// Compresses `cbor` and seals it to every one of `recipients`. Two calls give different bytes: age is randomised.
/// ```
/// use keepwell_catalog::{open_record, seal_record};
/// use keepwell_crypto::Identity;
///
/// let reader = Identity::generate();
/// let sealed = seal_record(&[reader.recipient()], b"a manifest")?;
/// assert_eq!(open_record(&[reader], &sealed, 1 << 20)?, b"a manifest");
/// assert!(open_record(&[Identity::generate()], &sealed, 1 << 20).is_err());
/// # Ok::<(), keepwell_catalog::CatalogError>(())
/// ```
pub fn seal_record(recipients: &[Recipient], cbor: &[u8]) -> Result<Vec<u8>, CatalogError> {
    let compressed = Zeroizing::new(frame::compress(cbor, LEVEL)?); // it may hold keys
    keepwell_crypto::seal(recipients, &compressed).map_err(|source| CatalogError::Seal { source })
}

/// Opens a sealed record and returns its CBOR.
///
/// `limit_bytes` bounds what the record decodes to, so a small hostile object cannot fill the memory. The plaintext must
/// be exactly one zstd frame. That nothing was changed is certain after this; who wrote it is not: anyone can seal to a
/// recipient.
pub fn open_record(
    identities: &[Identity],
    sealed: &[u8],
    limit_bytes: usize,
) -> Result<Vec<u8>, CatalogError> {
    let compressed = open_compressed(identities, sealed, limit_bytes)?;
    frame::decompress("sealed record", &compressed, limit_bytes)
}

/// The same for a record of keys: its bytes are wiped when they are dropped, and so is what was decoded on the way.
pub fn open_keys(
    identities: &[Identity],
    sealed: &[u8],
    limit_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, CatalogError> {
    let compressed = Zeroizing::new(open_compressed(identities, sealed, limit_bytes)?);
    Ok(Zeroizing::new(frame::decompress("sealed record", &compressed, limit_bytes)?))
}

fn open_compressed(
    identities: &[Identity],
    sealed: &[u8],
    limit_bytes: usize,
) -> Result<Vec<u8>, CatalogError> {
    // What does not compress grows by less than 1 in 128, plus headers.
    let compressed_max = limit_bytes as u64 + (limit_bytes as u64 >> 7) + 1024;
    keepwell_crypto::open(identities, sealed, compressed_max).map_err(|source| CatalogError::Open { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_for_every_recipient_and_nobody_else() {
        let keys: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
        let recipients: Vec<Recipient> = keys[..2].iter().map(Identity::recipient).collect();
        let sealed = seal_record(&recipients, b"record").unwrap();
        for key in &keys[..2] {
            assert_eq!(open_record(std::slice::from_ref(key), &sealed, 6).unwrap(), b"record");
            assert_eq!(*open_keys(std::slice::from_ref(key), &sealed, 6).unwrap(), b"record");
        }
        assert!(matches!(open_record(&keys[2..], &sealed, 6), Err(CatalogError::Open { .. })));
    }

    #[test]
    fn a_bomb_and_a_second_frame_are_refused() {
        let key = Identity::generate();
        let sealed = seal_record(&[key.recipient()], &vec![0; 1 << 20]).unwrap();
        assert!(matches!(
            open_record(std::slice::from_ref(&key), &sealed, 1 << 16),
            Err(CatalogError::TooLarge { .. })
        ));
        assert!(open_keys(std::slice::from_ref(&key), &sealed, 1 << 16).is_err());
        let frames = [frame::compress(b"a", 3).unwrap(), frame::compress(b"b", 3).unwrap()].concat();
        let two = keepwell_crypto::seal(&[key.recipient()], &frames).unwrap();
        assert!(matches!(open_record(&[key], &two, 1 << 16), Err(CatalogError::Malformed { .. })));
    }
}
