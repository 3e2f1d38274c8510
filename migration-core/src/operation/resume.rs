//! Letting the copy of a session continue, also onto targets that were split off or have failed.

use alloc::vec;
use alloc::vec::Vec;

use super::mirror_again::{MirrorAgain, Next};
use super::seeded::{Broken, Rule};
use super::{
    Answer, Effect, End, Entry, Event, Freshness, Legs, PlannedPair, Seal, Stage, Step, end, ended,
    enter, record, step, unexpected,
};
use crate::pair::Phase;

/// A target that is split off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SplitPair {
    pair: usize,
    phase: Phase,
    /// Whether everything is copied again, because nobody knows what was written to the target.
    from_scratch: bool,
}

/// A resume.
///
/// ```text
/// Checking --> Recording --> Inspecting --> Judging --> GivingUpCopies --> MirroringAgain
///                               |                                         ^      |
///                               v                                         |      v
///             end <--------- Retrying <-----------------------------+--- RecordingAgain
///                             ^    |
///                             |    v
///                          RecordingRetry
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resume {
    pairs: Vec<PlannedPair>,
    split: Vec<SplitPair>,
    at: usize,
    stage: ResumeStage,
    again: Option<MirrorAgain>,
    failed: bool,
    pub(super) broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ResumeStage {
    /// Whether a volume lies on itself.
    Checking,
    /// That the session is not paused is being recorded.
    Recording,
    /// Which targets are split off.
    Inspecting,
    /// Whether anybody wrote to a target that is split off.
    Judging,
    /// That targets are copies no longer is being recorded.
    GivingUpCopies,
    /// A target is being mirrored onto again.
    MirroringAgain,
    /// What that led to is being recorded.
    RecordingAgain,
    /// A failed mirror leg is being used again.
    Retrying,
    /// That the leg is used again is being recorded.
    RecordingRetry,
}

impl Stage for ResumeStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Checking => matches!(next, Self::Recording),
            Self::Recording => matches!(next, Self::Inspecting),
            Self::Inspecting => matches!(next, Self::Inspecting | Self::Judging | Self::Retrying),
            Self::Judging => matches!(next, Self::Judging | Self::GivingUpCopies),
            Self::GivingUpCopies => matches!(next, Self::MirroringAgain),
            Self::MirroringAgain => matches!(next, Self::RecordingAgain),
            Self::RecordingAgain => matches!(next, Self::MirroringAgain | Self::Retrying),
            Self::Retrying => matches!(next, Self::Retrying | Self::RecordingRetry),
            Self::RecordingRetry => matches!(next, Self::Retrying),
        }
    }
}

impl Resume {
    /// Resumes these pairs.
    #[must_use]
    pub const fn new(pairs: Vec<PlannedPair>) -> Self {
        Self {
            pairs,
            split: Vec::new(),
            at: 0,
            stage: ResumeStage::Checking,
            again: None,
            failed: false,
            broken: Broken::NOTHING,
        }
    }

    pub(super) fn begin(&self) -> Vec<Effect> {
        let all = self.pairs.iter().map(|resumed| resumed.pair).collect();
        vec![Effect::CheckStanding(all)]
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (self.stage, event) {
            (ResumeStage::Checking, Event::Checked { unfit }) => {
                if !unfit.is_empty() {
                    return end(End::Refused);
                }
                enter(&mut self.stage, ResumeStage::Recording);
                record([Entry::Paused(false)])
            }
            (ResumeStage::Recording, Event::Recorded) => self.inspect(),
            (ResumeStage::Inspecting, Event::Pair(_, answer)) => {
                if *answer == Answer::Legs(Legs::Split) {
                    let PlannedPair { pair, phase, .. } = self.pairs[self.at];
                    self.split.push(SplitPair {
                        pair,
                        phase,
                        from_scratch: false,
                    });
                }
                self.at += 1;
                self.inspect()
            }
            (ResumeStage::Judging, Event::Pair(_, answer)) => match answer {
                Answer::Seal(Seal::Broken) => end(End::Refused),
                Answer::Seal(seal) => {
                    let counts = self.broken.breaks(Rule::DoubtfulTargetIsCopiedAgain);
                    self.split[self.at].from_scratch = *seal != Seal::Unbroken && !counts;
                    self.at += 1;
                    self.judge()
                }
                // Whether anybody wrote to it cannot be found out now: nothing is done to it.
                Answer::Refused | Answer::Unknown => end(End::Refused),
                Answer::Done | Answer::Legs(_) => unexpected(self.stage, event),
            },
            (ResumeStage::GivingUpCopies, Event::Recorded) => self.mirror_again(),
            (ResumeStage::MirroringAgain, event) => {
                let Some(again) = &mut self.again else {
                    return unexpected(self.stage, event);
                };
                let (outcome, split) = match again.apply(event) {
                    Next::Effects(effects) => return effects,
                    Next::Ended { outcome, split } => (outcome, split),
                };
                enter(&mut self.stage, ResumeStage::RecordingAgain);
                record([self.mirrored_again(outcome, split)])
            }
            (ResumeStage::RecordingAgain, Event::Recorded) => {
                self.at += 1;
                self.mirror_again()
            }
            (ResumeStage::Retrying, Event::Pair(pair, Answer::Done)) => {
                enter(&mut self.stage, ResumeStage::RecordingRetry);
                record([Entry::Retried(*pair)])
            }
            (ResumeStage::Retrying, Event::Pair(..)) => {
                self.failed = true;
                self.at += 1;
                self.retry()
            }
            (ResumeStage::RecordingRetry, Event::Recorded) => {
                self.at += 1;
                self.retry()
            }
            (stage, event) => unexpected(stage, event),
        }
    }

    fn inspect(&mut self) -> Vec<Effect> {
        if let Some(resumed) = self.pairs.get(self.at) {
            enter(&mut self.stage, ResumeStage::Inspecting);
            return step(resumed.pair, Step::Inspect(Freshness::Last));
        }
        self.at = 0;
        match self.split.is_empty() {
            true => self.retry(),
            false => self.judge(),
        }
    }

    fn judge(&mut self) -> Vec<Effect> {
        if let Some(split) = self.split.get(self.at) {
            enter(&mut self.stage, ResumeStage::Judging);
            return step(split.pair, Step::CheckSeal);
        }
        self.at = 0;
        enter(&mut self.stage, ResumeStage::GivingUpCopies);
        if self.broken.breaks(Rule::CopyIsGivenUpFirst) {
            return self.mirror_again();
        }
        record(self.split.iter().map(|split| Entry::CopyGivenUp {
            pair: split.pair,
            from_scratch: split.from_scratch,
        }))
    }

    fn mirror_again(&mut self) -> Vec<Effect> {
        let Some(split) = self.split.get(self.at) else {
            self.at = 0;
            return self.retry();
        };
        enter(&mut self.stage, ResumeStage::MirroringAgain);
        let (again, effects) = MirrorAgain::begin(split.pair, split.from_scratch, self.broken);
        self.again = Some(again);
        effects
    }

    fn mirrored_again(&mut self, outcome: Answer, split: bool) -> Entry {
        let SplitPair {
            pair,
            phase,
            from_scratch,
        } = self.split[self.at];
        if outcome == Answer::Done {
            return Entry::MirroredAgain { pair, from_scratch };
        }
        self.failed = true;
        let (phase, is_copy) = match (outcome, split) {
            // The next report of the volume settles what it is; it is no copy any more.
            (Answer::Unknown, _) => (None, false),
            // Nothing was written to the target: it is still the same copy.
            (_, true) => (Some(phase), true),
            (_, false) if from_scratch => (Some(Phase::Setup), false),
            (_, false) => (None, false),
        };
        Entry::NotMirroredAgain {
            pair,
            phase,
            is_copy,
        }
    }

    /// The next pair whose mirror leg has failed.
    fn retry(&mut self) -> Vec<Effect> {
        let rest = self.pairs.iter().enumerate().skip(self.at);
        let next = rest.into_iter().find(|(_, resumed)| resumed.degraded);
        let Some((at, resumed)) = next.map(|(at, resumed)| (at, *resumed)) else {
            return ended(self.failed);
        };
        self.at = at;
        enter(&mut self.stage, ResumeStage::Retrying);
        step(resumed.pair, Step::RetryMirror)
    }
}
