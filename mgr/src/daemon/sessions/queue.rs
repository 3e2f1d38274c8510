//! How many pairs are copied at once on this host, and whose turn it is.
//!
//! A pair has a place while it is being started or copied. A start gives places to as many pairs as
//! there is room for; the others are queued, and start automatically when a place becomes free. A
//! pair that has to be copied again later keeps its mirror leg even if there is no place: its
//! copier waits.

use std::collections::{BTreeMap, BTreeSet};

use migration_core::pair::{Facts, Phase};
use migration_core::session::{self, Waiting};

use super::sight::Sight;
use crate::daemon::event::Busy;
use crate::moments;
use crate::store::{PairKey, SessionRow};

/// The numbers of pairs that are copied and of pairs that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Occupancy {
    pub(crate) copied: usize,
    pub(crate) queued: usize,
}

/// The places that are reserved.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The pairs that an operation is about to start.
    starting: BTreeSet<PairKey>,
}

impl Places {
    pub(crate) fn occupancy(&self, sight: Sight<'_>) -> Occupancy {
        let mut found = Occupancy::default();
        for (_, key, facts) in every_pair(sight) {
            let holds = facts.holds_place() || self.starting.contains(&key);
            found.copied += usize::from(holds);
            found.queued += usize::from(facts.wants_place() && !holds);
        }
        found
    }

    /// The pairs that get a place now, among the queued ones and `asked`: pairs of a session that
    /// its operator starts with the current request.
    pub(crate) fn admitted(
        &self,
        sight: Sight<'_>,
        busy: &BTreeMap<Busy, &'static str>,
        asked: Option<(&SessionRow, &[usize])>,
    ) -> Vec<PairKey> {
        let (mut keys, mut waiting) = (Vec::new(), Vec::new());
        let mut add = |session: &SessionRow, key: PairKey| {
            waiting.push(Waiting {
                priority: session.options.priority,
                since: session.created_at_ms,
            });
            keys.push(key);
        };
        for (session, key) in queued(sight) {
            let is_waiting = sight.facts(session, &key).wants_place();
            if is_waiting && can_start(sight, busy, &key) {
                add(session, key);
            }
        }
        if let Some((session, positions)) = asked {
            for position in positions {
                let key = PairKey {
                    session: session.name.clone(),
                    position: *position,
                };
                add(session, key);
            }
        }
        if keys.is_empty() {
            return keys;
        }
        let pairs_max = usize::try_from(sight.model.pairs_max).unwrap_or(usize::MAX);
        session::admit(&waiting, self.occupancy(sight).copied, pairs_max)
            .into_iter()
            .map(|index| keys[index].clone())
            .collect()
    }

    /// Divides pairs that are to be started into those that get a place immediately and those that
    /// wait.
    pub(crate) fn turns(
        &self,
        sight: Sight<'_>,
        busy: &BTreeMap<Busy, &'static str>,
        session: &SessionRow,
        pairs: Vec<usize>,
    ) -> (Vec<usize>, Vec<usize>) {
        if !session.options.hours.contains(moments::minute_now()) {
            return (Vec::new(), pairs);
        }
        let admitted = self.admitted(sight, busy, Some((session, &pairs)));
        pairs.into_iter().partition(|position| {
            let is_it = |key: &PairKey| key.session == session.name && key.position == *position;
            admitted.iter().any(is_it)
        })
    }

    /// Reserves the places of pairs that an operation is about to start.
    pub(crate) fn take(&mut self, session: &str, pairs: &[usize]) {
        self.starting.extend(pairs.iter().map(|position| PairKey {
            session: session.to_owned(),
            position: *position,
        }));
    }

    /// Gives back the places of a session whose operation has ended.
    pub(crate) fn release(&mut self, session: &str) {
        self.starting.retain(|key| key.session != session);
    }
}

fn every_pair(sight: Sight<'_>) -> impl Iterator<Item = (&SessionRow, PairKey, Facts)> {
    let every = |session: &SessionRow| (0..session.pairs.len()).collect();
    keys(sight, every).map(move |(session, key)| {
        let facts = sight.facts(session, &key);
        (session, key, facts)
    })
}

/// The pairs that are recorded as queued: no other pair wants a place.
fn queued(sight: Sight<'_>) -> impl Iterator<Item = (&SessionRow, PairKey)> {
    keys(sight, |session| {
        let pairs = session.pairs.iter().enumerate();
        pairs
            .filter(|(_, pair)| pair.phase == Phase::Queued)
            .map(|(position, _)| position)
            .collect()
    })
}

fn keys<'a>(
    sight: Sight<'a>,
    positions: impl Fn(&SessionRow) -> Vec<usize>,
) -> impl Iterator<Item = (&'a SessionRow, PairKey)> {
    sight.model.sessions.values().flat_map(move |session| {
        positions(session).into_iter().map(move |position| {
            let key = PairKey {
                session: session.name.clone(),
                position,
            };
            (session, key)
        })
    })
}

/// Whether a queued pair can be started now. One that cannot takes no place from others.
fn can_start(sight: Sight<'_>, busy: &BTreeMap<Busy, &'static str>, key: &PairKey) -> bool {
    let free = !busy.contains_key(&Busy::Session(key.session.clone()));
    let pair = sight.model.pair(key);
    free && pair
        .and_then(|pair| sight.volumes.view(&pair.volume))
        .is_some_and(|view| view.connected)
}
