//! Starts ublk-target so that it outlives shuntd, and detects the end of a process.
//!
//! Only this module and `clock` have unsafe code in the daemon.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use migration_core::route::Side;
use migration_proto::route::{Descriptor, MapSummary};
use migration_proto::target::EXIT_MAP_DAMAGED;
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use super::held::HeldLuns;

/// How many bytes at the end of a log are searched for its last line.
const LOG_TAIL_BYTES: u64 = 8192;

/// Maximum length of a log line that is shown, in characters.
const LOG_LINE_CHARACTERS_MAX: usize = 500;

/// The name (`argv[0]`) of a process that serves a volume. When systemd kills the remaining
/// processes at a shutdown, it spares a process of root whose name begins with `@`: file systems on
/// the volume are unmounted after that.
const SERVER_NAME: &str = "@ublk-target";

/// The parameters of a volume's task.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) volume_id: String,
    pub(crate) program: PathBuf,
    pub(crate) map: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
    /// How long its ublk-target may give no useful answer before it is ended.
    pub(crate) silent_max: Duration,
    /// Whether the volume has never been served: its first start is not a restart.
    pub(crate) new: bool,
}

/// Starts `ublk-target serve` in a new session. The process inherits no descriptor of shuntd except
/// those that `held` hands on.
pub(super) fn spawn_serve(setup: &Setup, held: &HeldLuns) -> io::Result<Child> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&setup.log)?;
    let mut command = Command::new(&setup.program);
    command
        .arg0(SERVER_NAME)
        .arg("serve")
        .arg("--map")
        .arg(&setup.map)
        .arg("--socket")
        .arg(&setup.socket)
        .arg("--volume-id")
        .arg(&setup.volume_id)
        .args(
            held.argument()
                .iter()
                .flat_map(|held| ["--inherited", held]),
        )
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(false);
    let inherited = held.descriptors();
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid, close_range and
    // fcntl.
    unsafe {
        command.pre_exec(move || {
            detach()?;
            inherited
                .iter()
                .try_for_each(|descriptor| inherit(*descriptor))
        });
    }
    command.spawn()
}

/// Runs `ublk-target format` to its end, for a volume that uses only the leg `side`. The error is
/// the last message of the program.
pub(crate) async fn format(
    program: &Path,
    map: &Path,
    descriptor: &Descriptor,
    side: Side,
) -> Result<(), String> {
    let descriptor = serde_json::to_vec(descriptor)
        .map_err(|error| format!("cannot describe the volume: {error}"))?;
    let leg = match side {
        Side::Source => "source",
        Side::Target => "target",
    };
    run(program, &["format", "--leg", leg], map, &descriptor)
        .await
        .map(drop)
        .map_err(|failed| failed.cause)
}

/// Why there is no description of a map file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescribeError {
    /// The map file is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The map file was not read, or the output of the program was not understood.
    #[error("{0}")]
    Unknown(String),
}

/// Runs `ublk-target describe`. The error holds the last message of the program.
pub(crate) async fn describe(program: &Path, map: &Path) -> Result<MapSummary, DescribeError> {
    let output = run(program, &["describe"], map, &[]).await;
    let output = output.map_err(
        |failed| match failed.code == Some(EXIT_MAP_DAMAGED.into()) {
            true => DescribeError::Damaged(failed.cause),
            false => DescribeError::Unknown(failed.cause),
        },
    )?;
    let text = String::from_utf8_lossy(&output);
    let line = text.trim_end().lines().next_back().unwrap_or_default();
    serde_json::from_str(line).map_err(|error| {
        DescribeError::Unknown(format!(
            "the output of {} describe is not understood: {error}",
            program.display()
        ))
    })
}

/// A run of ublk-target that failed.
struct Failed {
    /// The last message of the program, or how it ended.
    cause: String,
    /// The exit status, if the program ended with one.
    code: Option<i32>,
}

async fn run(
    program: &Path,
    arguments: &[&str],
    map: &Path,
    input: &[u8],
) -> Result<Vec<u8>, Failed> {
    let failed = |error: io::Error| Failed {
        cause: format!("cannot run {}: {error}", program.display()),
        code: None,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .arg("--map")
        .arg(map)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the program ended early, its own message says why.
        let _ = stdin.write_all(input).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = last_line(&String::from_utf8_lossy(&output.stderr));
    Err(Failed {
        cause: said
            .unwrap_or_else(|| format!("{} ended with {}", program.display(), output.status)),
        code: output.status.code(),
    })
}

/// The last line that was written to a log after `offset`.
pub(super) fn last_log_line(log: &Path, offset: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    let start = offset.max(length.saturating_sub(LOG_TAIL_BYTES));
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    last_line(&String::from_utf8_lossy(&bytes))
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().take(LOG_LINE_CHARACTERS_MAX).collect())
}

fn detach() -> io::Result<()> {
    nix::unistd::setsid()?;
    // Descriptors that shuntd itself inherited without close-on-exec must not stay open in a
    // process that runs for months.
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC touches no memory; the standard streams (0 to 2)
    // are left out.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn inherit(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD changes the flags of the descriptor and touches no memory.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Duplicates a descriptor of another process.
pub(crate) fn duplicate(pid: u32, descriptor: RawFd) -> io::Result<OwnedFd> {
    let process = open_process(pid)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_getfd takes three integers and returns a descriptor or -1.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            descriptor,
            0_u32,
        )
    };
    owned(result)
}

/// Opens a pidfd of the process `pid`; `None` if there is no such process.
fn open_process(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: pidfd_open takes two integers and returns a descriptor or -1.
    match owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) }) {
        Ok(process) => Ok(Some(process)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes ownership of the descriptor that a system call returned.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits for the end of a process that need not be a child.
#[derive(Debug)]
pub(crate) struct ProcessEnd(AsyncFd<OwnedFd>);

impl ProcessEnd {
    /// Opens the process `pid`; `None` if there is no such process.
    pub(crate) fn of(pid: u32) -> io::Result<Option<Self>> {
        let Some(descriptor) = open_process(pid)? else {
            return Ok(None);
        };
        // SAFETY: the descriptor stays open and the same as long as the registration: an `OwnedFd`
        // is never replaced or lent mutably here.
        let registered = unsafe { AsyncFd::register(descriptor) }?;
        Ok(Some(Self(registered)))
    }

    /// Ends the process with SIGKILL. A process that has already ended is no error.
    pub(super) fn kill(&self) -> io::Result<()> {
        // SAFETY: the descriptor stays open during the call, and no siginfo is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.get_ref().as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0_u32,
            )
        };
        let error = io::Error::last_os_error();
        if result == 0 || error.raw_os_error() == Some(libc::ESRCH) {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Returns when the process has ended.
    pub(crate) async fn wait(&self) {
        // The reactor fails only at the end of the runtime: then nobody waits any more.
        if self.0.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_says_something_is_found() {
        assert_eq!(last_line("one\ntwo  \n\n").as_deref(), Some("two"));
        assert_eq!(last_line("\n \n"), None);
    }

    #[test]
    fn lines_before_the_offset_are_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "old\n").unwrap();
        assert_eq!(last_log_line(&log, 0).as_deref(), Some("old"));
        assert_eq!(last_log_line(&log, 4), None);
        assert_eq!(last_log_line(&directory.path().join("none"), 0), None);
    }

    #[tokio::test]
    async fn a_process_is_ended_and_its_end_is_noticed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let end = ProcessEnd::of(child.id().unwrap()).unwrap().unwrap();
        end.kill().unwrap();
        end.wait().await;
        child.wait().await.unwrap();
        end.kill().unwrap();
    }
}
