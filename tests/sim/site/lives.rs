//! The lives of ublk-target: its deaths and its starts, and power losses.

use std::{collections::BTreeSet, path::Path};

use map_store::{Contents, MapFileError};
use migration_core::{
    map::{self, MapError},
    route::Route,
    units::{Tag, Time},
    volume::Volume,
};

use super::{Process, Serving, Site, Start, lun_of, new_map};
use crate::{
    disk::MapDisk,
    io::{Pending, ROLE_FIELDS_END},
    settings::CONFIG,
};

impl Site {
    /// The process dies when it has performed a few more effects.
    pub(crate) fn doom(&mut self) {
        self.dies_after = Some(self.dice.below(4));
    }

    /// Kills the process; its I/O in flight lands later or never.
    pub(crate) fn kill(&mut self) {
        self.dies_after = None;
        if let Process::Serving(serving) = std::mem::replace(&mut self.process, Process::Down) {
            self.application.forget_errors();
            self.ghosts.extend(serving.pending);
            self.note("kills of ublk-target");
        }
        self.process = Process::Down;
        self.incarnation += 1;
        self.copying.connection_lost();
    }

    /// Lets I/O of a dead process end.
    pub(crate) fn land_ghost(&mut self) {
        let hung = self.hung;
        let able = |pending: &Pending| pending.io.lun().is_none_or(|lun| !hung[lun]);
        while let Some(index) = self.ghosts.iter().position(able)
            && !self.dice.one_in(4)
        {
            let mut ghost = self.ghosts.swap_remove(index);
            self.land_some(&mut ghost, false);
            self.note("ghosts of ublk-target");
        }
    }

    /// Brings a new process one step further. `may_die`: the process may also die.
    pub(crate) fn start(&mut self, now: Time, may_die: bool) -> Start {
        match &self.process {
            Process::Down => self.read_map(may_die),
            Process::Prepared(..) if may_die && self.dice.one_in(10) => {
                self.note("deaths in recovery");
                self.process = Process::Down;
                Start::Died
            }
            // The driver refuses the recovery while I/O of the dead process is in flight.
            Process::Prepared(..) if !self.ghosts.is_empty() => Start::Waits,
            Process::Prepared(..) => self.serve(now),
            Process::Serving(_) => Start::Serves,
            Process::Refused => Start::Refused,
        }
    }

    fn read_map(&mut self, may_die: bool) -> Start {
        // The lock of the map file outlives its owner until the last write is done.
        if self.ghosts.iter().any(|ghost| ghost.io.lun().is_none()) {
            return Start::Waits;
        }
        let mut contents = match map_store::read(&self.map, Path::new("map")) {
            Ok(contents) => contents,
            Err(error) => return self.refused(&error),
        };
        if !self.finds_its_luns() {
            return Start::Waits;
        }
        assert!(
            !contents.chosen.record.route.has_map() || !self.is_bitmap_torn(),
            "a torn sector was read as if it were whole"
        );
        if may_die && self.dice.one_in(6) {
            let kept = if self.settings.torn_role {
                self.dice.below(ROLE_FIELDS_END)
            } else {
                0
            };
            // The role is written twice, then maybe the bitmap and the custody.
            let writes = self.dice.below(4) as u32;
            let kept = if writes < 2 { kept } else { 0 };
            self.map.dies_after(Some((writes, kept)));
        }
        let settled = map_store::settle_role(&self.map, &mut contents.chosen);
        let taken = settled.and_then(|()| self.take_over(&mut contents));
        self.map.dies_after(None);
        let Ok(takeover) = taken else {
            self.note("deaths in recovery");
            return Start::Died;
        };
        self.process = Process::Prepared(Box::new(contents), takeover);
        Start::Goes
    }

    fn is_bitmap_torn(&self) -> bool {
        self.torn.iter().any(|offset| *offset >= map::BITMAP_OFFSET)
    }

    fn refused(&mut self, error: &MapFileError) -> Start {
        let damaged = matches!(
            error,
            MapFileError::Damaged {
                source: MapError::Bitmap(_),
                ..
            }
        );
        assert!(
            self.lost.is_some() || damaged && self.is_bitmap_torn(),
            "{error}"
        );
        self.note("torn map files refused");
        self.process = Process::Refused;
        Start::Refused
    }

    fn serve(&mut self, now: Time) -> Start {
        let Process::Prepared(contents, takeover) =
            std::mem::replace(&mut self.process, Process::Down)
        else {
            return Start::Waits;
        };
        let Contents {
            chosen,
            descriptor,
            custody: _,
            dirty,
            intent,
        } = *contents;
        let mut volume = Volume::load(&CONFIG, chosen.record, chosen.stale_slot, &dirty, &intent);
        if self.mirror_missing {
            volume.mirror_missing();
            self.note("starts without the mirror leg");
        }
        let mut effects = Vec::new();
        volume.begin(&mut effects);
        self.process = Process::Serving(Box::new(Serving {
            volume,
            effects,
            pending: Vec::new(),
            descriptor,
            claim: takeover.claim,
            new_mirror: None,
            changes: BTreeSet::new(),
            replies: Vec::new(),
        }));
        let mut tags: Vec<Tag> = self.application.open.keys().copied().collect();
        while !tags.is_empty() {
            let tag = tags.swap_remove(self.dice.below(tags.len()));
            self.issue(now, tag);
        }
        self.perform();
        Start::Serves
    }

    /// The host and its disks lose their power.
    pub(crate) fn lose_power(&mut self) {
        self.kill();
        self.copying.lose_power(&mut self.luns, &mut self.dice);
        for mut ghost in std::mem::take(&mut self.ghosts) {
            self.land_some(&mut ghost, true);
        }
        for lun in &mut self.luns {
            lun.lose_power(&mut self.dice);
        }
        self.hung = [false; 2];
        (self.held, self.counted, self.boot) = (None, [0; 2], self.boot.wrapping_add(1));
        let (route, lun) = self.true_route();
        let Self {
            application, luns, ..
        } = self;
        application.restarted(|block| luns[lun].now(block));
        self.write_while_down(route, lun);
        self.names_after_a_boot();
    }

    /// The route and the authoritative LUN that a process that starts now will find.
    pub(crate) fn durable_route(&self) -> Result<(Route, usize), MapFileError> {
        let contents = map_store::read(&self.map, Path::new("map"))?;
        let route = contents.chosen.record.route;
        Ok((route, lun_of(&contents.descriptor, route.authoritative())))
    }

    /// The route and the authoritative LUN, whatever is left of the map file.
    pub(crate) fn true_route(&self) -> (Route, usize) {
        self.lost.unwrap_or_else(|| {
            let role = map_store::read_role(&self.map, Path::new("map"));
            let (chosen, descriptor) = role.expect("the role can be read");
            let route = chosen.record.route;
            (route, lun_of(&descriptor, route.authoritative()))
        })
    }

    /// The route that can still be read of the map file.
    pub(crate) fn readable_route(&self) -> Option<Route> {
        self.lost.is_none().then(|| self.true_route().0)
    }

    pub(crate) const fn is_refused(&self) -> bool {
        matches!(self.process, Process::Refused)
    }

    /// The process dies, and its map file is damaged or `removed`. What it was writing to the file
    /// has landed before, or never does.
    pub(crate) fn lose_map(&mut self, removed: bool) {
        self.kill();
        let ghosts = std::mem::take(&mut self.ghosts).into_iter();
        let (of_legs, of_map) = ghosts.partition(|ghost| ghost.io.lun().is_some());
        self.ghosts = of_legs;
        let of_map: Vec<Pending> = of_map;
        for mut ghost in of_map {
            self.land_some(&mut ghost, false);
        }
        let (route, lun) = self.true_route();
        if removed || !route.has_map() {
            self.map = MapDisk::default();
            self.torn.clear();
            self.lost = Some((route, lun));
        } else {
            self.map.put(map::BITMAP_OFFSET, [0xa5; map::SECTOR_BYTES]);
            self.torn.insert(map::BITMAP_OFFSET);
        }
        self.process = Process::Refused;
    }

    /// The operator has a new map file made. `source` and `target`: the LUNs of its legs.
    pub(crate) fn make_map(&mut self, route: Route, source: usize, target: Option<usize>) {
        self.map = new_map(self.number, route, source, target);
        self.torn.clear();
        self.lost = None;
        self.process = Process::Down;
    }
}
