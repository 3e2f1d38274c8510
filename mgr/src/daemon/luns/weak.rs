//! Checks whether LUNs with a weak identity (`--accept-weak-identity`: only their size identifies
//! them) are still the accepted ones, and gives `ublk-target` the disks of this boot.
//!
//! Within a boot the sequence number of the disk decides. After a boot, the contents and the size
//! of the LUN decide, if no other device looks the same. Otherwise `ublk-target` refuses the LUN
//! until the operator accepts it again (`shunt attach` of the same path).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lun::{Lun, OpenOptions, Seen};
use migration_proto::disks::{Disk, Disks};
use migration_proto::manager::HistoryEvent;
use migration_proto::target::Status;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::opened;
use crate::daemon::context::{Context, blocking, note};
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::paths;
use crate::history;
use crate::store::{Change, LegRow, LunRow, Model};

/// How long reading the contents of a volume's LUNs may take before its ublk-target is started
/// without them.
const READ_MAX: Duration = Duration::from_secs(20);

/// Why a LUN with a weak identity is not accepted.
pub(crate) fn refusal(path: &Path) -> String {
    format!(
        "{} has no name of its own (no world-wide name, serial or UUID): after a boot another LUN could be taken for it; give it \
         one, or --accept-weak-identity accepts it for this boot, and later as long as what is on it shows that it is the same",
        path.display()
    )
}

/// What the operator can do about a LUN that is not known to be the accepted one.
pub(crate) fn next(volume: &str, path: &Path) -> String {
    format!(
        "make sure that it is the right one, then `shunt attach {volume} {} --accept-weak-identity`",
        path.display()
    )
}

/// Gives the ublk-target of a volume the disks of its LUNs with a weak identity; then answers.
pub(crate) fn know_disks(
    context: &Context,
    model: &Model,
    volume: &str,
    reply: oneshot::Sender<()>,
) {
    let luns = luns_of(model, volume);
    if luns.is_empty() {
        // A supervisor that has ended needs no answer.
        let _ = reply.send(());
        return;
    }
    let context = context.clone();
    let volume = volume.to_owned();
    tokio::spawn(async move {
        know(&context, &volume, luns).await;
        let _ = reply.send(());
    });
}

/// Records the disks that a running ublk-target has open, for LUNs with a weak identity of
/// which no disk is recorded. So after the database was rebuilt, the next ublk-target continues
/// with the LUNs that are served now.
pub(crate) fn record_served_disks(context: &Context, model: &Model, volume: &str, status: &Status) {
    let weak = luns_of(model, volume);
    let unknown = opened::open_luns(status).filter(|(extent, _)| {
        let row = weak.get(&extent.path);
        row.is_some_and(|row| row.seen.is_none())
    });
    let changes: Vec<Change> = unknown
        .filter_map(|(extent, open)| {
            let seen = Seen {
                boot_id: paths::boot_id(),
                disk_sequence: open.disk_sequence?,
                size_bytes: open.size_bytes,
                contents: None,
            };
            Some(Change::SetSeen(extent.path.clone(), seen))
        })
        .collect();
    if !changes.is_empty() {
        context.record_aside(changes);
    }
}

/// The LUNs with a weak identity on both legs of a volume, by path.
pub(crate) fn luns_of(model: &Model, volume: &str) -> BTreeMap<PathBuf, LunRow> {
    let row = model.volumes.get(volume).into_iter();
    let legs = row.flat_map(|row| model.legs_of(row));
    legs.flat_map(LegRow::weak)
        .map(|lun| (lun.path.clone(), lun.clone()))
        .collect()
}

async fn know(context: &Context, volume: &str, luns: BTreeMap<PathBuf, LunRow>) {
    let asked = luns.clone();
    let found = blocking(move || asked.values().map(find_out).collect::<Vec<_>>());
    let late = || format!("it could not be read within {} s", READ_MAX.as_secs());
    let found = match timeout(READ_MAX, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(cause)) => luns.values().map(|_| Err(cause.clone())).collect(),
        Err(_) => luns.values().map(|_| Err(late())).collect(),
    };
    let (mut disks, mut changes) = (Vec::new(), Vec::new());
    for (lun, found) in luns.into_values().zip(found) {
        let disk_sequence = match found {
            Ok(Known { disk_sequence, now }) => {
                if let Some(now) = now {
                    let event = HistoryEvent::LunRecognised {
                        lun: lun.path.clone(),
                        contents: now.contents.clone(),
                    };
                    changes.push(note(None, Some(volume), event));
                    changes.push(Change::SetSeen(lun.path.clone(), now));
                }
                Ok(disk_sequence)
            }
            Err(cause) => Err(format!("{cause}; next: {}", next(volume, &lun.path))),
        };
        disks.push(Disk {
            path: lun.path,
            disk_sequence,
        });
    }
    let disks = Disks {
        boot_id: paths::boot_id(),
        disks,
    };
    let socket = context.config.volume_socket(volume);
    if let Err(error) = disks.write(&socket) {
        // ublk-target refuses disks that it does not know.
        warn!(volume, %error, "the disks of this boot could not be written down");
    }
    if let Err(error) = context.commit(changes).await {
        // The LUNs are checked again before the next start.
        warn!(volume, %error, "the disks of this boot could not be recorded");
    }
}

/// A LUN that is the accepted one.
pub(crate) struct Known {
    pub(super) disk_sequence: u64,
    /// The new state to record, if the LUN was checked by its contents.
    now: Option<Seen>,
}

/// Checks whether a LUN with a weak identity is the accepted one. Reads its contents only if the
/// host was booted, or the disk has changed, since the LUN was last checked: within a boot, a LUN
/// that hangs must not keep a volume down. Blocks.
pub(super) fn find_out(row: &LunRow) -> Result<Known, String> {
    let seen = row
        .seen
        .as_ref()
        .ok_or("nothing that is recorded shows that it is the one that was accepted")?;
    let lun = Lun::open(&row.path, &OpenOptions::default()).map_err(|error| error.to_string())?;
    row.identity
        .matches(&lun.identity)
        .map_err(|mismatch| format!("it is {mismatch}"))?;
    if seen.boot_id == paths::boot_id()
        && let Some(disk_sequence) = lun.disk_sequence
        && disk_sequence == seen.disk_sequence
    {
        return Ok(Known {
            disk_sequence,
            now: None,
        });
    }
    let now = lun.seen().map_err(|error| error.to_string())?;
    seen.is_still(&now)?;
    let others = lun.others_like(&now).map_err(|error| error.to_string())?;
    if !others.is_empty() {
        let others: Vec<String> = others
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(format!(
            "this host was booted since it was accepted, and {} holds the same",
            others.join(", ")
        ));
    }
    Ok(Known {
        disk_sequence: now.disk_sequence,
        now: Some(now),
    })
}

/// Accepts the LUNs that are at these paths now as the LUNs of the volume, as the operator
/// requests.
pub(crate) async fn accept(context: Context, volume: String, luns: Vec<LunRow>) -> Answer {
    let object = failure::volume(&volume);
    let mut messages = Vec::new();
    let mut changes = Vec::new();
    for row in luns {
        let path = row.path.clone();
        let seen = blocking(move || see(&row)).await.and_then(|seen| seen);
        let seen = seen.map_err(|cause| {
            let next = "give the right LUN this name, then the command again";
            failure::refused(&object, format!("{}: {cause}", path.display()), next)
        })?;
        let event = HistoryEvent::LunAccepted {
            lun: path.clone(),
            lun_bytes: seen.size_bytes,
            contents: seen.contents.clone(),
        };
        messages.push(history::sentence(&event, None, Some(&volume)));
        changes.push(note(None, Some(&volume), event));
        changes.push(Change::SetSeen(path, seen));
    }
    context.record(&object, changes).await?;
    Ok(Done::changed(messages))
}

fn see(row: &LunRow) -> Result<Seen, String> {
    let lun = Lun::open(&row.path, &OpenOptions::default()).map_err(|error| error.to_string())?;
    row.identity
        .matches(&lun.identity)
        .map_err(|mismatch| format!("it is {mismatch}"))?;
    lun.seen().map_err(|error| error.to_string())
}
