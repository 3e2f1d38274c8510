//! A session of two volumes, an operator, and deaths of shuntd at every effect, over the production
//! operations (`operation`), states (`pair`) and decisions (`session`).
//!
//! A volume here is its route, a change that may still happen, and whether its legs may differ. A
//! change is done, refused, or not answered; one without an answer happens later, or never. In one
//! of the worlds the map file of the first volume is damaged or lost once, at any moment; the
//! operator recovers it (`operation::recover`).

mod recovery;
mod steps;

use std::collections::HashMap;

use seeded_core::{
    operation::{Answer, Effect, Entry, Event, Operation, Plan, PlannedPair, SeededBug},
    pair::{Facts, PairState, Phase, Position, Seen, Settlement, Verb, settle},
    retire::left_behind,
    route::{Route, Side},
    session::{self, SessionDecision, Silence},
};

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A rule of operations.
    Operation(SeededBug),
    /// A change without an answer counts as refused.
    UnknownIsRefused,
    /// The intention never becomes durable.
    NoIntention,
    /// A volume that is changing its route is settled by its old route.
    SettledWhileChanging,
    /// A session can be ended before all volumes have reported.
    EndedUnseen,
    /// What cannot be finished any more stays as it is.
    NothingIsTakenBack,
    /// A pair is recorded as ended before its leg is dropped.
    EndedTooEarly,
}

impl Broken {
    /// The rule, if it is one of operations.
    const fn of_operations(self) -> Option<SeededBug> {
        match self {
            Self::Operation(rule) => Some(rule),
            Self::UnknownIsRefused
            | Self::NoIntention
            | Self::SettledWhileChanging
            | Self::EndedUnseen
            | Self::NothingIsTakenBack
            | Self::EndedTooEarly => None,
        }
    }
}

/// The rules of the world; those of operations are `SeededBug::ALL`.
pub(crate) const BROKEN: [Broken; 6] = [
    Broken::UnknownIsRefused,
    Broken::NoIntention,
    Broken::SettledWhileChanging,
    Broken::EndedUnseen,
    Broken::NothingIsTakenBack,
    Broken::EndedTooEarly,
];

/// What an exploration found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) transitions: usize,
    /// The rule that does not hold, and the state.
    pub(crate) violation: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    phase: Phase,
    authoritative: Side,
    is_copy: bool,
    route: Route,
    pending: Option<Route>,
    dirty: bool,
    /// It holds requests since it was split.
    held: bool,
    /// shuntd has had a report since it began.
    known: bool,
    /// The target bears the mark that it is no copy.
    marked: bool,
    /// Another program has written to the target since it was detached.
    written: bool,
    map: Map,
}

/// The map file of a volume. The route is the truth all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Map {
    Whole,
    /// Only its route can be read.
    Damaged,
    Lost,
}

/// Whether the map file of the first volume is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Loss {
    Never,
    Possible,
    Happened,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    pairs: [Pair; 2],
    paused: bool,
    operation: Option<(Operation, Vec<Effect>)>,
    loss: Loss,
    /// Copiers may be writing.
    copies: bool,
    /// All volumes have held requests at the same time since the split began.
    instant: bool,
    /// The rule that the last event has broken.
    wrong: Option<&'static str>,
}

/// Visits every state of the session, until a rule does not hold.
pub(crate) fn explore(broken: Option<Broken>, loss: Loss) -> Found {
    let first = Pair {
        phase: Phase::Setup,
        authoritative: Side::Source,
        is_copy: false,
        route: Route::Single(Side::Source),
        pending: None,
        dirty: false,
        held: false,
        known: true,
        marked: false,
        written: false,
        map: Map::Whole,
    };
    let first = World {
        pairs: [first; 2],
        paused: false,
        operation: None,
        loss,
        copies: false,
        instant: false,
        wrong: None,
    };
    let mut numbers = HashMap::from([(first.clone(), 0_usize)]);
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut ends = Vec::new();
    let mut waiting = vec![first];
    let (mut transitions, mut violation) = (0, None);
    while let Some(world) = waiting.pop() {
        let number = numbers[&world];
        violation = violation.or_else(|| world.violation());
        if violation.is_some() {
            break;
        }
        if world.operation.is_none() && world.pairs.iter().all(|pair| pair.phase.is_ended()) {
            ends.push(number);
        }
        for next in world.next(broken) {
            transitions += 1;
            let count = numbers.len();
            let to = *numbers.entry(next.clone()).or_insert(count);
            if to == count {
                before.push(Vec::new());
                waiting.push(next);
            }
            before[to].push(number);
        }
    }
    if violation.is_none() {
        violation = stuck(&numbers, &before, ends);
    }
    Found {
        states: numbers.len(),
        transitions,
        violation,
    }
}

/// A state from which the session cannot be brought to its end any more.
fn stuck(
    numbers: &HashMap<World, usize>,
    before: &[Vec<usize>],
    ends: Vec<usize>,
) -> Option<String> {
    let mut reaches = vec![false; before.len()];
    let mut waiting = ends;
    while let Some(number) = waiting.pop() {
        if !std::mem::replace(&mut reaches[number], true) {
            waiting.extend(&before[number]);
        }
    }
    let (world, _) = numbers.iter().find(|(_, number)| !reaches[**number])?;
    Some(format!("the session cannot be ended any more: {world:?}"))
}

impl Pair {
    const fn seen(&self) -> Seen {
        Seen {
            route: self.route,
            ours: true,
            dirty: self.dirty,
            tracks: false,
            degraded: false,
            changing: self.pending.is_some(),
        }
    }

    /// The route changes.
    fn becomes(&mut self, route: Route) {
        self.dirty |= !matches!(
            (self.route, route),
            (Route::Mirrored { .. }, Route::Mirrored { .. })
        );
        self.dirty &= !matches!(route, Route::Single(_));
        self.held = route == Route::Split;
        self.written &= route == Route::Split;
        self.route = route;
    }
}

impl World {
    fn positions(&self) -> [Position; 2] {
        self.pairs.map(|pair| {
            Facts {
                phase: pair.phase,
                paused: self.paused,
                last_authoritative: pair.authoritative,
                seen: pair.known.then(|| pair.seen()),
                comparing: false,
                retired: false,
                outside_hours: false,
            }
            .position()
        })
    }

    fn settlement(&self, pair: usize, broken: Option<Broken>) -> Settlement {
        let mut seen = self.pairs[pair].seen();
        seen.changing &= broken != Some(Broken::SettledWhileChanging);
        settle(self.pairs[pair].phase, &seen)
    }

    /// The rule that does not hold in this state.
    fn violation(&self) -> Option<String> {
        if let Some(wrong) = self.wrong {
            return Some(format!("{wrong}: {self:?}"));
        }
        for (index, pair) in self.pairs.iter().enumerate() {
            let ended = left_behind(pair.phase).map(Side::other);
            let is_there = |side| pair.route == Route::Single(side) && pair.pending.is_none();
            if ended.is_some_and(|side| !is_there(side)) {
                return Some(format!(
                    "pair {index} has not ended where it is recorded: {self:?}"
                ));
            }
            if self.settlement(index, None) == Settlement::Contradiction {
                return Some(format!(
                    "the route of pair {index} contradicts its phase: {self:?}"
                ));
            }
        }
        let phases = self.pairs.map(|pair| pair.phase);
        let apart = phases == [Phase::Committed, Phase::Cancelled]
            || phases == [Phase::Cancelled, Phase::Committed];
        // Where a volume is recovered, its pair ends, wherever the other one is.
        if apart && self.loss != Loss::Happened {
            return Some(format!("the session has ended in two places: {self:?}"));
        }
        let at_rest = |pair: usize| {
            let is_quiet = self.pairs[pair].known && self.pairs[pair].pending.is_none();
            is_quiet && self.settlement(pair, None) == Settlement::Nothing
        };
        let rests = self.operation.is_none() && at_rest(0) && at_rest(1);
        let is_live = phases.iter().any(|phase| !phase.is_ended());
        if rests && is_live && session::allowed(&self.positions()).is_empty() {
            return Some(format!("there is no next command: {self:?}"));
        }
        None
    }

    /// Every state that can follow.
    fn next(&self, broken: Option<Broken>) -> Vec<Self> {
        let mut worlds = Vec::new();
        for index in 0..2 {
            worlds.extend(self.of_volume(index, broken));
        }
        if self.loss == Loss::Possible {
            worlds.extend(self.loses_map());
        }
        match &self.operation {
            Some((_, effects)) => {
                for index in 0..effects.len() {
                    worlds.extend(self.perform(index, broken));
                }
                let mut dead = self.clone();
                dead.idle();
                for pair in &mut dead.pairs {
                    pair.known = false;
                }
                worlds.push(dead);
            }
            None => {
                let verbs = session::allowed(&self.positions());
                for verb in verbs
                    .into_iter()
                    .filter(|verb| self.answers(*verb) || broken == Some(Broken::EndedUnseen))
                {
                    let mut world = self.clone();
                    world.begin(verb, broken);
                    worlds.push(world);
                }
                worlds.extend(self.recover(broken));
            }
        }
        worlds
    }

    /// No operation is in progress any more.
    fn idle(&mut self) {
        self.operation = None;
        self.copies = false;
        self.instant = false;
    }

    /// As `require_answering` in `mgr/src/daemon/sessions/sight.rs`.
    fn answers(&self, verb: Verb) -> bool {
        let SessionDecision::Do(pairs) = session::decide_session(verb, &self.positions()) else {
            return false;
        };
        pairs.into_iter().all(|index| {
            let pair = &self.pairs[index];
            let failures = u32::from(pair.map != Map::Whole);
            let silence = Silence::of(failures, pair.known);
            session::require_contact(verb, pair.phase, silence).is_ok()
        })
    }

    fn of_volume(&self, index: usize, broken: Option<Broken>) -> Vec<Self> {
        let mut worlds = Vec::new();
        let pair = &self.pairs[index];
        let mut with = |change: &dyn Fn(&mut Pair)| {
            let mut world = self.clone();
            change(&mut world.pairs[index]);
            worlds.push(world);
        };
        if let Some(route) = pair.pending {
            with(&|pair| {
                pair.pending = None;
                pair.becomes(route);
            });
            with(&|pair| pair.pending = None);
        }
        if pair.held {
            // The deadline.
            with(&|pair| pair.held = false);
        }
        let is_up = pair.map == Map::Whole;
        if is_up && pair.dirty && matches!(pair.route, Route::Mirrored { .. }) {
            with(&|pair| {
                pair.dirty = false;
                // The copy overwrites it.
                pair.marked = false;
            });
        }
        // One volume is enough. While an operation works on it, nobody writes to a sealed target.
        let is_copy = pair.route == Route::Split && pair.phase == Phase::Split;
        if index == 0 && is_copy && !pair.written && self.operation.is_none() {
            with(&|pair| pair.written = true);
        }
        if self.operation.is_none() && is_up {
            worlds.extend(self.report(index, broken));
        }
        worlds
    }

    /// The volume reports, and what a death interrupted is settled.
    fn report(&self, index: usize, broken: Option<Broken>) -> Option<Self> {
        let mut world = self.clone();
        world.pairs[index].known = true;
        let pair = &mut world.pairs[index];
        match self.settlement(index, broken) {
            Settlement::Nothing | Settlement::Contradiction => {
                if let Some(side) = pair.seen().mirrored() {
                    pair.authoritative = side;
                }
            }
            Settlement::Becomes(phase) => {
                pair.phase = phase;
                pair.authoritative = match phase {
                    Phase::Committed => Side::Target,
                    _ => pair.seen().mirrored().unwrap_or(Side::Source),
                };
            }
            Settlement::Finish(verb) => {
                let answers =
                    |pair: &Pair| pair.phase.is_ended() || (pair.known && pair.pending.is_none());
                let all_answer = world.pairs.iter().all(answers);
                match session::can_finish(verb, &world.positions()) {
                    _ if !all_answer => {}
                    true => world.begin(verb, broken),
                    false if broken == Some(Broken::NothingIsTakenBack) => {}
                    false => {
                        let pair = &mut world.pairs[index];
                        pair.phase = Phase::Active;
                        pair.authoritative = pair.seen().mirrored().unwrap_or(Side::Source);
                    }
                }
            }
        }
        (world != *self).then_some(world)
    }

    fn begin(&mut self, verb: Verb, broken: Option<Broken>) {
        let positions = self.positions();
        let SessionDecision::Do(pairs) = session::decide_session(verb, &positions) else {
            return;
        };
        let planned = |pair: usize| PlannedPair {
            pair,
            phase: self.pairs[pair].phase,
            degraded: positions[pair].state == PairState::Degraded,
            is_copy: self.pairs[pair].is_copy,
        };
        let plan = Plan {
            pairs: pairs.into_iter().map(planned).collect(),
            later: Vec::new(),
            copies_rest: false,
            is_last: true,
            retire: true,
        };
        let mut operation = Operation::new(verb, plan);
        operation.break_rule(broken.and_then(Broken::of_operations));
        self.copies = true;
        let effects = operation.begin();
        self.operation = Some((operation, effects));
    }

    fn perform(&self, index: usize, broken: Option<Broken>) -> Vec<Self> {
        let mut world = self.clone();
        let Some((_, effects)) = &mut world.operation else {
            return Vec::new();
        };
        match effects.remove(index) {
            Effect::StopCopiers => {
                world.copies = false;
                vec![world.after(&Event::CopiersStopped)]
            }
            Effect::CheckTargets(_) | Effect::CheckStanding(_) => {
                vec![world.after(&Event::Checked { unfit: Vec::new() })]
            }
            Effect::Record(entries) => {
                for entry in entries {
                    let is_intention = matches!(entry, Entry::Intended { .. });
                    if !(is_intention && broken == Some(Broken::NoIntention)) {
                        world.record(entry, broken);
                    }
                }
                vec![world.after(&Event::Recorded)]
            }
            Effect::Volume(step) => {
                let led_to = world.volume_step(step).into_iter();
                led_to.map(|(world, event)| world.after(&event)).collect()
            }
            Effect::Pair(pair, step) => {
                let answers = world.step(pair, step);
                let after = |(mut world, mut answer): (Self, Answer)| {
                    if answer == Answer::Unknown && broken == Some(Broken::UnknownIsRefused) {
                        answer = Answer::Refused;
                    }
                    world = world.after(&Event::Pair(pair, answer));
                    world
                };
                answers.into_iter().map(after).collect()
            }
            Effect::End(_) => {
                world.idle();
                vec![world]
            }
        }
    }

    fn after(mut self, event: &Event) -> Self {
        if let Some((operation, effects)) = &mut self.operation {
            effects.extend(operation.apply(event));
        }
        self
    }

    fn record(&mut self, entry: Entry, broken: Option<Broken>) {
        match entry {
            Entry::Paused(paused) => self.paused = paused,
            entry => {
                let Some(pair) = entry.pair() else { return };
                if matches!(entry, Entry::Copy(_)) && !self.instant {
                    self.wrong = Some("a target counts as a copy, but there was no instant");
                }
                let pair = &mut self.pairs[pair];
                pair.phase = entry.phase().unwrap_or(pair.phase);
                pair.authoritative = entry.authoritative().unwrap_or(pair.authoritative);
                match entry {
                    Entry::Copy(_) => pair.is_copy = true,
                    Entry::CopyGivenUp { .. } => pair.is_copy = false,
                    Entry::NotMirroredAgain { is_copy, .. } => pair.is_copy |= is_copy,
                    Entry::Intended {
                        phase: Phase::Committing,
                        ..
                    } if broken == Some(Broken::EndedTooEarly) => pair.phase = Phase::Committed,
                    _ => {}
                }
            }
        }
    }
}
