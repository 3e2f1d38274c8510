//! What is recorded and what the volumes report, together: the state of each session.

use std::collections::BTreeMap;

use migration_core::pair::{Facts, Position, Verb};
use migration_core::session::{self, Silence};
use migration_core::verify::{self, Comparison};
use migration_proto::manager::{Failure, VerifyPolicy};

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

    /// How the legs of a pair are compared, or will be as soon as they are in sync. `None`: they
    /// are not compared.
    pub(crate) fn comparing(
        &self,
        session: &SessionRow,
        pair: &PairRow,
        key: &PairKey,
    ) -> Option<Comparison> {
        let asked = self.to_compare.get(key).copied();
        let required = session.options.verify == VerifyPolicy::Full;
        verify::wanted(asked, required, pair.verification.is_some())
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

    /// Refuses a verb that cannot be begun with one of the pairs because the volume of the pair is
    /// silent.
    pub(crate) fn require_answering(
        &self,
        session: &SessionRow,
        verb: Verb,
        pairs: &[usize],
    ) -> Result<(), Failure> {
        for position in pairs {
            let pair = &session.pairs[*position];
            let view = self.volumes.view(&pair.volume).unwrap_or_default();
            let silence = Silence::of(view.failures, view.status.is_some());
            let Err(silence) = session::require_contact(verb, pair.phase, silence) else {
                continue;
            };
            let object = failure::pair(&session.name, &pair.volume);
            let (cause, next) = match silence {
                Silence::Unseen => (
                    "the volume has not reported its route since shuntd began".to_owned(),
                    format!(
                        "`shunt status {0}` shows when it has, then `shunt {verb} {0}`",
                        session.name
                    ),
                ),
                Silence::Down => {
                    let problem = view.problem.unwrap_or_default();
                    (
                        format!(
                            "the volume's ublk-target does not answer: {problem}; the {} is authoritative",
                            pair.authoritative
                        ),
                        format!(
                            "correct the cause (it is restarted automatically), then `shunt {verb} {}`",
                            session.name
                        ),
                    )
                }
            };
            return Err(failure::refused(object, cause, next));
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
