//! What must hold in every state.

use seeded_core::{
    region::RegionState,
    route::{Route, Side},
    units::RegionIndex,
};

use crate::{
    disk::{Values, only},
    setup::Setup,
    world::{Io, World, blocks, writes_block},
};

/// Which rule is violated. The numbers are those of docs/invariants.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checker {
    /// What is acknowledged is on the authoritative leg, also for a successor of ublk-target.
    AcknowledgedWrite,
    /// What is acknowledged and flushed survives a power loss.
    FlushedWrite,
    /// 2: a region that is clean in memory is equal on both legs but for writes in flight.
    CleanIsEqual,
    /// 3: what the map file calls clean is equal after a power loss.
    DurablyCleanIsEqual,
    /// 1, 6: any successor finds one record, and that which was announced.
    OneAuthoritative,
    /// Reads return what was written.
    Read,
    /// The application is answered once, and sees only errors of the authoritative leg.
    Answer,
    /// 5: a suspended volume has nothing of the application in flight.
    Drained,
    /// 23: a copy at an instant stays what it was.
    CopyStays,
    /// 9, 10: stale actors are refused, the present one is not.
    StaleActor,
    /// [`seeded_core::volume::Volume::check_invariants`], or a transition that the core itself refuses.
    Core,
    /// 11, and the legs converge: when nothing new is asked, everything is answered and the legs become equal.
    Settles,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) checker: Checker,
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn new(checker: Checker, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { checker, what }
    }
}

pub(crate) fn require(
    holds: bool,
    checker: Checker,
    what: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation::new(checker, what()))
    }
}

/// All that is checked in a state.
pub(crate) fn state(setup: &Setup, world: &World) -> Result<(), Violation> {
    acknowledged(setup, world)?;
    clean_is_equal(setup, world)?;
    power_loss(setup, world)?;
    copy_stays(setup, world)?;
    drained(setup, world)
}

/// The target that was split holds what the source held then, whatever happens, also after a power loss.
fn copy_stays(setup: &Setup, world: &World) -> Result<(), Violation> {
    let Some(copy) = &world.copy else {
        return Ok(());
    };
    let lun = world.lun_of(world.volume.record(), Side::Target);
    for (block, value) in copy.iter().enumerate().take(setup.blocks()) {
        let may_be = world.luns[lun].0[block].after_power_loss()
            | world.landing(setup, lun, block)
            | world.copying(setup, lun, block);
        require(may_be == only(*value), Checker::CopyStays, || {
            format!("block {block} of the copy is {value}, and may become one of {may_be:#b}")
        })?;
    }
    Ok(())
}

/// The application's data are on the authoritative leg.
fn acknowledged(setup: &Setup, world: &World) -> Result<(), Violation> {
    let record = world.volume.record();
    let lun = world.lun_of(record, record.route.authoritative());
    for block in 0..setup.blocks() {
        let value = world.luns[lun].0[block].newest();
        let known = world.possible[block] | world.lost[block] | world.in_flight(setup, block);
        require(known & only(value) != 0, Checker::AcknowledgedWrite, || {
            format!("block {block} of LUN {lun} holds {value}, which is not one of {known:#b}")
        })?;
    }
    Ok(())
}

fn clean_is_equal(setup: &Setup, world: &World) -> Result<(), Violation> {
    let Some(regions) = world.volume.regions() else {
        return Ok(());
    };
    if world.doomed.is_some() {
        return Ok(());
    }
    for region in 0..setup.regions {
        if regions.get(RegionIndex(region)) != RegionState::Clean {
            continue;
        }
        for block in setup.of_region(region) {
            let landing = |lun| world.landing(setup, lun, block);
            let is_failed = |index: &usize| world.failed >> index & 1 == 1;
            let mut failed = (0..setup.requests.len()).filter(is_failed);
            let redone = failed.any(|index| writes_block(setup, index, block));
            // What a leg lost counts no more once the other one has taken over; until then nothing is read.
            let given_up = world.volume.fails_over() && world.lost[block] != 0;
            if redone || given_up || landing(0) | landing(1) != 0 {
                continue;
            }
            let [source, target] = [0, 1].map(|lun| world.luns[lun].0[block].newest());
            require(source == target, Checker::CleanIsEqual, || {
                format!("region {region} is clean, block {block} is {source} and {target}")
            })?;
        }
    }
    Ok(())
}

/// Power is lost now, and every block and everything in flight ends in its own way.
fn power_loss(setup: &Setup, world: &World) -> Result<(), Violation> {
    let after: [[Values; crate::setup::BLOCKS_MAX]; 2] = [0, 1].map(|lun| {
        core::array::from_fn(|block| {
            world.luns[lun].0[block].after_power_loss()
                | world.landing(setup, lun, block)
                | world.copying(setup, lun, block)
        })
    });
    let clean = world.map.clean_outcomes();
    for chosen in world.map.outcomes() {
        let chosen = chosen.map_err(|error| {
            Violation::new(Checker::OneAuthoritative, format!("the map file: {error}"))
        })?;
        let lun = world.lun_of(&chosen.record, chosen.record.route.authoritative());
        let mirrored = matches!(chosen.record.route, Route::Mirrored { .. });
        let legs = after[0].into_iter().zip(after[1]).enumerate();
        for (block, (source, target)) in legs.take(setup.blocks()) {
            let survivors = world.survivors[block];
            let found = [source, target][lun];
            require(found & !survivors == 0, Checker::FlushedWrite, || {
                format!(
                    "after a power loss block {block} of LUN {lun} is one of {found:#b}, and should be one of \
                     {survivors:#b}"
                )
            })?;
            let is_clean = clean >> (block / setup.blocks_per_region) & 1 == 1;
            if is_clean && mirrored {
                let equal = source == target && source.is_power_of_two();
                require(equal, Checker::DurablyCleanIsEqual, || {
                    format!(
                        "after a power loss block {block} is clean, {source:#b} and {target:#b}"
                    )
                })?;
            }
        }
    }
    Ok(())
}

fn drained(setup: &Setup, world: &World) -> Result<(), Violation> {
    let given_up = world.volume.mirror_fault().is_some();
    let is_dirty = |request: u8| {
        let mut touched = blocks(setup, usize::from(request));
        let regions = world.volume.regions();
        touched.all(|block| {
            let region = RegionIndex(block / setup.blocks_per_region);
            regions.is_none_or(|regions| regions.get(region) != RegionState::Clean)
        })
    };
    let quiet = |io: &Io| match io {
        Io::Request { .. } => false,
        // Given up since: its regions are dirty.
        Io::Mirror { request, .. } => given_up || is_dirty(*request),
        Io::Flush { .. } => true,
    };
    let holds = !world.drained || world.io.iter().all(quiet);
    require(holds, Checker::Drained, || {
        format!("suspended, but in flight: {:?}", world.io)
    })
}
