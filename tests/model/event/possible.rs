//! The events that are possible in a world.

use seeded_core::{
    route::{Route, Side},
    volume::Timer,
};

use super::{CacheFate, Change, Event};
use crate::{
    disk::RoleFate,
    setup::{OperatorRequest, Setup},
    world::{Copy, Io, Outcome, Stage, World},
};

const CACHE_FATES: [CacheFate; 3] = [CacheFate::Lost, CacheFate::Kept, CacheFate::Landed];

/// Collects all events that can happen.
pub(crate) fn all(setup: &Setup, world: &World, events: &mut Vec<Event>) {
    deaths(setup, world, events);
    if world.must_die {
        return;
    }
    for (index, stage) in world.requests.iter().enumerate().take(setup.requests.len()) {
        match stage {
            Stage::Idle => events.push(Event::Issue(index as u8)),
            Stage::Open(open) if !open.delivered => events.push(Event::Deliver(index as u8)),
            Stage::Open(_) | Stage::Done => {}
        }
    }
    completions(setup, world, events);
    copier(world, events);
    operator(world, events);
    timers(setup, world, events);
}

fn completions(setup: &Setup, world: &World, events: &mut Vec<Event>) {
    let budget = world.budget;
    let authoritative = world.volume.record().route.authoritative();
    let authoritative = world.lun_of(world.volume.record(), authoritative);
    for (index, io) in world.io.iter().enumerate() {
        let index = index as u8;
        if world.is_doomed(io) {
            events.push(Event::IoDone(index, Outcome::FailedDone));
            continue;
        }
        events.push(Event::IoDone(index, Outcome::Done));
        let on_authoritative = io.lun() == authoritative;
        let faults = if on_authoritative {
            budget.authoritative_faults
        } else {
            budget.mirror_faults
        };
        if faults == 0 {
            continue;
        }
        if setup.resets && matches!(io, Io::Mirror { .. }) {
            events.push(Event::MirrorResets(index));
        }
        let is_read = matches!(io, Io::Request { request, .. } if setup.requests[usize::from(*request)].ask == OperatorRequest::Read);
        let is_flush = match io {
            Io::Request { request, .. } => {
                setup.requests[usize::from(*request)].ask == OperatorRequest::Flush
            }
            Io::Mirror { .. } => false,
            Io::Flush { .. } => true,
        };
        // A flush that did its work and failed is like a flush that nobody knows of.
        if !(is_read || is_flush && on_authoritative) {
            events.push(Event::IoDone(index, Outcome::FailedDone));
        }
        events.push(Event::IoDone(index, Outcome::FailedLost));
    }
    let outcomes: &[Outcome] = if budget.map_faults > 0 {
        &[Outcome::Done, Outcome::FailedDone, Outcome::FailedLost]
    } else {
        &[Outcome::Done]
    };
    if world.map.map_write.is_some() {
        events.extend(outcomes.iter().map(|outcome| Event::MapWritten(*outcome)));
    }
    if world.map.role_write.is_some() {
        events.extend(outcomes.iter().map(|outcome| Event::RoleWritten(*outcome)));
    }
    if world.map.descriptor_write {
        events.push(Event::DescriptorWritten);
    }
}

fn copier(world: &World, events: &mut Vec<Event>) {
    for index in 0..world.ghosts.len() as u8 {
        events.push(Event::GhostLands(index));
        events.push(Event::GhostVanishes(index));
    }
    if world.late.is_some() {
        events.push(Event::LateReport);
    }
    let Some(copier) = &world.copier else {
        if may_open_copier(world) {
            events.push(Event::CopierOpens);
        }
        return;
    };
    if copier.ends {
        events.push(Event::CopierEnds);
    } else if !copier.waits && copier.regions.is_empty() {
        events.push(Event::CopierClaims);
    }
    for (index, (_, copy)) in copier.regions.iter().enumerate() {
        events.push(Event::CopierCopies(index as u8, false));
        events.push(Event::OldReport(index as u8));
        if *copy == Copy::Claimed
            && world
                .io
                .iter()
                .any(|io| io.lun() == usize::from(copier.from))
        {
            events.push(Event::CopierCopies(index as u8, true));
        }
    }
    if world.budget.copier_deaths > 0 {
        events.push(Event::CopierDies);
    }
}

/// Whether a copier can open. It needs the lock of the mirror leg, which a dead copier holds until
/// its writes have ended.
pub(super) fn may_open_copier(world: &World) -> bool {
    let has_mirror = world.volume.record().route.mirror().is_some();
    world.copier.is_none() && world.ghosts.is_empty() && has_mirror && is_dirty(world)
}

pub(super) fn is_dirty(world: &World) -> bool {
    let regions = world.volume.regions();
    regions.is_some_and(|regions| regions.dirty_regions() > 0)
}

fn operator(world: &World, events: &mut Vec<Event>) {
    let budget = world.budget;
    if let Some(change) = next_change(world, budget.starts > 0, budget.exchanges > 0) {
        events.push(Event::Changes(change));
    }
    if budget.splits > 0 && authoritative_is_source(world) {
        events.push(Event::Changes(Change::Split));
    }
    if budget.ends > 0 && world.volume.regions().is_some() {
        events.push(Event::Changes(Change::End));
    }
    if budget.suspensions > 0 {
        events.push(Event::Suspends);
    }
    if world.volume.is_suspended() {
        events.push(Event::Resumes);
    }
    if world.volume.mirror_fault().is_some() {
        events.push(Event::RetriesMirror);
        if let Some(lun) = mirror_lun(world)
            && world.has_volatile(lun)
        {
            events.push(Event::MirrorForgets);
        }
    }
    if budget.modes > 0 {
        events.push(Event::ChangesMode);
    }
}

pub(super) fn mirror_lun(world: &World) -> Option<usize> {
    let record = world.volume.record();
    let mirror = record.route.mirror();
    mirror.map(|side| world.lun_of(record, side))
}

fn authoritative_is_source(world: &World) -> bool {
    let authoritative = Side::Source;
    world.volume.record().route == Route::Mirrored { authoritative }
}

fn next_change(world: &World, start: bool, exchange: bool) -> Option<Change> {
    match world.volume.record().route {
        // The new mirror leg is locked before it is used, so no ghost can be left.
        Route::Single(_) => (start && world.ghosts.is_empty()).then_some(Change::Start),
        Route::Mirrored { .. } => exchange.then_some(Change::Exchange),
        // A dead copier held the lock of the leg until its writes had ended.
        Route::Split => world.ghosts.is_empty().then_some(Change::Join),
    }
}

fn timers(setup: &Setup, world: &World, events: &mut Vec<Event>) {
    events.push(Event::Tick(Timer::None));
    if world.volume.next_deadline().is_some() {
        events.push(Event::Tick(Timer::Suspension));
        events.push(Event::Tick(Timer::Change));
    }
    if setup.patience && !world.volume.delayed_requests().is_empty() {
        events.push(Event::Tick(Timer::Patience));
    }
    if world.volume.tracks() {
        events.push(Event::Tick(Timer::Pass));
    }
    if setup.sweeps {
        events.push(Event::Tick(Timer::CopiedSweep));
        events.push(Event::Tick(Timer::IdleSweep));
    }
}

fn deaths(setup: &Setup, world: &World, events: &mut Vec<Event>) {
    let fates: &[RoleFate] = match world.map.role_write {
        Some(_) => &[RoleFate::Lost, RoleFate::Landed, RoleFate::Torn],
        None => &[RoleFate::Lost],
    };
    if world.budget.kills > 0 || world.must_die {
        let count = killed(setup, world).len();
        events.extend((0..1 << count).map(Event::Kill));
    }
    if world.budget.power_losses == 0 {
        return;
    }
    let write = world.map.map_write;
    let both = |written: bool| {
        if written {
            &[false, true][..]
        } else {
            &[false][..]
        }
    };
    let lun_fates = [0, 1].map(|lun| {
        let fates = CACHE_FATES.into_iter();
        fates.filter(move |fate| match fate {
            CacheFate::Lost => true,
            CacheFate::Kept => world.luns[lun]
                .0
                .iter()
                .any(|cell| cell.durable() != cell.newest()),
            CacheFate::Landed => (0..setup.blocks()).any(|block| {
                world.landing(setup, lun, block) | world.copying(setup, lun, block) != 0
            }),
        })
    });
    let [source, target] = lun_fates;
    for source in source {
        for target in target.clone() {
            for dirty in both(write.is_some_and(|write| write.dirty.is_some())) {
                for intent in both(write.is_some_and(|write| write.intent.is_some())) {
                    for role in fates {
                        events.push(Event::PowerLoss {
                            luns: [source, target],
                            dirty: *dirty,
                            intent: *intent,
                            role: *role,
                        });
                    }
                }
            }
        }
    }
}

/// An operation in flight whose fate is open when ublk-target dies.
pub(super) enum Killed {
    Io(usize),
    Dirty,
    Intent,
    Role,
}

pub(super) fn killed(setup: &Setup, world: &World) -> Vec<Killed> {
    let is_write = |io: &Io| match io {
        Io::Request { request, .. } => !matches!(
            setup.requests[usize::from(*request)].ask,
            OperatorRequest::Read | OperatorRequest::Flush
        ),
        Io::Mirror { .. } => true,
        // A flush that completes can only help.
        Io::Flush { .. } => false,
    };
    let writes = world.io.iter().enumerate().filter(|(_, io)| is_write(io));
    let mut killed: Vec<Killed> = writes.map(|(index, _)| Killed::Io(index)).collect();
    if let Some(write) = world.map.map_write {
        killed.extend(write.dirty.map(|_| Killed::Dirty));
        killed.extend(write.intent.map(|_| Killed::Intent));
    }
    killed.extend(world.map.role_write.map(|_| Killed::Role));
    killed
}
