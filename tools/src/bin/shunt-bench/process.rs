//! Programs that shunt-bench runs, and Ctrl-C.
//!
//! Every program gets a process group of its own, so that Ctrl-C reaches shunt-bench alone.
//! shunt-bench then ends the programs in order: an error is returned to the callers, and each of
//! them removes what it has set up.

use std::{
    fs::File,
    io::{Read, Seek},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The interval of checks whether a program has ended, or a result is there.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a program may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long a program that cleans up may take.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);

/// When to stop waiting for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// When shunt-bench receives a signal to end.
    Interrupted,
    /// After [`CLEANUP_LIMIT`], and not at a signal: the program cleans up.
    CleanedUp,
}

/// Writes a message about the progress to standard error.
pub(crate) fn say(text: &str) {
    eprintln!("shunt-bench: {text}");
}

/// Records SIGINT, SIGTERM and SIGHUP from now on. They are not blocked, because child processes
/// would inherit the blocked signals, and could then not be ended by them.
pub(crate) fn watch_signals() -> std::io::Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::flag::register(signal as i32, Arc::clone(&INTERRUPTED))?;
    }
    Ok(())
}

/// Fails if shunt-bench has received a signal to end.
pub(crate) fn check_interrupted() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits at most `limit` until `look` returns a value; returns the value.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    look: impl Fn() -> Option<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        check_interrupted()?;
        if started.elapsed() > limit {
            bail!("{what} did not come within {} s", limit.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Runs a program to its end; returns its standard output, followed by its standard error.
/// `words[0]` is the program.
pub(crate) fn run(words: &[&str], directory: &Path, until: Until) -> anyhow::Result<String> {
    let mut stdout = tempfile::tempfile_in(directory).context("temporary file")?;
    let mut stderr = tempfile::tempfile_in(directory).context("temporary file")?;
    let mut child = command(words)
        .current_dir(directory)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {}", words[0]))?;
    let status = wait(&mut child, until).with_context(|| words[0].to_owned())?;
    if !status.success() {
        bail!(
            "{}: {status}\n{}",
            words.join(" "),
            text_of(&mut stderr)?.trim_end()
        );
    }
    // dd reports on standard error.
    Ok(text_of(&mut stdout)? + &text_of(&mut stderr)?)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .process_group(0);
    command
}

fn wait(child: &mut Child, until: Until) -> anyhow::Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let end = match until {
            Until::Interrupted => check_interrupted(),
            Until::CleanedUp if started.elapsed() > CLEANUP_LIMIT => {
                Err(anyhow::anyhow!("it did not end"))
            }
            Until::CleanedUp => Ok(()),
        };
        if let Err(error) = end {
            end_child(child);
            return Err(error);
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn text_of(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ends a child with SIGTERM, or after [`END_LIMIT`] with SIGKILL.
fn end_child(child: &mut Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    // The child may have ended already. Nobody has waited for it, so the id still belongs to it.
    let _ = kill(pid, Signal::SIGTERM);
    let started = Instant::now();
    while started.elapsed() < END_LIMIT {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A program that runs in the background; ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts the program; its output goes to the file `log` in `directory`.
    pub(crate) fn start(words: &[&str], directory: &Path, log: &str) -> anyhow::Result<Self> {
        let log = File::create(directory.join(log)).context("log of a server")?;
        let child = command(words)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", words[0]))?;
        Ok(Self { child })
    }

    /// The process id of the program.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end_child(&mut self.child);
    }
}
