//! Tracking, the copy of the rest while requests are held, and writes that are slowed.

use alloc::vec::Vec;

use super::bench::*;
use super::*;

const SECOND: u64 = 1_000_000_000;
const TO_TARGET: Route = Route::Mirrored {
    authoritative: Side::Target,
};

/// A volume in sync that tracks, with a copier.
fn tracking() -> Bench {
    let mut bench = Bench::new(Side::Source);
    bench
        .volume
        .set_copy_mode(CopyMode::Track, &mut bench.effects);
    bench.volume.open_copier(COPIER).unwrap();
    bench
}

/// A write of a block that is answered.
fn write(bench: &mut Bench, block: u64) {
    let effects = bench.request(0, WRITE, block);
    assert_eq!(
        effects,
        [leg(0, Side::Source, WRITE)],
        "the mirror leg is not written"
    );
    bench.leg(0, Side::Source, Ok(()));
}

fn switch_with_rest(bench: &mut Bench) -> Result<Vec<Effect>, ChangeError> {
    let (epoch, target) = (bench.volume.record().epoch, Target::CopyRest(Side::Target));
    let (volume, effects) = (&mut bench.volume, &mut bench.effects);
    volume.change_route(bench.now, Call(1), epoch, target, SECOND, effects)?;
    Ok(bench.take())
}

fn answer_of_change(effects: &[Effect]) -> Option<Reply> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply {
            call: Call(1),
            reply,
        } => Some(reply.clone()),
        _ => None,
    })
}

#[test]
fn a_region_that_is_written_all_the_time_is_copied_once_in_a_pass_and_no_write_waits() {
    let mut bench = tracking();
    write(&mut bench, 0);
    assert!(!bench.is_clean(0));
    assert_eq!(
        claim(&mut bench, 5),
        [],
        "it was not dirty when the pass began"
    );
    assert_eq!(bench.after(PASS_NANOSECONDS), [claimed(5, &[0])]);
    write(&mut bench, 0);
    report(&mut bench, &[0]);
    assert!(!bench.is_clean(0));
    assert_eq!(claim(&mut bench, 6), []);
    assert_eq!(bench.after(PASS_NANOSECONDS), [claimed(6, &[0])]);
    report(&mut bench, &[0]);
    assert!(bench.is_clean(0));
    // Nothing is dirty, and the claim waits for the next pass.
    assert_eq!(claim(&mut bench, 7), []);
    assert_eq!(bench.after(PASS_NANOSECONDS), []);
}

#[test]
fn the_rest_is_copied_while_requests_are_held() {
    let mut bench = tracking();
    assert_eq!(claim(&mut bench, 5), []);
    write(&mut bench, 0);
    let effects = switch_with_rest(&mut bench).unwrap();
    let effects = bench.flush(&effects, Ok(()));
    assert_eq!(effects, [claimed(5, &[0])], "the pass is not waited for");
    assert_eq!(bench.request(1, WRITE, 1), [], "it is held");
    let effects = report(&mut bench, &[0]);
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    let changed = answer_of_change(&effects).unwrap();
    assert!(matches!(changed, Reply::RouteChanged { route, .. } if route == TO_TARGET));
    assert!(effects.contains(&leg(1, Side::Target, WRITE)));
    // Both legs are written now, so that an undo copies nothing.
    assert!(place(&effects).is_some());
    assert!(!bench.volume.tracks());
}

#[test]
fn a_copier_that_waits_for_a_pass_is_told_of_another_epoch() {
    let mut bench = tracking();
    assert_eq!(claim(&mut bench, 5), []);
    let effects = switch_with_rest(&mut bench).unwrap();
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    let told = Effect::Reply {
        call: Call(5),
        reply: Reply::ClaimRefused(ClaimError::StaleEpoch),
    };
    assert!(effects.contains(&told), "{effects:?}");
}

#[test]
fn the_old_route_goes_on_when_the_rest_takes_too_long_or_nobody_copies_it() {
    for dies in [false, true] {
        let mut bench = tracking();
        write(&mut bench, 0);
        let effects = switch_with_rest(&mut bench).unwrap();
        bench.flush(&effects, Ok(()));
        assert_eq!(bench.request(1, WRITE, 1), []);
        let (effects, expected) = if dies {
            let (now, effects) = (bench.now, &mut bench.effects);
            bench.volume.close_copier(COPIER, now, effects);
            let block = geometry().region_bytes();
            (bench.take(), ChangeError::NotInSync(block))
        } else {
            (bench.after(SECOND), ChangeError::Deadline)
        };
        let failed = Reply::ChangeFailed(expected);
        assert_eq!(answer_of_change(&effects), Some(failed));
        assert!(
            effects.contains(&leg(1, Side::Source, WRITE)),
            "{effects:?}"
        );
    }
}

#[test]
fn without_a_copier_the_rest_is_not_waited_for() {
    let mut bench = tracking();
    write(&mut bench, 0);
    let (now, effects) = (bench.now, &mut bench.effects);
    bench.volume.close_copier(COPIER, now, effects);
    let refused = switch_with_rest(&mut bench).unwrap_err();
    assert!(matches!(refused, ChangeError::NotInSync(_)));
}

#[test]
fn tracking_begins_and_ends_while_writes_are_in_flight() {
    let mut bench = Bench::new(Side::Source);
    let effects = bench.request(0, WRITE, 0);
    let trailing = place(&effects).unwrap();
    bench.leg(0, Side::Source, Ok(()));
    let effects = &mut bench.effects;
    bench.volume.set_copy_mode(CopyMode::Track, effects);
    bench.volume.open_copier(COPIER).unwrap();
    write(&mut bench, 0);
    assert_eq!(claim(&mut bench, 5), []);
    assert_eq!(
        bench.after(PASS_NANOSECONDS),
        [],
        "it is still written on the mirror leg"
    );
    assert_eq!(bench.mirror(trailing, Ok(())), [claimed(5, &[0])]);
    assert_eq!(report(&mut bench, &[0]), []);
    assert_eq!(claim(&mut bench, 6), []);
    // The copier learns that there is nothing left.
    let effects = &mut bench.effects;
    bench.volume.set_copy_mode(CopyMode::Mirror, effects);
    assert_eq!(bench.take(), [claimed(6, &[])]);
    assert!(place(&bench.request(0, WRITE, 0)).is_some());
}

#[test]
fn slowed_writes_keep_their_rate_and_go_on_when_nobody_renews_it() {
    let mut bench = Bench::new(Side::Source);
    let length = BLOCK;
    let (now, until) = (bench.now, bench.now.plus(10 * SECOND));
    // One write a second.
    let effects = &mut bench.effects;
    bench.volume.set_throttle(now, length, until, effects);
    let started = |effects: &[Effect]| {
        let is_leg = |effect: &&Effect| matches!(effect, Effect::Leg { .. });
        effects.iter().filter(is_leg).count()
    };
    assert_eq!(started(&bench.request(0, WRITE, 0)), 1);
    assert_eq!(started(&bench.request(1, WRITE, 1)), 0);
    assert_eq!(
        started(&bench.request(2, Op::Read, 0)),
        1,
        "reads are not slowed"
    );
    let due = bench.volume.next_deadline().unwrap();
    assert!(due.since(bench.now) <= SECOND && due.since(bench.now) >= SECOND * 9 / 10);
    assert_eq!(started(&bench.after(SECOND / 2)), 0);
    assert_eq!(started(&bench.after(SECOND / 2)), 1);
    assert_eq!(bench.volume.throttle(), Some(length));
    // The write waits for longer than the mirror leg may keep it waiting, and no leg is given up.
    let effects = &mut bench.effects;
    bench.volume.set_throttle(bench.now, 1, until, effects);
    bench.leg(0, Side::Source, Ok(()));
    bench.request(0, WRITE, 2);
    assert_eq!(started(&bench.after(SECOND)), 1);
    for place in 0..PLACES as u16 {
        bench.mirror(Place(place), Ok(()));
    }
    assert_eq!(started(&bench.request(3, WRITE, 3)), 0);
    assert_eq!(started(&bench.after(PATIENCE + SECOND)), 0);
    assert_eq!(bench.volume.mirror_fault(), None);
    assert!(bench.volume.next_deadline().unwrap() <= until);
    assert_eq!(started(&bench.after(10 * SECOND)), 1);
    assert_eq!(bench.volume.throttle(), None);
}

#[test]
fn the_pause_counts_what_waited_when_requests_began_to_be_held() {
    let mut bench = tracking();
    let (now, until) = (bench.now, bench.now.plus(100 * SECOND));
    let effects = &mut bench.effects;
    bench.volume.set_throttle(now, BLOCK, until, effects);
    write(&mut bench, 0);
    assert_eq!(bench.request(1, WRITE, 1), [], "it is slowed");
    assert_eq!(claim(&mut bench, 5), []);
    let effects = switch_with_rest(&mut bench).unwrap();
    bench.flush(&effects, Ok(()));
    bench.now = bench.now.plus(SECOND / 2);
    let effects = report(&mut bench, &[0]);
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    let changed = answer_of_change(&effects).unwrap();
    let expected = SECOND / 2;
    assert!(matches!(changed, Reply::RouteChanged { pause, .. } if pause == expected));
}
