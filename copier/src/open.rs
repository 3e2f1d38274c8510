//! Opens the LUNs of both legs: the identity is checked first, then the LUN is locked; nothing may
//! be written before that.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use leg::OpenLeg;
use lun::{Lun, OpenOptions};
use migration_core::layout::Layout;
use migration_proto::target::{OpenLun, Refusal, ServedLeg};

use crate::Outcome;

/// The open LUNs of both legs: first those of `from`, then those of `to`. The index of a LUN is its
/// number in both layouts, and in the ring's table of registered files.
#[derive(Debug)]
pub(super) struct Luns {
    luns: Vec<Lun>,
}

/// Both legs, open.
#[derive(Debug)]
pub(super) struct OpenLegs {
    pub(super) luns: Luns,
    pub(super) from: Layout,
    pub(super) to: Layout,
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
    pub(super) fn path(&self, lun: usize) -> &Path {
        self.luns
            .get(lun)
            .map_or(Path::new("an unknown LUN"), |lun| &lun.path)
    }

    /// The LUN with an index.
    pub(super) fn get(&self, lun: usize) -> Option<&Lun> {
        self.luns.get(lun)
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
    let from = open_leg(from, Purpose::Read)?;
    let to = open_leg(to, Purpose::Write)?;
    for lun in &to.luns {
        lock(lun)?;
    }
    let mut luns = from.luns;
    let to_layout = to.layout.numbered_from(luns.len());
    luns.extend(to.luns);
    Ok(OpenLegs {
        luns: Luns { luns },
        from: from.layout,
        to: to_layout,
    })
}

fn open_leg(served: &ServedLeg, purpose: Purpose) -> Result<OpenLeg, Outcome> {
    let ServedLeg { leg, open } = served;
    let bad = |cause: String| refused(Refusal::BadLeg, cause);
    if open.len() != leg.extents.len() {
        return Err(bad(
            "ublk-target does not say which devices it has open".to_owned()
        ));
    }
    let options = OpenOptions {
        write: purpose == Purpose::Write,
        // ublk-target has the LUN open exclusively.
        exclusive: false,
        direct: true,
    };
    let opened = OpenLeg::open(
        leg,
        |number, _| Ok(open[number].disk_sequence),
        |path| Lun::open(path, &options),
    )
    .map_err(|error| bad(error.to_string()))?;
    let found = opened.lun_of_each_extent();
    for ((extent, served), lun) in leg.extents.iter().zip(open).zip(found) {
        if !OpenLun::of(lun).is_same_device(served) {
            return Err(bad(format!(
                "{} leads to another device than the one that ublk-target has open ({}): give it its name back; the copy \
                 is tried again automatically",
                extent.path.display(),
                served.path.display()
            )));
        }
    }
    Ok(opened)
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
