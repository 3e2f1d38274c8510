//! The numbers of the header: opcodes, limits, offsets, states, operations, parameters.

use super::structures::{BatchIo, CtrlCmd, IoCmd};

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
/// Reads [`CtrlDevInfo`](super::CtrlDevInfo).
pub const UBLK_U_CMD_GET_DEV_INFO: u32 = read_code::<CtrlCmd>(0x02);
/// Creates `/dev/ublkcN`; buffer: [`CtrlDevInfo`](super::CtrlDevInfo), read and written back.
pub const UBLK_U_CMD_ADD_DEV: u32 = read_write_code::<CtrlCmd>(0x04);
/// Deletes a device and waits until every reference to it is gone.
pub const UBLK_U_CMD_DEL_DEV: u32 = read_write_code::<CtrlCmd>(0x05);
/// Creates `/dev/ublkbN` once every tag was fetched; `data` is the server's pid.
pub const UBLK_U_CMD_START_DEV: u32 = read_write_code::<CtrlCmd>(0x06);
/// Removes `/dev/ublkbN`.
pub const UBLK_U_CMD_STOP_DEV: u32 = read_write_code::<CtrlCmd>(0x07);
/// Writes [`Params`](super::Params), before START_DEV only.
pub const UBLK_U_CMD_SET_PARAMS: u32 = read_write_code::<CtrlCmd>(0x08);
/// Reads [`Params`](super::Params).
pub const UBLK_U_CMD_GET_PARAMS: u32 = read_code::<CtrlCmd>(0x09);
/// Begins the takeover of a device whose server is gone (6.1).
pub const UBLK_U_CMD_START_USER_RECOVERY: u32 = read_write_code::<CtrlCmd>(0x10);
/// Ends a takeover, once every tag was fetched; `data` is the new server's pid (6.1).
pub const UBLK_U_CMD_END_USER_RECOVERY: u32 = read_write_code::<CtrlCmd>(0x11);
/// Reads [`CtrlDevInfo`](super::CtrlDevInfo) with a device path in front, for unprivileged devices
/// (6.3).
pub const UBLK_U_CMD_GET_DEV_INFO2: u32 = read_code::<CtrlCmd>(0x12);
/// Reads [`Features`](super::Features), [`UBLK_FEATURES_LEN`] bytes (6.5).
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
/// Supplies a write's buffer ([`Features::NEED_GET_DATA`](super::Features::NEED_GET_DATA)).
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
/// pread/pwrite offset in bytes of the data of queue 0, tag 0
/// ([`Features::USER_COPY`](super::Features::USER_COPY)).
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
