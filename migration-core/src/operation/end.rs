//! Ending a migration: a commit drops the sources, a cancel the targets.

use alloc::vec;
use alloc::vec::Vec;

use super::seeded::{Broken, Rule};
use super::{
    Answer, Effect, End, Entry, Event, Freshness, Legs, PlannedPair, Stage, Step, end, ended,
    enter, record, set_route, step, unexpected,
};
use crate::pair::Phase;
use crate::route::{Route, Side};

/// A commit or a cancel.
///
/// ```text
/// Inspecting --+--> RecordingUnmirrored --+
///              +--------------------------+
///                                         |
///    +------------------------------------+
///    v
/// Stopping --> Intending --> Examining --> Dropping --+--> Marking ----+--> Recording --> end
///                                ^                    +--> Unsealing --+        |
///                                |                    +----------------+        |
///                                +------------------- next ---------------------+
/// Retiring (after the last Recording of a commit) --> end
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Finish {
    side: Side,
    pairs: Vec<PlannedPair>,
    /// The pairs that were never mirrored: they need no ublk-target.
    unmirrored: Vec<usize>,
    /// The pairs that are or may be mirrored.
    mirrored: Vec<PlannedPair>,
    /// Whether the legs that are no longer used are made inaccessible.
    retire: bool,
    at: usize,
    stage: FinishStage,
    /// How the volume used the legs before one was dropped.
    legs: Legs,
    failed: bool,
    pub(super) broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum FinishStage {
    /// Whether a pair was ever mirrored.
    Inspecting,
    /// The pairs that were never mirrored are being recorded as ended.
    RecordingUnmirrored,
    /// The copiers are being stopped.
    Stopping,
    /// The intention is being recorded.
    Intending,
    /// How the legs are used.
    Examining,
    /// The other leg is being dropped.
    Dropping,
    /// A target that is no copy is being marked.
    Marking,
    /// A target that was sealed is being made writable.
    Unsealing,
    /// What was done to the pair is being recorded.
    Recording,
    /// The legs that are no longer used are being made inaccessible.
    Retiring,
}

impl Stage for FinishStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Inspecting => {
                matches!(
                    next,
                    Self::Inspecting | Self::RecordingUnmirrored | Self::Stopping
                )
            }
            Self::RecordingUnmirrored => matches!(next, Self::Stopping),
            Self::Stopping => matches!(next, Self::Intending),
            Self::Intending => matches!(next, Self::Examining),
            Self::Examining => matches!(next, Self::Dropping),
            Self::Dropping => matches!(next, Self::Marking | Self::Unsealing | Self::Recording),
            Self::Marking | Self::Unsealing => matches!(next, Self::Recording),
            Self::Recording => matches!(next, Self::Examining | Self::Retiring),
            Self::Retiring => matches!(next, Self::Retiring),
        }
    }
}

impl Finish {
    /// Ends `pairs` on `side`. `retire`: the other legs are made inaccessible afterwards.
    #[must_use]
    pub const fn new(side: Side, pairs: Vec<PlannedPair>, retire: bool) -> Self {
        Self {
            side,
            pairs,
            unmirrored: Vec::new(),
            mirrored: Vec::new(),
            retire,
            at: 0,
            stage: FinishStage::Inspecting,
            legs: Legs::Apart,
            failed: false,
            broken: Broken::NOTHING,
        }
    }

    pub(super) fn begin(&mut self) -> Vec<Effect> {
        self.inspect()
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (self.stage, event) {
            (FinishStage::Inspecting, Event::Pair(pair, answer)) => match answer {
                Answer::Legs(Legs::Apart) => {
                    self.unmirrored.push(*pair);
                    self.at += 1;
                    self.inspect()
                }
                Answer::Legs(Legs::Mirrored { .. } | Legs::Split) => {
                    self.mirrored.push(self.pairs[self.at]);
                    self.at += 1;
                    self.inspect()
                }
                Answer::Done | Answer::Refused | Answer::Unknown => end(End::Refused),
                Answer::Seal(_) => unexpected(self.stage, event),
            },
            (FinishStage::RecordingUnmirrored, Event::Recorded) => self.stop_copiers(),
            (FinishStage::Stopping, Event::CopiersStopped) => {
                enter(&mut self.stage, FinishStage::Intending);
                if self.broken.breaks(Rule::EndIsIntended) {
                    return self.examine();
                }
                if self.broken.breaks(Rule::EndedAfterDrop) {
                    let side = self.side;
                    let ended = |ending: &PlannedPair| Entry::Ended {
                        pair: ending.pair,
                        side,
                    };
                    return record(self.mirrored.iter().map(ended));
                }
                let phase = match self.side {
                    Side::Target => Phase::Committing,
                    Side::Source => Phase::Cancelling,
                };
                let intended = |ending: &PlannedPair| Entry::Intended {
                    pair: ending.pair,
                    phase,
                };
                record(self.mirrored.iter().map(intended))
            }
            (FinishStage::Intending, Event::Recorded) => self.examine(),
            (FinishStage::Examining, Event::Pair(pair, answer)) => {
                self.legs = match answer {
                    Answer::Legs(legs) => *legs,
                    // Nobody knows whether they are equal.
                    Answer::Done | Answer::Refused | Answer::Unknown | Answer::Seal(_) => {
                        Legs::Mirrored { dirty: true }
                    }
                };
                enter(&mut self.stage, FinishStage::Dropping);
                step(*pair, set_route(Route::Single(self.side)))
            }
            (FinishStage::Dropping, Event::Pair(pair, answer)) => {
                self.dropped(*pair, answer, event)
            }
            // It is reported if that fails; the leg is dropped all the same.
            (FinishStage::Marking | FinishStage::Unsealing, Event::Pair(pair, _)) => {
                self.record_ended(*pair)
            }
            (FinishStage::Recording, Event::Recorded) => {
                self.at += 1;
                self.examine()
            }
            (FinishStage::Retiring, Event::Pair(..)) => {
                self.at += 1;
                self.retire()
            }
            (stage, event) => unexpected(stage, event),
        }
    }

    /// Only the volume knows whether a start that was interrupted has happened, or still happens.
    fn inspect(&mut self) -> Vec<Effect> {
        while let Some(ending) = self.pairs.get(self.at).copied() {
            let freshness = match ending.phase {
                Phase::Setup | Phase::Queued => Freshness::Last,
                Phase::Starting => Freshness::Settled,
                Phase::Active
                | Phase::Splitting
                | Phase::Split
                | Phase::Switching
                | Phase::Undoing
                | Phase::Committing
                | Phase::Committed
                | Phase::Cancelling
                | Phase::Cancelled => {
                    self.mirrored.push(ending);
                    self.at += 1;
                    continue;
                }
            };
            enter(&mut self.stage, FinishStage::Inspecting);
            return step(ending.pair, Step::Inspect(freshness));
        }
        self.at = 0;
        if self.unmirrored.is_empty() {
            return self.stop_copiers();
        }
        // Not before every pair is known: a refusal leaves the whole session as it is.
        enter(&mut self.stage, FinishStage::RecordingUnmirrored);
        let side = self.side;
        let ended = |pair: &usize| Entry::Ended { pair: *pair, side };
        record(self.unmirrored.iter().map(ended))
    }

    fn stop_copiers(&mut self) -> Vec<Effect> {
        if self.mirrored.is_empty() {
            return end(End::Done);
        }
        enter(&mut self.stage, FinishStage::Stopping);
        if self.broken.breaks(Rule::CopiersStopBeforeDrop) {
            return self.apply(&Event::CopiersStopped);
        }
        vec![Effect::StopCopiers]
    }

    fn examine(&mut self) -> Vec<Effect> {
        match self.mirrored.get(self.at) {
            Some(ending) => {
                enter(&mut self.stage, FinishStage::Examining);
                // Only a target that is dropped must be known to be equal.
                let freshness = match self.side {
                    Side::Source => Freshness::Fresh,
                    Side::Target => Freshness::Last,
                };
                step(ending.pair, Step::Inspect(freshness))
            }
            None if self.retire && !self.failed => {
                self.at = 0;
                self.retire()
            }
            None => ended(self.failed),
        }
    }

    fn dropped(&mut self, pair: usize, answer: &Answer, event: &Event) -> Vec<Effect> {
        let entry = match answer {
            Answer::Done => match (self.side, self.legs) {
                (_, Legs::Split) => {
                    enter(&mut self.stage, FinishStage::Unsealing);
                    return step(pair, Step::SetReadOnly(false));
                }
                (Side::Source, Legs::Mirrored { dirty: true }) => {
                    enter(&mut self.stage, FinishStage::Marking);
                    return step(pair, Step::MarkUnfinished);
                }
                (Side::Source | Side::Target, Legs::Mirrored { .. } | Legs::Apart) => {
                    if self.retire && self.broken.breaks(Rule::RetiredAfterRecord) {
                        enter(&mut self.stage, FinishStage::Marking);
                        return step(pair, Step::Retire);
                    }
                    return self.record_ended(pair);
                }
            },
            Answer::Unknown if self.broken.breaks(Rule::UnknownEndStaysUnknown) => {
                return self.record_ended(pair);
            }
            Answer::Unknown => Entry::Unknown(pair),
            Answer::Refused => {
                let ending = self.mirrored[self.at];
                let split = self.legs == Legs::Split || ending.phase == Phase::Split;
                let is_copy = ending.is_copy && split;
                let side = self.side;
                Entry::NotEnded {
                    pair,
                    side,
                    is_copy,
                }
            }
            Answer::Legs(_) | Answer::Seal(_) => return unexpected(self.stage, event),
        };
        self.failed = true;
        enter(&mut self.stage, FinishStage::Recording);
        record([entry])
    }

    fn record_ended(&mut self, pair: usize) -> Vec<Effect> {
        enter(&mut self.stage, FinishStage::Recording);
        let side = self.side;
        record([Entry::Ended { pair, side }])
    }

    fn retire(&mut self) -> Vec<Effect> {
        match self.mirrored.get(self.at) {
            Some(ending) => {
                enter(&mut self.stage, FinishStage::Retiring);
                step(ending.pair, Step::Retire)
            }
            None => end(End::Done),
        }
    }
}
