//! The directory of a pack: the plaintext of a whole pack, and any directory behind an honest trailer.
#![no_main]
use backup_core::pack::PackDirectory;

fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    [&magic.to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// A pack with this directory and as many bytes of frames as it claims, if that is not much.
fn with_directory(directory: &[u8], frames: usize) -> Vec<u8> {
    let mut plain = vec![0; frames];
    let compressed = zstd::bulk::compress(directory, 1).expect("in memory");
    let directory = skippable(0x184D_2A50, &compressed);
    plain.extend_from_slice(&directory);
    let mut trailer = (frames as u64).to_le_bytes().to_vec();
    trailer.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    trailer.extend_from_slice(&1u32.to_le_bytes());
    trailer.extend_from_slice(b"KWPACK\0\x01");
    plain.extend_from_slice(&skippable(0x184D_2A51, &trailer));
    plain
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = PackDirectory::of_plaintext(data);
    let Ok(directory) = PackDirectory::decode(data) else { return };
    let encoded = directory.encode();
    assert_eq!(PackDirectory::decode(&encoded).expect("its own bytes"), directory);
    if encoded.len() == data.len() {
        assert_eq!(encoded, data);
    }
    let stored: u64 = directory.frames.iter().map(|frame| u64::from(frame.stored)).sum();
    if stored < 1 << 16 {
        let pack = with_directory(data, stored as usize);
        assert_eq!(PackDirectory::of_plaintext(&pack).expect("an honest trailer"), directory);
    }
});
