//! Compares the legs: when that is allowed, what is recorded, and which verbs the result forbids.

use copier::compare::Found;
use migration_core::pair::{PairState, Position, Verb};
use migration_proto::manager::{Failure, Verification, VerifyPolicy};
use tokio::sync::oneshot;

use super::Owner;
use super::context::{note, now_ms};
use super::failure::{self, Done};
use crate::store::{Change, PairField, PairKey, PairRow, SessionRow};

/// A comparison of the legs of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Whether a difference is no reason to refuse a switch once it is copied again.
    pub(super) repair: bool,
    /// Whether the comparison has ended and its result is being recorded. Until that is done it
    /// counts as in progress.
    pub(super) over: bool,
}

impl Owner {
    /// Begins to compare the legs of every pair that has not ended.
    pub(super) fn verify(
        &mut self,
        name: &str,
        repair: bool,
        reply: oneshot::Sender<migration_proto::manager::Response>,
    ) {
        let answer = self.begin_to_compare(name, repair);
        // The client may have disconnected.
        let _ = reply.send(failure::response(answer));
    }

    fn begin_to_compare(&mut self, name: &str, repair: bool) -> Result<Done, Failure> {
        let session = self
            .model
            .sessions
            .get(name)
            .cloned()
            .ok_or_else(|| failure::no_session(name))?;
        self.require_free(&[super::Busy::Session(name.to_owned())])?;
        let positions = self.positions(&session);
        if let Err(pair) = may_be_compared(&positions) {
            return Err(self.not_comparable(&session, pair, positions[pair]));
        }
        let keys: Vec<PairKey> = (0..session.pairs.len())
            .filter(|position| !session.pairs[*position].phase.is_ended())
            .map(|position| PairKey {
                session: name.to_owned(),
                position,
            })
            .collect();
        let wanted = |key: &PairKey| {
            let pair = &session.pairs[key.position];
            let asked = Comparison {
                repair,
                over: false,
            };
            self.comparing(&session, pair, key) == Some(asked)
        };
        if keys.iter().all(wanted) {
            let what = format!("the legs of session {name} are being compared already");
            return Ok(Done::already(what));
        }
        let mut notes = Vec::new();
        for key in keys {
            let volume = &session.pairs[key.position].volume;
            let what = "verify: both legs are compared; what differs is copied again".to_owned();
            notes.push(note(Some(name), Some(volume), what));
            let asked = Comparison {
                repair,
                over: false,
            };
            self.to_compare.insert(key.clone(), asked);
            if self.copies.is_comparing(&key) {
                self.stop_comparing(&key);
            }
        }
        self.record_aside(notes);
        // What follows is automatic: the history must not name a user.
        self.context.who = None;
        for pair in &session.pairs {
            self.volume_reported(&pair.volume);
        }
        let messages = vec![format!(
            "the legs of session {name} are being compared; see `shunt status {name}`"
        )];
        Ok(Done::changed(messages))
    }

    /// How the legs of a pair are compared, or will be as soon as they are in sync: because an
    /// operator asked for it, or because the session requires a comparison and has none. `None`:
    /// they are not compared.
    pub(super) fn comparing(
        &self,
        session: &SessionRow,
        pair: &PairRow,
        key: &PairKey,
    ) -> Option<Comparison> {
        let unproved = session.options.verify == VerifyPolicy::Full && pair.verification.is_none();
        let asked = self.to_compare.get(key).copied();
        let wanted = Comparison {
            repair: false,
            over: false,
        };
        asked.or(unproved.then_some(wanted))
    }

    /// Stops a running comparison; it starts again with the latest options.
    fn stop_comparing(&mut self, key: &PairKey) {
        if let Some((copier, _)) = self.copies.take(key) {
            tokio::task::spawn_blocking(move || drop(copier));
        }
    }

    fn not_comparable(&self, session: &SessionRow, pair: usize, position: Position) -> Failure {
        let name = &session.name;
        let cause = format!(
            "it is {}: only legs that are in sync can be compared",
            position.state
        );
        let next = match position.state {
            PairState::Setup => format!("`shunt start {name}`"),
            PairState::Paused | PairState::Degraded | PairState::Split => {
                format!("`shunt resume {name}`")
            }
            PairState::Committed | PairState::Retired | PairState::Cancelled => {
                "`shunt create` makes another session".to_owned()
            }
            PairState::Tracking => format!("`shunt set {name} --mode mirror`"),
            PairState::Failed | PairState::NeedsRecovery => format!("`shunt status {name}`"),
            PairState::Queued
            | PairState::Syncing
            | PairState::Splitting
            | PairState::Switching
            | PairState::Committing
            | PairState::Verifying
            | PairState::SourceSelected
            | PairState::TargetSelected => {
                let side = position.authoritative;
                format!("`shunt wait {name} --for {side}-selected`")
            }
        };
        failure::refused(
            failure::pair(name, &session.pairs[pair].volume),
            cause,
            next,
        )
    }

    /// The result of a comparison is recorded, or could not be: the request for it is done.
    pub(super) fn comparison_settled(&mut self, key: &PairKey) {
        if self.to_compare.get(key).is_some_and(|found| found.over) {
            self.to_compare.remove(key);
        }
    }

    /// Changes that record the result of a comparison.
    pub(super) fn compared(&mut self, key: &PairKey, pair: &PairRow, found: &Found) -> Vec<Change> {
        let asked = self.to_compare.get(key);
        let repaired = asked.is_some_and(|asked| asked.repair);
        self.to_compare.insert(
            key.clone(),
            Comparison {
                repair: repaired,
                over: true,
            },
        );
        let found_now = Verification {
            at_ms: now_ms(),
            compared_bytes: found.compared_bytes,
            differing_bytes: found.differing_bytes,
            first_difference_bytes: found.first_difference_bytes,
            unknown_bytes: found.unknown_bytes,
            repaired,
        };
        let name = &key.session;
        let mut what = match (found.first_difference_bytes, repaired) {
            (None, _) => format!(
                "verify: {} bytes compared, nothing differs",
                found.compared_bytes
            ),
            (Some(at), true) => format!(
                "verify: {} of {} bytes differed, the first at {at}; they are copied again",
                found.differing_bytes, found.compared_bytes
            ),
            (Some(at), false) => format!(
                "verify: {} of {} bytes differed, the first at {at}; they are copied again, and no role moves before \
                 `shunt verify {name}` finds nothing",
                found.differing_bytes, found.compared_bytes
            ),
        };
        if found.unknown_bytes > 0 {
            what.push_str(&format!(
                "; {} bytes could not be compared",
                found.unknown_bytes
            ));
            if let Some(error) = &found.error {
                what.push_str(&format!(" ({})", error.cause));
            }
        }
        let problem = (!found_now.is_clean()).then(|| what.clone());
        let set = |field| Change::SetPair(key.clone(), field);
        vec![
            set(PairField::Problem(problem)),
            set(PairField::Verification(found_now)),
            note(Some(name), Some(&pair.volume), what),
        ]
    }

    /// Refuses to move a role to a leg that is known to differ, or, if the session requires a
    /// comparison, to a leg that was never compared.
    pub(super) fn require_compared(
        &self,
        session: &SessionRow,
        verb: Verb,
        pairs: &[usize],
    ) -> Result<(), Failure> {
        if !matches!(verb, Verb::Switch | Verb::Undo) {
            return Ok(());
        }
        for position in pairs {
            let pair = &session.pairs[*position];
            if let Some((cause, next)) = not_compared(session, pair, verb) {
                let object = failure::pair(&session.name, &pair.volume);
                return Err(failure::refused(object, cause, next));
            }
        }
        Ok(())
    }
}

/// The cause and the next command if a role must not move, because a comparison found differences
/// or because there was no comparison. `None`: the role may move.
pub(super) fn not_compared(
    session: &SessionRow,
    pair: &PairRow,
    verb: Verb,
) -> Option<(String, String)> {
    let name = &session.name;
    let found = pair.verification.as_ref();
    let different = found.filter(|found| found.is_different());
    let proved = found.is_some_and(Verification::is_clean);
    let unproved = verb == Verb::Switch && session.options.verify == VerifyPolicy::Full && !proved;
    match different {
        Some(found) => Some((
            format!(
                "{} bytes of its legs differed when they were compared last, and it is not known whether they are the same now",
                found.differing_bytes
            ),
            format!("`shunt verify {name}`, then `shunt {verb} {name}`"),
        )),
        None if unproved => Some((
            "it was created with --verify full, and its legs have not been compared as a whole"
                .to_owned(),
            format!("`shunt verify {name}`, then `shunt {verb} {name}`"),
        )),
        None => None,
    }
}

/// Whether the legs of all pairs that have not ended are in sync, so that a comparison makes sense.
/// The error is the position of a pair that is not.
pub(super) fn may_be_compared(positions: &[Position]) -> Result<(), usize> {
    let is_equal = |state| {
        matches!(
            state,
            PairState::SourceSelected | PairState::TargetSelected | PairState::Verifying
        )
    };
    let all_ended = positions.iter().all(|position| position.state.is_ended());
    let wrong = |position: &Position| {
        !is_equal(position.state) && (all_ended || !position.state.is_ended())
    };
    positions.iter().position(wrong).map_or(Ok(()), Err)
}
