//! Targets that become copies at an instant, in the order of events of `mgr/src/daemon/split.rs`.

use migration_core::{
    pair::Phase,
    route::{Route, Side},
    volume::Suspended,
};

use crate::{
    daemon::{Daemon, Stage},
    disk::Value,
    settings::BLOCKS,
    site::{Site, lun_of},
    world::World,
};

/// The contents of a volume's source at a moment, and whether requests were held then.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    held: bool,
    source: Vec<Value>,
}

impl World {
    /// Begins to resume the volumes: all have been split, or (`spoiled`) one has not.
    pub(crate) fn begin_to_let_go(&mut self, spoiled: bool) {
        // The copies must be of this moment.
        self.moments = self.sites.iter_mut().map(moment).collect();
        self.begin_with_the_first(Stage::LetGo { spoiled });
    }

    fn begin_with_the_first(&mut self, stage: Stage) {
        if let Some(operation) = &mut self.daemon.operation {
            operation.at = 0;
            operation.ask_anew();
            operation.stage = stage;
        }
    }

    pub(crate) fn let_go(&mut self, spoiled: bool) {
        let Daemon {
            store,
            views,
            operation: Some(operation),
            ..
        } = &mut self.daemon
        else {
            return;
        };
        let Some(pair) = operation.pairs.get(operation.at).copied() else {
            let phase = if spoiled { Phase::Active } else { Phase::Split };
            for pair in &operation.pairs {
                store.pairs[*pair].phase = phase;
                let moment = &self.moments[*pair];
                assert!(spoiled || moment.held, "{moment:?} counts as a copy");
            }
            if spoiled {
                self.note("copies that were spoiled");
                return self.begin_with_the_first(Stage::Join);
            }
            self.note("copies at an instant");
            return self.finish("verbs done");
        };
        operation.at += 1;
        let ended = views[pair]
            .connected
            .then(|| self.sites[pair].end_suspension(self.now))
            .flatten();
        let spoiled = spoiled || ended != Some(Suspended::SinceSplit);
        operation.stage = Stage::LetGo { spoiled };
    }

    /// Begins to mirror onto the split targets again; from now on they are no copies.
    pub(crate) fn begin_to_join(&mut self) {
        let Daemon {
            store,
            views,
            operation: Some(operation),
            ..
        } = &mut self.daemon
        else {
            return;
        };
        let is_split = |pair: &usize| {
            let status = views[*pair].status;
            status.is_some_and(|status| status.route == Route::Split)
        };
        operation.pairs.retain(is_split);
        for pair in &operation.pairs {
            store.pairs[*pair].phase = Phase::Active;
        }
        self.begin_with_the_first(Stage::Join);
    }

    pub(crate) fn join(&mut self) {
        let Some(operation) = &self.daemon.operation else {
            return;
        };
        let Some(pair) = operation.pairs.get(operation.at).copied() else {
            return self.finish("verbs done");
        };
        let authoritative = Side::Source;
        let wanted = Some(Route::Mirrored { authoritative });
        if self.ask_route(pair, wanted).is_some()
            && let Some(operation) = &mut self.daemon.operation
        {
            operation.at += 1;
            operation.ask_anew();
        }
    }

    /// Checks that every target that counts as a copy holds the moment that all volumes share,
    /// whatever dies.
    pub(crate) fn check_copies(&self) {
        let pairs = self.daemon.store.pairs.iter().enumerate();
        for (pair, row) in pairs.filter(|(_, row)| row.phase == Phase::Split) {
            let target = &self.sites[pair].luns[row.target];
            for (block, value) in self.moments[pair].source.iter().enumerate() {
                assert_eq!(target.now(block), *value, "block {block} of the copy");
                assert!(target.is_durable(block), "block {block} of the copy");
            }
        }
    }
}

fn moment(site: &mut Site) -> Moment {
    let held = site.serving().is_some_and(|serving| {
        let volume = &serving.volume;
        volume.is_suspended() && volume.record().route == Route::Split
    });
    let source = site
        .serving()
        .map(|serving| lun_of(&serving.descriptor, Side::Source));
    let source = source.map_or_else(Vec::new, |lun| {
        (0..BLOCKS).map(|block| site.luns[lun].now(block)).collect()
    });
    Moment { held, source }
}
