//! Splitting: the targets of all pairs become copies of their sources at one instant.
//!
//! Every volume holds requests from its split on, and is released when all of them are split: there
//! was an instant at which all of them held. A volume that did not hold that long, because its
//! deadline came or its ublk-target died, spoils the copy; then all are mirrored again. A copy that
//! counts is recorded only after that ([`Phase::Split`]).

use alloc::vec;
use alloc::vec::Vec;

use super::mirror_again::{MirrorAgain, Next};
use super::seeded::{Broken, Rule};
use super::{
    Answer, Effect, End, Entry, Event, Stage, Step, end, enter, record, set_route, step, unexpected,
};
use crate::pair::Phase;
use crate::route::Route;

/// A split.
///
/// ```text
/// Stopping --> Intending --> Splitting --> Releasing --> Recording --> Sealing --> end
///                                |             |                       ^    |
///                                v             v                       |    v
///            end <-- RecordingSpoiled <--> MirroringAgain           RecordingSeal
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Split {
    pairs: Vec<usize>,
    /// What each pair answered; `None`: nothing yet.
    answers: Vec<Option<Answer>>,
    at: usize,
    stage: SplitStage,
    spoiled: bool,
    again: Option<MirrorAgain>,
    pub(super) broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SplitStage {
    /// The copiers are being stopped.
    Stopping,
    /// The intention is being recorded.
    Intending,
    /// All volumes are being split.
    Splitting,
    /// All volumes that were split are being released.
    Releasing,
    /// The copies are being recorded.
    Recording,
    /// A target is being sealed.
    Sealing,
    /// A seal is being recorded.
    RecordingSeal,
    /// A target that is no copy is being mirrored onto again.
    MirroringAgain,
    /// That the copy is spoiled is being recorded.
    RecordingSpoiled,
}

impl Stage for SplitStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Stopping => matches!(next, Self::Intending),
            Self::Intending => matches!(next, Self::Splitting),
            Self::Splitting => matches!(next, Self::Releasing | Self::MirroringAgain),
            Self::Releasing => matches!(next, Self::Recording | Self::MirroringAgain),
            Self::Recording => matches!(next, Self::Sealing),
            Self::Sealing => matches!(next, Self::RecordingSeal | Self::Sealing),
            Self::RecordingSeal => matches!(next, Self::Sealing),
            Self::MirroringAgain => matches!(next, Self::RecordingSpoiled),
            Self::RecordingSpoiled => matches!(next, Self::MirroringAgain),
        }
    }
}

impl Split {
    /// Splits all pairs of a session.
    #[must_use]
    pub fn new(pairs: Vec<usize>) -> Self {
        Self {
            answers: vec![None; pairs.len()],
            pairs,
            at: 0,
            stage: SplitStage::Stopping,
            spoiled: false,
            again: None,
            broken: Broken::NOTHING,
        }
    }

    pub(super) fn begin(&self) -> Vec<Effect> {
        vec![Effect::StopCopiers]
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (self.stage, event) {
            (SplitStage::Stopping, Event::CopiersStopped) => {
                enter(&mut self.stage, SplitStage::Intending);
                if self.broken.breaks(Rule::SplitIsIntended) {
                    return self.apply(&Event::Recorded);
                }
                let phase = Phase::Splitting;
                let intended = self
                    .pairs
                    .iter()
                    .map(|pair| Entry::Intended { pair: *pair, phase });
                record(intended)
            }
            (SplitStage::Intending, Event::Recorded) => {
                if self.pairs.is_empty() {
                    return end(End::Done);
                }
                enter(&mut self.stage, SplitStage::Splitting);
                self.all(set_route(Route::Split), |_| true)
            }
            (SplitStage::Splitting, Event::Pair(pair, answer)) => {
                if !self.note(*pair, *answer) {
                    return Vec::new();
                }
                // Also those of a split that is spoiled: nothing is to be held any longer.
                let split = self.pairs_that(Answer::Done);
                if split.is_empty() {
                    return self.mirror_again();
                }
                enter(&mut self.stage, SplitStage::Releasing);
                self.all(Step::Release, |pair| split.contains(&pair))
            }
            (SplitStage::Releasing, Event::Pair(pair, answer)) => {
                if !self.note(*pair, *answer) {
                    return Vec::new();
                }
                if self.spoiled {
                    return self.mirror_again();
                }
                enter(&mut self.stage, SplitStage::Recording);
                let copies = self.pairs.iter().map(|pair| Entry::Copy(*pair));
                record([Entry::NextSplit].into_iter().chain(copies))
            }
            (SplitStage::Recording, Event::Recorded) => self.seal(),
            (SplitStage::Sealing, Event::Pair(pair, Answer::Done)) => {
                enter(&mut self.stage, SplitStage::RecordingSeal);
                record([Entry::Sealed(*pair)])
            }
            // It is reported; the target counts as one that may have been written.
            (SplitStage::Sealing, Event::Pair(..))
            | (SplitStage::RecordingSeal, Event::Recorded) => {
                self.at += 1;
                self.seal()
            }
            (SplitStage::MirroringAgain, event) => {
                let Some(again) = &mut self.again else {
                    return unexpected(self.stage, event);
                };
                let outcome = match again.apply(event) {
                    Next::Effects(effects) => return effects,
                    Next::Ended { outcome, .. } => outcome,
                };
                enter(&mut self.stage, SplitStage::RecordingSpoiled);
                record([Entry::Spoiled {
                    pair: self.pairs[self.at],
                    again: outcome,
                }])
            }
            (SplitStage::RecordingSpoiled, Event::Recorded) => {
                self.at += 1;
                self.mirror_again()
            }
            (stage, event) => unexpected(stage, event),
        }
    }

    /// Asks all pairs that `concerns` at the same time. The others have answered already.
    fn all(&mut self, what: Step, concerns: impl Fn(usize) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (pair, answer) in self.pairs.iter().zip(&mut self.answers) {
            if concerns(*pair) {
                *answer = None;
                effects.push(Effect::Pair(*pair, what));
            }
        }
        effects
    }

    /// Notes an answer. Returns whether all have answered.
    fn note(&mut self, pair: usize, answer: Answer) -> bool {
        if let Some(index) = self.pairs.iter().position(|known| *known == pair) {
            self.answers[index] = Some(answer);
        }
        let counts =
            self.broken.breaks(Rule::CopyIsOfOneInstant) && self.stage == SplitStage::Releasing;
        self.spoiled |= answer != Answer::Done && !counts;
        self.answers.iter().all(Option::is_some)
    }

    fn pairs_that(&self, answered: Answer) -> Vec<usize> {
        let pairs = self.pairs.iter().zip(&self.answers);
        let done = pairs.filter(|(_, answer)| **answer == Some(answered));
        done.map(|(pair, _)| *pair).collect()
    }

    fn seal(&mut self) -> Vec<Effect> {
        match self.pairs.get(self.at) {
            Some(pair) => {
                enter(&mut self.stage, SplitStage::Sealing);
                step(*pair, Step::Seal)
            }
            None => end(End::Done),
        }
    }

    fn mirror_again(&mut self) -> Vec<Effect> {
        let Some(pair) = self.pairs.get(self.at) else {
            return end(End::Failed);
        };
        enter(&mut self.stage, SplitStage::MirroringAgain);
        let (again, effects) = MirrorAgain::begin(*pair, false, self.broken);
        self.again = Some(again);
        effects
    }
}
