//! The stream of events, in order, for clients that watch (`shunt events`).
//!
//! An event is a line of the history, or a change of the state of a pair or a volume. The last
//! events are kept in memory; a client that has missed some gets the current state instead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migration_proto::manager::{Cursor, EventRecord, Record, Request, Response};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::page;
use crate::daemon::clock::steady_ms;
use crate::store::PairKey;

/// Maximum number of events that are kept.
const KEPT_MAX: usize = 4096;
/// Event numbers start at the time in ms of [`steady_ms`] times this factor, so a restarted shuntd
/// always starts higher (no shuntd emits 1024 events per ms).
const NUMBERS_A_MS: u64 = 1024;

/// The last events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    kept: Arc<Mutex<Kept>>,
    /// The number of the next event.
    next: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    next: u64,
    /// The place in the history after the last event.
    cursor: Cursor,
    events: VecDeque<EventRecord>,
}

/// An object whose state changes are published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Watched {
    Volume(String),
    Pair(PairKey),
}

impl Feed {
    /// An empty feed that begins at the end of the history.
    pub(crate) fn new(history_end: Cursor) -> Self {
        let next = steady_ms().saturating_mul(NUMBERS_A_MS);
        Self {
            kept: Arc::new(Mutex::new(Kept {
                next,
                cursor: history_end,
                events: VecDeque::new(),
            })),
            next: watch::Sender::new(next),
        }
    }

    /// Locks the events. No code that holds the lock can panic half-way, so a poisoned lock is
    /// used.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, event: EventRecord) {
        let next = {
            let mut kept = self.lock();
            kept.cursor = event.cursor.clone();
            kept.events.push_back(event);
            if kept.events.len() > KEPT_MAX {
                kept.events.pop_front();
            }
            kept.next += 1;
            kept.next
        };
        self.next.send_replace(next);
    }

    pub(crate) fn next(&self) -> u64 {
        self.lock().next
    }

    /// The place in the history after the last event.
    pub(crate) fn cursor(&self) -> Cursor {
        self.lock().cursor.clone()
    }

    /// The events from number `after` on that fit into one answer, the number of the event after
    /// them, and the place in the history before it. `None` if some of these events are no longer
    /// kept, or never existed.
    fn since(&self, after: u64, session: Option<&str>) -> Option<(u64, Cursor, Vec<Record>)> {
        let kept = self.lock();
        let missing = kept.next.checked_sub(after)?;
        let first = kept
            .events
            .len()
            .checked_sub(usize::try_from(missing).ok()?)?;
        let mut room = page::Room::default();
        let (mut records, mut next, mut cursor) = (Vec::new(), after, None);
        for event in kept.events.range(first..) {
            if session.is_none() || event.session.as_deref() == session {
                if !room.take(event) {
                    break;
                }
                records.push(Record::Event(event.clone()));
            }
            (next, cursor) = (next + 1, Some(&event.cursor));
        }
        let cursor = cursor.unwrap_or(&kept.cursor).clone();
        Some((next, cursor, records))
    }

    /// Waits for events from number `after` on, until `limit`.
    pub(crate) async fn wait(
        self,
        mut after: u64,
        session: Option<String>,
        limit: Duration,
    ) -> Option<Response> {
        let mut news = self.next.subscribe();
        let until = Instant::now() + limit;
        loop {
            let (next, cursor, records) = self.since(after, session.as_deref())?;
            let enough = !records.is_empty() || Instant::now() >= until;
            if enough {
                return Some(Response::Events {
                    next,
                    cursor,
                    present: false,
                    records,
                });
            }
            after = next;
            // Either there are new events, or the time limit has passed.
            let _ = timeout_at(until, news.wait_for(|next| *next > after)).await;
        }
    }
}

/// The states that were published last.
#[derive(Debug, Default)]
pub(crate) struct Published(BTreeMap<Watched, &'static str>);

impl Published {
    /// Notes the state of an object. Whether it has changed.
    pub(crate) fn changed(&mut self, watched: &Watched, state: &'static str) -> bool {
        self.0.insert(watched.clone(), state) != Some(state)
    }

    /// Forgets the objects that are not among `present`.
    pub(crate) fn keep(&mut self, present: &BTreeSet<Watched>) {
        self.0.retain(|watched, _| present.contains(watched));
    }
}

/// Whether a request waits for future events.
pub(crate) const fn waits(request: &Request) -> bool {
    matches!(request, Request::Events { after: Some(_), .. })
}

#[cfg(test)]
mod tests {
    use migration_proto::frame::FRAME_BYTES_MAX;
    use migration_proto::manager::{HistoryEvent, JSON_SCHEMA};

    use super::*;

    fn place(line: u64) -> Cursor {
        Cursor {
            history: "a".to_owned(),
            line,
            at_ms: 1,
        }
    }

    fn event(session: &str, state: &str) -> EventRecord {
        EventRecord {
            schema: JSON_SCHEMA,
            cursor: place(7),
            at_ms: 1,
            session: Some(session.to_owned()),
            volume: None,
            who: None,
            event: HistoryEvent::StateChanged {
                state: state.to_owned(),
            },
        }
    }

    #[test]
    fn every_event_is_told_once_and_what_is_lost_is_known() {
        let feed = Feed::new(place(3));
        let begin = feed.next();
        assert_eq!(feed.since(begin, None), Some((begin, place(3), Vec::new())));
        feed.push(event("s1", "a"));
        feed.push(event("s2", "b"));
        let of_s2 = vec![Record::Event(event("s2", "b"))];
        assert_eq!(
            feed.since(begin, Some("s2")),
            Some((begin + 2, place(7), of_s2))
        );
        assert_eq!(
            feed.since(begin + 2, None),
            Some((begin + 2, place(7), Vec::new()))
        );
        // The number of an event of a different shuntd.
        assert_eq!(feed.since(begin - 1, None), None);
        assert_eq!(feed.since(begin + 3, None), None);
        for _ in 0..KEPT_MAX {
            feed.push(event("s1", "more"));
        }
        assert_eq!(feed.since(begin + 1, None), None);
        let (_, _, records) = feed.since(begin + 2, None).unwrap();
        assert_eq!(records.len(), KEPT_MAX);
    }

    #[test]
    fn events_that_do_not_fit_into_one_answer_are_in_the_next() {
        let feed = Feed::new(place(3));
        let begin = feed.next();
        for line in 0..5 {
            for session in ["s2", "s1"] {
                feed.push(EventRecord {
                    cursor: place(line),
                    ..event(session, &"x".repeat(300_000))
                });
            }
        }
        let mut lines = Vec::new();
        let mut after = begin;
        while let (next, cursor, records) = feed.since(after, Some("s1")).unwrap()
            && !records.is_empty()
        {
            assert!(serde_json::to_vec(&records).unwrap().len() < FRAME_BYTES_MAX);
            for record in records {
                let Record::Event(event) = record else {
                    panic!("{record:?}")
                };
                lines.push(event.cursor.line);
            }
            assert!(cursor.line >= *lines.last().unwrap());
            assert!(cursor.line <= lines.last().unwrap() + 1);
            after = next;
        }
        assert_eq!(lines, [0, 1, 2, 3, 4]);
        assert_eq!(after, begin + 10);
    }

    #[tokio::test]
    async fn a_watcher_waits_for_its_own_session_and_not_for_ever() {
        let feed = Feed::new(place(3));
        let begin = feed.next();
        let mine = || Some("s1".to_owned());
        let waiting = tokio::spawn(feed.clone().wait(begin, mine(), Duration::from_secs(60)));
        tokio::task::yield_now().await;
        feed.push(event("s2", "not this"));
        feed.push(event("s1", "this"));
        let expected = Response::Events {
            next: begin + 2,
            cursor: place(7),
            present: false,
            records: vec![Record::Event(event("s1", "this"))],
        };
        assert_eq!(waiting.await.unwrap(), Some(expected));
        feed.push(event("s2", "nor this"));
        let nothing = Response::Events {
            next: begin + 3,
            cursor: place(7),
            present: false,
            records: Vec::new(),
        };
        let waited = feed.wait(begin + 2, mine(), Duration::from_millis(5)).await;
        assert_eq!(waited, Some(nothing));
    }
}
