//! Tests of confirmations, `wait` and `--watch`.

use super::*;

#[test]
fn without_a_terminal_commit_and_cancel_need_yes_and_send_nothing() {
    let fake = FakeShuntd::answering(done(true, &[]));
    for verb in ["commit", "finalize", "cancel"] {
        let mut command = fake.command(&[verb, "s1"]);
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"yes\n").unwrap();
        command.stdin(reader);
        run(command).expect_error(Exit::Refused, &["session s1", "s1 --yes"]);
    }
    assert_eq!(fake.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn on_a_terminal_only_yes_confirms() {
    let fake = FakeShuntd::answering(done(true, &["committed"]));
    for (reply, exit) in [
        ("yes", Exit::Done),
        ("y", Exit::Refused),
        ("", Exit::Refused),
    ] {
        let before = fake.requests().len();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(format!("{reply}\n").as_bytes()).unwrap();
        let mut command = fake.command_on_a_terminal("commit s1");
        command.stdin(reader);
        let ended = run(command);
        drop(writer);
        ended.expect(exit);
        assert!(
            ended
                .stdout
                .contains("commit session s1? The source leg will no longer be a copy."),
            "{}",
            ended.stdout
        );
        let sent = fake.requests().len() - before;
        assert_eq!(sent, usize::from(exit == Exit::Done), "{reply}");
    }
}

// Waiting.

#[test]
fn wait_ends_when_the_state_is_reached() {
    let fake = FakeShuntd::start(|number, _| {
        Reply::Response(match number {
            0 => records_in("syncing", 900 << 20),
            1 => records_in("syncing", 100 << 20),
            _ => records_in("source-selected", 0),
        })
    });
    let ended = fake.run(&["wait", "s1", "--for", "source-selected", "--timeout", "60"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.stdout, "");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("syncing, 12% done, 5s left, 100.00 MiB/s, 900.00 MiB to copy"));
    assert!(lines[1].starts_with("syncing, 90% done"), "{lines:?}");
    assert_eq!(lines[2], "session s1 is source-selected");
    assert_eq!(fake.requests().len(), 3);
    assert_eq!(fake.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn wait_says_nothing_twice_and_with_quiet_nothing() {
    let script = |number, _: &Request| {
        Reply::Response(match number % 4 {
            3 => records_in("target-selected", 0),
            _ => records_in("switching", 0),
        })
    };
    let fake = FakeShuntd::start(script);
    let ended = fake.run(&["wait", "s1", "--for", "target-selected"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
    let fake = FakeShuntd::start(script);
    let ended = fake.run(&["wait", "s1", "--for", "target-selected", "--quiet"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.stdout + &ended.stderr, "");
}

#[test]
fn wait_ends_when_the_cutover_is_over() {
    let mut over = session("tracking");
    if let Record::Session(session) = &mut over {
        session.cutover = Some(CutoverRecord {
            phase: CUTOVER_OVER.to_owned(),
            failures: 1,
            cause: Some("what was left did not fit".to_owned()),
            max_pause_ms: 100,
            predicted_pause_us: Some(2_000_000),
            write_bytes_per_second: 9 << 20,
            copy_bytes_per_second: 8 << 20,
            throttle_bytes_per_second: None,
        });
    }
    let records = vec![over, pair("tracking", 1 << 20)];
    let fake = FakeShuntd::answering(Response::Records { records });
    let ended = fake.run(&["wait", "s1", "--for", "target-selected"]);
    ended.expect_error(Exit::Failed, &["session s1", "did not fit", "tracking"]);
    // A wait for another state is not affected.
    let arguments = ["wait", "s1", "--for", "source-selected", "--timeout", "0"];
    fake.run(&arguments)
        .expect_error(Exit::TimeRanOut, &["tracking"]);
    let shown = fake.run(&["status"]);
    shown.expect(Exit::Done);
    for line in [
        "cutover: over, 9.00 MiB/s written\n",
        "cutover: 8.00 MiB/s can be copied, the pause would be 2000.0 ms of 100.0 ms",
    ] {
        assert!(shown.stdout.contains(line), "{}", shown.stdout);
    }
}

#[test]
fn wait_with_json_prints_the_last_records() {
    let fake = FakeShuntd::answering(records_in("committed", 0));
    let ended = fake.run(&["wait", "s1", "--for", "committed", "--json"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.json().len(), 3);
}

#[test]
fn wait_ends_when_the_time_runs_out() {
    let fake = FakeShuntd::answering(records_in("syncing", 512 << 20));
    for timeout in ["0", "0.5"] {
        let arguments = [
            "wait",
            "s1",
            "--for",
            "source-selected",
            "--timeout",
            timeout,
        ];
        let parts = ["session s1", "source-selected", "syncing, 50% done"];
        fake.run(&arguments).expect_error(Exit::TimeRanOut, &parts);
    }
}

#[test]
fn wait_ends_when_the_time_runs_out_even_if_shuntd_is_silent() {
    let fake = FakeShuntd::start(|_, _| Reply::Silence);
    let arguments = ["wait", "s1", "--for", "source-selected", "--timeout", "0.1"];
    fake.run(&arguments)
        .expect_error(Exit::TimeRanOut, &["session s1"]);
}

#[test]
fn wait_ends_when_the_state_cannot_be_reached_any_more() {
    for state in ["failed", "cancelled", "committed", "retired"] {
        let fake = FakeShuntd::answering(records_in(state, 0));
        let parts = ["session s1", state, "source-selected"];
        fake.run(&["wait", "s1", "--for", "source-selected"])
            .expect_error(Exit::Failed, &parts);
        assert_eq!(fake.requests().len(), 1);
    }
}

#[test]
fn wait_goes_on_through_a_state_of_a_later_version() {
    let fake = FakeShuntd::start(|number, _| {
        Reply::Response(records_in(
            if number == 0 {
                "polishing"
            } else {
                "committed"
            },
            0,
        ))
    });
    fake.run(&["wait", "s1", "--for", "committed"])
        .expect(Exit::Done);
}

#[test]
fn wait_survives_a_restart_of_shuntd() {
    let fake = FakeShuntd::start(|number, _| match number {
        0 => Reply::Response(records_in("syncing", 4096)),
        1 | 2 => Reply::Close,
        _ => Reply::Response(records_in("source-selected", 0)),
    });
    let ended = fake.run(&["wait", "s1", "--for", "source-selected"]);
    ended.expect(Exit::Done);
    let said = ended.stderr.matches("does not answer").count();
    assert_eq!(said, 1, "{}", ended.stderr);
}

#[test]
fn a_shuntd_that_stays_away_is_not_waited_for_for_ever() {
    let fake = FakeShuntd::start(|number, _| match number {
        0 => Reply::Response(records_in("syncing", 4096)),
        _ => Reply::Close,
    });
    let shuntd = Shuntd::new(fake.socket(), Limits::default());
    let mut poll = Poll::new(shuntd, Some("s1".into()), Duration::from_millis(50));
    assert!(poll.look(Duration::MAX).unwrap().is_some());
    let deadline = Instant::now() + COMMAND_LIMIT;
    let problem = loop {
        assert!(Instant::now() < deadline);
        match poll.look(Duration::MAX) {
            Ok(records) => assert_eq!(records, None),
            Err(problem) => break problem,
        }
    };
    assert_eq!(problem.exit, Exit::Failed);
}

#[test]
fn wait_goes_on_while_a_volume_is_brought_back() {
    let fake = FakeShuntd::start(|number, _| {
        Reply::Response(match number {
            0 => records_in("needs-recovery", 4096),
            1 => records_in("degraded", 4096),
            _ => records_in("source-selected", 0),
        })
    });
    fake.run(&["wait", "s1", "--for", "source-selected"])
        .expect(Exit::Done);
}

#[test]
fn on_a_terminal_wait_shows_a_bar_and_leaves_one_line() {
    let fake = FakeShuntd::start(|number, _| {
        Reply::Response(match number {
            0 => records_in("syncing", 256 << 20),
            _ => records_in("source-selected", 0),
        })
    });
    let ended = run(fake.command_on_a_terminal("wait s1 --for source-selected"));
    ended.expect(Exit::Done);
    for part in [
        "75%",
        "#",
        "100.00 MiB/s",
        "5s left",
        "session s1 is source-selected",
    ] {
        assert!(ended.stdout.contains(part), "no {part} in {}", ended.stdout);
    }
}

#[test]
fn on_a_terminal_watch_draws_over_what_was_there() {
    let fake = FakeShuntd::start(|number, _| {
        Reply::Response(match number {
            0 => records_in("syncing", 256 << 20),
            _ => failure(FailureKind::NotFound),
        })
    });
    let ended = run(fake.command_on_a_terminal("status s1 --watch"));
    ended.expect(Exit::NotFound);
    // The sequences switch to the alternate screen and back.
    for part in ["\u{1b}[?1049h", "75 %", "\u{1b}[?1049l"] {
        assert!(
            ended.stdout.contains(part),
            "no {part:?} in {}",
            ended.stdout
        );
    }
}
