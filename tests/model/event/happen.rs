//! What each event does to a world.

use seeded_core::{
    route::{Route, Side},
    volume::{CopyMode, Effect, NewMirror, Target},
};

use super::{
    CacheFate, Change, Event,
    possible::{Killed, killed, mirror_lun},
};
use crate::{
    check::{self, Checker, Violation},
    disk::RoleFate,
    setup::{OperatorRequest, Setup},
    world::{CHANGE, DEADLINE, HOLD, Io, NOW, Outcome, SUSPEND, Stage, World},
};

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
        Event::MirrorResets(index) => reset_mirror(world, usize::from(index)),
        Event::MapWritten(outcome) => map_written(world, outcome, effects),
        Event::RoleWritten(outcome) => role_written(world, outcome, effects),
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

fn reset_mirror(world: &mut World, index: usize) {
    if let Io::Mirror { place, .. } = world.io[index] {
        world.doomed = Some(place);
        world.budget.mirror_faults -= 1;
        let mirror = world.io[index].lun();
        world.lose_cache(mirror);
    }
}

fn map_written(world: &mut World, outcome: Outcome, effects: &mut Vec<Effect>) {
    if outcome == Outcome::FailedLost {
        world.map.map_write = None;
    }
    world.map.land_map(true, true);
    world.budget.map_faults -= u8::from(outcome != Outcome::Done);
    world.volume.map_written(NOW, outcome.result(), effects);
}

fn role_written(world: &mut World, outcome: Outcome, effects: &mut Vec<Effect>) {
    let Some((_, slot)) = world.map.role_write else {
        return;
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
