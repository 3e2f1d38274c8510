//! The agreement between a machine and its host when the machine may end at any moment: which write
//! goes where, and what a sector holds. Also the application that does these writes.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::random::Random;

/// The number of writers; each has its own blocks.
pub const WRITERS: u64 = 4;
/// The number of blocks of a writer.
pub const BLOCKS: u64 = 256;
/// The length of a block, which is one write.
pub const BLOCK_BYTES: u64 = 4096;
/// The distance from one block to the next, in bytes.
pub const STRIDE_BYTES: u64 = 64 << 10;
/// The size of a sector, which a power loss leaves whole, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// The size of each LUN, in bytes.
pub const LUN_BYTES: u64 = WRITERS * BLOCKS * STRIDE_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"shunt-pw");

/// The write that a sector comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The life of the machine, from 1; 0: never written.
    pub life: u64,
    /// The number of the write, counted by its writer in this life.
    pub number: u64,
}

/// The block that a write goes to, among the blocks of its writer.
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

/// Fills a sector with its place and a mark.
pub fn encode(sector: &mut [u8], place: u64, mark: Mark) {
    let words = [MAGIC, place, mark.life, mark.number];
    for (index, chunk) in sector.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&(words[index % 4] ^ index as u64).to_le_bytes());
    }
}

/// The mark of a sector. `None`: the sector holds something that was never written there.
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

/// Reports to the host that the first `count` writes of a writer are flushed.
pub fn say_flushed(writer: u64, count: u64) {
    let mut out = io::stdout().lock();
    // An error is ignored: without a host there is no machine either.
    let _ = writeln!(out, "flushed {writer} {count}");
}

/// The writer and the count of a line that [`say_flushed`] printed.
#[must_use]
pub fn flushed(line: &str) -> Option<(usize, u64)> {
    let (writer, count) = line.strip_prefix("flushed ")?.split_once(' ')?;
    Some((writer.parse().ok()?, count.parse().ok()?))
}

/// A block that is aligned for direct I/O.
#[derive(Debug)]
#[repr(align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES as usize]);

impl Block {
    /// A block of zeroes.
    #[must_use]
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_BYTES as usize]))
    }
}

/// Opens a volume, bypassing the page cache.
///
/// # Panics
/// If the volume cannot be opened.
#[must_use]
pub fn open(device: &str) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
        .expect("the volume")
}

/// An application that writes its blocks in an order that the host knows, and flushes now and then.
#[derive(Debug)]
pub struct Writer {
    life: u64,
    writer: u64,
    number: u64,
    /// For each of its blocks, the last write of this life.
    last: Vec<Option<u64>>,
    random: Random,
}

impl Writer {
    /// Creates the writer with this number, in a life of the machine.
    #[must_use]
    pub fn new(life: u64, writer: u64) -> Self {
        Self {
            life,
            writer,
            number: 0,
            last: vec![None; BLOCKS as usize],
            random: Random::new(life << 8 | writer),
        }
    }

    /// Writes until `stop` is set, and flushes at the end. `flushed` is called after each flush
    /// with the number of writes that it covers.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn write(
        &mut self,
        volume: &File,
        stop: &AtomicBool,
        mut flushed: impl FnMut(&mut Self, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut block = Block::zeroed();
        loop {
            let index = block_of(self.life, self.writer, self.number);
            let offset = offset_of(self.writer, index);
            let mark = Mark {
                life: self.life,
                number: self.number,
            };
            let sectors = block.0.chunks_exact_mut(SECTOR_BYTES as usize);
            for (sector, place) in sectors.zip((offset..).step_by(SECTOR_BYTES as usize)) {
                encode(sector, place, mark);
            }
            volume.write_all_at(&block.0, offset)?;
            self.last[index as usize] = Some(self.number);
            self.number += 1;
            let stops = stop.load(Ordering::Relaxed);
            if self.random.below(8) == 0 || stops {
                volume.sync_data()?;
                flushed(self, self.number)?;
            }
            if stops {
                return Ok(());
            }
        }
    }

    /// Reads one block of the writer, and compares it with what was last written to it in this
    /// life.
    ///
    /// # Errors
    /// Those of the volume, and `InvalidData` if it holds anything else.
    pub fn read_one(&mut self, volume: &File) -> io::Result<()> {
        let index = self.random.below(BLOCKS);
        let Some(number) = self.last[index as usize] else {
            return Ok(());
        };
        let offset = offset_of(self.writer, index);
        let mut block = Block::zeroed();
        volume.read_exact_at(&mut block.0, offset)?;
        let wanted = Mark {
            life: self.life,
            number,
        };
        let sectors = block.0.chunks_exact(SECTOR_BYTES as usize);
        for (sector, place) in sectors.zip((offset..).step_by(SECTOR_BYTES as usize)) {
            let found = decode(sector, place);
            if found != Some(wanted) {
                let text = format!("at {place} the volume holds {found:?} instead of {wanted:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    }
}
