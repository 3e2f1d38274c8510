//! Tests in which ublk-target and shuntd end at named places, while an application writes and
//! verifies.
//!
//! The programs are built with the feature `crash-points`; see the crate `crash-point`.

use migration_proto::{route::Side, target::Request};
use tests::{
    host::Host,
    lun::{self, LoopDevice},
    steady::Steady,
    wait_until,
};

const LUN_BYTES: u64 = 16 << 20;

struct Scene {
    host: Host,
    source: LoopDevice,
    target: LoopDevice,
}

impl Scene {
    fn new() -> Self {
        Self {
            host: Host::with_crash_points(),
            source: LoopDevice::new(LUN_BYTES, 512),
            target: LoopDevice::new(LUN_BYTES, 512),
        }
    }

    fn in_sync() -> Self {
        let scene = Self::new();
        let (source, target) = (&scene.source.path, &scene.target.path);
        scene.host.bring_into_sync("db", source, target, "move");
        scene
    }

    fn create(&self, session: &str) {
        let pair = format!("db:{}", self.target.path);
        self.host.ok(&["create", session, &pair, "--overwrite"]);
    }

    /// Waits until ublk-target has ended at the point, and another process serves the volume.
    fn see_target_replaced(&self, point: &str, old: u32) {
        wait_until(&format!("the end at {point}"), || self.host.has_fired());
        wait_until(&format!("the volume is back after {point}"), || {
            let record = self.host.volume("db");
            record["state"] == "attached" && record["pid"].as_u64() != Some(old.into())
        });
    }

    fn assert_equal(&self) {
        self.host
            .assert_legs_equal("db", &self.source.path, &self.target.path);
    }

    fn end(self, load: Steady) {
        load.go_on();
        load.finish();
        if settled_on(&self.host) == "target" {
            self.host.ok(&["undo", "move", "--max-pause", "20"]);
        }
        self.assert_equal();
        self.host.ok(&["cancel", "move", "--yes"]);
        self.host.ok(&["detach", "db"]);
    }
}

/// Waits until the pair is on one leg, in sync, and returns which leg it is. The status of the pair
/// and the volume must agree.
fn settled_on(host: &Host) -> &'static str {
    let mut side = "";
    wait_until("the pair is on one leg and in sync", || {
        let state = host.pair("move")["state"].to_string();
        side = match state.as_str() {
            "\"source-selected\"" => "source",
            "\"target-selected\"" => "target",
            _ => return false,
        };
        true
    });
    assert_eq!(host.pair("move")["authoritative"], side);
    let route = host.connect("db").status().route;
    assert!(route.is_mirrored(), "{route:?}");
    let expected = if side == "source" {
        Side::Source
    } else {
        Side::Target
    };
    assert_eq!(route.authoritative(), expected);
    let mut records = host.records().into_iter();
    let session = records.find(|record| record["type"] == "session").unwrap();
    assert_ne!(session["allowed"], serde_json::json!([]), "{session}");
    side
}

/// The verb that moves the role away from this side, and the side that it moves to.
fn away_from(side: &str) -> (&'static str, &'static str) {
    match side {
        "source" => ("switch", "target"),
        _ => ("undo", "source"),
    }
}

fn start_load() -> Steady {
    let load = Steady::start(&Host::device("db"), 8 << 20);
    load.go_on();
    load
}

#[test]
fn a_panic_of_the_engine_ends_the_process_and_another_takes_over() {
    let scene = Scene::in_sync();
    let load = start_load();
    for point in ["authoritative-done", "answered"] {
        let old = scene.host.connect("db").status().pid;
        scene.host.arm(&format!("{point} panic"));
        scene.see_target_replaced(point, old);
        let said = format!("a panic at the crash point {point}");
        assert!(scene.host.log().contains(&said), "{}", scene.host.log());
    }
    scene.end(load);
}

#[test]
fn ublk_target_ends_at_each_point_of_a_write_and_of_its_recovery() {
    let scene = Scene::in_sync();
    let load = start_load();
    let pid = || scene.host.connect("db").status().pid;
    // Where the load does not write, there is no mark yet.
    for (point, megabyte) in [("map-before", 12), ("map-after", 14)] {
        let old = pid();
        scene.host.arm(point);
        lun::write_megabyte(&Host::device("db"), megabyte, 0xa5).unwrap();
        scene.see_target_replaced(point, old);
    }
    for point in ["authoritative-done", "mirror-done", "answered"] {
        let old = pid();
        scene.host.arm(point);
        scene.see_target_replaced(point, old);
    }
    // Without QUIESCE a death between START and END leaves the device stuck: README, "Kernels".
    let features = scene.host.connect("db").status().driver_features;
    let is_old = !features.iter().any(|feature| feature == "QUIESCE");
    for (point, is_stuck) in [
        ("recovery-before", false),
        ("recovery-started", is_old),
        ("recovery-fetched", is_old),
        ("recovery-ended", false),
    ] {
        if is_stuck {
            println!("{point}: not on this driver");
            continue;
        }
        scene.host.arm(point);
        let old = scene.host.kill_target_only("db").cast_unsigned();
        scene.see_target_replaced(point, old);
    }
    assert_eq!(settled_on(&scene.host), "source");
    scene.assert_equal();
    scene.end(load);
}

#[test]
fn ublk_target_ends_at_each_point_of_a_change_of_the_role() {
    let scene = Scene::in_sync();
    let load = start_load();
    let host = &scene.host;
    let mut connection = host.connect("db");
    let old = connection.status().pid;
    host.arm("reply-before");
    connection.send(&Request::Suspend {
        deadline_ms: 60_000,
    });
    scene.see_target_replaced("reply-before", old);
    for (point, is_durable) in [
        ("flushed-in-change", Some(false)),
        ("role-before", Some(false)),
        // The record is on its way to the disk: both outcomes are possible.
        ("role-submitted", None),
        ("role-durable", Some(true)),
        ("reply-before", Some(true)),
        ("replied", Some(true)),
        ("second-role-slot", Some(true)),
    ] {
        let before = settled_on(host);
        let (verb, after) = away_from(before);
        let old = host.connect("db").status().pid;
        host.arm(point);
        let said = host.shunt(&[verb, "move", "--max-pause", "20"]);
        scene.see_target_replaced(point, old);
        let now = settled_on(host);
        println!("{point}: {verb} ended with {}, on the {now}", said.code);
        if said.code == 0 || is_durable == Some(true) {
            assert_eq!(now, after, "{point}: {said:?}");
        } else if is_durable == Some(false) {
            assert_eq!(now, before, "{point}: {said:?}");
        }
    }
    scene.assert_equal();
    scene.end(load);
}

#[test]
fn ublk_target_ends_while_a_mirror_is_added_or_given_up() {
    let scene = Scene::new();
    let host = &scene.host;
    host.ok(&["attach", "db", &scene.source.path]);
    let load = start_load();
    for (number, point) in [
        "descriptor-written",
        "map-after",
        "role-before",
        "role-durable",
    ]
    .into_iter()
    .enumerate()
    {
        let session = &format!("move-{number}");
        scene.create(session);
        let old = host.connect("db").status().pid;
        host.arm(point);
        let said = host.shunt(&["start", session]);
        scene.see_target_replaced(point, old);
        assert_eq!(said.code, 0, "{point}: {said:?}");
        host.wait_for(session, "source-selected");
        scene.assert_equal();
        let old = host.connect("db").status().pid;
        let point = if point.starts_with("role") {
            point
        } else {
            "reply-before"
        };
        host.arm(point);
        host.ok(&["cancel", session, "--yes"]);
        scene.see_target_replaced(point, old);
        assert!(host.live_pair("db").is_none(), "{point}");
    }
    load.finish();
    host.ok(&["detach", "db"]);
}

/// Ends shuntd at a point during a command. The next shuntd finishes or takes back what was begun.
fn shuntd_ends(host: &mut Host, point: &str, arguments: &[&str]) {
    host.arm(point);
    let command = host.begin(arguments);
    host.see_shuntd_killed();
    assert!(host.has_fired(), "{point}");
    assert_ne!(command.wait_with_output().unwrap().status.code(), Some(0));
    host.start_shuntd();
}

#[test]
fn shuntd_ends_at_each_point_of_a_command() {
    let mut scene = Scene::in_sync();
    let load = start_load();
    let pid = scene.host.connect("db").status().pid;
    for (point, moves) in [
        ("intention-before", Some(false)),
        ("intention-after", None),
        ("done-before-recorded", Some(true)),
        ("done-recorded", Some(true)),
    ] {
        shuntd_ends_while_the_role_moves(&mut scene.host, point, moves, |_| ());
    }
    scene.host.kill_shuntd();
    scene.host.arm("start-connected");
    scene.host.launch_shuntd();
    scene.host.see_shuntd_killed();
    scene.host.start_shuntd();
    for point in ["settled-before-recorded", "settled-recorded"] {
        // The work of the last shuntd is settled by one that ends too.
        let end_again = |host: &mut Host| {
            host.arm(point);
            host.launch_shuntd();
            host.see_shuntd_killed();
        };
        let (first, moved) = ("done-before-recorded", Some(true));
        shuntd_ends_while_the_role_moves(&mut scene.host, first, moved, end_again);
    }
    assert_eq!(scene.host.connect("db").status().pid, pid);
    for (point, moves) in [
        ("intention-after", None),
        ("done-before-recorded", Some(true)),
    ] {
        let both_die = |host: &mut Host| {
            host.kill_target_only("db");
        };
        shuntd_ends_while_the_role_moves(&mut scene.host, point, moves, both_die);
    }
    scene.end(load);
}

/// Ends shuntd at a point of a change of the role, calls `then`, and starts shuntd again.
fn shuntd_ends_while_the_role_moves(
    host: &mut Host,
    point: &str,
    moves: Option<bool>,
    then: impl Fn(&mut Host),
) {
    let before = settled_on(host);
    let (verb, _) = away_from(before);
    host.arm(point);
    let command = host.begin(&[verb, "move", "--max-pause", "20"]);
    host.see_shuntd_killed();
    let output = command.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    then(host);
    host.start_shuntd();
    let now = settled_on(host);
    if let Some(moves) = moves {
        assert_eq!(now != before, moves, "{point} of {verb}");
    }
}

#[test]
fn shuntd_ends_while_it_copies_and_while_a_migration_ends() {
    let mut scene = Scene::new();
    let source = scene.source.path.clone();
    scene.host.ok(&["attach", "db", &source]);
    let load = start_load();
    for (number, (at_start, at_cancel)) in [
        ("intention-before", "intention-before"),
        ("intention-after", "intention-after"),
        ("done-before-recorded", "done-before-recorded"),
        ("copier-read", "done-recorded"),
        ("copier-written", "intention-after"),
    ]
    .into_iter()
    .enumerate()
    {
        let session = &format!("move-{number}");
        scene.create(session);
        let untouched = lun::checksum(&scene.target.path);
        shuntd_or_command_ends(&mut scene.host, at_start, &["start", session]);
        if at_start == "intention-before" {
            assert_eq!(scene.host.pair(session)["state"], "setup");
            assert_eq!(lun::checksum(&scene.target.path), untouched);
        }
        wait_until("the session continues", || {
            let state = scene.host.pair(session)["state"].clone();
            if state == "setup" {
                scene.host.ok(&["start", session]);
            }
            state == "source-selected"
        });
        scene.assert_equal();
        shuntd_ends(&mut scene.host, at_cancel, &["cancel", session, "--yes"]);
        if at_cancel == "intention-before" {
            scene.host.ok(&["cancel", session, "--yes"]);
        }
        wait_until("the cancel is finished", || {
            scene.host.live_pair("db").is_none()
        });
    }
    load.finish();
    for point in ["intention-after", "detached-before-recorded"] {
        shuntd_ends(&mut scene.host, point, &["detach", "db"]);
        wait_until("the detach is finished", || {
            let mut records = scene.host.records().into_iter();
            !records.any(|record| record["type"] == "volume")
        });
        scene.host.ok(&["attach", "db", &source]);
    }
    scene.host.ok(&["detach", "db"]);
}

/// As [`shuntd_ends`], but the command may have been answered before shuntd ends.
fn shuntd_or_command_ends(host: &mut Host, point: &str, arguments: &[&str]) {
    host.arm(point);
    drop(host.begin(arguments).wait_with_output());
    host.see_shuntd_killed();
    assert!(host.has_fired(), "{point}");
    host.start_shuntd();
}
