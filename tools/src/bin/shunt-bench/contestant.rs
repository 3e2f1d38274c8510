//! The layers between an application and a disk that are measured.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::{
    disks::Disks,
    process::{Server, Until, run, wait_for},
    shunt::{Daemon, Volume},
};

/// How long a device may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(30);
/// Queues and depth of a rublk device: the values that ublk-target uses by default.
const RUBLK_SHAPE: [&str; 4] = ["-q", "1", "-d", "128"];

/// The device-mapper name of the target that can be stalled.
const STALLING: &str = "shunt-bench-stalling";

/// A layer that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contestant {
    /// The disk itself
    Raw,
    /// The kernel's loop driver with direct I/O
    Loop,
    /// rublk's loop target
    Rublk,
    /// rublk's loop target with zero copy
    RublkZeroCopy,
    /// Shunt, one leg
    Single,
    /// Shunt, both legs, in sync
    Mirrored,
    /// Shunt, both legs, after the target began to take 5 s for each request
    Stalled,
}

/// The resources with which contestants are set up.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// The disks.
    pub(crate) disks: &'a Disks,
    /// A folder for temporary files.
    pub(crate) work: &'a Path,
    /// The shuntd of this run, if it is needed.
    pub(crate) daemon: Option<&'a Daemon>,
    /// The program rublk.
    pub(crate) rublk: Option<PathBuf>,
}

/// A contestant that is set up; removed when dropped.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    /// The device to measure.
    pub(crate) device: PathBuf,
    /// The process that serves the device, if there is one.
    pub(crate) server: Option<u32>,
    kind: Kind<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    Raw,
    Loop(LoopDevice),
    Rublk(RublkDevice),
    Shunt(Volume<'a>),
    Stalled(Volume<'a>, MappedDevice),
}

impl Contestant {
    /// The contestants that are measured by default.
    pub(crate) const USUAL: [Self; 5] = [
        Self::Raw,
        Self::Loop,
        Self::Rublk,
        Self::Single,
        Self::Mirrored,
    ];

    /// The name of the contestant in tables and JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Loop => "loop",
            Self::Rublk => "rublk",
            Self::RublkZeroCopy => "rublk-zc",
            Self::Single => "single",
            Self::Mirrored => "mirrored",
            Self::Stalled => "stalled",
        }
    }

    /// Whether the contestant is a volume of Shunt.
    pub(crate) fn is_shunt(&self) -> bool {
        matches!(self, Self::Single | Self::Mirrored | Self::Stalled)
    }

    /// Whether the contestant needs the program rublk.
    pub(crate) const fn needs_rublk(self) -> bool {
        matches!(self, Self::Rublk | Self::RublkZeroCopy)
    }

    /// Sets the contestant up over the source.
    pub(crate) fn set_up<'a>(self, place: &Place<'a>) -> anyhow::Result<Standing<'a>> {
        let source = &place.disks.source;
        match self {
            Self::Raw => Ok(Standing {
                device: source.clone(),
                server: None,
                kind: Kind::Raw,
            }),
            Self::Loop => {
                let device = LoopDevice::set_up(source, place.work)?;
                Ok(Standing {
                    device: device.path.clone(),
                    server: None,
                    kind: Kind::Loop(device),
                })
            }
            Self::Rublk | Self::RublkZeroCopy => {
                let device = RublkDevice::set_up(place, self == Self::RublkZeroCopy)?;
                let server = Some(device.server.pid());
                Ok(Standing {
                    device: device.path.clone(),
                    server,
                    kind: Kind::Rublk(device),
                })
            }
            Self::Single | Self::Mirrored => {
                let daemon = place.daemon.context("shuntd was not started")?;
                let mut volume = daemon.attach(source)?;
                if self == Self::Mirrored {
                    volume.mirror_onto(&place.disks.target)?;
                }
                let (device, server) = (volume.device.clone(), Some(volume.pid));
                Ok(Standing {
                    device,
                    server,
                    kind: Kind::Shunt(volume),
                })
            }
            Self::Stalled => {
                let daemon = place.daemon.context("shuntd was not started")?;
                let target = MappedDevice::set_up(STALLING, &place.disks.target, place.work)?;
                let mut volume = daemon.attach(source)?;
                volume.mirror_onto(&target.path)?;
                target.stall()?;
                volume.write_until_degraded()?;
                Ok(Standing {
                    device: volume.device.clone(),
                    server: Some(volume.pid),
                    kind: Kind::Stalled(volume, target),
                })
            }
        }
    }
}

impl Standing<'_> {
    /// Removes the contestant, and returns any error of that.
    pub(crate) fn take_away(self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Raw => Ok(()),
            Kind::Loop(device) => device.take_away(),
            Kind::Rublk(device) => device.take_away(),
            Kind::Shunt(volume) => volume.take_away(),
            Kind::Stalled(volume, target) => {
                // Replacing the table completes the requests that the delay holds.
                target.mend()?;
                volume.take_away()
            }
        }
    }
}

/// A device-mapper device over a disk, which can slow the disk down, or move to a different disk.
#[derive(Debug)]
pub(crate) struct MappedDevice {
    pub(crate) path: PathBuf,
    name: &'static str,
    below: PathBuf,
    work: PathBuf,
    sectors: String,
}

impl MappedDevice {
    /// Creates a `linear` device over a disk.
    pub(crate) fn set_up(name: &'static str, below: &Path, work: &Path) -> anyhow::Result<Self> {
        let below_text = below.display().to_string();
        let size = ["blockdev", "--getsz", &below_text];
        let device = Self {
            path: Path::new("/dev/mapper").join(name),
            name,
            below: below.to_owned(),
            work: work.to_owned(),
            sectors: run(&size, work, Until::Interrupted)?.trim().to_owned(),
        };
        device.dmsetup("create", Some(&device.linear(below)))?;
        Ok(device)
    }

    /// Makes every request take 5 s.
    fn stall(&self) -> anyhow::Result<()> {
        run(&["modprobe", "dm-delay"], &self.work, Until::Interrupted)?;
        self.dmsetup(
            "reload",
            Some(&format!("delay {} 0 5000", self.below.display())),
        )?;
        self.dmsetup("resume", None)
    }

    fn mend(&self) -> anyhow::Result<()> {
        self.redirect(&self.below, &["reload", "resume"])
    }

    /// Moves the device to the disk `onto` by the `verbs` of dmsetup, in this order; `reload` gets
    /// the new table.
    pub(crate) fn redirect(&self, onto: &Path, verbs: &[&str]) -> anyhow::Result<()> {
        let table = self.linear(onto);
        verbs
            .iter()
            .try_for_each(|verb| self.dmsetup(verb, (*verb == "reload").then_some(table.as_str())))
    }

    fn linear(&self, below: &Path) -> String {
        format!("linear {} 0", below.display())
    }

    fn dmsetup(&self, verb: &str, table: Option<&str>) -> anyhow::Result<()> {
        let table = table.map(|table| format!("0 {} {table}", self.sectors));
        let mut words = vec!["dmsetup", verb, self.name];
        words.extend(table.iter().flat_map(|table| ["--table", table]));
        run(&words, &self.work, Until::CleanedUp).map(drop)
    }
}

impl Drop for MappedDevice {
    fn drop(&mut self) {
        let remove = ["dmsetup", "remove", "--retry", self.name];
        if let Err(error) = run(&remove, &self.work, Until::CleanedUp) {
            crate::process::say(&format!("{error:#}"));
        }
    }
}

#[derive(Debug)]
struct LoopDevice {
    path: PathBuf,
    work: PathBuf,
    gone: bool,
}

impl LoopDevice {
    fn set_up(source: &Path, work: &Path) -> anyhow::Result<Self> {
        // A failure is ignored: the driver may be built in. If it is absent, losetup fails.
        let _ = run(&["modprobe", "loop"], work, Until::Interrupted);
        let source = source.display().to_string();
        let answer = run(
            &["losetup", "--direct-io=on", "-f", "--show", &source],
            work,
            Until::Interrupted,
        )?;
        let path = PathBuf::from(answer.lines().next().context("losetup named no device")?);
        let device = Self {
            path,
            work: work.to_owned(),
            gone: false,
        };
        let name = device.path.file_name().unwrap_or_default().to_owned();
        let attribute = Path::new("/sys/block").join(name).join("loop/dio");
        match fs::read_to_string(&attribute) {
            Ok(text) if text.trim() == "1" => Ok(device),
            Ok(_) => bail!("{} does not use direct I/O", device.path.display()),
            Err(error) => Err(error).context(attribute.display().to_string()),
        }
    }

    fn take_away(mut self) -> anyhow::Result<()> {
        self.detach()
    }

    fn detach(&mut self) -> anyhow::Result<()> {
        self.gone = true;
        let path = self.path.display().to_string();
        run(&["losetup", "-d", &path], &self.work, Until::CleanedUp).map(|_| ())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.gone {
            // The error that led to this drop is reported instead.
            let _ = self.detach();
        }
    }
}

#[derive(Debug)]
struct RublkDevice {
    path: PathBuf,
    number: String,
    program: String,
    work: PathBuf,
    gone: bool,
    // Dropped last: the process ends automatically when the device is deleted.
    server: Server,
}

impl RublkDevice {
    fn set_up(place: &Place<'_>, zero_copy: bool) -> anyhow::Result<Self> {
        let program = place
            .rublk
            .as_ref()
            .context("rublk was not found")?
            .display()
            .to_string();
        let source = place.disks.source.display().to_string();
        let before = ublk_numbers();
        let mut words = vec![
            program.as_str(),
            "add",
            "loop",
            "--foreground",
            "-f",
            &source,
        ];
        words.extend(RUBLK_SHAPE);
        if zero_copy {
            words.push("-z");
        }
        let server = Server::start(&words, place.work, "rublk.log")?;
        let number = wait_for("the device of rublk", DEVICE_LIMIT, || {
            let new = ublk_numbers().difference(&before).next().cloned()?;
            let served = fs::read_to_string(format!("/sys/block/ublkb{new}/size")).ok()?;
            (served.trim() != "0" && Path::new("/dev").join(format!("ublkb{new}")).exists())
                .then_some(new)
        });
        let number = number.with_context(|| {
            fs::read_to_string(place.work.join("rublk.log")).unwrap_or_default()
        })?;
        let path = PathBuf::from(format!("/dev/ublkb{number}"));
        Ok(Self {
            path,
            number,
            program,
            work: place.work.to_owned(),
            gone: false,
            server,
        })
    }

    fn take_away(mut self) -> anyhow::Result<()> {
        self.delete()
    }

    fn delete(&mut self) -> anyhow::Result<()> {
        self.gone = true;
        run(
            &[&self.program, "del", "-n", &self.number],
            &self.work,
            Until::CleanedUp,
        )
        .map(|_| ())
    }
}

impl Drop for RublkDevice {
    fn drop(&mut self) {
        if !self.gone {
            // The error that led to this drop is reported instead.
            let _ = self.delete();
        }
    }
}

/// The numbers of all ublk devices of this host.
fn ublk_numbers() -> BTreeSet<String> {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    names
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("ublkb")?
                    .to_owned(),
            )
        })
        .collect()
}

/// The path of the program rublk: as given, or found on PATH or in the cache folder.
pub(crate) fn find_rublk(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = given {
        return Some(path.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.extend(env::var_os("SHUNT_CACHE").map(|cache| Path::new(&cache).join("cargo/bin")));
    folders
        .into_iter()
        .map(|folder| folder.join("rublk"))
        .find(|program| program.is_file())
}
