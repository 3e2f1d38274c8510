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
mod tests;
