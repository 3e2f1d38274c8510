//! The contents that a volume must have after the resets of a machine: a log that the host keeps.

use std::collections::BTreeSet;

use crate::power::{self, Mark};

/// The contents that the volume must have.
#[derive(Debug, Default)]
pub struct Log {
    /// The contents at the beginning of the life in which the volume was written last, with what
    /// was written to it since while no machine ran.
    pub bytes: Vec<u8>,
    /// The life in which the volume was written last.
    pub life: u64,
    /// For each writer, how many of its writes in that life were flushed.
    pub flushed: [u64; power::WRITERS as usize],
    /// The blocks that were overwritten after that life.
    overwritten: BTreeSet<u64>,
}

impl Log {
    /// Notes that a block was overwritten while no machine ran.
    pub fn overwrite(&mut self, offset: u64, data: &[u8]) {
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        self.overwritten.insert(offset);
    }

    /// Begins a life with the contents that were found.
    pub fn begin(&mut self, life: u64, found: Vec<u8>) {
        *self = Self {
            life,
            bytes: found,
            ..Self::default()
        };
    }

    /// Checks that every byte is right: that of the last flushed write, or of a later one, and
    /// where there was none, what was there before. `all`: everything that was written is flushed,
    /// so there is no later one.
    ///
    /// # Errors
    /// How many bytes are wrong, and where the first of them is.
    pub fn check(&self, found: &[u8], all: bool) -> Result<(), String> {
        if found.len() != self.bytes.len() {
            return Err(format!(
                "{} bytes are there, not {}",
                found.len(),
                self.bytes.len()
            ));
        }
        let sector_bytes = power::SECTOR_BYTES as usize;
        let mut wrong = 0;
        let mut first = None;
        let floors = self.floors();
        for (index, (sector, before)) in found
            .chunks(sector_bytes)
            .zip(self.bytes.chunks(sector_bytes))
            .enumerate()
        {
            let place = index as u64 * power::SECTOR_BYTES;
            let block = place - place % power::BLOCK_BYTES;
            let floor = match block.is_multiple_of(power::STRIDE_BYTES)
                && !self.overwritten.contains(&block)
            {
                true => floors[(block / power::STRIDE_BYTES) as usize],
                false => None,
            };
            let mark = power::decode(sector, place);
            let right =
                self.is_later(mark, block, floor, all) || (floor.is_none() && sector == before);
            if !right {
                wrong += power::SECTOR_BYTES;
                first.get_or_insert((place, mark, floor));
            }
        }
        match first {
            None => Ok(()),
            Some((place, mark, floor)) => Err(format!(
                "{wrong} bytes are wrong; the first at {place}, which holds {mark:?}, and write {floor:?} of life {} was flushed",
                self.life
            )),
        }
    }

    /// For each block, the last write that was flushed.
    fn floors(&self) -> Vec<Option<u64>> {
        let mut floors = vec![None; (power::WRITERS * power::BLOCKS) as usize];
        for (writer, count) in (0..).zip(self.flushed) {
            for number in 0..count {
                let block = power::block_of(self.life, writer, number);
                floors[(writer * power::BLOCKS + block) as usize] = Some(number);
            }
        }
        floors
    }

    /// Whether a sector of a block holds the write `floor`, or a later one.
    fn is_later(&self, mark: Option<Mark>, block: u64, floor: Option<u64>, all: bool) -> bool {
        let Some(mark) = mark.filter(|mark| mark.life == self.life && mark.life > 0) else {
            return false;
        };
        if !block.is_multiple_of(power::STRIDE_BYTES) || self.overwritten.contains(&block) {
            return false;
        }
        let (writer, own) = (
            block / power::STRIDE_BYTES / power::BLOCKS,
            block / power::STRIDE_BYTES % power::BLOCKS,
        );
        power::block_of(self.life, writer, mark.number) == own
            && floor.is_none_or(|floor| mark.number >= floor)
            && (!all || mark.number < self.flushed[writer as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], writer: u64, mark: Mark) -> usize {
        let block = power::block_of(mark.life, writer, mark.number);
        let offset = power::offset_of(writer, block);
        let start = offset as usize;
        for place in (start..start + power::BLOCK_BYTES as usize).step_by(512) {
            power::encode(&mut bytes[place..place + 512], place as u64, mark);
        }
        start
    }

    #[test]
    fn each_byte_that_is_not_as_it_was_written_is_found() {
        let mut log = Log::default();
        log.begin(1, vec![7; power::LUN_BYTES as usize]);
        let mut found = log.bytes.clone();
        let mark = |number| Mark { life: 1, number };
        let flushed = put(&mut found, 2, mark(0));
        log.flushed[2] = 1;
        assert_eq!(log.check(&found, true), Ok(()));

        let unflushed = put(&mut found, 2, mark(1));
        assert_ne!(unflushed, flushed);
        assert_eq!(log.check(&found, false), Ok(()), "may be there");
        assert!(log.check(&found, true).is_err(), "was not written yet");
        found[unflushed..][..512].fill(7);
        assert_eq!(log.check(&found, false), Ok(()), "and may be lost, in part");

        for place in [flushed, flushed + 4096, unflushed] {
            let mut wrong = found.clone();
            wrong[place] ^= 1;
            assert!(log.check(&wrong, false).is_err(), "a byte at {place}");
        }
        let mut lost = found.clone();
        lost[flushed..][..512].fill(7);
        let said = log.check(&lost, false).unwrap_err();
        assert!(said.starts_with("512 bytes are wrong"), "{said}");
        let misplaced = found[flushed..][..4096].to_vec();
        lost[flushed..][..4096].fill(7);
        lost[0..4096].copy_from_slice(&misplaced);
        assert!(log.check(&lost, false).is_err(), "at another place");
    }

    #[test]
    fn what_was_overwritten_while_no_machine_ran_has_to_be_there() {
        let mut log = Log::default();
        log.begin(1, vec![7; power::LUN_BYTES as usize]);
        let mut written = log.bytes.clone();
        let start = put(&mut written, 0, Mark { life: 1, number: 0 });
        log.flushed[0] = 1;
        log.overwrite(start as u64, &[9; 4096]);
        assert!(log.check(&written, false).is_err());
        written[start..][..4096].fill(9);
        assert_eq!(log.check(&written, false), Ok(()));
        log.begin(2, written.clone());
        assert_eq!(log.check(&written, true), Ok(()));
    }
}
