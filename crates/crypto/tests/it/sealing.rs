//! Sealing and opening: round trips, damage, ranges, limits.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use std::sync::Arc;

use keepwell_crypto::{
    BLOCK_PLAIN_BYTES, CryptoError, DeviceError, Identity, KeyAgreement, MAX_HEADER_BYTES, MAX_RECIPIENTS,
    NONCE_BYTES, OpenReader, Parts, Recipient, SealWriter, header_len, open, plain_len, seal, sealed_range,
};
use proptest::prelude::*;

const BLOCK: usize = BLOCK_PLAIN_BYTES as usize;
const NO_LIMIT: u64 = u64::MAX;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ (i >> 16) as u8).collect()
}

fn sealed(length: usize) -> (Identity, Vec<u8>, Vec<u8>) {
    let identity = Identity::generate();
    let plain = pattern(length);
    let bytes = seal(&[identity.recipient()], &plain).unwrap();
    (identity, plain, bytes)
}

fn is_damage(result: Result<Vec<u8>, CryptoError>) -> bool {
    matches!(result, Err(CryptoError::Damaged { .. } | CryptoError::NoMatchingKey { .. }))
}

/// What a device answers to a secret of its own and a share of somebody else.
type Agree = fn(&[u8; 32], &[u8; 32]) -> Result<[u8; 32], DeviceError>;

/// A device that computes, or says why not.
struct Device {
    secret: [u8; 32],
    answer: Agree,
}

impl KeyAgreement for Device {
    fn public_key(&self) -> [u8; 32] {
        x25519_dalek::x25519(self.secret, x25519_dalek::X25519_BASEPOINT_BYTES)
    }

    fn agree(&self, with: &[u8; 32]) -> Result<[u8; 32], DeviceError> {
        (self.answer)(&self.secret, with)
    }
}

#[test]
fn a_device_opens_what_is_sealed_to_it_among_others() {
    let device = |seed, answer| Identity::in_device(Arc::new(Device { secret: [seed; 32], answer })).unwrap();
    let computes = |secret: &[u8; 32], with: &[u8; 32]| Ok(x25519_dalek::x25519(*secret, *with));
    let (other, own) = (Identity::generate(), device(7, computes));
    // To others this is a recipient like any, also in its text.
    let recipient: Recipient = own.recipient().to_string().parse().unwrap();
    let bytes = seal(&[other.recipient(), recipient], b"a keyring").unwrap();
    for identities in [vec![own.clone()], vec![other.clone()], vec![Identity::generate(), own.clone()]] {
        assert_eq!(open(&identities, &bytes, NO_LIMIT).unwrap(), b"a keyring");
    }
    let refused = |identity: Identity, bytes: &[u8]| open(&[identity], bytes, NO_LIMIT).unwrap_err();
    let stranger = refused(device(8, computes), &bytes);
    assert!(matches!(stranger, CryptoError::NoMatchingKey { identities: 1 }), "{stranger}");
    let silent = refused(device(7, |_, _| Err("it was not touched".into())), &bytes);
    assert_eq!(silent.to_string(), "the device with the key does not answer: it was not touched");
    // One that is made to agree on nothing is believed as little as a header with a point of low order.
    assert!(matches!(refused(device(7, |_, _| Ok([0; 32])), &bytes), CryptoError::Damaged { .. }));
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(is_damage(open(std::slice::from_ref(&own), &damaged, NO_LIMIT)), "byte {at}");
    }
    assert!(own.to_secret_string().is_none());
    assert_eq!(format!("{own:?}"), format!("Identity(of {})", own.recipient()));
}

#[test]
fn lengths_around_blocks_round_trip() {
    for length in [0, 1, 15, 16, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7] {
        let (identity, plain, bytes) = sealed(length);
        let header = header_len(&bytes).unwrap();
        assert_eq!(plain_len(header, bytes.len() as u64).unwrap(), length as u64);
        assert_eq!(open(std::slice::from_ref(&identity), &bytes, length as u64).unwrap(), plain);
        let mut reader = OpenReader::new(&[identity], Cursor::new(&bytes)).unwrap();
        let mut read = Vec::new();
        assert_eq!(reader.read_to_end(&mut read).unwrap(), length);
        assert_eq!(read, plain);
        assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), length as u64);
    }
}

#[test]
fn every_recipient_opens_and_nobody_else() {
    let identities: Vec<_> = (0..3).map(|_| Identity::generate()).collect();
    let recipients: Vec<_> = identities.iter().map(Identity::recipient).collect();
    let bytes = seal(&recipients, b"plain").unwrap();
    for identity in &identities {
        assert_eq!(open(std::slice::from_ref(identity), &bytes, 5).unwrap(), b"plain");
    }
    let strangers = [Identity::generate(), Identity::generate()];
    assert!(matches!(open(&strangers, &bytes, 5), Err(CryptoError::NoMatchingKey { identities: 2 })));
    assert!(matches!(open(&[], &bytes, 5), Err(CryptoError::NoMatchingKey { identities: 0 })));
    let error = OpenReader::new(&strangers, Cursor::new(&bytes)).unwrap_err();
    assert_eq!(error.to_string(), "none of the 2 identities at hand opens this object");
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let (identity, _, bytes) = sealed(100);
    let identities = [identity];
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(is_damage(open(&identities, &damaged, NO_LIMIT)), "bit {bit} of {}", bytes.len() * 8);
    }
    for length in 0..bytes.len() {
        assert!(is_damage(open(&identities, &bytes[..length], NO_LIMIT)), "truncated to {length}");
    }
    for extra in [&b"\0"[..], b"\n", &bytes] {
        assert!(is_damage(open(&identities, &[&bytes[..], extra].concat(), NO_LIMIT)));
    }
}

#[test]
fn a_stream_reports_damage_like_a_whole() {
    let (identity, _, bytes) = sealed(100);
    let identities = [identity];
    let read = |bytes: &[u8]| {
        let mut plain = Vec::new();
        let mut reader = OpenReader::new(&identities, Cursor::new(bytes)).map_err(|_| ())?;
        reader.read_to_end(&mut plain).map_err(|_| ())
    };
    assert_eq!(read(&bytes), Ok(100));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert_eq!(read(&damaged), Err(()), "byte {at}");
        assert_eq!(read(&bytes[..at]), Err(()), "truncated to {at}");
    }
}

#[test]
fn truncation_at_a_block_shows_at_the_end_and_not_before() {
    let (identity, plain, bytes) = sealed(3 * BLOCK);
    let header = header_len(&bytes).unwrap();
    let two_blocks = header + NONCE_BYTES + 2 * (BLOCK + 16);
    let identities = [identity];
    let mut reader = OpenReader::new(&identities, Cursor::new(&bytes[..two_blocks])).unwrap();
    let mut read = vec![0; 2 * BLOCK];
    reader.read_exact(&mut read).unwrap();
    assert_eq!(read, plain[..2 * BLOCK]);
    let error = reader.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let source = error.into_inner().unwrap();
    assert_eq!(source.to_string(), "the sealed bytes are damaged: it ends too early");
    assert_eq!(
        reader.read(&mut [0]).unwrap_err().to_string(),
        "an earlier read of this sealed object failed"
    );
    let mut reader = OpenReader::new(&identities, Cursor::new(&bytes[..two_blocks])).unwrap();
    assert!(reader.seek(SeekFrom::End(0)).is_err());
    let mut reader = OpenReader::new(&identities, Cursor::new(&bytes[..two_blocks])).unwrap();
    reader.seek(SeekFrom::Start(10 * BLOCK_PLAIN_BYTES)).unwrap();
    assert!(reader.read(&mut [0]).is_err());
}

#[test]
fn a_range_needs_only_its_blocks() {
    let (identity, plain, bytes) = sealed(5 * BLOCK + 100);
    let identities = [identity];
    let header = header_len(&bytes).unwrap();
    let len = plain.len() as u64;
    for range in
        [0..10, 3..BLOCK_PLAIN_BYTES, BLOCK_PLAIN_BYTES..BLOCK_PLAIN_BYTES + 1, 70_000..200_000, len - 1..len]
    {
        let stored = sealed_range(header, range.clone());
        let (start, end) = (stored.start as usize, (stored.end as usize).min(bytes.len()));
        let parts = Parts::new(bytes.len() as u64)
            .with(0, &bytes[..header + NONCE_BYTES])
            .with(stored.start, &bytes[start..end]);
        let mut reader = OpenReader::new(&identities, parts).unwrap();
        reader.seek(SeekFrom::Start(range.start)).unwrap();
        let mut read = vec![0; (range.end - range.start) as usize];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(read, plain[range.start as usize..range.end as usize]);
    }
    assert!(sealed_range(header, 5..5).is_empty());
}

#[test]
fn parts_that_were_not_fetched_are_an_error_of_access_and_not_damage() {
    let (identity, _, bytes) = sealed(2 * BLOCK);
    let header = header_len(&bytes).unwrap();
    let parts = Parts::new(bytes.len() as u64).with(0, &bytes[..header + NONCE_BYTES]);
    let error = OpenReader::new(&[identity], parts).unwrap().read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Other);
    assert_eq!(error.to_string(), format!("byte {} of the object was not fetched", header + NONCE_BYTES));
}

#[test]
fn limits_hold_before_anything_is_decrypted() {
    let (identity, _, bytes) = sealed(1000);
    let error = open(&[identity], &bytes, 999).unwrap_err();
    assert_eq!(error.to_string(), "the plaintext has 1000 bytes, more than the limit of 999");
    assert!(matches!(seal(&[], b""), Err(CryptoError::NoRecipient)));
    let many = vec![Identity::generate().recipient(); MAX_RECIPIENTS + 1];
    assert!(matches!(seal(&many, b""), Err(CryptoError::TooManyRecipients { count: 65, max: 64 })));
    let most = seal(&many[1..], b"").unwrap();
    assert!(header_len(&most).unwrap() < MAX_HEADER_BYTES);
}

#[test]
fn headers_are_measured_and_bounded() {
    let (_, _, bytes) = sealed(10);
    let length = header_len(&bytes).unwrap();
    assert_eq!(bytes[length - 1], b'\n');
    assert_eq!(bytes.len(), length + NONCE_BYTES + 10 + 16);
    for have_bytes in 0..length {
        let error = header_len(&bytes[..have_bytes]).unwrap_err();
        assert!(matches!(error, CryptoError::HeaderIncomplete { have_bytes: found } if found == have_bytes));
    }
    let mut endless = b"age-encryption.org/v1\n".to_vec();
    endless.extend(b"-> a\n\n".repeat(10_000));
    assert!(matches!(header_len(&endless), Err(CryptoError::Damaged { .. })));
    assert!(matches!(open(&[], &endless, NO_LIMIT), Err(CryptoError::Damaged { .. })));
    assert!(OpenReader::new(&[], Cursor::new(&endless)).is_err());
    for bad in [&b"PK\x03\x04"[..], b"age-encryption.org/v2\n", b"age-encryption.org/v1\n---\n"] {
        assert!(matches!(header_len(bad), Err(CryptoError::Damaged { .. })));
    }
}

/// Fails the write that would exceed its room, once.
struct Narrow {
    room: usize,
    failed: bool,
    taken: Vec<u8>,
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.taken.len() + bytes.len() > self.room && !std::mem::replace(&mut self.failed, true) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_failed_never_finishes() {
    let output = Narrow { room: 1000, failed: false, taken: Vec::new() };
    let mut writer = SealWriter::new(&[Identity::generate().recipient()], output).unwrap();
    let error = writer.write_all(&pattern(3 * BLOCK)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(writer.write_all(b"more").is_err());
    assert!(writer.finish().is_err());
}

#[test]
fn a_writer_counts_what_it_wrote() {
    let identity = Identity::generate();
    let mut writer = SealWriter::new(&[identity.recipient()], Vec::new()).unwrap();
    let header = writer.header_len();
    assert_eq!(writer.sealed_len(), (header + NONCE_BYTES) as u64);
    writer.write_all(&pattern(BLOCK + 1)).unwrap();
    assert_eq!(writer.sealed_len(), (header + NONCE_BYTES + BLOCK + 16) as u64);
    let bytes = writer.finish().unwrap();
    assert_eq!(header_len(&bytes).unwrap(), header);
    assert_eq!(open(&[identity], &bytes, NO_LIMIT).unwrap(), pattern(BLOCK + 1));
}

#[test]
fn no_two_seals_are_alike() {
    let recipient = Identity::generate().recipient();
    let nonce = |bytes: &[u8]| {
        let at = header_len(bytes).unwrap();
        bytes[at..at + NONCE_BYTES].to_vec()
    };
    let sealed: Vec<_> = (0..100).map(|_| seal(std::slice::from_ref(&recipient), b"same").unwrap()).collect();
    let nonces: std::collections::BTreeSet<_> = sealed.iter().map(|bytes| nonce(bytes)).collect();
    assert_eq!(nonces.len(), 100);
}

#[derive(Debug, Clone)]
enum Step {
    Seek(SeekFrom),
    Read(usize),
}

fn steps(len: i64) -> impl Strategy<Value = Vec<Step>> {
    let near_block =
        (0..=len / BLOCK as i64 + 1, -2i64..3).prop_map(|(block, off)| block * BLOCK as i64 + off);
    let target = prop_oneof![near_block, 0..=len + 70_000].prop_map(|at| at.max(0) as u64);
    let step = prop_oneof![
        target.prop_map(|at| Step::Seek(SeekFrom::Start(at))),
        (-len - 10..len + 10).prop_map(|by| Step::Seek(SeekFrom::Current(by))),
        (-len - 10..10).prop_map(|by| Step::Seek(SeekFrom::End(by))),
        prop_oneof![0usize..100, 60_000usize..140_000].prop_map(Step::Read),
    ];
    proptest::collection::vec(step, 1..30)
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(BLOCK), Just(2 * BLOCK), 0..200usize, BLOCK - 3..BLOCK + 3, 0..4 * BLOCK]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any mix of seeks and reads sees what a cursor over the plaintext sees.
    #[test]
    fn seeks_and_reads_agree_with_a_cursor((len, steps) in lengths().prop_flat_map(|len| (Just(len), steps(len as i64)))) {
        let (identity, plain, bytes) = sealed(len);
        let mut reader = OpenReader::new(&[identity], Cursor::new(&bytes)).unwrap();
        let mut cursor = Cursor::new(&plain);
        for step in steps {
            match step {
                Step::Seek(target) => {
                    prop_assert_eq!(reader.seek(target).ok(), cursor.seek(target).ok());
                }
                Step::Read(count) => {
                    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                    reader.by_ref().take(count as u64).read_to_end(&mut ours).unwrap();
                    cursor.by_ref().take(count as u64).read_to_end(&mut theirs).unwrap();
                    prop_assert_eq!(ours, theirs);
                }
            }
        }
    }

    #[test]
    fn sealed_bytes_open_again(plain in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let identity = Identity::generate();
        let bytes = seal(&[identity.recipient()], &plain).unwrap();
        prop_assert_eq!(open(&[identity], &bytes, 3000).unwrap(), plain);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..300, text in ".*") {
        let identity = [Identity::generate()];
        let genuine = seal(&[identity[0].recipient()], b"x").unwrap();
        // Never the genuine one as a whole: that opens.
        let spliced = [&genuine[..cut % genuine.len()], &bytes].concat();
        for input in [&bytes, &spliced] {
            let _ = header_len(input);
            prop_assert!(open(&identity, input, NO_LIMIT).is_err());
            prop_assert!(OpenReader::new(&identity, Cursor::new(input)).map_or(true, |mut r| r.read_to_end(&mut Vec::new()).is_err()));
        }
        let _ = (text.parse::<Recipient>(), Identity::parse(&text));
    }
}
