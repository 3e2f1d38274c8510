//! The format of the map file: bytes only, no file.
//!
//! Everything is little-endian. A sector is 512 bytes with a checksum of its own. Sectors are
//! written in blocks of one or eight ([`BlockSize`]); the layout serves both, because every part
//! begins at a multiple of 4096. `docs/formats.md` describes the same for people, with the crash
//! argument.
//!
//! | offset | length | what |
//! |---|---|---|
//! | 0 | 512 | role record, slot 0 |
//! | 4096 | 512 | role record, slot 1 |
//! | 8192 | 512 | who holds the legs ([`crate::custody`]) |
//! | 12288 | 65536 | descriptor, slot 0 |
//! | 77824 | 65536 | descriptor, slot 1 |
//! | 143360 | sectors × 512, rounded up to 4096 | dirty bitmap |
//! | after it | as long | write intent bitmap |

use alloc::vec::Vec;

use crc::{CRC_32_ISCSI, Crc};

use crate::{
    route::{Route, Side},
    units::{Epoch, Geometry},
};

/// The unit that has a checksum, in bytes.
pub const SECTOR_BYTES: usize = 512;
/// The version of this format.
pub const FORMAT_VERSION: u32 = 3;
/// Where the role slots are, in bytes.
pub const ROLE_OFFSETS: [u64; 2] = [0, 4096];
/// Where the sector is that says who holds the legs, in bytes.
pub const CUSTODY_OFFSET: u64 = 8192;
/// Where the descriptor slots are, in bytes.
pub const DESCRIPTOR_OFFSETS: [u64; 2] = [12288, 12288 + DESCRIPTOR_BYTES_MAX as u64];
/// The length of a descriptor slot, in bytes.
pub const DESCRIPTOR_BYTES_MAX: usize = 65536;
/// Where the bitmaps begin, in bytes.
pub const BITMAP_OFFSET: u64 = DESCRIPTOR_OFFSETS[1] + DESCRIPTOR_BYTES_MAX as u64;
/// The 64-bit words of bitmap in one sector.
pub const SECTOR_WORDS: usize = (SECTOR_BYTES - BITMAP_HEADER_BYTES) / 8;
/// The number of regions in one bitmap sector.
pub const SECTOR_REGIONS: usize = SECTOR_WORDS * 64;

const BITMAP_HEADER_BYTES: usize = 16;
const ROLE_MAGIC: &[u8; 8] = b"SHNTROLE";
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The CRC-32C of some bytes, as the format uses it everywhere.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// The unit of writing. The storage below writes a block of this size whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockSize {
    /// One sector.
    Bytes512,
    /// Eight sectors, for storage that has no smaller logical blocks.
    Bytes4096,
}

impl BlockSize {
    /// The largest block, in bytes. Every part of the file begins at a multiple of it.
    pub const BYTES_MAX: usize = 4096;

    /// The size for a file on storage with this logical block size, in bytes. Larger blocks than
    /// those of this format are read, changed and written by the file system.
    #[must_use]
    pub const fn of_file_on(logical_block_bytes: u32) -> Self {
        match logical_block_bytes {
            0..=512 => Self::Bytes512,
            513.. => Self::Bytes4096,
        }
    }

    /// The length of a block, in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bytes512 => SECTOR_BYTES,
            Self::Bytes4096 => Self::BYTES_MAX,
        }
    }

    /// The number of sectors in a block.
    #[must_use]
    pub const fn sectors(self) -> usize {
        self.bytes() / SECTOR_BYTES
    }

    /// A block that has one sector at its beginning, and zeroes after it.
    #[must_use]
    pub fn holding(self, sector: &[u8; SECTOR_BYTES]) -> Vec<u8> {
        let mut block = sector.to_vec();
        block.resize(self.bytes(), 0);
        block
    }
}

/// One of the two bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// Regions in which the mirror leg may differ until they are copied.
    Dirty,
    /// Regions in which a write may be in flight, or not yet flushed, on either leg.
    Intent,
}

/// A sector of a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BitmapSector {
    /// The bitmap.
    pub area: Area,
    /// The number of the sector in it, from 0.
    pub index: usize,
}

/// The number of sectors of each bitmap.
#[must_use]
pub const fn bitmap_sectors(geometry: Geometry) -> usize {
    geometry.regions().div_ceil(SECTOR_REGIONS)
}

const fn bitmap_bytes(geometry: Geometry) -> u64 {
    ((bitmap_sectors(geometry) * SECTOR_BYTES) as u64).next_multiple_of(BlockSize::BYTES_MAX as u64)
}

/// The length of the whole file, in bytes.
#[must_use]
pub const fn file_bytes(geometry: Geometry) -> u64 {
    BITMAP_OFFSET + 2 * bitmap_bytes(geometry)
}

impl BitmapSector {
    /// Where the sector is in the file, in bytes.
    #[must_use]
    pub const fn offset(self, geometry: Geometry) -> u64 {
        let area = match self.area {
            Area::Dirty => 0,
            Area::Intent => bitmap_bytes(geometry),
        };
        BITMAP_OFFSET + area + (self.index * SECTOR_BYTES) as u64
    }

    /// The words of bitmap that the sector holds.
    #[must_use]
    pub const fn words(self) -> core::ops::Range<usize> {
        self.index * SECTOR_WORDS..(self.index + 1) * SECTOR_WORDS
    }

    const fn number(self) -> u32 {
        let area = match self.area {
            Area::Dirty => 0,
            Area::Intent => 1 << 31,
        };
        area | self.index as u32
    }

    /// Writes the sector: CRC, number, the first half of the volume's UUID, then `words`.
    ///
    /// # Panics
    /// If `words` is not [`SECTOR_WORDS`] long.
    #[must_use]
    pub fn encode(self, volume_id: &[u8; 16], words: &[u64]) -> [u8; SECTOR_BYTES] {
        assert_eq!(words.len(), SECTOR_WORDS);
        let mut sector = [0; SECTOR_BYTES];
        sector[4..8].copy_from_slice(&self.number().to_le_bytes());
        sector[8..16].copy_from_slice(&volume_id[..8]);
        for (bytes, word) in sector[BITMAP_HEADER_BYTES..].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let crc = checksum(&sector[4..]);
        sector[..4].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`MapError`] if the bytes are not this sector of this volume.
    pub fn decode(
        self,
        volume_id: &[u8; 16],
        sector: &[u8; SECTOR_BYTES],
    ) -> Result<[u64; SECTOR_WORDS], MapError> {
        let damaged = MapError::Bitmap(self);
        if checksum(&sector[4..]) != u32_at(sector, 0)
            || u32_at(sector, 4) != self.number()
            || sector[8..16] != volume_id[..8]
        {
            return Err(damaged);
        }
        let mut words = [0; SECTOR_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u64_at(sector, BITMAP_HEADER_BYTES + index * 8);
        }
        Ok(words)
    }
}

/// The role record: the truth about the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoleRecord {
    /// One more at every change.
    pub epoch: Epoch,
    /// The route.
    pub route: Route,
    /// Which descriptor slot is valid, 0 or 1.
    pub descriptor_slot: u8,
    /// The length of the descriptor, in bytes.
    pub descriptor_bytes: u32,
    /// The CRC-32C of the descriptor.
    pub descriptor_crc: u32,
    /// The volume's UUID.
    pub volume_id: [u8; 16],
    /// The unit in which the file is written.
    pub block: BlockSize,
    /// The sizes.
    pub geometry: Geometry,
}

/// Why a map file is refused. The contents are never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// Neither role slot holds a valid record.
    NoRole,
    /// The record is of another version of the format.
    Version(u32),
    /// A field of a record with a valid CRC makes no sense.
    Field(&'static str),
    /// The descriptor is not the one that the role record names.
    Descriptor,
    /// A bitmap sector is not valid.
    Bitmap(BitmapSector),
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoRole => f.write_str("neither of the two role records is valid"),
            Self::Version(version) => write!(
                f,
                "it is of format version {version}, this program knows {FORMAT_VERSION}"
            ),
            Self::Field(name) => write!(f, "the field `{name}` of the role record makes no sense"),
            Self::Descriptor => f.write_str("the descriptor does not match its checksum"),
            Self::Bitmap(sector) => write!(
                f,
                "sector {} of the {} bitmap does not match its checksum",
                sector.index,
                match sector.area {
                    Area::Dirty => "dirty",
                    Area::Intent => "write intent",
                }
            ),
        }
    }
}

impl core::error::Error for MapError {}

impl RoleRecord {
    /// The slot that a record of this epoch is written to first.
    #[must_use]
    pub const fn first_slot(self) -> usize {
        (self.epoch.0 % 2) as usize
    }

    /// The record as a sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[..8].copy_from_slice(ROLE_MAGIC);
        sector[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        sector[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        sector[24] = match self.route {
            Route::Single(Side::Source) => 0,
            Route::Single(Side::Target) => 1,
            Route::Mirrored {
                authoritative: Side::Source,
            } => 2,
            Route::Mirrored {
                authoritative: Side::Target,
            } => 3,
            Route::Split => 4,
        };
        sector[25] = self.descriptor_slot;
        sector[28..32].copy_from_slice(&self.descriptor_bytes.to_le_bytes());
        sector[32..36].copy_from_slice(&self.descriptor_crc.to_le_bytes());
        sector[36..40].copy_from_slice(&(self.block.bytes() as u32).to_le_bytes());
        sector[40..56].copy_from_slice(&self.volume_id);
        sector[56..64].copy_from_slice(&self.geometry.size_bytes().to_le_bytes());
        sector[64..72].copy_from_slice(&self.geometry.region_bytes().to_le_bytes());
        let crc = checksum(&sector);
        sector[12..16].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    /// Reads one slot. `None`: the bytes are no role record (never written, torn or damaged).
    ///
    /// # Errors
    /// [`MapError`] if the record is whole, but of another version or with a field that makes no
    /// sense.
    pub fn decode(sector: &[u8; SECTOR_BYTES]) -> Result<Option<Self>, MapError> {
        let mut without_crc = *sector;
        without_crc[12..16].fill(0);
        if sector[..8] != *ROLE_MAGIC || checksum(&without_crc) != u32_at(sector, 12) {
            return Ok(None);
        }
        let version = u32_at(sector, 8);
        if version != FORMAT_VERSION {
            return Err(MapError::Version(version));
        }
        let route = match sector[24] {
            0 => Route::Single(Side::Source),
            1 => Route::Single(Side::Target),
            2 => Route::Mirrored {
                authoritative: Side::Source,
            },
            3 => Route::Mirrored {
                authoritative: Side::Target,
            },
            4 => Route::Split,
            _ => return Err(MapError::Field("route")),
        };
        if sector[25] > 1 {
            return Err(MapError::Field("descriptor slot"));
        }
        let descriptor_bytes = u32_at(sector, 28);
        if descriptor_bytes as usize > DESCRIPTOR_BYTES_MAX {
            return Err(MapError::Field("descriptor length"));
        }
        let mut volume_id = [0; 16];
        volume_id.copy_from_slice(&sector[40..56]);
        let record = Self {
            epoch: Epoch(u64_at(sector, 16)),
            route,
            descriptor_slot: sector[25],
            descriptor_bytes,
            descriptor_crc: u32_at(sector, 32),
            volume_id,
            block: match u32_at(sector, 36) {
                512 => BlockSize::Bytes512,
                4096 => BlockSize::Bytes4096,
                _ => return Err(MapError::Field("block size")),
            },
            geometry: Geometry::new(u64_at(sector, 56), u64_at(sector, 64))
                .map_err(|_| MapError::Field("geometry"))?,
        };
        // A byte is set that this version does not use. Another program wrote the record, and
        // writing it again would lose that.
        if record.encode() != *sector {
            return Err(MapError::Field("padding"));
        }
        Ok(Some(record))
    }

    /// Chooses the record that holds from both slots.
    ///
    /// A change is one durable write to one slot; the other slot gets a copy of it before the next
    /// change may begin. So two valid slots differ by at most one change, and the newer one holds.
    /// If just one slot is valid, the other was torn by a power loss in that very write, or it was
    /// damaged while both said the same: in both cases the valid one holds.
    ///
    /// # Errors
    /// [`MapError`] if neither is valid, or one is of another version.
    pub fn choose(slots: [&[u8; SECTOR_BYTES]; 2]) -> Result<Chosen, MapError> {
        let [first, second] = [Self::decode(slots[0])?, Self::decode(slots[1])?];
        match (first, second) {
            (None, None) => Err(MapError::NoRole),
            (Some(record), None) => Ok(Chosen {
                record,
                stale_slot: Some(1),
            }),
            (None, Some(record)) => Ok(Chosen {
                record,
                stale_slot: Some(0),
            }),
            (Some(a), Some(b)) if a.volume_id != b.volume_id => Err(MapError::Field("volume id")),
            (Some(a), Some(b)) if a.block != b.block => Err(MapError::Field("block size")),
            (Some(a), Some(b)) if a.epoch == b.epoch && a != b => Err(MapError::Field("epoch")),
            (Some(a), Some(b)) if a.epoch.0.abs_diff(b.epoch.0) > 1 => {
                Err(MapError::Field("epoch"))
            }
            (Some(a), Some(b)) if a.epoch > b.epoch => Ok(Chosen {
                record: a,
                stale_slot: Some(1),
            }),
            (Some(a), Some(b)) if a.epoch < b.epoch => Ok(Chosen {
                record: b,
                stale_slot: Some(0),
            }),
            (Some(a), Some(_)) => Ok(Chosen {
                record: a,
                stale_slot: None,
            }),
        }
    }

    /// Checks a descriptor against the record.
    ///
    /// # Errors
    /// [`MapError::Descriptor`].
    pub fn check_descriptor(&self, bytes: &[u8]) -> Result<(), MapError> {
        if bytes.len() == self.descriptor_bytes as usize && checksum(bytes) == self.descriptor_crc {
            Ok(())
        } else {
            Err(MapError::Descriptor)
        }
    }
}

/// The outcome of [`RoleRecord::choose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The record that holds.
    pub record: RoleRecord,
    /// The slot that does not hold this record yet; it has to before the next change.
    pub stale_slot: Option<usize>,
}

/// The parts of a new map file, as offset and bytes: the role record (both slots) and the
/// descriptor in slot 0. The rest of the file's [`file_bytes`] is zero, so whole blocks can be
/// written.
#[must_use]
pub fn initial_parts(record: &RoleRecord, descriptor: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let sector = record.encode();
    alloc::vec![
        (DESCRIPTOR_OFFSETS[0], descriptor.to_vec()),
        (ROLE_OFFSETS[0], sector.to_vec()),
        (ROLE_OFFSETS[1], sector.to_vec()),
    ]
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(epoch: u64, route: Route) -> RoleRecord {
        RoleRecord {
            epoch: Epoch(epoch),
            route,
            descriptor_slot: 1,
            descriptor_bytes: 77,
            descriptor_crc: 0x1234_5678,
            volume_id: *b"0123456789abcdef",
            block: BlockSize::Bytes512,
            geometry: Geometry::for_size(10 << 30).unwrap(),
        }
    }

    const SOURCE: Route = Route::Mirrored {
        authoritative: Side::Source,
    };
    const TARGET: Route = Route::Mirrored {
        authoritative: Side::Target,
    };

    #[test]
    fn a_role_record_survives_the_disk() {
        for route in [
            Route::Single(Side::Source),
            Route::Single(Side::Target),
            Route::Split,
            SOURCE,
            TARGET,
        ] {
            for block in [BlockSize::Bytes512, BlockSize::Bytes4096] {
                let before = RoleRecord {
                    block,
                    ..record(7, route)
                };
                assert_eq!(RoleRecord::decode(&before.encode()), Ok(Some(before)));
            }
        }
    }

    #[test]
    fn the_format_has_not_changed() {
        // Golden values: a change here is a new FORMAT_VERSION.
        assert_eq!(checksum(&record(7, TARGET).encode()), 0xfaed_2e74);
        let words: Vec<u64> = (0..SECTOR_WORDS as u64).collect();
        let sector = BitmapSector {
            area: Area::Intent,
            index: 3,
        };
        assert_eq!(
            checksum(&sector.encode(b"0123456789abcdef", &words)),
            0x6a8f_3a0e
        );
        assert_eq!(BITMAP_OFFSET, 143_360);
        assert_eq!(SECTOR_REGIONS, 3968);
    }

    #[test]
    fn the_newer_of_two_records_holds_and_a_damaged_one_does_not() {
        let (old, new) = (record(7, SOURCE), record(8, TARGET));
        let chosen = RoleRecord::choose([&new.encode(), &old.encode()]).unwrap();
        assert_eq!((chosen.record, chosen.stale_slot), (new, Some(1)));
        let mut torn = new.encode();
        torn[100] ^= 1;
        let chosen = RoleRecord::choose([&torn, &old.encode()]).unwrap();
        assert_eq!((chosen.record, chosen.stale_slot), (old, Some(0)));
        assert_eq!(RoleRecord::choose([&torn, &torn]), Err(MapError::NoRole));
        assert_eq!(
            RoleRecord::choose([&old.encode(), &old.encode()])
                .unwrap()
                .stale_slot,
            None
        );
    }

    #[test]
    fn records_that_contradict_each_other_are_refused() {
        let (a, b) = (record(7, SOURCE), record(7, TARGET));
        assert_eq!(
            RoleRecord::choose([&a.encode(), &b.encode()]),
            Err(MapError::Field("epoch"))
        );
        let far = record(9, TARGET);
        assert_eq!(
            RoleRecord::choose([&a.encode(), &far.encode()]),
            Err(MapError::Field("epoch"))
        );
        let other_block = RoleRecord {
            block: BlockSize::Bytes4096,
            ..record(8, SOURCE)
        };
        assert_eq!(
            RoleRecord::choose([&a.encode(), &other_block.encode()]),
            Err(MapError::Field("block size"))
        );
    }

    #[test]
    fn the_areas_do_not_overlap() {
        for size in [512, 1 << 30, 4 << 40, 100 << 40] {
            let geometry = Geometry::for_size(size).unwrap();
            let last = bitmap_sectors(geometry) - 1;
            let dirty_end = BitmapSector {
                area: Area::Dirty,
                index: last,
            }
            .offset(geometry)
                + 512;
            let intent = BitmapSector {
                area: Area::Intent,
                index: 0,
            }
            .offset(geometry);
            let intent_end = BitmapSector {
                area: Area::Intent,
                index: last,
            }
            .offset(geometry)
                + 512;
            assert!(
                dirty_end <= intent && intent_end <= file_bytes(geometry),
                "{size}"
            );
            // A block of either size holds sectors of one part only.
            let begins = [ROLE_OFFSETS, DESCRIPTOR_OFFSETS, [CUSTODY_OFFSET, intent]].concat();
            for begin in begins
                .into_iter()
                .chain([BITMAP_OFFSET, file_bytes(geometry)])
            {
                assert_eq!(begin % BlockSize::BYTES_MAX as u64, 0, "{size}");
            }
        }
    }

    proptest! {
        #[test]
        fn decoders_never_panic_and_notice_every_flipped_bit(bit in 0usize..4096, words in prop::collection::vec(any::<u64>(), SECTOR_WORDS)) {
            let mut sector = record(7, SOURCE).encode();
            sector[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(RoleRecord::decode(&sector), Ok(None));
            let which = BitmapSector { area: Area::Dirty, index: 5 };
            let mut sector = which.encode(b"0123456789abcdef", &words);
            let decoded = which.decode(b"0123456789abcdef", &sector).unwrap();
            prop_assert_eq!(decoded.as_slice(), words.as_slice());
            prop_assert!(which.decode(b"9123456789abcdef", &sector).is_err());
            sector[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(which.decode(b"0123456789abcdef", &sector).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in prop::collection::vec(any::<u8>(), SECTOR_BYTES)) {
            let mut sector = [0; SECTOR_BYTES];
            sector.copy_from_slice(&bytes);
            sector[..8].copy_from_slice(ROLE_MAGIC);
            sector[12..16].fill(0);
            let crc = checksum(&sector);
            sector[12..16].copy_from_slice(&crc.to_le_bytes());
            let _ = RoleRecord::decode(&sector);
        }
    }
}
