//! What an operation records.

use migration_core::operation::{Answer as StepAnswer, Entry};
use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_proto::manager::HistoryEvent;

use super::super::Operation;
use super::Report;
use crate::daemon::clock::steady_ms;
use crate::daemon::context::{note, now_ms};
use crate::daemon::failure;
use crate::daemon::luns::unreadable;
use crate::daemon::sessions::schedule;
use crate::daemon::volumes::route_change::NotChanged;
use crate::history;
use crate::moments;
use crate::store::{Change, CopyOf, OpenMapRow, PairField, PairKey, PairRow, leg_of};

impl Report {
    /// What is recorded. What the operator reads about it is noted.
    pub(crate) fn changes(&mut self, operation: &Operation, entry: Entry) -> Vec<Change> {
        let session = &operation.session;
        let pair = match entry {
            Entry::Paused(paused) => return self.paused(operation, paused),
            Entry::SwitchByHand => return schedule::by_hand_from_now_on(session, self.verb),
            Entry::NextSplit => return schedule::after_split(session, self.copy_of_at_ms),
            Entry::Intended { pair, .. }
            | Entry::Recovers { pair, .. }
            | Entry::Queued(pair)
            | Entry::Started(pair)
            | Entry::NotStarted(pair)
            | Entry::Unknown(pair)
            | Entry::Moved { pair, .. }
            | Entry::MovedBack { pair, .. }
            | Entry::MovesBack { pair, .. }
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
        if let Some(side) = entry.authoritative() {
            changes.push(set(PairField::Authoritative(side)));
            let switched_ms = (side == Side::Target).then(now_ms);
            changes.push(set(PairField::Problem(None)));
            changes.push(set(PairField::Switched(switched_ms)));
            let pause = self.pause_us(pair);
            changes.extend(pause.map(|pause_us| set(PairField::LastPause(pause_us))));
            changes.extend(open_map(operation, row, side));
        }
        match entry {
            Entry::Intended { .. } => changes.push(operation.note(row, self.intent.clone())),
            Entry::Queued(_) => changes.push(self.queued(operation, row)),
            Entry::Started(_) => {
                changes.push(set(PairField::Begun(steady_ms())));
                changes.push(set(PairField::InSync(None)));
                let target = row.target.paths().clone();
                changes.push(operation.note(row, HistoryEvent::Started { target }));
                self.messages
                    .push(format!("{} is copied to {}", row.source, row.target));
            }
            Entry::NotStarted(_) => changes.extend(self.not_started(operation, pair)),
            Entry::Unknown(_) => changes.extend(self.outcome_unknown(operation, pair)),
            Entry::Moved { to, .. } => changes.push(self.moved(operation, pair, row, to)),
            Entry::MovedBack { to, .. } => changes.push(self.moved_back(operation, pair, to)),
            Entry::NotMoved(_) => changes.push(self.role_not_moved(operation, pair)),
            Entry::NotEnded { side, is_copy, .. } => {
                changes.extend(self.not_ended(operation, pair, side, is_copy));
            }
            Entry::Copy(_) => changes.extend(self.copy(operation, pair, key, row)),
            Entry::Sealed(_) => {
                let copy_of = CopyOf {
                    at_ms: self.copy_of_at_ms,
                    sealed: self.seals.get(&pair).cloned(),
                };
                changes.push(set(PairField::CopyOf(Some(copy_of))));
            }
            Entry::Spoiled { again, .. } => changes.extend(self.not_split(operation, pair, again)),
            Entry::CopyGivenUp { from_scratch, .. } => {
                changes.push(set(PairField::CopyOf(None)));
                if from_scratch {
                    // Nothing of what was copied counts.
                    changes.push(set(PairField::InSync(None)));
                    changes.push(set(PairField::Unreadable(Vec::new())));
                }
            }
            Entry::MirroredAgain { .. } => {
                let event = HistoryEvent::MirroredAgain {
                    full_copy_cause: self.from_scratch.get(&pair).cloned(),
                };
                changes.push(operation.note(row, event));
                changes.push(set(PairField::Problem(None)));
            }
            Entry::NotMirroredAgain { phase, is_copy, .. } => {
                changes.extend(self.not_mirrored_again(operation, pair, phase, is_copy));
            }
            Entry::Retried(_) => changes.push(set(PairField::Problem(None))),
            // Recorded above.
            Entry::Paused(_)
            | Entry::SwitchByHand
            | Entry::NextSplit
            | Entry::MovesBack { .. }
            | Entry::Recovers { .. }
            | Entry::Ended { .. } => {}
        }
        changes
    }

    /// The pair was not started.
    fn not_started(&mut self, operation: &Operation, pair: usize) -> Vec<Change> {
        let (key, row) = (operation.key(pair), operation.row(pair));
        let cause = self.error(pair);
        self.problems.push(format!("pair {}: {cause}", row.volume));
        let event = HistoryEvent::NotStarted { cause };
        let problem = operation.sentence(row, &event);
        vec![
            Change::SetPair(key, PairField::Problem(Some(problem))),
            operation.note(row, event),
        ]
    }

    /// What became of the pair is unknown.
    fn outcome_unknown(&mut self, operation: &Operation, pair: usize) -> Vec<Change> {
        let (key, row) = (operation.key(pair), operation.row(pair));
        let event = HistoryEvent::VerbUnknown {
            verb: self.verb,
            cause: self.error(pair),
        };
        let problem = operation.sentence(row, &event);
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
        vec![
            Change::SetPair(key, PairField::Problem(Some(problem))),
            operation.note(row, event),
        ]
    }

    /// The pair moved back to `to`.
    fn moved_back(&mut self, operation: &Operation, pair: usize, to: Side) -> Change {
        let row = operation.row(pair);
        self.problems
            .push(format!("pair {} went back to the {to}", row.volume));
        let event = HistoryEvent::RoleMovedBack {
            to: to.into(),
            held_us: self.pause_us(pair),
        };
        operation.note(row, event)
    }

    /// The role of the pair did not move.
    fn role_not_moved(&self, operation: &Operation, pair: usize) -> Change {
        let to = self.sides().map_or(Side::Source, |(_, to)| to);
        let cause = self.not_moved.as_ref().map(|(_, error)| error.to_string());
        let event = HistoryEvent::RoleNotMoved {
            to: to.into(),
            cause: cause.unwrap_or_default(),
        };
        operation.note(operation.row(pair), event)
    }

    /// The pair stays as it was. `side`: its authoritative leg; `is_copy`: whether it is split.
    fn not_ended(
        &mut self,
        operation: &Operation,
        pair: usize,
        side: Side,
        is_copy: bool,
    ) -> Vec<Change> {
        let (key, row) = (operation.key(pair), operation.row(pair));
        let cause = self.error(pair);
        let stays = match is_copy {
            true => format!("{} is a copy as before", row.target),
            false => format!("the {side} is authoritative and mirrored as before"),
        };
        self.problems
            .push(format!("pair {}: {cause}; {stays}", row.volume));
        let verb = self.verb;
        vec![
            Change::SetPair(key, PairField::Problem(None)),
            operation.note(row, HistoryEvent::VerbFailed { verb, cause }),
        ]
    }

    /// The pair was not split. `again`: whether its target is mirrored again.
    fn not_split(&mut self, operation: &Operation, pair: usize, again: StepAnswer) -> Vec<Change> {
        let (key, row) = (operation.key(pair), operation.row(pair));
        let event = HistoryEvent::NotSplit {
            cause: self.problems.first().cloned().unwrap_or_default(),
        };
        let problem = (again != StepAnswer::Done).then(|| self.error(pair));
        if let Some(cause) = &problem {
            self.problems.push(format!("pair {}: {cause}", row.volume));
        }
        vec![
            operation.note(row, event),
            Change::SetPair(key, PairField::Problem(problem)),
        ]
    }

    /// The target of the split pair is not mirrored again. `phase`: the new phase, if the pair has
    /// one; `is_copy`: whether the target is the copy that it was.
    fn not_mirrored_again(
        &mut self,
        operation: &Operation,
        pair: usize,
        phase: Option<Phase>,
        is_copy: bool,
    ) -> Vec<Change> {
        let (key, row) = (operation.key(pair), operation.row(pair));
        let set = |field| Change::SetPair(key.clone(), field);
        let cause = self.error(pair);
        let unknown = self.errors.get(&pair).is_some_and(NotChanged::is_unknown);
        self.problems.push(format!("pair {}: {cause}", row.volume));
        let problem = set(PairField::Problem(Some(cause.clone())));
        let event = match unknown && phase.is_none() {
            true => HistoryEvent::MirroredAgainUnknown { cause },
            false => HistoryEvent::NotMirroredAgain { cause },
        };
        let copy_of = is_copy.then(|| set(PairField::CopyOf(row.copy_of.clone())));
        let changes = [operation.note(row, event)].into_iter().chain(copy_of);
        changes.chain([problem]).collect()
    }

    fn paused(&mut self, operation: &Operation, paused: bool) -> Vec<Change> {
        let name = &operation.session.name;
        let event = match paused {
            true => {
                self.messages.push(format!(
                    "session {name} is paused; writes are mirrored where the legs are equal"
                ));
                HistoryEvent::Paused
            }
            false => {
                let hours = operation.session.options.hours;
                self.messages
                    .push(match hours.contains(moments::minute_now()) {
                        true => format!("session {name} continues to copy"),
                        false => format!("session {name}: {}", history::copy_window(hours)),
                    });
                HistoryEvent::Resumed
            }
        };
        vec![
            Change::SetPaused(name.clone(), paused),
            note(Some(name), None, event),
        ]
    }

    fn queued(&mut self, operation: &Operation, row: &PairRow) -> Change {
        let hours = operation.session.options.hours;
        let (event, way) = match hours.contains(moments::minute_now()) {
            true => (
                HistoryEvent::Queued {
                    pairs_max: self.pairs_max,
                },
                "`shunt set --max-pairs` lets more begin",
            ),
            false => (
                HistoryEvent::QueuedForHours {
                    from_minute: hours.from_minute,
                    to_minute: hours.to_minute,
                },
                "`shunt set --window-hours` changes that",
            ),
        };
        self.messages.push(format!(
            "{} is {}; it starts automatically ({way})",
            row.volume,
            operation.sentence(row, &event)
        ));
        operation.note(row, event)
    }

    fn moved(&mut self, operation: &Operation, pair: usize, row: &PairRow, to: Side) -> Change {
        let held_us = self.pause_us(pair);
        let expected = row.progress.estimate.filter(|_| held_us.is_some());
        let pause = history::pause(held_us);
        let lun = leg_of(row, to);
        self.messages.push(format!(
            "{}: the {to} ({lun}) is authoritative{pause}",
            row.volume
        ));
        self.messages.extend(unreadable::on_target(row, to));
        let event = HistoryEvent::RoleMoved {
            from: to.other().into(),
            to: to.into(),
            epoch: self.epochs.get(&pair).copied(),
            held_us,
            expected_us: expected.map(|estimate| estimate.pause_us),
        };
        operation.note(row, event)
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
        let what = operation.sentence(row, &ended(row, side));
        self.messages.push(what);
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
            at_ms: self.copy_of_at_ms,
            sealed: None,
        };
        let event = HistoryEvent::Split {
            source: row.source.paths().clone(),
            target: row.target.paths().clone(),
            copy_of_at_ms: self.copy_of_at_ms,
            held_us: pause_us,
        };
        let what = operation.sentence(row, &event);
        self.messages.push(format!("{}: {what}", row.volume));
        let mut changes = vec![
            set(PairField::CopyOf(Some(copy_of))),
            set(PairField::Problem(None)),
            operation.note(row, event),
        ];
        changes.extend(pause_us.map(|pause_us| set(PairField::LastPause(pause_us))));
        changes
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
    changes.push(note(Some(session), Some(&row.volume), ended(row, side)));
    changes
}

fn ended(row: &PairRow, side: Side) -> HistoryEvent {
    HistoryEvent::Ended {
        leg: side.into(),
        lun: leg_of(row, side).paths().clone(),
        freed: leg_of(row, side.other()).paths().clone(),
    }
}
