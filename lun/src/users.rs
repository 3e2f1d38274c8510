//! Who uses the device of a volume, as texts for a refusal.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::finding::Finding;
use crate::open::number_of;
use crate::openers::openers;
use crate::usage::in_use;

/// Lists who uses the block device at `device`, without the process `server` that serves it. What cannot be found out
/// is in the list too. Empty for a path that is no block device: nothing can be open there.
#[must_use]
pub fn users(device: &Path, server: u32) -> Vec<String> {
    let number = match fs::metadata(device) {
        Ok(metadata) if metadata.file_type().is_block_device() => number_of(metadata.rdev()),
        Ok(_) | Err(_) => return Vec::new(),
    };
    let findings = match in_use(device) {
        Ok(findings) => findings,
        Err(error) => return vec![format!("cannot be examined: {error}")],
    };
    let mut users: Vec<String> = findings
        .iter()
        .filter(|finding| finding.is_in_use() && !matches!(finding, Finding::OpenedBy { .. }))
        .map(Finding::to_string)
        .collect();
    match openers(number) {
        Ok(openers) => users.extend(
            openers
                .iter()
                .filter(|opener| opener.pid != server)
                .map(|opener| format!("is open in {opener}")),
        ),
        Err(error) => users.push(format!("may be open, /proc cannot be searched: {error}")),
    }
    users
}
