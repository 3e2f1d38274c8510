//! Tests of the direction of dependencies, and of the tidiness of the tree.
#![allow(clippy::expect_used, clippy::unwrap_used)]

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
        ("map-file", &["migration-core", "migration-proto", "lun"]),
        (
            "ublk-target",
            &[
                "crash-point",
                "migration-core",
                "migration-proto",
                "lun",
                "leg",
                "map-file",
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
                "map-file",
                "copier",
            ],
        ),
        (
            "tools",
            &["migration-core", "migration-proto", "lun", "map-file"],
        ),
        (
            "tests",
            &[
                "migration-core",
                "migration-proto",
                "lun",
                "map-file",
                "seeded-core",
                "copier",
                "mgr",
            ],
        ),
        ("seeded-core", &[]),
        (
            "fuzz",
            &["migration-core", "migration-proto", "lun", "map-file"],
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

/// The most lines of a file. The unit tests at the end of a file do not count.
const FILE_LINES_MAX: usize = 600;

/// The most lines of a function, from its signature to its closing brace. Exempt are tables:
/// functions that are one match or one list of rows, and have "A table: " in the comment above
/// them.
const FUNCTION_LINES_MAX: usize = 100;

/// The files that are still longer, with their lines. The list may only become shorter.
const LONG_FILES: &[(&str, usize)] = &[
    ("mgr/src/daemon/mod.rs", 677),
    ("mgr/src/daemon/operation/words.rs", 671),
    ("mgr/src/daemon/reconcile.rs", 653),
    ("mgr/src/daemon/requests.rs", 824),
    ("mgr/src/daemon/supervisor.rs", 638),
];

/// The functions that are still longer, with their lines. The list may only become shorter.
const LONG_FUNCTIONS: &[(&str, usize)] = &[
    ("mgr/src/copier/tests/stand_in.rs: serve", 101),
    ("mgr/src/daemon/operation/words.rs: changes", 160),
    ("mgr/src/daemon/reconcile.rs: settle_pair", 102),
    ("mgr/src/daemon/set.rs: changed", 148),
];

/// The lines of a file without the unit tests at its end. A file of tests counts as it is.
fn production_lines(file: &str, text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let of_tests = file.starts_with("tests/") || file.contains("/tests/");
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
    tests.filter(|_| !of_tests).unwrap_or(lines.len())
}

/// A function of a source.
#[derive(Debug, PartialEq, Eq)]
struct Function<'a> {
    name: &'a str,
    /// The number of the line with its name.
    line: usize,
    lines: usize,
    is_table: bool,
}

/// The functions with a body of several lines. cargo fmt puts the closing brace of a function under
/// the beginning of its signature.
fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let is_end = |line: &&str| {
            let rest = line.strip_prefix(indent);
            rest.is_some_and(|rest| rest == "}" || rest.ends_with(';') && !rest.starts_with(' '))
        };
        let has_one_line = line.ends_with([';', '}']);
        let end = lines[index..].iter().position(is_end);
        if let (Some(end), false) = (end, has_one_line) {
            let above = lines[..index].iter().rev().map(|line| line.trim_start());
            let mut above =
                above.take_while(|line| line.starts_with("//") || line.starts_with('#'));
            found.push(Function {
                name,
                line: index + 1,
                lines: end + 1,
                is_table: above.any(|line| line.starts_with("//") && line.contains("A table: ")),
            });
        }
    }
    found
}

/// The name of the function whose signature begins in this line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_qualifier = |word: &str| {
        matches!(word, "const" | "async" | "unsafe" | "extern" | "\"C\"") || word.starts_with("pub")
    };
    // `pub(in some::module)` has a space.
    let before = before.replace("(in ", "(");
    if !before.split_whitespace().all(is_qualifier) {
        return None;
    }
    let end = after.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    (end > 0).then(|| &after[..end])
}

/// Compares sizes with their limit and with the list of exceptions.
fn check_sizes(found: &[(String, usize, usize)], max: usize, known: &[(&str, usize)]) {
    let mut wrong = Vec::new();
    for (name, line, lines) in found.iter().filter(|(_, _, lines)| *lines > max) {
        let allowed = known.iter().find(|(known, _)| known == name);
        let allowed = allowed.map_or(max, |(_, lines)| *lines);
        if *lines > allowed {
            let (file, what) = name.split_once(": ").unwrap_or((name, "the file"));
            wrong.push(format!(
                "{file}:{line}: {what} has {lines} lines, at most {allowed} are allowed"
            ));
        }
    }
    for (name, _) in known {
        if !found
            .iter()
            .any(|(found, _, lines)| found == name && *lines > max)
        {
            wrong.push(format!(
                "{name} is not too long any more: take it off the list"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_have_one_responsibility_which_600_lines_can_hold() {
    let with_tests = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(production_lines("a/src/a.rs", with_tests), 2);
    assert_eq!(production_lines("a/tests/a.rs", with_tests), 5);
    let sizes: Vec<_> = texts()
        .into_iter()
        .map(|(file, text)| {
            let lines = production_lines(&file, &text);
            (file, lines, lines)
        })
        .collect();
    check_sizes(&sizes, FILE_LINES_MAX, LONG_FILES);
}

#[test]
fn functions_have_at_most_100_lines_but_for_tables() {
    let source = "// A table: rows.\n#[test]\nfn a() {\n}\nimpl B {\n    pub(in a::b) const fn c(\n    ) {\n    }\n}\n";
    let [table, method] = &functions(source)[..] else {
        panic!("not two functions");
    };
    assert_eq!((table.name, table.lines, table.is_table), ("a", 2, true));
    let expected = Function {
        name: "c",
        line: 6,
        lines: 3,
        is_table: false,
    };
    assert_eq!(*method, expected);
    let mut sizes = Vec::new();
    for (file, text) in texts() {
        let long = functions(&text).into_iter();
        let long = long.filter(|function| !function.is_table);
        sizes.extend(long.map(|function| {
            let name = format!("{file}: {}", function.name);
            (name, function.line, function.lines)
        }));
    }
    assert!(sizes.len() > 1000, "the functions were not found");
    check_sizes(&sizes, FUNCTION_LINES_MAX, LONG_FUNCTIONS);
}

/// Phrases that a reader has to decode, and what to write instead. Compared with comments and with
/// texts, in lower case.
const ODD_PHRASES: &[(&str, &str)] = &[
    ("anew", "again, from scratch"),
    ("another one", "name the thing"),
    ("by itself", "automatically"),
    ("by themselves", "automatically"),
    ("comes about", "succeeds"),
    ("goes on", "continues"),
    ("going on", "in progress"),
    ("go on", "continue"),
    ("went on", "continued"),
    ("is another", "has changed"),
    ("is told", "gets a report"),
    ("are told", "get a report"),
    ("was told", "got a report"),
    ("is not told", "gets no report"),
    ("tells", "reports"),
    ("left alone", "detached"),
    ("looked at", "checked"),
    ("so few", "name the number"),
    ("so long", "name the time"),
    ("so many", "name the number"),
    ("so much", "name the quantity"),
    ("speaks against", "is a reason to refuse"),
    ("speak against", "are reasons to refuse"),
    ("what is so", "the current state"),
    ("whoever asked", "the client"),
];

/// The part of a line that people read: a comment, or a line with a text in it.
fn prose(line: &str) -> Option<&str> {
    match line.find("//") {
        Some(at) => Some(&line[at..]),
        None => line.find('"').map(|at| &line[at..]),
    }
}

fn has_phrase(text: &str, phrase: &str) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let bytes = text.as_bytes();
    text.match_indices(phrase).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        !is_word(before) && !is_word(bytes.get(at + phrase.len()))
    })
}

#[test]
fn comments_and_texts_are_plain_english_and_comments_are_not_wide() {
    assert!(has_phrase("it goes on.", "goes on") && !has_phrase("it goes once", "goes on"));
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut found = Vec::new();
    for file in files {
        if file.ends_with("tests/architecture.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source");
        for (number, line) in text.lines().enumerate() {
            let place = format!("{}:{}", file.display(), number + 1);
            let is_comment = line.trim_start().starts_with("//");
            if is_comment && line.chars().count() > 100 {
                found.push(format!("{place}: the comment is wider than 100 columns"));
            }
            let Some(read) = prose(line).map(str::to_lowercase) else {
                continue;
            };
            for (phrase, better) in ODD_PHRASES {
                if has_phrase(&read, phrase) {
                    found.push(format!("{place}: \"{phrase}\"; better: {better}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
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

/// The rooms of `mgr/src/daemon` in the order of their table: each uses itself and those before it.
fn rooms(daemon: &Path) -> Vec<String> {
    let page = std::fs::read_to_string(daemon.join("mod.rs")).expect("the loop");
    let room = |line: &str| Some(line.strip_prefix("//! | `")?.split('`').next()?.to_owned());
    page.lines().filter_map(room).collect()
}

/// The room of a module, given by its path below `mgr/src/daemon`. Files directly in there are
/// `base`, except the loop and the start.
fn room_of(daemon: &Path, module: &[String]) -> String {
    match module.first() {
        Some(first) if daemon.join(first).is_dir() => first.clone(),
        Some(first) if first != "start" && daemon.join(format!("{first}.rs")).exists() => {
            "base".to_owned()
        }
        Some(_) | None => "loop".to_owned(),
    }
}

/// The paths that a path of a `use` or of an expression stands for: one, or those of its list.
fn paths_of(text: &str) -> Vec<Vec<String>> {
    let Some(list) = text.strip_prefix('{') else {
        let is_end = |c: char| !c.is_alphanumeric() && c != '_' && c != ':';
        let path = text.split(is_end).next().unwrap_or_default();
        let list = &text[path.len()..];
        let mut path: Vec<String> = path.split("::").map(str::to_owned).collect();
        if !list.starts_with('{') || path.last().is_some_and(|last| !last.is_empty()) {
            return vec![path];
        }
        path.pop();
        return paths_of(list)
            .into_iter()
            .map(|rest| [path.clone(), rest].concat())
            .collect();
    };
    let (mut depth, mut begin, mut paths) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let item = list[begin..at].trim();
                if !item.is_empty() {
                    paths.extend(paths_of(item));
                }
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    paths
}

/// The modules below `mgr/src/daemon` that the source of the module `module` names.
fn named_modules(source: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut named = BTreeSet::new();
    let mut here = module.to_vec();
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| [line.trim(), "\n"])
        .collect();
    for part in code.split_inclusive("mod tests {") {
        for (at, _) in part.match_indices("crate::daemon::") {
            named.extend(paths_of(&part[at + "crate::daemon::".len()..]));
        }
        for (at, _) in part.match_indices("super::") {
            // The rest of a longer path.
            if part[..at].ends_with("::") {
                continue;
            }
            for path in paths_of(&part[at..]) {
                let up = path.iter().take_while(|word| *word == "super").count();
                // Further up is outside of the daemon.
                if let Some(kept) = here.len().checked_sub(up) {
                    let path = [&here[..kept], &path[up..]].concat();
                    named.insert(path.into_iter().filter(|word| !word.is_empty()).collect());
                }
            }
        }
        here = [module, &["tests".to_owned()]].concat();
    }
    named
}

/// What a module of a room names in rooms that stand below it in the table.
fn against_the_order(daemon: &Path, module: &[String], source: &str) -> Vec<String> {
    let rooms = rooms(daemon);
    let place = |room: &str| {
        let place = rooms.iter().position(|known| known == room);
        place.unwrap_or_else(|| panic!("the room {room} is not in the table of daemon/mod.rs"))
    };
    let room = room_of(daemon, module);
    let named = named_modules(source, module).into_iter();
    named
        .filter(|path| place(&room_of(daemon, path)) > place(&room))
        .map(|path| format!("{} of {room} names {}", module.join("::"), path.join("::")))
        .collect()
}

/// One direction means that there is no circle.
#[test]
fn the_rooms_of_the_daemon_use_each_other_in_one_direction() {
    let daemon = root().join("mgr/src/daemon");
    assert!(rooms(&daemon).len() > 5, "the table was not found");
    let mut files = Vec::new();
    sources(&daemon, &mut files);
    let (mut found, mut rooms_named) = (Vec::new(), BTreeSet::new());
    for file in files {
        let below = file.strip_prefix(&daemon).expect("a file of the daemon");
        let words = below.with_extension("");
        let mut module: Vec<String> = words
            .iter()
            .map(|word| word.to_str().expect("a name").to_owned())
            .collect();
        module.retain(|word| word != "mod");
        let source = std::fs::read_to_string(&file).expect("a source");
        let room = room_of(&daemon, &module);
        for path in named_modules(&source, &module) {
            rooms_named.insert((room.clone(), room_of(&daemon, &path)));
        }
        found.extend(against_the_order(&daemon, &module, &source));
    }
    for (room, named) in [("luns", "base"), ("sessions", "volumes"), ("owner", "api")] {
        let pair = (room.to_owned(), named.to_owned());
        assert!(rooms_named.contains(&pair), "{pair:?} was not found");
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_room_that_names_one_below_it_is_found() {
    let daemon = root().join("mgr/src/daemon");
    let module = ["luns", "weak"].map(str::to_owned);
    for (source, is_found) in [
        ("use crate::daemon::api::records;", true),
        ("use crate::daemon::{context, api::{feed, records}};", true),
        ("use super::super::owner::Owner;", true),
        ("let run = crate::daemon::run(config);", true),
        ("use super::checks; // crate::daemon::api", false),
        (
            "use crate::daemon::{context::{self, note}, failure};",
            false,
        ),
        (
            "mod tests {\n    use super::*;\n    use super::super::checks;\n}",
            false,
        ),
        (
            "mod tests {\n    use super::super::super::api::feed;\n}",
            true,
        ),
    ] {
        let found = against_the_order(&daemon, &module, source);
        assert_eq!(!found.is_empty(), is_found, "{source}: {found:?}");
    }
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
