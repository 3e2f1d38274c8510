//! What a step with one pair can lead to, and which rule it breaks to begin it.

use seeded_core::{
    operation::{Answer, Freshness, Legs, Seal, Step},
    pair::Phase,
    route::{Route, Side},
};

use super::{Map, World};
use crate::intention::is_intended;

impl World {
    /// What a step can lead to, each with the state of the world then.
    pub(super) fn step(mut self, index: usize, step: Step) -> Vec<(Self, Answer)> {
        self.wrong = self.wrong.or_else(|| self.wrong_step(index, step));
        let pair = self.pairs[index];
        let is_up = pair.map == Map::Whole;
        match step {
            Step::Inspect(freshness) => {
                let legs = Answer::Legs(Legs::of(&pair.seen()));
                match freshness {
                    Freshness::Last => vec![(self, legs)],
                    Freshness::Fresh => vec![(self.clone(), legs), (self, Answer::Unknown)],
                    Freshness::Settled if pair.pending.is_some() || !is_up => {
                        vec![(self, Answer::Unknown)]
                    }
                    Freshness::Settled => vec![(self, legs)],
                }
            }
            Step::AddMirror => self.change(
                index,
                Route::Mirrored {
                    authoritative: Side::Source,
                },
            ),
            Step::SetRoute { route, .. } => self.change(index, route),
            Step::Release => {
                let mut world = self;
                world.instant |= world.pairs.iter().all(|pair| pair.held);
                let held = std::mem::take(&mut world.pairs[index].held);
                let answer = if held { Answer::Done } else { Answer::Refused };
                vec![(world, answer)]
            }
            Step::CheckSeal => {
                let first = if pair.written {
                    Seal::Broken
                } else {
                    Seal::Unbroken
                };
                [first, Seal::Unknown]
                    .map(|seal| (self.clone(), Answer::Seal(seal)))
                    .into()
            }
            Step::MarkUnfinished => {
                let refused = self.clone();
                self.pairs[index].marked = true;
                vec![(self, Answer::Done), (refused, Answer::Refused)]
            }
            Step::SetReadOnly(_) => vec![(self.clone(), Answer::Done), (self, Answer::Refused)],
            Step::Seal | Step::RetryMirror | Step::Retire => vec![(self, Answer::Done)],
        }
    }

    /// The rule that it breaks to begin this step now.
    fn wrong_step(&self, index: usize, step: Step) -> Option<&'static str> {
        let pair = &self.pairs[index];
        let drops = matches!(pair.phase, Phase::Committing | Phase::Cancelling);
        match step {
            _ if !is_intended(pair.phase, pair.route, step) => {
                Some("a volume is asked for what is not recorded as intended")
            }
            Step::AddMirror if !pair.marked => Some("a target that is no copy is not marked"),
            Step::SetRoute { .. } if drops && self.copies => {
                Some("a leg is dropped while copiers may write to it")
            }
            Step::SetRoute {
                route: Route::Mirrored { .. },
                ..
            } if pair.written => Some("what another program wrote to a target stays there"),
            Step::Retire if pair.phase != Phase::Committed => {
                Some("a source is made inaccessible before the commit is recorded")
            }
            Step::AddMirror
            | Step::SetRoute { .. }
            | Step::Retire
            | Step::Inspect(_)
            | Step::Release
            | Step::MarkUnfinished
            | Step::Seal
            | Step::CheckSeal
            | Step::SetReadOnly(_)
            | Step::RetryMirror => None,
        }
    }

    fn change(self, index: usize, route: Route) -> Vec<(Self, Answer)> {
        let pair = self.pairs[index];
        if pair.map != Map::Whole {
            return vec![(self, Answer::Unknown)];
        }
        if pair.route == route && pair.pending.is_none() {
            return vec![(self, Answer::Done)];
        }
        if pair.pending.is_some() {
            return vec![(self, Answer::Unknown)];
        }
        let (mut done, mut unanswered) = (self.clone(), self.clone());
        done.pairs[index].becomes(route);
        unanswered.pairs[index].pending = Some(route);
        let mut worlds = vec![(self, Answer::Refused), (unanswered, Answer::Unknown)];
        // A volume whose legs may differ refuses to move its role, and to be split.
        let needs_sync = match route {
            Route::Mirrored { authoritative } => pair.route.authoritative() != authoritative,
            Route::Split => true,
            Route::Single(_) => false,
        };
        if needs_sync && pair.dirty {
            worlds.pop();
        } else {
            worlds.push((done, Answer::Done));
        }
        worlds
    }
}
