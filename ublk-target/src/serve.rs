//! The life of a process: prepare, add or recover the device, serve, end.
//!
//! ```text
//!   map file locked and read -> legs claimed and checked -> engine prepared
//!        -> ADD_DEV, SET_PARAMS            | START_USER_RECOVERY   (nothing is allocated or logged
//!        -> tags offered to the driver     |  tags offered          between these three)
//!        -> START_DEV                      | END_USER_RECOVERY
//!        -> control socket -> until Stop, a signal or the end of the device -> DEL_DEV
//! ```
//!
//! A death between START and END of a recovery can leave an old driver (without QUIESCE) stuck, and
//! with several queues it crashes the kernel. So an old driver gets one queue, and everything that
//! can take time or fail comes before START.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use leg::OpenLeg;
use map_store::MapFile;
use migration_core::route::Side;
use migration_proto::{
    chain,
    route::{Descriptor, MapSummary},
    target::{EXIT_MAP_DAMAGED, EXIT_OTHER_VOLUME},
};
use nix::errno::Errno;

use crate::{
    custody::{self, Inherited},
    ending,
    engine::{Engine, EngineError, Inbox, Parts, Shape, Stopped},
    legs,
    socket::{Facts, Server, THREADS_MAX, Wake},
    ublk::{
        self, Control, DevInfo, DeviceId, DeviceParams, DeviceState, DiscardParams, Features,
        NewDevice,
    },
};

/// Time limit of a control command.
pub(crate) const CONTROL_LIMIT: Duration = Duration::from_secs(30);
/// How long a process waits for the locks, claims and device of a predecessor that is still ending.
/// The predecessor's legs may be slow; shuntd starts another process after this one gives up.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(20);
/// Interval between two tries to start the recovery of the predecessor's device.
const PREDECESSOR_POLL: Duration = Duration::from_millis(2);
/// Time limit for `/dev/ublkcN` to appear.
const NODE_LIMIT: Duration = Duration::from_secs(10);
/// The request timeout of an old driver, in milliseconds. When it expires, the driver checks
/// whether its server is alive.
const OLD_DRIVER_IO_TIMEOUT_MS: u32 = 1000;
/// The largest discard that the device offers, in bytes.
const DISCARD_BYTES_MAX: u64 = 1 << 30;

/// The most queued wakes. Each connection's thread has at most one stop pending; one more is for
/// the thread of the signals, and one for the engine.
const WAKES_MAX: usize = THREADS_MAX + 2;

/// The exit status if another process serves the volume.
pub const EXIT_LOCKED: u8 = 3;

/// The parameters of [`serve`].
#[derive(Debug)]
pub struct Options {
    /// The map file.
    pub map: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The UUID of the volume, if it is known.
    pub volume_id: Option<String>,
    /// The descriptors of LUNs that the last process of the volume had open.
    pub inherited: Option<Inherited>,
    /// Hardware queues; an old driver gets one.
    pub queues: u16,
    /// Tags per queue.
    pub queue_depth: u16,
}

/// The largest request, in bytes. Below the region size of every volume that `format` makes, so
/// that a write touches two regions at most.
const REQUEST_BYTES_MAX: u32 = 256 << 10;

/// Serves a volume until it is stopped.
///
/// # Errors
/// The action that failed, and its object.
pub fn serve(mut options: Options) -> anyhow::Result<()> {
    ending::abort_on_panic();
    let (wake, wakes) = sync_channel(WAKES_MAX);
    ending::catch_signals(wake.clone())?;
    let mut control = Control::open()?;
    let needed = Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE;
    let features = control.require_features(needed, CONTROL_LIMIT)?;
    let mut map = MapFile::open(&options.map, PREDECESSOR_LIMIT)?;
    if let Some(id) = &options.volume_id {
        map.require_volume(id)?;
    }
    let descriptor = map.descriptor.clone();
    let tag = device_tag(&map.chosen.record.volume_id);
    protect_process();

    let predecessor = control.find_device(tag, CONTROL_LIMIT)?;
    let shape = shape(&options, features, predecessor.as_ref());
    let inherited = options.inherited.take();
    let ([source, target], mirror_problem) = open_legs(&map, &options.socket, inherited.as_ref())?;
    let legs = [source.as_ref(), target.as_ref()];
    let taken = custody::take(&mut map, legs, inherited.as_ref())?;
    drop(inherited);
    let params = device_params(&descriptor, source.as_ref().or(target.as_ref()));
    let inbox = Arc::new(Inbox::new().context("create an eventfd")?);
    let mut kept_map = map.duplicate()?;
    let parts = Parts {
        shape,
        map,
        doubt: taken.doubt,
        source,
        target,
        mirror_problem,
        // The kernels with QUIESCE also release unused registered files: that came shortly before.
        registers_luns: features.contains(Features::QUIESCE),
    };
    let mut engine = EngineThread::start(parts, Arc::clone(&inbox), wake.clone())?;

    let (device, recovered) = match predecessor {
        Some(info) if info.state != DeviceState::Dead => {
            recover(&mut control, features, info.id, &mut engine)?;
            (info.id, true)
        }
        other => {
            if let Some(dead) = other {
                // The process of this device died before it started the device: nobody has the
                // device open.
                control.del_dev(dead.id, CONTROL_LIMIT)?;
            }
            (
                add(&mut control, features, tag, shape, &params, &mut engine)?,
                false,
            )
        }
    };
    let facts = Facts {
        device: PathBuf::from(format!("/dev/ublkb{device}")),
        socket: options.socket.clone(),
        driver_features: features.names().map(str::to_owned).collect(),
        recovered,
        claim: taken.claim,
    };
    let server = Server::new(facts, Arc::clone(&inbox), wake);
    server
        .listen(&options.socket)
        .with_context(|| format!("listen on {}", options.socket.display()))?;
    if let Err(error) = server.listen_by_id(&descriptor.volume_id) {
        tracing::warn!("listen by the volume's id: {error}; the socket file is the only way here");
    }
    tracing::info!(
        volume = descriptor.volume,
        device = device.0,
        recovered,
        "serving"
    );
    let device = (device, features);
    attend(&mut control, device, &wakes, engine, &inbox, &mut kept_map)?;
    let _ = std::fs::remove_file(&options.socket);
    Ok(())
}

/// The engine in its thread. The thread gets the device once, and ends with the device.
pub(crate) struct EngineThread {
    device: SyncSender<File>,
    events: Receiver<Result<(), EngineError>>,
    pub(crate) thread: JoinHandle<Option<Stopped>>,
}

impl EngineThread {
    /// Starts the thread. Returns when the engine is prepared.
    fn start(parts: Parts, inbox: Arc<Inbox>, wake: SyncSender<Wake>) -> anyhow::Result<Self> {
        let (device, device_receiver) = sync_channel::<File>(1);
        let (event, events) = sync_channel(4);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run_engine(parts, inbox, &device_receiver, &event, &wake))?;
        let new = Self {
            device,
            events,
            thread,
        };
        new.next_event()?;
        Ok(new)
    }

    /// Hands the device over. Returns when the driver has all tags.
    fn take_device(&mut self, device: File) -> anyhow::Result<()> {
        self.device
            .send(device)
            .map_err(|_| anyhow!("the engine has ended"))?;
        self.next_event()
    }

    pub(crate) fn next_event(&self) -> anyhow::Result<()> {
        Ok(self
            .events
            .recv()
            .map_err(|_| anyhow!("the engine has ended"))??)
    }
}

/// Runs the engine until its device ends. Returns the remains of the engine.
fn run_engine(
    parts: Parts,
    inbox: Arc<Inbox>,
    device: &Receiver<File>,
    event: &SyncSender<Result<(), EngineError>>,
    wake: &SyncSender<Wake>,
) -> Option<Stopped> {
    become_io_flusher();
    let outcome = (|| {
        let mut engine = Engine::prepare(parts, inbox)?;
        let _ = event.send(Ok(()));
        let device = device.recv().map_err(|_| EngineError::NoDevice)?;
        engine.take_device(device)?;
        let _ = event.send(Ok(()));
        if let Err(error) = engine.run() {
            // The kernel may still read the engine's buffers. They stay until the process ends,
            // which follows immediately.
            std::mem::forget(engine);
            return Err(error);
        }
        Ok(engine.into_stopped())
    })();
    let (stopped, result) = match outcome {
        Ok(stopped) => (Some(stopped), Ok(())),
        Err(error) => (None, Err(error)),
    };
    let _ = event.send(result);
    // There is always room, see WAKES_MAX.
    let _ = wake.try_send(Wake::EngineEnded);
    stopped
}

/// Waits for the end of the volume: a stop, a signal, or the end of the engine.
fn attend(
    control: &mut Control,
    (device, features): (DeviceId, Features),
    wakes: &Receiver<Wake>,
    engine: EngineThread,
    inbox: &Inbox,
    map: &mut MapFile,
) -> anyhow::Result<()> {
    /// Time for the connection to write its answer before the process ends.
    const ANSWER: Duration = Duration::from_millis(50);
    loop {
        let wake = wakes.recv().unwrap_or(Wake::EngineEnded);
        let last = inbox.snapshot();
        let (reply, stopped) = match (wake, last) {
            (Wake::EngineEnded, _) | (_, None) => {
                engine.next_event()?;
                bail!("the device /dev/ublkb{device} was taken away by somebody else")
            }
            (Wake::Stop(reply), Some(last)) => {
                let stopped = ending::stop_device(control, device, features);
                (Some(reply), stopped.map(|()| last))
            }
            (Wake::Signal(signal, _handled), Some(last)) => {
                let stopped = ending::obey(signal, control, device, features);
                (None, stopped.map(|()| last))
            }
        };
        let answer = |answer: Result<(), String>| {
            // The client may have disconnected.
            reply.map(|reply| reply.send(answer).ok())
        };
        match stopped {
            Ok(last) => {
                let ended = ending::stop_cleanly(control, device, engine, map, &last);
                let said = ended.as_ref().err().map(|error| format!("{error:#}"));
                answer(said.map_or(Ok(()), Err));
                std::thread::sleep(ANSWER);
                return ended;
            }
            Err(cause) => drop(answer(Err(cause))),
        }
    }
}

fn add(
    control: &mut Control,
    features: Features,
    tag: u64,
    shape: Shape,
    params: &DeviceParams,
    engine: &mut EngineThread,
) -> anyhow::Result<DeviceId> {
    let wanted = Features::USER_RECOVERY
        | Features::USER_RECOVERY_REISSUE
        | Features::NO_AUTO_PART_SCAN
        | Features::SAFE_STOP_DEV
        | Features::QUIESCE;
    let new = NewDevice {
        id: None,
        queue_count: shape.queues,
        queue_depth: shape.queue_depth,
        io_buffer_bytes_max: shape.request_bytes_max,
        features: Features::from_bits(wanted.bits() & features.bits()),
        tag,
    };
    let info = control.add_dev(&new, CONTROL_LIMIT)?;
    let started = (|| {
        check_device(&info, shape)?;
        control.set_params(info.id, params, CONTROL_LIMIT)?;
        let device = ublk::wait_for_cdev(info.id, NODE_LIMIT)?;
        engine.take_device(device)?;
        control.start_dev(info.id, std::process::id(), CONTROL_LIMIT)?;
        watch_old_driver(info.id, features)
    })();
    if started.is_err() {
        // A device that never started has no users. The engine still holds the device; the kernel
        // completes the deletion when the engine ends.
        let _ = control.del_dev(info.id, Duration::from_millis(100));
    }
    started.map(|()| info.id)
}

fn recover(
    control: &mut Control,
    features: Features,
    device: DeviceId,
    engine: &mut EngineThread,
) -> anyhow::Result<()> {
    crash_point::here("recovery-before");
    let started = Instant::now();
    loop {
        match control.start_user_recovery(device, CONTROL_LIMIT) {
            Ok(()) => break,
            // A request of the old process is still in flight, or the driver has not noticed its
            // death.
            Err(error) if error.errno() == Some(Errno::EBUSY) => {
                if started.elapsed() >= PREDECESSOR_LIMIT {
                    return Err(error).context("the previous process's I/O does not end");
                }
                std::thread::sleep(PREDECESSOR_POLL);
            }
            // An earlier recovery was started and fetched nothing: this recovery continues there.
            Err(error) if error.errno() == Some(Errno::EINVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    crash_point::here("recovery-started");
    let node = ublk::wait_for_cdev(device, NODE_LIMIT)?;
    engine.take_device(node)?;
    crash_point::here("recovery-fetched");
    control.end_user_recovery(device, std::process::id(), CONTROL_LIMIT)?;
    crash_point::here("recovery-ended");
    // Set here too, because the predecessor may have died before it set the timeout. Not earlier:
    // the kernel writes a queue's attribute only when no request is in flight, and the requests
    // that the predecessor left are answered from now on.
    watch_old_driver(device, features)
}

/// Sets the request timeout of an old driver, because only that timeout shows the death of a server
/// that held every tag.
fn watch_old_driver(device: DeviceId, features: Features) -> anyhow::Result<()> {
    if !features.contains(Features::QUIESCE) {
        ublk::set_io_timeout(device, OLD_DRIVER_IO_TIMEOUT_MS)?;
    }
    Ok(())
}

fn check_device(info: &DevInfo, shape: Shape) -> anyhow::Result<()> {
    let got = Shape {
        queues: info.queue_count,
        queue_depth: info.queue_depth,
        request_bytes_max: info.io_buffer_bytes_max,
    };
    if got != shape {
        bail!("the driver made a device of {got:?} of the wanted {shape:?}");
    }
    let needed = Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE;
    if !info.features.contains(needed) {
        bail!(
            "the driver dropped features that a volume needs: it has {}",
            info.features
        );
    }
    Ok(())
}

/// The shape of the device: a recovered device keeps its shape, a new one gets the options as far
/// as the driver supports them.
fn shape(options: &Options, features: Features, predecessor: Option<&DevInfo>) -> Shape {
    if let Some(info) = predecessor.filter(|info| info.state != DeviceState::Dead) {
        return Shape {
            queues: info.queue_count,
            queue_depth: info.queue_depth,
            request_bytes_max: info.io_buffer_bytes_max,
        };
    }
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u16);
    let is_old = !features.contains(Features::QUIESCE);
    Shape {
        queues: if is_old {
            1
        } else {
            options.queues.clamp(1, cpus)
        },
        queue_depth: options.queue_depth,
        request_bytes_max: REQUEST_BYTES_MAX,
    }
}

/// Opens the legs of the route. The volume is also served if its mirror leg cannot be opened: then
/// the second value is the reason.
fn open_legs(
    map: &MapFile,
    socket: &Path,
    inherited: Option<&Inherited>,
) -> anyhow::Result<([Option<OpenLeg>; 2], Option<String>)> {
    let route = map.chosen.record.route;
    let open = |side: Side| {
        let leg = map
            .descriptor
            .leg(side.into())
            .with_context(|| format!("the map file names no {side} leg"))?;
        legs::open(leg, socket, PREDECESSOR_LIMIT, inherited)
            .with_context(|| format!("open the {side} leg"))
    };
    let authoritative = open(route.authoritative())?;
    let mirror = route.mirror().map(open).transpose();
    let (mirror, problem) = match mirror {
        Ok(mirror) => (mirror, None),
        Err(error) => {
            let error = chain::text(error.as_ref());
            tracing::warn!("served without its mirror leg: {error}");
            (None, Some(error))
        }
    };
    let authoritative = Some(authoritative);
    let legs = match route.authoritative() {
        Side::Source => [authoritative, mirror],
        Side::Target => [mirror, authoritative],
    };
    Ok((legs, problem))
}

fn device_params(descriptor: &Descriptor, leg: Option<&OpenLeg>) -> DeviceParams {
    let luns = leg.map_or(&[][..], |leg| &leg.luns);
    let logical = descriptor.logical_block_bytes;
    let physical = descriptor.physical_block_bytes.max(logical);
    let optimal = luns
        .iter()
        .map(|lun| lun.optimal_io_bytes)
        .max()
        .unwrap_or(0);
    let granularity = luns
        .iter()
        .map(|lun| lun.discard_granularity_bytes)
        .max()
        .unwrap_or(0);
    let is_file = |lun: &lun::Lun| lun.device_number.is_none();
    let discards = luns
        .iter()
        .any(|lun| lun.discard_max_bytes > 0 || is_file(lun));
    DeviceParams {
        size_bytes: descriptor.size_bytes,
        logical_block_bytes: logical,
        physical_block_bytes: physical,
        io_min_bytes: physical,
        io_opt_bytes: if optimal.is_power_of_two() {
            optimal.max(physical)
        } else {
            physical
        },
        request_bytes_max: REQUEST_BYTES_MAX,
        read_only: false,
        rotational: luns.iter().any(|lun| lun.rotational),
        // A leg's cache may be volatile whatever it reports now, so the kernel always has to send
        // flushes.
        volatile_cache: true,
        fua: true,
        discard: discards.then(|| DiscardParams {
            granularity_bytes: granularity.max(physical).next_power_of_two(),
            alignment_bytes: 0,
            discard_bytes_max: DISCARD_BYTES_MAX,
            // The kernel sends zeroes as writes, which work in the same way on both legs.
            write_zeroes_bytes_max: 0,
        }),
        dma_alignment_bytes: None,
    }
}

/// The mark on the kernel's device by which a later process recognises it: FNV-1a of the volume's
/// UUID.
fn device_tag(volume_id: &[u8; 16]) -> u64 {
    let hash = volume_id
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash.max(1)
}

/// Protects the process: memory reclaim must not wait for its pages, and the kernel must not kill
/// it when memory is short.
fn protect_process() {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        tracing::warn!("{what}: {error}; the volume is less safe when memory is short");
    };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        failed("set oom_score_adj", &error);
    }
    let everything =
        nix::sys::mman::MlockAllFlags::MCL_CURRENT | nix::sys::mman::MlockAllFlags::MCL_FUTURE;
    if let Err(error) = nix::sys::mman::mlockall(everything) {
        failed("lock the process's memory", &error);
    }
}

fn become_io_flusher() {
    /// From `linux/prctl.h`.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    const ON: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: prctl takes numbers only.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, ON, UNUSED, UNUSED, UNUSED) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!("set PR_SET_IO_FLUSHER: {error}; memory reclaim may wait for this volume");
    }
}

/// Maps an error to the exit status by which shuntd knows that a restart will not help.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    use map_store::MapFileError as Error;
    match error.downcast_ref::<Error>() {
        Some(Error::Locked { .. }) => ExitCode::from(EXIT_LOCKED),
        Some(Error::Damaged { .. } | Error::Truncated { .. } | Error::Descriptor { .. }) => {
            ExitCode::from(EXIT_MAP_DAMAGED)
        }
        Some(Error::OtherVolume { .. }) => ExitCode::from(EXIT_OTHER_VOLUME),
        // A map file of another release is not damaged: `shunt recover` must not replace it.
        Some(Error::OtherVersion { .. } | Error::Io { .. }) | None => ExitCode::FAILURE,
    }
}

/// Creates the map file of a volume that uses one leg, from a descriptor in JSON.
///
/// # Errors
/// The descriptor is not valid, or the map file cannot be created.
pub fn format(map: &Path, descriptor: impl std::io::Read, leg: Side) -> anyhow::Result<()> {
    let descriptor: Descriptor =
        serde_json::from_reader(descriptor).context("the descriptor on standard input")?;
    Ok(map_store::format(map, &descriptor, leg)?)
}

/// Prints the contents of a map file as JSON.
///
/// # Errors
/// The map file cannot be read, it has no valid role record or descriptor, or the output cannot be
/// written.
pub fn describe(map: &Path, mut output: impl std::io::Write) -> anyhow::Result<()> {
    let found = map_store::describe(map)?;
    let summary = MapSummary {
        epoch: found.record.epoch.0,
        route: found.record.route.into(),
        descriptor: found.descriptor,
        damage: found.damage.map(|damage| damage.to_string()),
    };
    serde_json::to_writer(&mut output, &summary)?;
    Ok(writeln!(output)?)
}

#[cfg(test)]
mod tests {
    use map_store::MapFileError;
    use migration_core::map::MapError;

    use super::*;

    #[test]
    fn shuntd_learns_that_a_map_file_is_damaged_and_may_be_replaced_only_if_it_is() {
        let exit_code = |error: MapFileError| format!("{:?}", exit_code(&error.into()));
        let damaged = format!("{:?}", ExitCode::from(EXIT_MAP_DAMAGED));
        let path = PathBuf::from("db.map");
        let source = MapError::NoRole;
        let error = MapFileError::Damaged { path, source };
        assert_eq!(exit_code(error), damaged);
        let path = PathBuf::from("db.map");
        let error = MapFileError::OtherVersion { path, version: 3 };
        assert!(error.to_string().contains("install the release"), "{error}");
        assert_ne!(exit_code(error), damaged);
    }
}
