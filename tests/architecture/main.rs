//! Tests of the direction of dependencies, and of the tidiness of the tree.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod rooms;
mod sizes;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
        .to_owned()
}

/// The crates of the workspace, as cargo sees them.
fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("its JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// For each crate of the workspace: the workspace crates that any table of its manifest names.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let packages = packages();
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let named = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .map(name);
            (
                name(package),
                named.filter(|other| ours.contains(other)).collect(),
            )
        })
        .collect()
}

#[test]
fn dependencies_point_in_one_direction() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("crash-point", &[][..]),
        ("migration-core", &[]),
        ("lun", &[]),
        ("migration-proto", &["migration-core", "lun"]),
        ("map-store", &["migration-core", "migration-proto", "lun"]),
        (
            "ublk-target",
            &[
                "crash-point",
                "migration-core",
                "migration-proto",
                "lun",
                "leg",
                "map-store",
            ],
        ),
        ("leg", &["migration-core", "migration-proto", "lun"]),
        (
            "copier",
            &[
                "crash-point",
                "migration-core",
                "migration-proto",
                "lun",
                "leg",
            ],
        ),
        (
            "mgr",
            &[
                "crash-point",
                "migration-core",
                "migration-proto",
                "lun",
                "map-store",
                "copier",
                "schema-check",
            ],
        ),
        (
            "tools",
            &["migration-core", "migration-proto", "lun", "map-store"],
        ),
        (
            "tests",
            &[
                "migration-core",
                "migration-proto",
                "lun",
                "map-store",
                "seeded-core",
                "schema-check",
                "copier",
                "mgr",
            ],
        ),
        ("seeded-core", &[]),
        ("schema-check", &[]),
        (
            "fuzz",
            &["migration-core", "migration-proto", "lun", "map-store"],
        ),
    ]);
    for (package, named) in arrows() {
        let allowed = allowed
            .get(package.as_str())
            .unwrap_or_else(|| panic!("say where {package} belongs"));
        for other in named {
            assert!(
                allowed.contains(&other.as_str()),
                "{package} must not depend on {other}"
            );
        }
    }
}

/// The core that can break its own rules is a separate crate, which only the tests use. In
/// migration-core, which the programs are built with, the feature stays off.
#[test]
fn no_program_is_built_with_crash_points_unless_that_is_asked_for() {
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        let arms = |text: &str| text.contains("crash-points") || text.contains("/armed");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let features = dependency["features"].to_string();
            let is_armed = dependency["name"] == "crash-point" && features.contains("armed");
            assert!(!is_armed && !arms(&features), "{name}: {dependency}");
        }
        for (feature, enables) in package["features"].as_object().expect("features") {
            let enables = enables.to_string();
            assert!(
                feature == "crash-points" || !arms(&enables),
                "{name}: {feature} = {enables}"
            );
        }
    }
}

#[test]
fn no_program_is_built_with_rules_that_can_be_broken() {
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let features = dependency["features"].to_string();
            assert!(!features.contains("seeded-bugs"), "{name}: {dependency}");
            if dependency["name"] == "seeded-core" {
                assert_eq!((name, &dependency["kind"]), ("tests", &"dev".into()));
            }
        }
        for (feature, enables) in package["features"].as_object().expect("features") {
            let enables = enables.to_string();
            let own = name == "seeded-core" && feature == "default";
            assert!(
                own || !enables.contains("seeded-bugs"),
                "{name}: {feature} = {enables}"
            );
        }
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let skipped = path
            .file_name()
            .is_some_and(|name| name == "target" || name == ".git");
        if path.is_dir() && !skipped {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn files_can_be_read_in_a_sitting_and_are_finished() {
    const LINES_MAX: usize = 1000;
    let unfinished = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    for (file, text) in texts() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{file} has {lines} lines");
        for word in &unfinished {
            assert!(!text.contains(word), "{file} has {word}");
        }
    }
}

/// The sources: the path of each below the root, and its text.
fn texts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 50, "the sources were not found");
    let below_root = |path: &Path| {
        let path = path.strip_prefix(root()).expect("below the root");
        path.display().to_string()
    };
    found
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).expect("a source");
            (below_root(path), text)
        })
        .collect()
}

/// A number is never used for two invariants: code and tests refer to them.
#[test]
fn invariants_have_numbers_of_their_own() {
    let page = std::fs::read_to_string(root().join("docs/invariants.md")).expect("the invariants");
    let number = |line: &str| {
        let (number, _) = line.strip_prefix("**")?.split_once('.')?;
        number.parse::<u32>().ok()
    };
    let numbers: Vec<u32> = page.lines().filter_map(number).collect();
    assert!(numbers.len() > 20, "the invariants were not found");
    let unique: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!(unique.len(), numbers.len(), "{numbers:?}");
}

#[test]
fn the_core_is_pure() {
    let core = std::fs::read_to_string(root().join("migration-core/src/lib.rs")).expect("the core");
    for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
        assert!(
            core.contains(attribute),
            "migration-core is not {attribute}"
        );
    }
}

#[test]
fn the_two_commands_of_the_readme_exist_and_ci_calls_the_second() {
    use std::os::unix::fs::PermissionsExt;
    let readme = std::fs::read_to_string(root().join("README.md")).expect("a README");
    for command in ["scripts/demo", "scripts/test"] {
        assert!(
            readme.contains(command),
            "the README does not name {command}"
        );
        let mode = std::fs::metadata(root().join(command))
            .expect(command)
            .permissions()
            .mode();
        assert!(mode & 0o111 != 0, "{command} is not executable");
    }
    let ci = std::fs::read_to_string(root().join(".ci/run")).expect("the CI script");
    assert!(ci.contains("scripts/test"));
}
