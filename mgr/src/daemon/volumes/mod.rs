//! The room of the volumes: one supervised ublk-target each, its names, and what it reports.

pub(super) mod attach;
mod backoff;
mod held;
pub(super) mod link;
pub(super) mod names;
pub(super) mod partitions;
pub(super) mod position;
pub(super) mod process;
pub(super) mod route_change;
pub(super) mod supervisor;
pub(super) mod truth;

use std::collections::{BTreeMap, BTreeSet};

use migration_proto::manager::HistoryEvent;
use migration_proto::target::Status;
use tracing::warn;

use super::context::{Context, note};
use super::failure;
use super::handle::{POLL_COPYING, POLL_IDLE, View, VolumeHandle};
use super::luns::checks::Used;
use super::luns::opened;
use crate::store::{LegRow, Model, PairKey, PairRow, VolumeRow, VolumeState};
use truth::Truth;

/// The volumes that are supervised, and what has been noticed about them.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    handles: BTreeMap<String, VolumeHandle>,
    /// The volumes that have not reported since the start of shuntd.
    silent: BTreeSet<String>,
    /// For each volume, the claim on its legs whose doubt is in the history.
    doubted: BTreeMap<String, u64>,
    /// For each volume whose stable name does not lead to its device, the reason.
    unnamed: BTreeMap<String, String>,
    /// The volumes that are polled at the short interval.
    watched: BTreeSet<String>,
    /// For each volume, the lines that the history has got since the start of shuntd about LUNs
    /// that have grown or are found under a different name.
    noted: BTreeMap<String, Vec<HistoryEvent>>,
    /// For each volume, the connection in which its partitions were last searched.
    partitioned: BTreeMap<String, u64>,
}

impl Volumes {
    /// Supervises the recorded volumes.
    pub(super) fn bring_up(&mut self, context: &Context, model: &Model) {
        for row in model.volumes.values() {
            let begun = context.config.map(&row.name).exists();
            if row.state == VolumeState::Attached || begun {
                let handle =
                    supervisor::supervise(attach::setup(context, row), context.events.clone());
                self.handles.insert(row.name.clone(), handle);
                self.silent.insert(row.name.clone());
            }
        }
    }

    /// A new volume has come up.
    pub(super) fn add(&mut self, handle: VolumeHandle) {
        self.handles.insert(handle.name.clone(), handle);
    }

    /// A volume is gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.handles.remove(name);
        self.unnamed.remove(name);
        self.noted.remove(name);
        self.partitioned.remove(name);
        self.watched.remove(name);
    }

    pub(super) fn handle(&self, name: &str) -> Option<&VolumeHandle> {
        self.handles.get(name)
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = (&String, &VolumeHandle)> {
        self.handles.iter()
    }

    pub(super) fn view(&self, name: &str) -> Option<View> {
        self.handles.get(name).map(VolumeHandle::view)
    }

    /// Whether requests wait for volumes that have not reported since the start of shuntd.
    pub(super) fn are_awaited(&self) -> bool {
        !self.silent.is_empty()
    }

    /// As a volume that is supervised from the start of shuntd on.
    #[cfg(test)]
    pub(super) fn await_report(&mut self, name: &str) {
        self.silent.insert(name.to_owned());
    }

    /// A volume has reported.
    pub(super) fn heard(&mut self, name: &str) {
        self.silent.remove(name);
    }

    /// Requests wait no longer.
    pub(super) fn wait_no_longer(&mut self) {
        self.silent.clear();
    }

    /// Why the stable name of a volume does not lead to its device.
    pub(super) fn name_problem(&self, name: &str) -> Option<&String> {
        self.unnamed.get(name)
    }

    /// Polls a volume at the short interval while it is being copied.
    pub(super) fn watch(&mut self, name: &str, copying: bool) {
        let changed = if copying {
            self.watched.insert(name.to_owned())
        } else {
            self.watched.remove(name)
        };
        if changed {
            self.poll(name);
        }
    }

    /// Makes a volume report immediately, and then at the interval that fits whether it is watched.
    pub(super) fn poll(&self, volume: &str) {
        if let Some(handle) = self.handles.get(volume) {
            handle.poll_every(if self.watched.contains(volume) {
                POLL_COPYING
            } else {
                POLL_IDLE
            });
        }
    }

    /// Notes in the history that a LUN is larger than recorded, or is found under another name.
    /// Each note is made once in the life of shuntd.
    pub(super) fn note_luns(&mut self, context: &Context, row: &VolumeRow, status: &Status) {
        let grown = opened::grown(status).map(|(path, lun_bytes)| HistoryEvent::LunGrown {
            lun: path.to_owned(),
            lun_bytes,
            volume_bytes: row.size_bytes,
        });
        let elsewhere =
            opened::elsewhere(status).map(|(path, open)| HistoryEvent::LunFoundElsewhere {
                lun: path.to_owned(),
                found: open.to_owned(),
            });
        let mut notes = Vec::new();
        for event in grown.chain(elsewhere) {
            let noted = self.noted.entry(row.name.clone()).or_default();
            if !noted.contains(&event) {
                noted.push(event.clone());
                notes.push(note(None, Some(&row.name), event));
            }
        }
        if !notes.is_empty() {
            context.record_aside(notes);
        }
    }

    /// Notes in the history, once for each claim on the legs, why the whole mirror leg is compared
    /// again.
    pub(super) fn note_doubt(
        &mut self,
        context: &Context,
        key: &PairKey,
        pair: &PairRow,
        view: &View,
    ) {
        let Some(status) = view.status.as_deref() else {
            return;
        };
        let Some(doubt) = &status.doubt else {
            return;
        };
        let volume = pair.volume.clone();
        if self.doubted.insert(volume.clone(), status.claim) != Some(status.claim) {
            let event = HistoryEvent::LegsInDoubt {
                authoritative: status.route.authoritative(),
                cause: doubt.clone(),
            };
            warn!(volume, doubt, "the legs are compared again");
            context.record_aside(vec![note(Some(&key.session), Some(&volume), event)]);
        }
    }

    /// The LUNs in use, without the targets of the session `except`.
    pub(super) fn used_luns(&self, model: &Model, except: Option<&str>) -> Vec<Used> {
        let mut used = Vec::new();
        let mut add = |leg: &LegRow, holder: String| {
            used.extend(leg.luns().iter().map(|lun| Used {
                lun: lun.clone(),
                holder: holder.clone(),
            }));
        };
        for row in model.volumes.values() {
            add(&row.leg, failure::volume(&row.name));
            // The database may be older than the map file.
            let view = self.view(&row.name);
            let truth = view.and_then(|view| Some(Truth::of_status(view.status.as_deref()?)));
            let legs = truth.as_ref().map(Truth::legs).unwrap_or_default();
            let legs = legs.into_iter().filter_map(LegRow::of);
            for leg in legs.filter(|leg| *leg != row.leg) {
                add(&leg, failure::volume(&row.name));
            }
        }
        for session in model
            .sessions
            .values()
            .filter(|session| Some(session.name.as_str()) != except)
        {
            for pair in session.pairs.iter().filter(|pair| !pair.phase.is_ended()) {
                add(
                    &pair.target,
                    failure::target_of(&pair.volume, &session.name),
                );
            }
        }
        used
    }
}
