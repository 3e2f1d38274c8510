//! Takes the legs over from the process that held them last, and leaves them for the next one.
//!
//! `migration_core::custody` decides. This module has the inherited descriptors that shuntd kept,
//! reads the state of the legs, and writes the custody sector of the map file.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    path::Path,
    str::FromStr,
    time::Duration,
};

use anyhow::Context;
use leg::OpenLeg;
use lun::{Lun, OpenError, OpenOptions};
use map_store::MapFile;
use migration_core::{
    custody::{BootId, Claim, Custody, Found, LegState, Legs, Released, Takeover, take_over},
    route::Side,
};

use crate::engine::Snapshot;

/// Time limit for reading the state of a leg ([`leg_state`]): a leg that hangs must not keep the
/// volume from being served.
const READING_MAX: Duration = Duration::from_secs(30);

/// The descriptors of LUNs that the last process of the volume had open, with the name of their
/// claim.
#[derive(Debug)]
pub struct Inherited {
    claim: Claim,
    descriptors: Vec<OwnedFd>,
}

/// [`Inherited`] as written on the command line: `CLAIM:DESCRIPTOR,DESCRIPTOR...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InheritedArgument {
    claim: u64,
    descriptors: Vec<RawFd>,
}

impl FromStr for InheritedArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not CLAIM:DESCRIPTOR,DESCRIPTOR...");
        let (claim, descriptors) = text.split_once(':').ok_or_else(wrong)?;
        let descriptors = descriptors.split(',').map(|number| match number.parse() {
            // The standard streams are never inherited LUNs.
            Ok(number) if number > libc::STDERR_FILENO => Ok(number),
            Ok(_) | Err(_) => Err(wrong()),
        });
        Ok(Self {
            claim: claim.parse().map_err(|_| wrong())?,
            descriptors: descriptors.collect::<Result<_, _>>()?,
        })
    }
}

impl Inherited {
    /// Takes ownership of the descriptors that this process was started with. Call it once, before
    /// this process opens anything.
    #[must_use]
    pub fn take(argument: &InheritedArgument) -> Self {
        let is_open = |descriptor: &&RawFd| {
            // SAFETY: F_GETFD takes and changes nothing but a number.
            unsafe { libc::fcntl(**descriptor, libc::F_GETFD) >= 0 }
        };
        let descriptors = argument.descriptors.iter().filter(is_open);
        Self {
            claim: Claim(argument.claim),
            descriptors: descriptors
                // SAFETY: the descriptor is open, and nothing in this process owns it yet.
                .map(|descriptor| unsafe { OwnedFd::from_raw_fd(*descriptor) })
                .collect(),
        }
    }

    /// Returns the LUN at `path` if its descriptor was inherited. Then its claim never lapsed.
    ///
    /// # Errors
    /// The LUN is read-only by now. Nobody can open it again, because the inherited descriptor
    /// still claims it.
    pub fn adopt(&self, path: &Path, options: &OpenOptions) -> Result<Option<Lun>, OpenError> {
        for descriptor in &self.descriptors {
            let Ok(descriptor) = descriptor.try_clone() else {
                continue;
            };
            match Lun::adopt(descriptor, path, options) {
                Ok(lun) => return Ok(Some(lun)),
                Err(error @ OpenError::ReadOnly { .. }) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

/// Takes the legs over: decides whether others can have written to the legs, makes every region
/// dirty if so, and records the claim of this process. All of that is durable before the volume is
/// served.
///
/// # Errors
/// The map file cannot be written.
pub fn take(
    map: &mut MapFile,
    [source, target]: [Option<&OpenLeg>; 2],
    inherited: Option<&Inherited>,
) -> anyhow::Result<Takeover> {
    let route = map.chosen.record.route;
    let leg = |side| match side {
        Side::Source => source,
        Side::Target => target,
    };
    let used = [Some(route.authoritative()), route.mirror()];
    let mut used = used.into_iter().flatten();
    let all_inherited = used.all(|side| leg(side).is_some_and(is_adopted));
    let released = route.has_map() && matches!(map.custody, Some(Custody::Released(_)));
    let state = |leg: Option<&OpenLeg>| leg.filter(|_| released).and_then(leg_state);
    let boot = boot_id();
    let found = Found {
        custody: map.custody,
        inherited: inherited.filter(|_| all_inherited).map(|all| all.claim),
        boot: boot.unwrap_or(BootId([0; 16])),
        legs: Legs {
            source: state(source),
            target: state(target),
        },
    };
    let missing = route.mirror().filter(|side| leg(*side).is_none());
    let new = new_claim().context("read random bytes")?;
    let takeover = take_over(route, missing, &found, new);
    if let Some(doubt) = takeover.doubt {
        tracing::warn!("every region is copied or compared again: {doubt}");
        map.make_all_dirty()?;
    }
    if takeover.is_new {
        map.write_custody(Custody::Held(takeover.claim))?;
    }
    Ok(takeover)
}

/// Leaves the legs to the next process: flushes them, and writes their state to the map file. Call
/// it when nothing writes to the legs any more. `last` is a snapshot of the volume from before the
/// device was stopped.
///
/// # Errors
/// The map file cannot be written, or the boot's id cannot be read. Then the next process may have
/// to copy or compare everything.
pub fn release(map: &mut MapFile, last: &Snapshot) -> anyhow::Result<()> {
    let route = last.record.route;
    if !route.has_map() {
        return Ok(());
    }
    let state = |side| {
        let leg = if side == route.authoritative() {
            Some(&last.authoritative)
        } else {
            last.mirror.as_ref()
        };
        let leg = leg?;
        let flushed = leg.luns.iter().all(|lun| lun.flush().is_ok());
        leg_state(leg).filter(|_| flushed)
    };
    let legs = Legs {
        source: state(Side::Source),
        target: state(Side::Target),
    };
    let boot = boot_id().context("read the boot's id")?;
    map.write_custody(Custody::Released(Released { boot, legs }))?;
    Ok(())
}

/// Whether the claim of no LUN of the leg has lapsed since the last process.
fn is_adopted(leg: &OpenLeg) -> bool {
    leg.luns.iter().all(|lun| lun.adopted)
}

/// Reads the state of a leg; `None` if the leg cannot be read, or does not answer in time.
fn leg_state(leg: &OpenLeg) -> Option<LegState> {
    let fingerprint = leg.fingerprint(READING_MAX);
    let fingerprint = fingerprint
        .inspect_err(|error| tracing::warn!(%error, "a leg cannot be read"))
        .ok()?;
    let counted = leg.luns.iter().map(Lun::changes_counted);
    Some(LegState {
        fingerprint,
        changes: counted.sum(),
    })
}

fn boot_id() -> Option<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    map_store::parse_volume_id(text.trim()).ok().map(BootId)
}

fn new_claim() -> io::Result<Claim> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Claim(u64::from_le_bytes(bytes).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_on_the_command_line_are_read() {
        let parse = |text: &str| text.parse::<InheritedArgument>();
        let expected = InheritedArgument {
            claim: 12,
            descriptors: vec![7, 30],
        };
        assert_eq!(parse("12:7,30"), Ok(expected));
        for wrong in ["12", "12:", "x:7", "12:2", "12:7,,8", "12:-7"] {
            parse(wrong).unwrap_err();
        }
    }
}
