//! Breadth-first search over all orders of events.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    check::{Checker, Violation},
    event::{self, Event},
    hash,
    setup::Setup,
    world::World,
};

/// A hasher that takes the key itself: the keys are hashes already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, bytes: &[u8]) {
        for (byte, state) in bytes.iter().zip([0, 8, 16, 24, 32, 40, 48, 56]) {
            self.0 ^= u64::from(*byte) << state;
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Visited = HashMap<u128, u32, BuildHasherDefault<Same>>;

/// How a state was reached first.
#[derive(Clone, Copy)]
struct Step {
    from: u32,
    event: Event,
}

/// The value in `Search::next` of a state that makes no further progress.
const SETTLED: u32 = u32::MAX;

/// What the search of a world found.
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) transitions: usize,
    /// The violation, and the events from the start that lead to it.
    pub(crate) violation: Option<(Violation, Vec<Event>)>,
}

struct Search<'a> {
    setup: &'a Setup,
    visited: Visited,
    steps: Vec<Step>,
    next: Vec<u32>,
    frontier: VecDeque<(u32, World)>,
    transitions: usize,
}

/// Explores a world until a rule is violated or every state has been seen.
pub(crate) fn explore(setup: &Setup) -> Found {
    let mut search = Search {
        setup,
        visited: Visited::default(),
        steps: Vec::new(),
        next: Vec::new(),
        frontier: VecDeque::new(),
        transitions: 0,
    };
    let start = World::new(setup);
    let tick = Event::Tick(seeded_core::volume::Timer::None);
    search.meet(
        &start,
        Step {
            from: 0,
            event: tick,
        },
    );
    search.frontier.push_back((0, start));
    let violation = search.run();
    Found {
        states: search.steps.len(),
        transitions: search.transitions,
        violation: violation.map(|(violation, state, event)| {
            let mut events = search.path(state);
            events.extend(event);
            (violation, events)
        }),
    }
}

impl Search<'_> {
    /// Records a state. Returns its number, and whether it is new.
    fn meet(&mut self, world: &World, step: Step) -> (u32, bool) {
        let number = self.steps.len() as u32;
        let known = *self.visited.entry(hash::of(world)).or_insert(number);
        if known == number {
            self.steps.push(step);
            self.next.push(SETTLED);
        }
        (known, known == number)
    }

    fn run(&mut self) -> Option<(Violation, u32, Option<Event>)> {
        let mut events = Vec::new();
        while let Some((number, world)) = self.frontier.pop_front() {
            events.clear();
            event::all(self.setup, &world, &mut events);
            let progress = event::progress(self.setup, &world);
            if let Some(progress) = progress.filter(|progress| !events.contains(progress)) {
                events.push(progress);
            }
            if progress.is_none()
                && let Err(violation) = event::settled(self.setup, &world)
            {
                return Some((violation, number, None));
            }
            for event in events.iter().copied() {
                self.transitions += 1;
                let mut after = world.clone();
                if let Err(violation) = checked(self.setup, &mut after, event) {
                    return Some((violation, number, Some(event)));
                }
                let (next, new) = self.meet(
                    &after,
                    Step {
                        from: number,
                        event,
                    },
                );
                if progress == Some(event) {
                    self.next[number as usize] = next;
                }
                if new {
                    self.frontier.push_back((next, after));
                }
            }
        }
        let state = self.never_settles()?;
        let what = "without new requests and failures the world never comes to rest";
        Some((Violation::new(Checker::Settles, what), state, None))
    }

    /// Finds a state from which the progress without new requests and failures ends in a cycle.
    fn never_settles(&self) -> Option<u32> {
        const UNSEEN: u32 = u32::MAX;
        let mut seen = vec![UNSEEN; self.next.len()];
        for start in 0..self.next.len() as u32 {
            let mut state = start;
            while state != SETTLED && seen[state as usize] == UNSEEN {
                seen[state as usize] = start;
                state = self.next[state as usize];
            }
            if state != SETTLED && seen[state as usize] == start {
                return Some(start);
            }
        }
        None
    }

    fn path(&self, state: u32) -> Vec<Event> {
        let mut events = Vec::new();
        let mut state = state;
        while state != 0 {
            let step = self.steps[state as usize];
            events.push(step.event);
            state = step.from;
        }
        events.reverse();
        events
    }
}

/// Applies an event, and runs the checks of the core itself; a panic is a violation.
fn checked(setup: &Setup, world: &mut World, event: Event) -> Result<(), Violation> {
    let own = setup.broken.is_none();
    let happened = catch_unwind(AssertUnwindSafe(|| {
        let result = event::apply(setup, world, event);
        if own && result.is_ok() {
            world.volume.check_invariants();
        }
        result
    }));
    match happened {
        Ok(result) => result.map(|_| ()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Violation::new(Checker::Core, text.unwrap_or_default()))
        }
    }
}

/// Describes a violation: the events from the start, each with its effects, and the final state.
pub(crate) fn describe(setup: &Setup, violation: &Violation, events: &[Event]) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "world {}, broken rule {:?}: {:?}: {}\n",
        setup.name, setup.broken, violation.checker, violation.what
    );
    let mut world = World::new(setup);
    for (number, event) in events.iter().enumerate() {
        let about = match event {
            Event::IoDone(index, _) => format!(" {:?}", world.io[usize::from(*index)]),
            _ => String::new(),
        };
        let result = catch_unwind(AssertUnwindSafe(|| event::apply(setup, &mut world, *event)));
        let effects = match result {
            Ok(Ok(effects)) => format!("{effects:?}"),
            Ok(Err(violation)) => violation.what,
            Err(_) => "panic".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:3}. {event:?}{about}\n       => {effects}",
            number + 1
        );
    }
    let _ = write!(
        text,
        "at the end: {:?}, regions {:?}\n  LUNs {:?}\n  map file: epochs {:?}, dirty {:#b}, intent {:#b}, {:?}",
        world.volume.record().route,
        world.volume.regions(),
        world.luns,
        world.map.epochs(),
        world.map.dirty,
        world.map.intent,
        world.map.map_write,
    );
    text
}
