//! Renders records as text for people, and as JSON for programs.

use migration_proto::manager::{
    CutoverRecord, EventRecord, HostRecord, Line, LiveRecord, PairRecord, PlanRecord, Record,
    SessionMode, SessionRecord, SwitchPairs, SwitchPolicy, UnreadablePart, Verification,
    VolumeRecord,
};
use migration_proto::route::Side;
use nix::unistd::{Uid, User};

use crate::options::forms;

use crate::history;
use crate::moments;
use crate::units::{self, printable};

/// The width of a bar, in characters.
const BAR_WIDTH: usize = 20;

/// Renders records as JSON, one object a line, as shuntd sent them; an event has its sentence too,
/// as `what`.
#[must_use]
pub fn json_lines(records: &[Record]) -> String {
    let line = |record| Line::of(record, history::of_record).text();
    records.iter().map(line).collect()
}

/// The records that `list` shows.
#[must_use]
pub fn list_records(records: Vec<Record>) -> Vec<Record> {
    let mut kept = records;
    kept.retain(|record| matches!(record, Record::Volume(_) | Record::Session(_)));
    kept
}

/// Renders volumes, then each session with its pairs and the allowed commands.
#[must_use]
pub fn status(records: &[Record]) -> String {
    let mut parts = Vec::new();
    let volumes: Vec<&VolumeRecord> = volumes(records).collect();
    if !volumes.is_empty() {
        parts.push(volume_part(&volumes));
    }
    for session in sessions(records) {
        parts.push(session_part(session, &pairs(records, &session.session)));
    }
    parts.extend(records.iter().find_map(|record| match record {
        Record::Host(host) => Some(host_part(host)).filter(|text| !text.is_empty()),
        Record::Volume(_)
        | Record::Session(_)
        | Record::Pair(_)
        | Record::Event(_)
        | Record::Sample(_)
        | Record::Plan(_) => None,
    }));
    parts.join("\n")
}

/// Renders volumes and sessions, one line each.
#[must_use]
pub fn list(records: &[Record]) -> String {
    let mut rows = Vec::new();
    for volume in volumes(records) {
        rows.push(vec![
            "volume".to_owned(),
            printable(&volume.volume),
            printable(&volume.state),
            units::bytes(volume.size_bytes),
            path(&volume.device),
            printable(&volume.lun.to_string()),
        ]);
    }
    for session in sessions(records) {
        rows.push(vec![
            "session".to_owned(),
            printable(&session.session),
            printable(&session.state),
            count(session.pairs, "pair"),
            format!("created {}", moments::text(session.created_at_ms / 1000)),
        ]);
    }
    units::table(&rows, 0)
}

/// Renders events, one line each.
#[must_use]
pub fn history(records: &[Record]) -> String {
    let rows: Vec<Vec<String>> = records
        .iter()
        .filter_map(|record| match record {
            Record::Event(event) => Some(event_row(event)),
            Record::Host(_)
            | Record::Volume(_)
            | Record::Session(_)
            | Record::Pair(_)
            | Record::Sample(_)
            | Record::Plan(_) => None,
        })
        .collect();
    units::table(&rows, 0)
}

/// Renders the mark after which events follow.
#[must_use]
pub fn mark(mark: &LiveRecord) -> String {
    format!(
        "events from here on (`shunt events --after {}` continues here)\n",
        mark.cursor
    )
}

/// Renders planned pairs with estimates, notes and problems.
#[must_use]
pub fn plan(records: &[Record]) -> String {
    let plans = records.iter().filter_map(|record| match record {
        Record::Plan(plan) => Some(plan),
        _ => None,
    });
    plans.map(plan_part).collect::<Vec<_>>().join("\n")
}

fn plan_part(plan: &PlanRecord) -> String {
    let known = |rate: Option<u64>| rate.map_or_else(|| "unknown".to_owned(), units::rate);
    let mut text = format!(
        "{}: {} -> {}, {}\n  read: source {}, target {}; written by applications: {}\n",
        printable(&plan.volume),
        printable(&plan.source.to_string()),
        printable(&plan.target.to_string()),
        units::bytes(plan.size_bytes),
        known(plan.source_bytes_per_second),
        known(plan.target_bytes_per_second),
        known(plan.write_bytes_per_second),
    );
    if let (Some(seconds), Some(pause)) = (plan.copy_seconds, plan.pause_us) {
        text.push_str(&format!(
            "  estimate: the copy takes {}, a switch holds requests for {}\n",
            units::duration(std::time::Duration::from_secs(seconds)),
            units::pause(pause)
        ));
    }
    for note in &plan.notes {
        text.push_str(&format!("  note: {}\n", printable(note)));
    }
    for problem in &plan.problems {
        text.push_str(&format!("  problem: {}\n", printable(problem)));
    }
    text
}

/// Finds the record of the session with that name.
#[must_use]
pub fn find_session<'a>(records: &'a [Record], name: &str) -> Option<&'a SessionRecord> {
    sessions(records).find(|session| session.session == name)
}

/// The pairs of a session.
#[must_use]
pub fn pairs<'a>(records: &'a [Record], session: &str) -> Vec<&'a PairRecord> {
    records
        .iter()
        .filter_map(|record| match record {
            Record::Pair(pair) if pair.session == session => Some(pair),
            Record::Host(_)
            | Record::Pair(_)
            | Record::Volume(_)
            | Record::Session(_)
            | Record::Event(_)
            | Record::Sample(_)
            | Record::Plan(_) => None,
        })
        .collect()
}

fn volumes(records: &[Record]) -> impl Iterator<Item = &VolumeRecord> {
    records.iter().filter_map(|record| match record {
        Record::Volume(volume) => Some(volume),
        Record::Host(_)
        | Record::Session(_)
        | Record::Pair(_)
        | Record::Event(_)
        | Record::Sample(_)
        | Record::Plan(_) => None,
    })
}

fn sessions(records: &[Record]) -> impl Iterator<Item = &SessionRecord> {
    records.iter().filter_map(|record| match record {
        Record::Session(session) => Some(session),
        Record::Host(_)
        | Record::Volume(_)
        | Record::Pair(_)
        | Record::Event(_)
        | Record::Sample(_)
        | Record::Plan(_) => None,
    })
}

/// Renders the problems of shuntd's folders, and why pairs are queued.
fn host_part(host: &HostRecord) -> String {
    let mut text: String = host
        .problems
        .iter()
        .map(|problem| format!("problem: {problem}\n"))
        .collect();
    if host.pairs_queued > 0 {
        text += &format!(
            "{} of at most {} copied, {} queued; shunt set --max-pairs changes that\n",
            count(host.pairs_copied, "pair"),
            host.pairs_max,
            host.pairs_queued,
        );
    }
    text
}

fn volume_part(volumes: &[&VolumeRecord]) -> String {
    let mut rows = vec![heading(&[
        "VOLUME", "STATE", "SIZE", "DEVICE", "KERNEL", "LUN",
    ])];
    let mut notes = String::new();
    for volume in volumes {
        let name = printable(&volume.volume);
        rows.push(vec![
            name.clone(),
            printable(&volume.state),
            units::bytes(volume.size_bytes),
            path(&volume.device),
            volume.kernel_device.as_deref().map_or_else(absent, path),
            printable(&volume.lun.to_string()),
        ]);
        if volume.restarts > 0 {
            notes.push_str(&format!(
                "  {name}: its ublk-target was started again, times: {}\n",
                volume.restarts
            ));
        }
        for lun in &volume.weak_identity {
            let lun = path(lun);
            notes.push_str(&format!(
                "  {name}: weak identity: only its size and contents distinguish {lun} from other LUNs\n"
            ));
        }
        for lun in &volume.grown {
            let lun = path(lun);
            notes.push_str(&format!(
                "  {name}: {lun} has grown; to use the rest, detach the volume and attach the LUN again\n"
            ));
        }
        if let Some(problem) = &volume.problem {
            notes.push_str(&format!("  {name}: problem: {}\n", printable(problem)));
        }
    }
    units::table(&rows, 0) + &notes
}

fn session_part(session: &SessionRecord, pairs: &[&PairRecord]) -> String {
    let name = printable(&session.session);
    let mut rows = vec![heading(&[
        "VOLUME",
        "STATE",
        "AUTHORITATIVE",
        "DONE",
        "DIRTY",
        "RATE",
        "TIME LEFT",
    ])];
    let mut notes = String::new();
    for pair in pairs {
        rows.push(pair_row(pair));
        notes.push_str(&pair_notes(pair));
    }
    let limit = match session.options.rate_bytes_per_second {
        0 => String::new(),
        rate => format!(", at most {}", units::rate(rate)),
    };
    let switch = match &session.options.switch {
        SwitchPolicy::Manual => String::new(),
        policy => format!(
            ", switch {}{}",
            match session.options.switch_pairs {
                SwitchPairs::Together => "",
                SwitchPairs::Each => "each pair ",
            },
            printable(&forms::switch_policy_text(policy))
        ),
    };
    let mode = match session.options.mode {
        SessionMode::Mirror => String::new(),
        SessionMode::Track => ", tracks".to_owned(),
        SessionMode::Copy => match session.options.every_seconds {
            0 => ", copies".to_owned(),
            every => format!(
                ", a copy every {}",
                units::duration(std::time::Duration::from_secs(every))
            ),
        },
    };
    let hours = match session.options.hours {
        hours if hours.is_always() => String::new(),
        hours => format!(", copied {} only", forms::hours_text(hours)),
    };
    let start = match session.options.start_at_ms {
        at_ms if at_ms != 0 && session.state == "setup" => {
            format!(", started at {}", moments::text(at_ms / 1000))
        }
        _ => String::new(),
    };
    let longest = match session.options.max_duration_seconds {
        0 => String::new(),
        seconds => format!(
            ", in sync within {} or paused",
            units::duration(std::time::Duration::from_secs(seconds))
        ),
    };
    notes.push_str(&session.cutover.as_ref().map_or_else(String::new, cutover));
    format!(
        "session {name}: {}, {}, priority {}{limit}{switch}{mode}{hours}{start}{longest}, created {}\n{}{notes}  you may now: {}\n",
        printable(&session.state),
        count(session.pairs, "pair"),
        session.options.priority,
        moments::text(session.created_at_ms / 1000),
        units::table(&rows, 2),
        allowed(session),
    )
}

/// Renders the progress of a cutover.
pub(super) fn cutover(cutover: &CutoverRecord) -> String {
    let mut text = format!(
        "  cutover: {}, {} written",
        printable(&cutover.phase),
        units::rate(cutover.write_bytes_per_second),
    );
    if let Some(rate) = cutover.throttle_bytes_per_second {
        text.push_str(&format!(", writes are slowed to {}", units::rate(rate)));
    }
    text.push_str(&format!(
        "\n  cutover: {} can be copied",
        units::rate(cutover.copy_bytes_per_second)
    ));
    let allowed = units::pause(cutover.max_pause_ms.saturating_mul(1000));
    if let Some(pause) = cutover.predicted_pause_us {
        let pause = units::pause(pause);
        text.push_str(&format!(
            ", the pause would be {pause} of {allowed} allowed"
        ));
    }
    if let Some(cause) = &cutover.cause {
        let failures = count(cutover.failures, "failed attempt");
        text.push_str(&format!("\n  cutover: {failures}: {}", printable(cause)));
    }
    text + "\n"
}

fn pair_row(pair: &PairRecord) -> Vec<String> {
    let left_bytes = pair.compared_bytes.map_or(pair.dirty_bytes, |compared| {
        pair.size_bytes.saturating_sub(compared)
    });
    let percent = units::percent_done(pair.size_bytes, left_bytes);
    vec![
        printable(&pair.volume),
        printable(&pair.state),
        side(pair.authoritative).to_owned(),
        format!("{} {percent:3}%", units::bar(percent, BAR_WIDTH)),
        units::bytes(pair.dirty_bytes),
        pair.rate_bytes_per_second.map_or_else(absent, units::rate),
        pair.eta_seconds.map_or_else(absent, |seconds| {
            units::duration(std::time::Duration::from_secs(seconds))
        }),
    ]
}

fn pair_notes(pair: &PairRecord) -> String {
    let name = printable(&pair.volume);
    let mut text = format!(
        "  {name}: {} -> {}, {}, {} copied\n",
        printable(&pair.source.to_string()),
        printable(&pair.target.to_string()),
        units::bytes(pair.size_bytes),
        units::bytes(pair.copied_bytes),
    );
    if let Some(found) = &pair.verification {
        let what = verification(found, pair.size_bytes);
        let when = moments::text(found.at_ms / 1000);
        text.push_str(&format!("  {name}: {what} ({when})\n"));
    }
    if let Some(what) = unreadable(&pair.unreadable) {
        text.push_str(&format!("  {name}: {what}\n"));
    }
    if let Some(at_ms) = pair.copy_of_at_ms {
        let when = moments::text(at_ms / 1000);
        text.push_str(&format!("  {name}: the target is a copy as of {when}\n"));
    }
    if let Some(pause) = pair.last_pause_us {
        text.push_str(&format!("  {name}: last pause {}\n", units::pause(pause)));
    }
    if let Some(cost) = cost_of_both(pair) {
        text.push_str(&format!("  {name}: {cost}\n"));
    }
    for lun in &pair.weak_identity {
        text.push_str(&format!("  {name}: weak identity: {}\n", path(lun)));
    }
    if let Some(problem) = &pair.problem {
        text.push_str(&format!("  {name}: problem: {}\n", printable(problem)));
    }
    text
}

/// Renders the parts of a source that could not be read, the first of them with their offsets;
/// `None` if there are none.
pub fn unreadable(parts: &[UnreadablePart]) -> Option<String> {
    const NAMED_MAX: usize = 8;
    let bytes: u64 = parts.iter().map(|part| part.length_bytes).sum();
    let named: Vec<String> = parts
        .iter()
        .take(NAMED_MAX)
        .map(|part| format!("{} at {}", part.length_bytes, part.offset_bytes))
        .collect();
    let more = match parts.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(", and {more} more places (`shunt show`)"),
    };
    (bytes > 0).then(|| {
        format!(
            "{bytes} bytes could not be read from the source and are zeroes on the target: {}{more}",
            named.join(", ")
        )
    })
}

/// Renders the cost of keeping both legs while they are in sync, or what is still to be copied
/// while the copy is stopped; `None` in other states.
fn cost_of_both(pair: &PairRecord) -> Option<String> {
    match pair.state.as_str() {
        "source-selected" | "target-selected" | "verifying" => {
            let written = pair.application.as_ref().map(|application| {
                let rate = units::rate(application.write_bytes_per_second);
                format!(" ({rate} now)")
            });
            Some(format!(
                "both legs are kept: each write is done twice{}",
                written.unwrap_or_default()
            ))
        }
        "degraded" | "paused" if pair.dirty_bytes > 0 => Some(format!(
            "{} are to be copied before the legs are equal",
            units::bytes(pair.dirty_bytes)
        )),
        _ => None,
    }
}

/// Renders the result of a comparison.
#[must_use]
pub fn verification(found: &Verification, size_bytes: u64) -> String {
    let mut text = match found.first_difference_bytes {
        None if found.unknown_bytes == 0 => "compared, nothing differs".to_owned(),
        None => format!(
            "{} compared, nothing differs",
            units::bytes(found.compared_bytes)
        ),
        Some(at) => format!(
            "compared, {} of {} {}, the first at {at}",
            units::bytes(found.differing_bytes),
            units::bytes(size_bytes),
            if found.repaired {
                "differed and were marked to be copied again"
            } else {
                "differ"
            }
        ),
    };
    if found.unknown_bytes > 0 {
        let unknown = units::bytes(found.unknown_bytes);
        text.push_str(&format!("; {unknown} could not be compared"));
    }
    text
}

pub(super) fn allowed(session: &SessionRecord) -> String {
    if session.allowed.is_empty() {
        return "nothing more with this session".to_owned();
    }
    let commands: Vec<String> = session
        .allowed
        .iter()
        .map(|verb| printable(&format!("shunt {verb} {}", session.session)))
        .collect();
    commands.join(", ")
}

fn event_row(event: &EventRecord) -> Vec<String> {
    let name = |name: &Option<String>| name.as_deref().map_or_else(absent, printable);
    vec![
        moments::text(event.at_ms / 1000),
        name(&event.session),
        name(&event.volume),
        printable(&happened(event)),
    ]
}

/// Renders an event, with the user who asked for it.
pub(super) fn happened(event: &EventRecord) -> String {
    let by = event.who.map(|uid| {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        user.map_or_else(
            || format!(" (by uid {uid})"),
            |user| format!(" (by {})", user.name),
        )
    });
    format!("{}{}", history::of_record(event), by.unwrap_or_default())
}

fn heading(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn path(path: &std::path::Path) -> String {
    printable(&path.to_string_lossy())
}

fn absent() -> String {
    "-".to_owned()
}

fn count(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

const fn side(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Target => "target",
    }
}

#[cfg(test)]
mod tests {
    use migration_proto::manager::{ApplicationRecord, JSON_SCHEMA, SessionOptions};

    use super::*;

    fn records() -> Vec<Record> {
        vec![
            Record::Session(SessionRecord {
                schema: JSON_SCHEMA,
                session: "s1".into(),
                id: "4711".into(),
                state: "syncing".into(),
                pairs: 1,
                allowed: vec!["pause".into(), "cancel".into()],
                options: SessionOptions {
                    rate_bytes_per_second: 32 << 20,
                    ..SessionOptions::default()
                },
                cutover: None,
                created_at_ms: 0,
            }),
            Record::Pair(PairRecord {
                schema: JSON_SCHEMA,
                session: "s1".into(),
                volume: "db".into(),
                state: "syncing".into(),
                source: "/dev/a".parse().unwrap(),
                target: "/dev/b".parse().unwrap(),
                authoritative: Side::Source,
                weak_identity: Vec::new(),
                size_bytes: 4 << 30,
                dirty_bytes: 1 << 30,
                copied_bytes: 3 << 30,
                dirty_percent: None,
                rate_bytes_per_second: Some(64 << 20),
                eta_seconds: Some(16),
                compared_bytes: None,
                retired: None,
                unreadable: Vec::new(),
                verification: Some(Verification {
                    at_ms: 60_000,
                    compared_bytes: 4 << 30,
                    differing_bytes: 1 << 20,
                    first_difference_bytes: Some(3 << 20),
                    unknown_bytes: 2 << 20,
                    repaired: false,
                }),
                last_pause_us: Some(1500),
                application: None,
                copy_of_at_ms: None,
                problem: Some("a \u{1b}[31mred\n problem".into()),
            }),
        ]
    }

    #[test]
    fn status_shows_each_pair_and_what_may_be_done() {
        let expected = "\
session s1: syncing, 1 pair, priority 50, at most 32.00 MiB/s, created 1970-01-01 00:00:00Z
  VOLUME  STATE    AUTHORITATIVE  DONE                         DIRTY     RATE         TIME LEFT
  db      syncing  source         [###############-----]  75%  1.00 GiB  64.00 MiB/s  16s
  db: /dev/a -> /dev/b, 4.00 GiB, 3.00 GiB copied
  db: compared, 1.00 MiB of 4.00 GiB differ, the first at 3145728; 2.00 MiB could not be compared (1970-01-01 00:01:00Z)
  db: last pause 1.5 ms
  db: problem: a \\u{1b}[31mred\\n problem
  you may now: shunt pause s1, shunt cancel s1
";
        assert_eq!(status(&records()), expected);
    }

    #[test]
    fn what_keeping_both_legs_costs_is_told() {
        let Some(Record::Pair(pair)) = records().pop() else {
            panic!("the second one is a pair");
        };
        let application = ApplicationRecord {
            write_bytes_per_second: 5 << 20,
            ..ApplicationRecord::default()
        };
        let cost = |state: &str, application: Option<&ApplicationRecord>| {
            cost_of_both(&PairRecord {
                state: state.to_owned(),
                application: application.copied(),
                ..pair.clone()
            })
        };
        let twice = "both legs are kept: each write is done twice";
        assert_eq!(cost("source-selected", None).as_deref(), Some(twice));
        let with_rate = format!("{twice} (5.00 MiB/s now)");
        assert_eq!(cost("target-selected", Some(&application)), Some(with_rate));
        let dirty = "1.00 GiB are to be copied before the legs are equal";
        assert_eq!(cost("degraded", None).as_deref(), Some(dirty));
        assert_eq!(cost("syncing", None), None);
    }

    #[test]
    fn list_leaves_pairs_out() {
        let kept = list_records(records());
        assert!(matches!(kept.as_slice(), [Record::Session(_)]), "{kept:?}");
        assert_eq!(list(&kept).lines().count(), 1);
    }
}
