//! A thread that reads a LUN ahead of the comparison.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use lun::Lun;

/// The size of a chunk, in bytes.
const CHUNK_BYTES: usize = 4 << 20;
/// The number of chunks for each LUN: one is compared while the next is read.
const CHUNKS: usize = 2;
/// The alignment of buffers, in bytes. Direct I/O needs alignment to the logical block, and no LUN
/// has larger logical blocks than this.
const ALIGNMENT_BYTES: usize = 64 << 10;

/// A buffer with a part of a LUN.
#[derive(Debug)]
pub(crate) struct Chunk {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Chunk {
    fn new() -> Self {
        let memory = vec![0; CHUNK_BYTES + ALIGNMENT_BYTES];
        let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        Self {
            memory,
            start,
            length: 0,
        }
    }

    /// The bytes that were read.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    /// Reads `length` bytes at `offset`, both multiples of the logical block; continues after short
    /// reads.
    fn fill(&mut self, file: &File, offset: u64, length: usize) -> io::Result<()> {
        let buffer = &mut self.memory[self.start..self.start + length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => {
                    return Err(io::Error::other(format!(
                        "it ends at byte {}",
                        offset + filled as u64
                    )));
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at(&error, offset + filled as u64)),
            }
        }
        self.length = length;
        Ok(())
    }
}

fn at(error: &io::Error, offset: u64) -> io::Error {
    io::Error::new(error.kind(), format!("at byte {offset}: {error}"))
}

/// A LUN that a thread reads from its beginning.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The path of the LUN.
    pub path: PathBuf,
    full: Receiver<io::Result<Chunk>>,
    empty: SyncSender<Chunk>,
}

impl Reader {
    /// Starts to read the first `bytes` bytes, at most the size of the LUN.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated, or the thread cannot be started.
    pub(crate) fn start(lun: &Lun, bytes: u64) -> io::Result<Self> {
        let file = File::from(lun.fd.try_clone()?);
        let block = u64::from(lun.identity.logical_block_bytes);
        let (to_compare, full) = sync_channel(CHUNKS);
        let (empty, to_fill) = sync_channel(CHUNKS);
        for _ in 0..CHUNKS {
            // Cannot fail: the channel has room for all chunks, and its receiver is still here.
            let _ = empty.send(Chunk::new());
        }
        thread::Builder::new()
            .spawn(move || read_all(&file, bytes, block, &to_fill, &to_compare))?;
        Ok(Self {
            path: lun.path.clone(),
            full,
            empty,
        })
    }

    /// Waits for the next chunk.
    ///
    /// # Errors
    /// The error of the read.
    pub(crate) fn receive(&self) -> io::Result<Chunk> {
        self.full
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the reading thread has ended")))
    }

    /// Returns a chunk, so that the thread can read into it again.
    pub(crate) fn give_back(&self, chunk: Chunk) {
        // Fails once the thread has read everything and ended, which is not an error.
        let _ = self.empty.send(chunk);
    }
}

/// Reads until the end, an error, or until the [`Reader`] is dropped.
fn read_all(
    file: &File,
    bytes: u64,
    block: u64,
    to_fill: &Receiver<Chunk>,
    to_compare: &SyncSender<io::Result<Chunk>>,
) {
    let mut offset = 0;
    while offset < bytes {
        let Ok(mut chunk) = to_fill.recv() else {
            return;
        };
        let wanted = (bytes - offset).min(CHUNK_BYTES as u64);
        // A LUN is a whole number of blocks long, so this does not read past its end.
        let result = chunk.fill(file, offset, wanted.next_multiple_of(block) as usize);
        chunk.length = wanted as usize;
        let failed = result.is_err();
        if to_compare.send(result.map(|()| chunk)).is_err() || failed {
            return;
        }
        offset += wanted;
    }
}
