//! The events that can happen next, and their effects on a world.

use seeded_core::{
    route::{Route, Side},
    volume::{CopyMode, Effect, NewMirror, Target, Timer},
};

use crate::{
    check::{self, Checker, Violation},
    disk::RoleFate,
    setup::{OperatorRequest, Setup},
    world::{CHANGE, Copy, DEADLINE, HOLD, Io, NOW, Outcome, SUSPEND, Stage, World},
};

/// An operation of the operator that changes the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    Exchange,
    /// Splits the target off as a copy.
    Split,
    /// Mirrors onto the split target again.
    Join,
    /// Commit or cancel.
    End,
}

/// What a power loss leaves of a LUN. The checker examines the fate of every block by its own
/// rules; the exploration continues from these outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheFate {
    /// Only what is on stable storage.
    Lost,
    /// All completed writes.
    Kept,
    /// All completed writes, and those in flight.
    Landed,
}

const CACHE_FATES: [CacheFate; 3] = [CacheFate::Lost, CacheFate::Kept, CacheFate::Landed];

/// An event. I/O, regions and ghosts are identified by their index in the lists of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The application issues a request.
    Issue(u8),
    /// The driver delivers a request again, after a death of ublk-target.
    Deliver(u8),
    IoDone(u8, Outcome),
    MapWritten(Outcome),
    RoleWritten(Outcome),
    DescriptorWritten,
    CopierOpens,
    CopierClaims,
    /// The copier does its next step with a region. `true`: its read sees the writes in flight
    /// there.
    CopierCopies(u8, bool),
    CopierEnds,
    CopierDies,
    LateReport,
    /// The copier reports a region that it has claimed, with an older epoch.
    OldReport(u8),
    GhostLands(u8),
    GhostVanishes(u8),
    Changes(Change),
    Suspends,
    Resumes,
    RetriesMirror,
    /// A mirror leg that was given up loses the contents of its cache.
    MirrorForgets,
    /// The mirror leg loses its power for a moment: this write to it will fail, but ublk-target
    /// does not know yet.
    MirrorResets(u8),
    /// The copy mode changes between mirroring and tracking.
    ChangesMode,
    Tick(Timer),
    /// ublk-target dies. Of the writes in flight, those of the mask reach the media.
    Kill(u16),
    /// The host loses its power.
    PowerLoss {
        luns: [CacheFate; 2],
        dirty: bool,
        intent: bool,
        role: RoleFate,
    },
}

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
fn may_open_copier(world: &World) -> bool {
    let has_mirror = world.volume.record().route.mirror().is_some();
    world.copier.is_none() && world.ghosts.is_empty() && has_mirror && is_dirty(world)
}

fn is_dirty(world: &World) -> bool {
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

fn mirror_lun(world: &World) -> Option<usize> {
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
enum Killed {
    Io(usize),
    Dirty,
    Intent,
    Role,
}

fn killed(setup: &Setup, world: &World) -> Vec<Killed> {
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

/// Applies an event to the world, and checks the result.
pub(crate) fn apply(
    setup: &Setup,
    world: &mut World,
    event: Event,
) -> Result<Vec<Effect>, Violation> {
    let mut effects = Vec::new();
    happen(setup, world, event, &mut effects)?;
    world.perform(setup, effects.clone())?;
    world.note_fail_over();
    world.forget_history();
    check::state(setup, world)?;
    Ok(effects)
}

fn happen(
    setup: &Setup,
    world: &mut World,
    event: Event,
    effects: &mut Vec<Effect>,
) -> Result<(), Violation> {
    match event {
        Event::Issue(index) => {
            world.issue(setup, usize::from(index));
            world.deliver(setup, usize::from(index), effects);
        }
        Event::Deliver(index) => world.deliver(setup, usize::from(index), effects),
        Event::IoDone(index, outcome) => {
            io_done(setup, world, usize::from(index), outcome, effects)?
        }
        Event::MirrorResets(index) => {
            if let Io::Mirror { place, .. } = world.io[usize::from(index)] {
                world.doomed = Some(place);
                world.budget.mirror_faults -= 1;
                let mirror = world.io[usize::from(index)].lun();
                world.lose_cache(mirror);
            }
        }
        Event::MapWritten(outcome) => {
            if outcome == Outcome::FailedLost {
                world.map.map_write = None;
            }
            world.map.land_map(true, true);
            world.budget.map_faults -= u8::from(outcome != Outcome::Done);
            world.volume.map_written(NOW, outcome.result(), effects);
        }
        Event::RoleWritten(outcome) => {
            let Some((_, slot)) = world.map.role_write else {
                return Ok(());
            };
            world.map.land_role(match outcome {
                Outcome::Done | Outcome::FailedDone => RoleFate::Landed,
                Outcome::FailedLost => RoleFate::Lost,
            });
            world.budget.map_faults -= u8::from(outcome != Outcome::Done);
            world
                .volume
                .role_written(NOW, slot, outcome.result(), effects);
        }
        Event::DescriptorWritten => {
            world.map.descriptor_write = false;
            world.volume.descriptor_written(NOW, Ok(()), effects);
        }
        Event::CopierOpens => world.open_copier(),
        Event::CopierClaims => world.claim(effects),
        Event::CopierCopies(index, newest) => {
            world.copy(setup, usize::from(index), newest, effects)?;
        }
        Event::CopierEnds => {
            world.kill_copier(effects);
            world.late = None;
        }
        Event::CopierDies => {
            world.budget.copier_deaths -= 1;
            world.kill_copier(effects);
        }
        Event::LateReport => world.report_late(effects)?,
        Event::OldReport(index) => world.report_old(usize::from(index), effects)?,
        Event::GhostLands(index) => world.land_ghost(setup, usize::from(index)),
        Event::GhostVanishes(index) => {
            world.ghosts.remove(usize::from(index));
        }
        Event::Changes(change) => change_route(world, change, effects),
        Event::Suspends => {
            if world
                .volume
                .suspend(NOW, SUSPEND, DEADLINE, effects)
                .is_ok()
            {
                world.budget.suspensions -= 1;
            }
        }
        Event::Resumes => {
            world.volume.resume(NOW, effects);
        }
        Event::RetriesMirror => {
            let _ = world.volume.retry_mirror();
        }
        Event::MirrorForgets => {
            if let Some(lun) = mirror_lun(world) {
                world.lose_cache(lun);
            }
        }
        Event::ChangesMode => {
            world.budget.modes -= 1;
            let mode = match world.volume.copy_mode() {
                CopyMode::Mirror => CopyMode::Track,
                CopyMode::Track => CopyMode::Mirror,
            };
            world.volume.set_copy_mode(mode, effects);
        }
        Event::Tick(timer) => {
            world.volume.expire(NOW, timer);
            world.volume.tick(NOW, effects);
        }
        Event::Kill(mask) => kill(setup, world, mask, effects)?,
        Event::PowerLoss {
            luns,
            dirty,
            intent,
            role,
        } => {
            world.map.land_map(dirty, intent);
            world.map.land_role(role);
            lose_power(setup, world, luns, effects)?;
        }
    }
    Ok(())
}

fn io_done(
    setup: &Setup,
    world: &mut World,
    index: usize,
    outcome: Outcome,
    effects: &mut Vec<Effect>,
) -> Result<(), Violation> {
    let authoritative = world.volume.record().route.authoritative();
    let authoritative = world.lun_of(world.volume.record(), authoritative);
    let io = world.io.remove(index);
    let is_doomed = world.is_doomed(&io);
    let outcome = if is_doomed {
        Outcome::FailedDone
    } else {
        outcome
    };
    if is_doomed {
        world.doomed = None;
    } else if outcome != Outcome::Done {
        if io.lun() == authoritative {
            world.budget.authoritative_faults -= 1;
            world.authoritative_failed = true;
            if let Io::Request { request, .. } = io {
                world.failed |= 1 << request;
            }
        } else {
            world.budget.mirror_faults -= 1;
        }
    }
    let ask = match io {
        Io::Request { request, .. } => Some(setup.requests[usize::from(request)].ask),
        Io::Mirror { .. } | Io::Flush { .. } => None,
    };
    let is_flush = matches!(io, Io::Flush { .. }) || ask == Some(OperatorRequest::Flush);
    match outcome {
        Outcome::Done => world.land(setup, &io),
        Outcome::FailedDone if is_flush => {}
        Outcome::FailedDone => world.land(setup, &io),
        // A failed read says nothing about the cache.
        Outcome::FailedLost if ask == Some(OperatorRequest::Read) => {}
        // The LUN has lost its power for a moment.
        Outcome::FailedLost => world.lose_cache(io.lun()),
    }
    let (volume, result) = (&mut world.volume, outcome.result());
    match io {
        Io::Request { request, side, .. } => {
            let tag = seeded_core::units::Tag(u16::from(request));
            volume.leg_done(NOW, tag, side, result, effects);
        }
        Io::Mirror { place, .. } => volume.mirror_done(NOW, place, result, effects),
        Io::Flush { flush, side, .. } => volume.leg_flushed(NOW, side, flush, result, effects),
    }
    Ok(())
}

fn change_route(world: &mut World, change: Change, effects: &mut Vec<Effect>) {
    let record = *world.volume.record();
    let authoritative = record.route.authoritative();
    let mut unlimited = 1;
    let (target, budget) = match change {
        Change::Start => {
            world.name_new_mirror();
            let none = NewMirror {
                descriptor_bytes: 0,
                descriptor_crc: 0,
            };
            (Target::AddMirror(none), &mut world.budget.starts)
        }
        Change::Exchange => {
            let authoritative: Side = authoritative.other();
            let target = if world.volume.tracks() {
                Target::CopyRest(authoritative)
            } else {
                Target::Route(Route::Mirrored { authoritative })
            };
            (target, &mut world.budget.exchanges)
        }
        Change::Split => (Target::Route(Route::Split), &mut world.budget.splits),
        Change::Join => (
            Target::Route(Route::Mirrored {
                authoritative: Side::Source,
            }),
            &mut unlimited,
        ),
        Change::End => (
            Target::Route(Route::Single(authoritative)),
            &mut world.budget.ends,
        ),
    };
    let begun = world
        .volume
        .change_route(NOW, CHANGE, record.epoch, target, HOLD, effects);
    if begun.is_ok() {
        *budget -= 1;
        // A client that asks for another route gives the copy up first.
        world.copy = None;
    }
}

fn kill(
    setup: &Setup,
    world: &mut World,
    mask: u16,
    effects: &mut Vec<Effect>,
) -> Result<(), Violation> {
    world.budget.kills = world.budget.kills.saturating_sub(1);
    world.kill_copier(&mut Vec::new());
    world.late = None;
    let (mut dirty, mut intent, mut role) = (false, false, RoleFate::Lost);
    for (bit, what) in killed(setup, world).into_iter().enumerate() {
        if mask >> bit & 1 == 0 {
            continue;
        }
        match what {
            Killed::Io(index) => world.land(setup, &world.io[index].clone()),
            Killed::Dirty => dirty = true,
            Killed::Intent => intent = true,
            Killed::Role => role = RoleFate::Landed,
        }
    }
    world.map.land_map(dirty, intent);
    world.map.land_role(role);
    for stage in &mut world.requests {
        if let Stage::Open(open) = stage {
            open.delivered = false;
        }
    }
    // The process that knew of an unreported error is dead.
    world.accept_loss(true);
    world.reload(setup, effects)
}

fn lose_power(
    setup: &Setup,
    world: &mut World,
    luns: [CacheFate; 2],
    effects: &mut Vec<Effect>,
) -> Result<(), Violation> {
    world.budget.power_losses -= 1;
    for (lun, fate) in luns.into_iter().enumerate() {
        if fate == CacheFate::Landed {
            for block in 0..setup.blocks() {
                let landing = world.landing(setup, lun, block) | world.copying(setup, lun, block);
                if landing != 0 {
                    world.write_block(lun, block, landing.trailing_zeros() as u8);
                }
            }
        }
        world.luns[lun].settle(fate != CacheFate::Lost);
    }
    world.ghosts.clear();
    world.kill_copier(&mut Vec::new());
    world.ghosts.clear();
    world.late = None;
    for stage in &mut world.requests {
        if matches!(stage, Stage::Open(_)) {
            *stage = Stage::Done;
        }
    }
    world.reload(setup, effects)?;
    let record = *world.volume.record();
    let lun = world.lun_of(&record, record.route.authoritative());
    for block in 0..setup.blocks() {
        let value = world.luns[lun].0[block].newest();
        if world.survivors[block] & crate::disk::only(value) == 0 {
            let what = format!("block {block} is {value} after a power loss");
            return Err(Violation::new(Checker::FlushedWrite, what));
        }
        world.possible[block] = crate::disk::only(value);
        world.survivors[block] = crate::disk::only(value);
    }
    world.lost = Default::default();
    Ok(())
}

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
