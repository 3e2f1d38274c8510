//! The places of a server: the connections up to a limit, and the choice of the connection that
//! makes room for a new one.
//!
//! Both servers keep this table, so that silent clients keep nobody else out. If all places are
//! taken and at least half of them by connections that have not greeted, the oldest of these makes
//! room. So a crowd that never greets has at most half of the places, and a client that is about to
//! greet has time for it. Otherwise the connection that has been idle for longest makes room. A
//! connection whose request is being answered never makes room.

use std::collections::BTreeMap;

/// The number of a connection; no other connection has had it.
pub type ConnectionId = u64;

/// What a connection is doing. The numbers order events: a lower number is an earlier event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// The connection has not greeted yet; the number is that of its admission.
    Greeting(u64),
    /// The connection waits for a request; the number is that of its last answer.
    Idle(u64),
    /// The request of the connection is being answered.
    Busy,
}

/// The table of connections.
#[derive(Debug)]
pub struct Places {
    connections_max: usize,
    connections: BTreeMap<ConnectionId, Doing>,
    events: u64,
}

/// A connection that was given a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// The connection.
    pub id: ConnectionId,
    /// The connection that has lost its place, and is to be closed.
    pub instead_of: Option<ConnectionId>,
}

impl Places {
    /// An empty table for at most `connections_max` connections.
    #[must_use]
    pub const fn new(connections_max: usize) -> Self {
        Self {
            connections_max,
            connections: BTreeMap::new(),
            events: 0,
        }
    }

    /// Gives a new connection a place; `None` if the requests of all others are being answered.
    pub fn admit(&mut self) -> Option<Admitted> {
        let instead_of = if self.connections.len() < self.connections_max {
            None
        } else {
            Some(self.choose()?)
        };
        if let Some(id) = instead_of {
            self.leave(id);
        }
        let id = self.next_event();
        self.connections.insert(id, Doing::Greeting(id));
        Some(Admitted { id, instead_of })
    }

    /// Notes that a connection has greeted, or that its request is answered.
    pub fn became_idle(&mut self, id: ConnectionId) {
        let now = self.next_event();
        self.set(id, Doing::Idle(now));
    }

    /// Notes that a connection has sent a request.
    pub fn became_busy(&mut self, id: ConnectionId) {
        self.set(id, Doing::Busy);
    }

    /// Notes that a connection has ended.
    pub fn leave(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
    }

    /// Chooses the connection that makes room.
    fn choose(&self) -> Option<ConnectionId> {
        let (mut greeting, mut idle) = (Vec::new(), Vec::new());
        for (id, doing) in &self.connections {
            match doing {
                Doing::Greeting(since) => greeting.push((*since, *id)),
                Doing::Idle(since) => idle.push((*since, *id)),
                Doing::Busy => {}
            }
        }
        let (crowd, others) = if 2 * greeting.len() >= self.connections_max {
            (greeting, idle)
        } else {
            (idle, greeting)
        };
        let first = crowd.iter().min().or_else(|| others.iter().min());
        first.map(|(_, id)| *id)
    }

    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Changes what a connection is doing. A connection that has lost its place does not get it
    /// back.
    fn set(&mut self, id: ConnectionId, now: Doing) {
        if let Some(doing) = self.connections.get_mut(&id) {
            *doing = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(places: &mut Places) -> ConnectionId {
        let admitted = places.admit().unwrap();
        assert_eq!(admitted.instead_of, None);
        admitted.id
    }

    #[test]
    fn a_crowd_that_never_greets_has_half_of_the_places() {
        let mut places = Places::new(4);
        let [idle, later] = [(); 2].map(|()| admit(&mut places));
        places.became_idle(later);
        places.became_idle(idle);
        let mut crowd = vec![admit(&mut places), admit(&mut places)];
        for round in 0..10 {
            let admitted = places.admit().unwrap();
            assert_eq!(admitted.instead_of, Some(crowd[round]));
            crowd.push(admitted.id);
        }
    }

    #[test]
    fn those_that_have_been_idle_for_longest_make_room_and_those_being_answered_never_do() {
        let mut places = Places::new(4);
        let [idle, busy, later, new] = [(); 4].map(|()| admit(&mut places));
        places.became_idle(later);
        places.became_idle(idle);
        places.became_busy(busy);
        let evicted = |places: &mut Places| {
            let admitted = places.admit().unwrap();
            places.became_busy(admitted.id);
            admitted.instead_of
        };
        assert_eq!(evicted(&mut places), Some(later));
        assert_eq!(evicted(&mut places), Some(idle));
        assert_eq!(evicted(&mut places), Some(new), "nobody is idle");
        assert_eq!(places.admit(), None, "all are being answered");
        places.became_idle(new);
        assert_eq!(places.admit(), None, "a lost place is lost");
        places.leave(busy);
        admit(&mut places);
    }
}
