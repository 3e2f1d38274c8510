//! The one thread that does all I/O of a volume and owns its state machine.
//!
//! ```text
//!   commands (Inbox) --eventfd--+
//!   /dev/ublkcN  <--fetch-------+--> Engine: completion -> Volume (migration-core) -> effects
//!   legs, map file <------------+         one io_uring, one thread, all queues
//! ```
//!
//! The loop: wait, name the event, give it to [`Volume`], carry out the effects. No policy here.
//! One thread serves all queues, so that overlapping writes of different queues meet in one place
//! without a lock (`docs/decisions/0003-one-io-thread.md`).

mod command;
mod completions;
mod effects;
mod memory;
mod mirror;
mod replies;
mod ring;
mod transfer;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use io_uring::{opcode, types};
use leg::OpenLeg;
use migration_core::{
    custody::Doubt,
    latency::Latencies,
    map::{BlockSize, RoleRecord, SECTOR_BYTES},
    route::Side,
    units::{Range, Tag, Time},
    volume::{self, Config, Effect, FlushId, IoResult, Op, Volume},
};
use migration_proto::{route::Descriptor, target::MAP_PARTS};

pub use self::command::{
    Command, CopierReport, EngineRequest, Inbox, NewDescriptor, Snapshot, refused,
};
use self::{
    memory::Buffers,
    mirror::Mirror,
    replies::Calls,
    ring::{DEVICE_FILE, MAP_FILE, Ring, Timer, Token},
    transfer::{LegFiles, Transfer},
};
use crate::ublk::{self, IoDescriptors, IoSlot};

/// The most sectors of one batch.
const MAP_BATCH_SECTORS_MAX: usize = volume::MAP_BATCH_SECTORS_MAX;
/// The last block of each bitmap may have fewer sectors than the others, and zeroes after them.
const MAP_BUFFER_BYTES: usize = MAP_BATCH_SECTORS_MAX * SECTOR_BYTES + 2 * BlockSize::BYTES_MAX;

/// The most writes to the mirror leg that are in flight at the same time: a usual queue depth of a
/// LUN. Each needs a buffer of its own if its request was answered before.
const MIRROR_PLACES: usize = 64;

/// How long a write may wait for the mirror leg before the leg is dropped, in nanoseconds. A leg
/// that answers later than this harms the application; a leg that is only slow answers earlier and
/// is kept.
const PATIENCE: u64 = 2_000_000_000;

/// Interval of the volume's clock tick.
const TICK: Duration = Duration::from_nanos(volume::TICK_NANOSECONDS);

/// The shape of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The number of hardware queues.
    pub queues: u16,
    /// Tags per queue.
    pub queue_depth: u16,
    /// The largest request, in bytes.
    pub request_bytes_max: u32,
}

impl Shape {
    fn tags(self) -> usize {
        usize::from(self.queues) * usize::from(self.queue_depth)
    }
}

/// Everything from which an engine is made.
#[derive(Debug)]
pub struct Parts {
    /// The shape of the device.
    pub shape: Shape,
    /// The map file, locked and read.
    pub map: map_store::MapFile,
    /// The source leg, if the route uses it.
    pub source: Option<OpenLeg>,
    /// The target leg, if the route uses it.
    pub target: Option<OpenLeg>,
    /// Why the mirror leg of the route is not open; `None` if it is open.
    pub mirror_problem: Option<String>,
    /// Why every region was made dirty when this process took the legs over; `None` if that was not
    /// needed.
    pub doubt: Option<Doubt>,
    /// Whether the ring registers LUNs as files. Only for kernels that release a registered file
    /// which is no longer used.
    pub registers_luns: bool,
}

/// The remains of an engine whose device has ended: every request is answered, and the engine
/// starts no more writes.
#[derive(Debug)]
pub struct Stopped {
    /// The current role record.
    pub record: RoleRecord,
    /// The source leg, if it is open.
    pub source: Option<Arc<OpenLeg>>,
    /// The target leg, if it is open.
    pub target: Option<Arc<OpenLeg>>,
    /// Whether the mirror leg of the route has completed every write. Meaningless without a mirror
    /// leg.
    pub mirror_is_whole: bool,
}

/// Why the engine ended, if not by the end of the device.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The ring, the memory or a mapping failed.
    #[error("{what}: {source}")]
    Setup {
        /// The action that failed.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The driver refused to hand out requests on a tag.
    #[error("the driver refused tag {tag}: {errno}")]
    Fetch {
        /// The tag.
        tag: u16,
        /// The driver's error.
        errno: nix::errno::Errno,
    },
    /// The role record could not be written, so that its contents are unknown.
    #[error(
        "the role record could not be written (error {0}): the route is unknown until it is read again"
    )]
    Role(i32),
    /// The process dropped the engine before it handed the device over.
    #[error("the device was not handed over")]
    NoDevice,
}

fn setup(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::Setup { what, source }
}

/// A flush of a leg that is in progress.
#[derive(Debug)]
struct LegFlush {
    side: Side,
    flush: FlushId,
    files_pending: usize,
    result: IoResult,
}

/// A mirror leg that is being added.
#[derive(Debug)]
struct NewMirrorLeg {
    call: volume::Call,
    files: LegFiles,
    /// `None` for a leg that the descriptor names already.
    descriptor: Option<NewDescriptor>,
}

/// The owner of a volume's state and of all its I/O; see the module.
pub struct Engine {
    // Dropped first: the kernel may use the memory of the fields below until then.
    ring: Ring,
    buffers: Buffers,
    map_buffer: Box<[u8; MAP_BUFFER_BYTES]>,
    /// A block; only its first sector is ever changed.
    role_buffer: Box<[u8; BlockSize::BYTES_MAX]>,
    wake_buffer: Box<[u8; 8]>,
    /// The descriptor that is being written or was written last. It stays here because the change
    /// to which it belongs may end before the kernel has read it. The volume writes one descriptor
    /// at a time.
    descriptor_buffer: Vec<u8>,
    new_mirror: Option<NewMirrorLeg>,
    requests: Vec<IoDescriptors>,
    shape: Shape,
    volume: Volume,
    descriptor: Arc<Descriptor>,
    effects: Vec<Effect>,
    legs: [Option<LegFiles>; 2],
    /// For each tag, its request's progress on its leg.
    transfers: Vec<Transfer>,
    /// For each tag, the arrival time of its request.
    arrivals: Vec<Time>,
    latencies: Latencies,
    mirror: Mirror,
    /// Why the mirror leg is not open; `None` if it is open.
    mirror_problem: Option<String>,
    /// Why the whole mirror leg is copied or compared again, until that is complete.
    doubt: Option<Doubt>,
    /// Some regions that are dirty because of a doubt are not marked durably yet. Until all are
    /// marked, the next process must not trust an inherited claim on the mirror leg.
    doubt_unmarked: bool,
    /// The copier's description of the mirror leg's failure, as long as the failure lasts.
    mirror_cause: Option<String>,
    flushes: Vec<LegFlush>,
    map_writes_pending: usize,
    map_write_result: IoResult,
    calls: Calls,
    inbox: Arc<Inbox>,
    /// Writes to the map file that are in progress: the kernel still reads our buffers.
    file_writes_pending: usize,
    /// Tags that the driver has taken back for good.
    tags_aborted: usize,
    died: Option<EngineError>,
    started: Instant,
    /// The time of the current wake-up.
    clock: Time,
    /// The deadline for which a timer was started.
    watched_deadline: Option<Time>,
    _map: File,
}

const fn side_index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Target => 1,
    }
}

impl Engine {
    /// Prepares everything that does not need the device. The thread that will run the engine must
    /// call it.
    ///
    /// # Errors
    /// [`EngineError::Setup`]
    pub fn prepare(parts: Parts, inbox: Arc<Inbox>) -> Result<Self, EngineError> {
        let Parts {
            shape,
            map,
            source,
            target,
            mirror_problem,
            doubt,
            registers_luns,
        } = parts;
        let tags = shape.tags();
        let buffers = Buffers::new(tags + MIRROR_PLACES, shape.request_bytes_max as usize)
            .map_err(setup("allocate the request buffers"))?;
        let mut ring =
            Ring::new(tags, buffers.whole(), registers_luns).map_err(setup("set up io_uring"))?;
        let in_ring = setup("register a file with io_uring");
        ring.register(MAP_FILE, map.file.as_raw_fd())
            .map_err(&in_ring)?;
        let mut legs = [None, None];
        for (place, leg) in legs.iter_mut().zip([source, target]) {
            *place = leg
                .map(|leg| register_leg(&mut ring, Arc::new(leg)))
                .transpose()
                .map_err(&in_ring)?;
        }
        let chosen = map.chosen;
        let mut volume = Volume::load(
            &Config {
                tags,
                places: MIRROR_PLACES,
                patience: PATIENCE,
            },
            chosen.record,
            chosen.stale_slot,
            &map.dirty,
            &map.intent,
        );
        if mirror_problem.is_some() {
            volume.mirror_missing();
        }
        let idle = Transfer::new(Op::Flush, Range::default());
        Ok(Self {
            ring,
            buffers,
            map_buffer: Box::new([0; MAP_BUFFER_BYTES]),
            role_buffer: Box::new([0; BlockSize::BYTES_MAX]),
            wake_buffer: Box::new([0; 8]),
            descriptor_buffer: Vec::new(),
            new_mirror: None,
            requests: Vec::with_capacity(usize::from(shape.queues)),
            shape,
            volume,
            descriptor: Arc::new(map.descriptor),
            effects: Vec::with_capacity(tags * 4),
            legs,
            transfers: vec![idle; tags],
            arrivals: vec![Time(0); tags],
            latencies: Latencies::default(),
            mirror: Mirror::new(tags, MIRROR_PLACES),
            mirror_problem,
            doubt,
            doubt_unmarked: false,
            mirror_cause: None,
            flushes: Vec::with_capacity(8),
            map_writes_pending: 0,
            map_write_result: Ok(()),
            calls: Calls::default(),
            inbox,
            file_writes_pending: 0,
            tags_aborted: 0,
            died: None,
            started: Instant::now(),
            clock: Time(0),
            watched_deadline: None,
            _map: map.file,
        })
    }

    /// Takes the device over: offers every tag to the driver. The driver owns all tags when this
    /// returns.
    ///
    /// # Errors
    /// [`EngineError::Setup`]
    pub fn take_device(&mut self, device: File) -> Result<(), EngineError> {
        for queue in 0..self.shape.queues {
            let mapped = IoDescriptors::map(device.as_fd(), queue, self.shape.queue_depth)
                .map_err(setup("map the device's requests"))?;
            self.requests.push(mapped);
        }
        self.ring
            .register(DEVICE_FILE, device.as_raw_fd())
            .map_err(setup("register the device with io_uring"))?;
        for tag in 0..self.shape.tags() {
            let tag = Tag(tag as u16);
            let entry = ublk::io::fetch(DEVICE_FILE, self.io_slot(tag), 0);
            self.ring.push(entry, Token::Device(tag));
        }
        self.ring
            .submit()
            .map_err(setup("offer the tags to the driver"))
    }

    /// Serves until the device ends.
    ///
    /// # Errors
    /// [`EngineError`]
    pub fn run(&mut self) -> Result<(), EngineError> {
        self.listen();
        self.ring.start_timer(Timer::Tick, TICK);
        self.volume.begin(&mut self.effects);
        self.perform_effects();
        while self.tags_aborted < self.shape.tags() {
            self.turn()?;
        }
        // The device has ended. Pending writes are drained, but a mirror leg that hangs must not
        // delay the end.
        let ended = self.started.elapsed();
        let patience = Duration::from_nanos(PATIENCE);
        while self.file_writes_pending > 0
            || self.mirror_is_writing() && self.started.elapsed() < ended + patience
        {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits for completions and handles them. Returns at the next tick at the latest.
    fn turn(&mut self) -> Result<(), EngineError> {
        self.ring.wait().map_err(setup("wait for io_uring"))?;
        self.read_clock();
        while let Some((token, result, more)) = self.ring.next_completion() {
            if token == Token::Timer(Timer::Tick) && !more {
                self.ring.start_timer(Timer::Tick, TICK);
            }
            self.complete(token, result)?;
            self.perform_effects();
        }
        self.watch_deadline();
        self.died.take().map_or(Ok(()), Err)
    }

    fn mirror_is_writing(&self) -> bool {
        self.mirror.in_flight() > 0 && self.volume.mirror_fault().is_none()
    }

    /// Ends the engine after [`Self::run`]: closes its ring and its inbox, and keeps what a clean
    /// stop needs.
    #[must_use]
    pub fn into_stopped(mut self) -> Stopped {
        let [source, target] = [0, 1].map(|side| {
            let files: Option<LegFiles> = self.legs[side].take();
            files.map(|files| files.leg)
        });
        Stopped {
            record: *self.volume.record(),
            mirror_is_whole: self.mirror_problem.is_none()
                && self.volume.mirror_fault().is_none()
                && self.volume.is_map_written()
                && self.mirror.in_flight() == 0,
            source,
            target,
        }
    }

    /// Reads the clock once for each wake-up: completions that arrive together have the same time.
    fn read_clock(&mut self) {
        self.clock = Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    const fn now(&self) -> Time {
        self.clock
    }

    /// Starts a timer for the volume's deadline, if the deadline has changed.
    fn watch_deadline(&mut self) {
        let deadline = self.volume.next_deadline();
        if deadline != self.watched_deadline {
            self.watched_deadline = deadline;
            if let Some(deadline) = deadline {
                let after = Duration::from_nanos(deadline.since(self.now()));
                self.ring.start_timer(Timer::Deadline, after);
            }
        }
    }

    fn listen(&mut self) {
        let descriptor = types::Fd(self.inbox.event_fd());
        let entry = opcode::Read::new(descriptor, self.wake_buffer.as_mut_ptr(), 8).build();
        self.ring.push(entry, Token::Wake);
    }

    fn io_slot(&self, tag: Tag) -> IoSlot {
        let buffer = self.mirror.buffer(tag);
        let tag = usize::from(tag.0);
        let depth = usize::from(self.shape.queue_depth);
        IoSlot {
            queue: (tag / depth) as u16,
            tag: (tag % depth) as u16,
            buffer_address: self.buffers.address(buffer) as u64,
        }
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        let record = *self.volume.record();
        let geometry = record.geometry;
        if self
            .volume
            .regions()
            .is_none_or(|regions| regions.dirty_regions() == 0)
        {
            self.doubt = None;
        }
        let leg = |side| {
            let files: &LegFiles = self.legs[side_index(side)].as_ref()?;
            Some(Arc::clone(&files.leg))
        };
        let regions = self.volume.regions();
        Some(Snapshot {
            descriptor: Arc::clone(&self.descriptor),
            record,
            dirty_bytes: regions.map_or(0, |regions| regions.dirty_bytes()),
            dirty_percent: regions
                .map(|regions| regions.dirty_percent(MAP_PARTS))
                .unwrap_or_default(),
            claimed_bytes: regions.map_or(0, |regions| {
                regions.claimed_regions() as u64 * geometry.region_bytes()
            }),
            mirror_fault: self.volume.mirror_fault(),
            mirror_cause: self.mirror_cause.clone(),
            stalled_writes: self.volume.stalled_writes(),
            mirror_problem: self.mirror_problem.clone(),
            doubt: self.doubt,
            doubt_unmarked: self.doubt_unmarked,
            authoritative_fault: self.volume.authoritative_fault(),
            on_authoritative_failure: self.volume.on_authoritative_failure(),
            copy_mode: self.volume.copy_mode(),
            throttle: self.volume.throttle(),
            map_fault: self.volume.map_fault(),
            suspended: self.volume.is_suspended(),
            changing: self.volume.is_changing(),
            copier: self.volume.copier().is_some(),
            counters: *self.volume.counters(),
            latencies: Box::new(self.latencies.clone()),
            authoritative: leg(record.route.authoritative())?,
            mirror: record.route.mirror().and_then(leg),
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

fn register_leg(ring: &mut Ring, leg: Arc<OpenLeg>) -> io::Result<LegFiles> {
    let mut files = Vec::with_capacity(leg.luns.len());
    for lun in &leg.luns {
        match ring.register_lun(lun.fd.as_raw_fd()) {
            Ok(place) => files.push(place),
            Err(error) => {
                files
                    .into_iter()
                    .for_each(|place| ring.unregister_lun(place));
                return Err(error);
            }
        }
    }
    Ok(LegFiles { leg, files })
}
