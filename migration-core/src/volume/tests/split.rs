//! A target that is detached, as a copy of the source at an instant.

use super::{bench::*, *};

const TO_SOURCE: Route = Route::Mirrored {
    authoritative: Side::Source,
};

/// A volume that has just been split, and holds requests.
fn split() -> Bench {
    let mut bench = Bench::new(Side::Source);
    bench.volume.counters.last_pause = 9;
    let effects = bench.change(Route::Split);
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.flush(&effects, Ok(()));
    let effects = bench.role(&effects);
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::Reply {
            reply: Reply::RouteChanged {
                route: Route::Split,
                ..
            },
            ..
        }
    )));
    bench.role(&effects);
    bench
}

fn resume(bench: &mut Bench) -> (bool, Vec<Effect>) {
    let ended = bench.volume.resume(bench.now, &mut bench.effects);
    (ended == Some(Suspended::SinceSplit), bench.take())
}

#[test]
fn requests_are_held_until_the_volume_is_resumed_and_the_target_is_not_written_any_more() {
    let mut bench = split();
    assert!(bench.volume.is_suspended());
    assert_eq!(bench.request(0, WRITE, 0), []);
    let (held, effects) = resume(&mut bench);
    assert!(held);
    assert_eq!(effects, [leg(0, Side::Source, WRITE)]);
    assert!(!bench.is_clean(0) && bench.is_clean(1));
    assert_eq!(bench.leg(0, Side::Source, Ok(())), [answer(0, Ok(()))]);
    assert_eq!(bench.volume.retry_mirror(), Err(ClaimError::NotMirrored));
    let opened = bench.volume.open_copier(CopierId(1));
    assert_eq!(opened, Err(ClaimError::NotMirrored));
    assert!(!resume(&mut bench).0);
}

#[test]
fn the_pause_of_a_split_is_its_own() {
    let mut bench = split();
    resume(&mut bench);
    assert_eq!(bench.volume.counters().last_pause, 0);
    let mut bench = split();
    bench.request(0, WRITE, 0);
    bench.now = bench.now.plus(5);
    resume(&mut bench);
    assert_eq!(bench.volume.counters().last_pause, 5);
}

#[test]
fn a_split_volume_that_nobody_resumes_resumes_by_itself() {
    let mut bench = split();
    assert_eq!(bench.request(0, WRITE, 0), []);
    let effects = bench.after(1 << 41);
    assert_eq!(effects, [leg(0, Side::Source, WRITE)]);
    assert!(
        !resume(&mut bench).0,
        "a caller that comes too late has to know it"
    );
    // Ending a suspension that was asked for does not count either.
    let now = bench.now;
    let suspended = bench
        .volume
        .suspend(now, Call(7), now.plus(1), &mut bench.effects);
    assert_eq!(suspended, Ok(()));
    bench.take();
    assert!(!resume(&mut bench).0);
}

#[test]
fn only_a_target_that_is_in_sync_is_a_copy() {
    let mut bench = Bench::new(Side::Source);
    bench.volume.differ(block(0));
    let epoch = bench.volume.record().epoch;
    let target = Target::Route(Route::Split);
    let (volume, effects) = (&mut bench.volume, &mut bench.effects);
    let refused = volume.change_route(bench.now, Call(1), epoch, target, 1, effects);
    assert_eq!(refused, Err(ChangeError::NotInSync(REGION)));
    // The target is authoritative: the source is no copy of it.
    let mut bench = Bench::new(Side::Target);
    let (volume, effects) = (&mut bench.volume, &mut bench.effects);
    let refused = volume.change_route(bench.now, Call(1), epoch, target, 1, effects);
    assert_eq!(refused, Err(ChangeError::WrongRoute));
}

#[test]
fn what_was_written_since_the_split_is_dirty_when_the_target_is_mirrored_again() {
    let mut bench = split();
    resume(&mut bench);
    bench.request(0, WRITE, 0);
    bench.leg(0, Side::Source, Ok(()));
    let effects = bench.change(TO_SOURCE);
    let effects = bench.role(&effects);
    bench.role(&effects);
    assert!(!bench.volume.is_suspended());
    assert!(!bench.is_clean(0) && bench.is_clean(1));
    assert!(place(&bench.request(1, WRITE, 2)).is_some());
    assert!(bench.volume.open_copier(CopierId(1)).is_ok());
}

#[test]
fn the_source_that_fails_after_a_split_is_not_replaced_by_the_copy() {
    let mut bench = split();
    resume(&mut bench);
    bench
        .volume
        .set_on_authoritative_failure(OnAuthoritativeFailure::Switch);
    bench.request(0, Op::Read, 1);
    let effects = bench.leg(0, Side::Source, Err(FAULT));
    assert_eq!(effects, [answer(0, Err(FAULT))]);
    bench.request(0, WRITE, 1);
    let effects = bench.leg(0, Side::Source, Err(FAULT));
    assert_eq!(effects, [answer(0, Err(FAULT))]);
    assert_eq!(bench.volume.record().route, Route::Split);
}

#[test]
fn a_new_mirror_leg_is_added_to_a_single_leg_only() {
    let new = Target::AddMirror(NewMirror {
        descriptor_bytes: 1,
        descriptor_crc: 1,
    });
    for mut bench in [split(), Bench::new(Side::Target)] {
        resume(&mut bench);
        let epoch = bench.volume.record().epoch;
        let (volume, effects) = (&mut bench.volume, &mut bench.effects);
        let refused = volume.change_route(bench.now, Call(1), epoch, new, 1, effects);
        assert_eq!(refused, Err(ChangeError::WrongRoute));
    }
}
