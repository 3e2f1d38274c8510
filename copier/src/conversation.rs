//! The interface between a copier's thread and its plan: the next piece, the next request, the end.

use std::time::Instant;

use migration_proto::target::{CopyError, Request, Response};

use crate::Outcome;
use crate::window::{End, Piece, RegionSlot};

/// A plan of a copier. It does no I/O, and the clock is an argument.
pub trait Conversation: Send {
    /// The next piece to read, if one may begin. Called whenever a buffer is free.
    fn next_piece(&mut self) -> Option<Piece>;

    /// A piece is the same on both legs now.
    fn piece_done(&mut self, region: RegionSlot);

    /// A piece was compared, and is not the same on both legs.
    fn piece_differs(&mut self, region: RegionSlot);

    /// A piece failed, at one end of the copy.
    fn piece_failed(&mut self, region: RegionSlot, end: End, error: CopyError);

    /// Whether a region that is being copied is known to be copied for the first time.
    fn is_never_copied(&self, region: RegionSlot) -> bool;

    /// The request to send now, if any. It counts as outstanding from now on.
    fn next_request(&mut self, now: Instant, bytes_per_second: u64) -> Option<Request>;

    /// Takes the answer to the outstanding request.
    fn answered(&mut self, response: Response, now: Instant);

    /// The connection is lost or useless. The plan still waits for I/O in flight.
    fn give_up(&mut self, cause: String);

    /// The owner requests the end.
    fn stop(&mut self);

    /// Gives up if the outstanding answer is overdue. Returns the latest time for the next call.
    fn look_at_the_clock(&mut self, now: Instant, bytes_per_second: u64) -> Option<Instant>;

    /// The outcome, once nothing is in flight and nothing is left to send.
    fn outcome(&self) -> Option<&Outcome>;

    /// The regions that could not be copied or compared so far.
    fn failed_regions(&self) -> u32;
}
