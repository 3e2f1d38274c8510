//! `shunt wait` and `shunt status --watch`: polling the status of sessions.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use migration_proto::manager::{CUTOVER_OVER, Record};

use super::ask::{Poll, wrong_answer};
use super::exit::Exit;
use super::problem::{Problem, Stop};
use super::state::{Goal, Outlook, state_from_name};
use super::{render, screen};
use crate::units::{self, printable};

/// The interval between two status queries of `wait`.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);

/// The interval between two status queries of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a single status query may take even when the time is up: `--timeout 0` checks once.
const LOOK_MIN: Duration = Duration::from_secs(1);

/// A session and the state for which `wait` waits.
#[derive(Debug, Clone)]
pub struct WaitParams {
    /// The session.
    pub session: String,
    /// The state.
    pub goal: Goal,
    /// How long to wait at most; `None`: no limit.
    pub timeout: Option<Duration>,
}

/// Waits until the goal is reached; returns the records of the last status query.
///
/// # Errors
/// The goal cannot be reached any more, the time ran out, or shuntd does not answer.
pub fn wait(poll: &mut Poll, wish: &WaitParams, quiet: bool) -> Result<Vec<Record>, Problem> {
    let started = Instant::now();
    let mut display = Display::new(quiet);
    let mut last = None;
    loop {
        let left = wish
            .timeout
            .map(|limit| limit.saturating_sub(started.elapsed()));
        let look = poll.look(left.map_or(Duration::MAX, |left| left.max(LOOK_MIN)))?;
        if let Some(records) = look {
            let progress = Progress::of(&wish.session, &records).ok_or_else(wrong_answer)?;
            match progress.outlook(wish.goal) {
                Outlook::Reached => {
                    return Ok(records);
                }
                Outlook::Never => {
                    return Err(never(wish, &progress));
                }
                Outlook::Possible => display.show(&progress),
            }
            last = Some(progress);
        } else {
            display.absent();
        }
        let passed = started.elapsed();
        match wish.timeout {
            Some(limit) if passed >= limit => {
                return Err(too_late(wish, limit, last.as_ref()));
            }
            Some(limit) => thread::sleep(WAIT_INTERVAL.min(limit - passed)),
            None => thread::sleep(WAIT_INTERVAL),
        }
    }
}

/// Waits until no pair of the session is being compared; returns the records of the last status
/// query.
///
/// # Errors
/// shuntd does not answer.
pub fn until_compared(poll: &mut Poll, session: &str, quiet: bool) -> Result<Vec<Record>, Problem> {
    let mut display = Display::new(quiet);
    loop {
        match poll.look(Duration::MAX)? {
            Some(records) => {
                let pairs = render::pairs(&records, session);
                if pairs.iter().all(|pair| pair.compared_bytes.is_none()) {
                    return Ok(records);
                }
                display.show(&Progress::of(session, &records).ok_or_else(wrong_answer)?);
            }
            None => display.absent(),
        }
        thread::sleep(WAIT_INTERVAL);
    }
}

/// Shows the status repeatedly: on a terminal until `q` or Ctrl-C, otherwise until Ctrl-C.
///
/// # Errors
/// The reason for any other end.
pub fn watch(poll: &mut Poll, json: bool) -> Result<(), Stop> {
    if io::stdout().is_terminal() && !json {
        return screen::watch(poll).map_or(Ok(()), Err);
    }
    loop {
        let text = match poll.look(Duration::MAX)? {
            Some(records) if json => render::json_lines(&records),
            Some(records) => render::status(&records) + "\n",
            None if json => String::new(),
            None => "shuntd does not answer; waiting for it\n\n".to_owned(),
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        thread::sleep(WATCH_INTERVAL);
    }
}

fn never(wish: &WaitParams, progress: &Progress) -> Problem {
    let mut cause = format!(
        "is {}; {} cannot be reached any more",
        progress.state,
        wish.goal.name()
    );
    if let Some(problem) = &progress.problem {
        cause.push_str(&format!(" ({problem})"));
    }
    Problem::failed(
        format!("session {}", wish.session),
        cause,
        format!("shunt status {}", wish.session),
    )
}

fn too_late(wish: &WaitParams, limit: Duration, last: Option<&Progress>) -> Problem {
    let now = last.map_or_else(
        || "shuntd did not answer meanwhile".to_owned(),
        Progress::line,
    );
    Problem::failed(
        format!("session {}", wish.session),
        format!(
            "not {} within {}: {now}",
            wish.goal.name(),
            units::duration(limit)
        ),
        format!("shunt status {0}, or shunt wait {0} again", wish.session),
    )
    .with_exit(Exit::TimeRanOut)
}

/// The progress of a session in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Progress {
    state: String,
    total_bytes: u64,
    /// The bytes that are still to be copied or compared.
    left_bytes: u64,
    comparing: bool,
    rate_bytes_per_second: Option<u64>,
    eta_seconds: Option<u64>,
    problem: Option<String>,
    /// The cutover that was to make the target authoritative has failed.
    cutover_failed: bool,
}

impl Progress {
    /// The progress from records. `None`: the records do not have the session.
    fn of(session: &str, records: &[Record]) -> Option<Self> {
        let found = render::find_session(records, session)?;
        let over = found
            .cutover
            .as_ref()
            .filter(|last| last.phase == CUTOVER_OVER);
        let mut progress = Self {
            state: found.state.clone(),
            total_bytes: 0,
            left_bytes: 0,
            comparing: false,
            rate_bytes_per_second: None,
            eta_seconds: None,
            problem: over
                .map(|over| format!("cutover: {}", over.cause.as_deref().unwrap_or("over"))),
            cutover_failed: over.is_some(),
        };
        for pair in render::pairs(records, session) {
            progress.total_bytes = progress.total_bytes.saturating_add(pair.size_bytes);
            let left_bytes = pair.compared_bytes.map_or(pair.dirty_bytes, |compared| {
                pair.size_bytes.saturating_sub(compared)
            });
            progress.comparing |= pair.compared_bytes.is_some();
            progress.left_bytes = progress.left_bytes.saturating_add(left_bytes);
            progress.eta_seconds = progress.eta_seconds.max(pair.eta_seconds);
            if let Some(rate) = pair.rate_bytes_per_second {
                let sum = progress.rate_bytes_per_second.unwrap_or(0);
                progress.rate_bytes_per_second = Some(sum.saturating_add(rate));
            }
            if let (None, Some(problem)) = (&progress.problem, &pair.problem) {
                progress.problem = Some(format!("volume {}: {problem}", pair.volume));
            }
        }
        Some(progress)
    }

    fn outlook(&self, goal: Goal) -> Outlook {
        let state = state_from_name(&self.state);
        match state.map_or(Outlook::Possible, |state| goal.outlook(state)) {
            Outlook::Possible if goal == Goal::TargetSelected && self.cutover_failed => {
                Outlook::Never
            }
            outlook => outlook,
        }
    }

    fn percent(&self) -> u8 {
        units::percent_done(self.total_bytes, self.left_bytes)
    }

    fn line(&self) -> String {
        format!("{}, {}% done, {}", self.state, self.percent(), self.rest())
    }

    /// The problem, time left, rate and amount left as text, the most important first: a narrow
    /// terminal cuts the end.
    fn rest(&self) -> String {
        let mut parts = Vec::new();
        if let Some(problem) = &self.problem {
            parts.push(format!("problem: {problem}"));
        }
        if let Some(seconds) = self.eta_seconds {
            let left = units::duration(Duration::from_secs(seconds));
            parts.push(format!("{left} left"));
        }
        parts.extend(self.rate_bytes_per_second.map(units::rate));
        let what = if self.comparing { "compare" } else { "copy" };
        parts.push(format!("{} to {what}", units::bytes(self.left_bytes)));
        parts.join(", ")
    }
}

/// The display of the progress: a bar on a terminal, otherwise a line at each change.
enum Display {
    Bar(ProgressBar),
    Lines {
        /// The state, the tens of percent and the problem of the last line.
        last: Option<(String, u8, Option<String>)>,
        absent: bool,
    },
    Nothing,
}

impl Display {
    fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Nothing;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines {
                last: None,
                absent: false,
            };
        }
        let style = ProgressStyle::with_template("{prefix} [{bar:20}] {percent:>3}%  {wide_msg}")
            .expect("a constant template")
            .progress_chars("##-");
        let bar = ProgressBar::hidden();
        bar.set_style(style);
        Self::Bar(bar)
    }

    fn show(&mut self, progress: &Progress) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(progress.total_bytes.max(1));
                bar.set_position(progress.total_bytes.saturating_sub(progress.left_bytes));
                bar.set_prefix(printable(&progress.state));
                bar.set_message(printable(&progress.rest()));
                // The bar is hidden before its first values are set, so that it is never drawn
                // without them.
                if bar.is_hidden() {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.tick();
            }
            Self::Lines { last, absent } => {
                let now = (
                    progress.state.clone(),
                    progress.percent() / 10,
                    progress.problem.clone(),
                );
                *absent = false;
                if last.as_ref() != Some(&now) {
                    say(&progress.line());
                    *last = Some(now);
                }
            }
            Self::Nothing => {}
        }
    }

    fn absent(&mut self) {
        const TEXT: &str = "shuntd does not answer; waiting for it";
        match self {
            Self::Bar(bar) => bar.set_message(TEXT),
            Self::Lines { absent: true, .. } | Self::Nothing => {}
            Self::Lines { absent, .. } => {
                *absent = true;
                say(TEXT);
            }
        }
    }
}

/// Clears the bar, so that the next message begins on an empty line.
impl Drop for Display {
    fn drop(&mut self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { .. } | Self::Nothing => {}
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}
