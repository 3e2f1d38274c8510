//! The control socket: for root and the process's own user, one thread for each connection, one
//! request at a time on each.
//!
//! This module checks and translates requests; the engine decides. A slow or hostile client delays
//! only itself: the engine never waits for a connection.

use std::{
    collections::HashMap,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use leg::OpenLeg;
use migration_core::{custody::Claim, volume::CopierId};
use migration_proto::{
    Hello, Welcome,
    frame::{self, FrameError},
    places::{Admitted, ConnectionId, Places},
    route::{Descriptor, Leg, Route},
    target::{
        CLAIM_REGIONS_MAX, Counters, OpenLun, Refusal, Request, Response, Status,
        WATCH_REGIONS_MAX, abstract_name,
    },
};
use nix::sys::{
    signal::Signal,
    socket::{getsockopt, sockopt::PeerCredentials},
};

use crate::{
    engine::{Command, CopierReport, EngineRequest, Inbox, NewDescriptor, Snapshot, refused},
    legs::{self, LegError},
};

/// The most connections at the same time; [`Places`] decides which connection makes room for a new
/// one.
const CONNECTIONS_MAX: usize = 64;
/// The most threads for connections: connections that have lost their place take a moment to end.
pub const THREADS_MAX: usize = 2 * CONNECTIONS_MAX;
/// Stack of a connection's thread, in bytes. All memory of this process is locked, so the whole
/// stack takes memory.
const STACK_BYTES: usize = 256 << 10;
/// Time limit for a client to send its greeting, to complete a message, and to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the end of another connection's thread, or of the predecessor's hold of the
/// name, is checked.
const THREAD_POLL: Duration = Duration::from_millis(1);
/// How long a process waits until its predecessor releases the abstract name.
const NAME_LIMIT: Duration = Duration::from_secs(1);
/// How long adding a mirror leg waits for a LUN that somebody else has claimed.
const LEG_BUSY_LIMIT: Duration = Duration::ZERO;

/// Facts that hold for the whole life of the process.
#[derive(Debug)]
pub struct Facts {
    /// `/dev/ublkbN`.
    pub device: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The features that the driver offers.
    pub driver_features: Vec<String>,
    /// Whether the process took over an existing device.
    pub recovered: bool,
    /// The name of the claim on the legs.
    pub claim: Claim,
}

/// An event for the thread that holds the device.
#[derive(Debug)]
pub enum Wake {
    /// A client wants to end the device and the process. The answer is an error if they do not end,
    /// or not cleanly.
    Stop(SyncSender<Result<(), String>>),
    /// A signal that asks for the end of the process. The next signal is sent when the sender is
    /// dropped.
    Signal(Signal, SyncSender<()>),
    /// The engine has ended.
    EngineEnded,
}

/// The state that all connections share.
#[derive(Debug)]
pub struct Server {
    facts: Facts,
    inbox: Arc<Inbox>,
    stop: SyncSender<Wake>,
    threads: AtomicUsize,
    connections: Mutex<Connections>,
}

/// The connections that have a place.
#[derive(Debug)]
struct Connections {
    places: Places,
    /// The streams of the connections. A connection that loses its place is closed by its stream.
    streams: HashMap<ConnectionId, UnixStream>,
}

impl Server {
    /// Creates a server that is not listening yet.
    #[must_use]
    pub fn new(facts: Facts, inbox: Arc<Inbox>, stop: SyncSender<Wake>) -> Arc<Self> {
        Arc::new(Self {
            facts,
            inbox,
            stop,
            threads: AtomicUsize::new(0),
            connections: Mutex::new(Connections {
                places: Places::new(CONNECTIONS_MAX),
                streams: HashMap::new(),
            }),
        })
    }

    /// Listens on the socket file `path`, in a new thread. Replaces an old socket file: the lock of
    /// the map file guarantees that nobody serves it.
    ///
    /// # Errors
    /// The socket cannot be created.
    pub fn listen(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        self.accept_on(listener)
    }

    /// Listens on a name in the abstract namespace too, for a shuntd that finds no socket file
    /// ([`abstract_name`]).
    ///
    /// # Errors
    /// The name is taken.
    pub fn listen_by_id(self: &Arc<Self>, volume_id: &str) -> io::Result<()> {
        let address = SocketAddr::from_abstract_name(abstract_name(volume_id))?;
        let started = Instant::now();
        // The kernel may have closed the predecessor's map file but not its sockets yet.
        let listener = loop {
            match UnixListener::bind_addr(&address) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && started.elapsed() < NAME_LIMIT =>
                {
                    std::thread::sleep(THREAD_POLL);
                }
                other => break other?,
            }
        };
        self.accept_on(listener)
    }

    fn accept_on(self: &Arc<Self>, listener: UnixListener) -> io::Result<()> {
        let server = Arc::clone(self);
        std::thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for stream in listener.incoming() {
                    match stream {
                        Ok(stream) => server.accept(stream),
                        Err(error) => {
                            tracing::warn!(%error, "a connection could not be accepted");
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                }
            })?;
        Ok(())
    }

    fn accept(self: &Arc<Self>, stream: UnixStream) {
        if let Err(error) = self.begin(stream) {
            tracing::warn!(%error, "a connection could not be served");
        }
    }

    fn begin(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        require_root_or_own_user(&stream)?;
        while self.threads.load(Ordering::Acquire) >= THREADS_MAX {
            std::thread::sleep(THREAD_POLL);
        }
        let Some(id) = self.admit(&stream)? else {
            return Ok(());
        };
        self.threads.fetch_add(1, Ordering::AcqRel);
        let server = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                match server.converse(stream, id) {
                    Ok(()) | Err(FrameError::Closed) => {}
                    Err(error) => tracing::debug!(%error, "a connection ended"),
                }
                server.inbox.send(Command::ConnectionClosed(CopierId(id)));
                server.leave(id);
                server.threads.fetch_sub(1, Ordering::AcqRel);
            });
        if spawned.is_err() {
            self.leave(id);
            self.threads.fetch_sub(1, Ordering::AcqRel);
        }
        spawned.map(drop)
    }

    /// Gives a connection a place. Another connection may lose its place for that. `None`: all
    /// others are being answered.
    fn admit(&self, stream: &UnixStream) -> io::Result<Option<ConnectionId>> {
        let stream = stream.try_clone()?;
        let mut connections = self.connections();
        let Some(Admitted { id, instead_of }) = connections.places.admit() else {
            return Ok(None);
        };
        connections.streams.insert(id, stream);
        if let Some(other) = instead_of.and_then(|other| connections.streams.remove(&other)) {
            // The other connection's thread finds the end of the stream. An error means that the
            // stream is closed already.
            let _ = other.shutdown(std::net::Shutdown::Both);
        }
        Ok(Some(id))
    }

    fn leave(&self, id: ConnectionId) {
        let mut connections = self.connections();
        connections.places.leave(id);
        connections.streams.remove(&id);
    }

    /// Locks the table of connections. A poisoned lock is usable: nothing under the lock panics
    /// half-way.
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, mut stream: UnixStream, id: ConnectionId) -> Result<(), FrameError> {
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let hello: Hello = frame::read(&mut Timed::new(&stream))?;
        let welcome = hello.answer();
        frame::write(&mut stream, &welcome)?;
        if matches!(welcome, Welcome::WrongProtocol { .. }) {
            return Ok(());
        }
        loop {
            self.connections().places.became_idle(id);
            let request = match read_request(&stream) {
                Ok(request) => request,
                Err(error @ (FrameError::Malformed(_) | FrameError::TooLarge(_))) => {
                    frame::write(&mut stream, &refused(Refusal::Malformed, error.to_string()))?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            self.connections().places.became_busy(id);
            let last = matches!(request, Request::Stop);
            let response = self.answer(request, CopierId(id), &stream);
            let stopped = last && response == Response::Done;
            frame::write(&mut stream, &response)?;
            if stopped {
                return Ok(());
            }
        }
    }

    fn answer(&self, request: Request, id: CopierId, stream: &UnixStream) -> Response {
        let gone = || refused(Refusal::Ending, "the volume is ending");
        let ask = match request {
            Request::Status => {
                return self
                    .inbox
                    .snapshot()
                    .map_or_else(gone, |snapshot| self.status(snapshot));
            }
            Request::Stop => return self.stop(),
            Request::AddMirror {
                epoch,
                target,
                deadline_ms,
            } => match self.open_mirror(epoch, target, deadline_ms) {
                Ok(ask) => ask,
                Err(response) => return *response,
            },
            Request::OpenCopier => match self.may_copy() {
                Ok(()) => EngineRequest::OpenCopier(id),
                Err(response) => return *response,
            },
            Request::Claim { regions_max } if !(1..=CLAIM_REGIONS_MAX).contains(&regions_max) => {
                let cause = format!("a claim is for 1 to {CLAIM_REGIONS_MAX} regions");
                return refused(Refusal::Malformed, cause);
            }
            Request::Claim { regions_max } => EngineRequest::Claim {
                copier: id,
                regions_max: regions_max as usize,
            },
            Request::Report {
                epoch,
                copied,
                failed,
                error,
            } => {
                let mirror_error = error.filter(|error| self.is_mirror(error.side));
                let said = CopierReport::Done {
                    copied,
                    failed,
                    mirror_error,
                };
                EngineRequest::Regions {
                    copier: id,
                    epoch,
                    said,
                }
            }
            Request::Watch { regions, .. } if regions.len() > WATCH_REGIONS_MAX => {
                let cause = format!("at most {WATCH_REGIONS_MAX} regions are watched");
                return refused(Refusal::Malformed, cause);
            }
            Request::Watch {
                epoch,
                regions,
                hold,
            } => EngineRequest::Regions {
                copier: id,
                epoch,
                said: CopierReport::ToCompare { regions, hold },
            },
            Request::Compared {
                epoch,
                same,
                differing,
                unread,
            } => EngineRequest::Regions {
                copier: id,
                epoch,
                said: CopierReport::Compared {
                    same,
                    differing,
                    unread,
                },
            },
            Request::SetRoute {
                epoch,
                route: Route::Mirrored { .. },
                deadline_ms,
                ..
            } if self.is_split() => match self.open_split_leg(epoch, deadline_ms) {
                Ok(ask) => ask,
                Err(refused) => return *refused,
            },
            Request::SetRoute {
                epoch,
                route,
                deadline_ms,
                copies_rest,
            } => EngineRequest::SetRoute {
                epoch,
                route,
                deadline_ms,
                copies_rest,
            },
            Request::Suspend { deadline_ms } => EngineRequest::Suspend { deadline_ms },
            Request::Resume => EngineRequest::Resume,
            Request::SetOnAuthoritativeFailure { policy } => {
                EngineRequest::OnAuthoritativeFailure(policy.into())
            }
            Request::SetCopyMode { mode } => EngineRequest::CopyMode(mode.into()),
            Request::SetThrottle {
                bytes_per_second,
                for_ms,
            } => EngineRequest::Throttle {
                bytes_per_second,
                for_ms,
            },
            Request::RetryMirror { epoch } => return self.retry_mirror(epoch),
        };
        let waits_long = matches!(ask, EngineRequest::Claim { .. });
        let answer = self.inbox.ask(ask);
        if waits_long {
            return wait_while_connected(&answer, stream).unwrap_or_else(gone);
        }
        answer.recv().unwrap_or_else(|_| gone())
    }

    fn status(&self, snapshot: Snapshot) -> Response {
        let Snapshot {
            descriptor,
            record,
            counters,
            ..
        } = &snapshot;
        let problem = |what: &str, error: migration_core::volume::Errno| {
            format!("{what}: {}", io::Error::from_raw_os_error(error.0))
        };
        let mirror = match &snapshot.mirror_problem {
            Some(missing) => Some(format!("the mirror leg is not there: {missing}")),
            None => snapshot
                .mirror_fault
                .map(|error| match &snapshot.mirror_cause {
                    Some(cause) => format!("the mirror leg failed: {cause}"),
                    None => problem("the mirror leg failed", error),
                }),
        };
        let authoritative = snapshot
            .authoritative_fault
            .map(|error| problem("the authoritative leg failed", error));
        let [source_open, target_open] = open_luns(&snapshot);
        let map = snapshot
            .map_fault
            .map(|error| problem("the map file cannot be written", error));
        let mut held = snapshot.authoritative.held();
        if let Some(mirror) = snapshot
            .mirror
            .as_ref()
            .filter(|_| !snapshot.doubt_unmarked)
        {
            held.extend(mirror.held());
        }
        Response::Status(Box::new(Status {
            volume: descriptor.volume.clone(),
            volume_id: descriptor.volume_id.clone(),
            pid: std::process::id(),
            device: self.facts.device.clone(),
            epoch: record.epoch.0,
            route: record.route.into(),
            size_bytes: record.geometry.size_bytes(),
            region_bytes: record.geometry.region_bytes(),
            dirty_bytes: snapshot.dirty_bytes,
            dirty_percent: snapshot.dirty_percent.clone(),
            claimed_bytes: snapshot.claimed_bytes,
            copied_bytes: counters.copied_bytes,
            degraded: mirror,
            stalled_writes: snapshot.stalled_writes,
            authoritative_problem: authoritative,
            on_authoritative_failure: snapshot.on_authoritative_failure.into(),
            copy_mode: snapshot.copy_mode.into(),
            throttle_bytes_per_second: snapshot.throttle.unwrap_or(0),
            map_problem: map,
            suspended: snapshot.suspended,
            changing: snapshot.changing,
            copier: snapshot.copier,
            source: descriptor.source.clone(),
            target: descriptor.target.clone(),
            source_open,
            target_open,
            counters: Counters {
                reads: counters.reads,
                writes: counters.writes,
                flushes: counters.flushes,
                read_bytes: counters.read_bytes,
                written_bytes: counters.written_bytes,
                failed: counters.failed,
                mirror_reads: counters.mirror_reads,
                fail_overs: counters.fail_overs,
                waited: counters.waited,
                map_writes: counters.map_writes,
                last_pause_us: counters.last_pause / 1000,
            },
            read_latency: snapshot.latencies.reads.counts().to_vec(),
            write_latency: snapshot.latencies.writes.counts().to_vec(),
            driver_features: self.facts.driver_features.clone(),
            claim: self.facts.claim.0,
            held,
            doubt: snapshot.doubt.map(|doubt| doubt.to_string()),
            recovered: self.facts.recovered,
        }))
    }

    fn stop(&self) -> Response {
        let (sender, receiver) = sync_channel(1);
        if self.stop.send(Wake::Stop(sender)).is_err() {
            return refused(Refusal::Ending, "the volume is ending already");
        }
        match receiver.recv() {
            Ok(Ok(())) => Response::Done,
            Ok(Err(cause)) => refused(Refusal::DeviceOpen, cause),
            Err(_) => refused(Refusal::Ending, "the volume is ending already"),
        }
    }

    fn open_leg(&self, leg: &Leg) -> Result<OpenLeg, LegError> {
        legs::open(leg, &self.facts.socket, LEG_BUSY_LIMIT, None)
    }

    /// Opens the new leg in the thread of the connection, so that the engine does not wait for it.
    fn open_mirror(
        &self,
        epoch: u64,
        target: Leg,
        deadline_ms: u64,
    ) -> Result<EngineRequest, Box<Response>> {
        let bad = |cause: String| Box::new(refused(Refusal::BadLeg, cause));
        let snapshot = self
            .inbox
            .snapshot()
            .ok_or_else(|| Box::new(refused(Refusal::Ending, "the volume is ending")))?;
        if snapshot.record.route.has_map() {
            let cause = "the volume has a mirror leg already";
            return Err(Box::new(refused(Refusal::WrongRoute, cause)));
        }
        let descriptor = descriptor_with(&snapshot, target).map_err(bad)?;
        let bytes = serde_json::to_vec(&descriptor).map_err(|error| bad(error.to_string()))?;
        if bytes.len() > migration_core::map::DESCRIPTOR_BYTES_MAX {
            return Err(bad(format!(
                "the legs need a descriptor of {} bytes",
                bytes.len()
            )));
        }
        let leg = descriptor
            .target
            .as_ref()
            .ok_or_else(|| bad("no target leg".to_owned()))?;
        let leg = self.open_leg(leg).map_err(|error| bad(error.to_string()))?;
        check_mirror(&snapshot, &leg).map_err(bad)?;
        Ok(EngineRequest::AddMirror {
            epoch,
            leg,
            descriptor: Some(NewDescriptor {
                descriptor: Box::new(descriptor),
                bytes,
            }),
            deadline_ms,
        })
    }

    fn is_split(&self) -> bool {
        let snapshot = self.inbox.snapshot();
        snapshot.is_some_and(|snapshot| Route::from(snapshot.record.route) == Route::Split)
    }

    /// Opens the leg that a split detached.
    fn open_split_leg(&self, epoch: u64, deadline_ms: u64) -> Result<EngineRequest, Box<Response>> {
        let bad = |cause: String| Box::new(refused(Refusal::BadLeg, cause));
        let snapshot = self
            .inbox
            .snapshot()
            .ok_or_else(|| Box::new(refused(Refusal::Ending, "the volume is ending")))?;
        let leg = snapshot
            .descriptor
            .target
            .as_ref()
            .ok_or_else(|| bad("no target leg".to_owned()))?;
        let leg = self.open_leg(leg).map_err(|error| bad(error.to_string()))?;
        check_mirror(&snapshot, &leg).map_err(bad)?;
        Ok(EngineRequest::AddMirror {
            epoch,
            leg,
            descriptor: None,
            deadline_ms,
        })
    }

    /// Retries the mirror leg. Closes and opens it again only if its name leads to a different
    /// device with the same identity: while the leg is closed, others can write to it.
    fn retry_mirror(&self, epoch: u64) -> Response {
        let gone = || refused(Refusal::Ending, "the volume is ending");
        let ask = |ask| self.inbox.ask(ask).recv().unwrap_or_else(|_| gone());
        let Some(before) = self.inbox.snapshot() else {
            return gone();
        };
        let side = before.record.route.mirror();
        let recorded = side.and_then(|side| before.descriptor.leg(side.into()));
        if let (Some(recorded), Some(open)) = (recorded, &before.mirror)
            && open.is_at(recorded)
        {
            let leg = Err("it is open".to_owned());
            return ask(EngineRequest::RetryMirror { epoch, leg });
        }
        let released = ask(EngineRequest::ReleaseMirror { epoch });
        if released != Response::Done {
            return released;
        }
        let Some(snapshot) = self.inbox.snapshot() else {
            return gone();
        };
        let side = snapshot.record.route.mirror();
        let leg = side.and_then(|side| snapshot.descriptor.leg(side.into()));
        let leg = match (leg, &snapshot.mirror) {
            (Some(leg), None) => self.open_leg(leg).map_err(|error| error.to_string()),
            // The leg has not failed, or another client was faster.
            (None, _) | (_, Some(_)) => Err("it is open".to_owned()),
        };
        ask(EngineRequest::RetryMirror { epoch, leg })
    }

    /// Checks that no I/O of an earlier copier to the mirror leg is in flight.
    fn may_copy(&self) -> Result<(), Box<Response>> {
        let snapshot = self.inbox.snapshot();
        let Some(mirror) = snapshot.and_then(|snapshot| snapshot.mirror) else {
            return Err(Box::new(refused(
                Refusal::WrongRoute,
                "the volume has no mirror leg",
            )));
        };
        match mirror.is_free_of_copiers() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Box::new(refused(
                Refusal::CopierBusy,
                "the mirror leg is locked, by another program or for I/O of an earlier copier that is not done",
            ))),
            Err(error) => Err(Box::new(refused(Refusal::Failed, error.to_string()))),
        }
    }

    fn is_mirror(&self, side: migration_proto::route::Side) -> bool {
        let mirror = self
            .inbox
            .snapshot()
            .and_then(|snapshot| snapshot.record.route.mirror());
        Some(side.into()) == mirror
    }
}

/// Reads the next request. A connection may be idle for any time.
fn read_request(stream: &UnixStream) -> Result<Request, FrameError> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        let mut waiting = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    frame::read(&mut Timed::new(stream))
}

fn require_root_or_own_user(stream: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    // SAFETY: geteuid has no preconditions.
    let own = unsafe { libc::geteuid() };
    if peer.uid() == 0 || peer.uid() == own {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// A reader with one time limit for a whole message: a client that sends single bytes slowly is
/// disconnected.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            until: Instant::now() + CLIENT_TIMEOUT,
        }
    }
}

impl io::Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Waits for an answer that may take long, but stops when the client has disconnected.
fn wait_while_connected(
    answer: &std::sync::mpsc::Receiver<Response>,
    stream: &UnixStream,
) -> Option<Response> {
    use std::sync::mpsc::RecvTimeoutError;
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(response) => return Some(response),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if is_closed(stream) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn is_closed(stream: &UnixStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut waiting = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut waiting, 1, 0) };
    ready > 0 && waiting.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Lists the open LUNs of the source leg and of the target leg.
fn open_luns(snapshot: &Snapshot) -> [Vec<OpenLun>; 2] {
    let authoritative = snapshot.authoritative.open_luns();
    let mirror = snapshot.mirror.as_ref();
    let mirror = mirror.map(|leg| leg.open_luns()).unwrap_or_default();
    match snapshot.record.route.authoritative() {
        migration_core::route::Side::Source => [authoritative, mirror],
        migration_core::route::Side::Target => [mirror, authoritative],
    }
}

/// Makes the volume's descriptor with a new target; the leg in use becomes the source.
fn descriptor_with(snapshot: &Snapshot, target: Leg) -> Result<Descriptor, String> {
    let old = &snapshot.descriptor;
    let side = snapshot.record.route.authoritative();
    let source = old.leg(side.into()).ok_or("the volume has no such leg")?;
    if target.length_bytes() < old.size_bytes {
        return Err(format!(
            "the target has {} bytes, the volume {}",
            target.length_bytes(),
            old.size_bytes
        ));
    }
    Ok(Descriptor {
        source: source.clone(),
        target: Some(target),
        ..Descriptor::clone(old)
    })
}

fn check_mirror(snapshot: &Snapshot, leg: &OpenLeg) -> Result<(), String> {
    let offered = snapshot.descriptor.logical_block_bytes;
    for lun in &leg.luns {
        let block = lun.identity.logical_block_bytes;
        if block > offered {
            return Err(format!(
                "{} has a logical block of {block} bytes, the volume offers {offered}",
                lun.path.display()
            ));
        }
        if snapshot
            .authoritative
            .luns
            .iter()
            .any(|other| other.is_same_lun(lun))
        {
            return Err(format!(
                "{} is the leg in use under another name",
                lun.path.display()
            ));
        }
    }
    Ok(())
}
