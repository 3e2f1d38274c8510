//! Single cases of one volume.

use alloc::{vec, vec::Vec};

use super::*;

/// A volume in `Mirrored{source}` whose regions are clean, with write intent for some of them on
/// disk.
fn in_sync(marked: &[usize]) -> Volume {
    with_dirty(0, marked)
}

/// The same, with the dirty bitmap of `word`.
fn with_dirty(word: u64, marked: &[usize]) -> Volume {
    let record = mirrored(Side::Source);
    let none = vec![0; map::SECTOR_WORDS];
    let mut dirty = none.clone();
    dirty[0] = word;
    let mut volume = Volume::load(&CONFIG, record, None, &dirty, &none);
    for region in marked {
        let range = geometry().range(RegionIndex(*region));
        volume.mark_intent(range);
    }
    let mut effects = Vec::new();
    volume.write_map(&mut effects);
    if !effects.is_empty() {
        volume.map_written(Time(1), Ok(()), &mut effects);
    }
    volume
}

fn flushes(effects: &[Effect]) -> Vec<(Side, FlushId)> {
    let flush = |effect: &Effect| match effect {
        Effect::FlushLeg { side, flush } => Some((*side, *flush)),
        _ => None,
    };
    effects.iter().filter_map(flush).collect()
}

#[test]
fn a_region_with_a_write_in_flight_keeps_its_mark() {
    let mut volume = in_sync(&[0]);
    let mut effects = Vec::new();
    let range = Range {
        start: 0,
        length: BLOCK,
    };
    let op = Op::Write {
        force_unit_access: false,
    };
    volume.request(Time(1), Tag(0), Request { op, range }, &mut effects);
    for sweep in 1..=3 {
        effects.clear();
        volume.tick(Time(sweep * IDLE_SWEEP_NANOSECONDS + 1), &mut effects);
        assert_eq!(flushes(&effects), [], "sweep {sweep}");
    }
}

/// Begins a sweep, then a switch; answers the switch's own flushes, not the sweep's.
fn switch_during_a_sweep(volume: &mut Volume) -> Vec<(Side, FlushId)> {
    let mut effects = Vec::new();
    volume.tick(Time(IDLE_SWEEP_NANOSECONDS), &mut effects);
    let sweep = flushes(&effects);
    assert_eq!(sweep.len(), 2);
    effects.clear();
    let now = Time(IDLE_SWEEP_NANOSECONDS + 1);
    let target = Target::Route(Route::Mirrored {
        authoritative: Side::Target,
    });
    volume
        .change_route(now, Call(1), Epoch(2), target, HOLD, &mut effects)
        .unwrap();
    for (side, flush) in flushes(&effects) {
        effects.clear();
        volume.leg_flushed(now, side, flush, Ok(()), &mut effects);
    }
    assert_eq!(effects, [], "the switch waits for the sweep");
    sweep
}

#[test]
fn a_switch_waits_for_a_sweep_and_fails_if_that_could_not_flush_the_mirror() {
    let mut volume = in_sync(&[0]);
    let sweep = switch_during_a_sweep(&mut volume);
    let mut effects = Vec::new();
    let now = Time(IDLE_SWEEP_NANOSECONDS + 2);
    volume.leg_flushed(now, sweep[0].0, sweep[0].1, Ok(()), &mut effects);
    volume.leg_flushed(now, sweep[1].0, sweep[1].1, Err(Errno(5)), &mut effects);
    let reply = Reply::ChangeFailed(ChangeError::MirrorFailed);
    assert!(
        effects.contains(&Effect::Reply {
            call: Call(1),
            reply
        }),
        "{effects:?}"
    );
    assert_eq!(volume.record().epoch, Epoch(2));
}

#[test]
fn a_copy_does_not_count_if_the_mirror_could_not_be_flushed_meanwhile() {
    let mut volume = with_dirty(0b10, &[0]);
    let (copier, mut effects) = (CopierId(1), Vec::new());
    let epoch = volume.open_copier(copier).unwrap();
    volume.claim(copier, Call(1), 1, &mut effects);
    let reply = Reply::Claimed(vec![RegionIndex(1)]);
    assert_eq!(
        effects,
        [Effect::Reply {
            call: Call(1),
            reply
        }]
    );
    effects.clear();
    volume.tick(Time(IDLE_SWEEP_NANOSECONDS), &mut effects);
    for (side, flush) in flushes(&core::mem::take(&mut effects)) {
        let result = if side == Side::Target {
            Err(Errno(5))
        } else {
            Ok(())
        };
        volume.leg_flushed(
            Time(IDLE_SWEEP_NANOSECONDS),
            side,
            flush,
            result,
            &mut effects,
        );
    }
    let copied = [RegionIndex(1)];
    volume
        .report(
            Time(1),
            copier,
            &Report::copied(epoch, &copied),
            &mut effects,
        )
        .unwrap();
    let dirty: Vec<usize> = volume
        .regions()
        .unwrap()
        .not_clean()
        .iter()
        .map(|r| r.0)
        .collect();
    assert_eq!(dirty, [0, 1]);
}

#[test]
fn the_marks_of_copied_regions_go_soon_and_write_intent_stays_while_it_is_used() {
    let mut volume = with_dirty(0b10, &[]);
    let (copier, mut effects) = (CopierId(1), Vec::new());
    let epoch = volume.open_copier(copier).unwrap();
    // The first sweep of idle regions finds nothing.
    volume.tick(Time(1), &mut effects);
    volume.mark_intent(geometry().range(RegionIndex(0)));
    volume.write_map(&mut effects);
    volume.map_written(Time(1), Ok(()), &mut effects);
    effects.clear();
    volume.claim(copier, Call(1), 1, &mut effects);
    volume
        .report(
            Time(1),
            copier,
            &Report::copied(epoch, &[RegionIndex(1)]),
            &mut effects,
        )
        .unwrap();
    effects.clear();
    let now = Time(COPIED_SWEEP_NANOSECONDS + 1);
    volume.tick(now, &mut effects);
    for (side, flush) in flushes(&core::mem::take(&mut effects)) {
        volume.leg_flushed(now, side, flush, Ok(()), &mut effects);
    }
    assert_eq!(effects, [Effect::WriteMap]);
    assert!(!volume.intent.is_covered(RegionIndex(1)));
    assert!(volume.intent.is_covered(RegionIndex(0)));
}

#[test]
fn a_copier_that_is_connected_through_a_switch_has_to_present_itself_again() {
    let mut volume = in_sync(&[]);
    let copier = CopierId(7);
    volume.open_copier(copier).unwrap();
    let mut effects = Vec::new();
    let target = Target::Route(Route::Mirrored {
        authoritative: Side::Target,
    });
    volume
        .change_route(Time(1), Call(1), Epoch(2), target, HOLD, &mut effects)
        .unwrap();
    for _ in 0..2 {
        for (side, flush) in flushes(&core::mem::take(&mut effects)) {
            volume.leg_flushed(Time(1), side, flush, Ok(()), &mut effects);
        }
    }
    let Some(Effect::WriteRole { slot, .. }) = effects.pop() else {
        panic!("no role was written: {effects:?}");
    };
    volume.role_written(Time(1), slot, Ok(()), &mut effects);
    assert_eq!(volume.record().epoch, Epoch(3));
    effects.clear();
    volume.claim(copier, Call(2), 1, &mut effects);
    let reply = Reply::ClaimRefused(ClaimError::NotCopier);
    assert_eq!(
        effects,
        [Effect::Reply {
            call: Call(2),
            reply
        }]
    );
}

#[test]
fn the_sectors_of_a_block_are_written_together() {
    // With blocks of eight sectors, the last block of each bitmap has three.
    const SECTORS: usize = 11;
    let sector = |area, index| BitmapSector { area, index };
    let size_bytes = (SECTORS * map::SECTOR_REGIONS) as u64 * REGION;
    let record = RoleRecord {
        block: BlockSize::Bytes4096,
        geometry: Geometry::new(size_bytes, REGION).unwrap(),
        ..mirrored(Side::Source)
    };
    let none = vec![0; SECTORS * map::SECTOR_WORDS];
    let mut volume = Volume::load(&CONFIG, record, None, &none, &none);
    let range = |sector| {
        record
            .geometry
            .range(RegionIndex(sector * map::SECTOR_REGIONS))
    };
    let mut effects = Vec::new();
    let last: Vec<_> = (8..11).map(|index| sector(Area::Intent, index)).collect();
    let whole: Vec<_> = (0..11).map(|index| sector(Area::Intent, index)).collect();

    volume.mark_intent(range(9));
    volume.write_map(&mut effects);
    assert_eq!(volume.map_batch(), last);
    // It waits for the batch that is being written; that fails, and is written again with it.
    volume.mark_intent(range(0));
    volume.map_written(Time(1), Err(Errno(5)), &mut effects);
    volume.tick(Time(2), &mut effects);
    assert_eq!(volume.map_batch(), whole);
    let written = volume.encode_sector(sector(Area::Intent, 9));
    let words = sector(Area::Intent, 9).decode(&record.volume_id, &written);
    assert_eq!(words.map(|words| words[0]), Ok(1));
    volume.map_written(Time(3), Ok(()), &mut effects);
    assert!(volume.is_map_written());
    for sector in [0, 9] {
        assert!(
            volume
                .intent
                .is_covered(RegionIndex(sector * map::SECTOR_REGIONS))
        );
    }

    // Two whole blocks are the most of a batch; a block is never divided.
    volume.intent.fill_dirty();
    let mut batches = Vec::new();
    volume.write_map(&mut effects);
    while !volume.map_batch().is_empty() {
        batches.push(volume.map_batch().to_vec());
        volume.map_written(Time(4), Ok(()), &mut effects);
    }
    let dirty: Vec<_> = (0..11).map(|index| sector(Area::Dirty, index)).collect();
    assert_eq!(batches, [whole, dirty]);
}
