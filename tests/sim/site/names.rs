//! The names that lead to LUNs. Names are exchanged while nobody holds the LUNs. The programs' own
//! rule in `lun` distinguishes the LUNs.

use lun::{Identity, Kind, Seen};

use super::{Process, SIZE, Site};
use crate::dice::Dice;

/// The properties that distinguish the LUNs of a volume, and the LUNs that their names lead to.
#[derive(Debug)]
pub(super) struct Names {
    /// Separate from the dice of the site, so that worlds without exchanged names do not change.
    dice: Dice,
    kind: LunKind,
    /// Whether each name leads to the other LUN.
    exchanged: bool,
    /// The kernel's number of the disk of each LUN.
    numbers: [u64; 2],
    /// What shuntd has recorded of the LUN behind each name.
    accepted: [Option<Seen>; 2],
    /// Whether a LUN is identified by its size only.
    by_size_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LunKind {
    /// LUNs whose names are never exchanged.
    Fixed,
    /// LUNs with serial numbers.
    Named,
    /// LUNs without serial numbers, and their contents, as far as those have a UUID or a label.
    Nameless(Contents),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    Nothing,
    Different,
    /// The same contents, as on two legs in sync.
    Same,
}

impl Names {
    pub(super) fn new(seed: u64, number: usize, by_size_only: bool) -> Self {
        let mut dice = Dice::new(!seed.wrapping_mul(31).wrapping_add(number as u64));
        let kinds = [
            LunKind::Fixed,
            LunKind::Named,
            LunKind::Nameless(Contents::Nothing),
            LunKind::Nameless(Contents::Different),
            LunKind::Nameless(Contents::Same),
        ];
        Self {
            kind: dice.pick(&kinds),
            dice,
            exchanged: false,
            numbers: [1, 2],
            accepted: [None, None],
            by_size_only,
        }
    }

    /// The host boots: disks get their numbers in the order in which they are found.
    fn boot(&mut self) {
        self.numbers = self.dice.pick(&[[1, 2], [2, 1]]);
        self.may_exchange();
    }

    fn may_exchange(&mut self) {
        if self.kind != LunKind::Fixed && self.dice.one_in(3) {
            self.exchanged = !self.exchanged;
        }
    }

    /// The identity of a LUN, whatever its name is.
    fn identity(&self, lun: usize) -> Identity {
        Identity {
            kind: Kind::BlockDevice,
            size_bytes: SIZE,
            logical_block_bytes: 512,
            wwn: None,
            serial: matches!(self.kind, LunKind::Named).then(|| lun.to_string()),
            partition_uuid: None,
            partition_number: None,
            partition_start_bytes: None,
            file: None,
            file_offset_bytes: None,
            dm_uuid: None,
        }
    }

    fn seen(&self, lun: usize, boot: u8) -> Seen {
        let contents = match self.kind {
            LunKind::Nameless(Contents::Different) => Some(format!("ext4 {lun}")),
            LunKind::Nameless(Contents::Same) => Some("ext4 0".to_owned()),
            LunKind::Fixed | LunKind::Named | LunKind::Nameless(Contents::Nothing) => None,
        };
        Seen {
            boot_id: boot.to_string(),
            disk_sequence: self.numbers[lun],
            size_bytes: SIZE,
            contents,
        }
    }

    /// Judges a name as shuntd and ublk-target do: the LUN behind it is the recorded one, or the
    /// recorded one is elsewhere, or that is unknown.
    fn judge(&mut self, name: usize, boot: u8) -> Verdict {
        let behind = if self.exchanged { 1 - name } else { name };
        let (recorded, found) = (self.identity(name), self.identity(behind));
        if recorded.matches(&found).is_err() {
            return Verdict::Elsewhere;
        }
        if recorded.is_distinct() || self.by_size_only {
            return Verdict::Here;
        }
        let now = self.seen(behind, boot);
        let same_elsewhere = self.seen(1 - behind, boot).contents == now.contents;
        let Some(seen) = &self.accepted[name] else {
            return Verdict::Unknown;
        };
        let booted = seen.boot_id != now.boot_id;
        if seen.is_still(&now).is_err() || booted && same_elsewhere {
            return Verdict::Unknown;
        }
        self.accepted[name] = Some(now);
        Verdict::Here
    }

    /// The operator gives each LUN its name again, and accepts both LUNs.
    fn put_right(&mut self, boot: u8) {
        self.exchanged = false;
        self.accepted = [0, 1].map(|lun| Some(self.seen(lun, boot)));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Here,
    Elsewhere,
    Unknown,
}

impl Site {
    /// Devices disappear and come back, possibly under other names, while nobody holds them.
    pub(crate) fn come_back_under_other_names(&mut self) {
        let unclaimed = self.held.is_none() && matches!(self.process, Process::Down);
        if unclaimed && self.ghosts.is_empty() && self.copying.is_gone() {
            // The disks get new numbers, so no LUN is known by its number any more.
            self.names.numbers = self.names.numbers.map(|number| number + 2);
            self.names.may_exchange();
        }
    }

    pub(super) fn names_after_a_boot(&mut self) {
        self.names.boot();
    }

    /// Whether the process that starts finds its LUNs, behind their names or elsewhere. If not, the
    /// operator corrects the names sooner or later.
    pub(super) fn finds_its_luns(&mut self) -> bool {
        let boot = self.boot;
        if self.boot == 0 && self.names.accepted[0].is_none() {
            self.names.put_right(boot);
        }
        let verdicts = [0, 1].map(|name| self.names.judge(name, boot));
        if verdicts.contains(&Verdict::Unknown) {
            self.note("LUNs without a name that were not accepted");
            if self.names.dice.one_in(3) {
                self.names.put_right(boot);
            }
            return false;
        }
        if verdicts.contains(&Verdict::Elsewhere) {
            self.note("LUNs found under another name");
        } else if self.names.exchanged {
            // The process uses the LUNs behind the names.
            self.luns.swap(0, 1);
            self.names.exchanged = false;
            self.note("LUNs taken for each other");
        }
        true
    }
}
