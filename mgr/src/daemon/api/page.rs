//! How many records fit into one answer.

use migration_proto::frame::FRAME_BYTES_MAX;
use migration_proto::manager::EventRecord;

/// The most bytes of records in an answer. The rest of the frame is for what is around them.
const RECORDS_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);

/// The room that is left in an answer.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: usize,
    is_new: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: RECORDS_BYTES_MAX,
            is_new: true,
        }
    }
}

impl Room {
    /// Takes the room for a record. Whether there was enough; the first record always gets in, so
    /// that a client comes to an end.
    pub(crate) fn take(&mut self, event: &EventRecord) -> bool {
        let bytes = serde_json::to_vec(event).map_or(0, |bytes| bytes.len() + 64);
        let fits = bytes <= self.bytes || self.is_new;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.is_new = false;
        fits
    }
}

/// The first records of a list, as many as fit.
pub(crate) fn first(mut events: Vec<EventRecord>) -> Vec<EventRecord> {
    let mut room = Room::default();
    let fitting = events.iter().take_while(|event| room.take(event)).count();
    events.truncate(fitting);
    events
}

/// The last records of a list, as many as fit.
pub(crate) fn last(mut events: Vec<EventRecord>) -> Vec<EventRecord> {
    let mut room = Room::default();
    let fitting = events
        .iter()
        .rev()
        .take_while(|event| room.take(event))
        .count();
    events.split_off(events.len() - fitting)
}

#[cfg(test)]
mod tests {
    use migration_proto::manager::{Cursor, HistoryEvent, JSON_SCHEMA};

    use super::*;

    fn event(line: u64, bytes: usize) -> EventRecord {
        EventRecord {
            schema: JSON_SCHEMA,
            cursor: Cursor {
                history: "a".to_owned(),
                line,
                at_ms: 1,
            },
            at_ms: 1,
            session: None,
            volume: None,
            who: None,
            event: HistoryEvent::StateChanged {
                state: "x".repeat(bytes),
            },
        }
    }

    fn lines(events: Vec<EventRecord>) -> Vec<u64> {
        events.iter().map(|event| event.cursor.line).collect()
    }

    #[test]
    fn an_answer_has_as_many_records_as_fit_into_a_message() {
        let events: Vec<_> = (0..5).map(|line| event(line, 300_000)).collect();
        assert_eq!(lines(first(events.clone())), [0, 1, 2]);
        assert_eq!(lines(last(events)), [2, 3, 4]);
        let large: Vec<_> = (0..2).map(|line| event(line, FRAME_BYTES_MAX)).collect();
        assert_eq!(lines(first(large)), [0]);
        assert!(first(Vec::new()).is_empty());
    }
}
