//! One example of every event, and what holds for all of them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::options::{CutoverOptions, Hours, SwitchPairs};
use super::super::records::{EventRecord, JSON_SCHEMA, Record};
use super::HistoryEvent as E;
use super::*;
use crate::target::OnAuthoritativeFailure;

/// Makes a function that gives one example for each variant of an enum. A variant without an
/// example is an error of the compiler, because the patterns are the arms of a match.
macro_rules! examples {
    ($name:ident: $enum:ty; $($pattern:pat => $example:expr,)*) => {
        // A table: one row for each variant.
        fn $name() -> Vec<$enum> {
            fn must_have_an_example(value: &$enum) {
                match value {
                    $($pattern => {})*
                }
            }
            let mut all = Vec::new();
            $(
                let example: $enum = $example;
                must_have_an_example(&example);
                assert!(matches!(&example, $pattern), "an example of another variant: {example:?}");
                all.push(example);
            )*
            all
        }
    };
}

fn lun(path: &str) -> LunPaths {
    path.parse().unwrap()
}

fn cause() -> String {
    "no space left on device".to_owned()
}

examples! {
    examples: HistoryEvent;
    E::AttachBegun { .. } => E::AttachBegun {
        lun: lun("/dev/a,/dev/b"),
        identity: "wwn 1".into(),
        weak_identity: vec!["/dev/a".into()],
    },
    E::Attached { .. } => E::Attached { device: "/dev/ublkb3".into() },
    E::AttachFailed { .. } => E::AttachFailed { cause: cause() },
    E::AttachFinished => E::AttachFinished,
    E::DetachBegun => E::DetachBegun,
    E::Detached { .. } => E::Detached { lun: lun("/dev/a") },
    E::NotDetached { .. } => E::NotDetached { cause: cause() },
    E::DetachUnknown { .. } => E::DetachUnknown { cause: cause() },
    E::LunGrown { .. } => E::LunGrown {
        lun: "/dev/a".into(),
        lun_bytes: 8192,
        volume_bytes: 4096,
    },
    E::LunFoundElsewhere { .. } => E::LunFoundElsewhere {
        lun: "/dev/a".into(),
        found: "/dev/c".into(),
    },
    E::LunRecognised { .. } => E::LunRecognised {
        lun: "/dev/a".into(),
        contents: Some("ext4 1234".into()),
    },
    E::LunAccepted { .. } => E::LunAccepted {
        lun: "/dev/a".into(),
        lun_bytes: 4096,
        contents: None,
    },
    E::RouteFound { .. } => E::RouteFound {
        route: Route::Mirrored { authoritative: Side::Target },
        source: Some(lun("/dev/a")),
        target: Some(lun("/dev/b")),
        recorded: lun("/dev/a"),
    },
    E::RouteContradicts { .. } => E::RouteContradicts {
        phase: Phase::Active,
        route: Route::Single { leg: Side::Source },
        source: Some(lun("/dev/a")),
        target: None,
        is_own: true,
    },
    E::DatabaseRebuilt { .. } => E::DatabaseRebuilt { cause: cause() },
    E::VolumeRestored { .. } => E::VolumeRestored {
        older_database: true,
        lun: lun("/dev/a"),
    },
    E::SessionRestored { .. } => E::SessionRestored {
        older_database: false,
        found_session: "found-db".into(),
        source: lun("/dev/a"),
        target: lun("/dev/b"),
        authoritative: Side::Source,
    },
    E::VolumeNotRestored { .. } => E::VolumeNotRestored {
        cause: cause(),
        database: "/var/lib/shunt/shunt.db".into(),
    },
    E::LockFreed { .. } => E::LockFreed {
        lun: "/dev/a".into(),
        holder: "volume db".into(),
    },
    E::RecoverBegun { .. } => E::RecoverBegun {
        leg: Side::Target,
        cause: cause(),
    },
    E::Created { .. } => E::Created {
        source: lun("/dev/a"),
        target: lun("/dev/b"),
        identity: "wwn 2".into(),
        weak_identity: Vec::new(),
        overwrite: true,
    },
    E::VerbBegun { .. } => E::VerbBegun { verb: Verb::Start },
    E::TurnCame => E::TurnCame,
    E::DueVerbRefused { .. } => E::DueVerbRefused {
        verb: Verb::Switch,
        cause: cause(),
    },
    E::VerbFailed { .. } => E::VerbFailed {
        verb: Verb::Commit,
        cause: cause(),
    },
    E::VerbUnknown { .. } => E::VerbUnknown {
        verb: Verb::Cancel,
        cause: cause(),
    },
    E::VerbInterrupted { .. } => E::VerbInterrupted {
        from: Phase::Switching,
        to: Phase::Active,
        authoritative: Side::Target,
    },
    E::Queued { .. } => E::Queued { pairs_max: 4 },
    E::QueuedForHours { .. } => E::QueuedForHours {
        from_minute: 1320,
        to_minute: 360,
    },
    E::Started { .. } => E::Started { target: lun("/dev/b") },
    E::NotStarted { .. } => E::NotStarted { cause: cause() },
    E::InSync { .. } => E::InSync {
        copied_bytes: 1 << 30,
        took_ms: Some(4000),
        expected_seconds: Some(5),
    },
    E::Paused => E::Paused,
    E::Resumed => E::Resumed,
    E::MaxDurationOver { .. } => E::MaxDurationOver { max_duration_seconds: 3600 },
    E::HoursOver { .. } => E::HoursOver {
        from_minute: 1320,
        to_minute: 360,
    },
    E::CopierBlocked { .. } => E::CopierBlocked {
        task: CopierTask::Copy,
        retried: None,
        cause: cause(),
    },
    E::CopierLegFailed { .. } => E::CopierLegFailed {
        task: CopierTask::Copy,
        leg: Side::Source,
        retried: true,
        cause: cause(),
    },
    E::CopierFailed { .. } => E::CopierFailed {
        task: CopierTask::Compare,
        retried: false,
        cause: cause(),
    },
    E::Unreadable { .. } => E::Unreadable {
        offset_bytes: 4096,
        length_bytes: 512,
    },
    E::TargetAnswers => E::TargetAnswers,
    E::TargetCaughtUp => E::TargetCaughtUp,
    E::LegsInDoubt { .. } => E::LegsInDoubt {
        authoritative: Side::Source,
        cause: cause(),
    },
    E::CompareBegun => E::CompareBegun,
    E::Compared { .. } => E::Compared {
        compared_bytes: 1 << 30,
        differing_bytes: 4096,
        first_difference_bytes: Some(8192),
        unknown_bytes: 512,
        repaired: false,
        cause: Some(cause()),
    },
    E::RoleMoved { .. } => E::RoleMoved {
        from: Side::Source,
        to: Side::Target,
        epoch: Some(4),
        held_us: Some(3034),
        expected_us: Some(4000),
    },
    E::RoleMovedBack { .. } => E::RoleMovedBack {
        to: Side::Source,
        held_us: None,
    },
    E::RoleNotMoved { .. } => E::RoleNotMoved {
        to: Side::Target,
        cause: cause(),
    },
    E::FailedOver { .. } => E::FailedOver {
        from: Side::Target,
        to: Side::Source,
        cause: cause(),
    },
    E::AuthoritativeFound { .. } => E::AuthoritativeFound { to: Side::Target },
    E::Ended { .. } => E::Ended {
        leg: Side::Target,
        lun: lun("/dev/b"),
        freed: lun("/dev/a"),
    },
    E::CopyUnknown { .. } => E::CopyUnknown { target: lun("/dev/b") },
    E::Split { .. } => E::Split {
        source: lun("/dev/a"),
        target: lun("/dev/b"),
        copy_of_at_ms: 1_763_687_825_123,
        held_us: Some(900),
    },
    E::NotSplit { .. } => E::NotSplit { cause: cause() },
    E::MirroredAgain { .. } => E::MirroredAgain { full_copy_cause: Some(cause()) },
    E::NotMirroredAgain { .. } => E::NotMirroredAgain { cause: cause() },
    E::MirroredAgainUnknown { .. } => E::MirroredAgainUnknown { cause: cause() },
    E::CutoverBegun { .. } => E::CutoverBegun { max_pause_ms: 500 },
    E::CutoverRequestedAgain { .. } => E::CutoverRequestedAgain { max_pause_ms: 700 },
    E::CutoverSlowsWrites { .. } => E::CutoverSlowsWrites {
        write_bytes_per_second: 20 << 20,
        copy_bytes_per_second: 10 << 20,
        predicted_pause_us: Some(900_000),
    },
    E::CutoverHoldsRequests { .. } => E::CutoverHoldsRequests {
        hold_max_ms: 500,
        write_bytes_per_second: 5 << 20,
        unslowed_bytes_per_second: Some(20 << 20),
        copy_bytes_per_second: 10 << 20,
    },
    E::CutoverGaveUp { .. } => E::CutoverGaveUp {
        misfit: Some(CutoverMisfit::Floor),
        max_pause_us: 500_000,
        floor_bytes_per_second: 1 << 20,
        duration_seconds: 120,
    },
    E::CutoverStopped { .. } => E::CutoverStopped {
        pair_volume: "db".into(),
        pair_state: PairState::Paused,
    },
    E::Retired { .. } => E::Retired {
        leg: Side::Source,
        lun: lun("/dev/a"),
        how: RetireHow::WipeSignatures,
        blocks: Some(3),
    },
    E::NotRetired { .. } => E::NotRetired { cause: cause() },
    E::RetireInterrupted { .. } => E::RetireInterrupted { lun: lun("/dev/a") },
    E::RetireTakenBack { .. } => E::RetireTakenBack {
        leg: Side::Source,
        lun: lun("/dev/a"),
    },
    E::LimitsSet { .. } => E::LimitsSet {
        changes: limit_changes(),
    },
    E::PairsMaxSet { .. } => E::PairsMaxSet { pairs_max: 5 },
    E::SwitchPolicySet { .. } => E::SwitchPolicySet {
        verb: Verb::Split,
        policy: SwitchPolicy::At(1_763_687_825_123),
        mode: SessionMode::Copy,
    },
    E::Signalled { .. } => E::Signalled {
        signal: "backup-done".into(),
        mode: SessionMode::Mirror,
    },
    E::StateChanged { .. } => E::StateChanged { state: "syncing".into() },
    E::Unknown => E::Unknown,
}

examples! {
    limit_changes: LimitChange;
    LimitChange::RateBytesPerSecond(_) => LimitChange::RateBytesPerSecond(1 << 20),
    LimitChange::Priority(_) => LimitChange::Priority(7),
    LimitChange::OnAuthoritativeFailure(_) => {
        LimitChange::OnAuthoritativeFailure(OnAuthoritativeFailure::Switch)
    },
    LimitChange::Switch { .. } => LimitChange::Switch {
        policy: SwitchPolicy::At(1_763_687_825_123),
        mode: SessionMode::Track,
    },
    LimitChange::MaxLatencyImpactPercent(_) => LimitChange::MaxLatencyImpactPercent(20),
    LimitChange::AcceptUnreadableBytes(_) => LimitChange::AcceptUnreadableBytes(512),
    LimitChange::Mode(_) => LimitChange::Mode(SessionMode::Track),
    LimitChange::EverySeconds(_) => LimitChange::EverySeconds(60),
    LimitChange::Hours(_) => LimitChange::Hours(Hours { from_minute: 1, to_minute: 2 }),
    LimitChange::StartAtMs(_) => LimitChange::StartAtMs(1_763_687_825_123),
    LimitChange::SwitchPairs(_) => LimitChange::SwitchPairs(SwitchPairs::Each),
    LimitChange::MaxDurationSeconds(_) => LimitChange::MaxDurationSeconds(3600),
    LimitChange::Cutover(_) => LimitChange::Cutover(CutoverOptions::default()),
}

fn record(event: HistoryEvent) -> EventRecord {
    EventRecord {
        schema: JSON_SCHEMA,
        cursor: "a-7-1".parse().unwrap(),
        at_ms: 1_763_687_825_123,
        session: Some("night".into()),
        volume: Some("db".into()),
        who: Some(0),
        event,
    }
}

/// The JSON of an event, as an object.
fn object(event: &HistoryEvent) -> Map<String, Value> {
    let value = serde_json::to_value(event).unwrap();
    value.as_object().unwrap().clone()
}

#[test]
fn every_event_is_read_as_it_was_written_alone_and_in_a_record() {
    for event in examples() {
        let text = serde_json::to_string(&event).unwrap();
        let read: HistoryEvent = serde_json::from_str(&text).unwrap();
        assert_eq!(read, event, "{text}");
        let record = Record::Event(record(event));
        let text = serde_json::to_string(&record).unwrap();
        let read: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(read, record, "{text}");
    }
}

#[test]
fn no_two_events_share_a_code_and_no_field_hides_one_of_the_record() {
    let mut codes = BTreeSet::new();
    let alone = serde_json::to_value(Record::Event(record(HistoryEvent::Paused))).unwrap();
    // `shunt --json` adds the sentence.
    let taken: BTreeSet<&str> = alone
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .chain(["what"])
        .collect();
    for event in examples() {
        let fields = object(&event);
        let code = fields["code"].as_str().unwrap().to_owned();
        assert!(codes.insert(code.clone()), "{code} stands for two events");
        for field in fields.keys().filter(|field| *field != "code") {
            assert!(!taken.contains(field.as_str()), "{code}: {field}");
            let is_snake_case = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(field.chars().all(is_snake_case), "{code}: {field}");
        }
    }
}

#[test]
fn an_unknown_code_is_read_as_unknown_and_an_unknown_field_is_ignored() {
    let text = json!({
        "type": "event",
        "schema": JSON_SCHEMA,
        "at_ms": 1,
        "cursor": "a-7-1",
        "session": null,
        "volume": "db",
        "who": null,
        "code": "teleported",
        "to": {"planet": 4},
    });
    let read: Record = serde_json::from_value(text).unwrap();
    let Record::Event(read) = read else {
        panic!("{read:?}");
    };
    assert_eq!(read.event, HistoryEvent::Unknown);
    assert_eq!(read.volume.as_deref(), Some("db"));
    let newer = json!({"code": "pairs_max_set", "pairs_max": 5, "hosts": 2});
    let read: HistoryEvent = serde_json::from_value(newer).unwrap();
    assert_eq!(read, HistoryEvent::PairsMaxSet { pairs_max: 5 });
    // Of a known code, but with a value that is not known.
    let newer = json!({"code": "verb_begun", "verb": "teleport"});
    let read: HistoryEvent = serde_json::from_value(newer).unwrap();
    assert_eq!(read, HistoryEvent::Unknown);
}

#[test]
fn the_page_about_the_history_has_every_code_with_its_fields() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/history.md");
    let page = std::fs::read_to_string(page).unwrap();
    let row = |code: &str| {
        let start = format!("| `{code}` |");
        page.lines().find(|line| line.starts_with(&start))
    };
    for event in examples() {
        let fields = object(&event);
        let code = fields["code"].as_str().unwrap();
        let row = row(code).unwrap_or_else(|| panic!("docs/history.md has no row for {code}"));
        for field in fields.keys().filter(|field| *field != "code") {
            let named = row.contains(&format!("`{field}`"));
            assert!(named, "docs/history.md: {code} lacks the field {field}");
        }
    }
    for change in limit_changes() {
        let change = serde_json::to_value(change).unwrap();
        let name = change.as_object().unwrap().keys().next().unwrap().clone();
        assert!(
            page.contains(&format!("`{name}`")),
            "docs/history.md: {name}"
        );
    }
}

#[test]
fn a_role_moved_with_exactly_these_events() {
    let moved = |event: HistoryEvent| Some((object(&event)["code"].clone(), event.moved_to()?));
    let moved: Vec<(Value, Side)> = examples().into_iter().filter_map(moved).collect();
    let expected = [
        ("verb_interrupted", Side::Target),
        ("role_moved", Side::Target),
        ("role_moved_back", Side::Source),
        ("failed_over", Side::Source),
        ("authoritative_found", Side::Target),
    ];
    assert_eq!(moved, expected.map(|(code, side)| (json!(code), side)));
    let interrupted = |from, authoritative| HistoryEvent::VerbInterrupted {
        from,
        to: Phase::Active,
        authoritative,
    };
    assert_eq!(interrupted(Phase::Switching, Side::Source).moved_to(), None);
    assert_eq!(interrupted(Phase::Starting, Side::Source).moved_to(), None);
    let failed_over = interrupted(Phase::Committing, Side::Source);
    assert_eq!(failed_over.moved_to(), Some(Side::Source));
    let failed_over = interrupted(Phase::Cancelling, Side::Target);
    assert_eq!(failed_over.moved_to(), Some(Side::Target));
    let undone = interrupted(Phase::Undoing, Side::Source);
    assert_eq!(undone.moved_to(), Some(Side::Source));
}

#[test]
fn requests_were_held_by_exactly_these_events() {
    let held = |event: HistoryEvent| Some((object(&event)["code"].clone(), event.held_us()?));
    let held: Vec<(Value, u64)> = examples().into_iter().filter_map(held).collect();
    assert_eq!(held, [(json!("role_moved"), 3034), (json!("split"), 900)]);
}
