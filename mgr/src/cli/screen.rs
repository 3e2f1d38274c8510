//! `shunt status --watch` on a terminal: the current state, redrawn every second.

use std::io;
use std::time::{Duration, Instant};

use migration_proto::manager::{
    HostRecord, PairRecord, Record, SessionMode, SessionRecord, VolumeRecord,
};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Gauge, Paragraph};

use super::ask::Poll;
use super::problem::Stop;
use super::render;
use crate::units::{self, printable};

/// The interval between two status queries.
const INTERVAL: Duration = Duration::from_secs(1);
/// The number of lines of a pair without a problem.
const PAIR_LINES: u16 = 4;
/// The characters of the map, from parts with nothing to copy to parts with everything to copy.
const SHADES: [char; 5] = ['█', '▓', '▒', '░', '·'];

/// Draws until `q`, Escape or Ctrl-C, and returns `None`; or returns the reason for an earlier end.
pub(super) fn watch(poll: &mut Poll) -> Option<Stop> {
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => return Some(error.into()),
    };
    let mut first = 0;
    let end = loop {
        let seen = match poll.look(Duration::MAX) {
            Ok(seen) => seen,
            Err(problem) => break Some(problem.into()),
        };
        let drawn = terminal.draw(|frame| draw(frame, seen.as_deref(), &mut first));
        if let Err(error) = drawn {
            break Some(error.into());
        }
        match keys(&mut first) {
            Ok(false) => {}
            Ok(true) => break None,
            Err(error) => break Some(error.into()),
        }
    };
    ratatui::restore();
    end
}

/// Handles keys until the next status query is due or the screen must be redrawn; moves `first`,
/// the first part on the screen. Returns whether to end.
fn keys(first: &mut usize) -> io::Result<bool> {
    let until = Instant::now() + INTERVAL;
    loop {
        if !event::poll(until.saturating_duration_since(Instant::now()))? {
            return Ok(false);
        }
        let key = match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => key,
            Event::Resize(..) => return Ok(false),
            _ => continue,
        };
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
            KeyCode::Char('c') if control => return Ok(true),
            KeyCode::Down | KeyCode::Char('j') => *first += 1,
            KeyCode::Up | KeyCode::Char('k') => *first = first.saturating_sub(1),
            _ => continue,
        }
        return Ok(false);
    }
}

/// A part of the screen; parts are drawn one below the other.
enum Part<'a> {
    Text(Vec<Line<'a>>),
    Pair(&'a PairRecord),
}

impl Part<'_> {
    fn lines(&self) -> u16 {
        match self {
            Self::Text(lines) => u16::try_from(lines.len()).unwrap_or(u16::MAX),
            Self::Pair(pair) => PAIR_LINES + u16::from(pair.problem.is_some()),
        }
    }
}

/// Draws the records, beginning with the part `first`. `records` is `None` if shuntd does not
/// answer.
pub(super) fn draw(frame: &mut Frame<'_>, records: Option<&[Record]>, first: &mut usize) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let Some(records) = records else {
        frame.render_widget(title("shuntd does not answer; waiting for it"), head);
        return;
    };
    frame.render_widget(title(&headline(records)), head);
    let parts = parts(records);
    *first = (*first).min(parts.len().saturating_sub(1));
    let mut below = body;
    let mut hidden = *first;
    for part in parts.iter().skip(*first) {
        if part.lines() > below.height {
            hidden += 1;
            continue;
        }
        let (here, rest) = split(below, part.lines());
        below = rest;
        match part {
            Part::Text(lines) => frame.render_widget(Paragraph::new(lines.clone()), here),
            Part::Pair(pair) => draw_pair(frame, pair, here),
        }
    }
    let more = match hidden {
        0 => "q ends".to_owned(),
        _ => "q ends, up and down show more".to_owned(),
    };
    frame.render_widget(Paragraph::new(more.dark_gray()), foot);
}

fn split(area: Rect, lines: u16) -> (Rect, Rect) {
    let [here, rest] =
        Layout::vertical([Constraint::Length(lines), Constraint::Min(0)]).areas(area);
    (here, rest)
}

fn title(text: &str) -> Paragraph<'static> {
    let style = Style::new().bold().reversed();
    Paragraph::new(format!(" Shunt   {text}")).style(style)
}

fn headline(records: &[Record]) -> String {
    let host = records.iter().find_map(|record| match record {
        Record::Host(host) => Some(host),
        _ => None,
    });
    match host {
        Some(HostRecord {
            pairs_max,
            pairs_copied,
            pairs_queued,
            ..
        }) => {
            format!("{pairs_copied} of at most {pairs_max} pairs are copied, {pairs_queued} wait")
        }
        None => String::new(),
    }
}

fn parts(records: &[Record]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let sessions = records.iter().filter_map(|record| match record {
        Record::Session(session) => Some(session),
        _ => None,
    });
    let mut shown = Vec::new();
    for session in sessions {
        parts.push(Part::Text(session_head(session)));
        for pair in render::pairs(records, &session.session) {
            shown.push(pair.volume.as_str());
            parts.push(Part::Pair(pair));
        }
        parts.push(Part::Text(session_foot(session)));
    }
    let alone: Vec<Line<'_>> = records
        .iter()
        .filter_map(|record| match record {
            Record::Volume(volume) if !shown.contains(&volume.volume.as_str()) => {
                Some(volume_line(volume))
            }
            _ => None,
        })
        .collect();
    if !alone.is_empty() {
        parts.push(Part::Text(alone));
    }
    if parts.is_empty() {
        let next = "no volumes and no sessions; next: shunt attach VOLUME LUN";
        parts.push(Part::Text(vec![Line::from(next)]));
    }
    parts
}

fn volume_line(volume: &VolumeRecord) -> Line<'_> {
    Line::from(vec![
        Span::from(format!("volume {}", printable(&volume.volume))).bold(),
        Span::from(format!(
            "  {}, {} on {}",
            printable(&volume.state),
            units::bytes(volume.size_bytes),
            printable(&volume.lun.to_string())
        )),
    ])
}

fn session_head(session: &SessionRecord) -> Vec<Line<'_>> {
    let tracks = session.options.mode == SessionMode::Track && session.state != "tracking";
    let mode = if tracks { ", tracks" } else { "" };
    let mut lines = vec![
        Line::default(),
        Line::from(vec![
            Span::from(format!("session {}", printable(&session.session))).bold(),
            Span::from("  "),
            Span::styled(printable(&session.state), state_style(&session.state)),
            Span::from(format!("{mode}, priority {}", session.options.priority)).dark_gray(),
        ]),
    ];
    if let Some(cutover) = &session.cutover {
        let text = render::cutover(cutover);
        let text: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.extend(text.into_iter().map(|line| Line::from(line).yellow()));
    }
    lines
}

fn session_foot(session: &SessionRecord) -> Vec<Line<'_>> {
    vec![Line::from(vec![
        Span::from("  you may now: ").dark_gray(),
        Span::from(render::allowed(session)).cyan(),
    ])]
}

fn state_style(state: &str) -> Style {
    match state {
        "source-selected" | "target-selected" | "committed" => Style::new().fg(Color::Green),
        "degraded" | "failed" | "needs-recovery" => {
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
        }
        _ => Style::new().fg(Color::Yellow),
    }
}

fn draw_pair(frame: &mut Frame<'_>, pair: &PairRecord, area: Rect) {
    let row = |index: u16| {
        let line = Rect {
            x: area.x + 2,
            y: area.y + index,
            width: area.width.saturating_sub(2),
            height: 1,
        };
        line.intersection(area)
    };
    let [source, target] = [&pair.source, &pair.target].map(|paths| printable(&paths.to_string()));
    let names = Line::from(vec![
        Span::from(printable(&pair.volume)).bold(),
        Span::from("  "),
        Span::styled(printable(&pair.state), state_style(&pair.state)),
        Span::from(format!(
            "  the {} is authoritative, {source} -> {target}",
            migration_core::route::Side::from(pair.authoritative)
        ))
        .dark_gray(),
    ]);
    frame.render_widget(names, row(0));
    let left_bytes = pair.compared_bytes.map_or(pair.dirty_bytes, |compared| {
        pair.size_bytes.saturating_sub(compared)
    });
    let percent = units::percent_done(pair.size_bytes, left_bytes);
    let gauge = Gauge::default()
        .gauge_style(Style::new().fg(Color::Blue).bg(Color::DarkGray))
        .percent(u16::from(percent))
        .label(
            Span::from(progress(pair, percent, left_bytes))
                .white()
                .bold(),
        );
    frame.render_widget(gauge, row(1));
    let width = usize::from(row(2).width);
    frame.render_widget(map(pair.dirty_percent.as_deref(), width), row(2));
    frame.render_widget(application(pair), row(3));
    if let Some(problem) = &pair.problem {
        let text = format!("problem: {}", printable(problem));
        frame.render_widget(Line::from(text).red(), row(4));
    }
}

fn progress(pair: &PairRecord, percent: u8, left_bytes: u64) -> String {
    let mut text = format!("{percent} %, {} left", units::bytes(left_bytes));
    if let Some(rate) = pair.rate_bytes_per_second {
        text.push_str(&format!(", {}", units::rate(rate)));
    }
    if let Some(seconds) = pair.eta_seconds {
        let time = units::duration(Duration::from_secs(seconds));
        text.push_str(&format!(", {time}"));
    }
    text
}

/// A map of the volume from beginning to end: the lighter a character, the more of its part is to
/// be copied.
fn map(dirty_percent: Option<&[u8]>, width: usize) -> Line<'static> {
    let Some(parts) = dirty_percent.filter(|parts| !parts.is_empty()) else {
        return Line::from("");
    };
    let part = |cell: usize| cell * parts.len() / width.max(1);
    let shade = |cell: usize| {
        let (from, to) = (part(cell), part(cell + 1).max(part(cell) + 1));
        let most = parts[from..to].iter().copied().max().unwrap_or(0);
        SHADES[usize::from(most).div_ceil(25).min(4)]
    };
    Line::from((0..width).map(shade).collect::<String>()).blue()
}

fn application(pair: &PairRecord) -> Line<'static> {
    let Some(application) = pair.application else {
        return Line::from("");
    };
    let mut text = format!(
        "applications: {} read, {} written",
        units::rate(application.read_bytes_per_second),
        units::rate(application.write_bytes_per_second),
    );
    if let (Some(median), Some(p99)) = (application.median_us, application.p99_us) {
        text.push_str(&format!(
            ", median {}, p99 {}",
            units::pause(median),
            units::pause(p99)
        ));
    }
    if let Some(undisturbed) = application.undisturbed_p99_us {
        let undisturbed = units::pause(undisturbed);
        text.push_str(&format!(" ({undisturbed} without the copy)"));
    }
    if let Some(pause) = pair.last_pause_us {
        text.push_str(&format!("; last pause {}", units::pause(pause)));
    }
    Line::from(text).dark_gray()
}

#[cfg(test)]
mod tests {
    use super::*;
    use migration_proto::manager::{ApplicationRecord, JSON_SCHEMA, SessionOptions};
    use migration_proto::route::Side;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn session(name: &str) -> Record {
        Record::Session(SessionRecord {
            schema: JSON_SCHEMA,
            session: name.into(),
            id: "4711".into(),
            state: "syncing".into(),
            pairs: 1,
            allowed: vec!["pause".into(), "cancel".into()],
            options: SessionOptions::default(),
            cutover: None,
            created_at_ms: 0,
        })
    }

    fn pair(session: &str, problem: Option<&str>) -> Record {
        Record::Pair(PairRecord {
            schema: JSON_SCHEMA,
            session: session.into(),
            volume: "db".into(),
            state: "syncing".into(),
            source: "/dev/a".parse().unwrap(),
            target: "/dev/b".parse().unwrap(),
            authoritative: Side::Source,
            weak_identity: Vec::new(),
            size_bytes: 4 << 30,
            dirty_bytes: 1 << 30,
            dirty_percent: Some(vec![0, 1, 50, 100]),
            copied_bytes: 3 << 30,
            rate_bytes_per_second: Some(100 << 20),
            eta_seconds: Some(11),
            compared_bytes: None,
            verification: None,
            retired: None,
            unreadable: Vec::new(),
            last_pause_us: Some(3034),
            application: Some(ApplicationRecord {
                read_bytes_per_second: 5 << 20,
                write_bytes_per_second: 6 << 20,
                median_us: Some(300),
                p99_us: Some(4100),
                undisturbed_p99_us: None,
            }),
            copy_of_at_ms: None,
            problem: problem.map(str::to_owned),
        })
    }

    fn drawn(records: Option<&[Record]>, height: u16, first: usize) -> (String, usize) {
        let mut terminal = Terminal::new(TestBackend::new(100, height)).unwrap();
        let mut first = first;
        terminal
            .draw(|frame| draw(frame, records, &mut first))
            .unwrap();
        (terminal.backend().to_string(), first)
    }

    #[test]
    fn the_screen_has_the_progress_the_map_the_applications_and_what_may_be_done() {
        let host = Record::Host(HostRecord {
            schema: JSON_SCHEMA,
            pairs_max: 4,
            pairs_copied: 1,
            pairs_queued: 2,
            problems: Vec::new(),
        });
        let records = [host, session("night"), pair("night", Some("it is slow"))];
        let (screen, _) = drawn(Some(&records), 24, 0);
        for part in [
            "1 of at most 4 pairs are copied, 2 wait",
            "session night  syncing",
            "the source is authoritative, /dev/a -> /dev/b",
            "75 %, 1.00 GiB left, 100.00 MiB/s, 11s",
            "█▓",
            "▓▒",
            "▒·",
            "5.00 MiB/s read, 6.00 MiB/s written, median 0.3 ms, p99 4.1 ms; last pause 3.0 ms",
            "problem: it is slow",
            "you may now: shunt pause night, shunt cancel night",
        ] {
            assert!(screen.contains(part), "no {part:?} in\n{screen}");
        }
    }

    #[test]
    fn a_pair_without_a_problem_has_its_map_too() {
        let records = [session("night"), pair("night", None)];
        let (screen, _) = drawn(Some(&records), 24, 0);
        assert!(
            screen.contains("█▓") && screen.contains("p99 4.1 ms"),
            "{screen}"
        );
    }

    #[test]
    fn what_does_not_fit_is_reached_by_moving_down() {
        let names: Vec<String> = (0..9).map(|number| format!("s{number}")).collect();
        let records: Vec<Record> = names
            .iter()
            .flat_map(|name| [session(name), pair(name, None)])
            .collect();
        let (screen, _) = drawn(Some(&records), 12, 0);
        assert!(screen.contains("session s0") && screen.contains("down show more"));
        assert!(!screen.contains("session s8"));
        let (screen, first) = drawn(Some(&records), 12, 1000);
        assert!(screen.contains("shunt pause s8"), "{screen}");
        assert_eq!(first, 26);
        drawn(Some(&records), 1, 0);
        drawn(Some(&records), 3, 0);
    }

    #[test]
    fn nothing_and_nobody_are_said() {
        assert!(drawn(None, 5, 0).0.contains("does not answer"));
        assert!(drawn(Some(&[]), 5, 0).0.contains("shunt attach VOLUME LUN"));
    }
}
