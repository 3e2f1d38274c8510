//! Everything that speaks against using a LUN as a leg, and the word that confirms overwriting it all the same.

use std::io;
use std::path::Path;

use crate::finding::Finding;
use crate::identity::Identity;
use crate::open::{Lun, OpenError, OpenOptions, other};
use crate::openers::{Opened, openers_of};
use crate::proc_text::DeviceNumber;
use crate::signature::{Signature, signatures};
use crate::stack::{Stack, beneath_device, beneath_path};
use crate::usage::{Host, uses_of_lun};

/// What is read from the start and the end of the LUN to see that it can be read at all, in bytes.
const PROBE_BYTES: usize = 64 * 1024;
/// The name of the program that serves Shunt's volumes, as `/proc/PID/comm` has it.
const VOLUME_SERVER: &str = "ublk-target";
/// The kernel's name of a ublk block device starts so; its character device is `ublkcN`.
const UBLK_PREFIX: &str = "ublkb";

/// What is known about a LUN that somebody wants to use as a leg.
#[derive(Debug)]
pub struct Inspection {
    /// The LUN, opened for reading, neither exclusive nor direct.
    pub lun: Lun,
    /// Everything that speaks against it, not only the first.
    pub findings: Vec<Finding>,
    /// What is on it.
    pub signatures: Vec<Signature>,
    /// The label of a copy that was never finished ([`Lun::unfinished`]).
    pub unfinished: Option<String>,
}

/// Examines the LUN at `path`. Reads only.
///
/// `protected`: folders that must not lie on the LUN (Shunt's state and logs); they need not exist yet. The root file system always counts.
///
/// # Errors
/// The path is no LUN, the LUN cannot be read, or a source of findings cannot be read: never fewer findings instead.
pub fn inspect(path: &Path, protected: &[&Path]) -> Result<Inspection, OpenError> {
    let lun = Lun::open(path, &OpenOptions::default())?;
    let host = Host::read(&lun.path)?;
    let mut findings = uses_of_lun(&lun, &host)?;
    if lun.read_only {
        findings.push(Finding::ReadOnly);
    }
    let failed = |source| other(&lun.path, "find what stands on", source);
    if let Some(number) = lun.device_number {
        findings.extend(zoned(number, &host).map_err(failed)?);
        findings.extend(shunt_volume(number, &host).map_err(failed)?);
    }
    findings.extend(system_disk(&lun, protected, &host).map_err(failed)?);
    // libblkid takes a sector that it cannot read for one without a signature.
    probe(&lun)?;
    let signatures = signatures(&lun)?;
    let unfinished = lun.unfinished()?;
    Ok(Inspection {
        lun,
        findings,
        signatures,
        unfinished,
    })
}

/// A short word (eight hexadecimal digits) for exactly this LUN and what was found on it, for an operator to type when it is to be
/// overwritten. Another LUN, or one more signature, has another word. It guards against mistakes, not against malice. Two LUNs that
/// nothing but their size identifies ([`Identity::is_distinct`]) share a word.
///
/// FNV-1a over all fields that are known and all signatures in order of their place, then MurmurHash3's finalizer, both
/// halves combined. Stable between versions: a test holds one word.
#[must_use]
pub fn overwrite_word(identity: &Identity, signatures: &[Signature]) -> String {
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
    hash.word()
}

struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a text with its length, so that "ab" "c" and "a" "bc" differ.
    fn text(&mut self, text: &str) {
        for byte in (text.len() as u64)
            .to_le_bytes()
            .iter()
            .chain(text.as_bytes())
        {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn word(self) -> String {
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

/// A ublk device in the stack beneath the LUN whose server is Shunt's. One without a server counts too: Shunt's between
/// two lives looks like that.
fn shunt_volume(number: DeviceNumber, host: &Host) -> io::Result<Option<Finding>> {
    for number in beneath_device(number, &host.sysfs, &host.mounts)?.devices {
        let device = host.sysfs.device(number)?;
        let name = device.name();
        let Some(index) = name
            .strip_prefix(UBLK_PREFIX)
            .and_then(|index| index.parse::<u32>().ok())
        else {
            continue;
        };
        let servers = match host.sysfs.ublk_character_device(index) {
            Some(character) => openers_of(&host.proc, &[Opened::CharacterDevice(character)])?,
            None => Vec::new(),
        };
        if servers.is_empty() || servers.iter().any(|server| server.command == VOLUME_SERVER) {
            return Ok(Some(Finding::IsShuntVolume {
                volume: device.path(),
            }));
        }
    }
    Ok(None)
}

fn system_disk(lun: &Lun, protected: &[&Path], host: &Host) -> io::Result<Vec<Finding>> {
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
        }
    }

    #[test]
    fn overwrite_word_is_stable() {
        assert_eq!(
            overwrite_word(&disk(), &[signature("ext4", 1080)]),
            "d252b3dc"
        );
    }

    #[test]
    fn overwrite_word_changes_with_the_lun_and_with_what_is_on_it() {
        let (ext4, xfs) = (signature("ext4", 1080), signature("xfs", 0));
        let word = overwrite_word(&disk(), std::slice::from_ref(&ext4));
        assert_eq!(word.len(), 8);
        assert_eq!(
            overwrite_word(&disk(), &[ext4.clone(), xfs.clone()]),
            overwrite_word(&disk(), &[xfs.clone(), ext4.clone()]),
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
        let others = [
            overwrite_word(&disk(), &[]),
            overwrite_word(&disk(), std::slice::from_ref(&xfs)),
            overwrite_word(&disk(), &[ext4.clone(), xfs]),
            overwrite_word(&disk(), &[labelled]),
            overwrite_word(&disk(), &[identified]),
            overwrite_word(
                &Identity {
                    serial: Some("S2".into()),
                    ..disk()
                },
                std::slice::from_ref(&ext4),
            ),
            overwrite_word(
                &Identity {
                    serial: None,
                    wwn: None,
                    ..disk()
                },
                std::slice::from_ref(&ext4),
            ),
            overwrite_word(
                &Identity {
                    size_bytes: 512,
                    ..disk()
                },
                &[ext4],
            ),
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
        let reasons: Vec<String> = system_disk(&lun, &[folder.path()], &host(&sys))
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
            system_disk(&lun, &[folder.path()], &host(&sys)).unwrap(),
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

    #[test]
    fn volume_of_shunt_is_found_beneath_what_stands_on_it() {
        let sys = FakeSysfs::new();
        sys.add("ublkb4", "259:7", &[]);
        sys.add("dm-0", "253:0", &[]);
        sys.add("sda", "8:0", &[]);
        sys.stack("dm-0", "ublkb4");
        let expected = Some(Finding::IsShuntVolume {
            volume: "/dev/ublkb4".into(),
        });
        assert_eq!(shunt_volume((259, 7), &host(&sys)).unwrap(), expected);
        assert_eq!(shunt_volume((253, 0), &host(&sys)).unwrap(), expected);
        assert_eq!(shunt_volume((8, 0), &host(&sys)).unwrap(), None);
    }

    #[test]
    fn ublk_device_of_another_server_is_no_volume_of_shunt() {
        let sys = FakeSysfs::new();
        sys.add("ublkb4", "259:7", &[]);
        // This process stands in for the other server, and /dev/null for the character device it holds open.
        let null = fs::File::open("/dev/null").unwrap();
        let (major, minor) = number_of(null.metadata().unwrap().rdev());
        let folder = sys.folder.path().join("class/ublk-char/ublkc4");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("dev"), format!("{major}:{minor}\n")).unwrap();
        assert_eq!(shunt_volume((259, 7), &host(&sys)).unwrap(), None);
    }
}
