//! Compares the route of a volume in its map file with what the database has recorded.
//!
//! The database can be older than the map files, if it or its file system was restored from a
//! backup. Then the map files take precedence. When shuntd starts, it records routes that the
//! database does not know ([`adoption`]), and nothing is detached, ended or recovered against a map
//! file.

use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{Failure, HistoryEvent, SessionOptions};
use migration_proto::route::{Leg, MapSummary, Route};
use migration_proto::target::Status;

use super::process;
use crate::daemon::context::{Context, note, now_ms};
use crate::daemon::failure;
use crate::daemon::handle::{View, VolumeHandle};
use crate::history;
use crate::names;
use crate::store::{Change, LegRow, Model, PairRow, Progress, SessionRow, VolumeRow, VolumeState};

/// Why a leg on parts of LUNs is refused.
const NOT_WHOLE: &str = "a leg that is not made of whole LUNs";

/// The route of a volume and its legs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Truth {
    route: Route,
    source: Leg,
    target: Option<Leg>,
}

impl Truth {
    pub(crate) fn of_status(status: &Status) -> Self {
        Self {
            route: status.route,
            source: status.source.clone(),
            target: status.target.clone(),
        }
    }

    pub(crate) fn of_map(summary: &MapSummary) -> Self {
        Self {
            route: summary.route,
            source: summary.descriptor.source.clone(),
            target: summary.descriptor.target.clone(),
        }
    }

    fn leg(&self, side: Side) -> Option<&Leg> {
        match side {
            Side::Source => Some(&self.source),
            Side::Target => self.target.as_ref(),
        }
    }

    /// The legs that the route uses.
    pub(crate) fn legs(&self) -> Vec<&Leg> {
        let sides = match self.route {
            Route::Single { leg } => vec![Side::from(leg)],
            Route::Mirrored { .. } | Route::Split => vec![Side::Source, Side::Target],
        };
        sides
            .into_iter()
            .filter_map(|side| self.leg(side))
            .collect()
    }

    /// Whether the volume uses the leg `row` alone.
    pub(crate) fn is_single_on(&self, row: &LegRow) -> bool {
        let is_single = matches!(self.route, Route::Single { .. });
        is_single && matches!(self.legs().as_slice(), [leg] if row.is(leg))
    }

    /// Whether the legs that the volume uses are `source` and `target`, each on its side.
    pub(crate) fn is_of(&self, source: &LegRow, target: Option<&LegRow>) -> bool {
        let is_source = source.is(&self.source);
        let is_target = match (target, &self.target) {
            (Some(row), Some(leg)) => row.is(leg),
            (None, _) | (_, None) => false,
        };
        match self.route {
            Route::Single {
                leg: migration_proto::route::Side::Source,
            } => is_source,
            Route::Single {
                leg: migration_proto::route::Side::Target,
            } => is_target,
            Route::Mirrored { .. } | Route::Split => is_source && is_target,
        }
    }

    pub(crate) fn text(&self) -> String {
        let (source, target) = (self.luns(Side::Source), self.luns(Side::Target));
        history::route_words(self.route, source.as_ref(), target.as_ref())
    }

    /// The LUNs of a leg, if there is one.
    pub(crate) fn luns(&self, side: Side) -> Option<LunPaths> {
        let extents = self.leg(side)?.extents.iter();
        LunPaths::new(extents.map(|extent| extent.path.clone()).collect()).ok()
    }
}

/// The route and legs of a volume, from its running ublk-target or else from its map file. `None`:
/// there is no map file.
///
/// # Errors
/// Why they cannot be read.
pub(crate) async fn ask(
    context: &Context,
    row: &VolumeRow,
    handle: Option<&VolumeHandle>,
) -> Result<Option<Truth>, String> {
    let view = handle.map(VolumeHandle::view).unwrap_or_default();
    if let (true, Some(status)) = (view.connected, view.status) {
        return Ok(Some(Truth::of_status(&status)));
    }
    let map = context.config.map(&row.name);
    let there = map.try_exists();
    if !there.map_err(|error| format!("{} cannot be examined: {error}", map.display()))? {
        return Ok(None);
    }
    let summary = process::describe(&context.config.ublk_target, &map)
        .await
        .map_err(|error| error.to_string())?;
    if summary.descriptor.volume_id != row.volume_id {
        return Err(format!(
            "{} is that of another volume, {}",
            map.display(),
            summary.descriptor.volume
        ));
    }
    Ok(Some(Truth::of_map(&summary)))
}

/// Refuses unless the volume uses the recorded leg alone, or was never served.
pub(super) async fn require_single(
    context: &Context,
    row: &VolumeRow,
    handle: Option<&VolumeHandle>,
) -> Result<(), Failure> {
    let object = failure::volume(&row.name);
    match ask(context, row, handle).await {
        Ok(Some(truth)) if truth.is_single_on(&row.leg) => Ok(()),
        Ok(Some(truth)) => Err(failure::refused(
            object,
            against(row, &truth),
            history::REBUILD,
        )),
        // An attach has not made the map file yet, or a detach has removed it.
        Ok(None) if row.state != VolumeState::Attached => Ok(()),
        Ok(None) => {
            let map = context.config.map(&row.name);
            let cause = format!(
                "the map file {} is missing, so that which leg has the data is not known",
                map.display()
            );
            Err(failure::refused(
                object,
                cause,
                failure::recover_command(&row.name),
            ))
        }
        Err(cause) => {
            let cause = format!("which leg has the data is not known: {cause}");
            Err(failure::refused(
                object,
                cause,
                failure::recover_command(&row.name),
            ))
        }
    }
}

fn against(row: &VolumeRow, truth: &Truth) -> String {
    history::older_database(&truth.text(), row.leg.paths())
}

/// How the volume contradicts the database, if no session explains that.
pub(crate) fn contradiction(model: &Model, row: &VolumeRow, view: Option<&View>) -> Option<String> {
    let status = view.filter(|view| view.connected)?.status.as_deref()?;
    let truth = Truth::of_status(status);
    let explained = row.state != VolumeState::Attached
        || model.live_pair_of(&row.name).is_some()
        || truth.is_single_on(&row.leg);
    (!explained).then(|| against(row, &truth))
}

/// Changes that record a session for a mirrored volume that was found in a map file, with the locks
/// of its target.
pub(crate) fn found_session(
    row: &VolumeRow,
    name: String,
    source: LegRow,
    target: LegRow,
    authoritative: Side,
    problem: &str,
) -> Vec<Change> {
    let locks = target.locks(&failure::target_of(&row.name, &name));
    let mut changes: Vec<Change> = locks.into_iter().map(Change::Lock).collect();
    changes.push(Change::AddSession(SessionRow {
        name,
        id: uuid::Uuid::new_v4().to_string(),
        created_at_ms: now_ms(),
        options: SessionOptions::default(),
        paused: true,
        pairs: vec![PairRow {
            volume: row.name.clone(),
            source,
            target,
            // The contents were checked when the migration began.
            target_contents: String::new(),
            size_bytes: row.size_bytes,
            phase: Phase::Active,
            authoritative,
            copied_bytes: 0,
            last_pause_us: None,
            problem: Some(problem.to_owned()),
            verification: None,
            retired: None,
            copy_of: None,
            unreadable: Vec::new(),
            progress: Progress::default(),
        }],
    }));
    changes
}

/// The name of the session for a volume that was found in a map file.
pub(crate) fn session_name(volume: &str, volume_id: &str) -> String {
    let name = format!("found-{volume}");
    match names::check(&name) {
        Ok(()) => name,
        // With the prefix, the name of the volume is too long.
        Err(_) => format!("found-{volume_id}"),
    }
}

/// The problem shown for a pair of such a session.
const FOUND: &str = "the database was older than the map file of the volume, in which this was found: see `shunt history`, then resume, \
                     commit or cancel it";

/// Changes that record the route of a volume, if the database has a different route and no session
/// that explains the route. Empty otherwise.
///
/// # Errors
/// Why the route cannot be recorded.
pub(crate) fn adoption(
    model: &Model,
    row: &VolumeRow,
    truth: &Truth,
) -> Result<Vec<Change>, String> {
    if model.live_pair_of(&row.name).is_some() || truth.is_single_on(&row.leg) {
        return Ok(Vec::new());
    }
    let mut session = session_name(&row.name, &row.volume_id);
    if model.sessions.contains_key(&session) {
        session = format!("found-{}", uuid::Uuid::new_v4());
    }
    let mut legs = Vec::new();
    for leg in truth.legs() {
        legs.push(LegRow::of(leg).ok_or(NOT_WHOLE)?);
    }
    let mut legs = legs.into_iter();
    let first = legs
        .next()
        .ok_or("its route names a leg that is not there")?;
    let mut changes = vec![note(
        None,
        Some(&row.name),
        HistoryEvent::RouteFound {
            route: truth.route,
            source: truth.luns(Side::Source),
            target: truth.luns(Side::Target),
            recorded: row.leg.paths().clone(),
        },
    )];
    if first != row.leg {
        changes.extend(row.leg.unlock());
        let locks = first.locks(&failure::volume(&row.name));
        changes.extend(locks.into_iter().map(Change::Lock));
        changes.push(Change::SetVolumeLeg(row.name.clone(), first.clone()));
    }
    if let Some(target) = legs.next() {
        let side = migration_core::route::Route::from(truth.route).authoritative();
        changes.extend(found_session(row, session, first, target, side, FOUND));
    }
    Ok(changes)
}
