//! Tests of the queue: how many pairs are copied at once, in which order, and limits that change
//! during the copy.

use std::collections::{BTreeMap, BTreeSet};

use mgr::history;
use migration_proto::manager::{
    Cursor, EventRecord, HistoryEvent, HostRecord, Record, Request, Response, SessionLimits,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fake::Whim;
use super::lost::remove_database;
use super::world::*;

fn set_host(pairs_max: u32) -> Request {
    Request::SetHost { pairs_max }
}

fn set(session: &str, limits: SessionLimits) -> Request {
    Request::SetSession {
        session: session.to_owned(),
        limits,
    }
}

fn priority(priority: u8) -> SessionLimits {
    SessionLimits {
        priority: Some(priority),
        ..SessionLimits::default()
    }
}

fn rate(bytes_per_second: u64) -> SessionLimits {
    SessionLimits {
        rate_bytes_per_second: Some(bytes_per_second),
        ..SessionLimits::default()
    }
}

/// Creates a session of these volumes, whose copiers get no claims.
fn held_up(world: &World, session: &str, volumes: &[&str]) {
    let mut targets = Vec::new();
    for volume in volumes {
        world.changes(&attach(volume, &world.lun(&format!("{volume}-a"), MIB, 1)));
        world.set(volume, Whim::HoldClaims);
        targets.push((*volume, world.lun(&format!("{volume}-b"), MIB, 0)));
    }
    let pairs: Vec<_> = targets
        .iter()
        .map(|(volume, target)| (*volume, target.as_path()))
        .collect();
    world.changes(&create(session, &pairs));
}

fn host(world: &World) -> HostRecord {
    let records = world.records(&Request::Status { session: None });
    match &records[0] {
        Record::Host(host) => host.clone(),
        other => panic!("{other:?}"),
    }
}

fn occupancy(world: &World) -> (u32, u32) {
    let HostRecord {
        pairs_copied,
        pairs_queued,
        ..
    } = host(world);
    (pairs_copied, pairs_queued)
}

fn wait_for_occupancy(world: &World, copied: u32, queued: u32) {
    world.wait("the expected numbers of copied and queued pairs", |world| {
        (occupancy(world) == (copied, queued)).then_some(())
    });
}

fn wait_for(world: &World, session: &str, volume: &str, wanted: &str) {
    world.wait("the state of a pair", |world| {
        (state(world, session, volume) == wanted).then_some(())
    });
}

fn state(world: &World, session: &str, volume: &str) -> String {
    let mut pairs = world.pairs(session).into_iter();
    pairs.find(|pair| pair.volume == volume).unwrap().state
}

/// The events since the subscription began; `present` is the state at its beginning, and `cursor`
/// the place in the history after the last event.
struct Watched {
    next: u64,
    cursor: Cursor,
    present: Vec<Record>,
    events: Vec<EventRecord>,
}

impl Watched {
    fn begin(world: &World, session: Option<&str>) -> Self {
        let asked = Request::Events {
            session: session.map(str::to_owned),
            after: None,
        };
        match world.ask(&asked) {
            Response::Events {
                next,
                cursor,
                present: true,
                records,
            } => {
                records.iter().for_each(see_that_schema_allows);
                Self {
                    next,
                    cursor,
                    present: records,
                    events: Vec::new(),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for events, and adds them.
    fn go_on(&mut self, world: &World, session: Option<&str>) {
        let asked = Request::Events {
            session: session.map(str::to_owned),
            after: Some(self.next),
        };
        match world.ask(&asked) {
            Response::Events {
                next,
                cursor,
                present: false,
                records,
            } => {
                records.iter().for_each(see_that_schema_allows);
                (self.next, self.cursor) = (next, cursor);
                for record in records {
                    let Record::Event(event) = record else {
                        panic!("{record:?}");
                    };
                    self.see_that_cursor_follows(&event, session.is_some());
                    self.events.push(event);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    /// A client that has the cursor of an event has seen all lines of the history before it.
    fn see_that_cursor_follows(&self, event: &EventRecord, is_one_session: bool) {
        let last = self.events.last().map_or(0, |last| last.cursor.line);
        let line = event.cursor.line;
        let is_line = !matches!(event.event, HistoryEvent::StateChanged { .. });
        let follows = match (last, is_line) {
            // The history has lines from before the subscription.
            (0, _) => true,
            (last, true) if is_one_session => line > last,
            (last, true) => line == last + 1,
            (last, false) if is_one_session => line >= last,
            (last, false) => line == last,
        };
        assert!(follows, "{event:?} after line {last}");
    }

    /// The highest number of pairs that were in this state at once.
    fn most_at_once(&self, state: &str) -> usize {
        let (mut now, mut most) = (BTreeSet::new(), 0);
        for event in self.events.iter().filter(|event| event.session.is_some()) {
            match state_of(event) {
                Some(other) if other == state => drop(now.insert(&event.volume)),
                Some(_) => drop(now.remove(&event.volume)),
                None => {}
            }
            most = most.max(now.len());
        }
        most
    }
}

#[test]
fn ten_pairs_are_copied_three_at_a_time_and_more_when_the_limit_is_raised() {
    const VOLUMES: [&str; 10] = ["v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9"];
    let world = World::new();
    world.changes(&set_host(3));
    world.already(&set_host(3));
    held_up(&world, "s1", &VOLUMES);
    let mut watched = Watched::begin(&world, None);
    let messages = world.changes(&start("s1"));
    assert!(messages.contains("v9 is queued"), "{messages}");
    assert_eq!(occupancy(&world), (3, 7));
    assert_eq!(world.session("s1").state, "queued");
    world.already(&start("s1"));
    world.unset("v1", Whim::HoldClaims);
    wait_for_occupancy(&world, 3, 6);
    wait_for(&world, "s1", "v1", "source-selected");
    wait_for(&world, "s1", "v3", "syncing");
    for volume in &VOLUMES[..4] {
        world.unset(volume, Whim::HoldClaims);
    }
    wait_for_occupancy(&world, 3, 3);
    watched.go_on(&world, None);
    assert_eq!(watched.most_at_once("syncing"), 3);
    world.changes(&set_host(5));
    wait_for_occupancy(&world, 5, 1);
    world.wait("all five are copied", |world| {
        let pairs = world.pairs("s1").into_iter();
        (pairs.filter(|pair| pair.state == "syncing").count() == 5).then_some(())
    });
    for volume in VOLUMES {
        world.unset(volume, Whim::HoldClaims);
    }
    world.wait_for_state("s1", "source-selected");
    while watched
        .events
        .iter()
        .filter(|event| is(event, "source-selected"))
        .count()
        < 10
    {
        watched.go_on(&world, None);
    }
    assert_eq!(watched.most_at_once("syncing"), 5);
    world.changes(&switch("s1"));
}

fn state_of(event: &EventRecord) -> Option<&str> {
    match &event.event {
        HistoryEvent::StateChanged { state } => Some(state),
        _ => None,
    }
}

fn is(event: &EventRecord, state: &str) -> bool {
    event.session.is_some() && state_of(event) == Some(state)
}

#[test]
fn the_highest_priority_begins_first() {
    let world = World::new();
    world.changes(&set_host(1));
    for (session, volume) in [("a", "va"), ("b", "vb"), ("c", "vc")] {
        held_up(&world, session, &[volume]);
        world.changes(&start(session));
    }
    assert_eq!(world.session("b").state, "queued");
    let failure = world.refused(&switch("b"));
    assert!(failure.cause.contains("its turn"), "{failure:?}");
    assert!(failure.next.contains("--max-pairs"), "{failure:?}");
    world.changes(&set("c", priority(90)));
    world.already(&set("c", priority(90)));
    assert_eq!(world.session("c").options.priority, 90);
    world.unset("va", Whim::HoldClaims);
    world.wait_for_state("c", "syncing");
    assert_eq!(world.session("b").state, "queued");
    world.unset("vc", Whim::HoldClaims);
    world.wait_for_state("b", "syncing");
}

#[test]
fn a_queue_outlives_shuntd() {
    let mut world = World::new();
    world.changes(&set_host(1));
    held_up(&world, "s1", &["v0", "v1"]);
    world.changes(&start("s1"));
    // The volume that is being copied is the last to report.
    world.set("v0", Whim::HoldStart);
    let pid = world.volume("v0").and_then(|volume| volume.pid).unwrap();
    // shuntd is stopped first. Otherwise it may start the next pair, and the next shuntd finds the
    // place taken.
    world.stop();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    world.start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    world.unset("v0", Whim::HoldStart);
    wait_for_occupancy(&world, 1, 1);
    assert_eq!(host(&world).pairs_max, 1);
    assert_eq!(state(&world, "s1", "v1"), "queued");
    world.unset("v0", Whim::HoldClaims);
    world.unset("v1", Whim::HoldClaims);
    world.wait_for_state("s1", "source-selected");
}

#[test]
fn a_queued_pair_can_be_paused_and_cancelled() {
    let world = World::new();
    world.changes(&set_host(1));
    held_up(&world, "a", &["va"]);
    held_up(&world, "b", &["vb"]);
    held_up(&world, "c", &["vc"]);
    for session in ["a", "b", "c"] {
        world.changes(&start(session));
    }
    world.changes(&pause("b"));
    world.already(&pause("b"));
    assert_eq!(world.session("b").state, "paused");
    world.unset("va", Whim::HoldClaims);
    world.wait_for_state("a", "source-selected");
    world.wait_for_state("c", "syncing");
    assert_eq!(world.session("b").state, "paused");
    world.changes(&resume("b"));
    assert_eq!(world.session("b").state, "queued");
    world.already(&resume("b"));
    world.changes(&cancel("b"));
    assert_eq!(world.session("b").state, "cancelled");
    assert_eq!(occupancy(&world), (1, 0));
    // Nothing was written to its target.
    let target = std::fs::read(world.directory.path().join("vb-b")).unwrap();
    assert!(target.iter().all(|byte| *byte == 0));
    world.changes(&detach("vb"));
}

#[test]
fn a_pair_whose_target_is_another_one_when_its_turn_comes_does_not_hold_up_the_others() {
    let world = World::new();
    world.changes(&set_host(1));
    held_up(&world, "s1", &["v0", "v1", "v2"]);
    world.changes(&start("s1"));
    let target = world.directory.path().join("v1-b");
    std::fs::remove_file(&target).unwrap();
    for volume in ["v0", "v1", "v2"] {
        world.unset(volume, Whim::HoldClaims);
    }
    wait_for(&world, "s1", "v2", "source-selected");
    let pair = world.pairs("s1").remove(1);
    let problem = pair.problem.unwrap();
    assert_eq!(pair.state, "setup");
    assert!(
        problem.contains("not started") && problem.contains("v1-b"),
        "{problem}"
    );
    world.refused(&start("s1"));
    assert_eq!(world.session("s1").allowed, ["start", "cancel"]);
    world.changes(&cancel("s1"));
}

#[test]
fn the_rate_of_a_session_is_changed_while_it_copies() {
    let world = World::new();
    let (source, target) = (world.lun("a", 8 * MIB, 1), world.lun("b", 8 * MIB, 0));
    world.changes(&attach("db", &source));
    world.changes(&create("s1", &[("db", &target)]));
    world.changes(&set("s1", rate(64 << 10)));
    world.changes(&start("s1"));
    world.wait("something is copied", |world| {
        (world.pairs("s1")[0].copied_bytes > 0).then_some(())
    });
    let session = world.session("s1");
    assert_eq!(session.state, "syncing");
    assert_eq!(session.options.rate_bytes_per_second, 64 << 10);
    // At this rate the rest would take two minutes.
    world.changes(&set("s1", rate(0)));
    assert_eq!(world.session("s1").options.rate_bytes_per_second, 0);
    world.wait_for_state("s1", "source-selected");
    let said = world.history();
    assert!(
        said.iter().any(|line| line.contains("65536 bytes")),
        "{said:?}"
    );
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let world = World::new();
    world.fails(
        migration_proto::manager::FailureKind::NotFound,
        &set("s1", priority(1)),
    );
    held_up(&world, "s1", &["db"]);
    world.refused(&set("s1", priority(101)));
    for pairs_max in [0, 1025] {
        let failure = world.refused(&set_host(pairs_max));
        assert!(failure.next.contains("--max-pairs"), "{failure:?}");
    }
    assert_eq!(host(&world).pairs_max, 4);
    world.changes(&cancel("s1"));
    let failure = world.refused(&set("s1", priority(1)));
    assert!(failure.cause.contains("ended"), "{failure:?}");
}

#[test]
fn events_begin_with_what_is_so_and_are_told_in_order() {
    let mut world = World::new();
    held_up(&world, "s1", &["db"]);
    let mut all = Watched::begin(&world, None);
    assert_eq!(
        all.present,
        world.records(&Request::Status { session: None })
    );
    let mut of_s1 = Watched::begin(&world, Some("s1"));
    world.unset("db", Whim::HoldClaims);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    let states = |watched: &Watched| -> Vec<String> {
        let of_pairs = watched
            .events
            .iter()
            .filter(|event| event.session.is_some());
        of_pairs
            .filter_map(|event| state_of(event).map(str::to_owned))
            .collect()
    };
    while states(&of_s1).last().map(String::as_str) != Some("target-selected") {
        of_s1.go_on(&world, Some("s1"));
    }
    let states = states(&of_s1);
    let order = ["syncing", "source-selected", "switching", "target-selected"];
    let mut seen = order
        .iter()
        .filter(|state| states.iter().any(|found| found == *state));
    assert_eq!(seen.next(), Some(&"syncing"), "{states:?}");
    let mut at = BTreeMap::new();
    for (index, state) in states.iter().enumerate() {
        at.insert(state.as_str(), index);
    }
    assert!(at["source-selected"] < at["target-selected"], "{states:?}");
    let said = |watched: &Watched, part: &str| {
        watched
            .events
            .iter()
            .any(|event| history::of_record(event).contains(part))
    };
    assert!(said(&of_s1, "the target is authoritative"));
    // An event that belongs to no session.
    world.changes(&attach("other", &world.lun("other", MIB, 1)));
    while !said(&all, "attached as") {
        all.go_on(&world, None);
    }
    // A restarted shuntd does not know the events of its predecessor, so it sends the present
    // state.
    world.stop();
    world.start();
    let asked = Request::Events {
        session: None,
        after: Some(all.next),
    };
    match world.ask(&asked) {
        Response::Events { present: true, .. } => {}
        other => panic!("{other:?}"),
    }
}

/// The codes of the lines of the history after a place.
fn codes_after(world: &World, session: Option<&str>, after: &Cursor) -> Vec<String> {
    let request = history_after(session, after);
    let code = |record: &Record| serde_json::to_value(record).unwrap()["code"].clone();
    let codes = world.records(&request);
    codes
        .iter()
        .map(|record| code(record).as_str().unwrap().to_owned())
        .collect()
}

fn history_after(session: Option<&str>, after: &Cursor) -> Request {
    Request::History {
        session: session.map(str::to_owned),
        after: Some(after.clone()),
    }
}

#[test]
fn a_client_that_was_away_gets_the_lines_that_it_missed_or_reads_that_they_are_lost() {
    let mut world = World::new();
    let begin = Watched::begin(&world, None);
    assert_eq!(begin.cursor.line, 0);
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    let seen = Watched::begin(&world, None).cursor;
    let attached = ["attach_begun", "attached"];
    assert_eq!(codes_after(&world, None, &begin.cursor), attached);
    assert_eq!(codes_after(&world, None, &seen), [""; 0]);

    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.stop();
    world.start();
    world.changes(&attach("other", &world.lun("other", MIB, 1)));
    let missed = ["created", "attach_begun", "attached"];
    assert_eq!(codes_after(&world, None, &seen), missed);
    assert_eq!(codes_after(&world, Some("s1"), &seen), ["created"]);
    // The current state is as new as its cursor says, also before the first event of this shuntd.
    world.stop();
    world.start();
    let now = Watched::begin(&world, None).cursor;
    assert_eq!(now.line, seen.line + 3);
    assert_eq!(codes_after(&world, None, &now), [""; 0]);

    world.stop();
    remove_database(&world);
    world.start();
    let failure = world.refused(&history_after(None, &seen));
    assert!(failure.object.contains(&seen.to_string()), "{failure:?}");
    assert!(failure.cause.contains("made again"), "{failure:?}");
    assert!(failure.next.contains("shunt events"), "{failure:?}");
    let new = Watched::begin(&world, None).cursor;
    assert_ne!(new.history, seen.history);
}
