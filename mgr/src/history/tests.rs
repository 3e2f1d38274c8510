use migration_core::pair::{PairState, Phase, Verb};
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    CopierTask, CutoverMisfit, CutoverOptions, Hours, LimitChange, SessionMode,
};
use migration_proto::route::{Route, Side};

use super::HistoryEvent as E;
use super::*;

fn lun(path: &str) -> LunPaths {
    path.parse().unwrap()
}

fn cause() -> String {
    "an error".to_owned()
}

fn reads(event: HistoryEvent, expected: &str) {
    assert_eq!(sentence(&event, Some("night"), Some("db")), expected);
}

#[test]
fn the_sentences_about_moved_roles_have_the_pause_and_the_estimate_if_there_are_any() {
    let moved = |held_us, expected_us| E::RoleMoved {
        from: Side::Source,
        to: Side::Target,
        epoch: Some(4),
        held_us,
        expected_us,
    };
    reads(moved(None, None), "the target is authoritative");
    reads(
        moved(Some(3034), None),
        "the target is authoritative, requests were held for 3.034 ms",
    );
    reads(
        moved(Some(12_000), Some(4000)),
        "the target is authoritative, requests were held for 12.000 ms (`shunt plan` said 4.0 ms)",
    );
    let back = E::RoleMovedBack {
        to: Side::Source,
        held_us: Some(1),
    };
    reads(
        back,
        "went back: the source is authoritative, requests were held for 0.001 ms",
    );
    let failed_over = E::FailedOver {
        from: Side::Target,
        to: Side::Source,
        cause: cause(),
    };
    reads(
        failed_over,
        "the target failed, and the source has become authoritative automatically; now an error",
    );
    let split = E::Split {
        source: lun("/dev/a"),
        target: lun("/dev/b,/dev/c"),
        copy_of_at_ms: 1_763_687_825_999,
        held_us: Some(900),
    };
    reads(
        split,
        "/dev/b,/dev/c is a copy of /dev/a as of 2025-11-21 01:17:05Z, requests were held for 0.900 ms",
    );
}

#[test]
fn the_sentences_about_copies_say_what_is_known_and_what_follows() {
    let in_sync = |took_ms, expected_seconds| E::InSync {
        copied_bytes: 4096,
        took_ms,
        expected_seconds,
    };
    let begin = "in sync; 4096 bytes were copied since the start";
    reads(in_sync(None, None), begin);
    reads(in_sync(Some(61_500), None), &format!("{begin}, in 1m 01s"));
    reads(
        in_sync(Some(4000), Some(5)),
        &format!("{begin}, in 4s (`shunt plan` said 5s)"),
    );
    let blocked = |retried| E::CopierBlocked {
        task: CopierTask::Copy,
        retried,
        cause: cause(),
    };
    reads(blocked(None), "the copy is blocked: an error");
    let retried = "the copy is blocked, and is retried: an error";
    reads(blocked(Some(true)), retried);
    let failed = E::CopierLegFailed {
        task: CopierTask::Compare,
        leg: Side::Target,
        retried: false,
        cause: cause(),
    };
    let expected = "the comparison failed on the target, and is over: an error";
    reads(failed, expected);
    let broken = E::CopierFailed {
        task: CopierTask::Copy,
        retried: true,
        cause: cause(),
    };
    let expected = "the copier failed, and the copy is retried: an error";
    reads(broken, expected);
    let compared = |first_difference_bytes, repaired, unknown_bytes, cause| E::Compared {
        compared_bytes: 8192,
        differing_bytes: 512,
        first_difference_bytes,
        unknown_bytes,
        repaired,
        cause,
    };
    reads(
        compared(None, false, 0, None),
        "verify: 8192 bytes compared, nothing differs",
    );
    reads(
        compared(Some(4096), true, 512, None),
        "verify: 512 of 8192 bytes differed, the first at 4096; they are copied again; 512 bytes could not be compared",
    );
    reads(
        compared(Some(4096), false, 512, Some(cause())),
        "verify: 512 of 8192 bytes differed, the first at 4096; they are copied again, and no role moves before `shunt verify \
         night` finds nothing; 512 bytes could not be compared (an error)",
    );
}

#[test]
fn the_sentences_about_routes_name_the_legs_and_the_next_command() {
    let contradicts = |route, is_own| E::RouteContradicts {
        phase: Phase::Active,
        route,
        source: Some(lun("/dev/a")),
        target: Some(lun("/dev/b")),
        is_own,
    };
    reads(
        contradicts(Route::Single { leg: Side::Target }, true),
        "it is recorded as active, but the volume uses /dev/b alone: `shunt commit night` ends it",
    );
    let elsewhere = contradicts(Route::Split, false);
    reads(
        elsewhere,
        &format!(
            "it is recorded as active, but the volume is on /dev/a, and split from its target /dev/b: {REBUILD}"
        ),
    );
    let found = E::RouteFound {
        route: Route::Mirrored {
            authoritative: Side::Source,
        },
        source: Some(lun("/dev/a")),
        target: None,
        recorded: lun("/dev/c"),
    };
    reads(
        found,
        "found: the volume is mirrored, /dev/a to no LUN, and the source is authoritative, but the database has recorded /dev/c \
         alone: the database is older than the map file",
    );
    let restored = E::VolumeRestored {
        older_database: true,
        lun: lun("/dev/a"),
    };
    let expected = "the database is older than the map file: restored: it uses /dev/a alone";
    reads(restored, expected);
    let ended = E::Ended {
        leg: Side::Target,
        lun: lun("/dev/b"),
        freed: lun("/dev/a"),
    };
    let expected = "db is on /dev/b alone; /dev/a is no longer used";
    reads(ended, expected);
}

#[test]
fn the_sentences_about_cutovers_have_the_measured_rates() {
    let slows = |predicted_pause_us| E::CutoverSlowsWrites {
        write_bytes_per_second: 20 << 20,
        copy_bytes_per_second: 10 << 20,
        predicted_pause_us,
    };
    let begin = "the cutover slows writes: applications write 20.00 MiB/s, the copier can copy 10.00 MiB/s, and requests would be held for";
    reads(slows(None), &format!("{begin} an unknown time"));
    reads(slows(Some(1_500)), &format!("{begin} 1.5 ms"));
    let holds = E::CutoverHoldsRequests {
        hold_max_ms: 500,
        write_bytes_per_second: 1 << 20,
        unslowed_bytes_per_second: Some(20 << 20),
        copy_bytes_per_second: 10 << 20,
    };
    reads(
        holds,
        "the cutover holds requests for 500.0 ms at most; applications write 1.00 MiB/s (20.00 MiB/s before), the copier can copy \
         10.00 MiB/s",
    );
    let gave_up = E::CutoverGaveUp {
        misfit: Some(CutoverMisfit::Duration),
        max_pause_us: 500_000,
        floor_bytes_per_second: 1 << 20,
        duration_seconds: 120,
    };
    reads(
        gave_up,
        "the cutover is over, the source stays authoritative: writes were slowed for 2m 00s, and what was left did not fit a pause \
         of 500.0 ms; next: `shunt switch night` with another --max-pause, or at a quieter time",
    );
    let stopped = E::CutoverStopped {
        pair_volume: "db".into(),
        pair_state: PairState::Paused,
    };
    reads(
        stopped,
        "the cutover is over, the source stays authoritative: the pair of volume db is paused; next: `shunt status night`",
    );
}

#[test]
fn the_sentences_about_limits_say_what_holds_now() {
    let changes = vec![
        LimitChange::RateBytesPerSecond(0),
        LimitChange::Priority(7),
        LimitChange::Switch {
            policy: SwitchPolicy::At(1_763_687_825_000),
            mode: SessionMode::Copy,
        },
        LimitChange::Hours(Hours {
            from_minute: 22 * 60,
            to_minute: 6 * 60 + 5,
        }),
        LimitChange::MaxDurationSeconds(3600),
        LimitChange::Cutover(CutoverOptions::default()),
    ];
    reads(
        E::LimitsSet { changes },
        "set: the copy has no limit, its priority is 7, it is split as soon as it is in sync, not before 2025-11-21 01:17:05Z, \
         it is copied from 22:00 to 06:05 only, it is paused if it is not in sync 1h 00m after its start, from the next `shunt \
         switch` on: 3 attempts, writes are slowed for 120 s at most and not below 1048576 bytes a second, then retry",
    );
    let policy = E::SwitchPolicySet {
        verb: Verb::Undo,
        policy: SwitchPolicy::Manual,
        mode: SessionMode::Mirror,
    };
    reads(policy, "undo: it is switched when the operator says so");
    let signalled = E::Signalled {
        signal: "backup-done".into(),
        mode: SessionMode::Mirror,
    };
    let expected = "signal backup-done: it is switched as soon as it is in sync";
    reads(signalled, expected);
}
