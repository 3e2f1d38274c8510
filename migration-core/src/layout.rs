//! Where the bytes of a leg are: a list of extents of LUNs, in the order of the volume's addresses.

use alloc::vec::Vec;

/// A contiguous part of a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The caller's number of the LUN.
    pub lun: usize,
    /// Where the extent begins on the LUN, in bytes.
    pub start: u64,
    /// The length of the extent, in bytes.
    pub length: u64,
}

/// A place on a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The LUN.
    pub lun: usize,
    /// The offset on it, in bytes.
    pub offset: u64,
    /// How many of the bytes asked for follow there, at least 1.
    pub length: u64,
}

/// The extents of one leg.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    extents: Vec<Extent>,
    /// For each extent, the address after its last byte.
    ends: Vec<u64>,
}

impl Layout {
    /// The layout of a leg. Empty extents are dropped. `None` if an address does not fit into 64
    /// bits.
    #[must_use]
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> Option<Self> {
        let extents: Vec<Extent> = extents.into_iter().filter(|e| e.length > 0).collect();
        let mut ends = Vec::with_capacity(extents.len());
        let mut end = 0_u64;
        for extent in &extents {
            extent.start.checked_add(extent.length)?;
            end = end.checked_add(extent.length)?;
            ends.push(end);
        }
        Some(Self { extents, ends })
    }

    /// The same layout for a list of LUNs that has `first` others before those of this leg.
    #[must_use]
    pub fn numbered_from(mut self, first: usize) -> Self {
        for extent in &mut self.extents {
            extent.lun += first;
        }
        self
    }

    /// The sum of the lengths, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The extents, in the order of their addresses; none is empty.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The place of the byte at `address`, and how many of `length` bytes follow there. `None`
    /// beyond the end.
    #[must_use]
    pub fn locate(&self, address: u64, length: u64) -> Option<Place> {
        let index = self.ends.partition_point(|end| *end <= address);
        let (extent, end) = (self.extents.get(index)?, self.ends[index]);
        let within = address - (end - extent.length);
        Some(Place {
            lun: extent.lun,
            offset: extent.start + within,
            length: length.min(end - address),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_its_extent_and_cut_at_the_extents_end() {
        let extent = |lun, start, length| Extent { lun, start, length };
        let layout = Layout::new([extent(0, 100, 10), extent(1, 0, 0), extent(2, 7, 5)]).unwrap();
        assert_eq!(layout.length(), 15);
        let place = |lun, offset, length| {
            Some(Place {
                lun,
                offset,
                length,
            })
        };
        assert_eq!(layout.locate(0, 3), place(0, 100, 3));
        assert_eq!(layout.locate(8, 6), place(0, 108, 2));
        assert_eq!(layout.locate(10, 4), place(2, 7, 4));
        assert_eq!(layout.locate(14, 4), place(2, 11, 1));
        assert_eq!(layout.locate(15, 1), None);
        let later = layout.numbered_from(4);
        assert_eq!(later.locate(10, 4), place(6, 7, 4));
    }

    #[test]
    fn addresses_beyond_64_bits_are_refused() {
        let extent = |start, length| Extent {
            lun: 0,
            start,
            length,
        };
        assert_eq!(Layout::new([extent(1, u64::MAX)]), None);
        assert_eq!(Layout::new([extent(0, u64::MAX), extent(0, 1)]), None);
    }
}
