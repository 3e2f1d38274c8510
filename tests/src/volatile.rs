//! A disk with a cache that a power loss empties: an NBD server. Each unflushed sector is kept,
//! lost or falls back to an earlier content, independently of the others.
//!
//! The protocol is the fixed newstyle negotiation and simple replies of
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, as far as QEMU uses it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

const SECTOR: usize = 512;
const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes after the export.
const HANDSHAKE_FLAGS: u16 = 0b11;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
/// The export has flags, and supports a flush.
const EXPORT_FLAGS: u16 = 0b101;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const EINVAL: u32 = 22;

/// The disk: what is on the medium, and what is only in the cache.
#[derive(Debug)]
struct Disk {
    medium: File,
    size: u64,
    /// For each sector in the cache, all contents that were written to it since the last flush.
    cache: BTreeMap<u64, Vec<[u8; SECTOR]>>,
    powered: bool,
}

/// A disk that is served on a socket until the power is lost.
#[derive(Debug, Clone)]
pub struct VolatileDisk(Arc<Mutex<Disk>>);

impl VolatileDisk {
    /// Serves a file as a disk.
    ///
    /// # Errors
    /// Those of the file and the socket.
    pub fn serve(medium: &Path, socket: &Path) -> io::Result<Self> {
        let medium = File::options().read(true).write(true).open(medium)?;
        let size = medium.metadata()?.len();
        let disk = Self(Arc::new(Mutex::new(Disk {
            medium,
            size,
            cache: BTreeMap::new(),
            powered: true,
        })));
        let listener = UnixListener::bind(socket)?;
        let served = disk.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let disk = served.clone();
                // A machine that is reset closes its connection.
                std::thread::spawn(move || drop(disk.converse(stream)));
            }
        });
        Ok(disk)
    }

    /// Cuts the power of all these disks at one moment. From now on nothing arrives. Of the `n - 1`
    /// writes to each unflushed sector, the first `random(n)` have reached the medium. Returns the
    /// number of sectors that did not get their last write.
    ///
    /// # Errors
    /// Those of the files.
    pub fn lose_power(disks: &[Self], mut random: impl FnMut(u64) -> u64) -> io::Result<u64> {
        let mut all: Vec<_> = disks
            .iter()
            .map(|disk| disk.0.lock().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let mut lost = 0;
        for disk in &mut all {
            disk.powered = false;
            for (sector, versions) in std::mem::take(&mut disk.cache) {
                let kept = random(versions.len() as u64 + 1) as usize;
                lost += u64::from(kept < versions.len());
                if let Some(last) = kept.checked_sub(1) {
                    let offset = sector * SECTOR as u64;
                    disk.medium.write_all_at(&versions[last], offset)?;
                }
            }
        }
        Ok(lost)
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        if !self.negotiate(&mut stream)? {
            return Ok(());
        }
        loop {
            let mut header = [0; 28];
            stream.read_exact(&mut header)?;
            if number::<4>(&header, 0) != u64::from(REQUEST_MAGIC) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let command = number::<2>(&header, 6) as u16;
            let (offset, length) = (number::<8>(&header, 16), number::<4>(&header, 24));
            let mut data = vec![0; if command <= WRITE { length as usize } else { 0 }];
            if command == WRITE {
                stream.read_exact(&mut data)?;
            }
            if command == DISCONNECT {
                return Ok(());
            }
            let result = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .perform(command, offset, &mut data)?;
            let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
            reply.extend(result.to_be_bytes());
            reply.extend(&header[8..16]);
            if command == READ && result == 0 {
                reply.extend(&data);
            }
            stream.write_all(&reply)?;
        }
    }

    /// Returns whether the client continues with requests.
    fn negotiate(&self, stream: &mut UnixStream) -> io::Result<bool> {
        let size = self.0.lock().unwrap_or_else(PoisonError::into_inner).size;
        stream.write_all(MAGIC)?;
        stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
        stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
        stream.read_exact(&mut [0; 4])?;
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            if number::<8>(&header, 0) != OPTION_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let option = number::<4>(&header, 8) as u32;
            let mut data = vec![0; number::<4>(&header, 12) as usize];
            stream.read_exact(&mut data)?;
            let mut reply = |kind: u32, data: &[u8]| {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                bytes.extend(option.to_be_bytes());
                bytes.extend(kind.to_be_bytes());
                bytes.extend((data.len() as u32).to_be_bytes());
                bytes.extend(data);
                stream.write_all(&bytes)
            };
            match option {
                OPTION_GO => {
                    // Information of type 0: the export.
                    let mut export = vec![0, 0];
                    export.extend(size.to_be_bytes());
                    export.extend(EXPORT_FLAGS.to_be_bytes());
                    reply(REPLY_INFO, &export)?;
                    reply(REPLY_ACK, &[])?;
                    return Ok(true);
                }
                OPTION_ABORT => {
                    reply(REPLY_ACK, &[])?;
                    return Ok(false);
                }
                _ => reply(REPLY_UNSUPPORTED, &[])?,
            }
        }
    }
}

impl Disk {
    /// Returns the error number of the reply. Without power there is no reply at all.
    fn perform(&mut self, command: u16, offset: u64, data: &mut [u8]) -> io::Result<u32> {
        if !self.powered {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let (first, end) = (offset / SECTOR as u64, offset + data.len() as u64);
        if !offset.is_multiple_of(SECTOR as u64)
            || !data.len().is_multiple_of(SECTOR)
            || end > self.size
        {
            return Ok(EINVAL);
        }
        match command {
            READ => {
                self.medium.read_exact_at(data, offset)?;
                for (sector, versions) in self.cache.range(first..end.div_ceil(SECTOR as u64)) {
                    let at = (sector - first) as usize * SECTOR;
                    if let Some(last) = versions.last() {
                        data[at..at + SECTOR].copy_from_slice(last);
                    }
                }
            }
            WRITE => {
                for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR)) {
                    let mut version = [0; SECTOR];
                    version.copy_from_slice(bytes);
                    self.cache.entry(sector).or_default().push(version);
                }
            }
            FLUSH => {
                for (sector, versions) in std::mem::take(&mut self.cache) {
                    if let Some(last) = versions.last() {
                        self.medium.write_all_at(last, sector * SECTOR as u64)?;
                    }
                }
            }
            _ => return Ok(EINVAL),
        }
        Ok(0)
    }
}

/// A big-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N]
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let medium = tempfile::tempfile().unwrap();
        medium.set_len(8 * SECTOR as u64).unwrap();
        Disk {
            medium,
            size: 8 * SECTOR as u64,
            cache: BTreeMap::new(),
            powered: true,
        }
    }

    fn read(disk: &mut Disk, sector: u64) -> u8 {
        let mut data = [0; SECTOR];
        disk.perform(READ, sector * SECTOR as u64, &mut data)
            .unwrap();
        data[0]
    }

    #[test]
    fn what_was_flushed_stays_and_each_other_sector_is_lost_by_itself() {
        let mut disk = disk();
        let write = |disk: &mut Disk, sector: u64, byte| {
            let mut data = [byte; 2 * SECTOR];
            disk.perform(WRITE, sector * SECTOR as u64, &mut data)
                .unwrap();
        };
        write(&mut disk, 0, 1);
        disk.perform(FLUSH, 0, &mut []).unwrap();
        write(&mut disk, 0, 2);
        write(&mut disk, 1, 3);
        assert_eq!([0, 1, 2].map(|sector| read(&mut disk, sector)), [2, 3, 3]);
        let shared = VolatileDisk(Arc::new(Mutex::new(disk)));
        // Nothing of the first, one of the two writes of the second, all of the third.
        let mut kept = [0, 1, 1].into_iter();
        assert_eq!(
            VolatileDisk::lose_power(std::slice::from_ref(&shared), |_| kept.next().unwrap())
                .unwrap(),
            2
        );
        let mut disk = shared.0.lock().unwrap();
        assert!(disk.perform(FLUSH, 0, &mut []).is_err(), "no power");
        disk.powered = true;
        assert_eq!([0, 1, 2].map(|sector| read(&mut disk, sector)), [1, 2, 3]);
        assert_eq!(
            disk.perform(READ, 7 * SECTOR as u64, &mut [0; 2 * SECTOR])
                .unwrap(),
            EINVAL
        );
    }
}
