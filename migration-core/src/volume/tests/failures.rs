//! Legs that fail, and a mirror leg that keeps the application waiting.

use super::{bench::*, *};

#[test]
fn the_application_waits_for_the_authoritative_leg_and_a_switch_for_both() {
    let mut bench = Bench::new(Side::Source);
    let trailing = place(&bench.request(0, WRITE, 0)).unwrap();
    assert_eq!(bench.leg(0, Side::Source, Ok(())), [answer(0, Ok(()))]);
    let effects = bench.change(Route::Mirrored {
        authoritative: Side::Target,
    });
    assert_eq!(bench.flush(&effects, Ok(())), [], "it waits");
    // The tag is used again meanwhile, and the request is held.
    assert_eq!(bench.request(0, WRITE, 4), []);
    let effects = bench.mirror(trailing, Ok(()));
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    assert!(
        effects.contains(&leg(0, Side::Target, WRITE)),
        "{effects:?}"
    );
}

#[test]
fn a_write_behind_a_stalled_mirror_write_goes_on_when_its_patience_is_at_an_end() {
    let mut bench = Bench::new(Side::Source);
    let stalled = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.leg(0, Side::Source, Ok(()));
    assert_eq!(bench.request(1, WRITE, 0), []);
    assert_eq!(bench.after(PATIENCE - 1), []);
    assert_eq!(bench.volume.mirror_fault(), None);
    assert_eq!(bench.after(1), [leg(1, Side::Source, WRITE)]);
    assert_eq!(bench.volume.mirror_fault(), Some(Errno(110)));
    assert_eq!(bench.volume.stalled_writes(), Some(1));
    // The other regions are dirty too: they are marked, so the leg that hangs may have had them in
    // its cache alone.
    assert!((0..REGIONS).all(|region| !bench.is_clean(region)));
    assert_eq!(bench.leg(1, Side::Source, Ok(())), [answer(1, Ok(()))]);
    // The mirror leg is tried again, but the region is not copied while the old write may still
    // land.
    assert_eq!(bench.volume.retry_mirror(), Ok(true));
    assert_eq!(bench.volume.stalled_writes(), None);
    let copier = CopierId(1);
    bench.volume.open_copier(copier).unwrap();
    for (call, regions) in [(2, vec![1, 2]), (3, vec![3])] {
        let regions: Vec<RegionIndex> = regions.into_iter().map(RegionIndex).collect();
        let (call, effects) = (Call(call), &mut bench.effects);
        bench.volume.claim(copier, call, 4, effects);
        let report = Report::copied(Epoch(2), &regions);
        bench
            .volume
            .report(bench.now, copier, &report, effects)
            .unwrap();
        let reply = Reply::Claimed(regions);
        assert!(bench.take().contains(&Effect::Reply { call, reply }));
    }
    bench.volume.claim(copier, Call(4), 4, &mut bench.effects);
    assert_eq!(bench.take(), []);
    let reply = Reply::Claimed(vec![RegionIndex(0)]);
    let call = Call(4);
    assert_eq!(
        bench.mirror(stalled, Ok(())),
        [Effect::Reply { call, reply }]
    );
}

#[test]
fn more_writes_than_places_wait_and_then_do_without_the_mirror() {
    let mut bench = Bench::new(Side::Source);
    for tag in 0..PLACES as u16 {
        assert!(place(&bench.request(tag, WRITE, u64::from(tag) * 2)).is_some());
        bench.leg(tag, Side::Source, Ok(()));
    }
    assert_eq!(bench.request(0, WRITE, 7), []);
    assert_eq!(bench.after(PATIENCE), [leg(0, Side::Source, WRITE)]);
    assert!((0..REGIONS).all(|region| !bench.is_clean(region)));
}

#[test]
fn a_mirror_leg_that_hangs_does_not_hold_up_a_cancel_but_the_next_mirror_leg() {
    let mut bench = Bench::new(Side::Source);
    let hanging = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.leg(0, Side::Source, Ok(()));
    bench.request(1, WRITE, 0);
    bench.after(PATIENCE);
    bench.leg(1, Side::Source, Ok(()));
    let effects = bench.change(Route::Single(Side::Source));
    let effects = bench.role(&effects);
    bench.role(&effects);
    assert_eq!(bench.volume.record().route, Route::Single(Side::Source));
    let new = Target::AddMirror(NewMirror {
        descriptor_bytes: 0,
        descriptor_crc: 0,
    });
    let add = |bench: &mut Bench| {
        let epoch = bench.volume.record().epoch;
        let (now, effects) = (bench.now, &mut bench.effects);
        bench
            .volume
            .change_route(now, Call(3), epoch, new, HOLD, effects)
    };
    assert_eq!(add(&mut bench), Err(ChangeError::Busy));
    bench.mirror(hanging, Err(FAULT));
    assert_eq!(bench.volume.mirror_fault(), None, "it is the former leg's");
    assert_eq!(add(&mut bench), Ok(()));
}

#[test]
fn a_stalled_mirror_leg_ends_a_switch_that_waits_for_it() {
    let mut bench = Bench::new(Side::Source);
    bench.request(0, WRITE, 0);
    bench.leg(0, Side::Source, Ok(()));
    bench.request(1, WRITE, 0);
    // The first flush of the switch does not return.
    bench.change(Route::Mirrored {
        authoritative: Side::Target,
    });
    let effects = bench.after(PATIENCE);
    let reply = Reply::ChangeFailed(ChangeError::MirrorFailed);
    let call = Call(1);
    assert!(
        effects.contains(&Effect::Reply { call, reply }),
        "{effects:?}"
    );
}

#[test]
fn a_region_that_is_copied_too_slowly_is_not_kept_from_the_application() {
    let mut bench = Bench::new(Side::Source);
    let copier = CopierId(1);
    bench.volume.differ(block(0));
    bench.volume.open_copier(copier).unwrap();
    let claim = |bench: &mut Bench| {
        bench.volume.claim(copier, Call(1), 1, &mut bench.effects);
        bench.take()
    };
    claim(&mut bench);
    bench.request(0, WRITE, 0);
    bench.leg(0, Side::Source, Ok(()));
    let report = |bench: &mut Bench| {
        let (volume, effects) = (&mut bench.volume, &mut bench.effects);
        volume
            .report(
                bench.now,
                copier,
                &Report::copied(Epoch(2), &[RegionIndex(0)]),
                effects,
            )
            .unwrap();
        bench.take()
    };
    report(&mut bench);
    // The second claim is exclusive.
    claim(&mut bench);
    assert_eq!(bench.request(0, WRITE, 0), []);
    assert_eq!(bench.after(PATIENCE), [leg(0, Side::Source, WRITE)]);
    assert_eq!(bench.volume.mirror_fault(), None);
    bench.leg(0, Side::Source, Ok(()));
    report(&mut bench);
    assert!(!bench.is_clean(0), "its copy does not count");
}

#[test]
fn a_region_whose_copy_takes_longer_than_writes_wait_is_copied_in_the_end() {
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(2));
    bench.volume.open_copier(COPIER).unwrap();
    // Every copy takes three times the patience, and the region is written all the time.
    let mut copies = 0;
    while !bench.is_clean(1) {
        copies += 1;
        claim(&mut bench, copies);
        let mut held = 0;
        if bench.request(0, WRITE, 2).is_empty() {
            while held < 3 * PATIENCE && bench.after(PATIENCE / 2).is_empty() {
                held += PATIENCE / 2;
            }
        }
        assert!(held <= 3 * PATIENCE);
        if held < 3 * PATIENCE {
            bench.leg(0, Side::Source, Ok(()));
        }
        report(&mut bench, &[1]);
        assert!(copies < 10, "it is never copied");
    }
    assert_eq!(
        copies, 4,
        "in vain, then for the patience, twice it, and 4 times"
    );
    // No write waits longer than eight times the patience, however long a copy takes.
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(2));
    bench.volume.open_copier(COPIER).unwrap();
    let mut longest = 0;
    for call in 1..10 {
        claim(&mut bench, call);
        let begun = bench.now;
        if bench.request(0, WRITE, 2).is_empty() {
            while bench.after(PATIENCE).is_empty() {}
        }
        longest = longest.max(bench.now.since(begun));
        bench.leg(0, Side::Source, Ok(()));
        report(&mut bench, &[1]);
    }
    assert_eq!(longest, 8 * PATIENCE);
}

#[test]
fn what_the_authoritative_leg_cannot_read_the_mirror_leg_reads_if_it_has_the_same() {
    let mut bench = Bench::new(Side::Source);
    bench.request(0, Op::Read, 0);
    let elsewhere = [leg(0, Side::Target, Op::Read)];
    assert_eq!(bench.leg(0, Side::Source, Err(FAULT)), elsewhere);
    assert_eq!(bench.leg(0, Side::Target, Ok(())), [answer(0, Ok(()))]);
    assert_eq!(bench.volume.counters().mirror_reads, 1);
    assert_eq!(bench.volume.authoritative_fault(), Some(FAULT));
    // The mirror leg is not read before it has what was acknowledged.
    let trailing = place(&bench.request(1, WRITE, 0)).unwrap();
    bench.leg(1, Side::Source, Ok(()));
    bench.request(0, Op::Read, 0);
    assert_eq!(bench.leg(0, Side::Source, Err(FAULT)), []);
    assert_eq!(bench.mirror(trailing, Ok(())), elsewhere);
    // The mirror leg fails too: the error of the authoritative leg counts.
    let failed = [answer(0, Err(FAULT))];
    assert_eq!(bench.leg(0, Side::Target, Err(Errno(6))), failed);
    // The mirror leg does not have the same data.
    bench.volume.differ(block(0));
    bench.request(0, Op::Read, 0);
    assert_eq!(bench.leg(0, Side::Source, Err(FAULT)), failed);
}

#[test]
fn a_target_that_fails_after_the_switch_gives_the_role_back() {
    let mut bench = Bench::new(Side::Target);
    let first = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.request(1, Op::Flush, 0);
    assert_eq!(bench.leg(0, Side::Target, Err(FAULT)), []);
    assert_eq!(bench.request(2, WRITE, 4), [], "held");
    assert_eq!(bench.leg(1, Side::Target, Err(FAULT)), []);
    let effects = bench.mirror(first, Ok(()));
    let flushed: Vec<Side> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::FlushLeg { side, .. } => Some(*side),
            _ => None,
        })
        .collect();
    assert_eq!(flushed, [Side::Source], "the other one fails");
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    for done_again in [
        leg(0, Side::Source, WRITE),
        leg(1, Side::Source, Op::Flush),
        leg(2, Side::Source, WRITE),
    ] {
        assert!(effects.contains(&done_again), "{effects:?}");
    }
    assert_eq!(place(&effects), None, "the failed leg is not written");
    assert_eq!(bench.volume.mirror_fault(), Some(FAULT));
    assert_eq!(bench.volume.authoritative_fault(), None);
    assert_eq!(bench.volume.counters().fail_overs, 1);
    // All regions are dirty: they are marked, so the failed leg may have lost any of them with its
    // cache.
    assert!((0..REGIONS).all(|region| !bench.is_clean(region)));
    assert_eq!(bench.leg(0, Side::Source, Ok(())), [answer(0, Ok(()))]);
}

#[test]
fn a_role_that_cannot_be_given_back_leaves_the_error_to_the_application() {
    let mut bench = Bench::new(Side::Target);
    let first = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.leg(0, Side::Target, Err(FAULT));
    bench.request(1, WRITE, 2);
    let effects = bench.mirror(first, Err(Errno(6)));
    assert!(effects.contains(&answer(0, Err(FAULT))), "{effects:?}");
    assert!(effects.contains(&leg(1, Side::Target, WRITE)));
    assert!(!bench.is_clean(0));
    assert_eq!(bench.volume.record().epoch, Epoch(2));
    // The same if the flush of the other leg fails.
    let mut bench = Bench::new(Side::Target);
    let first = place(&bench.request(0, WRITE, 0)).unwrap();
    bench.leg(0, Side::Target, Err(FAULT));
    let effects = bench.mirror(first, Ok(()));
    let effects = bench.flush(&effects, Err(Errno(6)));
    assert!(effects.contains(&answer(0, Err(FAULT))), "{effects:?}");
    assert!(!bench.is_clean(0));
}

#[test]
fn a_source_that_fails_is_the_applications_affair_unless_the_policy_says_otherwise() {
    let mut bench = Bench::new(Side::Source);
    bench.request(0, WRITE, 0);
    let failed = [answer(0, Err(FAULT))];
    assert_eq!(bench.leg(0, Side::Source, Err(FAULT)), failed);
    assert!(!bench.is_clean(0));
    let mut bench = Bench::new(Side::Source);
    let policy = OnAuthoritativeFailure::Switch;
    bench.volume.set_on_authoritative_failure(policy);
    let first = place(&bench.request(0, WRITE, 0)).unwrap();
    assert_eq!(bench.leg(0, Side::Source, Err(FAULT)), []);
    let effects = bench.mirror(first, Ok(()));
    let effects = bench.flush(&effects, Ok(()));
    assert!(bench.role(&effects).contains(&leg(0, Side::Target, WRITE)));
    // The roles are exchanged only while both legs are equal.
    let mut bench = Bench::new(Side::Target);
    bench.volume.differ(block(7));
    bench.request(0, WRITE, 0);
    assert_eq!(bench.leg(0, Side::Target, Err(FAULT)), failed);
}

/// Lets everything that was asked for end well. Returns how often marks were written.
fn let_all_end(bench: &mut Bench, mut effects: Vec<Effect>) -> usize {
    let mut marks = 0;
    while !effects.is_empty() {
        let mut caused = bench.flush(&effects, Ok(()));
        for effect in effects {
            caused.extend(match effect {
                Effect::Leg { tag, side, .. } => bench.leg(tag.0, side, Ok(())),
                Effect::MirrorWrite { place, .. } => bench.mirror(place, Ok(())),
                Effect::WriteMap => {
                    marks += 1;
                    let (now, effects) = (bench.now, &mut bench.effects);
                    bench.volume.map_written(now, Ok(()), effects);
                    bench.take()
                }
                _ => Vec::new(),
            });
        }
        effects = caused;
    }
    marks
}

#[test]
fn a_steady_load_over_its_regions_writes_no_marks_once_they_are_there() {
    const STEP: u64 = IDLE_SWEEP_NANOSECONDS / 40;
    let mut bench = Bench::new(Side::Source);
    let mut run = |writes: bool| {
        let mut marks = 0;
        for step in 0..400 {
            bench.now = bench.now.plus(STEP);
            bench.volume.tick(bench.now, &mut bench.effects);
            let effects = bench.take();
            marks += let_all_end(&mut bench, effects);
            if writes {
                let effects = bench.request(0, WRITE, step % BLOCKS as u64);
                marks += let_all_end(&mut bench, effects);
            }
        }
        marks
    };
    assert!(run(true) <= 2 * REGIONS, "while it warms up");
    assert_eq!(run(true), 0);
    assert!(run(false) > 0, "when it has ended the marks go");
}
