//! Lists every reason not to use a LUN as a leg, and computes the word that confirms overwriting
//! it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bounded::{Step, within};
use crate::contents::Unrecognised;
use crate::finding::Finding;
use crate::identity::Identity;
use crate::open::{Lun, OpenError, OpenOptions, other};
use crate::openers::{Opened, openers_of};
use crate::proc_text::DeviceNumber;
use crate::signature::{Signature, signatures};
use crate::stack::{Stack, beneath_device, beneath_path, block_device_at};
use crate::usage::{Host, uses_of_lun};

/// Bytes that are read at the start and at the end of the LUN to check that it is readable.
const PROBE_BYTES: usize = 64 * 1024;
/// Time limit of an inspection; a LUN that works is read in far less.
const INSPECT_MAX: Duration = Duration::from_secs(60);
/// Time limit of [`volumes_beneath`].
const BENEATH_MAX: Duration = Duration::from_secs(10);
/// Name of the program that serves Shunt's volumes, as in `/proc/PID/comm`.
const VOLUME_SERVER: &str = "ublk-target";
/// Prefix of the kernel's name of a ublk block device; its character device is `ublkcN`.
const UBLK_PREFIX: &str = "ublkb";

/// What is known about a LUN that is a candidate for a leg.
#[derive(Debug)]
pub struct Inspection {
    /// The LUN, opened for reading, neither exclusive nor direct.
    pub lun: Lun,
    /// Every reason not to use the LUN, not only the first.
    pub findings: Vec<Finding>,
    /// The signatures on the LUN.
    pub signatures: Vec<Signature>,
    /// The label of a copy that was never finished ([`Lun::unfinished`]).
    pub unfinished: Option<String>,
    /// Data on a LUN that has neither a signature nor such a label. Filled in by [`inspect_target`]
    /// only.
    pub unrecognised: Option<Unrecognised>,
}

/// Examines the LUN at `path`. Reads only, and takes at most [`INSPECT_MAX`].
///
/// `protected`: folders that must not lie on the LUN (Shunt's state and logs); they need not exist
/// yet. The root file system is always protected.
///
/// # Errors
/// The path is no LUN, the LUN cannot be read, or a source of findings cannot be read. The list of
/// findings is never silently incomplete.
pub fn inspect(path: &Path, protected: &[&Path]) -> Result<Inspection, OpenError> {
    inspect_within(path, protected, false)
}

/// Examines a LUN that is to be overwritten: as [`inspect`], and also reads its first and last MiB.
///
/// # Errors
/// As for [`inspect`].
pub fn inspect_target(path: &Path, protected: &[&Path]) -> Result<Inspection, OpenError> {
    inspect_within(path, protected, true)
}

fn inspect_within(
    path: &Path,
    protected: &[&Path],
    is_target: bool,
) -> Result<Inspection, OpenError> {
    let asked = path.to_owned();
    let protected: Vec<PathBuf> = protected
        .iter()
        .map(|folder| (*folder).to_owned())
        .collect();
    within(INSPECT_MAX, move |step| {
        inspect_now(&asked, &protected, is_target, step)
    })
    .map_err(|source| other(path, "examine", source))?
}

fn inspect_now(
    path: &Path,
    protected: &[PathBuf],
    is_target: bool,
    step: &Step,
) -> Result<Inspection, OpenError> {
    step.asks(path);
    let lun = Lun::open(path, &OpenOptions::default())?;
    let host = Host::read(&lun.path, step)?;
    let mut findings = uses_of_lun(&lun, &host)?;
    if lun.read_only {
        findings.push(Finding::ReadOnly);
    }
    let failed = |source| other(&lun.path, "find what stands on", source);
    if let Some(number) = lun.device_number {
        findings.extend(zoned(number, &host).map_err(failed)?);
    }
    let beneath = match lun.device_number {
        Some(number) => beneath_device(number, &host.sysfs, &host.mounts),
        None => beneath_path(&lun.path, &host.sysfs, &host.mounts),
    };
    let volumes = beneath
        .and_then(|stack| shunt_volumes(&stack, &host))
        .map_err(failed)?;
    findings.extend(
        volumes
            .into_iter()
            .map(|volume| Finding::IsShuntVolume { volume }),
    );
    findings.extend(system_disk(&lun, protected, &host).map_err(failed)?);
    // libblkid treats an unreadable sector like one without a signature.
    step.asks(&lun.path);
    probe(&lun)?;
    let signatures = signatures(&lun)?;
    let unfinished = lun.unfinished()?;
    let unrecognised = match is_target && signatures.is_empty() && unfinished.is_none() {
        true => lun.unrecognised()?,
        false => None,
    };
    Ok(Inspection {
        lun,
        findings,
        signatures,
        unfinished,
        unrecognised,
    })
}

/// Lists the volumes of Shunt on which `path` (a folder, a file, or a block device) lies, by the
/// names of their devices: `/dev/ublkb0`. For a path that does not exist yet, its nearest existing
/// parent counts.
///
/// The kernel's files cannot be read, or the kernel does not answer within [`BENEATH_MAX`].
/// The kernel cannot be asked, or does not answer within [`BENEATH_MAX`].
pub fn volumes_beneath(path: &Path) -> Result<Vec<String>, OpenError> {
    let asked = path.to_owned();
    within(BENEATH_MAX, move |step| {
        step.asks(&asked);
        let host = Host::read(&asked, step)?;
        match block_device_at(&asked) {
            Some(number) => beneath_device(number, &host.sysfs, &host.mounts),
            None => beneath_path(&asked, &host.sysfs, &host.mounts),
        }
        .and_then(|stack| shunt_volumes(&stack, &host))
        .map_err(|source| other(&asked, "find what is beneath", source))
    })
    .map_err(|source| other(path, "find what is beneath", source))?
}

/// Computes a short word (eight hexadecimal digits) for exactly this LUN and its contents. An
/// operator types it to confirm that the LUN may be overwritten. A different LUN, or one more
/// signature, has a different word. The word guards against mistakes, not against malice. Two LUNs
/// that only their size identifies ([`Identity::is_distinct`]) share a word. Unrecognised data
/// counts with its fingerprint.
///
/// FNV-1a over all known fields and all signatures in order of their offset, then MurmurHash3's
/// finalizer, with both halves combined. Stable between versions: a test pins one word.
#[must_use]
pub fn overwrite_word(
    identity: &Identity,
    signatures: &[Signature],
    unrecognised: Option<&Unrecognised>,
) -> String {
    let mut hash = Fnv::new();
    for (field, value) in identity.fields() {
        if let Some(value) = value {
            hash.text(field);
            hash.text(&value);
        }
    }
    let mut sorted: Vec<&Signature> = signatures.iter().collect();
    sorted.sort_by_key(|signature| (signature.offset, *signature));
    for Signature {
        kind,
        usage,
        uuid,
        label,
        offset,
    } in sorted
    {
        hash.text("signature");
        hash.text(kind);
        hash.text(&usage.to_string());
        hash.text(uuid.as_deref().unwrap_or_default());
        hash.text(label.as_deref().unwrap_or_default());
        hash.text(&offset.map(|offset| offset.to_string()).unwrap_or_default());
    }
    if let Some(data) = unrecognised {
        hash.text("unrecognised");
        hash.text(&data.fingerprint);
    }
    hash.word()
}

/// A checksum against mistakes, not against malice.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a text with its length, so that "ab" "c" and "a" "bc" differ.
    fn text(&mut self, text: &str) {
        self.bytes(&(text.len() as u64).to_le_bytes());
        self.bytes(text.as_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn word(self) -> String {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
    }
}

fn zoned(number: DeviceNumber, host: &Host) -> io::Result<Option<Finding>> {
    let model = host
        .sysfs
        .device(number)?
        .whole_disk()
        .attribute("queue/zoned");
    Ok(model
        .filter(|model| model != "none")
        .map(|model| Finding::Zoned { model }))
}

/// The ublk devices of a stack that `ublk-target` serves. A ublk device without a server counts
/// too: a volume has none while its `ublk-target` restarts.
fn shunt_volumes(stack: &Stack, host: &Host) -> io::Result<Vec<String>> {
    let mut volumes = Vec::new();
    for number in &stack.devices {
        let device = host.sysfs.device(*number)?;
        let name = device.name();
        let Some(index) = name
            .strip_prefix(UBLK_PREFIX)
            .and_then(|index| index.parse::<u32>().ok())
        else {
            continue;
        };
        let servers = match host.sysfs.ublk_character_device(index) {
            Some(character) => openers_of(
                &host.proc,
                &[Opened::CharacterDevice(character)],
                &host.step,
            )?,
            None => Vec::new(),
        };
        if servers.is_empty() || servers.iter().any(|server| server.command == VOLUME_SERVER) {
            volumes.push(device.path());
        }
    }
    Ok(volumes)
}

fn system_disk(lun: &Lun, protected: &[PathBuf], host: &Host) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let root = beneath_path(Path::new("/"), &host.sysfs, &host.mounts)?;
    if is_in(lun, &root) {
        findings.push(Finding::SystemDisk {
            reason: "the root file system".to_owned(),
        });
    }
    for folder in protected {
        if is_in(lun, &beneath_path(folder, &host.sysfs, &host.mounts)?) {
            findings.push(Finding::SystemDisk {
                reason: folder.display().to_string(),
            });
        }
    }
    Ok(findings)
}

fn is_in(lun: &Lun, stack: &Stack) -> bool {
    lun.device_number
        .is_some_and(|number| stack.devices.contains(&number))
        || lun
            .identity
            .file
            .is_some_and(|file| stack.files.contains(&file))
}

fn probe(lun: &Lun) -> Result<(), OpenError> {
    let size_bytes = lun.identity.size_bytes;
    let length = usize::try_from(size_bytes).map_or(PROBE_BYTES, |size| size.min(PROBE_BYTES));
    let mut buffer = vec![0; length];
    lun.read_exact_at(&mut buffer, 0)?;
    lun.read_exact_at(&mut buffer, size_bytes - length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::disk;
    use crate::open::{file_id, number_of};
    use crate::proc_text::parse_mountinfo;
    use crate::signature::SignatureUsage;
    use crate::sysfs::fake::FakeSysfs;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn signature(kind: &str, offset: u64) -> Signature {
        Signature {
            kind: kind.into(),
            usage: SignatureUsage::Filesystem,
            uuid: None,
            label: None,
            offset: Some(offset),
        }
    }

    fn host(sys: &FakeSysfs) -> Host {
        Host {
            sysfs: sys.sysfs(),
            proc: "/proc".into(),
            mounts: parse_mountinfo(b"").unwrap(),
            swaps: Vec::new(),
            exports: Vec::new(),
            step: Step::default(),
        }
    }

    #[test]
    fn overwrite_word_is_stable() {
        assert_eq!(
            overwrite_word(&disk(), &[signature("ext4", 1080)], None),
            "d252b3dc"
        );
    }

    #[test]
    fn overwrite_word_changes_with_the_lun_and_with_what_is_on_it() {
        let (ext4, xfs) = (signature("ext4", 1080), signature("xfs", 0));
        let word = overwrite_word(&disk(), std::slice::from_ref(&ext4), None);
        assert_eq!(word.len(), 8);
        assert_eq!(
            overwrite_word(&disk(), &[ext4.clone(), xfs.clone()], None),
            overwrite_word(&disk(), &[xfs.clone(), ext4.clone()], None),
            "the order of the program does not matter"
        );
        let labelled = Signature {
            label: Some("a".into()),
            ..ext4.clone()
        };
        let identified = Signature {
            uuid: Some("a".into()),
            ..ext4.clone()
        };
        let data = Unrecognised {
            first: Default::default(),
            last: Default::default(),
            fingerprint: "1".into(),
        };
        let others = [
            overwrite_word(&disk(), &[], None),
            overwrite_word(&disk(), std::slice::from_ref(&xfs), None),
            overwrite_word(&disk(), &[ext4.clone(), xfs], None),
            overwrite_word(&disk(), &[labelled], None),
            overwrite_word(&disk(), &[identified], None),
            overwrite_word(
                &Identity {
                    serial: Some("S2".into()),
                    ..disk()
                },
                std::slice::from_ref(&ext4),
                None,
            ),
            overwrite_word(
                &Identity {
                    serial: None,
                    wwn: None,
                    ..disk()
                },
                std::slice::from_ref(&ext4),
                None,
            ),
            overwrite_word(
                &Identity {
                    size_bytes: 512,
                    ..disk()
                },
                std::slice::from_ref(&ext4),
                None,
            ),
            overwrite_word(&disk(), &[ext4], Some(&data)),
        ];
        for other in &others {
            assert_ne!(*other, word);
        }
        let distinct: std::collections::BTreeSet<&String> = others.iter().collect();
        assert_eq!(distinct.len(), others.len());
    }

    #[test]
    fn file_lun_is_inspected_without_findings() {
        let _alone = crate::testing::alone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let inspection =
            inspect(&path, &[folder.path(), Path::new("/var/lib/not-there-yet")]).unwrap();
        assert_eq!(inspection.findings, []);
        assert_eq!(inspection.signatures, []);
        assert_eq!(inspection.lun.identity.size_bytes, 1 << 20);
    }

    #[test]
    fn file_beneath_a_loop_device_that_holds_a_protected_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::write(&path, [0; 4096]).unwrap();
        let lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        let stack = Stack {
            files: [file_id(&fs::metadata(&path).unwrap())].into(),
            ..Stack::default()
        };
        assert!(is_in(&lun, &stack));
        assert!(!is_in(&lun, &Stack::default()));
    }

    #[test]
    fn device_beneath_the_root_and_a_state_folder_is_a_system_disk() {
        let sys = FakeSysfs::new();
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (
            fs::metadata("/").unwrap().dev(),
            fs::metadata(folder.path()).unwrap().dev(),
        );
        let number = |device| {
            let (major, minor) = number_of(device);
            format!("{major}:{minor}")
        };
        sys.add("vda", "1:250", &[]);
        sys.add("vda/vda1", &number(root), &[("partition", "1")]);
        if state != root {
            sys.add("vda/vda2", &number(state), &[("partition", "2")]);
        }
        let path = folder.path().join("lun.img");
        fs::write(&path, [0; 4096]).unwrap();
        let mut lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        lun.device_number = Some((1, 250));
        let reasons: Vec<String> = system_disk(&lun, &[folder.path().to_owned()], &host(&sys))
            .unwrap()
            .iter()
            .map(Finding::to_string)
            .collect();
        assert_eq!(
            reasons,
            [
                "holds the root file system: choose another".to_owned(),
                format!("holds {}: choose another", folder.path().display())
            ]
        );
        lun.device_number = Some((1, 251));
        assert_eq!(
            system_disk(&lun, &[folder.path().to_owned()], &host(&sys)).unwrap(),
            []
        );
    }

    #[test]
    fn zoned_disk_is_found_also_from_its_partition() {
        let sys = FakeSysfs::new();
        sys.add("sda", "8:0", &[("queue/zoned", "host-managed\n")]);
        sys.add("sda/sda1", "8:1", &[("partition", "1")]);
        sys.add("sdb", "8:16", &[("queue/zoned", "none\n")]);
        let expected = Some(Finding::Zoned {
            model: "host-managed".into(),
        });
        assert_eq!(zoned((8, 0), &host(&sys)).unwrap(), expected);
        assert_eq!(zoned((8, 1), &host(&sys)).unwrap(), expected);
        assert_eq!(zoned((8, 16), &host(&sys)).unwrap(), None);
    }

    fn volumes(number: DeviceNumber, host: &Host) -> Vec<String> {
        let stack = beneath_device(number, &host.sysfs, &host.mounts).unwrap();
        shunt_volumes(&stack, host).unwrap()
    }

    #[test]
    fn volume_of_shunt_is_found_beneath_what_stands_on_it() {
        let sys = FakeSysfs::new();
        sys.add("ublkb4", "259:7", &[]);
        sys.add("dm-0", "253:0", &[]);
        sys.add("sda", "8:0", &[]);
        sys.stack("dm-0", "ublkb4");
        assert_eq!(volumes((259, 7), &host(&sys)), ["/dev/ublkb4"]);
        assert_eq!(volumes((253, 0), &host(&sys)), ["/dev/ublkb4"]);
        assert_eq!(volumes((8, 0), &host(&sys)), Vec::<String>::new());
    }

    #[test]
    fn volume_of_shunt_is_found_beneath_a_file_and_a_loop_device_over_it() {
        let sys = FakeSysfs::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::write(&path, [0; 4096]).unwrap();
        let (major, minor) = number_of(fs::metadata(&path).unwrap().dev());
        sys.add("ublkb4", &format!("{major}:{minor}"), &[]);
        let backing = format!("{}\n", path.display());
        sys.add("loop0", "7:0", &[("loop/backing_file", &backing)]);
        let host = host(&sys);
        let stack = beneath_path(&path, &host.sysfs, &host.mounts).unwrap();
        assert_eq!(shunt_volumes(&stack, &host).unwrap(), ["/dev/ublkb4"]);
        assert_eq!(volumes((7, 0), &host), ["/dev/ublkb4"]);
    }

    #[test]
    fn ublk_device_of_another_server_is_no_volume_of_shunt() {
        let sys = FakeSysfs::new();
        sys.add("ublkb4", "259:7", &[]);
        // This process stands in for the other server, and /dev/null for the character device that
        // it holds open.
        let null = fs::File::open("/dev/null").unwrap();
        let (major, minor) = number_of(null.metadata().unwrap().rdev());
        let folder = sys.folder.path().join("class/ublk-char/ublkc4");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("dev"), format!("{major}:{minor}\n")).unwrap();
        assert_eq!(volumes((259, 7), &host(&sys)), Vec::<String>::new());
    }
}
