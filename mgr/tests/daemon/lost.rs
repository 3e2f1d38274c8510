//! Tests of a damaged, missing or locked database or map file.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use mgr::store::{Change, Lock, LunRow, Store, lock_key};
use migration_proto::manager::{FailureKind, Request};
use migration_proto::route::{Route, Side};

use crate::world::*;

/// Brings a session of one pair into sync, with `side` authoritative.
fn selected(side: Side) -> World {
    let world = World::new();
    world.changes(&attach("db", &world.lun("a", MIB, 1)));
    world.changes(&create("s1", &[("db", &world.lun("b", MIB, 0))]));
    world.changes(&start("s1"));
    world.wait_for_state("s1", "source-selected");
    if side == Side::Target {
        world.changes(&switch("s1"));
    }
    world
}

/// The damaged databases that shuntd has kept.
fn kept(world: &World) -> Vec<PathBuf> {
    let files = std::fs::read_dir(&world.config.state_directory).unwrap();
    files
        .map(|file| file.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("shunt.db.damaged-"))
        .collect()
}

pub(crate) fn remove_database(world: &World) {
    for companion in ["", "-wal", "-shm"] {
        let path = format!("{}{companion}", world.config.database().display());
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn without_its_database_shuntd_finds_what_is_mirrored_and_writes_nothing_before_it_is_told() {
    let mut world = selected(Side::Target);
    world.changes(&attach("plain", &world.lun("c", MIB, 2)));
    let before = world.volume("db").unwrap();
    world.stop();
    remove_database(&world);
    world.start();
    let (db, plain) = (world.volume("db").unwrap(), world.volume("plain").unwrap());
    assert_eq!((db.pid, db.restarts), (before.pid, 0), "same process");
    assert_eq!((db.lun, db.route), (before.lun, before.route));
    assert_eq!(plain.route, Some(Route::Single { leg: Side::Source }));
    let pair = &world.pairs("found-db")[0];
    assert_eq!(
        (pair.state.as_str(), pair.authoritative),
        ("paused", Side::Target)
    );
    assert!(pair.problem.as_ref().unwrap().contains("database was lost"));
    let history = world.history().join("\n");
    for word in ["missing", "found-db, paused", "uses"] {
        assert!(history.contains(word), "no {word:?} in {history}");
    }
    // The LUNs are locked again, and the migration continues to its end.
    world.refused(&attach("other", &world.directory.path().join("b")));
    world.refused(&attach("other", &world.directory.path().join("c")));
    world.changes(&resume("found-db"));
    world.wait_for_state("found-db", "target-selected");
    world.changes(&commit("found-db"));
    assert_eq!(
        world.volume("db").unwrap().lun,
        world.directory.path().join("b")
    );
    world.changes(&detach("db"));
    world.changes(&detach("plain"));
    assert!(kept(&world).is_empty());
}

#[test]
fn a_damaged_database_is_kept_and_another_one_is_made() {
    let mut world = selected(Side::Source);
    world.stop();
    let database = world.config.database();
    let bytes = std::fs::metadata(&database).unwrap().len();
    // Damages the header; then overwrites all but the first quarter; then truncates the file.
    let damages = [0..64, bytes / 4..bytes, 0..0];
    for (number, damage) in damages.into_iter().enumerate() {
        // The thread of the database closes it last. Until then the WAL hides the damage.
        world.wait("the database is closed", |_| {
            (!PathBuf::from(format!("{}-wal", database.display())).exists()).then_some(())
        });
        let file = std::fs::File::options()
            .write(true)
            .open(&database)
            .unwrap();
        if damage.is_empty() {
            file.set_len(0).unwrap();
        } else {
            let garbage = vec![0xa5; usize::try_from(damage.end - damage.start).unwrap()];
            file.write_all_at(&garbage, damage.start).unwrap();
        }
        world.start();
        assert_eq!(world.pairs("found-db")[0].state, "paused");
        assert_eq!(world.volume("db").unwrap().state, "attached");
        assert_eq!(kept(&world).len(), number + 1);
        world.stop();
    }
    world.start();
    world.changes(&resume("found-db"));
    world.wait_for_state("found-db", "source-selected");
    world.changes(&cancel("found-db"));
}

#[test]
fn a_volume_in_doubt_is_left_out_and_named() {
    let mut world = World::new();
    for (name, lun) in [("one", "a"), ("two", "b"), ("three", "c"), ("four", "d")] {
        world.changes(&attach(name, &world.lun(lun, MIB, 1)));
    }
    world.stop();
    remove_database(&world);
    std::fs::write(world.map("two"), "garbage").unwrap();
    std::fs::copy(world.map("one"), world.map("three")).unwrap();
    std::fs::remove_file(world.map("four")).unwrap();
    world.start();
    assert_eq!(world.volume("one").unwrap().state, "attached");
    let history = world.history().join("\n");
    for (name, why) in [
        ("two", "damaged"),
        ("three", "volume one"),
        ("four", "No such"),
    ] {
        assert_eq!(world.volume(name), None, "{name}");
        assert!(history.contains(why), "no {why:?} in {history}");
    }
    assert_eq!(history.matches("not restored").count(), 3, "{history}");
    // shuntd never changes what is left of these volumes.
    world.refused(&attach("two", &world.directory.path().join("b")));
    assert_eq!(std::fs::read(world.map("two")).unwrap(), b"garbage");
}

#[test]
fn a_database_that_is_only_locked_is_left_alone() {
    let mut world = selected(Side::Source);
    world.stop();
    let locker = rusqlite::Connection::open(world.config.database()).unwrap();
    locker
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE;")
        .unwrap();
    let error = world.start_error().to_string();
    for word in ["locked", "continue without shuntd", "next: ", "fuser"] {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    drop(locker);
    world.start();
    assert_eq!(world.session("s1").state, "source-selected");
    assert!(kept(&world).is_empty());
}

#[test]
fn a_database_that_is_locked_meanwhile_fails_commands_and_nothing_else() {
    let world = selected(Side::Source);
    let locker = rusqlite::Connection::open(world.config.database()).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE;").unwrap();
    let failure = world.fails(FailureKind::Failed, &switch("s1"));
    assert!(failure.cause.contains("locked"), "{failure:?}");
    assert!(failure.next.contains("fuser"), "{failure:?}");
    let pair = &world.pairs("s1")[0];
    assert_eq!(
        (pair.state.as_str(), pair.authoritative),
        ("source-selected", Side::Source)
    );
    locker.execute_batch("ROLLBACK;").unwrap();
    world.changes(&switch("s1"));
}

/// A world whose volume is down because its map file was removed; `side` was authoritative.
fn without_map(side: Side) -> World {
    let world = selected(side);
    std::fs::remove_file(world.map("db")).unwrap();
    world.kill_ublk_target("db");
    let volume = world.wait("it fails", |world| {
        world.volume("db").filter(|volume| volume.state == "failed")
    });
    let problem = volume.problem.unwrap();
    for word in ["missing", "shunt recover db --authoritative"] {
        assert!(problem.contains(word), "no {word:?} in {problem}");
    }
    world
}

fn assert_recovered(world: &World, side: Side, state: &str, lun: &str) {
    let volume = world.wait("it comes back", |world| {
        world
            .volume("db")
            .filter(|volume| volume.state == "attached")
    });
    assert_eq!(volume.route, Some(Route::Single { leg: side }));
    world.wait_for_state("s1", state);
    assert_eq!(
        world.volume("db").unwrap().lun,
        world.directory.path().join(lun)
    );
}

#[test]
fn a_volume_without_its_map_file_goes_on_with_the_leg_that_the_operator_names() {
    for (side, state, stays, other) in [
        (Side::Source, "cancelled", "a", "b"),
        (Side::Target, "committed", "b", "a"),
    ] {
        let world = without_map(side);
        let path = world.directory.path().join(other);
        let before = std::fs::read(&path).unwrap();
        let messages = world.changes(&recover("db", side));
        for word in ["missing", "alone", "no longer used", "s1"] {
            assert!(messages.contains(word), "no {word:?} in {messages}");
        }
        assert_recovered(&world, side, state, stays);
        assert_eq!(std::fs::read(&path).unwrap(), before, "{other} was written");
        // The other leg is free for a new session.
        world.changes(&overwriting(create("s2", &[("db", &path)])));
        world.changes(&start("s2"));
        world.wait_for_state("s2", "source-selected");
    }
}

#[test]
fn a_leg_that_was_not_authoritative_is_taken_only_by_force() {
    let world = without_map(Side::Target);
    let failure = world.refused(&recover("db", Side::Source));
    for word in ["the target was authoritative", "lost"] {
        assert!(failure.cause.contains(word), "no {word:?} in {failure:?}");
    }
    assert!(!world.map("db").exists());
    let forced = |dry_run| Request::Recover {
        volume: "db".to_owned(),
        authoritative: Side::Source,
        against_record: true,
        dry_run,
    };
    let (changed, plan) = world.done(&forced(true));
    assert!(!changed && plan.contains("although"), "{plan}");
    assert!(!world.map("db").exists(), "asking changes nothing");
    world.changes(&forced(false));
    assert_recovered(&world, Side::Source, "cancelled", "a");
}

#[test]
fn what_is_served_or_whole_or_has_no_such_leg_is_not_recovered() {
    let world = selected(Side::Source);
    world.changes(&attach("plain", &world.lun("c", MIB, 2)));
    let failure = world.refused(&recover("db", Side::Source));
    assert!(failure.cause.contains("being served"), "{failure:?}");
    world.fails(FailureKind::NotFound, &recover("none", Side::Source));
    // The volume is down for another reason; its map file is whole.
    let lun = world.directory.path().join("c");
    let whole = std::fs::read(world.map("plain")).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let broken = text.replace(&*lun.to_string_lossy(), "/broken");
    std::fs::write(world.map("plain"), &broken).unwrap();
    world.kill_ublk_target("plain");
    world.wait("it fails", |world| {
        world
            .volume("plain")
            .filter(|volume| volume.state == "failed")
    });
    let failure = world.refused(&recover("plain", Side::Source));
    assert!(failure.cause.contains("whole"), "{failure:?}");
    // The map file is damaged. There is only one leg to choose from, and the damaged file is kept.
    std::fs::write(world.map("plain"), "garbage").unwrap();
    let failure = world.refused(&recover("plain", Side::Target));
    assert!(failure.cause.contains("one leg"), "{failure:?}");
    world.changes(&recover("plain", Side::Source));
    assert_eq!(world.volume("plain").unwrap().state, "attached");
    let directory = world.map("plain").parent().unwrap().to_owned();
    let garbage = std::fs::read_dir(directory)
        .unwrap()
        .any(|file| std::fs::read(file.unwrap().path()).is_ok_and(|bytes| bytes == b"garbage"));
    assert!(garbage, "the damaged map file is not kept");
}

#[test]
fn a_lock_whose_session_is_gone_is_explained_and_freed_and_no_other_one() {
    let world = World::new();
    let [source, target, free] =
        [("a", 1), ("b", 0), ("c", 0)].map(|(name, seed)| world.lun(name, MIB, seed));
    world.changes(&attach("db", &source));
    world.changes(&create("s1", &[("db", &target)]));
    let ask = |dry_run| world.done(&Request::FreeLocks { dry_run });
    let (changed, messages) = ask(false);
    assert!(!changed, "{messages:?}");
    assert_eq!(messages, "every lock has its holder");
    // Adds a lock as it remains when the row of its session was deleted by hand.
    let database = world.config.database();
    let lock = |path: &std::path::Path| {
        let opened = lun::Lun::open(path, &lun::OpenOptions::default()).unwrap();
        let row = LunRow {
            path: path.to_owned(),
            identity: opened.identity,
            seen: None,
        };
        Change::Lock(Lock {
            key: lock_key(&row),
            path: path.to_owned(),
            holder: "the target of volume log in session s0".to_owned(),
        })
    };
    let mut store = Store::open(&database).unwrap();
    store.apply(&[lock(&free)]).unwrap();
    let other = create("s2", &[("log", &free)]);
    world.changes(&attach("log", &world.lun("d", MIB, 2)));
    let failure = world.refused(&other);
    assert!(failure.cause.contains("session s0"), "{failure:?}");
    assert!(
        failure.next.contains("shunt recover --locks"),
        "{failure:?}"
    );
    let (changed, messages) = ask(true);
    assert!(changed && messages.contains("session s0"), "{messages}");
    assert_eq!(messages.lines().count(), 1, "{messages}");
    world.refused(&other);
    assert_eq!(ask(false), (true, messages));
    world.changes(&other);
    let freed = |line: &String| line.contains("is freed");
    assert_eq!(world.history().iter().filter(|line| freed(line)).count(), 1);
    // The other locks are unchanged.
    let locked = store.locks().unwrap();
    assert_eq!(locked.len(), 4, "{locked:?}");
}
