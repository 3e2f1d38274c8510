//! The places of a server: at most so many connections, and who makes room for another one.
//!
//! Both servers keep this table, so that clients that say nothing keep nobody else out. When all places are taken and half
//! of them by connections that have not greeted, the one of these that came first makes room. So a crowd that never
//! greets has half of the places at most, and one that is just about to greet has time for it. Otherwise the connection
//! that has been idle for longest makes room. One that is being answered never does.

use std::collections::BTreeMap;

/// A connection, by a number that no other one has had.
pub type ConnectionId = u64;

/// What a connection is doing. The numbers order events: a lower one was earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It has not greeted yet, since then.
    Greeting(u64),
    /// Its last request was answered then.
    Idle(u64),
    /// Its request is being answered.
    Busy,
}

/// The table.
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
    /// The one that has lost its place, and is to be closed.
    pub instead_of: Option<ConnectionId>,
}

impl Places {
    /// A table for so many connections.
    #[must_use]
    pub const fn new(connections_max: usize) -> Self {
        Self {
            connections_max,
            connections: BTreeMap::new(),
            events: 0,
        }
    }

    /// Gives a new connection a place; `None` if all others are being answered.
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

    /// A connection has greeted, or its request is answered.
    pub fn became_idle(&mut self, id: ConnectionId) {
        let now = self.next_event();
        self.set(id, Doing::Idle(now));
    }

    /// A connection has sent a request.
    pub fn became_busy(&mut self, id: ConnectionId) {
        self.set(id, Doing::Busy);
    }

    /// A connection has ended.
    pub fn leave(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
    }

    /// Who makes room.
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

    /// One that has lost its place does not get it back.
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
