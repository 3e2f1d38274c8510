//! What other threads ask of the engine, and how it answers.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use migration_core::{
    custody::Doubt,
    latency::Latencies,
    map::RoleRecord,
    volume::{CopierId, CopyMode, Counters, Errno, OnAuthoritativeFailure},
};
use migration_proto::{
    route::{Descriptor, Route},
    target::{CopyError, Refusal, Response},
};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::legs::OpenLeg;

/// The volume as the engine sees it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What the volume is.
    pub descriptor: Arc<Descriptor>,
    /// The role record that holds.
    pub record: RoleRecord,
    /// Bytes of the regions that may differ.
    pub dirty_bytes: u64,
    /// How much of each part of the volume may differ, in percent.
    pub dirty_percent: Vec<u8>,
    /// Bytes of the regions that the copier has.
    pub claimed_bytes: u64,
    /// Why the mirror leg is not written.
    pub mirror_fault: Option<Errno>,
    /// The words of the copier for that, if it was the one who found it.
    pub mirror_cause: Option<String>,
    /// How many writes it has not ended, if it was given up because it kept others waiting.
    pub stalled_writes: Option<u32>,
    /// Why it is not open, if it is not.
    pub mirror_problem: Option<String>,
    /// Why all of the mirror leg is copied or compared again.
    pub doubt: Option<Doubt>,
    /// Not all regions that are dirty because of it are marked durably.
    pub doubt_unmarked: bool,
    /// The last error of the authoritative leg.
    pub authoritative_fault: Option<Errno>,
    /// What to do then.
    pub on_authoritative_failure: OnAuthoritativeFailure,
    /// What writes do to the mirror leg.
    pub copy_mode: CopyMode,
    /// To how many bytes a second writes are slowed.
    pub throttle: Option<u64>,
    /// Why the map file cannot be written.
    pub map_fault: Option<Errno>,
    /// Requests are held.
    pub suspended: bool,
    /// A change of the route is under way.
    pub changing: bool,
    /// A copier is connected.
    pub copier: bool,
    /// What has been counted.
    pub counters: Counters,
    /// How long requests took.
    pub latencies: Box<Latencies>,
    /// The leg that the role record names as authoritative.
    pub authoritative: Arc<OpenLeg>,
    /// The mirror leg, if there is one.
    pub mirror: Option<Arc<OpenLeg>>,
}

/// A request to the engine.
#[derive(Debug)]
pub enum Command {
    /// How is the volume? Never refused.
    Snapshot(SyncSender<Snapshot>),
    /// Something that is answered with a [`Response`].
    Ask(Ask, SyncSender<Response>),
    /// A connection is gone, with everything that it held.
    ConnectionClosed(CopierId),
}

/// The descriptor with a new leg in it.
#[derive(Debug)]
pub struct NewDescriptor {
    /// It.
    pub descriptor: Box<Descriptor>,
    /// The same, as it is to be written.
    pub bytes: Vec<u8>,
}

/// Something that is answered with a [`Response`].
#[derive(Debug)]
pub enum Ask {
    /// Begin to mirror to a leg.
    AddMirror {
        /// The epoch that the client knows.
        epoch: u64,
        /// The leg, open.
        leg: OpenLeg,
        /// Absent if it is the one that was left alone by a split.
        descriptor: Option<NewDescriptor>,
        /// How long requests may be held, in milliseconds.
        deadline_ms: u64,
    },
    /// Change the route.
    SetRoute {
        /// The epoch that the client knows.
        epoch: u64,
        /// The new route.
        route: Route,
        /// How long requests may be held, in milliseconds.
        deadline_ms: u64,
        /// What is dirty is copied while requests are held.
        copies_rest: bool,
    },
    /// Hold requests.
    Suspend {
        /// How long at most, in milliseconds.
        deadline_ms: u64,
    },
    /// Let them go.
    Resume,
    /// What to do when the authoritative leg fails.
    OnAuthoritativeFailure(OnAuthoritativeFailure),
    /// What writes do to the mirror leg.
    CopyMode(CopyMode),
    /// Slow writes.
    Throttle {
        /// In bytes; 0 ends it.
        bytes_per_second: u64,
        /// It ends by itself after this time, in milliseconds.
        for_ms: u64,
    },
    /// Let go of a mirror leg whose device is gone, so that it can be opened again.
    ReleaseMirror {
        /// The epoch that the client knows.
        epoch: u64,
    },
    /// Try the mirror leg again.
    RetryMirror {
        /// The epoch that the client knows.
        epoch: u64,
        /// It, opened again, or why it cannot be opened.
        leg: Result<OpenLeg, String>,
    },
    /// Be the copier.
    OpenCopier(CopierId),
    /// Give me regions.
    Claim {
        /// Who.
        copier: CopierId,
        /// How many at most.
        regions_max: usize,
    },
    /// What the copier says of regions.
    Regions {
        /// Who.
        copier: CopierId,
        /// The epoch that it was opened with.
        epoch: u64,
        /// What.
        said: Said,
    },
}

/// What a copier says of regions.
#[derive(Debug)]
pub enum Said {
    /// These were claimed, and are done.
    Done {
        /// Copied.
        copied: Vec<u64>,
        /// Not copied.
        failed: Vec<u64>,
        /// How the mirror leg failed, if it did.
        mirror_error: Option<CopyError>,
    },
    /// These are about to be compared.
    ToCompare {
        /// Which.
        regions: Vec<u64>,
        /// Hold writes to those that are being written.
        hold: bool,
    },
    /// These were compared.
    Compared {
        /// The same on both legs.
        same: Vec<u64>,
        /// Not the same.
        differing: Vec<u64>,
        /// They could not be read.
        unread: Vec<u64>,
    },
}

/// The way of commands to the engine.
#[derive(Debug)]
pub struct Inbox {
    queue: Mutex<Queue>,
    event: EventFd,
}

#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<Command>,
    closed: bool,
}

impl Inbox {
    /// An empty inbox.
    ///
    /// # Errors
    /// If there is no descriptor for the eventfd.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            queue: Mutex::default(),
            event: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// The descriptor that becomes readable when there is a command.
    pub(super) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Sends a command. After the engine has ended it is dropped, and with it whoever waits for the answer.
    pub fn send(&self, command: Command) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.closed {
            queue.commands.push_back(command);
            drop(queue);
            // The counter cannot overflow: the engine reads it at every wake-up.
            let _ = self.event.write(1);
        }
    }

    /// Sends a question; the answer comes to the receiver, or the receiver is disconnected.
    pub fn ask(&self, ask: Ask) -> Receiver<Response> {
        let (sender, receiver) = sync_channel(1);
        self.send(Command::Ask(ask, sender));
        receiver
    }

    /// How the volume is; `None` once the engine has ended.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = sync_channel(1);
        self.send(Command::Snapshot(sender));
        receiver.recv().ok()
    }

    pub(super) fn take(&self) -> Option<Command> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.commands.pop_front()
    }

    pub(super) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        queue.commands.clear();
    }
}

/// A refusal in words.
#[must_use]
pub fn refused(reason: Refusal, cause: impl Into<String>) -> Response {
    Response::Refused {
        reason,
        cause: cause.into(),
    }
}
