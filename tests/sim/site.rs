//! One volume: its LUNs, its map file, its application, and the ublk-target that may serve it.

mod checks;
mod custody;
mod disks;
mod names;

use std::{collections::BTreeSet, path::Path};

use map_file::{Contents, MapFileError};
use migration_core::{
    custody::{Claim, Takeover},
    map::{self, MapError, ROLE_OFFSETS, RoleRecord},
    route::{Route, Side},
    units::{Epoch, Geometry, Tag, Time},
    volume::{
        COPIED_SWEEP_NANOSECONDS, Call, ChangeError, CopyMode, Effect, Errno,
        IDLE_SWEEP_NANOSECONDS, IoResult, NewMirror, OnAuthoritativeFailure, Op, Reply, Suspended,
        Target, Volume,
    },
};
use migration_proto::route::{Descriptor, Extent, Leg};

use names::Names;

use crate::{
    application::{Application, blocks},
    copier::Copying,
    dice::Dice,
    disk::{self, Lun, MapDisk, Value},
    io::{Io, Pending, ROLE_FIELDS_END},
    settings::{BLOCKS, CONFIG, Counts, HOLD, REGION, REGIONS, SUSPENSION, Settings},
};

const EIO: Errno = Errno(5);
const SIZE: u64 = REGION * REGIONS as u64;

pub(crate) enum Process {
    /// No process serves the volume.
    Down,
    /// The map file is read, the role settled, and the legs are claimed.
    Prepared(Box<Contents>, Takeover),
    Serving(Box<Serving>),
    /// The map file is damaged: nothing is served until the operator says which leg is right.
    Refused,
}

/// A ublk-target that serves its volume.
pub(crate) struct Serving {
    pub(crate) volume: Volume,
    pub(crate) effects: Vec<Effect>,
    pending: Vec<Pending>,
    pub(crate) descriptor: Descriptor,
    claim: Claim,
    new_mirror: Option<(Call, Descriptor, Vec<u8>)>,
    /// Requested changes of the route that have not ended.
    changes: BTreeSet<Call>,
    replies: Vec<(Call, Reply)>,
}

/// The status that a ublk-target reports of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) epoch: Epoch,
    pub(crate) route: Route,
    pub(crate) source: usize,
    pub(crate) target: Option<usize>,
    pub(crate) dirty: bool,
    pub(crate) degraded: bool,
    pub(crate) changing: bool,
    pub(crate) policy: OnAuthoritativeFailure,
    pub(crate) mode: CopyMode,
    pub(crate) tracks: bool,
}

/// The progress of a process that is being started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Waits,
    Goes,
    Died,
    Serves,
    Refused,
}

pub(crate) struct Site {
    number: usize,
    pub(crate) dice: Dice,
    pub(crate) settings: Settings,
    pub(crate) counts: Counts,
    pub(crate) luns: [Lun; 2],
    pub(crate) map: MapDisk,
    /// Sectors of the map file that were torn.
    torn: BTreeSet<u64>,
    pub(crate) process: Process,
    /// A number that increases at each death, so that each process has its own.
    pub(crate) incarnation: u64,
    /// I/O that dead processes had submitted.
    ghosts: Vec<Pending>,
    pub(crate) application: Application,
    pub(crate) copying: Copying,
    /// Whether each LUN hangs, that is, completes nothing at present.
    pub(crate) hung: [bool; 2],
    next_call: u64,
    /// The number of effects after which the process dies.
    dies_after: Option<usize>,
    /// The claim that shuntd would hand on to the next process.
    pub(crate) held: Option<Claim>,
    next_claim: u64,
    /// The number of the boot of the host.
    boot: u8,
    /// Writes to each LUN that the kernel has counted since the boot.
    counted: [u64; 2],
    /// Whether the process that starts next finds no mirror leg.
    mirror_missing: bool,
    names: Names,
}

fn leg(lun: usize) -> Leg {
    let identity = lun::Identity {
        kind: lun::Kind::RegularFile,
        size_bytes: SIZE,
        logical_block_bytes: 512,
        wwn: None,
        serial: Some(lun.to_string()),
        partition_uuid: None,
        partition_number: None,
        partition_start_bytes: None,
        file: None,
        file_offset_bytes: None,
        dm_uuid: None,
    };
    let extent = Extent {
        path: format!("/lun{lun}").into(),
        identity,
        start_bytes: 0,
        length_bytes: SIZE,
    };
    Leg {
        extents: vec![extent],
    }
}

fn lun_of_leg(wanted: &Leg) -> usize {
    usize::from(*wanted == leg(1))
}

/// The LUN of a side.
pub(crate) fn lun_of(descriptor: &Descriptor, side: Side) -> usize {
    let leg = descriptor.leg(side.into()).expect("the leg is there");
    lun_of_leg(leg)
}

pub(crate) fn geometry() -> Geometry {
    Geometry::new(SIZE, REGION).expect("the sizes fit")
}

impl Site {
    pub(crate) fn new(number: usize, seed: u64, settings: Settings) -> Self {
        let names = Names::new(seed, number, settings.luns_by_size_only);
        let id = format!("00000000-0000-4000-8000-{number:012x}");
        let volume_id = map_file::parse_volume_id(&id).expect("a UUID");
        let descriptor = Descriptor {
            volume: format!("v{number}"),
            volume_id: id,
            size_bytes: SIZE,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            source: leg(0),
            target: None,
        };
        let bytes = serde_json::to_vec(&descriptor).expect("JSON");
        let record = RoleRecord {
            epoch: Epoch(1),
            route: Route::Single(Side::Source),
            descriptor_slot: 0,
            descriptor_bytes: bytes.len() as u32,
            descriptor_crc: map::checksum(&bytes),
            volume_id,
            geometry: geometry(),
        };
        let map = MapDisk::default();
        for (offset, bytes) in map::initial_parts(&record, &bytes) {
            for (offset, sector) in disk::sectors(offset, &bytes) {
                map.put(offset, sector);
            }
        }
        Self {
            number,
            dice: Dice::new(seed.wrapping_mul(1009).wrapping_add(number as u64 + 1)),
            settings,
            counts: Counts::new(),
            luns: [Lun::new(BLOCKS, 0), Lun::new(BLOCKS, Value::MAX)],
            map,
            torn: BTreeSet::new(),
            process: Process::Down,
            incarnation: 0,
            ghosts: Vec::new(),
            application: Application::new(),
            copying: Copying::default(),
            hung: [false; 2],
            next_call: 0,
            dies_after: None,
            held: None,
            next_claim: 0,
            boot: 0,
            counted: [0; 2],
            mirror_missing: false,
            names,
        }
    }

    pub(crate) fn note(&mut self, what: &'static str) {
        if crate::is_traced() {
            eprintln!("{:>16} {what}", self.number);
        }
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn serving(&mut self) -> Option<&mut Serving> {
        match &mut self.process {
            Process::Serving(serving) => Some(serving),
            Process::Down | Process::Prepared(..) | Process::Refused => None,
        }
    }

    pub(crate) fn call(&mut self) -> Call {
        self.next_call += 1;
        Call(self.next_call)
    }

    // ---- the application -------------------------------------------------------------------

    pub(crate) fn new_request(&mut self, now: Time) {
        if let Some(tag) = self.application.ask(&mut self.dice) {
            self.issue(now, tag);
        }
    }

    /// Gives a request to the volume. While no process serves the volume, the driver keeps the
    /// request.
    fn issue(&mut self, now: Time, tag: Tag) {
        let request = self.application.open[&tag].request;
        if let Some(serving) = self.serving() {
            let effects = &mut serving.effects;
            serving.volume.request(now, tag, request, effects);
        }
    }

    // ---- the engine ------------------------------------------------------------------------

    /// Performs all effects, also those that they cause themselves, or dies in between.
    pub(crate) fn perform(&mut self) {
        loop {
            let Some(serving) = self.serving() else {
                return;
            };
            if serving.effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut serving.effects) {
                if self.dies_after == Some(0) || matches!(effect, Effect::Die { .. }) {
                    self.note("deaths between two effects");
                    self.kill();
                    return;
                }
                self.dies_after = self.dies_after.map(|left| left - 1);
                self.perform_one(effect);
            }
        }
        if let Some(serving) = self.serving() {
            serving.volume.check_invariants();
        }
        self.check_clean_is_equal();
    }

    fn perform_one(&mut self, effect: Effect) {
        let Process::Serving(serving) = &mut self.process else {
            return;
        };
        let record = *serving.volume.record();
        let io = match effect {
            Effect::Leg { tag, side, op } => {
                let lun = lun_of(&serving.descriptor, side);
                let open = &self.application.open[&tag];
                if side != record.route.authoritative() {
                    assert_eq!(op, Op::Read);
                    *self.counts.entry("reads from the mirror").or_default() += 1;
                }
                Io::Leg {
                    tag,
                    side,
                    lun,
                    op,
                    range: open.request.range,
                    value: open.value,
                    mark: self.luns[lun].mark(),
                }
            }
            Effect::MirrorWrite { tag, place, side } => {
                let open = &self.application.open[&tag];
                Io::Mirror {
                    place,
                    lun: lun_of(&serving.descriptor, side),
                    range: open.request.range,
                    value: open.value,
                }
            }
            Effect::FlushLeg { side, flush } => {
                let lun = lun_of(&serving.descriptor, side);
                Io::FlushLeg {
                    side,
                    lun,
                    flush,
                    mark: self.luns[lun].mark(),
                }
            }
            Effect::WriteMap => {
                let sectors = serving.volume.map_batch().iter();
                let sectors = sectors.map(|sector| {
                    let bytes = serving.volume.encode_sector(*sector);
                    (sector.offset(record.geometry), bytes)
                });
                Io::Map(sectors.collect())
            }
            Effect::WriteDescriptor { slot } => {
                let (_, _, bytes) = serving.new_mirror.as_ref().expect("a new mirror leg");
                let offset = map::DESCRIPTOR_OFFSETS[usize::from(slot)];
                Io::Descriptor(disk::sectors(offset, bytes))
            }
            Effect::WriteRole { record: next, slot } => {
                if next.epoch > record.epoch {
                    self.check_exchange(&next);
                }
                Io::Role {
                    slot,
                    sector: Box::new((ROLE_OFFSETS[slot], next.encode())),
                }
            }
            Effect::Answer { tag, result } => return self.answer(tag, result),
            Effect::Reply { call, reply } => return self.replied(call, reply),
            Effect::Die { .. } => return,
        };
        if let Some(serving) = self.serving() {
            serving.pending.push(Pending::new(io));
        }
    }

    fn answer(&mut self, tag: Tag, result: IoResult) {
        let trails = self.pending_mirror_writes() > 0;
        self.note(match result {
            Ok(()) if trails => "answers while a mirror write trails",
            Ok(()) => "answers",
            Err(_) => "errors answered",
        });
        self.application.answered(tag, result);
    }

    pub(crate) fn writes_map(&mut self) -> bool {
        let Some(serving) = self.serving() else {
            return false;
        };
        let mut pending = serving.pending.iter();
        pending.any(|pending| pending.io.lun().is_none())
    }

    fn pending_mirror_writes(&mut self) -> usize {
        let Some(serving) = self.serving() else {
            return 0;
        };
        let pending = serving.pending.iter();
        pending
            .filter(|pending| matches!(pending.io, Io::Mirror { .. }))
            .count()
    }

    fn replied(&mut self, call: Call, reply: Reply) {
        let Process::Serving(serving) = &mut self.process else {
            return;
        };
        if let Reply::RouteChanged { .. } | Reply::ChangeFailed(_) = reply {
            serving.changes.remove(&call);
            let new = serving.new_mirror.take_if(|new| new.0 == call);
            if let (Some((_, descriptor, _)), Reply::RouteChanged { .. }) = (new, &reply) {
                serving.descriptor = descriptor;
            }
        }
        match reply {
            Reply::RouteChanged { route, .. } => self.note(match route {
                Route::Mirrored { .. } => "roles changed, mirrors added",
                Route::Split => "targets split",
                Route::Single(_) => "mirrors dropped",
            }),
            Reply::ChangeFailed(error) => self.note(match error {
                ChangeError::Deadline => "changes past their deadline",
                ChangeError::StaleEpoch
                | ChangeError::WrongRoute
                | ChangeError::NotInSync(_)
                | ChangeError::MirrorFailed
                | ChangeError::Busy
                | ChangeError::CopierConnected
                | ChangeError::Flush(_)
                | ChangeError::Map(_) => "changes that failed",
            }),
            Reply::Suspended => {
                self.check_drained();
                self.note("suspensions");
            }
            Reply::SuspendDeadline => self.note("suspensions past their deadline"),
            Reply::Claimed(_) | Reply::ClaimRefused(_) => {
                let dirty = serving
                    .volume
                    .regions()
                    .map_or(0, |regions| regions.dirty_bytes());
                let epoch = serving.volume.record().epoch;
                self.copying.claim_answered(call, &reply, epoch, dirty);
                return;
            }
        }
        if let Some(serving) = self.serving() {
            serving.replies.push((call, reply));
        }
    }

    fn completed(&mut self, now: Time, io: &Io, result: IoResult) {
        if let (
            Io::Leg {
                tag,
                lun,
                op: Op::Read,
                range,
                ..
            },
            Ok(()),
        ) = (io, result)
        {
            let lun = &self.luns[*lun];
            let read = blocks(*range).map(|block| (block, lun.now(block)));
            self.application.has_read(*tag, read.collect());
        }
        let Some(Serving {
            volume, effects, ..
        }) = self.serving()
        else {
            return;
        };
        let failed_over = volume.counters().fail_overs;
        let given_up = volume.mirror_fault();
        match io {
            Io::Leg { tag, side, .. } => volume.leg_done(now, *tag, *side, result, effects),
            Io::Mirror { place, .. } => volume.mirror_done(now, *place, result, effects),
            Io::FlushLeg { side, flush, .. } => {
                volume.leg_flushed(now, *side, *flush, result, effects);
            }
            Io::Map(_) => volume.map_written(now, result, effects),
            Io::Role { slot, .. } => volume.role_written(now, *slot, result, effects),
            Io::Descriptor(_) => volume.descriptor_written(now, result, effects),
        }
        let exchanged = volume.counters().fail_overs > failed_over;
        let gives_up = given_up.is_none() && volume.mirror_fault().is_some();
        if exchanged {
            self.application.failed_over();
            self.note("roles moved by a failure");
        } else if gives_up {
            self.note("mirror legs given up");
        }
    }

    pub(crate) fn authoritative_lun(&mut self) -> Option<usize> {
        let serving = self.serving()?;
        let side = serving.volume.record().route.authoritative();
        Some(lun_of(&serving.descriptor, side))
    }

    // ---- time, and what others ask -----------------------------------------------------------

    pub(crate) fn tick(&mut self, now: Time) {
        let Some(serving) = self.serving() else {
            return;
        };
        let given_up = serving.volume.mirror_fault().is_some();
        serving.volume.tick(now, &mut serving.effects);
        if !given_up && serving.volume.mirror_fault().is_some() {
            self.note("mirror legs given up after a stall");
        }
    }

    /// A time after which a sweep is due.
    pub(crate) fn sweep_time(&mut self) -> u64 {
        self.dice
            .pick(&[COPIED_SWEEP_NANOSECONDS, IDLE_SWEEP_NANOSECONDS])
    }

    pub(crate) fn suspend(&mut self, now: Time) {
        let call = self.call();
        self.try_on_volume(|volume, effects| {
            volume.suspend(now, call, now.plus(SUSPENSION), effects)
        });
    }

    pub(crate) fn end_suspension(&mut self, now: Time) -> Option<Suspended> {
        let serving = self.serving()?;
        serving.volume.resume(now, &mut serving.effects)
    }

    /// Calls the volume; if it refuses, nothing may have changed.
    pub(crate) fn try_on_volume<T, E: std::fmt::Debug>(
        &mut self,
        call: impl FnOnce(&mut Volume, &mut Vec<Effect>) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let serving = self.serving()?;
        let before = (serving.volume.clone(), serving.effects.len());
        let result = call(&mut serving.volume, &mut serving.effects);
        if let Err(error) = &result {
            let after = (&serving.volume, serving.effects.len());
            assert!(
                (&before.0, before.1) == after,
                "a refusal changed something: {error:?}"
            );
        }
        Some(result)
    }

    pub(crate) fn status(&mut self) -> Option<Status> {
        let serving = self.serving()?;
        let record = serving.volume.record();
        let regions = serving.volume.regions();
        Some(Status {
            epoch: record.epoch,
            route: record.route,
            source: lun_of_leg(&serving.descriptor.source),
            target: serving.descriptor.target.as_ref().map(lun_of_leg),
            dirty: regions.is_some_and(|regions| regions.dirty_bytes() > 0),
            degraded: serving.volume.mirror_fault().is_some(),
            changing: serving.volume.is_changing(),
            policy: serving.volume.on_authoritative_failure(),
            mode: serving.volume.copy_mode(),
            tracks: serving.volume.tracks(),
        })
    }

    /// Asks for a route, `None` for a new mirror leg on `target`.
    pub(crate) fn change_route(
        &mut self,
        now: Time,
        epoch: Epoch,
        route: Option<Route>,
        target: usize,
    ) -> Option<Result<Call, ChangeError>> {
        let call = self.call();
        let stale = self.serving()?.volume.record().epoch != epoch;
        let target = match route {
            Some(Route::Mirrored { authoritative }) if self.serving()?.volume.tracks() => {
                self.note("cutovers");
                Target::CopyRest(authoritative)
            }
            Some(route) => Target::Route(route),
            None => match self.prepare_mirror(call, target) {
                Ok(target) => target,
                Err(error) => return Some(Err(error)),
            },
        };
        let result = self.try_on_volume(|volume, effects| {
            volume.change_route(now, call, epoch, target, HOLD, effects)
        })?;
        assert!(!stale || result.is_err(), "a stale epoch was accepted");
        let serving = self.serving()?;
        match result {
            Ok(()) => drop(serving.changes.insert(call)),
            Err(_) => drop(serving.new_mirror.take_if(|new| new.0 == call)),
        }
        Some(result.map(|()| call))
    }

    fn prepare_mirror(&mut self, call: Call, target: usize) -> Result<Target, ChangeError> {
        let serving = self.serving().ok_or(ChangeError::Busy)?;
        let side = match serving.volume.record().route {
            Route::Single(side) => side,
            Route::Mirrored { .. } | Route::Split => return Err(ChangeError::WrongRoute),
        };
        if serving.new_mirror.is_some() {
            return Err(ChangeError::Busy);
        }
        let mut descriptor = serving.descriptor.clone();
        descriptor.source = leg(lun_of(&descriptor, side));
        descriptor.target = Some(leg(target));
        let bytes = serde_json::to_vec(&descriptor).expect("JSON");
        let new = NewMirror {
            descriptor_bytes: bytes.len() as u32,
            descriptor_crc: map::checksum(&bytes),
        };
        serving.new_mirror = Some((call, descriptor, bytes));
        Ok(Target::AddMirror(new))
    }

    pub(crate) fn take_reply(&mut self, call: Call) -> Option<Reply> {
        let replies = &mut self.serving()?.replies;
        let index = replies.iter().position(|reply| reply.0 == call)?;
        Some(replies.swap_remove(index).1)
    }

    // ---- deaths ----------------------------------------------------------------------------

    /// The process dies when it has performed a few more effects.
    pub(crate) fn doom(&mut self) {
        self.dies_after = Some(self.dice.below(4));
    }

    /// Kills the process; its I/O in flight lands later or never.
    pub(crate) fn kill(&mut self) {
        self.dies_after = None;
        if let Process::Serving(serving) = std::mem::replace(&mut self.process, Process::Down) {
            self.application.forget_errors();
            self.ghosts.extend(serving.pending);
            self.note("kills of ublk-target");
        }
        self.process = Process::Down;
        self.incarnation += 1;
        self.copying.connection_lost();
    }

    /// Lets I/O of a dead process end.
    pub(crate) fn land_ghost(&mut self) {
        let hung = self.hung;
        let able = |pending: &Pending| pending.io.lun().is_none_or(|lun| !hung[lun]);
        while let Some(index) = self.ghosts.iter().position(able)
            && !self.dice.one_in(4)
        {
            let mut ghost = self.ghosts.swap_remove(index);
            self.land_some(&mut ghost, false);
            self.note("ghosts of ublk-target");
        }
    }

    /// Brings a new process one step further. `may_die`: the process may also die.
    pub(crate) fn start(&mut self, now: Time, may_die: bool) -> Start {
        match &self.process {
            Process::Down => self.read_map(may_die),
            Process::Prepared(..) if may_die && self.dice.one_in(10) => {
                self.note("deaths in recovery");
                self.process = Process::Down;
                Start::Died
            }
            // The driver refuses the recovery while I/O of the dead process is in flight.
            Process::Prepared(..) if !self.ghosts.is_empty() => Start::Waits,
            Process::Prepared(..) => self.serve(now),
            Process::Serving(_) => Start::Serves,
            Process::Refused => Start::Refused,
        }
    }

    fn read_map(&mut self, may_die: bool) -> Start {
        // The lock of the map file outlives its owner until the last write is done.
        if self.ghosts.iter().any(|ghost| ghost.io.lun().is_none()) {
            return Start::Waits;
        }
        let mut contents = match map_file::read(&self.map, Path::new("map")) {
            Ok(contents) => contents,
            Err(error) => return self.refused(&error),
        };
        if !self.finds_its_luns() {
            return Start::Waits;
        }
        assert!(
            !contents.chosen.record.route.has_map() || !self.is_bitmap_torn(),
            "a torn sector was read as if it were whole"
        );
        if may_die && self.dice.one_in(6) {
            let kept = if self.settings.torn_role {
                self.dice.below(ROLE_FIELDS_END)
            } else {
                0
            };
            // The role is written twice, then maybe the bitmap and the custody.
            let writes = self.dice.below(4) as u32;
            let kept = if writes < 2 { kept } else { 0 };
            self.map.dies_after(Some((writes, kept)));
        }
        let settled = map_file::settle_role(&self.map, &mut contents.chosen);
        let taken = settled.and_then(|()| self.take_over(&mut contents));
        self.map.dies_after(None);
        let Ok(takeover) = taken else {
            self.note("deaths in recovery");
            return Start::Died;
        };
        self.process = Process::Prepared(Box::new(contents), takeover);
        Start::Goes
    }

    fn is_bitmap_torn(&self) -> bool {
        self.torn.iter().any(|offset| *offset >= map::BITMAP_OFFSET)
    }

    fn refused(&mut self, error: &MapFileError) -> Start {
        let damaged = matches!(
            error,
            MapFileError::Damaged {
                source: MapError::Bitmap(_),
                ..
            }
        );
        assert!(damaged && self.is_bitmap_torn(), "{error}");
        self.note("torn map files refused");
        self.process = Process::Refused;
        Start::Refused
    }

    fn serve(&mut self, now: Time) -> Start {
        let Process::Prepared(contents, takeover) =
            std::mem::replace(&mut self.process, Process::Down)
        else {
            return Start::Waits;
        };
        let Contents {
            chosen,
            descriptor,
            custody: _,
            dirty,
            intent,
        } = *contents;
        let mut volume = Volume::load(&CONFIG, chosen.record, chosen.stale_slot, &dirty, &intent);
        if self.mirror_missing {
            volume.mirror_missing();
            self.note("starts without the mirror leg");
        }
        let mut effects = Vec::new();
        volume.begin(&mut effects);
        self.process = Process::Serving(Box::new(Serving {
            volume,
            effects,
            pending: Vec::new(),
            descriptor,
            claim: takeover.claim,
            new_mirror: None,
            changes: BTreeSet::new(),
            replies: Vec::new(),
        }));
        let mut tags: Vec<Tag> = self.application.open.keys().copied().collect();
        while !tags.is_empty() {
            let tag = tags.swap_remove(self.dice.below(tags.len()));
            self.issue(now, tag);
        }
        self.perform();
        Start::Serves
    }

    /// The host and its disks lose their power.
    pub(crate) fn lose_power(&mut self) {
        self.kill();
        self.copying.lose_power(&mut self.luns, &mut self.dice);
        for mut ghost in std::mem::take(&mut self.ghosts) {
            self.land_some(&mut ghost, true);
        }
        for lun in &mut self.luns {
            lun.lose_power(&mut self.dice);
        }
        self.hung = [false; 2];
        (self.held, self.counted, self.boot) = (None, [0; 2], self.boot.wrapping_add(1));
        if self.is_bitmap_torn()
            && matches!(self.durable_route(), Err(MapFileError::Damaged { .. }))
        {
            self.application = Application::new();
            return;
        }
        let (route, lun) = self.durable_route().expect("the map file is whole");
        let Self {
            application, luns, ..
        } = self;
        application.restarted(|block| luns[lun].now(block));
        self.write_while_down(route, lun);
        self.names_after_a_boot();
    }

    /// The route and the authoritative LUN that a process that starts now will find.
    pub(crate) fn durable_route(&self) -> Result<(Route, usize), MapFileError> {
        let contents = map_file::read(&self.map, Path::new("map"))?;
        let route = contents.chosen.record.route;
        Ok((route, lun_of(&contents.descriptor, route.authoritative())))
    }
}
