//! Checks that every row of `docs/crash-matrix.md` names tests that exist.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether `file::name` is a test of that name in a file of that name, or a moment of
/// `shunt-power`.
fn exists(sources: &[PathBuf], file: &str, name: &str) -> bool {
    let of_that_name = |path: &&PathBuf| match path.file_stem() {
        // A file `tests.rs` has the tests of the module that its folder is named after.
        Some(stem) if stem == "tests" => path.parent().is_some_and(|folder| folder.ends_with(file)),
        stem => stem.is_some_and(|stem| stem == file),
    };
    let words = match file {
        "shunt-power" => format!("\n    {name},\n"),
        _ => format!("fn {name}("),
    };
    sources.iter().filter(of_that_name).any(|path| {
        let text = fs::read_to_string(path).unwrap();
        let found = text.find(&words);
        found.is_some_and(|at| file == "shunt-power" || is_test(&text[..at]))
    })
}

/// Whether the text before a function ends with the attributes of a test that runs.
fn is_test(before: &str) -> bool {
    let attributes = before.rsplit("\n\n").next().unwrap_or_default();
    attributes.contains("#[test]") && !attributes.contains("#[ignore")
}

/// The problems of the matrix.
fn problems(matrix: &str, sources: &[PathBuf]) -> Vec<String> {
    let rows: Vec<Vec<&str>> = matrix
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| #"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let mut problems = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let number = (index + 1).to_string();
        if row.len() != 6 || row.iter().any(|cell| cell.is_empty()) || row[0] != number {
            problems.push(format!("row {number}: {row:?}"));
            continue;
        }
        let named: Vec<&str> = row[5].split('`').skip(1).step_by(2).collect();
        let tests: Vec<(&str, &str)> = named
            .iter()
            .filter_map(|name| name.split_once("::"))
            .collect();
        if tests.is_empty() && !row[5].starts_with("only in the model") {
            problems.push(format!("row {number} names no test"));
        }
        for (file, name) in tests {
            if !exists(sources, file, name) {
                problems.push(format!("row {number}: there is no {file}::{name}"));
            }
        }
    }
    // The design's list has 29.
    if rows.len() < 29 {
        problems.push(format!("only {} rows", rows.len()));
    }
    problems
}

#[test]
fn every_row_of_the_crash_matrix_has_a_test_that_exists() {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    let matrix = fs::read_to_string(root().join("docs/crash-matrix.md")).unwrap();
    assert_eq!(problems(&matrix, &found), Vec::<String>::new());
    for (damage, instead) in [
        ("deaths::both_die", "deaths::nobody_dies"),
        ("| 17 |", "| 18 |"),
        ("`shunt-power::Suspension`", "`shunt-power::Breakfast`"),
        // A function that is no test.
        (
            "deaths::both_die_at_once_and_the_copy_goes_on",
            "exclusion::down",
        ),
    ] {
        let damaged = matrix.replacen(damage, instead, 1);
        assert_eq!(problems(&damaged, &found).len(), 1, "{damage}");
    }
}
