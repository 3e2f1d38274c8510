//! The whole copier against a stand-in for `ublk-target`, over regular files.

mod stand_in;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use lun::Lun;
use migration_proto::route::Leg;
use migration_proto::target::Response;
use migration_proto::{Hello, Protocols, Welcome, frame};

use stand_in::*;

use super::compare::Found;
use super::*;

/// The longest time that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(60);
fn config(socket: &Path) -> Config {
    Config {
        queue_depth: 4,
        io_bytes: 64 << 10,
        ..Config::new(socket.to_owned())
    }
}

fn start(config: Config, limits: &Arc<Limits>) -> (Copier, Receiver<Outcome>) {
    let (sender, ended) = mpsc::channel();
    let copier = Copier::start(config, Arc::clone(limits), None, move |outcome| {
        sender.send(outcome).unwrap();
    });
    (copier.unwrap(), ended)
}

/// Runs a copier to its end.
fn run(config: Config) -> (Outcome, Arc<Progress>) {
    let (copier, ended) = start(config, &Arc::default());
    let outcome = ended.recv_timeout(DEADLINE).unwrap();
    let progress = Arc::clone(copier.progress());
    assert_eq!(copier.stop(), outcome);
    (outcome, progress)
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn is_unlocked(path: &Path) -> bool {
    let lun = Lun::open(path, &direct(true)).unwrap();
    lun.try_lock_exclusive().unwrap()
}

#[test]
fn a_volume_of_odd_size_on_two_extents_each_is_copied_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let names = ["from-1", "from-2", "to-1", "to-2"];
    for (seed, name) in (0..).zip(names) {
        let bytes = if name.starts_with("from") {
            pattern(seed, 4 << 20)
        } else {
            vec![OLD; 4 << 20]
        };
        write_file(&path(name), &bytes);
    }
    let block = u64::from(
        Lun::open(&path("from-1"), &direct(false))
            .unwrap()
            .identity
            .logical_block_bytes,
    );
    let size_bytes = 21 * 256 * KIB + 5 * block;
    let (first_from, first_to) = (9 * 256 * KIB + 3 * block, 11 * 256 * KIB - 7 * block);
    let volume = Volume {
        region_bytes: 256 * KIB,
        size_bytes,
        from: Leg {
            extents: vec![
                extent(&path("from-1"), 17 * block, first_from),
                // The leg may be longer than the volume.
                extent(&path("from-2"), block, size_bytes - first_from + 9 * block),
            ],
        },
        to: Leg {
            extents: vec![
                extent(&path("to-1"), 2 * block, first_to),
                extent(&path("to-2"), 33 * block, size_bytes - first_to),
            ],
        },
        to_device: None,
        busy: Vec::new(),
        compare_first: false,
        folder,
    };
    // 7 and 22 have no common divisor: every region once, and no two neighbours in succession.
    let order = (0..22).map(|at| at * 7 % 22).collect();
    let target = Target::start(volume, order, grant(3));
    let (outcome, progress) = run(config(&target.socket));
    let (volume, mut seen) = target.join();
    assert_eq!(outcome, Outcome::InSync);
    volume.assert_copied();
    seen.copied.sort_unstable();
    assert_eq!(seen.copied, (0..volume.regions()).collect::<Vec<_>>());
    assert_eq!(progress.copied_bytes.load(Ordering::Relaxed), size_bytes);
    for extent in &volume.to.extents {
        let bytes = fs::read(&extent.path).unwrap();
        let (start, end) = (
            extent.start_bytes as usize,
            (extent.start_bytes + extent.length_bytes) as usize,
        );
        let outside = bytes[..start].iter().chain(&bytes[end..]);
        assert!(
            outside.into_iter().all(|byte| *byte == OLD),
            "{:?}",
            extent.path
        );
    }
}

#[test]
fn legs_that_may_be_equal_are_written_only_where_they_differ() {
    const REGION: u64 = 256 * KIB;
    let mut volume = Volume::simple(8, REGION);
    volume.compare_first = true;
    let path = volume.to.extents[0].path.clone();
    let mut bytes = fs::read(&volume.from.extents[0].path).unwrap();
    bytes[(3 * REGION + 4096) as usize] ^= 1;
    write_file(&path, &bytes);
    let target = Target::start(volume, (0..8).collect(), grant(3));
    let (outcome, progress) = run(Config {
        io_bytes: 64 << 10,
        ..config(&target.socket)
    });
    let (volume, seen) = target.join();
    assert_eq!(outcome, Outcome::InSync);
    volume.assert_copied();
    assert_eq!(seen.copied.len(), 8);
    assert_eq!(progress.copied_bytes.load(Ordering::Relaxed), 8 * REGION);
    assert_eq!(progress.differing_bytes.load(Ordering::Relaxed), 64 << 10);
}

#[test]
fn both_legs_are_compared_and_what_differs_is_told() {
    const REGION: u64 = 256 * KIB;
    let mut volume = Volume::simple(8, REGION);
    let mut bytes = volume.contents(&volume.from);
    bytes[3 * REGION as usize + 77] ^= 1;
    *bytes.last_mut().unwrap() ^= 1;
    write_file(&volume.path("to"), &bytes);
    volume.busy = vec![5];
    let target = Target::start(volume, Vec::new(), grant(0));
    let (outcome, progress) = run(Config {
        task: Task::Compare,
        ..config(&target.socket)
    });
    let (volume, mut seen) = target.join();
    let found = Found {
        compared_bytes: 8 * REGION,
        differing_bytes: 2 * REGION,
        first_difference_bytes: Some(3 * REGION),
        ..Found::default()
    };
    assert_eq!(outcome, Outcome::Compared(found));
    seen.same.sort_unstable();
    seen.differing.sort_unstable();
    assert_eq!(
        (seen.same, seen.differing),
        (vec![0, 1, 2, 4, 5, 6], vec![3, 7])
    );
    assert!(!seen.found_busy.is_empty() && seen.found_busy.iter().all(|region| *region == 5));
    assert!(progress.compared_bytes.load(Ordering::Relaxed) > 6 * REGION);
    assert_eq!(progress.copied_bytes.load(Ordering::Relaxed), 0);
    assert!(
        volume.contents(&volume.to) == bytes,
        "a comparison has written"
    );
}

#[test]
fn what_is_read_back_counts_as_copied() {
    let volume = Volume::simple(8, 256 * KIB);
    let target = Target::start(volume, (0..8).collect(), grant(3));
    let (outcome, progress) = run(Config {
        task: Task::Copy { read_back: true },
        ..config(&target.socket)
    });
    let (volume, seen) = target.join();
    assert_eq!(outcome, Outcome::InSync);
    volume.assert_copied();
    assert_eq!(seen.copied.len(), 8);
    assert_eq!(
        progress.copied_bytes.load(Ordering::Relaxed),
        volume.size_bytes
    );
}

#[test]
fn two_extents_on_one_lun_are_one_lock() {
    let mut volume = Volume::simple(8, 64 * KIB);
    let half = 4 * 64 * KIB;
    let to = volume.path("to");
    volume.to.extents = vec![extent(&to, half, half), extent(&to, 0, half)];
    let target = Target::start(volume, (0..8).collect(), grant(8));
    let (outcome, _) = run(config(&target.socket));
    assert_eq!(outcome, Outcome::InSync);
    target.join().0.assert_copied();
}

#[test]
fn a_late_answer_to_a_claim_does_not_stop_the_copying() {
    let volume = Volume::simple(64, 64 * KIB);
    let on_claim: OnClaim = Box::new(|volume, seen, _| {
        if seen.claims == 2 {
            wait_until("the first four regions are copied meanwhile", || {
                (0..4).all(|region| volume.same(region))
            });
        }
        Answer::Grant(4)
    });
    let target = Target::start(volume, (0..64).collect(), on_claim);
    let (outcome, _) = run(config(&target.socket));
    assert_eq!(outcome, Outcome::InSync);
    target.join().0.assert_copied();
}

#[test]
fn zeroes_are_deallocated_and_data_is_written() {
    let volume = Volume::simple(16, 256 * KIB);
    let from = File::options()
        .write(true)
        .open(volume.path("from"))
        .unwrap();
    // Regions 3 to 9, and of region 12 all but its last byte.
    from.write_all_at(&vec![0; (7 * 256) << 10], 3 * 256 * KIB)
        .unwrap();
    from.write_all_at(&vec![0; (256 << 10) - 1], 12 * 256 * KIB)
        .unwrap();
    from.sync_all().unwrap();
    let blocks_before = fs::metadata(volume.path("to")).unwrap().blocks();
    let target = Target::start(volume, (0..16).collect(), grant(16));
    let (outcome, progress) = run(Config {
        detect_zeroes: true,
        ..config(&target.socket)
    });
    let (volume, _) = target.join();
    assert_eq!(outcome, Outcome::InSync);
    volume.assert_copied();
    let zero_bytes = 7 * 256 * KIB + 3 * 64 * KIB;
    assert_eq!(progress.zero_bytes.load(Ordering::Relaxed), zero_bytes);
    assert_eq!(
        progress.copied_bytes.load(Ordering::Relaxed),
        volume.size_bytes
    );
    let blocks = fs::metadata(volume.path("to")).unwrap().blocks();
    assert!(
        blocks * 512 + zero_bytes <= blocks_before * 512 + 64 * KIB,
        "{blocks}"
    );
}

#[test]
fn zeroes_are_written_without_the_flag() {
    let volume = Volume::simple(4, 64 * KIB);
    write_file(&volume.path("from"), &vec![0; (4 * 64) << 10]);
    let target = Target::start(volume, (0..4).collect(), grant(4));
    let (outcome, progress) = run(config(&target.socket));
    assert_eq!(outcome, Outcome::InSync);
    assert_eq!(progress.zero_bytes.load(Ordering::Relaxed), 0);
    target.join().0.assert_copied();
}

#[test]
fn regions_that_cannot_be_read_are_reported_and_the_others_copied() {
    let volume = Volume::simple(40, 64 * KIB);
    let length = 20 * 64 * KIB + 1000;
    let on_claim: OnClaim = Box::new(move |volume, seen, _| {
        if seen.claims == 1 {
            // The LUN ends in the middle of region 20 after it was opened.
            let from = File::options().write(true).open(volume.path("from"));
            from.unwrap().set_len(length).unwrap();
        }
        Answer::Grant(40)
    });
    let order = vec![39, 0, 20, 1]
        .into_iter()
        .chain(2..20)
        .chain(21..39)
        .collect();
    let target = Target::start(volume, order, on_claim);
    let (outcome, progress) = run(config(&target.socket));
    let (volume, seen) = target.join();
    let Outcome::Failed { side, cause } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(side, Side::Source);
    assert!(cause.starts_with("cannot read 65536 bytes at "), "{cause}");
    assert!(
        cause.ends_with("/from: the LUN ends before that"),
        "{cause}"
    );
    let mut copied = seen.copied;
    copied.sort_unstable();
    assert_eq!(copied, (0..20).collect::<Vec<_>>());
    assert!(seen.failed.len() >= 16 && seen.failed.iter().all(|region| *region >= 20));
    assert!(seen.errors.iter().all(|error| error.side == Side::Source));
    assert_eq!(
        progress.failed_regions.load(Ordering::Relaxed),
        seen.failed.len() as u64
    );
    File::options()
        .write(true)
        .open(volume.path("from"))
        .unwrap()
        .set_len(volume.size_bytes)
        .unwrap();
    assert!((0..20).all(|region| volume.same(region)));
}

#[test]
fn a_stop_reports_what_is_finished_and_unlocks() {
    let volume = Volume::simple(64, 64 * KIB);
    let to = volume.path("to");
    let locked = to.clone();
    let on_claim: OnClaim = Box::new(move |_, _, _| {
        assert!(!is_unlocked(&locked), "claimed before it was locked");
        Answer::Grant(1)
    });
    let target = Target::start(volume, (0..64).collect(), on_claim);
    // The limit lets one region through, and the next one after more than a day.
    let limits = Arc::new(Limits {
        bytes_per_second: AtomicU64::new(1),
        ..Limits::default()
    });
    let (copier, ended) = start(config(&target.socket), &limits);
    let progress = Arc::clone(copier.progress());
    wait_until("one region is copied", || {
        progress.copied_bytes.load(Ordering::Relaxed) > 0
    });
    assert_eq!(copier.stop(), Outcome::Stopped);
    assert!(is_unlocked(&to));
    assert_eq!(ended.recv_timeout(DEADLINE).unwrap(), Outcome::Stopped);
    let (volume, seen) = target.join();
    assert_eq!((seen.copied, seen.claims), (vec![0], 1));
    assert!(volume.same(0) && !volume.same(1));
}

#[test]
fn a_stop_while_a_claim_is_not_answered_ends_soon() {
    let volume = Volume::simple(64, 64 * KIB);
    let to = volume.path("to");
    let on_claim: OnClaim = Box::new(|_, seen, _| match seen.claims {
        1 => Answer::Grant(4),
        _ => Answer::Never,
    });
    let target = Target::start(volume, (0..64).collect(), on_claim);
    let (copier, _ended) = start(config(&target.socket), &Arc::default());
    let progress = Arc::clone(copier.progress());
    wait_until("four regions are copied", || {
        progress.copied_bytes.load(Ordering::Relaxed) == 4 * 64 * KIB
    });
    let asked_at = Instant::now();
    assert_eq!(copier.stop(), Outcome::Stopped);
    assert!(asked_at.elapsed() < plan::ANSWER_PATIENCE);
    assert!(is_unlocked(&to));
    target.join();
}

#[test]
fn a_changed_limit_works_at_once() {
    let volume = Volume::simple(64, 64 * KIB);
    let target = Target::start(volume, (0..64).collect(), grant(64));
    let limits = Arc::new(Limits {
        bytes_per_second: AtomicU64::new(1),
        ..Limits::default()
    });
    let (copier, ended) = start(config(&target.socket), &limits);
    wait_until("one region is copied", || {
        copier.progress().copied_bytes.load(Ordering::Relaxed) == 64 * KIB
    });
    limits.bytes_per_second.store(0, Ordering::Relaxed);
    assert_eq!(ended.recv_timeout(DEADLINE).unwrap(), Outcome::InSync);
    target.join().0.assert_copied();
}

#[test]
fn the_death_of_ublk_target_ends_the_copier_and_unlocks() {
    for claims in 1..4 {
        let volume = Volume::simple(64, 64 * KIB);
        let to = volume.path("to");
        let on_claim: OnClaim = Box::new(move |_, seen, _| match seen.claims {
            count if count < claims => Answer::Grant(8),
            _ => Answer::HangUp,
        });
        let target = Target::start(volume, (0..64).collect(), on_claim);
        let (outcome, _) = run(config(&target.socket));
        assert!(
            matches!(outcome, Outcome::Disconnected { .. }),
            "{outcome:?}"
        );
        assert!(is_unlocked(&to));
        // All regions that were reported copied are equal on both legs.
        let (volume, seen) = target.join();
        assert!(seen.copied.iter().all(|region| volume.same(*region)));
    }
}

#[test]
fn nothing_is_written_to_another_lun_than_the_recorded_one() {
    let mut volume = Volume::simple(4, 64 * KIB);
    volume.to.extents[0].identity = volume.from.extents[0].identity.clone();
    let target = Target::start(volume, (0..4).collect(), grant(4));
    let (outcome, _) = run(config(&target.socket));
    let Outcome::Refused { reason, cause } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(reason, Refusal::BadLeg);
    assert!(
        cause.contains("is not the LUN that was recorded"),
        "{cause}"
    );
    let (volume, seen) = target.join();
    assert_eq!(seen.claims, 0);
    volume.assert_untouched();
}

#[test]
fn nothing_is_written_to_another_device_than_ublk_target_has_open() {
    let mut volume = Volume::simple(4, 64 * KIB);
    volume.to_device = Some((8, 16));
    let target = Target::start(volume, (0..4).collect(), grant(4));
    let (outcome, _) = run(config(&target.socket));
    let Outcome::Refused { reason, cause } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(reason, Refusal::BadLeg);
    assert!(cause.contains("another device"), "{cause}");
    let (volume, seen) = target.join();
    assert_eq!(seen.claims, 0);
    volume.assert_untouched();
}

#[test]
fn an_extent_beyond_the_end_of_its_lun_is_refused() {
    let mut volume = Volume::simple(4, 64 * KIB);
    volume.to.extents[0].start_bytes = 4096;
    let target = Target::start(volume, (0..4).collect(), grant(4));
    let (outcome, _) = run(config(&target.socket));
    let reason = Refusal::BadLeg;
    assert!(matches!(outcome, Outcome::Refused { reason: found, .. } if found == reason));
    assert_eq!(target.join().1.claims, 0);
}

#[test]
fn nothing_is_written_to_a_lun_that_somebody_else_has_locked() {
    let volume = Volume::simple(4, 64 * KIB);
    let to = volume.path("to");
    let other = Lun::open(&to, &direct(true)).unwrap();
    assert!(other.try_lock_exclusive().unwrap());
    let target = Target::start(volume, (0..4).collect(), grant(4));
    let (outcome, _) = run(config(&target.socket));
    let reason = Refusal::CopierBusy;
    assert!(matches!(outcome, Outcome::Refused { reason: found, .. } if found == reason));
    let (volume, seen) = target.join();
    assert_eq!(seen.claims, 0);
    volume.assert_untouched();
}

#[test]
fn a_grant_of_another_epoch_is_not_copied() {
    let volume = Volume::simple(4, 64 * KIB);
    let on_claim: OnClaim = Box::new(|_, _, _| {
        Answer::Say(Response::Claimed {
            epoch: EPOCH + 1,
            regions: vec![0],
            never_copied: Vec::new(),
            dirty_bytes: 4 * 64 * KIB,
        })
    });
    let target = Target::start(volume, (0..4).collect(), on_claim);
    let (outcome, _) = run(config(&target.socket));
    let reason = Refusal::StaleEpoch;
    assert!(matches!(outcome, Outcome::Refused { reason: found, .. } if found == reason));
    target.join().0.assert_untouched();
}

#[test]
fn a_refused_claim_is_the_end() {
    let volume = Volume::simple(4, 64 * KIB);
    let refusal = (Refusal::Failed, "the mirror leg failed".to_owned());
    let (reason, cause) = refusal.clone();
    let on_claim: OnClaim = Box::new(move |_, _, _| {
        let cause = cause.clone();
        Answer::Say(Response::Refused { reason, cause })
    });
    let target = Target::start(volume, (0..4).collect(), on_claim);
    let (outcome, _) = run(config(&target.socket));
    let (reason, cause) = refusal;
    assert_eq!(outcome, Outcome::Refused { reason, cause });
    target.join();
}

#[test]
fn a_stop_does_not_wait_for_a_greeting() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (copier, _ended) = start(config(&socket), &Arc::default());
    let (mut stream, _) = listener.accept().unwrap();
    let _: Hello = frame::read(&mut stream).unwrap();
    assert_eq!(copier.stop(), Outcome::Stopped);
}

#[test]
fn another_protocol_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (_copier, ended) = start(config(&socket), &Arc::default());
    let (mut stream, _) = listener.accept().unwrap();
    let _: Hello = frame::read(&mut stream).unwrap();
    let speaks = Protocols {
        oldest: 98,
        newest: 99,
    };
    frame::write(&mut stream, &Welcome::WrongProtocol { speaks }).unwrap();
    let outcome = ended.recv_timeout(DEADLINE).unwrap();
    let Outcome::Refused { cause, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(cause.contains("protocols 98 to 99"), "{cause}");
}

#[test]
fn without_ublk_target_the_copier_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, _) = run(config(&folder.path().join("nothing")));
    assert!(
        matches!(outcome, Outcome::Disconnected { .. }),
        "{outcome:?}"
    );
}

#[test]
fn a_configuration_out_of_bounds_is_refused() {
    let good = Config::new("/socket".into());
    assert!(good.check().is_ok());
    for (queue_depth, io_bytes) in [(0, 4096), (1025, 4096), (1, 0), (1, 4097), (1, 32 << 20)] {
        let bad = Config {
            queue_depth,
            io_bytes,
            ..good.clone()
        };
        let error = bad.check().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
