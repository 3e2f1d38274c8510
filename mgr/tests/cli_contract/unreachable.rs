//! Tests with a shuntd that does not run, does not answer, or answers nonsense.

use super::*;

#[test]
fn no_shuntd_is_unreachable_and_says_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.sock");
    let dead = folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in [&missing, &dead] {
        for arguments in ASKING {
            let parts = [
                socket.to_str().unwrap(),
                "does not run",
                "systemctl start shuntd",
            ];
            run(shunt_at(socket, arguments)).expect_error(Exit::Unreachable, &parts);
        }
        let ended = run(shunt_at(socket, &["status", "--json"]));
        assert_eq!(json_lines(&ended.stderr)[0]["kind"], "unreachable");
    }
}

#[test]
fn without_permission_it_says_that_root_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = folder.path().join("shuntd.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o600)).unwrap();
    let binary = folder.path().join("shunt");
    // `cp` copies the file, not this process: a child of another test could inherit the open file,
    // and a file that is open for writing cannot be executed.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_shunt"))
        .arg(&binary)
        .status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(&binary);
    command.arg("status").env("SHUNT_SOCKET", &socket);
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    } else {
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o000)).unwrap();
    }
    let parts = [socket.to_str().unwrap(), "root"];
    run(command).expect_error(Exit::Unreachable, &parts);
}

#[test]
fn a_shuntd_of_another_protocol_is_named_with_both_versions() {
    let speaks = Protocols {
        oldest: 4710,
        newest: 4711,
    };
    let bytes = frame::encode(&Welcome::WrongProtocol { speaks }).unwrap();
    let fake = FakeShuntd::start_with_greeting(Reply::Bytes(bytes));
    let ours = migration_proto::PROTOCOLS.to_string();
    fake.run(&["status"])
        .expect_error(Exit::Unreachable, &["protocols 4710 to 4711", &ours]);
}

/// Invalid answers, which no shuntd sends.
fn nonsense() -> BTreeMap<&'static str, Reply> {
    let framed = |body: &[u8]| {
        let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(body);
        Reply::Bytes(bytes)
    };
    BTreeMap::from([
        (
            "text",
            Reply::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ),
        ("oversized", Reply::Bytes(u32::MAX.to_le_bytes().to_vec())),
        ("cut header", Reply::Bytes(vec![1, 0])),
        ("cut body", Reply::Bytes(vec![100, 0, 0, 0, b'{'])),
        ("empty frame", framed(b"")),
        ("not JSON", framed(&[0xff; 40])),
        ("other JSON", framed(br#"{"response":"maybe"}"#)),
        ("nested JSON", framed(&[b'['; 100_000])),
        ("closed", Reply::Close),
        ("half closed", Reply::HalfClose),
    ])
}

#[test]
fn nonsense_as_an_answer_is_an_error_for_every_command() {
    for (name, reply) in nonsense() {
        let fake = FakeShuntd::start(move |_, _| reply.clone());
        for arguments in ASKING {
            let ended = fake.run(arguments);
            ended.expect_error(Exit::Failed, &["shuntd"]);
            assert_eq!(ended.stdout, "", "{name} {arguments:?}");
            // `verify` asks for the status first, `plan` changes nothing.
            let questions = [
                "status", "list", "wait", "events", "show", "history", "report", "verify", "plan",
            ];
            let question = questions.contains(&arguments[0]);
            let unknown = ended.stderr.contains("it is not known whether");
            assert_eq!(unknown, !question, "{name} {arguments:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn nonsense_as_a_greeting_is_an_error() {
    for (name, reply) in nonsense() {
        let fake = FakeShuntd::start_with_greeting(reply);
        let ended = fake.run(&["status"]);
        let code = ended.code.unwrap_or_default();
        assert!(matches!(code, 1 | 5), "{name}: {code} {}", ended.stderr);
        let exit = if code == 1 {
            Exit::Failed
        } else {
            Exit::Unreachable
        };
        ended.expect_error(exit, &[fake.socket().to_str().unwrap()]);
    }
}

#[test]
fn an_answer_to_another_question_is_an_error() {
    let fake = FakeShuntd::answering(done(true, &[]));
    for arguments in [
        &["status"] as &[&str],
        &["wait", "s1", "--for", "committed"],
    ] {
        fake.run(arguments).expect_error(Exit::Failed, &["shuntd"]);
    }
    let fake = FakeShuntd::answering(Response::Records { records: vec![] });
    for arguments in [
        &["start", "s1"] as &[&str],
        &["wait", "s1", "--for", "committed"],
    ] {
        fake.run(arguments).expect_error(Exit::Failed, &["shuntd"]);
    }
}

#[test]
fn a_silent_shuntd_is_given_up_at_the_limit() {
    let short = Duration::from_millis(50);
    let limits = Limits {
        question: short,
        change: short,
        ..Limits::default()
    };
    let fake = FakeShuntd::start(|_, _| Reply::Silence);
    let socket = fake.socket();
    let error = within_limit(move || {
        let mut client = Client::connect(&socket, limits).unwrap();
        client
            .request(&Request::Status { session: None })
            .unwrap_err()
    });
    assert!(matches!(error, ExchangeError::NoAnswer { .. }), "{error}");

    let fake = FakeShuntd::start_with_greeting(Reply::Silence);
    let error = connect_error(&fake.socket(), short);
    let silent = matches!(
        &error,
        ConnectError::Greeting {
            source: ExchangeError::NoAnswer { .. },
            ..
        }
    );
    assert!(silent, "{error}");
}

#[test]
fn an_answer_that_trickles_in_is_given_up_at_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&100_000_u32.to_le_bytes());
        while stream.write_all(b" ").is_ok() {
            // Paces the slow peer; no test waits for this thread.
            thread::sleep(Duration::from_millis(5));
        }
    });
    let error = connect_error(&socket, Duration::from_millis(100));
    let late = matches!(
        &error,
        ConnectError::Greeting {
            source: ExchangeError::NoAnswer { .. },
            ..
        }
    );
    assert!(late, "{error}");
}

#[test]
fn a_shuntd_that_accepts_nobody_is_given_up_at_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    // The kernel queues the first connections, which get no welcome. It does not even queue the
    // last ones.
    let errors: Vec<ConnectError> = (0..4)
        .map(|_| connect_error(&socket, Duration::from_millis(50)))
        .collect();
    assert!(
        matches!(errors[0], ConnectError::Greeting { .. }),
        "{errors:?}"
    );
    assert!(
        matches!(errors[3], ConnectError::Socket { .. }),
        "{errors:?}"
    );
}
