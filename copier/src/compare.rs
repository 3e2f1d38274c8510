//! Compares both legs region by region while the application writes: which request to send, which
//! piece comes next, and what was found. No I/O and no clock.
//!
//! ```text
//! next --watch--> watched --read from both legs--> same / differs / unread --compared--> counted
//!   ^               |  being written                        | written meanwhile
//!   +--- again <----+---------------------------------------+
//! ```
//!
//! No writes are held at first: a region that is being written is tried again later. Only for
//! regions that were never found quiet, writes are held, a few regions at a time. A region that is
//! not quiet even then is reported as not compared.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use migration_proto::target::{CopyError, Request, Response, WATCH_REGIONS_MAX};

use crate::Outcome;
use crate::conversation::Conversation;
use crate::plan::{ANSWER_PATIENCE, ENDING_PATIENCE, ERRORS_MAX};
use crate::rate::{Allowance, Bucket};
use crate::window::{End, Piece, RegionSlot, Window};

/// After this many tries without success, writes to a region are held for its comparison.
const TRIES_BEFORE_HOLD: u32 = 4;

/// After this many tries, a region is reported as not compared.
const TRIES_MAX: u32 = 64;

/// The pause before a region is tried again.
const TRY_PAUSE: Duration = Duration::from_millis(20);

/// The most watched regions, in queues full of I/O: enough to keep the disks busy, and few
/// enough that a watched region stays quiet until it is read.
const WATCHED_QUEUES: u64 = 2;

/// The result of a comparison. All numbers are bytes of whole regions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The bytes that were compared, whether equal or not.
    pub compared_bytes: u64,
    /// The part of `compared_bytes` that was not equal.
    pub differing_bytes: u64,
    /// The first region that was not equal, as an address of the volume.
    pub first_difference_bytes: Option<u64>,
    /// The bytes that were not compared: written all the time, dirty, or unreadable.
    pub unknown_bytes: u64,
    /// The last error of a leg.
    pub error: Option<CopyError>,
}

/// The request that was sent and is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Awaiting {
    Nothing,
    Watch { regions: Vec<u64> },
    Compared { report: Report },
}

/// The results of regions that are reported together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Report {
    same: Vec<u64>,
    differing: Vec<u64>,
    unread: Vec<u64>,
}

/// The next request that the plan wants to send.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NextRequest {
    Watch { regions: Vec<u64>, hold: bool },
    Later(Instant),
    Nothing,
}

/// The state of one comparison.
#[derive(Debug)]
pub struct Comparing {
    epoch: u64,
    window: Window,
    bucket: Bucket,
    volume_bytes: u64,
    /// The first region that was never requested.
    next: u64,
    /// Regions to be tried again, each with the earliest time.
    again: VecDeque<(u64, Instant)>,
    /// The number of tries of each of these regions.
    tries: BTreeMap<u64, u32>,
    watched_max: usize,
    awaiting: Awaiting,
    since: Instant,
    /// The regions in the window of which a piece was not equal, or could not be read.
    differing: HashSet<u64>,
    unread: HashSet<u64>,
    failed_regions: u32,
    found: Found,
    ending: Option<Outcome>,
    connected: bool,
}

impl Comparing {
    /// A comparison of the whole volume. `queue_bytes`: the size of all buffers together.
    #[must_use]
    pub fn new(
        epoch: u64,
        window: Window,
        volume_bytes: u64,
        queue_bytes: u64,
        now: Instant,
    ) -> Self {
        let watched = (WATCHED_QUEUES * queue_bytes).div_ceil(window.region_bytes());
        let watched = usize::try_from(watched).unwrap_or(WATCH_REGIONS_MAX);
        Self {
            epoch,
            bucket: Bucket::new(window.region_bytes(), now),
            window,
            volume_bytes,
            next: 0,
            again: VecDeque::new(),
            tries: BTreeMap::new(),
            watched_max: watched.clamp(1, WATCH_REGIONS_MAX),
            awaiting: Awaiting::Nothing,
            since: now,
            differing: HashSet::new(),
            unread: HashSet::new(),
            failed_regions: 0,
            found: Found::default(),
            ending: None,
            connected: true,
        }
    }

    fn regions(&self) -> u64 {
        self.volume_bytes.div_ceil(self.window.region_bytes())
    }

    fn bytes_of(&self, region: u64) -> u64 {
        let start = region * self.window.region_bytes();
        self.window.region_bytes().min(self.volume_bytes - start)
    }

    fn wish(&mut self, now: Instant, bytes_per_second: u64) -> NextRequest {
        let room = self.watched_max.saturating_sub(self.window.held_regions());
        if self.ending.is_some() || room == 0 {
            return NextRequest::Nothing;
        }
        let due = self.again.front().map(|(_, at)| *at);
        if due.is_none() && self.next == self.regions() {
            return NextRequest::Nothing;
        }
        let room = match self.bucket.allowance(now, bytes_per_second) {
            Allowance::Unlimited => room,
            Allowance::Bytes(bytes) => {
                let regions = bytes.div_ceil(self.window.region_bytes());
                room.min(usize::try_from(regions).unwrap_or(room))
            }
            Allowance::NotBefore(at) => return NextRequest::Later(at),
        };
        match due {
            Some(at) if at <= now => self.wish_again(now, room),
            _ if self.next < self.regions() => {
                let end = (self.next + room as u64).min(self.regions());
                let regions = (self.next..end).collect();
                self.next = end;
                NextRequest::Watch {
                    regions,
                    hold: false,
                }
            }
            Some(at) => NextRequest::Later(at),
            None => NextRequest::Nothing,
        }
    }

    /// The next request for regions that are due again; writes are held for all of them, or for
    /// none.
    fn wish_again(&mut self, now: Instant, room: usize) -> NextRequest {
        let is_stubborn = |tries: &BTreeMap<u64, u32>, region: &u64| {
            tries.get(region).copied().unwrap_or(0) >= TRIES_BEFORE_HOLD
        };
        let mut regions: Vec<u64> = Vec::new();
        let mut hold = false;
        while let Some((region, at)) = self.again.front()
            && *at <= now
            && regions.len() < room
        {
            let stubborn = is_stubborn(&self.tries, region);
            if regions.is_empty() {
                hold = stubborn;
            } else if stubborn != hold {
                break;
            }
            regions.push(*region);
            self.again.pop_front();
        }
        NextRequest::Watch { regions, hold }
    }

    fn try_again(&mut self, region: u64, now: Instant) {
        let tries = self.tries.entry(region).or_default();
        *tries += 1;
        if *tries >= TRIES_MAX {
            self.unknown(region);
        } else {
            self.again.push_back((region, now + TRY_PAUSE));
        }
    }

    fn unknown(&mut self, region: u64) {
        self.tries.remove(&region);
        self.found.unknown_bytes += self.bytes_of(region);
    }

    fn watched(&mut self, asked: &[u64], granted: &[u64], dirty: &[u64], now: Instant) {
        match self.window.grant(granted) {
            Ok(bytes) => self.bucket.take(bytes),
            Err(error) => {
                return self.give_up(format!("ublk-target broke the protocol: {error}"));
            }
        }
        for region in asked {
            if dirty.contains(region) {
                // Nobody copies it while this comparison is the volume's copier.
                self.unknown(*region);
            } else if !granted.contains(region) {
                self.try_again(*region, now);
            }
        }
    }

    fn counted(&mut self, report: &Report, unknown: &[u64], now: Instant) {
        for region in &report.unread {
            self.unknown(*region);
        }
        for (regions, differ) in [(&report.same, false), (&report.differing, true)] {
            for region in regions {
                if unknown.contains(region) {
                    self.try_again(*region, now);
                    continue;
                }
                self.tries.remove(region);
                self.found.compared_bytes += self.bytes_of(*region);
                if differ {
                    self.found.differing_bytes += self.bytes_of(*region);
                    let at = region * self.window.region_bytes();
                    let first = self.found.first_difference_bytes.get_or_insert(at);
                    *first = at.min(*first);
                }
            }
        }
        for regions in [&report.same, &report.differing, &report.unread] {
            self.window.let_go(regions);
        }
    }

    fn report(&mut self) -> Report {
        let finished = self.window.take_finished();
        let mut report = Report {
            same: finished.copied,
            ..Report::default()
        };
        for region in finished.failed {
            // A region that differs is reported as differing even if other pieces of it could not
            // be read.
            self.unread.remove(&region);
            match self.differing.remove(&region) {
                true => report.differing.push(region),
                false => report.unread.push(region),
            }
        }
        report
    }

    fn end_if_done(&mut self) {
        let all = self.next == self.regions() && self.again.is_empty();
        if all && self.window.held_regions() == 0 && self.awaiting == Awaiting::Nothing {
            let found = self.found.clone();
            self.end(Outcome::Compared(found));
        }
    }

    /// Ends the comparison. The first cause stays.
    fn end(&mut self, outcome: Outcome) {
        self.ending.get_or_insert(outcome);
    }
}

impl Conversation for Comparing {
    fn next_piece(&mut self) -> Option<Piece> {
        match self.ending {
            Some(_) => None,
            None => self.window.next_piece(),
        }
    }

    fn piece_done(&mut self, region: RegionSlot) {
        self.window.piece_ended(region, true);
    }

    fn piece_differs(&mut self, region: RegionSlot) {
        self.differing.extend(self.window.region_of(region));
        self.window.piece_ended(region, false);
    }

    fn piece_failed(&mut self, slot: RegionSlot, _: End, error: CopyError) {
        if let Some(region) = self.window.region_of(slot)
            && self.unread.insert(region)
        {
            self.failed_regions += 1;
        }
        self.found.error = Some(error.clone());
        self.window.piece_ended(slot, false);
        if self.failed_regions >= ERRORS_MAX {
            let CopyError { side, cause, .. } = error;
            self.end(Outcome::Failed { side, cause });
        }
    }

    fn is_never_copied(&self, _: RegionSlot) -> bool {
        false
    }

    fn next_request(&mut self, now: Instant, bytes_per_second: u64) -> Option<Request> {
        if !self.connected || self.awaiting != Awaiting::Nothing {
            return None;
        }
        self.since = now;
        // Reports are sent at the end too: a difference that was found must not be forgotten.
        if self.window.has_finished() {
            let report = self.report();
            let request = Request::Compared {
                epoch: self.epoch,
                same: report.same.clone(),
                differing: report.differing.clone(),
                unread: report.unread.clone(),
            };
            self.awaiting = Awaiting::Compared { report };
            return Some(request);
        }
        if self.ending.is_some() {
            return None;
        }
        let NextRequest::Watch { regions, hold } = self.wish(now, bytes_per_second) else {
            return None;
        };
        let request = Request::Watch {
            epoch: self.epoch,
            regions: regions.clone(),
            hold,
        };
        self.awaiting = Awaiting::Watch { regions };
        Some(request)
    }

    fn answered(&mut self, response: Response, now: Instant) {
        let awaited = std::mem::replace(&mut self.awaiting, Awaiting::Nothing);
        match (awaited, response) {
            (Awaiting::Watch { regions }, Response::Watched { regions: to, dirty }) => {
                self.watched(&regions, &to, &dirty, now);
            }
            (Awaiting::Compared { report }, Response::Compared { unknown }) => {
                self.counted(&report, &unknown, now);
            }
            (_, Response::Refused { reason, cause }) => {
                self.connected = false;
                self.end(Outcome::Refused { reason, cause });
            }
            _ => self.give_up("ublk-target broke the protocol: unexpected answer".to_owned()),
        }
        self.end_if_done();
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
        if self.awaiting != Awaiting::Nothing {
            let patience = match self.ending {
                Some(_) => ENDING_PATIENCE,
                None => ANSWER_PATIENCE,
            };
            let overdue_at = self.since + patience;
            if now < overdue_at {
                return Some(overdue_at);
            }
            self.give_up("ublk-target does not answer".to_owned());
            return None;
        }
        // A region that is due waits for room in the window, which only a completion can make.
        let due = self.again.front().map(|(_, at)| *at).filter(|at| now < *at);
        match self.bucket.allowance(now, bytes_per_second) {
            Allowance::NotBefore(at) => Some(at),
            Allowance::Unlimited | Allowance::Bytes(_) => due,
        }
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
