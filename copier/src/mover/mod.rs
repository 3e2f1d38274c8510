//! The ways to move a piece from one leg to the other. [`Mover`] has the contract; [`Host`] reads
//! and writes through this host.
//!
//! The thread (`run`) works with any mover, and names one in a single place.

mod host;

use std::io;

use migration_proto::route::Side;
use migration_proto::target::CopyError;

use crate::open::Luns;
use crate::ring::{Ring, Slot};
use crate::window::{End, Piece};

pub(crate) use host::{Host, Orders};

/// A way to make a piece the same on both legs, or to find out whether it is.
///
/// **What a mover is given.** A [`Piece`] of a region that `ublk-target` has granted: its address
/// in the volume, its place on each leg (a LUN and an offset on it), and its length. The piece is
/// contiguous on both LUNs. The LUNs are open and known to be the recorded ones, and those of `to`
/// are locked. A mover that works in larger units of its own still touches nothing but the piece.
///
/// **When a piece is done.** When the mover reports [`Ending::Same`], and at no other time; a
/// region counts as copied only if that was reported for each of its pieces. The mover reports it
/// once all bytes are on `to` and, if its orders say so, were read back from there and compared.
/// They may be in the cache of the LUN: `ublk-target` flushes that before the region is durably
/// clean. A mover that is to compare writes nothing.
///
/// **Errors name the leg.** A read of the source that fails is [`End::From`]; a write of the
/// target, or a read of it, is [`End::To`]. `ublk-target` stops mirroring to a leg that is reported
/// to fail, so a mover that gets one error for both legs has to find out which of them failed.
///
/// **How a copy is cancelled.** The thread begins no more pieces, and waits for the reports of
/// those in flight: cancelling skips no report. Once `Shared::stop` is set, the mover cuts short
/// what could take long, such as retries or a command that runs, and reports that piece as failed.
///
/// **After the report.** The mover holds nothing of the piece: no buffer, no I/O in flight, nothing
/// that could reach a LUN later. The region may be granted to others as soon as it is reported, and
/// the LUNs are unlocked after the last report.
///
/// All I/O and all waiting goes through the ring of the thread, so that nothing stalls the
/// connection; only reading around bad blocks waits without it. An error of a method means that the
/// ring failed: it is unknown what is in flight, and the mover is not used any more.
pub(crate) trait Mover {
    /// The number of pieces that were begun and not reported yet.
    fn in_flight(&self) -> usize;

    /// Whether another piece may begin.
    fn has_room(&self) -> bool;

    /// Begins to move a piece. Called only if there is room. `is_first`: whether the region is
    /// known to be copied for the first time, so that the target has nothing to lose there.
    fn begin(&mut self, ring: &mut Ring, piece: Piece, is_first: bool) -> io::Result<()>;

    /// Handles the result of the I/O of a slot: a count of bytes, or a negative error number.
    /// Returns the report, if that was the last I/O of a piece.
    fn completed(
        &mut self,
        ring: &mut Ring,
        legs: &Legs,
        slot: Slot,
        result: i32,
    ) -> io::Result<Option<Report>>;
}

/// The end of a piece. No I/O of it is in flight any more.
#[derive(Debug)]
pub(crate) struct Report {
    /// The piece.
    pub(crate) piece: Piece,
    /// How it ended.
    pub(crate) ending: Ending,
}

/// How a piece ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It is the same on both legs now.
    Same,
    /// It was compared, and is not the same on both legs.
    Differs,
    /// It could not be moved or compared.
    Failed {
        /// The leg that failed.
        end: End,
        /// The error, with the side of that leg.
        error: CopyError,
    },
}

/// The open legs.
#[derive(Debug)]
pub(crate) struct Legs {
    /// The LUNs of both.
    pub(crate) luns: Luns,
    /// The side of the leg `from`.
    pub(crate) from_side: Side,
}

impl Legs {
    /// The side at an end of the copy.
    pub(crate) const fn side(&self, end: End) -> Side {
        match (end, self.from_side) {
            (End::From, side) => side,
            (End::To, Side::Source) => Side::Target,
            (End::To, Side::Target) => Side::Source,
        }
    }
}
