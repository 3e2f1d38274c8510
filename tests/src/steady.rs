//! A load with verification that starts immediately: writers that each know what their blocks must
//! hold.
//!
//! fio proves more in one run, but in the machine its start alone takes as long as thousands of
//! these requests. A test that needs an application that notices every lost write, but not fio
//! itself, uses this load.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{random::Random, wait_until};

/// The default size of the area that a test writes to, in bytes.
pub const SPAN: u64 = 16 << 20;

/// The number of requests that are open at once.
const WRITERS: u64 = 8;

const BLOCK: usize = 4096;

/// The pause between two requests of a writer. With 1 ms the load takes all that the emulated
/// processor has, and the tests twice as much processor time.
const PAUSE: Duration = Duration::from_millis(6);

/// The number of requests of each writer after which the load is known to run.
const REQUESTS: u64 = 16;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    /// Fills the block with its contents after `writes` writes.
    fn fill(&mut self, number: u64, writes: u64) {
        for (index, word) in (0u64..).zip(self.0.chunks_exact_mut(8)) {
            let value = (number << 32 | writes).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index;
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Writers at work on the first bytes of a device.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    done: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Steady {
    /// Starts the load. The blocks of the writers are interleaved.
    ///
    /// # Panics
    /// If the device cannot be opened.
    #[must_use]
    pub fn start(device: &str, span_bytes: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done: Vec<_> = (0..WRITERS).map(|_| Arc::default()).collect();
        let blocks = span_bytes / BLOCK as u64 / WRITERS;
        let threads = (0..WRITERS).zip(&done).map(|(number, done)| {
            let file = File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(device)
                .expect("the device of the load");
            let writer = Writer {
                number,
                file,
                random: Random::new(number + 1),
                writes: vec![0; blocks as usize],
                buffer: Box::new(Block([0; BLOCK])),
                expected: Box::new(Block([0; BLOCK])),
            };
            let (stop, done) = (Arc::clone(&stop), Arc::clone(done));
            std::thread::spawn(move || writer.work(&stop, &done))
        });
        let threads = threads.collect();
        Self {
            stop,
            done,
            threads,
        }
    }

    fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits until every writer has begun and ended requests after this call.
    ///
    /// # Panics
    /// If one has failed, or takes too long.
    pub fn go_on(&self) {
        let now = |done: &Arc<AtomicU64>| done.load(Ordering::Relaxed);
        let before: Vec<u64> = self.done.iter().map(now).collect();
        wait_until("the load continues", || {
            let mut writers = self.done.iter().zip(&before);
            self.has_ended() || writers.all(|(done, before)| now(done) > before + REQUESTS)
        });
        assert!(!self.has_ended(), "the load has ended too early");
    }

    /// Stops the load, and reads back all that was written.
    ///
    /// # Panics
    /// If the application saw an error, or something else than it had written.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            if let Err(error) = thread.join().expect("no panic") {
                panic!("the application saw an error: {error}");
            }
        }
    }
}

impl Drop for Steady {
    /// Stops the load in a test that fails: each writer ends after its current request, which
    /// cannot be cancelled.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Writer {
    number: u64,
    file: File,
    random: Random,
    /// How often each block was written.
    writes: Vec<u64>,
    buffer: Box<Block>,
    expected: Box<Block>,
}

impl Writer {
    fn work(mut self, stop: &AtomicBool, done: &AtomicU64) -> Result<(), String> {
        while !stop.load(Ordering::Relaxed) {
            let index = self.random.below(self.writes.len() as u64) as usize;
            if self.writes[index] == 0 || self.random.below(2) == 0 {
                self.write(index)?;
            } else {
                self.check(index)?;
            }
            done.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
        (0..self.writes.len())
            .filter(|index| self.writes[*index] > 0)
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|index| self.check(index))
    }

    /// The number of a block on the device.
    fn block(&self, index: usize) -> u64 {
        index as u64 * WRITERS + self.number
    }

    fn write(&mut self, index: usize) -> Result<(), String> {
        let block = self.block(index);
        self.writes[index] += 1;
        self.buffer.fill(block, self.writes[index]);
        self.file
            .write_all_at(&self.buffer.0, block * BLOCK as u64)
            .map_err(|error| format!("block {block} cannot be written: {error}"))
    }

    fn check(&mut self, index: usize) -> Result<(), String> {
        let block = self.block(index);
        self.file
            .read_exact_at(&mut self.buffer.0, block * BLOCK as u64)
            .map_err(|error| format!("block {block} cannot be read: {error}"))?;
        self.expected.fill(block, self.writes[index]);
        if self.buffer.0 == self.expected.0 {
            return Ok(());
        }
        let writes = self.writes[index];
        Err(format!(
            "block {block} does not hold what its write {writes} wrote"
        ))
    }
}
