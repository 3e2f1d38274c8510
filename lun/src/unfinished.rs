//! A LUN that is to become a copy, and is none yet: programs that look for a file system find none, people find a label.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::open::{Lun, OpenError, other};

/// How often is looked for more signatures: behind one that is gone another one can come to light.
const WIPE_ROUNDS_MAX: usize = 16;
/// How the label begins.
const MAGIC: &[u8] = b"SHUNT: not a copy yet\n";
/// Nothing is found in it: so much is overwritten at the start of the LUN, in bytes.
const LABEL_BYTES: usize = 4096;

impl Lun {
    /// Takes away what programs recognise, and says at the start of the LUN what it is: `text`, a line or two. For good; a copy
    /// writes over the label when it gets there.
    ///
    /// # Errors
    /// The LUN cannot be read or written, or it is too small.
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

    /// What the label says, if there is one.
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
            // XFS is not made so small: then there is still the label.
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
