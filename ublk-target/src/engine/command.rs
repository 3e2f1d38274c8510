//! The commands of other threads to the engine, and their answers.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use leg::OpenLeg;
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

/// The state of the volume, as the engine knows it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The descriptor of the volume.
    pub descriptor: Arc<Descriptor>,
    /// The current role record.
    pub record: RoleRecord,
    /// Bytes of the regions that may differ.
    pub dirty_bytes: u64,
    /// The dirty percentage of each part of the volume.
    pub dirty_percent: Vec<u8>,
    /// Bytes of the regions that the copier has claimed.
    pub claimed_bytes: u64,
    /// The error because of which the mirror leg is not written.
    pub mirror_fault: Option<Errno>,
    /// The copier's description of that error, if the copier found the error.
    pub mirror_cause: Option<String>,
    /// Number of writes that the mirror leg has not completed, if it was dropped because it
    /// stalled.
    pub stalled_writes: Option<u32>,
    /// Why the mirror leg is not open; `None` if it is open.
    pub mirror_problem: Option<String>,
    /// Why the whole mirror leg is copied or compared again.
    pub doubt: Option<Doubt>,
    /// Some regions that are dirty because of the doubt are not marked durably yet.
    pub doubt_unmarked: bool,
    /// The last error of the authoritative leg.
    pub authoritative_fault: Option<Errno>,
    /// What to do when the authoritative leg fails.
    pub on_authoritative_failure: OnAuthoritativeFailure,
    /// What writes do to the mirror leg.
    pub copy_mode: CopyMode,
    /// The rate to which writes are slowed, in bytes per second.
    pub throttle: Option<u64>,
    /// Why the map file cannot be written.
    pub map_fault: Option<Errno>,
    /// The volume is suspended: requests are held.
    pub suspended: bool,
    /// A change of the route is in progress.
    pub changing: bool,
    /// A copier is connected.
    pub copier: bool,
    /// Counters of requests and copies.
    pub counters: Counters,
    /// Histograms of request latencies.
    pub latencies: Box<Latencies>,
    /// The leg that the role record names as authoritative.
    pub authoritative: Arc<OpenLeg>,
    /// The mirror leg, if there is one.
    pub mirror: Option<Arc<OpenLeg>>,
}

/// A request to the engine.
#[derive(Debug)]
pub enum Command {
    /// Returns a snapshot of the volume. Never refused.
    Snapshot(SyncSender<Snapshot>),
    /// A request that is answered with a [`Response`].
    EngineRequest(EngineRequest, SyncSender<Response>),
    /// A connection is closed; everything that it held is released.
    ConnectionClosed(CopierId),
}

/// The descriptor of the volume with a new leg.
#[derive(Debug)]
pub struct NewDescriptor {
    /// The new descriptor.
    pub descriptor: Box<Descriptor>,
    /// The same descriptor, encoded for the map file.
    pub bytes: Vec<u8>,
}

/// A request that is answered with a [`Response`].
#[derive(Debug)]
pub enum EngineRequest {
    /// Start mirroring to a leg.
    AddMirror {
        /// The epoch that the client knows.
        epoch: u64,
        /// The leg, open.
        leg: OpenLeg,
        /// The descriptor with the new leg. `None` if the leg is the one that a split detached.
        descriptor: Option<NewDescriptor>,
        /// The longest time that requests may be held, in milliseconds.
        deadline_ms: u64,
    },
    /// Change the route.
    SetRoute {
        /// The epoch that the client knows.
        epoch: u64,
        /// The new route.
        route: Route,
        /// The longest time that requests may be held, in milliseconds.
        deadline_ms: u64,
        /// Whether the dirty regions are copied while requests are held.
        copies_rest: bool,
    },
    /// Hold requests.
    Suspend {
        /// The longest time that requests may be held, in milliseconds.
        deadline_ms: u64,
    },
    /// Release the held requests.
    Resume,
    /// Set what to do when the authoritative leg fails.
    OnAuthoritativeFailure(OnAuthoritativeFailure),
    /// Set what writes do to the mirror leg.
    CopyMode(CopyMode),
    /// Slow writes.
    Throttle {
        /// The rate in bytes per second; 0 ends the throttling.
        bytes_per_second: u64,
        /// The throttling ends automatically after this time, in milliseconds.
        for_ms: u64,
    },
    /// Close a mirror leg whose device is gone, so that it can be opened again.
    ReleaseMirror {
        /// The epoch that the client knows.
        epoch: u64,
    },
    /// Retry the mirror leg.
    RetryMirror {
        /// The epoch that the client knows.
        epoch: u64,
        /// The leg, opened again, or why it cannot be opened.
        leg: Result<OpenLeg, String>,
    },
    /// Register the connection as the copier.
    OpenCopier(CopierId),
    /// Claim regions.
    Claim {
        /// The connection that claims.
        copier: CopierId,
        /// The most regions that it takes.
        regions_max: usize,
    },
    /// A report of the copier on regions.
    Regions {
        /// The connection that reports.
        copier: CopierId,
        /// The epoch of the copier's claim.
        epoch: u64,
        /// The report.
        said: CopierReport,
    },
}

/// A report of the copier on regions.
#[derive(Debug)]
pub enum CopierReport {
    /// Claimed regions are done.
    Done {
        /// The regions that were copied.
        copied: Vec<u64>,
        /// The regions that were not copied.
        failed: Vec<u64>,
        /// The error of the mirror leg, if it failed.
        mirror_error: Option<CopyError>,
    },
    /// Regions are about to be compared.
    ToCompare {
        /// The regions.
        regions: Vec<u64>,
        /// Hold writes to those regions that are being written.
        hold: bool,
    },
    /// Regions were compared.
    Compared {
        /// The regions that are equal on both legs.
        same: Vec<u64>,
        /// The regions that differ.
        differing: Vec<u64>,
        /// The regions that could not be read.
        unread: Vec<u64>,
    },
}

/// The queue of commands to the engine.
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
    /// Creates an empty inbox.
    ///
    /// # Errors
    /// The eventfd cannot be created.
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

    /// Sends a command. After the engine has ended the command is dropped, so that its caller's
    /// receiver is disconnected.
    pub fn send(&self, command: Command) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.closed {
            queue.commands.push_back(command);
            drop(queue);
            // The counter cannot overflow: the engine reads it at every wake-up.
            let _ = self.event.write(1);
        }
    }

    /// Sends a request. The receiver gets the answer, or is disconnected when the engine ends.
    pub fn ask(&self, ask: EngineRequest) -> Receiver<Response> {
        let (sender, receiver) = sync_channel(1);
        self.send(Command::EngineRequest(ask, sender));
        receiver
    }

    /// Returns a snapshot of the volume; `None` once the engine has ended.
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

/// Makes a refusal with its cause in words.
#[must_use]
pub fn refused(reason: Refusal, cause: impl Into<String>) -> Response {
    Response::Refused {
        reason,
        cause: cause.into(),
    }
}
