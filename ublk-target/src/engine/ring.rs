//! The engine's ring: one io_uring for the device, the legs, the map file and the wake-ups.
//!
//! All I/O is in one ring, with the device as a registered file. That is the fence against ghost
//! writes: the kernel lets no successor recover the device before every request of this ring is
//! done.

use std::{io, os::fd::RawFd, time::Duration};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use migration_core::{
    route::Side,
    units::Tag,
    volume::{FlushId, Place},
};

/// The most files that a ring has: the device, the map file and the LUNs of three legs.
const FILES_MAX: u32 = 1024;
/// The registered file of the ublk character device.
pub(super) const DEVICE_FILE: types::Fixed = types::Fixed(0);
/// The registered file of the map file.
pub(super) const MAP_FILE: types::Fixed = types::Fixed(1);
const FIRST_LUN_FILE: u32 = 2;

/// The request to which a completion belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A fetch or commit of a tag.
    Device(Tag),
    /// A request's I/O on a leg.
    Leg(Tag, Side),
    /// A write to the mirror leg.
    Mirror(Place),
    /// One file of a flush that the volume asked for.
    FlushLeg(Side, FlushId),
    /// A write of map sectors, with the length that it must have written.
    Map(u32),
    /// The write of a role slot.
    Role(usize),
    /// The write of the descriptor, with the length that it must have written.
    Descriptor(u32),
    /// The eventfd of the commands.
    Wake,
    /// A timer: the repeating tick, or one deadline.
    Timer(Timer),
}

/// The engine's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Repeats.
    Tick,
    /// Expires once.
    Deadline,
}

impl Token {
    fn encode(self) -> u64 {
        let side = |side| match side {
            Side::Source => 0,
            Side::Target => 1,
        };
        let (kind, small, large) = match self {
            Self::Device(tag) => (1, 0, u64::from(tag.0)),
            Self::Leg(tag, leg) => (2, side(leg), u64::from(tag.0)),
            Self::FlushLeg(leg, flush) => (3, side(leg), flush.0),
            Self::Map(bytes) => (4, 0, u64::from(bytes)),
            Self::Role(slot) => (5, 0, slot as u64),
            Self::Descriptor(bytes) => (6, 0, u64::from(bytes)),
            Self::Wake => (7, 0, 0),
            Self::Timer(Timer::Tick) => (8, 0, 0),
            Self::Timer(Timer::Deadline) => (9, 0, 0),
            Self::Mirror(place) => (10, 0, u64::from(place.0)),
        };
        kind << 56 | small << 48 | large
    }

    /// # Panics
    /// On a number that [`Self::encode`] never made: the ring would have a foreign request.
    fn decode(data: u64) -> Self {
        let large = data & ((1 << 48) - 1);
        let side = if data >> 48 & 0xff == 0 {
            Side::Source
        } else {
            Side::Target
        };
        match data >> 56 {
            1 => Self::Device(Tag(large as u16)),
            2 => Self::Leg(Tag(large as u16), side),
            3 => Self::FlushLeg(side, FlushId(large)),
            4 => Self::Map(large as u32),
            5 => Self::Role(large as usize),
            6 => Self::Descriptor(large as u32),
            7 => Self::Wake,
            8 => Self::Timer(Timer::Tick),
            9 => Self::Timer(Timer::Deadline),
            10 => Self::Mirror(Place(large as u16)),
            other => unreachable!("completion of an unknown kind {other}"),
        }
    }
}

/// A LUN, as the ring's requests name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LunFile {
    /// The index in the table of registered files, or the descriptor.
    number: u32,
    registered: bool,
}

impl LunFile {
    /// The number for an entry. [`Self::flags`] says whether it is an index or a descriptor.
    pub(super) const fn fd(self) -> types::Fd {
        types::Fd(self.number.cast_signed())
    }

    /// The flags of an entry with [`Self::fd`].
    pub(super) const fn flags(self) -> squeue::Flags {
        if self.registered {
            squeue::Flags::FIXED_FILE
        } else {
            squeue::Flags::empty()
        }
    }
}

pub(super) struct Ring {
    ring: IoUring,
    timer_lengths: Box<[types::Timespec; 2]>,
    lun_files: Vec<bool>,
    registers_luns: bool,
}

impl Ring {
    /// Creates a ring for `tags` requests. The thread that uses the ring must create it.
    ///
    /// `registers_luns`: whether LUNs become registered files. Up to about Linux 6.12 a registered
    /// file that is removed from the table stays open until every request that was started before
    /// has ended, and a ublk device always has some that wait. There a dropped leg would never be
    /// free, so its requests name the descriptor instead.
    pub(super) fn new(tags: usize, buffers: libc::iovec, registers_luns: bool) -> io::Result<Self> {
        // For each tag an entry for the device and one for each leg; the rest is for flushes and
        // the map.
        let entries = (tags * 3 + 64).next_power_of_two().min(16384) as u32;
        let ring = IoUring::builder()
            .setup_cqsize(entries * 2)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)?;
        ring.submitter().register_files_sparse(FILES_MAX)?;
        // SAFETY: the engine keeps the buffers until the ring is dropped.
        unsafe { ring.submitter().register_buffers(&[buffers]) }?;
        Ok(Self {
            ring,
            timer_lengths: Box::default(),
            lun_files: vec![false; FILES_MAX as usize],
            registers_luns,
        })
    }

    /// Registers a file at a fixed place.
    pub(super) fn register(&mut self, place: types::Fixed, fd: RawFd) -> io::Result<()> {
        self.ring
            .submitter()
            .register_files_update(place.0, &[fd])
            .map(drop)
    }

    /// Makes a LUN usable in requests. A registered LUN stays open until [`Self::unregister_lun`].
    pub(super) fn register_lun(&mut self, fd: RawFd) -> io::Result<LunFile> {
        if !self.registers_luns {
            return Ok(LunFile {
                number: fd.cast_unsigned(),
                registered: false,
            });
        }
        let free = (FIRST_LUN_FILE..FILES_MAX)
            .find(|place| !self.lun_files[*place as usize])
            .ok_or_else(|| io::Error::other("too many LUNs in one volume"))?;
        self.register(types::Fixed(free), fd)?;
        self.lun_files[free as usize] = true;
        Ok(LunFile {
            number: free,
            registered: true,
        })
    }

    /// Removes a LUN from the table of registered files.
    pub(super) fn unregister_lun(&mut self, file: LunFile) {
        if file.registered {
            // Fails only for a place outside the table.
            let _ = self.register(types::Fixed(file.number), -1);
            self.lun_files[file.number as usize] = false;
        }
    }

    /// Queues an entry; submits the queued entries first if there is no room.
    pub(super) fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.encode());
        loop {
            // SAFETY: the buffers of all entries are the engine's, and live as long as the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // A failure here shows again in `wait`. The entries that the kernel took have made
            // room.
            let _ = self.ring.submit();
        }
    }

    /// Submits the queued entries.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.submit().map(drop)
    }

    /// Submits the queued entries, then waits for a completion. Without a time limit, which would
    /// cost a kernel timer for every wait; the timers are requests of their own.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Starts a timer. [`Timer::Tick`] repeats automatically, as long as the kernel keeps its
    /// request.
    pub(super) fn start_timer(&mut self, timer: Timer, after: Duration) {
        let index = match timer {
            Timer::Tick => 0,
            Timer::Deadline => 1,
        };
        // The kernel reads the length when it takes the entry.
        self.timer_lengths[index] = types::Timespec::from(after);
        let entry = opcode::Timeout::new(&raw const self.timer_lengths[index]);
        let entry = match timer {
            Timer::Tick => entry.flags(types::TimeoutFlags::MULTISHOT),
            Timer::Deadline => entry,
        };
        self.push(entry.build(), Token::Timer(timer));
    }

    /// Returns the next completion: what it belongs to, its result, and whether the same request
    /// will complete again.
    pub(super) fn next_completion(&mut self) -> Option<(Token, i32, bool)> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        let more = cqueue::more(entry.flags());
        Some((Token::decode(entry.user_data()), entry.result(), more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_ring() {
        for token in [
            Token::Device(Tag(4095)),
            Token::Leg(Tag(7), Side::Source),
            Token::Leg(Tag(u16::MAX), Side::Target),
            Token::Mirror(Place(63)),
            Token::FlushLeg(Side::Target, FlushId(1 << 40)),
            Token::Map(8192),
            Token::Role(1),
            Token::Descriptor(65536),
            Token::Wake,
            Token::Timer(Timer::Tick),
            Token::Timer(Timer::Deadline),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
