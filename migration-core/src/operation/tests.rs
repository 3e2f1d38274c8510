//! Every operation on up to three pairs, with the answers that volumes can give to each effect, in
//! every order. After each step shuntd may die: what is recorded never contradicts the route.

extern crate std;

use alloc::vec;
use alloc::vec::Vec;
use std::collections::HashSet;

use super::end::Finish;
use super::pause::Pause;
use super::resume::Resume;
use super::roles::MoveRole;
use super::split::Split;
use super::start::Start;
use super::*;
use crate::pair::{Settlement, settle};

/// A pair, as it is and as it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Truth {
    phase: Phase,
    authoritative: Side,
    route: Route,
    /// A change without an answer, which may still happen.
    pending: Option<Route>,
    dirty: bool,
    /// The intention of the operation is durable.
    intended: bool,
    /// The last change was not answered, and nothing was found out since.
    unknown: bool,
    /// A change was refused.
    refused: bool,
    /// It has held requests since it was split.
    held: bool,
}

impl Truth {
    const fn new(phase: Phase, route: Route) -> Self {
        Self {
            phase,
            authoritative: route.authoritative(),
            route,
            pending: None,
            dirty: false,
            intended: false,
            unknown: false,
            refused: false,
            held: false,
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            route: self.route,
            ours: true,
            dirty: self.dirty,
            tracks: false,
            degraded: false,
            changing: self.pending.is_some(),
        }
    }

    fn legs(&self) -> Legs {
        Legs::of(&self.seen())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    operation: Operation,
    effects: Vec<Effect>,
    pairs: Vec<Truth>,
    ended: Option<End>,
    copiers_run: bool,
    /// The pairs before the operation.
    before: Vec<Truth>,
}

impl World {
    fn begin(mut operation: Operation, pairs: Vec<Truth>) -> Self {
        let effects = operation.begin();
        Self {
            operation,
            effects,
            before: pairs.clone(),
            pairs,
            ended: None,
            copiers_run: true,
        }
    }

    /// Every world that can follow.
    fn next(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        for (index, pair) in self.pairs.iter().enumerate() {
            if let Some(route) = pair.pending {
                let mut world = self.clone();
                world.pairs[index].pending = None;
                world.pairs[index].route = route;
                worlds.push(world.clone());
                world.pairs[index].route = pair.route;
                worlds.push(world);
            }
        }
        for index in 0..self.effects.len() {
            let mut world = self.clone();
            let effect = world.effects.remove(index);
            worlds.extend(world.performed(effect));
        }
        worlds
    }

    fn performed(mut self, effect: Effect) -> Vec<Self> {
        match effect {
            Effect::StopCopiers => {
                self.copiers_run = false;
                vec![self.after(&Event::CopiersStopped)]
            }
            Effect::CheckTargets(pairs) | Effect::CheckStanding(pairs) => {
                let all_fit = self.clone().after(&Event::Checked { unfit: Vec::new() });
                let last = pairs.last().copied().into_iter().collect();
                vec![all_fit, self.after(&Event::Checked { unfit: last })]
            }
            Effect::Record(entries) => {
                for entry in entries {
                    self.record(entry);
                }
                vec![self.after(&Event::Recorded)]
            }
            Effect::Pair(pair, step) => self.step(pair, step),
            Effect::Volume(step) => panic!("{step:?} is no step of a session"),
            Effect::End(end) => {
                assert!(self.effects.is_empty(), "it ends with effects in progress");
                self.ended = Some(end);
                vec![self]
            }
        }
    }

    fn after(mut self, event: &Event) -> Self {
        let effects = self.operation.apply(event);
        assert!(
            !effects.is_empty() || !self.effects.is_empty(),
            "{self:?} waits for nothing"
        );
        self.effects.extend(effects);
        self
    }

    fn answered(&self, pair: usize, answer: Answer) -> Self {
        self.clone().after(&Event::Pair(pair, answer))
    }

    fn step(self, pair: usize, step: Step) -> Vec<Self> {
        let done = || self.answered(pair, Answer::Done);
        let refused = || self.answered(pair, Answer::Refused);
        let unknown = || self.answered(pair, Answer::Unknown);
        match step {
            Step::Inspect(freshness) => {
                let truth = &self.pairs[pair];
                let settled = truth.pending.is_none();
                let mut worlds = Vec::new();
                if settled || freshness != Freshness::Settled {
                    let mut world = self.clone();
                    world.pairs[pair].unknown &= !settled;
                    worlds.push(world.answered(pair, Answer::Legs(truth.legs())));
                }
                if freshness == Freshness::Settled {
                    worlds.push(unknown());
                }
                worlds
            }
            Step::AddMirror => {
                assert_eq!(self.pairs[pair].route, Route::Single(Side::Source));
                self.change(pair, mirrored(Side::Source))
            }
            Step::SetRoute { route, copies_rest } => {
                // A resume begins copiers; those of a cutover copy the rest.
                let may_run = match &self.operation {
                    Operation::MoveRole(roles) => roles.copies_rest,
                    operation => is_resume(operation),
                };
                assert!(may_run || !(copies_rest || self.copiers_run), "{self:?}");
                self.change(pair, route)
            }
            Step::Release => {
                let mut world = self.clone();
                world.pairs[pair].held = false;
                vec![
                    world.answered(pair, Answer::Refused),
                    match self.pairs[pair].held {
                        true => world.answered(pair, Answer::Done),
                        false => world.answered(pair, Answer::Unknown),
                    },
                ]
            }
            Step::CheckSeal => [Seal::Unbroken, Seal::Unknown, Seal::Broken]
                .into_iter()
                .map(|seal| self.answered(pair, Answer::Seal(seal)))
                .chain([refused()])
                .collect(),
            Step::MarkUnfinished
            | Step::Seal
            | Step::SetReadOnly(_)
            | Step::RetryMirror
            | Step::Retire => vec![done(), refused()],
        }
    }

    fn change(self, pair: usize, route: Route) -> Vec<Self> {
        assert!(self.pairs[pair].intended, "{self:?}: nothing is intended");
        if matches!(self.operation, Operation::MoveRole(_)) {
            let moves = match route.authoritative() {
                Side::Target => Phase::Switching,
                Side::Source => Phase::Undoing,
            };
            assert_eq!(self.pairs[pair].phase, moves, "{self:?}");
        }
        let mut worlds = Vec::new();
        let mut unknown = self.clone();
        unknown.pairs[pair].unknown = true;
        if self.pairs[pair].pending.is_some() {
            return vec![unknown.answered(pair, Answer::Unknown)];
        }
        let mut refused = self.clone();
        refused.pairs[pair].refused = true;
        worlds.push(refused.answered(pair, Answer::Refused));
        unknown.pairs[pair].pending = Some(route);
        worlds.push(unknown.answered(pair, Answer::Unknown));
        let mut done = self;
        done.pairs[pair].route = route;
        done.pairs[pair].unknown = false;
        done.pairs[pair].held = route == Route::Split;
        worlds.push(done.answered(pair, Answer::Done));
        worlds
    }

    fn record(&mut self, entry: Entry) {
        let Some(pair) = entry.pair() else {
            return;
        };
        let all_split = self.pairs.iter().all(|pair| pair.route == Route::Split);
        let truth = &mut self.pairs[pair];
        let intends = matches!(
            entry,
            Entry::Intended { .. } | Entry::CopyGivenUp { .. } | Entry::MovesBack { .. }
        );
        truth.intended |= intends;
        let guess = !intends && entry.phase().is_some() && truth.unknown;
        assert!(!guess, "{entry:?} guesses what {truth:?} did");
        match entry {
            Entry::Copy(_) => assert!(all_split, "{entry:?}: {truth:?}"),
            Entry::Ended { side, .. } => {
                assert!(
                    matches!(truth.route, Route::Single(_)),
                    "{entry:?}: {truth:?}"
                );
                assert_eq!(truth.route.authoritative(), side, "{entry:?}");
            }
            Entry::Started(_) | Entry::MirroredAgain { .. } => {
                assert_eq!(truth.route, mirrored(Side::Source), "{entry:?}");
            }
            Entry::Moved { to, .. } | Entry::MovedBack { to, .. } => {
                assert_eq!(truth.route, mirrored(to), "{entry:?}");
            }
            _ => {}
        }
        truth.phase = entry.phase().unwrap_or(truth.phase);
        truth.authoritative = entry.authoritative().unwrap_or(truth.authoritative);
    }

    /// shuntd may die here: the next one finds what follows.
    fn check(&self) {
        for pair in &self.pairs {
            assert_ne!(
                settle(pair.phase, &pair.seen()),
                Settlement::Contradiction,
                "{pair:?} in {self:?}"
            );
        }
        if self.ended == Some(End::Refused) {
            assert_eq!(self.pairs, self.before, "{self:?} was refused");
        }
        if self.ended == Some(End::Done) {
            let open = |pair: &&Truth| pair.unknown || pair.pending.is_some();
            assert!(
                self.pairs.iter().find(open).is_none(),
                "{self:?} is not done"
            );
        }
    }
}

fn is_resume(operation: &Operation) -> bool {
    matches!(operation, Operation::Resume(_))
}

/// Visits every world that can follow. Returns the ends.
fn explore(operation: Operation, pairs: Vec<Truth>) -> Vec<World> {
    let mut waiting = vec![World::begin(operation, pairs)];
    let mut visited = HashSet::new();
    let mut ends = Vec::new();
    while let Some(world) = waiting.pop() {
        if !visited.insert(world.clone()) {
            continue;
        }
        world.check();
        match world.ended {
            Some(_) => ends.push(world),
            None => waiting.extend(world.next()),
        }
    }
    assert!(visited.len() > 3, "nothing was explored");
    for end in [End::Done, End::Failed] {
        let reached = ends.iter().any(|world| world.ended == Some(end));
        let can_fail = !matches!(ends[0].operation, Operation::Pause(_));
        assert!(
            reached || (end == End::Failed && !can_fail),
            "no end is {end:?}"
        );
    }
    ends
}

const SOURCE: Route = Route::Single(Side::Source);

fn pairs(count: usize, phase: Phase, route: Route) -> Vec<Truth> {
    vec![Truth::new(phase, route); count]
}

fn all(count: usize) -> Vec<usize> {
    (0..count).collect()
}

#[test]
fn a_start_records_what_the_volumes_did() {
    for count in [1, 2] {
        let start = Start::now(all(count), Vec::new());
        let ends = explore(Operation::Start(start), pairs(count, Phase::Setup, SOURCE));
        for world in ends.iter().filter(|world| world.ended == Some(End::Done)) {
            assert!(world.pairs.iter().all(|pair| pair.phase == Phase::Active));
        }
        let queued = Start::from_queue(all(count));
        explore(
            Operation::Start(queued),
            pairs(count, Phase::Queued, SOURCE),
        );
    }
}

#[test]
fn a_start_queues_what_has_no_place() {
    let start = Start::now(vec![0], vec![1]);
    let ends = explore(Operation::Start(start), pairs(2, Phase::Setup, SOURCE));
    for world in ends
        .iter()
        .filter(|world| world.ended != Some(End::Refused))
    {
        assert_eq!(world.pairs[1].phase, Phase::Queued);
    }
}

#[test]
fn all_roles_move_or_none() {
    for (to, count) in [Side::Target, Side::Source]
        .into_iter()
        .flat_map(|to| [(to, 1), (to, 2), (to, 3)])
    {
        let before = pairs(count, Phase::Active, mirrored(to.other()));
        for copies_rest in [false, true] {
            let mut roles = MoveRole::new(to, all(count), true);
            roles.copies_rest = copies_rest;
            let ends = explore(Operation::MoveRole(roles), before.clone());
            for world in ends {
                let on = |side| {
                    let there = |pair: &Truth| pair.route == mirrored(side);
                    world.pairs.iter().all(there)
                };
                let known = |pair: &Truth| !pair.unknown && pair.pending.is_none();
                // A pair stays behind only if it did not answer, or did not want to go back.
                let stays =
                    |pair: &&Truth| pair.route == mirrored(to) && !(pair.refused || pair.unknown);
                let failed = world.ended == Some(End::Failed);
                assert!(
                    !(failed && world.pairs.iter().any(|pair| stays(&pair))),
                    "{world:?}"
                );
                let done = world.ended == Some(End::Done);
                assert!(!done || on(to), "{world:?}");
                let recorded = |pair: &Truth| {
                    Route::Mirrored {
                        authoritative: pair.authoritative,
                    } == pair.route
                };
                if world.pairs.iter().all(known) {
                    assert!(world.pairs.iter().all(recorded), "{world:?}");
                }
            }
        }
    }
}

#[test]
fn an_end_is_recorded_when_the_leg_is_dropped() {
    let phases = [
        (Phase::Setup, SOURCE),
        (Phase::Queued, mirrored(Side::Source)),
        (Phase::Starting, SOURCE),
        (Phase::Starting, mirrored(Side::Source)),
        (Phase::Starting, Route::Split),
        (Phase::Active, mirrored(Side::Source)),
        (Phase::Split, Route::Split),
        (Phase::Cancelling, mirrored(Side::Source)),
    ];
    for (side, (phase, route)) in phases
        .map(|before| (Side::Source, before))
        .into_iter()
        .chain([(Side::Target, (Phase::Active, mirrored(Side::Target)))])
    {
        let mut before = Truth::new(phase, route);
        before.dirty = phase == Phase::Active;
        let other = Truth::new(Phase::Active, mirrored(side));
        let setup = Truth::new(Phase::Setup, SOURCE);
        let starting = Truth::new(Phase::Starting, SOURCE);
        let mut sessions = vec![vec![before], vec![before, other]];
        if side == Side::Source {
            sessions.push(vec![setup, before]);
            sessions.push(vec![setup, starting, before]);
        }
        for pairs in sessions {
            let ending = |(pair, truth): (usize, &Truth)| PlannedPair {
                pair,
                phase: truth.phase,
                degraded: false,
                is_copy: truth.phase == Phase::Split,
            };
            let ending: Vec<PlannedPair> = pairs.iter().enumerate().map(ending).collect();
            let finish = Finish::new(side, ending, true);
            if pairs.iter().all(|pair| pair.route == SOURCE) {
                // Nothing of it can fail.
                continue;
            }
            for world in explore(Operation::Finish(finish), pairs.clone()) {
                let ended = |pair: &Truth| pair.phase.is_ended();
                let done = world.ended == Some(End::Done);
                assert!(!done || world.pairs.iter().all(ended), "{world:?}");
            }
        }
    }
}

#[test]
fn a_copy_counts_when_all_volumes_held_at_the_same_time() {
    for count in [1, 2, 3] {
        let before = pairs(count, Phase::Active, mirrored(Side::Source));
        let ends = explore(Operation::Split(Split::new(all(count))), before);
        for world in ends {
            let copies = world.pairs.iter().filter(|pair| pair.phase == Phase::Split);
            let done = world.ended == Some(End::Done);
            assert_eq!(copies.count(), if done { count } else { 0 }, "{world:?}");
            let held = |pair: &&Truth| pair.held && !pair.unknown;
            assert!(world.pairs.iter().find(held).is_none(), "{world:?}");
        }
    }
}

#[test]
fn a_resume_mirrors_onto_split_targets_again() {
    for count in [1, 2] {
        let resumed = |pair| PlannedPair {
            pair,
            phase: Phase::Split,
            degraded: pair == 1,
            is_copy: true,
        };
        let resume = Resume::new((0..count).map(resumed).collect());
        let ends = explore(
            Operation::Resume(resume),
            pairs(count, Phase::Split, Route::Split),
        );
        for world in ends {
            let again = |pair: &Truth| pair.route == mirrored(Side::Source);
            let done = world.ended == Some(End::Done);
            assert!(!done || world.pairs.iter().all(again), "{world:?}");
        }
    }
}

#[test]
fn a_pause_stops_the_copiers_first() {
    let ends = explore(
        Operation::Pause(Pause::Stopping),
        pairs(1, Phase::Active, mirrored(Side::Source)),
    );
    assert!(ends.iter().all(|world| !world.copiers_run));
}
