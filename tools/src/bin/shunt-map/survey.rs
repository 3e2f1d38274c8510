//! Reads everything of a map file that can be read, whatever is damaged.
//!
//! A file is whole only if [`MapFile::open_read_only`], the code that `ublk-target` uses, accepts
//! it. The survey also names all of the damage instead of the first, and reads the slots that are
//! not in use now but would be later.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use map_store::MapFile;
use migration_core::{
    map::{self, Area, BitmapSector, Chosen, MapError, RoleRecord, SECTOR_BYTES, SECTOR_REGIONS},
    units::RegionIndex,
};
use migration_proto::route::Descriptor;
use tools::Runs;

/// How many times a file that looks damaged is read: its volume may be served, and a sector may be
/// half written at the time of the read.
const LOOKS_MAX: u32 = 3;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// One of the two role slots.
#[derive(Debug)]
pub(crate) enum Slot {
    /// The slot has a role record.
    Valid(RoleRecord),
    /// The slot has no role record: it was never written, or the record is torn or damaged.
    Invalid,
    /// The slot has a whole record that cannot be used.
    Refused(MapError),
    /// The slot cannot be read; the text is the cause.
    Unread(String),
}

/// One of the two descriptor slots.
#[derive(Debug)]
pub(crate) struct DescriptorSlot {
    /// The role slots whose records name this descriptor slot.
    pub named_by: Vec<usize>,
    /// The descriptor; `None` if the bytes are not one.
    pub descriptor: Option<Descriptor>,
    /// Whether the bytes match the checksum in a role record that names this slot.
    pub verified: bool,
}

/// One of the two bitmaps.
#[derive(Debug)]
pub(crate) struct Bitmap {
    /// Which of the two bitmaps.
    pub area: Area,
    /// The regions whose bits are set, as far as they can be read.
    pub regions: Runs,
    /// The length of these regions, in bytes.
    pub bytes: u64,
    /// The damaged sectors of the bitmap.
    pub damaged: Runs,
}

/// The contents and the damage of a map file.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The path of the file.
    pub path: PathBuf,
    /// The length of the file, in bytes.
    pub size_bytes: u64,
    /// The role slots.
    pub slots: [Slot; 2],
    /// The role record that holds, if one does.
    pub chosen: Option<Chosen>,
    /// The descriptor slots.
    pub descriptors: [DescriptorSlot; 2],
    /// The bitmaps; none if the route has no mirror or no role record holds.
    pub bitmaps: Vec<Bitmap>,
    /// The damage.
    pub problems: Vec<String>,
    /// Findings that are unusual but harmless.
    pub notes: Vec<String>,
}

impl Survey {
    /// Surveys a file; repeats that, up to [`LOOKS_MAX`] times in all, while the file looks
    /// damaged, because its volume may be writing to it.
    ///
    /// # Errors
    /// The file cannot be read at all.
    pub(crate) fn settled(path: &Path) -> anyhow::Result<Self> {
        let mut survey = Self::of(path)?;
        for _ in 1..LOOKS_MAX {
            if survey.is_whole() {
                break;
            }
            thread::sleep(LOOK_AGAIN_AFTER);
            survey = Self::of(path)?;
        }
        Ok(survey)
    }

    /// Whether nothing is damaged.
    #[must_use]
    pub(crate) fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    /// The descriptor that the role record names, as far as it can be read.
    #[must_use]
    pub(crate) fn descriptor(&self) -> Option<&Descriptor> {
        let slot = self.chosen?.record.descriptor_slot;
        self.descriptors[usize::from(slot)].descriptor.as_ref()
    }

    fn of(path: &Path) -> anyhow::Result<Self> {
        let file = open(path)?;
        let size_bytes = file
            .metadata()
            .with_context(|| path.display().to_string())?
            .len();
        let sectors = map::ROLE_OFFSETS.map(|offset| sector(&file, offset));
        let chosen = choose(&sectors);
        let slots = sectors.map(slot);
        let records = slots.each_ref().map(|slot| match slot {
            Slot::Valid(record) => Some(*record),
            Slot::Invalid | Slot::Refused(_) | Slot::Unread(_) => None,
        });
        let mut survey = Self {
            path: path.to_owned(),
            size_bytes,
            slots,
            chosen: chosen.as_ref().ok().copied(),
            descriptors: [0, 1].map(|number| descriptor_slot(&file, number, &records)),
            bitmaps: Vec::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        };
        match chosen {
            Ok(chosen) => survey.look_below(&file, &chosen),
            Err(problem) => survey.problems.push(problem),
        }
        survey.agree_with_map_file();
        Ok(survey)
    }

    /// Checks the file's length, the descriptor and the bitmaps for the role record that holds.
    fn look_below(&mut self, file: &File, chosen: &Chosen) {
        let expected = map::file_bytes(chosen.record.geometry);
        if self.size_bytes < expected {
            self.problems.push(format!(
                "the file was cut: it has {} bytes and must have {expected}",
                self.size_bytes
            ));
        }
        if let Some(slot) = chosen.stale_slot {
            self.notes.push(format!(
                "role record {slot} is older or not valid; it is written again when the volume is next served"
            ));
        }
        let slot = chosen.record.descriptor_slot;
        let descriptor = &self.descriptors[usize::from(slot)];
        if !descriptor.verified {
            self.problems
                .push(format!("descriptor {slot} does not match its checksum"));
        }
        if chosen.record.route.has_map() {
            self.bitmaps = [Area::Dirty, Area::Intent]
                .map(|area| bitmap(file, &chosen.record, area))
                .into();
            self.problems
                .extend(self.bitmaps.iter().filter_map(Bitmap::problem));
        }
    }

    /// Adds a problem if the survey finds none but `ublk-target` would refuse the file.
    fn agree_with_map_file(&mut self) {
        if let (true, Err(error)) = (self.is_whole(), MapFile::open_read_only(&self.path)) {
            self.problems.push(error.to_string());
        }
    }
}

impl Bitmap {
    /// The name of the bitmap.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        match self.area {
            Area::Dirty => "dirty",
            Area::Intent => "intent",
        }
    }

    fn problem(&self) -> Option<String> {
        (self.damaged.indexes() > 0).then(|| {
            format!(
                "the {} bitmap is damaged: sectors {} ({SECTOR_REGIONS} regions each)",
                self.name(),
                self.damaged
            )
        })
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    // Checked before the open: opening a pipe would block, opening a device can have side effects.
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    if !metadata.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Reads the sector at `offset`. The error is the reason why it cannot be read.
fn sector(file: &File, offset: u64) -> Result<[u8; SECTOR_BYTES], String> {
    let mut bytes = [0; SECTOR_BYTES];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(format!(
            "the file ends before byte {}",
            offset + SECTOR_BYTES as u64
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn slot(sector: Result<[u8; SECTOR_BYTES], String>) -> Slot {
    match sector.map(|bytes| RoleRecord::decode(&bytes)) {
        Ok(Ok(Some(record))) => Slot::Valid(record),
        Ok(Ok(None)) => Slot::Invalid,
        Ok(Err(error)) => Slot::Refused(error),
        Err(cause) => Slot::Unread(cause),
    }
}

fn choose(sectors: &[Result<[u8; SECTOR_BYTES], String>; 2]) -> Result<Chosen, String> {
    // A slot that cannot be read counts as invalid here, so that the rest of the file is shown. The
    // file is reported as damaged anyway: it is too short, or MapFile refuses it.
    let zeroes = [0; SECTOR_BYTES];
    let [first, second] = sectors
        .each_ref()
        .map(|sector| sector.as_ref().unwrap_or(&zeroes));
    RoleRecord::choose([first, second]).map_err(|error| error.to_string())
}

fn descriptor_slot(file: &File, number: u8, records: &[Option<RoleRecord>; 2]) -> DescriptorSlot {
    let bytes = descriptor_bytes(file, number);
    let naming: Vec<(usize, &RoleRecord)> = records
        .iter()
        .enumerate()
        .filter_map(|(slot, record)| Some((slot, record.as_ref()?)))
        .filter(|(_, record)| record.descriptor_slot == number)
        .collect();
    let matching = |record: &RoleRecord| {
        let part = bytes.get(..record.descriptor_bytes as usize)?;
        record.check_descriptor(part).ok().map(|()| part)
    };
    let verified = naming.iter().find_map(|(_, record)| matching(record));
    // Without a matching checksum the length is not known: show the text up to the first zero.
    let text = verified.unwrap_or_else(|| {
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        &bytes[..end]
    });
    DescriptorSlot {
        named_by: naming.iter().map(|(slot, _)| *slot).collect(),
        descriptor: serde_json::from_slice(text).ok(),
        verified: verified.is_some(),
    }
}

/// Reads the bytes of a descriptor slot, as many as can be read.
fn descriptor_bytes(file: &File, number: u8) -> Vec<u8> {
    let mut bytes = vec![0; map::DESCRIPTOR_BYTES_MAX];
    let mut filled = 0;
    while filled < bytes.len() {
        let offset = map::DESCRIPTOR_OFFSETS[usize::from(number)] + filled as u64;
        match file.read_at(&mut bytes[filled..], offset) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    bytes.truncate(filled);
    bytes
}

fn bitmap(file: &File, record: &RoleRecord, area: Area) -> Bitmap {
    let geometry = record.geometry;
    let mut result = Bitmap {
        area,
        regions: Runs::new(usize::MAX),
        bytes: 0,
        damaged: Runs::new(usize::MAX),
    };
    for index in 0..map::bitmap_sectors(geometry) {
        let which = BitmapSector { area, index };
        let words = sector(file, which.offset(geometry))
            .ok()
            .and_then(|bytes| which.decode(&record.volume_id, &bytes).ok());
        let Some(words) = words else {
            result.damaged.add(index as u64);
            continue;
        };
        let regions = (index * SECTOR_REGIONS..geometry.regions()).take(SECTOR_REGIONS);
        for region in regions.filter(|region| bit(&words, region - index * SECTOR_REGIONS)) {
            result.regions.add(region as u64);
            result.bytes += geometry.range(RegionIndex(region)).length;
        }
    }
    result
}

fn bit(words: &[u64], index: usize) -> bool {
    words[index / 64] >> (index % 64) & 1 == 1
}
