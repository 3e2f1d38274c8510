//! The copier: one thread per pair that copies regions from the authoritative leg to the mirror
//! leg, or compares both legs, while `ublk-target` serves the volume.
//!
//! ```text
//!              claim / regions / report                     read            write
//! ublk-target <------- socket -------> copier thread <--- `from` leg --- `to` leg <---
//!                                        one ring for both: waiting for an answer never stalls I/O
//! ```
//!
//! `ublk-target` decides what may be copied and when a region is clean; the copier only moves
//! bytes. `shuntd` (crate `mgr`) owns the threads. Invariants:
//!
//! 1. A LUN of `to` is written only after it is known to be the recorded one and its exclusive
//!    `flock` is held.
//! 2. The lock is held, and the connection with its claims lives, until the last I/O is done. If
//!    this process is killed, the kernel keeps the lock that long: the ring holds the LUNs as
//!    registered files.
//! 3. A region is reported copied only when all of it was written (or deallocated and reads as
//!    zeroes).
//! 4. Nothing is written for an epoch that is over, and a comparison never writes.
//!
//! | file | purpose | I/O |
//! |---|---|---|
//! | `conversation` | what the thread asks of a plan | none |
//! | `plan` | the plan of a copy: what to ask, when to end | none |
//! | `compare` | the plan of a comparison | none |
//! | `window` | claimed regions, cut into pieces | none |
//! | `rate` | the limit of the rate | none |
//! | `ring` | io_uring and its memory: the only unsafe code | yes |
//! | `line` | the connection, over the ring | yes |
//! | `open` | opening and locking the LUNs (crate `leg`) | yes |
//! | `mover` | the interface of the ways to move a piece | none |
//! | `mover::host` | the way through this host: reads and writes | yes |
//! | `mover::host::transfer` | one piece: read, written or deallocated, and read back | none |
//! | `mover::host::salvage` | reading around bad blocks of the source | none |
//! | `run` | the thread: greeting, and performing what the plan decides | yes |
//!
//! `plan` and `window` are public for the simulation (`tests/sim`), which has other disks and
//! another clock.
//!
//! Not done here: deciding what is dirty, restarting a copier that ended, and flushing the mirror
//! leg (`ublk-target` does that before a region is durably clean).

pub mod compare;
pub mod conversation;
mod line;
mod mover;
mod open;
pub mod plan;
mod rate;
mod ring;
mod run;
#[cfg(test)]
mod tests;
pub mod window;

use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use migration_proto::route::Side;
use migration_proto::target::Refusal;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The default of [`Config::queue_depth`].
pub const QUEUE_DEPTH_DEFAULT: u32 = 16;
/// The default of [`Config::io_bytes`].
pub const IO_BYTES_DEFAULT: u32 = 512 << 10;
/// The largest [`Config::queue_depth`].
pub const QUEUE_DEPTH_MAX: u32 = 1024;
/// The largest [`Config::io_bytes`].
pub const IO_BYTES_MAX: u32 = 16 << 20;
/// [`Config::io_bytes`] is a multiple of this.
pub const IO_BYTES_ALIGNMENT: u32 = 4096;

/// The parameters of a copier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The socket of the volume's `ublk-target`.
    pub socket: PathBuf,
    /// The UUID of the volume, by which its `ublk-target` is reached when the socket file is gone.
    pub volume_id: Option<String>,
    /// The number of pieces in flight at once; 1 to [`QUEUE_DEPTH_MAX`].
    pub queue_depth: u32,
    /// The largest piece, in bytes; a multiple of [`IO_BYTES_ALIGNMENT`], at most [`IO_BYTES_MAX`].
    pub io_bytes: u32,
    /// Whether zeroes are deallocated on the mirror leg, where it can do that, instead of written.
    pub detect_zeroes: bool,
    /// The task.
    pub task: Task,
}

/// The task of a copier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Copies dirty regions.
    Copy {
        /// Whether data is read back from the mirror leg before it counts as copied.
        read_back: bool,
    },
    /// Compares clean regions. A region that differs becomes dirty.
    Compare,
}

impl Config {
    /// The defaults for one volume.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            volume_id: None,
            queue_depth: QUEUE_DEPTH_DEFAULT,
            io_bytes: IO_BYTES_DEFAULT,
            detect_zeroes: false,
            task: Task::Copy { read_back: false },
        }
    }

    fn check(&self) -> io::Result<()> {
        let bad = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if !(1..=QUEUE_DEPTH_MAX).contains(&self.queue_depth) {
            return bad(format!(
                "a queue depth of {} is not within 1 to {QUEUE_DEPTH_MAX}",
                self.queue_depth
            ));
        }
        if !self.io_bytes.is_multiple_of(IO_BYTES_ALIGNMENT)
            || !(1..=IO_BYTES_MAX).contains(&self.io_bytes)
        {
            return bad(format!(
                "an I/O size of {} bytes is not a multiple of {IO_BYTES_ALIGNMENT} of at most {IO_BYTES_MAX}",
                self.io_bytes
            ));
        }
        Ok(())
    }
}

/// Decides about parts of the volume, in bytes, that cannot be read from the source, and makes that
/// durable. The flag says whether their region is copied for the first time. An error says why the
/// copy may not skip the parts. Called on the copier's thread, before anything is written to these
/// parts.
pub type AcceptUnreadable =
    Box<dyn FnMut(Vec<Range<u64>>, bool) -> Result<OnTarget, String> + Send>;

/// What is written to the target where the source cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTarget {
    /// Zeroes: the target was never a copy there.
    Zeroes,
    /// Nothing: the target keeps its data, which may be the only good copy.
    Kept,
}

/// The limits that may be changed while the copier runs.
#[derive(Debug, Default)]
pub struct Limits {
    /// The highest rate, in bytes per second; 0 = unlimited. A change takes effect within 100 ms.
    pub bytes_per_second: AtomicU64,
    /// The most transfers in progress; 0 = as many as there are buffers.
    pub depth: AtomicU32,
}

/// The progress of a copier. All in bytes unless the name says otherwise.
#[derive(Debug, Default)]
pub struct Progress {
    /// Copied since the start, including `zero_bytes`; bytes that were copied twice count twice.
    pub copied_bytes: AtomicU64,
    /// The part of `copied_bytes` that was deallocated instead of written.
    pub zero_bytes: AtomicU64,
    /// The bytes that differed when they were compared before being written.
    pub differing_bytes: AtomicU64,
    /// The time during which something was being copied or compared, in nanoseconds.
    pub copying_nanoseconds: AtomicU64,
    /// Compared since the start; bytes that were compared twice count twice.
    pub compared_bytes: AtomicU64,
    /// The number of regions that could not be copied or compared (a region that fails again when
    /// it is retried counts again).
    pub failed_regions: AtomicU64,
}

/// How a copier ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `ublk-target` reported that nothing is dirty.
    InSync,
    /// The whole volume was compared, as far as that was possible.
    Compared(compare::Found),
    /// The owner stopped it.
    Stopped,
    /// `ublk-target` is gone, does not answer, or broke the protocol.
    Disconnected {
        /// What happened.
        cause: String,
    },
    /// `ublk-target` refused, or a leg must not be used. Nothing was written after that.
    Refused {
        /// The kind. [`Refusal::BadLeg`] also means that a LUN cannot be opened or is not the
        /// recorded one, [`Refusal::CopierBusy`] also that another process has locked a LUN.
        reason: Refusal,
        /// The cause in words.
        cause: String,
    },
    /// Too many regions could not be copied or compared.
    Failed {
        /// The leg of the last error.
        side: Side,
        /// The last error.
        cause: String,
    },
    /// This host or this program failed: no memory for the ring, a panic.
    Broken {
        /// What happened.
        cause: String,
    },
}

/// The state that the thread and its owner share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    wake: EventFd,
    limits: Arc<Limits>,
    progress: Arc<Progress>,
}

impl Shared {
    fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        // The write fails only if the counter is full: then the thread is woken anyway.
        let _ = self.wake.write(1);
    }
}

/// A running copier. Dropping it stops it and waits for its I/O.
#[derive(Debug)]
pub struct Copier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Copier {
    /// Starts the thread. Without `accept_unreadable`, a block of the source that cannot be read
    /// fails its region. `on_end` is called once on the thread, when everything is closed and
    /// unlocked; it must not stop or drop this copier.
    ///
    /// # Errors
    /// `config` is not valid, or the kernel provides no ring, memory or thread.
    pub fn start(
        config: Config,
        limits: Arc<Limits>,
        accept_unreadable: Option<AcceptUnreadable>,
        on_end: impl FnOnce(Outcome) + Send + 'static,
    ) -> io::Result<Self> {
        config.check()?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            wake,
            limits,
            progress: Arc::default(),
        });
        let ring = ring::Ring::new(config.queue_depth, config.io_bytes)?;
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("copier".to_owned())
            .spawn(move || {
                // A panic must not look like a copier that still runs.
                let run =
                    AssertUnwindSafe(|| run::run(&config, ring, &for_thread, accept_unreadable));
                let outcome = catch_unwind(run).unwrap_or_else(|_| panicked());
                on_end(outcome.clone());
                outcome
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The progress, which the thread keeps up to date.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.shared.progress
    }

    /// Stops the copier and waits for its I/O: only for what is in flight, and at most a second for
    /// an answer of `ublk-target`. Blocks. Returns the outcome, which is not [`Outcome::Stopped`]
    /// if the copier had ended before.
    #[must_use]
    pub fn stop(mut self) -> Outcome {
        self.join().unwrap_or_else(panicked)
    }

    fn join(&mut self) -> Option<Outcome> {
        self.shared.ask_to_stop();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn panicked() -> Outcome {
    Outcome::Broken {
        cause: "the copier panicked".to_owned(),
    }
}
