//! One volume as a state machine: its requests, its legs and its map.
//!
//! The shell reports events by calling the methods of [`Volume`], and carries out the [`Effect`]s
//! that they push. Nothing here waits; nothing is allocated for a request.
//!
//! Invariants (numbers as in `docs/invariants.md`):
//! 1. Exactly one leg is authoritative; it answers reads and decides whether a write succeeded.
//! 2. A region that is `Clean` in memory is equal on both legs but for writes in flight.
//! 3. A write is issued in `Mirrored` only while every region it touches is durably marked (dirty
//!    or intent), and the mark is cleared only after both legs were flushed after its last write.
//! 4. Two writes in flight in `Mirrored` never overlap on one leg.
//! 5. While the gate is closed and drained, nothing of the application is in flight on a leg, but
//!    for writes to a mirror leg that was given up.
//! 6. A role changes only when no region is dirty, nothing is in flight and both legs are flushed;
//!    the one durable write of the role record is the change.

mod change;
mod claims;
mod compare;
mod failure;
mod intent;
mod requests;
mod seeded;
mod track;

use alloc::{collections::VecDeque, vec, vec::Vec};

pub use change::{ChangeError, NewMirror, PREPARE_NANOSECONDS_MAX, Suspended, Target};
pub use claims::{CLAIMED_REGIONS_MAX, ClaimError, CopierId, RESERVED_REGIONS_MAX, Report};
pub use compare::{Comparison, WATCHED_REGIONS_MAX, Watched};
pub use failure::OnAuthoritativeFailure;
pub use intent::{COPIED_SWEEP_NANOSECONDS, IDLE_SWEEP_NANOSECONDS, MAP_BATCH_SECTORS_MAX};
use seeded::Rule;
#[cfg(feature = "seeded-bugs")]
pub use seeded::{Rule as SeededBug, Timer};
pub use track::CopyMode;

use crate::{
    map::{BitmapSector, RoleRecord},
    region::RegionMap,
    route::{Route, Side},
    units::{Epoch, Geometry, Range, Tag, Time},
};

/// An error of a leg or of the map file: a positive error number of the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// The outcome of an I/O.
pub type IoResult = Result<(), Errno>;

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Read a range.
    Read,
    /// Write a range.
    Write {
        /// The data must be on stable storage before the answer.
        force_unit_access: bool,
    },
    /// Everything that was answered before must be on stable storage.
    Flush,
    /// The range is no longer needed; what a read of it returns afterwards is undefined.
    Discard,
}

/// A request of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    /// The operation.
    pub op: Op,
    /// The range; empty for a flush.
    pub range: Range,
}

/// The caller's id for a control request that is answered later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call(pub u64);

/// The id of a flush of a leg that the volume asked for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlushId(pub u64);

/// The place of a write to the mirror leg, which may outlive its request: a number below
/// [`Config::places`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(pub u16);

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Do the request's operation on a leg, completely; answer with [`Volume::leg_done`].
    Leg {
        /// The request.
        tag: Tag,
        /// The authoritative leg; the mirror leg for a read that the authoritative leg could not
        /// do.
        side: Side,
        /// The request's operation.
        op: Op,
    },
    /// Write the request's data to the mirror leg too, unforced; answer with
    /// [`Volume::mirror_done`]. The data must stay until then: the request may be answered, and its
    /// tag used again, before that.
    MirrorWrite {
        /// The request.
        tag: Tag,
        /// The place, which names this write from now on.
        place: Place,
        /// The mirror leg.
        side: Side,
    },
    /// Answer the application.
    Answer {
        /// The request.
        tag: Tag,
        /// The result.
        result: IoResult,
    },
    /// Flush a leg; answer with [`Volume::leg_flushed`].
    FlushLeg {
        /// The leg.
        side: Side,
        /// The id of the flush, for the answer.
        flush: FlushId,
    },
    /// Write the sectors of [`Volume::map_batch`] durably; answer with [`Volume::map_written`].
    WriteMap,
    /// Write the descriptor that came with the change to this slot, durably; answer with
    /// [`Volume::descriptor_written`].
    WriteDescriptor {
        /// The slot.
        slot: u8,
    },
    /// Write this record to this slot, durably; answer with [`Volume::role_written`].
    WriteRole {
        /// The record.
        record: RoleRecord,
        /// The slot.
        slot: usize,
    },
    /// Answer a control request.
    Reply {
        /// The request.
        call: Call,
        /// The answer.
        reply: Reply,
    },
    /// End the process: what the role record says is unknown, and only reading it again can show
    /// it.
    Die {
        /// What failed.
        error: Errno,
    },
}

/// The answer to a control request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Nothing is in flight and requests are held.
    Suspended,
    /// The suspension ended by its deadline before the drain was done.
    SuspendDeadline,
    /// The new route holds.
    RouteChanged {
        /// The epoch from now on.
        epoch: Epoch,
        /// The route from now on.
        route: Route,
        /// From the first request held to the first let go, in nanoseconds; 0 if none was held.
        pause: u64,
    },
    /// The route was not changed.
    ChangeFailed(ChangeError),
    /// Regions for the copier; none: nothing is dirty, or nothing else can be granted now.
    Claimed(Vec<crate::units::RegionIndex>),
    /// The claim cannot be granted.
    ClaimRefused(ClaimError),
}

/// What a volume is built from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// The number of requests that can be open at once.
    pub tags: usize,
    /// The number of writes to the mirror leg that can be in flight at once, those of answered
    /// requests included.
    pub places: usize,
    /// How long a write may wait for the mirror leg, in nanoseconds. A write waits as long for the
    /// copier, and up to a limit longer if that was too short to copy a region.
    pub patience: u64,
}

/// The counters of a volume, since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Read requests answered.
    pub reads: u64,
    /// Write requests answered.
    pub writes: u64,
    /// Flush requests answered.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Reads that the mirror leg did, because the authoritative one could not.
    pub mirror_reads: u64,
    /// Exchanges of the roles because the authoritative leg failed.
    pub fail_overs: u64,
    /// Requests that had to wait for another write, a claim, the write intent or the mirror leg.
    pub waited: u64,
    /// Batches of map sectors written.
    pub map_writes: u64,
    /// Bytes of the regions that the copier has reported as copied.
    pub copied_bytes: u64,
    /// The last pause, in nanoseconds.
    pub last_pause: u64,
}

/// The stage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Free,
    /// Not started: the gate is closed.
    Held,
    /// A write that waits for another write, a claim, the write intent, the mirror leg or the
    /// throttle; or a read that waits to be done on the mirror leg.
    Waiting,
    /// On the authoritative leg, or a read on the mirror leg.
    Started,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Slot {
    stage: Stage,
    request: Request,
    /// When the request began to wait.
    since: Time,
    /// The error of the authoritative leg, if it is not the answer yet. A read is then tried on the
    /// mirror leg; a write or flush is tried on the other leg once the roles are exchanged. A flush
    /// gets the error of any other flush that failed meanwhile.
    fault: Option<Errno>,
}

impl Slot {
    const FREE: Self = Self {
        stage: Stage::Free,
        request: Request {
            op: Op::Flush,
            range: Range {
                start: 0,
                length: 0,
            },
        },
        since: Time(0),
        fault: None,
    };
}

/// A write in flight, in `Mirrored` or `Split`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Write {
    range: Range,
    /// The request, while the authoritative leg writes. Without a request the write *trails*: the
    /// application was answered.
    tag: Option<Tag>,
    /// The place, while the mirror leg writes.
    place: Option<Place>,
    /// Whether a sweep that has flushed both legs waits for the end of this write.
    is_awaited: bool,
}

/// A flush of a leg that the volume asked for and that is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flush {
    id: FlushId,
    of: Flushed,
}

/// The leg that a flush was asked of, by the current roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Flushed {
    Authoritative,
    Mirror,
    /// A former mirror leg, which the route no longer uses.
    Former,
}

/// One volume. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    record: RoleRecord,
    slots: Vec<Slot>,
    /// Requests on the legs.
    started: usize,
    /// Requests that came while the gate was closed, in order.
    held: VecDeque<Tag>,
    /// Requests that wait for their turn, in order.
    waiting: VecDeque<Tag>,
    /// Writes on the legs, in `Mirrored` and `Split`.
    writes: Vec<Write>,
    /// Places that are not used.
    free_places: Vec<Place>,
    patience: u64,
    on_authoritative_failure: OnAuthoritativeFailure,
    copy_mode: CopyMode,
    throttle: Option<track::Throttle>,
    /// The map, in `Mirrored` and `Split`.
    regions: Option<RegionMap>,
    intent: intent::Intent,
    claims: claims::Claims,
    watches: compare::Watches,
    gate: change::Gate,
    change: Option<change::Change>,
    /// The role slot that does not hold the current record yet.
    stale_role_slot: Option<usize>,
    role_write_in_flight: bool,
    /// Whether a descriptor is being written, also by a change that is over.
    descriptor_write_in_flight: bool,
    last_flush: FlushId,
    flushes: Vec<Flush>,
    /// Why the mirror leg is not written; `None` if it is.
    mirror_fault: Option<Errno>,
    /// The last error of the authoritative leg, until the roles change.
    authoritative_fault: Option<Errno>,
    /// The error of a flush of the authoritative leg that the volume asked for, until a flush of
    /// the application is answered with it: a leg reports a loss only once, and this report went to
    /// the volume.
    unreported: Option<Errno>,
    /// Whether the leg whose flush failed has kept its role, so that what it lost may have been
    /// copied to the other leg too. The flushes that have failed are then answered with the error;
    /// an exchange of the roles does not make up for it.
    error_is_due: bool,
    /// The last error of a write to the map file, until one succeeds.
    map_fault: Option<Errno>,
    counters: Counters,
    #[cfg(feature = "seeded-bugs")]
    broken: Option<Rule>,
}

impl Volume {
    /// Creates a volume from its map file. In `Mirrored` and `Split`, `dirty` and `intent` are the
    /// words of the two bitmaps; every region in one of them may differ and is copied again. In
    /// `Single` they are empty.
    #[must_use]
    pub fn load(
        config: &Config,
        record: RoleRecord,
        stale_role_slot: Option<usize>,
        dirty: &[u64],
        intent: &[u64],
    ) -> Self {
        let intent = intent::Intent::load(&record, dirty, intent);
        let regions = record
            .route
            .has_map()
            .then(|| RegionMap::from_dirty(record.geometry, intent.marked()));
        Self {
            record,
            slots: vec![Slot::FREE; config.tags],
            started: 0,
            held: VecDeque::with_capacity(config.tags),
            waiting: VecDeque::with_capacity(config.tags),
            writes: Vec::with_capacity(config.tags + config.places),
            free_places: (0..config.places as u16).rev().map(Place).collect(),
            patience: config.patience,
            on_authoritative_failure: OnAuthoritativeFailure::default(),
            copy_mode: CopyMode::default(),
            throttle: None,
            regions,
            intent,
            claims: claims::Claims::default(),
            watches: compare::Watches::default(),
            gate: change::Gate::default(),
            change: None,
            stale_role_slot,
            role_write_in_flight: false,
            descriptor_write_in_flight: false,
            last_flush: FlushId(0),
            flushes: Vec::with_capacity(FLUSHES_EXPECTED),
            mirror_fault: None,
            authoritative_fault: None,
            unreported: None,
            error_is_due: false,
            map_fault: None,
            counters: Counters::default(),
            #[cfg(feature = "seeded-bugs")]
            broken: None,
        }
    }

    /// Begins the work. To be called once, when the shell can carry out effects.
    pub fn begin(&mut self, effects: &mut Vec<Effect>) {
        self.refresh_role_slot(effects);
    }

    /// Does what is due at `now`. To be called at least every [`TICK_NANOSECONDS`], and at
    /// [`Self::next_deadline`].
    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.check_deadlines(now, effects);
        self.check_patience(now, effects);
        self.check_throttle(now, effects);
        self.next_pass(now, effects);
        self.refresh_role_slot(effects);
        self.sweep_if_due(now, effects);
        self.write_map(effects);
    }

    /// The role record that holds.
    #[must_use]
    pub const fn record(&self) -> &RoleRecord {
        &self.record
    }

    /// The sizes of the volume and its regions.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.record.geometry
    }

    /// The states of the regions, in `Mirrored` and `Split`.
    #[must_use]
    pub const fn regions(&self) -> Option<&RegionMap> {
        self.regions.as_ref()
    }

    /// The counters.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why the mirror leg is not written; `None` if it is.
    #[must_use]
    pub const fn mirror_fault(&self) -> Option<Errno> {
        self.mirror_fault
    }

    /// The number of writes that the mirror leg has not ended, if it was given up because it kept
    /// other writes waiting.
    #[must_use]
    pub fn stalled_writes(&self) -> Option<u32> {
        let under_way = self.writes.iter().filter(|write| write.place.is_some());
        (self.mirror_fault == Some(failure::ETIMEDOUT))
            .then(|| u32::try_from(under_way.count()).unwrap_or(u32::MAX))
    }

    /// The last error of the authoritative leg, until the roles change.
    #[must_use]
    pub const fn authoritative_fault(&self) -> Option<Errno> {
        self.authoritative_fault
    }

    /// The last error of a write to the map file, until one succeeds.
    #[must_use]
    pub const fn map_fault(&self) -> Option<Errno> {
        self.map_fault
    }

    /// Whether new requests are held.
    #[must_use]
    pub const fn is_suspended(&self) -> bool {
        self.gate.is_closed()
    }

    /// Whether a change of the route is under way.
    #[must_use]
    pub const fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// The number of requests that the application waits for: held, waiting or on a leg.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.held.len() + self.waiting.len() + self.started
    }

    /// The sectors that [`Effect::WriteMap`] has to write.
    #[must_use]
    pub fn map_batch(&self) -> &[BitmapSector] {
        self.intent.batch()
    }

    /// Whether the bitmaps in the map file are up to date.
    #[must_use]
    pub fn is_map_written(&self) -> bool {
        self.intent.is_written()
    }

    /// The bytes to write for a sector of [`Self::map_batch`].
    #[must_use]
    pub fn encode_sector(&self, sector: BitmapSector) -> [u8; crate::map::SECTOR_BYTES] {
        sector.encode(&self.record.volume_id, self.intent.words(sector))
    }

    /// The mirror leg, if writes go to it.
    fn healthy_mirror(&self) -> Option<Side> {
        if self.record.route == Route::Split && self.breaks(Rule::SplitIsLeftAlone) {
            return Some(Side::Target);
        }
        self.record
            .route
            .mirror()
            .filter(|_| self.mirror_fault.is_none())
    }

    fn slot(&mut self, tag: Tag) -> &mut Slot {
        &mut self.slots[usize::from(tag.0)]
    }

    /// Checks the invariants. For the model and the tests; too slow for each request.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.regions.is_some(), self.record.route.has_map());
        assert!(self.mirror_fault.is_none() || self.record.route.mirror().is_some());
        let on_both = |a: &Write, b: &Write| {
            let both = |of: fn(&Write) -> bool| of(a) && of(b);
            both(|write| write.tag.is_some()) || both(|write| write.place.is_some())
        };
        for (index, first) in self.writes.iter().enumerate() {
            for second in &self.writes[index + 1..] {
                assert!(
                    !first.range.overlaps(second.range) || !on_both(first, second),
                    "invariant 4: {first:?} {second:?}"
                );
            }
            if self.regions.is_some() {
                for region in self.geometry().touched(first.range) {
                    assert!(self.intent.is_covered(region), "invariant 3: {region:?}");
                }
            }
        }
        let started = self
            .slots
            .iter()
            .filter(|slot| slot.stage == Stage::Started);
        assert_eq!(started.count(), self.started);
        if let Some(regions) = &self.regions {
            for region in regions.not_clean().iter() {
                // The mark of a region that was found to differ may not be written yet.
                assert!(
                    self.intent.is_covered(region) || self.intent.is_to_be_covered(region),
                    "invariant 3: dirty {region:?}"
                );
            }
        }
    }
}

/// The number of flushes in flight at once, but for those of legs that hang: two of a sweep and two
/// of a change.
const FLUSHES_EXPECTED: usize = 8;

/// The interval between passes while the volume tracks, in nanoseconds.
const PASS_NANOSECONDS: u64 = 500_000_000;

/// The longest interval between calls of [`Volume::tick`].
pub const TICK_NANOSECONDS: u64 = 500_000_000;

#[cfg(test)]
mod tests;
