//! What the operator reads about an operation; [`entries`] is what is recorded.

pub(super) mod entries;

use std::collections::BTreeMap;

use migration_core::operation::{Answer as StepAnswer, End, Seal, Step};
use migration_core::pair::Verb;
use migration_core::route::{Route, Side};
use migration_proto::manager::{Failure, HistoryEvent};
use migration_proto::target::Refusal;
use tracing::warn;

use super::Operation;
use super::steps::Outcome;
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::volumes::route_change::{DEADLINE_MS, NotChanged};
use crate::store::{Change, PairRow, Sealed};

/// What is known of an operation so far.
#[derive(Debug)]
pub(crate) struct Report {
    verb: Verb,
    /// The event that says in the history what has begun.
    intent: HistoryEvent,
    pairs_max: u32,
    /// The numbers of bytes that stopped copiers have copied, to be recorded.
    pub(crate) copied: Vec<Change>,
    /// Why a pair did not do its last step.
    errors: BTreeMap<usize, NotChanged>,
    /// How long the last change of a pair held requests, in microseconds.
    pauses: BTreeMap<usize, Option<u64>>,
    /// The epoch after the last change of a pair.
    epochs: BTreeMap<usize, u64>,
    /// The instant of a split, in milliseconds since 1970.
    pub(crate) copy_of_at_ms: u64,
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
    pub(crate) fn new(verb: Verb, intent: HistoryEvent, pairs_max: u32) -> Self {
        Self {
            verb,
            intent,
            pairs_max,
            copied: Vec::new(),
            errors: BTreeMap::new(),
            pauses: BTreeMap::new(),
            epochs: BTreeMap::new(),
            copy_of_at_ms: 0,
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
            epoch,
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
        self.epochs.extend(epoch.map(|epoch| (pair, epoch)));
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
