//! The feature flags, as a set.

use std::fmt;
use std::ops::BitOr;

/// A set of `UBLK_F_*` flags: what a driver offers (GET_FEATURES) or what a device has
/// (`dev_info.flags`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(u64);

/// Defines the flags and their names from one table.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(1 << $bit);)*

            /// Every flag that this module knows, in the order of the bits, with the header's name
            /// without `UBLK_F_`.
            pub const TABLE: &'static [(Features, &'static str)] = &[$((Features::$name, stringify!($name)),)*];
        }
    };
}

features! {
    /// Request pages can be registered in io_uring's buffer table (6.15; the bit is reserved since
    /// 6.0).
    SUPPORT_ZERO_COPY = 0;
    /// Commands complete in the server's task context; drivers since 6.4 always set it.
    URING_CMD_COMP_IN_TASK = 1;
    /// The server supplies a write's buffer in a second round trip (6.0).
    NEED_GET_DATA = 2;
    /// The device survives its server; new requests wait for the next one (6.1).
    USER_RECOVERY = 3;
    /// With [`Self::USER_RECOVERY`]: requests in flight are delivered again to the next server
    /// (6.1).
    USER_RECOVERY_REISSUE = 4;
    /// The device belongs to an unprivileged user; clears the recovery flags (6.3).
    UNPRIVILEGED_DEV = 5;
    /// Opcodes are encoded as ioctl numbers; always set since 6.4. This module uses no other
    /// encoding.
    CMD_IOCTL_ENCODE = 6;
    /// Data moves by pread/pwrite on `/dev/ublkcN` instead of by the driver's copy (6.5).
    USER_COPY = 7;
    /// Zoned devices (6.6).
    ZONED = 8;
    /// With [`Self::USER_RECOVERY`]: requests fail while there is no server (6.13).
    USER_RECOVERY_FAIL_IO = 9;
    /// UPDATE_SIZE changes the size of a live device (6.16).
    UPDATE_SIZE = 10;
    /// The driver automatically registers request pages in the server's buffer table (6.16).
    AUTO_BUF_REG = 11;
    /// QUIESCE_DEV (6.16). The flag also identifies the driver generation that detects a server's
    /// death by the release of `/dev/ublkcN` and recovers from a crash during recovery.
    QUIESCE = 12;
    /// Each tag may have a server thread of its own; without it all tags of a queue belong to one
    /// thread (6.16).
    PER_IO_DAEMON = 13;
    /// Zero-copy buffers may be registered by any thread (6.17).
    BUF_REG_OFF_DAEMON = 14;
    /// Requests are fetched and committed in batches (7.0).
    BATCH_IO = 15;
    /// T10 protection information; needs [`Self::USER_COPY`] (7.0).
    INTEGRITY = 16;
    /// TRY_STOP_DEV: stop only when nobody has the block device open (7.0).
    SAFE_STOP_DEV = 17;
    /// No partition scan when the device starts (7.0).
    NO_AUTO_PART_SCAN = 18;
    /// Zero copy over memory shared with the client (7.1).
    SHMEM_ZC = 19;
}

impl Features {
    /// The set of flags with these bits, known or not.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The flags as the header's `__u64`.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every flag of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags that are in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags of this set that are not in `other`.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of the known flags in this set, lowest bit first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::TABLE
            .iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| *name)
    }

    /// The flags of this set that this module does not know.
    pub fn unknown(self) -> Self {
        Self::TABLE
            .iter()
            .fold(self, |left, (flag, _)| left.difference(*flag))
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Display for Features {
    /// Writes `USER_RECOVERY|ZONED|0x100000`: the names, then the unknown bits as one number;
    /// `none` for the empty set.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return formatter.write_str("none");
        }
        let mut separator = "";
        for name in self.names() {
            write!(formatter, "{separator}{name}")?;
            separator = "|";
        }
        let unknown = self.unknown();
        if !unknown.is_empty() {
            write!(formatter, "{separator}{:#x}", unknown.0)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Features({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_the_measured_kernels_have_the_expected_names() {
        let old = Features::from_bits(0x1fe);
        assert!(old.contains(Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE));
        assert!(!old.contains(Features::QUIESCE));
        assert!(!old.contains(Features::USER_RECOVERY | Features::QUIESCE));
        assert_eq!(old.names().count(), 8);
        let new = Features::from_bits(0xf_ffff);
        assert_eq!(new.names().count(), Features::TABLE.len());
        assert!(new.unknown().is_empty());
    }

    #[test]
    fn features_are_shown_by_name_with_unknown_bits_as_a_number() {
        assert_eq!(Features::default().to_string(), "none");
        let known = Features::USER_RECOVERY | Features::ZONED;
        assert_eq!(known.to_string(), "USER_RECOVERY|ZONED");
        assert_eq!(
            (known | Features::from_bits(1 << 40)).to_string(),
            "USER_RECOVERY|ZONED|0x10000000000"
        );
        assert_eq!(Features::from_bits(1 << 40).to_string(), "0x10000000000");
    }

    #[test]
    fn every_feature_flag_is_one_bit_and_appears_once() {
        let all = Features::TABLE.iter().fold(0, |bits, (flag, name)| {
            assert_eq!(flag.bits().count_ones(), 1, "{name}");
            assert_eq!(bits & flag.bits(), 0, "{name} twice");
            bits | flag.bits()
        });
        assert_eq!(all, 0xf_ffff);
    }
}
