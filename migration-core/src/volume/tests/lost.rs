//! What a leg that fails may have lost: what was in its cache, and an error that it reports once.

use super::{bench::*, *};

const TO_TARGET: Route = Route::Mirrored {
    authoritative: Side::Target,
};

/// Lets time pass. Returns the effects, including the flushes of a sweep.
fn pass(bench: &mut Bench, nanoseconds: u64) -> Vec<Effect> {
    bench.now = bench.now.plus(nanoseconds);
    bench.volume.tick(bench.now, &mut bench.effects);
    bench.take()
}

fn flushes(effects: &[Effect]) -> Vec<(Side, FlushId)> {
    let flush = |effect: &Effect| match effect {
        Effect::FlushLeg { side, flush } => Some((*side, *flush)),
        _ => None,
    };
    effects.iter().filter_map(flush).collect()
}

fn flushed(bench: &mut Bench, side: Side, flush: FlushId, result: IoResult) -> Vec<Effect> {
    let (now, effects) = (bench.now, &mut bench.effects);
    bench.volume.leg_flushed(now, side, flush, result, effects);
    bench.take()
}

/// A write that both legs have in their caches.
fn write(bench: &mut Bench, tag: u16, number: u64, authoritative: Side) {
    let effects = bench.request(tag, WRITE, number);
    let place = place(&effects).expect("mirrored");
    bench.leg(tag, authoritative, Ok(()));
    bench.mirror(place, Ok(()));
}

/// Lets time pass until a sweep flushes both legs, and fails the flush of the authoritative leg.
fn sweep_fails(bench: &mut Bench, authoritative: Side) -> Vec<Effect> {
    for _ in 0..3 {
        let asked = flushes(&pass(bench, IDLE_SWEEP_NANOSECONDS));
        if let [first, second] = asked[..] {
            let (failed, other) = if first.0 == authoritative {
                (first, second)
            } else {
                (second, first)
            };
            let mut effects = flushed(bench, failed.0, failed.1, Err(FAULT));
            effects.extend(flushed(bench, other.0, other.1, Ok(())));
            return effects;
        }
    }
    panic!("no sweep has flushed the legs");
}

#[test]
fn a_mirror_leg_that_failed_and_is_tried_again_is_not_trusted_for_its_cache() {
    let mut bench = Bench::new(Side::Source);
    write(&mut bench, 0, 0, Side::Source);
    // The mirror leg loses its power: the next write fails, and the first one was in its cache
    // alone.
    let lost = place(&bench.request(0, WRITE, 4)).unwrap();
    bench.leg(0, Side::Source, Ok(()));
    bench.mirror(lost, Err(FAULT));
    assert_eq!(bench.volume.mirror_fault(), Some(FAULT));
    assert_eq!(bench.volume.retry_mirror(), Ok(true));
    assert!(!bench.is_clean(0), "it was marked, so it may be lost");
    // No switch before everything was copied again: the flushes of before prove nothing.
    bench.volume.open_copier(COPIER).unwrap();
    assert!(claim(&mut bench, 1).contains(&claimed(1, &[1, 2])));
    report(&mut bench, &[1, 2]);
    let epoch = bench.volume.record().epoch;
    let refused = bench.volume.change_route(
        bench.now,
        Call(2),
        epoch,
        Target::Route(TO_TARGET),
        HOLD,
        &mut bench.effects,
    );
    assert!(
        matches!(refused, Err(ChangeError::NotInSync(_))),
        "{refused:?}"
    );
}

#[test]
fn a_mirror_leg_that_stalled_is_not_trusted_for_its_cache() {
    let mut bench = Bench::new(Side::Source);
    write(&mut bench, 0, 0, Side::Source);
    place(&bench.request(0, WRITE, 4)).unwrap();
    bench.leg(0, Side::Source, Ok(()));
    bench.request(1, WRITE, 4);
    bench.after(PATIENCE);
    assert_eq!(bench.volume.mirror_fault(), Some(Errno(110)));
    assert!(!bench.is_clean(0));
}

#[test]
fn what_was_copied_before_a_failure_and_not_flushed_is_copied_again() {
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(2));
    bench.volume.differ(block(4));
    bench.volume.open_copier(COPIER).unwrap();
    claim(&mut bench, 1);
    report(&mut bench, &[1]);
    assert!(bench.is_clean(1));
    // The target is pulled out while the next region is copied.
    let failed = [RegionIndex(2)];
    let epoch = bench.volume.record().epoch;
    let lost = Report {
        epoch,
        copied: &[],
        failed: &failed,
        mirror_error: Some(FAULT),
    };
    let (now, effects) = (bench.now, &mut bench.effects);
    bench.volume.report(now, COPIER, &lost, effects).unwrap();
    bench.take();
    bench.volume.retry_mirror().unwrap();
    assert!(!bench.is_clean(1));
}

#[test]
fn a_copy_that_was_under_way_when_the_mirror_leg_failed_does_not_count() {
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(2));
    bench.volume.open_copier(COPIER).unwrap();
    claim(&mut bench, 1);
    let lost = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.mirror(lost, Err(FAULT));
    report(&mut bench, &[1]);
    assert!(!bench.is_clean(1));
}

#[test]
fn marks_are_not_cleared_by_a_sweep_during_which_a_leg_failed() {
    let mut bench = Bench::new(Side::Source);
    let asked = flushes(&pass(&mut bench, IDLE_SWEEP_NANOSECONDS));
    assert_eq!(asked.len(), 2);
    let lost = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.leg(0, Side::Source, Ok(()));
    bench.mirror(lost, Err(FAULT));
    bench.volume.retry_mirror().unwrap();
    bench.volume.open_copier(COPIER).unwrap();
    claim(&mut bench, 1);
    report(&mut bench, &[1, 2]);
    let mut effects = Vec::new();
    for (side, flush) in asked {
        effects.extend(flushed(&mut bench, side, flush, Ok(())));
    }
    assert!(!effects.contains(&Effect::WriteMap), "{effects:?}");
    assert!(bench.volume.intent.is_covered(RegionIndex(1)));
}

#[test]
fn the_leg_that_lost_its_role_by_a_failure_is_not_trusted_for_its_cache() {
    let mut bench = Bench::new(Side::Target);
    write(&mut bench, 0, 0, Side::Target);
    bench.request(1, Op::Flush, 0);
    let effects = bench.leg(1, Side::Target, Err(FAULT));
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    assert!(
        effects.contains(&leg(1, Side::Source, Op::Flush)),
        "{effects:?}"
    );
    bench.role(&effects);
    assert_eq!(bench.leg(1, Side::Source, Ok(())), [answer(1, Ok(()))]);
    assert_eq!(bench.volume.retry_mirror(), Ok(true));
    assert!(!bench.is_clean(0), "its flush failed after the write");
}

#[test]
fn a_flush_of_the_authoritative_leg_that_failed_in_a_sweep_is_an_error_of_the_next_flush_once() {
    let mut bench = Bench::new(Side::Source);
    write(&mut bench, 0, 0, Side::Source);
    sweep_fails(&mut bench, Side::Source);
    assert_eq!(bench.volume.authoritative_fault(), Some(FAULT));
    assert!(!bench.is_clean(0), "the leg may have lost it");
    assert!(bench.volume.intent.is_covered(RegionIndex(0)));
    assert_eq!(
        bench.request(1, WRITE, 7)[0],
        leg(1, Side::Source, WRITE),
        "a write promises nothing of other writes"
    );
    bench.leg(1, Side::Source, Ok(()));
    assert_eq!(bench.request(1, Op::Flush, 0), [answer(1, Err(FAULT))]);
    assert_eq!(
        bench.request(1, Op::Flush, 0),
        [leg(1, Side::Source, Op::Flush)]
    );
    assert_eq!(bench.leg(1, Side::Source, Ok(())), [answer(1, Ok(()))]);
}

#[test]
fn flushes_that_the_application_waits_for_have_the_error_of_a_flush_that_fails_meanwhile() {
    let mut bench = Bench::new(Side::Source);
    write(&mut bench, 0, 0, Side::Source);
    bench.request(1, Op::Flush, 0);
    bench.request(2, Op::Flush, 0);
    sweep_fails(&mut bench, Side::Source);
    for tag in [1, 2] {
        let answered = bench.leg(tag, Side::Source, Ok(()));
        assert_eq!(answered, [answer(tag, Err(FAULT))]);
    }
    bench.request(1, Op::Flush, 0);
    assert_eq!(bench.leg(1, Side::Source, Ok(())), [answer(1, Ok(()))]);
    // A flush of the application that fails also fails the other one in flight, but not those that
    // come afterwards.
    bench.request(1, Op::Flush, 0);
    bench.request(2, Op::Flush, 0);
    let failed = [answer(1, Err(FAULT))];
    assert_eq!(bench.leg(1, Side::Source, Err(FAULT)), failed);
    bench.request(3, Op::Flush, 0);
    let failed = [answer(2, Err(FAULT))];
    assert_eq!(bench.leg(2, Side::Source, Ok(())), failed);
    assert_eq!(bench.leg(3, Side::Source, Ok(())), [answer(3, Ok(()))]);
}

#[test]
fn a_switch_whose_flush_of_the_authoritative_leg_fails_leaves_the_error_to_the_application() {
    for steps in [0, 1] {
        let mut bench = Bench::new(Side::Source);
        write(&mut bench, 0, 0, Side::Source);
        let mut effects = bench.change(TO_TARGET);
        for _ in 0..steps {
            effects = bench.flush(&effects, Ok(()));
        }
        // With one step, the request is held when the flush after the drain fails, and is not done
        // on the leg any more.
        let held = bench.request(1, Op::Flush, 0);
        assert_eq!(held.is_empty(), steps == 1);
        let source = |(side, _): &(Side, FlushId)| *side == Side::Source;
        let (side, flush) = flushes(&effects).into_iter().find(source).unwrap();
        let mut effects = flushed(&mut bench, side, flush, Err(FAULT));
        let error = ChangeError::Flush(FAULT);
        let reply = Reply::ChangeFailed(error);
        let call = Call(1);
        assert!(
            effects.contains(&Effect::Reply { call, reply }),
            "{effects:?}"
        );
        if steps == 0 {
            effects = bench.leg(1, Side::Source, Ok(()));
        }
        assert!(effects.contains(&answer(1, Err(FAULT))), "{effects:?}");
        assert!(!bench.is_clean(0));
    }
}

#[test]
fn a_failed_flush_of_a_sweep_exchanges_the_roles_by_the_policy_and_is_no_error_then() {
    let mut bench = Bench::new(Side::Target);
    write(&mut bench, 0, 0, Side::Target);
    let effects = sweep_fails(&mut bench, Side::Target);
    assert_eq!(bench.request(1, Op::Flush, 0), [], "held");
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    assert_eq!(bench.volume.counters().fail_overs, 1);
    assert!(
        effects.contains(&leg(1, Side::Source, Op::Flush)),
        "{effects:?}"
    );
    assert_eq!(bench.leg(1, Side::Source, Ok(())), [answer(1, Ok(()))]);
    assert!(
        !bench.is_clean(0),
        "what the target had in its cache is gone"
    );
}

#[test]
fn an_exchange_that_cannot_be_done_leaves_the_error_of_the_flush_to_the_application() {
    let mut bench = Bench::new(Side::Target);
    write(&mut bench, 0, 0, Side::Target);
    let effects = sweep_fails(&mut bench, Side::Target);
    bench.flush(&effects, Err(Errno(6)));
    assert_eq!(bench.volume.record().epoch, Epoch(2));
    assert_eq!(bench.request(1, Op::Flush, 0), [answer(1, Err(FAULT))]);
}

#[test]
fn the_error_of_a_flush_outlives_a_cancel_and_comes_late_too() {
    let mut bench = Bench::new(Side::Source);
    write(&mut bench, 0, 0, Side::Source);
    let asked = flushes(&pass(&mut bench, IDLE_SWEEP_NANOSECONDS));
    let asked = if asked.is_empty() {
        flushes(&pass(&mut bench, IDLE_SWEEP_NANOSECONDS))
    } else {
        asked
    };
    let effects = bench.change(Route::Single(Side::Source));
    bench.role(&effects);
    assert_eq!(bench.volume.record().route, Route::Single(Side::Source));
    for (side, flush) in asked {
        flushed(&mut bench, side, flush, Err(FAULT));
    }
    assert_eq!(bench.request(1, Op::Flush, 0), [answer(1, Err(FAULT))]);
    // The error of the leg that is gone is not reported.
    assert_eq!(
        bench.request(1, Op::Flush, 0),
        [leg(1, Side::Source, Op::Flush)]
    );
}

#[test]
fn a_leg_that_fails_a_write_and_keeps_its_role_is_not_trusted_for_its_cache() {
    let mut bench = Bench::new(Side::Source);
    write(&mut bench, 0, 0, Side::Source);
    bench.request(1, WRITE, 4);
    let failed = [answer(1, Err(FAULT))];
    assert_eq!(bench.leg(1, Side::Source, Err(FAULT)), failed);
    assert!(!bench.is_clean(0));
    // A failed read may be just one bad sector.
    let mut bench = Bench::new(Side::Source);
    bench.request(1, Op::Read, 4);
    bench.leg(1, Side::Source, Err(FAULT));
    assert!((0..REGIONS).all(|region| bench.is_clean(region)));
}

#[test]
fn a_report_of_an_older_epoch_is_refused_also_from_the_copier_that_has_the_region() {
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(0));
    bench.volume.open_copier(COPIER).unwrap();
    claim(&mut bench, 1);
    let before = bench.volume.clone();
    let (volume, effects) = (&mut bench.volume, &mut bench.effects);
    let old = Report::copied(Epoch(1), &[RegionIndex(0)]);
    let reported = volume.report(bench.now, COPIER, &old, effects);
    assert_eq!(reported, Err(ClaimError::StaleEpoch));
    assert_eq!(bench.volume, before);
}

#[test]
fn no_mirror_leg_is_added_while_an_older_descriptor_is_being_written() {
    let mut record = mirrored(Side::Source);
    record.route = Route::Single(Side::Source);
    let mut bench = Bench::unmarked(record);
    let add = |bench: &mut Bench, call: u64| {
        let new = Target::AddMirror(NewMirror {
            descriptor_bytes: 100,
            descriptor_crc: call as u32,
        });
        let (epoch, now) = (bench.volume.record().epoch, bench.now);
        let effects = &mut bench.effects;
        let added = bench
            .volume
            .change_route(now, Call(call), epoch, new, HOLD, effects);
        (added, bench.take())
    };
    let (added, effects) = add(&mut bench, 1);
    assert_eq!(added, Ok(()));
    assert!(effects.contains(&Effect::WriteDescriptor { slot: 1 }));
    // The map file's disk hangs for longer than the change may take.
    bench.after(PREPARE_NANOSECONDS_MAX);
    assert!(!bench.volume.is_changing());
    assert_eq!(add(&mut bench, 2), (Err(ChangeError::Busy), Vec::new()));
    // The old write ends, and is not taken for that of the next change.
    let now = bench.now;
    bench
        .volume
        .descriptor_written(now, Ok(()), &mut bench.effects);
    let (added, effects) = add(&mut bench, 3);
    assert_eq!(added, Ok(()));
    assert!(effects.contains(&Effect::WriteDescriptor { slot: 1 }));
    for _ in 0..4 {
        bench.volume.map_written(now, Ok(()), &mut bench.effects);
    }
    let writes_role = |effect: &Effect| matches!(effect, Effect::WriteRole { .. });
    assert!(!bench.take().iter().any(writes_role));
    bench
        .volume
        .descriptor_written(now, Ok(()), &mut bench.effects);
    assert!(bench.take().iter().any(writes_role));
}
