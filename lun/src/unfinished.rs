//! The label of a LUN that is to become a copy and is not finished: programs find no file system on
//! it, an operator finds the label.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::open::{Lun, OpenError, other};

/// Maximum passes over a LUN: removing one signature can expose another.
const WIPE_ROUNDS_MAX: usize = 16;
/// The first bytes of the label.
const MAGIC: &[u8] = b"SHUNT: not a copy yet\n";
/// Length of the label at the start of the LUN, in bytes, padded with zeroes. libblkid finds no
/// signature in it.
const LABEL_BYTES: usize = 4096;

impl Lun {
    /// Removes the signatures that programs recognise, and writes the label with `text` (a line or
    /// two) at the start of the LUN. The removed signatures are not saved. A copy overwrites the
    /// label when it reaches the start of the LUN.
    ///
    /// # Errors
    /// The LUN cannot be read or written, or the device is smaller than the label.
    pub fn mark_unfinished(&self, text: &str) -> Result<(), OpenError> {
        for _ in 0..WIPE_ROUNDS_MAX {
            let blocks = self.blocks_with_signatures()?;
            if blocks.is_empty() {
                break;
            }
            self.wipe(&blocks)?;
        }
        let mut label = vec![0; LABEL_BYTES];
        let words = [MAGIC, text.as_bytes()].concat();
        let length = words.len().min(LABEL_BYTES);
        label[..length].copy_from_slice(&words[..length]);
        let file = File::from(self.duplicate()?);
        file.write_all_at(&label, 0)
            .and_then(|()| file.sync_all())
            .map_err(|source| other(&self.path, "mark", source))
    }

    /// The text of the label; `None` if the LUN has no label.
    ///
    /// # Errors
    /// The LUN cannot be read.
    pub fn unfinished(&self) -> Result<Option<String>, OpenError> {
        let file = File::from(self.duplicate()?);
        let mut label = vec![0; LABEL_BYTES];
        match file.read_exact_at(&mut label, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(source) => return Err(other(&self.path, "read", source)),
        }
        let Some(text) = label.strip_prefix(MAGIC) else {
            return Ok(None);
        };
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Some(String::from_utf8_lossy(text).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, signatures};
    use std::process::Command;

    #[test]
    fn what_is_marked_holds_no_file_system_and_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun");
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let options = OpenOptions {
            write: true,
            ..OpenOptions::default()
        };
        let lun = Lun::open(&path, &options).unwrap();
        assert_eq!(lun.unfinished().unwrap(), None);
        for file_system in ["ext4", "xfs"] {
            let made = Command::new(format!("/sbin/mkfs.{file_system}"))
                .arg("-q")
                .arg(&path)
                .status();
            // mkfs.xfs may refuse a LUN of this size; the label of the round before is still there
            // then.
            let _ = made.unwrap();
            lun.mark_unfinished("volume db, session move\n").unwrap();
            assert_eq!(signatures(&lun).unwrap(), []);
            let said = lun.unfinished().unwrap();
            assert_eq!(said.as_deref(), Some("volume db, session move"));
        }
        std::fs::write(&path, "short").unwrap();
        lun.unfinished().unwrap_or_default();
    }
}
