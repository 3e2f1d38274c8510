//! What is recorded and what the volumes report, together: the state of each session.

use std::collections::BTreeMap;

use migration_core::pair::{Facts, Phase, Position, Verb};
use migration_core::session;
use migration_proto::manager::{Failure, VerifyPolicy};

use super::verify::Comparison;
use crate::daemon::failure;
use crate::daemon::volumes::{Volumes, position};
use crate::store::{Model, PairKey, PairRow, SessionRow};

/// What the state of a session follows from. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight<'a> {
    pub(crate) model: &'a Model,
    pub(crate) volumes: &'a Volumes,
    /// The pairs whose legs are to be compared.
    pub(crate) to_compare: &'a BTreeMap<PairKey, Comparison>,
}

impl<'a> Sight<'a> {
    pub(crate) const fn new(
        model: &'a Model,
        volumes: &'a Volumes,
        to_compare: &'a BTreeMap<PairKey, Comparison>,
    ) -> Self {
        Self {
            model,
            volumes,
            to_compare,
        }
    }
}

impl Sight<'_> {
    /// The state of each pair of a session.
    pub(crate) fn positions(&self, session: &SessionRow) -> Vec<Position> {
        let position = |position| {
            let key = PairKey {
                session: session.name.clone(),
                position,
            };
            self.facts(session, &key).position()
        };
        (0..session.pairs.len()).map(position).collect()
    }

    /// What the state of a pair follows from.
    pub(crate) fn facts(&self, session: &SessionRow, key: &PairKey) -> Facts {
        #[cfg(test)]
        visited(&session.name);
        let pair = &session.pairs[key.position];
        let comparing = self.comparing(session, pair, key);
        let view = self.volumes.view(&pair.volume);
        position::facts(session, pair, view.as_ref(), comparing.is_some())
    }

    /// How the legs of a pair are compared, or will be as soon as they are in sync: because an
    /// operator asked for it, or because the session requires a comparison and has none. `None`:
    /// they are not compared.
    pub(crate) fn comparing(
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

    /// The command that ends a session, as the first step before something else.
    pub(crate) fn end_first(&self, session: &SessionRow) -> String {
        let name = &session.name;
        let verbs = session::allowed(&self.positions(session));
        let ends = [Verb::Commit, Verb::Cancel].into_iter();
        let ends: Vec<String> = ends
            .filter(|verb| verbs.contains(verb))
            .map(|verb| format!("`shunt {verb} {name}`"))
            .collect();
        match ends.is_empty() {
            true => format!("end it when `shunt status {name}` allows that"),
            false => format!("{} first", ends.join(" or ")),
        }
    }

    /// Refuses a verb that needs the ublk-target of a pair while that process cannot be started. An
    /// operation waits for a process that is just being restarted.
    pub(crate) fn require_answering(
        &self,
        session: &SessionRow,
        verb: Verb,
        pairs: &[usize],
    ) -> Result<(), Failure> {
        for position in pairs {
            let pair = &session.pairs[*position];
            let needs_volume = match verb {
                Verb::Pause => false,
                Verb::Cancel => !matches!(pair.phase, Phase::Setup | Phase::Queued),
                Verb::Start
                | Verb::Resume
                | Verb::Switch
                | Verb::Undo
                | Verb::Split
                | Verb::Commit => true,
            };
            let view = self.volumes.view(&pair.volume).unwrap_or_default();
            let ends = matches!(verb, Verb::Commit | Verb::Cancel);
            if needs_volume && ends && view.failures == 0 && view.status.is_none() {
                // Its role may have moved: the other pairs must not end where it is not.
                let cause = "the volume has not reported its route since shuntd began";
                let object = failure::pair(&session.name, &pair.volume);
                let next = format!(
                    "`shunt status {0}` shows when it has, then `shunt {verb} {0}`",
                    session.name
                );
                return Err(failure::refused(object, cause, next));
            }
            if needs_volume && view.failures > 0 {
                let problem = view.problem.unwrap_or_default();
                let cause = format!(
                    "the volume's ublk-target does not answer: {problem}; the {} is authoritative",
                    pair.authoritative
                );
                let next = format!(
                    "correct the cause (it is restarted automatically), then `shunt {verb} {}`",
                    session.name
                );
                return Err(failure::refused(
                    failure::pair(&session.name, &pair.volume),
                    cause,
                    next,
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
thread_local! {
    /// The sessions that were visited on this thread.
    static VISITED: std::cell::RefCell<std::collections::BTreeSet<String>> = Default::default();
}

/// Notes that a session was visited.
#[cfg(test)]
pub(crate) fn visited(session: &str) {
    VISITED.with_borrow_mut(|visited| visited.insert(session.to_owned()));
}

/// The sessions that were visited since the last call.
#[cfg(test)]
pub(crate) fn take_visited() -> std::collections::BTreeSet<String> {
    VISITED.take()
}
