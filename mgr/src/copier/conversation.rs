//! What a copier's thread asks of its plan: which piece comes next, what to say to `ublk-target`, when it is over.

use std::time::Instant;

use migration_proto::target::{CopyError, Request, Response};

use super::Outcome;
use super::window::{End, Piece, RegionSlot};

/// A plan. No I/O, and the clock is an argument.
pub trait Conversation: Send {
    /// The next piece to read, if one may begin. Call whenever a buffer is free.
    fn next_piece(&mut self) -> Option<Piece>;

    /// A piece has the same on both legs now.
    fn piece_done(&mut self, region: RegionSlot);

    /// A piece was compared, and differs.
    fn piece_differs(&mut self, region: RegionSlot);

    /// A piece failed, at one end of the copy.
    fn piece_failed(&mut self, region: RegionSlot, end: End, error: CopyError);

    /// Whether a region that is being copied is known to be copied for the first time.
    fn is_never_copied(&self, region: RegionSlot) -> bool;

    /// The request to send now, if any; it is outstanding from now on.
    fn next_request(&mut self, now: Instant, bytes_per_second: u64) -> Option<Request>;

    /// Takes the answer to the outstanding request.
    fn answered(&mut self, response: Response, now: Instant);

    /// The connection is gone or of no use. I/O in flight is waited for.
    fn give_up(&mut self, cause: String);

    /// Somebody asked for the end.
    fn stop(&mut self);

    /// Gives up on an answer that is overdue, and returns when to look again, at the latest.
    fn look_at_the_clock(&mut self, now: Instant, bytes_per_second: u64) -> Option<Instant>;

    /// How it ended, once nothing is in flight and nothing is left to say.
    fn outcome(&self) -> Option<&Outcome>;

    /// The regions that could not be copied or compared so far.
    fn failed_regions(&self) -> u32;
}
