//! The blocks in which two LUNs differ.

use tools::Runs;

/// The unit in which differences are counted, in bytes.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// The highest number of ranges that are named; further ranges are only counted.
const RANGES_MAX: usize = 16;

/// The blocks that differ.
#[derive(Debug)]
pub(crate) struct Differences {
    blocks: Runs,
}

impl Default for Differences {
    fn default() -> Self {
        Self {
            blocks: Runs::new(RANGES_MAX),
        }
    }
}

impl Differences {
    /// Compares two parts of equal length that begin at `offset_bytes`, a multiple of
    /// [`BLOCK_BYTES`].
    pub(crate) fn compare(&mut self, offset_bytes: u64, a: &[u8], b: &[u8]) {
        debug_assert_eq!(a.len(), b.len());
        if a == b {
            return;
        }
        let first = offset_bytes / BLOCK_BYTES as u64;
        for (index, (a, b)) in a.chunks(BLOCK_BYTES).zip(b.chunks(BLOCK_BYTES)).enumerate() {
            if a != b {
                self.blocks.add(first + index as u64);
            }
        }
    }

    /// Whether no block differs.
    pub(crate) fn is_none(&self) -> bool {
        self.blocks.indexes() == 0
    }

    /// The number of blocks that differ.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.indexes()
    }

    /// The ranges of blocks that differ, in blocks.
    pub(crate) fn ranges(&self) -> &Runs {
        &self.blocks
    }
}
