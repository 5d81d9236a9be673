//! Zero test.

/// Whether every byte is zero. Leaves at the first 64-byte piece that is not,
/// so data that is not zero costs nanoseconds.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (pieces, rest) = bytes.as_chunks::<64>();
    pieces.iter().all(|piece| piece.iter().fold(0, |acc, byte| acc | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_found() {
        for len in [0, 1, 63, 64, 65, 130, 4096] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "bit at {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
