//! The room of the copies: the copiers that run, what they do to applications, and the targets that
//! kept applications waiting.

pub(super) mod come_back;
pub(super) mod copiers;
pub(super) mod gauge;

use tokio::sync::mpsc;

use super::event::Event;
use crate::store::PairKey;
use come_back::StallRecoveries;
use copiers::Copiers;
use gauge::Gauges;

/// The state of the copies.
#[derive(Debug)]
pub(super) struct Copies {
    /// The running copiers.
    pub(super) copiers: Copiers,
    /// The measurements of application I/O.
    pub(super) gauges: Gauges,
    /// The recovery of targets that stalled.
    pub(super) come_backs: StallRecoveries,
}

impl Copies {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            copiers: Copiers::new(events),
            gauges: Gauges::default(),
            come_backs: StallRecoveries::new(),
        }
    }

    /// Forgets a pair that has ended.
    pub(super) fn forget(&mut self, key: &PairKey) {
        self.gauges.forget(key);
        self.come_backs.forget(key);
    }

    /// Handles the result of a probe or a retry of a stalled target. After a success the next
    /// copier starts without a delay.
    pub(super) fn came_back(&mut self, key: &PairKey, well: bool) {
        self.come_backs.answered(key, well);
        if well {
            self.copiers.need_not_wait(key);
        }
    }
}
