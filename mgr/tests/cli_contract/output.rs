//! Output and exit codes.

use migration_core::pair::Verb;
use migration_proto::manager::{Cursor, HostRecord};

use super::*;

#[test]
fn messages_are_for_people_and_quiet_silences_them() {
    let fake = FakeShuntd::answering(done(true, &["volume db is /dev/shunt/db"]));
    let ended = fake.run(&["attach", "db", "/dev/a"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.stdout, "");
    assert_eq!(ended.stderr, "volume db is /dev/shunt/db\n");
    let ended = fake.run(&["attach", "db", "/dev/a", "--quiet"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.stdout + &ended.stderr, "");
}

#[test]
fn what_is_so_already_is_success_and_said() {
    let fake = FakeShuntd::answering(done(false, &[]));
    let ended = fake.run(&["start", "s1"]);
    ended.expect(Exit::Done);
    assert!(ended.stderr.contains("already"), "{}", ended.stderr);
    let ended = fake.run(&["start", "s1", "--json"]);
    ended.expect(Exit::Done);
    let records = ended.json();
    assert_eq!(records[0]["type"], "done");
    assert_eq!(records[0]["changed"], false);
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let kinds = [
        (FailureKind::Failed, Exit::Failed),
        (FailureKind::Refused, Exit::Refused),
        (FailureKind::NotFound, Exit::NotFound),
    ];
    for (kind, exit) in kinds {
        let fake = FakeShuntd::answering(failure(kind));
        for arguments in ASKING {
            let ended = fake.run(arguments);
            ended.expect(exit);
            assert_eq!(ended.stdout, "");
            assert_eq!(
                ended.stderr,
                "shunt: session s1: the state is syncing; allowed: pause, cancel\n\
                 next: shunt wait s1 --for source-selected\n"
            );
            let ended = fake.run(&[arguments, &["--json"]].concat());
            ended.expect(exit);
            assert_eq!(ended.stdout, "");
            let records = json_lines(&ended.stderr);
            assert_eq!(records.len(), 1);
            assert_eq!(records[0]["type"], "error");
            assert_eq!(records[0]["kind"], exit.row().kind);
            assert_eq!(records[0]["object"], "session s1");
            assert_eq!(records[0]["next"], "shunt wait s1 --for source-selected");
        }
    }
}

#[test]
fn status_json_prints_the_records_as_they_are() {
    let fake = FakeShuntd::answering(records_in("syncing", 4096));
    let ended = fake.run(&["status", "--json"]);
    ended.expect(Exit::Done);
    let printed: Vec<Record> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        printed,
        [volume(), session("syncing"), pair("syncing", 4096)]
    );
    let values = ended.json();
    assert_eq!(values[2]["type"], "pair");
    for field in [
        "session",
        "volume",
        "state",
        "source",
        "target",
        "authoritative",
        "size_bytes",
        "dirty_bytes",
        "copied_bytes",
        "rate_bytes_per_second",
        "eta_seconds",
    ] {
        assert!(!values[2][field].is_null(), "{field}");
    }
}

#[test]
fn status_tells_people_the_state_and_what_may_be_done() {
    let fake = FakeShuntd::answering(records_in("syncing", 512 << 20));
    let ended = fake.run(&["status", "s1"]);
    ended.expect(Exit::Done);
    for part in [
        "/dev/shunt/db",
        "syncing",
        "source",
        "50%",
        "512.00 MiB",
        "100.00 MiB/s",
        "5s",
    ] {
        assert!(ended.stdout.contains(part), "no {part} in {}", ended.stdout);
    }
    let last = ended.stdout.lines().last().unwrap();
    assert_eq!(last, "  you may now: shunt switch s1, shunt cancel s1");
    let asked = Request::Status {
        session: Some("s1".into()),
    };
    assert_eq!(fake.requests(), [asked]);
}

#[test]
fn list_prints_one_line_for_each_volume_and_session() {
    let fake = FakeShuntd::answering(records_in("syncing", 4096));
    let ended = fake.run(&["list"]);
    ended.expect(Exit::Done);
    let words: Vec<&str> = ended
        .stdout
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(words, ["volume", "session"]);
    let ended = fake.run(&["list", "--json"]);
    let types: Vec<Value> = ended
        .json()
        .iter()
        .map(|value| value["type"].clone())
        .collect();
    assert_eq!(types, ["volume", "session"]);
}

#[test]
fn nothing_to_show_is_no_data_and_no_failure() {
    let fake = FakeShuntd::answering(Response::Records { records: vec![] });
    for arguments in [&["status"] as &[&str], &["list"], &["history"]] {
        let ended = fake.run(arguments);
        ended.expect(Exit::Done);
        assert_eq!(ended.stdout, "");
        assert_ne!(ended.stderr, "");
        let ended = fake.run(&[arguments, &["--json"]].concat());
        ended.expect(Exit::Done);
        assert_eq!(ended.stdout + &ended.stderr, "");
    }
}

#[test]
fn history_is_printed_with_times() {
    let fake = FakeShuntd::answering(Response::Records {
        records: vec![Record::Event(EventRecord {
            schema: JSON_SCHEMA,
            cursor: cursor(7),
            at_ms: 1_763_687_825_123,
            session: Some("s1".into()),
            volume: None,
            who: Some(0),
            event: HistoryEvent::VerbBegun { verb: Verb::Start },
        })],
    });
    let ended = fake.run(&["history", "s1"]);
    ended.expect(Exit::Done);
    assert_eq!(
        ended.stdout,
        "2025-11-21 01:17:05Z  s1  -  start (by root)\n"
    );
    let records = fake.run(&["history", "--json"]).json();
    let expected = serde_json::json!({
        "type": "event",
        "schema": JSON_SCHEMA,
        "cursor": "a-7-1",
        "at_ms": 1_763_687_825_123_u64,
        "session": "s1",
        "volume": null,
        "who": 0,
        "code": "verb_begun",
        "verb": "start",
        "what": "start",
    });
    assert_eq!(records, [expected]);
}

#[test]
fn queued_pairs_are_explained() {
    let host = |pairs_queued| {
        Record::Host(HostRecord {
            schema: JSON_SCHEMA,
            pairs_max: 2,
            pairs_copied: 1,
            pairs_queued,
            problems: Vec::new(),
        })
    };
    let shown = |pairs_queued| {
        let records = vec![host(pairs_queued), session("queued"), pair("queued", 4096)];
        let fake = FakeShuntd::answering(Response::Records { records });
        fake.run(&["status"]).stdout
    };
    assert!(!shown(0).contains("at most 2"));
    let text = shown(7);
    assert!(
        text.contains("1 pair of at most 2 copied, 7 queued"),
        "{text}"
    );
    let broken = Record::Host(HostRecord {
        schema: JSON_SCHEMA,
        pairs_max: 2,
        pairs_copied: 0,
        pairs_queued: 0,
        problems: vec!["the state folder is hidden; next: umount it".to_owned()],
    });
    let fake = FakeShuntd::answering(Response::Records {
        records: vec![broken],
    });
    let text = fake.run(&["status"]).stdout;
    assert_eq!(
        text,
        "problem: the state folder is hidden; next: umount it\n"
    );
    // A host without volumes and sessions.
    let records = vec![host(0)];
    let fake = FakeShuntd::answering(Response::Records { records });
    let ended = fake.run(&["status"]);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("shunt attach"), "{}", ended.stderr);
}

/// The place after a line of the history.
fn cursor(line: u64) -> Cursor {
    format!("a-{line}-1").parse().unwrap()
}

/// The event with which the state of a pair changes, after a line of the history.
fn state_changed(line: u64, state: &str) -> Record {
    Record::Event(EventRecord {
        schema: JSON_SCHEMA,
        cursor: cursor(line),
        at_ms: 1_763_687_825_123,
        session: Some("s1".into()),
        volume: Some("db".into()),
        who: None,
        event: HistoryEvent::StateChanged {
            state: state.into(),
        },
    })
}

/// The current state, after a line of the history.
fn present(next: u64, line: u64) -> Response {
    Response::Events {
        next,
        cursor: cursor(line),
        present: true,
        records: vec![session("syncing"), pair("syncing", 4096)],
    }
}

/// A shuntd that gives these answers, in order.
fn saying(answers: Vec<Reply>) -> FakeShuntd {
    FakeShuntd::start(move |number, _| answers[number].clone())
}

/// What is printed: the types of the records, and of an event its state.
fn printed(ended: &Ended) -> Vec<String> {
    let name = |record: Value| {
        let name = record["state"]
            .as_str()
            .filter(|_| record["type"] == "event");
        name.or(record["type"].as_str()).unwrap().to_owned()
    };
    ended.json().into_iter().map(name).collect()
}

#[test]
fn events_begin_with_what_is_so_and_a_mark_and_go_on_from_there() {
    let answers = vec![
        Reply::Response(present(7, 3)),
        Reply::Response(Response::Events {
            next: 8,
            cursor: cursor(3),
            present: false,
            records: vec![state_changed(3, "source-selected")],
        }),
        Reply::Response(failure(FailureKind::NotFound)),
    ];
    let fake = saying(answers.clone());
    let ended = fake.run(&["events", "s1"]);
    ended.expect(Exit::NotFound);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [.., state, mark, last] = lines[..] else {
        panic!("{lines:?}");
    };
    assert!(state.contains("you may now"), "{state}");
    assert!(mark.contains("shunt events --after a-3-1"), "{mark}");
    assert_eq!(last, "2025-11-21 01:17:05Z  s1  db  source-selected");
    let asked = |after| Request::Events {
        session: Some("s1".into()),
        after,
    };
    assert_eq!(
        fake.requests(),
        [asked(None), asked(Some(7)), asked(Some(8))]
    );
    let ended = saying(answers).run(&["events", "--json"]);
    assert_eq!(
        printed(&ended),
        ["session", "pair", "live", "source-selected"]
    );
    assert_eq!(ended.json()[2]["cursor"], "a-3-1");
}

#[test]
fn events_after_a_cursor_begin_with_the_lines_that_were_missed() {
    let lines = |lines: &[u64]| {
        let records = lines
            .iter()
            .map(|line| state_changed(*line, &line.to_string()));
        Reply::Response(Response::Records {
            records: records.collect(),
        })
    };
    let fake = saying(vec![
        Reply::Response(present(7, 6)),
        lines(&[3, 4]),
        // The connection is lost, as when shuntd is restarted, and the last lines come later as
        // events too.
        Reply::Close,
        lines(&[5, 6, 7]),
        Reply::Response(Response::Events {
            next: 8,
            cursor: cursor(7),
            present: false,
            records: vec![state_changed(7, "7")],
        }),
        // shuntd was restarted: it does not know the number of the next event.
        Reply::Response(present(100, 8)),
        lines(&[8]),
        Reply::Response(present(200, 8)),
        Reply::Response(failure(FailureKind::NotFound)),
    ]);
    let ended = fake.run(&["events", "s1", "--json", "--after", "a-2-1"]);
    ended.expect(Exit::NotFound);
    let expected = "3 4 5 6 session pair live 7 8 session pair live session pair live";
    assert_eq!(printed(&ended).join(" "), expected);
    let after = |request: &Request| match request {
        Request::History { session, after } => {
            assert_eq!(session.as_deref(), Some("s1"));
            after.clone()
        }
        _ => None,
    };
    let asked: Vec<Cursor> = fake.requests().iter().filter_map(after).collect();
    assert_eq!(asked, [2, 4, 4, 7].map(cursor));
}

#[test]
fn a_cursor_that_is_none_or_is_not_known_ends_the_command() {
    let fake = saying(Vec::new());
    let ended = fake.run(&["events", "--after", "yesterday"]);
    ended.expect(Exit::Usage);
    assert!(ended.stderr.contains("not a cursor"), "{}", ended.stderr);
    assert_eq!(fake.requests(), []);
    let fake = saying(vec![
        Reply::Response(present(7, 3)),
        Reply::Response(failure(FailureKind::Refused)),
    ]);
    let ended = fake.run(&["events", "--after", "b-2-1"]);
    ended.expect_error(Exit::Refused, &["the state is syncing"]);
    assert_eq!(
        ended.stdout, "",
        "the current state would look like all there is"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let fake = FakeShuntd::answering(records_in("syncing", 4096));
    for arguments in [
        &["status"] as &[&str],
        &["status", "--watch"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = fake
            .command(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{stderr}");
        assert_eq!(stderr, "");
    }
}

#[test]
fn a_full_disk_under_standard_output_is_a_failure() {
    let fake = FakeShuntd::answering(records_in("syncing", 4096));
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = fake
        .command(&["status"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("shunt: standard output: "));
}
