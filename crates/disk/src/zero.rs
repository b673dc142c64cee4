//! The zero test and the hash of a block.

use std::sync::LazyLock;

/// Size of a block, of a cluster of exported images and of a hashed unit, in bytes.
pub const BLOCK_SIZE: u64 = 64 << 10;

/// [`BLOCK_SIZE`] for slices.
pub(crate) const BLOCK: usize = BLOCK_SIZE as usize;

static ZEROS: [u8; BLOCK] = [0; BLOCK];
static ZERO_HASH: LazyLock<blake3::Hash> = LazyLock::new(|| blake3::hash(&ZEROS));

/// True when every byte is zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks that are not zero say so early; the rest is compared with memory known to be zero, the fastest test there is.
    let (head, tail) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|b| *b == 0)
        && tail
            .chunks(BLOCK)
            .all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}

/// The hash of `len` zero bytes (at most one block).
#[must_use]
pub fn zero_hash(len: u64) -> blake3::Hash {
    if len == BLOCK_SIZE {
        return *ZERO_HASH;
    }
    blake3::hash(ZEROS.get(..len as usize).unwrap_or(&ZEROS))
}

/// Number of blocks of a disk of `size` bytes; the last one may be short.
#[must_use]
pub fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK_SIZE)
}

/// Length of block `index` of a disk of `size` bytes.
#[must_use]
pub fn block_len(index: u64, size: u64) -> u64 {
    size.saturating_sub(index.saturating_mul(BLOCK_SIZE))
        .min(BLOCK_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_seen() {
        let mut block = vec![0u8; 3 * BLOCK + 5];
        assert!(is_zero(&block));
        assert!(is_zero(&[]));
        for at in [0, 15, 16, 17, BLOCK, 2 * BLOCK + 15, 3 * BLOCK + 4] {
            block[at] = 1;
            assert!(!is_zero(&block), "{at}");
            block[at] = 0;
        }
    }

    #[test]
    fn the_zero_hash_is_the_hash_of_zeros() {
        assert_eq!(zero_hash(BLOCK_SIZE), blake3::hash(&vec![0u8; BLOCK]));
        assert_eq!(zero_hash(512), blake3::hash(&[0u8; 512]));
    }

    #[test]
    fn the_last_block_is_short() {
        let size = 100 * 1024 * 1024 + 512;
        assert_eq!(block_count(size), 1601);
        assert_eq!(block_len(1600, size), 512);
        assert_eq!(block_len(1599, size), BLOCK_SIZE);
        assert_eq!(block_len(1601, size), 0);
    }
}
