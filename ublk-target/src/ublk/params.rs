//! Parameters of a block device, in bytes and checked before the driver sees them.
//!
//! The driver answers EINVAL to every parameter that it refuses. The checks here refuse the same
//! parameters with a reason (`ublk_validate_params` of Linux 6.12 and 7.2; all checks except the
//! limits that depend on the page size and on the device's buffers). All parameters are fixed once
//! the device is started.

use thiserror::Error;

use super::abi::{self, ParamBasic, ParamDiscard, ParamDmaAlign, Params};

/// Bytes in one sector of the interface, whatever the logical block size.
const SECTOR_BYTES: u64 = 512;
/// Smallest logical block in bytes.
const BLOCK_BYTES_MIN: u32 = 512;
/// Smallest valid value of the largest request, in bytes: the block layer requires a page (4096 on
/// the architectures that Shunt supports).
const REQUEST_BYTES_MAX_MIN: u32 = 4096;

/// Parameters of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceParams {
    /// Size of the device in bytes, a multiple of the logical block.
    pub size_bytes: u64,
    /// Logical block in bytes: a power of two from 512 to the page size.
    pub logical_block_bytes: u32,
    /// Physical block in bytes: a power of two, not smaller than the logical block.
    pub physical_block_bytes: u32,
    /// Smallest sensible request in bytes: a power of two.
    pub io_min_bytes: u32,
    /// Best request size in bytes: a power of two; the logical block if nothing is known.
    pub io_opt_bytes: u32,
    /// Largest request in bytes: whole sectors, at least 4096, at most the device's
    /// `io_buffer_bytes_max`.
    pub request_bytes_max: u32,
    /// Writes fail. Cannot change while the device exists.
    pub read_only: bool,
    /// Seeks are slow.
    pub rotational: bool,
    /// An acknowledged write is durable only after a flush. If false, the kernel never sends a
    /// flush.
    pub volatile_cache: bool,
    /// FUA writes arrive as such. Needs `volatile_cache`.
    pub fua: bool,
    /// Discard and write-zeroes; `None`: neither is ever sent.
    pub discard: Option<DiscardParams>,
    /// Alignment of the memory of direct I/O in bytes, a power of two; `None`: the driver's 4
    /// bytes. Linux 6.15.
    pub dma_alignment_bytes: Option<u32>,
}

/// The requests without data that a device accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardParams {
    /// Granularity of discards in bytes, not 0 (the driver requires it for write-zeroes too).
    pub granularity_bytes: u32,
    /// Offset of the first granule in bytes.
    pub alignment_bytes: u32,
    /// Largest discard in bytes, whole sectors; 0: none are sent.
    pub discard_bytes_max: u64,
    /// Largest write-zeroes in bytes, whole sectors; 0: none are sent. May exceed the largest
    /// request.
    pub write_zeroes_bytes_max: u64,
}

/// Parameters that the driver would refuse, or that the driver reported and that are not valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ParamsError {
    /// Not a power of two.
    #[error("{field} of {bytes} bytes is not a power of two")]
    PowerOfTwo {
        /// The parameter.
        field: &'static str,
        /// The parameter's value.
        bytes: u32,
    },
    /// Not a whole number of sectors, or more sectors than the interface can hold.
    #[error(
        "{field} of {bytes} bytes is not a whole number of 512-byte sectors that the interface can hold"
    )]
    Sectors {
        /// The parameter.
        field: &'static str,
        /// The parameter's value.
        bytes: u64,
    },
    /// The logical block is too small, or larger than the physical block.
    #[error(
        "logical block of {logical} bytes: it must be 512 or more, at most the physical block of {physical} bytes"
    )]
    Blocks {
        /// Logical block in bytes.
        logical: u32,
        /// Physical block in bytes.
        physical: u32,
    },
    /// The size is zero or not a multiple of the logical block.
    #[error(
        "device size of {size} bytes is not a positive multiple of the logical block of {block} bytes"
    )]
    Size {
        /// Device size in bytes.
        size: u64,
        /// Logical block in bytes.
        block: u32,
    },
    /// The largest request is too small.
    #[error("largest request of {bytes} bytes is below the block layer's minimum of 4096 bytes")]
    Request {
        /// Largest request in bytes.
        bytes: u32,
    },
    /// FUA without a volatile cache.
    #[error("fua needs a volatile cache")]
    FuaWithoutCache,
    /// Discard or write-zeroes without a granularity.
    #[error("discard granularity is 0")]
    Granularity,
    /// The driver reported no basic parameters: none were set.
    #[error("the device has no basic parameters")]
    NoBasic,
    /// The driver reported kinds of parameters that this program never sets.
    #[error("unknown kinds of parameters {0:#x}")]
    Types(u32),
    /// The driver reported an exponent that is too large.
    #[error("{field} of 2^{shift} bytes is too large")]
    Shift {
        /// The parameter.
        field: &'static str,
        /// The exponent.
        shift: u8,
    },
}

impl DeviceParams {
    /// Encodes the parameters for the driver.
    pub fn encode(&self) -> Result<Params, ParamsError> {
        self.check()?;
        let mut params = Params {
            len: size_of::<Params>() as u32,
            types: abi::UBLK_PARAM_TYPE_BASIC,
            basic: self.encode_basic()?,
            ..Params::default()
        };
        if let Some(discard) = self.discard {
            params.types |= abi::UBLK_PARAM_TYPE_DISCARD;
            params.discard = discard.encode()?;
        }
        if let Some(bytes) = self.dma_alignment_bytes {
            shift("dma alignment", bytes)?;
            params.types |= abi::UBLK_PARAM_TYPE_DMA_ALIGN;
            params.dma = ParamDmaAlign {
                alignment: bytes - 1,
                pad: [0; 4],
            };
        }
        Ok(params)
    }

    /// Decodes the parameters that the driver reported (GET_PARAMS).
    pub fn decode(params: &Params) -> Result<Self, ParamsError> {
        const KNOWN: u32 = abi::UBLK_PARAM_TYPE_BASIC
            | abi::UBLK_PARAM_TYPE_DISCARD
            | abi::UBLK_PARAM_TYPE_DEVT
            | abi::UBLK_PARAM_TYPE_DMA_ALIGN;
        if params.types & !KNOWN != 0 {
            return Err(ParamsError::Types(params.types & !KNOWN));
        }
        if params.types & abi::UBLK_PARAM_TYPE_BASIC == 0 {
            return Err(ParamsError::NoBasic);
        }
        let basic = &params.basic;
        let has_discard = params.types & abi::UBLK_PARAM_TYPE_DISCARD != 0;
        let has_dma = params.types & abi::UBLK_PARAM_TYPE_DMA_ALIGN != 0;
        let has = |attribute| basic.attrs & attribute != 0;
        Ok(Self {
            size_bytes: bytes("device size", basic.dev_sectors)?,
            logical_block_bytes: power("logical block", basic.logical_bs_shift)?,
            physical_block_bytes: power("physical block", basic.physical_bs_shift)?,
            io_min_bytes: power("smallest request", basic.io_min_shift)?,
            io_opt_bytes: power("best request", basic.io_opt_shift)?,
            request_bytes_max: request_bytes_max(basic.max_sectors)?,
            read_only: has(abi::UBLK_ATTR_READ_ONLY),
            rotational: has(abi::UBLK_ATTR_ROTATIONAL),
            volatile_cache: has(abi::UBLK_ATTR_VOLATILE_CACHE),
            fua: has(abi::UBLK_ATTR_FUA),
            discard: has_discard.then(|| DiscardParams::decode(&params.discard)),
            dma_alignment_bytes: has_dma.then(|| params.dma.alignment.saturating_add(1)),
        })
    }

    fn check(&self) -> Result<(), ParamsError> {
        let (logical, physical) = (self.logical_block_bytes, self.physical_block_bytes);
        if logical < BLOCK_BYTES_MIN || logical > physical {
            return Err(ParamsError::Blocks { logical, physical });
        }
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(logical.into()) {
            return Err(ParamsError::Size {
                size: self.size_bytes,
                block: logical,
            });
        }
        if self.request_bytes_max < REQUEST_BYTES_MAX_MIN {
            return Err(ParamsError::Request {
                bytes: self.request_bytes_max,
            });
        }
        if self.fua && !self.volatile_cache {
            return Err(ParamsError::FuaWithoutCache);
        }
        Ok(())
    }

    fn encode_basic(&self) -> Result<ParamBasic, ParamsError> {
        let attributes = [
            (self.read_only, abi::UBLK_ATTR_READ_ONLY),
            (self.rotational, abi::UBLK_ATTR_ROTATIONAL),
            (self.volatile_cache, abi::UBLK_ATTR_VOLATILE_CACHE),
            (self.fua, abi::UBLK_ATTR_FUA),
        ];
        Ok(ParamBasic {
            attrs: attributes
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, bit)| bit)
                .sum(),
            logical_bs_shift: shift("logical block", self.logical_block_bytes)?,
            physical_bs_shift: shift("physical block", self.physical_block_bytes)?,
            io_opt_shift: shift("best request", self.io_opt_bytes)?,
            io_min_shift: shift("smallest request", self.io_min_bytes)?,
            max_sectors: sectors("largest request", self.request_bytes_max.into())?,
            chunk_sectors: 0,
            dev_sectors: self.size_bytes / SECTOR_BYTES,
            virt_boundary_mask: 0,
        })
    }
}

impl DiscardParams {
    fn encode(&self) -> Result<ParamDiscard, ParamsError> {
        if self.granularity_bytes == 0 {
            return Err(ParamsError::Granularity);
        }
        Ok(ParamDiscard {
            discard_alignment: self.alignment_bytes,
            discard_granularity: self.granularity_bytes,
            max_discard_sectors: sectors("largest discard", self.discard_bytes_max)?,
            max_write_zeroes_sectors: sectors("largest write-zeroes", self.write_zeroes_bytes_max)?,
            max_discard_segments: 1,
            reserved0: 0,
        })
    }

    fn decode(discard: &ParamDiscard) -> Self {
        Self {
            granularity_bytes: discard.discard_granularity,
            alignment_bytes: discard.discard_alignment,
            discard_bytes_max: u64::from(discard.max_discard_sectors) * SECTOR_BYTES,
            write_zeroes_bytes_max: u64::from(discard.max_write_zeroes_sectors) * SECTOR_BYTES,
        }
    }
}

/// Exponent of a power of two.
fn shift(field: &'static str, bytes: u32) -> Result<u8, ParamsError> {
    if !bytes.is_power_of_two() {
        return Err(ParamsError::PowerOfTwo { field, bytes });
    }
    Ok(bytes.trailing_zeros() as u8)
}

/// Power of two of an exponent.
fn power(field: &'static str, shift: u8) -> Result<u32, ParamsError> {
    1u32.checked_shl(shift.into())
        .ok_or(ParamsError::Shift { field, shift })
}

/// Whole sectors of a number of bytes.
fn sectors(field: &'static str, bytes: u64) -> Result<u32, ParamsError> {
    let error = ParamsError::Sectors { field, bytes };
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(error);
    }
    u32::try_from(bytes / SECTOR_BYTES).map_err(|_| error)
}

/// Bytes of the largest request.
fn request_bytes_max(sectors: u32) -> Result<u32, ParamsError> {
    let field = "largest request";
    let bytes = bytes(field, sectors.into())?;
    u32::try_from(bytes).map_err(|_| ParamsError::Sectors { field, bytes })
}

/// Bytes of a number of sectors.
fn bytes(field: &'static str, sectors: u64) -> Result<u64, ParamsError> {
    sectors
        .checked_mul(SECTOR_BYTES)
        .ok_or(ParamsError::Sectors {
            field,
            bytes: u64::MAX,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> DeviceParams {
        DeviceParams {
            size_bytes: 64 << 20,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            io_min_bytes: 4096,
            io_opt_bytes: 65536,
            request_bytes_max: 512 << 10,
            read_only: false,
            rotational: false,
            volatile_cache: true,
            fua: true,
            discard: None,
            dma_alignment_bytes: None,
        }
    }

    fn with_discard() -> DeviceParams {
        let discard = DiscardParams {
            granularity_bytes: 4096,
            alignment_bytes: 0,
            discard_bytes_max: 0,
            write_zeroes_bytes_max: 1 << 30,
        };
        DeviceParams {
            discard: Some(discard),
            dma_alignment_bytes: Some(512),
            ..params()
        }
    }

    #[test]
    fn what_is_set_is_read_back_the_same() {
        for original in [params(), with_discard()] {
            assert_eq!(
                DeviceParams::decode(&original.encode().unwrap()),
                Ok(original)
            );
        }
    }

    #[test]
    fn bytes_become_shifts_and_sectors() {
        let encoded = with_discard().encode().unwrap();
        assert_eq!(encoded.len, 152);
        assert_eq!(encoded.types, 0b1_0011);
        assert_eq!(
            (
                encoded.basic.logical_bs_shift,
                encoded.basic.physical_bs_shift
            ),
            (9, 12)
        );
        assert_eq!(
            (encoded.basic.io_min_shift, encoded.basic.io_opt_shift),
            (12, 16)
        );
        assert_eq!(
            (encoded.basic.max_sectors, encoded.basic.dev_sectors),
            (1024, 131_072)
        );
        assert_eq!(
            encoded.basic.attrs,
            abi::UBLK_ATTR_VOLATILE_CACHE | abi::UBLK_ATTR_FUA
        );
        assert_eq!(encoded.discard.max_write_zeroes_sectors, 1 << 21);
        assert_eq!(
            (
                encoded.discard.max_discard_sectors,
                encoded.discard.max_discard_segments
            ),
            (0, 1)
        );
        assert_eq!(encoded.dma.alignment, 511);
    }

    #[test]
    fn what_the_driver_would_refuse_is_refused_with_its_reason() {
        let refused = |params: DeviceParams| params.encode().unwrap_err();
        let p = params();
        assert!(matches!(
            refused(DeviceParams {
                logical_block_bytes: 256,
                ..p
            }),
            ParamsError::Blocks { logical: 256, .. }
        ));
        assert!(matches!(
            refused(DeviceParams {
                logical_block_bytes: 8192,
                ..p
            }),
            ParamsError::Blocks { physical: 4096, .. }
        ));
        assert!(matches!(
            refused(DeviceParams {
                io_opt_bytes: 3 << 10,
                ..p
            }),
            ParamsError::PowerOfTwo { bytes: 3072, .. }
        ));
        assert!(matches!(
            refused(DeviceParams {
                size_bytes: 513,
                ..p
            }),
            ParamsError::Size { .. }
        ));
        assert!(matches!(
            refused(DeviceParams { size_bytes: 0, ..p }),
            ParamsError::Size { .. }
        ));
        assert!(matches!(
            refused(DeviceParams {
                request_bytes_max: 2048,
                ..p
            }),
            ParamsError::Request { bytes: 2048 }
        ));
        assert!(matches!(
            refused(DeviceParams {
                request_bytes_max: 4097,
                ..p
            }),
            ParamsError::Sectors { bytes: 4097, .. }
        ));
        assert_eq!(
            refused(DeviceParams {
                volatile_cache: false,
                ..p
            }),
            ParamsError::FuaWithoutCache
        );
    }

    #[test]
    fn discard_without_granularity_or_beyond_the_field_is_refused() {
        let discard = with_discard().discard.unwrap();
        let refused = |discard| {
            DeviceParams {
                discard: Some(discard),
                ..params()
            }
            .encode()
            .unwrap_err()
        };
        assert_eq!(
            refused(DiscardParams {
                granularity_bytes: 0,
                ..discard
            }),
            ParamsError::Granularity
        );
        assert!(matches!(
            refused(DiscardParams {
                discard_bytes_max: 512 << 32,
                ..discard
            }),
            ParamsError::Sectors { .. }
        ));
    }

    #[test]
    fn parameters_that_we_never_set_are_an_error() {
        let encoded = params().encode().unwrap();
        let with_types = |types| DeviceParams::decode(&Params { types, ..encoded });
        assert_eq!(
            with_types(abi::UBLK_PARAM_TYPE_DEVT),
            Err(ParamsError::NoBasic)
        );
        let zoned = abi::UBLK_PARAM_TYPE_BASIC | abi::UBLK_PARAM_TYPE_ZONED;
        assert_eq!(
            with_types(zoned),
            Err(ParamsError::Types(abi::UBLK_PARAM_TYPE_ZONED))
        );
    }

    #[test]
    fn numbers_that_do_not_fit_are_an_error_and_no_panic() {
        let mut encoded = params().encode().unwrap();
        encoded.basic.io_opt_shift = 32;
        assert!(matches!(
            DeviceParams::decode(&encoded),
            Err(ParamsError::Shift { shift: 32, .. })
        ));
        let mut encoded = params().encode().unwrap();
        encoded.basic.max_sectors = u32::MAX;
        assert!(matches!(
            DeviceParams::decode(&encoded),
            Err(ParamsError::Sectors { .. })
        ));
        let mut encoded = params().encode().unwrap();
        encoded.basic.dev_sectors = u64::MAX;
        assert!(matches!(
            DeviceParams::decode(&encoded),
            Err(ParamsError::Sectors { .. })
        ));
    }
}
