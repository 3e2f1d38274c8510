//! The rooms of shuntd use each other in one direction.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

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
        for (at, _) in part.match_indices("crate::") {
            // `pub(in crate::daemon)` names nothing.
            if part[..at].ends_with("(in ") {
                continue;
            }
            for path in paths_of(&part[at + "crate::".len()..]) {
                if path[0] == "daemon" {
                    named.insert(path[1..].to_vec());
                }
            }
        }
        for (at, _) in part.match_indices("super::") {
            // The rest of a longer path.
            if part[..at].ends_with("::") {
                continue;
            }
            for path in paths_of(&part[at..]) {
                let up = path.iter().take_while(|word| *word == "super").count();
                let rest = &path[up..];
                let path = match here.len().checked_sub(up) {
                    Some(kept) => [&here[..kept], rest].concat(),
                    // Further up is outside of the daemon.
                    None if rest.first().is_some_and(|word| word == "daemon") => rest[1..].to_vec(),
                    None => continue,
                };
                named.insert(path.into_iter().filter(|word| !word.is_empty()).collect());
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
        ("use crate::{daemon::api::records, names};", true),
        ("use crate::daemon;", true),
        ("use super::super::super::daemon::api::feed;", true),
        ("use crate::{daemon::context, names};", false),
        ("use super::super::super::store::Change;", false),
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
