//! What an operation records, and what the operator reads about it.

use std::collections::BTreeMap;
use std::fmt;

use migration_core::operation::{Answer as StepAnswer, End, Entry, Seal, Step};
use migration_core::pair::{Phase, Verb};
use migration_core::route::{Route, Side};
use migration_proto::manager::Failure;
use migration_proto::target::Refusal;
use tracing::warn;

use super::Operation;
use super::steps::Outcome;
use crate::daemon::clock::steady_ms;
use crate::daemon::context::{note, now_ms};
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::luns::unreadable;
use crate::daemon::sessions::hours;
use crate::daemon::sessions::schedule;
use crate::daemon::volumes::route_change::{DEADLINE_MS, NotChanged};
use crate::moments;
use crate::store::{Change, CopyOf, OpenMapRow, PairField, PairKey, PairRow, Sealed, leg_of};
use crate::units;

/// What is known of an operation so far.
#[derive(Debug)]
pub(crate) struct Report {
    verb: Verb,
    /// The name of the verb in the history.
    intent: &'static str,
    pairs_max: u32,
    /// The numbers of bytes that stopped copiers have copied, to be recorded.
    pub(crate) copied: Vec<Change>,
    /// Why a pair did not do its last step.
    errors: BTreeMap<usize, NotChanged>,
    /// How long the last change of a pair held requests, in microseconds.
    pauses: BTreeMap<usize, Option<u64>>,
    /// The instant of a split, in milliseconds since 1970.
    pub(crate) copy_of_ms: u64,
    seals: BTreeMap<usize, Sealed>,
    /// Why everything is copied again to a target that was split off.
    from_scratch: BTreeMap<usize, String>,
    /// The pair that did not follow a switch or an undo, and why.
    not_moved: Option<(usize, NotChanged)>,
    /// Whether the outcome is unknown for some pair.
    unknown: bool,
    /// What was done.
    messages: Vec<String>,
    /// What was not done.
    problems: Vec<String>,
    /// Why nothing was begun.
    pub(crate) refusals: Vec<String>,
    /// The same, in the words that the operator reads.
    failure: Option<Failure>,
}

impl Report {
    pub(crate) fn new(verb: Verb, intent: &'static str, pairs_max: u32) -> Self {
        Self {
            verb,
            intent,
            pairs_max,
            copied: Vec::new(),
            errors: BTreeMap::new(),
            pauses: BTreeMap::new(),
            copy_of_ms: 0,
            seals: BTreeMap::new(),
            from_scratch: BTreeMap::new(),
            not_moved: None,
            unknown: false,
            messages: Vec::new(),
            problems: Vec::new(),
            refusals: Vec::new(),
            failure: None,
        }
    }

    /// How long a step may hold requests, in milliseconds. `max_pause_ms` is what the operator
    /// accepts for the verb.
    pub(crate) const fn hold_ms(&self, step: Step, max_pause_ms: u64) -> u64 {
        match (self.verb, step) {
            (Verb::Switch | Verb::Undo, _)
            | (
                Verb::Split,
                Step::SetRoute {
                    route: Route::Split,
                    ..
                },
            ) => max_pause_ms,
            _ => DEADLINE_MS,
        }
    }

    /// Notes why a pair must not be worked on.
    pub(crate) fn refused(&mut self, row: &PairRow, pair: usize, cause: String) {
        self.refusals.push(format!("pair {}: {cause}", row.volume));
        let error = NotChanged::refused(Refusal::BadLeg, cause);
        self.errors.insert(pair, error);
    }

    /// Notes what a step led to.
    pub(crate) fn note(
        &mut self,
        operation: &Operation,
        pair: usize,
        step: Step,
        outcome: Outcome,
    ) {
        let row = operation.row(pair);
        let Outcome {
            answer,
            pause_us,
            error,
            sealed,
            text,
        } = outcome;
        if matches!(
            step,
            Step::AddMirror | Step::SetRoute { .. } | Step::Release
        ) && answer == StepAnswer::Done
        {
            self.pauses.insert(pair, pause_us);
        }
        if let Some(sealed) = sealed {
            self.seals.insert(pair, sealed);
        }
        let cause = error.as_ref().map(ToString::to_string).unwrap_or_default();
        match (step, self.verb, answer) {
            (Step::Retire, _, _) => self.messages.extend(text),
            (Step::CheckSeal, _, StepAnswer::Seal(Seal::Unknown)) => {
                self.from_scratch.insert(pair, text.unwrap_or_default());
            }
            (Step::CheckSeal, _, StepAnswer::Seal(Seal::Broken)) => {
                let object = failure::pair(&operation.session.name, &row.volume);
                let next = format!(
                    "`shunt cancel {}`, and a new session, which copies everything",
                    operation.session.name
                );
                self.failure = Some(failure::refused(object, cause.clone(), next));
            }
            (Step::Inspect(_), Verb::Commit | Verb::Cancel, StepAnswer::Unknown) => {
                let name = &operation.session.name;
                let next = format!("`shunt {} {name}` again", self.verb);
                let cause = format!("whether it was started is not known: {cause}");
                let object = failure::pair(name, &row.volume);
                self.failure = Some(failure::failed(object, cause, next));
            }
            (
                Step::SetRoute { .. },
                Verb::Switch | Verb::Undo,
                StepAnswer::Refused | StepAnswer::Unknown,
            ) => self.not_moved(row, pair, error.as_ref()),
            (Step::MarkUnfinished, Verb::Commit | Verb::Cancel, StepAnswer::Refused) => {
                self.messages
                    .push(format!("{}: {cause}: it is no copy", row.volume));
            }
            (Step::SetReadOnly(_), Verb::Commit | Verb::Cancel, StepAnswer::Refused) => {
                self.messages.push(format!("{}: {cause}", row.volume));
            }
            (Step::Seal, _, StepAnswer::Refused) => self.messages.push(format!(
                "{}: {cause}: see that nothing writes to it",
                row.volume
            )),
            (
                Step::Release
                | Step::SetRoute {
                    route: Route::Split,
                    ..
                },
                _,
                StepAnswer::Refused | StepAnswer::Unknown,
            ) => {
                self.problems.push(format!("pair {}: {cause}", row.volume));
            }
            (Step::RetryMirror, _, StepAnswer::Refused | StepAnswer::Unknown) => {
                self.problems.push(format!("pair {}: {cause}", row.volume));
            }
            // The pair is still split off; why is in the error of the step before.
            (Step::SetReadOnly(true), _, StepAnswer::Refused) => {
                warn!("{cause}");
                return;
            }
            _ => {}
        }
        if let Some(error) = error {
            self.errors.insert(pair, error);
        }
    }

    /// A pair did not follow, or did not go back.
    fn not_moved(&mut self, row: &PairRow, pair: usize, error: Option<&NotChanged>) {
        let Some(error) = error else {
            return;
        };
        let Some((_, to)) = self.sides() else {
            return;
        };
        let volume = &row.volume;
        if self.not_moved.is_none() {
            self.not_moved = Some((pair, error.clone()));
            self.problems.push(format!("pair {volume}: {error}"));
        } else if error.is_unknown() {
            self.problems.push(format!(
                "pair {volume} is on the {to}, and whether it has gone back is not known: {error}"
            ));
        } else {
            self.problems.push(format!(
                "pair {volume} stays on the {to}, it did not go back: {error}"
            ));
        }
    }

    /// Of a switch or an undo: the side that was authoritative, and the one that is to be.
    const fn sides(&self) -> Option<(Side, Side)> {
        match self.verb {
            Verb::Switch => Some((Side::Source, Side::Target)),
            Verb::Undo => Some((Side::Target, Side::Source)),
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Split
            | Verb::Commit
            | Verb::Cancel => None,
        }
    }

    fn error(&self, pair: usize) -> String {
        let error = self.errors.get(&pair);
        error.map(ToString::to_string).unwrap_or_default()
    }

    fn pause_us(&self, pair: usize) -> Option<u64> {
        self.pauses.get(&pair).copied().flatten()
    }

    /// What is recorded. What the operator reads about it is noted.
    pub(crate) fn changes(&mut self, operation: &Operation, entry: Entry) -> Vec<Change> {
        let session = &operation.session;
        let pair = match entry {
            Entry::Paused(paused) => return self.paused(operation, paused),
            Entry::SwitchByHand => {
                return schedule::by_hand_from_now_on(session, self.verb.name());
            }
            Entry::NextSplit => return schedule::after_split(session, self.copy_of_ms),
            Entry::Intended { pair, .. }
            | Entry::Queued(pair)
            | Entry::Started(pair)
            | Entry::NotStarted(pair)
            | Entry::Unknown(pair)
            | Entry::Moved { pair, .. }
            | Entry::MovedBack { pair, .. }
            | Entry::NotMoved(pair)
            | Entry::Ended { pair, .. }
            | Entry::NotEnded { pair, .. }
            | Entry::Copy(pair)
            | Entry::Sealed(pair)
            | Entry::Spoiled { pair, .. }
            | Entry::CopyGivenUp { pair, .. }
            | Entry::MirroredAgain { pair, .. }
            | Entry::NotMirroredAgain { pair, .. }
            | Entry::Retried(pair) => pair,
        };
        let (key, row) = (operation.key(pair), operation.row(pair));
        if let Entry::Ended { side, .. } = entry {
            return self.ended(operation, key, row, side);
        }
        let set = |field| Change::SetPair(key.clone(), field);
        let mut changes = Vec::new();
        changes.extend(entry.phase().map(|phase| set(PairField::Phase(phase))));
        let side = entry.authoritative();
        changes.extend(side.map(|side| set(PairField::Authoritative(side))));
        if let Some(side) = side {
            let switched_ms = (side == Side::Target).then(now_ms);
            changes.push(set(PairField::Problem(None)));
            changes.push(set(PairField::Switched(switched_ms)));
            let pause = self.pause_us(pair);
            changes.extend(pause.map(|pause_us| set(PairField::LastPause(pause_us))));
            changes.extend(open_map(operation, row, side));
        }
        match entry {
            Entry::Intended { .. } => changes.push(operation.note(row, self.intent)),
            Entry::Queued(_) => changes.push(self.queued(operation, row)),
            Entry::Started(_) => {
                changes.push(set(PairField::Begun(steady_ms())));
                changes.push(set(PairField::InSync(None)));
                changes.push(operation.note(row, format!("mirrored onto {}", row.target)));
                self.messages
                    .push(format!("{} is copied to {}", row.source, row.target));
            }
            Entry::NotStarted(_) => {
                let cause = self.error(pair);
                let what = format!("not started: {cause}");
                changes.push(set(PairField::Problem(Some(what.clone()))));
                changes.push(operation.note(row, what));
                self.problems.push(format!("pair {}: {cause}", row.volume));
            }
            Entry::Unknown(_) => {
                let verb = self.verb.name();
                let problem = format!(
                    "whether the {verb} has happened is not known: {}",
                    self.error(pair)
                );
                changes.push(set(PairField::Problem(Some(problem.clone()))));
                changes.push(operation.note(row, &problem));
                self.unknown = true;
                let text = format!(
                    "pair {}: {problem}; it is recorded when the volume answers",
                    row.volume
                );
                match self.not_moved {
                    // It stands there already, in other words.
                    Some(_) => self.problems[0] = text,
                    None => self.problems.push(text),
                }
            }
            Entry::Moved { to, .. } => changes.push(self.moved(operation, pair, row, to)),
            Entry::MovedBack { to, .. } => {
                let pause = pause_text(self.pause_us(pair));
                let what = format!("went back: the {to} is authoritative{pause}");
                changes.push(operation.note(row, what));
                self.problems
                    .push(format!("pair {} went back to the {to}", row.volume));
            }
            Entry::NotMoved(_) => {
                let to = self.sides().map_or(Side::Source, |(_, to)| to);
                let cause = self.not_moved.as_ref().map(|(_, error)| error.to_string());
                let cause = cause.unwrap_or_default();
                let what = format!("the role did not move to the {to}: {cause}");
                changes.push(operation.note(row, what));
            }
            Entry::NotEnded { side, is_copy, .. } => {
                let (verb, cause) = (self.verb.name(), self.error(pair));
                let stays = match is_copy {
                    true => format!("{} is a copy as before", row.target),
                    false => format!("the {side} is authoritative and mirrored as before"),
                };
                changes.push(set(PairField::Problem(None)));
                changes.push(operation.note(row, format!("the {verb} failed: {cause}")));
                self.problems
                    .push(format!("pair {}: {cause}; {stays}", row.volume));
            }
            Entry::Copy(_) => changes.extend(self.copy(operation, pair, key, row)),
            Entry::Sealed(_) => {
                let copy_of = CopyOf {
                    at_ms: self.copy_of_ms,
                    sealed: self.seals.get(&pair).cloned(),
                };
                changes.push(set(PairField::CopyOf(Some(copy_of))));
            }
            Entry::Spoiled { again, .. } => {
                let why = self.problems.first().cloned().unwrap_or_default();
                changes.push(operation.note(row, format!("no copy: {why}")));
                let cause = (again != StepAnswer::Done).then(|| self.error(pair));
                if let Some(cause) = &cause {
                    self.problems.push(format!("pair {}: {cause}", row.volume));
                }
                changes.push(set(PairField::Problem(cause)));
            }
            Entry::CopyGivenUp { from_scratch, .. } => {
                changes.push(set(PairField::CopyOf(None)));
                if from_scratch {
                    // Nothing of what was copied counts.
                    changes.push(set(PairField::InSync(None)));
                    changes.push(set(PairField::Unreadable(Vec::new())));
                }
            }
            Entry::MirroredAgain { .. } => {
                let what = match self.from_scratch.get(&pair) {
                    None => "mirrored again; what was written since the split is copied".to_owned(),
                    Some(why) => {
                        format!("mirrored again; everything is copied, because {why}")
                    }
                };
                changes.push(operation.note(row, what));
                changes.push(set(PairField::Problem(None)));
            }
            Entry::NotMirroredAgain { phase, is_copy, .. } => {
                let cause = self.error(pair);
                let unknown = self.errors.get(&pair).is_some_and(NotChanged::is_unknown);
                let what = match unknown && phase.is_none() {
                    true => format!("whether it is mirrored again is not known: {cause}"),
                    false => format!("not mirrored again: {cause}"),
                };
                self.problems.push(format!("pair {}: {cause}", row.volume));
                changes.push(operation.note(row, what));
                if is_copy {
                    changes.push(set(PairField::CopyOf(row.copy_of.clone())));
                }
                changes.push(set(PairField::Problem(Some(cause))));
            }
            Entry::Retried(_) => changes.push(set(PairField::Problem(None))),
            // Recorded above.
            Entry::Paused(_) | Entry::SwitchByHand | Entry::NextSplit | Entry::Ended { .. } => {}
        }
        changes
    }

    fn paused(&mut self, operation: &Operation, paused: bool) -> Vec<Change> {
        let name = &operation.session.name;
        let what = match paused {
            true => {
                self.messages.push(format!(
                    "session {name} is paused; writes are mirrored where the legs are equal"
                ));
                "paused"
            }
            false => {
                let hours = operation.session.options.hours;
                self.messages
                    .push(match hours.contains(moments::minute_now()) {
                        true => format!("session {name} continues to copy"),
                        false => format!("session {name}: {}", hours::text(hours)),
                    });
                "resumed"
            }
        };
        vec![
            Change::SetPaused(name.clone(), paused),
            note(Some(name), None, what),
        ]
    }

    fn queued(&mut self, operation: &Operation, row: &PairRow) -> Change {
        let hours = operation.session.options.hours;
        let (why, way) = match hours.contains(moments::minute_now()) {
            true => (
                format!("{} pairs are copied at once", self.pairs_max),
                "`shunt set --max-pairs` lets more begin",
            ),
            false => (
                hours::text(hours),
                "`shunt set --window-hours` changes that",
            ),
        };
        let what = format!("queued: {why}");
        self.messages.push(format!(
            "{} is {what}; it starts automatically ({way})",
            row.volume
        ));
        operation.note(row, what)
    }

    fn moved(&mut self, operation: &Operation, pair: usize, row: &PairRow, to: Side) -> Change {
        let pause_us = self.pause_us(pair);
        let expected = row.progress.estimate.filter(|_| pause_us.is_some());
        let expected = expected.map_or_else(String::new, |estimate| {
            expected_text(units::pause(estimate.pause_us))
        });
        let pause = pause_text(pause_us);
        let lun = leg_of(row, to);
        self.messages.push(format!(
            "{}: the {to} ({lun}) is authoritative{pause}",
            row.volume
        ));
        self.messages.extend(unreadable::on_target(row, to));
        let what = format!("the {to} is authoritative{pause}{expected}");
        operation.note(row, what)
    }

    fn ended(
        &mut self,
        operation: &Operation,
        key: PairKey,
        row: &PairRow,
        side: Side,
    ) -> Vec<Change> {
        let mut changes = ended_changes(&key.session, key.position, row, side);
        if self.pauses.contains_key(&key.position) {
            // The route has changed.
            changes.extend(open_map(operation, row, side));
        }
        if let Some(pause_us) = self.pause_us(key.position) {
            changes.push(Change::SetPair(key, PairField::LastPause(pause_us)));
        }
        self.messages.push(ended_text(row, side));
        changes
    }

    fn copy(
        &mut self,
        operation: &Operation,
        pair: usize,
        key: PairKey,
        row: &PairRow,
    ) -> Vec<Change> {
        let set = |field| Change::SetPair(key.clone(), field);
        let pause_us = self.pause_us(pair);
        let copy_of = CopyOf {
            at_ms: self.copy_of_ms,
            sealed: None,
        };
        let what = format!(
            "{} is a copy of {} as of {}{}",
            row.target,
            row.source,
            moments::text(self.copy_of_ms / 1000),
            pause_text(pause_us)
        );
        self.messages.push(format!("{}: {what}", row.volume));
        let mut changes = vec![
            set(PairField::CopyOf(Some(copy_of))),
            set(PairField::Problem(None)),
            operation.note(row, what),
        ];
        changes.extend(pause_us.map(|pause_us| set(PairField::LastPause(pause_us))));
        changes
    }

    /// What the operator reads at the end.
    pub(crate) fn answer(mut self, operation: &Operation, end: End) -> Answer {
        let name = &operation.session.name;
        match end {
            End::Done => return Ok(Done::changed(self.messages)),
            End::Refused => {
                let verb = self.verb.name();
                let next = format!(
                    "correct the cause, then `shunt {verb} {name}` again, or `shunt cancel {name}`"
                );
                return Err(self.failure.unwrap_or_else(|| {
                    failure::refused(operation.object(), self.refusals.join("; "), next)
                }));
            }
            End::Failed => {}
        }
        let mut is_refusal = false;
        let next = match self.verb {
            Verb::Start => {
                self.problems
                    .push("the sources are authoritative".to_owned());
                format!(
                    "correct the cause, then `shunt start {name}` again, or `shunt cancel {name}`"
                )
            }
            Verb::Switch | Verb::Undo => {
                let (back, _) = self.sides().unwrap_or((Side::Source, Side::Target));
                self.problems.push(format!(
                    "the {back} is authoritative unless stated otherwise"
                ));
                let refusal = self.not_moved.and_then(|(_, error)| error.refusal);
                is_refusal = refusal == Some(Refusal::NotInSync);
                after_no_move(name, self.verb, back, refusal)
            }
            Verb::Split => {
                self.problems
                    .push("the targets are no copies; the sources are authoritative".to_owned());
                format!(
                    "`shunt wait {name} --for source-selected`, then `shunt split {name}` again, with a longer --max-pause"
                )
            }
            Verb::Commit | Verb::Cancel => {
                self.problems.append(&mut self.messages);
                let verb = self.verb.name();
                match self.unknown {
                    true => format!(
                        "see `shunt status {name}`: the {verb} is finished automatically when the volume answers"
                    ),
                    false => format!("`shunt {verb} {name}` again ends the others"),
                }
            }
            Verb::Pause | Verb::Resume => format!(
                "see that nothing uses the leg, or repair it, then `shunt resume {name}` again"
            ),
        };
        let cause = self.problems.join("; ");
        Err(match is_refusal {
            true => failure::refused(operation.object(), cause, next),
            false => failure::failed(operation.object(), cause, next),
        })
    }
}

/// The next command after a switch or an undo that did not happen.
fn after_no_move(name: &str, verb: Verb, back: Side, refusal: Option<Refusal>) -> String {
    match refusal {
        Some(Refusal::Deadline) => {
            format!("`shunt {verb} {name}` again, with a longer --max-pause or at a quieter time")
        }
        Some(Refusal::NotInSync) => {
            format!("`shunt wait {name} --for {back}-selected`, then `shunt {verb} {name}` again")
        }
        Some(
            Refusal::StaleEpoch
            | Refusal::WrongRoute
            | Refusal::Busy
            | Refusal::BadLeg
            | Refusal::CopierBusy
            | Refusal::NotCopier
            | Refusal::DeviceOpen
            | Refusal::Failed
            | Refusal::Ending
            | Refusal::Malformed,
        )
        | None => format!("see `shunt status {name}`, then `shunt {verb} {name}` again"),
    }
}

/// An open of the volume reads the LUN of this side.
fn open_map(operation: &Operation, row: &PairRow, side: Side) -> Option<Change> {
    let open_map = operation.volumes.get(&row.volume)?.open_map.clone()?;
    let leg = leg_of(row, side).paths().clone();
    let open_map = OpenMapRow { leg, ..open_map };
    Some(Change::SetOpenMap(row.volume.clone(), open_map))
}

/// What is recorded when a pair has ended on `side`.
pub(crate) fn ended_changes(
    session: &str,
    position: usize,
    row: &PairRow,
    side: Side,
) -> Vec<Change> {
    let key = PairKey {
        session: session.to_owned(),
        position,
    };
    let set = |field| Change::SetPair(key.clone(), field);
    let mut changes = Vec::new();
    match side {
        Side::Target => {
            changes.push(set(PairField::Phase(Phase::Committed)));
            changes.push(Change::SetVolumeLeg(row.volume.clone(), row.target.clone()));
            changes.extend(row.source.unlock());
            let locks = row.target.locks(&failure::volume(&row.volume));
            changes.extend(locks.into_iter().map(Change::MoveLock));
        }
        Side::Source => {
            changes.push(set(PairField::Phase(Phase::Cancelled)));
            changes.extend(row.target.unlock());
        }
    }
    changes.push(set(PairField::Authoritative(side)));
    changes.push(set(PairField::Problem(None)));
    changes.push(note(
        Some(session),
        Some(&row.volume),
        ended_text(row, side),
    ));
    changes
}

fn ended_text(row: &PairRow, side: Side) -> String {
    let (stays, freed) = (leg_of(row, side), leg_of(row, side.other()));
    format!(
        "{} is on {} alone; {} is no longer used",
        row.volume, stays, freed
    )
}

/// What `shunt plan` estimated, beside what has happened.
pub(crate) fn expected_text(what: impl fmt::Display) -> String {
    format!(" (`shunt plan` said {what})")
}

fn pause_text(pause_us: Option<u64>) -> String {
    pause_us.map_or_else(String::new, |pause_us| {
        format!(
            ", requests were held for {}.{:03} ms",
            pause_us / 1000,
            pause_us % 1000
        )
    })
}
