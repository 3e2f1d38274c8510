//! A shuntd for a test, and the command line that talks to it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use migration_proto::target::{Request, Response};
use serde_json::Value;

use crate::{load_module, run, volume::Connection, wait_until};

/// The fields of a status that change without a command.
const CHANGES_BY_ITSELF: [&str; 8] = [
    "application",
    "cutover",
    "dirty_percent",
    "rate_bytes_per_second",
    "eta_seconds",
    "restarts",
    "dirty_bytes",
    "copied_bytes",
];

/// A shuntd with directories of its own.
#[derive(Debug)]
pub struct Host {
    folder: tempfile::TempDir,
    state: PathBuf,
    shuntd: Option<Child>,
    /// Whether the programs can be ended at named places.
    crash_points: bool,
}

/// The result of a command.
#[derive(Debug, Clone)]
pub struct CommandOutput {
    /// The exit status.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub error: String,
}

impl Host {
    /// Starts a shuntd.
    #[must_use]
    pub fn new() -> Self {
        load_module("ublk_drv");
        Self::without_driver()
    }

    /// Starts a shuntd that, like its ublk-targets, can be ended at named places. The programs must
    /// have been built with the feature `crash-points`, as `scripts/test` does.
    #[must_use]
    pub fn with_crash_points() -> Self {
        load_module("ublk_drv");
        Self::begin_with(None, true)
    }

    /// Arms a crash point: from now on the first process that reaches it ends there.
    ///
    /// # Panics
    /// If it cannot be armed.
    pub fn arm(&self, point: &str) {
        let (new, file) = (self.folder.path().join("new"), self.crash_point_file());
        std::fs::write(&new, point).expect("a crash point");
        std::fs::rename(new, file).expect("a crash point");
    }

    /// Whether a process has ended at the crash point that was armed.
    #[must_use]
    pub fn has_fired(&self) -> bool {
        !self.crash_point_file().exists()
    }

    fn crash_point_file(&self) -> PathBuf {
        self.folder.path().join("crash-point")
    }

    /// Waits until a crash point has ended shuntd, that is, by SIGKILL.
    ///
    /// # Panics
    /// If it does not.
    pub fn see_shuntd_killed(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let mut child = self.shuntd.take().expect("shuntd runs");
        let mut status = None;
        wait_until("shuntd ends", || {
            status = child.try_wait().expect("its status");
            status.is_some()
        });
        let signal = status.and_then(|status| status.signal());
        assert_eq!(signal, Some(libc::SIGKILL), "{status:?}");
    }

    /// Starts a shuntd without loading the driver.
    #[must_use]
    pub fn without_driver() -> Self {
        Self::begin_with(None, false)
    }

    /// Starts a shuntd that keeps its state in the folder `state`.
    #[must_use]
    pub fn with_state(state: &Path) -> Self {
        load_module("ublk_drv");
        Self::begin_with(Some(state), false)
    }

    fn begin_with(state: Option<&Path>, crash_points: bool) -> Self {
        let folder = tempfile::tempdir_in("/run").expect("a folder");
        let state = state.map_or_else(|| folder.path().join("state"), Path::to_owned);
        let mut host = Self {
            folder,
            state,
            shuntd: None,
            crash_points,
        };
        host.start_shuntd();
        host
    }

    /// The directory of the map files, the database and the logs.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone()
    }

    /// shuntd's process id.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn shuntd_pid(&self) -> u64 {
        self.shuntd.as_ref().expect("shuntd runs").id().into()
    }

    /// shuntd's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/shuntd.sock")
    }

    /// The control socket of a volume.
    #[must_use]
    pub fn volume_socket(&self, volume: &str) -> PathBuf {
        self.folder
            .path()
            .join(format!("run/volumes/{volume}.sock"))
    }

    /// The map file of a volume.
    #[must_use]
    pub fn map(&self, volume: &str) -> PathBuf {
        self.state_dir().join(format!("volumes/{volume}/map"))
    }

    /// Starts shuntd, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_shuntd(&mut self) {
        self.launch_shuntd();
        wait_until("shuntd answers", || self.shunt(&["list"]).code == 0);
    }

    /// Starts shuntd, and does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn launch_shuntd(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.folder.path().join("log"));
        let mut command = Command::new("shuntd");
        if self.crash_points {
            command.env("SHUNT_CRASH_POINT_FILE", self.crash_point_file());
        }
        let child = command
            .args([Path::new("--state-dir"), &self.state_dir()])
            .args([Path::new("--runtime-dir"), &self.folder.path().join("run")])
            .stdin(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("shuntd");
        self.shuntd = Some(child);
    }

    /// Kills shuntd (SIGKILL).
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_shuntd(&mut self) {
        let mut child = self.shuntd.take().expect("shuntd runs");
        child.kill().expect("kill shuntd");
        child.wait().expect("its end");
    }

    /// Sends shuntd a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal_shuntd(&self, signal: i32) {
        let child = self.shuntd.as_ref().expect("shuntd runs");
        // SAFETY: kill takes numbers only.
        let result = unsafe { libc::kill(child.id().cast_signed(), signal) };
        assert_eq!(result, 0, "signal {signal} to shuntd");
    }

    /// Ends shuntd as an administrator does. Returns its exit status.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop_shuntd(&mut self) -> Option<i32> {
        self.signal_shuntd(libc::SIGTERM);
        let mut child = self.shuntd.take().expect("shuntd runs");
        let mut status = None;
        wait_until("shuntd ends", || {
            status = child.try_wait().expect("its status");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Starts `shunt`, and does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn begin(&self, arguments: &[&str]) -> Child {
        Command::new("shunt")
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("shunt")
    }

    /// Runs `shunt`.
    ///
    /// # Panics
    /// With `--json`: if it prints a line that `docs/schema` does not allow.
    #[must_use]
    pub fn shunt(&self, arguments: &[&str]) -> CommandOutput {
        let socket = self.socket();
        let mut all = vec!["--socket", socket.to_str().expect("a plain path")];
        all.extend(arguments);
        let output = run("shunt", &all);
        let output = CommandOutput {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        if arguments.contains(&"--json") {
            let _ = schema_check::parse_lines(&output.out);
            // Messages for people may stand before the record of an error.
            let records = output.error.lines().filter(|line| line.starts_with('{'));
            records.for_each(|line| drop(schema_check::parse_lines(line)));
        }
        output
    }

    /// Runs `shunt`, which must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn ok(&self, arguments: &[&str]) -> CommandOutput {
        let said = self.shunt(arguments);
        assert_eq!(
            said.code,
            0,
            "shunt {arguments:?}: {said:?}\n{}",
            self.log()
        );
        said
    }

    /// Runs `shunt`, which must refuse with the exit status `code`, name all `words` and a next
    /// command, and change nothing.
    ///
    /// # Panics
    /// If it does not refuse in that way.
    pub fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let before = self.records();
        let said = self.shunt(arguments);
        assert_eq!(said.code, code, "shunt {arguments:?}: {said:?}");
        for word in words {
            assert!(
                said.error.contains(word),
                "shunt {arguments:?} does not say {word:?}: {said:?}"
            );
        }
        assert!(
            said.error.contains("next: "),
            "shunt {arguments:?} names no next command: {said:?}"
        );
        assert_eq!(
            self.records(),
            before,
            "shunt {arguments:?} changed something"
        );
    }

    /// The records of `status --json`, without the fields that change without a command.
    #[must_use]
    pub fn records(&self) -> Vec<Value> {
        let mut records = self.status(&[]);
        for record in &mut records {
            if let Some(record) = record.as_object_mut() {
                record.retain(|key, _| !CHANGES_BY_ITSELF.contains(&key.as_str()));
            }
        }
        records
    }

    fn status(&self, session: &[&str]) -> Vec<Value> {
        let mut arguments = vec!["status", "--json"];
        arguments.extend(session);
        schema_check::parse_lines(&self.shunt(&arguments).out)
    }

    /// The record of a volume.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn volume(&self, volume: &str) -> Value {
        let found = self
            .status(&[])
            .into_iter()
            .find(|record| record["type"] == "volume" && record["volume"] == volume);
        found.unwrap_or_else(|| panic!("no volume {volume}"))
    }

    /// The record of the pair of a volume in a session that has not ended, if there is one.
    #[must_use]
    pub fn live_pair(&self, volume: &str) -> Option<Value> {
        self.status(&[]).into_iter().find(|record| {
            let ended = record["state"] == "committed" || record["state"] == "cancelled";
            record["type"] == "pair" && record["volume"] == volume && !ended
        })
    }

    /// The record of a session's only pair.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn pair(&self, session: &str) -> Value {
        let found = self
            .status(&[session])
            .into_iter()
            .find(|record| record["type"] == "pair");
        found.unwrap_or_else(|| panic!("no pair in session {session}"))
    }

    /// Waits until a session is in a state.
    pub fn wait_for(&self, session: &str, state: &str) {
        self.ok(&["wait", session, "--for", state, "--timeout", "180"]);
    }

    /// Waits until a session's only pair is in sync, on whichever side.
    pub fn wait_until_in_sync(&self, session: &str) {
        wait_until("the pair is in sync", || {
            let state = self.pair(session)["state"].clone();
            state == "source-selected" || state == "target-selected"
        });
    }

    /// `/dev/shunt/NAME`.
    #[must_use]
    pub fn device(volume: &str) -> String {
        format!("/dev/shunt/{volume}")
    }

    /// Attaches a volume, and migrates it as far as `source-selected`. The contents of the target
    /// are lost.
    pub fn bring_into_sync(&self, volume: &str, source: &str, target: &str, session: &str) {
        self.ok(&["attach", volume, source]);
        let pair = format!("{volume}:{target}");
        self.ok(&["create", session, &pair, "--overwrite"]);
        self.ok(&["start", session]);
        self.wait_for(session, "source-selected");
    }

    /// A connection to the volume's ublk-target.
    #[must_use]
    pub fn connect(&self, volume: &str) -> Connection {
        Connection::open(&self.volume_socket(volume))
    }

    /// Kills a volume's ublk-target (SIGKILL) and waits until shuntd has started the next.
    ///
    /// # Panics
    /// If none comes.
    pub fn kill_target(&self, volume: &str) {
        let old = self.kill_target_only(volume);
        wait_until("the volume comes back", || {
            let record = self.volume(volume);
            record["state"] == "attached" && record["pid"].as_i64() != Some(old.into())
        });
    }

    /// Kills a volume's ublk-target (SIGKILL). Returns its process id.
    ///
    /// # Panics
    /// If there is none.
    pub fn kill_target_only(&self, volume: &str) -> i32 {
        let pid = self.connect(volume).status().pid.cast_signed();
        // SAFETY: kill takes numbers only.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "kill {pid}");
        pid
    }

    /// Holds requests for a moment, and compares both legs of a volume.
    ///
    /// # Panics
    /// If they differ.
    pub fn assert_legs_equal(&self, volume: &str, source: &str, target: &str) {
        let equal = self
            .connect(volume)
            .while_suspended(|| crate::lun::are_equal(source, target));
        assert!(equal, "the legs of {volume} differ");
    }

    /// What shuntd and the volumes have logged, for a failure's message.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        let mut logs = vec![self.folder.path().join("log")];
        if let Ok(volumes) = std::fs::read_dir(self.state_dir().join("volumes")) {
            logs.extend(
                volumes
                    .flatten()
                    .map(|volume| volume.path().join("ublk-target.log")),
            );
        }
        for log in logs {
            let content = std::fs::read_to_string(&log).unwrap_or_default();
            text += &format!("--- {}\n{content}", log.display());
        }
        text
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
            // What this test leaves behind must not fail the next ones.
            for name in std::fs::read_dir("/dev/shunt")
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = std::fs::remove_file(name.path());
            }
        }
        if let Some(mut child) = self.shuntd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let volumes = std::fs::read_dir(self.folder.path().join("run/volumes"));
        for socket in volumes.into_iter().flatten().flatten() {
            if std::os::unix::net::UnixStream::connect(socket.path()).is_err() {
                continue;
            }
            let mut connection = Connection::open(&socket.path());
            let pid = connection.status().pid;
            if connection.ask(&Request::Stop) != Response::Done {
                let _ = run("kill", &["-9", &pid.to_string()]);
            }
            wait_until("the volume's process ends", || {
                !Path::new(&format!("/proc/{pid}")).exists()
            });
        }
    }
}
