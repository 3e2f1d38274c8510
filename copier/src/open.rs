//! Opens the LUNs of both legs: the identity is checked first, then the LUN is locked; nothing may
//! be written before that.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use lun::{Lun, OpenOptions, Recorded};
use migration_proto::route::Extent;
use migration_proto::target::{OpenLun, Refusal, ServedLeg};

use crate::Outcome;
use crate::legs::{FileIndex, LegMap};

/// The open LUNs of both legs. The index of a LUN is its [`FileIndex`].
#[derive(Debug)]
pub(super) struct Luns {
    luns: Vec<Lun>,
}

/// Both legs, open.
#[derive(Debug)]
pub(super) struct OpenLegs {
    pub(super) luns: Luns,
    pub(super) from: LegMap,
    pub(super) to: LegMap,
}

/// The purpose for which a leg is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
}

impl Luns {
    /// The descriptors, in order.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.luns.iter().map(|lun| lun.fd.as_fd()).collect()
    }

    /// The number of LUNs.
    pub(super) fn count(&self) -> usize {
        self.luns.len()
    }

    /// The path of a LUN, for messages.
    pub(super) fn path(&self, file: FileIndex) -> &Path {
        self.luns
            .get(file.0 as usize)
            .map_or(Path::new("an unknown LUN"), |lun| &lun.path)
    }

    /// The LUN with an index.
    pub(super) fn get(&self, file: FileIndex) -> Option<&Lun> {
        self.luns.get(file.0 as usize)
    }

    /// Unlocks and closes all LUNs. Called only when no I/O is in flight.
    pub(super) fn close(self) {
        for lun in &self.luns {
            lun.unlock();
        }
    }
}

/// Opens every LUN of both legs, and locks those of `to`.
pub(super) fn open_legs(from: &ServedLeg, to: &ServedLeg) -> Result<OpenLegs, Outcome> {
    let mut luns = Vec::new();
    let from = open_leg(from, Purpose::Read, &mut luns)?;
    let to = open_leg(to, Purpose::Write, &mut luns)?;
    Ok(OpenLegs {
        luns: Luns { luns },
        from,
        to,
    })
}

fn open_leg(served: &ServedLeg, purpose: Purpose, luns: &mut Vec<Lun>) -> Result<LegMap, Outcome> {
    let ServedLeg { leg, open } = served;
    if open.len() != leg.extents.len() {
        let cause = "ublk-target does not say which devices it has open";
        return Err(refused(Refusal::BadLeg, cause.to_owned()));
    }
    // Extents share a LUN only within a leg: the LUNs of the other leg are open for another
    // purpose.
    let first = luns.len();
    let mut files = Vec::with_capacity(leg.extents.len());
    for (extent, open) in leg.extents.iter().zip(open) {
        let lun = open_lun(extent, open, purpose)?;
        let known = luns[first..]
            .iter()
            .position(|known| known.path == lun.path);
        let index = match known {
            Some(at) => first + at,
            None => {
                if purpose == Purpose::Write {
                    lock(&lun)?;
                }
                luns.push(lun);
                luns.len() - 1
            }
        };
        files.push(FileIndex(u32::try_from(index).map_err(|_| {
            refused(Refusal::BadLeg, "a leg has too many extents".to_owned())
        })?));
    }
    LegMap::new(leg, &files).ok_or_else(|| {
        refused(
            Refusal::BadLeg,
            "the extents of a leg are larger than any LUN".to_owned(),
        )
    })
}

fn open_lun(extent: &Extent, served: &OpenLun, purpose: Purpose) -> Result<Lun, Outcome> {
    let options = OpenOptions {
        write: purpose == Purpose::Write,
        // ublk-target has the LUN open exclusively.
        exclusive: false,
        direct: true,
    };
    let bad = |cause: String| refused(Refusal::BadLeg, cause);
    let recorded = Recorded {
        path: &extent.path,
        identity: &extent.identity,
        disk_sequence: served.disk_sequence,
    };
    let lun = Lun::open_recorded(recorded, &options).map_err(|error| bad(error.to_string()))?;
    if !OpenLun::of(&lun).is_same_device(served) {
        return Err(bad(format!(
            "{} leads to another device than the one that ublk-target has open ({}): give it its name back; the copy is \
             tried again automatically",
            extent.path.display(),
            served.path.display()
        )));
    }
    let end_bytes = extent.start_bytes.checked_add(extent.length_bytes);
    if end_bytes.is_none_or(|end_bytes| end_bytes > lun.identity.size_bytes) {
        return Err(bad(format!(
            "the extent of {} bytes at {} does not fit on {}, which has {} bytes",
            extent.length_bytes,
            extent.start_bytes,
            extent.path.display(),
            lun.identity.size_bytes
        )));
    }
    Ok(lun)
}

fn lock(lun: &Lun) -> Result<(), Outcome> {
    match lun.try_lock_exclusive() {
        Ok(true) => Ok(()),
        Ok(false) => Err(refused(
            Refusal::CopierBusy,
            format!(
                "{} is locked, by another program or for I/O of an earlier copier that is not done",
                lun.path.display()
            ),
        )),
        Err(error) => Err(refused(
            Refusal::BadLeg,
            format!("cannot lock {}: {error}", lun.path.display()),
        )),
    }
}

fn refused(reason: Refusal, cause: String) -> Outcome {
    Outcome::Refused { reason, cause }
}
