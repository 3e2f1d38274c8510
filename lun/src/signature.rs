//! Lists what libblkid recognises on a LUN, by the programs of util-linux: `wipefs`, else `blkid`.
//!
//! The program gets the open descriptor as its standard input and opens `/proc/self/fd/0`: it reads
//! the LUN that was opened, wherever the path leads by now. It runs with only `LC_ALL=C` in its
//! environment, and is looked for in fixed folders only.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::within;
use crate::open::{Lun, OpenError, other};

const PROGRAM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Time limit of a program that reads the LUN.
const SIGNATURES_MAX: Duration = Duration::from_secs(60);
const OPENED_LUN: &str = "/proc/self/fd/0";
/// Exit statuses of `blkid -p` (blkid(8)).
const BLKID_NOTHING: i32 = 2;
const BLKID_AMBIVALENT: i32 = 8;

/// A mark on a LUN by which a program would take it for its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// libblkid's name: `ext4`, `LVM2_member`, `crypto_LUKS`, `gpt`; `ambivalent` for several that
    /// contradict each other (`blkid` only).
    pub kind: String,
    /// The purpose of the signature.
    pub usage: SignatureUsage,
    /// UUID of the file system, volume or table.
    pub uuid: Option<String>,
    /// Label of the file system.
    pub label: Option<String>,
    /// Offset of the magic bytes, in bytes from the start; `None` if `blkid` was run, which does
    /// not report it.
    pub offset: Option<u64>,
}

/// The purpose of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureUsage {
    /// A file system.
    Filesystem,
    /// Member of a RAID or a volume group.
    Raid,
    /// An encrypted volume.
    Crypto,
    /// A partition table.
    PartitionTable,
    /// Anything else: swap, a cache, or contradicting signatures.
    Other,
}

/// Why the signatures could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// util-linux is not installed.
    #[error("neither wipefs nor blkid found in {searched}: install util-linux")]
    ProgramMissing {
        /// The folders that were searched.
        searched: String,
    },
    /// The program could not be started.
    #[error("cannot run {program}: {source}")]
    Spawn {
        /// Path of the program.
        program: String,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The program failed.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// Path of the program.
        program: String,
        /// The exit status, in words.
        status: String,
        /// The program's standard error.
        message: String,
    },
    /// The program's output does not match its manual.
    #[error("unexpected output of {program}: {cause}")]
    Output {
        /// Name of the program.
        program: &'static str,
        /// What is wrong with the output.
        cause: String,
    },
}

/// Lists everything that libblkid recognises on the LUN, in the order of the program. Empty:
/// nothing.
///
/// # Errors
/// [`OpenError::Signatures`]; [`OpenError::Other`] for a LUN that does not answer in time.
pub fn signatures(lun: &Lun) -> Result<Vec<Signature>, OpenError> {
    let opened = lun.duplicate()?;
    within(SIGNATURES_MAX, move |_| {
        signatures_with(opened, &PROGRAM_FOLDERS)
    })
    .map_err(|source| other(&lun.path, "look for signatures on", source))?
    .map_err(|source| OpenError::Signatures {
        path: lun.path.clone(),
        source,
    })
}

/// Runs a program of util-linux on the opened LUN.
pub(crate) fn run_on(
    lun: &Lun,
    program: &'static str,
    arguments: &[&str],
) -> Result<(), OpenError> {
    let problem = |source: io::Error| other(&lun.path, "run a program of util-linux on", source);
    let path = find_program(program, &PROGRAM_FOLDERS).ok_or_else(|| {
        let searched = PROGRAM_FOLDERS.join(", ");
        problem(io::Error::other(format!(
            "{program} is not in {searched}: install util-linux"
        )))
    })?;
    let arguments = [arguments, &[OPENED_LUN]].concat();
    let output = run(&path, &arguments, lun.duplicate()?)
        .map_err(|error| problem(io::Error::other(error)))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(problem(io::Error::other(failed(&path, &output)))),
    }
}

/// `PARTUUID` of an open partition, for kernels that do not report it in sysfs. `Ok(None)`: the
/// partition has none, or `blkid` is not installed.
pub(crate) fn partition_uuid_by_blkid(lun: OwnedFd) -> Result<Option<String>, SignatureError> {
    let Some(program) = find_program("blkid", &PROGRAM_FOLDERS) else {
        return Ok(None);
    };
    let output = run(&program, &["-p", "-o", "export", OPENED_LUN], lun)?;
    Ok(export_fields(&output.stdout)?
        .into_iter()
        .find(|(name, _)| name == "PART_ENTRY_UUID")
        .map(|(_, uuid)| uuid.to_ascii_lowercase()))
}

fn signatures_with(lun: OwnedFd, folders: &[&str]) -> Result<Vec<Signature>, SignatureError> {
    if let Some(program) = find_program("wipefs", folders) {
        let columns = [
            "--no-act",
            "--json",
            "--output",
            "DEVICE,OFFSET,TYPE,USAGE,UUID,LABEL",
            OPENED_LUN,
        ];
        let output = run(&program, &columns, lun)?;
        return if output.status.success() {
            parse_wipefs(&output.stdout)
        } else {
            Err(failed(&program, &output))
        };
    }
    if let Some(program) = find_program("blkid", folders) {
        let output = run(&program, &["-p", "-o", "export", OPENED_LUN], lun)?;
        return match output.status.code() {
            Some(0) => parse_blkid(&output.stdout),
            // The same status means "nothing" and "cannot open"; only the second comes with a
            // message.
            Some(BLKID_NOTHING) if output.stderr.is_empty() => Ok(Vec::new()),
            Some(BLKID_AMBIVALENT) => Ok(vec![ambivalent()]),
            Some(_) | None => Err(failed(&program, &output)),
        };
    }
    Err(SignatureError::ProgramMissing {
        searched: folders.join(", "),
    })
}

/// Parses the output of `wipefs --json`. Older versions print nothing at all when there is nothing.
fn parse_wipefs(output: &[u8]) -> Result<Vec<Signature>, SignatureError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        signatures: Vec<Row>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Row {
        #[serde(rename = "device")]
        _device: Option<String>,
        offset: Offset,
        r#type: String,
        usage: Option<String>,
        uuid: Option<String>,
        label: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Offset {
        Number(u64),
        Text(String),
    }
    let unexpected = |cause: String| SignatureError::Output {
        program: "wipefs",
        cause,
    };
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let document: Document =
        serde_json::from_str(&readable(output)).map_err(|error| unexpected(error.to_string()))?;
    let mut signatures = Vec::with_capacity(document.signatures.len());
    for row in document.signatures {
        let offset = match row.offset {
            Offset::Number(number) => number,
            Offset::Text(text) => {
                parse_number(&text).ok_or_else(|| unexpected(format!("offset {text:?}")))?
            }
        };
        if row.r#type.is_empty() {
            return Err(unexpected(format!("no type at offset {offset}")));
        }
        signatures.push(Signature {
            usage: usage(row.usage.as_deref().unwrap_or_default()),
            kind: row.r#type,
            uuid: row.uuid,
            label: row.label,
            offset: Some(offset),
        });
    }
    Ok(signatures)
}

/// Makes a program's output readable text. A label is in whatever character set its owner had:
/// bytes that are not UTF-8 become U+FFFD, control characters other than a newline become '?'.
fn readable(output: &[u8]) -> String {
    let is_odd = |c: char| c.is_control() && c != '\n';
    String::from_utf8_lossy(output).replace(is_odd, "?")
}

/// Parses the output of `blkid -p -o export`: at most a superblock and a partition table.
/// `PART_ENTRY_*` reports where a partition lies on its disk, nothing about its content.
fn parse_blkid(output: &[u8]) -> Result<Vec<Signature>, SignatureError> {
    let fields = export_fields(output)?;
    let get = |wanted: &str| {
        fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.clone())
    };
    let mut signatures = Vec::new();
    if let Some(kind) = get("TYPE") {
        let usage = usage(&get("USAGE").unwrap_or_default());
        signatures.push(Signature {
            kind,
            usage,
            uuid: get("UUID"),
            label: get("LABEL"),
            offset: None,
        });
    }
    if let Some(kind) = get("PTTYPE") {
        let usage = SignatureUsage::PartitionTable;
        signatures.push(Signature {
            kind,
            usage,
            uuid: get("PTUUID"),
            label: None,
            offset: None,
        });
    }
    Ok(signatures)
}

/// Parses `NAME=value` lines; a backslash quotes the next character.
fn export_fields(output: &[u8]) -> Result<Vec<(String, String)>, SignatureError> {
    readable(output)
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once('=').ok_or_else(|| SignatureError::Output {
                program: "blkid",
                cause: format!("line {line:?} has no '='"),
            })?;
            Ok((name.to_owned(), unquoted(value)))
        })
        .collect()
}

fn unquoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => out.extend(characters.next()),
            _ => out.push(character),
        }
    }
    out
}

fn usage(text: &str) -> SignatureUsage {
    match text {
        "filesystem" => SignatureUsage::Filesystem,
        "raid" => SignatureUsage::Raid,
        "crypto" => SignatureUsage::Crypto,
        "partition-table" => SignatureUsage::PartitionTable,
        // libblkid's own word is "other". A signature counts whatever its purpose.
        _ => SignatureUsage::Other,
    }
}

fn ambivalent() -> Signature {
    Signature {
        kind: "ambivalent".to_owned(),
        usage: SignatureUsage::Other,
        uuid: None,
        label: None,
        offset: None,
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn find_program(name: &str, folders: &[&str]) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

fn run(program: &Path, arguments: &[&str], lun: OwnedFd) -> Result<Output, SignatureError> {
    Command::new(program)
        .args(arguments.iter().map(OsStr::new))
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::from(lun))
        .output()
        .map_err(|source| SignatureError::Spawn {
            program: program.display().to_string(),
            source,
        })
}

fn failed(program: &Path, output: &Output) -> SignatureError {
    SignatureError::Failed {
        program: program.display().to_string(),
        status: output.status.to_string(),
        message: crate::sysfs::clean_text(&output.stderr)
            .unwrap_or_else(|| "no message".to_owned()),
    }
}

impl fmt::Display for SignatureUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SignatureUsage::Filesystem => "file system",
            SignatureUsage::Raid => "raid or volume group member",
            SignatureUsage::Crypto => "encrypted volume",
            SignatureUsage::PartitionTable => "partition table",
            SignatureUsage::Other => "signature",
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.usage)?;
        if let Some(label) = &self.label {
            write!(f, ", label {label:?}")?;
        }
        if let Some(uuid) = &self.uuid {
            write!(f, ", uuid {uuid}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", at byte {offset}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::OpenOptions;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    fn ext4() -> Signature {
        Signature {
            kind: "ext4".into(),
            usage: SignatureUsage::Filesystem,
            uuid: Some("425ee821".into()),
            label: Some("my \"lab".into()),
            offset: Some(0x438),
        }
    }

    fn gpt(offset: u64) -> Signature {
        Signature {
            kind: "gpt".into(),
            usage: SignatureUsage::PartitionTable,
            uuid: None,
            label: None,
            offset: Some(offset),
        }
    }

    #[test]
    fn wipefs_documents_are_read() {
        let row = r#"{"device":"0","offset":"0x438","type":"ext4","usage":"filesystem","uuid":"425ee821","label":"my \"lab"}"#;
        let table = |offset: &str| {
            format!(
                r#"{{"device":"0","offset":{offset},"type":"gpt","usage":"partition-table","uuid":null,"label":null}}"#
            )
        };
        let cases = [
            (String::new(), vec![]),
            ("\n".into(), vec![]),
            (r#"{"signatures": [ ]}"#.into(), vec![]),
            (format!(r#"{{"signatures": [{row}]}}"#), vec![ext4()]),
            (
                format!(
                    r#"{{"signatures": [{},{},{row}]}}"#,
                    table("\"0x200\""),
                    table("1024")
                ),
                vec![gpt(512), gpt(1024), ext4()],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_wipefs(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn labels_that_are_not_utf8_are_read() {
        let wipefs = b"{\"signatures\": [{\"device\":\"0\",\"offset\":\"0x438\",\"type\":\"ext4\",\"usage\":\"filesystem\",\"uuid\":null,\"label\":\"B\xfcro\x1b\"}]}";
        let blkid = b"LABEL=B\xfcro\x1b\nTYPE=ext4\nUSAGE=filesystem\n";
        for found in [parse_wipefs(wipefs), parse_blkid(blkid)] {
            let found = found.unwrap();
            assert_eq!(found[0].label.as_deref(), Some("B\u{fffd}ro?"));
        }
    }

    #[test]
    fn wipefs_output_that_is_not_in_the_manual_is_an_error() {
        for text in [
            "DEVICE OFFSET TYPE",
            "[]",
            "{}",
            r#"{"signatures": null}"#,
            r#"{"signatures": [], "more": 1}"#,
            r#"{"signatures": [{"device":"0","type":"ext4","usage":null,"uuid":null,"label":null}]}"#,
            r#"{"signatures": [{"device":"0","offset":"zz","type":"ext4","usage":null,"uuid":null,"label":null}]}"#,
            r#"{"signatures": [{"device":"0","offset":"-1","type":"ext4","usage":null,"uuid":null,"label":null}]}"#,
            r#"{"signatures": [{"device":"0","offset":"0x1","type":"","usage":null,"uuid":null,"label":null}]}"#,
            r#"{"signatures": [{"device":"0","offset":"0x1","type":null,"usage":null,"uuid":null,"label":null}]}"#,
            "{\"signatures\": [",
        ] {
            assert!(
                matches!(
                    parse_wipefs(text.as_bytes()),
                    Err(SignatureError::Output { .. })
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn blkid_texts_are_read() {
        let superblock = "DEVNAME=/dev/x\nLABEL=my\\ \\\"lab\nUUID=425ee821\nVERSION=1.0\nTYPE=ext4\nUSAGE=filesystem\n";
        let expected = Signature {
            offset: None,
            ..ext4()
        };
        assert_eq!(
            parse_blkid(superblock.as_bytes()).unwrap(),
            std::slice::from_ref(&expected)
        );
        let both = format!("{superblock}PTUUID=1234abcd\nPTTYPE=dos\n");
        let table = Signature {
            kind: "dos".into(),
            uuid: Some("1234abcd".into()),
            offset: None,
            ..gpt(0)
        };
        assert_eq!(parse_blkid(both.as_bytes()).unwrap(), [expected, table]);
        let partition =
            "DEVNAME=/dev/x1\nPART_ENTRY_SCHEME=gpt\nPART_ENTRY_TYPE=0fc6\nPART_ENTRY_UUID=ABC\n";
        assert_eq!(parse_blkid(partition.as_bytes()).unwrap(), []);
        assert!(parse_blkid(b"TYPE ext4\n").is_err());
    }

    #[test]
    fn value_that_ends_in_a_backslash_is_read() {
        assert_eq!(unquoted("a\\"), "a");
        assert_eq!(unquoted("\\\\a\\ b"), "\\a b");
    }

    #[test]
    fn missing_programs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        let error = signatures_with(File::open("/dev/null").unwrap().into(), &[name])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("wipefs") && error.contains("util-linux") && error.contains(name),
            "{error}"
        );
    }

    /// Runs a shell script in the place of a program.
    fn ask_script(name: &str, script: &str) -> Result<Vec<Signature>, SignatureError> {
        let _alone = crate::testing::alone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        // Another process writes the script: if this process wrote it, a fork could still have the
        // file open for writing, and the script could not be run.
        std::process::Command::new("/bin/sh")
            .args([
                "-c",
                "printf '%s' \"$1\" > \"$2\"",
                "sh",
                &format!("#!/bin/sh\n{script}\n"),
                path.to_str().unwrap(),
            ])
            .status()
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        signatures_with(
            File::open("/dev/null").unwrap().into(),
            &[folder.path().to_str().unwrap()],
        )
    }

    #[test]
    fn exit_statuses_of_blkid_are_told_apart() {
        assert_eq!(ask_script("blkid", "exit 2").unwrap(), []);
        assert_eq!(
            ask_script("blkid", "echo TYPE=xfs; exit 0").unwrap()[0].kind,
            "xfs"
        );
        assert_eq!(
            ask_script("blkid", "echo ambivalent >&2; exit 8").unwrap(),
            [ambivalent()]
        );
        for script in ["echo cannot open >&2; exit 2", "exit 4", "kill -9 $$"] {
            assert!(
                matches!(
                    ask_script("blkid", script),
                    Err(SignatureError::Failed { .. })
                ),
                "{script}"
            );
        }
    }

    #[test]
    fn failing_wipefs_is_an_error_with_its_message_and_not_an_empty_disk() {
        let error = ask_script("wipefs", "echo cannot read >&2; exit 1")
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot read"), "{error}");
    }

    #[test]
    fn both_programs_find_an_ext4_and_neither_finds_anything_on_zeroes() {
        let _alone = crate::testing::alone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        let lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        if find_program("wipefs", &PROGRAM_FOLDERS).is_none()
            || find_program("blkid", &PROGRAM_FOLDERS).is_none()
        {
            crate::testing::skip("no util-linux here");
            return;
        }
        assert_eq!(signatures(&lun).unwrap(), []);
        let blkid_alone = tempfile::tempdir().unwrap();
        let blkid = find_program("blkid", &PROGRAM_FOLDERS).unwrap();
        std::os::unix::fs::symlink(blkid, blkid_alone.path().join("blkid")).unwrap();
        let by_blkid = || {
            signatures_with(
                lun.duplicate().unwrap(),
                &[blkid_alone.path().to_str().unwrap()],
            )
            .unwrap()
        };
        assert_eq!(by_blkid(), []);
        let Some(mkfs) = find_program("mkfs.ext4", &PROGRAM_FOLDERS) else {
            crate::testing::skip("no mkfs.ext4 here");
            return;
        };
        assert!(
            Command::new(mkfs)
                .args(["-q", "-F", "-L", "my \"lab"])
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let found = signatures(&lun).unwrap();
        assert_eq!(found.len(), 1);
        let Signature {
            kind,
            usage,
            uuid,
            label,
            offset,
        } = &found[0];
        assert_eq!(
            (kind.as_str(), *usage, *offset),
            ("ext4", SignatureUsage::Filesystem, Some(0x438))
        );
        assert_eq!(label.as_deref(), Some("my \"lab"));
        assert_eq!(
            by_blkid(),
            [Signature {
                offset: None,
                uuid: uuid.clone(),
                ..found[0].clone()
            }]
        );
    }

    #[test]
    fn signature_reads_as_a_phrase() {
        assert_eq!(
            ext4().to_string(),
            "ext4 (file system), label \"my \\\"lab\", uuid 425ee821, at byte 1080"
        );
    }
}
