//! A volume in `Mirrored`, driven by hand.

use alloc::{vec, vec::Vec};

use super::*;

pub(super) const FAULT: Errno = Errno(5);

pub(super) const COPIER: CopierId = CopierId(7);

pub(super) const WRITE: Op = Op::Write {
    force_unit_access: false,
};

/// A volume in `Mirrored` with every region clean and marked, and the effects that it asked for.
pub(super) struct Bench {
    pub(super) volume: Volume,
    pub(super) effects: Vec<Effect>,
    pub(super) now: Time,
}

pub(super) fn block(number: u64) -> Range {
    Range {
        start: number * BLOCK,
        length: BLOCK,
    }
}

impl Bench {
    /// A bench without marks.
    pub(super) fn unmarked(record: RoleRecord) -> Self {
        let none = vec![0; map::SECTOR_WORDS];
        Self {
            volume: Volume::load(&CONFIG, record, None, &none, &none),
            effects: Vec::new(),
            now: Time(1),
        }
    }

    pub(super) fn new(authoritative: Side) -> Self {
        let mut bench = Self::unmarked(mirrored(authoritative));
        for region in 0..REGIONS {
            let range = geometry().range(RegionIndex(region));
            bench.volume.mark_intent(range);
        }
        bench.volume.write_map(&mut bench.effects);
        bench
            .volume
            .map_written(bench.now, Ok(()), &mut bench.effects);
        bench.effects.clear();
        bench
    }

    pub(super) fn request(&mut self, tag: u16, op: Op, number: u64) -> Vec<Effect> {
        let range = if op == Op::Flush {
            Range::default()
        } else {
            block(number)
        };
        let request = Request { op, range };
        self.volume
            .request(self.now, Tag(tag), request, &mut self.effects);
        self.take()
    }

    pub(super) fn leg(&mut self, tag: u16, side: Side, result: IoResult) -> Vec<Effect> {
        self.volume
            .leg_done(self.now, Tag(tag), side, result, &mut self.effects);
        self.take()
    }

    pub(super) fn mirror(&mut self, place: Place, result: IoResult) -> Vec<Effect> {
        self.volume
            .mirror_done(self.now, place, result, &mut self.effects);
        self.take()
    }

    /// Lets time pass. Returns the effects, without the flushes of a sweep: these are never
    /// answered.
    pub(super) fn after(&mut self, nanoseconds: u64) -> Vec<Effect> {
        self.now = self.now.plus(nanoseconds);
        self.volume.tick(self.now, &mut self.effects);
        let mut effects = self.take();
        effects.retain(|effect| !matches!(effect, Effect::FlushLeg { .. }));
        effects
    }

    pub(super) fn change(&mut self, route: Route) -> Vec<Effect> {
        let epoch = self.volume.record().epoch;
        self.volume
            .change_route(
                self.now,
                Call(1),
                epoch,
                Target::Route(route),
                1 << 40,
                &mut self.effects,
            )
            .unwrap();
        self.take()
    }

    /// Answers the flushes among the effects.
    pub(super) fn flush(&mut self, effects: &[Effect], result: IoResult) -> Vec<Effect> {
        for effect in effects {
            if let Effect::FlushLeg { side, flush } = effect {
                self.volume
                    .leg_flushed(self.now, *side, *flush, result, &mut self.effects);
            }
        }
        self.take()
    }

    /// Answers the role writes among the effects.
    pub(super) fn role(&mut self, effects: &[Effect]) -> Vec<Effect> {
        for effect in effects {
            if let Effect::WriteRole { slot, .. } = effect {
                self.volume
                    .role_written(self.now, *slot, Ok(()), &mut self.effects);
            }
        }
        self.take()
    }

    pub(super) fn take(&mut self) -> Vec<Effect> {
        self.volume.check_invariants();
        core::mem::take(&mut self.effects)
    }

    pub(super) fn is_clean(&self, region: usize) -> bool {
        let regions = self.volume.regions().unwrap();
        regions.get(RegionIndex(region)) == crate::region::RegionState::Clean
    }
}

pub(super) fn place(effects: &[Effect]) -> Option<Place> {
    effects.iter().find_map(|effect| match effect {
        Effect::MirrorWrite { place, .. } => Some(*place),
        _ => None,
    })
}

pub(super) fn answer(tag: u16, result: IoResult) -> Effect {
    let tag = Tag(tag);
    Effect::Answer { tag, result }
}

pub(super) fn leg(tag: u16, side: Side, op: Op) -> Effect {
    let tag = Tag(tag);
    Effect::Leg { tag, side, op }
}

pub(super) fn claim(bench: &mut Bench, call: u64) -> Vec<Effect> {
    bench
        .volume
        .claim(COPIER, Call(call), 9, &mut bench.effects);
    bench.take()
}

pub(super) fn claimed(call: u64, regions: &[usize]) -> Effect {
    let regions = regions.iter().copied().map(RegionIndex).collect();
    Effect::Reply {
        call: Call(call),
        reply: Reply::Claimed(regions),
    }
}

pub(super) fn report(bench: &mut Bench, regions: &[usize]) -> Vec<Effect> {
    let regions: Vec<RegionIndex> = regions.iter().copied().map(RegionIndex).collect();
    let (epoch, now) = (bench.volume.record().epoch, bench.now);
    let effects = &mut bench.effects;
    bench
        .volume
        .report(now, COPIER, &Report::copied(epoch, &regions), effects)
        .unwrap();
    bench.take()
}
