use migration_core::layout::{Extent, Layout};
use migration_proto::route::Side;

use super::*;
use crate::window::Sizes;

const REGION: u64 = 1 << 20;
const EPOCH: u64 = 5;
const SHORT: u64 = 512;

/// A comparison, and the `ublk-target` that answers it.
struct World {
    plan: Comparing,
    now: Instant,
    /// For each `Watch`: the regions, and whether writes are to be held.
    asked: Vec<(Vec<u64>, bool)>,
}

impl World {
    fn new(regions: u64) -> Self {
        let now = Instant::now();
        let volume_bytes = regions * REGION - SHORT;
        let sizes = Sizes {
            region_bytes: REGION,
            volume_bytes,
            io_bytes: 512 << 10,
        };
        let extent = Extent {
            lun: 0,
            start: 0,
            length: regions * REGION,
        };
        let leg = Layout::new([extent]).unwrap();
        let window = Window::new(sizes, leg.clone(), leg).unwrap();
        let plan = Comparing::new(EPOCH, window, volume_bytes, 2 * REGION, now);
        Self {
            plan,
            now,
            asked: Vec::new(),
        }
    }

    /// Runs the comparison to its end. `watch` returns the regions that are granted and those
    /// that are dirty, `unknown` those of the reported regions that do not count.
    fn run(
        &mut self,
        mut watch: impl FnMut(&[u64], bool) -> (Vec<u64>, Vec<u64>),
        mut unknown: impl FnMut(&[u64]) -> Vec<u64>,
        end_piece: impl Fn(&mut Comparing, u64, RegionSlot),
    ) -> Outcome {
        for _ in 0..100_000 {
            while let Some(piece) = self.plan.next_piece() {
                let region = self.plan.window.region_of(piece.region).unwrap();
                end_piece(&mut self.plan, region, piece.region);
            }
            match self.plan.next_request(self.now, 0) {
                Some(Request::Watch { regions, hold, .. }) => {
                    let (regions_to, dirty) = watch(&regions, hold);
                    self.asked.push((regions, hold));
                    let regions = regions_to;
                    self.plan
                        .answered(Response::Watched { regions, dirty }, self.now);
                }
                Some(Request::Compared {
                    same, differing, ..
                }) => {
                    let all: Vec<u64> = same.into_iter().chain(differing).collect();
                    let unknown = unknown(&all);
                    self.plan.answered(Response::Compared { unknown }, self.now);
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            if let Some(outcome) = self.plan.outcome() {
                return outcome.clone();
            }
            if let Some(at) = self.plan.look_at_the_clock(self.now, 0) {
                assert!(at > self.now, "it would spin");
                self.now = at;
            }
        }
        panic!("no end: {:?}", self.plan);
    }
}

fn all_granted(regions: &[u64], _: bool) -> (Vec<u64>, Vec<u64>) {
    (regions.to_vec(), Vec::new())
}

fn all_known(_: &[u64]) -> Vec<u64> {
    Vec::new()
}

fn same(plan: &mut Comparing, _: u64, slot: RegionSlot) {
    plan.piece_done(slot);
}

#[test]
fn each_region_is_compared_once_and_the_last_counts_as_short() {
    let mut world = World::new(9);
    let outcome = world.run(all_granted, all_known, |plan, region, slot| {
        if [4, 8].contains(&region) {
            plan.piece_differs(slot);
        } else {
            plan.piece_done(slot);
        }
    });
    let found = Found {
        compared_bytes: 9 * REGION - SHORT,
        differing_bytes: 2 * REGION - SHORT,
        first_difference_bytes: Some(4 * REGION),
        ..Found::default()
    };
    assert_eq!(outcome, Outcome::Compared(found));
    let asked: Vec<u64> = world
        .asked
        .iter()
        .flat_map(|(asked, _)| asked.clone())
        .collect();
    assert_eq!(asked, (0..9).collect::<Vec<_>>());
    assert!(
        world
            .asked
            .iter()
            .all(|(asked, hold)| asked.len() <= 4 && !hold)
    );
}

#[test]
fn a_region_that_is_never_quiet_is_held_after_some_tries() {
    let mut world = World::new(6);
    let busy = |regions: &[u64], hold: bool| {
        let quiet = |region: &u64| *region != 2 || hold;
        (regions.iter().copied().filter(quiet).collect(), Vec::new())
    };
    let outcome = world.run(busy, all_known, same);
    let Outcome::Compared(found) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        (found.compared_bytes, found.unknown_bytes),
        (6 * REGION - SHORT, 0)
    );
    let held: Vec<_> = world.asked.iter().filter(|(_, hold)| *hold).collect();
    assert_eq!(held, [&(vec![2], true)]);
    let tries = world.asked.iter().filter(|(asked, _)| asked.contains(&2));
    assert_eq!(tries.count() as u32, TRIES_BEFORE_HOLD + 1);
}

#[test]
fn what_was_written_while_it_was_read_is_read_again() {
    let mut world = World::new(4);
    let mut disturbed = 0;
    let outcome = world.run(
        all_granted,
        |regions| {
            disturbed += 1;
            let first = regions
                .iter()
                .copied()
                .filter(|at| *at == 1 && disturbed < 3);
            first.collect()
        },
        |plan, region, slot| match region {
            // A region whose result is unknown does not count as a difference either.
            1 if plan.tries.is_empty() => plan.piece_differs(slot),
            _ => plan.piece_done(slot),
        },
    );
    let Outcome::Compared(found) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        (found.compared_bytes, found.differing_bytes),
        (4 * REGION - SHORT, 0)
    );
}

#[test]
fn what_is_dirty_or_never_quiet_is_told_as_not_compared() {
    let mut world = World::new(8);
    let never = |regions: &[u64], _: bool| {
        let (odd, granted): (Vec<u64>, Vec<u64>) =
            regions.iter().partition(|region| [3, 5].contains(*region));
        (
            granted,
            odd.into_iter().filter(|region| *region == 5).collect(),
        )
    };
    let outcome = world.run(never, all_known, same);
    let Outcome::Compared(found) = outcome else {
        panic!("{outcome:?}");
    };
    let known = 6 * REGION - SHORT;
    assert_eq!(
        (found.compared_bytes, found.unknown_bytes),
        (known, 2 * REGION)
    );
}

#[test]
fn what_cannot_be_read_is_told_and_too_much_of_it_is_the_end() {
    let failing = |plan: &mut Comparing, region: u64, slot: RegionSlot| {
        if region < 2 {
            plan.piece_done(slot);
        } else {
            let cause = "broken".to_owned();
            let side = Side::Target;
            let errno = None;
            plan.piece_failed(slot, End::To, CopyError { side, errno, cause });
        }
    };
    let outcome = World::new(3).run(all_granted, all_known, failing);
    let Outcome::Compared(found) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(found.unknown_bytes, REGION - SHORT);
    assert_eq!(found.error.unwrap().cause, "broken");
    let many = u64::from(ERRORS_MAX) + 10;
    let outcome = World::new(many).run(all_granted, all_known, failing);
    let (side, cause) = (Side::Target, "broken".to_owned());
    assert_eq!(outcome, Outcome::Failed { side, cause });
}

#[test]
fn a_region_that_differs_does_so_although_the_rest_of_it_cannot_be_read() {
    let mut world = World::new(2);
    let Some(Request::Watch { regions, .. }) = world.plan.next_request(world.now, 0) else {
        panic!("nothing is asked");
    };
    let dirty = Vec::new();
    world
        .plan
        .answered(Response::Watched { regions, dirty }, world.now);
    let [first, second] = [(); 2].map(|()| world.plan.next_piece().unwrap().region);
    assert_eq!(first, second, "two pieces of one region");
    world.plan.piece_differs(first);
    let (side, errno, cause) = (Side::Target, None, "broken".to_owned());
    world
        .plan
        .piece_failed(second, End::To, CopyError { side, errno, cause });
    // The difference is reported even if the comparison is stopped before.
    world.plan.stop();
    assert_eq!(world.plan.outcome(), None);
    let Some(Request::Compared {
        differing, unread, ..
    }) = world.plan.next_request(world.now, 0)
    else {
        panic!("nothing is reported");
    };
    assert_eq!((differing, unread), (vec![0], vec![]));
}

#[test]
fn a_stop_waits_for_the_pieces_in_flight() {
    let mut world = World::new(4);
    let Some(Request::Watch { regions, .. }) = world.plan.next_request(world.now, 0) else {
        panic!("nothing is asked");
    };
    let dirty = Vec::new();
    world
        .plan
        .answered(Response::Watched { regions, dirty }, world.now);
    let piece = world.plan.next_piece().unwrap();
    world.plan.stop();
    assert_eq!(world.plan.outcome(), None);
    assert_eq!(world.plan.next_piece(), None);
    world.plan.piece_done(piece.region);
    assert_eq!(world.plan.outcome(), Some(&Outcome::Stopped));
}
