//! The two disks. shunt-bench overwrites them, so they are checked first.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use lun::Lun;

use crate::process::{Until, run};

/// Why a disk is refused; nothing changed.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Two disks of the same size that may be overwritten.
#[derive(Debug)]
pub(crate) struct Disks {
    /// The disk below the contestants.
    pub(crate) source: PathBuf,
    /// The target of mirroring and copies.
    pub(crate) target: PathBuf,
    /// The size of each, in bytes.
    pub(crate) size_bytes: u64,
}

/// Checks that both disks may be overwritten and have the same size.
pub(crate) fn check(source: &Path, target: &Path, overwrite: bool) -> anyhow::Result<Disks> {
    let (a, b) = (look_at(source, overwrite)?, look_at(target, overwrite)?);
    if a.is_same_lun(&b) {
        return refused(format!(
            "{} and {} are the same disk",
            source.display(),
            target.display()
        ));
    }
    let [size_bytes, other] = [&a, &b].map(|lun| lun.identity.size_bytes);
    if size_bytes != other {
        return refused(format!(
            "the disks have {size_bytes} and {other} bytes; they must be equally long"
        ));
    }
    Ok(Disks {
        source: a.path,
        target: b.path,
        size_bytes,
    })
}

fn refused<T>(cause: String) -> anyhow::Result<T> {
    Err(Refused(cause).into())
}

fn look_at(path: &Path, overwrite: bool) -> anyhow::Result<Lun> {
    let inspection = lun::inspect_target(path, &[]).map_err(|error| Refused(error.to_string()))?;
    let found = |what: String| refused(format!("{} {what}", path.display()));
    if inspection.lun.device_number.is_none() {
        return found("is a file, not a block device".to_owned());
    }
    if let Some(finding) = inspection
        .findings
        .iter()
        .find(|finding| finding.is_in_use())
    {
        return found(finding.to_string());
    }
    let is_blank = inspection.signatures.is_empty()
        && inspection.unfinished.is_none()
        && inspection.unrecognised.is_none();
    if !is_blank && !overwrite {
        return found("is not blank: --overwrite if what it holds may be lost".to_owned());
    }
    Ok(inspection.lun)
}

impl Disks {
    /// Writes both disks completely, because blocks that were never written are faster than others.
    pub(crate) fn fill(&self, work: &Path) -> anyhow::Result<()> {
        for disk in [&self.source, &self.target] {
            let filename = format!("--filename={}", disk.display());
            let words = [
                "fio",
                "--name=fill",
                &filename,
                "--rw=write",
                "--bs=1M",
                "--direct=1",
            ];
            let more = ["--ioengine=io_uring", "--iodepth=8", "--output=fill.out"];
            run(&[&words[..], &more].concat(), work, Until::Interrupted)?;
        }
        Ok(())
    }
}
