//! The records that `shunt status` shows.

use std::collections::BTreeSet;
use std::path::PathBuf;

use migration_core::pair::{PairState, Position, Verb};
use migration_core::session;
use migration_core::verify::Comparison;
use migration_proto::manager::{
    ApplicationRecord, Cursor, CutoverRecord, EventRecord, HostRecord, JSON_SCHEMA, PairRecord,
    Record, SessionMode, SessionRecord, VolumeRecord,
};
use migration_proto::route::Side;
use migration_proto::target::Status;

use crate::daemon::copies::copiers::Copied;
use crate::daemon::handle::View;
use crate::daemon::luns::opened::grown;
use crate::daemon::paths::Config;
use crate::daemon::sessions::queue::Occupancy;
use crate::daemon::volumes::position::facts;
use crate::daemon::volumes::route_change::is_paired_with;
use crate::daemon::volumes::truth;
use crate::store::{LegRow, Model, Note, PairRow, SessionRow, VolumeRow, VolumeState, leg_of};

pub(crate) fn host(pairs_max: u32, occupancy: Occupancy, problems: &[String]) -> Record {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Record::Host(HostRecord {
        schema: JSON_SCHEMA,
        pairs_max,
        pairs_copied: number(occupancy.copied),
        pairs_queued: number(occupancy.queued),
        problems: problems.to_vec(),
    })
}

pub(crate) fn volume(
    model: &Model,
    config: &Config,
    row: &VolumeRow,
    view: Option<&View>,
    problem: Option<&String>,
) -> Record {
    let view = view.cloned().unwrap_or_default();
    let status = view.status.as_deref();
    let leg = match model.live_pair_of(&row.name) {
        Some((session, position)) => {
            let pair = &session.pairs[position];
            let position = facts(session, pair, Some(&view), false).position();
            leg_of(pair, position.authoritative)
        }
        None => &row.leg,
    };
    Record::Volume(VolumeRecord {
        schema: JSON_SCHEMA,
        volume: row.name.clone(),
        state: volume_state(row, &view).to_owned(),
        device: config.device_link(&row.name),
        kernel_device: status.map(|status| status.device.clone()),
        lun: leg.paths().clone(),
        size_bytes: row.size_bytes,
        pid: status.filter(|_| view.connected).map(|status| status.pid),
        restarts: view.restarts,
        route: status.map(|status| status.route),
        weak_identity: weak_paths(model.legs_of(row)),
        grown: status
            .map(|status| grown(status).map(|(path, _)| path.to_owned()).collect())
            .unwrap_or_default(),
        problem: view
            .problem
            .clone()
            .or_else(|| truth::contradiction(model, row, Some(&view)))
            .or_else(|| status.and_then(said))
            .or_else(|| problem.cloned())
            .or_else(|| status.and_then(doubt)),
    })
}

/// The paths of the LUNs with a weak identity on some legs.
fn weak_paths<'a>(legs: impl IntoIterator<Item = &'a LegRow>) -> Vec<PathBuf> {
    let luns = legs.into_iter().flat_map(LegRow::weak);
    let paths: BTreeSet<PathBuf> = luns.map(|lun| lun.path.clone()).collect();
    paths.into_iter().collect()
}

pub(crate) const fn volume_state(row: &VolumeRow, view: &View) -> &'static str {
    match row.state {
        VolumeState::Attaching => "attaching",
        VolumeState::Detaching => "detaching",
        VolumeState::Attached if view.connected => "attached",
        VolumeState::Attached if view.failures > 0 => "failed",
        VolumeState::Attached => "recovering",
    }
}

/// The problem of the mirror leg, if it has failed, with what to do.
fn mirror_problem(session: &str, status: &Status) -> Option<String> {
    let failed = status.degraded.as_ref()?;
    let from_source = status.route.authoritative() == Side::Source;
    Some(match status.stalled_writes {
        Some(_) if from_source => {
            format!("{failed}; when it answers again, what it misses is copied automatically")
        }
        Some(_) | None => {
            format!("{failed}; repair the leg, then `shunt resume {session}`")
        }
    })
}

/// The problem that a volume reports, other than one of the mirror leg.
fn said(status: &Status) -> Option<String> {
    let authoritative = status.authoritative_problem.clone();
    authoritative.or_else(|| status.map_problem.clone())
}

/// Why both legs are compared again. This needs no command, so it is shown only if there is no
/// other problem.
fn doubt(status: &Status) -> Option<String> {
    let doubt = status.doubt.as_ref();
    doubt.map(|doubt| format!("the legs are compared again: {doubt}"))
}

pub(crate) fn session(
    row: &SessionRow,
    positions: &[Position],
    cutover: Option<CutoverRecord>,
) -> Record {
    let state = session::state(positions).unwrap_or(PairState::Setup);
    let mut names: Vec<String> = session::allowed(positions)
        .into_iter()
        .filter(|verb| *verb != Verb::Switch || row.options.mode != SessionMode::Copy)
        .map(|verb| verb.name().to_owned())
        .collect();
    if session::may_be_compared(positions).is_ok() {
        names.push("verify".to_owned());
    }
    if session::state(positions).is_some_and(PairState::is_ended) {
        names.push("retire".to_owned());
    }
    Record::Session(SessionRecord {
        schema: JSON_SCHEMA,
        session: row.name.clone(),
        id: row.id.clone(),
        state: state.name().to_owned(),
        pairs: u32::try_from(row.pairs.len()).unwrap_or(u32::MAX),
        allowed: names,
        options: row.options.clone(),
        cutover,
        created_at_ms: row.created_at_ms,
    })
}

/// The record of a pair. `comparing`: a comparison that was requested and whose result is not
/// recorded yet.
pub(crate) fn pair(
    session: &SessionRow,
    row: &PairRow,
    position: Position,
    view: Option<&View>,
    copied: Option<Copied>,
    comparing: Option<&Comparison>,
    application: Option<ApplicationRecord>,
) -> PairRecord {
    let status = view
        .and_then(|view| view.status.as_deref())
        .filter(|status| is_paired_with(status, row));
    let dirty_bytes = match position.state {
        PairState::Setup | PairState::Queued => row.size_bytes,
        PairState::Committed | PairState::Retired | PairState::Cancelled => 0,
        PairState::Syncing
        | PairState::Tracking
        | PairState::Paused
        | PairState::SourceSelected
        | PairState::Splitting
        | PairState::Split
        | PairState::Switching
        | PairState::TargetSelected
        | PairState::Committing
        | PairState::Failed
        | PairState::NeedsRecovery
        | PairState::Degraded
        | PairState::Verifying => status.map_or(row.size_bytes, |status| status.dirty_bytes),
    };
    let rate = copied.and_then(|copied| copied.bytes_per_second);
    let over = comparing.is_some_and(|comparing| comparing.over);
    let compared_bytes = (comparing.is_some() || position.state == PairState::Verifying)
        .then(|| copied.and_then(|copied| copied.compared_bytes))
        .map(|compared| match over {
            true => row.size_bytes,
            false => compared.unwrap_or(0).min(row.size_bytes),
        });
    let left_bytes = compared_bytes.map_or(dirty_bytes, |compared| row.size_bytes - compared);
    let ended = position.state.is_ended();
    let problem = view
        .filter(|_| !ended)
        .and_then(|view| view.problem.clone())
        .or_else(|| {
            status
                .filter(|_| !ended)
                .and_then(|status| mirror_problem(&session.name, status).or_else(|| said(status)))
        })
        .or_else(|| row.problem.clone())
        .or_else(|| status.filter(|_| !ended).and_then(doubt));
    PairRecord {
        schema: JSON_SCHEMA,
        session: session.name.clone(),
        volume: row.volume.clone(),
        state: position.state.name().to_owned(),
        source: row.source.paths().clone(),
        target: row.target.paths().clone(),
        authoritative: position.authoritative.into(),
        weak_identity: weak_paths([&row.source, &row.target]),
        size_bytes: row.size_bytes,
        dirty_bytes,
        dirty_percent: status
            .filter(|_| !ended)
            .map(|status| status.dirty_percent.clone()),
        copied_bytes: copied.map_or(row.copied_bytes, |copied| copied.bytes),
        rate_bytes_per_second: rate,
        eta_seconds: rate
            .filter(|rate| *rate > 0)
            .map(|rate| left_bytes.div_ceil(rate)),
        compared_bytes,
        verification: row.verification.clone(),
        unreadable: row.unreadable.clone(),
        retired: row.retired.as_ref().map(|retired| retired.how),
        last_pause_us: row.last_pause_us,
        application: application.filter(|_| !ended && view.is_some_and(|view| view.connected)),
        copy_of_at_ms: row
            .copy_of
            .as_ref()
            .map(|copy_of| copy_of.at_ms)
            .filter(|_| position.state == PairState::Split),
        problem,
    }
}

/// The record of a line of the history. `end`: the place after a line that is not stored.
pub(crate) fn event(note: Note, end: &Cursor) -> EventRecord {
    EventRecord {
        schema: JSON_SCHEMA,
        cursor: note.cursor.unwrap_or_else(|| end.clone()),
        at_ms: note.at_ms,
        session: note.session,
        volume: note.volume,
        who: note.who,
        event: note.event,
    }
}
