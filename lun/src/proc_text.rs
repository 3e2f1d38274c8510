//! The texts of `/proc`: mounts and swap areas. Pure functions over bytes; paths need not be UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A block device's major and minor number.
pub(crate) type DeviceNumber = (u32, u32);

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Device of the file system; major 0 = an anonymous number (btrfs, overlay, network).
    pub(crate) number: DeviceNumber,
    pub(crate) mount_point: PathBuf,
    pub(crate) file_system: String,
    pub(crate) source: PathBuf,
}

/// A line in a text of the kernel that does not match its manual page.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unexpected line in {text}: {line:?}")]
pub(crate) struct UnexpectedLine {
    text: &'static str,
    line: String,
}

/// Parses a mountinfo text. A malformed line is an error: a mount that is overlooked could cost
/// data.
pub(crate) fn parse_mountinfo(text: &[u8]) -> Result<Vec<Mount>, UnexpectedLine> {
    lines(text)
        .map(|line| mount(line).ok_or_else(|| unexpected("mountinfo", line)))
        .collect()
}

/// Parses `/proc/swaps`: the paths of the swap areas. The first line is the heading.
pub(crate) fn parse_swaps(text: &[u8]) -> Result<Vec<PathBuf>, UnexpectedLine> {
    let mut all = lines(text);
    let Some(heading) = all.next() else {
        return Ok(Vec::new());
    };
    if !heading.starts_with(b"Filename") {
        return Err(unexpected("swaps", heading));
    }
    all.map(|line| swap(line).ok_or_else(|| unexpected("swaps", line)))
        .collect()
}

/// Parses `MAJOR:MINOR`.
pub(crate) fn parse_device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn mount(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue
    let mut fields = line.split(|byte| *byte == b' ');
    let number = parse_device_number(std::str::from_utf8(fields.nth(2)?).ok()?)?;
    let mount_point = path(fields.nth(1)?);
    fields.next()?;
    fields.find(|field| *field == b"-")?;
    // A user chooses the text after `fuse.`: any bytes.
    let file_system = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = path(fields.next()?);
    Some(Mount {
        number,
        mount_point,
        file_system,
        source,
    })
}

fn swap(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|field| !field.is_empty());
    let area = fields.next()?;
    matches!(fields.next()?, b"partition" | b"file").then(|| path(area))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

/// Decodes the kernel's octal escapes (`\040` is a blank). A backslash without three octal digits
/// stays.
fn path(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match tail {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] if *first == b'\\' => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn unexpected(text: &'static str, line: &[u8]) -> UnexpectedLine {
    UnexpectedLine {
        text,
        line: String::from_utf8_lossy(line).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(number: DeviceNumber, mount_point: &str, file_system: &str, source: &str) -> Mount {
        Mount {
            number,
            mount_point: mount_point.into(),
            file_system: file_system.into(),
            source: source.into(),
        }
    }

    #[test]
    fn mountinfo_lines_are_read_with_any_number_of_optional_fields() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            40 27 0:33 /@home /srv/my\\040data\\134x rw shared:1 - btrfs /dev/sdb1 rw,subvol=/@home\n";
        assert_eq!(
            parse_mountinfo(text),
            Ok(vec![
                expected((98, 0), "/mnt2", "ext3", "/dev/root"),
                expected((254, 0), "/", "ext4", "/dev/vda"),
                expected((0, 33), "/srv/my data\\x", "btrfs", "/dev/sdb1"),
            ])
        );
    }

    #[test]
    fn mountinfo_line_that_does_not_fit_is_an_error() {
        for line in [
            &b"garbage"[..],
            b"36 35 98 / /a rw - ext4 s rw",
            b"36 35 8:1 / /a rw ext4 s rw",
            b"36 35 8:1 / /a",
        ] {
            let mut text = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n".to_vec();
            text.extend_from_slice(line);
            let error = parse_mountinfo(&text).unwrap_err();
            assert!(
                error.to_string().contains(&*String::from_utf8_lossy(line)),
                "{error}"
            );
        }
    }

    #[test]
    fn mountinfo_keeps_paths_that_are_not_utf8() {
        let mounts = parse_mountinfo(b"1 2 8:1 / /a\xff rw - fuse.\xfc /dev/sda1 rw").unwrap();
        assert_eq!(
            mounts[0].mount_point.as_os_str().as_encoded_bytes(),
            b"/a\xff"
        );
    }

    #[test]
    fn swap_areas_are_listed_and_unescaped() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /dev/dm-1                               partition\t8388604\t\t0\t\t-2\n\
            /var/swap\\040file                       file\t1024\t0\t-3\n";
        assert_eq!(
            parse_swaps(text),
            Ok(vec!["/dev/dm-1".into(), "/var/swap file".into()])
        );
        assert_eq!(parse_swaps(b""), Ok(vec![]));
    }

    #[test]
    fn swaps_text_without_heading_or_with_an_unknown_type_is_an_error() {
        assert!(parse_swaps(b"/dev/sda2 partition 1 0 -2\n").is_err());
        assert!(parse_swaps(b"Filename Type\n/dev/sda2 tape 1 0 -2\n").is_err());
        assert!(parse_swaps(b"Filename Type\n/dev/sda2\n").is_err());
    }

    #[test]
    fn device_numbers_are_two_decimals() {
        let table = [
            ("8:16", Some((8, 16))),
            ("259:1048575", Some((259, 1_048_575))),
            ("8", None),
            ("a:1", None),
            ("8:", None),
        ];
        for (text, number) in table {
            assert_eq!(parse_device_number(text), number, "{text}");
        }
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        for (field, expected) in [
            ("a\\", "a\\"),
            ("\\04", "\\04"),
            ("\\900", "\\900"),
            ("\\011x", "\tx"),
            ("\\400", "\\400"),
        ] {
            assert_eq!(path(field.as_bytes()), PathBuf::from(expected), "{field}");
        }
    }
}
