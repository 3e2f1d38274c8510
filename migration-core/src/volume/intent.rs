//! The marks of regions in the map file: when they are set, and when they are cleared.
//!
//! Two bitmaps are on disk: `dirty` (set when the mirror leg is added, until copied) and `intent`
//! (set before a write). A region that is durably in one of them is *covered*. Marks are set in
//! groups: one batch of sectors is written at a time, and all marks that come meanwhile go into the
//! next batch. Marks are cleared lazily by a sweep: it chooses regions that are clean and were not
//! written for a while, flushes both legs, and clears the marks of those regions that were not
//! written since.
//!
//! A flush proves nothing if the leg has just lost its cache and a write that will show this has
//! not ended yet. So marks are cleared only when all that either leg was given before the end of
//! the flushes has ended well.
//!
//! Both legs are flushed, not just the mirror leg: a write that is in both caches and that only one
//! leg keeps over a power loss would leave the legs different, with no mark on disk.

use alloc::vec::Vec;

use super::{Effect, Flush, FlushId, Flushed, IoResult, Rule, Volume};
use crate::{
    bits::Bits,
    map::{self, Area, BitmapSector, BlockSize, RoleRecord, SECTOR_WORDS},
    route::Side,
    units::{Range, RegionIndex, Time},
};

/// The most sectors of one batch. A batch has whole blocks: at most one of each bitmap, its last,
/// has fewer sectors than the others.
pub const MAP_BATCH_SECTORS_MAX: usize = 16;

/// The interval between sweeps of copied regions, in nanoseconds. After a crash, what was copied
/// since the last sweep is copied again.
pub const COPIED_SWEEP_NANOSECONDS: u64 = 1_000_000_000;

/// The interval between sweeps of idle regions, in nanoseconds. A region that was not written
/// during a whole interval may lose its mark at the end. A load that returns to its regions within
/// that time writes no mark twice.
pub const IDLE_SWEEP_NANOSECONDS: u64 = 10_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Intent {
    dirty: Bits,
    intent: Bits,
    /// Durably in `dirty` or `intent`.
    cover: Bits,
    /// In `intent`, but not yet in a batch.
    pending: Bits,
    /// In `intent`, and in the batch that is being written.
    issued: Bits,
    /// Written since the last sweep of idle regions.
    recent: Bits,
    stale_dirty_sectors: Bits,
    stale_intent_sectors: Bits,
    block: BlockSize,
    batch: Vec<BitmapSector>,
    /// A write to the map file failed; the next attempt waits for the next tick.
    hold_off: bool,
    sweep: Option<Sweep>,
    swept: Bits,
    next_sweep: Time,
    next_idle_sweep: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sweep {
    source: Option<FlushId>,
    target: Option<FlushId>,
    /// Whether both legs are flushed, and what they were given before may not have ended.
    settles: bool,
    /// Whether nothing is cleared at the end. The sweep is waited for all the same: a failed flush
    /// may be reported just once, to the sweep.
    abandoned: bool,
}

impl Intent {
    pub(super) fn load(record: &RoleRecord, dirty: &[u64], intent: &[u64]) -> Self {
        let geometry = record.geometry;
        let regions = || Bits::new(geometry.regions(), SECTOR_WORDS);
        let sectors = || Bits::new(map::bitmap_sectors(geometry), 1);
        let mut new = Self {
            dirty: regions(),
            intent: regions(),
            cover: regions(),
            pending: regions(),
            issued: regions(),
            recent: regions(),
            stale_dirty_sectors: sectors(),
            stale_intent_sectors: sectors(),
            block: record.block,
            batch: Vec::with_capacity(MAP_BATCH_SECTORS_MAX),
            hold_off: false,
            sweep: None,
            swept: regions(),
            next_sweep: Time(0),
            next_idle_sweep: Time(0),
        };
        for (index, word) in dirty.iter().enumerate() {
            new.dirty.set_word(index, *word);
        }
        for (index, word) in intent.iter().enumerate() {
            new.intent.set_word(index, *word);
        }
        for index in 0..new.cover.words().len() {
            new.cover
                .set_word(index, new.dirty.words()[index] | new.intent.words()[index]);
        }
        new
    }

    /// The regions that are marked on disk.
    pub(super) fn marked(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        self.cover.iter()
    }

    pub(super) fn is_covered(&self, region: RegionIndex) -> bool {
        self.cover.contains(region)
    }

    /// Whether the mark of a region is being written, or waits to be written.
    pub(super) fn is_to_be_covered(&self, region: RegionIndex) -> bool {
        self.pending.contains(region) || self.issued.contains(region)
    }

    pub(super) fn batch(&self) -> &[BitmapSector] {
        &self.batch
    }

    pub(super) fn words(&self, sector: BitmapSector) -> &[u64] {
        let bits = match sector.area {
            Area::Dirty => &self.dirty,
            Area::Intent => &self.intent,
        };
        &bits.words()[sector.words()]
    }

    /// Notes that a write to the region starts.
    pub(super) fn note_write(&mut self, region: RegionIndex) {
        self.recent.insert(region);
        if self.sweep.is_some() {
            self.swept.remove(region);
        }
    }

    /// Makes every region dirty on disk, and none have intent. The marks count as cover only once
    /// the route says `Mirrored`.
    pub(super) fn fill_dirty(&mut self) {
        self.forget();
        self.dirty.fill();
        self.stale_dirty_sectors.fill();
        self.stale_intent_sectors.fill();
    }

    /// Whether all changes of the bitmaps are on disk.
    pub(super) fn is_written(&self) -> bool {
        self.batch.is_empty()
            && self.stale_dirty_sectors.count() == 0
            && self.stale_intent_sectors.count() == 0
    }

    /// Makes the marks of [`Self::fill_dirty`] count as cover.
    pub(super) fn cover_all(&mut self) {
        self.cover.fill();
    }

    /// Clears all bitmaps: in `Single` they mean nothing. A batch may still be in flight.
    pub(super) fn forget(&mut self) {
        for bits in [
            &mut self.dirty,
            &mut self.intent,
            &mut self.cover,
            &mut self.pending,
            &mut self.issued,
            &mut self.recent,
            &mut self.stale_dirty_sectors,
            &mut self.stale_intent_sectors,
            &mut self.swept,
        ] {
            bits.clear();
        }
        self.sweep = None;
    }

    /// Calls `act` with every region that is marked on disk or will be soon.
    pub(super) fn for_each_marked(&self, mut act: impl FnMut(RegionIndex)) {
        for (index, (dirty, intent)) in self
            .dirty
            .words()
            .iter()
            .zip(self.intent.words())
            .enumerate()
        {
            let mut rest = dirty | intent;
            while rest != 0 {
                act(RegionIndex(index * 64 + rest.trailing_zeros() as usize));
                rest &= rest - 1;
            }
        }
    }

    /// Keeps the mark of a region that was found to differ, even if a sweep is under way.
    pub(super) fn keep_mark(&mut self, region: RegionIndex) {
        self.swept.remove(region);
    }

    pub(super) fn mark(&mut self, region: RegionIndex) {
        if !self.cover.contains(region) && self.intent.insert(region) {
            self.pending.insert(region);
            self.stale_intent_sectors
                .insert(RegionIndex(region.0 / map::SECTOR_REGIONS));
        }
    }

    /// Fills the next batch, if there is something to write and no batch is being written. Returns
    /// whether there is a batch to write.
    ///
    /// All sectors of a block are written together. Those that have not changed may be written with
    /// them: what the bitmaps say in memory may always be on disk.
    fn next_batch(&mut self) -> bool {
        if self.hold_off || !self.batch.is_empty() {
            return false;
        }
        let sectors = self.cover.words().len() / SECTOR_WORDS;
        for (area, stale) in [
            (Area::Intent, &mut self.stale_intent_sectors),
            (Area::Dirty, &mut self.stale_dirty_sectors),
        ] {
            while let Some(RegionIndex(sector)) = stale.next_from(0) {
                let block = sector / self.block.sectors() * self.block.sectors();
                let end = sectors.min(block + self.block.sectors());
                if self.batch.len() + (end - block) > MAP_BATCH_SECTORS_MAX {
                    break;
                }
                for index in block..end {
                    stale.remove(RegionIndex(index));
                    let sector = BitmapSector { area, index };
                    self.batch.push(sector);
                    if area == Area::Intent {
                        for word in sector.words() {
                            let pending = self.pending.words()[word];
                            self.issued.set_word(word, pending);
                            self.pending.set_word(word, 0);
                        }
                    }
                }
            }
        }
        !self.batch.is_empty()
    }

    fn batch_written(&mut self, result: IoResult) {
        for index in 0..self.batch.len() {
            let sector = self.batch[index];
            if result.is_err() {
                match sector.area {
                    Area::Dirty => self.stale_dirty_sectors.insert(RegionIndex(sector.index)),
                    Area::Intent => self.stale_intent_sectors.insert(RegionIndex(sector.index)),
                };
            }
            if sector.area == Area::Intent {
                let durable = match result {
                    Ok(()) => &mut self.cover,
                    Err(_) => &mut self.pending,
                };
                for word in sector.words() {
                    durable.set_word(word, durable.words()[word] | self.issued.words()[word]);
                    self.issued.set_word(word, 0);
                }
            }
        }
        self.batch.clear();
        self.hold_off = result.is_err();
    }

    /// Chooses the regions whose marks a sweep may clear: marked, clean, not written lately, and
    /// without write intent unless `idle`. Returns whether there are any.
    fn choose_swept(
        &mut self,
        idle: bool,
        not_clean: &Bits,
        busy: impl Iterator<Item = RegionIndex>,
    ) -> bool {
        for word in 0..self.cover.words().len() {
            let mut kept = not_clean.words().get(word).copied().unwrap_or(0);
            kept |= self.recent.words()[word];
            if !idle {
                kept |= self.intent.words()[word];
            }
            self.swept.set_word(word, self.cover.words()[word] & !kept);
        }
        if idle {
            self.recent.clear();
        }
        for region in busy {
            self.swept.remove(region);
            self.recent.insert(region);
        }
        self.swept.count() > 0
    }

    /// Clears the marks of the regions that are still in `swept`; both legs are flushed. The cover
    /// ends immediately, before the marks are cleared on disk: a write that comes now marks its
    /// region again.
    fn clear_swept(&mut self, not_clean: &Bits) {
        for word in 0..self.swept.words().len() {
            let clean = !not_clean.words().get(word).copied().unwrap_or(0);
            let cleared = self.swept.words()[word] & clean;
            if cleared == 0 {
                continue;
            }
            let sector = RegionIndex(word / SECTOR_WORDS);
            if self.dirty.words()[word] & cleared != 0 {
                self.dirty
                    .set_word(word, self.dirty.words()[word] & !cleared);
                self.stale_dirty_sectors.insert(sector);
            }
            if self.intent.words()[word] & cleared != 0 {
                self.intent
                    .set_word(word, self.intent.words()[word] & !cleared);
                self.stale_intent_sectors.insert(sector);
            }
            self.cover
                .set_word(word, self.cover.words()[word] & !cleared);
        }
        self.swept.clear();
    }
}

#[cfg(feature = "seeded-bugs")]
impl Intent {
    /// See [`Volume::expire`].
    pub(super) const fn expire(&mut self, now: Time, idle: bool) {
        self.next_sweep = now;
        if idle {
            self.next_idle_sweep = now;
        }
    }

    /// See [`Volume::forget_history`].
    pub(super) fn rename_flushes(&mut self, rename: impl Fn(FlushId) -> FlushId) {
        if let Some(sweep) = &mut self.sweep {
            for flush in [&mut sweep.source, &mut sweep.target].into_iter().flatten() {
                *flush = rename(*flush);
            }
        }
    }
}

impl Volume {
    /// Takes the result of [`Effect::WriteMap`].
    pub fn map_written(&mut self, now: Time, result: IoResult, effects: &mut Vec<Effect>) {
        self.intent.batch_written(result);
        self.map_fault = result.err();
        self.counters.map_writes += 1;
        if !self.breaks(Rule::WaitingGoesOn) {
            self.retry_waiting(effects);
        }
        self.retry_claim(effects);
        self.map_settled(now, effects);
        self.write_map(effects);
    }

    /// Takes the result of [`Effect::FlushLeg`].
    pub fn leg_flushed(
        &mut self,
        now: Time,
        side: Side,
        flush: FlushId,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        let Some(index) = self.flushes.iter().position(|other| other.id == flush) else {
            return;
        };
        let Flush { of, .. } = self.flushes.swap_remove(index);
        match (result, of) {
            (Err(error), Flushed::Mirror) if !self.breaks(Rule::FailedFlushIsDirty) => {
                self.fail_mirror(error, effects);
            }
            (Err(error), Flushed::Authoritative) => self.note_lost_flush(error),
            (Ok(()), _) | (Err(_), Flushed::Mirror | Flushed::Former) => {}
        }
        self.sweep_flushed(side, flush, result, effects);
        match (result, of) {
            (Err(error), Flushed::Authoritative) => {
                self.authoritative_flush_failed(now, flush, error, effects);
            }
            (Ok(()) | Err(_), _) => self.change_flushed(now, flush, result, effects),
        }
        self.drained_if_quiet(now, effects);
    }

    pub(super) fn mark_intent(&mut self, range: Range) {
        for region in self.record.geometry.touched(range) {
            self.intent.mark(region);
        }
    }

    /// Begins to write the next batch of map sectors, if there is one.
    pub(super) fn write_map(&mut self, effects: &mut Vec<Effect>) {
        if self.intent.next_batch() {
            effects.push(Effect::WriteMap);
        }
    }

    pub(super) fn sweep_if_due(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.intent.hold_off = false;
        // The sweep may have been abandoned meanwhile.
        self.settle_sweep();
        if now < self.intent.next_sweep || self.intent.sweep.is_some() || self.change.is_some() {
            return;
        }
        let (Some(regions), Some(_)) = (&self.regions, self.healthy_mirror()) else {
            return;
        };
        self.intent.next_sweep = now.plus(COPIED_SWEEP_NANOSECONDS);
        let idle = now >= self.intent.next_idle_sweep;
        if idle {
            self.intent.next_idle_sweep = now.plus(IDLE_SWEEP_NANOSECONDS);
        }
        let geometry = self.record.geometry;
        let keeps_mark = !self.breaks(Rule::WriteBeforeSweepKeepsMark);
        let busy = self
            .writes
            .iter()
            .filter(|_| keeps_mark)
            .flat_map(|write| geometry.touched(write.range));
        if self.intent.choose_swept(idle, regions.not_clean(), busy) {
            if self.breaks(Rule::SweepFlushes) {
                return self.intent.clear_swept(regions.not_clean());
            }
            let source = !self.breaks(Rule::SweepFlushesBothLegs);
            let sweep = Sweep {
                source: source.then(|| self.flush(Side::Source, effects)),
                target: Some(self.flush(Side::Target, effects)),
                settles: false,
                abandoned: false,
            };
            self.intent.sweep = Some(sweep);
        }
    }

    pub(super) fn abandon_sweep(&mut self) {
        if let Some(sweep) = &mut self.intent.sweep {
            sweep.abandoned = true;
        }
        self.intent.swept.clear();
    }

    fn sweep_flushed(
        &mut self,
        side: Side,
        flush: FlushId,
        result: IoResult,
        effects: &mut Vec<Effect>,
    ) {
        let Some(sweep) = &mut self.intent.sweep else {
            return;
        };
        let waited_for = match side {
            Side::Source => &mut sweep.source,
            Side::Target => &mut sweep.target,
        };
        if *waited_for != Some(flush) {
            return;
        }
        *waited_for = None;
        sweep.abandoned |= result.is_err();
        let ended = sweep.source.is_none() && sweep.target.is_none();
        if !ended && !self.breaks(Rule::SweepAwaitsBothLegs) {
            return;
        }
        if let Some(sweep) = &mut self.intent.sweep {
            sweep.settles = true;
        }
        if !self.breaks(Rule::SweepAwaitsWrites) {
            for write in &mut self.writes {
                write.is_awaited = true;
            }
            self.claims.await_all();
        }
        self.settle_sweep();
        self.write_map(effects);
    }

    /// Ends a sweep that has flushed both legs, if all that they were given before has ended, or if
    /// the sweep was abandoned.
    pub(super) fn settle_sweep(&mut self) {
        let Some(sweep) = self.intent.sweep.filter(|sweep| sweep.settles) else {
            return;
        };
        let waits = self.claims.is_awaited() || self.writes.iter().any(|write| write.is_awaited);
        if waits && !sweep.abandoned {
            return;
        }
        self.intent.sweep = None;
        if let (Some(regions), false) = (&self.regions, sweep.abandoned) {
            self.intent.clear_swept(regions.not_clean());
        }
        self.intent.swept.clear();
    }

    /// Asks for a flush of a leg.
    pub(super) fn flush(&mut self, side: Side, effects: &mut Vec<Effect>) -> FlushId {
        self.last_flush.0 += 1;
        let flush = self.last_flush;
        let of = if side == self.record.route.authoritative() {
            Flushed::Authoritative
        } else {
            Flushed::Mirror
        };
        self.flushes.push(Flush { id: flush, of });
        effects.push(Effect::FlushLeg { side, flush });
        flush
    }
}
