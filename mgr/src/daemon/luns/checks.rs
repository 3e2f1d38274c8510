//! Decides whether a LUN may become a leg, from what the crate `lun` finds. Reports every reason to
//! refuse, not only the first.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use lun::{Finding, Identity, Inspection, Lun, OpenOptions, Recorded, Signature, Unrecognised};
use migration_proto::luns::LunPaths;
use migration_proto::manager::SessionOptions;

use super::weak;
use crate::daemon::context::{Context, blocking};
use crate::store::{LegRow, LunRow, VolumeRow, lock_key};

/// A LUN that is examined for use in a leg.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    /// The path and the identity to record for the LUN.
    pub(crate) lun: LunRow,
    /// Major and minor number of a block device; `None` for a file.
    pub(super) device_number: Option<(u32, u32)>,
    pub(crate) physical_block_bytes: u32,
    pub(super) findings: Vec<Finding>,
    pub(crate) signatures: Vec<Signature>,
    /// The text of the label of an unfinished copy, if the LUN has that label.
    pub(crate) unfinished: Option<String>,
    /// Data on a target that has neither a signature nor the label of an unfinished copy.
    pub(super) unrecognised: Option<Unrecognised>,
    /// A note for the operator about the path by which the LUN was given.
    pub(crate) name_note: Option<String>,
}

/// What a LUN is examined for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Source,
    Target,
}

/// A LUN that Shunt uses already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) lun: LunRow,
    /// The description of the user, such as `volume db`.
    pub(crate) holder: String,
}

/// The requirements that a target must meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TargetRequirements<'a> {
    pub(crate) volume: &'a str,
    pub(crate) size_bytes: u64,
    pub(crate) logical_block_bytes: u32,
    /// The source leg of the volume.
    pub(crate) source: &'a LegRow,
    /// Whether data on the target may be lost.
    pub(crate) overwrite: bool,
    /// Whether a LUN with a weak identity is accepted.
    pub(crate) accept_weak_identity: bool,
}

/// Examines the LUN at `path`. Blocks.
pub(crate) fn examine(
    path: &Path,
    purpose: Purpose,
    protected: &[PathBuf],
) -> Result<Candidate, String> {
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    let protected: Vec<&Path> = protected.iter().map(PathBuf::as_path).collect();
    let Inspection {
        lun,
        findings,
        signatures,
        unfinished,
        unrecognised,
    } = match purpose {
        Purpose::Source => lun::inspect(path, &protected),
        Purpose::Target => lun::inspect_target(path, &protected),
    }
    .map_err(|error| error.to_string())?;
    let seen = match lun.identity.is_distinct() {
        true => None,
        false => Some(lun.seen().map_err(|error| error.to_string())?),
    };
    let (path, name_note) = recorded_name(path, &lun.identity);
    Ok(Candidate {
        name_note,
        lun: LunRow {
            path,
            identity: lun.identity.clone(),
            seen,
        },
        device_number: lun.device_number,
        physical_block_bytes: lun.physical_block_bytes,
        findings,
        signatures,
        unfinished,
        unrecognised,
    })
}

/// Returns the path to record for a LUN, and a note for the operator: a kernel name may belong to a
/// different LUN after a boot.
fn recorded_name(path: &Path, identity: &Identity) -> (PathBuf, Option<String>) {
    if !lun::is_kernel_name(path) {
        return (path.to_owned(), None);
    }
    let may_change = format!(
        "{} is the kernel's name of the device, which may be another LUN's after a boot",
        path.display()
    );
    match lun::stable_name(path) {
        Some(stable) => {
            let note = format!("{may_change}: {} is recorded instead", stable.display());
            (stable, Some(note))
        }
        None if identity.is_findable() => (path.to_owned(), None),
        None => {
            let note = format!("{may_change}, and no stable name in /dev/disk/by-id leads to it");
            (path.to_owned(), Some(note))
        }
    }
}

/// Reads the identities of the LUNs at `paths`. Blocks.
pub(crate) fn identify(paths: &LunPaths) -> Result<LegRow, String> {
    let open = |path: &PathBuf| {
        let lun = Lun::open(path, &OpenOptions::default()).map_err(|error| error.to_string())?;
        Ok(LunRow {
            path: path.to_owned(),
            identity: lun.identity,
            seen: None,
        })
    };
    let luns = paths.paths().iter().map(open);
    LegRow::new(luns.collect::<Result<_, String>>()?)
}

/// Opens a recorded LUN, if its identity still matches. Blocks.
pub(crate) fn open_recorded(row: &LunRow, options: &OpenOptions) -> Result<Lun, String> {
    let disk_sequence = match row.identity.is_distinct() {
        true => None,
        false => {
            let known =
                weak::find_out(row).map_err(|cause| format!("{}: {cause}", row.path.display()))?;
            Some(known.disk_sequence)
        }
    };
    let recorded = Recorded {
        path: &row.path,
        identity: &row.identity,
        disk_sequence,
    };
    Lun::open_recorded(recorded, options).map_err(|error| error.to_string())
}

/// Builds the leg that consists of these LUNs, end to end.
pub(crate) fn leg_row(leg: &[Candidate]) -> Result<LegRow, String> {
    LegRow::new(leg.iter().map(|candidate| candidate.lun.clone()).collect())
}

/// Reasons to refuse these LUNs as the source of a volume; empty if there are none.
pub(crate) fn source_refusals(
    leg: &[Candidate],
    used: &[Used],
    accept_weak_identity: bool,
) -> Vec<String> {
    let mut refusals = together_refusals(leg);
    for candidate in leg {
        if let Some(holder) = holder_of(candidate, used) {
            refusals.push(used_already(candidate, holder));
            continue;
        }
        refusals.extend(common_refusals(candidate, accept_weak_identity));
        refusals.extend(candidate.unfinished.as_ref().map(|of| {
            let path = candidate.lun.path.display();
            format!("{path} is a copy that was never finished ({of}): name the LUN that it was to be a copy of")
        }));
    }
    refusals
}

/// Reasons to refuse these LUNs as a target; empty if there are none. If Shunt itself uses a LUN,
/// that use is the only reason reported for the LUN: all other findings follow from it, and no
/// message may suggest to overwrite the LUN.
pub(super) fn target_refusals(
    leg: &[Candidate],
    fit: TargetRequirements<'_>,
    used: &[Used],
) -> Vec<String> {
    let mut refusals = together_refusals(leg);
    let mut in_use = false;
    for candidate in leg {
        let path = candidate.lun.path.display();
        if fit.source.luns().iter().any(|lun| is_same(candidate, lun)) {
            in_use = true;
            refusals.push(format!(
                "{path} is the source of volume {} itself ({})",
                fit.volume, fit.source
            ));
        } else if let Some(holder) = holder_of(candidate, used) {
            in_use = true;
            refusals.push(used_already(candidate, holder));
        } else {
            refusals.extend(lun_refusals(candidate, fit));
        }
    }
    if !in_use {
        refusals.extend(size_refusal(leg, fit));
    }
    refusals
}

/// Reasons to refuse these LUNs as one leg.
fn together_refusals(leg: &[Candidate]) -> Vec<String> {
    let mut refusals = Vec::new();
    for (index, candidate) in leg.iter().enumerate() {
        let path = candidate.lun.path.display();
        let before = &leg[..index];
        if before.iter().any(|other| is_same(candidate, &other.lun)) {
            refusals.push(format!("{path} is named twice"));
        }
        let blocks = |candidate: &Candidate| candidate.lun.identity.logical_block_bytes;
        if let Some(first) = before.first()
            && blocks(first) != blocks(candidate)
        {
            refusals.push(format!(
                "{path} has a logical block size of {} bytes, {} one of {} bytes: they cannot be one leg",
                blocks(candidate),
                first.lun.path.display(),
                blocks(first)
            ));
        }
    }
    refusals
}

fn size_refusal(leg: &[Candidate], fit: TargetRequirements<'_>) -> Option<String> {
    let size = |part: &[Candidate]| -> u64 {
        let sizes = part
            .iter()
            .map(|candidate| candidate.lun.identity.size_bytes);
        sizes.fold(0, u64::saturating_add)
    };
    let paths: Vec<String> = leg
        .iter()
        .map(|candidate| candidate.lun.path.display().to_string())
        .collect();
    let (volume, needed) = (fit.volume, fit.size_bytes);
    let (last, before) = leg.split_last()?;
    if size(leg) < needed {
        return Some(format!(
            "{} is too small: it has {} bytes, volume {volume} has {needed} bytes",
            paths.join(","),
            size(leg)
        ));
    }
    (!before.is_empty() && size(before) >= needed).then(|| {
        format!(
            "{} is not needed: volume {volume} has {needed} bytes, and those before it are enough",
            last.lun.path.display()
        )
    })
}

fn lun_refusals(candidate: &Candidate, fit: TargetRequirements<'_>) -> Vec<String> {
    let path = candidate.lun.path.display();
    let identity = &candidate.lun.identity;
    let mut refusals = common_refusals(candidate, fit.accept_weak_identity);
    if identity.logical_block_bytes != fit.logical_block_bytes {
        refusals.push(format!(
            "{path} has a logical block size of {} bytes, volume {} offers {} bytes",
            identity.logical_block_bytes, fit.volume, fit.logical_block_bytes
        ));
    }
    if !fit.overwrite {
        let partitions = candidate
            .findings
            .iter()
            .filter(|finding| matches!(finding, Finding::HasPartitions { .. }));
        refusals.extend(
            partitions.map(|finding| format!("{path} {finding} (--overwrite accepts their loss)")),
        );
        refusals.extend(
            contents(candidate)
                .iter()
                .map(|held| format!("{path} holds {held} (--overwrite accepts its loss)")),
        );
    }
    refusals
}

/// Describes the signatures and the unrecognised data on a LUN; empty if it holds neither.
pub(crate) fn contents(candidate: &Candidate) -> Vec<String> {
    let signatures = candidate.signatures.iter().map(Signature::to_string);
    let data = candidate.unrecognised.iter().map(Unrecognised::to_string);
    signatures.chain(data).collect()
}

/// Reasons why the LUNs `now` are not the LUNs that were accepted for a volume, or do not hold what
/// was accepted; empty if there are none. `contents` are the accepted words of [`contents_words`].
/// Contents that have disappeared since are no reason.
pub(super) fn changed_since(
    volume: &str,
    accepted: &LegRow,
    contents: &str,
    now: &[Candidate],
) -> Vec<String> {
    let words = contents.split(' ').map(Some).chain(std::iter::repeat(None));
    let luns = accepted.luns().iter().zip(words).zip(now);
    luns.filter_map(|((accepted, contents), now)| lun_changed(volume, accepted, contents, now))
        .collect()
}

fn lun_changed(
    volume: &str,
    accepted: &LunRow,
    contents: Option<&str>,
    now: &Candidate,
) -> Option<String> {
    if let Err(mismatch) = accepted.identity.matches(&now.lun.identity) {
        return Some(format!("{} is {mismatch}", accepted.path.display()));
    }
    if let (Some(before), Some(now)) = (&accepted.seen, &now.lun.seen)
        && let Err(cause) = before.is_still(now)
    {
        let path = accepted.path.display();
        let next = weak::next(volume, &accepted.path);
        return Some(format!("{path}: {cause}; next: {next}"));
    }
    // The word is built with the accepted identity: the LUN may have grown since.
    let word = lun::overwrite_word(
        &accepted.identity,
        &now.signatures,
        now.unrecognised.as_ref(),
    );
    let found = self::contents(now);
    if found.is_empty() || contents == Some(word.as_str()) {
        return None;
    }
    Some(format!(
        "{} does not hold what it held when the session was created: {}",
        accepted.path.display(),
        found.join("; ")
    ))
}

/// One word for each LUN, separated by spaces. A word stands for exactly this LUN and what was
/// found on it.
pub(crate) fn contents_words(leg: &[Candidate]) -> String {
    let words: Vec<String> = leg.iter().map(word).collect();
    words.join(" ")
}

fn word(candidate: &Candidate) -> String {
    let Candidate {
        lun,
        signatures,
        unrecognised,
        ..
    } = candidate;
    lun::overwrite_word(&lun.identity, signatures, unrecognised.as_ref())
}

fn used_already(candidate: &Candidate, holder: &str) -> String {
    format!("{} is used already: {holder}", candidate.lun.path.display())
}

fn common_refusals(candidate: &Candidate, accept_weak_identity: bool) -> Vec<String> {
    let path = candidate.lun.path.display();
    let Identity {
        size_bytes,
        logical_block_bytes,
        ..
    } = candidate.lun.identity;
    let mut refusals: Vec<String> = candidate
        .findings
        .iter()
        .filter(|finding| forbids(finding))
        .map(|finding| format!("{path} {finding}"))
        .collect();
    if !accept_weak_identity && !candidate.lun.identity.is_distinct() {
        refusals.push(weak::refusal(&candidate.lun.path));
    }
    if size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(logical_block_bytes)) {
        refusals.push(format!(
            "{path} has {size_bytes} bytes, which is not a multiple of its logical block size of {logical_block_bytes} bytes"
        ));
    }
    refusals
}

/// Whether a finding forbids any use of a LUN as a leg.
fn forbids(finding: &Finding) -> bool {
    finding.is_in_use()
        || match finding {
            Finding::ReadOnly
            | Finding::Zoned { .. }
            | Finding::IsShuntVolume { .. }
            | Finding::OtherPaths { .. } => true,
            Finding::Mounted { .. }
            | Finding::Swap
            | Finding::Holders { .. }
            | Finding::Exported { .. }
            | Finding::MultipathComponent { .. }
            | Finding::PartitionInUse { .. }
            | Finding::DiskInUse { .. }
            | Finding::HasPartitions { .. }
            | Finding::InUse
            | Finding::OpenedBy { .. }
            | Finding::SystemDisk { .. } => false,
        }
}

fn holder_of<'a>(candidate: &Candidate, used: &'a [Used]) -> Option<&'a str> {
    used.iter()
        .find(|used| is_same(candidate, &used.lun))
        .map(|used| used.holder.as_str())
}

/// Whether a candidate is the recorded LUN: by identity, or because the recorded path leads to the
/// candidate's device now.
pub(super) fn is_same(candidate: &Candidate, recorded: &LunRow) -> bool {
    let same_number = candidate.device_number.is_some()
        && candidate.device_number == device_number(&recorded.path);
    same_number
        || lock_key(&candidate.lun) == lock_key(recorded)
        || candidate.lun.identity.same_device_hint(&recorded.identity)
}

/// Major and minor number of the block device at `path`; `None` if there is no block device.
pub(super) fn device_number(path: &Path) -> Option<(u32, u32)> {
    let metadata = std::fs::metadata(path).ok()?;
    let number = metadata.rdev();
    let part = |part: u64| u32::try_from(part).ok();
    metadata.file_type().is_block_device().then(|| {
        Some((
            part(nix::sys::stat::major(number))?,
            part(nix::sys::stat::minor(number))?,
        ))
    })?
}

/// What the operator accepts about a target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepted {
    /// That data on the target is lost.
    overwrite: bool,
    /// That the target has a weak identity.
    weak_identity: bool,
}

impl Accepted {
    pub(crate) const fn by(options: &SessionOptions) -> Self {
        Self {
            overwrite: options.overwrite,
            weak_identity: options.accept_weak_identity,
        }
    }
}

impl Context {
    /// Examines the LUNs of a leg on a separate thread.
    pub(crate) async fn examine(
        &self,
        paths: LunPaths,
        purpose: Purpose,
    ) -> Result<Vec<Candidate>, String> {
        let protected = vec![
            self.config.state_directory.clone(),
            self.config.runtime_directory.clone(),
        ];
        blocking(move || {
            let paths = paths.paths().iter();
            paths
                .map(|path| examine(path, purpose, &protected))
                .collect()
        })
        .await?
    }
}

/// Examines a target. Returns its LUNs, or all reasons to refuse it. `accepted` is the recorded
/// target with the words for its contents: any difference is a reason to refuse.
pub(crate) async fn check_target(
    context: &Context,
    volume: &VolumeRow,
    target: &LunPaths,
    accepts: Accepted,
    used: &[Used],
    accepted: Option<(&LegRow, &str)>,
) -> Result<Vec<Candidate>, Vec<String>> {
    let leg = context
        .examine(target.clone(), Purpose::Target)
        .await
        .map_err(|cause| vec![cause])?;
    let name = volume.name.clone();
    let (volume, used, judged) = (volume.clone(), used.to_vec(), leg.clone());
    let mut refusals = blocking(move || {
        let fit = TargetRequirements {
            volume: &volume.name,
            size_bytes: volume.size_bytes,
            logical_block_bytes: volume.logical_block_bytes,
            source: &volume.leg,
            overwrite: accepts.overwrite,
            accept_weak_identity: accepts.weak_identity,
        };
        target_refusals(&judged, fit, &used)
    })
    .await
    .map_err(|cause| vec![cause])?;
    if let Some((before, contents)) = accepted {
        refusals.extend(changed_since(&name, before, contents, &leg));
    }
    if refusals.is_empty() {
        Ok(leg)
    } else {
        Err(refusals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lun::{FileId, Filled, Kind, SignatureUsage};

    const MIB: u64 = 1 << 20;

    fn row(inode: u64) -> LunRow {
        LunRow {
            path: PathBuf::from(format!("/luns/{inode}")),
            identity: Identity {
                kind: Kind::RegularFile,
                size_bytes: MIB,
                logical_block_bytes: 512,
                wwn: None,
                serial: None,
                partition_uuid: None,
                partition_number: None,
                partition_start_bytes: None,
                file: Some(FileId { device: 1, inode }),
                file_offset_bytes: None,
                dm_uuid: None,
            },
            seen: None,
        }
    }

    fn candidate(inode: u64) -> Candidate {
        Candidate {
            lun: row(inode),
            device_number: None,
            physical_block_bytes: 4096,
            findings: Vec::new(),
            signatures: Vec::new(),
            unfinished: None,
            unrecognised: None,
            name_note: None,
        }
    }

    fn ext4() -> Signature {
        Signature {
            kind: "ext4".into(),
            usage: SignatureUsage::Filesystem,
            uuid: Some("u".into()),
            label: Some("x".into()),
            offset: None,
        }
    }

    fn refusals(candidate: &Candidate, overwrite: bool) -> Vec<String> {
        let source = LegRow::new(vec![row(1)]).unwrap();
        let fit = TargetRequirements {
            volume: "db",
            size_bytes: MIB,
            logical_block_bytes: 512,
            source: &source,
            overwrite,
            accept_weak_identity: false,
        };
        target_refusals(
            std::slice::from_ref(candidate),
            fit,
            &[Used {
                lun: row(3),
                holder: "volume other".into(),
            }],
        )
    }

    #[test]
    fn a_fitting_empty_lun_is_accepted() {
        assert_eq!(refusals(&candidate(2), false), Vec::<String>::new());
        assert_eq!(
            source_refusals(&[candidate(2)], &[], false),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_lun_that_only_its_size_tells_from_others_must_be_accepted() {
        let mut weak = candidate(2);
        weak.lun.identity.file = None;
        for refusals in [
            refusals(&weak, true),
            source_refusals(&[weak.clone()], &[], false),
        ] {
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            assert!(
                refusals[0].contains("--accept-weak-identity"),
                "{refusals:?}"
            );
        }
        assert_eq!(
            source_refusals(&[weak.clone()], &[], true),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_target_that_has_grown_since_it_was_accepted_is_the_same() {
        let mut before = candidate(2);
        before.signatures = vec![ext4()];
        let accepted = LegRow::new(vec![before.lun.clone()]).unwrap();
        let contents = contents_words(std::slice::from_ref(&before));
        let mut now = before.clone();
        now.lun.identity.size_bytes *= 2;
        let changed =
            |now: &Candidate| changed_since("db", &accepted, &contents, std::slice::from_ref(now));
        assert_eq!(changed(&now), Vec::<String>::new());
        now.lun.identity.size_bytes = MIB / 2;
        assert_eq!(changed(&now).len(), 1);
    }

    #[test]
    fn a_copy_that_was_never_finished_is_no_source_and_may_be_a_target() {
        let mut beginning = candidate(2);
        beginning.unfinished = Some("volume db, session move".to_owned());
        assert_eq!(refusals(&beginning, false), Vec::<String>::new());
        let refusals = source_refusals(&[beginning.clone()], &[], false).join("; ");
        assert!(refusals.contains("volume db, session move"), "{refusals}");
    }

    #[test]
    fn a_source_may_hold_something_and_a_target_only_with_overwrite() {
        let mut holds = candidate(2);
        holds.signatures = vec![ext4()];
        holds.findings = vec![Finding::HasPartitions {
            partitions: vec!["/dev/sda1".into()],
        }];
        assert_eq!(
            source_refusals(&[holds.clone()], &[], false),
            Vec::<String>::new()
        );
        assert_eq!(refusals(&holds, true), Vec::<String>::new());
        let texts = refusals(&holds, false);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts[1].contains("ext4") && texts[1].contains("--overwrite"),
            "{texts:?}"
        );
    }

    fn data(fingerprint: &str) -> Unrecognised {
        Unrecognised {
            first: Filled {
                blocks: 256,
                not_zero: 3,
            },
            last: Filled::default(),
            fingerprint: fingerprint.to_owned(),
        }
    }

    #[test]
    fn data_that_is_not_recognised_needs_overwrite_as_a_signature_does() {
        let mut holds = candidate(2);
        holds.unrecognised = Some(data("1"));
        assert_eq!(refusals(&holds, true), Vec::<String>::new());
        let texts = refusals(&holds, false).join("; ");
        for part in ["not recognised", "3 of 256 blocks", "--overwrite"] {
            assert!(texts.contains(part), "{texts}");
        }
        assert_eq!(
            source_refusals(&[holds.clone()], &[], false),
            Vec::<String>::new()
        );
        let (row, words) = (
            leg_row(std::slice::from_ref(&holds)).unwrap(),
            contents_words(std::slice::from_ref(&holds)),
        );
        let changed =
            |now: &Candidate| changed_since("db", &row, &words, std::slice::from_ref(now));
        assert_eq!(changed(&holds), Vec::<String>::new());
        assert_eq!(changed(&candidate(2)), Vec::<String>::new());
        holds.unrecognised = Some(data("2"));
        assert_eq!(changed(&holds).len(), 1);
    }

    #[test]
    fn a_lun_in_use_is_refused_whatever_is_accepted() {
        let findings = [
            Finding::Mounted { at: "/data".into() },
            Finding::Swap,
            Finding::Holders {
                names: vec!["/dev/dm-0".into()],
            },
            Finding::Exported {
                by: vec!["nvmet".into()],
            },
            Finding::InUse,
            Finding::ReadOnly,
            Finding::Zoned {
                model: "host-managed".into(),
            },
            Finding::SystemDisk {
                reason: "the root file system".into(),
            },
            Finding::IsShuntVolume {
                volume: "/dev/ublkb0".into(),
            },
            Finding::OtherPaths {
                names: vec!["/dev/sdc".into()],
            },
            Finding::MultipathComponent {
                map: "/dev/mapper/a".into(),
            },
        ];
        for finding in findings {
            let mut used = candidate(2);
            used.findings = vec![finding.clone()];
            assert_eq!(refusals(&used, true).len(), 1, "{finding:?}");
            assert_eq!(
                source_refusals(&[used.clone()], &[], false).len(),
                1,
                "{finding:?}"
            );
        }
    }

    #[test]
    fn every_reason_is_told() {
        let mut bad = candidate(2);
        bad.lun.identity.size_bytes = MIB - 4096;
        bad.lun.identity.logical_block_bytes = 4096;
        bad.findings = vec![Finding::Swap];
        bad.signatures = vec![ext4()];
        let texts = refusals(&bad, false).join("\n");
        for part in ["swap", "1044480", "1048576", "block size of 4096", "ext4"] {
            assert!(texts.contains(part), "{part} is missing in: {texts}");
        }
    }

    #[test]
    fn a_lun_that_shunt_uses_is_named_as_such_and_nothing_suggests_to_overwrite_it() {
        for (inode, part) in [(1, "the source of volume db itself"), (3, "volume other")] {
            let mut own = candidate(inode);
            own.findings = vec![Finding::InUse];
            own.signatures = vec![ext4()];
            let texts = refusals(&own, false);
            assert_eq!(texts.len(), 1, "{texts:?}");
            assert!(texts[0].contains(part), "{texts:?}");
        }
    }

    #[test]
    fn a_lun_that_is_not_whole_blocks_is_refused() {
        let mut odd = candidate(2);
        odd.lun.identity.size_bytes = MIB + 1;
        assert_eq!(source_refusals(&[odd.clone()], &[], false).len(), 1);
        odd.lun.identity.size_bytes = 0;
        assert_eq!(source_refusals(&[odd.clone()], &[], false).len(), 1);
    }

    #[test]
    fn another_lun_or_other_contents_than_accepted_are_noticed() {
        let leg = |first: Candidate| [first, candidate(3)];
        let accepted = leg(candidate(2));
        let (row, words) = (leg_row(&accepted).unwrap(), contents_words(&accepted));
        let changed =
            |words: &str, now: Candidate| changed_since("db", &row, words, &leg(now)).join("; ");
        assert_eq!(changed(&words, candidate(2)), "");
        let text = changed(&words, candidate(9));
        assert!(text.contains("not the LUN that was recorded"), "{text}");
        let mut written = candidate(2);
        written.signatures = vec![ext4()];
        assert!(changed(&words, written.clone()).contains("ext4"));
        let then = contents_words(&leg(written.clone()));
        assert_eq!(changed(&then, written.clone()), "");
        assert_eq!(changed(&then, candidate(2)), "");
        // The accepted contents of one LUN do not excuse the same contents on the other LUN.
        let both = [candidate(2), written];
        assert!(!changed_since("db", &leg_row(&both).unwrap(), &then, &both).is_empty());
    }

    #[test]
    fn luns_that_do_not_belong_together_are_no_leg() {
        let sized = |inode, size_bytes, logical_block_bytes| {
            let mut candidate = candidate(inode);
            candidate.lun.identity.size_bytes = size_bytes;
            candidate.lun.identity.logical_block_bytes = logical_block_bytes;
            candidate
        };
        let source = LegRow::new(vec![row(1)]).unwrap();
        let fit = TargetRequirements {
            volume: "db",
            size_bytes: 3 * MIB,
            logical_block_bytes: 512,
            source: &source,
            overwrite: false,
            accept_weak_identity: false,
        };
        let judge = |leg: &[Candidate]| target_refusals(leg, fit, &[]).join("; ");
        let (small, rest) = (sized(2, MIB, 512), sized(4, 2 * MIB, 512));
        assert_eq!(judge(&[small.clone(), rest.clone()]), "");
        assert_eq!(
            source_refusals(&[small.clone(), rest.clone()], &[], false),
            [""; 0]
        );
        for (leg, part) in [
            (vec![small.clone(), small.clone()], "named twice"),
            (
                vec![small.clone(), sized(4, 2 * MIB, 4096)],
                "cannot be one leg",
            ),
            (vec![small.clone(), sized(4, MIB, 512)], "too small"),
            (vec![sized(4, 3 * MIB, 512), small.clone()], "not needed"),
            (
                vec![small, sized(1, 2 * MIB, 512)],
                "the source of volume db itself",
            ),
        ] {
            let text = judge(&leg);
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
