//! Comparing the legs.

use alloc::vec::Vec;

use super::{bench::*, *};
use crate::region::RegionState;

const COPIER: CopierId = CopierId(1);
const R0: RegionIndex = RegionIndex(0);
const R1: RegionIndex = RegionIndex(1);

impl Bench {
    fn compared(&mut self, same: &[RegionIndex], differing: &[RegionIndex]) -> Vec<RegionIndex> {
        let found = Comparison {
            same: same.to_vec(),
            differing: differing.to_vec(),
            unread: Vec::new(),
        };
        let epoch = self.volume.record().epoch;
        self.volume
            .compared(COPIER, epoch, &found, &mut self.effects)
            .unwrap()
    }

    fn watch(&mut self, regions: &[RegionIndex], hold: bool) -> Watched {
        let epoch = self.volume.record().epoch;
        let watched = self.volume.watch(COPIER, epoch, regions, hold).unwrap();
        self.volume.check_invariants();
        watched
    }

    fn state(&self, region: RegionIndex) -> RegionState {
        self.volume.regions().unwrap().get(region)
    }

    /// A write that both legs have done.
    fn write(&mut self, tag: u16, number: u64) {
        let effects = self.request(tag, WRITE, number);
        self.finish_write(tag, &effects);
    }

    fn finish_write(&mut self, tag: u16, effects: &[Effect]) {
        let place = place(effects).unwrap();
        self.leg(tag, Side::Source, Ok(()));
        self.mirror(place, Ok(()));
    }
}

fn comparing() -> Bench {
    let mut bench = Bench::new(Side::Source);
    bench.volume.open_copier(COPIER).unwrap();
    bench
}

#[test]
fn what_was_read_counts_only_if_nothing_was_written_meanwhile() {
    let mut bench = comparing();
    assert_eq!(bench.watch(&[R0, R1], false).watched, [R0, R1]);
    bench.write(0, 0);
    // A difference that a write made does not count. A region that was the same may differ by now.
    assert_eq!(bench.compared(&[R1], &[R0]), [R0]);
    assert_eq!(bench.state(R0), RegionState::Clean);
    assert_eq!(bench.watch(&[R0, R1], false).watched, [R0, R1]);
    bench.write(0, 0);
    assert_eq!(bench.compared(&[R0, R1], &[]), [R0]);
}

#[test]
fn a_region_that_is_being_written_is_not_compared() {
    let mut bench = comparing();
    let effects = bench.request(0, WRITE, 0);
    let place = place(&effects).unwrap();
    assert_eq!(bench.watch(&[R0, R1], false).watched, [R1]);
    bench.leg(0, Side::Source, Ok(()));
    // The write trails: the mirror leg does not have it yet.
    assert_eq!(bench.watch(&[R0], false).watched, []);
    bench.mirror(place, Ok(()));
    assert_eq!(bench.watch(&[R0], false).watched, [R0]);
}

/// A volume in which the first region was found to differ.
fn different(authoritative: Side) -> Bench {
    let mut bench = Bench::new(authoritative);
    bench.volume.open_copier(COPIER).unwrap();
    bench.watch(&[R0], false);
    assert_eq!(bench.compared(&[], &[R0]), []);
    assert_eq!(bench.state(R0), RegionState::Dirty);
    assert_eq!(bench.volume.regions().unwrap().dirty_regions(), 1);
    bench.take();
    bench
}

#[test]
fn a_region_that_was_found_to_differ_is_not_read_from_the_mirror_leg() {
    let mut bench = different(Side::Source);
    bench.request(0, Op::Read, 0);
    let failed = [answer(0, Err(FAULT))];
    assert_eq!(bench.leg(0, Side::Source, Err(FAULT)), failed);
}

#[test]
fn a_failure_does_not_move_the_role_to_a_leg_that_was_found_to_differ() {
    let mut bench = different(Side::Target);
    bench.request(0, WRITE, 4);
    let failed = [answer(0, Err(FAULT))];
    assert_eq!(bench.leg(0, Side::Target, Err(FAULT)), failed);
}

#[test]
fn a_region_that_was_found_to_differ_during_a_sweep_keeps_its_mark() {
    let mut bench = comparing();
    bench.watch(&[R0], false);
    bench.now = bench.now.plus(IDLE_SWEEP_NANOSECONDS);
    bench.volume.tick(bench.now, &mut bench.effects);
    let sweep = bench.take();
    bench.compared(&[], &[R0]);
    bench.volume.claim(COPIER, Call(1), 1, &mut bench.effects);
    let (epoch, effects) = (bench.volume.record().epoch, &mut bench.effects);
    bench
        .volume
        .report(bench.now, COPIER, &Report::copied(epoch, &[R0]), effects)
        .unwrap();
    assert_eq!(bench.state(R0), RegionState::Clean);
    bench.take();
    bench.flush(&sweep, Ok(()));
    assert!(bench.volume.intent.is_covered(R0));
}

#[test]
fn a_difference_where_nothing_was_marked_is_marked_durably() {
    let mut bench = Bench::unmarked(mirrored(Side::Source));
    bench.volume.open_copier(COPIER).unwrap();
    bench.watch(&[R1], false);
    assert_eq!(bench.compared(&[], &[R1]), []);
    assert_eq!(bench.take(), [Effect::WriteMap]);
    assert_eq!(bench.state(R1), RegionState::Dirty);
    bench
        .volume
        .map_written(bench.now, Ok(()), &mut bench.effects);
    assert!(bench.volume.intent.is_covered(R1));
}

#[test]
fn the_writes_of_a_region_that_is_never_quiet_are_held_for_a_while() {
    let mut bench = comparing();
    let first = bench.request(0, WRITE, 0);
    assert_eq!(bench.watch(&[R0], true).watched, []);
    // The write in flight ends, the next one waits.
    assert_eq!(bench.request(1, WRITE, 0), []);
    bench.finish_write(0, &first);
    assert_eq!(bench.watch(&[R0], true).watched, [R0]);
    assert_eq!(bench.request(2, WRITE, 1), []);
    assert_eq!(bench.compared(&[R0], &[]), []);
    let let_go = bench.take();
    assert!(let_go.contains(&leg(1, Side::Source, WRITE)));
    assert!(let_go.contains(&leg(2, Side::Source, WRITE)));
}

#[test]
fn a_write_waits_for_a_comparison_no_longer_than_its_patience() {
    let mut bench = comparing();
    assert_eq!(bench.watch(&[R0], true).watched, [R0]);
    assert_eq!(bench.request(0, WRITE, 0), []);
    assert_eq!(bench.after(PATIENCE - 1), []);
    let effects = bench.after(1);
    assert!(effects.contains(&leg(0, Side::Source, WRITE)));
    bench.finish_write(0, &effects);
    assert_eq!(bench.compared(&[R0], &[]), [R0]);
}

#[test]
fn a_connection_that_ends_or_a_mirror_leg_that_fails_lets_writes_go() {
    let mut bench = comparing();
    bench.watch(&[R0], true);
    assert_eq!(bench.request(0, WRITE, 0), []);
    bench
        .volume
        .close_copier(COPIER, bench.now, &mut bench.effects);
    assert!(bench.take().contains(&leg(0, Side::Source, WRITE)));

    let mut bench = comparing();
    bench.watch(&[R0], true);
    let effects = bench.request(0, WRITE, 7);
    assert_eq!(bench.request(1, WRITE, 0), []);
    let effects = bench.mirror(place(&effects).unwrap(), Err(FAULT));
    assert!(effects.contains(&leg(1, Side::Source, WRITE)));
    let epoch = bench.volume.record().epoch;
    let refused = bench.volume.watch(COPIER, epoch, &[R0], false);
    assert_eq!(refused, Err(ClaimError::MirrorFailed));
}

#[test]
fn who_is_not_the_copier_or_is_late_compares_nothing() {
    let mut bench = comparing();
    let epoch = bench.volume.record().epoch;
    let found = Comparison {
        same: [R0].into(),
        ..Comparison::default()
    };
    let before = bench.volume.clone();
    for (copier, epoch, error) in [
        (CopierId(2), epoch, ClaimError::NotCopier),
        (COPIER, Epoch(epoch.0 + 1), ClaimError::StaleEpoch),
    ] {
        let volume = &mut bench.volume;
        assert_eq!(volume.watch(copier, epoch, &[R0], true), Err(error));
        let compared = volume.compared(copier, epoch, &found, &mut bench.effects);
        assert_eq!(compared, Err(error));
    }
    // The region was not watched.
    let compared = bench
        .volume
        .compared(COPIER, epoch, &found, &mut bench.effects);
    assert_eq!(compared, Err(ClaimError::NotCopier));
    assert_eq!(bench.volume, before);
}

#[test]
fn no_more_regions_are_watched_or_held_than_there_are_places_for() {
    let mut bench = Bench::unmarked(RoleRecord {
        geometry: Geometry::new(100 * REGION, REGION).unwrap(),
        ..mirrored(Side::Source)
    });
    bench.volume.open_copier(COPIER).unwrap();
    let all: Vec<RegionIndex> = (0..100).map(RegionIndex).collect();
    assert_eq!(bench.watch(&all, true).watched.len(), WATCHED_REGIONS_MAX);
    let held = all
        .iter()
        .filter(|region| bench.volume.watches.holds_writes(**region));
    assert_eq!(held.count(), RESERVED_REGIONS_MAX);
}
