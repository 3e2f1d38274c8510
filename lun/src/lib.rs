//! Opens LUNs and identifies them.
//!
//! The worst thing Shunt can do is to overwrite the wrong disk, and the kernel does not prevent it.
//! So a path is only a way to find a LUN. This crate reads from the *opened descriptor* what
//! identifies the LUN ([`Identity`]), lists every reason not to use it ([`inspect`]), and names who
//! uses it ([`in_use`], [`openers`]).
//!
//! | file | purpose |
//! |---|---|
//! | `open` | open a path as a LUN, its limits, its lock |
//! | `identity` | what identifies a LUN, comparing it with what was recorded |
//! | `recorded` | finding and opening a recorded LUN; evidence for one without a name |
//! | `names` | names that stay with a LUN, and names that do not |
//! | `partitions` | the partitions of a device that the kernel does not scan automatically |
//! | `inspect` | all findings about a LUN, and the word that confirms an overwrite |
//! | `finding` | the findings and their texts |
//! | `usage` | mounts, swap, holders, partitions in use, other paths |
//! | `state` | evidence that others have written to a LUN |
//! | `stack` | which devices lie beneath a path or a device |
//! | `openers` | which processes have a LUN open |
//! | `exports` | what the kernel itself serves to others |
//! | `contents` | whether a LUN without a known signature holds data |
//! | `bounded` | a time limit for questions that the kernel may never answer |
//! | `users` | who uses the device of a volume |
//! | `signature` | what libblkid recognises on a LUN |
//! | `retire` | making a LUN inaccessible on request |
//! | `unfinished` | the label of a LUN that is to become a copy |
//! | `sysfs`, `proc_text`, `vpd` | reading the kernel's texts and the SCSI pages |
//! | `kernel` | the system calls: the only unsafe code |
//!
//! Absent: any decision. The caller decides whether a finding refuses a command. Only `retire` and
//! `unfinished` write to a LUN.
//!
//! All calls block (they read devices, `/sys`, `/proc` and run `wipefs`): an asynchronous caller
//! runs them on a thread of their own.

#![deny(unsafe_code)]

mod bounded;
mod contents;
mod exports;
mod finding;
mod identity;
mod inspect;
mod kernel;
mod names;
mod open;
mod openers;
mod partitions;
mod proc_text;
mod recorded;
mod retire;
mod signature;
mod stack;
mod state;
mod sysfs;
mod unfinished;
mod usage;
mod users;
mod vpd;

pub use contents::{Filled, Unrecognised};
pub use finding::Finding;
pub use identity::{Difference, FileId, Identity, Kind, Mismatch};
pub use inspect::{Inspection, inspect, inspect_target, overwrite_word, volumes_beneath};
pub use kernel::file_block_bytes;
pub use names::{is_kernel_name, stable_name};
pub use open::{Lun, OpenError, OpenOptions};
pub use openers::{Opener, openers};
pub use partitions::read_partitions;
pub use recorded::{Recorded, RecordedError, Seen, boot_id};
pub use retire::{Saved, bring_online};
pub use signature::{Signature, SignatureError, SignatureUsage, signatures};
pub use state::fingerprint;
pub use usage::in_use;
pub use users::users;

/// Helpers of the tests. `alone` serializes tests that start programs, and tests that an inherited
/// copy of a descriptor would disturb.
#[cfg(test)]
mod testing {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static ALONE: Mutex<()> = Mutex::new(());

    /// Reports that a test cannot run here; panics if `SHUNT_NO_SKIP` is set.
    pub(crate) fn skip(reason: &str) {
        assert!(
            std::env::var_os("SHUNT_NO_SKIP").is_none(),
            "SHUNT_NO_SKIP is set, and this test cannot run: {reason}"
        );
        eprintln!("skipped: {reason}");
    }

    pub(crate) fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
