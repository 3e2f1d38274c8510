//! The binary interface of Linux's `ublk_drv`: constants and structures of `<linux/ublk_cmd.h>`.
//!
//! Source: the header of Linux 7.2 (Debian `linux-libc-dev` 7.2.12). Names are the header's own,
//! without `struct` and without `UBLK_F_` for the feature flags, so that one can search for them.
//! The interface was only ever extended, never renumbered, so an older driver understands the part
//! that it has. `tests/abi_layout.rs` compares every value and offset with the header that the C
//! compiler sees.
//!
//! All structures are `repr(C)`, have no hidden padding (asserted below), and are valid for any bit
//! pattern. "sector" is always 512 bytes here, whatever the logical block size is.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::ops::BitOr;

// ---------------------------------------------------------------------------------------------
// Feature flags
// ---------------------------------------------------------------------------------------------

/// A set of `UBLK_F_*` flags: what a driver offers (GET_FEATURES) or what a device has
/// (`dev_info.flags`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(u64);

/// Defines the flags and their names from one table.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(1 << $bit);)*

            /// Every flag that this module knows, in the order of the bits, with the header's name
            /// without `UBLK_F_`.
            pub const TABLE: &'static [(Features, &'static str)] = &[$((Features::$name, stringify!($name)),)*];
        }
    };
}

features! {
    /// Request pages can be registered in io_uring's buffer table (6.15; the bit is reserved since
    /// 6.0).
    SUPPORT_ZERO_COPY = 0;
    /// Commands complete in the server's task context; drivers since 6.4 always set it.
    URING_CMD_COMP_IN_TASK = 1;
    /// The server supplies a write's buffer in a second round trip (6.0).
    NEED_GET_DATA = 2;
    /// The device survives its server; new requests wait for the next one (6.1).
    USER_RECOVERY = 3;
    /// With [`Self::USER_RECOVERY`]: requests in flight are delivered again to the next server
    /// (6.1).
    USER_RECOVERY_REISSUE = 4;
    /// The device belongs to an unprivileged user; clears the recovery flags (6.3).
    UNPRIVILEGED_DEV = 5;
    /// Opcodes are encoded as ioctl numbers; always set since 6.4. This module uses no other
    /// encoding.
    CMD_IOCTL_ENCODE = 6;
    /// Data moves by pread/pwrite on `/dev/ublkcN` instead of by the driver's copy (6.5).
    USER_COPY = 7;
    /// Zoned devices (6.6).
    ZONED = 8;
    /// With [`Self::USER_RECOVERY`]: requests fail while there is no server (6.13).
    USER_RECOVERY_FAIL_IO = 9;
    /// UPDATE_SIZE changes the size of a live device (6.16).
    UPDATE_SIZE = 10;
    /// The driver automatically registers request pages in the server's buffer table (6.16).
    AUTO_BUF_REG = 11;
    /// QUIESCE_DEV (6.16). The flag also identifies the driver generation that detects a server's
    /// death by the release of `/dev/ublkcN` and recovers from a crash during recovery.
    QUIESCE = 12;
    /// Each tag may have a server thread of its own; without it all tags of a queue belong to one
    /// thread (6.16).
    PER_IO_DAEMON = 13;
    /// Zero-copy buffers may be registered by any thread (6.17).
    BUF_REG_OFF_DAEMON = 14;
    /// Requests are fetched and committed in batches (7.0).
    BATCH_IO = 15;
    /// T10 protection information; needs [`Self::USER_COPY`] (7.0).
    INTEGRITY = 16;
    /// TRY_STOP_DEV: stop only when nobody has the block device open (7.0).
    SAFE_STOP_DEV = 17;
    /// No partition scan when the device starts (7.0).
    NO_AUTO_PART_SCAN = 18;
    /// Zero copy over memory shared with the client (7.1).
    SHMEM_ZC = 19;
}

impl Features {
    /// The set of flags with these bits, known or not.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The flags as the header's `__u64`.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every flag of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags that are in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags of this set that are not in `other`.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of the known flags in this set, lowest bit first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::TABLE
            .iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| *name)
    }

    /// The flags of this set that this module does not know.
    pub fn unknown(self) -> Self {
        Self::TABLE
            .iter()
            .fold(self, |left, (flag, _)| left.difference(*flag))
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Display for Features {
    /// Writes `USER_RECOVERY|ZONED|0x100000`: the names, then the unknown bits as one number;
    /// `none` for the empty set.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return formatter.write_str("none");
        }
        let mut separator = "";
        for name in self.names() {
            write!(formatter, "{separator}{name}")?;
            separator = "|";
        }
        let unknown = self.unknown();
        if !unknown.is_empty() {
            write!(formatter, "{separator}{:#x}", unknown.0)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Features({self})")
    }
}

// ---------------------------------------------------------------------------------------------
// Opcodes
// ---------------------------------------------------------------------------------------------

/// `_IOR('u', number, T)`: the kernel writes to us.
const fn read_code<T>(number: u32) -> u32 {
    libc::_IOR::<T>(b'u' as u32, number) as u32
}

/// `_IOWR('u', number, T)`: both directions.
const fn read_write_code<T>(number: u32) -> u32 {
    libc::_IOWR::<T>(b'u' as u32, number) as u32
}

/// The CPUs that serve a queue; buffer: CPU mask.
pub const UBLK_U_CMD_GET_QUEUE_AFFINITY: u32 = read_code::<CtrlCmd>(0x01);
/// Reads [`CtrlDevInfo`].
pub const UBLK_U_CMD_GET_DEV_INFO: u32 = read_code::<CtrlCmd>(0x02);
/// Creates `/dev/ublkcN`; buffer: [`CtrlDevInfo`], read and written back.
pub const UBLK_U_CMD_ADD_DEV: u32 = read_write_code::<CtrlCmd>(0x04);
/// Deletes a device and waits until every reference to it is gone.
pub const UBLK_U_CMD_DEL_DEV: u32 = read_write_code::<CtrlCmd>(0x05);
/// Creates `/dev/ublkbN` once every tag was fetched; `data` is the server's pid.
pub const UBLK_U_CMD_START_DEV: u32 = read_write_code::<CtrlCmd>(0x06);
/// Removes `/dev/ublkbN`.
pub const UBLK_U_CMD_STOP_DEV: u32 = read_write_code::<CtrlCmd>(0x07);
/// Writes [`Params`], before START_DEV only.
pub const UBLK_U_CMD_SET_PARAMS: u32 = read_write_code::<CtrlCmd>(0x08);
/// Reads [`Params`].
pub const UBLK_U_CMD_GET_PARAMS: u32 = read_code::<CtrlCmd>(0x09);
/// Begins the takeover of a device whose server is gone (6.1).
pub const UBLK_U_CMD_START_USER_RECOVERY: u32 = read_write_code::<CtrlCmd>(0x10);
/// Ends a takeover, once every tag was fetched; `data` is the new server's pid (6.1).
pub const UBLK_U_CMD_END_USER_RECOVERY: u32 = read_write_code::<CtrlCmd>(0x11);
/// Reads [`CtrlDevInfo`] with a device path in front, for unprivileged devices (6.3).
pub const UBLK_U_CMD_GET_DEV_INFO2: u32 = read_code::<CtrlCmd>(0x12);
/// Reads [`Features`], [`UBLK_FEATURES_LEN`] bytes (6.5).
pub const UBLK_U_CMD_GET_FEATURES: u32 = read_code::<CtrlCmd>(0x13);
/// DEL_DEV that does not wait (6.9).
pub const UBLK_U_CMD_DEL_DEV_ASYNC: u32 = read_code::<CtrlCmd>(0x14);
/// Changes the size; `data` is the new size in sectors (6.16).
pub const UBLK_U_CMD_UPDATE_SIZE: u32 = read_write_code::<CtrlCmd>(0x15);
/// Takes the device from its live server; `data` is a time limit in milliseconds (6.16).
pub const UBLK_U_CMD_QUIESCE_DEV: u32 = read_write_code::<CtrlCmd>(0x16);
/// STOP_DEV that answers EBUSY while somebody has the block device open (7.0).
pub const UBLK_U_CMD_TRY_STOP_DEV: u32 = read_write_code::<CtrlCmd>(0x17);
/// Registers memory shared with clients (7.1).
pub const UBLK_U_CMD_REG_BUF: u32 = read_write_code::<CtrlCmd>(0x18);
/// Unregisters memory shared with clients (7.1).
pub const UBLK_U_CMD_UNREG_BUF: u32 = read_write_code::<CtrlCmd>(0x19);

/// Size in bytes of GET_FEATURES' buffer; the driver accepts no other.
pub const UBLK_FEATURES_LEN: u16 = 8;

/// Offers a tag to the driver for the first time; completes with a request.
pub const UBLK_U_IO_FETCH_REQ: u32 = read_write_code::<IoCmd>(0x20);
/// Answers a request and offers its tag again.
pub const UBLK_U_IO_COMMIT_AND_FETCH_REQ: u32 = read_write_code::<IoCmd>(0x21);
/// Supplies a write's buffer ([`Features::NEED_GET_DATA`]).
pub const UBLK_U_IO_NEED_GET_DATA: u32 = read_write_code::<IoCmd>(0x22);
/// Puts a request's pages in io_uring's buffer table (6.15).
pub const UBLK_U_IO_REGISTER_IO_BUF: u32 = read_write_code::<IoCmd>(0x23);
/// Removes a request's pages from io_uring's buffer table (6.15).
pub const UBLK_U_IO_UNREGISTER_IO_BUF: u32 = read_write_code::<IoCmd>(0x24);
/// Batch form of FETCH_REQ (7.0).
pub const UBLK_U_IO_PREP_IO_CMDS: u32 = read_write_code::<BatchIo>(0x25);
/// Batch form of the commit (7.0).
pub const UBLK_U_IO_COMMIT_IO_CMDS: u32 = read_write_code::<BatchIo>(0x26);
/// Multishot delivery of requests (7.0).
pub const UBLK_U_IO_FETCH_IO_CMDS: u32 = read_write_code::<BatchIo>(0x27);

/// CQE result of an I/O command: a request arrived.
pub const UBLK_IO_RES_OK: i32 = 0;
/// CQE result of an I/O command: a write arrived and wants a buffer.
pub const UBLK_IO_RES_NEED_GET_DATA: i32 = 1;
/// CQE result of an I/O command: the driver gives the tag back; do not fetch it again.
pub const UBLK_IO_RES_ABORT: i32 = -libc::ENODEV;

// ---------------------------------------------------------------------------------------------
// Limits, offsets, states, operations
// ---------------------------------------------------------------------------------------------

/// mmap offset in bytes of the I/O descriptors of queue 0.
pub const UBLKSRV_CMD_BUF_OFFSET: u64 = 0;
/// pread/pwrite offset in bytes of the data of queue 0, tag 0 ([`Features::USER_COPY`]).
pub const UBLKSRV_IO_BUF_OFFSET: u64 = 0x8000_0000;
/// Most tags of a queue; also the distance of two queues' descriptor areas, in descriptors.
pub const UBLK_MAX_QUEUE_DEPTH: u16 = 4096;
/// Width in bits of a byte offset in one request's data: at most 32 MiB per request.
pub const UBLK_IO_BUF_BITS: u32 = 25;
/// Position of the tag in a USER_COPY offset.
pub const UBLK_TAG_OFF: u32 = UBLK_IO_BUF_BITS;
/// Width in bits of the tag in a USER_COPY offset.
pub const UBLK_TAG_BITS: u32 = 16;
/// Position of the queue in a USER_COPY offset.
pub const UBLK_QID_OFF: u32 = UBLK_TAG_OFF + UBLK_TAG_BITS;
/// Width in bits of the queue in a USER_COPY offset.
pub const UBLK_QID_BITS: u32 = 12;
/// Most queues of a device.
pub const UBLK_MAX_NR_QUEUES: u32 = 1 << UBLK_QID_BITS;

/// No block device: not started yet, or stopped.
pub const UBLK_S_DEV_DEAD: u16 = 0;
/// The server answers requests.
pub const UBLK_S_DEV_LIVE: u16 = 1;
/// No server; requests wait for the next one.
pub const UBLK_S_DEV_QUIESCED: u16 = 2;
/// No server; requests fail until the next one.
pub const UBLK_S_DEV_FAIL_IO: u16 = 3;

/// Operation: read `nr_sectors` from `start_sector`.
pub const UBLK_IO_OP_READ: u8 = 0;
/// Operation: write.
pub const UBLK_IO_OP_WRITE: u8 = 1;
/// Operation: make every acknowledged write durable.
pub const UBLK_IO_OP_FLUSH: u8 = 2;
/// Operation: the data is not needed any more; no buffer.
pub const UBLK_IO_OP_DISCARD: u8 = 3;
/// Operation: never sent by today's drivers.
pub const UBLK_IO_OP_WRITE_SAME: u8 = 4;
/// Operation: write zeroes; no buffer, may be longer than one.
pub const UBLK_IO_OP_WRITE_ZEROES: u8 = 5;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_ZONE_OPEN: u8 = 10;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_ZONE_CLOSE: u8 = 11;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_ZONE_FINISH: u8 = 12;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_ZONE_APPEND: u8 = 13;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_ZONE_RESET_ALL: u8 = 14;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_ZONE_RESET: u8 = 15;
/// Operation: zoned devices only.
pub const UBLK_IO_OP_REPORT_ZONES: u8 = 18;

/// Flag of `IoDesc::op_flags`, as are all `UBLK_IO_F_*`: do not shift, although the header's
/// `ublksrv_get_flags()` does. This one: no retries on a device error.
pub const UBLK_IO_F_FAILFAST_DEV: u32 = 1 << 8;
/// No retries on a transport error.
pub const UBLK_IO_F_FAILFAST_TRANSPORT: u32 = 1 << 9;
/// No retries on a driver error.
pub const UBLK_IO_F_FAILFAST_DRIVER: u32 = 1 << 10;
/// A file system's metadata.
pub const UBLK_IO_F_META: u32 = 1 << 11;
/// Force unit access: the write is durable before it is answered.
pub const UBLK_IO_F_FUA: u32 = 1 << 13;
/// Write-zeroes keeps the blocks allocated.
pub const UBLK_IO_F_NOUNMAP: u32 = 1 << 15;
/// Swap.
pub const UBLK_IO_F_SWAP: u32 = 1 << 16;
/// Automatic buffer registration failed; the server does it (6.16).
pub const UBLK_IO_F_NEED_REG_BUF: u32 = 1 << 17;
/// The request has integrity data (7.0).
pub const UBLK_IO_F_INTEGRITY: u32 = 1 << 18;
/// `IoDesc::addr` is a place in shared memory (7.1).
pub const UBLK_IO_F_SHMEM_ZC: u32 = 1 << 19;

/// `ParamBasic::attrs`: writes fail.
pub const UBLK_ATTR_READ_ONLY: u32 = 1 << 0;
/// `ParamBasic::attrs`: seeks are slow.
pub const UBLK_ATTR_ROTATIONAL: u32 = 1 << 1;
/// `ParamBasic::attrs`: an acknowledged write is durable only after a flush.
pub const UBLK_ATTR_VOLATILE_CACHE: u32 = 1 << 2;
/// `ParamBasic::attrs`: FUA writes are sent as such; honoured with the volatile cache only.
pub const UBLK_ATTR_FUA: u32 = 1 << 3;

/// `Params::types`: `basic` is valid.
pub const UBLK_PARAM_TYPE_BASIC: u32 = 1 << 0;
/// `Params::types`: `discard` is valid.
pub const UBLK_PARAM_TYPE_DISCARD: u32 = 1 << 1;
/// `Params::types`: `devt` is valid; set by the driver.
pub const UBLK_PARAM_TYPE_DEVT: u32 = 1 << 2;
/// `Params::types`: `zoned` is valid (6.6).
pub const UBLK_PARAM_TYPE_ZONED: u32 = 1 << 3;
/// `Params::types`: `dma` is valid (6.15).
pub const UBLK_PARAM_TYPE_DMA_ALIGN: u32 = 1 << 4;
/// `Params::types`: `segment` is valid (6.15).
pub const UBLK_PARAM_TYPE_SEGMENT: u32 = 1 << 5;
/// `Params::types`: `integrity` is valid (7.0).
pub const UBLK_PARAM_TYPE_INTEGRITY: u32 = 1 << 6;

/// Smallest segment size and boundary in bytes.
pub const UBLK_MIN_SEGMENT_SIZE: u32 = 4096;

/// `AutoBufReg::flags`: deliver the request when the registration fails, with
/// [`UBLK_IO_F_NEED_REG_BUF`].
pub const UBLK_AUTO_BUF_REG_FALLBACK: u8 = 1 << 0;

// ---------------------------------------------------------------------------------------------
// Structures
// ---------------------------------------------------------------------------------------------

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
    /// Tags per queue, at most [`UBLK_MAX_QUEUE_DEPTH`].
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
    /// [`Features`] of the device; the driver clears the flags that it does not know.
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
    /// [`UBLK_AUTO_BUF_REG_FALLBACK`].
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
    fn features_of_the_measured_kernels_have_the_expected_names() {
        let old = Features::from_bits(0x1fe);
        assert!(old.contains(Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE));
        assert!(!old.contains(Features::QUIESCE));
        assert!(!old.contains(Features::USER_RECOVERY | Features::QUIESCE));
        assert_eq!(old.names().count(), 8);
        let new = Features::from_bits(0xf_ffff);
        assert_eq!(new.names().count(), Features::TABLE.len());
        assert!(new.unknown().is_empty());
    }

    #[test]
    fn features_are_shown_by_name_with_unknown_bits_as_a_number() {
        assert_eq!(Features::default().to_string(), "none");
        let known = Features::USER_RECOVERY | Features::ZONED;
        assert_eq!(known.to_string(), "USER_RECOVERY|ZONED");
        assert_eq!(
            (known | Features::from_bits(1 << 40)).to_string(),
            "USER_RECOVERY|ZONED|0x10000000000"
        );
        assert_eq!(Features::from_bits(1 << 40).to_string(), "0x10000000000");
    }

    #[test]
    fn every_feature_flag_is_one_bit_and_appears_once() {
        let all = Features::TABLE.iter().fold(0, |bits, (flag, name)| {
            assert_eq!(flag.bits().count_ones(), 1, "{name}");
            assert_eq!(bits & flag.bits(), 0, "{name} twice");
            bits | flag.bits()
        });
        assert_eq!(all, 0xf_ffff);
    }

    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "s390x"
    ))]
    #[test]
    fn opcodes_have_the_asm_generic_ioctl_encoding() {
        assert_eq!(UBLK_U_CMD_ADD_DEV, 0xc020_7504);
        assert_eq!(UBLK_U_CMD_GET_FEATURES, 0x8020_7513);
        assert_eq!(UBLK_U_IO_FETCH_REQ, 0xc010_7520);
    }

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
