//! The claimed regions and the pieces in which they are copied. No I/O: the window decides which
//! piece comes next, and its owner reports how each piece ended.
//!
//! A region is in exactly one of these states:
//!
//! ```text
//! granted -> waiting -> active (pieces in flight) -> finished -> reported -> answered (not held)
//! ```
//!
//! Invariants: a region is held from its grant until its report was answered; no region is held
//! twice; at most one region has pieces left to begin (`filling`); an active region has pieces in
//! flight or is that one.

use std::collections::{HashSet, VecDeque};

use migration_core::layout::{Layout, Place};

/// One end of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The leg that is read.
    From,
    /// The leg that is written.
    To,
}

/// The sizes that a window works with, all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The size of a region; the last region of the volume may be shorter.
    pub region_bytes: u64,
    /// The size of the volume.
    pub volume_bytes: u64,
    /// The size of the largest piece.
    pub io_bytes: u32,
}

/// A place in the table of active regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSlot(pub(super) usize);

/// A part of a region that is contiguous on both legs and fits into one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The region that it belongs to.
    pub region: RegionSlot,
    /// The piece's address in the volume, in bytes.
    pub volume_offset_bytes: u64,
    /// The place where the piece is read, with the piece's length.
    pub from: Place,
    /// The place where the piece is written, with the piece's length.
    pub to: Place,
    /// Its length, in bytes.
    pub length_bytes: u32,
}

/// Why a window between two legs is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSizes {
    /// A size is 0.
    #[error("the regions or the I/Os have a size of 0 bytes")]
    Zero,
    /// A leg does not hold the volume.
    #[error("a leg has {leg_bytes} bytes, the volume {volume_bytes}")]
    LegTooShort {
        /// The length of the leg.
        leg_bytes: u64,
        /// The size of the volume.
        volume_bytes: u64,
    },
}

/// Why a grant cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGrant {
    /// The region is beyond the end of the volume.
    #[error("region {0} lies beyond the end of the volume")]
    BeyondEnd(u64),
    /// The region is claimed already.
    #[error("region {0} was granted twice")]
    Twice(u64),
}

/// The state of a region after one of its pieces has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionEnd {
    /// Other pieces of the region are not done yet.
    Unfinished,
    /// The whole region is copied.
    Copied,
    /// The region failed, and none of its pieces is in flight any more.
    Failed,
}

/// The regions that finished since the last report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// The copied regions.
    pub copied: Vec<u64>,
    /// The failed regions.
    pub failed: Vec<u64>,
}

impl Finished {
    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.copied.is_empty() && self.failed.is_empty()
    }
}

/// The claimed regions.
#[derive(Debug, Clone)]
pub struct Window {
    sizes: Sizes,
    from: Layout,
    to: Layout,
    waiting: VecDeque<u64>,
    active: Vec<Option<Active>>,
    /// The active region that the next piece is taken from.
    filling: Option<RegionSlot>,
    finished: Finished,
    held: HashSet<u64>,
    unbegun_bytes: u64,
    held_bytes: u64,
    pieces_in_flight: u32,
}

#[derive(Debug, Clone, Copy)]
struct Active {
    region: u64,
    /// The address of the next piece.
    next_bytes: u64,
    end_bytes: u64,
    pieces_in_flight: u32,
    failed: bool,
}

impl Window {
    /// An empty window.
    ///
    /// # Errors
    /// [`BadSizes`]: an address of the volume would have no place, or no piece would ever begin.
    pub fn new(sizes: Sizes, from: Layout, to: Layout) -> Result<Self, BadSizes> {
        if sizes.region_bytes == 0 || sizes.io_bytes == 0 {
            return Err(BadSizes::Zero);
        }
        let leg_bytes = from.length().min(to.length());
        if leg_bytes < sizes.volume_bytes {
            return Err(BadSizes::LegTooShort {
                leg_bytes,
                volume_bytes: sizes.volume_bytes,
            });
        }
        Ok(Self {
            sizes,
            from,
            to,
            waiting: VecDeque::new(),
            active: Vec::new(),
            filling: None,
            finished: Finished::default(),
            held: HashSet::new(),
            unbegun_bytes: 0,
            held_bytes: 0,
            pieces_in_flight: 0,
        })
    }

    /// Adds regions that were granted, and returns their size in bytes.
    ///
    /// # Errors
    /// [`BadGrant`]; the regions before the bad one are added.
    pub fn grant(&mut self, regions: &[u64]) -> Result<u64, BadGrant> {
        let mut granted_bytes = 0;
        for &region in regions {
            let (start, end) = self.bounds(region).ok_or(BadGrant::BeyondEnd(region))?;
            if !self.held.insert(region) {
                return Err(BadGrant::Twice(region));
            }
            self.waiting.push_back(region);
            granted_bytes += end - start;
            self.unbegun_bytes += end - start;
            self.held_bytes += end - start;
        }
        Ok(granted_bytes)
    }

    /// The next piece to read, which counts as in flight from now on. `None` if all pieces of the
    /// claimed regions have begun.
    pub fn next_piece(&mut self) -> Option<Piece> {
        let slot = match self.filling {
            Some(slot) => slot,
            None => self.activate()?,
        };
        let active = self.active.get_mut(slot.0)?.as_mut()?;
        let wanted = active.end_bytes - active.next_bytes;
        let wanted = wanted.min(u64::from(self.sizes.io_bytes));
        let mut from = self.from.locate(active.next_bytes, wanted)?;
        let to = self.to.locate(active.next_bytes, from.length)?;
        from.length = to.length;
        let length_bytes = u32::try_from(to.length).ok()?;
        let volume_offset_bytes = active.next_bytes;
        active.next_bytes += u64::from(length_bytes);
        active.pieces_in_flight += 1;
        if active.next_bytes == active.end_bytes {
            self.filling = None;
        }
        self.unbegun_bytes -= u64::from(length_bytes);
        self.pieces_in_flight += 1;
        Some(Piece {
            region: slot,
            volume_offset_bytes,
            from,
            to,
            length_bytes,
        })
    }

    /// The region of a piece that is in flight.
    pub fn region_of(&self, slot: RegionSlot) -> Option<u64> {
        let active = self.active.get(slot.0)?.as_ref()?;
        Some(active.region)
    }

    /// Handles the end of a piece. After a failure no more pieces of its region begin.
    pub fn piece_ended(&mut self, slot: RegionSlot, succeeded: bool) -> RegionEnd {
        let Some(entry) = self.active.get_mut(slot.0) else {
            return RegionEnd::Unfinished;
        };
        let Some(active) = entry.as_mut() else {
            return RegionEnd::Unfinished;
        };
        self.pieces_in_flight -= 1;
        active.pieces_in_flight -= 1;
        if !succeeded {
            active.failed = true;
            self.unbegun_bytes -= active.end_bytes - active.next_bytes;
            active.next_bytes = active.end_bytes;
            if self.filling == Some(slot) {
                self.filling = None;
            }
        }
        if active.pieces_in_flight > 0 || active.next_bytes < active.end_bytes {
            return RegionEnd::Unfinished;
        }
        let (region, failed) = (active.region, active.failed);
        *entry = None;
        if failed {
            self.finished.failed.push(region);
            RegionEnd::Failed
        } else {
            self.finished.copied.push(region);
            RegionEnd::Copied
        }
    }

    /// The regions that finished since the last call. They stay held until [`Window::let_go`].
    pub fn take_finished(&mut self) -> Finished {
        std::mem::take(&mut self.finished)
    }

    /// Whether regions finished since the last [`Window::take_finished`].
    pub fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    /// Removes regions whose report was answered, and returns their size in bytes.
    pub fn let_go(&mut self, regions: &[u64]) -> u64 {
        let mut bytes = 0;
        for region in regions {
            if let (true, Some((start, end))) = (self.held.remove(region), self.bounds(*region)) {
                bytes += end - start;
            }
        }
        self.held_bytes -= bytes;
        bytes
    }

    /// The bytes that are claimed and not yet begun.
    pub fn unbegun_bytes(&self) -> u64 {
        self.unbegun_bytes
    }

    /// The bytes of the regions that are held.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// The number of regions that are held.
    pub fn held_regions(&self) -> usize {
        self.held.len()
    }

    /// The number of pieces in flight.
    pub fn pieces_in_flight(&self) -> u32 {
        self.pieces_in_flight
    }

    /// The size of a region, in bytes.
    pub fn region_bytes(&self) -> u64 {
        self.sizes.region_bytes
    }

    fn activate(&mut self) -> Option<RegionSlot> {
        let region = self.waiting.pop_front()?;
        let (next_bytes, end_bytes) = self.bounds(region)?;
        let active = Some(Active {
            region,
            next_bytes,
            end_bytes,
            pieces_in_flight: 0,
            failed: false,
        });
        let slot = match self.active.iter().position(Option::is_none) {
            Some(free) => {
                self.active[free] = active;
                RegionSlot(free)
            }
            None => {
                self.active.push(active);
                RegionSlot(self.active.len() - 1)
            }
        };
        self.filling = Some(slot);
        Some(slot)
    }

    /// The first address of a region and the address after its last; `None` beyond the end of the
    /// volume.
    fn bounds(&self, region: u64) -> Option<(u64, u64)> {
        let start = region.checked_mul(self.sizes.region_bytes)?;
        let end = start
            .saturating_add(self.sizes.region_bytes)
            .min(self.sizes.volume_bytes);
        (start < end).then_some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use migration_core::layout::Extent;

    use super::*;

    const SIZES: Sizes = Sizes {
        region_bytes: 1024,
        volume_bytes: 3000,
        io_bytes: 512,
    };

    fn leg(lengths: &[u64], first_lun: usize) -> Layout {
        let extent = |(number, length): (usize, &u64)| Extent {
            lun: first_lun + number,
            start: 10_000,
            length: *length,
        };
        Layout::new(lengths.iter().enumerate().map(extent)).unwrap()
    }

    fn window() -> Window {
        Window::new(SIZES, leg(&[700, 0, 2300], 0), leg(&[1500, 1600], 10)).unwrap()
    }

    #[test]
    fn pieces_cover_a_volume_once_and_never_cross_an_extent_or_a_region() {
        let mut window = window();
        window.grant(&[2, 0, 1]).unwrap();
        let mut at = 2048;
        let mut lengths = Vec::new();
        while let Some(piece) = window.next_piece() {
            let (from_lun, from_at) = if at < 700 { (0, at) } else { (2, at - 700) };
            let (to_lun, to_at) = if at < 1500 { (10, at) } else { (11, at - 1500) };
            assert_eq!(piece.from.lun, from_lun);
            assert_eq!(piece.from.offset, 10_000 + from_at);
            assert_eq!(piece.to.lun, to_lun);
            assert_eq!(piece.to.offset, 10_000 + to_at);
            assert_eq!(piece.from.length, u64::from(piece.length_bytes));
            assert_eq!(piece.to.length, piece.from.length);
            lengths.push(piece.length_bytes);
            at = (at + u64::from(piece.length_bytes)) % 3000;
        }
        // Region 2 is short; region 0 is cut at 700, region 1 at 1500.
        assert_eq!(lengths, [512, 440, 512, 188, 324, 476, 512, 36]);
        assert_eq!(window.unbegun_bytes(), 0);
        assert_eq!(window.held_bytes(), 3000);
    }

    #[test]
    fn a_region_is_finished_with_its_last_piece_in_any_order() {
        let mut window = window();
        window.grant(&[0, 1]).unwrap();
        let pieces: Vec<_> = std::iter::from_fn(|| window.next_piece()).collect();
        assert_eq!(pieces.len(), 6);
        for piece in pieces[1..].iter().rev() {
            let expected = if *piece == pieces[3] {
                RegionEnd::Copied
            } else {
                RegionEnd::Unfinished
            };
            assert_eq!(window.piece_ended(piece.region, true), expected);
        }
        assert_eq!(window.take_finished().copied, [1]);
        assert_eq!(
            window.piece_ended(pieces[0].region, true),
            RegionEnd::Copied
        );
        assert_eq!(window.take_finished().copied, [0]);
        assert_eq!(window.held_bytes(), 2048);
        assert_eq!(window.let_go(&[0, 1]), 2048);
        assert_eq!((window.held_bytes(), window.held_regions()), (0, 0));
    }

    #[test]
    fn a_failed_piece_fails_its_region_after_the_last_one_in_flight_and_begins_no_more() {
        let mut window = window();
        window.grant(&[0, 1]).unwrap();
        let first = window.next_piece().unwrap();
        let second = window.next_piece().unwrap();
        assert_eq!(
            window.piece_ended(first.region, false),
            RegionEnd::Unfinished
        );
        assert!(!window.has_finished());
        let next = window.next_piece().unwrap();
        assert_eq!(next.to.offset, 10_000 + 1024, "region 1 comes next");
        assert_eq!(window.piece_ended(second.region, true), RegionEnd::Failed);
        let finished = window.take_finished();
        assert_eq!((finished.copied, finished.failed), (vec![], vec![0]));
        assert_eq!(window.unbegun_bytes(), 1024 - u64::from(next.length_bytes));
    }

    #[test]
    fn a_region_that_does_not_exist_or_is_held_is_refused() {
        let mut window = window();
        assert_eq!(window.grant(&[3]), Err(BadGrant::BeyondEnd(3)));
        assert_eq!(
            window.grant(&[u64::MAX]),
            Err(BadGrant::BeyondEnd(u64::MAX))
        );
        assert_eq!(window.grant(&[2, 2]), Err(BadGrant::Twice(2)));
        window.let_go(&[2]);
        assert_eq!(window.grant(&[2]), Ok(952));
    }

    #[test]
    fn legs_that_do_not_hold_the_volume_are_refused() {
        let error = Window::new(SIZES, leg(&[3000], 0), leg(&[2999], 0)).unwrap_err();
        assert_eq!(
            error,
            BadSizes::LegTooShort {
                leg_bytes: 2999,
                volume_bytes: 3000
            }
        );
        let sizes = Sizes {
            region_bytes: 0,
            ..SIZES
        };
        assert!(Window::new(sizes, leg(&[3000], 0), leg(&[3000], 0)).is_err());
    }
}
