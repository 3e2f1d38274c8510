//! `shunt report`: what happened to a session, as one self-contained HTML page.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use migration_proto::manager::{
    EventRecord, PairRecord, Record, SampleRecord, SessionOptions, SessionRecord,
};
use plotters::coord::Shift;
use plotters::prelude::{
    AreaSeries, ChartBuilder, Color, DrawingArea, IntoDrawingArea, LineSeries, PathElement,
    RGBColor, SVGBackend, ShapeStyle, WHITE,
};

use super::render;
use crate::moments;
use crate::options::forms;
use crate::units;

const WIDTH: u32 = 920;
const HEIGHT: u32 = 230;

/// Colours that people with most forms of colour blindness can distinguish (Okabe and Ito).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const GREY: RGBColor = RGBColor(110, 110, 110);
const BLACK: RGBColor = RGBColor(0, 0, 0);

const STYLE: &str = "body{font:15px/1.45 sans-serif;margin:2em auto;max-width:960px;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}th{border-bottom:1px solid #999}\
.num{text-align:right;white-space:nowrap}.when{white-space:nowrap;color:#555}.note{color:#555}\
svg{width:100%;height:auto}.key{font-weight:bold;margin-left:.8em}figure{margin:.8em 0}figcaption{color:#555}";

/// The contents of a report.
#[derive(Debug)]
pub struct Report<'a> {
    /// The session.
    pub session: &'a SessionRecord,
    /// The pairs of the session.
    pub pairs: Vec<&'a PairRecord>,
    /// The history of the session.
    pub history: Vec<&'a EventRecord>,
    /// The samples of the pairs.
    pub samples: Vec<&'a SampleRecord>,
    /// When the report is made, in seconds since 1970.
    pub made_at: u64,
}

impl<'a> Report<'a> {
    /// Collects a report from records. `None`: `status` has no session.
    #[must_use]
    pub fn new(status: &'a [Record], history: &'a [Record], samples: &'a [Record]) -> Option<Self> {
        let session = status.iter().find_map(|record| match record {
            Record::Session(session) => Some(session),
            _ => None,
        })?;
        let pairs = status.iter().filter_map(|record| match record {
            Record::Pair(pair) if pair.session == session.session => Some(pair),
            _ => None,
        });
        let history = history.iter().filter_map(|record| match record {
            Record::Event(event) => Some(event),
            _ => None,
        });
        let samples = samples.iter().filter_map(|record| match record {
            Record::Sample(sample) => Some(sample),
            _ => None,
        });
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Some(Self {
            session,
            pairs: pairs.collect(),
            history: history.collect(),
            samples: samples.collect(),
            made_at: now.unwrap_or_default().as_secs(),
        })
    }

    /// Renders the HTML page.
    #[must_use]
    pub fn page(&self) -> String {
        let session = self.session;
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    title { "Shunt: session " (session.session) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { "Session " (session.session) ": " (session.state) }
                    p {
                        "Created " (moments::text(session.created_at_ms / 1000)) "; " (options(&session.options))
                        ". This page was made " (moments::text(self.made_at)) ", all times are UTC."
                    }
                    @if let Some(cause) = session.cutover.as_ref().and_then(|last| last.cause.as_ref()) {
                        p { "Cutover: " (cause) "." }
                    }
                    (self.pairs_table())
                    @for pair in &self.pairs { (self.charts(pair)) }
                    (self.pauses_table())
                    (self.history_table())
                }
            }
        }
        .into_string()
    }

    fn pairs_table(&self) -> Markup {
        html! {
            h2 { "Pairs" }
            table {
                tr {
                    th { "Volume" } th { "State" } th { "From" } th { "To" } th { "Authoritative" }
                    th.num { "Size" } th.num { "Copied" } th.num { "To copy" } th.num { "Last pause" }
                }
                @for pair in &self.pairs {
                    tr {
                        td { (pair.volume) } td { (pair.state) }
                        td { (pair.source) } td { (pair.target) }
                        td { (migration_core::route::Side::from(pair.authoritative)) }
                        td.num { (units::bytes(pair.size_bytes)) }
                        td.num { (units::bytes(pair.copied_bytes)) }
                        td.num { (units::bytes(pair.dirty_bytes)) }
                        td.num { @if let Some(pause) = pair.last_pause_us { (units::pause(pause)) } }
                    }
                    @if let Some(problem) = &pair.problem {
                        tr { td {} td colspan="8" { "Problem: " (problem) } }
                    }
                    @for part in &pair.unreadable {
                        tr { td {} td colspan="8" {
                            (part.length_bytes) " bytes at " (part.offset_bytes)
                            " could not be read from the source, and are zeroes on the target"
                        } }
                    }
                    @if let Some(found) = &pair.verification {
                        tr { td {} td colspan="8" {
                            (super::render::verification(found, pair.size_bytes))
                            " (" (moments::text(found.at_ms / 1000)) ")"
                        } }
                    }
                }
            }
        }
    }

    fn charts(&self, pair: &PairRecord) -> Markup {
        let samples: Vec<&SampleRecord> = self
            .samples
            .iter()
            .copied()
            .filter(|sample| sample.volume == pair.volume)
            .collect();
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
            return html! {
                h2 { "Volume " (pair.volume) }
                p.note { "Nothing was measured: the session was not running for long enough." }
            };
        };
        let begin_ms = first.at_ms;
        let span = Span {
            begin_ms,
            seconds: (last.at_ms.saturating_sub(begin_ms)).max(1000) as f64 / 1000.0,
            moves: self.moves(&pair.volume),
        };
        let of = |value: fn(&SampleRecord) -> Option<u64>| -> Vec<Vec<(f64, f64)>> {
            let point = |sample: &&SampleRecord| {
                let seconds = sample.at_ms.saturating_sub(begin_ms) as f64 / 1000.0;
                Some((seconds, value(sample)? as f64))
            };
            let points: Vec<_> = samples.iter().map(point).collect();
            // A sample without a value interrupts the line.
            let stretches = points.split(Option::is_none);
            stretches
                .map(|stretch| stretch.iter().copied().flatten().collect::<Vec<_>>())
                .filter(|stretch| !stretch.is_empty())
                .collect()
        };
        let dirty = Line {
            filled: true,
            ..Line::new("to be copied", BLUE, of(|sample| Some(sample.dirty_bytes)))
        };
        let throttle = of(|sample| Some(sample.throttle_bytes_per_second).filter(|rate| *rate > 0));
        let mut rates = vec![
            Line::new(
                "copied",
                BLUE,
                of(|sample| Some(sample.copy_bytes_per_second)),
            ),
            Line::new(
                "written by applications",
                ORANGE,
                of(|sample| Some(sample.application.write_bytes_per_second)),
            ),
            Line::new(
                "read by applications",
                GREEN,
                of(|sample| Some(sample.application.read_bytes_per_second)),
            ),
        ];
        if !throttle.is_empty() {
            rates.push(Line::new("writes slowed to", BLACK, throttle));
        }
        let latency = [
            Line::new("median", BLUE, of(|sample| sample.application.median_us)),
            Line::new(
                "99th percentile",
                ORANGE,
                of(|sample| sample.application.p99_us),
            ),
        ];
        html! {
            h2 { "Volume " (pair.volume) }
            p.note { "From " (moments::text(begin_ms / 1000)) " on. A grey line is a change of the authoritative leg." }
            (figure("Still to be copied", &span, &[dirty], &BYTES))
            (figure("Rates", &span, &rates, &RATES))
            (figure("How long requests of applications took", &span, &latency, &TIMES))
        }
    }

    /// The times at which the role of a volume moved, in milliseconds since 1970.
    fn moves(&self, volume: &str) -> Vec<u64> {
        let events = self.history.iter();
        events
            .filter(|event| event.volume.as_deref() == Some(volume))
            .filter(|event| event.event.moved_to().is_some())
            .map(|event| event.at_ms)
            .collect()
    }

    /// The events that held requests.
    fn pauses(&self) -> impl Iterator<Item = &EventRecord> {
        let events = self.history.iter().copied();
        events.filter(|event| event.event.held_us().is_some())
    }

    fn pauses_table(&self) -> Markup {
        let pauses: Vec<&EventRecord> = self.pauses().collect();
        html! {
            h2 { "Pauses" }
            @if pauses.is_empty() { p.note { "Requests were never held." } }
            @else {
                table { @for event in pauses { (event_row(event)) } }
            }
        }
    }

    fn history_table(&self) -> Markup {
        html! {
            h2 { "What happened" }
            table { @for event in &self.history { (event_row(event)) } }
        }
    }
}

fn event_row(event: &EventRecord) -> Markup {
    html! {
        tr {
            td.when { (moments::text(event.at_ms / 1000)) }
            td { @if let Some(volume) = &event.volume { (volume) } }
            td { (render::happened(event)) }
        }
    }
}

fn options(options: &SessionOptions) -> String {
    let mut text = format!(
        "mode {}, priority {}, switch {}",
        options.mode.name(),
        options.priority,
        forms::switch_policy_text(&options.switch)
    );
    if options.rate_bytes_per_second > 0 {
        let rate = units::rate(options.rate_bytes_per_second);
        text.push_str(&format!(", copies at most {rate}"));
    }
    text
}

/// The time span of the horizontal axis.
struct Span {
    begin_ms: u64,
    seconds: f64,
    moves: Vec<u64>,
}

struct Line {
    label: &'static str,
    colour: RGBColor,
    stretches: Vec<Vec<(f64, f64)>>,
    filled: bool,
}

impl Line {
    const fn new(label: &'static str, colour: RGBColor, stretches: Vec<Vec<(f64, f64)>>) -> Self {
        Self {
            label,
            colour,
            stretches,
            filled: false,
        }
    }
}

/// Units of the vertical axis, the smallest first: size and name of each.
type Units = [(f64, &'static str)];

const BYTES: [(f64, &str); 5] = [
    (1.0, "B"),
    (1024.0, "KiB"),
    (1_048_576.0, "MiB"),
    (1_073_741_824.0, "GiB"),
    (1_099_511_627_776.0, "TiB"),
];
const RATES: [(f64, &str); 4] = [
    (1.0, "B/s"),
    (1024.0, "KiB/s"),
    (1_048_576.0, "MiB/s"),
    (1_073_741_824.0, "GiB/s"),
];
/// Units of times that are given in microseconds.
const TIMES: [(f64, &str); 3] = [(1.0, "µs"), (1000.0, "ms"), (1_000_000.0, "s")];

fn figure(caption: &str, span: &Span, lines: &[Line], units: &Units) -> Markup {
    let mut picture = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut picture, (WIDTH, HEIGHT)).into_drawing_area();
        draw(&area, span, lines, units)
    };
    html! {
        figure {
            figcaption {
                (caption)
                @if lines.len() > 1 {
                    @for line in lines {
                        span.key style=(format!("color:rgb({},{},{})", line.colour.0, line.colour.1, line.colour.2)) { " ━ " }
                        (line.label)
                    }
                }
            }
            @match drawn {
                Ok(()) => (PreEscaped(picture)),
                Err(cause) => p { "It cannot be drawn: " (cause) },
            }
        }
    }
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    span: &Span,
    lines: &[Line],
    units: &Units,
) -> Result<(), String> {
    let problem = |error: &dyn std::fmt::Display| error.to_string();
    area.fill(&WHITE).map_err(|error| problem(&error))?;
    let points = lines
        .iter()
        .flat_map(|line| line.stretches.iter().flatten());
    let most = points.map(|(_, value)| *value).fold(1.0, f64::max);
    let (unit, name) = units
        .iter()
        .rev()
        .find(|(unit, _)| most >= *unit)
        .copied()
        .unwrap_or((1.0, ""));
    let top = most / unit * 1.08;
    let scaled = |stretch: &Vec<(f64, f64)>| -> Vec<(f64, f64)> {
        let points = stretch.iter();
        points.map(|(at, value)| (*at, value / unit)).collect()
    };
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(20)
        .x_label_area_size(28)
        .y_label_area_size(96)
        .build_cartesian_2d(0.0..span.seconds, 0.0..top)
        .map_err(|error| problem(&error))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .y_labels(5)
        .x_labels(8)
        .x_label_formatter(&|seconds| units::duration(Duration::from_secs_f64(seconds.max(0.0))))
        .y_label_formatter(&|value| format!("{value} {name}"))
        .draw()
        .map_err(|error| problem(&error))?;
    for at_ms in &span.moves {
        let at = at_ms.saturating_sub(span.begin_ms) as f64 / 1000.0;
        if at <= span.seconds {
            let style = ShapeStyle::from(GREY.mix(0.7)).stroke_width(1);
            let mark = PathElement::new([(at, 0.0), (at, top)], style);
            chart
                .draw_series(std::iter::once(mark))
                .map_err(|error| problem(&error))?;
        }
    }
    for line in lines {
        let colour = line.colour;
        let style = ShapeStyle::from(colour).stroke_width(2);
        for stretch in &line.stretches {
            let points = scaled(stretch);
            if line.filled {
                let series = AreaSeries::new(points, 0.0, colour.mix(0.2)).border_style(style);
                chart.draw_series(series).map_err(|error| problem(&error))?;
            } else {
                chart
                    .draw_series(LineSeries::new(points, style))
                    .map_err(|error| problem(&error))?;
            }
        }
    }
    area.present().map_err(|error| problem(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use migration_proto::manager::{ApplicationRecord, HistoryEvent, JSON_SCHEMA};
    use migration_proto::route::Side;

    fn session() -> Record {
        Record::Session(SessionRecord {
            schema: JSON_SCHEMA,
            session: "night".into(),
            id: "4711".into(),
            state: "target-selected".into(),
            pairs: 1,
            allowed: Vec::new(),
            options: SessionOptions::default(),
            cutover: None,
            created_at_ms: 1_763_687_825_000,
        })
    }

    fn pair() -> Record {
        Record::Pair(PairRecord {
            schema: JSON_SCHEMA,
            session: "night".into(),
            volume: "db".into(),
            state: "target-selected".into(),
            source: "/dev/<a>".parse().unwrap(),
            target: "/dev/b".parse().unwrap(),
            authoritative: Side::Target,
            weak_identity: Vec::new(),
            size_bytes: 8 << 30,
            dirty_bytes: 0,
            copied_bytes: 8 << 30,
            dirty_percent: None,
            rate_bytes_per_second: None,
            eta_seconds: None,
            compared_bytes: None,
            verification: None,
            retired: None,
            unreadable: Vec::new(),
            last_pause_us: Some(3034),
            application: None,
            copy_of_at_ms: None,
            problem: None,
        })
    }

    fn event(at_ms: u64, event: HistoryEvent) -> Record {
        Record::Event(EventRecord {
            schema: JSON_SCHEMA,
            cursor: "a-7-1".parse().unwrap(),
            at_ms,
            session: Some("night".into()),
            volume: Some("db".into()),
            who: None,
            event,
        })
    }

    fn sample(at_ms: u64, dirty_bytes: u64, throttle: u64) -> Record {
        Record::Sample(SampleRecord {
            schema: JSON_SCHEMA,
            at_ms,
            volume: "db".into(),
            dirty_bytes,
            copy_bytes_per_second: 90 << 20,
            application: ApplicationRecord {
                read_bytes_per_second: 5 << 20,
                write_bytes_per_second: 20 << 20,
                median_us: Some(300),
                p99_us: None,
                undisturbed_p99_us: None,
            },
            throttle_bytes_per_second: throttle,
        })
    }

    #[test]
    fn a_report_has_charts_pauses_and_history_and_needs_nothing_else() {
        let status = [session(), pair()];
        let switched = HistoryEvent::RoleMoved {
            from: Side::Source,
            to: Side::Target,
            epoch: Some(4),
            held_us: Some(3034),
            expected_us: None,
        };
        let held = "the target is authoritative, requests were held for 3.034 ms";
        let history = [event(1_763_687_900_000, switched)];
        let samples = [
            sample(1_763_687_830_000, 4 << 30, 0),
            sample(1_763_687_840_000, 1 << 20, 7 << 20),
        ];
        let report = Report::new(&status, &history, &samples).unwrap();
        let page = report.page();
        assert_eq!(page.matches("<svg").count(), 3);
        assert_eq!(
            page.matches(held).count(),
            2,
            "as a pause, and in the history"
        );
        for word in ["night", "/dev/&lt;a&gt;", "writes slowed to", "target"] {
            assert!(page.contains(word), "{word}");
        }
        for forbidden in ["src=", "href=", "<script", "url(", "/dev/<a>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(!page.contains("cannot be drawn"));
        let not_slowed = Report::new(&status, &history, &samples[..1])
            .unwrap()
            .page();
        assert!(!not_slowed.contains("writes slowed to"));
    }

    #[test]
    fn the_switches_and_pauses_of_a_history_are_found_by_code() {
        let status = [session(), pair()];
        let mut of_another_volume = event(1, HistoryEvent::AuthoritativeFound { to: Side::Target });
        if let Record::Event(event) = &mut of_another_volume {
            event.volume = Some("logs".into());
        }
        let history = [
            of_another_volume,
            event(
                2,
                HistoryEvent::LegsInDoubt {
                    authoritative: Side::Source,
                    cause: "requests were held for 3 ms".into(),
                },
            ),
            event(
                3,
                HistoryEvent::RoleMoved {
                    from: Side::Source,
                    to: Side::Target,
                    epoch: Some(4),
                    held_us: Some(0),
                    expected_us: None,
                },
            ),
            event(
                4,
                HistoryEvent::FailedOver {
                    from: Side::Target,
                    to: Side::Source,
                    cause: "an error".into(),
                },
            ),
            event(
                5,
                HistoryEvent::RoleNotMoved {
                    to: Side::Target,
                    cause: "the target is authoritative".into(),
                },
            ),
        ];
        let report = Report::new(&status, &history, &[]).unwrap();
        assert_eq!(report.moves("db"), [3, 4]);
        assert_eq!(report.moves("logs"), [1]);
        let pauses: Vec<u64> = report.pauses().map(|event| event.at_ms).collect();
        assert_eq!(pauses, [3]);
    }

    #[test]
    fn a_session_that_never_ran_has_a_report_too() {
        let page = Report::new(&[session(), pair()], &[], &[]).unwrap().page();
        assert!(page.contains("Nothing was measured") && page.contains("never held"));
        assert!(Report::new(&[pair()], &[], &[]).is_none());
    }
}
