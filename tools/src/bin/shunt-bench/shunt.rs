//! Control of Shunt through its command line.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::process::{Server, Until, run, say, wait_for};

/// How long shuntd may take to answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take until a target that takes 5 s for each request is degraded.
const DEGRADED_LIMIT: Duration = Duration::from_secs(60);
/// How long a detach that fails is retried.
const DETACH_LIMIT: Duration = Duration::from_secs(5);
const DETACH_AGAIN_AFTER: Duration = Duration::from_millis(100);
const VOLUME: &str = "bench";
const SESSION: &str = "bench";
/// The codes of the history's events for begin and end of a copy.
const CODE_STARTED: &str = "started";
const CODE_IN_SYNC: &str = "in_sync";

/// A shuntd that only this run uses; ended when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    shunt: String,
    socket: String,
    work: PathBuf,
    _server: Server,
}

/// A volume; detached when dropped.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    /// The device that applications open.
    pub(crate) device: PathBuf,
    /// The process that serves the volume.
    pub(crate) pid: u32,
    daemon: &'a Daemon,
    mirrored: bool,
    gone: bool,
}

impl Daemon {
    /// Starts shuntd with all of its state below `work`.
    pub(crate) fn start(programs: Option<&Path>, work: &Path) -> anyhow::Result<Self> {
        let folder = match programs {
            Some(folder) => folder.to_owned(),
            None => env::current_exe()?
                .parent()
                .context("the folder of shunt-bench")?
                .to_owned(),
        };
        let program = |name: &str| -> anyhow::Result<String> {
            let path = folder.join(name);
            if !path.is_file() {
                bail!(
                    "{} does not exist: build it, or use --programs or --contestants and --no-copy",
                    path.display()
                );
            }
            Ok(path.display().to_string())
        };
        let (shuntd, shunt, target) = (
            program("shuntd")?,
            program("shunt")?,
            program("ublk-target")?,
        );
        let [state, runtime] = ["state", "run"].map(|name| work.join(name).display().to_string());
        let words = [
            shuntd.as_str(),
            "--state-dir",
            &state,
            "--runtime-dir",
            &runtime,
            "--ublk-target",
            &target,
        ];
        let server = Server::start(&words, work, "shuntd.log")?;
        let socket = format!("{runtime}/shuntd.sock");
        let daemon = Self {
            shunt,
            socket,
            work: work.to_owned(),
            _server: server,
        };
        wait_for("an answer of shuntd", START_LIMIT, || {
            daemon.shunt(&["list"]).ok()
        })
        .with_context(|| fs::read_to_string(work.join("shuntd.log")).unwrap_or_default())?;
        Ok(daemon)
    }

    /// Attaches the volume over a LUN.
    pub(crate) fn attach(&self, lun: &Path) -> anyhow::Result<Volume<'_>> {
        // Created first, so that its drop also detaches after an attach that was interrupted.
        let mut volume = Volume {
            device: PathBuf::new(),
            pid: 0,
            daemon: self,
            mirrored: false,
            gone: false,
        };
        // A weak identity is acceptable: the disks are used only by this run, within one boot.
        let attach = ["attach", "--accept-weak-identity", VOLUME];
        self.shunt(&[&attach[..], &[&lun.display().to_string()]].concat())?;
        let record = self.record(&["status", "--json"], |record| {
            record["type"] == "volume" && record["volume"] == VOLUME
        })?;
        volume.device = record["kernel_device"]
            .as_str()
            .context("the volume has no device")?
            .into();
        volume.pid = record["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .context("the volume has no process")?;
        Ok(volume)
    }

    fn shunt(&self, words: &[&str]) -> anyhow::Result<String> {
        self.shunt_until(words, Until::Interrupted)
    }

    fn shunt_until(&self, words: &[&str], until: Until) -> anyhow::Result<String> {
        let program = [self.shunt.as_str(), "--quiet", "--socket", &self.socket];
        run(&[&program[..], words].concat(), &self.work, until)
    }

    /// The last record that a command prints and `wanted` accepts.
    fn record(&self, words: &[&str], wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let text = self.shunt(words)?;
        let mut records = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        records
            .rfind(wanted)
            .with_context(|| format!("shunt {} did not print the record: {text}", words.join(" ")))
    }

    /// The time of the last event of the history with this code, in milliseconds since 1970.
    fn history_ms(&self, code: &str) -> anyhow::Result<u64> {
        let is_wanted = |record: &Value| record["code"] == code;
        let record = self.record(&["history", SESSION, "--json"], is_wanted)?;
        record["at_ms"].as_u64().context("an event without a time")
    }
}

impl Volume<'_> {
    /// Mirrors the volume onto a LUN and waits until both are in sync; returns the duration of the
    /// copy.
    pub(crate) fn mirror_onto(&mut self, target: &Path) -> anyhow::Result<Duration> {
        let daemon = self.daemon;
        let pair = format!("{VOLUME}:{}", target.display());
        // Set first, so that a create that was interrupted is also cancelled.
        self.mirrored = true;
        daemon.shunt(&[
            "create",
            "--overwrite",
            "--accept-weak-identity",
            SESSION,
            &pair,
        ])?;
        daemon.shunt(&["start", SESSION])?;
        daemon.shunt(&["wait", SESSION, "--for", "source-selected"])?;
        let (started, ended) = (
            daemon.history_ms(CODE_STARTED)?,
            daemon.history_ms(CODE_IN_SYNC)?,
        );
        Ok(Duration::from_millis(ended.saturating_sub(started).max(1)))
    }

    /// Begins to copy the volume onto a LUN.
    pub(crate) fn begin_copy(&mut self, target: &Path, options: &[&str]) -> anyhow::Result<()> {
        let pair = format!("{VOLUME}:{}", target.display());
        let create = [
            "create",
            "--overwrite",
            "--accept-weak-identity",
            SESSION,
            &pair,
        ];
        // Set first, so that a create that was interrupted is also cancelled.
        self.mirrored = true;
        self.daemon.shunt(&[&create[..], options].concat())?;
        self.daemon.shunt(&["start", SESSION]).map(drop)
    }

    /// The bytes that were copied so far; 0 without a copy.
    pub(crate) fn copied_bytes(&self, copied: bool) -> anyhow::Result<f64> {
        if !copied {
            return Ok(0.0);
        }
        let is_pair = |record: &Value| record["type"] == "pair";
        let record = self
            .daemon
            .record(&["status", SESSION, "--json"], is_pair)?;
        record["copied_bytes"]
            .as_f64()
            .context("a pair without what was copied")
    }

    /// Cancels a copy; fails if the copy was not in progress any more.
    pub(crate) fn end_copy(&mut self) -> anyhow::Result<()> {
        let is_pair = |record: &Value| record["type"] == "pair";
        let record = self
            .daemon
            .record(&["status", SESSION, "--json"], is_pair)?;
        let state = record["state"].as_str().unwrap_or_default().to_owned();
        self.daemon.shunt(&["cancel", "--yes", SESSION])?;
        self.mirrored = false;
        match state.as_str() {
            "syncing" => Ok(()),
            other => bail!("the session is {other} already"),
        }
    }

    /// Writes until the pair is degraded.
    pub(crate) fn write_until_degraded(&self) -> anyhow::Result<()> {
        let to = format!("of={}", self.device.display());
        let write = [
            "dd",
            "if=/dev/zero",
            &to,
            "bs=4k",
            "count=100",
            "oflag=direct",
        ];
        wait_for("a degraded target", DEGRADED_LIMIT, || {
            run(&write, &self.daemon.work, Until::Interrupted).ok()?;
            let degraded =
                |record: &Value| record["type"] == "pair" && record["state"] == "degraded";
            self.daemon
                .record(&["status", SESSION, "--json"], degraded)
                .ok()
        })
        .map(drop)
    }

    /// Switches to the target if `forth`, otherwise undoes that.
    pub(crate) fn redirect(&self, forth: bool) -> anyhow::Result<()> {
        let verb = if forth { "switch" } else { "undo" };
        self.daemon.shunt(&[verb, SESSION]).map(drop)
    }

    /// How long requests were held at the last change of the role, as Shunt reports it.
    pub(crate) fn last_pause_us(&self) -> anyhow::Result<f64> {
        let is_pair = |record: &Value| record["type"] == "pair";
        let record = self
            .daemon
            .record(&["status", SESSION, "--json"], is_pair)?;
        record["last_pause_us"]
            .as_f64()
            .context("a pair without a pause")
    }

    /// Detaches the volume, and returns any error of that.
    pub(crate) fn take_away(mut self) -> anyhow::Result<()> {
        self.detach()
    }

    fn detach(&mut self) -> anyhow::Result<()> {
        self.gone = true;
        if self.mirrored {
            let cancelled = self
                .daemon
                .shunt_until(&["cancel", "--yes", SESSION], Until::CleanedUp);
            if let Err(error) = cancelled {
                // Only reported: there may be no session yet. If there is a session, the detach
                // fails too.
                say(&format!("{error:#}"));
            }
        }
        // udev may still probe the device that fio has just closed.
        let started = Instant::now();
        loop {
            match self
                .daemon
                .shunt_until(&["detach", VOLUME], Until::CleanedUp)
            {
                Err(_) if started.elapsed() < DETACH_LIMIT => thread::sleep(DETACH_AGAIN_AFTER),
                result => return result.map(|_| ()),
            }
        }
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if let Err(error) = self.detach() {
            // The cause may be a session that was not started yet, or a copy that hangs. The volume
            // continues without shuntd.
            say(&format!("the volume was not detached: {error:#}"));
        }
    }
}
