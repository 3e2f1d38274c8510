//! The interface of an I/O thread: the requests in shared memory, and the SQEs that take and answer
//! them.
//!
//! ```text
//!             fetch()                    commit_and_fetch(result)
//!   tag ---------------------> driver <---------------------------- tag
//!                                |                                   ^
//!                                +-- CQE, then IoDescriptors::get ---+
//! ```
//!
//! A tag belongs either to the driver (a command for it is pending) or to the server (between its
//! CQE and the commit). Both commands of a tag must come from the thread that fetched the tag
//! first. The commands go to `/dev/ublkcN` as a *registered file* of the ring, never as a plain
//! descriptor: because the ring holds a reference to the file, the kernel refuses recovery until a
//! dead server's I/O on the same ring is done.
//!
//! Nothing here allocates, logs or makes a system call, except mapping and unmapping.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::mman::{self, MapFlags, ProtFlags};

use super::abi::{self, IoCmd, IoDesc};

/// A tag of a queue and the memory for its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoSlot {
    /// Queue number.
    pub queue: u16,
    /// Tag in the queue.
    pub tag: u16,
    /// Address of the tag's buffer of `io_buffer_bytes_max` bytes; 0 for a device with USER_COPY.
    pub buffer_address: u64,
}

/// Makes the SQE that offers a tag to the driver for the first time after ADD_DEV or
/// START_USER_RECOVERY.
///
/// Pushing the SQE is unsafe because the driver copies data from and to the slot's buffer from then
/// on, until the ring is gone: the buffer must live that long.
pub fn fetch(cdev: types::Fixed, slot: IoSlot, user_data: u64) -> squeue::Entry {
    entry(cdev, abi::UBLK_U_IO_FETCH_REQ, slot, 0, user_data)
}

/// Makes the SQE that answers a request and offers its tag again.
///
/// `result` is the number of bytes of a read or write, 0 for every other operation that succeeded,
/// or a negative error number. If fewer bytes than requested are reported, the driver sends the
/// rest as a new request. The buffer must live as long as for [`fetch`].
/// as with [`fetch`] holds for the buffer.
pub fn commit_and_fetch(
    cdev: types::Fixed,
    slot: IoSlot,
    result: i32,
    user_data: u64,
) -> squeue::Entry {
    entry(
        cdev,
        abi::UBLK_U_IO_COMMIT_AND_FETCH_REQ,
        slot,
        result,
        user_data,
    )
}

fn entry(
    cdev: types::Fixed,
    code: u32,
    slot: IoSlot,
    result: i32,
    user_data: u64,
) -> squeue::Entry {
    let command = IoCmd {
        q_id: slot.queue,
        tag: slot.tag,
        result,
        addr: slot.buffer_address,
    };
    opcode::UringCmd16::new(cdev, code)
        .cmd(command.to_bytes())
        .build()
        .user_data(user_data)
}

/// The meaning of a completion of [`fetch`] or [`commit_and_fetch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOutcome {
    /// A request is in the tag's descriptor.
    Request,
    /// A write needs a buffer first; only with NEED_GET_DATA.
    NeedGetData,
    /// The driver takes the tag back: the device stops or the ring is cancelled. Do not fetch the
    /// tag again.
    Abort,
    /// The command itself failed; the driver does not have the tag.
    Failed(Errno),
}

impl FetchOutcome {
    /// Decodes a CQE's result. A positive result that the interface does not define counts as
    /// EPROTO.
    pub fn decode(result: i32) -> Self {
        match result {
            abi::UBLK_IO_RES_OK => Self::Request,
            abi::UBLK_IO_RES_NEED_GET_DATA => Self::NeedGetData,
            abi::UBLK_IO_RES_ABORT => Self::Abort,
            negative if negative < 0 => Self::Failed(Errno::from_raw(negative.saturating_neg())),
            _ => Self::Failed(Errno::EPROTO),
        }
    }
}

/// Kind of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoOperation {
    /// Fill the buffer.
    Read,
    /// Store the buffer.
    Write,
    /// Make every acknowledged write durable.
    Flush,
    /// Discard the range, whose data is not needed any more.
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes,
    /// An operation that this server never offers; answer it with EOPNOTSUPP.
    Other(u8),
}

/// One request, copied out of the shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IoRequest {
    /// The operation.
    pub operation: IoOperation,
    /// First sector, of 512 bytes.
    pub start_sector: u64,
    /// Length in sectors of 512 bytes. On drivers like 6.12's a write may be shorter than what the
    /// application submitted, if the server's buffer was not resident; the driver then sends the
    /// rest later.
    pub sector_count: u32,
    /// `UBLK_IO_F_*`.
    pub flags: u32,
}

impl IoRequest {
    fn decode(descriptor: IoDesc) -> Self {
        Self {
            operation: match (descriptor.op_flags & 0xff) as u8 {
                abi::UBLK_IO_OP_READ => IoOperation::Read,
                abi::UBLK_IO_OP_WRITE => IoOperation::Write,
                abi::UBLK_IO_OP_FLUSH => IoOperation::Flush,
                abi::UBLK_IO_OP_DISCARD => IoOperation::Discard,
                abi::UBLK_IO_OP_WRITE_ZEROES => IoOperation::WriteZeroes,
                other => IoOperation::Other(other),
            },
            start_sector: descriptor.start_sector,
            sector_count: descriptor.nr_sectors,
            flags: descriptor.op_flags & !0xff,
        }
    }

    /// Whether the write must be durable before it is answered.
    pub fn is_fua(&self) -> bool {
        self.flags & abi::UBLK_IO_F_FUA != 0
    }

    /// Whether a write-zeroes must keep the blocks allocated.
    pub fn is_no_unmap(&self) -> bool {
        self.flags & abi::UBLK_IO_F_NOUNMAP != 0
    }

    /// Length in bytes; no overflow, since 2^32 sectors are 2^41 bytes.
    pub fn byte_count(&self) -> u64 {
        u64::from(self.sector_count) * 512
    }
}

/// The requests of one queue: memory of the driver, mapped read-only, with one entry for each tag.
#[derive(Debug)]
pub struct IoDescriptors {
    base: NonNull<IoDesc>,
    mapped_bytes: NonZeroUsize,
    queue_depth: u16,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is only ever read.
unsafe impl Send for IoDescriptors {}

impl IoDescriptors {
    /// Maps the descriptors of a queue. `cdev` is `/dev/ublkcN`, opened for reading and writing.
    /// The mapping holds a reference to `cdev`, so DEL_DEV and recovery wait until the mapping is
    /// dropped.
    ///
    /// `queue_depth` must be the device's own: the driver refuses a mapping of another length.
    pub fn map(cdev: BorrowedFd<'_>, queue: u16, queue_depth: u16) -> io::Result<Self> {
        if queue_depth == 0 || queue_depth > abi::UBLK_MAX_QUEUE_DEPTH {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let length = usize::from(queue_depth) * size_of::<IoDesc>();
        let mapped_bytes = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = map_offset_bytes(queue);
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            mman::mmap(
                None,
                mapped_bytes,
                ProtFlags::PROT_READ,
                flags,
                cdev,
                offset,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            mapped_bytes,
            queue_depth,
        })
    }

    /// Returns the request of a tag. Call it after the tag's CQE was taken from the ring and before
    /// the tag is committed; at other times the driver may be writing the entry.
    ///
    /// # Panics
    /// If the queue has no such tag: then the server's user data is wrong, and another tag's
    /// request must not be answered instead.
    #[inline]
    pub fn get(&self, tag: u16) -> IoRequest {
        assert!(
            tag < self.queue_depth,
            "tag {tag} of a queue of {} tags",
            self.queue_depth
        );
        // SAFETY: `tag` is in the mapping, which lives as long as `self` and is page-aligned, so
        // the entry is aligned; any bit pattern is a valid IoDesc. Volatile: the driver wrote it
        // behind the compiler's back. It wrote before it published the CQE, and taking the CQE is
        // an acquire load of the ring's tail, so no further ordering is needed.
        let descriptor = unsafe { self.base.add(usize::from(tag)).read_volatile() };
        IoRequest::decode(descriptor)
    }
}

impl Drop for IoDescriptors {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and `get` gives out copies only.
        let unmapped = unsafe { mman::munmap(self.base.cast(), self.mapped_bytes.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// The offset of a queue's descriptors: queues are as far apart as the longest queue needs.
fn map_offset_bytes(queue: u16) -> libc::off_t {
    const QUEUE_BYTES: u64 = abi::UBLK_MAX_QUEUE_DEPTH as u64 * size_of::<IoDesc>() as u64;
    // 2^16 queues of 96 KiB are 6 GiB at most, so this fits where off_t has 64 bits.
    (abi::UBLKSRV_CMD_BUF_OFFSET + u64::from(queue) * QUEUE_BYTES) as libc::off_t
}

const _: () = assert!(
    size_of::<libc::off_t>() == 8,
    "built for systems with 64-bit file offsets"
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Makes a file that replaces `/dev/ublkcN`, with `descriptors` at the offset of `queue`.
    fn descriptor_file(queue: u16, descriptors: &[IoDesc]) -> std::fs::File {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        for (index, descriptor) in descriptors.iter().enumerate() {
            let mut bytes = Vec::new();
            bytes.extend(descriptor.op_flags.to_ne_bytes());
            bytes.extend(descriptor.nr_sectors.to_ne_bytes());
            bytes.extend(descriptor.start_sector.to_ne_bytes());
            bytes.extend(descriptor.addr.to_ne_bytes());
            file.write_all_at(&bytes, map_offset_bytes(queue) as u64 + index as u64 * 24)
                .unwrap();
        }
        file
    }

    #[test]
    fn a_request_is_read_at_its_queue_and_tag() {
        let op_flags = u32::from(abi::UBLK_IO_OP_WRITE) | abi::UBLK_IO_F_FUA;
        let write = IoDesc {
            op_flags,
            nr_sectors: 8,
            start_sector: 1 << 40,
            addr: 1,
        };
        let file = descriptor_file(2, &[IoDesc::default(), write]);
        let descriptors = IoDescriptors::map(file.as_fd(), 2, 2).unwrap();
        let request = descriptors.get(1);
        assert_eq!(request.operation, IoOperation::Write);
        assert_eq!((request.start_sector, request.sector_count), (1 << 40, 8));
        assert_eq!(request.byte_count(), 4096);
        assert!(request.is_fua() && !request.is_no_unmap());
        assert_eq!(descriptors.get(0).operation, IoOperation::Read);
    }

    #[test]
    #[should_panic(expected = "tag 2 of a queue of 2 tags")]
    fn a_tag_outside_of_the_queue_panics() {
        let file = descriptor_file(0, &[IoDesc::default(); 4]);
        IoDescriptors::map(file.as_fd(), 0, 2).unwrap().get(2);
    }

    #[test]
    fn a_queue_depth_outside_of_the_limits_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for depth in [0, 4097] {
            assert!(IoDescriptors::map(file.as_fd(), 0, depth).is_err());
        }
    }

    #[test]
    fn queues_are_96_kib_apart() {
        assert_eq!(
            [0, 1, 4095].map(map_offset_bytes),
            [0, 98_304, 4095 * 98_304]
        );
    }

    #[test]
    fn every_operation_is_decoded_and_unknown_ones_keep_their_number() {
        let operation = |op_flags| {
            IoRequest::decode(IoDesc {
                op_flags,
                ..IoDesc::default()
            })
            .operation
        };
        assert_eq!(operation(0), IoOperation::Read);
        assert_eq!(operation(1), IoOperation::Write);
        assert_eq!(operation(2), IoOperation::Flush);
        assert_eq!(operation(3), IoOperation::Discard);
        assert_eq!(
            operation(5 | abi::UBLK_IO_F_NOUNMAP),
            IoOperation::WriteZeroes
        );
        assert_eq!(operation(4), IoOperation::Other(4));
        assert_eq!(operation(18), IoOperation::Other(18));
    }

    #[test]
    fn completions_are_decoded() {
        assert_eq!(FetchOutcome::decode(0), FetchOutcome::Request);
        assert_eq!(FetchOutcome::decode(1), FetchOutcome::NeedGetData);
        assert_eq!(FetchOutcome::decode(-libc::ENODEV), FetchOutcome::Abort);
        assert_eq!(
            FetchOutcome::decode(-libc::EINVAL),
            FetchOutcome::Failed(Errno::EINVAL)
        );
        assert_eq!(FetchOutcome::decode(2), FetchOutcome::Failed(Errno::EPROTO));
        assert_eq!(
            FetchOutcome::decode(i32::MIN),
            FetchOutcome::Failed(Errno::UnknownErrno)
        );
    }

    #[test]
    fn the_entries_carry_opcode_slot_and_user_data() {
        let slot = IoSlot {
            queue: 3,
            tag: 9,
            buffer_address: 0x1000,
        };
        let entry = commit_and_fetch(types::Fixed(0), slot, -5, 77);
        assert_eq!(entry.get_opcode(), opcode::UringCmd16::CODE as u32);
        assert_eq!(entry.get_user_data(), 77);
        assert_eq!(fetch(types::Fixed(0), slot, 78).get_user_data(), 78);
    }
}
