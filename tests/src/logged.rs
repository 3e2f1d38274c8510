//! The writes and flushes that a disk was given, as device-mapper's log-writes records them, and
//! what a crash would leave.
//!
//! The kernel describes the format of the log in
//! `Documentation/admin-guide/device-mapper/log-writes.rst` and at the top of
//! `drivers/md/dm-log-writes.c`: a sector for the log itself, then for each entry a sector and the
//! data. A write is logged when a flush that came after it has ended. What is in the log before a
//! mark was durable when the mark was made.

use std::{fs::File, os::unix::fs::FileExt};

use crate::{load_module, run, sh};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const SECTOR: u64 = 512;

/// A device on the beginning of a disk, whose writes are logged on the rest of the disk.
#[derive(Debug)]
pub struct Logged {
    name: String,
    base: Vec<u8>,
}

impl Logged {
    /// Makes the device from an even number of sectors; the log begins from their present contents.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(name: &str, disk: &str, size_bytes: u64) -> Self {
        load_module("dm-log-writes");
        let mut base = vec![0; size_bytes as usize];
        let file = File::open(disk).expect("the disk");
        file.read_exact_at(&mut base, 0).expect("its contents");
        let sectors = size_bytes / SECTOR;
        let rest = crate::lun::size(disk) / SECTOR - sectors;
        let log = format!("{name}-log");
        let table = format!("0 {rest} linear {disk} {sectors}");
        sh("dmsetup", &["create", &log, "--table", &table]);
        let table = format!("0 {sectors} log-writes {disk} /dev/mapper/{log}");
        let uuid = format!("SHUNT-{name}");
        sh(
            "dmsetup",
            &["create", name, "--uuid", &uuid, "--table", &table],
        );
        Self {
            name: name.to_owned(),
            base,
        }
    }

    /// `/dev/mapper/NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Writes a mark into the log, after everything that is durable now.
    pub fn mark(&self, mark: u64) {
        let mark = mark.to_string();
        sh("dmsetup", &["message", &self.name, "0", "mark", &mark]);
    }

    /// Ends the logging. The device must not be used any more.
    ///
    /// # Panics
    /// If the log is not whole.
    #[must_use]
    pub fn replay(mut self) -> Replay {
        let status = sh("dmsetup", &["status", &self.name]);
        assert!(!status.contains("logging_disabled"), "{status}");
        sh("dmsetup", &["remove", "--retry", &self.name]);
        let path = format!("{}-log", self.path());
        sh("blockdev", &["--flushbufs", &path]);
        let log = File::open(&path).expect("the log");
        Replay {
            entries: entries(&log),
            log,
            next: 0,
            contents: std::mem::take(&mut self.base),
            _device: self,
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        for name in [&self.name, &format!("{}-log", self.name)] {
            let _ = run("dmsetup", &["remove", "--retry", "--deferred", name]);
        }
    }
}

#[derive(Debug)]
struct Entry {
    flags: u64,
    /// The place on the device, in bytes.
    offset: u64,
    length: u64,
    /// The place of the data in the log, in bytes.
    data: u64,
    mark: Option<u64>,
}

fn entries(log: &File) -> Vec<Entry> {
    let mut sector = [0; SECTOR as usize];
    let number = |sector: &[u8], index: usize| {
        let bytes = sector[index * 8..][..8].try_into().expect("8 bytes");
        u64::from_le_bytes(bytes)
    };
    log.read_exact_at(&mut sector, 0).expect("the log");
    let head = [0, 1].map(|index| number(&sector, index));
    assert_eq!(head, [MAGIC, VERSION], "this is no log");
    let count = number(&sector, 2);
    let sector_bytes = number(&sector, 3) & u64::from(u32::MAX);
    let mut at = sector_bytes;
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        log.read_exact_at(&mut sector, at).expect("an entry");
        let [first, sectors, flags, text] = [0, 1, 2, 3].map(|index| number(&sector, index));
        let text = std::str::from_utf8(&sector[32..][..text as usize]).unwrap_or_default();
        let entry = Entry {
            flags,
            offset: first * sector_bytes,
            length: sectors * sector_bytes,
            data: at + sector_bytes,
            mark: text.parse().ok().filter(|_| flags & MARK != 0),
        };
        at = entry.data;
        if flags & DISCARD == 0 {
            at += entry.length;
        }
        entries.push(entry);
    }
    entries
}

/// The states of a logged device at moments of its past, from the first on.
#[derive(Debug)]
pub struct Replay {
    entries: Vec<Entry>,
    log: File,
    next: usize,
    contents: Vec<u8>,
    _device: Logged,
}

/// A write, as it was logged.
#[derive(Debug)]
pub struct Write {
    /// Where it went, in bytes.
    pub offset: u64,
    /// The data that was written.
    pub data: Vec<u8>,
}

impl Write {
    /// Applies the write to an image of the device.
    pub fn apply(&self, contents: &mut [u8]) {
        contents[self.offset as usize..][..self.data.len()].copy_from_slice(&self.data);
    }
}

impl Replay {
    /// The contents that were durable when the mark was made.
    ///
    /// # Panics
    /// If there is no such mark after the current one.
    pub fn advance(&mut self, mark: u64) -> &[u8] {
        loop {
            let entry = self.entries.get(self.next).expect("the mark in the log");
            self.next += 1;
            if entry.mark == Some(mark) {
                return &self.contents;
            }
            if let Some(write) = self.write_of(entry) {
                write.apply(&mut self.contents);
            }
        }
    }

    /// The writes that the next flush made durable. Some of them were in the disk's cache when the
    /// mark was made.
    #[must_use]
    pub fn until_next_flush(&self) -> Vec<Write> {
        let ahead = self.entries[self.next..].iter();
        ahead
            .take_while(|entry| entry.flags & FLUSH == 0)
            .filter_map(|entry| self.write_of(entry))
            .collect()
    }

    /// How many flushes there were.
    #[must_use]
    pub fn flushes(&self) -> usize {
        let flushes = self.entries.iter().filter(|entry| entry.flags & FLUSH != 0);
        flushes.count()
    }

    /// The write of an entry, if it is one. A discard counts as none: it leaves anything, also what
    /// was there.
    fn write_of(&self, entry: &Entry) -> Option<Write> {
        if entry.flags & (DISCARD | MARK) != 0 || entry.length == 0 {
            return None;
        }
        let mut data = vec![0; entry.length as usize];
        self.log
            .read_exact_at(&mut data, entry.data)
            .expect("the data of an entry");
        Some(Write {
            offset: entry.offset,
            data,
        })
    }
}
