//! Opens the legs of the volume: claims their LUNs, or takes them over from the last process.

use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use leg::OpenLeg;
use lun::{Lun, OpenError, OpenOptions};
use migration_proto::{disks::Disks, route::Leg};

use crate::custody::Inherited;

/// Why a leg cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LegError {
    /// A LUN is not opened, or the leg does not fit on its LUNs.
    #[error(transparent)]
    Leg(#[from] leg::LegError),
    /// The list of the accepted disks, for LUNs without a name of their own, cannot be read.
    #[error("read which disks of this boot were accepted: {0}")]
    Disks(#[from] io::Error),
}

/// The options with which all LUNs of a leg are opened.
const OPTIONS: OpenOptions = OpenOptions {
    write: true,
    exclusive: true,
    direct: true,
};

/// Opens every LUN of a leg for direct I/O, claims it, and compares it with its recorded identity.
///
/// A LUN whose descriptor is in `inherited` is taken from there. If another process has claimed a
/// LUN, such as a predecessor that is still ending, the open is retried for up to `busy_limit`.
/// `socket` is the volume's control socket: the file with the disks of LUNs without a name of their
/// own is beside it.
///
/// # Errors
/// See [`LegError`]; no LUN stays open then.
pub fn open(
    leg: &Leg,
    socket: &Path,
    busy_limit: Duration,
    inherited: Option<&Inherited>,
) -> Result<OpenLeg, LegError> {
    let mut extents = leg.extents.iter();
    let disks = match extents.all(|extent| extent.identity.is_distinct()) {
        true => Disks::default(),
        false => Disks::read(socket, &lun::boot_id()?)?,
    };
    let opened = OpenLeg::open(
        leg,
        |_, extent| {
            let known = disks.of(&extent.path).transpose();
            known.map_err(str::to_owned)
        },
        |path| {
            let adopted = match inherited {
                Some(all) => all.adopt(path, &OPTIONS)?,
                None => None,
            };
            adopted.map_or_else(|| open_claimed(path, busy_limit), Ok)
        },
    )?;
    for (extent, lun) in leg.extents.iter().zip(opened.lun_of_each_extent()) {
        let recorded_bytes = extent.identity.size_bytes;
        if lun.identity.size_bytes > recorded_bytes {
            tracing::warn!(
                lun = %extent.path.display(),
                "it has grown from {recorded_bytes} to {} bytes; the volume keeps its size",
                lun.identity.size_bytes
            );
        }
    }
    Ok(opened)
}

fn open_claimed(path: &Path, busy_limit: Duration) -> Result<Lun, OpenError> {
    const RETRY: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        match Lun::open(path, &OPTIONS) {
            Err(OpenError::Busy { .. }) if started.elapsed() < busy_limit => {
                thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}
