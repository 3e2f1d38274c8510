//! Tests of automatic switches.

use std::time::{SystemTime, UNIX_EPOCH};

use migration_core::pair::Verb;
use migration_proto::manager::{
    HistoryEvent, Record, Request, Response, SessionLimits, SessionOptions, SwitchPairs,
    SwitchPolicy, VerifyPolicy,
};

use super::fake::Whim;
use super::world::*;

fn policy(session: &str, policy: SwitchPolicy) -> Request {
    Request::SetSession {
        session: session.to_owned(),
        limits: SessionLimits {
            switch: Some(policy),
            ..SessionLimits::default()
        },
    }
}

fn signal(event: &str) -> Request {
    Request::Signal {
        event: event.to_owned(),
    }
}

fn in_ms(milliseconds: u64) -> SwitchPolicy {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    SwitchPolicy::At(u64::try_from(now.as_millis()).unwrap() + milliseconds)
}

/// Brings a session with one volume into sync, then sets this policy.
fn in_sync(world: &World, wanted: SwitchPolicy) {
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    world.changes(&create("s1", &[("db", &target)]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.changes(&policy("s1", wanted));
}

fn chosen(world: &World) -> SwitchPolicy {
    world.session("s1").options.switch
}

/// Checks for at least 300 ms that the session stays in `state`.
fn stays(world: &World, state: &str) {
    for _ in 0..30 {
        assert_eq!(world.session("s1").state, state);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_session_is_switched_when_it_is_in_sync_and_not_again_after_an_undo() {
    let world = World::new();
    let targets = [world.lun("one-b", MIB, 0), world.lun("two-b", MIB, 0)];
    for volume in ["one", "two"] {
        world.changes(&attach(volume, &world.lun(&format!("{volume}-a"), MIB, 1)));
    }
    world.set("two", Whim::HoldClaims);
    let mut request = create("s1", &[("one", &targets[0]), ("two", &targets[1])]);
    if let Request::Create { options, .. } = &mut request {
        options.switch = SwitchPolicy::WhenSynced;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait("the first pair is in sync", |world| {
        (world.pairs("s1")[0].state == "source-selected").then_some(())
    });
    stays(&world, "syncing");
    world.unset("two", Whim::HoldClaims);
    world.wait_for_state("s1", "target-selected");
    assert_eq!(chosen(&world), SwitchPolicy::Manual);
    world.changes(&policy("s1", SwitchPolicy::WhenSynced));
    world.changes(&undo("s1"));
    assert_eq!(chosen(&world), SwitchPolicy::Manual);
    stays(&world, "source-selected");
    let said = world.history();
    for verb in ["switch", "undo"] {
        let expected = format!("{verb}: it is switched when the operator says so");
        assert!(said.contains(&expected), "{said:?}");
    }
}

#[test]
fn a_command_waits_for_what_nobody_has_asked_for_and_is_refused_beside_another_command() {
    let world = World::new();
    in_sync(&world, in_ms(60_000));
    world.set("db", Whim::SlowRole);
    world.changes(&policy("s1", SwitchPolicy::WhenSynced));
    world.wait("the automatic switch has begun", |world| {
        let begun = |line: &String| line.ends_with("switch");
        world.history().iter().any(begun).then_some(())
    });
    world.changes(&undo("s1"));
    assert_eq!(chosen(&world), SwitchPolicy::Manual);
    let who = |verb: Verb| {
        let records = world.records(&whole_history());
        records.into_iter().find_map(|record| match record {
            Record::Event(event) if event.event == (HistoryEvent::VerbBegun { verb }) => {
                Some(event.who)
            }
            _ => None,
        })
    };
    assert_eq!(who(Verb::Switch), Some(None), "nobody has asked for it");
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login = login.and_then(|text| text.trim().parse().ok());
    let user = login.filter(|uid| *uid != u32::MAX);
    let expected = Some(user.or(Some(nix::unistd::getuid().as_raw())));
    assert_eq!(who(Verb::Undo), expected);
    assert_eq!(who(Verb::Start), expected);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| world.changes(&switch("s1")));
        let failure = world.wait("the second is refused", |world| {
            match world.ask(&policy("s1", SwitchPolicy::Manual)) {
                Response::Failed(failure) => Some(failure),
                _ => None,
            }
        });
        assert!(
            failure.cause.contains("(switch) is under way"),
            "{failure:?}"
        );
        other.join().unwrap();
    });
}

#[test]
fn each_pair_is_switched_as_soon_as_it_is_in_sync_if_that_is_wanted() {
    let world = World::new();
    let targets = [world.lun("one-b", MIB, 0), world.lun("two-b", MIB, 0)];
    for volume in ["one", "two"] {
        world.changes(&attach(volume, &world.lun(&format!("{volume}-a"), MIB, 1)));
    }
    world.set("two", Whim::HoldClaims);
    let mut request = create("s1", &[("one", &targets[0]), ("two", &targets[1])]);
    if let Request::Create { options, .. } = &mut request {
        options.switch = SwitchPolicy::WhenSynced;
        options.switch_pairs = SwitchPairs::Each;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    let state_of = |pair: usize| world.pairs("s1")[pair].state.clone();
    world.wait("the first pair is switched", |_| {
        (state_of(0) == "target-selected").then_some(())
    });
    assert_eq!(
        (state_of(1).as_str(), chosen(&world)),
        ("syncing", SwitchPolicy::WhenSynced)
    );
    world.unset("two", Whim::HoldClaims);
    world.wait_for_state("s1", "target-selected");
    world.wait("nothing more is to be switched", |world| {
        (chosen(world) == SwitchPolicy::Manual).then_some(())
    });
}

#[test]
fn a_session_that_takes_too_long_is_paused_once() {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.set("db", Whim::HoldClaims);
    let mut request = create("s1", &[("db", &world.lun("b", MIB, 0))]);
    if let Request::Create { options, .. } = &mut request {
        options.max_duration_seconds = 1;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "paused");
    let said = world.history();
    let told = |line: &String| line.contains("--max-duration") && line.contains("shunt resume s1");
    assert!(said.iter().any(told), "{said:?}");
    world.changes(&resume("s1"));
    stays(&world, "syncing");
    world.unset("db", Whim::HoldClaims);
    world.wait_for_state("s1", "source-selected");
    world.wait("that is recorded", |world| {
        let mut history = world.history().into_iter();
        history.any(|line| line.contains("in sync;")).then_some(())
    });
    // After the pair was in sync once, the maximum duration no longer applies.
    let limits = SessionLimits {
        max_duration_seconds: Some(1),
        ..SessionLimits::default()
    };
    world.changes(&Request::SetSession {
        session: "s1".to_owned(),
        limits,
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    stays(&world, "source-selected");
}

#[test]
fn a_session_is_switched_from_a_time_on() {
    let world = World::new();
    in_sync(&world, in_ms(60_000));
    stays(&world, "source-selected");
    world.changes(&policy("s1", in_ms(300)));
    world.wait_for_state("s1", "target-selected");
}

#[test]
fn a_session_is_switched_after_a_signal_also_after_a_restart() {
    let mut world = World::new();
    in_sync(&world, SwitchPolicy::OnEvent("backup-done".into()));
    let failure = world.refused(&signal("other"));
    assert!(failure.next.contains("--switch event"), "{failure:?}");
    stays(&world, "source-selected");
    world.stop();
    world.start();
    world.wait_for_state("s1", "source-selected");
    let messages = world.changes(&signal("backup-done"));
    assert!(messages.contains("session s1"), "{messages}");
    world.wait_for_state("s1", "target-selected");
    world.refused(&signal("backup-done"));
}

#[test]
fn a_switch_that_cannot_be_done_is_tried_again_and_said() {
    let world = World::new();
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    world.set("db", Whim::RefuseRole);
    let mut request = create("s1", &[("db", &target)]);
    if let Request::Create { options, .. } = &mut request {
        options.switch = SwitchPolicy::WhenSynced;
    }
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait("the switch is refused", |world| {
        let said = world.history();
        let refused = |line: &String| line.contains("the role did not move");
        said.iter().any(refused).then_some(())
    });
    world.unset("db", Whim::RefuseRole);
    // The switch is tried again after five seconds.
    world.wait_for_state("s1", "target-selected");
}

#[test]
fn a_leg_that_is_known_to_differ_is_not_switched_to_by_itself() {
    let world = World::new();
    let (source, target) = (world.lun("a", MIB, 1), world.lun("b", MIB, 0));
    world.changes(&attach("db", &source));
    let request = proving(create("s1", &[("db", &target)]), VerifyPolicy::None);
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    std::fs::write(&target, vec![9; MIB as usize]).unwrap();
    world.changes(&verify("s1", false));
    world.wait("the difference is known", |world| {
        world.pairs("s1")[0].verification.clone()
    });
    world.changes(&policy("s1", SwitchPolicy::WhenSynced));
    world.wait("the history has the refusal", |world| {
        let said = world.history();
        let refused = |line: &String| line.contains("the switch that is due is refused");
        said.iter().any(refused).then_some(())
    });
    assert_eq!(world.session("s1").state, "source-selected");
}

#[test]
fn a_time_that_has_passed_and_a_name_that_is_none_are_refused() {
    let world = World::new();
    in_sync(&world, SwitchPolicy::WhenSynced);
    for (wrong, cause) in [
        (SwitchPolicy::At(1), "has passed"),
        (SwitchPolicy::OnEvent("a b".into()), "the event: "),
    ] {
        let failure = world.refused(&policy("s1", wrong.clone()));
        assert!(failure.next.contains("--switch"), "{failure:?}");
        let mut request = create("s2", &[("db", &world.lun("c", MIB, 0))]);
        if let Request::Create { options, .. } = &mut request {
            *options = SessionOptions {
                switch: wrong,
                ..SessionOptions::default()
            };
        }
        let failure = world.refused(&request);
        assert!(failure.cause.contains(cause), "{failure:?}");
    }
}
