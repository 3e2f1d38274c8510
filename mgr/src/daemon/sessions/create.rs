//! Records a session. Checks all pairs and reports every reason to refuse any of them, before
//! anything is recorded.

use std::collections::BTreeSet;

use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_proto::luns::LunPaths;
use migration_proto::manager::{Failure, HistoryEvent, PRIORITY_MAX, SessionOptions};

use super::cutover;
use super::hours;
use super::schedule;
use super::split;
use crate::daemon::context::{Context, note, now_ms};
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::luns::checks::{self, Accepted, Candidate, Used, check_target};
use crate::daemon::luns::twice;
use crate::store::{Change, LegRow, PairRow, Progress, SessionRow, VolumeRow};

/// The parameters of a new session.
#[derive(Debug, Clone)]
pub(crate) struct CreateParams {
    pub(crate) session: String,
    /// Each volume with its target.
    pub(crate) pairs: Vec<(VolumeRow, LunPaths)>,
    pub(crate) options: SessionOptions,
    /// The LUNs that Shunt already uses.
    pub(crate) used: Vec<Used>,
}

/// Checks and records a session.
pub(crate) async fn create(context: Context, wanted: CreateParams) -> Answer {
    let object = failure::session(&wanted.session);
    let mut refusals = Vec::new();
    let mut pairs: Vec<PairRow> = Vec::new();
    let mut messages = Vec::new();
    let mut used = wanted.used.clone();
    for (volume, target) in &wanted.pairs {
        match check_target(
            &context,
            volume,
            target,
            Accepted::by(&wanted.options),
            &used,
            None,
        )
        .await
        {
            Ok(leg) => {
                messages.extend(leg.iter().filter_map(|lun| lun.name_note.clone()));
                messages.extend(leg.iter().filter_map(overwritten));
                messages.extend(twice::warnings(volume, Some(target)).await);
                used.extend(leg.iter().map(|candidate| Used {
                    lun: candidate.lun.clone(),
                    holder: format!("the target of {} in this session", volume.name),
                }));
                match checks::leg_row(&leg) {
                    Ok(target) => pairs.push(pair_of(&context, volume, target, &leg).await?),
                    Err(cause) => refusals.push(format!("pair {}: {cause}", volume.name)),
                }
            }
            Err(reasons) => refusals.push(format!("pair {}: {}", volume.name, reasons.join("; "))),
        }
    }
    if !refusals.is_empty() {
        let next = "name targets that fit, then create the session again";
        return Err(failure::refused(object, refusals.join("; "), next));
    }
    let row = SessionRow {
        name: wanted.session.clone(),
        id: uuid::Uuid::new_v4().to_string(),
        created_at_ms: now_ms(),
        options: wanted.options,
        paused: false,
        pairs,
    };
    record(&context, &row).await?;
    messages.push(format!(
        "session {} is recorded; `shunt start {}` starts the copy",
        row.name, row.name
    ));
    Ok(Done::changed(messages))
}

/// A message about the data on a target that will be overwritten; `None` if there is no data.
fn overwritten(candidate: &Candidate) -> Option<String> {
    let lost = checks::contents(candidate);
    (!lost.is_empty()).then(|| {
        let path = candidate.lun.path.display();
        format!("{path} will be overwritten: {}", lost.join("; "))
    })
}

/// Checks the parts of a request that need no access to a device.
pub(crate) fn check_request(
    session: &str,
    volumes: &[&str],
    options: &SessionOptions,
) -> Result<(), Failure> {
    let object = failure::session(session);
    let again = "correct the command";
    crate::names::check(session)
        .map_err(|error| failure::refused(&object, error.to_string(), again))?;
    if options.priority > PRIORITY_MAX {
        let cause = format!(
            "a priority of {} is not within 0 to {PRIORITY_MAX}",
            options.priority
        );
        return Err(failure::refused(object, cause, again));
    }
    hours::check(options)
        .and_then(|()| hours::check_start(options.start_at_ms))
        .map_err(|cause| failure::refused(&object, cause, again))?;
    split::check(options).map_err(|cause| failure::refused(&object, cause, again))?;
    schedule::check(&options.switch).map_err(|cause| failure::refused(&object, cause, again))?;
    cutover::check(options).map_err(|cause| failure::refused(&object, cause, again))?;
    if volumes.is_empty() {
        return Err(failure::refused(
            object,
            "a session has at least one pair",
            again,
        ));
    }
    let mut seen = BTreeSet::new();
    for volume in volumes {
        if !seen.insert(*volume) {
            return Err(failure::refused(
                object,
                format!("volume {volume} is named twice"),
                again,
            ));
        }
    }
    Ok(())
}

async fn record(context: &Context, row: &SessionRow) -> Result<(), Failure> {
    let mut changes = vec![Change::AddSession(row.clone())];
    for pair in &row.pairs {
        let holder = failure::target_of(&pair.volume, &row.name);
        changes.extend(pair.target.locks(&holder).into_iter().map(Change::Lock));
        let event = HistoryEvent::Created {
            source: pair.source.paths().clone(),
            target: pair.target.paths().clone(),
            identity: pair.target.describe(),
            weak_identity: pair.target.weak().map(|lun| lun.path.clone()).collect(),
            overwrite: row.options.overwrite,
        };
        changes.push(note(Some(&row.name), Some(&pair.volume), event));
    }
    context.record(&failure::session(&row.name), changes).await
}

/// Builds the row of a pair, whose target is the leg `found`. Fails if the database does.
async fn pair_of(
    context: &Context,
    volume: &VolumeRow,
    target: LegRow,
    found: &[Candidate],
) -> Result<PairRow, Failure> {
    let (name, key) = (volume.name.clone(), target.key());
    let estimate = context
        .store
        .call(move |store| store.estimate(&name, &key))
        .await
        .map_err(|error| failure::store(failure::volume(&volume.name), &error))?;
    Ok(PairRow {
        volume: volume.name.clone(),
        source: volume.leg.clone(),
        target,
        target_contents: checks::contents_words(found),
        size_bytes: volume.size_bytes,
        phase: Phase::Setup,
        authoritative: Side::Source,
        copied_bytes: 0,
        last_pause_us: None,
        problem: None,
        verification: None,
        retired: None,
        copy_of: None,
        unreadable: Vec::new(),
        progress: Progress {
            estimate,
            ..Progress::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_device_is_refused_at_once() {
        let options = SessionOptions::default();
        assert!(check_request("s1", &["a", "b"], &options).is_ok());
        let high = SessionOptions {
            priority: PRIORITY_MAX + 1,
            ..options.clone()
        };
        let failure = check_request("s1", &["a"], &high).unwrap_err();
        assert!(failure.cause.contains("priority of 101"), "{failure:?}");
        for (session, volumes, part) in [
            ("", vec!["a"], "a name has"),
            ("s1", vec![], "at least one"),
            ("s1", vec!["a", "b", "a"], "named twice"),
        ] {
            let failure = check_request(session, &volumes, &options).unwrap_err();
            assert!(failure.cause.contains(part), "{failure:?}");
        }
    }
}
