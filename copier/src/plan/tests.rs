use std::collections::BTreeMap;

use migration_core::layout::{Extent, Layout};
use migration_proto::route::Side;

use super::*;
use crate::window::Sizes;

const REGION: u64 = 1 << 20;
const EPOCH: u64 = 5;

fn plan(regions: u64, queue_bytes: u64, now: Instant) -> Plan {
    let sizes = Sizes {
        region_bytes: REGION,
        volume_bytes: regions * REGION - 512,
        io_bytes: 512 << 10,
    };
    let extent = Extent {
        lun: 0,
        start: 0,
        length: regions * REGION,
    };
    let leg = Layout::new([extent]).unwrap();
    let window = Window::new(sizes, leg.clone(), leg).unwrap();
    Plan::new(EPOCH, window, queue_bytes, now)
}

fn claimed(regions: &[u64], dirty_regions: u64) -> Response {
    Response::Claimed {
        epoch: EPOCH,
        regions: regions.to_vec(),
        never_copied: Vec::new(),
        dirty_bytes: dirty_regions * REGION,
    }
}

fn is_claim(request: &Option<Request>) -> bool {
    matches!(request, Some(Request::Claim { .. }))
}

fn is_report(request: &Option<Request>) -> bool {
    matches!(request, Some(Request::Report { .. }))
}

fn error() -> CopyError {
    CopyError {
        side: Side::Source,
        errno: None,
        cause: "broken".to_owned(),
    }
}

/// Begins and ends all pieces that may begin.
fn copy_all(plan: &mut Plan) {
    while let Some(piece) = plan.next_piece() {
        plan.piece_done(piece.region);
    }
}

#[test]
fn nothing_is_claimed_while_all_that_is_dirty_is_held() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[0, 1], 2), now);
    let mut pieces: Vec<_> = std::iter::from_fn(|| plan.next_piece()).collect();
    assert_eq!(
        plan.next_request(now, 0),
        None,
        "the claim could not be answered"
    );
    let last = pieces.pop().unwrap();
    for piece in pieces {
        plan.piece_done(piece.region);
    }
    assert!(is_report(&plan.next_request(now, 0)));
    plan.answered(Response::Done, now);
    assert_eq!(plan.next_request(now, 0), None);
    plan.piece_done(last.region);
    assert!(is_report(&plan.next_request(now, 0)));
    plan.answered(Response::Done, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[], 0), now);
    assert_eq!(plan.outcome(), Some(&Outcome::InSync));
}

#[test]
fn more_is_claimed_before_the_queue_runs_dry_and_between_two_reports() {
    let now = Instant::now();
    let mut plan = plan(100, REGION, now);
    let first = plan.next_request(now, 0);
    assert_eq!(first, Some(Request::Claim { regions_max: 2 }));
    plan.answered(claimed(&[0, 1], 100), now);
    assert_eq!(plan.next_request(now, 0), None, "enough is left to begin");
    let pieces: Vec<_> = (0..3).map_while(|_| plan.next_piece()).collect();
    for piece in &pieces[..2] {
        plan.piece_done(piece.region);
    }
    assert!(is_report(&plan.next_request(now, 0)), "reports go first");
    plan.piece_done(pieces[2].region);
    copy_all(&mut plan);
    plan.answered(Response::Done, now);
    assert!(is_claim(&plan.next_request(now, 0)), "but not twice");
    plan.answered(claimed(&[2], 99), now);
    assert!(is_report(&plan.next_request(now, 0)));
}

#[test]
fn the_claims_get_larger_when_the_answers_are_too_slow() {
    let now = Instant::now();
    let mut plan = plan(1000, REGION, now);
    let mut sizes = Vec::new();
    let mut next = 0;
    while sizes.len() < 6 {
        match plan.next_request(now, 0).unwrap() {
            Request::Claim { regions_max } => {
                sizes.push(regions_max);
                copy_all(&mut plan);
                let regions: Vec<_> = (next..next + u64::from(regions_max)).collect();
                next += u64::from(regions_max);
                plan.answered(claimed(&regions, 1000), now);
                copy_all(&mut plan);
            }
            _ => plan.answered(Response::Done, now),
        }
    }
    assert_eq!(sizes, [2, 2, 4, 8, 16, 16]);
}

#[test]
fn an_empty_answer_is_the_end_only_if_nothing_is_held_and_nothing_dirty() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[], 1), now);
    assert_eq!(plan.outcome(), None);
    assert_eq!(plan.next_request(now, 0), None, "not at once");
    let later = plan.look_at_the_clock(now, 0).unwrap();
    assert_eq!(later, now + CLAIM_PAUSE);
    assert!(is_claim(&plan.next_request(later, 0)));
    plan.answered(claimed(&[3], 2), later);
    assert!(plan.next_piece().is_some());
    assert!(is_claim(&plan.next_request(later, 0)));
    plan.answered(claimed(&[], 0), later);
    assert_eq!(plan.outcome(), None, "region 3 is held");
}

#[test]
fn another_epoch_stops_all_writing() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    let answer = Response::Claimed {
        epoch: EPOCH + 1,
        regions: vec![1],
        never_copied: Vec::new(),
        dirty_bytes: REGION,
    };
    plan.answered(answer, now);
    assert_eq!(plan.next_piece(), None);
    assert!(matches!(
        plan.outcome(),
        Some(Outcome::Refused {
            reason: Refusal::StaleEpoch,
            ..
        })
    ));
}

#[test]
fn a_region_granted_twice_ends_the_connection() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[1, 1], 8), now);
    assert_eq!(plan.next_piece(), None);
    assert!(matches!(plan.outcome(), Some(Outcome::Disconnected { .. })));
}

#[test]
fn a_failed_region_is_reported_with_its_error_and_sixteen_are_too_many() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    for failures in 1..=ERRORS_MAX {
        assert!(is_claim(&plan.next_request(now, 0)));
        plan.answered(claimed(&[2], 1), now);
        let piece = plan.next_piece().unwrap();
        assert_eq!(plan.outcome(), None);
        plan.piece_failed(piece.region, End::To, error());
        let Some(Request::Report {
            epoch: EPOCH,
            copied,
            failed,
            error: Some(reported),
        }) = plan.next_request(now, 0)
        else {
            panic!("no report of failure {failures}");
        };
        assert_eq!((copied, failed, reported), (vec![], vec![2], error()));
        assert_eq!(plan.outcome(), None, "not before the answer");
        plan.answered(Response::Done, now);
    }
    let CopyError { side, cause, .. } = error();
    assert_eq!(plan.outcome(), Some(&Outcome::Failed { side, cause }));
}

#[test]
fn an_error_of_the_mirror_leg_is_reported_whatever_fails_after_it() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[2, 3], 2), now);
    let pieces = [plan.next_piece().unwrap(), plan.next_piece().unwrap()];
    plan.piece_failed(pieces[0].region, End::To, error());
    let of_source = CopyError {
        side: Side::Source,
        ..error()
    };
    plan.piece_failed(pieces[1].region, End::From, of_source.clone());
    let mut reported = Vec::new();
    for _ in 0..2 {
        if let Some(Request::Report { error, .. }) = plan.next_request(now, 0) {
            reported.push(error);
            plan.answered(Response::Done, now);
        }
    }
    assert_eq!(reported[0], Some(error()), "{reported:?}");
}

#[test]
fn finished_regions_do_not_wait_for_ever_for_the_answer_to_a_claim() {
    let now = Instant::now();
    let mut plan = plan(100, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    assert_eq!(plan.look_at_the_clock(now, 0), None, "nobody waits for us");
    plan.answered(claimed(&[0], 100), now);
    let piece = plan.next_piece().unwrap();
    assert!(is_claim(&plan.next_request(now, 0)));
    copy_all(&mut plan);
    plan.piece_done(piece.region);
    assert_eq!(plan.look_at_the_clock(now, 0), Some(now + ANSWER_PATIENCE));
    plan.look_at_the_clock(now + ANSWER_PATIENCE, 0);
    assert!(matches!(plan.outcome(), Some(Outcome::Disconnected { .. })));
}

#[test]
fn a_stop_waits_for_pieces_in_flight_and_reports_whole_regions_only() {
    let now = Instant::now();
    let mut plan = plan(2, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[0, 1], 2), now);
    let pieces: Vec<_> = (0..3).map_while(|_| plan.next_piece()).collect();
    plan.stop();
    assert_eq!(plan.next_piece(), None);
    for piece in pieces {
        assert_eq!(plan.outcome(), None);
        plan.piece_done(piece.region);
    }
    assert_eq!(plan.outcome(), None, "region 0 is not reported");
    let Some(Request::Report { copied, failed, .. }) = plan.next_request(now, 0) else {
        panic!("no report");
    };
    assert_eq!((copied, failed), (vec![0], vec![]));
    plan.answered(Response::Done, now);
    assert_eq!(plan.outcome(), Some(&Outcome::Stopped));
}

#[test]
fn a_stop_does_not_wait_long_for_an_answer() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.stop();
    assert_eq!(plan.look_at_the_clock(now, 0), Some(now + ENDING_PATIENCE));
    assert_eq!(plan.outcome(), None);
    plan.look_at_the_clock(now + ENDING_PATIENCE, 0);
    assert_eq!(plan.outcome(), Some(&Outcome::Stopped));
}

#[test]
fn a_lost_connection_waits_for_pieces_in_flight() {
    let now = Instant::now();
    let mut plan = plan(8, REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[0], 8), now);
    let piece = plan.next_piece().unwrap();
    plan.give_up("gone".to_owned());
    assert_eq!(plan.outcome(), None);
    plan.piece_done(piece.region);
    assert!(matches!(plan.outcome(), Some(Outcome::Disconnected { .. })));
    assert_eq!(plan.next_request(now, 0), None);
}

#[test]
fn a_limit_delays_claims_and_nothing_else() {
    let now = Instant::now();
    let mut plan = plan(100, 8 * REGION, now);
    let limit = 10 * REGION;
    assert_eq!(
        plan.next_request(now, limit),
        Some(Request::Claim { regions_max: 1 })
    );
    plan.answered(claimed(&[0], 100), now);
    assert_eq!(plan.next_request(now, limit), None);
    copy_all(&mut plan);
    assert!(is_report(&plan.next_request(now, limit)));
    plan.answered(Response::Done, now);
    assert_eq!(plan.next_request(now, limit), None);
    let at = plan.look_at_the_clock(now, limit).unwrap();
    assert!(is_claim(&plan.next_request(at, limit)));
}

/// The part of `ublk-target` that answers a copier: it holds a claim while there is nothing to
/// grant.
#[derive(Default)]
struct Model {
    /// All regions that are not clean. `true`: claimed.
    dirty: BTreeMap<u64, bool>,
    written: Vec<u64>,
    cursor: u64,
    pending: Option<u32>,
    /// The last region, if its true length counts.
    short_region: Option<u64>,
}

impl Model {
    fn try_answer(&mut self) -> Option<Response> {
        let regions_max = self.pending? as usize;
        let claimable = |(region, claimed): (&u64, &bool)| (!claimed).then_some(*region);
        let mut regions: Vec<u64> = self
            .dirty
            .range(self.cursor..)
            .chain(self.dirty.range(..self.cursor))
            .filter_map(claimable)
            .take(regions_max)
            .collect();
        if regions.is_empty() && !self.dirty.is_empty() {
            return None;
        }
        self.cursor = regions.last().map_or(0, |last| last + 1);
        regions.sort_unstable();
        for region in &regions {
            self.dirty.insert(*region, true);
        }
        self.pending = None;
        Some(Response::Claimed {
            epoch: EPOCH,
            regions,
            never_copied: Vec::new(),
            dirty_bytes: self.dirty.len() as u64 * REGION - self.shortfall_bytes(),
        })
    }

    fn shortfall_bytes(&self) -> u64 {
        match self.short_region {
            Some(region) if self.dirty.contains_key(&region) => 512,
            _ => 0,
        }
    }

    fn report(&mut self, copied: &[u64], failed: &[u64]) {
        for region in copied {
            assert_eq!(self.dirty.get(region), Some(&true));
            if self.written.contains(region) {
                self.written.retain(|written| written != region);
                self.dirty.insert(*region, false);
            } else {
                self.dirty.remove(region);
            }
        }
        for region in failed {
            assert_eq!(self.dirty.insert(*region, false), Some(true));
        }
    }
}

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn every_order_of_completions_writes_and_answers_converges() {
    for seed in 1..400 {
        let mut random = Random(seed);
        let mut now = Instant::now();
        let regions = 1 + random.below(40);
        let short_last_region_counts_in_full = seed % 2 == 0;
        let mut plan = plan(regions, REGION * (1 + random.below(4)), now);
        let depth = 1 + random.below(6) as usize;
        let mut model = Model {
            short_region: (!short_last_region_counts_in_full).then_some(regions - 1),
            ..Model::default()
        };
        let all = (0..regions).map(|region| (region, false));
        model.dirty.extend(all);
        let mut in_flight: Vec<Piece> = Vec::new();
        let mut answer: Option<Response> = None;
        let (mut writes, mut failures) = (100, 10);
        while plan.outcome().is_none() {
            while in_flight.len() < depth
                && let Some(piece) = plan.next_piece()
            {
                in_flight.push(piece);
            }
            match plan.next_request(now, 0) {
                Some(Request::Claim { regions_max }) => {
                    model.pending = Some(regions_max);
                    answer = model.try_answer();
                }
                Some(Request::Report { copied, failed, .. }) => {
                    model.report(&copied, &failed);
                    answer = Some(Response::Done);
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            let stuck = in_flight.is_empty() && answer.is_none() && model.pending.is_some();
            assert!(!stuck, "seed {seed}: both wait for each other");
            match random.below(4) {
                0 if answer.is_some() => plan.answered(answer.take().unwrap(), now),
                1 | 2 if !in_flight.is_empty() => {
                    let at = random.below(in_flight.len() as u64) as usize;
                    let piece = in_flight.swap_remove(at);
                    if failures > 0 && random.below(20) == 0 {
                        failures -= 1;
                        plan.piece_failed(piece.region, End::To, error());
                    } else {
                        plan.piece_done(piece.region);
                    }
                }
                3 if writes > 0 => {
                    writes -= 1;
                    let region = random.below(regions);
                    if model.dirty.get(&region) == Some(&true) {
                        model.written.push(region);
                    }
                }
                _ => now += CLAIM_PAUSE,
            }
        }
        assert_eq!(plan.outcome(), Some(&Outcome::InSync), "seed {seed}");
        assert!(model.dirty.is_empty(), "seed {seed}");
    }
}

#[test]
fn a_refusal_that_follows_from_a_report_names_what_was_reported() {
    let now = Instant::now();
    let mut plan = plan(4, 2 * REGION, now);
    assert!(is_claim(&plan.next_request(now, 0)));
    plan.answered(claimed(&[0], 4), now);
    let mut pieces = Vec::new();
    while let Some(piece) = plan.next_piece() {
        pieces.push(piece.region);
    }
    for region in pieces {
        plan.piece_failed(region, End::To, error());
    }
    while !is_report(&plan.next_request(now, 0)) {
        plan.answered(claimed(&[], 4), now);
    }
    let refused = Response::Refused {
        reason: Refusal::Failed,
        cause: "the mirror leg failed".to_owned(),
    };
    plan.answered(refused, now);
    let Some(Outcome::Refused { cause, .. }) = plan.outcome() else {
        panic!("{plan:?}");
    };
    assert_eq!(*cause, format!("the mirror leg failed ({})", error().cause));
}
