//! The model: every order of events in small worlds, over the production core. See CONTRIBUTING.md.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod broken;
mod check;
mod disk;
mod event;
mod hash;
#[path = "../shared/intention.rs"]
mod intention;
mod search;
mod session;
mod setup;
mod world;
mod worlds;

use std::{io::Write, time::Instant};

use seeded_core::operation::SeededBug;

fn run(setup: &setup::Setup) {
    let begun = Instant::now();
    let found = search::explore(setup);
    // Written past the test harness, which would capture it: the number of states is part of the
    // result.
    let _ = writeln!(
        std::io::stderr(),
        "model: world {}: {} states, {} transitions, {:.1} s",
        setup.name,
        found.states,
        found.transitions,
        begun.elapsed().as_secs_f64()
    );
    if let Some((violation, events)) = found.violation {
        panic!("{}", search::describe(setup, &violation, &events));
    }
}

fn run_all(setups: &[&setup::Setup]) {
    let only = std::env::var("SHUNT_MODEL_WORLD").ok();
    for setup in setups {
        if only.as_deref().is_none_or(|only| setup.name == only) {
            run(setup);
        }
    }
}

#[test]
fn every_order_of_events_keeps_the_rules() {
    run_all(worlds::EXHAUSTIVE);
}

#[test]
#[ignore = "takes minutes and gigabytes of memory; by hand"]
fn every_order_of_events_in_larger_worlds() {
    run_all(worlds::LARGE);
}

/// A checker that never complains proves nothing.
#[test]
fn every_broken_rule_is_noticed() {
    let mut wrong = Vec::new();
    for (rule, world, checker) in broken::BROKEN {
        let setup = setup::Setup {
            broken: Some(*rule),
            ..(*world).clone()
        };
        let found = search::explore(&setup);
        let Some((violation, events)) = found.violation else {
            wrong.push(format!(
                "{rule:?} is broken in the world {}, and nobody notices",
                world.name
            ));
            continue;
        };
        println!(
            "{rule:?} is broken: {:?} after {} events ({}, {} states)",
            violation.checker,
            events.len(),
            world.name,
            found.states
        );
        if violation.checker != *checker {
            wrong.push(search::describe(&setup, &violation, &events));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_session_of_two_volumes_can_always_be_ended_in_one_place() {
    for (loss, text) in [
        (session::Loss::Never, ""),
        (session::Loss::Possible, ", one map file is lost"),
    ] {
        let begun = Instant::now();
        let found = session::explore(None, loss);
        let _ = writeln!(
            std::io::stderr(),
            "model: session of two volumes{text}: {} states, {} transitions, {:.1} s",
            found.states,
            found.transitions,
            begun.elapsed().as_secs_f64()
        );
        assert_eq!(found.violation, None);
    }
}

#[test]
fn every_broken_rule_of_operations_is_noticed() {
    let of_operations = SeededBug::ALL.map(session::Broken::Operation);
    for broken in session::BROKEN.into_iter().chain(of_operations) {
        let found = session::explore(Some(broken), session::Loss::Possible);
        let violation = found
            .violation
            .unwrap_or_else(|| panic!("{broken:?} is not noticed"));
        println!(
            "{broken:?} is broken: {violation:.100} ({} states)",
            found.states
        );
    }
}
