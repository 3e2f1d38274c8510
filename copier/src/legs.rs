//! Translates addresses of the volume to places on the LUNs of a leg.

use migration_proto::route::Leg;

/// The index of a LUN in the ring's table of registered files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIndex(pub u32);

/// The place of an address of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The LUN.
    pub file: FileIndex,
    /// The offset on the LUN, in bytes.
    pub offset_bytes: u64,
    /// The length of the rest of the extent from there, in bytes; at least 1.
    pub contiguous_bytes: u64,
}

/// A part of a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The LUN.
    pub file: FileIndex,
    /// The offset on the LUN, in bytes.
    pub offset_bytes: u64,
    /// The length, in bytes.
    pub length_bytes: u32,
}

/// The extents of one leg, searchable by the volume's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegMap {
    /// Ascending by `volume_start_bytes`, without gaps; no part is empty.
    parts: Vec<Part>,
    length_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    volume_start_bytes: u64,
    length_bytes: u64,
    file: FileIndex,
    file_start_bytes: u64,
}

impl LegMap {
    /// Lays the extents of `leg` end to end; `files` has the LUN of each extent. `None` if a number
    /// overflows.
    pub fn new(leg: &Leg, files: &[FileIndex]) -> Option<Self> {
        let mut parts = Vec::with_capacity(leg.extents.len());
        let mut length_bytes = 0_u64;
        for (extent, file) in leg.extents.iter().zip(files) {
            extent.start_bytes.checked_add(extent.length_bytes)?;
            if extent.length_bytes > 0 {
                parts.push(Part {
                    volume_start_bytes: length_bytes,
                    length_bytes: extent.length_bytes,
                    file: *file,
                    file_start_bytes: extent.start_bytes,
                });
            }
            length_bytes = length_bytes.checked_add(extent.length_bytes)?;
        }
        Some(Self {
            parts,
            length_bytes,
        })
    }

    /// A leg that is the first `length_bytes` bytes of one LUN.
    #[must_use]
    pub fn contiguous(length_bytes: u64, file: FileIndex) -> Self {
        Self {
            parts: vec![Part {
                volume_start_bytes: 0,
                length_bytes,
                file,
                file_start_bytes: 0,
            }],
            length_bytes,
        }
    }

    /// The length of the leg, in bytes.
    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The place of the volume's address `at_bytes`; `None` beyond the end of the leg.
    pub fn place(&self, at_bytes: u64) -> Option<Place> {
        let after = self
            .parts
            .partition_point(|part| part.volume_start_bytes <= at_bytes);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let into_bytes = at_bytes - part.volume_start_bytes;
        let contiguous_bytes = part.length_bytes.checked_sub(into_bytes)?;
        (contiguous_bytes > 0).then_some(Place {
            file: part.file,
            offset_bytes: part.file_start_bytes + into_bytes,
            contiguous_bytes,
        })
    }
}
