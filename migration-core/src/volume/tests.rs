//! The volume in a small world that reorders, fails, dies and loses power, against an oracle.

mod cases;
mod failures;

use alloc::{collections::BTreeMap, collections::BTreeSet, vec, vec::Vec};

use super::*;
use crate::{map, route::Route, units::RegionIndex};

const REGION: u64 = 64 << 10;
const BLOCK: u64 = 32 << 10;
const REGIONS: usize = 4;
const BLOCKS: usize = REGIONS * 2;
const TAGS: usize = 5;
const PLACES: usize = 3;
const PATIENCE: u64 = 4_000;
const HOLD: u64 = 1_000;
const CONFIG: Config = Config {
    tags: TAGS,
    places: PLACES,
    patience: PATIENCE,
};
const VOLUME_ID: [u8; 16] = *b"a volume's name.";

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A number that no other write writes; 0: never written.
type Value = u64;

/// A block of a LUN: all that it ever held, and from where on a power loss may leave it.
#[derive(Clone)]
struct Cell {
    versions: Vec<Value>,
    durable: usize,
}

impl Cell {
    fn new(value: Value) -> Self {
        Self {
            versions: vec![value],
            durable: 0,
        }
    }

    fn now(&self) -> Value {
        *self.versions.last().unwrap()
    }
}

type Lun = Vec<Cell>;

#[derive(Clone, Debug)]
enum Io {
    Leg {
        tag: Tag,
        side: Side,
        op: Op,
    },
    Mirror {
        place: Place,
        side: Side,
        range: Range,
        value: Value,
    },
    FlushLeg {
        side: Side,
        flush: FlushId,
        versions: Vec<usize>,
    },
    Map(Vec<(BitmapSector, Vec<u64>)>),
    Role {
        record: RoleRecord,
        slot: usize,
    },
    Descriptor,
}

#[derive(Clone, Debug)]
struct Open {
    request: Request,
    value: Value,
    /// For a read: what each block may be. For a flush: what may survive from then on.
    allowed: Vec<BTreeSet<Value>>,
    /// For a write: values that were answered while it was in flight.
    concurrent: Vec<BTreeSet<Value>>,
    /// For a flush of the authoritative leg: the versions it covers.
    versions: Vec<usize>,
    begun: Value,
}

#[derive(Debug)]
struct Copier {
    id: CopierId,
    /// As the last claim said.
    epoch: Epoch,
    /// The LUN that it reads; the other is the one that it writes.
    from: usize,
    claim: Option<Call>,
    regions: Vec<(RegionIndex, Copy)>,
}

/// How far the copy of a region is.
#[derive(Debug, Clone, Copy)]
enum Copy {
    Claimed,
    Read([Value; 2]),
    Written,
}

struct World {
    random: Random,
    /// In some worlds I/O takes long, in some the copier does.
    slow_io: bool,
    slow_copier: bool,
    volume: Volume,
    effects: Vec<Effect>,
    luns: [Lun; 2],
    /// Which LUN is the source, for each descriptor slot.
    source_lun: [usize; 2],
    slots: [RoleRecord; 2],
    bitmaps: BTreeMap<BitmapSector, Vec<u64>>,
    pending: Vec<Io>,
    open: BTreeMap<Tag, Open>,
    /// What each block may read.
    possible: Vec<BTreeSet<Value>>,
    /// What each block may be after a power loss.
    survivors: Vec<BTreeSet<Value>>,
    copier: Option<Copier>,
    /// Writes of dead copiers that have not landed: LUN, region, data.
    ghosts: Vec<(usize, RegionIndex, [Value; 2])>,
    next_value: Value,
    next_call: u64,
    now: Time,
    changes: BTreeMap<Call, Target>,
    counts: BTreeMap<&'static str, u64>,
}

fn geometry() -> Geometry {
    Geometry::new(REGION * REGIONS as u64, REGION).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let record = RoleRecord {
            epoch: Epoch(1),
            route: Route::Single(Side::Source),
            descriptor_slot: 0,
            descriptor_bytes: 0,
            descriptor_crc: 0,
            volume_id: VOLUME_ID,
            geometry: geometry(),
        };
        let volume = Volume::load(&CONFIG, record, None, &[], &[]);
        let lun = |value| (0..BLOCKS).map(|_| Cell::new(value)).collect();
        Self {
            slow_io: seed.is_multiple_of(3),
            slow_copier: seed.is_multiple_of(4),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            volume,
            effects: Vec::new(),
            luns: [lun(0), lun(Value::MAX)],
            source_lun: [0, 0],
            slots: [record; 2],
            bitmaps: BTreeMap::new(),
            pending: Vec::new(),
            open: BTreeMap::new(),
            possible: vec![BTreeSet::from([0]); BLOCKS],
            survivors: vec![BTreeSet::from([0]); BLOCKS],
            copier: None,
            ghosts: Vec::new(),
            next_value: 1,
            next_call: 1,
            now: Time(1),
            changes: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn lun_of(&self, side: Side) -> usize {
        let source = self.source_lun[usize::from(self.volume.record().descriptor_slot)];
        match side {
            Side::Source => source,
            Side::Target => 1 - source,
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn call(&mut self) -> Call {
        self.next_call += 1;
        Call(self.next_call)
    }

    fn blocks(range: Range) -> core::ops::Range<usize> {
        (range.start / BLOCK) as usize..range.end().div_ceil(BLOCK) as usize
    }

    /// The values of writes that are not answered yet.
    fn in_flight(&self, block: usize) -> Vec<Value> {
        let writes = self
            .open
            .values()
            .filter(|open| matches!(open.request.op, Op::Write { .. }));
        writes
            .filter(|open| Self::blocks(open.request.range).contains(&block))
            .map(|open| open.value)
            .collect()
    }

    // ---- the application -------------------------------------------------------------------

    fn new_request(&mut self) {
        let Some(tag) = (0..TAGS as u16)
            .map(Tag)
            .find(|tag| !self.open.contains_key(tag))
        else {
            return;
        };
        let first = self.random.below(BLOCKS);
        let count = 1 + self.random.below(2.min(BLOCKS - first));
        let range = Range {
            start: first as u64 * BLOCK,
            length: count as u64 * BLOCK,
        };
        let op = match self.random.below(8) {
            0 | 1 => Op::Read,
            2 => Op::Flush,
            3 => Op::Write {
                force_unit_access: true,
            },
            _ => Op::Write {
                force_unit_access: false,
            },
        };
        let range = if op == Op::Flush {
            Range::default()
        } else {
            range
        };
        let value = self.next_value;
        self.next_value += 1;
        let allowed = (0..BLOCKS)
            .map(|block| {
                let mut set = self.possible[block].clone();
                set.extend(self.in_flight(block));
                set
            })
            .collect();
        let open = Open {
            request: Request { op, range },
            value,
            allowed,
            concurrent: vec![BTreeSet::new(); BLOCKS],
            versions: Vec::new(),
            begun: value,
        };
        if matches!(op, Op::Write { .. }) {
            for block in Self::blocks(range) {
                self.survivors[block].insert(value);
            }
        }
        self.open.insert(tag, open);
        self.issue(tag);
    }

    fn issue(&mut self, tag: Tag) {
        let request = self.open[&tag].request;
        self.volume
            .request(self.now, tag, request, &mut self.effects);
    }

    fn answered(&mut self, tag: Tag, result: IoResult) {
        let done = self
            .open
            .remove(&tag)
            .expect("an answer to an open request");
        assert_eq!(
            result,
            Ok(()),
            "the authoritative leg never fails in this world"
        );
        let others: Vec<Tag> = self.open.keys().copied().collect();
        match done.request.op {
            Op::Write { force_unit_access } => {
                for block in Self::blocks(done.request.range) {
                    let mut possible = done.concurrent[block].clone();
                    possible.insert(done.value);
                    self.possible[block] = possible;
                    if force_unit_access {
                        let mut survivors = self.possible[block].clone();
                        survivors.extend(self.in_flight(block));
                        self.survivors[block] = survivors;
                    }
                    for other in &others {
                        if let Some(other) = self.open.get_mut(other) {
                            other.concurrent[block].insert(done.value);
                        }
                    }
                }
            }
            Op::Flush => {
                for block in 0..BLOCKS {
                    let allowed = &done.allowed[block];
                    self.survivors[block].retain(|v| allowed.contains(v) || *v > done.begun);
                }
            }
            Op::Read | Op::Discard => {}
        }
        self.note("answers");
    }

    // ---- the legs, the map file ------------------------------------------------------------

    fn perform(&mut self) {
        while !self.effects.is_empty() {
            for effect in core::mem::take(&mut self.effects) {
                self.perform_one(effect);
            }
        }
        self.volume.check_invariants();
    }

    fn perform_one(&mut self, effect: Effect) {
        match effect {
            Effect::Leg { tag, side, op } => {
                let lun = self.lun_of(side);
                let versions = self.luns[lun]
                    .iter()
                    .map(|cell| cell.versions.len() - 1)
                    .collect();
                if side == self.volume.record().route.authoritative() {
                    self.open.get_mut(&tag).unwrap().versions = versions;
                }
                self.pending.push(Io::Leg { tag, side, op });
            }
            Effect::MirrorWrite { tag, place, side } => {
                let open = &self.open[&tag];
                let (range, value) = (open.request.range, open.value);
                self.pending.push(Io::Mirror {
                    place,
                    side,
                    range,
                    value,
                });
            }
            Effect::Answer { tag, result } => self.answered(tag, result),
            Effect::FlushLeg { side, flush } => {
                let lun = self.lun_of(side);
                let versions = self.luns[lun]
                    .iter()
                    .map(|cell| cell.versions.len() - 1)
                    .collect();
                self.pending.push(Io::FlushLeg {
                    side,
                    flush,
                    versions,
                });
            }
            Effect::WriteMap => {
                let batch = self.volume.map_batch().to_vec();
                let content = batch
                    .into_iter()
                    .map(|sector| {
                        let bytes = self.volume.encode_sector(sector);
                        (sector, sector.decode(&VOLUME_ID, &bytes).unwrap().to_vec())
                    })
                    .collect();
                self.pending.push(Io::Map(content));
            }
            Effect::WriteRole { record, slot } => self.pending.push(Io::Role { record, slot }),
            Effect::WriteDescriptor { .. } => self.pending.push(Io::Descriptor),
            Effect::Reply { call, reply } => self.replied(call, reply),
            Effect::Die { .. } => panic!("role writes never fail in this world"),
        }
    }

    fn replied(&mut self, call: Call, reply: Reply) {
        match reply {
            Reply::RouteChanged { .. } => {
                self.changes.remove(&call);
                self.note("route changes");
            }
            Reply::ChangeFailed(_) => {
                self.changes.remove(&call);
                self.note("failed changes");
            }
            Reply::Claimed(regions) => {
                if let Some(copier) = self.copier.as_mut().filter(|c| c.claim == Some(call)) {
                    copier.claim = None;
                    copier.epoch = self.volume.record().epoch;
                    copier
                        .regions
                        .extend(regions.into_iter().map(|region| (region, Copy::Claimed)));
                }
            }
            Reply::ClaimRefused(_) => {
                // The copier ends its connection, and with it its claims.
                if self.copier.as_ref().is_some_and(|c| c.claim == Some(call)) {
                    self.kill_copier();
                }
            }
            Reply::Suspended | Reply::SuspendDeadline => self.note("suspensions"),
        }
    }

    /// What an I/O does to the media.
    fn land(&mut self, io: &Io) {
        match io {
            Io::Leg { tag, side, op } => self.land_on_leg(*tag, *side, *op),
            Io::Mirror {
                side, range, value, ..
            } => {
                let lun = self.lun_of(*side);
                for block in Self::blocks(*range) {
                    self.luns[lun][block].versions.push(*value);
                }
            }
            Io::FlushLeg { side, versions, .. } => {
                let lun = self.lun_of(*side);
                self.make_durable(lun, versions);
            }
            Io::Map(content) => self.bitmaps.extend(content.iter().cloned()),
            Io::Role { record, slot } => self.slots[*slot] = *record,
            Io::Descriptor => {}
        }
    }

    fn make_durable(&mut self, lun: usize, versions: &[usize]) {
        for (cell, version) in self.luns[lun].iter_mut().zip(versions) {
            // The cache may have been lost since the flush began.
            cell.durable = cell.durable.max(*version).min(cell.versions.len() - 1);
        }
    }

    fn land_on_leg(&mut self, tag: Tag, side: Side, op: Op) {
        let open = self.open[&tag].clone();
        let lun = self.lun_of(side);
        match op {
            Op::Write { force_unit_access } => {
                for block in Self::blocks(open.request.range) {
                    let cell = &mut self.luns[lun][block];
                    cell.versions.push(open.value);
                    if force_unit_access {
                        cell.durable = cell.versions.len() - 1;
                    }
                }
            }
            Op::Read => {
                for block in Self::blocks(open.request.range) {
                    let value = self.luns[lun][block].now();
                    let allowed = open.allowed[block].contains(&value) || value > open.begun;
                    assert!(
                        allowed,
                        "block {block} read {value}, allowed {:?}",
                        open.allowed[block]
                    );
                }
            }
            Op::Flush => self.make_durable(lun, &open.versions),
            Op::Discard => {}
        }
    }

    fn complete_one(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let index = self.random.below(self.pending.len());
        let io = self.pending.swap_remove(index);
        let mirror = self.volume.record().route.mirror();
        let may_fail = match &io {
            Io::Leg { side, .. } | Io::Mirror { side, .. } | Io::FlushLeg { side, .. } => {
                Some(*side) == mirror
            }
            Io::Map(_) => true,
            Io::Role { .. } | Io::Descriptor => false,
        };
        let is_flush = matches!(&io, Io::FlushLeg { .. });
        let failed = may_fail && self.random.one_in(if is_flush { 8 } else { 60 });
        let landed = !failed || self.random.one_in(2);
        if landed {
            self.land(&io);
        } else if let Io::FlushLeg { side, .. } = &io {
            let lun = self.lun_of(*side);
            self.lose_cache(lun);
        }
        let result = if failed { Err(Errno(5)) } else { Ok(()) };
        let (now, effects) = (self.now, &mut self.effects);
        match io {
            Io::Leg { tag, side, .. } => self.volume.leg_done(now, tag, side, result, effects),
            Io::Mirror { place, .. } => self.volume.mirror_done(now, place, result, effects),
            Io::FlushLeg { side, flush, .. } => {
                self.volume.leg_flushed(now, side, flush, result, effects);
            }
            Io::Map(_) => self.volume.map_written(now, result, effects),
            Io::Role { slot, .. } => self.volume.role_written(now, slot, result, effects),
            Io::Descriptor => self.volume.descriptor_written(now, result, effects),
        }
    }

    // ---- the copier ------------------------------------------------------------------------

    fn step_copier(&mut self) {
        let Some(copier) = &mut self.copier else {
            // The lock of the mirror leg: a dead copier's writes have landed before the next opens.
            if self.ghosts.is_empty() {
                let id = CopierId(self.next_call);
                if let Ok(epoch) = self.volume.open_copier(id) {
                    let from = self.lun_of(self.volume.record().route.authoritative());
                    self.copier = Some(Copier {
                        id,
                        epoch,
                        from,
                        claim: None,
                        regions: Vec::new(),
                    });
                }
            }
            return;
        };
        if copier.regions.is_empty() {
            if copier.claim.is_none() {
                let id = copier.id;
                let call = self.call();
                self.copier.as_mut().unwrap().claim = Some(call);
                self.volume.claim(id, call, 2, &mut self.effects);
            }
            return;
        }
        let index = self.random.below(copier.regions.len());
        let (region, data) = copier.regions[index];
        let (id, epoch, from) = (copier.id, copier.epoch, copier.from);
        let first = region.0 * 2;
        match data {
            Copy::Claimed => {
                let values = [
                    self.luns[from][first].now(),
                    self.luns[from][first + 1].now(),
                ];
                self.copier.as_mut().unwrap().regions[index].1 = Copy::Read(values);
            }
            Copy::Read(values) => {
                self.land_copy(1 - from, region, values);
                self.copier.as_mut().unwrap().regions[index].1 = Copy::Written;
            }
            Copy::Written => {
                self.copier.as_mut().unwrap().regions.swap_remove(index);
                let reported =
                    self.volume
                        .report(id, epoch, &[region], &[], None, &mut self.effects);
                assert_eq!(reported, Ok(()));
                self.note("regions copied");
            }
        }
    }

    fn land_copy(&mut self, lun: usize, region: RegionIndex, values: [Value; 2]) {
        for (offset, value) in values.into_iter().enumerate() {
            self.luns[lun][region.0 * 2 + offset].versions.push(value);
        }
    }

    /// Its connection ends; what it has read may still be written.
    fn kill_copier(&mut self) {
        if let Some(copier) = self.copier.take() {
            let mirror = 1 - copier.from;
            for (region, data) in copier.regions {
                if let Copy::Read(values) = data {
                    self.ghosts.push((mirror, region, values));
                }
            }
            self.volume.close_copier(copier.id, &mut self.effects);
            self.note("copier deaths");
        }
    }

    fn land_ghost(&mut self) {
        if let Some((lun, region, values)) = self.ghosts.pop()
            && self.random.one_in(2)
        {
            self.land_copy(lun, region, values);
        }
    }

    // ---- the operator ----------------------------------------------------------------------

    fn change_route(&mut self) {
        let record = *self.volume.record();
        let target = match record.route {
            Route::Single(side) => {
                // The leg in use becomes the source of the next migration; the new target holds anything.
                if !self.changes.is_empty() || !self.ghosts.is_empty() {
                    return;
                }
                let current = self.lun_of(side);
                self.source_lun[usize::from(1 - record.descriptor_slot)] = current;
                Target::AddMirror(NewMirror {
                    descriptor_bytes: 0,
                    descriptor_crc: 0,
                })
            }
            Route::Mirrored { authoritative } if self.random.one_in(6) => {
                self.kill_copier();
                Target::Route(Route::Single(authoritative))
            }
            Route::Mirrored { authoritative } => Target::Route(Route::Mirrored {
                authoritative: authoritative.other(),
            }),
        };
        let call = self.call();
        let effects = &mut self.effects;
        let begun = self
            .volume
            .change_route(self.now, call, record.epoch, target, HOLD, effects);
        if begun.is_ok() {
            self.changes.insert(call, target);
        }
    }

    // ---- deaths ----------------------------------------------------------------------------

    /// The process dies. What it had submitted lands or not; then a new one reads the map and gets every
    /// unanswered request again.
    fn kill(&mut self) {
        self.kill_copier();
        self.effects.clear();
        for io in core::mem::take(&mut self.pending) {
            if self.random.one_in(2) {
                self.land(&io);
            }
        }
        self.reload();
        let mut tags: Vec<Tag> = self.open.keys().copied().collect();
        while !tags.is_empty() {
            let tag = tags.swap_remove(self.random.below(tags.len()));
            self.issue(tag);
        }
        self.note("kills");
    }

    fn reload(&mut self) {
        self.changes.clear();
        let sectors = [self.slots[0].encode(), self.slots[1].encode()];
        let chosen = RoleRecord::choose([&sectors[0], &sectors[1]]).unwrap();
        let mirrored = chosen.record.route.mirror().is_some();
        let words = |area| -> Vec<u64> {
            let sector = BitmapSector { area, index: 0 };
            let none = vec![0; map::SECTOR_WORDS];
            if mirrored {
                self.bitmaps.get(&sector).cloned().unwrap_or(none)
            } else {
                Vec::new()
            }
        };
        let (dirty, intent) = (words(map::Area::Dirty), words(map::Area::Intent));
        self.volume = Volume::load(&CONFIG, chosen.record, chosen.stale_slot, &dirty, &intent);
        self.volume.begin(&mut self.effects);
    }

    fn lose_power(&mut self) {
        self.kill_copier();
        while !self.ghosts.is_empty() {
            self.land_ghost();
        }
        self.effects.clear();
        for io in core::mem::take(&mut self.pending) {
            if self.random.one_in(2) {
                self.land(&io);
            }
        }
        for lun in 0..2 {
            self.lose_cache(lun);
            for cell in &mut self.luns[lun] {
                *cell = Cell::new(cell.now());
            }
        }
        self.open.clear();
        self.reload();
        let authoritative = self.lun_of(self.volume.record().route.authoritative());
        for block in 0..BLOCKS {
            let value = self.luns[authoritative][block].now();
            let survivors = &self.survivors[block];
            assert!(
                survivors.contains(&value),
                "block {block}: {value} of {survivors:?}"
            );
            self.possible[block] = BTreeSet::from([value]);
            self.survivors[block] = BTreeSet::from([value]);
        }
        self.check_clean_is_equal();
        self.note("power losses");
    }

    /// Each block falls back to something between what is durable and what it was.
    fn lose_cache(&mut self, lun: usize) {
        for block in 0..BLOCKS {
            let cell = &self.luns[lun][block];
            let (durable, left) = (cell.durable, cell.versions.len() - cell.durable);
            let kept = durable + self.random.below(left);
            self.luns[lun][block].versions.truncate(kept + 1);
        }
    }

    /// Invariant 2, where no write is in flight.
    fn check_clean_is_equal(&self) {
        let Some(regions) = self.volume.regions() else {
            return;
        };
        for region in (0..REGIONS).map(RegionIndex) {
            let here = geometry().range(region);
            let trails = self
                .pending
                .iter()
                .any(|io| matches!(io, Io::Mirror { range, .. } if range.overlaps(here)));
            let busy = trails
                || self
                    .open
                    .values()
                    .any(|open| open.request.range.length > 0 && open.request.range.overlaps(here));
            if regions.get(region) == crate::region::RegionState::Clean && !busy {
                for block in [region.0 * 2, region.0 * 2 + 1] {
                    let values = [self.luns[0][block].now(), self.luns[1][block].now()];
                    assert_eq!(values[0], values[1], "clean block {block} differs");
                }
            }
        }
    }

    // ---- the run ---------------------------------------------------------------------------

    fn step(&mut self) {
        self.now = self.now.plus(self.random.below(400) as u64);
        match self.random.below(100) {
            0..30 => self.new_request(),
            30..62 if self.slow_io && !self.random.one_in(8) => {}
            30..62 => self.complete_one(),
            62..79 if self.slow_copier && !self.random.one_in(8) => {}
            62..79 => self.step_copier(),
            79..83 => self.change_route(),
            83..85 => self.kill_copier(),
            85..87 => self.land_ghost(),
            87..89 => {
                let _ = self.volume.retry_mirror();
            }
            89..95 => {
                // A sweep needs a long time to be due.
                if self.random.one_in(2) {
                    let copied = self.random.one_in(2);
                    let sweep = if copied {
                        COPIED_SWEEP_NANOSECONDS
                    } else {
                        IDLE_SWEEP_NANOSECONDS
                    };
                    self.now = self.now.plus(sweep);
                }
                self.volume.tick(self.now, &mut self.effects);
            }
            95 => {
                let call = self.call();
                let deadline = self.now.plus(HOLD);
                let _ = self
                    .volume
                    .suspend(self.now, call, deadline, &mut self.effects);
            }
            96 => {
                self.volume.resume(self.now, &mut self.effects);
            }
            97 => self.kill(),
            98 if self.random.one_in(2) => self.lose_power(),
            _ => {}
        }
        self.perform();
        self.check_clean_is_equal();
    }

    /// Nothing new is asked: everything must end, and the legs must become equal.
    fn settle(&mut self) {
        for _ in 0..3000 {
            self.now = self.now.plus(HOLD);
            let _ = self.volume.retry_mirror();
            self.volume.tick(self.now, &mut self.effects);
            self.perform();
            self.complete_one();
            self.perform();
            self.land_ghost();
            self.step_copier();
            self.perform();
            let clean = self
                .volume
                .regions()
                .is_none_or(|regions| regions.dirty_regions() == 0);
            if clean && self.open.is_empty() && self.pending.is_empty() && self.changes.is_empty() {
                break;
            }
        }
        assert!(
            self.open.is_empty(),
            "requests wait for ever: {:?}",
            self.open
        );
        if let Some(regions) = self.volume.regions() {
            assert_eq!(
                regions.dirty_regions(),
                0,
                "the legs do not converge: {:?}, copier {:?}, ghosts {}, pending {:?}",
                self.volume,
                self.copier,
                self.ghosts.len(),
                self.pending
            );
        }
        self.check_clean_is_equal();
    }
}

#[test]
fn no_order_of_events_loses_a_write_or_leaves_the_legs_different() {
    let seeds = 4000;
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 1..=seeds {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
        }
        world.settle();
        for (what, count) in world.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    // A world in which nothing happens proves nothing.
    for what in [
        "answers",
        "route changes",
        "failed changes",
        "regions copied",
        "copier deaths",
        "kills",
        "power losses",
        "suspensions",
    ] {
        assert!(
            counts.get(what).copied().unwrap_or(0) > seeds / 4,
            "too few {what}: {counts:?}"
        );
    }
}
