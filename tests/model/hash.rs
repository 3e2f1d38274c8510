//! A fast 128-bit hash of states. Two states with one hash count as one state. With ten million
//! states the chance of a single collision is below 10^-24.

use std::hash::{Hash, Hasher};

#[derive(Default)]
struct Wide {
    low: u64,
    high: u64,
}

const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

impl Wide {
    fn mix(&mut self, word: u64) {
        let fold = |state: u64, factor: u64| {
            let product = u128::from(state ^ word) * u128::from(factor);
            (product as u64) ^ ((product >> 64) as u64)
        };
        self.low = fold(self.low.wrapping_add(ODD[1]), ODD[0]).rotate_left(17);
        self.high = fold(self.high.wrapping_add(ODD[0]) ^ self.low, ODD[1]).rotate_left(29);
    }
}

impl Hasher for Wide {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.mix(u64::from(*byte) | 0x100);
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        self.low
    }
}

/// The hash of a state.
pub(crate) fn of(state: &impl Hash) -> u128 {
    let mut wide = Wide::default();
    state.hash(&mut wide);
    wide.mix(0);
    u128::from(wide.low) << 64 | u128::from(wide.high)
}
