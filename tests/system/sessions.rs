//! Tests of sessions as an administrator runs them: the queue, limits, and repeated undo and
//! switch.

use std::{
    collections::BTreeSet,
    fs::File,
    process::{Command, Stdio},
};

use serde_json::Value;
use tests::{
    host::Host,
    lun::{self, LoopDevice},
    steady::{SPAN, Steady},
    wait_until,
};

const PAIRS: usize = 10;

/// The highest number of pairs that were copied at once, according to the events.
fn most_at_once(events: &[Value]) -> usize {
    let (mut now, mut most) = (BTreeSet::new(), 0);
    for event in events {
        if event["session"].is_null() || event["state"].is_null() {
            continue;
        }
        let volume = event["volume"].to_string();
        if event["state"] == "syncing" {
            now.insert(volume);
        } else {
            now.remove(&volume);
        }
        most = most.max(now.len());
    }
    most
}

#[test]
fn ten_pairs_are_copied_three_at_a_time_and_more_at_once_when_the_limit_is_raised() {
    let host = Host::new();
    let legs: Vec<[LoopDevice; 2]> = (0..PAIRS)
        .map(|_| [(); 2].map(|()| LoopDevice::new(8 << 20, 512)))
        .collect();
    let mut pairs = Vec::new();
    for (number, [source, target]) in legs.iter().enumerate() {
        lun::scribble(&source.path);
        host.ok(&["attach", &format!("v{number}"), &source.path]);
        pairs.push(format!("v{number}:{}", target.path));
    }
    host.ok(&["set", "--max-pairs", "3"]);
    let mut create = vec!["create", "move", "--rate", "4MiB"];
    create.extend(pairs.iter().map(String::as_str));
    host.ok(&create);
    let told = tempfile::NamedTempFile::new_in("/run").unwrap();
    let mut watcher = Command::new("shunt")
        .arg("--socket")
        .arg(host.socket())
        .args(["events", "--json"])
        .stdin(Stdio::null())
        .stdout(File::create(told.path()).unwrap())
        .spawn()
        .unwrap();
    let events = || -> Vec<Value> {
        let text = std::fs::read_to_string(told.path()).unwrap();
        // The end of the last line may not be written yet.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut read = schema_check::parse_lines(&text[..whole]);
        read.retain(|record| record["type"] == "event");
        read
    };
    wait_until("the watcher has begun", || {
        std::fs::metadata(told.path()).unwrap().len() > 0
    });
    let of = |state: &str| {
        let records = host.records();
        let pairs = records.iter().filter(|record| record["type"] == "pair");
        pairs.filter(|pair| pair["state"] == state).count()
    };
    host.ok(&["start", "move"]);
    wait_until("three are copied", || of("syncing") == 3);
    assert_eq!(of("queued"), PAIRS - 3);
    host.ok(&["set", "--max-pairs", "5"]);
    wait_until("five are copied", || of("syncing") == 5);
    assert_eq!(of("queued"), PAIRS - 5, "the first three had not ended");
    let raised = events();
    host.ok(&["set", "move", "--rate", "unlimited"]);
    host.wait_for("move", "source-selected");
    let copied = |events: &[Value]| {
        let done = events
            .iter()
            .filter(|event| !event["session"].is_null() && event["state"] == "source-selected");
        done.count()
    };
    wait_until("the events have all pairs", || copied(&events()) == PAIRS);
    let all = events();
    let limit_set = raised
        .iter()
        .position(|event| event["code"] == "pairs_max_set" && event["pairs_max"] == 5);
    let limit_set = limit_set.expect("the event of the new limit");
    assert_eq!(most_at_once(&all[..limit_set]), 3);
    assert_eq!(most_at_once(&all), 5);
    let began: Vec<u64> = all[limit_set..]
        .iter()
        .filter(|event| event["state"] == "syncing")
        .take(2)
        .map(|event| event["at_ms"].as_u64().unwrap() - all[limit_set]["at_ms"].as_u64().unwrap())
        .collect();
    println!("two more began {began:?} ms after the limit was raised");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    host.ok(&["switch", "move"]);
    host.ok(&["commit", "move", "--yes"]);
    for (number, [source, target]) in legs.iter().enumerate() {
        host.ok(&["detach", &format!("v{number}")]);
        assert!(lun::are_equal(&source.path, &target.path), "pair {number}");
    }
}

#[test]
fn fifty_undos_and_redos_under_load_copy_nothing() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.bring_into_sync("db", &source, &target, "move");
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    host.ok(&["switch", "move"]);
    let copied = || {
        let told = host.pair("move")["copied_bytes"].clone();
        (host.connect("db").status().copied_bytes, told)
    };
    let before = copied();
    for _ in 0..50 {
        host.ok(&["undo", "move"]);
        host.ok(&["switch", "move"]);
    }
    load.go_on();
    assert_eq!(copied(), before);
    assert_eq!(host.pair("move")["authoritative"], "target");
    load.finish();
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["commit", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn a_session_from_a_file_is_switched_by_itself_once() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let file = tempfile::NamedTempFile::new_in("/run").unwrap();
    let text = format!(
        "session = \"move\"\nswitch = \"when-synced\"\n[[pair]]\nvolume = \"db\"\ntarget = \"{target}\"\n"
    );
    std::fs::write(file.path(), text).unwrap();
    host.ok(&["create", "-f", &file.path().to_string_lossy()]);
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    host.ok(&["start", "move"]);
    host.wait_for("move", "target-selected");
    load.go_on();
    let shown = host.ok(&["show", "move"]).out;
    assert!(shown.contains("switch = \"manual\""), "{shown}");
    assert!(shown.contains("authoritative = \"target\""), "{shown}");
    host.ok(&["undo", "move"]);
    load.go_on();
    load.finish();
    assert_eq!(host.pair("move")["state"], "source-selected");
    host.assert_legs_equal("db", &source, &target);
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}
