//! The structures of the header.

use std::mem::{offset_of, size_of};

use super::numbers::UBLK_FEATURES_LEN;

/// `struct ublksrv_ctrl_cmd`: the argument of a control command, in the 80-byte area of a 128-byte
/// SQE.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CtrlCmd {
    /// Device number; `u32::MAX` for "the driver chooses" in ADD_DEV and where it does not matter.
    pub dev_id: u32,
    /// Queue number, [`CtrlCmd::NO_QUEUE`] unless the command is for a queue.
    pub queue_id: u16,
    /// Bytes at `addr`.
    pub len: u16,
    /// Address of the command's buffer; the driver reads or writes it while the command runs.
    pub addr: u64,
    /// The command's inline argument (`data[1]` in the header).
    pub data: u64,
    /// Bytes of device path in front of the buffer; unprivileged devices only.
    pub dev_path_len: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub reserved: u32,
}

impl CtrlCmd {
    /// `queue_id` of a command that is for no queue.
    pub const NO_QUEUE: u16 = u16::MAX;

    /// The command as the first bytes of an SQE's 80-byte command area.
    pub fn to_bytes(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[0..4].copy_from_slice(&self.dev_id.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.queue_id.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.data.to_ne_bytes());
        bytes[24..26].copy_from_slice(&self.dev_path_len.to_ne_bytes());
        bytes
    }
}

/// `struct ublksrv_ctrl_dev_info`: a device as the driver describes it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CtrlDevInfo {
    /// Queues; the driver lowers it to the number of CPUs.
    pub nr_hw_queues: u16,
    /// Tags per queue, at most [`UBLK_MAX_QUEUE_DEPTH`](super::UBLK_MAX_QUEUE_DEPTH).
    pub queue_depth: u16,
    /// `UBLK_S_DEV_*`.
    pub state: u16,
    /// Zero.
    pub pad0: u16,
    /// Largest request data in bytes; the driver rounds it down to whole pages.
    pub max_io_buf_bytes: u32,
    /// Device number.
    pub dev_id: u32,
    /// Process of the server; -1 or 0 when there was none yet.
    pub ublksrv_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// [`Features`](super::Features) of the device; the driver clears the flags that it does not
    /// know.
    pub flags: u64,
    /// For the server's own use; the driver only keeps it.
    pub ublksrv_flags: u64,
    /// User that created the device.
    pub owner_uid: u32,
    /// Group that created the device.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

/// `struct ublksrv_io_cmd`: the argument of an I/O command, in the 16-byte area of an SQE.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoCmd {
    /// Queue number.
    pub q_id: u16,
    /// Tag in the queue.
    pub tag: u16,
    /// Answer of a commit: bytes, or a negative error number.
    pub result: i32,
    /// Address of the tag's buffer in the server; 0 with USER_COPY. In the header a union with
    /// `zone_append_lba`.
    pub addr: u64,
}

impl IoCmd {
    /// The command as an SQE's 16-byte command area.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..2].copy_from_slice(&self.q_id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.result.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes
    }
}

/// `struct ublksrv_io_desc`: one request, in memory shared with the driver.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoDesc {
    /// `UBLK_IO_OP_*` in bits 0 to 7, `UBLK_IO_F_*` in the others.
    pub op_flags: u32,
    /// Length in sectors (in the header a union with `nr_zones`).
    pub nr_sectors: u32,
    /// First sector.
    pub start_sector: u64,
    /// The address that the server gave for this tag; meaningless for requests without data.
    pub addr: u64,
}

/// `struct ublk_batch_io` (7.0).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BatchIo {
    /// Queue number.
    pub q_id: u16,
    /// `UBLK_BATCH_F_*`.
    pub flags: u16,
    /// Elements in the buffer.
    pub nr_elem: u16,
    /// Bytes per element.
    pub elem_bytes: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u64,
}

/// `struct ublk_auto_buf_reg` (6.16). It travels in an SQE's `addr`: index in bits 0 to 15, flags
/// in bits 16 to 23.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AutoBufReg {
    /// Index in the ring's buffer table.
    pub index: u16,
    /// [`UBLK_AUTO_BUF_REG_FALLBACK`](super::UBLK_AUTO_BUF_REG_FALLBACK).
    pub flags: u8,
    /// Zero.
    pub reserved0: u8,
    /// Zero.
    pub reserved1: u32,
}

/// `struct ublk_param_basic`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamBasic {
    /// `UBLK_ATTR_*`.
    pub attrs: u32,
    /// Logical block size, power of two of bytes.
    pub logical_bs_shift: u8,
    /// Physical block size, power of two of bytes.
    pub physical_bs_shift: u8,
    /// Best request size, power of two of bytes.
    pub io_opt_shift: u8,
    /// Smallest sensible request size, power of two of bytes.
    pub io_min_shift: u8,
    /// Largest request in sectors.
    pub max_sectors: u32,
    /// Requests do not cross multiples of this many sectors; 0 for none.
    pub chunk_sectors: u32,
    /// Size of the device in sectors.
    pub dev_sectors: u64,
    /// Segment boundary mask; 0 for none.
    pub virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`: discard and write-zeroes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamDiscard {
    /// Bytes.
    pub discard_alignment: u32,
    /// Bytes, not 0.
    pub discard_granularity: u32,
    /// Largest discard in sectors; 0: no discards are sent.
    pub max_discard_sectors: u32,
    /// Largest write-zeroes in sectors; 0: none are sent.
    pub max_write_zeroes_sectors: u32,
    /// The driver accepts 1 only.
    pub max_discard_segments: u16,
    /// Zero.
    pub reserved0: u16,
}

/// `struct ublk_param_devt`: device numbers, filled in by the driver.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamDevt {
    /// `/dev/ublkcN`.
    pub char_major: u32,
    /// `/dev/ublkcN`.
    pub char_minor: u32,
    /// `/dev/ublkbN`; 0 before the start.
    pub disk_major: u32,
    /// `/dev/ublkbN`; 0 before the start.
    pub disk_minor: u32,
}

/// `struct ublk_param_zoned` (6.6).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamZoned {
    /// Zones.
    pub max_open_zones: u32,
    /// Zones.
    pub max_active_zones: u32,
    /// Sectors.
    pub max_zone_append_sectors: u32,
    /// Zero.
    pub reserved: [u8; 20],
}

/// `struct ublk_param_dma_align` (6.15).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamDmaAlign {
    /// Alignment mask of request memory: alignment in bytes, less one.
    pub alignment: u32,
    /// Zero.
    pub pad: [u8; 4],
}

/// `struct ublk_param_segment` (6.15).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamSegment {
    /// Boundary in bytes, less one.
    pub seg_boundary_mask: u64,
    /// Bytes.
    pub max_segment_size: u32,
    /// Segments per request.
    pub max_segments: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// `struct ublk_param_integrity` (7.0).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamIntegrity {
    /// `LBMD_PI_CAP_*` of `<linux/fs.h>`.
    pub flags: u32,
    /// Segments per request; 0 for no limit.
    pub max_integrity_segments: u16,
    /// Bytes of data per interval, power of two.
    pub interval_exp: u8,
    /// Bytes of metadata per interval.
    pub metadata_size: u8,
    /// Bytes.
    pub pi_offset: u8,
    /// `LBMD_PI_CSUM_*` of `<linux/fs.h>`.
    pub csum_type: u8,
    /// Bytes.
    pub tag_size: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// `struct ublk_params`. An older driver reads and writes only the first `len` bytes, which it
/// knows.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Params {
    /// Bytes of this structure that are present.
    pub len: u32,
    /// `UBLK_PARAM_TYPE_*`: which parts are valid. The driver clears the types that it does not
    /// know.
    pub types: u32,
    /// Size, block sizes, attributes.
    pub basic: ParamBasic,
    /// Discard and write-zeroes.
    pub discard: ParamDiscard,
    /// Device numbers.
    pub devt: ParamDevt,
    /// Zones.
    pub zoned: ParamZoned,
    /// Alignment of request memory.
    pub dma: ParamDmaAlign,
    /// Zero; the C compiler's padding in front of `segment`, made visible.
    pub pad: [u8; 4],
    /// Segments (`seg` in the header).
    pub segment: ParamSegment,
    /// Protection information.
    pub integrity: ParamIntegrity,
}

// Sizes and offsets of the header, on every 64-bit and 32-bit architecture where u64 is 8-aligned.
const _: () = {
    assert!(size_of::<CtrlCmd>() == 32);
    assert!(offset_of!(CtrlCmd, addr) == 8 && offset_of!(CtrlCmd, data) == 16);
    assert!(offset_of!(CtrlCmd, dev_path_len) == 24 && offset_of!(CtrlCmd, reserved) == 28);
    assert!(size_of::<CtrlDevInfo>() == 64);
    assert!(offset_of!(CtrlDevInfo, max_io_buf_bytes) == 8 && offset_of!(CtrlDevInfo, flags) == 24);
    assert!(
        offset_of!(CtrlDevInfo, ublksrv_flags) == 32 && offset_of!(CtrlDevInfo, reserved2) == 56
    );
    assert!(size_of::<IoCmd>() == 16 && offset_of!(IoCmd, addr) == 8);
    assert!(
        size_of::<IoDesc>() == 24
            && offset_of!(IoDesc, start_sector) == 8
            && offset_of!(IoDesc, addr) == 16
    );
    assert!(size_of::<BatchIo>() == 16 && offset_of!(BatchIo, reserved2) == 8);
    assert!(size_of::<AutoBufReg>() == 8 && offset_of!(AutoBufReg, reserved1) == 4);
    assert!(size_of::<ParamBasic>() == 32 && offset_of!(ParamBasic, dev_sectors) == 16);
    assert!(
        size_of::<ParamDiscard>() == 20
            && size_of::<ParamDevt>() == 16
            && size_of::<ParamZoned>() == 32
    );
    assert!(
        size_of::<ParamDmaAlign>() == 8
            && size_of::<ParamSegment>() == 16
            && size_of::<ParamIntegrity>() == 16
    );
    assert!(
        offset_of!(Params, basic) == 8
            && offset_of!(Params, discard) == 40
            && offset_of!(Params, devt) == 60
    );
    assert!(
        offset_of!(Params, zoned) == 76
            && offset_of!(Params, dma) == 108
            && offset_of!(Params, segment) == 120
    );
    assert!(offset_of!(Params, integrity) == 136 && size_of::<Params>() == 152);
    assert!(UBLK_FEATURES_LEN as usize == size_of::<u64>());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_field_by_field_at_the_header_offsets() {
        let command = CtrlCmd {
            dev_id: 1,
            queue_id: 2,
            len: 3,
            addr: 4,
            data: 5,
            dev_path_len: 6,
            pad: 0,
            reserved: 0,
        };
        let bytes = command.to_bytes();
        assert_eq!(
            bytes[offset_of!(CtrlCmd, queue_id)..][..2],
            2u16.to_ne_bytes()
        );
        assert_eq!(bytes[offset_of!(CtrlCmd, len)..][..2], 3u16.to_ne_bytes());
        assert_eq!(bytes[offset_of!(CtrlCmd, addr)..][..8], 4u64.to_ne_bytes());
        assert_eq!(bytes[offset_of!(CtrlCmd, data)..][..8], 5u64.to_ne_bytes());
        assert_eq!(
            bytes[offset_of!(CtrlCmd, dev_path_len)..][..2],
            6u16.to_ne_bytes()
        );
        assert!(bytes[26..].iter().all(|byte| *byte == 0));
        let bytes = IoCmd {
            q_id: 1,
            tag: 2,
            result: -5,
            addr: 7,
        }
        .to_bytes();
        assert_eq!(bytes[offset_of!(IoCmd, tag)..][..2], 2u16.to_ne_bytes());
        assert_eq!(
            bytes[offset_of!(IoCmd, result)..][..4],
            (-5i32).to_ne_bytes()
        );
        assert_eq!(bytes[offset_of!(IoCmd, addr)..][..8], 7u64.to_ne_bytes());
    }
}
