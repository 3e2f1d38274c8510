//! The ring of one copier, and the memory that the kernel reads and writes. This is the only unsafe
//! code of the copier.
//!
//! Soundness: all memory that a submission names belongs to [`Memory`], never moves, and is not
//! touched by this process while the submission is in flight (`slot_busy`, `sending`, `receiving`).
//! The memory is freed only when nothing is in flight; otherwise (a panic, a ring that fails) it is
//! leaked.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::time::Instant;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

/// The alignment of the buffers, enough for every logical block size.
const BUFFER_ALIGNMENT_BYTES: usize = 4096;
/// The most bytes that one receive takes from the socket.
const RECEIVE_BYTES: u32 = 64 << 10;
/// Submissions other than those of the pieces: send, receive, wake, and one to spare.
const OTHER_ENTRIES: u32 = 4;

const DATA_SEND: u64 = u64::MAX;
const DATA_RECEIVE: u64 = u64::MAX - 1;
const DATA_WAKE: u64 = u64::MAX - 2;

/// A completion of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// The I/O of a slot.
    Io {
        /// The slot.
        slot: Slot,
        /// A count of bytes, or a negative error number.
        result: i32,
    },
    /// Bytes were sent. The number is as for `Io`.
    Sent(i32),
    /// Bytes were received; [`Ring::received`] returns them. The number is as for `Io`; 0: the end
    /// of the stream.
    Received(i32),
    /// The watched descriptor is readable.
    Woken,
}

/// A part of a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The index of the LUN in the table of registered files.
    pub(super) lun: usize,
    /// The offset on the LUN, in bytes.
    pub(super) offset_bytes: u64,
    /// The length, in bytes.
    pub(super) length_bytes: u32,
}

impl Span {
    fn file(&self) -> Fixed {
        // No table of registered files is that long: the kernel refuses such an index.
        Fixed(u32::try_from(self.lun).unwrap_or(u32::MAX))
    }
}

/// The number of a buffer, which at most one I/O uses at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u32);

/// The ring.
pub(super) struct Ring {
    ring: IoUring,
    memory: ManuallyDrop<Memory>,
    slot_busy: Vec<bool>,
    sending: bool,
    receiving: bool,
    buffers_registered: bool,
    /// Kept, so that waiting does not allocate.
    completions: VecDeque<(u64, i32)>,
}

/// All memory that the kernel may read or write.
struct Memory {
    buffers: NonNull<u8>,
    layout: Layout,
    slot_bytes: usize,
    outgoing: Vec<u8>,
    outgoing_sent: usize,
    incoming: Box<[u8]>,
}

// SAFETY: the allocation behind `buffers` belongs to this value alone.
unsafe impl Send for Memory {}

/// `prctl(2)`; the libc crate lacks it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Marks this thread as one for which application writes may be waiting. When the thread needs
/// memory, the kernel must not make it wait for dirty pages of the very volume that it copies.
/// Needs `CAP_SYS_RESOURCE`.
pub(super) fn set_io_flusher() -> io::Result<()> {
    // SAFETY: the call names no memory.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Memory {
    fn new(slots: u32, slot_bytes: u32) -> io::Result<Self> {
        let slot_bytes = slot_bytes as usize;
        let size = slot_bytes
            .checked_mul(slots as usize)
            .filter(|size| *size > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let layout = Layout::from_size_align(size, BUFFER_ALIGNMENT_BYTES)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the size is not 0.
        let buffers = NonNull::new(unsafe { alloc_zeroed(layout) })
            .unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Self {
            buffers,
            layout,
            slot_bytes,
            outgoing: Vec::new(),
            outgoing_sent: 0,
            incoming: vec![0; RECEIVE_BYTES as usize].into_boxed_slice(),
        })
    }

    /// The address of a byte of a slot's buffer.
    fn pointer(&self, slot: Slot, at_bytes: u32) -> *mut u8 {
        let (slot, at) = (slot.0 as usize, at_bytes as usize);
        assert!(at <= self.slot_bytes && (slot + 1) * self.slot_bytes <= self.layout.size());
        // SAFETY: within the allocation, as was just checked.
        unsafe { self.buffers.as_ptr().add(slot * self.slot_bytes + at) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no submission in flight names it (see `Drop for
        // Ring`).
        unsafe { dealloc(self.buffers.as_ptr(), self.layout) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.is_quiet() {
            // SAFETY: dropped here, once; no submission in flight names it.
            unsafe { ManuallyDrop::drop(&mut self.memory) }
        }
    }
}

impl Ring {
    /// A ring with `slots` buffers of `slot_bytes`.
    pub(super) fn new(slots: u32, slot_bytes: u32) -> io::Result<Self> {
        let memory = Memory::new(slots, slot_bytes)?;
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(slots + OTHER_ENTRIES)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::other("the kernel's io_uring is too old"));
        }
        let vectors: Vec<libc::iovec> = (0..slots)
            .map(|slot| libc::iovec {
                iov_base: memory.pointer(Slot(slot), 0).cast(),
                iov_len: memory.slot_bytes,
            })
            .collect();
        // SAFETY: the buffers live as long as the ring can have I/O in flight.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) };
        if let Err(error) = &registered {
            // Usually RLIMIT_MEMLOCK. Unregistered buffers are only a little slower.
            tracing::debug!(%error, "copy buffers are not registered");
        }
        Ok(Self {
            ring,
            memory: ManuallyDrop::new(memory),
            slot_busy: vec![false; slots as usize],
            sending: false,
            receiving: false,
            buffers_registered: registered.is_ok(),
            completions: VecDeque::with_capacity((2 * (slots + OTHER_ENTRIES)) as usize),
        })
    }

    /// Registers the LUNs. The ring keeps them open, with their locks, while I/O on them is in
    /// flight.
    pub(super) fn register_files(&mut self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        self.ring.submitter().register_files(&descriptors)
    }

    /// Unregisters the LUNs, so that the ring no longer keeps them open.
    pub(super) fn unregister_files(&mut self) -> io::Result<()> {
        self.ring.submitter().unregister_files()
    }

    /// Reports [`Completion::Woken`], once, when `descriptor` is readable.
    pub(super) fn watch(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let entry = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), events)
            .build()
            .user_data(DATA_WAKE);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// Starts to read `span` into the slot's buffer, from `at_bytes` of the buffer on.
    pub(super) fn read(&mut self, slot: Slot, at_bytes: u32, span: Span) -> io::Result<()> {
        let pointer = self.claim(slot, at_bytes, span.length_bytes);
        let file = span.file();
        let entry = match self.buffer_index(slot) {
            Some(index) => opcode::ReadFixed::new(file, pointer, span.length_bytes, index)
                .offset(span.offset_bytes)
                .build(),
            None => opcode::Read::new(file, pointer, span.length_bytes)
                .offset(span.offset_bytes)
                .build(),
        };
        // SAFETY: the span of the buffer is within it, and the slot is marked busy until the
        // completion.
        unsafe { self.push(&entry.user_data(u64::from(slot.0))) }
    }

    /// Starts to write the slot's buffer, from `at_bytes` of the buffer on, to `span`.
    pub(super) fn write(&mut self, slot: Slot, at_bytes: u32, span: Span) -> io::Result<()> {
        let pointer = self.claim(slot, at_bytes, span.length_bytes);
        let file = span.file();
        let entry = match self.buffer_index(slot) {
            Some(index) => opcode::WriteFixed::new(file, pointer, span.length_bytes, index)
                .offset(span.offset_bytes)
                .build(),
            None => opcode::Write::new(file, pointer, span.length_bytes)
                .offset(span.offset_bytes)
                .build(),
        };
        // SAFETY: as for `read`.
        unsafe { self.push(&entry.user_data(u64::from(slot.0))) }
    }

    /// Starts to deallocate `span`, so that it reads as zeroes.
    pub(super) fn deallocate(&mut self, slot: Slot, span: Span) -> io::Result<()> {
        self.claim(slot, 0, span.length_bytes);
        let entry = opcode::Fallocate::new(span.file(), u64::from(span.length_bytes))
            .offset(span.offset_bytes)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build()
            .user_data(u64::from(slot.0));
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// The first bytes of the buffer of a slot that is not in flight.
    pub(super) fn bytes(&self, slot: Slot, length_bytes: u32) -> &[u8] {
        assert!(!self.slot_busy[slot.0 as usize]);
        let length = (length_bytes as usize).min(self.memory.slot_bytes);
        // SAFETY: initialised at allocation, within the buffer, and the kernel does not write it
        // now.
        unsafe { std::slice::from_raw_parts(self.memory.pointer(slot, 0), length) }
    }

    /// The first bytes of the buffer of a slot that is not in flight, for writing.
    pub(super) fn bytes_mut(&mut self, slot: Slot, length_bytes: u32) -> &mut [u8] {
        assert!(!self.slot_busy[slot.0 as usize]);
        let length = (length_bytes as usize).min(self.memory.slot_bytes);
        // SAFETY: as for `bytes`; and the ring is borrowed exclusively, so nothing else accesses
        // the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.memory.pointer(slot, 0), length) }
    }

    /// Starts to send `bytes`. No other send may be in progress.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, bytes: Vec<u8>) -> io::Result<()> {
        assert!(!self.sending);
        self.memory.outgoing = bytes;
        self.memory.outgoing_sent = 0;
        self.send_rest(socket)
    }

    /// Handles the count of [`Completion::Sent`]: sends the rest. Returns `true` when all is sent.
    pub(super) fn sent(&mut self, socket: BorrowedFd<'_>, bytes: u32) -> io::Result<bool> {
        self.memory.outgoing_sent += bytes as usize;
        if self.memory.outgoing_sent >= self.memory.outgoing.len() {
            return Ok(true);
        }
        self.send_rest(socket)?;
        Ok(false)
    }

    /// Starts to receive. No other receive may be in progress.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        assert!(!self.receiving);
        let pointer = self.memory.incoming.as_mut_ptr();
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), pointer, RECEIVE_BYTES)
            .build()
            .user_data(DATA_RECEIVE);
        self.receiving = true;
        // SAFETY: `incoming` has that size, and is not touched until the completion.
        unsafe { self.push(&entry) }
    }

    /// The bytes of [`Completion::Received`].
    pub(super) fn received(&self, bytes: u32) -> &[u8] {
        assert!(!self.receiving);
        let length = (bytes as usize).min(self.memory.incoming.len());
        &self.memory.incoming[..length]
    }

    /// Whether a send is in progress.
    pub(super) fn is_sending(&self) -> bool {
        self.sending
    }

    /// Whether no submission that names memory is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        !self.sending && !self.receiving && !self.slot_busy.contains(&true)
    }

    /// Submits everything, and waits for a completion or until the time `until`.
    pub(super) fn wait(&mut self, until: Option<Instant>) -> io::Result<()> {
        let timespec =
            until.map(|until| Timespec::from(until.saturating_duration_since(Instant::now())));
        let result = match &timespec {
            Some(timespec) => {
                let arguments = SubmitArgs::new().timespec(timespec);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
            None => self.ring.submit_and_wait(1),
        };
        match result {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // ETIME: the time is over. EINTR: a signal. EBUSY: completions must be taken first.
                // EAGAIN: the kernel is short of memory for a moment.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        for completion in self.ring.completion() {
            self.completions
                .push_back((completion.user_data(), completion.result()));
        }
        Ok(())
    }

    /// The next completion of the last wait.
    pub(super) fn next_completion(&mut self) -> Option<Completion> {
        let (data, result) = self.completions.pop_front()?;
        Some(match data {
            DATA_SEND => {
                self.sending = false;
                Completion::Sent(result)
            }
            DATA_RECEIVE => {
                self.receiving = false;
                Completion::Received(result)
            }
            DATA_WAKE => Completion::Woken,
            slot => {
                let slot = Slot(u32::try_from(slot).expect("only slots are submitted besides"));
                self.slot_busy[slot.0 as usize] = false;
                Completion::Io { slot, result }
            }
        })
    }

    fn send_rest(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let rest = &self.memory.outgoing[self.memory.outgoing_sent..];
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(socket.as_fd().as_raw_fd()), rest.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data(DATA_SEND);
        self.sending = true;
        // SAFETY: `outgoing` is not touched until the completion.
        unsafe { self.push(&entry) }
    }

    fn buffer_index(&self, slot: Slot) -> Option<u16> {
        u16::try_from(slot.0)
            .ok()
            .filter(|_| self.buffers_registered)
    }

    /// Marks a slot busy, and returns the address in its buffer.
    fn claim(&mut self, slot: Slot, at_bytes: u32, length_bytes: u32) -> *mut u8 {
        let busy = &mut self.slot_busy[slot.0 as usize];
        assert!(!*busy, "slot {} is in flight", slot.0);
        let end = at_bytes as usize + length_bytes as usize;
        assert!(end <= self.memory.slot_bytes);
        *busy = true;
        self.memory.pointer(slot, at_bytes)
    }

    /// # Safety
    /// The memory that the entry names must stay valid, and untouched, until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: as the caller promises.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // The queue has room for all slots and the other entries, so it is full only in the
            // rare case that an earlier submit was cut short.
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
