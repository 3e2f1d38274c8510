//! The rules that must hold in every state.

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

/// The rule that is violated. The numbers are those of docs/invariants.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checker {
    /// Acknowledged data is on the authoritative leg, also for the next ublk-target.
    AcknowledgedWrite,
    /// Data that is acknowledged and flushed survives a power loss.
    FlushedWrite,
    /// 2: a region that is clean in memory is equal on both legs, except for writes in flight.
    CleanIsEqual,
    /// 3: a region that the map file calls clean is equal on both legs after a power loss.
    DurablyCleanIsEqual,
    /// 1, 6: any later ublk-target finds one role record, the one that was announced.
    OneAuthoritative,
    /// Reads return what was written.
    Read,
    /// The application gets one answer to a request, and sees only errors of the authoritative leg.
    Answer,
    /// 5: a suspended volume has no request of the application in flight.
    Drained,
    /// 23: a copy at an instant does not change.
    CopyStays,
    /// 9, 10: stale actors are refused, the current one is not.
    StaleActor,
    /// A panic of the core: in [`seeded_core::volume::Volume::check_invariants`], or because the
    /// core itself refuses a transition.
    Core,
    /// 11, and the legs converge: without new requests, everything is answered and the legs become
    /// equal.
    Settles,
}

/// A violation of a rule, with a description.
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

/// Checks all rules that apply to a single state.
pub(crate) fn state(setup: &Setup, world: &World) -> Result<(), Violation> {
    acknowledged(setup, world)?;
    clean_is_equal(setup, world)?;
    power_loss(setup, world)?;
    copy_stays(setup, world)?;
    drained(setup, world)
}

/// Checks that the target of a split holds what the source held at the split, whatever happens,
/// also after a power loss.
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

/// Checks that the data of the application is on the authoritative leg.
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
            // During a fail-over, blocks that the failed leg has lost do not count: nothing is read
            // before the other leg has taken over.
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

/// Checks every outcome of a power loss at this moment: each block and each I/O in flight ends
/// independently of the others.
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
        // The mirror leg was given up since: the regions of the write are dirty.
        Io::Mirror { request, .. } => given_up || is_dirty(*request),
        Io::Flush { .. } => true,
    };
    let holds = !world.drained || world.io.iter().all(quiet);
    require(holds, Checker::Drained, || {
        format!("suspended, but in flight: {:?}", world.io)
    })
}
