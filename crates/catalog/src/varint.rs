//! Numbers in as few bytes as they need.

/// Appends a number: seven bits a byte, the lowest first, the top bit of all bytes but the last set.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
