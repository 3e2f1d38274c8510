//! Ends the process: by a panic, by a signal, or by a clean stop.
//!
//! A device that is open must be served. So a signal that a shutdown sends to every process does
//! not end the server of an open device; otherwise file systems could not be unmounted.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use leg::OpenLeg;
use map_store::MapFile;
use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal},
};

use crate::{
    custody,
    engine::{Snapshot, Stopped},
    serve::{CONTROL_LIMIT, EngineThread},
    socket::Wake,
    ublk::{Control, DeviceId, Features},
};

/// The signals that ask a process to end.
const ASKING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
/// Stack of the thread that waits for the signals, in bytes. All memory of this process is locked.
const STACK_BYTES: usize = 128 << 10;
/// The most tries of a stop. udev opens new and changed devices for a moment, so the first try may
/// fail.
const STOP_TRIES_MAX: u32 = 5;
/// The interval between two tries.
const STOP_RETRY: Duration = Duration::from_millis(200);

/// Makes a panic of any thread end the process. The other threads would keep the lock and the
/// socket of a volume that is no longer served; the next process takes over.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Starts a thread that receives the signals that ask for the end, and sends each as
/// [`Wake::Signal`]. Call it before any other thread starts: new threads inherit the blocked
/// signals.
///
/// # Errors
/// The signals cannot be blocked, or the thread cannot be started.
pub fn catch_signals(wake: SyncSender<Wake>) -> anyhow::Result<()> {
    let signals: SigSet = ASKING.into_iter().collect();
    signals.thread_block().context("block signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                let (handled, wait) = sync_channel(1);
                if wake.send(Wake::Signal(signal, handled)).is_err() {
                    return;
                }
                // At most one signal is queued, so the end of the engine always has room.
                let _ = wait.recv();
            }
        })?;
    Ok(())
}

/// Stops the device unless it is open, and drains its requests.
///
/// # Errors
/// The reason why the device was not stopped, with the users of an open device. The device
/// continues to work.
pub fn stop_device(
    control: &mut Control,
    device: DeviceId,
    features: Features,
) -> Result<(), String> {
    let path = PathBuf::from(format!("/dev/ublkb{device}"));
    let mut tries = 1;
    loop {
        let result = if features.contains(Features::SAFE_STOP_DEV) {
            try_stop(control, device, &path)
        } else {
            stop_unless_open(control, device, &path)
        };
        match result {
            Err(_) if tries < STOP_TRIES_MAX => std::thread::sleep(STOP_RETRY),
            other => return other,
        }
        tries += 1;
    }
}

fn try_stop(control: &mut Control, device: DeviceId, path: &Path) -> Result<(), String> {
    match control.try_stop_dev(device, CONTROL_LIMIT) {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == Some(Errno::EBUSY) => Err(in_use(path, &users(path))),
        Err(error) => Err(error.to_string()),
    }
}

/// Stops the device of an old driver, which would also stop an open device: so this function looks
/// for users first. The exclusive open prevents mounts and other claims in the meantime.
fn stop_unless_open(control: &mut Control, device: DeviceId, path: &Path) -> Result<(), String> {
    let found = users(path);
    if !found.is_empty() {
        return Err(in_use(path, &found));
    }
    let claim = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path);
    let claim = match claim {
        Ok(claim) => Some(claim),
        // The device is gone: nobody can open it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(in_use(path, &[error.to_string()])),
    };
    let stopped = control.stop_dev(device, CONTROL_LIMIT);
    drop(claim);
    stopped.map_err(|error| error.to_string())
}

fn users(path: &Path) -> Vec<String> {
    lun::users(path, std::process::id()).unwrap_or_else(|problem| vec![problem])
}

fn in_use(path: &Path, users: &[String]) -> String {
    match users {
        [] => format!("{} is open", path.display()),
        users => format!("{} is in use: {}", path.display(), users.join("; ")),
    }
}

/// Ends the engine of a stopped device, makes its writes durable on both legs, leaves the legs to
/// the next process, and deletes the device. Only a process that ends in this way leaves nothing to
/// recover. `last` is a snapshot of the volume from before the device was stopped.
///
/// # Errors
/// The authoritative leg cannot be flushed, or the engine or the kernel fails.
pub(crate) fn stop_cleanly(
    control: &mut Control,
    device: DeviceId,
    engine: EngineThread,
    map: &mut MapFile,
    last: &Snapshot,
) -> anyhow::Result<()> {
    let stopped = engine.join()?;
    let mirror_is_flushed = flush_legs(&stopped)?;
    // A mirror leg that misses writes, or may still receive one, is not recorded as released.
    if mirror_is_flushed && let Err(error) = custody::release(map, last) {
        tracing::warn!("the next process will copy or compare everything: {error:#}");
    }
    drop(stopped);
    control.del_dev(device, CONTROL_LIMIT)?;
    Ok(())
}

/// Flushes every leg of the route. Returns whether the mirror leg holds what it was given: one that
/// is not whole is not flushed (what it misses is marked in the map file), and one that cannot be
/// flushed is logged. The kernel reports a failed flush only once, so a later one proves nothing.
fn flush_legs(stopped: &Stopped) -> anyhow::Result<bool> {
    use migration_core::route::Side;
    let route = stopped.record.route;
    let mut mirror_is_flushed = stopped.mirror_is_whole;
    for (side, leg) in [
        (Side::Source, &stopped.source),
        (Side::Target, &stopped.target),
    ] {
        let Some(leg) = leg else { continue };
        let is_authoritative = side == route.authoritative();
        if !is_authoritative && !stopped.mirror_is_whole {
            continue;
        }
        match flush(leg) {
            Ok(()) => {}
            Err(error) if is_authoritative => {
                return Err(error).with_context(|| format!("flush the {side} leg"));
            }
            Err(error) => {
                mirror_is_flushed = false;
                tracing::warn!("flush the {side} leg: {error}");
            }
        }
    }
    Ok(mirror_is_flushed)
}

fn flush(leg: &Arc<OpenLeg>) -> io::Result<()> {
    for lun in &leg.luns {
        File::from(lun.fd.try_clone()?).sync_all()?;
    }
    Ok(())
}

/// Handles a signal that asks for the end. Stops the device as [`stop_device`] does.
pub(crate) fn obey(
    signal: Signal,
    control: &mut Control,
    device: DeviceId,
    features: Features,
) -> Result<(), String> {
    let stopped = stop_device(control, device, features);
    match &stopped {
        Ok(()) => tracing::info!(%signal, "stopped"),
        Err(cause) => tracing::warn!(
            %signal,
            "not obeyed, the volume is served on: {cause}; to end it, stop or unmount what uses it, then detach it"
        ),
    }
    stopped
}

impl EngineThread {
    /// Waits for the end of the engine of a stopped device.
    fn join(self) -> anyhow::Result<Stopped> {
        self.next_event()?;
        let stopped = self
            .thread
            .join()
            .map_err(|_| anyhow!("the engine panicked"))?;
        stopped.ok_or_else(|| anyhow!("the engine has ended without its device"))
    }
}
