//! The sentences for the events of the history.

mod parts;
#[cfg(test)]
mod tests;

use std::time::Duration;

use migration_core::route::Side;
use migration_proto::manager::{EventRecord, HistoryEvent, RetireHow, SwitchPolicy};

use crate::moments;
use crate::units;
pub(crate) use parts::pause;
pub use parts::{
    copy_window, cutover_end, cutover_misfit, limits, older_database, route_words, switch_policy,
};
use parts::{milliseconds, outcome, planned, seconds, side, since, task_words, weak, window};

/// The next step when the database does not fit the map file and shuntd does not correct it.
pub const REBUILD: &str = "end shuntd, move shunt.db in the state directory away, and start shuntd: it makes the database again from the map files";

/// The sentence for an event that a client received.
#[must_use]
pub fn of_record(record: &EventRecord) -> String {
    let EventRecord {
        session, volume, ..
    } = record;
    sentence(&record.event, session.as_deref(), volume.as_deref())
}

/// The sentence for an event. `session` and `volume`: the objects that the event concerns.
// A table: one sentence for each event.
#[must_use]
pub fn sentence(event: &HistoryEvent, session: Option<&str>, volume: Option<&str>) -> String {
    let session = session.unwrap_or("SESSION");
    let volume = volume.unwrap_or("the volume");
    match event {
        HistoryEvent::AttachBegun {
            lun,
            identity,
            weak_identity,
        } => format!("attach to {lun} ({identity}){}", weak(weak_identity)),
        HistoryEvent::Attached { device } => format!("attached as {}", device.display()),
        HistoryEvent::AttachFailed { cause } => format!("attach failed: {cause}"),
        HistoryEvent::AttachFinished => "the attach that was interrupted is finished".to_owned(),
        HistoryEvent::DetachBegun => "detach".to_owned(),
        HistoryEvent::Detached { lun } => format!("detached from {lun}"),
        HistoryEvent::NotDetached { cause } => format!("not detached: {cause}"),
        HistoryEvent::DetachUnknown { cause } => {
            format!("whether it is detached is not known: {cause}")
        }
        HistoryEvent::LunGrown {
            lun,
            lun_bytes,
            volume_bytes,
        } => format!(
            "{} has grown to {lun_bytes} bytes; the volume keeps its size of {volume_bytes} bytes: to use the rest, detach it and \
             attach the LUN again",
            lun.display()
        ),
        HistoryEvent::LunFoundElsewhere { lun, found } => format!(
            "{} does not lead to the LUN that was recorded; by its identity it is found as {}",
            lun.display(),
            found.display()
        ),
        HistoryEvent::LunRecognised { lun, contents } => format!(
            "{} is taken for the LUN that was accepted: it holds {}, and no other device does",
            lun.display(),
            contents.as_deref().unwrap_or_default()
        ),
        HistoryEvent::LunAccepted {
            lun,
            lun_bytes,
            contents,
        } => format!(
            "{} is accepted again as a LUN of the volume: {lun_bytes} bytes, {}",
            lun.display(),
            contents
                .as_deref()
                .unwrap_or("nothing with a UUID or a label on it")
        ),
        HistoryEvent::RouteFound {
            route,
            source,
            target,
            recorded,
        } => {
            let found = route_words(*route, source.as_ref(), target.as_ref());
            format!("found: {}", older_database(&found, recorded))
        }
        HistoryEvent::RouteContradicts {
            phase,
            route,
            source,
            target,
            is_own,
        } => {
            let next = match (is_own, route.authoritative().into()) {
                (true, Side::Source) => format!("`shunt cancel {session}` ends it"),
                (true, Side::Target) => format!("`shunt commit {session}` ends it"),
                // No verb of this session can do anything with those LUNs.
                (false, Side::Source | Side::Target) => REBUILD.to_owned(),
            };
            format!(
                "it is recorded as {}, but the volume {}: {next}",
                phase.name(),
                route_words(*route, source.as_ref(), target.as_ref())
            )
        }
        HistoryEvent::DatabaseRebuilt { cause } => format!(
            "{cause}: another database was made from the map files; sessions that were not mirrored, and the history, are lost"
        ),
        HistoryEvent::VolumeRestored {
            older_database,
            lun,
        } => format!("{}restored: it uses {lun} alone", since(*older_database)),
        HistoryEvent::SessionRestored {
            older_database,
            found_session,
            source,
            target,
            authoritative,
        } => format!(
            "{}restored as session {found_session}, paused: {source} to {target}, the {} is authoritative",
            since(*older_database),
            side(*authoritative)
        ),
        HistoryEvent::VolumeNotRestored { cause, database } => format!(
            "not restored: {cause}; if it is being served, it continues without shuntd; next: correct that, end shuntd, move \
             {database} away, start shuntd"
        ),
        HistoryEvent::LockFreed { lun, holder } => format!(
            "the lock on {} is freed: its holder is {holder}, but no volume, no live session and no retired leg has this lun",
            lun.display()
        ),
        HistoryEvent::RecoverBegun { leg, cause } => {
            format!("recover on the {}: {cause}", side(*leg))
        }
        HistoryEvent::Created {
            source,
            target,
            identity,
            weak_identity,
            overwrite,
        } => format!(
            "created: {source} to {target} ({identity}){}{}",
            weak(weak_identity),
            match overwrite {
                true => ", what it holds may be overwritten",
                false => "",
            }
        ),
        HistoryEvent::VerbBegun { verb } => verb.name().to_owned(),
        HistoryEvent::TurnCame => "its turn has come".to_owned(),
        HistoryEvent::DueVerbRefused { verb, cause } => {
            format!("the {verb} that is due is refused: {cause}")
        }
        HistoryEvent::VerbFailed { verb, cause } => format!("the {verb} failed: {cause}"),
        HistoryEvent::VerbUnknown { verb, cause } => {
            format!("whether the {verb} has happened is not known: {cause}")
        }
        HistoryEvent::VerbInterrupted {
            from,
            to,
            authoritative,
        } => format!(
            "{} was interrupted; found: {}, the {} is authoritative",
            from.name(),
            to.name(),
            side(*authoritative)
        ),
        HistoryEvent::Queued { pairs_max } => {
            format!("queued: {pairs_max} pairs are copied at once")
        }
        HistoryEvent::QueuedForHours {
            from_minute,
            to_minute,
        } => format!("queued: {}", window(*from_minute, *to_minute)),
        HistoryEvent::Started { target } => format!("mirrored onto {target}"),
        HistoryEvent::NotStarted { cause } => format!("not started: {cause}"),
        HistoryEvent::InSync {
            copied_bytes,
            took_ms,
            expected_seconds,
        } => {
            let took = took_ms.map_or_else(String::new, |took_ms| {
                let took = units::duration(Duration::from_millis(took_ms));
                let expected = expected_seconds.map(Duration::from_secs);
                format!(", in {took}{}", planned(expected.map(units::duration)))
            });
            format!("in sync; {copied_bytes} bytes were copied since the start{took}")
        }
        HistoryEvent::Paused => "paused".to_owned(),
        HistoryEvent::Resumed => "resumed".to_owned(),
        HistoryEvent::MaxDurationOver {
            max_duration_seconds,
        } => format!(
            "paused: it is not in sync after {}, its --max-duration; `shunt resume {session}` continues",
            seconds(*max_duration_seconds)
        ),
        HistoryEvent::HoursOver {
            from_minute,
            to_minute,
        } => format!("its hours are over: {}", window(*from_minute, *to_minute)),
        HistoryEvent::CopierBlocked {
            task,
            retried,
            cause,
        } => {
            let then = retried.map(|retried| format!(", and {}", outcome(retried)));
            let task = task_words(*task);
            format!("{task} is blocked{}: {cause}", then.unwrap_or_default())
        }
        HistoryEvent::CopierLegFailed {
            task,
            leg,
            retried,
            cause,
        } => format!(
            "{} failed on the {}, and {}: {cause}",
            task_words(*task),
            side(*leg),
            outcome(*retried)
        ),
        HistoryEvent::CopierFailed {
            task,
            retried,
            cause,
        } => format!(
            "the copier failed, and {} {}: {cause}",
            task_words(*task),
            outcome(*retried)
        ),
        HistoryEvent::Unreadable {
            offset_bytes,
            length_bytes,
        } => format!(
            "{length_bytes} bytes at {offset_bytes} cannot be read from the source, and become zeroes on the target"
        ),
        HistoryEvent::TargetAnswers => "the target answers again; the writes that it missed are copied, and no write waits for it \
                                        meanwhile"
            .to_owned(),
        HistoryEvent::TargetCaughtUp => {
            "the target has caught up: writes are mirrored again".to_owned()
        }
        HistoryEvent::LegsInDoubt {
            authoritative,
            cause,
        } => format!(
            "the legs are compared again, the {} is authoritative: {cause}",
            side(*authoritative)
        ),
        HistoryEvent::CompareBegun => {
            "verify: both legs are compared; what differs is copied again".to_owned()
        }
        HistoryEvent::Compared {
            compared_bytes,
            differing_bytes,
            first_difference_bytes,
            unknown_bytes,
            repaired,
            cause,
        } => {
            let found = match first_difference_bytes {
                None => format!("{compared_bytes} bytes compared, nothing differs"),
                Some(at) => {
                    let then = match repaired {
                        true => String::new(),
                        false => format!(
                            ", and no role moves before `shunt verify {session}` finds nothing"
                        ),
                    };
                    format!(
                        "{differing_bytes} of {compared_bytes} bytes differed, the first at {at}; they are copied again{then}"
                    )
                }
            };
            let unknown = match (unknown_bytes, cause) {
                (0, _) => String::new(),
                (bytes, None) => format!("; {bytes} bytes could not be compared"),
                (bytes, Some(cause)) => format!("; {bytes} bytes could not be compared ({cause})"),
            };
            format!("verify: {found}{unknown}")
        }
        HistoryEvent::RoleMoved {
            from: _,
            to,
            epoch: _,
            held_us,
            expected_us,
        } => format!(
            "the {} is authoritative{}{}",
            side(*to),
            pause(*held_us),
            planned(expected_us.map(units::pause))
        ),
        HistoryEvent::RoleMovedBack { to, held_us } => format!(
            "went back: the {} is authoritative{}",
            side(*to),
            pause(*held_us)
        ),
        HistoryEvent::RoleNotMoved { to, cause } => {
            format!("the role did not move to the {}: {cause}", side(*to))
        }
        HistoryEvent::FailedOver { from, to, cause } => format!(
            "the {} failed, and the {} has become authoritative automatically; now {cause}",
            side(*from),
            side(*to)
        ),
        HistoryEvent::AuthoritativeFound { to } => {
            format!("found: the {} is authoritative", side(*to))
        }
        HistoryEvent::Ended { leg: _, lun, freed } => {
            format!("{volume} is on {lun} alone; {freed} is no longer used")
        }
        HistoryEvent::CopyUnknown { target } => format!(
            "whether {target} is a copy is not known, because the cancel was interrupted: take it for none"
        ),
        HistoryEvent::Split {
            source,
            target,
            copy_of_at_ms,
            held_us,
        } => format!(
            "{target} is a copy of {source} as of {}{}",
            moments::text(copy_of_at_ms / 1000),
            pause(*held_us)
        ),
        HistoryEvent::NotSplit { cause } => format!("no copy: {cause}"),
        HistoryEvent::MirroredAgain { full_copy_cause } => match full_copy_cause {
            None => "mirrored again; what was written since the split is copied".to_owned(),
            Some(cause) => format!("mirrored again; everything is copied, because {cause}"),
        },
        HistoryEvent::NotMirroredAgain { cause } => format!("not mirrored again: {cause}"),
        HistoryEvent::MirroredAgainUnknown { cause } => {
            format!("whether it is mirrored again is not known: {cause}")
        }
        HistoryEvent::CutoverBegun { max_pause_ms } => format!(
            "the cutover begins: requests will be held for {} at most",
            milliseconds(*max_pause_ms)
        ),
        HistoryEvent::CutoverRequestedAgain { max_pause_ms } => format!(
            "the cutover is requested again: requests will be held for {} at most",
            milliseconds(*max_pause_ms)
        ),
        HistoryEvent::CutoverSlowsWrites {
            write_bytes_per_second,
            copy_bytes_per_second,
            predicted_pause_us,
        } => format!(
            "the cutover slows writes: applications write {}, the copier can copy {}, and requests would be held for {}",
            units::rate(*write_bytes_per_second),
            units::rate(*copy_bytes_per_second),
            predicted_pause_us.map_or_else(|| "an unknown time".to_owned(), units::pause)
        ),
        HistoryEvent::CutoverHoldsRequests {
            hold_max_ms,
            write_bytes_per_second,
            unslowed_bytes_per_second,
            copy_bytes_per_second,
        } => {
            let before = unslowed_bytes_per_second.map(units::rate);
            let before = before.map(|rate| format!(" ({rate} before)"));
            format!(
                "the cutover holds requests for {} at most; applications write {}{}, the copier can copy {}",
                milliseconds(*hold_max_ms),
                units::rate(*write_bytes_per_second),
                before.unwrap_or_default(),
                units::rate(*copy_bytes_per_second)
            )
        }
        HistoryEvent::CutoverGaveUp { .. } | HistoryEvent::CutoverStopped { .. } => {
            let (cause, next) = cutover_end(event, session);
            format!("the cutover is over, the source stays authoritative: {cause}; next: {next}")
        }
        HistoryEvent::Retired {
            leg,
            lun,
            how,
            blocks,
        } => {
            let leg = side(*leg);
            match how {
                RetireHow::ReadOnly => format!("the {leg} {lun} is read-only"),
                RetireHow::Offline => format!("the {leg} {lun} is offline"),
                RetireHow::Hold => format!("the {leg} {lun} is held by shuntd"),
                RetireHow::WipeSignatures => format!(
                    "the signatures on the {leg} {lun} are wiped, {} blocks",
                    blocks.unwrap_or_default()
                ),
                RetireHow::Discard => format!("the {leg} {lun} is discarded"),
            }
        }
        HistoryEvent::NotRetired { cause } => format!("not retired: {cause}"),
        HistoryEvent::RetireInterrupted { lun } => format!(
            "{lun} was not retired, because the commit was interrupted; next: `shunt retire {session}`"
        ),
        HistoryEvent::RetireTakenBack { leg, lun } => {
            format!("the {} {lun} is taken back", side(*leg))
        }
        HistoryEvent::LimitsSet { changes } => format!("set: {}", limits(changes)),
        HistoryEvent::PairsMaxSet { pairs_max } => {
            format!("set: at most {pairs_max} pairs are copied at once")
        }
        HistoryEvent::SwitchPolicySet { verb, policy, mode } => {
            format!("{verb}: {}", switch_policy(policy, *mode))
        }
        HistoryEvent::Signalled { signal, mode } => {
            let policy = switch_policy(&SwitchPolicy::WhenSynced, *mode);
            format!("signal {signal}: {policy}")
        }
        HistoryEvent::StateChanged { state } => state.clone(),
        HistoryEvent::Unknown => "an event that this version of shunt does not know".to_owned(),
    }
}
