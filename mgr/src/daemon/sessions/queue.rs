//! How many pairs are copied at once on this host, and whose turn it is.
//!
//! A pair has a place while it is being started or copied. A start gives places to as many pairs as
//! there is room for; the others are queued, and start automatically when a place becomes free. A
//! pair that has to be copied again later keeps its mirror leg even if there is no place: its
//! copier waits.

use std::collections::BTreeMap;

use migration_core::pair::Facts;
use migration_core::session::{self, Waiting};

use super::{Busy, Owner};
use crate::moments;
use crate::store::{PairKey, SessionRow};

/// The numbers of pairs that are copied and of pairs that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Occupancy {
    pub(super) copied: usize,
    pub(super) queued: usize,
}

impl Owner {
    fn every_pair(&self) -> impl Iterator<Item = (&SessionRow, PairKey, Facts)> {
        self.model.sessions.values().flat_map(move |session| {
            (0..session.pairs.len()).map(move |position| {
                let key = PairKey {
                    session: session.name.clone(),
                    position,
                };
                let facts = self.facts(session, &key);
                (session, key, facts)
            })
        })
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let mut found = Occupancy::default();
        for (_, key, facts) in self.every_pair() {
            let holds = facts.holds_place() || self.starting.contains(&key);
            found.copied += usize::from(holds);
            found.queued += usize::from(facts.wants_place() && !holds);
        }
        found
    }

    /// The pairs that get a place now, among the queued ones and `asked`: pairs of a session that
    /// its operator starts with the current request.
    fn admitted(&self, asked: Option<(&SessionRow, &[usize])>) -> Vec<PairKey> {
        let (mut keys, mut waiting) = (Vec::new(), Vec::new());
        let mut add = |session: &SessionRow, key: PairKey| {
            waiting.push(Waiting {
                priority: session.options.priority,
                since: session.created_at_ms,
            });
            keys.push(key);
        };
        for (session, key, facts) in self.every_pair() {
            if facts.wants_place() && self.can_start(&key) {
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
        let pairs_max = usize::try_from(self.model.pairs_max).unwrap_or(usize::MAX);
        session::admit(&waiting, self.occupancy().copied, pairs_max)
            .into_iter()
            .map(|index| keys[index].clone())
            .collect()
    }

    /// Whether a queued pair can be started now. One that cannot takes no place from others.
    fn can_start(&self, key: &PairKey) -> bool {
        let free = !self.busy.contains_key(&Busy::Session(key.session.clone()));
        let pair = self.model.pair(key);
        free && pair
            .and_then(|pair| self.handles.get(&pair.volume))
            .is_some_and(|handle| handle.view().connected)
    }

    /// Divides pairs that are to be started into those that get a place immediately and those that
    /// wait.
    pub(super) fn turns(
        &self,
        session: &SessionRow,
        pairs: Vec<usize>,
    ) -> (Vec<usize>, Vec<usize>) {
        if !session.options.hours.contains(moments::minute_now()) {
            return (Vec::new(), pairs);
        }
        let admitted = self.admitted(Some((session, &pairs)));
        pairs.into_iter().partition(|position| {
            let is_it = |key: &PairKey| key.session == session.name && key.position == *position;
            admitted.iter().any(is_it)
        })
    }

    /// Reserves the places of pairs that an operation is about to start.
    pub(super) fn take_places(&mut self, session: &str, pairs: &[usize]) {
        self.starting.extend(pairs.iter().map(|position| PairKey {
            session: session.to_owned(),
            position: *position,
        }));
    }

    /// Starts queued pairs, as far as there is room.
    pub(super) fn fill_places(&mut self) {
        // Which pairs have a place is known only after all volumes have reported.
        if !self.silent.is_empty() {
            return;
        }
        let mut begin: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for key in self.admitted(None) {
            begin.entry(key.session).or_default().push(key.position);
        }
        for (name, pairs) in begin {
            self.take_places(&name, &pairs);
            let used = self.used_luns(Some(&name));
            if let Some(operation) = self.operation(&name, Vec::new()) {
                let busy = vec![Busy::Session(name)];
                self.spawn_operation(busy, "start", None, operation.start_queued(pairs, used));
            }
        }
    }

    /// Whether one more copier may run.
    pub(super) fn may_copy(&self) -> bool {
        u32::try_from(self.copies.copying()).unwrap_or(u32::MAX) < self.model.pairs_max
    }
}
