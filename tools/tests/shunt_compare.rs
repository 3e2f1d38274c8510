//! The contract of `shunt-compare`.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use common::{Ended, json_lines, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_shunt-compare");
/// More than two chunks, and not a whole number of them.
const SIZE: usize = (9 << 20) + 8192;

struct Pair {
    directory: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        // Below target/, which is more likely than /tmp to support direct I/O.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bytes: Vec<u8> = (0..SIZE).map(|index| (index / 512 * 7) as u8).collect();
        let pair = Self { directory };
        fs::write(pair.a(), &bytes).unwrap();
        fs::write(pair.b(), &bytes).unwrap();
        pair
    }

    fn a(&self) -> PathBuf {
        self.directory.path().join("a")
    }

    fn b(&self) -> PathBuf {
        self.directory.path().join("b")
    }

    fn compare(&self, options: &[&str]) -> Ended {
        let (a, b) = (self.a(), self.b());
        let paths = [a.to_str().unwrap(), b.to_str().unwrap()];
        run(PROGRAM, paths.iter().chain(options))
    }
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn help_and_senseless_command_lines() {
    common::check_contract(
        PROGRAM,
        &[
            &[],
            &["a"],
            &["a", "b", "c"],
            &["a", "b", "--no-such"],
            &["a", "b", "--bytes", "0"],
            &["a", "b", "--bytes", "x"],
        ],
    );
}

#[test]
fn equal_files_are_equal() {
    let ended = Pair::new().compare(&[]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("equal: "), "{ended:?}");
}

#[test]
fn every_different_block_is_counted_and_the_first_are_named() {
    let pair = Pair::new();
    for offset in [0, 4096, 4097, 5 << 20, SIZE as u64 - 1] {
        flip(&pair.b(), offset);
    }
    let ended = pair.compare(&[]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert_eq!(
        ended.stdout,
        "different: 4 of 2306 blocks of 4 KiB differ: 0-1, 1280, 2305\n"
    );

    let records = json_lines(&pair.compare(&["--json"]).stdout);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["type"], "comparison");
    assert_eq!(records[0]["schema"], 1);
    assert_eq!(records[0]["equal"], false);
    assert_eq!(records[0]["different_blocks"], 4);
    assert_eq!(
        records[0]["different_ranges"][1],
        serde_json::json!({"first_block": 1280, "blocks": 1})
    );
}

#[test]
fn many_ranges_are_counted_and_not_all_named() {
    let pair = Pair::new();
    (0..40).for_each(|block| flip(&pair.b(), block * 8192));
    let ended = pair.compare(&[]);
    assert!(
        ended.stdout.contains("different: 40 of ") && ended.stdout.contains("and 24 more ranges"),
        "{ended:?}"
    );
}

#[test]
fn only_the_bytes_asked_for_are_compared() {
    let pair = Pair::new();
    flip(&pair.b(), 5000);
    for (bytes, status) in [("5000", 0), ("5001", 1), ("4K", 0), ("8K", 1), ("9M", 1)] {
        assert_eq!(
            pair.compare(&["--bytes", bytes]).status,
            Some(status),
            "{bytes}"
        );
    }
    let ended = pair.compare(&["--bytes", "1G"]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
}

#[test]
fn different_sizes_are_said_and_the_smaller_is_compared() {
    let pair = Pair::new();
    fs::OpenOptions::new()
        .write(true)
        .open(pair.b())
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let ended = pair.compare(&[]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains("equal: 1 MiB compared") && ended.stdout.contains("the sizes differ"),
        "{ended:?}"
    );
}

#[test]
fn what_cannot_be_read_is_said() {
    let pair = Pair::new();
    fs::remove_file(pair.b()).unwrap();
    let missing = pair.compare(&[]);
    assert_eq!(missing.status, Some(3));
    assert!(missing.stderr.contains("does not exist"), "{missing:?}");
    fs::create_dir(pair.b()).unwrap();
    assert_eq!(pair.compare(&[]).status, Some(3));
    fs::remove_dir(pair.b()).unwrap();
    fs::write(pair.b(), []).unwrap();
    assert_eq!(pair.compare(&[]).status, Some(3));
}

#[test]
fn one_lun_under_two_names_is_refused() {
    let pair = Pair::new();
    fs::remove_file(pair.b()).unwrap();
    fs::hard_link(pair.a(), pair.b()).unwrap();
    let ended = pair.compare(&[]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("the same LUN"), "{ended:?}");
}
