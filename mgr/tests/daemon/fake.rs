//! A ublk-target without a device. It speaks the protocol and keeps the route and the dirty regions
//! in a file of its own format.
//!
//! The fake runs in the executable of this test: the script that the tests give to shuntd as the
//! program `ublk-target` starts this executable with [`run_as_ublk_target`] as the only test. A
//! file beside the map file makes the fake misbehave ([`Whim`]).

use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use migration_proto::frame::{self, FrameError};
use migration_proto::route::{Descriptor, Leg, MapSummary, Route, Side};
use migration_proto::target::{
    CopyMode, Counters, EXIT_MAP_DAMAGED, EXIT_OTHER_VOLUME, OnAuthoritativeFailure, OpenLun,
    Refusal, Request, Response, ServedLeg, Status, Suspended, abstract_name,
};
use migration_proto::{Hello, Protocols, Welcome};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

pub(crate) const REGION_BYTES: u64 = 64 << 10;
/// The environment variable with the arguments of the fake. The test harness would take arguments
/// on the command line for its own.
pub(crate) const ARGUMENTS: &str = "FAKE_UBLK_TARGET_ARGUMENTS";
/// A source whose path contains this word makes `serve` fail.
pub(crate) const BROKEN: &str = "broken";

/// A way in which a file beside the map file makes the fake misbehave.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whim {
    /// Does not listen while the file exists.
    HoldStart,
    /// Grants no regions while the file exists.
    HoldClaims,
    /// Does not answer `watch` while the file exists, so that nothing is compared.
    HoldComparing,
    /// Starts with exactly the first region dirty, once.
    DirtyAtStart,
    /// Refuses every change to a mirrored route or to `Split`.
    RefuseRole,
    /// Refuses to drop a leg.
    RefuseSingle,
    /// Changes to a mirrored route or to `Split` take a second.
    SlowRole,
    /// Refuses to stop, as if the device was open.
    DeviceOpen,
    /// Reports that the mirror leg has failed, until a request to retry it.
    Degraded,
    /// With [`Self::Degraded`]: reports that the mirror leg failed because it kept writes waiting.
    Stalled,
    /// Dies before it changes the role, once.
    DieBeforeRole,
    /// Dies after it has changed the role, before it answers, once.
    DieAfterRole,
    /// Reports that the volume is ending, and does not end.
    Ending,
    /// Reports at the resume after a split that requests were not held, once.
    LetGo,
    /// Refuses a change of the route as busy, and makes the change when the file is gone.
    Later,
    /// Is of a later release, which speaks this protocol too, and says more in every answer.
    LaterRelease,
    /// Is of a release that speaks only other protocols, 7 to 9.
    OtherProtocols,
    /// Reports a status with something in a leg that nobody knows.
    StrangeLeg,
}

impl Whim {
    pub(crate) fn path(self, map: &Path) -> PathBuf {
        map.with_extension(format!("{self:?}"))
    }

    fn is_set(self, map: &Path) -> bool {
        self.path(map).exists()
    }

    fn take(self, map: &Path) -> bool {
        std::fs::remove_file(self.path(map)).is_ok()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Map {
    descriptor: Descriptor,
    route: Route,
    epoch: u64,
    dirty: Vec<u64>,
}

struct Server {
    path: PathBuf,
    map: Mutex<Map>,
    copier: Mutex<bool>,
    copied_bytes: Mutex<u64>,
    on_authoritative_failure: Mutex<OnAuthoritativeFailure>,
    copy_mode: Mutex<CopyMode>,
    throttle: Mutex<u64>,
    suspended: Mutex<bool>,
    /// A change of the route is under way.
    changing: Mutex<bool>,
}

#[test]
#[ignore = "not a test: the program that shuntd starts in the tests"]
fn run_as_ublk_target() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let arguments: Vec<&str> = arguments.split(' ').collect();
    match arguments.as_slice() {
        ["format", "--leg", leg, "--map", map] => format(Path::new(map), leg),
        ["describe", "--map", map] => describe(Path::new(map)),
        ["serve", "--map", map, "--socket", socket, "--volume-id", id] => {
            serve(Path::new(map), Path::new(socket), id)
        }
        other => fail(&format!("strange arguments: {other:?}")),
    }
    std::process::exit(0);
}

/// The LUNs that a real ublk-target would have open; here they are files.
fn open_luns(leg: &Leg) -> Vec<OpenLun> {
    let extents = leg.extents.iter();
    let open = extents.map(|extent| OpenLun {
        path: extent.path.clone(),
        size_bytes: std::fs::metadata(&extent.path).map_or(0, |metadata| metadata.len()),
        device: None,
        disk_sequence: None,
    });
    open.collect()
}

fn served(leg: Leg) -> Box<ServedLeg> {
    let open = open_luns(&leg);
    Box::new(ServedLeg { leg, open })
}

fn fail(text: &str) -> ! {
    eprintln!("{text}");
    std::process::exit(1);
}

/// `leg` is the name of a side as in the protocol; the command line uses the same words.
fn format(path: &Path, leg: &str) {
    let descriptor: Descriptor = serde_json::from_reader(std::io::stdin()).unwrap();
    if path.exists() {
        fail(&format!("{} exists already", path.display()));
    }
    let map = Map {
        descriptor,
        route: Route::Single {
            leg: serde_json::from_value(leg.into()).unwrap(),
        },
        epoch: 1,
        dirty: Vec::new(),
    };
    save(path, &map);
}

fn read(path: &Path) -> Map {
    let damaged = |error: &dyn std::fmt::Display| -> ! {
        eprintln!("map file {} is damaged: {error}", path.display());
        std::process::exit(EXIT_MAP_DAMAGED.into());
    };
    let bytes = std::fs::read(path).unwrap_or_else(|error| damaged(&error));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| damaged(&error))
}

fn describe(path: &Path) {
    let map = read(path);
    let summary = MapSummary {
        epoch: map.epoch,
        route: map.route,
        descriptor: map.descriptor,
        damage: None,
    };
    // The test harness has already printed the beginning of a line.
    println!("\n{}", serde_json::to_string(&summary).unwrap());
}

fn save(path: &Path, map: &Map) {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(map).unwrap()).unwrap();
    std::fs::rename(&temporary, path).unwrap();
}

fn serve(path: &Path, socket: &Path, volume_id: &str) {
    let lock = File::create(path.with_extension("lock")).unwrap();
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        eprintln!("another process serves {}", path.display());
        std::process::exit(3);
    };
    let mut map = read(path);
    if map.descriptor.volume_id != volume_id {
        eprintln!("map file {} is that of another volume", path.display());
        std::process::exit(EXIT_OTHER_VOLUME.into());
    }
    if map.descriptor.source.extents[0]
        .path
        .to_string_lossy()
        .contains(BROKEN)
    {
        fail("the leg is broken: repair it");
    }
    std::fs::write(path.with_extension("pid"), std::process::id().to_string()).unwrap();
    if Whim::DirtyAtStart.take(path) {
        map.dirty = vec![0];
    }
    while Whim::HoldStart.is_set(path) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let server = Arc::new(Server {
        path: path.to_owned(),
        map: Mutex::new(map),
        copier: Mutex::new(false),
        copied_bytes: Mutex::new(0),
        on_authoritative_failure: Mutex::default(),
        copy_mode: Mutex::default(),
        throttle: Mutex::default(),
        suspended: Mutex::default(),
        changing: Mutex::default(),
    });
    let address = SocketAddr::from_abstract_name(abstract_name(volume_id)).unwrap();
    let by_id = UnixListener::bind_addr(&address).unwrap();
    let other = Arc::clone(&server);
    std::thread::spawn(move || accept(&by_id, &other));
    accept(&listener, &server);
}

fn accept(listener: &UnixListener, server: &Arc<Server>) {
    for stream in listener.incoming() {
        let server = Arc::clone(server);
        std::thread::spawn(move || {
            Conversation {
                server,
                claimed: Vec::new(),
                is_copier: false,
            }
            .run(stream.unwrap())
        });
    }
}

struct Conversation {
    server: Arc<Server>,
    claimed: Vec<u64>,
    is_copier: bool,
}

impl Conversation {
    fn run(mut self, mut stream: UnixStream) {
        let _ = self.converse(&mut stream);
        if self.is_copier {
            *self.server.copier.lock().unwrap() = false;
        }
    }

    fn converse(&mut self, stream: &mut UnixStream) -> Result<(), FrameError> {
        let hello: Hello = frame::read(stream)?;
        let speaks = Protocols {
            oldest: 7,
            newest: 9,
        };
        let welcome = if Whim::OtherProtocols.is_set(&self.server.path) {
            Welcome::WrongProtocol { speaks }
        } else {
            hello.answer()
        };
        self.send(stream, &welcome)?;
        loop {
            let request: Request = frame::read(stream)?;
            let stop = request == Request::Stop && !Whim::DeviceOpen.is_set(&self.server.path);
            let response = self.answer(request);
            self.send(stream, &response)?;
            if stop {
                std::process::exit(0);
            }
        }
    }

    fn send<T: Serialize>(&self, stream: &mut UnixStream, answer: &T) -> Result<(), FrameError> {
        let mut answer = serde_json::to_value(answer)?;
        if Whim::LaterRelease.is_set(&self.server.path) {
            answer["of_a_later_release"] = true.into();
        }
        if Whim::StrangeLeg.is_set(&self.server.path) && answer["source"].is_object() {
            answer["source"]["striped"] = true.into();
        }
        frame::write(stream, &answer)
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.server.map.lock().unwrap()
    }

    fn answer(&mut self, request: Request) -> Response {
        let changes = matches!(
            request,
            Request::AddMirror { .. } | Request::SetRoute { .. }
        );
        if changes && (Whim::Later.is_set(&self.server.path) || self.is_changing()) {
            return self.later(request);
        }
        self.obey(request)
    }

    fn is_changing(&self) -> bool {
        *self.server.changing.lock().unwrap()
    }

    fn later(&self, request: Request) -> Response {
        if !std::mem::replace(&mut *self.server.changing.lock().unwrap(), true) {
            let server = Arc::clone(&self.server);
            std::thread::spawn(move || {
                while Whim::Later.is_set(&server.path) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let mut own = Self {
                    server: Arc::clone(&server),
                    claimed: Vec::new(),
                    is_copier: false,
                };
                own.obey(request);
                *server.changing.lock().unwrap() = false;
            });
        }
        refused(Refusal::Busy, "another change of the route is under way")
    }

    fn obey(&mut self, request: Request) -> Response {
        match request {
            Request::Status if Whim::Ending.is_set(&self.server.path) => {
                refused(Refusal::Failed, "the volume is ending")
            }
            Request::Status => Response::Status(Box::new(self.status())),
            Request::AddMirror { epoch, target, .. } => self.change(epoch, |map| {
                if map.route.is_mirrored() {
                    return Err(refused(Refusal::WrongRoute, "it is mirrored already"));
                }
                if map.route.authoritative() == Side::Target {
                    map.descriptor.source = map.descriptor.target.take().unwrap();
                }
                map.descriptor.target = Some(target);
                map.route = Route::Mirrored {
                    authoritative: Side::Source,
                };
                map.dirty = (0..map.descriptor.size_bytes.div_ceil(REGION_BYTES)).collect();
                Ok(())
            }),
            Request::SetRoute {
                epoch,
                route,
                copies_rest,
                ..
            } => self.set_route(epoch, route, copies_rest),
            Request::SetOnAuthoritativeFailure { policy } => {
                *self.server.on_authoritative_failure.lock().unwrap() = policy;
                Response::Done
            }
            Request::SetCopyMode { mode } => {
                *self.server.copy_mode.lock().unwrap() = mode;
                Response::Done
            }
            Request::SetThrottle {
                bytes_per_second, ..
            } => {
                *self.server.throttle.lock().unwrap() = bytes_per_second;
                Response::Done
            }
            Request::RetryMirror { .. } => {
                Whim::Degraded.take(&self.server.path);
                Response::Done
            }
            Request::OpenCopier => self.open_copier(),
            Request::Claim { regions_max } => self.claim(regions_max),
            Request::Report { copied, .. } => self.report(&copied),
            Request::Watch { regions, .. } => {
                while Whim::HoldComparing.is_set(&self.server.path) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let map = self.map();
                let (dirty, regions) = regions.iter().partition(|at| map.dirty.contains(at));
                Response::Watched { regions, dirty }
            }
            Request::Compared { differing, .. } => {
                let mut map = self.map();
                map.dirty.extend(differing);
                save(&self.server.path, &map);
                Response::Compared {
                    unknown: Vec::new(),
                }
            }
            Request::Stop if Whim::DeviceOpen.is_set(&self.server.path) => {
                refused(Refusal::DeviceOpen, "the device is open")
            }
            Request::Stop => Response::Done,
            Request::Resume => {
                // The application continues to write: the first region becomes dirty.
                self.map().dirty.push(0);
                let held = std::mem::take(&mut *self.server.suspended.lock().unwrap());
                let held = held && !Whim::LetGo.take(&self.server.path);
                let ended = held.then_some(Suspended::SinceSplit);
                Response::Resumed { ended }
            }
            Request::Suspend { .. } => refused(Refusal::Malformed, "the fake cannot do that"),
        }
    }

    fn set_route(&self, epoch: u64, route: Route, copies_rest: bool) -> Response {
        let path = &self.server.path;
        if matches!(route, Route::Single { .. }) && Whim::RefuseSingle.is_set(path) {
            return refused(Refusal::Deadline, "requests could not be drained in time");
        }
        let changes_role = route.is_mirrored() || route == Route::Split;
        if changes_role {
            if Whim::SlowRole.is_set(path) {
                std::thread::sleep(Duration::from_secs(1));
            }
            if Whim::RefuseRole.is_set(path) {
                return refused(Refusal::Deadline, "requests could not be drained in time");
            }
            if Whim::DieBeforeRole.take(path) {
                std::process::exit(9);
            }
        }
        let response = self.change(epoch, |map| {
            if copies_rest {
                map.dirty.clear();
            }
            if changes_role && map.route != Route::Split && !map.dirty.is_empty() {
                return Err(refused(Refusal::NotInSync, "regions are dirty"));
            }
            if !migration_core::route::Route::from(map.route).may_become(route.into()) {
                return Err(refused(Refusal::WrongRoute, "not from this route"));
            }
            map.route = route;
            if !changes_role {
                map.dirty.clear();
            }
            Ok(())
        });
        *self.server.suspended.lock().unwrap() = route == Route::Split;
        if changes_role && Whim::DieAfterRole.take(path) {
            std::process::exit(9);
        }
        response
    }

    fn change(
        &self,
        epoch: u64,
        change: impl FnOnce(&mut Map) -> Result<(), Response>,
    ) -> Response {
        let mut map = self.map();
        if map.epoch != epoch {
            return refused(Refusal::StaleEpoch, "the epoch has changed");
        }
        if let Err(refusal) = change(&mut map) {
            return refusal;
        }
        map.epoch += 1;
        save(&self.server.path, &map);
        Response::RouteChanged {
            epoch: map.epoch,
            route: map.route,
            pause_us: 1234,
        }
    }

    fn status(&self) -> Status {
        let map = self.map();
        Status {
            volume: map.descriptor.volume.clone(),
            volume_id: map.descriptor.volume_id.clone(),
            pid: std::process::id(),
            device: PathBuf::from(format!("/no-device/{}", map.descriptor.volume)),
            epoch: map.epoch,
            route: map.route,
            size_bytes: map.descriptor.size_bytes,
            region_bytes: REGION_BYTES,
            dirty_bytes: map.dirty.len() as u64 * REGION_BYTES,
            dirty_percent: Vec::new(),
            claimed_bytes: 0,
            copied_bytes: *self.server.copied_bytes.lock().unwrap(),
            degraded: Whim::Degraded
                .is_set(&self.server.path)
                .then(|| "the mirror leg failed: EIO".to_owned()),
            stalled_writes: [Whim::Degraded, Whim::Stalled]
                .iter()
                .all(|whim| whim.is_set(&self.server.path))
                .then_some(0),
            authoritative_problem: None,
            on_authoritative_failure: *self.server.on_authoritative_failure.lock().unwrap(),
            copy_mode: *self.server.copy_mode.lock().unwrap(),
            throttle_bytes_per_second: *self.server.throttle.lock().unwrap(),
            map_problem: None,
            suspended: false,
            changing: self.is_changing(),
            copier: *self.server.copier.lock().unwrap(),
            source: map.descriptor.source.clone(),
            target: map.descriptor.target.clone(),
            source_open: open_luns(&map.descriptor.source),
            target_open: map
                .descriptor
                .target
                .as_ref()
                .map(open_luns)
                .unwrap_or_default(),
            counters: Counters::default(),
            read_latency: Vec::new(),
            write_latency: Vec::new(),
            claim: 1,
            held: Vec::new(),
            doubt: None,
            driver_features: Vec::new(),
            recovered: false,
        }
    }

    fn open_copier(&mut self) -> Response {
        let map = self.map();
        let (Route::Mirrored { authoritative }, Some(target)) =
            (map.route, map.descriptor.target.clone())
        else {
            return refused(Refusal::WrongRoute, "it is not mirrored");
        };
        if std::mem::replace(&mut *self.server.copier.lock().unwrap(), true) {
            return refused(Refusal::CopierBusy, "another copier lives");
        }
        let source = map.descriptor.source.clone();
        let (from, to) = if authoritative == Side::Source {
            (source, target)
        } else {
            (target, source)
        };
        let (epoch, size_bytes) = (map.epoch, map.descriptor.size_bytes);
        drop(map);
        self.is_copier = true;
        Response::CopierOpened {
            epoch,
            region_bytes: REGION_BYTES,
            size_bytes,
            from: served(from),
            to: served(to),
            compare_first: false,
        }
    }

    fn claim(&mut self, regions_max: u32) -> Response {
        loop {
            let map = self.map();
            let dirty_bytes = map.dirty.len() as u64 * REGION_BYTES;
            let free = map
                .dirty
                .iter()
                .filter(|region| !self.claimed.contains(region));
            let regions: Vec<u64> = free.copied().take(regions_max as usize).collect();
            if map.dirty.is_empty()
                || (!regions.is_empty() && !Whim::HoldClaims.is_set(&self.server.path))
            {
                let epoch = map.epoch;
                drop(map);
                self.claimed.extend(&regions);
                return Response::Claimed {
                    epoch,
                    regions,
                    never_copied: Vec::new(),
                    dirty_bytes,
                };
            }
            drop(map);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn report(&mut self, copied: &[u64]) -> Response {
        let mut map = self.map();
        map.dirty.retain(|region| !copied.contains(region));
        save(&self.server.path, &map);
        drop(map);
        self.claimed.retain(|region| !copied.contains(region));
        *self.server.copied_bytes.lock().unwrap() += copied.len() as u64 * REGION_BYTES;
        Response::Done
    }
}

fn refused(reason: Refusal, cause: &str) -> Response {
    Response::Refused {
        reason,
        cause: cause.to_owned(),
    }
}
