//! The mirror leg: opened and checked in the thread of a connection, so that the engine does not
//! wait for it.

use std::time::Duration;

use leg::OpenLeg;
use migration_proto::{
    route::{Descriptor, Leg, Route},
    target::{Refusal, Response},
};

use super::Server;
use crate::{
    engine::{EngineRequest, NewDescriptor, Snapshot, refused},
    legs::{self, LegError},
};

/// How long adding a mirror leg waits for a LUN that somebody else has claimed.
const LEG_BUSY_LIMIT: Duration = Duration::ZERO;

impl Server {
    fn open_leg(&self, leg: &Leg) -> Result<OpenLeg, LegError> {
        legs::open(leg, &self.facts.socket, LEG_BUSY_LIMIT, None)
    }

    /// Opens the new leg in the thread of the connection, so that the engine does not wait for it.
    pub(super) fn open_mirror(
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

    pub(super) fn is_split(&self) -> bool {
        let snapshot = self.inbox.snapshot();
        snapshot.is_some_and(|snapshot| Route::from(snapshot.record.route) == Route::Split)
    }

    /// Opens the leg that a split detached.
    pub(super) fn open_split_leg(
        &self,
        epoch: u64,
        deadline_ms: u64,
    ) -> Result<EngineRequest, Box<Response>> {
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
    pub(super) fn retry_mirror(&self, epoch: u64) -> Response {
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
    pub(super) fn may_copy(&self) -> Result<(), Box<Response>> {
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

    pub(super) fn is_mirror(&self, side: migration_proto::route::Side) -> bool {
        let mirror = self
            .inbox
            .snapshot()
            .and_then(|snapshot| snapshot.record.route.mirror());
        Some(side.into()) == mirror
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
