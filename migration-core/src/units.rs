//! Newtypes, so that an index, a size and a time never mix.

/// A moment, in nanoseconds since some fixed moment of the caller's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

impl Time {
    /// `self` plus a number of nanoseconds.
    #[must_use]
    pub const fn plus(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }

    /// Nanoseconds from `earlier` to `self`; 0 if it was later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A moment of the wall clock, in milliseconds since 1970. The wall clock can be set, so a duration
/// is never measured by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WallTime(pub u64);

/// The number of a region, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionIndex(pub usize);

/// The number of a route change. It grows by one at every change; a request with an old epoch is
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

/// The slot of a request, as the shell numbers it. Below [`crate::volume::Config::tags`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u16);

/// A part of the volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The number of bytes.
    pub length: u64,
}

impl Range {
    /// The byte after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.length
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// The size of a volume and of its regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    size_bytes: u64,
    region_shift: u32,
}

/// Why a geometry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeometryError {
    /// A region is a power of two between 64 KiB and 1 GiB.
    RegionSize,
    /// The volume is empty, or has more than [`Geometry::REGIONS_MAX`] regions.
    VolumeSize,
}

impl core::fmt::Display for GeometryError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::RegionSize => "the region size is not a power of two from 64 KiB to 1 GiB",
            Self::VolumeSize => "the volume size is zero or too large for its region size",
        })
    }
}

impl core::error::Error for GeometryError {}

impl Geometry {
    /// The smallest region, in bytes. No request but a discard is longer, so a request touches at
    /// most two regions.
    pub const REGION_BYTES_MIN: u64 = 64 << 10;
    /// The usual region, in bytes.
    pub const REGION_BYTES_USUAL: u64 = 1 << 20;
    /// The largest region, in bytes.
    pub const REGION_BYTES_MAX: u64 = 1 << 30;
    /// The most regions of one volume; bounds the memory and the map file.
    pub const REGIONS_MAX: u64 = 4 << 20;

    /// A geometry with a region size of the caller's choice.
    ///
    /// # Errors
    /// [`GeometryError`]
    pub fn new(size_bytes: u64, region_bytes: u64) -> Result<Self, GeometryError> {
        if !region_bytes.is_power_of_two()
            || !(Self::REGION_BYTES_MIN..=Self::REGION_BYTES_MAX).contains(&region_bytes)
        {
            return Err(GeometryError::RegionSize);
        }
        if size_bytes == 0 || size_bytes.div_ceil(region_bytes) > Self::REGIONS_MAX {
            return Err(GeometryError::VolumeSize);
        }
        Ok(Self {
            size_bytes,
            region_shift: region_bytes.trailing_zeros(),
        })
    }

    /// The geometry of a volume of this size: the usual region, or the smallest larger one with
    /// which the volume has no more than [`Self::REGIONS_MAX`].
    ///
    /// # Errors
    /// [`GeometryError::VolumeSize`].
    pub fn for_size(size_bytes: u64) -> Result<Self, GeometryError> {
        let needed = size_bytes.div_ceil(Self::REGIONS_MAX).next_power_of_two();
        Self::new(
            size_bytes,
            needed.clamp(Self::REGION_BYTES_USUAL, Self::REGION_BYTES_MAX),
        )
    }

    /// The size of the volume, in bytes.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    /// The size of a region, in bytes; the last one of the volume may be shorter.
    #[must_use]
    pub const fn region_bytes(self) -> u64 {
        1 << self.region_shift
    }

    /// The number of regions.
    #[must_use]
    pub const fn regions(self) -> usize {
        self.size_bytes.div_ceil(self.region_bytes()) as usize
    }

    /// The bytes of a region.
    #[must_use]
    pub fn range(self, region: RegionIndex) -> Range {
        let start = (region.0 as u64) << self.region_shift;
        Range {
            start,
            length: self
                .region_bytes()
                .min(self.size_bytes.saturating_sub(start)),
        }
    }

    /// The regions that a range touches. The range must lie within the volume.
    #[must_use]
    pub fn touched(self, range: Range) -> Touched {
        let first = (range.start >> self.region_shift) as usize;
        let end = if range.length == 0 {
            first
        } else {
            ((range.end() - 1) >> self.region_shift) as usize + 1
        };
        Touched { next: first, end }
    }
}

/// The regions that a range touches, ascending.
#[derive(Debug, Clone, Copy)]
pub struct Touched {
    next: usize,
    end: usize,
}

impl Iterator for Touched {
    type Item = RegionIndex;

    fn next(&mut self) -> Option<RegionIndex> {
        (self.next < self.end).then(|| {
            self.next += 1;
            RegionIndex(self.next - 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_size_grows_with_the_volume() {
        for (size, region) in [
            (512, 1 << 20),
            (1 << 40, 1 << 20),
            (4 << 40, 1 << 20),
            ((4 << 40) + 512, 2 << 20),
            (64 << 40, 16 << 20),
        ] {
            let geometry = Geometry::for_size(size).unwrap();
            assert_eq!(geometry.region_bytes(), region, "{size}");
            assert!(geometry.regions() as u64 <= Geometry::REGIONS_MAX);
        }
        assert_eq!(Geometry::for_size(0), Err(GeometryError::VolumeSize));
        assert_eq!(Geometry::for_size(u64::MAX), Err(GeometryError::VolumeSize));
    }

    #[test]
    fn a_range_touches_the_regions_of_its_first_and_last_byte() {
        let geometry = Geometry::new((2 << 20) + 4096, 1 << 20).unwrap();
        let touched = |start, length| -> alloc::vec::Vec<usize> {
            geometry
                .touched(Range { start, length })
                .map(|r| r.0)
                .collect()
        };
        assert_eq!(touched(0, 1 << 20), [0]);
        assert_eq!(touched((1 << 20) - 512, 1024), [0, 1]);
        assert_eq!(touched(1 << 20, 512), [1]);
        assert_eq!(touched(5, 0), [0usize; 0]);
        assert_eq!(geometry.range(RegionIndex(2)).length, 4096);
    }
}
