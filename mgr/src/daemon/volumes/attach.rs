//! Attaches a volume to LUNs, and detaches it.
//!
//! The row with state `attaching` is durable before the map file is created, and the row with state
//! `detaching` before the device is stopped. A shuntd that finds `attaching` with a map file
//! continues as if the volume were attached; without a map file it removes the row. A shuntd that
//! finds `detaching` brings the volume up again (only ublk-target can delete the device) and then
//! stops it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use migration_core::route::Side;
use migration_proto::disks::Disks;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{Failure, HistoryEvent};
use migration_proto::route::Descriptor;
use migration_proto::target::Status;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::names;
use super::partitions;
use super::process::{self, Setup};
use super::supervisor::supervise;
use super::truth;
use crate::daemon::context::{Context, blocking, note, reading};
use crate::daemon::event::Event;
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::folders::{make_directory, sync_parent};
use crate::daemon::handle::{AskError, VolumeHandle};
use crate::daemon::luns::checks::{self, Candidate, Purpose, Used};
use crate::daemon::luns::twice;
use crate::daemon::paths::{self, SOCKET_PATH_BYTES_MAX};
use crate::store::{Change, OpenMapRow, VolumeRow, VolumeState};

/// How long a new volume may take to come up.
const FIRST_START_MAX: Duration = Duration::from_secs(60);
/// How often, and at which interval, a detach checks whether a device is still open: udev opens new
/// and changed devices for a moment.
const OPEN_LOOKS_MAX: u32 = 5;
const OPEN_LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long an attach waits for the partitions of a new volume.
const PARTITIONS_MAX: Duration = Duration::from_secs(5);
/// The control device of the ublk driver.
const UBLK_CONTROL: &str = "/dev/ublk-control";

/// Attaches a new volume to LUNs.
pub(crate) async fn attach(
    context: Context,
    name: String,
    paths: LunPaths,
    accept_weak_identity: bool,
    used: Vec<Used>,
) -> Answer {
    let object = failure::volume(&name);
    let again = format!("free the lun or name a different one, then `shunt attach {name} LUN`");
    let socket = context.config.volume_socket(&name);
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let cause = format!(
            "the path of its socket, {}, is longer than {SOCKET_PATH_BYTES_MAX} bytes",
            socket.display()
        );
        return Err(failure::refused(
            object,
            cause,
            "choose a shorter name, or a shorter --runtime-dir",
        ));
    }
    if let Err(cause) = names::check_name(&context.config.device_link(&name)) {
        let next = format!("choose another name, or free this one, then `shunt attach {name} LUN`");
        return Err(failure::refused(object, cause, next));
    }
    if context.config.host_checks.ublk {
        require_ublk().await.map_err(|cause| {
            failure::refused(
                &object,
                cause,
                format!("load the module or boot such a kernel, then `shunt attach {name} LUN`"),
            )
        })?;
    }
    let leg = context
        .examine(paths, Purpose::Source)
        .await
        .map_err(|cause| failure::refused(&object, cause, &again))?;
    let judged = leg.clone();
    let refusals = blocking(move || checks::source_refusals(&judged, &used, accept_weak_identity))
        .await
        .map_err(|cause| failure::failed(&object, cause, &again))?;
    if !refusals.is_empty() {
        return Err(failure::refused(object, refusals.join("; "), again));
    }
    // The map file of a volume that is not recorded may be all that is left of the volume: never
    // touch it.
    let directory = context.config.volume(&name);
    if directory.exists() {
        let cause = format!(
            "{} exists already, and no volume is recorded for it: its map file may be all that is left of a volume",
            directory.display()
        );
        return Err(failure::refused(
            object,
            cause,
            "choose another name; the log of shuntd says at its start why that volume was not taken over",
        ));
    }
    let row = row_of(&name, &leg).map_err(|cause| failure::refused(&object, cause, &again))?;
    let intent = HistoryEvent::AttachBegun {
        lun: row.leg.paths().clone(),
        identity: row.leg.describe(),
        weak_identity: row.leg.weak().map(|lun| lun.path.clone()).collect(),
    };
    let mut changes = vec![
        Change::AddVolume(row.clone()),
        note(None, Some(&name), intent),
    ];
    changes.extend(row.leg.locks(&object).into_iter().map(Change::Lock));
    context.record(&object, changes).await?;
    let physical = leg.iter().map(|candidate| candidate.physical_block_bytes);
    match bring_up(&context, &row, physical.max().unwrap_or(0)).await {
        Ok((handle, status)) => {
            let done = finish_attach(&context, &row, handle, &status).await?;
            let notes = leg.into_iter().filter_map(|candidate| candidate.name_note);
            Ok(Done {
                messages: notes.chain(done.messages).collect(),
                ..done
            })
        }
        Err(cause) => {
            let undone = undo_attach(&context, &row, &cause).await;
            let cause = undone.err().map_or(cause.clone(), |error| {
                format!("{cause}; and undoing it failed: {error}")
            });
            Err(failure::failed(
                object,
                cause,
                format!("correct the cause, then `shunt attach {name} LUN` again"),
            ))
        }
    }
}

async fn finish_attach(
    context: &Context,
    row: &VolumeRow,
    handle: VolumeHandle,
    status: &Status,
) -> Answer {
    let object = failure::volume(&row.name);
    let link = context.config.device_link(&row.name);
    context.notify(Event::Supervised(handle)).await;
    context
        .record(
            &object,
            vec![
                Change::SetVolumeState(row.name.clone(), VolumeState::Attached),
                Change::SetOpenMap(row.name.clone(), open_map(status, row.leg.paths())),
                note(
                    None,
                    Some(&row.name),
                    HistoryEvent::Attached {
                        device: status.device.clone(),
                    },
                ),
            ],
        )
        .await?;
    if let Err(error) = names::make_link(&link, &status.device, None) {
        let cause = format!(
            "the volume is available as {}, but {error}",
            status.device.display()
        );
        return Err(failure::failed(
            object,
            cause,
            format!(
                "remove what blocks the name; `shunt detach {}` removes the volume",
                row.name
            ),
        ));
    }
    let (name, device) = (link.clone(), status.device.clone());
    let naming = blocking(move || partitions::make_names(&name, &device, None));
    // Names that are not made within the time limit are made in the background.
    let _ = timeout(PARTITIONS_MAX, naming).await;
    let mut messages = vec![format!(
        "{} is ready: {} bytes on {} (now {})",
        link.display(),
        row.size_bytes,
        row.leg,
        status.device.display()
    )];
    messages.extend(twice::warnings(row, None).await);
    Ok(Done::changed(messages))
}

/// Answers an attach whose name is taken: `already` if `paths` name the LUNs of the attached
/// volume, otherwise a refusal.
pub(crate) async fn attach_again(row: VolumeRow, paths: LunPaths) -> Answer {
    let object = failure::volume(&row.name);
    let wanted = paths.clone();
    let found = reading(move || checks::identify(&wanted))
        .await
        .and_then(|found| found);
    let same = paths == *row.leg.paths() || found.is_ok_and(|found| found.key() == row.leg.key());
    if same {
        return Ok(Done::already(format!(
            "volume {} is attached to {} already",
            row.name, row.leg
        )));
    }
    let cause = format!(
        "the name is taken: it is attached to {}, not to {paths}",
        row.leg
    );
    Err(failure::refused(
        object,
        cause,
        format!("choose another name, or `shunt detach {}` first", row.name),
    ))
}

fn row_of(name: &str, leg: &[Candidate]) -> Result<VolumeRow, String> {
    let blocks = leg
        .iter()
        .map(|candidate| candidate.lun.identity.logical_block_bytes);
    let sizes = leg
        .iter()
        .map(|candidate| candidate.lun.identity.size_bytes);
    Ok(VolumeRow {
        name: name.to_owned(),
        volume_id: uuid::Uuid::new_v4().to_string(),
        state: VolumeState::Attaching,
        size_bytes: sizes.sum(),
        logical_block_bytes: blocks.max().unwrap_or(0),
        leg: checks::leg_row(leg)?,
        open_map: None,
    })
}

pub(crate) fn open_map(status: &Status, leg: &LunPaths) -> OpenMapRow {
    OpenMapRow {
        kernel_device: status.device.clone(),
        boot_id: paths::boot_id(),
        leg: leg.clone(),
    }
}

/// The last kernel device of a volume, if it was recorded in this boot; after a reboot its number
/// may belong to a different volume.
pub(super) fn own_device(row: &VolumeRow) -> Option<&Path> {
    let open_map = row.open_map.as_ref()?;
    (open_map.boot_id == paths::boot_id()).then_some(open_map.kernel_device.as_path())
}

/// The configuration of a volume's supervisor.
pub(crate) fn setup(context: &Context, row: &VolumeRow) -> Setup {
    let config = &context.config;
    Setup {
        name: row.name.clone(),
        volume_id: row.volume_id.clone(),
        program: config.ublk_target.clone(),
        map: config.map(&row.name),
        socket: config.volume_socket(&row.name),
        log: config.log(&row.name),
        silent_max: config.silent_max,
        new: row.state == VolumeState::Attaching,
    }
}

async fn bring_up(
    context: &Context,
    row: &VolumeRow,
    physical_block_bytes: u32,
) -> Result<(VolumeHandle, Arc<Status>), String> {
    let directory = context.config.volume(&row.name);
    make_directory(&directory)
        .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    let descriptor = Descriptor {
        volume: row.name.clone(),
        volume_id: row.volume_id.clone(),
        size_bytes: row.size_bytes,
        logical_block_bytes: row.logical_block_bytes,
        physical_block_bytes: physical_block_bytes.max(row.logical_block_bytes),
        source: row.leg.layout(row.size_bytes),
        target: None,
    };
    process::format(
        &context.config.ublk_target,
        &context.config.map(&row.name),
        &descriptor,
        Side::Source,
    )
    .await?;
    let handle = supervise(setup(context, row), context.events.clone());
    let up = handle
        .wait_for(FIRST_START_MAX, |view| view.connected || view.failures > 0)
        .await;
    let problem = match up {
        Ok(view) => match (view.connected, view.status) {
            (true, Some(status)) => return Ok((handle, status)),
            (true, None) | (false, _) => view
                .problem
                .unwrap_or_else(|| "ublk-target did not start".to_owned()),
        },
        Err(error) => error.to_string(),
    };
    handle.abandon().await;
    Err(problem)
}

async fn undo_attach(context: &Context, row: &VolumeRow, cause: &str) -> Result<(), String> {
    remove_files(context, &row.name).map_err(|error| error.to_string())?;
    let failed = HistoryEvent::AttachFailed {
        cause: cause.to_owned(),
    };
    let mut changes = vec![
        Change::RemoveVolume(row.name.clone()),
        note(None, Some(&row.name), failed),
    ];
    changes.extend(row.leg.unlock());
    context
        .commit(changes)
        .await
        .map_err(|error| error.to_string())
}

fn remove_files(context: &Context, name: &str) -> io::Result<()> {
    let absent = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let socket = context.config.volume_socket(name);
    absent(std::fs::remove_file(Disks::path(&socket)))?;
    absent(std::fs::remove_file(socket))?;
    let directory = context.config.volume(name);
    absent(std::fs::remove_dir_all(&directory))?;
    // Without this sync, a power loss can bring back the directory of a volume that is no longer
    // recorded.
    sync_parent(&directory)
}

/// Detaches a volume. `handle` is `None` only if the volume was never brought up.
pub(crate) async fn detach(
    context: Context,
    row: VolumeRow,
    handle: Option<VolumeHandle>,
) -> Answer {
    let object = failure::volume(&row.name);
    if let Err(failure) = truth::require_single(&context, &row, handle.as_ref()).await {
        if row.state == VolumeState::Detaching {
            context
                .record(&object, not_detached(&row.name, &failure.cause))
                .await?;
        }
        return Err(failure);
    }
    if row.state != VolumeState::Detaching {
        let changes = vec![
            Change::SetVolumeState(row.name.clone(), VolumeState::Detaching),
            note(None, Some(&row.name), HistoryEvent::DetachBegun),
        ];
        context.record(&object, changes).await?;
        crash_point::here("intention-after");
    }
    match take_down(&context, &row, handle.as_ref()).await {
        Ok(()) => {}
        Err(NotDown::Unknown(failure)) => {
            // The detach continues when the volume's ublk-target answers again.
            let unknown = HistoryEvent::DetachUnknown {
                cause: failure.cause.clone(),
            };
            context
                .record(&object, vec![note(None, Some(&row.name), unknown)])
                .await?;
            return Err(failure);
        }
        Err(NotDown::Up(failure)) => {
            let changes = not_detached(&row.name, &failure.cause);
            context.record(&object, changes).await?;
            return Err(failure);
        }
    }
    crash_point::here("detached-before-recorded");
    context.notify(Event::Unsupervised(row.name.clone())).await;
    forget(&context, &row).await?;
    Ok(Done::changed(vec![format!(
        "volume {} is gone; its data is on {}",
        row.name, row.leg
    )]))
}

fn not_detached(name: &str, cause: &str) -> Vec<Change> {
    let event = HistoryEvent::NotDetached {
        cause: cause.to_owned(),
    };
    vec![
        Change::SetVolumeState(name.to_owned(), VolumeState::Attached),
        note(None, Some(name), event),
    ]
}

/// Removes the files, names, records and locks of a volume whose device is gone.
pub(crate) async fn forget(context: &Context, row: &VolumeRow) -> Result<(), Failure> {
    let object = failure::volume(&row.name);
    let again = format!("remove it by hand, then `shunt detach {}`", row.name);
    if let Some(device) = own_device(row) {
        let link = context.config.device_link(&row.name);
        let removed = partitions::remove_names(&link, device)
            .and_then(|()| names::remove_link(&link, device));
        removed.map_err(|error| {
            failure::failed(
                &object,
                format!("cannot remove {}: {error}", link.display()),
                &again,
            )
        })?;
    }
    let directory = context.config.volume(&row.name);
    remove_files(context, &row.name).map_err(|error| {
        failure::failed(
            &object,
            format!("cannot remove {}: {error}", directory.display()),
            &again,
        )
    })?;
    let detached = HistoryEvent::Detached {
        lun: row.leg.paths().clone(),
    };
    let mut changes = vec![
        Change::RemoveVolume(row.name.clone()),
        note(None, Some(&row.name), detached),
    ];
    changes.extend(row.leg.unlock());
    context.record(&object, changes).await
}

/// Why a volume was not taken down.
enum NotDown {
    /// The device was not stopped.
    Up(Failure),
    /// The request to stop was not answered, so the device may be gone or not.
    Unknown(Failure),
}

async fn take_down(
    context: &Context,
    row: &VolumeRow,
    handle: Option<&VolumeHandle>,
) -> Result<(), NotDown> {
    let object = failure::volume(&row.name);
    let again = format!("`shunt detach {}`", row.name);
    let view = handle.map(VolumeHandle::view).unwrap_or_default();
    let (Some(handle), true, Some(status)) = (handle, view.connected, view.status) else {
        let map = context.config.map(&row.name);
        if !map.exists() || device_is_gone(row) && !is_locked(&map) {
            if let Some(handle) = handle {
                handle.abandon().await;
            }
            return Ok(());
        }
        let problem = view
            .problem
            .unwrap_or_else(|| "it has not answered yet".to_owned());
        let cause = format!(
            "its ublk-target does not answer, and it alone can delete the device: {problem}"
        );
        return Err(NotDown::Up(failure::failed(
            object,
            cause,
            format!("correct the cause (its ublk-target is restarted automatically), then {again}"),
        )));
    };
    let users = users_of(&status.device, status.pid).await;
    if !users.is_empty() {
        let cause = format!(
            "it is open: {} {}",
            status.device.display(),
            users.join("; ")
        );
        return Err(NotDown::Up(failure::refused(
            object,
            cause,
            format!("stop or unmount what uses it, then {again}"),
        )));
    }
    handle.stop().await.map_err(|error| match error {
        AskError::Refused(cause) => NotDown::Up(failure::refused(
            &object,
            cause,
            format!("stop or unmount what uses it, then {again}"),
        )),
        AskError::Down(cause) => {
            NotDown::Up(failure::failed(&object, cause, format!("{again} again")))
        }
        AskError::Lost(cause) => NotDown::Unknown(failure::failed(
            &object,
            cause,
            format!("see `shunt status`: the detach continues when its ublk-target answers; or {again} again"),
        )),
    })
}

/// Whether the kernel device of a volume is certainly gone: another boot created it, or its node
/// does not exist. False if no device is recorded.
fn device_is_gone(row: &VolumeRow) -> bool {
    match &row.open_map {
        Some(open_map) => open_map.boot_id != paths::boot_id() || !open_map.kernel_device.exists(),
        None => false,
    }
}

/// Whether the map file is locked: then a process serves the volume from it, whatever the database
/// says.
fn is_locked(map: &Path) -> bool {
    let Ok(file) = File::open(map) else {
        return false;
    };
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    matches!(lock, Err((_, Errno::EWOULDBLOCK)))
}

/// Lists the users of a volume's device, without the process `server`. Repeats the check until
/// there are no users, at most `OPEN_LOOKS_MAX` times.
async fn users_of(device: &Path, server: u32) -> Vec<String> {
    let mut users = Vec::new();
    for look in 0..OPEN_LOOKS_MAX {
        if look > 0 {
            sleep(OPEN_LOOK_EVERY).await;
        }
        let device = device.to_owned();
        users = match blocking(move || lun::users(&device, server)).await {
            Ok(Ok(users)) => users,
            // The check may have used its whole time limit: do not repeat it.
            Ok(Err(problem)) | Err(problem) => return vec![problem],
        };
        if users.is_empty() {
            break;
        }
    }
    users
}

/// Checks that this kernel has ublk; loads the module if the control device does not exist.
pub(crate) async fn require_ublk() -> Result<(), String> {
    if Path::new(UBLK_CONTROL).exists() {
        return Ok(());
    }
    let loaded = Command::new("modprobe").arg("ublk_drv").output().await;
    for _ in 0..10 {
        if Path::new(UBLK_CONTROL).exists() {
            return Ok(());
        }
        // devtmpfs creates the node immediately, other set-ups leave that to udev.
        sleep(Duration::from_millis(100)).await;
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let said = match loaded {
        Ok(output) if output.status.success() => {
            format!("the module ublk_drv was loaded, but {UBLK_CONTROL} is not there")
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("cannot run modprobe: {error}"),
    };
    Err(format!(
        "the running kernel, {}, has no ublk driver (module ublk_drv; Debian's kernels 6.12 and later have it): {said}",
        kernel.trim()
    ))
}
