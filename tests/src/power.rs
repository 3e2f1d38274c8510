//! What the guest and the host of the power loss test agree on: which write goes where, and what a sector holds.

use crate::random::Random;

/// Writers; each has blocks of its own.
pub const WRITERS: u64 = 4;
/// Blocks of a writer.
pub const BLOCKS: u64 = 256;
/// The length of a block, which is one write.
pub const BLOCK_BYTES: u64 = 4096;
/// From one block to the next.
pub const STRIDE_BYTES: u64 = 64 << 10;
/// A sector is what a power loss leaves whole.
pub const SECTOR_BYTES: u64 = 512;
/// The size of each LUN, in bytes.
pub const LUN_BYTES: u64 = WRITERS * BLOCKS * STRIDE_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"shunt-pw");

/// One sector of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The life of the machine, from 1; 0: never written.
    pub life: u64,
    /// The number of the write, of its writer in this life.
    pub number: u64,
}

/// The block that a write goes to, of its writer's.
#[must_use]
pub fn block_of(life: u64, writer: u64, number: u64) -> u64 {
    let mut random = Random::new((life << 32 | writer << 24) ^ number);
    random.below(BLOCKS);
    random.below(BLOCKS)
}

/// Where a block of a writer is in the volume.
#[must_use]
pub const fn offset_of(writer: u64, block: u64) -> u64 {
    (writer * BLOCKS + block) * STRIDE_BYTES
}

/// Fills a sector.
pub fn encode(sector: &mut [u8], place: u64, mark: Mark) {
    let words = [MAGIC, place, mark.life, mark.number];
    for (index, chunk) in sector.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&(words[index % 4] ^ index as u64).to_le_bytes());
    }
}

/// What a sector holds; `None`: nothing that was ever written there.
#[must_use]
pub fn decode(sector: &[u8], place: u64) -> Option<Mark> {
    if sector.iter().all(|byte| *byte == 0) {
        return Some(Mark::default());
    }
    let word = |index: usize| {
        let bytes = sector[index * 8..][..8].try_into().unwrap_or_default();
        u64::from_le_bytes(bytes) ^ index as u64
    };
    let mark = Mark {
        life: word(2),
        number: word(3),
    };
    let mut expected = vec![0; sector.len()];
    encode(&mut expected, place, mark);
    (expected == sector).then_some(mark)
}
