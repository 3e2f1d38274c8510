//! Stopping the copy of a session. Writes are still mirrored where the legs are equal.

use alloc::vec;
use alloc::vec::Vec;

use super::{Effect, End, Entry, Event, end, record, unexpected};

/// A pause.
///
/// ```text
/// Stopping --> Recording --> end
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pause {
    /// The copiers are being stopped.
    Stopping,
    /// The pause is being recorded.
    Recording,
}

impl Pause {
    pub(super) fn begin(&self) -> Vec<Effect> {
        vec![Effect::StopCopiers]
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (*self, event) {
            (Self::Stopping, Event::CopiersStopped) => {
                *self = Self::Recording;
                record([Entry::Paused(true)])
            }
            (Self::Recording, Event::Recorded) => end(End::Done),
            (stage, event) => unexpected(stage, event),
        }
    }
}
