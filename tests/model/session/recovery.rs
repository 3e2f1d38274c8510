//! The map file of the first volume is damaged or lost, and the operator recovers the volume.

use seeded_core::{
    operation::{
        Answer, Effect, End, Event, Operation,
        recover::{Examined, Found as FoundMap, LivePair, Params, Recover, VolumeStep},
    },
    route::{Route, Side},
};

use super::{Broken, Loss, Map, World};

impl World {
    /// The ublk-target of the first volume dies, and its map file is damaged or lost.
    pub(super) fn loses_map(&self) -> Vec<Self> {
        let pair = &self.pairs[0];
        let mut routes = vec![pair.route];
        routes.extend(pair.pending);
        let maps = [Map::Damaged, Map::Lost];
        let lost = routes
            .iter()
            .flat_map(|route| maps.map(|map| (*route, map)));
        let world = |(route, map): (Route, Map)| {
            let mut world = self.clone();
            world.loss = Loss::Happened;
            let pair = &mut world.pairs[0];
            pair.pending = None;
            if route != pair.route {
                pair.becomes(route);
            }
            (pair.held, pair.known, pair.map) = (false, false, map);
            world
        };
        lost.map(world).collect()
    }

    /// The operator recovers the first volume. He knows which leg is right only if shuntd would
    /// accept both.
    pub(super) fn recover(&self, broken: Option<Broken>) -> Option<Self> {
        let pair = &self.pairs[0];
        let examined = self.examined();
        if matches!(examined, Examined::Served) {
            return None;
        }
        let begin = |side, dry_run| {
            let live = LivePair {
                pair: 0,
                phase: pair.phase,
                authoritative: pair.authoritative,
            };
            let params = Params {
                side,
                against_record: false,
                dry_run,
            };
            let live = (!pair.phase.is_ended()).then_some(live);
            let mut operation = Operation::Recover(Recover::new(live, params));
            operation.break_rule(broken.and_then(Broken::of_operations));
            let effects = operation.begin();
            (operation, effects)
        };
        let accepts = |side: &Side| {
            let (mut operation, _) = begin(*side, true);
            operation.apply(&Event::Examined(examined)) == [Effect::End(End::Done)]
        };
        let accepted: Vec<Side> = [Side::Source, Side::Target]
            .into_iter()
            .filter(accepts)
            .collect();
        let mut world = self.clone();
        let side = match accepted[..] {
            [side] => side,
            [_, _] => {
                let readable = pair.map == Map::Damaged && pair.route.has_map();
                world.wrong = readable.then_some("what the map file says does not count");
                pair.route.authoritative()
            }
            _ => {
                world.wrong = Some("no leg may be named");
                return Some(world);
            }
        };
        world.operation = Some(begin(side, false));
        Some(world)
    }

    /// What is left of the map file of the first volume.
    fn examined(&self) -> Examined {
        let pair = &self.pairs[0];
        match pair.map {
            Map::Whole => Examined::Served,
            Map::Lost => Examined::Nothing,
            Map::Damaged => Examined::Readable {
                found: FoundMap::Damaged,
                route: pair.route,
                has_recorded_legs: true,
            },
        }
    }

    pub(super) fn volume_step(mut self, step: VolumeStep) -> Vec<(Self, Event)> {
        let done = Event::Volume(Answer::Done);
        match step {
            VolumeStep::Examine => {
                let examined = Event::Examined(self.examined());
                vec![(self, examined)]
            }
            VolumeStep::EndAttempts => vec![(self, done)],
            VolumeStep::MakeMap { side, .. } => {
                let pair = &mut self.pairs[0];
                let is_live = !pair.phase.is_ended();
                let lost = self.clone();
                let pair = &mut self.pairs[0];
                if is_live && side != pair.route.authoritative() {
                    self.wrong = Some("the leg that was not authoritative is used alone");
                } else if is_live {
                    pair.becomes(Route::Single(side));
                }
                self.pairs[0].map = Map::Whole;
                vec![
                    (self.clone(), done),
                    (self, Event::Volume(Answer::Unknown)),
                    (lost.clone(), Event::Volume(Answer::Refused)),
                    (lost, Event::Volume(Answer::Unknown)),
                ]
            }
            VolumeStep::Serve => {
                vec![(self.clone(), done), (self, Event::Volume(Answer::Refused))]
            }
        }
    }
}
