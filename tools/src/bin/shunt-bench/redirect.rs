//! The pause of applications when the storage below them changes (a redirect): a switch and an undo
//! of Shunt, and device-mapper's exchange of a linear table.
//!
//! An application (fio) writes all the time. Programs command the redirects, as an operator does.
//! The pause that the application sees is its longest request that was in progress during the
//! redirect. The longest request in a period of the same length without a redirect is reported for
//! comparison: a shorter pause cannot be measured.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;

use crate::{
    contestant::MappedDevice,
    disks::Disks,
    process::{Server, check_interrupted, say, wait_for},
    shunt::Daemon,
};

/// The time between a redirect and the quiet period after it.
const SETTLE: Duration = Duration::from_millis(50);
/// How long the application may take to begin.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);
/// How long the application writes before the first redirect.
const WARM_UP: Duration = Duration::from_secs(2);
/// The name of the application's log in the work folder.
const LOG: &str = "redirect";

/// The pauses of one kind of redirect.
#[derive(Debug, Clone)]
pub(crate) struct Pauses {
    /// The kind of the redirect, and what was measured.
    pub(crate) name: &'static str,
    /// Each pause, in microseconds.
    pub(crate) pauses_us: Vec<f64>,
}

/// Measures `redirects` redirects of each kind.
pub(crate) fn measure(
    disks: &Disks,
    daemon: &Daemon,
    work: &Path,
    redirects: u32,
) -> anyhow::Result<Vec<Pauses>> {
    let mut found = Vec::new();
    say(&format!("{redirects} redirects: shunt"));
    let mut volume = daemon.attach(&disks.source)?;
    volume.mirror_onto(&disks.target)?;
    let mut own = Vec::new();
    let windows = under_load(
        &volume.device.clone(),
        work,
        redirects,
        |forth| volume.redirect(forth),
        || {
            own.push(volume.last_pause_us()?);
            Ok(())
        },
    )?;
    volume.take_away()?;
    found.push(Pauses {
        name: "shunt, as reported",
        pauses_us: own,
    });
    found.extend(as_seen(
        work,
        &windows,
        ["shunt, application", "shunt, no redirect"],
    )?);
    for (names, order) in DM_ORDERS {
        say(&format!("{redirects} redirects: {}", names[0]));
        let device = MappedDevice::set_up("shunt-bench-linear", &disks.source, work)?;
        let windows = under_load(
            &device.path.clone(),
            work,
            redirects,
            |forth| {
                let onto = if forth { &disks.target } else { &disks.source };
                device.redirect(onto, order)
            },
            || Ok(()),
        )?;
        drop(device);
        found.extend(as_seen(work, &windows, *names)?);
    }
    Ok(found)
}

/// The verbs of dmsetup for a redirect, in order; `reload` gets the new table.
type Order = &'static [&'static str];

const DM_ORDERS: &[([&str; 2], Order)] = &[
    (
        ["dm-linear, application", "dm-linear, no redirect"],
        &["suspend", "reload", "resume"],
    ),
    (
        [
            "dm-linear prepared, application",
            "dm-linear prepared, no redirect",
        ],
        &["reload", "resume"],
    ),
];

/// The period of a redirect, and a quiet period of the same length without a redirect. Begin and
/// end are in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    redirect_ms: (u64, u64),
    quiet_ms: (u64, u64),
}

/// Redirects to the target and back while an application writes; calls `after` after each redirect.
fn under_load(
    device: &Path,
    work: &Path,
    redirects: u32,
    redirect: impl Fn(bool) -> anyhow::Result<()>,
    mut after: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Window>> {
    let log = log(work);
    let _ = fs::remove_file(&log);
    let filename = format!("--filename={}", device.display());
    let prefix = format!("--write_lat_log={}", work.join(LOG).display());
    let words = [
        "fio",
        "--name=application",
        &filename,
        &prefix,
        "--log_unix_epoch=1",
        // Log only the longest request of every 5 ms.
        "--log_avg_msec=5",
        "--log_max_value=1",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--ioengine=io_uring",
        "--direct=1",
        "--norandommap",
        "--randrepeat=0",
        "--time_based",
        "--runtime=86400",
        "--output=application.out",
    ];
    let fio = Server::start(&words, work, "application.log")?;
    let written = || {
        let name = device.canonicalize().ok()?;
        let stat = Path::new("/sys/block").join(name.file_name()?).join("stat");
        let text = fs::read_to_string(stat).ok()?;
        text.split_whitespace().nth(4)?.parse::<u64>().ok()
    };
    let before = written().context("the device has no counters")?;
    wait_for("the application's first writes", BEGIN_LIMIT, || {
        (written()? > before + 1000).then_some(())
    })?;
    thread::sleep(WARM_UP);
    let mut windows = Vec::new();
    for number in 0..redirects {
        check_interrupted()?;
        let (began, begun_ms) = (Instant::now(), now_ms());
        redirect(number % 2 == 0)?;
        let (took, ended_ms) = (began.elapsed(), now_ms());
        after()?;
        thread::sleep(SETTLE);
        let quiet_ms = now_ms();
        thread::sleep(took);
        windows.push(Window {
            redirect_ms: (begun_ms, ended_ms),
            quiet_ms: (quiet_ms, now_ms()),
        });
    }
    // fio writes its log when it receives SIGTERM.
    drop(fio);
    wait_for("the application's log", BEGIN_LIMIT, || {
        log.is_file().then_some(())
    })?;
    Ok(windows)
}

fn log(work: &Path) -> PathBuf {
    work.join(format!("{LOG}_lat.1.log"))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The pauses that the application saw, in the periods with a redirect and in the quiet periods.
fn as_seen(
    work: &Path,
    windows: &[Window],
    names: [&'static str; 2],
) -> anyhow::Result<[Pauses; 2]> {
    let text = fs::read_to_string(log(work)).context("the application's log")?;
    let requests: Vec<Request> = text.lines().filter_map(Request::read).collect();
    let seen = |of: fn(&Window) -> (u64, u64)| {
        let longest = |window: &Window| longest_us(&requests, of(window));
        windows.iter().filter_map(longest).collect()
    };
    let [redirect, quiet] = names;
    Ok([
        Pauses {
            name: redirect,
            pauses_us: seen(|window| window.redirect_ms),
        },
        Pauses {
            name: quiet,
            pauses_us: seen(|window| window.quiet_ms),
        },
    ])
}

/// A request of the application.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Request {
    ended_ms: u64,
    took_ns: u64,
}

impl Request {
    /// Parses a line of fio's log: `time in ms, latency in ns, direction, size, offset, priority`.
    fn read(line: &str) -> Option<Self> {
        let mut numbers = line.split(',').map(|text| text.trim().parse().ok());
        Some(Self {
            ended_ms: numbers.next()??,
            took_ns: numbers.next()??,
        })
    }

    fn was_under_way(&self, (from_ms, to_ms): (u64, u64)) -> bool {
        self.ended_ms >= from_ms && self.ended_ms.saturating_sub(self.took_ns / 1_000_000) <= to_ms
    }
}

/// The longest request that was in progress in the window; `None` if there was none.
fn longest_us(requests: &[Request], window: (u64, u64)) -> Option<f64> {
    let under_way = requests
        .iter()
        .filter(|request| request.was_under_way(window));
    let longest = under_way.map(|request| request.took_ns).max()?;
    Some(longest as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_request_that_overlaps_the_window_counts() {
        let lines = "1000, 2000000, 1, 4096, 0, 0\n1010, 50000000, 1, 4096, 0, 0\n1100, 1500000, 1, 4096, 0, 0\nnonsense";
        let requests: Vec<Request> = lines.lines().filter_map(Request::read).collect();
        assert_eq!(requests.len(), 3);
        assert_eq!(longest_us(&requests, (999, 1001)), Some(50_000.0));
        assert_eq!(longest_us(&requests, (1011, 1100)), Some(1500.0));
        assert_eq!(longest_us(&requests, (1200, 1300)), None);
    }
}
