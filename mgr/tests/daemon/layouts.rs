//! Tests of legs that consist of several LUNs.

use std::path::{Path, PathBuf};

use migration_proto::manager::{Request, Response, RetireHow};
use migration_proto::route::Side;

use super::world::*;

/// Joins the paths of a leg's LUNs to one path that [`paths`] can parse.
fn leg(luns: &[&PathBuf]) -> PathBuf {
    let texts: Vec<&str> = luns.iter().map(|lun| lun.to_str().unwrap()).collect();
    PathBuf::from(texts.join(","))
}

fn contents(luns: &[&PathBuf]) -> Vec<u8> {
    luns.iter()
        .flat_map(|lun| std::fs::read(lun).unwrap())
        .collect()
}

fn retire(how: RetireHow) -> Request {
    Request::Retire {
        session: "s1".to_owned(),
        how,
    }
}

#[test]
fn a_volume_over_several_luns_moves_onto_several_others_and_back() {
    let mut world = World::new();
    let size = |name: &str, mib: u64, seed| world.lun(name, mib * MIB, seed);
    let sources = [size("a1", 1, 1), size("a2", 3, 2)];
    let targets = [size("b1", 2, 0), size("b2", 1, 0), size("b3", 2, 0)];
    let [a1, a2] = &sources;
    let [b1, b2, b3] = &targets;
    let (from, to) = (leg(&[a1, a2]), leg(&[b1, b2, b3]));
    let before = contents(&[a1, a2]);
    world.changes(&attach("db", &from));
    world.already(&attach("db", &from));
    let failure = world.refused(&attach("db", &leg(&[a2, a1])));
    assert!(failure.cause.contains("the name is taken"), "{failure:?}");
    let volume = world.volume("db").unwrap();
    assert_eq!((volume.lun, volume.size_bytes), (paths(&from), 4 * MIB));
    world.changes(&create("s1", &[("db", &to)]));
    // Each LUN of the two legs is in use.
    world.changes(&attach("other", &world.lun("o", 3 * MIB, 1)));
    for used in [a2, b1, b3] {
        let failure = world.refused(&create("s2", &[("other", used)]));
        assert!(failure.cause.contains("used already"), "{failure:?}");
        world.refused(&attach("third", used));
    }
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    assert_eq!(contents(&[b1, b2, b3])[..before.len()], before);
    assert_eq!(world.pairs("s1")[0].target, paths(&to));
    world.changes(&switch("s1"));
    // The database is lost; shuntd finds all LUNs in the map file.
    world.stop();
    std::fs::remove_file(world.config.database()).unwrap();
    world.start();
    let found = world.wait("it is restored", |world| world.volume("db"));
    assert_eq!(found.lun, paths(&to));
    let session = world.pairs("found-db").remove(0);
    assert_eq!((session.source, session.target), (paths(&from), paths(&to)));
    assert_eq!(session.authoritative, Side::Target);
    world.changes(&resume("found-db"));
    world.wait_for_state("found-db", "target-selected");
    world.changes(&commit("found-db"));
    assert_eq!(world.volume("db").unwrap().lun, paths(&to));
    // Migrates back onto the LUNs that are free again.
    let request = overwriting(create("s1", &[("db", &from)]));
    world.changes(&request);
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
    assert_eq!(contents(&[a1, a2]), before);
    // `retire` holds every LUN of the leg that was left behind.
    world.changes(&retire(RetireHow::Hold));
    for held in [b1, b2, b3] {
        let failure = world.refused(&attach("third", held));
        assert!(failure.cause.contains("the retired source"), "{failure:?}");
    }
    world.changes(&Request::TakeBack {
        session: "s1".to_owned(),
    });
    let freed = |dry_run| world.done(&Request::FreeLocks { dry_run });
    assert!(!freed(true).0);
    world.changes(&detach("db"));
    world.changes(&attach("third", &leg(&[b1, b2, b3])));
}

#[test]
fn what_is_taken_from_each_lun_is_put_back_on_it() {
    let world = World::new();
    let sources = ["a1", "a2"].map(|name| world.lun(name, 16 * MIB, 0));
    for lun in &sources {
        let made = std::process::Command::new("/sbin/mkfs.ext4")
            .args(["-q", "-F"])
            .arg(lun)
            .status();
        assert!(made.unwrap().success());
    }
    let [a1, a2] = &sources;
    world.changes(&attach("db", &leg(&[a1, a2])));
    world.changes(&create("s1", &[("db", &world.lun("b", 32 * MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    world.changes(&switch("s1"));
    world.changes(&commit("s1"));
    let before = contents(&[a1, a2]);
    let kinds = || {
        sources.each_ref().map(|path: &PathBuf| {
            let lun = lun::Lun::open(path, &lun::OpenOptions::default()).unwrap();
            lun::signatures(&lun).unwrap().len()
        })
    };
    assert_eq!(kinds(), [1, 1]);
    world.changes(&retire(RetireHow::WipeSignatures));
    assert_eq!(kinds(), [0, 0]);
    world.changes(&Request::TakeBack {
        session: "s1".to_owned(),
    });
    assert_eq!(contents(&[a1, a2]), before);
}

#[test]
fn luns_that_are_no_leg_are_refused() {
    let world = World::new();
    let lun = |name: &str, mib: u64| world.lun(name, mib * MIB, 0);
    let (a, b, c) = (lun("a", 2), lun("b", 1), lun("c", 1));
    let again = a.parent().unwrap().join("./b");
    world.changes(&attach("db", &a));
    let refused = |target: &Path, part: &str| {
        let failure = world.refused(&create("s1", &[("db", target)]));
        assert!(failure.cause.contains(part), "{part}: {failure:?}");
    };
    refused(&leg(&[&b, &again]), "named twice");
    refused(&leg(&[&b, &a]), "the source of volume db itself");
    refused(&leg(&[&b, &lun("small", 0)]), "0 bytes");
    refused(&leg(&[&b, &c, &lun("more", 1)]), "is not needed");
    let relative = Request::Attach {
        accept_weak_identity: false,
        volume: "x".to_owned(),
        luns: paths(&leg(&[&b, &PathBuf::from("c")])),
    };
    assert!(matches!(world.ask(&relative), Response::Failed(_)));
    world.changes(&create("s1", &[("db", &leg(&[&b, &c]))]));
}
