//! Starting pairs: the targets are added as mirror legs.

use alloc::vec;
use alloc::vec::Vec;

use super::seeded::{Broken, Rule};
use super::{
    Answer, Effect, End, Entry, Event, Stage, Step, end, ended, enter, record, step, unexpected,
};
use crate::pair::Phase;

/// A start.
///
/// ```text
/// Checking --> Intending --> Marking --> Adding --> Recording --> end
///    |             ^            ^  |                  ^  |
///    +-> Dropping -+            |  +------------------+  |
///                               +--------- next ---------+
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Start {
    pairs: Vec<usize>,
    /// The pairs that are started when others have been copied.
    later: Vec<usize>,
    /// The pairs were queued, and their turn has come: one that does not fit does not hold up the
    /// others.
    from_queue: bool,
    at: usize,
    stage: StartStage,
    failed: bool,
    pub(super) broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum StartStage {
    /// The targets are being checked.
    Checking,
    /// The pairs that do not fit are being recorded as not started.
    Dropping,
    /// The intention is being recorded.
    Intending,
    /// The target is being marked as no copy.
    Marking,
    /// The mirror leg is being added.
    Adding,
    /// What was done to the pair is being recorded.
    Recording,
}

impl Stage for StartStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Checking => matches!(next, Self::Dropping | Self::Intending),
            Self::Dropping => matches!(next, Self::Intending),
            Self::Intending => matches!(next, Self::Marking),
            Self::Marking => matches!(next, Self::Adding | Self::Recording),
            Self::Adding => matches!(next, Self::Recording),
            Self::Recording => matches!(next, Self::Marking),
        }
    }
}

impl Start {
    /// The operator's start: `pairs` now, `later` when there is a place for them.
    #[must_use]
    pub const fn now(pairs: Vec<usize>, later: Vec<usize>) -> Self {
        Self::new(pairs, later, false)
    }

    /// A start of pairs that were queued.
    #[must_use]
    pub const fn from_queue(pairs: Vec<usize>) -> Self {
        Self::new(pairs, Vec::new(), true)
    }

    const fn new(pairs: Vec<usize>, later: Vec<usize>, from_queue: bool) -> Self {
        Self {
            pairs,
            later,
            from_queue,
            at: 0,
            stage: StartStage::Checking,
            failed: false,
            broken: Broken::NOTHING,
        }
    }

    pub(super) fn begin(&self) -> Vec<Effect> {
        let all = self.pairs.iter().chain(&self.later).copied().collect();
        vec![Effect::CheckTargets(all)]
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (self.stage, event) {
            (StartStage::Checking, Event::Checked { unfit }) if unfit.is_empty() => self.intend(),
            (StartStage::Checking, Event::Checked { unfit }) => {
                if !self.from_queue {
                    return end(End::Refused);
                }
                self.pairs.retain(|pair| !unfit.contains(pair));
                enter(&mut self.stage, StartStage::Dropping);
                record(unfit.iter().map(|pair| Entry::NotStarted(*pair)))
            }
            (StartStage::Dropping, Event::Recorded) => self.intend(),
            (StartStage::Intending, Event::Recorded) => self.mark(),
            (StartStage::Marking, Event::Pair(pair, Answer::Done)) => {
                enter(&mut self.stage, StartStage::Adding);
                step(*pair, Step::AddMirror)
            }
            (StartStage::Marking, Event::Pair(pair, Answer::Refused | Answer::Unknown)) => {
                self.recorded(Entry::NotStarted(*pair))
            }
            (StartStage::Adding, Event::Pair(pair, answer)) => match answer {
                Answer::Done => self.recorded(Entry::Started(*pair)),
                Answer::Refused => self.recorded(Entry::NotStarted(*pair)),
                Answer::Unknown => self.recorded(Entry::Unknown(*pair)),
                Answer::Legs(_) | Answer::Seal(_) => unexpected(self.stage, event),
            },
            (StartStage::Recording, Event::Recorded) => {
                self.at += 1;
                self.mark()
            }
            (stage, event) => unexpected(stage, event),
        }
    }

    fn intend(&mut self) -> Vec<Effect> {
        if self.pairs.is_empty() && self.later.is_empty() {
            return ended(self.failed);
        }
        enter(&mut self.stage, StartStage::Intending);
        if self.broken.breaks(Rule::StartIsIntended) {
            return self.mark();
        }
        let later = self.later.iter().map(|pair| Entry::Queued(*pair));
        let now = self.pairs.iter().map(|pair| Entry::Intended {
            pair: *pair,
            phase: Phase::Starting,
        });
        record(later.chain(now))
    }

    fn mark(&mut self) -> Vec<Effect> {
        match self.pairs.get(self.at) {
            Some(pair) => {
                enter(&mut self.stage, StartStage::Marking);
                if self.broken.breaks(Rule::NewMirrorIsMarked) {
                    enter(&mut self.stage, StartStage::Adding);
                    return step(*pair, Step::AddMirror);
                }
                step(*pair, Step::MarkUnfinished)
            }
            None => ended(self.failed),
        }
    }

    fn recorded(&mut self, entry: Entry) -> Vec<Effect> {
        self.failed |= !matches!(entry, Entry::Started(_));
        enter(&mut self.stage, StartStage::Recording);
        record([entry])
    }
}
