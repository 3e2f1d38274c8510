//! Tests of LUNs of many kinds and sizes, several volumes, discards, and the place of each byte.

use std::os::unix::fs::FileExt;

use tests::{
    host::Host,
    load::{self, Load},
    lun::{self, LoopDevice, Mapped},
    run, sh, wait_until,
};

const FAILED: i32 = 1;
const REFUSED: i32 = 3;
const MIB: u64 = 1 << 20;

/// Data that nothing else has written.
fn data(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()) << 32;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::from_fn(|| Some(word()))
        .flatten()
        .take(bytes)
        .collect()
}

fn write(device: &str, start: u64, data: &[u8]) {
    let file = std::fs::File::options().write(true).open(device).unwrap();
    file.write_all_at(data, start).unwrap();
    file.sync_all().unwrap();
}

fn read(device: &str, start: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    let file = std::fs::File::open(device).unwrap();
    file.read_exact_at(&mut data, start).unwrap();
    data
}

#[test]
fn data_written_in_every_state_is_on_the_leg_that_stays() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let device = Host::device("db");
    let mut written: Vec<(u64, Vec<u8>)> = Vec::new();
    // The writes are not aligned to regions.
    let mut write_more = || {
        let number = written.len() as u64;
        let (start, data) = (number * 13 * MIB + 512, data(number, 5 << 20));
        write(&device, start, &data);
        written.push((start, data));
    };
    write_more();
    host.ok(&["create", "move", &format!("db:{target}")]);
    write_more();
    host.ok(&["start", "move"]);
    write_more();
    host.ok(&["pause", "move"]);
    write_more();
    host.ok(&["resume", "move"]);
    host.wait_for("move", "source-selected");
    write_more();
    host.ok(&["switch", "move"]);
    write_more();
    host.ok(&["undo", "move"]);
    write_more();
    host.ok(&["switch", "move"]);
    write_more();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["commit", "move", "--yes"]);
    write_more();
    host.ok(&["detach", "db"]);
    for (number, (start, data)) in written.iter().enumerate() {
        let found = read(&target, *start, data.len());
        assert!(found == *data, "what was written in state {number} is lost");
    }
}

#[test]
fn a_cancelled_migration_leaves_everything_on_the_source() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let device = Host::device("db");
    let before = data(1, 3 << 20);
    host.ok(&["switch", "move"]);
    write(&device, 10 * MIB - 512, &before);
    host.ok(&["undo", "move"]);
    host.ok(&["cancel", "move", "--yes"]);
    let after = data(2, 3 << 20);
    write(&device, 20 * MIB - 512, &after);
    host.ok(&["detach", "db"]);
    assert!(read(&source, 10 * MIB - 512, before.len()) == before);
    assert!(read(&source, 20 * MIB - 512, after.len()) == after);
    assert!(
        read(&target, 20 * MIB - 512, after.len()) != after,
        "the target is still written after the cancel"
    );
    // The names are free again, and nothing stands in the way of another try.
    wait_until("the target is free", || lun::is_free(&target));
    host.bring_into_sync("db", &source, &target, "move");
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn volumes_that_end_in_the_middle_of_a_region_or_a_page_move_to_the_last_sector() {
    let host = Host::new();
    // Smaller than a region; three sectors more than three regions; a sector less than two regions.
    for (number, bytes) in [(64 << 10) + 512, 3 * MIB + 1536, 2 * MIB - 512]
        .into_iter()
        .enumerate()
    {
        let name = format!("odd{number}");
        let legs = [LoopDevice::new(bytes, 512), LoopDevice::new(bytes, 512)];
        for leg in &legs {
            write(&leg.path, 0, &data(7, usize::try_from(bytes).unwrap()));
        }
        let device = Host::device(&name);
        host.ok(&["attach", &name, &legs[0].path]);
        assert_eq!(lun::size(&device), bytes);
        let whole = data(number as u64, usize::try_from(bytes).unwrap());
        write(&device, 0, &whole);
        let pair = format!("{name}:{}", legs[1].path);
        host.ok(&["create", "odd", &pair, "--overwrite"]);
        host.ok(&["start", "odd"]);
        host.wait_for("odd", "source-selected");
        host.assert_legs_equal(&name, &legs[0].path, &legs[1].path);
        let load = [
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--bs_unaligned=0",
            "--iodepth=16",
            "--serialize_overlap=1",
            "--verify=crc32c",
        ];
        load::once(&device, &load).unwrap();
        host.ok(&["switch", "odd"]);
        let end = data(9, 512);
        write(&device, bytes - 512, &end);
        host.assert_legs_equal(&name, &legs[0].path, &legs[1].path);
        host.ok(&["commit", "odd", "--yes"]);
        host.ok(&["detach", &name]);
        assert!(read(&legs[1].path, bytes - 512, 512) == end);
    }
}

#[test]
fn zeroes_leave_both_legs_equal_and_discards_are_refused_while_there_are_two() {
    let host = Host::new();
    let (source, disk) = (lun::disk(0), lun::disk(1));
    let target = Mapped::slow_writes("shunt-test-slow", &disk, 50);
    host.ok(&["attach", "db", &source]);
    let device = Host::device("db");
    let mut place = 40;
    let mut wipe = |mirrored: bool| {
        write(&device, place * MIB, &data(place, 6 << 20));
        let offset = format!("{}", place * MIB + MIB / 2);
        let arguments = ["--offset", &offset, "--length", "2M", &device];
        let said = run("blkdiscard", &arguments);
        assert_eq!(said.status.success(), !mirrored, "{said:?}");
        let zeroes = format!("{}", (place + 4) * MIB);
        sh(
            "blkdiscard",
            &["--zeroout", "--offset", &zeroes, "--length", "1M", &device],
        );
        let found = read(&device, (place + 4) * MIB, 1 << 20);
        assert!(found.iter().all(|byte| *byte == 0), "zeroes were written");
        let kept = read(&device, place * MIB, 1 << 19);
        assert!(kept == data(place, 1 << 19), "more was discarded");
        if mirrored {
            let kept = read(&device, place * MIB, 4 << 20);
            assert!(kept == data(place, 6 << 20)[..4 << 20], "a refused discard");
        }
        place += 16;
    };
    let load = Load::start(&device, load::SMALL);
    wipe(false);
    host.ok(&["create", "move", &format!("db:{}", target.path())]);
    host.ok(&["start", "move"]);
    wipe(true);
    wipe(true);
    host.wait_for("move", "source-selected");
    wipe(true);
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["switch", "move", "--max-pause", "20"]);
    wipe(true);
    load.finish();
    host.assert_legs_equal("db", &source, &target.path());
    host.ok(&["commit", "move", "--yes"]);
    wipe(false);
    host.ok(&["detach", "db"]);
}

#[test]
fn the_volumes_of_a_session_move_together_or_not_at_all() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    let (log_source, log_disk) = (
        LoopDevice::new(32 << 20, 512),
        LoopDevice::new(48 << 20, 512),
    );
    let log_target = Mapped::slow_flushes("shunt-test-slow", &log_disk.path, 2000);
    host.ok(&["attach", "db", &source]);
    host.ok(&["attach", "log", &log_source.path]);
    host.ok(&[
        "create",
        "both",
        &format!("db:{target}"),
        &format!("log:{}", log_target.path()),
    ]);
    host.ok(&["start", "both"]);
    host.wait_for("both", "source-selected");
    let on = |leg: &str| {
        for volume in ["db", "log"] {
            let route = host.connect(volume).status().route.authoritative();
            assert_eq!(serde_json::to_value(route).unwrap(), leg, "{volume}");
        }
    };
    on("source");
    let loads = ["db", "log"].map(|volume| Load::start(&Host::device(volume), load::LITTLE));
    for load in &loads {
        load.go_on();
    }
    // The second volume cannot follow in time, so the first one goes back.
    let said = host.shunt(&["switch", "both", "--max-pause", "0.5"]);
    assert_eq!(said.code, FAILED, "{said:?}");
    assert!(said.error.contains("log"), "{said:?}");
    host.wait_for("both", "source-selected");
    on("source");
    log_target.mend_it();
    host.ok(&["switch", "both"]);
    host.wait_for("both", "target-selected");
    on("target");
    host.ok(&["undo", "both"]);
    on("source");
    // If one volume cannot be switched, none is.
    log_target.break_it();
    wait_until("the second pair is degraded", || {
        host.records()
            .iter()
            .any(|record| record["volume"] == "log" && record["state"] == "degraded")
    });
    host.refused(&["switch", "both"], REFUSED, &["both", "log"]);
    on("source");
    log_target.mend_it();
    host.ok(&["resume", "both"]);
    host.wait_for("both", "source-selected");
    for load in loads {
        load.finish();
    }
    host.assert_legs_equal("db", &source, &target);
    host.assert_legs_equal("log", &log_source.path, &log_target.path());
    host.ok(&["switch", "both"]);
    host.ok(&["commit", "both", "--yes"]);
    host.ok(&["detach", "db"]);
    host.ok(&["detach", "log"]);
}

#[test]
fn a_volume_over_several_luns_moves_onto_others_through_deaths_and_back() {
    let mut host = Host::new();
    // No LUN ends where a region ends, and no source ends where a target ends.
    let new = |bytes: u64| LoopDevice::new(bytes, 512);
    let sources = [new(24 * MIB + 12288), new(40 * MIB)];
    let targets = [new(10 * MIB + 20480), new(30 * MIB + 4096), new(32 * MIB)];
    let paths =
        |luns: &[LoopDevice]| -> Vec<String> { luns.iter().map(|lun| lun.path.clone()).collect() };
    let size = 64 * MIB + 12288;
    let seams = [24 * MIB + 12288, 10 * MIB + 20480, 40 * MIB + 20480 + 4096];
    let luns = paths(&sources);
    host.ok(&["attach", "db", &luns[0], &luns[1]]);
    let device = Host::device("db");
    assert_eq!(lun::size(&device), size);
    let mut image = data(1, usize::try_from(size).unwrap());
    write(&device, 0, &image);
    let mut seed = 2;
    // Writes over every seam between two LUNs, whichever leg has it.
    let mut write_over_seams = || {
        for seam in seams {
            let part = data(seed, 3 * 4096);
            let start = seam - 4096 - 512;
            write(&device, start, &part);
            let at = usize::try_from(start).unwrap();
            image[at..at + part.len()].copy_from_slice(&part);
            seed += 1;
        }
    };
    let target = paths(&targets).join(",");
    host.ok(&["create", "move", &format!("db:{target}"), "--rate", "16MiB"]);
    host.ok(&["start", "move"]);
    assert_eq!(host.pair("move")["target"], target);
    write_over_seams();
    host.kill_target("db");
    write_over_seams();
    host.kill_shuntd();
    write_over_seams();
    host.start_shuntd();
    host.ok(&["set", "move", "--rate", "unlimited"]);
    host.wait_for("move", "source-selected");
    write_over_seams();
    host.ok(&["switch", "move"]);
    write_over_seams();
    host.kill_target("db");
    host.wait_until_in_sync("move");
    host.ok(&["undo", "move"]);
    write_over_seams();
    host.ok(&["verify", "move"]);
    wait_until("they are compared, and nothing differs", || {
        host.pair("move")["verification"]["differing_bytes"] == 0
    });
    host.ok(&["switch", "move"]);
    write_over_seams();
    host.ok(&["commit", "move", "--yes"]);
    write_over_seams();
    host.ok(&["detach", "db"]);
    let found: Vec<u8> = paths(&targets)
        .iter()
        .flat_map(|lun| std::fs::read(lun).unwrap())
        .collect();
    assert!(
        found[..image.len()] == image,
        "another volume is on the targets"
    );
    let luns = paths(&targets);
    host.ok(&["attach", "db", &luns[0], &luns[1], &luns[2]]);
    assert!(read(&device, 0, image.len()) == image);
    host.ok(&["detach", "db"]);
}

#[test]
fn two_volumes_move_onto_partitions_of_one_lun() {
    let host = Host::new();
    let large = LoopDevice::new(64 * MIB, 512);
    sh(
        "bash",
        &[
            "-c",
            &format!(
                "printf 'label: gpt\\nsize=24M\\nsize=24M\\n' | sfdisk -q {0} && partx -u {0} && udevadm settle",
                large.path
            ),
        ],
    );
    let sources = [(); 2].map(|()| LoopDevice::new(24 * MIB, 512));
    let mut pairs = Vec::new();
    let mut images = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let (volume, target) = (
            format!("v{number}"),
            format!("{}p{}", large.path, number + 1),
        );
        host.ok(&["attach", &volume, &source.path]);
        let image = data(number as u64 + 50, 24 << 20);
        write(&Host::device(&volume), 0, &image);
        images.push((target.clone(), image));
        pairs.push(format!("{volume}:{target}"));
    }
    host.ok(&["create", "move", &pairs[0], &pairs[1]]);
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    for (number, (target, image)) in images.iter().enumerate() {
        let volume = format!("v{number}");
        assert!(read(&Host::device(&volume), 0, image.len()) == *image);
        host.ok(&["detach", &volume]);
        assert!(read(target, 0, image.len()) == *image);
    }
    sh("partx", &["-d", &large.path]);
}
