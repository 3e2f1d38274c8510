//! The events without new requests and failures, until nothing is left to do.

use seeded_core::{route::Route, volume::Timer};

use super::{
    Change, Event,
    possible::{is_dirty, may_open_copier},
};
use crate::{
    check::{self, Checker, Violation},
    setup::Setup,
    world::{Io, Outcome, Stage, World},
};

/// The next event if there are no new requests and no failures. `None`: nothing is left to do.
pub(crate) fn progress(setup: &Setup, world: &World) -> Option<Event> {
    if world.must_die {
        return Some(Event::Kill(0));
    }
    let undelivered = |stage: &Stage| matches!(stage, Stage::Open(open) if !open.delivered);
    if let Some(index) = world.requests.iter().position(undelivered) {
        return Some(Event::Deliver(index as u8));
    }
    let answered = !world
        .requests
        .iter()
        .any(|stage| matches!(stage, Stage::Open(_)));
    if setup.mirror_hangs && answered {
        return None;
    }
    let mirror = world.volume.record().route.mirror();
    let mirror = mirror.map(|side| world.lun_of(world.volume.record(), side));
    let answers = |io: &Io| !setup.mirror_hangs || Some(io.lun()) != mirror;
    if let Some(index) = world.io.iter().position(answers) {
        return Some(Event::IoDone(index as u8, Outcome::Done));
    }
    if world.map.map_write.is_some() {
        return Some(Event::MapWritten(Outcome::Done));
    }
    if world.map.role_write.is_some() {
        return Some(Event::RoleWritten(Outcome::Done));
    }
    if world.map.descriptor_write {
        return Some(Event::DescriptorWritten);
    }
    if !setup.mirror_hangs
        && let Some(event) = progress_of_copies(world)
    {
        return Some(event);
    }
    if world.volume.next_deadline().is_some() {
        return Some(Event::Tick(Timer::Deadlines));
    }
    if world.volume.record().route == Route::Split && !world.volume.is_changing() {
        return Some(Event::Changes(Change::Join));
    }
    if !answered {
        return Some(Event::Tick(Timer::Patience));
    }
    let marked = world.map.dirty | world.map.intent != 0;
    if world.volume.regions().is_some() && marked {
        return Some(Event::Tick(Timer::IdleSweep));
    }
    None
}

fn progress_of_copies(world: &World) -> Option<Event> {
    if !world.ghosts.is_empty() {
        return Some(Event::GhostLands(0));
    }
    if world.volume.mirror_fault().is_some() {
        return Some(Event::RetriesMirror);
    }
    let Some(copier) = &world.copier else {
        return may_open_copier(world).then_some(Event::CopierOpens);
    };
    if copier.ends {
        Some(Event::CopierEnds)
    } else if !copier.regions.is_empty() {
        Some(Event::CopierCopies(0, false))
    } else if copier.waits {
        let waits_for_pass = world.volume.tracks() && is_dirty(world);
        waits_for_pass.then_some(Event::Tick(Timer::Pass))
    } else {
        Some(Event::CopierClaims)
    }
}

/// Checks a world in which nothing is left to do: every request is answered, and no region is dirty
/// (unless the mirror leg hangs).
pub(crate) fn settled(setup: &Setup, world: &World) -> Result<(), Violation> {
    let open = world
        .requests
        .iter()
        .any(|stage| matches!(stage, Stage::Open(_)));
    let dirty = world
        .volume
        .regions()
        .map_or(0, |regions| regions.dirty_regions());
    let converged = setup.mirror_hangs || dirty == 0;
    check::require(!open && converged, Checker::Settles, || {
        format!("nothing is left to do: {open} requests are open, {dirty} regions are dirty")
    })
}
