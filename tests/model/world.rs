//! The state of a world, and what effects and completions do to it.

use seeded_core::{
    map::{Area, RoleRecord},
    route::{Route, Side},
    units::{Epoch, Geometry, Range, RegionIndex, Tag, Time},
    volume::{
        Call, Config, CopierId, Effect, FlushId, IoResult, Op, Place, Reply, Report, Timer, Volume,
    },
};

use crate::{
    check::{Checker, Violation, require},
    disk::{Cell, ELSE, Lun, MapFile, MapWrite, Newer, Value, Values, only},
    setup::{BLOCKS_MAX, Budget, OperatorRequest, Setup, Start},
};

const REGION_BYTES: u64 = Geometry::REGION_BYTES_MIN;
const VOLUME_ID: [u8; 16] = *b"a volume's name.";
/// The maximum number of requests of a world.
pub(crate) const REQUESTS_MAX: usize = 4;
/// The time of all events. The clock stands still; events make timers expire.
pub(crate) const NOW: Time = Time(1_000_000_000_000);
/// A duration that never passes, because the clock stands still.
const LONG: u64 = 1_000_000_000;
const CLAIM: Call = Call(1);
pub(crate) const CHANGE: Call = Call(2);
pub(crate) const SUSPEND: Call = Call(3);
pub(crate) const DEADLINE: Time = NOW.plus(LONG);
pub(crate) const HOLD: u64 = LONG;
const CLAIMED_AT_ONCE: usize = 2;

/// A request that the application waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Open {
    /// Whether the volume has the request. The driver delivers it again after a death of
    /// ublk-target.
    pub(crate) delivered: bool,
    /// For a read: the values that each block may return. For a flush: the values that may survive
    /// a power loss once the flush is answered.
    pub(crate) allowed: [Values; BLOCKS_MAX],
    is_read: bool,
    /// For a write: the values of the writes that were answered while it was in flight.
    concurrent: [Values; BLOCKS_MAX],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Idle,
    Open(Open),
    Done,
}

/// An I/O in flight on a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Io {
    Request {
        request: u8,
        side: Side,
        lun: u8,
        newer: Newer,
    },
    Mirror {
        request: u8,
        place: Place,
        lun: u8,
    },
    Flush {
        flush: FlushId,
        side: Side,
        lun: u8,
        newer: Newer,
    },
}

impl Io {
    pub(crate) const fn lun(&self) -> usize {
        match self {
            Self::Request { lun, .. } | Self::Mirror { lun, .. } | Self::Flush { lun, .. } => {
                *lun as usize
            }
        }
    }
}

/// The progress of the copy of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Copy {
    Claimed,
    /// The region was read, and the write of these values is in flight.
    Writing([Value; 2]),
    Written,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Copier {
    pub(crate) id: CopierId,
    epoch: Epoch,
    /// The LUN that the copier reads; it writes the other LUN.
    pub(crate) from: u8,
    pub(crate) waits: bool,
    /// Whether a claim was refused, or answered with nothing to do.
    pub(crate) ends: bool,
    pub(crate) regions: Vec<(RegionIndex, Copy)>,
}

/// A dead copier's write in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ghost {
    lun: u8,
    region: usize,
    values: [Value; 2],
}

/// A report that is delivered after its copier's connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Late {
    copier: CopierId,
    epoch: Epoch,
    region: RegionIndex,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) volume: Volume,
    pub(crate) luns: [Lun; 2],
    /// Which LUN is the source, for each descriptor slot.
    source_lun: [u8; 2],
    pub(crate) map: MapFile,
    /// The I/O in flight, sorted: any of it may complete next.
    pub(crate) io: Vec<Io>,
    pub(crate) requests: [Stage; REQUESTS_MAX],
    /// The values that each block may have, as the application knows it; more than one after
    /// concurrent writes.
    pub(crate) possible: [Values; BLOCKS_MAX],
    /// The values that each block may have after a power loss.
    pub(crate) survivors: [Values; BLOCKS_MAX],
    pub(crate) copier: Option<Copier>,
    /// The writes in flight of dead copiers, sorted.
    pub(crate) ghosts: Vec<Ghost>,
    pub(crate) late: Option<Late>,
    pub(crate) budget: Budget,
    /// Whether the authoritative leg has failed.
    pub(crate) authoritative_failed: bool,
    /// The values that blocks of the authoritative leg fell back to when it failed and lost its
    /// cache, until the application has seen an error.
    pub(crate) lost: [Values; BLOCKS_MAX],
    /// Requests that the authoritative leg has failed and that are not answered yet, one bit each.
    pub(crate) failed: u8,
    /// Reads that returned a value that was never there or is there no longer, one bit each.
    misread: u8,
    /// The write to the mirror leg that will fail because the leg has lost its power.
    pub(crate) doomed: Option<Place>,
    /// Whether the volume has reported that it is drained: by [`Reply::Suspended`], or by a split.
    pub(crate) drained: bool,
    /// The contents that the target is a copy of, from the end of a split on.
    pub(crate) copy: Option<[Value; BLOCKS_MAX]>,
    /// Whether the core has requested [`Effect::Die`].
    pub(crate) must_die: bool,
}

/// The outcome of an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The I/O failed, but has changed the media.
    FailedDone,
    /// The I/O failed and has not changed the media. The cache of the LUN is lost, except for a
    /// read.
    FailedLost,
}

impl Outcome {
    pub(crate) const fn result(self) -> IoResult {
        match self {
            Self::Done => Ok(()),
            Self::FailedDone | Self::FailedLost => Err(seeded_core::volume::Errno(5)),
        }
    }
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        assert!(setup.blocks() <= BLOCKS_MAX && setup.requests.len() <= REQUESTS_MAX);
        let geometry = Geometry::new(REGION_BYTES * setup.regions as u64, REGION_BYTES);
        let (route, dirty) = match setup.start {
            Start::Single => (Route::Single(Side::Source), u8::MAX),
            Start::Mirrored { dirty } => {
                let authoritative = Side::Source;
                (Route::Mirrored { authoritative }, dirty)
            }
        };
        let record = RoleRecord {
            epoch: Epoch(1),
            route,
            descriptor_slot: 0,
            descriptor_bytes: 0,
            descriptor_crc: 0,
            volume_id: VOLUME_ID,
            geometry: geometry.expect("a geometry"),
        };
        let map = MapFile {
            slots: [Some(record); 2],
            dirty: if route.has_map() { dirty } else { 0 },
            intent: 0,
            map_write: None,
            role_write: None,
            descriptor_write: false,
        };
        let target = core::array::from_fn(|block| {
            let differs = dirty >> (block / setup.blocks_per_region) & 1 == 1;
            Cell::new(if differs { ELSE } else { 0 })
        });
        let mut world = Self {
            volume: load(setup, &map).expect("a map file"),
            luns: [Lun([Cell::new(0); BLOCKS_MAX]), Lun(target)],
            source_lun: [0; 2],
            map,
            io: Vec::new(),
            requests: [Stage::Idle; REQUESTS_MAX],
            possible: [only(0); BLOCKS_MAX],
            survivors: [only(0); BLOCKS_MAX],
            copier: None,
            ghosts: Vec::new(),
            late: None,
            budget: setup.budget,
            authoritative_failed: false,
            lost: [0; BLOCKS_MAX],
            failed: 0,
            misread: 0,
            doomed: None,
            drained: false,
            copy: None,
            must_die: false,
        };
        world.forget_history();
        world
    }

    /// The LUN of a leg, as a record's descriptor says.
    pub(crate) fn lun_of(&self, record: &RoleRecord, side: Side) -> usize {
        let source = self.source_lun[usize::from(record.descriptor_slot)];
        usize::from(match side {
            Side::Source => source,
            Side::Target => 1 - source,
        })
    }

    fn lun_now(&self, side: Side) -> usize {
        self.lun_of(self.volume.record(), side)
    }

    /// Makes the LUN that is not in use the target of the descriptor in the free slot.
    pub(crate) fn name_new_mirror(&mut self) {
        let record = *self.volume.record();
        let source = self.lun_now(record.route.authoritative()) as u8;
        self.source_lun[usize::from(1 - record.descriptor_slot)] = source;
    }

    /// See [`Volume::forget_history`]. Also sorts the lists that are sets.
    pub(crate) fn forget_history(&mut self) {
        let mut flushes: Vec<FlushId> = self.io.iter().filter_map(flush_id).collect();
        flushes.sort_unstable();
        self.volume.forget_history(&flushes);
        for io in &mut self.io {
            if let Io::Flush { flush, .. } = io {
                let place = flushes.iter().position(|other| *other == *flush);
                *flush = FlushId(place.expect("it is in the list") as u64 + 1);
            }
        }
        self.io.sort_unstable();
        self.ghosts.sort_unstable();
        if let Some(copier) = &mut self.copier {
            copier.regions.sort_unstable();
        }
        if !self.volume.is_suspended() {
            self.drained = false;
        }
    }

    // ---- the application -------------------------------------------------------------------

    /// The values of unanswered writes to a block.
    pub(crate) fn in_flight(&self, setup: &Setup, block: usize) -> Values {
        let open = |index: &usize| matches!(self.requests[*index], Stage::Open(_));
        let writes = (0..setup.requests.len()).filter(open);
        writes
            .filter(|index| writes_block(setup, *index, block))
            .fold(0, |set, index| set | only(index as Value + 1))
    }

    pub(crate) fn issue(&mut self, setup: &Setup, index: usize) {
        let is_write = matches!(
            setup.requests[index].ask,
            OperatorRequest::Write | OperatorRequest::ForcedWrite
        );
        let is_read = setup.requests[index].ask == OperatorRequest::Read;
        // Kept only for reads and flushes, the only requests that use it, so that there are fewer
        // states.
        let allowed = core::array::from_fn(|block| {
            if is_write {
                0
            } else {
                let lost = if is_read { self.lost[block] } else { 0 };
                self.possible[block] | self.in_flight(setup, block) | lost
            }
        });
        for block in (0..BLOCKS_MAX).filter(|block| writes_block(setup, index, *block)) {
            let value = only(index as Value + 1);
            self.survivors[block] |= value;
            for stage in &mut self.requests {
                if let Stage::Open(open) = stage
                    && open.allowed[block] != 0
                {
                    open.allowed[block] |= value;
                }
            }
        }
        self.requests[index] = Stage::Open(Open {
            delivered: false,
            is_read,
            allowed,
            concurrent: [0; BLOCKS_MAX],
        });
    }

    /// Delivers a request to the volume.
    pub(crate) fn deliver(&mut self, setup: &Setup, index: usize, effects: &mut Vec<Effect>) {
        if let Stage::Open(open) = &mut self.requests[index] {
            open.delivered = true;
        }
        let request = setup.requests[index];
        let block_bytes = REGION_BYTES / setup.blocks_per_region as u64;
        let range = Range {
            start: request.first as u64 * block_bytes,
            length: request.blocks as u64 * block_bytes,
        };
        let request = seeded_core::volume::Request {
            op: operation(request.ask),
            range,
        };
        self.volume
            .request(NOW, Tag(index as u16), request, effects);
    }

    fn answered(&mut self, setup: &Setup, index: usize, result: IoResult) -> Result<(), Violation> {
        let Stage::Open(open) = core::mem::replace(&mut self.requests[index], Stage::Done) else {
            return Err(Violation::new(Checker::Answer, "an answer to no request"));
        };
        let misread = self.misread >> index & 1 == 1;
        self.failed &= !(1 << index);
        self.misread &= !(1 << index);
        require(!(misread && result.is_ok()), Checker::Read, || {
            format!("request {index} reads what is not there")
        })?;
        let request = setup.requests[index];
        require(
            result.is_ok() || self.authoritative_failed,
            Checker::Answer,
            || {
                format!(
                    "request {index} is answered with an error, but the authoritative leg did not fail"
                )
            },
        )?;
        let is_write = matches!(
            request.ask,
            OperatorRequest::Write | OperatorRequest::ForcedWrite
        );
        if result.is_err() && request.ask != OperatorRequest::Read {
            // After a failed write the leg promises nothing, also to open flushes. After a failed
            // flush, an open flush must fail too.
            self.accept_loss(is_write);
        }
        for block in (0..setup.blocks()).filter(|block| writes_block(setup, index, *block)) {
            let value = only(index as Value + 1);
            if result.is_ok() {
                self.possible[block] = open.concurrent[block] | value;
                self.lost[block] = 0;
                if request.ask == OperatorRequest::ForcedWrite {
                    self.survivors[block] = self.possible[block] | self.in_flight(setup, block);
                }
            } else {
                self.possible[block] |= value;
            }
            for (other, stage) in self.requests.iter_mut().enumerate() {
                if let Stage::Open(open) = stage
                    && writes_block(setup, other, block)
                {
                    open.concurrent[block] |= value;
                }
            }
        }
        if request.ask == OperatorRequest::Flush && result.is_ok() && !is_write {
            for block in 0..setup.blocks() {
                self.survivors[block] &= open.allowed[block];
            }
        }
        Ok(())
    }

    // ---- effects ---------------------------------------------------------------------------

    pub(crate) fn perform(&mut self, setup: &Setup, effects: Vec<Effect>) -> Result<(), Violation> {
        for effect in effects {
            self.perform_one(setup, effect)?;
        }
        Ok(())
    }

    fn perform_one(&mut self, setup: &Setup, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Leg { tag, side, .. } => self.io.push(Io::Request {
                request: tag.0 as u8,
                side,
                lun: self.lun_now(side) as u8,
                newer: [0; BLOCKS_MAX],
            }),
            Effect::MirrorWrite { tag, place, side } => self.io.push(Io::Mirror {
                request: tag.0 as u8,
                place,
                lun: self.lun_now(side) as u8,
            }),
            Effect::Answer { tag, result } => {
                return self.answered(setup, usize::from(tag.0), result);
            }
            Effect::FlushLeg { side, flush } => self.io.push(Io::Flush {
                flush,
                side,
                lun: self.lun_now(side) as u8,
                newer: [0; BLOCKS_MAX],
            }),
            Effect::WriteMap => self.map.map_write = Some(self.encoded_batch()),
            Effect::WriteDescriptor { .. } => {
                let free = !core::mem::replace(&mut self.map.descriptor_write, true);
                require(free, Checker::OneAuthoritative, || {
                    "two descriptors are being written to one slot".to_owned()
                })?;
                let is_mirror = |io: &Io| matches!(io, Io::Mirror { .. });
                let quiet = !self.io.iter().any(is_mirror);
                return require(quiet, Checker::Drained, || {
                    "a mirror leg is added while an old one is still written".to_owned()
                });
            }
            Effect::WriteRole { record, slot } => {
                let free = self.map.role_write.is_none();
                self.map.role_write = Some((record, slot));
                return require(free, Checker::OneAuthoritative, || {
                    "two role records are being written".to_owned()
                });
            }
            Effect::Reply { call, reply } => return self.replied(call, reply),
            Effect::Die { .. } => self.must_die = true,
        }
        Ok(())
    }

    /// The batch of map sectors, encoded with the production codec as for the map file.
    fn encoded_batch(&self) -> MapWrite {
        let mut write = MapWrite {
            dirty: None,
            intent: None,
        };
        for sector in self.volume.map_batch() {
            let bytes = self.volume.encode_sector(*sector);
            let words = sector.decode(&VOLUME_ID, &bytes).expect("a whole sector");
            match sector.area {
                Area::Dirty => write.dirty = Some(words[0] as u8),
                Area::Intent => write.intent = Some(words[0] as u8),
            }
        }
        write
    }

    fn replied(&mut self, call: Call, reply: Reply) -> Result<(), Violation> {
        match reply {
            Reply::RouteChanged { epoch, route, .. } => {
                // If the process dies now, the next one must find exactly this.
                for chosen in self.map.outcomes() {
                    let record = chosen.ok().map(|chosen| chosen.record);
                    let found = record.map(|record| (record.epoch, record.route));
                    require(
                        found == Some((epoch, route)),
                        Checker::OneAuthoritative,
                        || format!("the answer says {route:?}, a successor may find {found:?}"),
                    )?;
                }
                self.copy = None;
                if route == Route::Split {
                    let held = self.volume.is_suspended();
                    require(held, Checker::Drained, || {
                        "split, and does not hold".to_owned()
                    })?;
                    self.drained = true;
                    let source = self.lun_now(Side::Source);
                    let cells = &self.luns[source].0;
                    self.copy = Some(core::array::from_fn(|block| cells[block].newest()));
                }
            }
            Reply::ChangeFailed(_) | Reply::SuspendDeadline => {}
            Reply::Suspended => self.drained = true,
            Reply::Claimed(regions) => {
                let epoch = self.volume.record().epoch;
                if let Some(copier) = self.copier.as_mut().filter(|_| call == CLAIM) {
                    copier.waits = false;
                    copier.epoch = epoch;
                    copier.ends = regions.is_empty() && copier.regions.is_empty();
                    copier
                        .regions
                        .extend(regions.into_iter().map(|region| (region, Copy::Claimed)));
                }
            }
            Reply::ClaimRefused(_) => {
                if let Some(copier) = &mut self.copier {
                    (copier.waits, copier.ends) = (false, true);
                }
            }
        }
        Ok(())
    }

    // ---- the media -------------------------------------------------------------------------

    /// Whether a LUN has data that is only in its cache.
    pub(crate) fn has_volatile(&self, lun: usize) -> bool {
        let mut cells = self.luns[lun].0.iter();
        cells.any(|cell| cell.durable() != cell.newest())
    }

    /// Whether an I/O is the write to the mirror leg that will fail.
    pub(crate) fn is_doomed(&self, io: &Io) -> bool {
        matches!(io, Io::Mirror { place, .. } if self.doomed == Some(*place))
    }

    /// Loses the data of a LUN that is only in its cache, because the LUN has failed.
    pub(crate) fn lose_cache(&mut self, lun: usize) {
        let before = self.luns[lun];
        self.luns[lun].settle(false);
        let authoritative = self.volume.record().route.authoritative();
        if lun != self.lun_now(authoritative) {
            return;
        }
        for block in 0..BLOCKS_MAX {
            let value = self.luns[lun].0[block].newest();
            if value == before.0[block].newest() {
                continue;
            }
            self.lost[block] |= only(value);
            self.allow_reads(block, only(value));
        }
    }

    /// Lets open reads return the values that a leg fell back to: no error shows the loss before a
    /// flush.
    fn allow_reads(&mut self, block: usize, values: Values) {
        for stage in &mut self.requests {
            if let Stage::Open(open) = stage
                && open.is_read
                && open.allowed[block] != 0
            {
                open.allowed[block] |= values;
            }
        }
    }

    /// Accepts the losses: the application has seen an error of the leg, and knows that unflushed
    /// data may be gone. `also_flushes`: open flushes may have lost data too.
    pub(crate) fn accept_loss(&mut self, also_flushes: bool) {
        for block in 0..BLOCKS_MAX {
            let lost = core::mem::take(&mut self.lost[block]);
            self.possible[block] |= lost;
            for stage in &mut self.requests {
                if let Stage::Open(open) = stage
                    && open.allowed[block] != 0
                    && (also_flushes || open.is_read)
                {
                    open.allowed[block] |= lost;
                }
            }
        }
    }

    /// Forgets the losses after a fail-over: the leg that took over has lost nothing.
    pub(crate) fn note_fail_over(&mut self) {
        if self.volume.counters().fail_overs > 0 {
            self.lost = [0; BLOCKS_MAX];
        }
    }

    pub(crate) fn write_block(&mut self, lun: usize, block: usize, value: Value) {
        let flushes = self.io.iter_mut().filter(|io| io.lun() == lun);
        let newer = flushes.filter_map(|io| match io {
            Io::Request { newer, .. } | Io::Flush { newer, .. } => Some(newer),
            Io::Mirror { .. } => None,
        });
        self.luns[lun].write(block, value, newer);
    }

    /// Applies a completed I/O to the media.
    pub(crate) fn land(&mut self, setup: &Setup, io: &Io) {
        match *io {
            Io::Request {
                request,
                lun,
                newer,
                ..
            } => {
                let (index, lun) = (usize::from(request), usize::from(lun));
                match setup.requests[index].ask {
                    OperatorRequest::Read => self.read(setup, index, lun),
                    OperatorRequest::Write => self.land_write(setup, index, lun),
                    OperatorRequest::ForcedWrite => {
                        self.land_write(setup, index, lun);
                        for block in blocks(setup, index) {
                            self.luns[lun].0[block] = Cell::new(self.luns[lun].0[block].newest());
                        }
                    }
                    OperatorRequest::Flush => self.luns[lun].flushed(newer),
                }
            }
            Io::Mirror { request, lun, .. } => {
                self.land_write(setup, usize::from(request), usize::from(lun));
            }
            Io::Flush { lun, newer, .. } => self.luns[usize::from(lun)].flushed(newer),
        }
    }

    fn land_write(&mut self, setup: &Setup, index: usize, lun: usize) {
        for block in blocks(setup, index) {
            self.write_block(lun, block, index as Value + 1);
        }
    }

    /// Notes whether a read returns only allowed values. This counts when the read is answered.
    fn read(&mut self, setup: &Setup, index: usize, lun: usize) {
        let Stage::Open(open) = self.requests[index] else {
            return;
        };
        let stale = |block: &usize| {
            let value = self.luns[lun].0[*block].newest();
            open.allowed[*block] & only(value) == 0
        };
        if blocks(setup, index).any(|block| stale(&block)) {
            self.misread |= 1 << index;
        } else {
            self.misread &= !(1 << index);
        }
    }

    /// The values that writes in flight may bring to a block of a LUN.
    pub(crate) fn landing(&self, setup: &Setup, lun: usize, block: usize) -> Values {
        let writes = self.io.iter().filter(|io| io.lun() == lun);
        let requests = writes.filter_map(|io| match io {
            Io::Request { request, .. } | Io::Mirror { request, .. } => Some(usize::from(*request)),
            Io::Flush { .. } => None,
        });
        requests
            .filter(|index| writes_block(setup, *index, block))
            .fold(0, |set, index| set | only(index as Value + 1))
    }

    /// The values that copiers, alive or dead, may write to a block of a LUN.
    pub(crate) fn copying(&self, setup: &Setup, lun: usize, block: usize) -> Values {
        let region = block / setup.blocks_per_region;
        let offset = block % setup.blocks_per_region;
        let dead = self
            .ghosts
            .iter()
            .filter(|ghost| usize::from(ghost.lun) == lun && ghost.region == region);
        let dead = dead.fold(0, |set, ghost| set | only(ghost.values[offset]));
        let alive = self
            .copier
            .iter()
            .filter(|copier| usize::from(1 - copier.from) == lun)
            .flat_map(|copier| &copier.regions)
            .filter(|(other, _)| other.0 == region);
        alive.fold(dead, |set, (_, copy)| match copy {
            Copy::Writing(values) => set | only(values[offset]),
            Copy::Claimed | Copy::Written => set,
        })
    }

    // ---- the copier ------------------------------------------------------------------------

    pub(crate) fn open_copier(&mut self) {
        // An id that differs from the one of a late report; two ids are enough.
        let id = match self.late {
            Some(late) => CopierId(3 - late.copier.0),
            None => CopierId(1),
        };
        if let Ok(epoch) = self.volume.open_copier(id) {
            let from = self.lun_now(self.volume.record().route.authoritative()) as u8;
            self.copier = Some(Copier {
                id,
                epoch,
                from,
                waits: false,
                ends: false,
                regions: Vec::new(),
            });
        }
    }

    pub(crate) fn claim(&mut self, effects: &mut Vec<Effect>) {
        if let Some(copier) = &mut self.copier {
            copier.waits = true;
            self.volume
                .claim(copier.id, CLAIM, CLAIMED_AT_ONCE, effects);
        }
    }

    /// The copier's next step with a region that it has.
    pub(crate) fn copy(
        &mut self,
        setup: &Setup,
        index: usize,
        newest: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let Some(copier) = &self.copier else {
            return Ok(());
        };
        let (id, epoch, from) = (copier.id, copier.epoch, usize::from(copier.from));
        let (region, copy) = copier.regions[index];
        let next = match copy {
            Copy::Claimed => {
                let mut values = [0; 2];
                for (value, block) in values.iter_mut().zip(setup.of_region(region.0)) {
                    let landing = self.landing(setup, from, block);
                    *value = self.luns[from].0[block].newest();
                    if newest && landing != 0 {
                        *value = landing.trailing_zeros() as u8;
                    }
                }
                Some(Copy::Writing(values))
            }
            Copy::Writing(values) => {
                for (value, block) in values.into_iter().zip(setup.of_region(region.0)) {
                    self.write_block(1 - from, block, value);
                }
                Some(Copy::Written)
            }
            Copy::Written => None,
        };
        if let Some(copier) = &mut self.copier {
            match next {
                Some(next) => copier.regions[index].1 = next,
                None => {
                    copier.regions.remove(index);
                }
            }
        }
        if next.is_some() {
            return Ok(());
        }
        let reported = self
            .volume
            .report(NOW, id, &Report::copied(epoch, &[region]), effects);
        require(reported.is_ok(), Checker::StaleActor, || {
            format!("the copier's report is refused: {reported:?}")
        })
    }

    /// The copier's connection ends; what it was writing may land later.
    pub(crate) fn kill_copier(&mut self, effects: &mut Vec<Effect>) {
        let Some(copier) = self.copier.take() else {
            return;
        };
        for (region, copy) in &copier.regions {
            if let Copy::Writing(values) = copy {
                self.ghosts.push(Ghost {
                    lun: 1 - copier.from,
                    region: region.0,
                    values: *values,
                });
            }
        }
        self.volume.close_copier(copier.id, NOW, effects);
        self.late = copier.regions.first().map(|(region, _)| Late {
            copier: copier.id,
            epoch: copier.epoch,
            region: *region,
        });
    }

    pub(crate) fn land_ghost(&mut self, setup: &Setup, index: usize) {
        let ghost = self.ghosts.remove(index);
        for (value, block) in ghost.values.into_iter().zip(setup.of_region(ghost.region)) {
            self.write_block(usize::from(ghost.lun), block, value);
        }
    }

    pub(crate) fn report_old(
        &mut self,
        index: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let Some(copier) = &self.copier else {
            return Ok(());
        };
        let (region, epoch) = (copier.regions[index].0, Epoch(copier.epoch.0 - 1));
        let id = copier.id;
        let reported = self
            .volume
            .report(NOW, id, &Report::copied(epoch, &[region]), effects);
        require(reported.is_err(), Checker::StaleActor, || {
            "a report of an older epoch is accepted".to_owned()
        })
    }

    pub(crate) fn report_late(&mut self, effects: &mut Vec<Effect>) -> Result<(), Violation> {
        let Some(late) = self.late.take() else {
            return Ok(());
        };
        let (copier, epoch) = (late.copier, late.epoch);
        let reported =
            self.volume
                .report(NOW, copier, &Report::copied(epoch, &[late.region]), effects);
        require(reported.is_err(), Checker::StaleActor, || {
            "the report of a copier that is gone is accepted".to_owned()
        })
    }

    // ---- deaths ----------------------------------------------------------------------------

    /// Starts a new process, which reads the map file.
    pub(crate) fn reload(
        &mut self,
        setup: &Setup,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        self.io.clear();
        self.doomed = None;
        self.map.map_write = None;
        self.map.role_write = None;
        self.map.descriptor_write = false;
        self.must_die = false;
        self.drained = false;
        self.failed = 0;
        self.misread = 0;
        self.volume = load(setup, &self.map).map_err(|error| {
            Violation::new(Checker::OneAuthoritative, format!("the map file: {error}"))
        })?;
        self.volume.begin(effects);
        Ok(())
    }
}

/// The blocks of a request.
pub(crate) fn blocks(setup: &Setup, index: usize) -> core::ops::Range<usize> {
    let request = setup.requests[index];
    request.first..request.first + request.blocks
}

/// Whether a request writes a block.
pub(crate) fn writes_block(setup: &Setup, index: usize, block: usize) -> bool {
    matches!(
        setup.requests[index].ask,
        OperatorRequest::Write | OperatorRequest::ForcedWrite
    ) && blocks(setup, index).contains(&block)
}

const fn flush_id(io: &Io) -> Option<FlushId> {
    match io {
        Io::Flush { flush, .. } => Some(*flush),
        Io::Request { .. } | Io::Mirror { .. } => None,
    }
}

const fn operation(ask: OperatorRequest) -> Op {
    match ask {
        OperatorRequest::Read => Op::Read,
        OperatorRequest::Write => Op::Write {
            force_unit_access: false,
        },
        OperatorRequest::ForcedWrite => Op::Write {
            force_unit_access: true,
        },
        OperatorRequest::Flush => Op::Flush,
    }
}

fn load(setup: &Setup, map: &MapFile) -> Result<Volume, seeded_core::map::MapError> {
    let chosen = map.choose()?;
    let config = Config {
        tags: setup.requests.len(),
        places: setup.places,
        patience: LONG,
    };
    let mirrored = chosen.record.route.has_map();
    let words = |word: u8| {
        let mut words = vec![
            0;
            if mirrored {
                seeded_core::map::SECTOR_WORDS
            } else {
                0
            }
        ];
        words
            .iter_mut()
            .take(1)
            .for_each(|first| *first = u64::from(word));
        words
    };
    let (dirty, intent) = (words(map.dirty), words(map.intent));
    let mut volume = Volume::load(&config, chosen.record, chosen.stale_slot, &dirty, &intent);
    volume.set_on_authoritative_failure(setup.policy);
    volume.set_copy_mode(setup.mode, &mut Vec::new());
    volume.break_rule(setup.broken);
    if !setup.sweeps {
        volume.expire(Time(u64::MAX), Timer::IdleSweep);
    }
    Ok(volume)
}
