//! The requests that are sent for a command line.

use migration_proto::manager::{
    CutoverAction, CutoverOptions, Hours, PlanRecord, RetireHow, SessionLimits, SessionMode,
    SwitchPairs, SwitchPolicy,
};
use migration_proto::target::OnAuthoritativeFailure;

use super::*;

#[test]
fn a_wrong_command_line_is_usage_and_sends_nothing() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let wrong: [&[&str]; 34] = [
        &[],
        &["--no-such-option"],
        &["no-such-command"],
        &["start", "s1", "--no-such-option"],
        &["start"],
        &["create", "s1"],
        &["create", "s1", "db"],
        &["create", "s1", "db:"],
        &["wait", "s1"],
        &["wait", "s1", "--for", "no-such-state"],
        &["switch", "s1", "--max-pause", "-1"],
        &["switch", "s1", "--max-pause", "0"],
        &["set"],
        &["set", "s1"],
        &["set", "--rate", "10MiB"],
        &["set", "s1", "--rate", "0"],
        &["set", "s1", "--priority", "101"],
        &["set", "s1", "--max-pairs", "3"],
        &["create", "s1", "-f", "s1.toml"],
        &["plan", "s1"],
        &["plan", "s1", "db:/dev/b", "-f", "s1.toml"],
        &["retire", "s1", "--how", "burn"],
        &["retire", "s1", "--how", "hold", "--take-back"],
        &["set", "s1", "--switch", "soon"],
        &["create", "-f", "s1.toml", "--rate", "1MiB"],
        &["create", "-f", "s1.toml", "--mode", "track"],
        &["set", "--mode", "track"],
        &["set", "s1", "--max-duration", "long"],
        &["set", "s1", "--switch-pairs", "one"],
        &["set", "s1", "--window-hours", "22:00"],
        &["set", "s1", "--start-at", "soon"],
        &["set", "s1", "--attempts", "0"],
        &["set", "s1", "--max-latency-impact", "0%"],
        &["set", "s1", "--throttle-floor", "unlimited"],
    ];
    for arguments in wrong {
        let ended = fake.run(arguments);
        ended.expect(Exit::Usage);
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert_ne!(ended.stderr, "", "{arguments:?}");
    }
    for name in subcommands() {
        fake.run(&[&name, "--no-such-option"]).expect(Exit::Usage);
    }
    assert_eq!(fake.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn a_wrong_command_line_with_json_is_an_error_record() {
    let ended = run(shunt(&["start", "--json"]));
    ended.expect(Exit::Usage);
    let records = json_lines(&ended.stderr);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["type"], "error");
    assert_eq!(records[0]["kind"], "usage");
}

#[test]
fn aliases_are_the_same_verbs() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let aliases = [
        ("switch", "cutover"),
        ("switch", "select-target"),
        ("undo", "select-source"),
        ("commit", "finalize"),
    ];
    for (verb, alias) in aliases {
        let yes: &[&str] = if verb == "commit" { &["--yes"] } else { &[] };
        fake.run(&[&[verb, "s1"], yes].concat()).expect(Exit::Done);
        fake.run(&[&[alias, "s1"], yes].concat()).expect(Exit::Done);
        let requests = fake.requests();
        assert_eq!(requests[requests.len() - 1], requests[requests.len() - 2]);
    }
}

// A table: a command line, and its request.
#[test]
fn each_verb_sends_its_request() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let session = || "s1".to_owned();
    let expected: Vec<(&[&str], Request)> = vec![
        (
            &["attach", "db", "/dev/a"],
            Request::Attach {
                accept_weak_identity: false,
                volume: "db".into(),
                luns: "/dev/a".parse().unwrap(),
            },
        ),
        (
            &["attach", "big", "/dev/a", "/dev/c"],
            Request::Attach {
                accept_weak_identity: false,
                volume: "big".into(),
                luns: "/dev/a,/dev/c".parse().unwrap(),
            },
        ),
        (
            &["create", "s1", "big:/dev/b,/dev/d"],
            Request::Create {
                session: session(),
                pairs: vec![PairSpec {
                    volume: "big".into(),
                    target: "/dev/b,/dev/d".parse().unwrap(),
                }],
                options: SessionOptions::default(),
            },
        ),
        (
            &["detach", "db"],
            Request::Detach {
                volume: "db".into(),
            },
        ),
        (
            &[
                "create",
                "s1",
                "db:/dev/b",
                "logs:/dev/c:1",
                "--overwrite",
                "--on-authoritative-failure",
                "switch",
                "--rate",
                "1GiB",
                "--priority",
                "7",
                "--mode",
                "track",
                "--cutover-action",
                "force",
                "--throttle-floor",
                "2MiB",
            ],
            Request::Create {
                session: session(),
                pairs: vec![
                    PairSpec {
                        volume: "db".into(),
                        target: "/dev/b".parse().unwrap(),
                    },
                    PairSpec {
                        volume: "logs".into(),
                        target: "/dev/c:1".parse().unwrap(),
                    },
                ],
                options: SessionOptions {
                    overwrite: true,
                    on_authoritative_failure: OnAuthoritativeFailure::Switch,
                    rate_bytes_per_second: 1 << 30,
                    priority: 7,
                    mode: SessionMode::Track,
                    cutover: CutoverOptions {
                        action: CutoverAction::Force,
                        floor_bytes_per_second: 2 << 20,
                        ..CutoverOptions::default()
                    },
                    ..SessionOptions::default()
                },
            },
        ),
        (&["start", "s1"], Request::Start { session: session() }),
        (&["pause", "s1"], Request::Pause { session: session() }),
        (&["resume", "s1"], Request::Resume { session: session() }),
        (
            &["switch", "s1"],
            Request::Switch {
                session: session(),
                max_pause_ms: 5000,
            },
        ),
        (
            &["undo", "s1", "--max-pause", "0.25"],
            Request::Undo {
                session: session(),
                max_pause_ms: 250,
            },
        ),
        (
            &["commit", "s1", "--yes"],
            Request::Commit { session: session() },
        ),
        (
            &["retire", "s1"],
            Request::Retire {
                session: session(),
                how: RetireHow::Hold,
            },
        ),
        (
            &["retire", "s1", "--how", "discard", "--yes"],
            Request::Retire {
                session: session(),
                how: RetireHow::Discard,
            },
        ),
        (
            &["retire", "s1", "--take-back"],
            Request::TakeBack { session: session() },
        ),
        (
            &["set", "s1", "--rate", "10MiB", "--priority", "90"],
            Request::SetSession {
                session: session(),
                limits: SessionLimits {
                    rate_bytes_per_second: Some(10 << 20),
                    priority: Some(90),
                    ..SessionLimits::default()
                },
            },
        ),
        (
            &[
                "create",
                "s1",
                "db:/dev/b",
                "--window-hours",
                "22:00-06:00",
                "--max-duration",
                "8h",
                "--switch-pairs",
                "each",
            ],
            Request::Create {
                session: session(),
                pairs: vec![PairSpec {
                    volume: "db".into(),
                    target: "/dev/b".parse().unwrap(),
                }],
                options: SessionOptions {
                    hours: Hours {
                        from_minute: 22 * 60,
                        to_minute: 6 * 60,
                    },
                    max_duration_seconds: 8 * 3600,
                    switch_pairs: SwitchPairs::Each,
                    ..SessionOptions::default()
                },
            },
        ),
        (
            &[
                "set",
                "s1",
                "--max-duration",
                "never",
                "--switch-pairs",
                "together",
                "--window-hours",
                "always",
            ],
            Request::SetSession {
                session: session(),
                limits: SessionLimits {
                    hours: Some(Hours::default()),
                    max_duration_seconds: Some(0),
                    switch_pairs: Some(SwitchPairs::Together),
                    ..SessionLimits::default()
                },
            },
        ),
        (
            &["set", "s1", "--rate", "unlimited"],
            Request::SetSession {
                session: session(),
                limits: SessionLimits {
                    rate_bytes_per_second: Some(0),
                    ..SessionLimits::default()
                },
            },
        ),
        (
            &["set", "s1", "--switch", "event:backup-done"],
            Request::SetSession {
                session: session(),
                limits: SessionLimits {
                    switch: Some(SwitchPolicy::OnEvent("backup-done".into())),
                    ..SessionLimits::default()
                },
            },
        ),
        (
            &[
                "set",
                "s1",
                "--mode",
                "mirror",
                "--attempts",
                "9",
                "--cutover-duration",
                "60",
                "--max-latency-impact",
                "20%",
                "--accept-unreadable",
                "1MiB",
            ],
            Request::SetSession {
                session: session(),
                limits: SessionLimits {
                    mode: Some(SessionMode::Mirror),
                    attempts: Some(9),
                    cutover_duration_seconds: Some(60),
                    max_latency_impact_percent: Some(20),
                    accept_unreadable_bytes: Some(1 << 20),
                    ..SessionLimits::default()
                },
            },
        ),
        (
            &[
                "recover",
                "db",
                "--authoritative",
                "target",
                "--against-record",
                "--yes",
            ],
            Request::Recover {
                volume: "db".into(),
                authoritative: Side::Target,
                against_record: true,
                dry_run: false,
            },
        ),
        (
            &["verify", "s1", "--repair", "--no-wait"],
            Request::Verify {
                session: session(),
                repair: true,
            },
        ),
        (
            &["signal", "backup-done"],
            Request::Signal {
                event: "backup-done".into(),
            },
        ),
        (
            &["set", "--max-pairs", "3"],
            Request::SetHost { pairs_max: 3 },
        ),
        (
            &["cancel", "s1", "--yes"],
            Request::Cancel { session: session() },
        ),
    ];
    for (index, (arguments, request)) in expected.iter().enumerate() {
        fake.run(arguments).expect(Exit::Done);
        assert_eq!(&fake.requests()[index], request);
    }
}

#[test]
fn a_plan_is_asked_for_like_a_session_and_what_speaks_against_it_is_a_refusal() {
    let plan = |problems: &[&str]| PlanRecord {
        schema: JSON_SCHEMA,
        volume: "db".into(),
        source: "/dev/a".parse().unwrap(),
        target: "/dev/b".parse().unwrap(),
        size_bytes: 1 << 30,
        source_bytes_per_second: Some(100 << 20),
        target_bytes_per_second: None,
        write_bytes_per_second: Some(1 << 20),
        copy_seconds: Some(600),
        pause_us: Some(4_000),
        problems: problems.iter().map(|&problem| problem.into()).collect(),
        notes: vec!["the target holds nothing".into()],
    };
    let arguments = ["plan", "s1", "db:/dev/b", "--overwrite"];
    let answer = |problems| Response::Records {
        records: vec![Record::Plan(plan(problems))],
    };
    let fake = FakeShuntd::answering(answer(&[]));
    let ended = fake.run(&arguments);
    ended.expect(Exit::Done);
    assert_eq!(
        ended.stdout,
        "db: /dev/a -> /dev/b, 1.00 GiB\n  \
         read: source 100.00 MiB/s, target unknown; written by applications: 1.00 MiB/s\n  \
         estimate: the copy takes 10m 00s, a switch holds requests for 4.0 ms\n  \
         note: the target holds nothing\n"
    );
    let pairs = vec![PairSpec {
        volume: "db".into(),
        target: "/dev/b".parse().unwrap(),
    }];
    let options = SessionOptions {
        overwrite: true,
        ..SessionOptions::default()
    };
    let session = "s1".to_owned();
    let request = Request::Plan {
        session,
        pairs,
        options,
    };
    assert_eq!(fake.requests(), [request]);

    let fake = FakeShuntd::answering(answer(&["/dev/b is mounted"]));
    let ended = fake.run(&arguments);
    ended.expect(Exit::Refused);
    assert!(ended.stdout.ends_with("  problem: /dev/b is mounted\n"));
    assert!(ended.stderr.contains("session s1: it would be refused"));
}

#[test]
fn paths_are_made_absolute_but_links_stay() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let here = fake.folder.path().canonicalize().unwrap();
    std::fs::write(here.join("lun"), "").unwrap();
    std::os::unix::fs::symlink("lun", here.join("link")).unwrap();
    for arguments in [
        &["attach", "db", "link"] as &[&str],
        &["create", "s1", "db:./link"],
    ] {
        let mut command = fake.command(arguments);
        command.current_dir(&here);
        run(command).expect(Exit::Done);
    }
    let link = here.join("link");
    match &fake.requests()[..] {
        [Request::Attach { luns, .. }, Request::Create { pairs, .. }] => {
            assert_eq!(*luns, link);
            assert_eq!(pairs[0].target, link);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_socket_is_found_by_option_variable_and_runtime_folder() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let socket = fake.socket();
    let mut by_option = shunt_at(Path::new("/nowhere"), &["start", "s1", "--socket"]);
    by_option.arg(&socket);
    run(by_option).expect(Exit::Done);
    let mut by_folder = shunt(&["start", "s1"]);
    by_folder.env("SHUNT_RUNTIME_DIR", fake.folder.path());
    run(by_folder).expect(Exit::Done);
    assert_eq!(fake.requests().len(), 2);
}

#[test]
fn what_show_prints_can_be_given_to_create() {
    let fake = FakeShuntd::start(|_, request| {
        Reply::Response(match request {
            Request::Status { .. } => records_in("syncing", 4096),
            _ => done(true, &[]),
        })
    });
    let shown = fake.run(&["show", "s1"]);
    shown.expect(Exit::Done);
    assert!(
        shown.stdout.contains("dirty-bytes = 4096"),
        "{}",
        shown.stdout
    );
    let file = fake.folder.path().join("s1.toml");
    std::fs::write(&file, &shown.stdout).unwrap();
    fake.run(&["create", "-f", file.to_str().unwrap()])
        .expect(Exit::Done);
    let expected = Request::Create {
        session: "s1".into(),
        pairs: vec![PairSpec {
            volume: "db".into(),
            target: "/dev/b".parse().unwrap(),
        }],
        options: SessionOptions::default(),
    };
    assert_eq!(fake.requests().last(), Some(&expected));
    let shown = fake.run(&["show", "s1", "--json"]);
    let status = fake.run(&["status", "s1", "--json"]);
    assert_eq!(shown.json(), status.json());
    assert_eq!(shown.json()[2]["type"], "pair");
}

#[test]
fn a_file_that_is_wrong_is_named_with_line_and_key_and_nothing_is_sent() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let file = fake.folder.path().join("wrong.toml");
    let path = file.to_str().unwrap();
    fake.run(&["create", "-f", path])
        .expect_error(Exit::Usage, &["wrong.toml", "cannot be read"]);
    std::fs::write(&file, "session = \"s1\"\npriority = \"high\"\n").unwrap();
    fake.run(&["create", "-f", path]).expect_error(
        Exit::Usage,
        &["wrong.toml", "line 2, priority", "create -f"],
    );
    assert_eq!(fake.connections.load(Ordering::SeqCst), 0);
}
