//! What an event concerns: the sessions and volumes that are visited after it.

use std::collections::BTreeSet;

use super::Owner;
use crate::daemon::event::Event;
use crate::store::{Change, Model, SessionRow, VolumeRow};

/// The sessions and volumes that an event concerns. While there are sessions, everything is visited
/// once a second, so what is missing here is delayed by that. Without sessions there is no such
/// visit: the state of a volume must follow from its own events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Concern {
    Everything,
    These {
        sessions: BTreeSet<String>,
        volumes: BTreeSet<String>,
    },
}

impl Concern {
    const fn nothing() -> Self {
        Self::These {
            sessions: BTreeSet::new(),
            volumes: BTreeSet::new(),
        }
    }

    fn session(name: &str) -> Self {
        Self::nothing().and_session(name)
    }

    /// A volume, and every session that has a pair of it.
    fn volume(name: &str, model: &Model) -> Self {
        Self::nothing().and_volume(name, model)
    }

    fn and_session(mut self, name: &str) -> Self {
        if let Self::These { sessions, .. } = &mut self {
            sessions.insert(name.to_owned());
        }
        self
    }

    fn and_volume(mut self, name: &str, model: &Model) -> Self {
        if let Self::These { sessions, volumes } = &mut self {
            volumes.insert(name.to_owned());
            let has = |row: &&SessionRow| row.pairs.iter().any(|pair| pair.volume == name);
            let of = model.sessions.values().filter(has);
            sessions.extend(of.map(|row| row.name.clone()));
        }
        self
    }

    pub(super) fn has_session(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::These { sessions, .. } => sessions.contains(name),
        }
    }

    /// What an event concerns. In case of doubt everything.
    pub(super) fn of(event: &Event, model: &Model) -> Self {
        match event {
            Event::Volume(name) | Event::Unsupervised(name) => Self::volume(name, model),
            Event::KnowDisks { volume, .. } => Self::volume(volume, model),
            Event::Supervised(handle) => Self::volume(&handle.name, model),
            Event::Changed(changes) => changes.iter().fold(Self::nothing(), |concern, change| {
                concern.and(change, model)
            }),
            Event::ComparisonSettled(key)
            | Event::Held { key, .. }
            | Event::CopierEnded { key, .. }
            | Event::CameBack { key, .. } => Self::session(&key.session),
            Event::CutOver { session, .. } => Self::session(session),
            // What a client reads, and problems that only `status` shows.
            Event::Refreshed { .. }
            | Event::CheckStanding
            | Event::Standing(_)
            | Event::Folders(_) => Self::nothing(),
            Event::Finished { .. } => Self::Everything,
        }
    }

    fn and(self, change: &Change, model: &Model) -> Self {
        match change {
            Change::SetPair(key, _) => self.and_session(&key.session),
            Change::SetPaused(session, _) | Change::SetOptions(session, _) => {
                self.and_session(session)
            }
            Change::SetVolumeState(volume, _)
            | Change::SetVolumeLeg(volume, _)
            | Change::SetOpenMap(volume, _) => self.and_volume(volume, model),
            Change::Note(note) => {
                let session = note.session.iter();
                let concern = session.fold(self, |concern, name| concern.and_session(name));
                let volume = note.volume.iter();
                volume.fold(concern, |concern, name| concern.and_volume(name, model))
            }
            Change::Lock(_)
            | Change::MoveLock(_)
            | Change::Unlock(_)
            | Change::KeepEstimate { .. }
            | Change::Sample(_) => self,
            Change::AddVolume(_)
            | Change::RemoveVolume(_)
            | Change::AddSession(_)
            | Change::SetSeen(..)
            | Change::SetPairsMax(_) => Self::Everything,
        }
    }
}

impl Owner {
    /// The sessions that are visited.
    pub(super) fn concerned<'a>(&'a self, concern: &'a Concern) -> Vec<&'a SessionRow> {
        let rows = &self.model.sessions;
        let concerned: Vec<&SessionRow> = match concern {
            Concern::Everything => rows.values().collect(),
            Concern::These { sessions, .. } => {
                sessions.iter().filter_map(|name| rows.get(name)).collect()
            }
        };
        #[cfg(test)]
        for row in &concerned {
            crate::daemon::sessions::sight::visited(&row.name);
        }
        concerned
    }

    /// The volumes that are visited.
    pub(super) fn concerned_volumes<'a>(&'a self, concern: &'a Concern) -> Vec<&'a VolumeRow> {
        let rows = &self.model.volumes;
        match concern {
            Concern::Everything => rows.values().collect(),
            Concern::These { volumes, .. } => {
                volumes.iter().filter_map(|name| rows.get(name)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use lun::{FileId, Identity, Kind};
    use migration_core::pair::Phase;
    use migration_core::route::Side;
    use migration_proto::manager::{HistoryEvent, SessionOptions, SwitchPolicy};
    use tokio::sync::mpsc;

    use super::*;
    use crate::daemon::context::{Context, note};
    use crate::daemon::event::Busy;
    use crate::daemon::failure::Done;
    use crate::daemon::handle::{View, VolumeHandle};
    use crate::daemon::paths::Config;
    use crate::daemon::sessions::sight::take_visited;
    use crate::store::{
        LegRow, LunRow, PairField, PairKey, PairRow, Progress, Store, StoreHandle, VolumeState,
    };

    const SESSIONS: u64 = 200;

    fn leg(inode: u64) -> LegRow {
        let identity = Identity {
            kind: Kind::RegularFile,
            size_bytes: 1 << 20,
            logical_block_bytes: 512,
            wwn: None,
            serial: None,
            partition_uuid: None,
            partition_number: None,
            partition_start_bytes: None,
            file: Some(FileId { device: 1, inode }),
            file_offset_bytes: None,
            dm_uuid: None,
        };
        LegRow::new(vec![LunRow {
            path: PathBuf::from(format!("/luns/{inode}")),
            identity,
            seen: None,
        }])
        .unwrap()
    }

    /// Session `sN` has one pair, of volume `vN`. All of them are switched when they are in sync.
    fn model() -> Model {
        let mut model = Model::default();
        for number in 0..SESSIONS {
            let volume = VolumeRow {
                name: format!("v{number}"),
                volume_id: format!("id-{number}"),
                state: VolumeState::Attached,
                leg: leg(number),
                size_bytes: 1 << 20,
                logical_block_bytes: 512,
                open_map: None,
            };
            let pair = PairRow {
                volume: volume.name.clone(),
                source: volume.leg.clone(),
                target: leg(SESSIONS + number),
                target_contents: String::new(),
                size_bytes: 1 << 20,
                phase: Phase::Active,
                authoritative: Side::Source,
                copied_bytes: 0,
                last_pause_us: None,
                problem: None,
                verification: None,
                retired: None,
                copy_of: None,
                unreadable: Vec::new(),
                progress: Progress::default(),
            };
            let session = SessionRow {
                name: format!("s{number}"),
                id: format!("id-{number}"),
                created_at_ms: number,
                options: SessionOptions {
                    switch: SwitchPolicy::WhenSynced,
                    ..SessionOptions::default()
                },
                paused: false,
                pairs: vec![pair],
            };
            model.sessions.insert(session.name.clone(), session);
            model.volumes.insert(volume.name.clone(), volume);
        }
        model
    }

    /// What the owner's volumes and events need while a test runs.
    struct Surroundings {
        _folder: tempfile::TempDir,
        received: mpsc::Receiver<Event>,
        _views: Vec<tokio::sync::watch::Sender<View>>,
    }

    /// An owner of 200 sessions whose volumes are connected.
    fn owner() -> (Owner, Surroundings) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (events, received) = mpsc::channel(4096);
        let context = Context {
            config: Arc::new(Config::new(path("state"), path("run"), "/bin/true".into())),
            store: StoreHandle::start(Store::open(&path("shunt.db")).unwrap()).unwrap(),
            events,
            who: None,
            turn: Arc::default(),
        };
        let mut owner = Owner::new(context, model(), "a-0-0".parse().unwrap());
        let mut views = Vec::new();
        for name in owner.model.volumes.keys() {
            let (handle, _, view) = VolumeHandle::new(name.clone());
            view.send_replace(View {
                connected: true,
                ..View::default()
            });
            owner.volumes.add(handle);
            views.push(view);
        }
        let surroundings = Surroundings {
            _folder: folder,
            received,
            _views: views,
        };
        (owner, surroundings)
    }

    #[tokio::test]
    async fn a_session_is_not_started_at_its_time_before_every_volume_has_reported() {
        let (mut owner, mut surroundings) = owner();
        let row = owner.model.sessions.get_mut("s11").unwrap();
        row.pairs[0].phase = Phase::Setup;
        row.options.start_at_ms = 1;
        owner.volumes.await_report("v0");
        let busy = Busy::Session("s11".to_owned());
        owner.visit_everything();
        assert!(!owner.is_busy(&busy), "which pairs have a place is unknown");
        owner.wait_no_longer();
        owner.visit_everything();
        assert!(owner.is_busy(&busy), "it is due");
        surroundings.received.close();
    }

    #[tokio::test]
    async fn a_report_of_a_volume_visits_the_session_of_that_volume_and_no_other() {
        let (mut owner, mut surroundings) = owner();
        let everything: BTreeSet<String> = owner.model.sessions.keys().cloned().collect();
        let only = |name: &str| BTreeSet::from([name.to_owned()]);
        // The first event visits everything, and so does each that comes a second later.
        owner.apply(Event::Volume("v7".into()));
        assert_eq!(take_visited(), everything);
        owner.everything_at += std::time::Duration::from_secs(3600);
        owner.apply(Event::Volume("v7".into()));
        assert_eq!(take_visited(), only("s7"));
        let key = PairKey {
            session: "s8".into(),
            position: 0,
        };
        let changes = vec![
            Change::SetPair(key.clone(), PairField::CopiedBytes(1)),
            note(None, Some("v9"), HistoryEvent::DetachBegun),
        ];
        owner.apply(Event::Changed(changes));
        assert_eq!(take_visited(), &only("s8") | &only("s9"));
        owner.apply(Event::CameBack { key, well: false });
        assert_eq!(take_visited(), only("s8"));
        owner.apply(Event::Folders(Vec::new()));
        assert_eq!(take_visited(), BTreeSet::new());
        // A pair that waits for a place is visited as well, whatever the event concerns.
        let queued = owner.model.sessions.get_mut("s11").unwrap();
        queued.pairs[0].phase = Phase::Queued;
        queued.paused = true;
        owner.apply(Event::Volume("v7".into()));
        assert_eq!(take_visited(), &only("s7") | &only("s11"));
        // What cannot be told apart concerns everything.
        owner.apply(Event::Changed(vec![Change::SetPairsMax(3)]));
        assert_eq!(take_visited(), everything);
        owner.apply(Event::Finished {
            busy: Vec::new(),
            answer: Ok(Done::changed(Vec::new())),
            reply: None,
        });
        assert_eq!(take_visited(), everything);
        owner.everything_at = std::time::Instant::now();
        owner.apply(Event::Folders(Vec::new()));
        assert_eq!(take_visited(), everything);
        surroundings.received.close();
    }
}
