//! Tests of the command line contract: the real binary against a scripted shuntd.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may panic as the test may"
)]

mod documents;
mod output;
mod requests;
mod unreachable;
mod waiting;

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
    CUTOVER_OVER, CutoverRecord, EventRecord, Failure, FailureKind, HistoryEvent, JSON_SCHEMA,
    PairRecord, PairSpec, Record, Request, Response, SessionOptions, SessionRecord, VolumeRecord,
};
use migration_proto::route::Side;
use migration_proto::{Hello, Protocols, Welcome};
use serde_json::Value;

/// The time limit of a command. A command that takes longer is killed, and its test fails.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// What the scripted shuntd does with a request.
#[derive(Debug, Clone)]
enum Reply {
    /// Sends this answer.
    Response(Response),
    /// Sends these bytes as they are, then closes the connection.
    Bytes(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Closes only its sending direction and keeps the connection open.
    HalfClose,
    /// Keeps the connection and is silent.
    Silence,
}

type Script = dyn Fn(usize, &Request) -> Reply + Send + Sync;

/// A scripted shuntd. The script gets each request with its number, counted from 0.
struct FakeShuntd {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl FakeShuntd {
    fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with_welcome(Reply::Silence, false, script)
    }

    /// A shuntd that greets with `greeting` and answers no request.
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

    /// The command on a terminal, which script(1) of bsdutils provides; all output is in `stdout`.
    fn command_on_a_terminal(&self, arguments: &str) -> Command {
        let shunt = env!("CARGO_BIN_EXE_shunt");
        let line = format!("stty rows 24 cols 100; {shunt} {arguments}");
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

/// The result of a command.
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

    /// Checks the exit code, the error line with the `next: ` line after it, and that standard
    /// error contains all `parts`.
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
    schema_check::parse_lines(text)
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

/// Runs `work` in a thread; fails the test if it takes longer than [`COMMAND_LIMIT`].
#[track_caller]
fn within_limit<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive
        .recv_timeout(COMMAND_LIMIT)
        .expect("it has a time limit")
}

/// Connects to a shuntd that sends no welcome within `greeting`; returns the error.
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
        lun: "/dev/a".parse().unwrap(),
        size_bytes: 1 << 30,
        pid: Some(42),
        restarts: 1,
        route: None,
        weak_identity: Vec::new(),
        grown: Vec::new(),
        problem: None,
    })
}

fn session(state: &str) -> Record {
    Record::Session(SessionRecord {
        schema: JSON_SCHEMA,
        session: "s1".into(),
        id: "4711".into(),
        state: state.into(),
        pairs: 1,
        allowed: vec!["switch".into(), "cancel".into()],
        options: SessionOptions::default(),
        cutover: None,
        created_at_ms: 1_763_687_825_000,
    })
}

fn pair(state: &str, dirty_bytes: u64) -> Record {
    Record::Pair(PairRecord {
        schema: JSON_SCHEMA,
        session: "s1".into(),
        volume: "db".into(),
        state: state.into(),
        source: "/dev/a".parse().unwrap(),
        target: "/dev/b".parse().unwrap(),
        authoritative: Side::Source,
        weak_identity: Vec::new(),
        size_bytes: 1 << 30,
        dirty_bytes,
        copied_bytes: (1 << 30) - dirty_bytes,
        dirty_percent: None,
        rate_bytes_per_second: Some(100 << 20),
        eta_seconds: Some(5),
        compared_bytes: None,
        verification: None,
        unreadable: Vec::new(),
        retired: None,
        last_pause_us: Some(1234),
        application: None,
        copy_of_at_ms: None,
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

/// A command line for every subcommand that sends requests to shuntd.
const ASKING: [&[&str]; 26] = [
    &["attach", "db", "/dev/a"],
    &["detach", "db"],
    &["create", "s1", "db:/dev/b"],
    &["plan", "s1", "db:/dev/b"],
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
    &["retire", "s1"],
    &["retire", "s1", "--take-back"],
    &["set", "s1", "--rate", "10MiB"],
    &["set", "--max-pairs", "3"],
    &["events"],
    &["show", "s1"],
    &["signal", "backup-done"],
    &["history"],
    &["report", "s1"],
    &["verify", "s1"],
    &["recover", "db", "--authoritative", "source", "--yes"],
    &["recover", "--locks", "--yes"],
];

fn subcommands() -> Vec<String> {
    let names: Vec<String> = Arguments::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    assert!(names.len() >= 16, "{names:?}");
    names
}
