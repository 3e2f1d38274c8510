use std::path::PathBuf;

use lun::{FileId, Identity, Kind};
use migration_core::pair::Phase;
use migration_proto::manager::{
    HistoryEvent, RetireHow, SessionOptions, UnreadablePart, Verification,
};
use migration_proto::target::OnAuthoritativeFailure;

use super::*;

fn lun_row(inode: u64) -> LunRow {
    LunRow {
        path: PathBuf::from(format!("/luns/{inode}")),
        identity: Identity {
            kind: Kind::RegularFile,
            size_bytes: 1 << 20,
            logical_block_bytes: 512,
            wwn: None,
            serial: None,
            partition_uuid: None,
            partition_number: None,
            partition_start_bytes: None,
            file: Some(FileId { device: 1, inode }),
            file_offset_bytes: None,
            dm_uuid: None,
        },
        seen: None,
    }
}

fn leg_row(inode: u64) -> LegRow {
    LegRow::new(vec![lun_row(inode), lun_row(inode + 100)]).unwrap()
}

fn lock(inode: u64, holder: &str) -> Lock {
    let lun = lun_row(inode);
    Lock {
        key: lock_key(&lun),
        path: lun.path,
        holder: holder.to_owned(),
    }
}

fn volume(name: &str, inode: u64) -> VolumeRow {
    VolumeRow {
        name: name.to_owned(),
        volume_id: format!("id-{name}"),
        state: VolumeState::Attaching,
        leg: leg_row(inode),
        size_bytes: 1 << 20,
        logical_block_bytes: 512,
        open_map: None,
    }
}

fn pair(volume: &str, target: u64) -> PairRow {
    PairRow {
        volume: volume.to_owned(),
        source: leg_row(1),
        target: leg_row(target),
        target_contents: "word".to_owned(),
        size_bytes: 1 << 20,
        phase: Phase::Setup,
        authoritative: Side::Source,
        copied_bytes: 0,
        last_pause_us: None,
        problem: None,
        unreadable: vec![UnreadablePart {
            offset_bytes: 4096,
            length_bytes: 512,
        }],
        copy_of: Some(CopyOf {
            at_ms: 99,
            sealed: Some(Sealed {
                boot_id: "b".to_owned(),
                changes: Some(7),
                fingerprint: 8,
            }),
        }),
        progress: Progress {
            estimate: Some(Estimate {
                at_ms: 1,
                copy_seconds: 2,
                pause_us: 3,
            }),
            begun_ms: Some(4),
            in_sync_ms: None,
            switched_ms: Some(5),
        },
        retired: Some(Retired {
            how: RetireHow::WipeSignatures,
            saved: vec![vec![lun::Saved {
                offset_bytes: 4096,
                contents: "00ff".into(),
            }]],
        }),
        verification: Some(Verification {
            at_ms: 1_700_000_000_001,
            compared_bytes: 1 << 20,
            differing_bytes: 4096,
            first_difference_bytes: Some(0),
            unknown_bytes: 0,
            repaired: true,
        }),
    }
}

fn session(name: &str, pairs: Vec<PairRow>) -> SessionRow {
    SessionRow {
        name: name.to_owned(),
        id: format!("id-{name}"),
        created_at_ms: 1_700_000_000_000,
        options: SessionOptions {
            detect_zeroes: true,
            on_authoritative_failure: OnAuthoritativeFailure::Switch,
            ..SessionOptions::default()
        },
        paused: false,
        pairs,
    }
}

fn key(session: &str) -> PairKey {
    PairKey {
        session: session.to_owned(),
        position: 0,
    }
}

/// A session with one pair.
pub(super) fn with_session(store: &mut Store, name: &str) {
    let changes = [
        Change::AddVolume(volume("db", 1)),
        Change::AddSession(session(name, vec![pair("db", 2)])),
    ];
    store.apply(&changes).unwrap();
}

pub(super) fn opened() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("shunt.db")).unwrap();
    (directory, store)
}

/// Every kind of change that a model keeps.
fn changes() -> Vec<Change> {
    vec![
        Change::AddVolume(volume("db", 1)),
        Change::Lock(lock(1, "volume db")),
        Change::SetVolumeState("db".into(), VolumeState::Attached),
        Change::SetVolumeLeg("db".into(), leg_row(5)),
        Change::SetOpenMap(
            "db".into(),
            OpenMapRow {
                kernel_device: "/dev/ublkb0".into(),
                boot_id: "b".into(),
                leg: "/luns/5".parse().unwrap(),
            },
        ),
        Change::AddVolume(volume("gone", 9)),
        Change::RemoveVolume("gone".into()),
        Change::AddSession(session("s1", vec![pair("db", 2)])),
        Change::SetPaused("s1".into(), true),
        Change::SetOptions(
            "s1".into(),
            SessionOptions {
                rate_bytes_per_second: 5 << 20,
                priority: 90,
                ..SessionOptions::default()
            },
        ),
        Change::SetPairsMax(9),
        Change::SetPairsMax(2),
        Change::SetPair(key("s1"), PairField::Phase(Phase::Active)),
        Change::SetPair(key("s1"), PairField::Authoritative(Side::Target)),
        Change::SetPair(key("s1"), PairField::CopiedBytes(77)),
        Change::SetPair(key("s1"), PairField::Retired(None)),
        Change::SetPair(key("s1"), PairField::CopyOf(None)),
        Change::SetPair(key("s1"), PairField::Unreadable(Vec::new())),
        Change::SetPair(key("s1"), PairField::LastPause(88)),
        Change::SetPair(key("s1"), PairField::Problem(Some("slow".into()))),
        Change::MoveLock(lock(1, "the source of db")),
        Change::Unlock(lock(1, "").key),
        Change::Note(Note {
            at_ms: 5,
            session: Some("s1".into()),
            volume: None,
            event: HistoryEvent::Paused,
            who: None,
            cursor: None,
        }),
    ]
}

#[test]
fn model_and_database_stay_equal_and_survive_a_reopen() {
    let (directory, mut store) = opened();
    let mut model = Model::default();
    for change in changes() {
        store.apply(std::slice::from_ref(&change)).unwrap();
        model.apply(change.clone());
        assert_eq!(store.load().unwrap(), model, "after {change:?}");
    }
    drop(store);
    let store = Store::open(&directory.path().join("shunt.db")).unwrap();
    assert_eq!(store.load().unwrap(), model);
    assert_eq!(store.history(None, 10).unwrap().len(), 1);
}

#[test]
fn all_changes_happen_or_none() {
    let (_directory, mut store) = opened();
    let error = store
        .apply(&[
            Change::AddVolume(volume("db", 1)),
            Change::SetPaused("nobody".into(), true),
        ])
        .unwrap_err();
    assert!(matches!(error, StoreError::Missing(_)), "{error}");
    assert_eq!(store.load().unwrap(), Model::default());
}

#[test]
fn a_lun_is_locked_once_and_the_holder_is_named() {
    let (_directory, mut store) = opened();
    store.apply(&[Change::Lock(lock(1, "volume db"))]).unwrap();
    let error = store
        .apply(&[Change::Lock(lock(1, "volume other"))])
        .unwrap_err();
    assert_eq!(error.to_string(), "/luns/1 is in use already: volume db");
    assert_eq!(
        store.lock_of(&lock(1, "").key).unwrap().unwrap().holder,
        "volume db"
    );
    store
        .apply(&[
            Change::Unlock(lock(1, "").key),
            Change::Lock(lock(1, "volume other")),
        ])
        .unwrap();
}

#[test]
fn a_volume_is_in_one_live_session() {
    let (_directory, mut store) = opened();
    store
        .apply(&[Change::AddSession(session("s1", vec![pair("db", 2)]))])
        .unwrap();
    assert!(
        store
            .apply(&[Change::AddSession(session("s2", vec![pair("db", 3)]))])
            .is_err()
    );
    store
        .apply(&[Change::SetPair(
            key("s1"),
            PairField::Phase(Phase::Cancelled),
        )])
        .unwrap();
    store
        .apply(&[Change::AddSession(session("s2", vec![pair("db", 3)]))])
        .unwrap();
}

#[test]
fn an_ended_session_makes_room_for_its_name_and_a_live_one_does_not() {
    let (_directory, mut store) = opened();
    let note = |event| {
        Change::Note(Note {
            at_ms: 1,
            session: Some("s1".into()),
            volume: None,
            event,
            who: None,
            cursor: None,
        })
    };
    store
        .apply(&[
            Change::AddSession(session("s1", vec![pair("db", 2)])),
            note(HistoryEvent::Paused),
        ])
        .unwrap();
    assert!(
        store
            .apply(&[Change::AddSession(session("s1", vec![pair("other", 3)]))])
            .is_err()
    );
    store
        .apply(&[Change::SetPair(
            key("s1"),
            PairField::Phase(Phase::Committed),
        )])
        .unwrap();
    store
        .apply(&[
            Change::AddSession(session("s1", vec![pair("other", 3)])),
            note(HistoryEvent::Resumed),
        ])
        .unwrap();
    assert_eq!(
        store.load().unwrap().sessions["s1"].pairs[0].volume,
        "other"
    );
    let events: Vec<HistoryEvent> = store
        .history(Some("s1"), 10)
        .unwrap()
        .into_iter()
        .map(|note| note.event)
        .collect();
    assert_eq!(events, [HistoryEvent::Paused, HistoryEvent::Resumed]);
}

#[test]
fn history_gives_the_last_lines_in_order_and_of_one_session() {
    let (_directory, mut store) = opened();
    for (at_ms, session) in [(1, "a"), (2, "b"), (3, "a")] {
        let note = Note {
            at_ms,
            session: Some(session.into()),
            volume: None,
            event: HistoryEvent::Paused,
            who: (session == "b").then_some(1000),
            cursor: None,
        };
        store.apply(&[Change::Note(note)]).unwrap();
    }
    let times = |session, lines_max| -> Vec<u64> {
        store
            .history(session, lines_max)
            .unwrap()
            .into_iter()
            .map(|note| note.at_ms)
            .collect()
    };
    assert_eq!(times(None, 2), [2, 3]);
    assert_eq!(times(Some("a"), 10), [1, 3]);
}

#[test]
fn the_lines_of_a_session_are_found_without_reading_those_of_others() {
    let (_directory, store) = opened();
    for order in ["ORDER BY id", "ORDER BY id DESC"] {
        let plan = format!(
            "EXPLAIN QUERY PLAN {}",
            super::history::select(Some("a"), order)
        );
        let plan: String = store
            .connection
            .query_row(&plan, rusqlite::params![0, 10, "a"], |row| row.get(3))
            .unwrap();
        assert!(plan.contains("history_session"), "{plan}");
    }
}

#[test]
fn the_history_continues_after_a_place_or_says_why_what_followed_is_not_known() {
    let (_directory, mut store) = opened();
    let begin = store.history_end().unwrap();
    assert_eq!((begin.line, begin.at_ms), (0, 0));
    let places: Vec<Cursor> = [(10, "a"), (20, "b"), (30, "a")]
        .into_iter()
        .map(|(at_ms, session)| {
            let mut changes = [Change::Note(Note {
                at_ms,
                session: Some(session.into()),
                volume: None,
                event: HistoryEvent::Paused,
                who: None,
                cursor: None,
            })];
            store.apply_and_place(&mut changes).unwrap();
            let [Change::Note(note)] = changes else {
                unreachable!()
            };
            note.cursor.unwrap()
        })
        .collect();
    let after = |store: &Store, place: &Cursor, session| {
        let found = store.history_after(place, session, 2).unwrap()?;
        Ok(found.into_iter().map(|note| note.at_ms).collect())
    };
    let lines = |lines: &[u64]| Ok(lines.to_vec());
    assert_eq!(after(&store, &begin, None), lines(&[10, 20]), "two at most");
    assert_eq!(after(&store, &places[0], None), lines(&[20, 30]));
    assert_eq!(after(&store, &places[0], Some("a")), lines(&[30]));
    assert_eq!(after(&store, &places[2], None), lines(&[]));
    assert_eq!(store.history_end().unwrap(), places[2]);

    let other = Cursor {
        history: "0".into(),
        ..places[0].clone()
    };
    assert_eq!(after(&store, &other, None), Err(Lost::OtherHistory));
    let never = Cursor {
        line: 4,
        ..places[2].clone()
    };
    assert_eq!(after(&store, &never, None), Err(Lost::OlderDatabase));
    let replaced = Cursor {
        at_ms: 21,
        ..places[1].clone()
    };
    assert_eq!(after(&store, &replaced, None), Err(Lost::OlderDatabase));
    store
        .connection
        .execute("DELETE FROM history WHERE id <= 2", [])
        .unwrap();
    assert_eq!(after(&store, &begin, None), Err(Lost::TooOld));
    assert_eq!(after(&store, &places[1], None), Err(Lost::TooOld));
    assert_eq!(after(&store, &places[2], None), lines(&[]));

    let (_directory, another) = opened();
    let begin_of_another = another.history_end().unwrap();
    assert_ne!(begin_of_another.history, begin.history);
}

#[test]
fn a_row_that_this_program_did_not_write_is_refused() {
    let (_directory, mut store) = opened();
    store
        .apply(&[Change::AddSession(session("s1", vec![pair("db", 2)]))])
        .unwrap();
    store
        .connection
        .execute("UPDATE pairs SET phase = 'dancing'", [])
        .unwrap();
    let error = store.load().unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Unreadable {
                column: "pairs.phase",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shunt.db");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(Store::open(&path).is_err());
}

#[test]
fn a_leg_is_whole_luns_end_to_end_of_which_the_last_may_be_longer() {
    const MIB: u64 = 1 << 20;
    let leg = leg_row(1);
    let layout = leg.layout(MIB + 4096);
    let lengths: Vec<u64> = layout
        .extents
        .iter()
        .map(|extent| extent.length_bytes)
        .collect();
    assert_eq!(lengths, [MIB, 4096]);
    assert!(leg.is(&layout) && !leg_row(2).is(&layout));
    assert_eq!(LegRow::of(&layout), Some(leg.clone()));
    assert_eq!(leg.to_string(), "/luns/1,/luns/101");
    let held: Vec<String> = leg.locks("x").into_iter().map(|lock| lock.key).collect();
    assert_eq!(held, [lock_key(&lun_row(1)), lock_key(&lun_row(101))]);
    let mut other = layout.clone();
    other.extents[0].length_bytes -= 512;
    assert_eq!(LegRow::of(&other), None);
    let mut other = layout;
    other.extents[1].start_bytes = 512;
    assert_eq!(LegRow::of(&other), None);
}

#[test]
fn what_tells_a_lun_without_a_name_from_others_is_recorded_wherever_the_lun_is() {
    let mut nameless = lun_row(1);
    nameless.identity.file = None;
    let seen = Seen {
        boot_id: "a".into(),
        disk_sequence: 7,
        size_bytes: 1 << 20,
        contents: Some("ext4 u-1".into()),
    };
    nameless.seen = Some(seen.clone());
    let leg = LegRow::new(vec![nameless.clone(), lun_row(2)]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(&directory.path().join("shunt.db")).unwrap();
    let mut volume = volume("db", 9);
    volume.leg = leg.clone();
    let mut session = session("s1", vec![pair("db", 2)]);
    session.pairs[0].target = leg;
    store
        .apply(&[Change::AddVolume(volume), Change::AddSession(session)])
        .unwrap();
    let mut model = store.load().unwrap();
    let now = Seen {
        boot_id: "b".into(),
        disk_sequence: 3,
        ..seen.clone()
    };
    for path in [&nameless.path, &lun_row(2).path] {
        let change = Change::SetSeen(path.clone(), now.clone());
        store.apply(std::slice::from_ref(&change)).unwrap();
        model.apply(change);
    }
    assert_eq!(store.load().unwrap(), model);
    let pair = &model.sessions["s1"].pairs[0];
    for leg in [&model.volumes["db"].leg, &pair.target] {
        let seen: Vec<Option<&Seen>> = leg.luns().iter().map(|lun| lun.seen.as_ref()).collect();
        assert_eq!(seen, [Some(&now), None], "one with a name needs none");
    }
}

#[test]
fn partitions_of_one_disk_have_locks_of_their_own() {
    let partition = |number| {
        let mut lun = lun_row(1);
        lun.identity.file = None;
        lun.identity.wwn = Some("naa.6".into());
        lun.identity.partition_number = number;
        lock_key(&lun)
    };
    assert_ne!(partition(Some(1)), partition(Some(2)));
    assert_ne!(partition(Some(1)), partition(None));
    assert_eq!(partition(Some(1)), partition(Some(1)));
}
