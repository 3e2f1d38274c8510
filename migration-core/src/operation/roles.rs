//! Moving the role: a switch makes the targets authoritative, an undo the sources.

use alloc::vec;
use alloc::vec::Vec;

use super::seeded::{Broken, Rule};
use super::{
    Answer, Effect, End, Entry, Event, Stage, Step, end, ended, enter, mirrored, record, step,
    unexpected,
};
use crate::pair::Phase;
use crate::route::Side;

/// A switch or an undo. All pairs follow, or those that did are moved back.
///
/// ```text
/// Stopping --> Intending --> Moving --> Recording --> end
///                 ^            ^ |          |
///                 |            | |   next   |
///   (cutover) ----+            +-|----------+
///                                v
///     IntendingBack --> MovingBack <--> RecordingBack
///                                |
///                                v
///                             GivingUp --> end
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MoveRole {
    to: Side,
    pairs: Vec<usize>,
    /// Whether copiers continue, and copy the rest while requests are held: the cutover of pairs
    /// that track.
    pub(super) copies_rest: bool,
    /// Whether no other pair of the session is to be switched later.
    is_last: bool,
    at: usize,
    stage: MoveStage,
    /// What the pair that did not follow answered: the place in `pairs`, and whether its outcome is
    /// unknown.
    failed: Option<(usize, bool)>,
    pub(super) broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum MoveStage {
    /// The copiers are being stopped.
    Stopping,
    /// The intention is being recorded.
    Intending,
    /// The role of a pair is moving.
    Moving,
    /// That the role has moved is being recorded.
    Recording,
    /// That roles move back is being recorded.
    IntendingBack,
    /// The role of a pair is moving back.
    MovingBack,
    /// That the role has moved back is being recorded.
    RecordingBack,
    /// What did not move is being recorded.
    GivingUp,
}

impl Stage for MoveStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Stopping => matches!(next, Self::Intending),
            Self::Intending => matches!(next, Self::Moving),
            Self::Moving => {
                matches!(next, Self::Recording | Self::IntendingBack | Self::GivingUp)
            }
            Self::IntendingBack => matches!(next, Self::MovingBack),
            Self::Recording => matches!(next, Self::Moving),
            Self::MovingBack => {
                matches!(
                    next,
                    Self::RecordingBack | Self::MovingBack | Self::GivingUp
                )
            }
            Self::RecordingBack => matches!(next, Self::MovingBack | Self::GivingUp),
            Self::GivingUp => false,
        }
    }
}

impl MoveRole {
    /// Moves the role of `pairs` to `to`. `is_last`: no other pair of the session is to be switched
    /// later.
    #[must_use]
    pub const fn new(to: Side, pairs: Vec<usize>, is_last: bool) -> Self {
        Self {
            to,
            pairs,
            copies_rest: false,
            is_last,
            at: 0,
            stage: MoveStage::Stopping,
            failed: None,
            broken: Broken::NOTHING,
        }
    }

    /// Switches pairs that track. The copiers continue, and copy what is dirty while requests are
    /// held.
    #[must_use]
    pub fn cutover(pairs: Vec<usize>, is_last: bool) -> Self {
        Self {
            copies_rest: true,
            ..Self::new(Side::Target, pairs, is_last)
        }
    }

    pub(super) fn begin(&mut self) -> Vec<Effect> {
        match self.copies_rest {
            true => self.intend(),
            false => vec![Effect::StopCopiers],
        }
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (self.stage, event) {
            (MoveStage::Stopping, Event::CopiersStopped) => self.intend(),
            (MoveStage::Intending, Event::Recorded) => self.advance(),
            (MoveStage::Recording, Event::Recorded) => {
                self.at += 1;
                self.advance()
            }
            (MoveStage::Moving, Event::Pair(pair, answer)) => match answer {
                Answer::Done => {
                    enter(&mut self.stage, MoveStage::Recording);
                    let moved = Entry::Moved {
                        pair: *pair,
                        to: self.to,
                    };
                    // After an undo the operator has the say anyway: see `intend`.
                    let last = self.is_last && self.at + 1 == self.pairs.len();
                    let by_hand = last && self.to == Side::Target;
                    record(
                        [moved]
                            .into_iter()
                            .chain(by_hand.then_some(Entry::SwitchByHand)),
                    )
                }
                Answer::Refused | Answer::Unknown => {
                    let unknown = *answer == Answer::Unknown
                        && !self.broken.breaks(Rule::UnknownMoveStaysUnknown);
                    self.failed = Some((self.at, unknown));
                    self.intend_back()
                }
                Answer::Legs(_) | Answer::Seal(_) => unexpected(self.stage, event),
            },
            (MoveStage::IntendingBack, Event::Recorded) => self.move_back(),
            (MoveStage::MovingBack, Event::Pair(pair, answer)) => match answer {
                Answer::Done => {
                    enter(&mut self.stage, MoveStage::RecordingBack);
                    record([Entry::MovedBack {
                        pair: *pair,
                        to: self.to.other(),
                    }])
                }
                // The phase stays as intended: the route that the volume reports settles it.
                Answer::Refused | Answer::Unknown => {
                    self.at += 1;
                    self.move_back()
                }
                Answer::Legs(_) | Answer::Seal(_) => unexpected(self.stage, event),
            },
            (MoveStage::RecordingBack, Event::Recorded) => {
                self.at += 1;
                self.move_back()
            }
            (MoveStage::GivingUp, Event::Recorded) => end(End::Failed),
            (stage, event) => unexpected(stage, event),
        }
    }

    fn intend(&mut self) -> Vec<Effect> {
        if self.stage != MoveStage::Intending {
            enter(&mut self.stage, MoveStage::Intending);
        }
        if self.broken.breaks(Rule::MoveIsIntended) {
            return self.advance();
        }
        let phase = moving(self.to);
        // What the operator takes back is not switched again automatically.
        let by_hand = (self.to == Side::Source).then_some(Entry::SwitchByHand);
        let intended = self
            .pairs
            .iter()
            .map(|pair| Entry::Intended { pair: *pair, phase });
        record(by_hand.into_iter().chain(intended))
    }

    fn advance(&mut self) -> Vec<Effect> {
        let Some(pair) = self.pairs.get(self.at) else {
            return ended(false);
        };
        enter(&mut self.stage, MoveStage::Moving);
        let (route, copies_rest) = (mirrored(self.to), self.copies_rest);
        step(*pair, Step::SetRoute { route, copies_rest })
    }

    /// That the role of a pair moves back is durable before it is asked for: until then the record
    /// says that the role has moved.
    fn intend_back(&mut self) -> Vec<Effect> {
        let moved = self.at;
        self.at = 0;
        if moved == 0 {
            return self.move_back();
        }
        enter(&mut self.stage, MoveStage::IntendingBack);
        let phase = moving(self.to.other());
        let back = |pair: &usize| Entry::MovesBack { pair: *pair, phase };
        record(self.pairs[..moved].iter().map(back))
    }

    /// The pairs before the one that did not follow move back, so that the session is in one place.
    fn move_back(&mut self) -> Vec<Effect> {
        let Some((failed, unknown)) = self.failed else {
            return ended(true);
        };
        if self.at < failed {
            enter(&mut self.stage, MoveStage::MovingBack);
            let route = mirrored(self.to.other());
            return step(self.pairs[self.at], super::set_route(route));
        }
        enter(&mut self.stage, MoveStage::GivingUp);
        let rest = self.pairs[failed..].iter().enumerate();
        record(rest.map(|(index, pair)| match index == 0 && unknown {
            true => Entry::Unknown(*pair),
            false => Entry::NotMoved(*pair),
        }))
    }
}

/// The phase of a pair whose role moves to `to`.
const fn moving(to: Side) -> Phase {
    match to {
        Side::Target => Phase::Switching,
        Side::Source => Phase::Undoing,
    }
}
