//! Tests what a crash would leave on the legs and of the map file, at many moments of one run, from
//! the writes and flushes that each disk was given.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use map_store::MapFile;
use migration_core::route::Side;
use tests::{
    host::Host,
    logged::{Logged, Replay},
    lun::{self, Mounted},
    power::{self, BLOCK_BYTES, Mark, SECTOR_BYTES},
    random::Random,
    run, sh, wait_until,
};

const LEG_BYTES: u64 = 16 << 20;
const STATE_BYTES: u64 = 16 << 20;
const LIFE: u64 = 1;
const WRITES_OF_A_ROUND: u64 = 24;

#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES as usize]);

/// An application that has one write in flight.
struct Writer {
    volume: File,
    random: Random,
    block: Box<Block>,
    /// Where each write went.
    offsets: Vec<u64>,
    flushed: usize,
}

impl Writer {
    fn new() -> Self {
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_DIRECT);
        Self {
            volume: options.open(Host::device("db")).unwrap(),
            random: Random::new(LIFE),
            block: Box::new(Block([0; BLOCK_BYTES as usize])),
            offsets: Vec::new(),
            flushed: 0,
        }
    }

    /// Writes a block somewhere in one half of the volume.
    fn write(&mut self, half: u64) {
        let blocks = LEG_BYTES / 2 / BLOCK_BYTES;
        let offset = (half * blocks + self.random.below(blocks)) * BLOCK_BYTES;
        let number = self.offsets.len() as u64;
        let sectors = self.block.0.chunks_exact_mut(SECTOR_BYTES as usize);
        for (place, sector) in (offset..).step_by(SECTOR_BYTES as usize).zip(sectors) {
            power::encode(sector, place, Mark { life: LIFE, number });
        }
        self.volume.write_all_at(&self.block.0, offset).unwrap();
        self.offsets.push(offset);
    }

    fn flush(&mut self) {
        self.volume.sync_data().unwrap();
        self.flushed = self.offsets.len();
    }
}

/// What had happened when the logs were marked.
#[derive(Debug, Clone, Copy)]
struct Moment {
    written: usize,
    flushed: usize,
    authoritative: Side,
}

#[test]
fn at_every_flush_point_a_crash_leaves_what_was_flushed_and_marks_where_the_legs_differ() {
    let state = Logged::new("shunt-test-state", &lun::disk(2), STATE_BYTES);
    let source = Logged::new("shunt-test-source", &lun::disk(0), LEG_BYTES);
    let target = Logged::new("shunt-test-target", &lun::disk(1), LEG_BYTES);
    sh("mkfs.ext4", &["-q", "-E", "nodiscard", &state.path()]);
    let mounted = Mounted::new(&state.path());
    let host = Host::with_state(&mounted.path().join("shunt"));
    host.ok(&["attach", "db", &source.path()]);
    let pair = format!("db:{}", target.path());
    host.ok(&["create", "move", &pair, "--overwrite"]);
    host.ok(&["start", "move"]);

    let mut writer = Writer::new();
    let mut moments = Vec::new();
    let mut authoritative = Side::Source;
    for round in 0..9 {
        match round {
            4 => wait_until("the copied half has lost its marks", || {
                let map = MapFile::open_read_only(&host.map("db")).unwrap();
                let regions = map.chosen.record.geometry.regions();
                (regions / 2..regions).all(|region| !is_marked(&map, region))
            }),
            5 => {
                host.ok(&["switch", "move", "--max-pause", "60"]);
                authoritative = Side::Target;
            }
            7 => {
                host.ok(&["undo", "move", "--max-pause", "60"]);
                authoritative = Side::Source;
            }
            _ => {}
        }
        // The second half is copied and loses its marks, then it is written to.
        let half = u64::from(round >= 6);
        (0..WRITES_OF_A_ROUND).for_each(|_| writer.write(half));
        if round % 2 == 0 {
            writer.flush();
        }
        // The application waits, so a region that is not marked in the map now gets no mark before
        // the logs of the legs are marked.
        for device in [&state, &source, &target] {
            device.mark(round);
        }
        moments.push(Moment {
            written: writer.offsets.len(),
            flushed: writer.flushed,
            authoritative,
        });
    }
    let offsets = std::mem::take(&mut writer.offsets);
    drop(writer);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
    let map = host
        .map("db")
        .strip_prefix(mounted.path())
        .unwrap()
        .to_owned();
    drop(host);
    drop(mounted);

    let mut replay = [state, source, target].map(Logged::replay);
    let mut random = Random::new(1);
    // Regions that had to be equal, regions that did not, and writes that only a cache had.
    let mut seen = [0; 3];
    for (mark, moment) in (0..).zip(&moments) {
        let [state, source, target] = &mut replay;
        let map = map_at(state.advance(mark), &map);
        let legs = [source, target].map(|leg| {
            let mut contents = leg.advance(mark).to_vec();
            seen[2] += keep_some_of_the_cache(leg, moment, &mut random, &mut contents);
            contents
        });
        assert_eq!(
            map.chosen.record.route.authoritative(),
            moment.authoritative
        );
        let [equal, marked] = compare(&map, &legs, mark);
        seen[0] += equal;
        seen[1] += marked;
        let leg = &legs[usize::from(moment.authoritative == Side::Target)];
        check_flushed(leg, &offsets, moment, mark);
    }
    let flushes = replay.each_ref().map(Replay::flushes);
    println!("equal, marked, cached: {seen:?}; flushes: {flushes:?}");
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// The map file of a state directory's file system after a crash.
fn map_at(contents: &[u8], map: &Path) -> MapFile {
    let folder = tempfile::tempdir_in("/run").unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, contents).unwrap();
    let image = image.to_string_lossy();
    // Replays the journal, as mounting does after a crash. Status 1: something was repaired.
    let status = run("e2fsck", &["-y", "-E", "journal_only", &image]).status;
    assert!(matches!(status.code(), Some(0 | 1)), "e2fsck: {status}");
    let out = folder.path().join("map");
    let dump = format!("dump /{} {}", map.display(), out.display());
    sh("debugfs", &["-R", &dump, &image]);
    MapFile::open_read_only(&out).unwrap()
}

/// Applies a random selection of the writes that were in the cache, as a crash may leave any of
/// them. Returns their number.
fn keep_some_of_the_cache(
    leg: &Replay,
    moment: &Moment,
    random: &mut Random,
    contents: &mut [u8],
) -> usize {
    let mut kept = 0;
    for write in leg.until_next_flush() {
        let sectors = write.data.chunks_exact(SECTOR_BYTES as usize);
        let places = (write.offset..).step_by(SECTOR_BYTES as usize);
        let came_later = places.zip(sectors).any(|(place, sector)| {
            let mark = power::decode(sector, place).unwrap_or_default();
            mark.life == LIFE && mark.number >= moment.written as u64
        });
        if !came_later && random.below(2) == 0 {
            write.apply(contents);
            kept += 1;
        }
    }
    kept
}

fn is_marked(map: &MapFile, region: usize) -> bool {
    let is_in = |bitmap: &[u64]| bitmap[region / 64] >> (region % 64) & 1 == 1;
    is_in(&map.dirty) || is_in(&map.intent)
}

/// Checks that regions without a mark are equal. Returns the number of regions without a mark, and
/// with one.
fn compare(map: &MapFile, legs: &[Vec<u8>; 2], mark: u64) -> [usize; 2] {
    let record = &map.chosen.record;
    let mut counts = [0; 2];
    if record.route.mirror().is_none() {
        return counts;
    }
    let region_bytes = record.geometry.region_bytes() as usize;
    let both = legs[0]
        .chunks(region_bytes)
        .zip(legs[1].chunks(region_bytes));
    for (region, (source, target)) in both.enumerate() {
        let marked = is_marked(map, region);
        assert!(
            marked || source == target,
            "moment {mark}: region {region} is not marked, and a crash would leave the legs different there"
        );
        counts[usize::from(marked)] += 1;
    }
    counts
}

/// Checks that each block that was flushed holds that write or one that came after it.
fn check_flushed(leg: &[u8], offsets: &[u64], moment: &Moment, mark: u64) {
    let flushed = offsets[..moment.flushed].iter().copied();
    let last: BTreeMap<u64, u64> = flushed.zip(0..).collect();
    for (offset, last) in last {
        for place in (offset..offset + BLOCK_BYTES).step_by(SECTOR_BYTES as usize) {
            let sector = &leg[place as usize..][..SECTOR_BYTES as usize];
            let found = power::decode(sector, place).filter(|found| {
                let written = found.number < moment.written as u64;
                found.life == LIFE && written && offsets[found.number as usize] == offset
            });
            assert!(
                found.is_some_and(|found| found.number >= last),
                "moment {mark}: write {last} to {offset} was flushed, and a crash would leave {found:?} at {place}"
            );
        }
    }
}
