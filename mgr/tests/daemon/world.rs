//! A world for a test: shuntd in a thread of the test, LUNs that are files, and the fake
//! ublk-target.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use mgr::daemon::{self, Config, HostChecks, StartError};
use mgr::history;
use migration_proto::frame;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{
    Failure, FailureKind, Line, PairRecord, PairSpec, Record, Request, Response, SessionOptions,
    SessionRecord, VerifyPolicy, VolumeRecord,
};
use migration_proto::route::Side;
use migration_proto::{Hello, Welcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::fake::{ARGUMENTS, Whim};

pub(crate) const MIB: u64 = 1 << 20;
/// The time limit of every wait.
const DEADLINE: Duration = Duration::from_secs(30);

/// The sender that stops shuntd, and the thread of shuntd.
type Daemon = (oneshot::Sender<()>, JoinHandle<Result<(), StartError>>);

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: Config,
    daemon: Option<Daemon>,
}

impl World {
    /// A world with a running shuntd.
    pub(crate) fn new() -> Self {
        let mut world = Self::stopped();
        world.start();
        world
    }

    pub(crate) fn stopped() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = directory.path();
        let program = root.join("ublk-target");
        let own = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n{ARGUMENTS}=\"$*\" exec {} --exact fake::run_as_ublk_target --ignored --nocapture\n",
            own.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        // The path of a socket is limited in length, and the build folder may be deep.
        let runtime_directory = PathBuf::from(format!(
            "/tmp/shunt-test-{}",
            root.file_name().unwrap().to_string_lossy()
        ));
        let config = Config {
            device_directory: root.join("dev"),
            host_checks: HostChecks {
                root: false,
                ublk: false,
            },
            ..Config::new(root.join("state"), runtime_directory, program)
        };
        Self {
            directory,
            config,
            daemon: None,
        }
    }

    pub(crate) fn start(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let config = self.config.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let result = runtime.block_on(daemon::run(config, async {
                let _ = stopped.await;
            }));
            runtime.shutdown_background();
            result
        });
        self.daemon = Some((stop, thread));
        self.wait("shuntd listens", |world| {
            UnixStream::connect(world.config.control_socket()).ok()
        });
    }

    /// Starts shuntd, which must fail; returns the error.
    pub(crate) fn start_error(&self) -> StartError {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let running = daemon::run(self.config.clone(), std::future::pending());
        runtime
            .block_on(async { tokio::time::timeout(DEADLINE, running).await })
            .expect("shuntd has started")
            .unwrap_err()
    }

    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.daemon.take() {
            let _ = stop.send(());
            thread.join().unwrap().unwrap();
        }
    }

    /// Creates a LUN filled with bytes that depend on `seed`; with seed 0 they are zeroes.
    pub(crate) fn lun(&self, name: &str, size_bytes: u64, seed: u8) -> PathBuf {
        let path = self.directory.path().join(name);
        if seed == 0 {
            File::create(&path).unwrap().set_len(size_bytes).unwrap();
        } else {
            let bytes: Vec<u8> = (0..size_bytes).map(|at| (at / 512) as u8 ^ seed).collect();
            fs::write(&path, bytes).unwrap();
        }
        path
    }

    pub(crate) fn map(&self, volume: &str) -> PathBuf {
        self.config
            .state_directory
            .join("volumes")
            .join(volume)
            .join("map")
    }

    pub(crate) fn link(&self, volume: &str) -> PathBuf {
        self.config.device_directory.join(volume)
    }

    pub(crate) fn set(&self, volume: &str, whim: Whim) {
        fs::write(whim.path(&self.map(volume)), "").unwrap();
    }

    pub(crate) fn unset(&self, volume: &str, whim: Whim) {
        let _ = fs::remove_file(whim.path(&self.map(volume)));
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.config.control_socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE * 3)).unwrap();
        frame::write(&mut stream, &Hello::current()).unwrap();
        let welcome: Welcome = frame::read(&mut stream).unwrap();
        assert!(matches!(welcome, Welcome::Ready { .. }));
        stream
    }

    pub(crate) fn ask(&self, request: &Request) -> Response {
        let mut stream = self.connect();
        frame::write(&mut stream, request).unwrap();
        frame::read(&mut stream).unwrap()
    }

    /// Sends a request that must succeed. Returns whether something changed, and the messages.
    pub(crate) fn done(&self, request: &Request) -> (bool, String) {
        match self.ask(request) {
            Response::Done { changed, messages } => (changed, messages.join("\n")),
            other => panic!("{request:?}: {other:?}"),
        }
    }

    /// Sends a request that must change something; returns the messages.
    pub(crate) fn changes(&self, request: &Request) -> String {
        let (changed, messages) = self.done(request);
        assert!(changed, "{request:?}: {messages}");
        messages
    }

    /// Sends a request that must succeed and change nothing.
    pub(crate) fn already(&self, request: &Request) {
        let (changed, messages) = self.done(request);
        assert!(!changed, "{request:?}: {messages}");
    }

    /// Sends a request that must fail with `kind`; returns the failure.
    pub(crate) fn fails(&self, kind: FailureKind, request: &Request) -> Failure {
        match self.ask(request) {
            Response::Failed(failure) => {
                assert_eq!(failure.kind, kind, "{request:?}: {failure:?}");
                assert!(
                    !failure.object.is_empty()
                        && !failure.cause.is_empty()
                        && !failure.next.is_empty()
                );
                failure
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }

    pub(crate) fn refused(&self, request: &Request) -> Failure {
        self.fails(FailureKind::Refused, request)
    }

    pub(crate) fn records(&self, request: &Request) -> Vec<Record> {
        match self.ask(request) {
            Response::Records { records } => {
                records.iter().for_each(see_that_schema_allows);
                records
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }

    pub(crate) fn volume(&self, name: &str) -> Option<VolumeRecord> {
        self.records(&Request::Status { session: None })
            .into_iter()
            .find_map(|record| match record {
                Record::Volume(volume) if volume.volume == name => Some(volume),
                _ => None,
            })
    }

    pub(crate) fn session(&self, name: &str) -> SessionRecord {
        let records = self.records(&Request::Status {
            session: Some(name.to_owned()),
        });
        match &records[0] {
            Record::Session(session) => session.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn pairs(&self, session: &str) -> Vec<PairRecord> {
        let records = self.records(&Request::Status {
            session: Some(session.to_owned()),
        });
        records
            .into_iter()
            .filter_map(|record| match record {
                Record::Pair(pair) => Some(pair),
                _ => None,
            })
            .collect()
    }

    /// The history as sentences.
    pub(crate) fn history(&self) -> Vec<String> {
        let records = self.records(&whole_history());
        records
            .into_iter()
            .map(|record| match record {
                Record::Event(event) => history::of_record(&event),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    pub(crate) fn wait_for_state(&self, session: &str, state: &str) {
        self.wait(state, |world| {
            (world.session(session).state == state).then_some(())
        });
    }

    /// Waits until `look` finds something.
    pub(crate) fn wait<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < until, "waited in vain: {what}");
            sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill_ublk_target(&self, volume: &str) {
        let pid = self.volume(volume).unwrap().pid.unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    }

    /// Changes the database to what a crash at another moment would have left. shuntd must be
    /// stopped.
    pub(crate) fn rewrite(&self, statement: &str) {
        assert!(self.daemon.is_none());
        let connection = rusqlite::Connection::open(self.config.database()).unwrap();
        assert_eq!(connection.execute(statement, []).unwrap(), 1, "{statement}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.daemon.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
        // The ublk-targets outlive their shuntd.
        for volume in fs::read_dir(self.config.state_directory.join("volumes"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let pid = fs::read_to_string(volume.path().join("map.pid"))
                .ok()
                .and_then(|text| text.parse().ok());
            if let Some(pid) = pid.filter(|_| is_served(&volume.path())) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = fs::remove_dir_all(&self.config.runtime_directory);
    }
}

/// Whether a fake holds the lock of the volume. Only then the pid in its file is still valid.
fn is_served(volume: &Path) -> bool {
    let Ok(lock) = File::open(volume.join("map.lock")) else {
        return false;
    };
    nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).is_err()
}

/// Checks a record as `shunt --json` prints it.
pub(crate) fn see_that_schema_allows(record: &Record) {
    let line = Line::of(record, history::of_record).text();
    let _ = schema_check::parse_lines(&line);
}

pub(crate) fn whole_history() -> Request {
    Request::History {
        session: None,
        after: None,
    }
}

/// Parses a path, or several paths with commas between them.
pub(crate) fn paths(text: &Path) -> LunPaths {
    text.to_str().unwrap().parse().unwrap()
}

pub(crate) fn attach(volume: &str, lun: &Path) -> Request {
    Request::Attach {
        accept_weak_identity: false,
        volume: volume.to_owned(),
        luns: paths(lun),
    }
}

pub(crate) fn detach(volume: &str) -> Request {
    Request::Detach {
        volume: volume.to_owned(),
    }
}

pub(crate) fn create(session: &str, pairs: &[(&str, &Path)]) -> Request {
    let pairs = pairs.iter().map(|(volume, target)| PairSpec {
        volume: (*volume).to_owned(),
        target: paths(target),
    });
    Request::Create {
        session: session.to_owned(),
        pairs: pairs.collect(),
        options: SessionOptions::default(),
    }
}

pub(crate) fn overwriting(request: Request) -> Request {
    match request {
        Request::Create {
            session,
            pairs,
            options,
        } => Request::Create {
            session,
            pairs,
            options: SessionOptions {
                overwrite: true,
                ..options
            },
        },
        other => other,
    }
}

pub(crate) fn proving(request: Request, proof: VerifyPolicy) -> Request {
    match request {
        Request::Create {
            session,
            pairs,
            options,
        } => Request::Create {
            session,
            pairs,
            options: SessionOptions {
                verify: proof,
                ..options
            },
        },
        other => other,
    }
}

pub(crate) fn verify(session: &str, repair: bool) -> Request {
    Request::Verify {
        session: session.to_owned(),
        repair,
    }
}

pub(crate) fn start(session: &str) -> Request {
    Request::Start {
        session: session.to_owned(),
    }
}

pub(crate) fn switch(session: &str) -> Request {
    Request::Switch {
        session: session.to_owned(),
        max_pause_ms: 5000,
    }
}

pub(crate) fn undo(session: &str) -> Request {
    Request::Undo {
        session: session.to_owned(),
        max_pause_ms: 5000,
    }
}

pub(crate) fn commit(session: &str) -> Request {
    Request::Commit {
        session: session.to_owned(),
    }
}

pub(crate) fn cancel(session: &str) -> Request {
    Request::Cancel {
        session: session.to_owned(),
    }
}

pub(crate) fn pause(session: &str) -> Request {
    Request::Pause {
        session: session.to_owned(),
    }
}

pub(crate) fn resume(session: &str) -> Request {
    Request::Resume {
        session: session.to_owned(),
    }
}

pub(crate) fn recover(volume: &str, authoritative: Side) -> Request {
    Request::Recover {
        volume: volume.to_owned(),
        authoritative,
        against_record: false,
        dry_run: false,
    }
}
