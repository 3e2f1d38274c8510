//! Decides what the copier does next: which request to send, which piece to begin, and when and how
//! to end. No I/O and no clock.
//!
//! The connection carries one request at a time, and every claimed region may hold back application
//! writes. Two rules follow.
//!
//! **Reports go first**, except that a claim that is needed to keep the disks busy is sent between
//! two reports.
//!
//! **A claim is sent only if `ublk-target` can answer it without a report of this copier.**
//! `ublk-target` may hold a claim until it can grant something. If this copier holds everything
//! that is dirty, that is possible only after its report, which cannot be sent while the claim is
//! unanswered: both would wait forever. So a claim requires dirty bytes that this copier does not
//! hold (`elsewhere_bytes`, a lower bound), or that it holds nothing.
//!
//! That rule does not cover a write that waits for one of the held regions and keeps the only other
//! dirty region busy. For such cases there is [`ANSWER_PATIENCE`], the longest time that finished
//! regions wait for the answer to a claim. Then the copier gives up the connection; its claims die
//! with it, and the regions are copied again.
//!
//! ```text
//! Copying --stop, error limit, refusal, lost connection--> Ending --all done and reported--> over
//!    +---------- an empty answer while nothing is held and nothing dirty (in sync) --------> over
//! ```

use std::collections::HashSet;
use std::time::{Duration, Instant};

use migration_proto::target::{CLAIM_REGIONS_MAX, CopyError, Refusal, Request, Response};

use crate::Outcome;
use crate::conversation::Conversation;
use crate::rate::{Allowance, Bucket};
use crate::window::{End, Finished, Piece, RegionEnd, RegionSlot, Window};

/// After this many failed regions the copier gives up.
pub const ERRORS_MAX: u32 = 16;

/// How long finished regions wait for the answer to a claim.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// How long the end waits for an answer after the last I/O.
pub const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// The pause before the next claim after an answer that granted nothing although something is
/// dirty.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// The most regions that are held at once. `ublk-target` grants no more than 1024: a claim beyond
/// that would wait for a report.
const HELD_REGIONS_MAX: u32 = 512;

/// Regions that are claimed ahead of the disks hold at most this many queues full of I/O.
const AHEAD_QUEUES_MAX: u64 = 8;

/// The request that was sent and is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Awaiting {
    Nothing,
    Claim { since: Instant },
    Report { regions: Finished },
}

/// The next request that the plan wants to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextRequest {
    Claim { regions_max: u32 },
    Later(Instant),
    Nothing,
}

/// The state of one copier.
#[derive(Debug, Clone)]
pub struct Plan {
    epoch: u64,
    window: Window,
    bucket: Bucket,
    awaiting: Awaiting,
    last_was_report: bool,
    /// At least this much is dirty and not held by this copier, in bytes.
    elsewhere_bytes: u64,
    claim_not_before: Instant,
    /// A claim is sent when less than this is left to begin, in bytes.
    ahead_bytes: u64,
    ahead_bytes_max: u64,
    /// Whether a buffer was free since the last grant, and only an answer was missing to fill it.
    ran_dry: bool,
    /// Whether the rate limit bounded the last claim.
    throttled: bool,
    failed_regions: u32,
    /// Those of the claimed regions that are known to be copied for the first time.
    never_copied: HashSet<u64>,
    last_error: Option<CopyError>,
    /// The last error of the leg that is written, until it is reported.
    mirror_error: Option<CopyError>,
    ending: Option<Outcome>,
    /// Since when the end waits only for an answer.
    drained_at: Option<Instant>,
    /// If false, nothing is sent any more.
    connected: bool,
}

impl Plan {
    /// A plan for the claims of `epoch`. `queue_bytes`: the size of all buffers together.
    pub fn new(epoch: u64, window: Window, queue_bytes: u64, now: Instant) -> Self {
        let queue_bytes = queue_bytes.max(1);
        Self {
            epoch,
            bucket: Bucket::new(window.region_bytes(), now),
            window,
            awaiting: Awaiting::Nothing,
            last_was_report: false,
            elsewhere_bytes: 0,
            claim_not_before: now,
            ahead_bytes: queue_bytes,
            ahead_bytes_max: queue_bytes.saturating_mul(AHEAD_QUEUES_MAX),
            ran_dry: false,
            throttled: false,
            failed_regions: 0,
            never_copied: HashSet::new(),
            last_error: None,
            mirror_error: None,
            ending: None,
            drained_at: None,
            connected: true,
        }
    }

    fn unexpected(&mut self, request: &str) {
        self.give_up(format!(
            "ublk-target broke the protocol: unexpected answer to {request}"
        ));
    }

    /// Ends the copy. The first cause stays.
    fn end(&mut self, outcome: Outcome) {
        self.ending.get_or_insert(outcome);
    }

    fn overdue_at(&self) -> Option<Instant> {
        match (&self.awaiting, self.drained_at) {
            (Awaiting::Nothing, _) => None,
            (_, Some(drained_at)) => Some(drained_at + ENDING_PATIENCE),
            (Awaiting::Claim { since }, None) => self
                .window
                .has_finished()
                .then_some(*since + ANSWER_PATIENCE),
            // A report may wait for a flush of the mirror leg; its answer is overdue only at the
            // end.
            (Awaiting::Report { .. }, None) => None,
        }
    }

    fn wish(&mut self, now: Instant, bytes_per_second: u64) -> NextRequest {
        let answerable = self.window.held_bytes() == 0 || self.elsewhere_bytes > 0;
        let unbegun_bytes = self.window.unbegun_bytes();
        let held_regions = u32::try_from(self.window.held_regions()).unwrap_or(u32::MAX);
        let room_regions = HELD_REGIONS_MAX.saturating_sub(held_regions);
        if self.ending.is_some()
            || !answerable
            || room_regions == 0
            || unbegun_bytes >= self.ahead_bytes
        {
            return NextRequest::Nothing;
        }
        if now < self.claim_not_before {
            return NextRequest::Later(self.claim_not_before);
        }
        let wanted_bytes = 2 * self.ahead_bytes - unbegun_bytes;
        let allowance = self.bucket.allowance(now, bytes_per_second);
        let allowed_bytes = match allowance {
            Allowance::Unlimited => wanted_bytes,
            Allowance::Bytes(bytes) => wanted_bytes.min(bytes),
            Allowance::NotBefore(_) => 0,
        };
        self.throttled = allowed_bytes < wanted_bytes;
        if let Allowance::NotBefore(at) = allowance {
            return NextRequest::Later(at);
        }
        let regions = allowed_bytes.div_ceil(self.window.region_bytes());
        let regions = u32::try_from(regions).unwrap_or(u32::MAX);
        NextRequest::Claim {
            regions_max: regions.clamp(1, room_regions.min(CLAIM_REGIONS_MAX)),
        }
    }

    fn report(&mut self) -> Request {
        let regions = self.window.take_finished();
        let request = Request::Report {
            epoch: self.epoch,
            copied: regions.copied.clone(),
            failed: regions.failed.clone(),
            // An error of the mirror leg decides what happens to that leg: no later error hides it.
            error: self.mirror_error.take().or_else(|| {
                self.last_error
                    .clone()
                    .filter(|_| !regions.failed.is_empty())
            }),
        };
        self.last_was_report = true;
        self.awaiting = Awaiting::Report { regions };
        request
    }

    fn claimed(&mut self, epoch: u64, regions: &[u64], dirty_bytes: u64, now: Instant) {
        if epoch != self.epoch {
            // The roles may have changed: the leg that this copier writes may be authoritative now.
            self.connected = false;
            self.end(Outcome::Refused {
                reason: Refusal::StaleEpoch,
                cause: format!("the epoch is {epoch}, the copier's is {}", self.epoch),
            });
            return;
        }
        match self.window.grant(regions) {
            Ok(granted_bytes) => self.bucket.take(granted_bytes),
            Err(error) => {
                self.give_up(format!("ublk-target broke the protocol: {error}"));
                return;
            }
        }
        // The short last region counts in full: then neither way of counting it adds dirty bytes
        // elsewhere.
        let held_bytes = self.window.region_bytes() * self.window.held_regions() as u64;
        self.elsewhere_bytes = dirty_bytes.saturating_sub(held_bytes);
        if !regions.is_empty() {
            if self.ran_dry {
                self.ahead_bytes = (2 * self.ahead_bytes).min(self.ahead_bytes_max);
            }
            self.ran_dry = false;
        } else if self.window.held_bytes() == 0 && dirty_bytes == 0 {
            self.end(Outcome::InSync);
        } else {
            self.claim_not_before = now + CLAIM_PAUSE;
        }
    }

    fn region_ended(&mut self, region: RegionSlot, succeeded: bool) {
        match self.window.piece_ended(region, succeeded) {
            RegionEnd::Unfinished | RegionEnd::Copied => {}
            RegionEnd::Failed => {
                self.failed_regions += 1;
                if self.failed_regions >= ERRORS_MAX
                    && let Some(CopyError { side, cause, .. }) = self.last_error.clone()
                {
                    self.end(Outcome::Failed { side, cause });
                }
            }
        }
    }
}

impl Conversation for Plan {
    fn next_piece(&mut self) -> Option<Piece> {
        if self.ending.is_some() {
            return None;
        }
        let piece = self.window.next_piece();
        let waiting_for_answer = self.awaiting != Awaiting::Nothing && self.elsewhere_bytes > 0;
        self.ran_dry |= piece.is_none() && waiting_for_answer && !self.throttled;
        piece
    }

    fn piece_done(&mut self, region: RegionSlot) {
        self.region_ended(region, true);
    }

    fn piece_differs(&mut self, region: RegionSlot) {
        // This plan compares nothing; a region that differed would be copied again.
        self.region_ended(region, false);
    }

    fn piece_failed(&mut self, region: RegionSlot, end: End, error: CopyError) {
        if end == End::To {
            self.mirror_error = Some(error.clone());
        }
        self.last_error = Some(error);
        self.region_ended(region, false);
    }

    fn is_never_copied(&self, slot: RegionSlot) -> bool {
        let region = self.window.region_of(slot);
        region.is_some_and(|region| self.never_copied.contains(&region))
    }

    fn next_request(&mut self, now: Instant, bytes_per_second: u64) -> Option<Request> {
        if !self.connected || self.awaiting != Awaiting::Nothing {
            return None;
        }
        let wish = self.wish(now, bytes_per_second);
        let report_turn = !self.last_was_report || !matches!(wish, NextRequest::Claim { .. });
        if self.window.has_finished() && report_turn {
            return Some(self.report());
        }
        let NextRequest::Claim { regions_max } = wish else {
            return None;
        };
        self.last_was_report = false;
        self.awaiting = Awaiting::Claim { since: now };
        Some(Request::Claim { regions_max })
    }

    fn answered(&mut self, response: Response, now: Instant) {
        let awaited = std::mem::replace(&mut self.awaiting, Awaiting::Nothing);
        match (awaited, response) {
            (
                Awaiting::Claim { .. },
                Response::Claimed {
                    epoch,
                    regions,
                    never_copied,
                    dirty_bytes,
                },
            ) => {
                self.never_copied.extend(never_copied);
                self.claimed(epoch, &regions, dirty_bytes, now);
            }
            (Awaiting::Report { regions }, Response::Done) => {
                self.window.let_go(&regions.copied);
                for region in regions.copied.iter().chain(&regions.failed) {
                    self.never_copied.remove(region);
                }
                // Failed regions stay dirty, and can be claimed again.
                self.elsewhere_bytes += self.window.let_go(&regions.failed);
            }
            (
                Awaiting::Claim { .. } | Awaiting::Report { .. },
                Response::Refused { reason, cause },
            ) => {
                self.connected = false;
                // An error that the copier reported may be the reason: ublk-target gives up such a
                // mirror leg.
                let cause = match &self.last_error {
                    Some(error) => format!("{cause} ({})", error.cause),
                    None => cause,
                };
                self.end(Outcome::Refused { reason, cause });
            }
            (Awaiting::Claim { .. }, _) => self.unexpected("a claim"),
            (Awaiting::Report { .. }, _) => self.unexpected("a report"),
            (Awaiting::Nothing, _) => self.unexpected("nothing"),
        }
    }

    fn give_up(&mut self, cause: String) {
        self.connected = false;
        self.awaiting = Awaiting::Nothing;
        self.end(Outcome::Disconnected { cause });
    }

    fn stop(&mut self) {
        self.end(Outcome::Stopped);
    }

    fn look_at_the_clock(&mut self, now: Instant, bytes_per_second: u64) -> Option<Instant> {
        if self.ending.is_some() && self.window.pieces_in_flight() == 0 {
            self.drained_at.get_or_insert(now);
        }
        if let Some(overdue_at) = self.overdue_at() {
            if now < overdue_at {
                return Some(overdue_at);
            }
            self.give_up("ublk-target does not answer".to_owned());
        }
        if self.connected
            && self.awaiting == Awaiting::Nothing
            && let NextRequest::Later(at) = self.wish(now, bytes_per_second)
        {
            return Some(at);
        }
        None
    }

    fn outcome(&self) -> Option<&Outcome> {
        let quiet = self.window.pieces_in_flight() == 0
            && self.awaiting == Awaiting::Nothing
            && (!self.connected || !self.window.has_finished());
        self.ending.as_ref().filter(|_| quiet)
    }

    fn failed_regions(&self) -> u32 {
        self.failed_regions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use migration_proto::route::Side;

    use super::*;
    use crate::legs::{FileIndex, LegMap};
    use crate::window::Sizes;

    const REGION: u64 = 1 << 20;
    const EPOCH: u64 = 5;

    fn plan(regions: u64, queue_bytes: u64, now: Instant) -> Plan {
        let sizes = Sizes {
            region_bytes: REGION,
            volume_bytes: regions * REGION - 512,
            io_bytes: 512 << 10,
        };
        let leg = LegMap::contiguous(regions * REGION, FileIndex(0));
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
}
