//! The contract of the command line, kept by the real binary against a shuntd that follows a script.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may panic as the test may"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use mgr::cli::args::Arguments;
use mgr::cli::ask::{Poll, Shuntd};
use mgr::cli::client::{Client, ConnectError, ExchangeError, Limits};
use mgr::cli::exit::{Exit, TABLE};
use migration_proto::frame;
use migration_proto::manager::{
    EventRecord, Failure, FailureKind, JSON_SCHEMA, PairRecord, PairSpec, Record, Request,
    Response, SessionRecord, VolumeRecord,
};
use migration_proto::route::Side;
use migration_proto::{Hello, Welcome};
use serde_json::Value;

/// No test command takes longer; one that hangs is killed and fails the test.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// What the scripted shuntd does with a request.
#[derive(Debug, Clone)]
enum Reply {
    /// Answers.
    Response(Response),
    /// Sends these bytes as they are, then closes the connection.
    Bytes(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Closes only the direction in which the answer would come, and keeps the connection.
    HalfClose,
    /// Keeps the connection and is silent.
    Silence,
}

type Script = dyn Fn(usize, &Request) -> Reply + Send + Sync;

/// A shuntd that follows a script. The number that the script gets counts the requests from 0.
struct FakeShuntd {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl FakeShuntd {
    fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with_welcome(Reply::Silence, false, script)
    }

    /// A shuntd that greets in its own way and answers no request.
    fn start_with_greeting(greeting: Reply) -> Self {
        Self::start_with_welcome(greeting, true, |_, _| Reply::Silence)
    }

    fn start_with_welcome(
        greeting: Reply,
        own_greeting: bool,
        script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("shuntd.sock")).unwrap();
        let fake = Self {
            folder,
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) = (fake.requests.clone(), fake.connections.clone());
        let script: Arc<Script> = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, script) = (requests.clone(), script.clone());
                let greeting = own_greeting.then(|| greeting.clone());
                thread::spawn(move || serve(stream.unwrap(), greeting, &requests, &*script));
            }
        });
        fake
    }

    fn answering(response: Response) -> Self {
        Self::start(move |_, _| Reply::Response(response.clone()))
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("shuntd.sock")
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        run(self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        shunt_at(&self.socket(), arguments)
    }

    /// The same on a terminal, which script(1) of bsdutils makes; its output is all in `stdout`.
    fn command_on_a_terminal(&self, arguments: &str) -> Command {
        let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_shunt"));
        let mut command = Command::new("script");
        command
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("SHUNT_SOCKET", self.socket())
            .env("TERM", "xterm")
            .stdin(Stdio::null());
        command
    }
}

fn serve(
    mut stream: UnixStream,
    greeting: Option<Reply>,
    requests: &Mutex<Vec<Request>>,
    script: &Script,
) {
    let Ok(hello) = frame::read::<Hello>(&mut stream) else {
        return;
    };
    match greeting {
        Some(greeting) => return perform(&mut stream, greeting),
        None => frame::write(&mut stream, &hello.answer()).unwrap(),
    }
    while let Ok(request) = frame::read::<Request>(&mut stream) {
        let number = {
            let mut requests = requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        match script(number, &request) {
            Reply::Response(response) => {
                if frame::write(&mut stream, &response).is_err() {
                    return;
                }
            }
            other => return perform(&mut stream, other),
        }
    }
}

fn perform(stream: &mut UnixStream, reply: Reply) {
    match reply {
        Reply::Response(response) => frame::write(stream, &response).unwrap(),
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes);
        }
        Reply::Close => {}
        Reply::HalfClose => {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
        Reply::Silence => {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}

/// A command that ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn expect(&self, exit: Exit) -> &Self {
        assert_eq!(
            self.code,
            Some(i32::from(exit.code())),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Checks the two lines that an operator reads.
    #[track_caller]
    fn expect_error(&self, exit: Exit, parts: &[&str]) -> &Self {
        self.expect(exit);
        let lines: Vec<&str> = self.stderr.lines().collect();
        let first = lines.iter().position(|line| line.starts_with("shunt: "));
        let first = first.unwrap_or_else(|| panic!("no error line in: {}", self.stderr));
        let next = lines.get(first + 1).copied().unwrap_or_default();
        assert!(next.starts_with("next: "), "{}", self.stderr);
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no {part:?} in: {}",
                self.stderr
            );
        }
        self
    }

    #[track_caller]
    fn json(&self) -> Vec<Value> {
        json_lines(&self.stdout)
    }
}

#[track_caller]
fn json_lines(text: &str) -> Vec<Value> {
    let values: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for value in &values {
        assert!(value["type"].is_string(), "{value}");
        assert_eq!(value["schema"], JSON_SCHEMA, "{value}");
    }
    values
}

fn shunt(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shunt"));
    command
        .args(arguments)
        .env_remove("SHUNT_SOCKET")
        .env_remove("SHUNT_RUNTIME_DIR")
        .stdin(Stdio::null());
    command
}

fn shunt_at(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = shunt(arguments);
    command.env("SHUNT_SOCKET", socket);
    command
}

/// Runs to the end, or kills the command at [`COMMAND_LIMIT`].
fn run(mut command: Command) -> Ended {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        use std::sync::mpsc::RecvTimeoutError;
        if receive.recv_timeout(COMMAND_LIMIT) == Err(RecvTimeoutError::Timeout) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    drop(send);
    guard.join().unwrap();
    Ended {
        code: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Runs something that must end by itself; fails the test if it does not.
#[track_caller]
fn within_limit<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive
        .recv_timeout(COMMAND_LIMIT)
        .expect("it has a time limit")
}

/// Connects to a shuntd that does not welcome.
#[track_caller]
fn connect_error(socket: &Path, greeting: Duration) -> ConnectError {
    let limits = Limits {
        greeting,
        ..Limits::default()
    };
    let socket = socket.to_owned();
    within_limit(move || Client::connect(&socket, limits).unwrap_err())
}

fn done(changed: bool, messages: &[&str]) -> Response {
    Response::Done {
        changed,
        messages: messages.iter().map(|&text| text.to_owned()).collect(),
    }
}

fn volume() -> Record {
    Record::Volume(VolumeRecord {
        schema: JSON_SCHEMA,
        volume: "db".into(),
        state: "attached".into(),
        device: "/dev/shunt/db".into(),
        kernel_device: Some("/dev/ublkb0".into()),
        lun: "/dev/a".into(),
        size_bytes: 1 << 30,
        pid: Some(42),
        restarts: 1,
        route: None,
        problem: None,
    })
}

fn session(state: &str) -> Record {
    Record::Session(SessionRecord {
        schema: JSON_SCHEMA,
        session: "s1".into(),
        state: state.into(),
        pairs: 1,
        allowed: vec!["switch".into(), "cancel".into()],
        created_at: 1_763_687_825,
    })
}

fn pair(state: &str, dirty_bytes: u64) -> Record {
    Record::Pair(PairRecord {
        schema: JSON_SCHEMA,
        session: "s1".into(),
        volume: "db".into(),
        state: state.into(),
        source: "/dev/a".into(),
        target: "/dev/b".into(),
        authoritative: Side::Source,
        total_bytes: 1 << 30,
        dirty_bytes,
        copied_bytes: (1 << 30) - dirty_bytes,
        rate_bytes_per_second: Some(100 << 20),
        eta_seconds: Some(5),
        last_pause_us: Some(1234),
        problem: None,
    })
}

fn records_in(state: &str, dirty_bytes: u64) -> Response {
    Response::Records {
        records: vec![volume(), session(state), pair(state, dirty_bytes)],
    }
}

fn failure(kind: FailureKind) -> Response {
    Response::Failed(Failure {
        kind,
        object: "session s1".into(),
        cause: "the state is syncing; allowed: pause, cancel".into(),
        next: "shunt wait s1 --for source-selected".into(),
    })
}

/// A command line for every subcommand that asks shuntd.
const ASKING: [&[&str]; 13] = [
    &["attach", "db", "/dev/a"],
    &["detach", "db"],
    &["create", "s1", "db:/dev/b"],
    &["start", "s1"],
    &["status"],
    &["list"],
    &["wait", "s1", "--for", "source-selected"],
    &["pause", "s1"],
    &["resume", "s1"],
    &["switch", "s1"],
    &["undo", "s1"],
    &["commit", "s1", "--yes"],
    &["cancel", "s1", "--yes"],
];

fn subcommands() -> Vec<String> {
    let names: Vec<String> = Arguments::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    assert!(names.len() >= 16, "{names:?}");
    names
}

// Help, usage, man pages, completions.

#[test]
fn every_help_has_a_paragraph_and_examples() {
    for name in subcommands() {
        let ended = run(shunt(&[&name, "--help"]));
        ended.expect(Exit::Done);
        assert_eq!(ended.stderr, "");
        let (about, rest) = ended.stdout.split_once("\n\nUsage: shunt ").unwrap();
        assert!(about.contains("\n\n"), "{name} has no paragraph: {about}");
        let examples = rest.split_once("EXAMPLES:\n").expect("no EXAMPLES").1;
        assert!(examples.contains(&format!("shunt {name}")), "{examples}");
    }
}

#[test]
fn the_help_and_every_man_page_have_the_whole_table_of_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    run(shunt(&["man", folder.path().to_str().unwrap()])).expect(Exit::Done);
    let mut texts = vec![run(shunt(&["--help"])).stdout];
    for page in std::fs::read_dir(&folder).unwrap() {
        texts.push(std::fs::read_to_string(page.unwrap().path()).unwrap());
    }
    for text in texts {
        for row in &TABLE {
            let line = format!("{}  {}", row.exit.code(), row.meaning).replace('-', "\\-");
            assert!(
                text.replace('-', "\\-")
                    .replace("\\\\-", "\\-")
                    .contains(&line),
                "{line}"
            );
        }
    }
}

#[test]
fn the_codes_are_those_that_scripts_rely_on() {
    let codes: Vec<(u8, &str)> = TABLE
        .iter()
        .map(|row| (row.exit.code(), row.kind))
        .collect();
    let expected = [
        (0, "done"),
        (1, "failed"),
        (2, "usage"),
        (3, "refused"),
        (4, "not-found"),
        (5, "unreachable"),
        (6, "time-ran-out"),
    ];
    assert_eq!(codes, expected);
}

#[test]
fn man_pages_are_written_for_every_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("share/man1");
    run(shunt(&["man", directory.to_str().unwrap()])).expect(Exit::Done);
    let mut names = subcommands();
    let main_page = std::fs::read_to_string(directory.join("shunt.1")).unwrap();
    for name in &names {
        let page = std::fs::read_to_string(directory.join(format!("shunt-{name}.1"))).unwrap();
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXAMPLES",
            "EXIT STATUS",
        ] {
            let heading = page.contains(&format!(".SH {section}\n"))
                || page.contains(&format!(".SH \"{section}\"\n"));
            assert!(heading, "{name} {section}: {page}");
        }
        assert!(main_page.contains(&format!("shunt\\-{}", name.replace('-', "\\-"))));
    }
    names.push("shunt".into());
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), names.len());
}

#[test]
fn completions_know_every_subcommand() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = run(shunt(&["completions", shell]));
        ended.expect(Exit::Done);
        for name in subcommands() {
            assert!(ended.stdout.contains(&name), "{shell}: {name}");
        }
    }
}

#[test]
fn a_wrong_command_line_is_usage_and_sends_nothing() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let wrong: [&[&str]; 12] = [
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

// What is sent.

#[test]
fn each_verb_sends_its_request() {
    let fake = FakeShuntd::answering(done(true, &[]));
    let session = || "s1".to_owned();
    let expected: Vec<(&[&str], Request)> = vec![
        (
            &["attach", "db", "/dev/a"],
            Request::Attach {
                volume: "db".into(),
                lun: "/dev/a".into(),
            },
        ),
        (
            &["detach", "db"],
            Request::Detach {
                volume: "db".into(),
            },
        ),
        (
            &["create", "s1", "db:/dev/b", "logs:/dev/c:1", "--overwrite"],
            Request::Create {
                session: session(),
                pairs: vec![
                    PairSpec {
                        volume: "db".into(),
                        target: "/dev/b".into(),
                    },
                    PairSpec {
                        volume: "logs".into(),
                        target: "/dev/c:1".into(),
                    },
                ],
                overwrite: true,
                detect_zeroes: false,
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
        [Request::Attach { lun, .. }, Request::Create { pairs, .. }] => {
            assert_eq!(lun, &link);
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

// Answers.

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
        "total_bytes",
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
            at_ms: 1_763_687_825_123,
            session: Some("s1".into()),
            volume: None,
            what: "started".into(),
        })],
    });
    let ended = fake.run(&["history", "s1"]);
    ended.expect(Exit::Done);
    assert_eq!(ended.stdout, "2025-11-21 01:17:05Z  s1  -  started\n");
    assert_eq!(fake.run(&["history", "--json"]).json()[0]["type"], "event");
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

// shuntd is not there, or is not what it should be.

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
    std::fs::copy(env!("CARGO_BIN_EXE_shunt"), &binary).unwrap();
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
    let bytes = frame::encode(&Welcome::WrongProtocol { speaks: 4711 }).unwrap();
    let fake = FakeShuntd::start_with_greeting(Reply::Bytes(bytes));
    let ours = format!("protocol {},", migration_proto::PROTOCOL_VERSION);
    fake.run(&["status"])
        .expect_error(Exit::Unreachable, &["protocol 4711", &ours]);
}

/// Answers that no shuntd gives.
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
            let question = matches!(arguments[0], "status" | "list" | "wait");
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
            // The pace of the slow peer itself; no test waits for it.
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
    // The first ones are queued by the kernel and not welcomed, the last ones are not even queued.
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

// Verbs that cannot be taken back.

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
    assert!(ended.stdout.contains("\u{1b}[H"), "{}", ended.stdout);
    assert!(ended.stdout.contains("75%"), "{}", ended.stdout);
}
